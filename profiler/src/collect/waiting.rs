//! Threads that are there when the recording ends, and their waits, which have not ended: some last all the time.
//!
//! Input: what the kernel's iterator says of each. Output: their times, and records as the programs would have sent them
//! when the thread came back, with its stack read from its memory and walked by the same step.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;

use profiler_common::counters::{Counters, Outcome};
use profiler_common::event::{
    FrameWord, HASH_SEED, Origin, RED_ZONE_BYTES, RecordKey, RecordValue, finish_hash, hash_word,
};
use profiler_common::unwind::Registers;

use super::session::Session;
use crate::bpf::{BpfError, Drained, Remainder, Waiting};
use crate::process::{pid_namespace, read_memory_up_to};

/// Most of a stack that is read: as deep as chains of ordinary programs are.
const MAX_STACK_BYTES: usize = 128 << 10;

/// Privilege level of user mode, in the code segment, and the segment of 32-bit code.
const USER_MODE: u64 = 3;
const COMPAT_CODE_SEGMENT: u64 = 0x23;

/// Numbers of rbx, rbp and rsp in DWARF. Source: System V ABI, AMD64 supplement, figure 3.36.
const RBX: usize = 3;
const RBP: usize = 6;
const RSP: usize = 7;

/// Adds the times of the threads that are there, and the waits of those that wait; returns what the programs have not
/// counted of them.
///
/// `cgroup`: the one that was asked for, if it was one.
pub(super) fn take_waiting(
    session: &mut Session,
    cgroup: Option<&Path>,
) -> Result<BTreeMap<Origin, Counters>, BpfError> {
    let recorded = session.kernel.recorded();
    let mut counted = BTreeMap::new();
    // Inside a pid namespace the numbers that the iterator gives are not ours.
    if pid_namespace().is_none() {
        let members = cgroup.map(members);
        let mut drained = Drained::default();
        for waiting in session.kernel.take_waiting()? {
            let record = &waiting.record;
            let is_known = record.since_ns | record.from_ns | record.on_cpu_ns | record.off_cpu_ns != 0;
            if !is_known && members.as_ref().is_some_and(|members| !members.contains(&record.pid)) {
                continue;
            }
            let started_ns = session.kernel.monotonic(record.thread_start_time_ns);
            let from_ns = if record.from_ns == 0 { started_ns } else { record.from_ns };
            let since_ns = record.since_ns.max(recorded.start);
            let waited_ns = if record.waits == 0 { 0 } else { recorded.end.saturating_sub(since_ns) };
            session.times.add_lasting(&waiting, from_ns, waited_ns, &recorded);
            if waited_ns > 0 {
                add(&waiting, waited_ns, &mut drained, &mut counted);
                if record.waits_for_lock != 0 {
                    session.locks.add_lasting(record, waited_ns);
                }
            }
        }
        session.place(&drained);
    }
    Ok(counted)
}

/// The processes in a cgroup and in those below it.
fn members(cgroup: &Path) -> HashSet<u32> {
    let listed = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let mut members: HashSet<u32> = listed.lines().filter_map(|line| line.parse().ok()).collect();
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            members.extend(self::members(&entry.path()));
        }
    }
    members
}

/// Adds one thread's wait.
fn add(waiting: &Waiting, waited_ns: u64, drained: &mut Drained, counted: &mut BTreeMap<Origin, Counters>) {
    let record = &waiting.record;
    let (user_stack, user_outcome) = user_stack(waiting, drained);
    let kernel_outcome = if waiting.kernel.is_empty() { Outcome::KernelStack } else { Outcome::Complete };
    let kernel_stack = match kernel_outcome {
        Outcome::Complete => keep(drained, waiting.kernel.clone()),
        lost => lost as u64,
    };
    let key = RecordKey {
        start_time_ns: record.start_time_ns,
        kernel_stack,
        user_stack,
        span: 0,
        pid: record.pid,
        tid: record.tid,
        exec_count: record.exec_count,
        generation: record.generation,
        origin: Origin::OffCpu as u16,
        reason: u16::try_from(record.blocked).unwrap_or(0),
        reserved: 0,
    };
    let value = RecordValue {
        columns: [1, waited_ns, 1, 0],
        thread_comm: record.thread_comm,
        process_comm: record.process_comm,
        user_outcome: user_outcome as u8,
        kernel_outcome: kernel_outcome as u8,
        reserved: [0; 6],
    };
    let whole = if user_outcome == Outcome::Complete { kernel_outcome } else { user_outcome };
    let lock = RecordKey { origin: Origin::Lock as u16, span: record.argument, ..key };
    let keys = [(Origin::OffCpu, Some(key)), (Origin::Lock, (record.waits_for_lock != 0).then_some(lock))];
    // A record of an origin that was not asked for is left out where it is placed.
    for (origin, key) in keys {
        let Some(key) = key else { continue };
        let counters = counted.entry(origin).or_default();
        counters.hits += 1;
        counters.period_sum += waited_ns;
        counters.user[user_outcome as usize] += 1;
        counters.kernel[kernel_outcome as usize] += 1;
        counters.whole[whole as usize] += 1;
        drained.records.push((key, value));
    }
}

/// A thread's user chain as a record refers to it, and how it ends as far as is known: the walk comes with the placing.
fn user_stack(waiting: &Waiting, drained: &mut Drained) -> (u64, Outcome) {
    let record = &waiting.record;
    let lost = |outcome: Outcome| (outcome as u64, outcome);
    if record.segment & USER_MODE != USER_MODE {
        return lost(Outcome::Exiting);
    }
    let ip = FrameWord::Native(record.ip).to_word();
    let cut = |outcome: Outcome| vec![ip, FrameWord::Marker(outcome as u64).to_word()];
    if record.segment == COMPAT_CODE_SEGMENT {
        return (keep(drained, cut(Outcome::CompatCode)), Outcome::CompatCode);
    }
    let registers = waiting.registers();
    let sp = registers[RSP];
    // Not from a page below that of the stack pointer: it may not be there, and reading it would make it.
    let start = sp.saturating_sub(RED_ZONE_BYTES).max(sp & !4095);
    let mut stack = vec![0; MAX_STACK_BYTES];
    let read = read_memory_up_to(record.pid, start, &mut stack);
    stack.truncate(read);
    if switches(record.pid, record.tid) != Some(record.switches) {
        return lost(Outcome::Awoke);
    }
    // No other chain may have the same hash: what is left of it is this thread's alone.
    let hash = [u64::from(record.tid), record.now_ns].into_iter().fold(HASH_SEED, hash_word);
    let hash = finish_hash(hash);
    drained.stacks.insert(hash, cut(Outcome::NoTable).into());
    let remainder = Remainder {
        registers: Registers { ip: record.ip, sp, fp: registers[RBP], bx: registers[RBX] },
        exact: true,
        leaf: *registers,
        stack_start: start,
        stack: stack.into(),
    };
    drained.remainders.insert(hash, remainder);
    (hash, Outcome::NoTable)
}

/// Keeps a chain under its hash.
fn keep(drained: &mut Drained, words: Vec<u64>) -> u64 {
    let hash = finish_hash(words.iter().copied().fold(HASH_SEED, hash_word));
    drained.stacks.insert(hash, words.into());
    hash
}

/// How often a thread has been switched out by now.
fn switches(pid: u32, tid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).ok()?;
    let counts: HashMap<&str, &str> = status.lines().filter_map(|line| line.split_once(':')).collect();
    let count = |name: &str| counts.get(name)?.trim().parse::<u64>().ok();
    Some(count("voluntary_ctxt_switches")? + count("nonvoluntary_ctxt_switches")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_s_switches_only_grow() {
        let ourselves = std::process::id();
        let before = switches(ourselves, ourselves).unwrap();
        assert!(switches(ourselves, ourselves).unwrap() >= before);
        assert_eq!(switches(u32::MAX, u32::MAX), None);
    }
}
