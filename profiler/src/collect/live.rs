//! Blocks that were allocated and are there still: looked at time and again, and what there is at the end.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use profiler_common::alloc::{LiveBlock, LiveKey};
use profiler_common::counters::{Counters, Outcome};
use profiler_common::event::{COLUMNS, Origin, RecordKey};

use super::processes::Processes;
use crate::bpf::{BpfError, Kernel, monotonic_ns};
use crate::profile::{
    Live, LivePeak, LiveSite, MAX_LIVE_SITES, MAX_LIVE_TIMES, MAX_PEAK_SITES, RawFrame, RawProfile, StackId, ThreadId,
};

/// How often is looked at first.
const INTERVAL: Duration = Duration::from_millis(500);

/// Sites that are told apart.
const MAX_SITES: usize = 1 << 16;

/// Sites of which it is kept what they held, each time.
const MAX_HELD: usize = 4_096;

/// A stack of a process, as records and blocks name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SiteKey {
    pid: u32,
    start_time_ns: u64,
    exec_count: u32,
    generation: u32,
    stack: u64,
}

/// Where the stacks of allocations are in their profile.
#[derive(Clone, Debug, Default)]
pub(super) struct Sites(HashMap<SiteKey, (StackId, ThreadId)>);

impl Sites {
    /// Notes where the stack of a record is.
    pub(super) fn learn(&mut self, key: &RecordKey, stack: StackId, thread: ThreadId) {
        let site = SiteKey {
            pid: key.pid,
            start_time_ns: key.start_time_ns,
            exec_count: key.exec_count,
            generation: key.generation,
            stack: key.user_stack,
        };
        if self.0.len() < MAX_SITES {
            self.0.entry(site).or_insert((stack, thread));
        }
    }
}

impl SiteKey {
    const fn of(block: &LiveBlock) -> Self {
        Self {
            pid: block.pid,
            start_time_ns: block.start_time_ns,
            exec_count: block.exec_count,
            generation: block.generation,
            stack: block.stack,
        }
    }
}

/// What a site holds.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    bytes: u64,
    variance: f64,
}

impl Held {
    fn add(&mut self, block: &LiveBlock) {
        self.bytes += block.bytes;
        self.variance += variance(block);
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative, and saturating")]
    fn variance_kib2(&self) -> u64 {
        (self.variance / f64::from(1 << 20)).ceil() as u64
    }
}

/// The variance that a block brings: what was not chosen might have been. Source: the estimator of Horvitz and Thompson.
#[expect(clippy::cast_precision_loss, reason = "an estimate, of which few digits say something")]
const fn variance(block: &LiveBlock) -> f64 {
    // A block that stands for itself brings its own coming and going, so that growth has an error at all.
    block.bytes as f64 * block.bytes as f64
}

/// Blocks, as they are looked at.
pub(super) struct Following {
    /// Why they are not followed any more, or never were.
    ended: Option<String>,
    next: Instant,
    interval: Duration,
    began_ns: u64,
    seen: Vec<(u64, HashMap<SiteKey, Held>)>,
    /// What was there when it was looked last, bytes; `None` once that was told.
    held: Option<u64>,
    /// What was there when most was, when that was, and who held it.
    peak: (u64, u64, HashMap<SiteKey, Held>),
    /// Whether nothing comes or goes any more.
    is_frozen: bool,
}

impl Following {
    pub(super) fn new(kernel: &Kernel) -> Self {
        let ended = (!kernel.follows_blocks())
            .then(|| "this kernel shows no returns of single calls, which needs Linux 6.13".to_owned());
        Self::begin(ended, monotonic_ns())
    }

    fn begin(ended: Option<String>, began_ns: u64) -> Self {
        Self {
            ended,
            next: Instant::now() + INTERVAL,
            interval: INTERVAL,
            began_ns,
            seen: Vec::new(),
            is_frozen: false,
            held: None,
            peak: Default::default(),
        }
    }

    /// What was there when it was looked last, bytes, if it was since the last call.
    pub(super) const fn take_held(&mut self) -> Option<u64> {
        self.held.take()
    }

    /// Follows none. `why`: for whoever asks.
    pub(super) fn none(why: &str) -> Self {
        Self::begin(Some(why.to_owned()), 0)
    }

    /// Whether blocks are followed.
    pub(super) const fn is_on(&self) -> bool {
        self.ended.is_none()
    }

    /// When [`Following::look`] wants to be called; `None` for never.
    pub(super) fn next(&self) -> Option<Instant> {
        (self.is_on() && !self.is_frozen).then_some(self.next)
    }

    /// Ends it: from now on frees are missed, and what was seen says nothing of what is there.
    pub(super) fn end(&mut self, kernel: &mut Kernel, why: &str) -> Result<(), BpfError> {
        if self.is_on() {
            self.ended = Some(why.to_owned());
            self.seen.clear();
            self.held = None;
            kernel.forget_live_blocks()?;
        }
        Ok(())
    }

    /// Leaves the blocks as they are: from now on neither allocations nor frees are recorded.
    pub(super) fn freeze(&mut self, kernel: &Kernel) -> Result<(), BpfError> {
        if self.is_on() && !self.is_frozen {
            self.note(&of_last_program(kernel.live_blocks()?).0);
            self.is_frozen = true;
        }
        Ok(())
    }

    /// Notes what every site holds now.
    pub(super) fn look(&mut self, kernel: &mut Kernel, processes: &Processes) -> Result<(), BpfError> {
        let now = Instant::now();
        if !self.is_on() || self.is_frozen || now < self.next {
            return Ok(());
        }
        let (blocks, mut gone) = of_last_program(kernel.live_blocks()?);
        self.note(&blocks);
        // What a process had that has ended is nobody's, while others go on.
        gone.extend(blocks.iter().filter(|(_, block)| !processes.knows(block.pid)).map(|(key, _)| *key));
        kernel.forget_blocks(&gone);
        self.next = now + self.interval;
        Ok(())
    }

    fn note(&mut self, blocks: &[(LiveKey, LiveBlock)]) {
        let mut sites: HashMap<SiteKey, Held> = HashMap::new();
        for (_, block) in blocks {
            sites.entry(SiteKey::of(block)).or_default().add(block);
        }
        if sites.len() > MAX_HELD {
            let mut most: Vec<(SiteKey, Held)> = sites.into_iter().collect();
            most.sort_by_key(|(_, held)| std::cmp::Reverse(held.bytes));
            most.truncate(MAX_HELD);
            sites = most.into_iter().collect();
        }
        let (now, held) = (monotonic_ns(), sites.values().map(|held| held.bytes).sum());
        self.held = Some(held);
        if held > self.peak.0 {
            self.peak = (held, now, sites.clone());
        }
        self.seen.push((now, sites));
        if self.seen.len() >= MAX_LIVE_TIMES {
            // Every second one goes, and half as often is looked from now on.
            let mut number = 0;
            self.seen.retain(|_| {
                number += 1;
                number % 2 == 0
            });
            self.interval *= 2;
        }
    }

    /// What there is at the end, and what there was: the profile of live blocks, whose spans are the sites, and their past.
    pub(super) fn finish(
        mut self,
        kernel: &Kernel,
        allocated: &RawProfile,
        sites: &Sites,
    ) -> Result<(RawProfile, Live), BpfError> {
        let mut profile = RawProfile::new(Origin::Live);
        if let Some(undecided) = self.ended {
            return Ok((profile, Live { undecided, ..Live::default() }));
        }
        let (blocks, _) = of_last_program(kernel.live_blocks()?);
        if !self.is_frozen {
            self.note(&blocks);
        }
        let mut spans = Spans::default();
        for (_, block) in &blocks {
            let site = SiteKey::of(block);
            let span = spans.of(site, sites);
            // The bytes' variance in squares of 1,024 bytes; 0 for a block that was chosen by its size alone.
            let squares = (block.bytes as u128 * block.bytes.saturating_sub(block.size) as u128) >> 20;
            let values = [1, block.bytes, block.objects, u64::try_from(squares).unwrap_or(u64::MAX)];
            let (stack, thread) = copy_site(&mut profile, allocated, sites.0.get(&site), block);
            profile.add(stack, thread, 0, span, &values);
        }
        let times: Vec<u64> = self.seen.iter().map(|(at, _)| *at).collect();
        let past = past(&self.seen, &times, &blocks, &mut spans, sites);
        let mut of_sites = Vec::new();
        for (span, held, kept) in past {
            let (stack, pid) = spans.site(span);
            of_sites.push(LiveSite {
                span: format!("{span:#x}"),
                allocated_bytes: stack.map_or(0, |stack| allocated_by(allocated, stack, pid)),
                bytes: held.iter().map(|held| held.bytes).collect(),
                variance_kib2: held.iter().map(Held::variance_kib2).collect(),
                kept_bytes: kept.iter().map(|kept| kept.bytes).collect(),
                kept_variance_kib2: kept.iter().map(Held::variance_kib2).collect(),
            });
        }
        let peak = self.peak(&mut profile, &mut spans, allocated, sites);
        let at_ns = times.iter().map(|at| at.saturating_sub(self.began_ns)).collect();
        let missed = kernel.live_blocks_missed();
        Ok((profile, Live { undecided: String::new(), missed, at_ns, sites: of_sites, peak }))
    }

    /// The peak, whose sites get samples of the value 0, so that those have stacks which hold nothing at the end.
    fn peak(
        &self,
        profile: &mut RawProfile,
        spans: &mut Spans,
        allocated: &RawProfile,
        sites: &Sites,
    ) -> Option<LivePeak> {
        let (bytes, at, held) = &self.peak;
        let mut by_span: HashMap<u64, (u64, (StackId, ThreadId))> = HashMap::new();
        for (site, held) in held {
            if let Some(&known) = sites.0.get(site) {
                by_span.entry(spans.of(*site, sites)).or_insert((0, known)).0 += held.bytes;
            }
        }
        let mut most: Vec<_> = by_span.into_iter().collect();
        most.sort_by_key(|&(span, (bytes, _))| (std::cmp::Reverse(bytes), span));
        most.truncate(MAX_PEAK_SITES);
        let mut of_sites = Vec::new();
        for (span, (bytes, known)) in most {
            let Some((stack, thread)) = copy_known(profile, allocated, known) else { continue };
            profile.add(stack, thread, 0, span, &[0; COLUMNS]);
            of_sites.push((format!("{span:#x}"), bytes));
        }
        (*bytes > 0).then(|| LivePeak { at_ns: at.saturating_sub(self.began_ns), bytes: *bytes, sites: of_sites })
    }
}

/// How the chains of live blocks ended, which are those of their allocations.
pub(super) fn outcomes(profile: &RawProfile) -> Counters {
    let mut counters = Counters::default();
    for ((stack, ..), values) in &profile.samples {
        let frames = profile.stacks.values().get(*stack as usize);
        let last = frames.and_then(|frames| profile.frames.values().get(*frames.last()? as usize));
        let outcome = match last {
            Some(RawFrame::Marker(outcome)) => *outcome,
            _ => Outcome::Complete,
        };
        counters.hits += values[0];
        counters.user[outcome as usize] += values[0];
        counters.whole[outcome as usize] += values[0];
        counters.kernel[Outcome::Complete as usize] += values[0];
    }
    counters
}

/// Numbers of sites, from 1. A stack is one site of a process, however often what the process maps has changed.
#[derive(Default)]
struct Spans {
    numbers: HashMap<(Option<StackId>, u32, u64), u64>,
    /// By number.
    sites: Vec<(Option<StackId>, u32)>,
}

impl Spans {
    fn of(&mut self, key: SiteKey, sites: &Sites) -> u64 {
        let stack = sites.0.get(&key).map(|&(stack, _)| stack);
        let next = self.sites.len() as u64 + 1;
        *self.numbers.entry((stack, key.pid, key.start_time_ns)).or_insert_with(|| {
            self.sites.push((stack, key.pid));
            next
        })
    }

    /// The stack and the process of a number.
    fn site(&self, span: u64) -> (Option<StackId>, u32) {
        self.sites[usize::try_from(span - 1).unwrap_or(0)]
    }
}

/// The blocks of the programs that processes run, and the keys of those that an exec has taken away.
fn of_last_program(blocks: Vec<(LiveKey, LiveBlock)>) -> (Vec<(LiveKey, LiveBlock)>, Vec<LiveKey>) {
    let mut last: HashMap<(u32, u64), u32> = HashMap::new();
    for (_, block) in &blocks {
        let last = last.entry((block.pid, block.start_time_ns)).or_default();
        *last = block.exec_count.max(*last);
    }
    let is_last = |(_, block): &(LiveKey, LiveBlock)| last[&(block.pid, block.start_time_ns)] == block.exec_count;
    let (kept, gone): (Vec<_>, Vec<_>) = blocks.into_iter().partition(is_last);
    (kept, gone.into_iter().map(|(key, _)| key).collect())
}

/// What a site held each time, and what of it is there at the end.
type Past = (u64, Vec<Held>, Vec<Held>);

/// The past of the sites that hold most at the end, these first.
fn past(
    seen: &[(u64, HashMap<SiteKey, Held>)],
    times: &[u64],
    blocks: &[(LiveKey, LiveBlock)],
    spans: &mut Spans,
    sites: &Sites,
) -> Vec<Past> {
    let mut all: HashMap<u64, (Vec<Held>, Vec<Held>)> = HashMap::new();
    let nothing = || (vec![Held::default(); times.len()], vec![Held::default(); times.len()]);
    for (time, (_, held)) in seen.iter().enumerate() {
        for (&site, held) in held {
            let (held_then, _) = all.entry(spans.of(site, sites)).or_insert_with(nothing);
            held_then[time].bytes += held.bytes;
            held_then[time].variance += held.variance;
        }
    }
    for (_, block) in blocks {
        let (_, kept) = all.entry(spans.of(SiteKey::of(block), sites)).or_insert_with(nothing);
        let first = times.partition_point(|&at| at < block.born_ns);
        kept[first..].iter_mut().for_each(|kept| kept.add(block));
    }
    let mut order: Vec<Past> = all.into_iter().map(|(span, (held, kept))| (span, held, kept)).collect();
    order.retain(|(_, held, _)| held.last().is_some_and(|held| held.bytes > 0));
    order.sort_by_key(|(span, held, _)| (std::cmp::Reverse(held.last().map_or(0, |held| held.bytes)), *span));
    order.truncate(MAX_LIVE_SITES);
    order
}

/// Bytes that were allocated on a stack by a process.
fn allocated_by(profile: &RawProfile, stack: StackId, pid: u32) -> u64 {
    let is_its = |thread: ThreadId| profile.threads.values().get(thread as usize).is_some_and(|its| its.pid == pid);
    let samples = profile.samples.iter().filter(|((its, thread, ..), _)| *its == stack && is_its(*thread));
    samples.map(|(_, values)| values[1]).sum()
}

/// The stack and the thread of a site in another profile than that of allocations.
fn copy_site(
    profile: &mut RawProfile,
    from: &RawProfile,
    site: Option<&(StackId, ThreadId)>,
    block: &LiveBlock,
) -> (StackId, ThreadId) {
    site.and_then(|&known| copy_known(profile, from, known)).unwrap_or_else(|| {
        let missing = profile.frames.intern(RawFrame::Marker(Outcome::StackMissing));
        let thread = crate::profile::Thread {
            pid: block.pid,
            tid: block.pid,
            start_time_ns: block.start_time_ns,
            exec_count: block.exec_count,
            ..crate::profile::Thread::default()
        };
        (profile.stacks.intern(Box::from([missing])), profile.threads.intern(thread))
    })
}

/// A stack and a thread of one profile in another.
fn copy_known(
    profile: &mut RawProfile,
    from: &RawProfile,
    (stack, thread): (StackId, ThreadId),
) -> Option<(StackId, ThreadId)> {
    let (stack, thread) = (from.stacks.values().get(stack as usize)?, from.threads.values().get(thread as usize)?);
    let frames = stack.iter().filter_map(|&frame| from.frames.values().get(frame as usize).copied());
    let frames: Vec<u32> = frames.map(|frame| profile.frames.intern(frame)).collect();
    Some((profile.stacks.intern(frames.into_boxed_slice()), profile.threads.intern(thread.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(address: u64, exec_count: u32, bytes: u64, born_ns: u64) -> (LiveKey, LiveBlock) {
        let key = LiveKey { address, pid: 7, reserved: 0 };
        (key, LiveBlock { pid: 7, exec_count, bytes, size: bytes, born_ns, stack: 300, ..LiveBlock::default() })
    }

    #[test]
    fn an_exec_takes_all_blocks_away() {
        let (kept, gone) = of_last_program(vec![block(16, 1, 10, 0), block(32, 2, 10, 0), block(48, 1, 10, 0)]);
        assert_eq!(kept, [block(32, 2, 10, 0)]);
        assert_eq!(gone.iter().map(|key| key.address).collect::<Vec<_>>(), [16, 48]);
    }

    #[test]
    fn the_past_says_what_is_still_there() {
        let first = vec![block(16, 1, 100, 5), block(32, 1, 100, 5)];
        let at_end = vec![block(16, 1, 100, 5), block(64, 1, 50, 15)];
        let held = |blocks: &[(LiveKey, LiveBlock)]| {
            let mut sites: HashMap<SiteKey, Held> = HashMap::new();
            blocks.iter().for_each(|(_, block)| sites.entry(SiteKey::of(block)).or_default().add(block));
            sites
        };
        let seen = [(10, held(&first)), (20, held(&at_end))];
        let past = past(&seen, &[10, 20], &at_end, &mut Spans::default(), &Sites::default());
        let bytes = |held: &[Held]| held.iter().map(|held| held.bytes).collect::<Vec<_>>();
        let [(1, held, kept)] = past.as_slice() else { panic!("one site") };
        assert_eq!((bytes(held), bytes(kept)), (vec![200, 150], vec![100, 150]));
    }
}
