//! Sockets as a table: what the programs counted exactly, with names and addresses.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr};

use profiler_common::event::COMM_LEN;
use profiler_common::net::{Ends, MAX_UNIX_NAME, NetKey, NetStats, NetTimes, UnixName, family, protocol};

use super::readings::Readings;
use crate::bpf::NetCounted;
use crate::profile::{Histogram, Row, Table, TableColumn};

/// Bytes and messages each way, and what became of connections.
const VALUES: [(&str, &str); 9] = [
    ("traffic", "bytes"),
    ("sent", "bytes"),
    ("received", "bytes"),
    ("sends", "count"),
    ("receives", "count"),
    ("connects", "count"),
    ("failed_connects", "count"),
    ("accepts", "count"),
    ("retransmits", "count"),
];

/// The distributions, in the order of [`profiler_common::net::NetTime`].
const DISTRIBUTIONS: [(&str, &str); 3] = [("connect", "ns"), ("accept_wait", "ns"), ("round_trip", "ns")];

/// Stands for an end that is not known, or for many.
const ANY: &str = "*";

/// The table of what was counted since the reading before. `is_last`: there is no other one.
pub(super) fn table(counted: &NetCounted, readings: &mut Readings<NetKey>, is_last: bool) -> Table {
    let columns = |columns: &[(&str, &str)]| -> Vec<TableColumn> {
        columns.iter().map(|(name, unit)| TableColumn::new(name, unit)).collect()
    };
    let columns_of_values = columns(&VALUES);
    let names = counted.names.iter().map(|(hash, name)| (*hash, unix_name(name))).collect();
    let rows = counted
        .rows
        .iter()
        .filter_map(|(key, stats)| readings.since(*key, row(key, stats, counted, &names), &columns_of_values, is_last));
    let mut table = Table {
        title: "Sockets".to_owned(),
        labels: ["protocol", "local", "remote", "process", "pid"].map(str::to_owned).to_vec(),
        values: columns(&VALUES),
        distributions: columns(&DISTRIBUTIONS),
        rows: rows.collect(),
        missing: counted.counts.uncounted,
    };
    table.sort();
    table
}

/// What a reader must know of it.
pub(super) fn warnings(counted: &NetCounted) -> Vec<String> {
    let untimed = counted.rows.iter().filter(|(key, stats)| key.ends.is_tcp() && stats.times == 0).count() as u64;
    let counts = &counted.counts;
    let texts = [
        (untimed, "ends of TCP connections have no distributions of times: there are too many"),
        (counts.unfollowed, "times there was no room to follow a TCP socket: segments sent again are missing"),
        (counts.accepts_untimed, "connections were accepted of which it is not known how long they had waited"),
        (counts.unnamed, "times there was no room for the name of a Unix socket: it is shown as a number"),
    ];
    let texts = texts.into_iter().filter(|(count, _)| *count > 0).map(|(count, text)| format!("{count} {text}"));
    texts.chain(counted.unseen.iter().cloned()).collect()
}

fn row(key: &NetKey, stats: &NetStats, counted: &NetCounted, names: &HashMap<u64, String>) -> Row {
    let ends = &key.ends;
    let end = |address, port| if ends.family == family::UNIX { named(address, names) } else { internet(address, port) };
    let distribution = |times: &NetTimes| Histogram::new(&times.histogram, times.max_ns);
    let distributions = match counted.times.get(&stats.times) {
        Some(times) => times.iter().map(distribution).collect(),
        None => vec![Histogram::default(); DISTRIBUTIONS.len()],
    };
    Row {
        labels: vec![
            protocol_name(ends),
            end(ends.local, ends.local_port),
            end(ends.remote, ends.remote_port),
            comm(&stats.process_comm),
            key.pid.to_string(),
        ],
        values: vec![
            stats.sent_bytes + stats.received_bytes,
            stats.sent_bytes,
            stats.received_bytes,
            stats.sends,
            stats.receives,
            stats.connects,
            stats.failed_connects,
            stats.accepts,
            stats.retransmits,
        ],
        distributions,
    }
}

/// What a socket speaks, for a person. Source of the numbers: include/linux/socket.h, include/linux/net.h,
/// include/uapi/linux/in.h.
fn protocol_name(ends: &Ends) -> String {
    let name = match (ends.family, ends.kind, ends.protocol) {
        (family::INET | family::INET6, _, protocol::TCP) => "TCP",
        (family::INET | family::INET6, _, protocol::UDP) => "UDP",
        (family::INET | family::INET6, _, 1 | 58) => "ICMP",
        (family::INET | family::INET6, _, 132) => "SCTP",
        (family::INET | family::INET6, _, 262) => "MPTCP",
        (family::INET | family::INET6, _, number) => return format!("IP protocol {number}"),
        (family::UNIX, 1, _) => "Unix stream",
        (family::UNIX, 2, _) => "Unix datagram",
        (family::UNIX, 5, _) => "Unix packets",
        (16, ..) => "netlink",
        (17, ..) => "packet",
        (38, ..) => "kernel cryptography",
        (40, ..) => "virtual machine",
        (number, ..) => return format!("family {number}"),
    };
    name.to_owned()
}

/// An address and a port; a star for what is not known or many.
fn internet(address: [u64; 2], port: u16) -> String {
    let bytes = address.map(u64::to_ne_bytes);
    let address = Ipv6Addr::from(*bytes.as_flattened().first_chunk::<16>().unwrap_or(&[0; 16])).to_canonical();
    let address = match address {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => ANY.to_owned(),
        IpAddr::V6(address) => format!("[{address}]"),
        IpAddr::V4(address) => address.to_string(),
    };
    match port {
        0 if address == ANY => address,
        0 => format!("{address}:{ANY}"),
        port => format!("{address}:{port}"),
    }
}

/// The name of a Unix socket.
fn named([hash, _]: [u64; 2], names: &HashMap<u64, String>) -> String {
    match (hash, names.get(&hash)) {
        (0, _) => ANY.to_owned(),
        (_, Some(name)) => name.clone(),
        (hash, None) => format!("name {hash:016x}"),
    }
}

/// The text of a name: a path, or `@` and what is no file.
fn unix_name(name: &UnixName) -> String {
    let bytes = name.bytes.map(u64::to_ne_bytes);
    let length = usize::try_from(name.length.min(u64::from(MAX_UNIX_NAME))).unwrap_or(0);
    // Behind the family.
    let bytes = bytes.as_flattened().get(2..length).unwrap_or_default();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match bytes {
        [0, rest @ ..] => {
            let mut shown = "@".to_owned();
            // Zeros may be anywhere in it.
            for part in text(rest).chars() {
                if part.is_control() {
                    write!(shown, "{}", part.escape_default()).unwrap_or(())
                } else {
                    shown.push(part)
                }
            }
            shown
        }
        path => text(path.split(|&byte| byte == 0).next().unwrap_or_default()),
    }
}

fn comm(bytes: &[u8; COMM_LEN]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(COMM_LEN);
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use profiler_common::histogram::HISTOGRAM_BUCKETS;
    use profiler_common::net::{NetCounts, UNIX_NAME_WORDS};

    use super::*;

    fn name_of(text: &[u8]) -> UnixName {
        let mut bytes = [[0_u8; 8]; UNIX_NAME_WORDS];
        bytes.as_flattened_mut()[..2].copy_from_slice(&1_u16.to_ne_bytes());
        bytes.as_flattened_mut()[2..2 + text.len()].copy_from_slice(text);
        UnixName { length: text.len() as u64 + 2, bytes: bytes.map(u64::from_ne_bytes) }
    }

    #[test]
    fn ends_are_written_as_people_write_them() {
        let loopback = Ends::mapped(u32::from_ne_bytes([127, 0, 0, 1]));
        assert_eq!(internet(loopback, 80), "127.0.0.1:80");
        assert_eq!(internet(loopback, 0), "127.0.0.1:*");
        assert_eq!(internet([0, u64::from_ne_bytes([0, 0, 0, 0, 0, 0, 0, 1])], 80), "[::1]:80");
        assert_eq!(internet([0, 0], 53), "*:53");
        assert_eq!(internet([0, 0], 0), "*");
        for (text, expected) in [
            (&b"/run/server\0"[..], "/run/server"),
            (b"\0bus-1", "@bus-1"),
            (b"\0a\0b", "@a\\u{0}b"),
            (b"/with\xff\0", "/with\u{fffd}"),
            (b"", ""),
        ] {
            assert_eq!(unix_name(&name_of(text)), expected);
        }
        // A length that no name has.
        assert!(unix_name(&UnixName { length: u64::MAX, ..name_of(b"/x") }).starts_with("/x"));
    }

    #[test]
    fn a_row_has_its_own_times_and_the_missing_are_told() {
        let ends = Ends {
            family: family::INET,
            kind: 1,
            protocol: protocol::TCP,
            local_port: 80,
            remote_port: 0,
            local: Ends::mapped(u32::from_ne_bytes([10, 0, 0, 1])),
            remote: Ends::mapped(u32::from_ne_bytes([10, 0, 0, 2])),
        };
        let key = NetKey { start_time_ns: 1, pid: 7, exec_count: 1, ends };
        let stats =
            NetStats { sent_bytes: 5, received_bytes: 7, sends: 1, receives: 2, times: 1, ..NetStats::default() };
        let mut times = NetTimes { max_ns: 1_000, histogram: [0; HISTOGRAM_BUCKETS] };
        times.histogram[100] = 3;
        let none = NetTimes { max_ns: 0, histogram: [0; HISTOGRAM_BUCKETS] };
        let counted = NetCounted {
            rows: vec![(key, stats), (NetKey { pid: 8, ..key }, NetStats { times: 0, ..stats })],
            times: [(1, [none, times, none])].into(),
            counts: NetCounts { uncounted: 4, ..NetCounts::default() },
            ..NetCounted::default()
        };
        let table = table(&counted, &mut Readings::default(), true);
        assert!(table.is_sound());
        assert_eq!(table.missing, 4);
        assert_eq!(table.rows[0].labels, ["TCP", "10.0.0.1:80", "10.0.0.2:*", "", "7"]);
        assert_eq!(table.rows[0].values[..5], [12, 5, 7, 1, 2]);
        assert_eq!(table.rows[0].distributions.iter().map(Histogram::count).collect::<Vec<_>>(), [0, 3, 0]);
        assert_eq!(table.rows[1].distributions[1].count(), 0);
        assert_eq!(warnings(&counted).len(), 1);
    }
}
