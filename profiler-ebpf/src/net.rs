//! Messages of sockets: counted exactly by process and ends, and by stack, all of them while they are few and by chance once
//! there are more.
//!
//! Two hooks, where the kernel has sent or received for a process, whatever call or ring asked for it and whatever the
//! protocol. They run in the context of the thread, with preemption off.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::maps::ProgramArray;
use aya_ebpf::programs::RawTracePointContext;
use profiler_common::config::Process;
use profiler_common::counters::{Counters, Outcome};
use profiler_common::event::Origin;
use profiler_common::net::{NetOperation, NetTime, STREAM};
use profiler_common::number_pace::Chosen;

use crate::aggregate::{self, Outcomes, count};
use crate::atomic;
use crate::maps::{COUNTERS, NET_PYTHON, NUMBER_PACE, Part, Programs, SCRATCH};
use crate::python;
use crate::socket::{self, Found, Sock};
use crate::stack;
use crate::task::{Task, Wanted};
use crate::unwind;
use crate::window::{self, Window};

/// `MSG_PEEK` and `MSG_ERRQUEUE`: what is read so is still there, or is what was sent. Source: include/linux/socket.h.
const NOT_RECEIVED: u64 = 0x2 | 0x2000;

/// Takes a message that was sent. Arguments: the socket, bytes or an error, flags (include/trace/events/sock.h).
#[raw_tracepoint(tracepoint = "sock_send_length")]
pub(crate) fn net_send(context: RawTracePointContext) -> i32 {
    take(&context, true);
    0
}

/// Takes a message that was received. Arguments as of [`net_send`].
#[raw_tracepoint(tracepoint = "sock_recv_length")]
pub(crate) fn net_receive(context: RawTracePointContext) -> i32 {
    take(&context, false);
    0
}

/// Goes on with the Python chain, once the native one is walked.
#[raw_tracepoint(tracepoint = "sock_send_length")]
pub(crate) fn net_python(_context: RawTracePointContext) -> i32 {
    let scratch = SCRATCH.get_ptr_mut(Programs::Net as u32);
    let (Some(scratch), Some(counters)) = (scratch, COUNTERS.get_ptr_mut(Origin::Net as u32)) else { return 0 };
    // SAFETY: both elements are this CPU's, and the program before this one has claimed the first.
    let (scratch, counters) = unsafe { (&mut *scratch, &mut *counters) };
    python::walk(Programs::Net);
    if let (Some(task), Some(window)) = (Task::current(), Window::resume(scratch.user.window)) {
        aggregate::conclude::<true>(&window, &task, counters, scratch, None);
        window.leave();
    }
    0
}

#[inline(always)]
fn take(context: &RawTracePointContext, is_send: bool) {
    // SAFETY: the tracepoint has these arguments.
    let (sock, returned, flags) = unsafe {
        let arguments = context.as_ptr().cast::<u64>();
        (*arguments, *arguments.add(1) as i32, *arguments.add(2))
    };
    message(context, Sock(sock as *const u8), returned, flags, is_send, Some(&NET_PYTHON));
}

/// Takes what was sent or received: bytes, or an error. `pythons`: where programs go on with a Python chain.
#[inline(always)]
pub(crate) fn message<C: EbpfContext>(
    context: &C,
    sock: Sock,
    returned: i32,
    flags: u64,
    is_send: bool,
    pythons: Option<&ProgramArray>,
) {
    if returned < 0 || (!is_send && flags & NOT_RECEIVED != 0) {
        return;
    }
    let Some(task) = Task::current() else { return };
    let Wanted::Yes(process) = task.wanted() else { return };
    let reason = add(&task, sock, returned as u64, is_send);
    if reason != 0
        && let Some(counters) = COUNTERS.get_ptr_mut(Origin::Net as u32)
    {
        // SAFETY: the element is this CPU's, and programs of this type do not interrupt each other.
        let counters = unsafe { &mut *counters };
        counters.hits += 1;
        choose(context, &task, process, counters, returned as u64, reason, pythons);
    }
}

/// Counts a message; returns what it is as a reason, 0 where it is none. Apart, so that what it needs of the stack is free
/// again when the thread's is walked.
#[inline(never)]
fn add(task: &Task, sock: Sock, bytes: u64, is_send: bool) -> u16 {
    // The end of a stream is no message, while one of datagrams may be empty.
    if bytes == 0 && sock.sort().0 == STREAM {
        return 0;
    }
    let Some(Found { stats, is_tcp, family, protocol }) = socket::find(task, sock) else { return 0 };
    let operation = NetOperation::of(family, protocol, is_send) as u16;
    let Some(stats) = stats else { return operation };
    // SAFETY: the pointer is to a map value that every CPU writes, hence atomic.
    unsafe {
        let (messages, sum) = if is_send {
            (&raw mut (*stats).sends, &raw mut (*stats).sent_bytes)
        } else {
            (&raw mut (*stats).receives, &raw mut (*stats).received_bytes)
        };
        atomic::add(messages, 1);
        atomic::add(sum, bytes);
    }
    if is_tcp {
        let round_trip_ns = sock.round_trip_ns();
        if round_trip_ns != 0 {
            socket::add_time(stats, NetTime::RoundTrip, round_trip_ns);
        }
    }
    operation
}

/// Keeps a message with its stack, if chance says so.
#[inline(always)]
fn choose<C: EbpfContext>(
    context: &C,
    task: &Task,
    process: Option<&'static Process>,
    counters: &mut Counters,
    bytes: u64,
    reason: u16,
    pythons: Option<&ProgramArray>,
) {
    let Some(pace) = NUMBER_PACE.get_ptr_mut(Chosen::Net as u32) else { return };
    // SAFETY: the element is this CPU's, and programs of this type do not interrupt each other; the helpers take no argument.
    let weight = unsafe { (*pace).step(1, || bpf_get_prandom_u32(), || bpf_ktime_get_ns()) };
    if weight == 0 {
        counters.sampled_out += 1;
        return;
    }
    let Some(window) = window::enter() else {
        return count(counters, Outcomes::lost(Outcome::MapBusy));
    };
    let Some(scratch) = aggregate::claim(Programs::Net) else {
        window.leave();
        return count(counters, Outcomes::lost(Outcome::ScratchBusy));
    };
    aggregate::begin(scratch, &window, task, process, Origin::Net);
    scratch.key.reason = reason;
    scratch.parts[0] = Part { columns: [1, bytes * weight, weight, 0] };
    let user = stack::begin(task, process, scratch);
    if user.is_none() {
        unwind::walk(Programs::Net);
        if let Some(pythons) = pythons {
            // SAFETY: the map holds programs of this type. The call returns where there is none, which is so without Python.
            unsafe { pythons.tail_call(context, python::slot(scratch)) };
        }
    }
    aggregate::conclude::<false>(&window, task, counters, scratch, user);
    window.leave();
}
