//! The daemon's configuration: a file, below the environment, below flags; where each value comes from; what contradicts what.
//!
//! Every value has a default, so that an empty file is one. A new section is a structure of its own with defaults, and a field of
//! [`Config`]. Reads no file itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use profiler_common::event::Origin;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use toml::{Table, Value};

use super::alerts::{AlertConfig, Watcher};
use super::budget::Budget;
use super::http::HttpSettings;
use super::push::PushConfig;
use super::store::StoreConfig;
use crate::bpf::{Limits, max_sample_rate};
use crate::collect::{AllocConfig, CacheDirectory, NamingConfig, RecordConfig, TargetSelection};
use crate::symbolize::DEBUG_DIRECTORY;

/// Where the file is when nobody says otherwise.
pub const CONFIG_FILE: &str = "/etc/profiler/config.toml";

/// How the names of environment variables begin: `PROFILER_COLLECT_RATE_HZ` is `rate_hz` of `[collect]`.
const VARIABLE: &str = "PROFILER";

/// Everything that can be set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Whom to record.
    pub target: TargetConfig,
    /// What to record.
    pub collect: CollectConfig,
    /// What it may cost.
    pub budget: BudgetConfig,
    /// How frames are named.
    pub names: NamesConfig,
    /// The history.
    pub store: HistoryConfig,
    /// Who may ask by HTTP, and where.
    pub http: HttpSettings,
    /// Where windows are sent.
    pub push: PushSettings,
    /// What is watched for.
    pub alerts: AlertsSettings,
}

/// `[target]`: the whole host where nothing is named.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TargetConfig {
    /// Processes.
    pub pids: Vec<u32>,
    /// And those below them.
    pub children: bool,
    /// A cgroup (version 2) and those below it.
    pub cgroup: PathBuf,
    /// Processes and threads of this name.
    pub comm: String,
}

/// `[collect]`: each collector, and how often and how long.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CollectConfig {
    /// Samples of whoever is on a CPU.
    pub cpu: bool,
    /// Waits.
    pub offcpu: bool,
    /// Waits for locks, and who gives them back.
    pub lock: bool,
    /// Page faults.
    pub fault: bool,
    /// System calls.
    pub syscall: bool,
    /// Requests to block devices.
    pub blockio: bool,
    /// Operations on files.
    pub fileio: bool,
    /// Sockets.
    pub net: bool,
    /// Allocations of memory.
    pub alloc: bool,
    /// Who ends waits.
    pub wakers: bool,
    /// Samples a second on each CPU.
    pub rate_hz: u64,
    /// Length of a window, seconds.
    pub window_s: u64,
    /// The part of the targets' CPU time that recording allocations may take, per cent.
    pub alloc_budget_percent: f64,
}

impl Default for CollectConfig {
    fn default() -> Self {
        Self {
            cpu: true,
            offcpu: true,
            lock: false,
            fault: false,
            syscall: false,
            blockio: true,
            fileio: false,
            net: false,
            alloc: false,
            wakers: false,
            rate_hz: 19,
            window_s: 10,
            alloc_budget_percent: 1.0,
        }
    }
}

/// `[budget]`: what the daemon may cost, the time in its BPF programs and the memory of their maps included.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BudgetConfig {
    /// Of one CPU, per cent.
    pub cpu_percent: f64,
    /// Memory, MiB.
    pub memory_mib: u64,
}

impl Default for BudgetConfig {
    fn default() -> Self {
        Self { cpu_percent: 0.5, memory_mib: 128 }
    }
}

/// `[names]`: how frames are named.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NamesConfig {
    /// Directories with debug files.
    pub debug_directories: Vec<PathBuf>,
    /// Whether debug files are fetched from debuginfod servers.
    pub debuginfod: bool,
    /// Whether arguments of generics are left out of names.
    pub shorten: bool,
    /// Where unwind tables and names are kept; empty for the usual directory.
    pub cache_dir: PathBuf,
}

impl Default for NamesConfig {
    fn default() -> Self {
        let debug_directories = vec![DEBUG_DIRECTORY.into()];
        Self { debug_directories, debuginfod: false, shorten: false, cache_dir: PathBuf::new() }
    }
}

/// `[store]`: the history on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HistoryConfig {
    /// Where it is.
    pub state_dir: PathBuf,
    /// Most room that it takes, MiB.
    pub max_mib: u64,
}

impl Default for HistoryConfig {
    fn default() -> Self {
        Self { state_dir: "/var/lib/profiler".into(), max_mib: 1024 }
    }
}

/// `[push]`: `[[push.store]]` for each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PushSettings {
    /// Stores of a fleet.
    pub store: Vec<PushConfig>,
}

/// `[alerts]`: `[[alerts.alert]]` for each.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AlertsSettings {
    /// What is watched for.
    pub alert: Vec<AlertConfig>,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody has set it.
    Default,
    /// The file.
    File(PathBuf),
    /// The environment variable of this name.
    Environment(String),
    /// A flag of this name.
    Flag(&'static str),
}

impl std::fmt::Display for Source {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => write!(formatter, "default"),
            Self::File(path) => write!(formatter, "{}", path.display()),
            Self::Environment(name) => write!(formatter, "${name}"),
            Self::Flag(name) => write!(formatter, "{name}"),
        }
    }
}

/// A configuration with where each value comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The configuration.
    pub config: Config,
    /// By name: `collect.rate_hz`.
    pub sources: BTreeMap<String, Source>,
}

/// Why there is no configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file is not what it should be; says in which line.
    #[error("{}: {cause}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it, and where.
        cause: Box<toml::de::Error>,
    },
    /// A variable or a flag has no value that it could have.
    #[error("{what}: {cause}")]
    Value {
        /// Which.
        what: String,
        /// What is wrong with it.
        cause: String,
    },
    /// Values contradict each other, or are out of their range: a line each.
    #[error("the configuration contradicts itself:\n{}", .0.join("\n"))]
    Conflicts(Vec<String>),
}

impl Settings {
    /// Puts a configuration together and checks it.
    ///
    /// `file`: its path and text; `variables`: of the environment; `flags`: name of the value, name of the flag, value.
    ///
    /// # Errors
    ///
    /// When something is unknown, of another type or out of its range, or contradicts something else: all of that by name.
    pub fn new(
        file: Option<(PathBuf, String)>,
        variables: impl IntoIterator<Item = (String, String)>,
        flags: &[(&str, &'static str, Value)],
    ) -> Result<Self, ConfigError> {
        let mut values = as_table(&Config::default());
        let mut sources: BTreeMap<String, Source> =
            names(&values).into_iter().map(|name| (name, Source::Default)).collect();
        if let Some((path, text)) = file {
            let failed = |cause| ConfigError::File { path: path.clone(), cause: Box::new(cause) };
            // As the structures have it: this names the line of what they do not know.
            toml::from_str::<Config>(&text).map_err(failed)?;
            let given: Table = toml::from_str(&text).map_err(failed)?;
            for name in names(&given) {
                if let Some(value) = value_of(&given, &name) {
                    set(&mut values, &name, value.clone());
                    sources.insert(name, Source::File(path.clone()));
                }
            }
        }
        let by_variable: BTreeMap<String, String> = sources.keys().map(|name| (variable(name), name.clone())).collect();
        for (variable, text) in variables {
            let Some(name) = by_variable.get(&variable) else { continue };
            let value = value_of(&values, name).map(|like| parse(&text, like));
            let Some(Ok(value)) = value else {
                let cause = format!("{text:?} is no value of {name}");
                return Err(ConfigError::Value { what: format!("${variable}"), cause });
            };
            set(&mut values, name, value);
            sources.insert(name.clone(), Source::Environment(variable));
        }
        for (name, flag, value) in flags {
            if !sources.contains_key(*name) {
                let cause = format!("there is no {name}: `profiler config show` lists what there is");
                return Err(ConfigError::Value { what: (*flag).to_owned(), cause });
            }
            set(&mut values, name, value.clone());
            sources.insert((*name).to_owned(), Source::Flag(flag));
        }
        let config: Config = values.try_into().map_err(|error: toml::de::Error| ConfigError::Value {
            what: "the configuration".to_owned(),
            cause: error.message().to_owned(),
        })?;
        let conflicts = config.conflicts();
        if conflicts.is_empty() { Ok(Self { config, sources }) } else { Err(ConfigError::Conflicts(conflicts)) }
    }

    /// Every value with its name and where it comes from, in the order of their names.
    pub fn values(&self) -> impl Iterator<Item = (&str, Value, &Source)> {
        let values = as_table(&self.config);
        self.sources
            .iter()
            .filter_map(move |(name, source)| Some((name.as_str(), value_of(&values, name)?.clone(), source)))
    }

    /// All of it as a file.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(&self.config).unwrap_or_default()
    }
}

impl Config {
    /// What cannot be, a line each.
    fn conflicts(&self) -> Vec<String> {
        let Self { target, collect, budget, store, .. } = self;
        let mut conflicts = Vec::new();
        // What cannot be read now cannot be used either.
        conflicts.extend(self.http.config().err().map(|error| format!("{error:#}")));
        conflicts.extend(Watcher::new(&self.alerts.alert).err().map(|error| error.to_string()));
        let mut check = |is_fine: bool, text: String| {
            if !is_fine {
                conflicts.push(text);
            }
        };
        let named = [
            ("target.pids", !target.pids.is_empty()),
            ("target.cgroup", !target.cgroup.as_os_str().is_empty()),
            ("target.comm", !target.comm.is_empty()),
        ];
        let named: Vec<&str> = named.into_iter().filter_map(|(name, is_set)| is_set.then_some(name)).collect();
        check(named.len() <= 1, format!("{} are set: one target can be recorded", named.join(" and ")));
        check(!target.children || !target.pids.is_empty(), "target.children is set without target.pids".to_owned());
        check(!self.origins().is_empty(), "no collector of [collect] is on: there is nothing to record".to_owned());
        check(
            !collect.wakers || collect.offcpu || collect.lock,
            "collect.wakers says who ends waits, which are not recorded: set collect.offcpu or collect.lock".to_owned(),
        );
        let highest = max_sample_rate();
        check(
            (1..=highest).contains(&collect.rate_hz),
            format!("collect.rate_hz is {}: the kernel allows 1 to {highest}", collect.rate_hz),
        );
        check((1..=3600).contains(&collect.window_s), format!("collect.window_s is {}: 1 to 3600", collect.window_s));
        let percent = |name: &str, value: f64, most: f64| {
            let is_fine = value > 0.0 && value <= most;
            (is_fine, format!("{name} is {value}: above 0, at most {most}"))
        };
        for (is_fine, text) in [
            percent("collect.alloc_budget_percent", collect.alloc_budget_percent, 100.0),
            percent("budget.cpu_percent", budget.cpu_percent, 100.0),
        ] {
            check(is_fine, text);
        }
        check(budget.memory_mib >= 16, format!("budget.memory_mib is {}: at least 16", budget.memory_mib));
        check(store.max_mib >= 8, format!("store.max_mib is {}: at least 8", store.max_mib));
        check(store.state_dir.is_absolute(), format!("store.state_dir is {:?}: a whole path", store.state_dir));
        conflicts
    }

    /// What is to be recorded, in the order of their numbers.
    #[must_use]
    pub fn origins(&self) -> Vec<Origin> {
        let collect = &self.collect;
        let mut origins: Vec<Origin> = [
            (collect.cpu, Origin::Cpu),
            (collect.offcpu, Origin::OffCpu),
            (collect.lock, Origin::Lock),
            (collect.fault, Origin::Fault),
            (collect.syscall, Origin::Syscall),
            (collect.blockio, Origin::BlockIo),
            (collect.fileio, Origin::FileIo),
            (collect.net, Origin::Net),
            (collect.alloc, Origin::Alloc),
        ]
        .into_iter()
        .filter_map(|(is_on, origin)| is_on.then_some(origin))
        .collect();
        origins.sort_unstable();
        origins
    }

    /// What the recording is told.
    #[must_use]
    pub fn record(&self) -> RecordConfig {
        let Self { target, collect, names, .. } = self;
        let TargetConfig { pids, children, cgroup, comm } = target.clone();
        let target = if !pids.is_empty() {
            TargetSelection::Processes { pids, children }
        } else if !cgroup.as_os_str().is_empty() {
            TargetSelection::Cgroup(cgroup)
        } else if !comm.is_empty() {
            TargetSelection::Comm(comm)
        } else {
            TargetSelection::Host
        };
        let NamesConfig { debug_directories, debuginfod, shorten, cache_dir } = names.clone();
        let is_usual = cache_dir.as_os_str().is_empty();
        RecordConfig {
            functions: Vec::new(),
            target,
            origins: self.origins(),
            alloc: AllocConfig { budget: collect.alloc_budget_percent / 100.0, is_exact: false },
            hushes_command: false,
            wakers: collect.wakers,
            slower_ns: 0,
            rate_hz: collect.rate_hz,
            duration: None,
            limits: Limits {
                records: RECORDS,
                ring_bytes: RING_BYTES,
                table_shards: TABLE_SHARDS,
                ..Limits::default()
            },
            cache: if is_usual { CacheDirectory::Usual } else { CacheDirectory::Directory(cache_dir) },
            naming: NamingConfig { debug_directories, debuginfod, shorten },
            drain_every: DRAIN_EVERY.min(self.window()),
            continuous: true,
            watch: None,
        }
    }

    /// The same with everything that a production host bears, at a higher rate: for the time after an alert.
    #[must_use]
    pub fn in_depth(&self) -> Self {
        let mut deep = self.clone();
        let collect = &mut deep.collect;
        for collector in [
            &mut collect.cpu,
            &mut collect.offcpu,
            &mut collect.lock,
            &mut collect.blockio,
            &mut collect.fileio,
            &mut collect.net,
        ] {
            *collector = true;
        }
        collect.rate_hz = collect.rate_hz.max(DEPTH_RATE_HZ).min(max_sample_rate());
        // It is asked for, and for a short time.
        deep.budget.cpu_percent = 100.0;
        deep
    }

    /// Length of a window.
    #[must_use]
    pub const fn window(&self) -> Duration {
        Duration::from_secs(self.collect.window_s)
    }

    /// What it may cost.
    #[must_use]
    pub fn budget(&self) -> Budget {
        Budget { cpu: self.budget.cpu_percent / 100.0, memory_bytes: self.budget.memory_mib << 20 }
    }

    /// What the history is told.
    #[must_use]
    pub fn store(&self) -> StoreConfig {
        StoreConfig { max_bytes: self.store.max_mib << 20, ..StoreConfig::default() }
    }
}

/// The rate of a recording that somebody starts.
const DEPTH_RATE_HZ: u64 = 99;

/// Half of what a recording has: at 19 Hz there are few records, and a map that fills is emptied early.
const RECORDS: u32 = 4_096;
const RING_BYTES: u32 = 2 << 20;

/// MiB of unwind tables: those of a few hundred programs and libraries; the ones that nobody runs make room.
const TABLE_SHARDS: usize = 32;

/// Emptying the maps costs the same whether there is much in them or little.
const DRAIN_EVERY: Duration = Duration::from_secs(5);

fn as_table(config: &Config) -> Table {
    Table::try_from(config).unwrap_or_default()
}

/// The names of all values.
fn names(table: &Table) -> Vec<String> {
    let mut names = Vec::new();
    for (section, value) in table {
        match value {
            Value::Table(values) => names.extend(values.keys().map(|name| format!("{section}.{name}"))),
            _ => names.push(section.clone()),
        }
    }
    names
}

fn value_of<'a>(table: &'a Table, name: &str) -> Option<&'a Value> {
    let (section, name) = name.split_once('.')?;
    table.get(section)?.get(name)
}

fn set(table: &mut Table, name: &str, value: Value) {
    if let Some((section, name)) = name.split_once('.')
        && let Some(Value::Table(section)) = table.get_mut(section)
    {
        section.insert(name.to_owned(), value);
    }
}

/// The environment variable of a value.
fn variable(name: &str) -> String {
    format!("{VARIABLE}_{}", name.replace('.', "_").to_uppercase())
}

/// A value of the type that another one has; of a list, separated by commas.
fn parse(text: &str, like: &Value) -> Result<Value, ()> {
    let text = text.trim();
    Ok(match like {
        Value::Boolean(_) => Value::Boolean(text.parse().map_err(drop)?),
        Value::Integer(_) => Value::Integer(text.parse().map_err(drop)?),
        Value::Float(_) => Value::Float(text.parse().map_err(drop)?),
        Value::Array(_) => {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            Value::Array(
                parts
                    .map(|part| part.parse().map_or_else(|_| Value::String(part.to_owned()), Value::Integer))
                    .collect(),
            )
        }
        _ => Value::String(text.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Option<(PathBuf, String)> {
        Some(("/etc/a.toml".into(), text.to_owned()))
    }

    fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_last_to_say_something_is_believed_and_remembered() {
        let settings = Settings::new(
            file("[collect]\nrate_hz = 50\noffcpu = false\n[target]\npids = [7]\n"),
            variables(&[("PROFILER_COLLECT_RATE_HZ", "60"), ("PROFILER_TARGET_PIDS", "8, 9"), ("PROFILER_BIN", "x")]),
            &[("collect.rate_hz", "--rate", Value::Integer(70))],
        );
        let settings = settings.unwrap();
        assert_eq!((settings.config.collect.rate_hz, &settings.config.target.pids[..]), (70, &[8, 9][..]));
        assert!(!settings.config.collect.offcpu && settings.config.collect.blockio);
        let source = |name: &str| settings.sources[name].to_string();
        assert_eq!(source("collect.rate_hz"), "--rate");
        assert_eq!(source("target.pids"), "$PROFILER_TARGET_PIDS");
        assert_eq!(source("collect.offcpu"), "/etc/a.toml");
        assert_eq!(source("collect.cpu"), "default");
        // What is shown is all there is, and what is exported is the same configuration.
        let again = Settings::new(file(&settings.to_toml()), [], &[]).unwrap();
        assert_eq!(again.config, settings.config);
        assert_eq!(settings.values().count(), settings.sources.len());
    }

    #[test]
    fn what_is_wrong_is_told_by_line_or_name() {
        let error = |text: &str| Settings::new(file(text), [], &[]).unwrap_err().to_string();
        let unknown = error("[collect]\ncpu = true\ncpus = 3\n");
        assert!(unknown.contains("line 3") && unknown.contains("cpus") && unknown.contains("/etc/a.toml"), "{unknown}");
        assert!(error("[collects]\n").contains("collects"));
        assert!(error("[collect]\nrate_hz = \"often\"\n").contains("line 2"));
        let conflicts = error(
            "[target]\npids = [1]\ncomm = \"a\"\n[collect]\ncpu = false\noffcpu = false\nblockio = false\nwakers = true\n\
             window_s = 0\n[budget]\ncpu_percent = 0.0\n",
        );
        for name in ["target.pids and target.comm", "no collector", "collect.wakers", "collect.window_s", "budget.cpu"]
        {
            assert!(conflicts.contains(name), "{name}: {conflicts}");
        }
        let wrong = Settings::new(None, variables(&[("PROFILER_COLLECT_CPU", "maybe")]), &[]).unwrap_err().to_string();
        assert!(wrong.contains("$PROFILER_COLLECT_CPU") && wrong.contains("collect.cpu"), "{wrong}");
    }
}
