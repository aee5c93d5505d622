//! `profiler daemon`: records all the time, into a history. And `profiler config`: what it is told.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::{Args as ClapArgs, Subcommand};
use sd_notify::NotifyState;
use toml::Value;

use super::{CommandResult, print};
use crate::daemon::alerts::{Actions, Watcher};
use crate::daemon::config::{CONFIG_FILE, ConfigError, Settings};
use crate::daemon::http::{Server, Service};
use crate::daemon::hub::Hub;
use crate::daemon::metrics::Family;
use crate::daemon::push::Pusher;
use crate::daemon::sinks::Sinks;
use crate::daemon::store::Store;
use crate::daemon::{Notice, State, Supervisor, run as run_daemon, share_memory};
use crate::profile::Capture;

/// A configuration is some hundred lines.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

#[derive(Debug, ClapArgs)]
#[command(after_help = "Values come from flags, else from the environment (PROFILER_COLLECT_RATE_HZ=49 is rate_hz of \
                        [collect]), else from the file, else they are the defaults: `profiler config show`.\n\
                        SIGHUP reads the configuration again; SIGTERM ends it in good order.")]
pub(super) struct DaemonArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Debug, ClapArgs)]
struct ConfigArgs {
    /// The configuration [default: /etc/profiler/config.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the history is [default: /var/lib/profiler]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where HTTP is answered, ADDRESS:PORT [default: 127.0.0.1:4041]; empty for nowhere
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// Set a value of the configuration: collect.rate_hz=49; may be given more than once
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_value)]
    set: Vec<(String, Value)>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct ConfigCommandArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print every value and where it comes from
    Show {
        #[command(flatten)]
        config: ConfigArgs,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the configuration that is in force as a file
    Export {
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Check a configuration and put it where the daemon reads it
    Import {
        /// The configuration; `-` is standard input
        file: PathBuf,
        /// Where to put it [default: /etc/profiler/config.toml]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// `NAME=VALUE`, where the value is one of TOML; any other is a text.
fn parse_value(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE, as in collect.rate_hz=49")?;
    let parsed = toml::from_str::<toml::Table>(&format!("value = {value}")).ok();
    let value = parsed.and_then(|mut table| table.remove("value")).unwrap_or_else(|| Value::String(value.to_owned()));
    Ok((name.to_owned(), value))
}

impl ConfigArgs {
    /// Reads what is said in the file, by the environment and here.
    fn load(&self) -> Result<Settings, ConfigError> {
        let path = self.config.clone().unwrap_or_else(|| CONFIG_FILE.into());
        let text = match read(&path) {
            Ok(text) => Some((path, text)),
            Err(error) if self.config.is_none() && error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(ConfigError::Value { what: path.display().to_string(), cause: error.to_string() });
            }
        };
        let state_dir = self.state_dir.iter().map(|path| {
            let value = Value::String(path.to_string_lossy().into_owned());
            ("store.state_dir", "--state-dir", value)
        });
        let listen = self.listen.iter().map(|listen| ("http.listen", "--listen", Value::String(listen.clone())));
        let set = self.set.iter().map(|(name, value)| (name.as_str(), "--set", value.clone()));
        let flags: Vec<_> = state_dir.chain(listen).chain(set).collect();
        Settings::new(text, std::env::vars(), &flags)
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_CONFIG_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// Runs the daemon.
pub(super) fn run(args: &DaemonArgs) -> CommandResult {
    share_memory();
    let settings = args.config.load()?;
    let directory = settings.config.store.state_dir.clone();
    let store = Store::open(&directory, settings.config.store());
    let store = store.with_context(|| format!("cannot keep a history in {}", directory.display()))?;
    let pusher = Pusher::new(&directory, &settings.config.push.store)?;
    let actions = Actions::new(&settings.config.alerts.alert)?;
    let hub = Arc::new(Hub::default());
    let (told, pushed) = (actions.state(), pusher.clone());
    let state = Arc::new(Mutex::new(State::new()));
    let service = Service::of_daemon(directory, Arc::clone(&hub), store.shown(), settings.config.window())
        .with_metrics(move || told.metrics())
        .with_metrics(move || pushed.metrics());
    let service = with_state(service, &state);
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start");
    let serving = runtime()?;
    let (ask, depth) = tokio::sync::mpsc::channel(4);
    let mut sinks = Sinks {
        store,
        hub,
        pusher: pusher.clone(),
        watcher: Watcher::new(&settings.config.alerts.alert)?,
        actions,
        depth: ask,
        runtime: serving.handle().clone(),
    };
    let sink = Box::new(move |window: Capture| sinks.take(window));
    let server = match settings.config.http.config()? {
        Some(config) => Some(serving.block_on(Server::bind(config))?),
        None => None,
    };
    if let Some(server) = &server {
        eprintln!("profiler: listening on {}", server.address()?);
    }
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    // A thread of its own: attaching and cutting take moments in which nobody would be answered.
    let serve = move || {
        serving.block_on(async {
            if let Some(server) = server {
                tokio::spawn(server.serve(Arc::new(service)));
            }
            tokio::spawn(async move { pusher.run().await });
            let _ = stopped.await;
        });
        // Whoever still waits for a window, or reads the history, is not waited for.
        serving.shutdown_background();
    };
    let serving = std::thread::Builder::new().name("serve".to_owned()).spawn(serve).context("cannot start a thread")?;
    let mut supervisor = Systemd { watchdog: sd_notify::watchdog_enabled() };
    let done = runtime()?.block_on(run_daemon(|| args.config.load(), sink, depth, &state, &mut supervisor));
    drop(stop);
    let _ = serving.join();
    done?;
    Ok(0)
}

/// How much is recorded and what it costs, as metrics.
fn with_state(service: Service, state: &Arc<Mutex<State>>) -> Service {
    let state = Arc::clone(state);
    service.with_metrics(move || {
        let state = state.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let family = |name: &str, help: &str, is_counter, value| Family {
            name: name.to_owned(),
            help: help.to_owned(),
            is_counter,
            values: vec![(Vec::new(), value)],
        };
        #[expect(clippy::cast_precision_loss, reason = "as Prometheus keeps it")]
        let delayed = state.delayed as f64;
        let is_less = state.plan.warning().is_some();
        vec![
            family("budget_cpus", "CPUs that profiling has used on average", false, state.mean_cpu),
            family(
                "budget_reduced",
                "1 while less is recorded, to stay within the budget",
                false,
                f64::from(u8::from(is_less)),
            ),
            family("windows_delayed", "Windows that became longer, since those before had no names yet", true, delayed),
        ]
    })
}

/// systemd, where it has started us, and its journal, or whoever reads what is printed.
struct Systemd {
    watchdog: Option<Duration>,
}

impl Systemd {
    fn say(states: &[NotifyState<'_>]) {
        // Whoever is not supervised has nobody to tell.
        let _ = sd_notify::notify(states);
    }
}

impl Supervisor for Systemd {
    fn ready(&mut self) {
        Self::say(&[NotifyState::Ready]);
    }

    fn reloading(&mut self) {
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            Self::say(&[NotifyState::Reloading, now]);
        }
    }

    fn stopping(&mut self) {
        Self::say(&[NotifyState::Stopping]);
    }

    fn alive(&mut self) {
        Self::say(&[NotifyState::Watchdog]);
    }

    fn alive_every(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 3)
    }

    fn tell(&mut self, notice: Notice) {
        match notice {
            Notice::Started(target) => eprintln!("profiler: recording {}", target.escape_default()),
            Notice::Reloaded => eprintln!("profiler: the configuration was read again"),
            Notice::NotReloaded(error) => eprintln!("profiler: the configuration stays as it was: {error:#}"),
            Notice::Planned(Some(what)) => eprintln!("profiler: {what}"),
            Notice::Planned(None) => eprintln!("profiler: everything is recorded again"),
            Notice::MemoryFreed { bytes } => {
                eprintln!("profiler: {} MiB are above [budget]: what can be read again was forgotten", bytes >> 20);
            }
            Notice::Depth(time) => {
                eprintln!("profiler: an alert went off: everything is recorded for {} s", time.as_secs())
            }
            Notice::TargetEnded => eprintln!("profiler: what was recorded has ended"),
        }
    }
}

/// Runs `profiler config`.
pub(super) fn run_config(args: &ConfigCommandArgs) -> CommandResult {
    match &args.command {
        ConfigCommand::Show { config, json } => print(&show(&config.load()?, *json))?,
        ConfigCommand::Export { config } => print(&config.load()?.to_toml())?,
        ConfigCommand::Import { file, config } => {
            import(file, config.as_deref().unwrap_or_else(|| Path::new(CONFIG_FILE)))?;
        }
    }
    Ok(0)
}

fn show(settings: &Settings, json: bool) -> String {
    if json {
        let values = settings.values().map(
            |(name, value, source)| serde_json::json!({ "name": name, "value": value, "source": source.to_string() }),
        );
        return format!("{}\n", serde_json::Value::Array(values.collect()));
    }
    let lines: Vec<(String, String)> =
        settings.values().map(|(name, value, source)| (format!("{name} = {value}"), source.to_string())).collect();
    let width = lines.iter().map(|(value, _)| value.chars().count()).max().unwrap_or(0);
    lines.iter().map(|(value, source)| format!("{value:width$}  # {source}\n")).collect()
}

fn import(file: &Path, to: &Path) -> anyhow::Result<()> {
    let text = if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().take(MAX_CONFIG_BYTES).read_to_string(&mut text).context("cannot read standard input")?;
        text
    } else {
        read(file).with_context(|| format!("cannot read {}", file.display()))?
    };
    Settings::new(Some((file.to_owned(), text.clone())), [], &[])?;
    let directory = to.parent().ok_or_else(|| anyhow!("{} is no file", to.display()))?;
    if to.is_dir() {
        bail!("{} is a directory", to.display());
    }
    let written = || -> std::io::Result<()> {
        fs::create_dir_all(directory)?;
        let mut new = tempfile::NamedTempFile::new_in(directory)?;
        std::io::Write::write_all(&mut new, text.as_bytes())?;
        new.as_file().sync_all()?;
        new.persist(to).map(drop).map_err(|error| error.error)
    };
    written().with_context(|| format!("cannot write {}", to.display()))?;
    eprintln!("wrote {}: `systemctl reload profiler` makes it take effect", to.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_toml_or_a_text() {
        let value = |text: &str| parse_value(text).unwrap();
        assert_eq!(value("collect.rate_hz=49"), ("collect.rate_hz".to_owned(), Value::Integer(49)));
        assert_eq!(value("collect.cpu=false").1, Value::Boolean(false));
        assert_eq!(value("target.comm=redis").1, Value::String("redis".to_owned()));
        assert_eq!(value("target.pids=[1, 2]").1, Value::Array(vec![Value::Integer(1), Value::Integer(2)]));
        assert!(parse_value("collect.cpu").is_err());
    }

    #[test]
    fn a_configuration_is_put_in_place_only_when_it_is_right() {
        let directory = tempfile::tempdir().unwrap();
        let (file, to) = (directory.path().join("new.toml"), directory.path().join("etc/config.toml"));
        fs::write(&file, "[collect]\nrate_hz = 0\n").unwrap();
        assert!(import(&file, &to).unwrap_err().to_string().contains("collect.rate_hz"));
        assert!(!to.exists());
        fs::write(&file, "[collect]\nrate_hz = 7\n").unwrap();
        import(&file, &to).unwrap();
        let args = ConfigArgs { config: Some(to.clone()), state_dir: None, listen: None, set: vec![] };
        let shown = show(&args.load().unwrap(), false);
        assert!(shown.lines().any(|line| line.starts_with("collect.rate_hz = 7 ") && line.ends_with("config.toml")));
        let named = ConfigArgs {
            config: None,
            state_dir: Some("/srv/p".into()),
            listen: None,
            set: vec![parse_value("nothing.at=1").unwrap()],
        };
        assert!(named.load().unwrap_err().to_string().contains("nothing.at"));
    }
}
