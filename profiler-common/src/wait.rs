//! Time off the CPU: what the programs note of a thread that was switched out, and what it waited for.

use crate::event::COMM_LEN;
use crate::unwind::LEAF_REGISTERS;

/// What a thread waited for, in a finished profile.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// A block device, or a page that is read from or written to one.
    Disk = 1,
    /// A file system, without the device: its journal, its locks.
    File = 2,
    /// A lock: futex, file lock, semaphore, or one of the kernel's own.
    Lock = 3,
    /// A socket of a network protocol.
    Network = 4,
    /// A pipe or a local socket.
    Pipe = 5,
    /// Any of several descriptors: poll, select, epoll.
    Poll = 6,
    /// Time to pass, or a signal.
    Sleep = 7,
    /// A page of its own memory.
    Fault = 8,
    /// Being continued: stopped by a signal or a debugger.
    Stopped = 9,
    /// Another process: its end, its exec.
    Child = 10,
    /// Anything else.
    Other = 11,
    /// A CPU, which it had to leave for another task.
    Preempted = 12,
    /// A CPU, since it was woken or gave its own up.
    RunQueue = 13,
}

/// Names of the reasons, by number from 1.
pub const WAIT_REASONS: [&str; 13] = [
    "disk",
    "file",
    "lock",
    "network",
    "pipe",
    "poll",
    "sleep",
    "fault",
    "stopped",
    "child",
    "other",
    "preempted",
    "run queue",
];

/// How a thread was switched out.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Not seen: it was off the CPU already when the recording began.
    Unknown = 0,
    /// Asleep until something happens, or a signal comes.
    Interruptible = 1,
    /// Asleep until something happens.
    Uninterruptible = 2,
    /// Stopped by a signal or a debugger.
    Stopped = 3,
    /// Ready to run on: preempted, or it yielded.
    Runnable = 4,
    /// Not a way to leave: it has been woken, and waits for a CPU.
    Woken = 5,
}

impl Left {
    const ALL: [Self; 6] =
        [Self::Unknown, Self::Interruptible, Self::Uninterruptible, Self::Stopped, Self::Runnable, Self::Woken];
}

/// What a program knows of a wait, in the 16 bits of a record's reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// How the thread left its CPU.
    pub left: Left,
    /// The system call it is in; [`NO_SYSTEM_CALL`] outside one.
    pub system_call: u16,
    /// Whether the kernel counts it as waiting for a block device.
    pub io_wait: bool,
    /// Whether it is a `poll` or `select` without descriptors, which only waits for time to pass.
    pub polls_nothing: bool,
}

/// No system call has this number: the thread entered the kernel by a fault or an interrupt.
pub const NO_SYSTEM_CALL: u16 = SYSTEM_CALL_MASK;

const SYSTEM_CALL_MASK: u16 = (1 << LEFT_SHIFT) - 1;
const LEFT_SHIFT: u32 = 10;
const LEFT_MASK: u16 = 7;
const IO_WAIT: u16 = 1 << 13;
const POLLS_NOTHING: u16 = 1 << 14;

impl Blocked {
    /// The word as a record carries it.
    #[inline(always)]
    #[must_use]
    pub const fn to_word(self) -> u16 {
        let call = if self.system_call < NO_SYSTEM_CALL { self.system_call } else { NO_SYSTEM_CALL };
        let io_wait = if self.io_wait { IO_WAIT } else { 0 };
        let polls_nothing = if self.polls_nothing { POLLS_NOTHING } else { 0 };
        call | (self.left as u16) << LEFT_SHIFT | io_wait | polls_nothing
    }

    /// The bits that say how the thread left its CPU, by the number of a [`Left`].
    #[inline(always)]
    #[must_use]
    pub const fn left_bits(left: u16) -> u16 {
        (left & LEFT_MASK) << LEFT_SHIFT
    }

    /// The word of the time that followed the wait of `word`, after the thread was woken.
    #[inline(always)]
    #[must_use]
    pub const fn woken(word: u16) -> u16 {
        word & !Self::left_bits(LEFT_MASK) | Self::left_bits(Left::Woken as u16)
    }

    /// Reads a word that a record carried.
    #[must_use]
    pub fn from_word(word: u16) -> Self {
        let left = usize::from(word >> LEFT_SHIFT & LEFT_MASK);
        Self {
            left: Left::ALL.get(left).copied().unwrap_or(Left::Unknown),
            system_call: word & SYSTEM_CALL_MASK,
            io_wait: word & IO_WAIT != 0,
            polls_nothing: word & POLLS_NOTHING != 0,
        }
    }
}

/// The number of a system call from the word that the kernel keeps of it; its value is -1 outside one.
#[inline(always)]
#[must_use]
pub const fn system_call_of(original_ax: u64) -> u16 {
    if original_ax < NO_SYSTEM_CALL as u64 { original_ax as u16 } else { NO_SYSTEM_CALL }
}

/// A thread that was asked for, since it was first switched out: an element of the `WAITS` map.
///
/// The map is an array: a look-up in a hash map is a call, which costs as much as all the rest. A thread's element is the
/// first from [`Wait::place`] on that was free when it came, at most [`WAIT_PLACES`] further.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wait {
    /// When it was switched out, in ns of the monotonic clock; 0 while it runs.
    pub since_ns: u64,
    /// Time it had waited for a CPU until then, by the kernel's own account.
    pub run_delay_ns: u64,
    /// The thread, as the initial pid namespace numbers it; 0 in an element that is free.
    pub tid: u32,
    /// How it was switched out: a [`Left`].
    pub left: u32,
    /// Where the thread is in its [`Cell`] of blocked time.
    pub blocked: Cell,
    /// And in that of time in which it waited for a CPU.
    pub queued: Cell,
    /// Since when it is known, in ns of the monotonic clock: since the recording began, or it did, or its name did.
    pub from_ns: u64,
    /// Time it ran since then until it was last switched out, ns.
    pub on_cpu_ns: u64,
    /// Time it waited since then until it was last switched in, ns.
    pub off_cpu_ns: u64,
}

/// Elements of the `WAITS` map: a power of two.
pub const MAX_WAITS: u32 = 1 << 16;

/// Elements that a thread may have. Numbers of threads follow each other, so that most have the first.
pub const WAIT_PLACES: u32 = 4;

impl Wait {
    /// Index of one of the elements that a thread may have.
    #[inline(always)]
    #[must_use]
    pub const fn place(tid: u32, place: u32) -> u32 {
        tid.wrapping_add(place) & (MAX_WAITS - 1)
    }
}

/// What waits are recorded for: bits of [`crate::config::Config::waits`].
pub mod recorded_waits {
    /// All of them, as time off the CPU.
    pub const ALL: u32 = 1;
    /// Those for a lock, with its address.
    pub const LOCKS: u32 = 2;
    /// Who ends them.
    pub const WAKERS: u32 = 4;
}

/// A lock that threads of a process waited for, until a waker gave it back: a key of the `LOCKS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LockKey {
    /// Start of the process since boot, ns.
    pub start_time_ns: u64,
    /// Address of its futex.
    pub address: u64,
    /// The waker: the span of its records; 0 when it was not seen.
    pub waker: u64,
    /// Process.
    pub pid: u32,
    /// Zero.
    pub reserved: u32,
}

/// What waits for a lock have come to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LockWaits {
    /// Waits, those that the kept ones stand for included.
    pub waits: u64,
    /// Their time, ns.
    pub delay_ns: u64,
    /// The longest that was kept, ns.
    pub longest_ns: u64,
}

/// Locks and wakers known at once.
pub const MAX_LOCKS: u32 = 16_384;

/// Whether a system call waits for a lock, by its number and second argument: futex(2) with an operation that waits,
/// or its newer forms.
///
/// Source: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/linux/futex.h.
#[inline(always)]
#[must_use]
pub const fn waits_for_lock(system_call: u16, second_argument: u64) -> bool {
    const FUTEX: u16 = 202;
    const FUTEX_WAITV: u16 = 449;
    const FUTEX_WAIT_CALL: u16 = 455;
    // Without FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME.
    const OPERATION_MASK: u64 = 0x7f;
    // WAIT, LOCK_PI, WAIT_BITSET, WAIT_REQUEUE_PI, LOCK_PI2.
    const WAITS: u64 = 1 | 1 << 6 | 1 << 9 | 1 << 11 | 1 << 13;
    match system_call {
        FUTEX => WAITS >> (second_argument & OPERATION_MASK & 63) & 1 != 0,
        FUTEX_WAITV | FUTEX_WAIT_CALL => true,
        _ => false,
    }
}

/// What a thread waited for with a lock, in a finished profile.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LockKind {
    /// A mutex.
    Mutex = 1,
    /// A lock of readers and writers.
    RwLock = 2,
    /// A condition variable.
    Condvar = 3,
    /// A semaphore.
    Semaphore = 4,
    /// Others to come to a barrier.
    Barrier = 5,
    /// Something that is made once.
    Once = 6,
    /// The end of another thread.
    Join = 7,
    /// To be unparked: the thread has nothing to do.
    Park = 8,
    /// The global lock of an interpreter.
    Interpreter = 9,
    /// A lock of a language's runtime.
    Runtime = 10,
    /// A futex of something else.
    Futex = 11,
}

/// Names of the kinds, by number from 1.
pub const LOCK_KINDS: [&str; 11] = [
    "mutex",
    "rwlock",
    "condvar",
    "semaphore",
    "barrier",
    "once",
    "join",
    "park",
    "interpreter lock",
    "runtime lock",
    "futex",
];

/// How a thread's intervals are chosen.
///
/// An interval of `d` ns is kept with probability `min(1, d / threshold)`, and counts for `max(d, threshold)`. Those below
/// the threshold are laid end to end, each as long as its part of the threshold. The line is cut into cells of length 1,
/// and one point is chosen by chance in each: an interval is kept when it has a point in it. So what is kept of a thread
/// adds up to its time but for one threshold, which it would not if each interval had a chance of its own; and no
/// pattern in the thread's waits can hide, as it could if points were evenly spaced.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// How much of the cell is behind, in 2^-32.
    pub progress: u32,
    /// Where its point is.
    pub point: u32,
}

impl Cell {
    /// Whether an interval may have a point: it has none if not, and where it ends in another cell nobody knows yet.
    #[inline(always)]
    #[must_use]
    pub fn may_have_point(&self, length: u64, threshold: u64) -> bool {
        if length >= threshold {
            return true;
        }
        let after = u64::from(self.progress) + (length << 32).checked_div(threshold).unwrap_or(0);
        after >> 32 != 0 || (self.progress <= self.point && u64::from(self.point) < after)
    }

    /// A cell in which a thread has not gone anywhere yet. `chance`: any number.
    #[inline(always)]
    #[must_use]
    pub const fn new(chance: u32) -> Self {
        Self { progress: 0, point: chance }
    }

    /// Goes over an interval; returns how many points are in it, 2 at most.
    ///
    /// `length` is less than `threshold`, which is at most [`MOST_THRESHOLD_NS`]; `chance` gives any number.
    #[inline(always)]
    pub fn step(&mut self, length: u64, threshold: u64, chance: impl FnOnce() -> u32) -> u64 {
        let (before, point) = (self.progress as u64, self.point as u64);
        // Checked, so that no panic gets into a program.
        let after = before + (length << 32).checked_div(threshold).unwrap_or(0);
        let points = (before <= point && point < after) as u64;
        self.progress = after as u32;
        if after >> 32 == 0 {
            return points;
        }
        self.point = chance();
        points + (self.point < self.progress) as u64
    }
}

/// The threshold that intervals are held against: the one element of the `THRESHOLD` map.
///
/// One for all CPUs: a thread that moves between CPUs with thresholds of their own would have cells of different worth, and
/// what is kept of it would add up to its time by chance only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Threshold {
    /// The threshold, in ns.
    pub now_ns: u64,
    /// When it was changed last.
    pub changed_at_ns: u64,
    /// When a CPU last kept about as many as it should, or more.
    pub needed_at_ns: u64,
    /// The highest there has been.
    pub highest_ns: u64,
}

/// What is known of the switches of one CPU: a value of the `PACE` map. Written by the programs alone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// When this slot of time began.
    pub slot_ns: u64,
    /// Intervals kept in it.
    pub kept: u64,
    /// When this CPU last switched from one task to another.
    pub switched_ns: u64,
    /// Address of the task that it switched to.
    pub next: u64,
}

/// Waits shorter than that do not exist: all intervals are kept.
pub const LEAST_THRESHOLD_NS: u64 = 1_000;

/// No longer interval is ever left out. Far below 2^32, which the choice by 32 random bits needs.
pub const MOST_THRESHOLD_NS: u64 = 1 << 30;

/// Length of a slot of time, after which the threshold is looked at: so long that chance changes what is kept in it by
/// little, since what a thread's intervals add up to is the more exact the less the threshold moves.
pub const SLOT_NS: u64 = 100_000_000;

/// Intervals that are to be kept in a slot: 2,000 a second and CPU, which cost about a hundredth of it.
pub const KEPT_IN_A_SLOT: u64 = 200;

/// A thread that has ended, sent through the ring buffer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndedThread {
    /// [`crate::event::RING_THREAD`].
    pub kind: u16,
    /// Zero.
    pub reserved: u16,
    /// Thread.
    pub tid: u32,
    /// Process.
    pub pid: u32,
    /// Programs its process had executed.
    pub exec_count: u32,
    /// Start of its process since boot, ns.
    pub start_time_ns: u64,
    /// When it ended, in ns of the monotonic clock: at the end of the recording if that was before.
    pub ended_ns: u64,
    /// [`Wait::from_ns`].
    pub from_ns: u64,
    /// [`Wait::on_cpu_ns`].
    pub on_cpu_ns: u64,
    /// [`Wait::off_cpu_ns`].
    pub off_cpu_ns: u64,
    /// The thread's name.
    pub thread_comm: [u8; COMM_LEN],
    /// The process's name.
    pub process_comm: [u8; COMM_LEN],
}

/// A thread that is there when the recording ends, as the iterator writes it. The words of its kernel chain follow, if it
/// waits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaitingRecord {
    /// When it was switched out, in ns of the monotonic clock; 0 when it has waited since before the recording began.
    pub since_ns: u64,
    /// When it was looked at.
    pub now_ns: u64,
    /// [`Wait::from_ns`]; 0 when it was not switched since the recording began.
    pub from_ns: u64,
    /// [`Wait::on_cpu_ns`].
    pub on_cpu_ns: u64,
    /// [`Wait::off_cpu_ns`].
    pub off_cpu_ns: u64,
    /// Start of the thread since boot, ns.
    pub thread_start_time_ns: u64,
    /// Start of its process since boot, ns.
    pub start_time_ns: u64,
    /// Times it was switched out.
    pub switches: u64,
    /// Process.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// Programs its process had executed.
    pub exec_count: u32,
    /// The mapping generation that was published for it.
    pub generation: u32,
    /// A [`Blocked`].
    pub blocked: u32,
    /// Frames of the kernel chain.
    pub kernel_frames: u32,
    /// 1 when it waits, 0 when it runs.
    pub waits: u32,
    /// 1 when it waits for a lock.
    pub waits_for_lock: u32,
    /// First argument of the system call it is in.
    pub argument: u64,
    /// The thread's name.
    pub thread_comm: [u8; COMM_LEN],
    /// The process's name.
    pub process_comm: [u8; COMM_LEN],
    /// Its code segment in user space: 0 when it has no memory any more.
    pub segment: u64,
    /// Its instruction pointer there.
    pub ip: u64,
    /// Its registers there, by their DWARF number.
    pub registers: [u64; LEAF_REGISTERS],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_of_a_wait_survives_the_record() {
        for left in Left::ALL {
            for system_call in [0, 202, 471, NO_SYSTEM_CALL] {
                for flags in 0..4 {
                    let blocked = Blocked { left, system_call, io_wait: flags & 1 != 0, polls_nothing: flags & 2 != 0 };
                    assert_eq!(Blocked::from_word(blocked.to_word()), blocked);
                }
            }
        }
    }

    #[test]
    fn what_is_kept_of_a_thread_adds_up_to_its_time_whatever_its_pattern() {
        // Knuth's MMIX generator, the high half.
        let mut state = 42_u64;
        let mut chance = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 32) as u32
        };
        // Two kinds of wait that take turns and make one threshold together; the threshold rises in between.
        let (lengths, mut kept, mut all) = ([30_000, 70_000], [0, 0], [0, 0]);
        let mut cell = Cell::new(chance());
        for turn in 0..100_000 {
            let threshold = if turn < 50_000 { 100_000 } else { 200_000 };
            for kind in 0..2 {
                kept[kind] += threshold * cell.step(lengths[kind], threshold, &mut chance);
                all[kind] += lengths[kind];
            }
        }
        let (sum, expected) = (kept[0] + kept[1], all[0] + all[1]);
        assert!(sum.abs_diff(expected) <= 300_000, "{sum} for {expected}");
        for kind in 0..2 {
            assert!(kept[kind].abs_diff(all[kind]) < all[kind] / 50, "{kept:?} for {all:?}");
        }
    }

    #[test]
    fn a_wait_is_kept_only_where_it_may_be() {
        let mut state = 7_u64;
        let mut chance = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 32) as u32
        };
        let mut cell = Cell::new(chance());
        let (mut may, mut kept) = (0, 0);
        for _ in 0..100_000 {
            let length = u64::from(chance()) % 20_000;
            let is_possible = cell.may_have_point(length, 100_000);
            let points = cell.step(length, 100_000, &mut chance);
            assert!(points == 0 || is_possible);
            (may, kept) = (may + u64::from(is_possible), kept + u64::from(points > 0));
        }
        assert!(kept > 9_000 && may < 3 * kept, "{kept} of {may}");
    }

    #[test]
    fn only_waiting_for_a_futex_is_waiting_for_a_lock() {
        const PRIVATE_REALTIME: u64 = 128 | 256;
        for (operation, expected) in [(0, true), (9, true), (6, true), (1, false), (10, false), (4, false), (7, false)]
        {
            assert_eq!(waits_for_lock(202, operation | PRIVATE_REALTIME), expected, "{operation}");
        }
        assert!(waits_for_lock(455, 0) && !waits_for_lock(35, 0));
    }

    #[test]
    fn a_system_call_that_cannot_be_is_none() {
        assert_eq!(system_call_of(202), 202);
        assert_eq!(system_call_of(u64::MAX), NO_SYSTEM_CALL);
        assert_eq!(system_call_of(1 << 40), NO_SYSTEM_CALL);
    }

    #[test]
    fn reasons_are_numbered_as_named() {
        assert_eq!(WAIT_REASONS[Reason::RunQueue as usize - 1], "run queue");
        assert_eq!(WAIT_REASONS[Reason::Disk as usize - 1], "disk");
        assert_eq!(WAIT_REASONS.len(), Reason::RunQueue as usize);
        assert_eq!(LOCK_KINDS[LockKind::Futex as usize - 1], "futex");
        assert_eq!(LOCK_KINDS.len(), LockKind::Futex as usize);
    }

    #[test]
    fn layouts_have_no_hidden_padding() {
        // A line of the cache.
        assert_eq!(size_of::<Wait>(), 64);
        assert_eq!(size_of::<EndedThread>(), 7 * 8 + 2 * COMM_LEN);
        assert_eq!(size_of::<Threshold>(), 32);
        assert_eq!(size_of::<Pace>(), 32);
        assert_eq!(size_of::<WaitingRecord>(), 9 * 8 + 8 * 4 + 2 * COMM_LEN + 2 * 8 + 8 * LEAF_REGISTERS);
        assert_eq!(size_of::<LockKey>(), 32);
        assert_eq!(size_of::<LockWaits>(), 24);
    }
}
