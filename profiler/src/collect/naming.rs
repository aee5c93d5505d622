//! Names what was cut from a recording, which may be done on another thread: nothing of the recording is needed any more.

use std::collections::BTreeMap;

use profiler_common::counters::{Counters, Outcome};
use profiler_common::event::Origin;

use super::allocations::scale;
use super::choice::origin_summary;
use super::cut::{Cut, nanoseconds};
use super::events::EventCounts;
use super::host::{host, own_usage};
use super::warnings::doubts;
use crate::analyze::{attribute, classify, function_slices};
use crate::profile::{Accounting, Capture, Index, Overhead, Profile, SCHEMA_VERSION};
use crate::symbolize::{Options, Sources, Symbolized, symbolize};

impl Cut {
    /// Looks the names of its frames up and adds everything up.
    #[must_use]
    pub fn name(self, naming: &Options) -> Capture {
        let Self { facts, span, choice, raw, sliced, mut counters, counts, mut warnings, made, .. } = self;
        let sources = Sources { objects: &self.objects, jit: &self.jit, interpreted: &self.interpreted };
        let Symbolized { mut profiles, objects, completed, warnings: of_symbols } = symbolize(raw, &sources, naming);
        warnings.extend(of_symbols);
        let (mut origins, mut accountings) = (BTreeMap::new(), BTreeMap::new());
        // Before reasons give the stacks other numbers. Wakers have their values only once waits are attributed to them.
        let function_slices = profiles
            .iter()
            .zip(sliced)
            .filter(|(profile, _)| profile.origin != Origin::Waker)
            .map(|(profile, sliced)| {
                let (lengths_ns, values) = sliced.finish(span.duration);
                (profile.origin.row().name.to_owned(), function_slices(profile, lengths_ns, values))
            })
            .collect();
        profiles.iter_mut().for_each(classify);
        for profile in profiles.iter_mut().filter(|profile| profile.origin == Origin::Alloc) {
            scale(profile, if choice.alloc_exact { 1.0 } else { choice.alloc_share.recip() });
        }
        let mended = attribute(&mut profiles, &self.lock_times);
        if let Some(counters) = counters.get_mut(&Origin::Waker) {
            mend(counters, &mended);
        }
        for (profile, completed) in profiles.iter().zip(&completed) {
            let counted = counters.entry(profile.origin).or_default();
            complete(counted, completed);
            let accounting = accounting(profile, counted, &counts);
            warnings.extend(doubts(&accounting));
            let name = profile.origin.row().name.to_owned();
            let mut summary = origin_summary(profile, &facts, counted, choice);
            if profile.origin == Origin::Alloc {
                summary.event.clone_from(&self.allocators);
            }
            origins.insert(name.clone(), summary);
            accountings.insert(name, accounting);
        }
        let samples: u64 = profiles.iter().map(|profile| profile.totals()[0]).sum();
        if self.bpf_runs == 0 && counters.values().any(|counters| counters.hits > 0) {
            warnings.push("the time inside the BPF programs was not measured: that needs CAP_SYS_ADMIN".to_owned());
        }
        let (used, peak_rss_bytes) = own_usage();
        #[expect(clippy::cast_precision_loss, reason = "a mean, shown to four digits")]
        let bpf_ns_per_sample = if samples == 0 { 0.0 } else { self.bpf_ns as f64 / samples as f64 };
        let index = Index {
            schema_version: SCHEMA_VERSION,
            profiler_version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at_ns: span.started_at_ns,
            duration_ns: nanoseconds(span.duration),
            target: facts.target,
            host: host(),
            origins,
            tables: made.tables,
            accounting: accountings,
            overhead: Overhead {
                bpf_ns: self.bpf_ns,
                bpf_runs: self.bpf_runs,
                bpf_ns_per_sample,
                trap_ns: self.trap_ns,
                // Of a recording that has ended, naming it is part.
                agent_cpu_ns: nanoseconds(self.agent_cpu.unwrap_or(used)),
                peak_rss_bytes,
                bpf_map_bytes: self.bpf_map_bytes,
            },
            objects,
            thread_times: self.thread_times,
            lock_times: self.lock_times,
            warnings,
            timeline: self.timeline,
            io_latency: made.latencies,
            slow_requests: self.slow_requests,
            live: self.live,
            memory: Some(self.memory),
            runs: Vec::new(),
            function_slices,
        };
        Capture { index, profiles }
    }
}

/// The accounting of one origin. `counts`: what the events counted themselves, which samples and faults are held against.
fn accounting(profile: &Profile, counters: &Counters, counts: &EventCounts) -> Accounting {
    if let (Origin::Cpu, Some(counts)) = (profile.origin, &counts.sampled) {
        return Accounting {
            periods: counts.periods(),
            idle_periods: counts.idle_periods(),
            ..Accounting::new(counters, counts.expected(counters))
        };
    }
    let counted = counts.faults.filter(|_| profile.origin == Origin::Fault);
    #[expect(clippy::cast_precision_loss, reason = "counts of events are far below 2^53")]
    Accounting::new(counters, counted.unwrap_or(counters.hits) as f64)
}

/// Counts user chains as complete whose outcome says nothing of them.
fn mend(counters: &mut Counters, mended: &BTreeMap<Outcome, u64>) {
    for (&outcome, &events) in mended {
        for outcomes in [&mut counters.user, &mut counters.whole] {
            let moved = events.min(outcomes[outcome as usize]);
            outcomes[outcome as usize] -= moved;
            outcomes[Outcome::Complete as usize] += moved;
        }
    }
}

/// Counts user chains as complete that the programs counted as cut for want of a frame pointer.
fn complete(counters: &mut Counters, completed: &[u64; Outcome::COUNT]) {
    let cut = Outcome::NoFramePointer as usize;
    for (outcome, &events) in completed.iter().enumerate() {
        // What a window has may have been counted in the next one.
        let moved = events.min(counters.user[cut]).min(counters.whole[cut]);
        counters.user[cut] -= moved;
        counters.whole[cut] -= moved;
        counters.user[Outcome::Complete as usize] += moved;
        counters.whole[outcome] += moved;
    }
}
