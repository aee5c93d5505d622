//! Where windows go, one after the other: the history, whoever waits for them, the stores of a fleet, the alerts.
//!
//! On a thread of its own: writing takes as long as the disk does, and must not hold up who records.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::alerts::{Actions, Watcher};
use super::hub::Hub;
use super::push::Pusher;
use super::store::Store;
use crate::profile::Capture;

/// Everything that is done with a window.
pub struct Sinks {
    /// The history.
    pub store: Store,
    /// Who waits for windows, and counts them.
    pub hub: Arc<Hub>,
    /// The stores of a fleet.
    pub pusher: Pusher,
    /// The alerts.
    pub watcher: Watcher,
    /// Who is told of them.
    pub actions: Actions,
    /// Where it is asked for that everything is recorded for a time.
    pub depth: mpsc::Sender<Duration>,
    /// What tells runs on this.
    pub runtime: Handle,
}

impl Sinks {
    /// Takes a window. What fails is counted where it fails.
    pub fn take(&mut self, window: Capture) {
        let window = Arc::new(window);
        // Those that wait first: they have waited longest.
        self.hub.publish(Arc::clone(&window));
        // Counted by the store, which tells of it in metrics.
        let _ = self.store.put(&window);
        self.pusher.put(&window);
        let verdict = self.watcher.watch(&window);
        if let Some(range) = verdict.keep {
            // A mark that cannot be written: the disk is full, and the window goes like any other.
            let _ = self.store.keep(range);
        }
        let _entered = self.runtime.enter();
        for (place, fired) in &verdict.fired {
            self.actions.tell(*place, fired);
        }
        if let Some(time) = verdict.capture {
            // Where as many are asked for already, one more changes nothing.
            let _ = self.depth.try_send(time);
        }
    }
}
