//! Connections of TCP: how long it took to make one, how long one waited to be accepted, and what was sent again.
//!
//! States change in the context of whoever's interrupt brings the packet, so that the process is noted when it connects, sends
//! or receives, and looked up by the socket's address.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::{raw_tracepoint, tracepoint};
use aya_ebpf::programs::{RawTracePointContext, TracePointContext};
use profiler_common::net::{NetTime, Socket};

use crate::atomic;
use crate::config::config;
use crate::maps::{ESTABLISHED, NET_STATS, SOCKETS};
use crate::socket::{self, Found, Place, Sock};
use crate::task::{Task, Wanted, kernel_word};

/// States of a connection. Source: include/net/tcp_states.h.
mod state {
    pub(super) const ESTABLISHED: i32 = 1;
    pub(super) const SYN_SENT: i32 = 2;
    pub(super) const SYN_RECEIVED: i32 = 3;
    pub(super) const CLOSED: i32 = 7;
}

/// Where the tracepoint of a call that returns has what it returned, after the common fields and the call's number. Source:
/// `struct syscall_trace_exit`, kernel/trace/trace.h.
const RETURNED: usize = 16;

/// The most descriptors a process may be allowed. Source: `sysctl_nr_open_max`, fs/file.c.
const MOST_DESCRIPTORS: i64 = 1 << 30;

/// Follows a connection. Arguments: the socket, the old and the new state (include/trace/events/sock.h).
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub(crate) fn net_state(context: RawTracePointContext) -> i32 {
    // SAFETY: the tracepoint has these arguments.
    let (sock, old, new) = unsafe {
        let arguments = context.as_ptr().cast::<u64>();
        (Sock(*arguments as *const u8), *arguments.add(1) as i32, *arguments.add(2) as i32)
    };
    match (old, new) {
        (_, state::SYN_SENT) => begin(sock),
        (state::SYN_SENT, state::ESTABLISHED) => end(sock, true),
        // Both ends have asked each other; or one is there that has asked nobody.
        (state::SYN_RECEIVED, state::ESTABLISHED) if followed(sock).is_some() => end(sock, true),
        (state::SYN_RECEIVED, state::ESTABLISHED) => {
            // SAFETY: takes no argument.
            let now = unsafe { bpf_ktime_get_ns() };
            // The oldest give way; one that is missing is counted when it is accepted.
            let _ = ESTABLISHED.insert(sock.number(), now, 0);
        }
        (_, state::CLOSED) => end(sock, false),
        _ => {}
    }
    0
}

/// Follows a TCP socket no more. Argument: the socket (include/trace/events/tcp.h). Not when its connection is closed: what has
/// come by then may still be received.
#[raw_tracepoint(tracepoint = "tcp_destroy_sock")]
pub(crate) fn net_destroy(context: RawTracePointContext) -> i32 {
    // SAFETY: the tracepoint has this argument.
    let sock = Sock(unsafe { *context.as_ptr().cast::<u64>() } as *const u8);
    // One that is not there is of somebody who was not asked for.
    if SOCKETS.get_ptr(sock.number()).is_some() {
        let _ = SOCKETS.remove(sock.number());
    }
    0
}

/// Notes that the running thread begins to connect.
#[inline(always)]
fn begin(sock: Sock) {
    let Some(task) = Task::current() else { return };
    let Wanted::Yes(_) = task.wanted() else { return };
    let Some(work) = socket::work(Place::Connection) else { return };
    work.begin(&task, sock);
    if work.socket.key.ends.is_tcp() {
        work.add_ends(sock, true);
        work.socket.retransmits = sock.retransmits();
        // SAFETY: takes no argument.
        work.socket.began_ns = unsafe { bpf_ktime_get_ns() };
        socket::follow(sock, work);
        // Now: who runs when it has connected may be anybody.
        let _ = work.row(&task);
    }
    work.release();
}

/// Counts a connection that was made, or came to nothing, or has ended.
#[inline(always)]
fn end(sock: Sock, connected: bool) {
    let Some(known) = followed(sock) else { return };
    // What was sent again that nobody saw.
    add_retransmits(sock, known);
    let began_ns = known.began_ns;
    known.began_ns = 0;
    if began_ns == 0 {
        return;
    }
    let key = &known.key;
    let Some(stats) = NET_STATS.get_ptr_mut(key) else { return };
    // SAFETY: the pointer is to a map value that every CPU writes, hence atomic.
    unsafe {
        let counter = if connected { &raw mut (*stats).connects } else { &raw mut (*stats).failed_connects };
        atomic::add(counter, 1);
    }
    if connected {
        // SAFETY: takes no argument.
        socket::add_time(stats, NetTime::Connect, unsafe { bpf_ktime_get_ns() } - began_ns);
    }
}

/// What is known of a socket.
#[inline(always)]
fn followed(sock: Sock) -> Option<&'static mut Socket> {
    let known = SOCKETS.get_ptr_mut(sock.number())?;
    // SAFETY: the pointer is to a map value; what is written in it is written under the socket's lock.
    Some(unsafe { &mut *known })
}

/// Counts what TCP sends again. Arguments: the socket, the packet (include/trace/events/tcp.h).
#[raw_tracepoint(tracepoint = "tcp_retransmit_skb")]
pub(crate) fn net_retransmit(context: RawTracePointContext) -> i32 {
    // SAFETY: the tracepoint has this argument.
    let sock = Sock(unsafe { *context.as_ptr().cast::<u64>() } as *const u8);
    if let Some(known) = followed(sock) {
        add_retransmits(sock, known);
    }
    0
}

/// Adds what a socket has sent again since it was last looked at, by the kernel's own count: a packet may be several segments.
#[inline(always)]
fn add_retransmits(sock: Sock, known: &mut Socket) {
    let (before, now) = (known.retransmits, sock.retransmits());
    known.retransmits = now;
    let key = &known.key;
    if now > before
        && let Some(stats) = NET_STATS.get_ptr_mut(key)
    {
        // SAFETY: the pointer is to a map value that every CPU writes, hence atomic.
        unsafe { atomic::add(&raw mut (*stats).retransmits, u64::from(now - before)) };
    }
}

/// Takes a connection that a thread has just accepted: `sys_exit_accept` and `sys_exit_accept4`.
#[tracepoint]
pub(crate) fn net_accept(context: TracePointContext) -> u32 {
    // SAFETY: the record has this field.
    let Ok(descriptor) = (unsafe { context.read_at::<i64>(RETURNED) }) else { return 0 };
    if !(0..MOST_DESCRIPTORS).contains(&descriptor) {
        return 0;
    }
    let Some(task) = Task::current() else { return 0 };
    if let Wanted::Yes(_) = task.wanted() {
        accept(&task, behind(&task, descriptor as u64));
    }
    0
}

/// The socket behind a descriptor of the running thread.
#[inline(always)]
fn behind(task: &Task, descriptor: u64) -> Sock {
    let follow = |base: u64, offset: u32| kernel_word(base as *const u8, offset);
    let files = kernel_word(task.pointer(), config!(net.files));
    let descriptors = follow(files, config!(net.descriptors));
    let file = follow(follow(descriptors, config!(net.descriptor_array)) + 8 * descriptor, 0);
    Sock(follow(follow(file, config!(net.private_data)), config!(net.sock)) as *const u8)
}

/// Counts a connection that was accepted.
#[inline(always)]
fn accept(task: &Task, sock: Sock) {
    let Some(Found { stats: Some(stats), is_tcp, .. }) = socket::find(task, sock) else { return };
    // SAFETY: the pointer is to a map value that every CPU writes, hence atomic.
    unsafe { atomic::add(&raw mut (*stats).accepts, 1) };
    if !is_tcp {
        return;
    }
    // SAFETY: the value is copied at once.
    let Some(since_ns) = unsafe { ESTABLISHED.get(sock.number()) }.copied() else {
        return socket::count(|counts| &raw mut counts.accepts_untimed);
    };
    let _ = ESTABLISHED.remove(sock.number());
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    socket::add_time(stats, NetTime::Accept, now - since_ns);
}
