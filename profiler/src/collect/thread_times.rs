//! How long each thread was there, ran and waited: from what the programs say of those that have ended, and the iterator
//! of those that are there at the end.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use profiler_common::wait::EndedThread;

use super::place::comm;
use crate::bpf::Waiting;
use crate::profile::ThreadTime;

/// Threads that have a row each; as many processes have one for what is left of their threads.
const MAX_ROWS: usize = 10_000;

/// Process, its start and thread.
type Key = (u32, u64, u32);

/// The times of threads so far.
#[derive(Debug, Default)]
pub(super) struct ThreadTimes {
    rows: BTreeMap<Key, ThreadTime>,
    /// Those that were there at the end.
    lasting: HashSet<Key>,
}

impl ThreadTimes {
    /// Adds a thread that has ended.
    pub(super) fn add_ended(&mut self, ended: &EndedThread, recorded: &Range<u64>) {
        let key = (ended.pid, ended.start_time_ns, ended.tid);
        // One that ended after it was seen at the end is there already.
        if ended.ended_ns >= recorded.end && self.lasting.contains(&key) {
            return;
        }
        self.add(ThreadTime {
            pid: ended.pid,
            tid: ended.tid,
            start_time_ns: ended.start_time_ns,
            process: comm(&ended.process_comm),
            thread: comm(&ended.thread_comm),
            threads: 1,
            wall_ns: ended.ended_ns.saturating_sub(ended.from_ns.max(recorded.start)),
            on_cpu_ns: ended.on_cpu_ns,
            off_cpu_ns: ended.off_cpu_ns,
        });
    }

    /// Adds a thread that is there at the end.
    ///
    /// `from_ns`: since when it is known; `waited_ns`: how long its wait has lasted, if it waits.
    pub(super) fn add_lasting(&mut self, thread: &Waiting, from_ns: u64, waited_ns: u64, recorded: &Range<u64>) {
        let record = &thread.record;
        let wall_ns = recorded.end.saturating_sub(from_ns.max(recorded.start));
        let off_cpu_ns = record.off_cpu_ns + waited_ns;
        // When a thread that runs came to its CPU is known there alone.
        let on_cpu_ns = if record.waits == 0 { wall_ns.saturating_sub(off_cpu_ns) } else { record.on_cpu_ns };
        self.lasting.insert((record.pid, record.start_time_ns, record.tid));
        self.add(ThreadTime {
            pid: record.pid,
            tid: record.tid,
            start_time_ns: record.start_time_ns,
            process: comm(&record.process_comm),
            thread: comm(&record.thread_comm),
            threads: 1,
            wall_ns,
            on_cpu_ns,
            off_cpu_ns,
        });
    }

    fn add(&mut self, time: ThreadTime) {
        let has_room = |key: &Key, limit: usize| self.rows.contains_key(key) || self.rows.len() < limit;
        let (own, process) = ((time.pid, time.start_time_ns, time.tid), (time.pid, time.start_time_ns, 0));
        let (key, empty) = if has_room(&own, MAX_ROWS) {
            (own, ThreadTime { threads: 0, wall_ns: 0, on_cpu_ns: 0, off_cpu_ns: 0, ..time.clone() })
        } else if has_room(&process, 2 * MAX_ROWS) {
            let (pid, start_time_ns, process) = (time.pid, time.start_time_ns, time.process.clone());
            ((pid, start_time_ns, 0), ThreadTime { pid, start_time_ns, process, ..ThreadTime::default() })
        } else {
            ((0, 0, 0), ThreadTime { process: "(others)".to_owned(), ..ThreadTime::default() })
        };
        let row = self.rows.entry(key).or_insert(empty);
        row.threads += time.threads;
        row.wall_ns += time.wall_ns;
        row.on_cpu_ns += time.on_cpu_ns;
        row.off_cpu_ns += time.off_cpu_ns;
    }

    /// A row each, by process and thread.
    pub(super) fn into_rows(self) -> Vec<ThreadTime> {
        self.rows.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_kept_however_many_threads_there_are() {
        let mut times = ThreadTimes::default();
        let recorded = 1_000..2_000;
        for number in 0..3 * MAX_ROWS as u32 {
            let (pid, tid) = if number % 2 == 0 { (1, number + 1) } else { (number, number) };
            let ended =
                EndedThread { pid, tid, from_ns: 500, ended_ns: 1_500, on_cpu_ns: 200, ..EndedThread::default() };
            times.add_ended(&ended, &recorded);
        }
        let rows = times.into_rows();
        assert!(rows.len() <= 2 * MAX_ROWS + 1, "{}", rows.len());
        let sum = |value: fn(&ThreadTime) -> u64| rows.iter().map(value).sum::<u64>();
        let threads = 3 * MAX_ROWS as u64;
        assert_eq!(
            (sum(|row| row.threads), sum(|row| row.wall_ns), sum(|row| row.on_cpu_ns)),
            (threads, 500 * threads, 200 * threads)
        );
    }

    #[test]
    fn a_thread_is_counted_once() {
        let mut times = ThreadTimes::default();
        let recorded = 1_000..2_000;
        let record = profiler_common::wait::WaitingRecord { pid: 7, tid: 8, off_cpu_ns: 300, ..Default::default() };
        times.add_lasting(&Waiting { record, kernel: Vec::new() }, 0, 0, &recorded);
        let ended =
            EndedThread { pid: 7, tid: 8, ended_ns: 2_000, on_cpu_ns: 700, off_cpu_ns: 300, ..Default::default() };
        times.add_ended(&ended, &recorded);
        let rows = times.into_rows();
        assert_eq!((rows.len(), rows[0].wall_ns, rows[0].on_cpu_ns, rows[0].off_cpu_ns), (1, 1_000, 700, 300));
    }
}
