//! The one way a record reaches user space: counted in the maps of the current window, its chains sent once.

use aya_ebpf::maps::HashMap;
use profiler_common::config::Process;
use profiler_common::counters::{Counters, Outcome};
use profiler_common::event::{
    COLUMNS, MAX_STACK_WORDS, Origin, RING_DRAIN, RING_STACK, RecordKey, RecordValue, StackRecord,
};

use crate::atomic;
use crate::config::config;
use crate::maps::{FILL, Fill, Programs, RECORDS_0, RECORDS_1, RING, SCRATCH, SENT_0, SENT_1, Scratch};
use crate::stack::{self, Chain};
use crate::task::Task;
use crate::window::Window;

const NO_EXIST: u64 = 1;
const RING_NO_WAKEUP: u64 = 1;
const RING_FORCE_WAKEUP: u64 = 2;
const RING_AVAILABLE: u64 = 0;
/// `-EBUSY`: the bucket's lock was held by the code that this program interrupted.
const BUSY: i32 = -16;

/// How the parts of a sample ended: numbers of an [`Outcome`].
#[derive(Clone, Copy)]
pub(crate) struct Outcomes {
    pub(crate) user: u64,
    pub(crate) kernel: u64,
    /// Not [`Outcome::Complete`] when there is no record.
    pub(crate) record: u64,
}

impl Outcomes {
    /// A sample of which there is no record.
    #[inline(always)]
    pub(crate) const fn lost(outcome: Outcome) -> Self {
        Self { user: outcome as u64, kernel: outcome as u64, record: outcome as u64 }
    }
}

/// Claims this CPU's scratch space for a program of that type.
#[inline(always)]
pub(crate) fn claim(programs: Programs) -> Option<&'static mut Scratch> {
    let scratch = SCRATCH.get_ptr_mut(programs as u32)?;
    // SAFETY: the element is this CPU's; a program that interrupts this one sees the flag.
    if unsafe { atomic::swap(&raw mut (*scratch).claimed, 1) } != 0 {
        return None;
    }
    // SAFETY: the flag makes it this program's alone.
    Some(unsafe { &mut *scratch })
}

/// Counts how a sample ended, once for each way of counting.
#[inline(always)]
pub(crate) fn count(counters: &mut Counters, outcomes: Outcomes) {
    let complete = Outcome::Complete as u64;
    let (user, kernel, whole) = if outcomes.record != complete {
        (outcomes.record, outcomes.record, outcomes.record)
    } else if outcomes.user != complete {
        (outcomes.user, outcomes.kernel, outcomes.user)
    } else {
        (outcomes.user, outcomes.kernel, outcomes.kernel)
    };
    bump(&mut counters.user, user);
    bump(&mut counters.kernel, kernel);
    bump(&mut counters.whole, whole);
}

#[inline(always)]
fn bump(outcomes: &mut [u64; Outcome::COUNT], outcome: u64) {
    if let Some(counter) = outcomes.get_mut(outcome as usize) {
        // SAFETY: a reference is valid and aligned. Atomic: threads may be preempted in some programs.
        unsafe { atomic::add(counter, 1) };
    }
}

/// Adds `columns` to the record whose key and chains are in `scratch`; sets the key's stack references.
#[inline(always)]
pub(crate) fn add(
    window: &Window,
    task: &Task,
    columns: [u64; COLUMNS],
    scratch: &mut Scratch,
    mut user: Chain,
    mut kernel: Chain,
) -> Outcomes {
    scratch.key.user_stack = user.reference;
    scratch.key.kernel_stack = kernel.reference;
    let mut record = Outcome::Complete as u64;
    if !add_to_existing(window, &scratch.key, &columns) {
        user = send_once(window, &scratch.user, user);
        kernel = send_once(window, &scratch.kernel, kernel);
        scratch.key.user_stack = user.reference;
        scratch.key.kernel_stack = kernel.reference;
        // A chain that was just lost changes the key: the record may be there after all.
        let ring_full = Outcome::RingFull as u64;
        let changed = user.outcome == ring_full || kernel.outcome == ring_full;
        if !changed || !add_to_existing(window, &scratch.key, &columns) {
            record = insert(window, task, scratch, columns, user, kernel);
        }
    }
    Outcomes { user: user.outcome, kernel: kernel.outcome, record }
}

/// Adds the event whose user chain is in the scratch space, or is `user`, and gives the scratch space back. Of what is recorded
/// when the kernel's own chain has been left, or would be that of every event.
///
/// Returns the reference of the chain. `PYTHON`: whether the chain has a Python part.
#[inline(always)]
pub(crate) fn conclude<const PYTHON: bool>(
    window: &Window,
    task: &Task,
    counters: &mut Counters,
    scratch: &mut Scratch,
    user: Option<Chain>,
) -> u64 {
    let user = match user {
        Some(chain) => chain,
        None => stack::end::<PYTHON>(task, scratch),
    };
    let columns = scratch.parts[0].columns;
    let outcomes = add(window, task, columns, scratch, user, Chain::EMPTY);
    let reference = scratch.key.user_stack;
    scratch.claimed = 0;
    count(counters, outcomes);
    reference
}

#[inline(always)]
fn records(window: &Window) -> &'static HashMap<RecordKey, RecordValue> {
    if window.index == 0 { &RECORDS_0 } else { &RECORDS_1 }
}

#[inline(always)]
fn sent(window: &Window) -> &'static HashMap<u64, u8> {
    if window.index == 0 { &SENT_0 } else { &SENT_1 }
}

/// Adds to a record that is there.
#[inline(always)]
fn add_to_existing(window: &Window, key: &RecordKey, columns: &[u64; COLUMNS]) -> bool {
    let Some(value) = records(window).get_ptr_mut(key) else { return false };
    let mut index = 0;
    while index < COLUMNS {
        if columns[index] != 0 {
            // SAFETY: the pointer is to a map value; other CPUs may add to it too, hence atomic.
            unsafe { atomic::add((&raw mut (*value).columns).cast::<u64>().add(index), columns[index]) };
        }
        index += 1;
    }
    true
}

/// Makes a record, and asks for an early drain when the map is nearly full.
#[inline(always)]
fn insert(
    window: &Window,
    task: &Task,
    scratch: &mut Scratch,
    columns: [u64; COLUMNS],
    user: Chain,
    kernel: Chain,
) -> u64 {
    scratch.value = RecordValue {
        columns,
        thread_comm: task.thread_comm(),
        process_comm: task.process_comm(),
        user_outcome: user.outcome as u8,
        kernel_outcome: kernel.outcome as u8,
        reserved: [0; 6],
    };
    // By reference: as values they would be copied to the stack.
    insert_value(window, &scratch.key, &scratch.value)
}

/// Adds to a record of a request whose chains were sent when it was made, in this window or in one before.
#[inline(always)]
pub(crate) fn add_late(window: &Window, key: &RecordKey, value: &RecordValue) -> u64 {
    if add_to_existing(window, key, &value.columns) {
        return Outcome::Complete as u64;
    }
    insert_value(window, key, value)
}

#[inline(always)]
fn insert_value(window: &Window, key: &RecordKey, value: &RecordValue) -> u64 {
    match records(window).insert(key, value, NO_EXIST) {
        Ok(()) => {}
        Err(BUSY) => return Outcome::MapBusy as u64,
        Err(_) => return Outcome::MapFull as u64,
    }
    if let Some(fill) = FILL.get_ptr_mut(window.index as u32) {
        note_fill(fill);
    }
    Outcome::Complete as u64
}

/// Counts an entry, and asks user space once to drain when there are many.
#[inline(always)]
fn note_fill(fill: *mut Fill) {
    // SAFETY: the pointer is to a map element that every CPU writes, hence atomic.
    let before = unsafe { atomic::add(&raw mut (*fill).entries, 1) };
    // SAFETY: as above.
    if before >= u64::from(config!(drain_at_entries)) && unsafe { atomic::swap(&raw mut (*fill).asked, 1) } == 0 {
        // When the ring has no room, user space is about to be woken by what fills it.
        let _ = RING.output::<[u16; 4]>([RING_DRAIN, 0, 0, 0], RING_FORCE_WAKEUP);
    }
}

/// Sends a chain that user space does not have in this window; it is marked as sent only when that succeeded.
#[inline(always)]
fn send_once(window: &Window, record: &StackRecord, chain: Chain) -> Chain {
    if chain.reference < profiler_common::event::MIN_HASH {
        return chain;
    }
    if sent(window).get_ptr(chain.reference).is_some() {
        return chain;
    }
    let length = record.length as usize;
    if length > MAX_STACK_WORDS || !send(record, core::mem::offset_of!(StackRecord, words) + length * size_of::<u64>())
    {
        return Chain::lost(Outcome::RingFull);
    }
    // When the mark does not fit, the chain is sent again: user space keeps one.
    let _ = sent(window).insert(chain.reference, 1, 0);
    chain
}

/// Sends the first `size` bytes of a record; false when the ring has no room.
#[inline(always)]
pub(crate) fn send<T>(record: &T, size: usize) -> bool {
    // Read anew, so that the compiler does not leave out a check that verifiers before Linux 6.2 need.
    let size = crate::config::read(&size);
    if size > size_of::<T>() {
        return false;
    }
    let available = RING.query(RING_AVAILABLE);
    let flags = if available >= u64::from(config!(wake_at_bytes)) { RING_FORCE_WAKEUP } else { RING_NO_WAKEUP };
    // SAFETY: `size` is at most that of the record.
    let bytes = unsafe { core::slice::from_raw_parts((&raw const *record).cast::<u8>(), size) };
    RING.output::<[u8]>(bytes, flags).is_ok()
}

/// Begins a record of a task in the scratch space: its key without the chains, and what the chains' own records are.
#[inline(always)]
pub(crate) fn begin(scratch: &mut Scratch, window: &Window, task: &Task, process: Option<&Process>, origin: Origin) {
    scratch.user.kind = RING_STACK;
    scratch.user.window = window.index as u16;
    scratch.kernel.kind = RING_STACK;
    scratch.kernel.window = window.index as u16;
    scratch.key = RecordKey {
        start_time_ns: task.start_time_ns(),
        kernel_stack: 0,
        user_stack: 0,
        span: 0,
        pid: task.pid,
        tid: task.tid,
        exec_count: task.exec_count(),
        generation: process.map_or(0, |process| process.generation),
        origin: origin as u16,
        reason: 0,
        reserved: 0,
    };
}
