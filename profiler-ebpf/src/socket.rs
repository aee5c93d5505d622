//! Sockets: their ends, the row that belongs to a process and a socket, and what is counted in it.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use profiler_common::event::{HASH_SEED, finish_hash, hash_word};
use profiler_common::histogram::{HISTOGRAM_BUCKETS, bucket_of};
use profiler_common::net::{
    CHOSEN_UNIX_NAME, COMMON_WORDS, Ends, MAX_NET_TIMED, MAX_UNIX_NAME, NetCounts, NetKey, NetStats, NetTime, Socket,
    UNIX_NAME_WORDS, UnixName, family, protocol,
};

use crate::atomic;
use crate::config::config;
use crate::maps::{NET_COUNTS, NET_STATS, NET_TIMES, SOCKET_WORK, SOCKETS, UNIX_NAMES};
use crate::task::{Task, kernel_number, kernel_word};

/// Entries that are made where there is none. Source: `BPF_NOEXIST`, include/uapi/linux/bpf.h.
const NO_EXIST: u64 = 1;

/// `SOCK_BINDPORT_LOCK`: the program has chosen the port itself. Source: include/net/sock.h.
const BOUND_PORT: u32 = 8;

/// A smoothed round-trip time is in eighths of a microsecond. Source: `tcp_rtt_estimator`, net/ipv4/tcp_input.c.
const EIGHTHS_OF_US_TO_NS: u64 = 125;

/// `AF_UNIX`, as a name begins.
const UNIX_NAME_FAMILY: u64 = family::UNIX as u64;

/// A `struct sock`.
#[derive(Clone, Copy)]
pub(crate) struct Sock(pub(crate) *const u8);

impl Sock {
    /// Its number in [`SOCKETS`].
    #[inline(always)]
    pub(crate) fn number(self) -> u64 {
        self.0 as u64
    }

    /// Its type and protocol.
    #[inline(always)]
    pub(crate) fn sort(self) -> (u8, u16) {
        let sort = kernel_word(self.0, config!(net.sort));
        ((sort >> config!(net.kind_shift)) as u8, (sort >> config!(net.protocol_shift)) as u16)
    }

    /// Segments that TCP has sent again.
    #[inline(always)]
    pub(crate) fn retransmits(self) -> u32 {
        kernel_number(self.0, config!(net.retransmits))
    }

    /// The round-trip time of a TCP socket, ns; 0 where it is not known yet.
    #[inline(always)]
    pub(crate) fn round_trip_ns(self) -> u64 {
        u64::from(kernel_number(self.0, config!(net.smoothed_rtt))) * EIGHTHS_OF_US_TO_NS
    }

    /// Whether the kernel has chosen the port of a TCP socket when it was connected: nobody may bind to such a port. A
    /// connection that was accepted has the port of the socket that listens, and no mark of its own that it was chosen.
    /// Source: `__inet_hash_connect`, net/ipv4/inet_hashtables.c; `sk_clone_lock`, net/core/sock.c.
    #[inline(always)]
    fn port_was_found(self) -> bool {
        let bucket = kernel_word(self.0, config!(net.bind_bucket)) as *const u8;
        (kernel_number(bucket, config!(net.bucket_reuse)) as i8) < 0
    }
}

/// The hash of the name that is in a `struct unix_address`, which user space is told; 0 where there is none, or only one that
/// the kernel has chosen.
#[inline(always)]
fn name(address: *const u8, name: &mut UnixName) -> u64 {
    if address.is_null() {
        return 0;
    }
    let length = kernel_number(address, config!(net.unix_length));
    // Read anew, so that the compiler does not leave out a check that verifiers before Linux 6.2 need.
    let length = crate::config::read(&length);
    if length <= 2 || length > MAX_UNIX_NAME {
        return 0;
    }
    *name = UnixName { length: u64::from(length), bytes: [0; UNIX_NAME_WORDS] };
    // SAFETY: the helper writes `length` bytes, for which there is room, and survives any source address.
    unsafe {
        let source = address.wrapping_add(config!(net.unix_name) as usize);
        bpf_probe_read_kernel(name.bytes.as_mut_ptr().cast(), length, source.cast());
    }
    let is_abstract = (name.bytes[0] >> 16) & 0xff == 0;
    if name.bytes[0] & 0xffff != UNIX_NAME_FAMILY || (is_abstract && length == CHOSEN_UNIX_NAME) {
        return 0;
    }
    let mut hash = hash_word(HASH_SEED, name.length);
    let mut index = 0;
    while index < UNIX_NAME_WORDS {
        hash = hash_word(hash, name.bytes[index]);
        index += 1;
    }
    let hash = finish_hash(hash);
    // By reference: as a value it would be copied to the stack.
    let name = &*name;
    if UNIX_NAMES.get_ptr(hash).is_none() && UNIX_NAMES.insert(hash, name, 0).is_err() {
        count(|counts| &raw mut counts.unnamed);
    }
    hash
}

/// Adds one to what found no room.
#[inline(always)]
pub(crate) fn count(which: impl Fn(&mut NetCounts) -> *mut u64) {
    if let Some(counts) = NET_COUNTS.get_ptr_mut(0) {
        // SAFETY: the pointer is to a map element that every CPU writes, hence atomic.
        unsafe { atomic::add(which(&mut *counts), 1) };
    }
}

/// What is worked on besides the stack, by where the program runs.
#[repr(u32)]
#[derive(Clone, Copy)]
pub(crate) enum Place {
    /// In the context of a thread.
    Thread = 0,
    /// Anywhere, when the state of a connection changes.
    Connection = 1,
}

/// What does not fit the stack.
#[repr(C)]
pub(crate) struct SocketWork {
    /// 1 while a program uses it.
    claimed: u64,
    /// The row and the socket that are looked for.
    pub(crate) socket: Socket,
    /// The beginning of the kernel's own.
    common: [u64; COMMON_WORDS],
    name: UnixName,
}

/// Claims what is worked on in a place; `None`, which is counted, where a program has been interrupted that has it.
#[inline(always)]
pub(crate) fn work(place: Place) -> Option<&'static mut SocketWork> {
    let work = SOCKET_WORK.get_ptr_mut(place as u32)?;
    // SAFETY: the element is this CPU's; a program that interrupts this one sees the flag.
    if unsafe { atomic::swap(&raw mut (*work).claimed, 1) } != 0 {
        count(|counts| &raw mut counts.uncounted);
        return None;
    }
    // SAFETY: the flag makes it this program's alone.
    Some(unsafe { &mut *work })
}

/// The row of `key`, made where there is none; `None` where there is no room, which is counted.
#[inline(always)]
fn row(task: &Task, key: &NetKey) -> Option<*mut NetStats> {
    if let Some(stats) = NET_STATS.get_ptr_mut(key) {
        return Some(stats);
    }
    make_row(task, key);
    let stats = NET_STATS.get_ptr_mut(key);
    if stats.is_none() {
        count(|counts| &raw mut counts.uncounted);
    }
    stats
}

/// Makes a row, unless another CPU has. Apart, so that what it needs of the stack is free again.
#[inline(never)]
fn make_row(task: &Task, key: &NetKey) {
    let times = if key.ends.is_tcp() { new_times() } else { 0 };
    // By reference: as a value it would be copied.
    let new = &NetStats { times, process_comm: task.process_comm(), ..NetStats::default() };
    let _ = NET_STATS.insert(key, new, NO_EXIST);
}

/// A place for a row's distributions; 0 where there is no room.
#[inline(always)]
fn new_times() -> u64 {
    let Some(counts) = NET_COUNTS.get_ptr_mut(0) else { return 0 };
    // SAFETY: the pointer is to a map element that every CPU writes, hence atomic.
    let before = unsafe { atomic::add(&raw mut (*counts).timed, 1) };
    if before < u64::from(MAX_NET_TIMED) { before + 1 } else { 0 }
}

/// Adds a time to a row's distribution.
#[inline(always)]
pub(crate) fn add_time(stats: *mut NetStats, time: NetTime, elapsed_ns: u64) {
    // SAFETY: the pointer is to a map value, of which this is never changed.
    let times = unsafe { (*stats).times };
    if times == 0 {
        return;
    }
    let Some(times) = NET_TIMES.get_ptr_mut(time.element(times)) else { return };
    // SAFETY: the pointer is to a map element that every CPU writes, hence atomic; the bucket is one of the histogram's.
    unsafe {
        atomic::raise(&raw mut (*times).max_ns, elapsed_ns);
        let bucket = bucket_of(elapsed_ns) & (HISTOGRAM_BUCKETS - 1);
        atomic::add((&raw mut (*times).histogram).cast::<u64>().add(bucket), 1);
    }
}

/// Follows the TCP socket that is worked on, from now on.
#[inline(always)]
pub(crate) fn follow(sock: Sock, work: &SocketWork) {
    let socket = &work.socket;
    if SOCKETS.insert(sock.number(), socket, 0).is_err() {
        count(|counts| &raw mut counts.unfollowed);
    }
}

/// A row, and what its socket is.
pub(crate) struct Found {
    /// `None` where there is no room for it.
    pub(crate) stats: Option<*mut NetStats>,
    pub(crate) is_tcp: bool,
    pub(crate) family: u8,
    pub(crate) protocol: u16,
}

impl Found {
    #[inline(always)]
    fn new(stats: Option<*mut NetStats>, ends: &Ends) -> Self {
        Self { stats, is_tcp: ends.is_tcp(), family: ends.family, protocol: ends.protocol }
    }
}

/// The row of a task and a socket that it uses. A TCP socket is followed from then on.
#[inline(always)]
pub(crate) fn find(task: &Task, sock: Sock) -> Option<Found> {
    let known = SOCKETS.get_ptr(sock.number());
    if let Some(known) = known {
        // SAFETY: the pointer is to a map value, which is replaced as a whole but for words that are written at once.
        let key = unsafe { &(*known).key };
        // It is still the same process: no other has been given both its number and its socket.
        if key.pid == task.pid && key.exec_count == task.exec_count() {
            return Some(Found::new(row(task, key), &key.ends));
        }
    }
    let work = work(Place::Thread)?;
    work.begin(task, sock);
    if let Some(known) = known {
        // Another process uses it now, as one that was forked.
        // SAFETY: as above.
        let known = unsafe { &*known };
        work.socket.key.ends = known.key.ends;
        work.socket.began_ns = known.began_ns;
        work.socket.retransmits = known.retransmits;
        follow(sock, work);
    } else {
        work.add_ends(sock, false);
        if work.socket.key.ends.is_tcp() {
            work.socket.retransmits = sock.retransmits();
            follow(sock, work);
        }
    }
    let found = Found::new(work.row(task), &work.socket.key.ends);
    work.release();
    Some(found)
}

impl SocketWork {
    /// Gives it back.
    #[inline(always)]
    pub(crate) fn release(&mut self) {
        self.claimed = 0;
    }

    /// Begins with a socket of a task: makes the key of its row, without the ends.
    #[inline(always)]
    pub(crate) fn begin(&mut self, task: &Task, sock: Sock) {
        // At once, since each read costs as much as a look-up in an array.
        // SAFETY: the helper writes as many bytes as there is room for, zeros when it fails, and survives any source address.
        unsafe {
            let size = size_of_val(&self.common) as u32;
            bpf_probe_read_kernel(self.common.as_mut_ptr().cast(), size, sock.0.cast());
        }
        let (kind, protocol) = sock.sort();
        let family = self.common_word(config!(net.family)) as u8;
        let exec_count = task.exec_count();
        // Of a process's first thread without a detour.
        let start_time_ns = if task.tid == task.pid { task.thread_start_time_ns() } else { task.start_time_ns() };
        let ends = Ends { family, kind, protocol, ..Ends::default() };
        let key = NetKey { start_time_ns, pid: task.pid, exec_count, ends };
        self.socket = Socket { key, began_ns: 0, retransmits: 0, reserved: 0 };
    }

    /// What is in the beginning of the socket, from an offset on.
    #[inline(always)]
    fn common_word(&self, offset: u32) -> u64 {
        const LAST: usize = 8 * (COMMON_WORDS - 1);
        let offset = offset as usize;
        let offset = if offset > LAST { LAST } else { offset };
        // SAFETY: the word is in the array; fields of a structure need not be aligned as a word is.
        unsafe { self.common.as_ptr().cast::<u8>().add(offset).cast::<u64>().read_unaligned() }
    }

    /// Adds the two ends of the socket to the key. `connects`: whether the connection is known to be one that is made.
    #[inline(always)]
    pub(crate) fn add_ends(&mut self, sock: Sock, connects: bool) {
        match self.socket.key.ends.family {
            family::INET => {
                self.socket.key.ends.local = Ends::mapped(self.common_word(config!(net.local_v4)) as u32);
                self.socket.key.ends.remote = Ends::mapped(self.common_word(config!(net.remote_v4)) as u32);
                self.add_ports(sock, connects);
            }
            family::INET6 => {
                self.socket.key.ends.local = self.address_v6(config!(net.local_v6));
                self.socket.key.ends.remote = self.address_v6(config!(net.remote_v6));
                self.add_ports(sock, connects);
            }
            family::UNIX if config!(net.unix_address) != 0 => {
                let address = |sock: *const u8| kernel_word(sock, config!(net.unix_address)) as *const u8;
                self.socket.key.ends.local[0] = name(address(sock.0), &mut self.name);
                let peer = kernel_word(sock.0, config!(net.unix_peer)) as *const u8;
                if !peer.is_null() {
                    self.socket.key.ends.remote[0] = name(address(peer), &mut self.name);
                }
            }
            _ => {}
        }
    }

    #[inline(always)]
    fn address_v6(&self, offset: u32) -> [u64; 2] {
        [self.common_word(offset), self.common_word(offset + 8)]
    }

    /// Adds the ports that say more than that there was a connection.
    #[inline(always)]
    fn add_ports(&mut self, sock: Sock, connects: bool) {
        let local = self.common_word(config!(net.local_port)) as u16;
        let remote = u16::from_be(self.common_word(config!(net.remote_port)) as u16);
        let locks = kernel_number(sock.0, config!(net.user_locks)) >> config!(net.user_locks_shift);
        let is_bound = locks & BOUND_PORT != 0;
        let ends = &mut self.socket.key.ends;
        if ends.protocol == protocol::TCP {
            if connects || is_bound || sock.port_was_found() {
                ends.remote_port = remote;
            } else {
                ends.local_port = local;
            }
        } else if is_bound {
            ends.local_port = local;
            // Of two ports that were chosen the lower one is the service's.
            ends.remote_port = if remote <= local { remote } else { 0 };
        } else {
            ends.remote_port = remote;
        }
    }

    /// The row of the key.
    #[inline(always)]
    pub(crate) fn row(&mut self, task: &Task) -> Option<*mut NetStats> {
        row(task, &self.socket.key)
    }
}
