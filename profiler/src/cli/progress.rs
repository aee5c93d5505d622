//! A line that moves on a terminal; nothing in a pipe.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::collect::Progress;

/// The line. It disappears when it is dropped.
pub(super) struct ProgressLine {
    bar: ProgressBar,
    duration: Option<Duration>,
}

impl ProgressLine {
    /// `quiet`: show nothing even on a terminal.
    pub(super) fn new(duration: Option<Duration>, quiet: bool) -> Self {
        let bar =
            if quiet || !std::io::stderr().is_terminal() { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        bar.set_message("attaching");
        Self { bar, duration }
    }

    /// Shows how far the recording is.
    pub(super) fn update(&self, progress: Progress) {
        // Whole seconds that have passed: never more than the duration by rounding.
        let elapsed = progress.elapsed.as_secs();
        let of = match self.duration {
            Some(duration) => format!(" of {} s", duration.as_secs_f64()),
            None => " s, Ctrl-C to stop".to_owned(),
        };
        let stage = progress.stage.map_or(String::new(), |stage| format!(" \u{b7} {stage}"));
        self.bar.set_message(format!("sampling {elapsed}{of} \u{b7} {} samples{stage}", progress.samples));
        self.bar.tick();
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
