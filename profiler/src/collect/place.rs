//! Records to samples: the chains of a window joined, their frames placed.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use hashbrown::HashMap;
use profiler_common::counters::{Counters, Outcome};
use profiler_common::event::{COLUMNS, COMM_LEN, FrameWord, Origin, RecordKey, RecordValue, StackRef};

use super::gathered::{Gathered, OfOrigin};
use super::processes::Processes;
use super::pythons::Pythons;
use super::remainder::Finisher;
use crate::bpf::{Drained, Remainder};
use crate::profile::{RawFrame, RawProfile, Thread};
use crate::python::merge;

/// Adds a window to the profiles of its records' origins, and to what is known better now than when the programs counted
/// it.
pub(super) fn place_window(
    drained: &Drained,
    finisher: &mut Finisher<'_>,
    pythons: &mut Pythons,
    gathered: &mut Gathered,
) {
    let mut exec_counts: std::collections::HashMap<u32, BTreeSet<u32>> = std::collections::HashMap::new();
    let mut recorded = HashSet::new();
    for (key, _) in &drained.records {
        exec_counts.entry(key.pid).or_default().insert(key.exec_count);
        if key.origin != Origin::Waker as u16 {
            recorded.insert(key.pid);
        }
    }
    finisher.processes.learn_exec_counts(&exec_counts, &recorded);
    let mut chains: HashMap<ChainKey, Vec<u32>> = HashMap::new();
    for (key, value) in &drained.records {
        let Some(OfOrigin { profile, corrections, late, sites, sliced }) = gathered.of(key.origin) else { continue };
        let events = value.columns[0];
        // A record without values was begun: what it is for will be added when it is done, in this window or in a later one.
        let is_begun = value.columns == [0; COLUMNS];
        let mut stack = Vec::new();
        for (chain, is_kernel) in [(key.kernel_stack, true), (key.user_stack, false)] {
            let words = match StackRef::from_word(chain) {
                StackRef::Empty => continue,
                StackRef::Lost(code) => {
                    let outcome = Outcome::from_code(code).unwrap_or(Outcome::StackMissing);
                    stack.push(profile.frames.intern(RawFrame::Marker(outcome)));
                    continue;
                }
                StackRef::Hash(hash) => drained.stacks.get(&hash).map(|words| (hash, words)),
            };
            let chain_key = ChainKey::new(key, chain, is_kernel);
            let Some((hash, words)) = words else {
                if let Some((frames, outcome)) = late.get(&chain_key) {
                    if let Some(outcome) = *outcome {
                        corrections.add(is_kernel, events, value, outcome);
                    }
                    stack.extend(frames.iter().map(|&frame| profile.frames.intern(frame)));
                    continue;
                }
                corrections.add(is_kernel, events, value, Outcome::StackMissing);
                stack.push(profile.frames.intern(RawFrame::Marker(Outcome::StackMissing)));
                continue;
            };
            if let Some(remainder) = drained.remainders.get(&hash) {
                let (words, outcome) = finish(key, remainder, words, finisher);
                corrections.add(is_kernel, events, value, outcome);
                let frames = place_chain(&words, key, finisher.processes, pythons, profile);
                stack.extend_from_slice(&frames);
                if is_begun {
                    late.insert(chain_key, (raw_frames(&frames, profile), Some(outcome)));
                }
                continue;
            }
            let place = || place_chain(words, key, finisher.processes, pythons, profile);
            let frames = chains.entry(chain_key).or_insert_with(place);
            stack.extend_from_slice(frames);
            if is_begun {
                let frames = raw_frames(frames, profile);
                late.insert(chain_key, (frames, None));
            }
        }
        if is_begun {
            continue;
        }
        let stack = profile.stacks.intern(stack.into_boxed_slice());
        let thread = profile.threads.intern(Thread {
            pid: key.pid,
            tid: key.tid,
            start_time_ns: key.start_time_ns,
            exec_count: key.exec_count,
            process_name: comm(&value.process_comm),
            thread_name: comm(&value.thread_comm),
            cgroup: finisher.processes.cgroup(key.pid),
        });
        if key.origin == Origin::Alloc as u16 {
            sites.learn(key, stack, thread);
        }
        profile.add(stack, thread, key.reason, key.span, &value.columns);
        sliced.add(stack, value.columns[profile.origin.row().primary]);
    }
}

/// A chain with what was left of it, instead of the marker that it ends in.
fn finish(key: &RecordKey, remainder: &Remainder, words: &[u64], finisher: &mut Finisher<'_>) -> (Vec<u64>, Outcome) {
    let (words, python) = apart(words);
    let found = words.strip_suffix(&[FrameWord::Marker(Outcome::NoTable as u64).to_word()]).unwrap_or(words);
    let (rest, outcome) = finisher.finish(key, remainder, found.len());
    let marker = (outcome != Outcome::Complete).then(|| FrameWord::Marker(outcome as u64).to_word());
    (found.iter().copied().chain(rest).chain(marker).chain(python.iter().copied()).collect(), outcome)
}

/// Events that ended otherwise than the programs counted, by what they counted and what it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Corrections {
    user: Moves,
    kernel: Moves,
    whole: Moves,
}

/// Events by the outcome they were counted for and the one they have.
type Moves = BTreeMap<(u8, Outcome), u64>;

impl Corrections {
    /// Notes that a chain of `events` ended in `outcome`, whatever `value` says.
    fn add(&mut self, is_kernel: bool, events: u64, value: &RecordValue, outcome: Outcome) {
        let (user, kernel) = (value.user_outcome, value.kernel_outcome);
        let complete = Outcome::Complete as u8;
        let counted = if user == complete { kernel } else { user };
        let (chain, was) = if is_kernel { (&mut self.kernel, kernel) } else { (&mut self.user, user) };
        *chain.entry((was, outcome)).or_default() += events;
        // A user chain that is whole now leaves the kernel chain's outcome to the sample.
        let whole = if outcome == Outcome::Complete {
            Outcome::from_code(u64::from(kernel)).unwrap_or(Outcome::StackMissing)
        } else {
            outcome
        };
        *self.whole.entry((counted, whole)).or_default() += events;
    }

    /// Counts these events for what they are.
    pub(super) fn correct(&self, counters: &mut Counters) {
        let lists = [
            (&self.user, &mut counters.user),
            (&self.kernel, &mut counters.kernel),
            (&self.whole, &mut counters.whole),
        ];
        for (moves, counted) in lists {
            for (&(was, is), &events) in moves {
                let Some(from) = counted.get_mut(usize::from(was)) else { continue };
                let moved = events.min(*from);
                *from -= moved;
                counted[is as usize] += moved;
            }
        }
    }
}

/// The frames of a chain, and how it ended where that is known better than when it was walked.
type Placed = (Box<[RawFrame]>, Option<Outcome>);

/// Chains of what was begun and may be done in a later window, when the process has ended: the newest of them.
#[derive(Clone, Debug, Default)]
pub(super) struct LateChains {
    /// Those that came last, and those before.
    newer: HashMap<ChainKey, Placed>,
    older: HashMap<ChainKey, Placed>,
}

impl LateChains {
    /// Chains in each half: more than can be under way at once.
    const HALF: usize = 16_384;

    fn get(&self, key: &ChainKey) -> Option<&Placed> {
        self.newer.get(key).or_else(|| self.older.get(key))
    }

    fn insert(&mut self, key: ChainKey, placed: Placed) {
        if self.newer.len() >= Self::HALF {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(key, placed);
    }

    /// Ends a window: what is not done by the end of the next one is not waited for. `renumber`: what a frame is from now on.
    pub(super) fn end_window(&mut self, mut renumber: impl FnMut(RawFrame) -> Option<RawFrame>) {
        self.older = std::mem::take(&mut self.newer);
        for frame in self.older.values_mut().flat_map(|(frames, _)| frames) {
            *frame = renumber(*frame).unwrap_or(RawFrame::Marker(Outcome::StackMissing));
        }
    }

    /// All frames.
    pub(super) fn frames(&self) -> impl Iterator<Item = RawFrame> {
        [&self.newer, &self.older].into_iter().flat_map(HashMap::values).flat_map(|(frames, _)| frames.iter().copied())
    }
}

/// What the numbers of frames stand for.
fn raw_frames(numbers: &[u32], profile: &RawProfile) -> Box<[RawFrame]> {
    numbers.iter().filter_map(|&number| profile.frames.values().get(number as usize).copied()).collect()
}

/// What a chain's frames depend on. Frames are numbered by origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ChainKey {
    origin: u16,
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
            return Self { origin: key.origin, pid: 0, start_time_ns: 0, exec_count: 0, generation: 0, chain };
        }
        Self {
            origin: key.origin,
            pid: key.pid,
            start_time_ns: key.start_time_ns,
            exec_count: key.exec_count,
            generation: key.generation,
            chain,
        }
    }
}

/// The native and the interpreted part of a chain, which follow each other.
fn apart(words: &[u64]) -> (&[u64], &[u64]) {
    let is_interpreted = |word: &u64| {
        matches!(FrameWord::from_word(*word), Some(FrameWord::Interpreted(_) | FrameWord::InterpretedEntry(_)))
    };
    words.split_at(words.iter().position(is_interpreted).unwrap_or(words.len()))
}

/// Numbers of a chain's frames.
///
/// Every frame but the first is a return address: one less is inside the call, which is what has to be named.
/// Source: DWARF 5, section 6.4.4.
fn place_chain(
    words: &[u64],
    key: &RecordKey,
    processes: &mut Processes,
    pythons: &mut Pythons,
    profile: &mut RawProfile,
) -> Vec<u32> {
    let (words, interpreted) = apart(words);
    let (mut native, mut cut) = (Vec::with_capacity(words.len()), None);
    for (index, &word) in words.iter().enumerate() {
        let call = u64::from(index > 0);
        let frame = match FrameWord::from_word(word) {
            Some(FrameWord::Kernel(address)) => RawFrame::Kernel(address - call),
            Some(FrameWord::Native(address) | FrameWord::Jit(address)) => {
                processes.place(key, address.saturating_sub(call))
            }
            Some(FrameWord::Marker(code)) => {
                RawFrame::Marker(Outcome::from_code(code).unwrap_or(Outcome::StackMissing))
            }
            _ => RawFrame::Marker(Outcome::StackMissing),
        };
        let number = profile.frames.intern(frame);
        match frame {
            RawFrame::Marker(_) => cut = Some(number),
            _ => native.push((number, !interpreted.is_empty() && pythons.evaluates(frame))),
        }
    }
    merge(&native, cut, pythons.place(interpreted, key, profile))
}

/// A command name.
pub(super) fn comm(bytes: &[u8; COMM_LEN]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(COMM_LEN);
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
