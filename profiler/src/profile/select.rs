//! What of a capture is of some processes or threads.

use std::collections::BTreeSet;

use super::{Capture, Profile, Thread};

/// Which threads are meant: those that fit everything that is asked for. Nothing asked for means all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// One of these processes.
    pub pids: Vec<u32>,
    /// Command name of the process.
    pub process: Option<String>,
    /// Name of the thread.
    pub thread: Option<String>,
    /// Path of the cgroup, or of one above it.
    pub cgroup: Option<String>,
}

impl Selection {
    /// Whether everything is meant.
    #[must_use]
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a thread is meant.
    #[must_use]
    pub fn has(&self, thread: &Thread) -> bool {
        let below = |cgroup: &str| {
            let path = cgroup.trim_end_matches('/');
            thread.cgroup.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        (self.pids.is_empty() || self.pids.contains(&thread.pid))
            && self.process.as_ref().is_none_or(|name| *name == thread.process_name)
            && self.thread.as_ref().is_none_or(|name| *name == thread.thread_name)
            && self.cgroup.as_deref().is_none_or(below)
    }

    /// For a person: `pid 42, process redis-server`.
    #[must_use]
    pub fn description(&self) -> String {
        let pids = self.pids.iter().map(|pid| format!("pid {pid}"));
        let named = [("process", &self.process), ("thread", &self.thread), ("cgroup", &self.cgroup)];
        let named = named.into_iter().filter_map(|(what, name)| Some(format!("{what} {}", name.as_ref()?)));
        pids.chain(named).collect::<Vec<_>>().join(", ")
    }
}

impl Capture {
    /// What of the capture is of the threads that are meant: profiles, rows of tables and times that name a process. What is
    /// known of everything only (the accounting, the timeline, latencies of devices, what the recording cost) stays as it is,
    /// and a warning says so.
    #[must_use]
    pub fn selected(mut self, selection: &Selection) -> Self {
        if selection.is_all() {
            return self;
        }
        let index = &mut self.index;
        let mut processes: BTreeSet<(u32, u64)> = BTreeSet::new();
        for profile in &mut self.profiles {
            let meant: Vec<bool> = profile.threads.iter().map(|thread| selection.has(thread)).collect();
            let threads = profile.threads.iter().zip(&meant).filter(|(_, meant)| **meant);
            processes.extend(threads.map(|(thread, _)| (thread.pid, thread.start_time_ns)));
            profile.samples.retain(|sample| meant[sample.thread as usize]);
            *profile = profile.canonical();
            if let Some(summary) = index.origins.get_mut(profile.origin.row().name) {
                let totals = profile.totals();
                (summary.n, summary.total) = (totals[0], totals[profile.origin.row().primary]);
                // What was measured is of all.
                (summary.by_length, summary.by_number, summary.by_size) = (None, None, None);
            }
        }
        let pids: BTreeSet<u32> = processes.iter().map(|(pid, _)| *pid).chain(selection.pids.iter().copied()).collect();
        for table in index.tables.values_mut() {
            let Some(place) = table.labels.iter().position(|label| label == "pid") else { continue };
            table.rows.retain(|row| row.labels[place].parse().is_ok_and(|pid| pids.contains(&pid)));
        }
        let is_thread = |name: &str| selection.thread.as_ref().is_none_or(|thread| thread == name);
        index.thread_times.retain(|time| pids.contains(&time.pid) && is_thread(&time.thread));
        index.lock_times.retain(|time| pids.contains(&time.pid));
        index.slow_requests.requests.retain(|request| pids.contains(&request.pid));
        // By function, not by thread.
        index.function_slices.clear();
        if let Some(memory) = &mut index.memory {
            memory.processes.retain(|process| pids.contains(&process.pid));
        }
        if let Some(live) = &mut index.live {
            let spans = self.profiles.iter().flat_map(Profile::by_span).map(|(span, _)| format!("{span:#x}"));
            let spans: BTreeSet<String> = spans.collect();
            live.sites.retain(|site| spans.contains(&site.span));
        }
        let objects: BTreeSet<&str> =
            self.profiles.iter().flat_map(|profile| &profile.objects).map(|object| object.path.as_str()).collect();
        index.objects.retain(|object| objects.contains(object.path.as_str()));
        index.target.description = format!("{} of {}", selection.description(), index.target.description);
        index.warnings.push(
            "only some threads are shown: the accounting, the timeline, devices and what it cost are of all that was recorded"
                .to_owned(),
        );
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selection_asks_for_everything_it_names() {
        let thread = Thread {
            pid: 7,
            tid: 8,
            start_time_ns: 0,
            exec_count: 0,
            process_name: "server".to_owned(),
            thread_name: "worker".to_owned(),
            cgroup: "/system.slice/server.service".to_owned(),
        };
        let named = |name: &str| Some(name.to_owned());
        let all = Selection::default();
        assert!(all.is_all() && all.has(&thread));
        for (selection, expected) in [
            (Selection { pids: vec![7, 9], ..all.clone() }, true),
            (Selection { pids: vec![9], ..all.clone() }, false),
            (Selection { process: named("server"), thread: named("worker"), ..all.clone() }, true),
            (Selection { process: named("server"), thread: named("other"), ..all.clone() }, false),
            (Selection { cgroup: named("/system.slice"), ..all.clone() }, true),
            (Selection { cgroup: named("/system.slice/"), ..all.clone() }, true),
            (Selection { cgroup: named("/system.slice/serv"), ..all.clone() }, false),
            (Selection { cgroup: named("/"), ..all.clone() }, true),
        ] {
            assert_eq!(selection.has(&thread), expected, "{}", selection.description());
        }
    }
}
