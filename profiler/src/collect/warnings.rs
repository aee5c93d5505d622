//! What a reader must know before he believes the figures of a recording.

use profiler_common::block::BlockMissed;
use profiler_common::counters::Counters;
use profiler_common::event::Origin;

use super::allocations::Allocations;
use super::processes::Interest;
use super::session::Session;
use super::summary::Facts;
use crate::bpf::Counts;
use crate::process;
use crate::profile::Accounting;

/// Whether the named processes hardly ran, and have children that were not asked for.
fn supervises(session: &Session, facts: &Facts) -> bool {
    let (Some(profile), Some((_, rate_hz))) = (session.gathered.profile(Origin::Cpu), facts.sampled) else {
        return false;
    };
    #[expect(clippy::cast_precision_loss, reason = "a ratio that is compared with a rough limit")]
    let cpus = profile.events() as f64 / (rate_hz as f64 * facts.duration.as_secs_f64());
    session.processes.interest() == Interest::Named
        && cpus < MAX_SUPERVISOR_CPUS
        && session.roots.iter().any(|&pid| !process::children_of(pid).is_empty())
}

/// What a reader must know before he believes the figures.
///
/// `sampled`: what the sampling events counted, and what was made of it.
pub(super) fn warnings(
    session: &Session,
    facts: &Facts,
    sampled: Option<(&Counts, &Counters)>,
    cpus_changed: u32,
) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |count: u64, text: String| {
        if count > 0 {
            warnings.push(text);
        }
    };
    let (lost, missed, unsettled) =
        (session.processes.events_lost, session.kernel.children_missed(), session.unsettled);
    let left_out = session.processes.mappings_left_out;
    warn(lost, format!("{lost} process events were lost: frames of code mapped at that time may have no name"));
    warn(missed, format!("{missed} children could not be followed: more than {} processes", facts.limits.processes));
    warn(unsettled, format!("{unsettled} windows were drained while a program still wrote: a sample may be late"));
    warn(u64::from(cpus_changed), format!("{cpus_changed} CPUs came or went: samples of the moment are missing"));
    let (refused, ends_lost) = session.kernel.threads_missed();
    warn(refused, format!("{refused} waits of threads are missing: there was no room for more threads"));
    warn(ends_lost, format!("the times of {ends_lost} threads that ended are missing: raise --buffer-mb"));
    let (askers, dirtiers) =
        (session.kernel.blocks_missed(BlockMissed::Requests), session.kernel.blocks_missed(BlockMissed::Dirtiers));
    let counts_each = |name: &str| ["block_", "file_", "net_"].iter().any(|prefix| name.starts_with(prefix));
    let skipped = session.kernel.runs_left_out(counts_each);
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
    let unplaced = session.unwinding.unplaced;
    warn(unplaced, format!("{unplaced} times there was no room for a process's mappings: its frames may be cut"));
    warn(left_out as u64, format!("{left_out} executable mappings were left out: a process has more than 65,536"));
    for path in &session.unwinding.overflowed {
        warnings.push(format!("no room for the unwind table of {path}: raise --table-mb; its frames are cut"));
    }
    warnings.extend(session.pythons.warnings());
    warnings.extend(session.slices.warning());
    warnings.extend(session.allocations.iter().flat_map(Allocations::warnings));
    if let [first, rest @ ..] = session.processes.unreadable.as_slice() {
        let more = if rest.is_empty() { String::new() } else { format!(", and of {} more processes", rest.len()) };
        warnings.push(format!(
            "{first}{more}: user frames have no names; that needs CAP_SYS_PTRACE and no security module against it"
        ));
    }
    for failure in session.processes.objects.failures.iter().take(MAX_FAILURES_SHOWN) {
        warnings.push(failure.to_string());
    }
    let more = session.processes.objects.failures.len().saturating_sub(MAX_FAILURES_SHOWN);
    if more > 0 {
        warnings.push(format!("{more} more files could not be read"));
    }
    if facts.hook.is_some() && process::pid_namespace().is_some() {
        warnings.push(
            "inside a pid namespace, threads that waited at the end are missing, and there is no ledger".to_owned(),
        );
    }
    warnings.extend(sampled.and_then(|(counts, counters)| unexplained(counts, counters)));
    if supervises(session, facts) {
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
