//! What a reader must know before he believes the figures of a recording.

use std::time::Duration;

use profiler_common::block::BlockMissed;
use profiler_common::counters::Counters;
use profiler_common::event::Origin;

use super::allocations::Allocations;
use super::cut::Facts;
use super::processes::Interest;
use super::session::Session;
use crate::bpf::Counts;
use crate::process;
use crate::profile::Accounting;

/// Whether the named processes hardly ran, and have children that were not asked for.
fn supervises(session: &Session, facts: &Facts, duration: Duration) -> bool {
    let (Some(profile), Some((_, rate_hz))) = (session.gathered.profile(Origin::Cpu), facts.sampled) else {
        return false;
    };
    #[expect(clippy::cast_precision_loss, reason = "a ratio that is compared with a rough limit")]
    let cpus = profile.events() as f64 / (rate_hz as f64 * duration.as_secs_f64());
    session.processes.interest() == Interest::Named
        && cpus < MAX_SUPERVISOR_CPUS
        && session.roots.iter().any(|&pid| !process::children_of(pid).is_empty())
}

/// How often something was missed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Losses {
    process_events: u64,
    children: u64,
    unsettled: u64,
    mappings: u64,
    threads_refused: u64,
    thread_ends: u64,
    askers: u64,
    dirtiers: u64,
    skipped: u64,
    unplaced: u64,
}

impl Losses {
    /// Since the start of the recording.
    pub(super) fn read(session: &Session) -> Self {
        let kernel = &session.kernel;
        let (threads_refused, thread_ends) = kernel.threads_missed();
        let counts_each = |name: &str| ["block_", "file_", "net_"].iter().any(|prefix| name.starts_with(prefix));
        Self {
            process_events: session.processes.events_lost,
            children: kernel.children_missed(),
            unsettled: session.unsettled,
            mappings: session.processes.mappings_left_out as u64,
            threads_refused,
            thread_ends,
            askers: kernel.blocks_missed(BlockMissed::Requests),
            dirtiers: kernel.blocks_missed(BlockMissed::Dirtiers),
            skipped: kernel.runs_left_out(counts_each),
            unplaced: session.unwinding.unplaced,
        }
    }

    /// Since `before`.
    pub(super) const fn since(&self, before: &Self) -> Self {
        Self {
            process_events: self.process_events.saturating_sub(before.process_events),
            children: self.children.saturating_sub(before.children),
            unsettled: self.unsettled.saturating_sub(before.unsettled),
            mappings: self.mappings.saturating_sub(before.mappings),
            threads_refused: self.threads_refused.saturating_sub(before.threads_refused),
            thread_ends: self.thread_ends.saturating_sub(before.thread_ends),
            askers: self.askers.saturating_sub(before.askers),
            dirtiers: self.dirtiers.saturating_sub(before.dirtiers),
            skipped: self.skipped.saturating_sub(before.skipped),
            unplaced: self.unplaced.saturating_sub(before.unplaced),
        }
    }
}

/// What a reader must know before he believes the figures.
///
/// `duration` and `losses`: of the window; `sampled`: what the sampling events counted, and what was made of it. What could not
/// be read is told once.
pub(super) fn warnings(
    session: &mut Session,
    facts: &Facts,
    duration: Duration,
    losses: &Losses,
    sampled: Option<(&Counts, &Counters)>,
    cpus_changed: u32,
) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |count: u64, text: String| {
        if count > 0 {
            warnings.push(text);
        }
    };
    let Losses { process_events: lost, children: missed, unsettled, mappings: left_out, .. } = *losses;
    warn(lost, format!("{lost} process events were lost: frames of code mapped at that time may have no name"));
    warn(missed, format!("{missed} children could not be followed: more than {} processes", facts.limits.processes));
    warn(unsettled, format!("{unsettled} windows were drained while a program still wrote: a sample may be late"));
    warn(u64::from(cpus_changed), format!("{cpus_changed} CPUs came or went: samples of the moment are missing"));
    let (refused, ends_lost) = (losses.threads_refused, losses.thread_ends);
    warn(refused, format!("{refused} waits of threads are missing: there was no room for more threads"));
    warn(ends_lost, format!("the times of {ends_lost} threads that ended are missing: raise --buffer-mb"));
    let Losses { askers, dirtiers, skipped, unplaced, .. } = *losses;
    warn(
        skipped,
        format!(
            "{skipped} times a program did not run, since another one ran on the CPU: what it counts misses as many"
        ),
    );
    warn(
        askers,
        format!("who asked for {askers} requests to block devices is not known: too many were under way, or held back"),
    );
    warn(
        dirtiers,
        format!("{dirtiers} times a file or a process had no room among those with pages to be written back"),
    );
    warn(unplaced, format!("{unplaced} times there was no room for a process's mappings: its frames may be cut"));
    warn(left_out, format!("{left_out} executable mappings were left out: a process has more than 65,536"));
    for path in std::mem::take(&mut session.unwinding.overflowed) {
        warnings.push(format!("no room for the unwind table of {path}: raise --table-mb; its frames are cut"));
    }
    warnings.extend(session.pythons.warnings());
    warnings.extend(session.slices.warning());
    warnings.extend(session.allocations.iter().flat_map(Allocations::warnings));
    if let [first, rest @ ..] = std::mem::take(&mut session.processes.unreadable).as_slice() {
        let more = if rest.is_empty() { String::new() } else { format!(", and of {} more processes", rest.len()) };
        warnings.push(format!(
            "{first}{more}: user frames have no names; that needs CAP_SYS_PTRACE and no security module against it"
        ));
    }
    let failures = std::mem::take(&mut session.processes.objects.failures);
    warnings.extend(failures.iter().take(MAX_FAILURES_SHOWN).map(ToString::to_string));
    let more = failures.len().saturating_sub(MAX_FAILURES_SHOWN);
    if more > 0 {
        warnings.push(format!("{more} more files could not be read"));
    }
    if facts.hook.is_some() && process::pid_namespace().is_some() {
        warnings.push(
            "inside a pid namespace, threads that waited at the end are missing, and there is no ledger".to_owned(),
        );
    }
    warnings.extend(sampled.and_then(|(counts, counters)| unexplained(counts, counters)));
    if supervises(session, facts, duration) {
        warnings.push("the target was nearly idle and has children that work: --children samples them too".to_owned());
    }
    warnings
}

/// Whether there are more periods without a sample than idle time explains.
fn unexplained(counts: &Counts, counters: &Counters) -> Option<String> {
    let unsampled = counts.periods().saturating_sub(counters.hits);
    let explained = counts.idle_periods() + u64::try_from(counters.missed).unwrap_or(0);
    if unsampled > explained + counts.periods() / MAX_UNEXPLAINED {
        return Some(format!(
            "{} of {} periods have no sample, but CPUs were idle for about {explained} of them only: samples were \
                 lost in a way that could not be seen one by one",
            unsampled,
            counts.periods()
        ));
    }
    None
}

/// What is wrong with the accounting itself.
pub(super) fn doubts(accounting: &Accounting) -> Vec<String> {
    let mut doubts = Vec::new();
    if !accounting.adds_up() {
        doubts.push("the accounting does not add up: please report this".to_owned());
    }
    if accounting.not_delivered > accounting.expected * MAX_NOT_DELIVERED {
        doubts.push(format!(
            "{:.1} % of the samples were not delivered: the machine was stopped, or overloaded, or the rate is too high",
            100.0 * accounting.not_delivered / accounting.expected
        ));
    }
    doubts
}

/// Files that could not be read, named one by one.
const MAX_FAILURES_SHOWN: usize = 10;

/// One in this many periods may pass without a sample that idle time does not explain: idle time is measured where
/// the CPU sleeps, and sampled by chance.
const MAX_UNEXPLAINED: u64 = 5;

/// CPUs below which a process with children is taken for their supervisor.
const MAX_SUPERVISOR_CPUS: f64 = 0.02;

/// Share of samples not delivered above which the report warns: twice what an unloaded machine shows.
const MAX_NOT_DELIVERED: f64 = 0.01;
