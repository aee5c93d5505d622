//! Who ended waits: what these had come to, on the stack that ended them.
//!
//! Input: the profiles as they were named. Output: the profile of wakers with the waits' time in it, without the frames of
//! the wake-up itself; an interrupt is a thread of its own, since it runs on the stack of whoever was there.

use std::collections::{BTreeMap, HashMap};

use profiler_common::counters::Outcome;
use profiler_common::event::{COLUMNS, Origin};

use crate::profile::{FrameKind, Function, Interner, Location, LockTime, Profile, Thread};

/// Name of the process and the thread that interrupts are put to.
pub(super) const INTERRUPT: &str = "[interrupt]";

/// Functions of the wake-up itself: all up to the last of them from the leaf on is left out.
const WAKE_UP: [&str; 3] = ["try_to_wake_up", "wake_up_process", "wake_up_q"];

/// Kernel functions at which an interrupt begins, by how their names do: what is rootward was interrupted.
const INTERRUPTS: [&str; 6] =
    ["asm_sysvec_", "asm_common_interrupt", "asm_exc_nmi", "sysvec_", "common_interrupt", "ret_from_intr"];

/// Gives the profile of wakers what the waits that they ended have come to.
///
/// `locks`: waits for locks with their wakers, for a recording of these alone. Returns the events whose user chain had ended
/// in an outcome that says nothing of them, since it was that of an interrupted thread.
pub fn attribute(profiles: &mut [Profile], locks: &[LockTime]) -> BTreeMap<Outcome, u64> {
    let mut delays: HashMap<u64, [u64; COLUMNS]> = HashMap::new();
    let waits = profiles.iter().find(|profile| profile.origin == Origin::OffCpu);
    for sample in waits.iter().flat_map(|profile| &profile.samples) {
        let [_, delay, contentions, _] = sample.values;
        add(&mut delays, sample.span, delay, contentions);
    }
    if waits.is_none() {
        for lock in locks {
            let waker = lock.waker.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
            add(&mut delays, waker.unwrap_or(0), lock.delay_ns, lock.waits);
        }
    }
    let Some(wakers) = profiles.iter_mut().find(|profile| profile.origin == Origin::Waker) else {
        return BTreeMap::new();
    };
    for sample in &mut wakers.samples {
        // A second sample of the same waker would count it twice.
        let [_, delay, contentions, _] = delays.remove(&sample.span).unwrap_or_default();
        sample.values[1] = delay;
        sample.values[2] = contentions;
    }
    trim(wakers)
}

fn add(delays: &mut HashMap<u64, [u64; COLUMNS]>, span: u64, delay: u64, contentions: u64) {
    // Whom nobody was seen to wake.
    if span == 0 {
        return;
    }
    let sums = delays.entry(span).or_default();
    sums[1] += delay;
    sums[2] += contentions;
}

/// Leaves out the wake-up itself, and what an interrupt interrupted.
///
/// Returns the events whose chain had been cut in what is left out.
fn trim(wakers: &mut Profile) -> BTreeMap<Outcome, u64> {
    let names: Vec<Option<String>> = wakers
        .locations
        .iter()
        .map(|location| {
            let line = location.lines.last().filter(|_| location.kind == FrameKind::Kernel)?;
            Some(wakers.functions[line.function as usize].name.split('.').next().unwrap_or_default().to_owned())
        })
        .collect();
    let name = |location: u32| names[location as usize].as_deref();
    let interrupt = (0..).zip(&wakers.threads).find(|(_, thread)| thread.process_name == INTERRUPT);
    let interrupt = interrupt.map_or(u32::try_from(wakers.threads.len()).unwrap_or(u32::MAX), |(id, _)| id);
    let mut stacks: Interner<Vec<u32>> = Interner::default();
    let wakers_functions = &wakers.functions;
    let mut has_interrupts = false;
    let mut mended = BTreeMap::new();
    for sample in &mut wakers.samples {
        let stack = &wakers.stacks[sample.stack as usize];
        let kernel = stack.iter().take_while(|&&location| name(location).is_some()).count();
        let is = |index: &usize, names: &[&str]| name(stack[*index]).is_some_and(|name| names.contains(&name));
        let first = (0..kernel).rev().find(|index| is(index, &WAKE_UP)).map_or(0, |index| index + 1);
        let begins = |index: &usize| {
            name(stack[*index]).is_some_and(|name| INTERRUPTS.iter().any(|prefix| name.starts_with(prefix)))
        };
        // The outermost frame of the innermost interrupt.
        let last = (first..kernel).find(begins).map(|index| (index..kernel).take_while(begins).last().unwrap_or(index));
        let end = last.map_or(stack.len(), |last| last + 1);
        if last.is_some() {
            sample.thread = interrupt;
            has_interrupts = true;
            let cut = stack[end..]
                .iter()
                .find_map(|&location| cut_by(wakers_functions, &wakers.locations[location as usize]));
            if let Some(outcome) = cut {
                *mended.entry(outcome).or_default() += sample.values[0];
            }
        }
        sample.stack = stacks.intern(stack[first..end].to_vec());
    }
    wakers.stacks = stacks.into_values();
    if has_interrupts && wakers.threads.get(interrupt as usize).is_none() {
        wakers.threads.push(Thread {
            pid: 0,
            tid: 0,
            start_time_ns: 0,
            exec_count: 0,
            process_name: INTERRUPT.to_owned(),
            thread_name: INTERRUPT.to_owned(),
            cgroup: String::new(),
        });
    }
    mended
}

/// Why a chain was cut, if a location says so.
fn cut_by(functions: &[Function], location: &Location) -> Option<Outcome> {
    let name =
        &functions[location.lines.first().filter(|_| location.kind == FrameKind::Marker)?.function as usize].name;
    Outcome::from_name(name.strip_prefix('[')?.strip_suffix(']')?.split_once(": ")?.1)
}
