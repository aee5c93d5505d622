//! Who is told of alerts: programs and servers. Few at a time, each for a bounded time.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::{AlertConfig, Fired};
use crate::daemon::metrics::Family;
use crate::daemon::push::client::{Client, Outcome, Protocol};

/// Longest time of a program.
const HOOK_TIME: Duration = Duration::from_secs(30);
/// Programs and servers that are told at a time.
const MAX_TOLD: usize = 4;
/// Attempts to tell a server, and the first pause between two.
const ATTEMPTS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// What came of it.
#[derive(Debug, Default)]
pub struct ActionsState {
    /// Alerts that went off.
    pub fired: AtomicU64,
    /// Programs and servers that were told.
    pub told: AtomicU64,
    /// Programs that failed, and servers that could not be told.
    pub failed: AtomicU64,
    /// Those that were not told, since too many were being told.
    pub dropped: AtomicU64,
}

/// One alert's program and server.
struct Told {
    hook: Vec<String>,
    webhook: Option<Client>,
}

/// Tells of alerts.
pub struct Actions {
    told: Vec<Arc<Told>>,
    state: Arc<ActionsState>,
    room: Arc<Semaphore>,
}

impl Actions {
    /// Makes sure that whoever is to be told can be.
    ///
    /// # Errors
    ///
    /// When the address of a server cannot be used.
    pub fn new(alerts: &[AlertConfig]) -> Result<Self> {
        let told = alerts.iter().map(|alert| {
            let webhook = if alert.webhook.is_empty() {
                None
            } else {
                let ca = Some(alert.ca.as_path()).filter(|ca| !ca.as_os_str().is_empty());
                let client = Client::new(&alert.webhook, "", Protocol::Http("application/json"), None, ca);
                Some(client.with_context(|| format!("alert {:?}", alert.name))?)
            };
            Ok(Arc::new(Told { hook: alert.hook.clone(), webhook }))
        });
        Ok(Self { told: told.collect::<Result<_>>()?, state: Arc::default(), room: Arc::new(Semaphore::new(MAX_TOLD)) })
    }

    /// Tells of an alert, in the background. Must be called on a runtime.
    pub fn tell(&self, place: usize, fired: &Fired) {
        self.state.fired.fetch_add(1, Ordering::Relaxed);
        let Some(told) = self.told.get(place).map(Arc::clone) else { return };
        let Ok(text) = serde_json::to_vec(fired) else { return };
        if !told.hook.is_empty() {
            let (told, text) = (Arc::clone(&told), text.clone());
            self.start(async move { run_hook(&told.hook, &text).await });
        }
        if told.webhook.is_some() {
            self.start(async move {
                match &told.webhook {
                    Some(client) => call(client, text).await,
                    None => true,
                }
            });
        }
    }

    fn start(&self, work: impl Future<Output = bool> + Send + 'static) {
        let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() else {
            self.state.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let state = Arc::clone(&self.state);
        tokio::spawn(async move {
            let _permit = permit;
            let counter = if work.await { &state.told } else { &state.failed };
            counter.fetch_add(1, Ordering::Relaxed);
        });
    }

    /// What came of it.
    #[must_use]
    pub fn state(&self) -> Arc<ActionsState> {
        Arc::clone(&self.state)
    }
}

impl ActionsState {
    /// As metrics.
    #[must_use]
    pub fn metrics(&self) -> Vec<Family> {
        #[expect(clippy::cast_precision_loss, reason = "as Prometheus keeps it")]
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as f64;
        let told = [("told", &self.told), ("failed", &self.failed), ("dropped", &self.dropped)];
        let family = |name: &str, help: &str, values| Family {
            name: name.to_owned(),
            help: help.to_owned(),
            is_counter: true,
            values,
        };
        vec![
            family("alerts", "Alerts that went off", vec![(Vec::new(), of(&self.fired))]),
            family(
                "alert_actions",
                "Programs and servers that were told of alerts",
                told.map(|(outcome, count)| (vec![("outcome", outcome.to_owned())], of(count))).to_vec(),
            ),
        ]
    }
}

/// Runs a program with the alert on its standard input; whether it ended well. Of the environment it has the path alone.
async fn run_hook(hook: &[String], text: &[u8]) -> bool {
    let Some((program, arguments)) = hook.split_first() else { return true };
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let Ok(mut child) = command.spawn() else { return false };
    let ended = timeout(HOOK_TIME, async {
        if let Some(mut input) = child.stdin.take() {
            // One that does not listen may still do what it is for.
            let _ = input.write_all(text).await;
        }
        child.wait().await
    });
    matches!(ended.await, Ok(Ok(status)) if status.success())
}

/// Tells a server, again where it may listen later.
async fn call(client: &Client, text: Vec<u8>) -> bool {
    let mut pause = FIRST_PAUSE;
    for _ in 0..ATTEMPTS {
        match client.send(text.clone()).await {
            Outcome::Accepted => return true,
            Outcome::Refused(_) => return false,
            Outcome::Later(_) => {}
        }
        sleep(pause).await;
        pause *= 4;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_told_by_its_input() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("told");
        let hook = |script: String| vec!["/bin/sh".to_owned(), "-c".to_owned(), script];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let run = |script: String| runtime.block_on(run_hook(&hook(script), b"{\"alert\":1}"));
        assert!(run(format!("cat > {}", file.display())));
        assert_eq!(std::fs::read(&file).unwrap(), b"{\"alert\":1}");
        assert!(!run("exit 3".to_owned()));
        assert!(run("test -z \"$HOME\"".to_owned()));
        assert!(!runtime.block_on(run_hook(&["/does/not/exist".to_owned()], b"")));
    }
}
