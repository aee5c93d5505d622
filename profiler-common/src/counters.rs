//! Exact accounting: every hit of a probe ends in one counter, and the counters add up.
//!
//! `hits = filtered + idle + sampled_out + sum(outcomes)` holds three times over: for the user chain, for the kernel chain and for
//! the sample as a whole. The same list of outcomes is used in the kernel, in user space and in every output.

/// How a sample, or one chain of it, ended.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// Walked to its root, or empty because there is nothing to walk (the user chain of a kernel thread).
    Complete = 0,
    /// The next frame pointer does not point into the stack: code built without frame pointers.
    NoFramePointer = 1,
    /// The stack memory is not resident, or not mapped.
    UnreadableStack = 2,
    /// More frames than the walk may take.
    DepthLimit = 3,
    /// 32-bit code, which is not unwound.
    CompatCode = 4,
    /// The process has released its memory (it is exiting).
    Exiting = 5,
    /// The kernel's own walk of its stack failed.
    KernelStack = 6,
    /// A program of the same type was interrupted while it used the scratch space.
    ScratchBusy = 7,
    /// The ring buffer had no room for a stack that user space does not know yet.
    RingFull = 8,
    /// The aggregation map had no room for a new record.
    MapFull = 9,
    /// The aggregation map's bucket was locked by the code this sample interrupted.
    MapBusy = 10,
    /// The record came, its stack did not.
    StackMissing = 11,
    /// An unwind rule that cannot be followed, or that does not lead up the stack.
    BadUnwindRule = 12,
    /// Code that was mapped so recently that its unwind table was not ready, or that belongs to no known mapping.
    NoTable = 13,
    /// The process was executing another program: the memory of the one before was gone.
    Executing = 14,
    /// The map of threads had no room for one more.
    ThreadsFull = 15,
    /// The thread ran on while user space read its stack.
    Awoke = 16,
    /// Nobody knows who asked for a request to a block device.
    AskerUnknown = 17,
}

/// What an [`Outcome`] means for the sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Nothing is missing.
    Complete,
    /// The leaf-most frames are known, the root is not.
    Truncated,
    /// The chain, or the whole record, is not in the profile.
    Lost,
}

impl Outcome {
    /// Every outcome, in the order of the counters.
    pub const ALL: [Self; 18] = [
        Self::Complete,
        Self::NoFramePointer,
        Self::UnreadableStack,
        Self::DepthLimit,
        Self::CompatCode,
        Self::Exiting,
        Self::KernelStack,
        Self::ScratchBusy,
        Self::RingFull,
        Self::MapFull,
        Self::MapBusy,
        Self::StackMissing,
        Self::BadUnwindRule,
        Self::NoTable,
        Self::Executing,
        Self::ThreadsFull,
        Self::Awoke,
        Self::AskerUnknown,
    ];

    /// How many outcomes there are.
    pub const COUNT: usize = Self::ALL.len();

    /// The outcome with this number, if there is one.
    #[must_use]
    pub fn from_code(code: u64) -> Option<Self> {
        Self::ALL.get(usize::try_from(code).ok()?).copied()
    }

    /// The name used in reports, in `[truncated: NAME]` frames and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::NoFramePointer => "no_frame_pointer",
            Self::UnreadableStack => "unreadable_stack",
            Self::DepthLimit => "depth_limit",
            Self::CompatCode => "compat_code",
            Self::Exiting => "exiting",
            Self::KernelStack => "kernel_stack",
            Self::ScratchBusy => "scratch_busy",
            Self::RingFull => "ring_full",
            Self::MapFull => "map_full",
            Self::MapBusy => "map_busy",
            Self::StackMissing => "stack_missing",
            Self::BadUnwindRule => "bad_unwind_rule",
            Self::NoTable => "no_table",
            Self::Executing => "executing",
            Self::ThreadsFull => "threads_full",
            Self::Awoke => "awoke",
            Self::AskerUnknown => "asker_unknown",
        }
    }

    /// The outcome with this [`name`](Self::name), if there is one.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.name() == name)
    }

    /// One sentence for a person, with what can be done about it where something can.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Complete => "walked to the root",
            Self::NoFramePointer => "the frame-pointer chain broke in code built without frame pointers",
            Self::UnreadableStack => "stack memory was not resident or not mapped",
            Self::DepthLimit => "more frames than the walk may take",
            Self::CompatCode => "32-bit code is not unwound",
            Self::Exiting => "the process had already released its memory",
            Self::KernelStack => "the kernel could not walk its own stack",
            Self::ScratchBusy => "a probe interrupted itself",
            Self::RingFull => "the stack buffer was full: raise --buffer-mb or lower -F",
            Self::MapFull => "the aggregation map was full: raise --map-entries or lower -F",
            Self::MapBusy => "the aggregation map was locked by the code this sample interrupted",
            Self::StackMissing => "the record arrived without its stack",
            Self::BadUnwindRule => "call-frame information that cannot be followed: `profiler inspect` tells which",
            Self::NoTable => "code whose unwind table was not ready: it was mapped just now, or belongs to no file",
            Self::Executing => "the process was executing another program, whose stack there is not yet",
            Self::ThreadsFull => "the map of threads was full: there are more threads than it has room for",
            Self::Awoke => "the thread ran on while its stack was read",
            Self::AskerUnknown => "nobody knows who asked for the request",
        }
    }

    /// What this outcome means for a chain.
    #[must_use]
    pub const fn class(self) -> Class {
        match self {
            Self::Complete => Class::Complete,
            Self::NoFramePointer
            | Self::UnreadableStack
            | Self::DepthLimit
            | Self::CompatCode
            | Self::BadUnwindRule
            | Self::NoTable => Class::Truncated,
            Self::Exiting
            | Self::Executing
            | Self::ThreadsFull
            | Self::Awoke
            | Self::AskerUnknown
            | Self::KernelStack
            | Self::ScratchBusy
            | Self::RingFull
            | Self::MapFull
            | Self::MapBusy
            | Self::StackMissing => Class::Lost,
        }
    }

    /// Whether a sample that ends so is not in the profile at all.
    ///
    /// A sample that lost one chain to another reason stays in the profile, with a frame that names the reason.
    #[must_use]
    pub const fn loses_record(self) -> bool {
        matches!(self, Self::ScratchBusy | Self::MapFull | Self::MapBusy | Self::ThreadsFull | Self::AskerUnknown)
    }
}

/// The counters of one origin on one CPU, in events.
///
/// Written by the origin's programs, read by user space at the end of a window.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Times the program ran.
    pub hits: u64,
    /// Sum of the events' own periods over the hits, in the event's unit (ns for the CPU clock). Of waits and calls: their exact
    /// length, also of those that were sampled out.
    pub period_sum: u64,
    /// Of intervals that were chosen by length, where no column holds it: variance of what the kept ones stand for, in us^2.
    pub variance_us2: u64,
    /// Periods of the event that passed without a hit while one task ran without a break: from one hit to the next.
    pub missed: i64,
    /// Hits on a task that was not asked for.
    pub filtered: u64,
    /// Hits on the idle task.
    pub idle: u64,
    /// Hits that were left out by chance, others counting for them.
    pub sampled_out: u64,
    /// Outcomes of the user chain, by [`Outcome`].
    pub user: [u64; Outcome::COUNT],
    /// Outcomes of the kernel chain, by [`Outcome`].
    pub kernel: [u64; Outcome::COUNT],
    /// Outcomes of the sample as a whole, by [`Outcome`]: the record's own, else the user chain's, else the kernel's.
    pub whole: [u64; Outcome::COUNT],
}

impl Counters {
    /// Adds another CPU's or window's counts.
    pub fn add(&mut self, other: &Self) {
        self.hits += other.hits;
        self.period_sum += other.period_sum;
        self.variance_us2 += other.variance_us2;
        self.missed += other.missed;
        self.filtered += other.filtered;
        self.idle += other.idle;
        self.sampled_out += other.sampled_out;
        for index in 0..Outcome::COUNT {
            self.user[index] += other.user[index];
            self.kernel[index] += other.kernel[index];
            self.whole[index] += other.whole[index];
        }
    }

    /// What was counted since `before`, which was read earlier.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let outcomes = |now: &[u64; Outcome::COUNT], before: &[u64; Outcome::COUNT]| {
            let mut since = *now;
            for (since, before) in since.iter_mut().zip(before) {
                *since = since.saturating_sub(*before);
            }
            since
        };
        Self {
            hits: self.hits.saturating_sub(before.hits),
            period_sum: self.period_sum.saturating_sub(before.period_sum),
            variance_us2: self.variance_us2.saturating_sub(before.variance_us2),
            missed: self.missed - before.missed,
            filtered: self.filtered.saturating_sub(before.filtered),
            idle: self.idle.saturating_sub(before.idle),
            sampled_out: self.sampled_out.saturating_sub(before.sampled_out),
            user: outcomes(&self.user, &before.user),
            kernel: outcomes(&self.kernel, &before.kernel),
            whole: outcomes(&self.whole, &before.whole),
        }
    }

    /// Whether every hit has come to its end, in each of the three accounts: read while a program runs, one may not have.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let ended = self.filtered + self.idle + self.sampled_out;
        let whole = self.whole.iter().sum::<u64>();
        self.hits == ended + whole && [&self.user, &self.kernel].iter().all(|chain| chain.iter().sum::<u64>() == whole)
    }
}

#[cfg(test)]
mod tests {
    use super::Outcome;

    #[test]
    fn outcomes_are_numbered_as_listed_and_named_once() {
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index);
            assert_eq!(Outcome::from_code(index as u64), Some(outcome));
            assert_eq!(Outcome::from_name(outcome.name()), Some(outcome));
        }
        assert_eq!(Outcome::from_code(Outcome::COUNT as u64), None);
    }
}
