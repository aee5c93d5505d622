//! What kind of lock a thread waited for, by the functions of its stack; and locks with their holders.
//!
//! Input: a profile of waits for locks, whose samples carry what the programs knew; afterwards they carry the number of a
//! [`LockKind`]. Which function belongs to which kind is a table.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use profiler_common::event::Origin;
use profiler_common::wait::LockKind;

use crate::profile::{Capture, FrameKind, LockHolder, LockShare, LockTime, Profile, Sample, StackId};

/// Locks of the report.
const MAX_ROWS: usize = 500;

/// Functions behind which a lock's own begin; nothing by themselves.
const MACHINERY: [&str; 19] = [
    "syscall",
    "lll_",
    "futex_",
    "internal_syscall_cancel",
    "std::sys::pal::unix::futex::",
    "std::sys::futex::",
    "parking_lot_core::",
    "lock_api::",
    "runtime.futex",
    "runtime.mcall",
    "runtime.systemstack",
    "absl::synchronization_internal::",
    "folly::detail::",
    "std::__atomic_",
    "std::__detail::__platform_wait",
    "gthread",
    "PyCOND_",
    "PyMUTEX_",
    "acquire_timed",
];

/// Functions of locks, by how their names begin without leading underscores: the first one from the leaf on decides.
///
/// Source: glibc 2.31 to 2.41 (nptl), musl 1.2, Rust's std 1.60 to 1.95 (library/std/src/sys/sync), parking_lot 0.12,
/// tokio 1, Go 1.21 to 1.26 (src/runtime/lock_futex.go), `CPython` 3.8 to 3.14 (Python/ceval_gil.c).
const BY_FUNCTION: [(&str, LockKind); 49] = [
    ("pthread_mutex_", LockKind::Mutex),
    ("pthread_rwlock_", LockKind::RwLock),
    ("pthread_cond_", LockKind::Condvar),
    ("pthread_barrier_", LockKind::Barrier),
    ("pthread_once", LockKind::Once),
    ("pthread_clockjoin", LockKind::Join),
    ("pthread_timedjoin", LockKind::Join),
    ("pthread_join", LockKind::Join),
    ("pthread_spin_", LockKind::Mutex),
    ("sem_wait", LockKind::Semaphore),
    ("sem_timedwait", LockKind::Semaphore),
    ("sem_clockwait", LockKind::Semaphore),
    ("new_sem_wait", LockKind::Semaphore),
    ("new_sem_timedwait", LockKind::Semaphore),
    ("sem_post", LockKind::Semaphore),
    ("new_sem_post", LockKind::Semaphore),
    ("condvar_", LockKind::Condvar),
    ("cnd_", LockKind::Condvar),
    ("mtx_", LockKind::Mutex),
    ("cxa_guard_acquire", LockKind::Once),
    ("timedwait_tid", LockKind::Join),
    ("std::sys::sync::mutex::", LockKind::Mutex),
    ("std::sys::sync::rwlock::", LockKind::RwLock),
    ("std::sys::sync::condvar::", LockKind::Condvar),
    ("std::sys::sync::once::", LockKind::Once),
    ("std::sys::sync::thread_parking::", LockKind::Park),
    ("std::sys::unix::locks::futex_mutex::", LockKind::Mutex),
    ("std::sys::unix::locks::futex_rwlock::", LockKind::RwLock),
    ("std::sys::unix::locks::futex_condvar::", LockKind::Condvar),
    ("std::sys_common::once::futex::", LockKind::Once),
    ("std::sys_common::thread_parking::", LockKind::Park),
    ("std::sys_common::thread_parker::", LockKind::Park),
    ("std::sync::poison::once::", LockKind::Once),
    ("std::sync::barrier::", LockKind::Barrier),
    ("parking_lot::raw_mutex::", LockKind::Mutex),
    ("parking_lot::raw_rwlock::", LockKind::RwLock),
    ("parking_lot::condvar::", LockKind::Condvar),
    ("parking_lot::once::", LockKind::Once),
    ("parking_lot::raw_fair_mutex::", LockKind::Mutex),
    ("parking_lot::remutex::", LockKind::Mutex),
    ("event_listener::", LockKind::Park),
    ("runtime.lock", LockKind::Runtime),
    ("runtime.notesleep", LockKind::Park),
    ("runtime.notetsleep", LockKind::Park),
    ("runtime.semasleep", LockKind::Park),
    ("runtime.stopm", LockKind::Park),
    ("PyThread_acquire_lock", LockKind::Semaphore),
    ("absl::Mutex::", LockKind::Mutex),
    ("std::condition_variable::", LockKind::Condvar),
];

/// Functions that a condition variable belongs to: what waits there waits for the interpreter.
const INTERPRETER: [&str; 2] = ["take_gil", "drop_gil"];

/// Frames from the leaf on among which a lock's functions are looked for.
const MOST_FRAMES: usize = 24;

impl LockKinds<'_> {
    /// What the user part of a stack waits for, and the frame of the function that does.
    fn find(&self, stack: StackId) -> (LockKind, Option<String>) {
        let frames = self.0.frames(stack);
        let user = frames.filter(|frame| !matches!(frame.kind, FrameKind::Kernel | FrameKind::Reason));
        let (mut kind, mut site) = (None, None);
        for frame in user.take(MOST_FRAMES) {
            let name = bare(&frame.name);
            if INTERPRETER.contains(&name) {
                kind = Some(LockKind::Interpreter);
                continue;
            }
            match by_function(name) {
                Part::Of(found) => kind = kind.or(Some(found)),
                Part::Machinery => {}
                Part::Other => {
                    site = Some(frame.name.into_owned());
                    break;
                }
            }
        }
        (kind.unwrap_or(LockKind::Futex), site)
    }
}

/// Finds what stacks of a profile wait for.
pub(super) struct LockKinds<'a>(pub(super) &'a Profile);

/// What a function is to a lock.
enum Part {
    Of(LockKind),
    Machinery,
    Other,
}

fn by_function(name: &str) -> Part {
    if let Some(&(_, kind)) = BY_FUNCTION.iter().find(|(prefix, _)| name.starts_with(prefix)) {
        return Part::Of(kind);
    }
    // A frame without a name is inside the library whose other frames are these.
    let is_nameless = name.contains("+0x");
    let is_machinery = is_nameless || MACHINERY.iter().any(|prefix| name.starts_with(prefix));
    // What wraps a lock, so that its user is further up.
    let is_wrapper = ["std::", "core::", "uv_mutex", "uv_cond"];
    if is_machinery || is_wrapper.iter().any(|prefix| name.starts_with(prefix)) { Part::Machinery } else { Part::Other }
}

/// A function's name without what a C library puts before it, or Rust around its type.
fn bare(name: &str) -> &str {
    let name = name.split('@').next().unwrap_or(name);
    let name = name.trim_start_matches(['_', '<']);
    name.strip_prefix("GI_").map_or(name, |name| name.trim_start_matches('_'))
}

/// What a sample waits for.
pub(super) fn kind(profile: &Profile, sample: &Sample) -> LockKind {
    LockKinds(profile).find(sample.stack).0
}

/// The locks of a capture, those that are held by somebody first, most time first.
pub(super) fn locks(capture: &Capture) -> Vec<LockShare> {
    let profile = |origin: Origin| capture.profiles.iter().find(|profile| profile.origin == origin);
    let Some(waits) = profile(Origin::Lock) else { return Vec::new() };
    let sites = sites(waits);
    let wakers = profile(Origin::Waker);
    let by_span = wakers.map(Profile::by_span).unwrap_or_default();
    let mut locks: BTreeMap<(u32, u64, &str), Vec<&LockTime>> = BTreeMap::new();
    for time in &capture.index.lock_times {
        locks.entry((time.pid, time.start_time_ns, &time.address)).or_default().push(time);
    }
    let mut rows: Vec<LockShare> = locks
        .into_iter()
        .map(|((pid, start_time_ns, address), times)| {
            let delay_ns: u64 = times.iter().map(|time| time.delay_ns).sum();
            let site = sites.get(&(pid, start_time_ns, number(address)));
            LockShare {
                pid,
                process: site.map(|site| site.process.clone()).unwrap_or_default(),
                address: address.to_owned(),
                kind: Origin::Lock
                    .reason_name(site.map_or(LockKind::Futex as u16, |site| site.kind))
                    .unwrap_or_default()
                    .to_owned(),
                waits: times.iter().map(|time| time.waits).sum(),
                delay_ns,
                longest_ns: times.iter().map(|time| time.longest_ns).max().unwrap_or(0),
                site: site.map(|site| site.function.clone()).unwrap_or_default(),
                holder: wakers.and_then(|wakers| holder(wakers, &by_span, &times, delay_ns)),
            }
        })
        .collect();
    rows.sort_by_key(|row| (!is_contention(&row.kind), Reverse(row.delay_ns), row.pid, row.address.clone()));
    rows.truncate(MAX_ROWS);
    rows
}

/// Whether who waits so wants to go on: not for work to be done, or for others.
fn is_contention(kind: &str) -> bool {
    !["condvar", "semaphore", "barrier", "join", "park"].contains(&kind)
}

/// A number that was written in hexadecimal; 0 for anything else.
fn number(text: &str) -> u64 {
    text.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0)
}

/// Where a lock is waited for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Site {
    kind: u16,
    function: String,
    process: String,
}

/// A lock: its process, the start of that, and its address.
type LockId = (u32, u64, u64);

/// Where each lock is waited for most.
fn sites(profile: &Profile) -> HashMap<LockId, Site> {
    let mut times: HashMap<LockId, BTreeMap<Site, u64>> = HashMap::new();
    for sample in &profile.samples {
        let thread = &profile.threads[sample.thread as usize];
        let function = LockKinds(profile).find(sample.stack).1.unwrap_or_default();
        let site = Site { kind: sample.reason, function, process: thread.process_name.clone() };
        let of_lock = times.entry((thread.pid, thread.start_time_ns, sample.span)).or_default();
        *of_lock.entry(site).or_default() += sample.values[profile.origin.row().primary];
    }
    let most = |times: BTreeMap<Site, u64>| times.into_iter().rev().max_by_key(|&(_, time)| time);
    times.into_iter().filter_map(|(lock, times)| Some((lock, most(times)?.0))).collect()
}

/// The thread that ended most of a lock's delay, and the function in which it ended most of that.
fn holder(wakers: &Profile, by_span: &HashMap<u64, &Sample>, times: &[&LockTime], delay_ns: u64) -> Option<LockHolder> {
    let mut delays: BTreeMap<(u32, u32, &str), BTreeMap<String, u64>> = BTreeMap::new();
    for time in times {
        let span = number(&time.waker);
        let Some(sample) = by_span.get(&span).filter(|_| span != 0) else { continue };
        let thread = &wakers.threads[sample.thread as usize];
        let function = LockKinds(wakers).find(sample.stack).1.unwrap_or_default();
        let of_thread = delays.entry((thread.pid, thread.tid, &thread.thread_name)).or_default();
        *of_thread.entry(function).or_default() += time.delay_ns;
    }
    let sum = |functions: &BTreeMap<String, u64>| functions.values().sum::<u64>();
    // Of equals the first.
    let most = delays.into_iter().rev().max_by_key(|(_, functions)| sum(functions));
    let ((pid, tid, thread), functions) = most?;
    let share = super::share(sum(&functions), delay_ns);
    let function = functions.into_iter().rev().max_by_key(|&(_, delay)| delay).map(|(function, _)| function);
    Some(LockHolder { pid, tid, thread: thread.to_owned(), function: function.unwrap_or_default(), share })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Function, Line, Location};

    fn found(names: &[&str]) -> (LockKind, Option<String>) {
        let mut profile = Profile::new(Origin::Lock);
        for (number, name) in (0..).zip(names) {
            profile.functions.push(Function { name: (*name).to_owned(), file: String::new() });
            let kind = if name.starts_with("futex_") { FrameKind::Kernel } else { FrameKind::Native };
            let lines = vec![Line { function: number, line: 0 }];
            profile.locations.push(Location { kind, object: None, address: 0, lines });
        }
        profile.stacks.push((0..).take(names.len()).collect());
        LockKinds(&profile).find(0)
    }

    #[test]
    fn a_lock_is_what_its_functions_say() {
        for (names, kind, site) in [
            (
                &["futex_wait", "__lll_lock_wait", "___pthread_mutex_lock", "lock_here", "main"][..],
                LockKind::Mutex,
                "lock_here",
            ),
            (
                &[
                    "__futex_abstimed_wait_common",
                    "__pthread_cond_wait_common",
                    "pthread_cond_wait@@GLIBC_2.3.2",
                    "idle",
                ],
                LockKind::Condvar,
                "idle",
            ),
            (
                &["__lll_lock_wait", "__pthread_mutex_cond_lock", "pthread_cond_wait", "worker"],
                LockKind::Mutex,
                "worker",
            ),
            (
                &[
                    "syscall",
                    "std::sys::sync::mutex::futex::Mutex::lock_contended",
                    "std::sync::poison::mutex::Mutex<T>::lock",
                    "app::serve",
                ],
                LockKind::Mutex,
                "app::serve",
            ),
            (
                &[
                    "syscall",
                    "parking_lot_core::thread_parker::imp::ThreadParker::park",
                    "parking_lot::raw_rwlock::RawRwLock::lock_exclusive_slow",
                    "lock_api::rwlock::RwLock<R,T>::write",
                    "app::put",
                ],
                LockKind::RwLock,
                "app::put",
            ),
            (
                &["syscall", "std::sys::sync::thread_parking::futex::Parker::park", "std::sync::park", "pool::idle"],
                LockKind::Park,
                "pool::idle",
            ),
            (
                &[
                    "__futex_abstimed_wait_common",
                    "pthread_cond_timedwait",
                    "PyCOND_TIMEDWAIT",
                    "take_gil",
                    "PyEval_RestoreThread",
                ],
                LockKind::Interpreter,
                "PyEval_RestoreThread",
            ),
            (
                &["runtime.futex", "runtime.futexsleep", "runtime.lock2", "runtime.chansend"],
                LockKind::Runtime,
                "runtime.chansend",
            ),
            (&["libc.so.6+0x8912a", "pthread_rwlock_rdlock", "main"], LockKind::RwLock, "main"),
            (&["syscall", "own_lock", "main"], LockKind::Futex, "own_lock"),
        ] {
            assert_eq!(found(names), (kind, Some(site.to_owned())), "{names:?}");
        }
    }
}
