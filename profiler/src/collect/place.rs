//! Records to samples: the chains of a window joined, their frames placed.

use std::collections::{BTreeSet, HashMap};

use profiler_common::counters::{Counters, Outcome};
use profiler_common::event::{COMM_LEN, FrameWord, RecordKey, RecordValue, StackRef};

use super::processes::Processes;
use crate::bpf::{Drained, Stacks};
use crate::profile::{RawFrame, RawProfile, Thread};

/// Adds a window to a profile.
///
/// Returns the events whose user or kernel chain never came: they are in the profile with a marker.
pub(super) fn place_window(drained: &Drained, processes: &mut Processes, profile: &mut RawProfile) -> MissingChains {
    let mut exec_counts: HashMap<u32, BTreeSet<u32>> = HashMap::new();
    for (key, _) in &drained.records {
        exec_counts.entry(key.pid).or_default().insert(key.exec_count);
    }
    processes.learn_exec_counts(&exec_counts);
    let mut missing = MissingChains::default();
    let mut chains: HashMap<ChainKey, Vec<u32>> = HashMap::new();
    for (key, value) in &drained.records {
        let events = value.columns[0];
        let mut stack = Vec::new();
        for (chain, is_kernel) in [(key.kernel_stack, true), (key.user_stack, false)] {
            let words = match StackRef::from_word(chain) {
                StackRef::Empty => continue,
                StackRef::Lost(code) => {
                    let outcome = Outcome::from_code(code).unwrap_or(Outcome::StackMissing);
                    stack.push(profile.frames.intern(RawFrame::Marker(outcome)));
                    continue;
                }
                StackRef::Hash(hash) => words_of(&drained.stacks, hash),
            };
            let Some(words) = words else {
                missing.add(is_kernel, events, value);
                stack.push(profile.frames.intern(RawFrame::Marker(Outcome::StackMissing)));
                continue;
            };
            let place = || place_chain(words, key, processes, profile);
            stack.extend_from_slice(chains.entry(ChainKey::new(key, chain, is_kernel)).or_insert_with(place));
        }
        let stack = profile.stacks.intern(stack.into_boxed_slice());
        let thread = profile.threads.intern(Thread {
            pid: key.pid,
            tid: key.tid,
            start_time_ns: key.start_time_ns,
            exec_count: key.exec_count,
            process_name: comm(&value.process_comm),
            thread_name: comm(&value.thread_comm),
        });
        profile.add(stack, thread, key.reason, key.span, &value.columns);
    }
    missing
}

/// Events whose chains never came, by the outcome that the kernel counted for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct MissingChains {
    /// User chain, by outcome.
    pub(super) user: [u64; Outcome::COUNT],
    /// Kernel chain, by outcome.
    pub(super) kernel: [u64; Outcome::COUNT],
    /// Whole samples, by the outcome that the kernel counted for them.
    pub(super) whole: [u64; Outcome::COUNT],
}

impl MissingChains {
    fn add(&mut self, is_kernel: bool, events: u64, value: &RecordValue) {
        let (user, kernel) = (usize::from(value.user_outcome), usize::from(value.kernel_outcome));
        if user >= Outcome::COUNT || kernel >= Outcome::COUNT {
            return;
        }
        let chain = if is_kernel { &mut self.kernel[kernel] } else { &mut self.user[user] };
        *chain += events;
        self.whole[if user == 0 { kernel } else { user }] += events;
    }

    /// Counts these chains as missing, and no longer as the kernel did.
    pub(super) fn correct(&self, counters: &mut Counters) {
        let lists = [
            (&self.user, &mut counters.user),
            (&self.kernel, &mut counters.kernel),
            (&self.whole, &mut counters.whole),
        ];
        for (missing, counted) in lists {
            for index in 0..Outcome::COUNT {
                let moved = missing[index].min(counted[index]);
                counted[index] -= moved;
                counted[Outcome::StackMissing as usize] += moved;
            }
        }
    }

    /// Adds another window's.
    pub(super) fn merge(&mut self, other: &Self) {
        for index in 0..Outcome::COUNT {
            self.user[index] += other.user[index];
            self.kernel[index] += other.kernel[index];
            self.whole[index] += other.whole[index];
        }
    }
}

/// What a chain's frames depend on.
#[derive(PartialEq, Eq, Hash)]
struct ChainKey {
    pid: u32,
    start_time_ns: u64,
    exec_count: u32,
    generation: u32,
    chain: u64,
}

impl ChainKey {
    /// A kernel chain is the same whoever runs it.
    const fn new(key: &RecordKey, chain: u64, is_kernel: bool) -> Self {
        if is_kernel {
            return Self { pid: 0, start_time_ns: 0, exec_count: 0, generation: 0, chain };
        }
        Self {
            pid: key.pid,
            start_time_ns: key.start_time_ns,
            exec_count: key.exec_count,
            generation: key.generation,
            chain,
        }
    }
}

fn words_of(stacks: &Stacks, hash: u64) -> Option<&[u64]> {
    stacks.get(&hash).map(AsRef::as_ref)
}

/// Numbers of a chain's frames.
///
/// Every frame but the first is a return address: one less is inside the call, which is what has to be named.
/// Source: DWARF 5, section 6.4.4.
fn place_chain(words: &[u64], key: &RecordKey, processes: &mut Processes, profile: &mut RawProfile) -> Vec<u32> {
    let frames = words.iter().enumerate().map(|(index, &word)| {
        let call = u64::from(index > 0);
        match FrameWord::from_word(word) {
            Some(FrameWord::Kernel(address)) => RawFrame::Kernel(address - call),
            Some(FrameWord::Native(address) | FrameWord::Jit(address) | FrameWord::Interpreted(address)) => {
                processes.place(key, address.saturating_sub(call))
            }
            Some(FrameWord::Marker(code)) => {
                RawFrame::Marker(Outcome::from_code(code).unwrap_or(Outcome::StackMissing))
            }
            None => RawFrame::Marker(Outcome::StackMissing),
        }
    });
    frames.map(|frame| profile.frames.intern(frame)).collect()
}

fn comm(bytes: &[u8; COMM_LEN]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(COMM_LEN);
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
