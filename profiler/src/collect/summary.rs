//! What a recording leaves: the last window, names, the accounting added up, and what a reader must know.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use profiler_common::counters::{Counters, Outcome};
use profiler_common::event::Origin;

use super::command::{CommandEnd, RunningCommand};
use super::host::{host, own_usage};
use super::processes::Interest;
use super::record::Recording;
use super::session::Session;
use crate::bpf::{Counts, Limits, Sampler, SamplingEvent, map_bytes};
use crate::process;
use crate::profile::{Accounting, Capture, Index, OriginSummary, Overhead, Profile, SCHEMA_VERSION, Target};
use crate::symbolize::{Options, Sources, Symbolized, symbolize};

/// What is known before sampling begins, and how long it took.
pub(super) struct Facts {
    pub(super) target: Target,
    pub(super) event: SamplingEvent,
    pub(super) rate_hz: u64,
    pub(super) duration: Duration,
    pub(super) started_at: SystemTime,
    pub(super) limits: Limits,
}

/// Empties the maps for the last time, names what was found and adds everything up.
pub(super) fn summarize(
    mut session: Session,
    facts: Facts,
    sampler: Sampler,
    naming: &Options,
    interrupted: bool,
) -> Result<Recording> {
    let cpus_changed = sampler.cpus_changed;
    let counts = sampler.stop();
    // Twice: what was written late is in the other generation.
    session.end_window()?;
    session.end_window()?;
    let mut counters = session.kernel.counters(Origin::Cpu)?;
    session.corrections.correct(&mut counters);
    let (bpf_ns, bpf_runs) = session.kernel.run_time();
    let bpf_map_bytes = map_bytes();
    let mut warnings = warnings(&session, &facts, &counters, &counts, cpus_changed);
    // Nothing stays attached while names are looked up, which may take a while.
    drop((session.kernel, session.lifecycle));
    let sources = Sources {
        objects: session.processes.objects.objects(),
        jit: &session.processes.jit,
        interpreted: session.pythons.frames(),
    };
    let named = symbolize(vec![session.profile], &sources, naming);
    let Symbolized { profiles, objects, completed, warnings: of_symbols } = named;
    warnings.extend(of_symbols);
    for completed in &completed {
        complete(&mut counters, completed);
    }
    let accounting = Accounting {
        periods: counts.periods(),
        idle_periods: counts.idle_periods(),
        ..Accounting::new(&counters, counts.expected(&counters))
    };
    warnings.extend(doubts(&accounting));
    if bpf_runs == 0 && counters.hits > 0 {
        warnings.push("the time inside the BPF programs was not measured: that needs CAP_SYS_ADMIN".to_owned());
    }
    let totals = profiles.first().map(Profile::totals).unwrap_or_default();
    let row = Origin::Cpu.row();
    let summary = OriginSummary {
        unit: row.unit.to_owned(),
        total: totals[row.primary],
        n: totals[0],
        event: facts.event.name().to_owned(),
        rate_hz: facts.rate_hz,
    };
    let mut target = facts.target;
    target.exit_code = session.command.as_mut().and_then(RunningCommand::try_wait).map(CommandEnd::exit_code);
    let (agent_cpu, peak_rss_bytes) = own_usage();
    #[expect(clippy::cast_precision_loss, reason = "a mean, shown to four digits")]
    let bpf_ns_per_sample = if totals[0] == 0 { 0.0 } else { bpf_ns as f64 / totals[0] as f64 };
    let index = Index {
        schema_version: SCHEMA_VERSION,
        profiler_version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at_ns: nanoseconds(facts.started_at.duration_since(UNIX_EPOCH).unwrap_or_default()),
        duration_ns: nanoseconds(facts.duration),
        target,
        host: host(),
        origins: BTreeMap::from([(row.name.to_owned(), summary)]),
        accounting: BTreeMap::from([(row.name.to_owned(), accounting)]),
        overhead: Overhead {
            bpf_ns,
            bpf_runs,
            bpf_ns_per_sample,
            trap_ns: 0,
            agent_cpu_ns: nanoseconds(agent_cpu),
            peak_rss_bytes,
            bpf_map_bytes,
        },
        objects,
        warnings,
    };
    let capture = Capture { index, profiles };
    Ok(Recording { capture, command: session.command, interrupted })
}

/// Whether the named processes hardly ran, and have children that were not asked for.
fn supervises(session: &Session, facts: &Facts) -> bool {
    #[expect(clippy::cast_precision_loss, reason = "a ratio that is compared with a rough limit")]
    let cpus = session.profile.events() as f64 / (facts.rate_hz as f64 * facts.duration.as_secs_f64());
    session.processes.interest() == Interest::Named
        && cpus < MAX_SUPERVISOR_CPUS
        && session.roots.iter().any(|&pid| !process::children_of(pid).is_empty())
}

/// What a reader must know before he believes the figures.
fn warnings(session: &Session, facts: &Facts, counters: &Counters, counts: &Counts, cpus_changed: u32) -> Vec<String> {
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
    let unplaced = session.unwinding.unplaced;
    warn(unplaced, format!("{unplaced} times there was no room for a process's mappings: its frames may be cut"));
    warn(left_out as u64, format!("{left_out} executable mappings were left out: a process has more than 65,536"));
    for path in &session.unwinding.overflowed {
        warnings.push(format!("no room for the unwind table of {path}: raise --table-mb; its frames are cut"));
    }
    warnings.extend(session.pythons.warnings());
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
    let unsampled = counts.periods().saturating_sub(counters.hits);
    let explained = counts.idle_periods() + u64::try_from(counters.missed).unwrap_or(0);
    if unsampled > explained + counts.periods() / MAX_UNEXPLAINED {
        warnings.push(format!(
            "{} of {} periods have no sample, but CPUs were idle for about {explained} of them only: samples were \
                 lost in a way that could not be seen one by one",
            unsampled,
            counts.periods()
        ));
    }
    if supervises(session, facts) {
        warnings.push("the target was nearly idle and has children that work: --children samples them too".to_owned());
    }
    warnings
}

/// Counts user chains as complete that the programs counted as cut for want of a frame pointer.
fn complete(counters: &mut Counters, completed: &[u64; Outcome::COUNT]) {
    let events: u64 = completed.iter().sum();
    for outcomes in [&mut counters.user, &mut counters.whole] {
        let cut = &mut outcomes[Outcome::NoFramePointer as usize];
        *cut = cut.saturating_sub(events);
    }
    counters.user[Outcome::Complete as usize] += events;
    for (outcome, events) in counters.whole.iter_mut().zip(completed) {
        *outcome += events;
    }
}

/// What is wrong with the accounting itsession.
fn doubts(accounting: &Accounting) -> Vec<String> {
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

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
