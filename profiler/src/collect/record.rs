//! One recording, from attaching to the last symbol.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::signal::unix::{SignalKind, signal};

use super::command::RunningCommand;
use super::recorder::Recorder;
use super::target::RecordConfig;
use crate::profile::Capture;

/// How a recording gets on.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Time since sampling began.
    pub elapsed: Duration,
    /// Samples so far.
    pub samples: u64,
    /// What is being done, once sampling has ended.
    pub stage: Option<&'static str>,
}

/// What a recording leaves.
#[derive(Debug)]
pub struct Recording {
    /// The capture.
    pub capture: Capture,
    /// The command that was started, which may still run.
    pub command: Option<RunningCommand>,
    /// Whether a signal ended the recording.
    pub interrupted: bool,
}

/// Longer than any recording takes.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Records until the duration has passed, the target has ended or a signal comes.
///
/// # Errors
///
/// When the target is not there, something cannot be attached, or the command cannot be started.
pub async fn record(config: &RecordConfig, progress: &mut dyn FnMut(Progress)) -> Result<Recording> {
    config.target.selection()?;
    // From here on a signal ends the recording in good order.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (mut recorder, naming) = Recorder::start(config)?;
    let until = Instant::now() + config.duration.unwrap_or(FOREVER);
    let interrupted = tokio::select! {
        biased;
        _ = interrupt.recv() => true,
        _ = terminate.recv() => true,
        ended = recorder.run(until, progress) => { ended?; false }
    };
    let (elapsed, samples) = (recorder.elapsed(), recorder.samples());
    progress(Progress { elapsed, samples, stage: Some("naming frames") });
    let (cut, command) = recorder.finish()?;
    Ok(Recording { capture: cut.name(&naming), command, interrupted })
}
