//! Sockets: what is done with them, what is counted of each end, and where the kernel keeps what is read of them.

use crate::event::COMM_LEN;
use crate::histogram::HISTOGRAM_BUCKETS;

/// Byte offsets of kernel fields, from the running kernel's BTF.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetOffsets {
    /// `sock_common.skc_family`.
    pub family: u32,
    /// `sock_common.skc_daddr`: the other end's address of version 4.
    pub remote_v4: u32,
    /// `sock_common.skc_rcv_saddr`: the own one.
    pub local_v4: u32,
    /// `sock_common.skc_v6_daddr`; 0 in a kernel without version 6, as the next.
    pub remote_v6: u32,
    /// `sock_common.skc_v6_rcv_saddr`.
    pub local_v6: u32,
    /// `sock_common.skc_dport`, in the order of the network.
    pub remote_port: u32,
    /// `sock_common.skc_num`.
    pub local_port: u32,
    /// `sock.sk_type` or `sock.sk_protocol`, which are in one word: the lower of them.
    pub sort: u32,
    /// How far up `sock.sk_type` is in that word.
    pub kind_shift: u32,
    /// How far up `sock.sk_protocol` is.
    pub protocol_shift: u32,
    /// The byte of `sock.sk_userlocks`.
    pub user_locks: u32,
    /// How far up its bits are in that byte: they share it with others before Linux 6.7.
    pub user_locks_shift: u32,
    /// `inet_connection_sock.icsk_bind_hash`.
    pub bind_bucket: u32,
    /// `inet_bind_bucket.fastreuse`.
    pub bucket_reuse: u32,
    /// `tcp_sock.srtt_us`: eight times the smoothed round-trip time.
    pub smoothed_rtt: u32,
    /// `tcp_sock.total_retrans`.
    pub retransmits: u32,
    /// `unix_sock.addr`.
    pub unix_address: u32,
    /// `unix_sock.peer`.
    pub unix_peer: u32,
    /// `unix_address.len`.
    pub unix_length: u32,
    /// `unix_address.name`.
    pub unix_name: u32,
    /// `task_struct.files`.
    pub files: u32,
    /// `files_struct.fdt`.
    pub descriptors: u32,
    /// `fdtable.fd`.
    pub descriptor_array: u32,
    /// `file.private_data`.
    pub private_data: u32,
    /// `socket.sk`.
    pub sock: u32,
    /// Zero.
    pub reserved: u32,
}

impl NetOffsets {
    /// The value the object carries before user space replaces it.
    pub const UNSET: Self = Self {
        family: 0,
        remote_v4: 0,
        local_v4: 0,
        remote_v6: 0,
        local_v6: 0,
        remote_port: 0,
        local_port: 0,
        sort: 0,
        kind_shift: 0,
        protocol_shift: 0,
        user_locks: 0,
        user_locks_shift: 0,
        bind_bucket: 0,
        bucket_reuse: 0,
        smoothed_rtt: 0,
        retransmits: 0,
        unix_address: 0,
        unix_peer: 0,
        unix_length: 0,
        unix_name: 0,
        files: 0,
        descriptors: 0,
        descriptor_array: 0,
        private_data: 0,
        sock: 0,
        reserved: 0,
    };
}

/// What is done with a socket.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetOperation {
    /// Sends by TCP.
    TcpSend = 1,
    /// Receives by TCP.
    TcpReceive = 2,
    /// Sends by UDP.
    UdpSend = 3,
    /// Receives by UDP.
    UdpReceive = 4,
    /// Sends to a process of this host.
    UnixSend = 5,
    /// Receives from one.
    UnixReceive = 6,
    /// Sends by another protocol.
    OtherSend = 7,
    /// Receives by another protocol.
    OtherReceive = 8,
}

impl NetOperation {
    /// What is done with a socket of that family and protocol that sends, or else receives.
    #[inline(always)]
    #[must_use]
    pub const fn of(family: u8, protocol: u16, is_send: bool) -> Self {
        let (send, receive) = match (family, protocol) {
            (family::INET | family::INET6, protocol::TCP) => (Self::TcpSend, Self::TcpReceive),
            (family::INET | family::INET6, protocol::UDP) => (Self::UdpSend, Self::UdpReceive),
            (family::UNIX, _) => (Self::UnixSend, Self::UnixReceive),
            _ => (Self::OtherSend, Self::OtherReceive),
        };
        if is_send { send } else { receive }
    }
}

/// Names of what is done with sockets, by number from 1: the reasons of the origin.
pub const NET_OPERATIONS: [&str; 8] =
    ["TCP send", "TCP receive", "UDP send", "UDP receive", "Unix send", "Unix receive", "other send", "other receive"];

/// Address families. Source: include/linux/socket.h.
pub mod family {
    /// `AF_UNIX`.
    pub const UNIX: u8 = 1;
    /// `AF_INET`.
    pub const INET: u8 = 2;
    /// `AF_INET6`.
    pub const INET6: u8 = 10;
}

/// Protocols of the Internet. Source: include/uapi/linux/in.h.
pub mod protocol {
    /// `IPPROTO_TCP`.
    pub const TCP: u16 = 6;
    /// `IPPROTO_UDP`.
    pub const UDP: u16 = 17;
}

/// Words from the beginning of a `struct sock` that hold the family, the addresses and the ports: `struct sock_common`.
pub const COMMON_WORDS: usize = 16;

/// `SOCK_STREAM`. Source: include/linux/net.h.
pub const STREAM: u8 = 1;

/// `SOCK_SEQPACKET`.
pub const PACKETS: u8 = 5;

/// The kind and the two ends of a socket, as far as they tell rows of the table apart.
///
/// A port that was chosen for one connection only is 0, so that a server of a million connections is one row for each client's
/// address: the remote one of connections that were accepted, the local one of those that were made.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ends {
    /// `sk_family`.
    pub family: u8,
    /// `sk_type`: a stream, datagrams.
    pub kind: u8,
    /// `sk_protocol`.
    pub protocol: u16,
    /// The own port.
    pub local_port: u16,
    /// The other end's.
    pub remote_port: u16,
    /// The own address: of version 6, or 4 inside 6 (`::ffff:a.b.c.d`), in the order of the network; zeros where it is any.
    /// Of a Unix socket the hash of its name and 0; zeros where it has none.
    pub local: [u64; 2],
    /// The other end's.
    pub remote: [u64; 2],
}

impl Ends {
    /// An address of version 4 inside one of version 6. `address`: in the order of the network. Source: RFC 4291, 2.5.5.2.
    #[inline(always)]
    #[must_use]
    pub const fn mapped(address: u32) -> [u64; 2] {
        if address == 0 { [0, 0] } else { [0, ((address as u64) << 32) | 0xffff_0000] }
    }

    /// Whether it is a TCP connection, of which times are known.
    #[inline(always)]
    #[must_use]
    pub const fn is_tcp(&self) -> bool {
        matches!(self.family, family::INET | family::INET6) && self.protocol == protocol::TCP
    }
}

/// What is counted together: a key of the `NET_STATS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetKey {
    /// Start of the process since boot, ns: tells a reused pid apart.
    pub start_time_ns: u64,
    /// The process, as the profiler's pid namespace numbers it.
    pub pid: u32,
    /// Programs that it had executed.
    pub exec_count: u32,
    /// What it has spoken with.
    pub ends: Ends,
}

/// What was counted of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetStats {
    /// Bytes that were taken to be sent.
    pub sent_bytes: u64,
    /// Bytes that were received.
    pub received_bytes: u64,
    /// Calls that sent.
    pub sends: u64,
    /// Calls that received.
    pub receives: u64,
    /// Connections that were made.
    pub connects: u64,
    /// Those that came to nothing.
    pub failed_connects: u64,
    /// Connections that were accepted.
    pub accepts: u64,
    /// Segments that TCP sent again.
    pub retransmits: u64,
    /// Where its distributions are in `NET_TIMES`, from 1; 0 where there is no room for them.
    pub times: u64,
    /// The process's name when it was first seen.
    pub process_comm: [u8; COMM_LEN],
}

/// Times that are kept of a row, in the order of the elements in `NET_TIMES`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetTime {
    /// From the call that connects until the other end has answered.
    Connect = 0,
    /// From when a connection was there until it was accepted.
    Accept = 1,
    /// The smoothed round-trip time, at every message.
    RoundTrip = 2,
}

impl NetTime {
    /// How many there are.
    pub const COUNT: u32 = 3;

    /// The element of a row's times. `times`: [`NetStats::times`], not 0.
    #[inline(always)]
    #[must_use]
    pub const fn element(self, times: u64) -> u32 {
        (times as u32 - 1) * Self::COUNT + self as u32
    }
}

/// A distribution of times: an element of the `NET_TIMES` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetTimes {
    /// The longest, ns.
    pub max_ns: u64,
    /// How many took how long: see [`crate::histogram`].
    pub histogram: [u64; HISTOGRAM_BUCKETS],
}

/// The element of the `NET_COUNTS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetCounts {
    /// Rows that have asked for distributions.
    pub timed: u64,
    /// Messages, connections and segments that are in no row, for want of room.
    pub uncounted: u64,
    /// TCP sockets that could not be followed: what they sent again is not counted, nor how long they took to connect.
    pub unfollowed: u64,
    /// Connections that were accepted and of which it is not known how long they had waited.
    pub accepts_untimed: u64,
    /// Names of Unix sockets that are not known.
    pub unnamed: u64,
}

/// A TCP socket of a process that was asked for: a value of the `SOCKETS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Socket {
    /// The row of the process that used it last.
    pub key: NetKey,
    /// When it began to connect, in ns of the monotonic clock; 0 once it is connected.
    pub began_ns: u64,
    /// Segments sent again that are counted.
    pub retransmits: u32,
    /// Zero.
    pub reserved: u32,
}

/// The name of a Unix socket: a value of the `UNIX_NAMES` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixName {
    /// Bytes used: the family and the name.
    pub length: u64,
    /// `sockaddr_un`: the family, then a path with a zero behind it, or a zero and a name without a file.
    pub bytes: [u64; UNIX_NAME_WORDS],
}

/// Words of a [`UnixName`]: room for `sizeof(struct sockaddr_un)`, 110 bytes. Source: include/uapi/linux/un.h.
pub const UNIX_NAME_WORDS: usize = 14;

/// The longest name: the family and 108 bytes.
pub const MAX_UNIX_NAME: u32 = 110;

/// Length of a name that the kernel has chosen: the family, a zero and five digits. Source: `unix_autobind`,
/// net/unix/af_unix.c.
pub const CHOSEN_UNIX_NAME: u32 = 8;

/// Entries of the `NET_STATS` map: 2 MB.
pub const MAX_NET_STATS: u32 = 8_192;

/// Rows that have distributions: 12 MB.
pub const MAX_NET_TIMED: u32 = 1_024;

/// Entries of the `SOCKETS` map: 2 MB.
pub const MAX_SOCKETS: u32 = 16_384;

/// Entries of the `UNIX_NAMES` map.
pub const MAX_UNIX_NAMES: u32 = 2_048;

/// Connections that wait to be accepted: entries of the `ESTABLISHED` map, of which the oldest give way.
pub const MAX_ESTABLISHED: u32 = 16_384;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_numbered_as_named() {
        assert_eq!(NET_OPERATIONS[NetOperation::TcpSend as usize - 1], "TCP send");
        assert_eq!(NET_OPERATIONS[NetOperation::OtherReceive as usize - 1], "other receive");
        let name = |family, protocol, is_send| NET_OPERATIONS[NetOperation::of(family, protocol, is_send) as usize - 1];
        assert_eq!(name(family::INET6, protocol::TCP, true), "TCP send");
        assert_eq!(name(family::INET, protocol::UDP, false), "UDP receive");
        assert_eq!(name(family::UNIX, 0, true), "Unix send");
        assert_eq!(name(16, protocol::TCP, false), "other receive");
    }

    #[test]
    fn addresses_of_version_4_are_inside_those_of_version_6() {
        let words = Ends::mapped(u32::from_ne_bytes([127, 0, 0, 1]));
        let octets = core::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets();
        assert_eq!(words.map(u64::to_ne_bytes).as_flattened(), octets);
        assert_eq!(Ends::mapped(0), [0, 0]);
    }

    #[test]
    fn every_row_has_times_of_its_own() {
        assert_eq!(NetTime::Connect.element(1), 0);
        assert_eq!(NetTime::RoundTrip.element(2), 5);
    }

    #[test]
    fn layouts_have_no_hidden_padding() {
        assert_eq!(size_of::<NetOffsets>(), 26 * 4);
        assert_eq!(size_of::<Ends>(), 40);
        assert_eq!(size_of::<NetKey>(), 56);
        assert_eq!(size_of::<NetStats>(), 9 * 8 + COMM_LEN);
        assert_eq!(size_of::<NetTimes>(), 8 + 8 * HISTOGRAM_BUCKETS);
        assert_eq!(size_of::<Socket>(), 72);
        assert_eq!(size_of::<UnixName>(), 8 + 8 * UNIX_NAME_WORDS);
    }
}
