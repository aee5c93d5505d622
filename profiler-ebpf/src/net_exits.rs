//! Messages of sockets where the kernel has no tracepoints for them (before Linux 6.3): at the end of the functions that send
//! and receive, by protocol.
//!
//! A Python chain would need a program for each of them: here it is native frames.

use aya_ebpf::macros::fexit;
use aya_ebpf::programs::FExitContext;

use profiler_common::net::PACKETS;

use crate::config::config;
use crate::net::message;
use crate::socket::Sock;
use crate::task::kernel_word;

/// Takes what a function that sends has returned, whose arguments are so many.
#[inline(always)]
fn sent(context: &FExitContext, arguments: usize) -> i32 {
    message(context, behind(context), context.arg::<i64>(arguments) as i32, 0, true, None);
    0
}

/// Takes what a function that receives has returned. Arguments: the socket, the message, its size, flags.
#[inline(always)]
fn received(context: &FExitContext) -> i32 {
    message(context, behind(context), context.arg::<i64>(4) as i32, context.arg(3), false, None);
    0
}

/// The kernel's own socket behind the program's.
#[inline(always)]
fn behind(context: &FExitContext) -> Sock {
    Sock(kernel_word(context.arg(0), config!(net.sock)) as *const u8)
}

/// Whether a function for datagrams was called by that for packets, in which a compiler may also have put it.
#[inline(always)]
fn is_within(context: &FExitContext) -> bool {
    behind(context).sort().0 == PACKETS
}

/// `inet_sendmsg`.
#[fexit]
pub(crate) fn net_inet_sendmsg(context: FExitContext) -> i32 {
    sent(&context, 3)
}

/// `inet6_sendmsg`.
#[fexit]
pub(crate) fn net_inet6_sendmsg(context: FExitContext) -> i32 {
    sent(&context, 3)
}

/// `unix_stream_sendmsg`.
#[fexit]
pub(crate) fn net_unix_stream_sendmsg(context: FExitContext) -> i32 {
    sent(&context, 3)
}

/// `unix_dgram_sendmsg`.
#[fexit]
pub(crate) fn net_unix_dgram_sendmsg(context: FExitContext) -> i32 {
    if is_within(&context) { 0 } else { sent(&context, 3) }
}

/// `unix_seqpacket_sendmsg`.
#[fexit]
pub(crate) fn net_unix_seqpacket_sendmsg(context: FExitContext) -> i32 {
    sent(&context, 3)
}

/// `inet_sendpage`: what `sendfile` sends.
#[fexit]
pub(crate) fn net_inet_sendpage(context: FExitContext) -> i32 {
    sent(&context, 5)
}

/// `unix_stream_sendpage`.
#[fexit]
pub(crate) fn net_unix_stream_sendpage(context: FExitContext) -> i32 {
    sent(&context, 5)
}

/// `inet_recvmsg`.
#[fexit]
pub(crate) fn net_inet_recvmsg(context: FExitContext) -> i32 {
    received(&context)
}

/// `inet6_recvmsg`.
#[fexit]
pub(crate) fn net_inet6_recvmsg(context: FExitContext) -> i32 {
    received(&context)
}

/// `unix_stream_recvmsg`.
#[fexit]
pub(crate) fn net_unix_stream_recvmsg(context: FExitContext) -> i32 {
    received(&context)
}

/// `unix_dgram_recvmsg`.
#[fexit]
pub(crate) fn net_unix_dgram_recvmsg(context: FExitContext) -> i32 {
    if is_within(&context) { 0 } else { received(&context) }
}

/// `unix_seqpacket_recvmsg`.
#[fexit]
pub(crate) fn net_unix_seqpacket_recvmsg(context: FExitContext) -> i32 {
    received(&context)
}
