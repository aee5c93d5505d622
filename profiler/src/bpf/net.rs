//! Sockets: where the kernel keeps what is read of them; loads and attaches what records them, and reads what was counted
//! exactly.

use std::path::Path;

use aya::Btf;
use aya::maps::{Array, MapData};
use aya::programs::fexit::FExitLinkId;
use aya::programs::raw_trace_point::RawTracePointLinkId;
use aya::programs::trace_point::TracePointLinkId;
use aya::programs::{FExit, RawTracePoint, TracePoint};
use profiler_common::net::{COMMON_WORDS, NetCounts, NetKey, NetOffsets, NetStats, NetTime, NetTimes, UnixName};

use super::BpfError;
use super::btf::{KIND_FUNCTION, KIND_TYPEDEF, MAX_NESTING, Types};
use super::drain::Batch;
use super::kernel_types::with_types;
use super::load::{Kernel, Shared, program_error};
use super::pythons::PythonProgram;

/// The programs that follow connections, and their tracepoints.
const CONNECTIONS: [(&str, &str); 3] = [
    ("net_destroy", "tcp_destroy_sock"),
    ("net_state", "inet_sock_set_state"),
    ("net_retransmit", "tcp_retransmit_skb"),
];

/// The programs that see messages, and their tracepoints.
const MESSAGES: [(&str, &str); 2] = [("net_send", "sock_send_length"), ("net_receive", "sock_recv_length")];

/// The programs that see them where there are no such tracepoints, and the functions at whose end they run.
const EXITS: [(&str, &str); 12] = [
    ("net_inet_sendmsg", "inet_sendmsg"),
    ("net_inet6_sendmsg", "inet6_sendmsg"),
    ("net_inet_sendpage", "inet_sendpage"),
    ("net_unix_stream_sendmsg", "unix_stream_sendmsg"),
    ("net_unix_stream_sendpage", "unix_stream_sendpage"),
    ("net_unix_dgram_sendmsg", "unix_dgram_sendmsg"),
    ("net_unix_seqpacket_sendmsg", "unix_seqpacket_sendmsg"),
    ("net_inet_recvmsg", "inet_recvmsg"),
    ("net_inet6_recvmsg", "inet6_recvmsg"),
    ("net_unix_stream_recvmsg", "unix_stream_recvmsg"),
    ("net_unix_dgram_recvmsg", "unix_dgram_recvmsg"),
    ("net_unix_seqpacket_recvmsg", "unix_seqpacket_recvmsg"),
];

/// What messages are seen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetHook {
    /// The tracepoints of Linux 6.3.
    Tracepoints,
    /// The end of the functions that send and receive.
    Exits,
}

/// The program that takes connections that were accepted, and its tracepoints, which are behind files.
const ACCEPT: &str = "net_accept";
const ACCEPTS: [&str; 2] = ["sys_exit_accept", "sys_exit_accept4"];

/// What is held of sockets.
pub(super) struct Net {
    pub(super) stats: Batch<NetKey, NetStats>,
    pub(super) names: Batch<u64, UnixName>,
    pub(super) times: Array<MapData, Shared<NetTimes>>,
    pub(super) counts: Array<MapData, Shared<NetCounts>>,
    /// What messages are seen by; none before the programs are loaded.
    pub(super) hook: Option<NetHook>,
    /// The programs that are attached.
    pub(super) links: Vec<(&'static str, RawTracePointLinkId)>,
    pub(super) exits: Vec<(&'static str, FExitLinkId)>,
    pub(super) accepts: Vec<TracePointLinkId>,
    /// What is not seen, and why.
    pub(super) unseen: Vec<String>,
}

/// What was counted of sockets.
#[derive(Debug, Default)]
pub struct NetCounted {
    /// By process and ends.
    pub rows: Vec<(NetKey, NetStats)>,
    /// Distributions by [`NetTime`], of those rows that have some, by their number.
    pub times: std::collections::BTreeMap<u64, [NetTimes; NetTime::COUNT as usize]>,
    /// Names of Unix sockets by what stands for them in a row.
    pub names: Vec<(u64, UnixName)>,
    /// What found no room.
    pub counts: NetCounts,
    /// What was not seen, and why.
    pub unseen: Vec<String>,
}

/// Where the kernel keeps what is read of sockets.
///
/// # Errors
///
/// [`BpfError::NoField`] when a field is not there.
pub(super) fn offsets(types: &Types<'_>) -> Result<NetOffsets, BpfError> {
    let at = |structure: &'static str, field: &'static str| {
        types.offset(structure, &[field]).ok_or(BpfError::NoField { structure, field })
    };
    let sock = types.find_struct("sock").ok_or(BpfError::NoField { structure: "sock", field: "(itself)" })?;
    let user_locks = types.member_bits(sock, "sk_userlocks", MAX_NESTING);
    let user_locks = user_locks.ok_or(BpfError::NoField { structure: "sock", field: "sk_userlocks" })?;
    let (kind, protocol) = (at("sock", "sk_type")?, at("sock", "sk_protocol")?);
    let sort = kind.min(protocol);
    if kind.max(protocol) - sort > 6 {
        return Err(BpfError::NoField { structure: "sock", field: "sk_type beside sk_protocol" });
    }
    let offsets = NetOffsets {
        family: at("sock_common", "skc_family")?,
        remote_v4: at("sock_common", "skc_daddr")?,
        local_v4: at("sock_common", "skc_rcv_saddr")?,
        remote_v6: at("sock_common", "skc_v6_daddr").unwrap_or(0),
        local_v6: at("sock_common", "skc_v6_rcv_saddr").unwrap_or(0),
        remote_port: at("sock_common", "skc_dport")?,
        local_port: at("sock_common", "skc_num")?,
        sort,
        kind_shift: (kind - sort) * 8,
        protocol_shift: (protocol - sort) * 8,
        user_locks: user_locks / 8,
        user_locks_shift: user_locks % 8,
        bind_bucket: at("inet_connection_sock", "icsk_bind_hash")?,
        bucket_reuse: at("inet_bind_bucket", "fastreuse")?,
        smoothed_rtt: at("tcp_sock", "srtt_us")?,
        retransmits: at("tcp_sock", "total_retrans")?,
        unix_address: at("unix_sock", "addr").unwrap_or(0),
        unix_peer: at("unix_sock", "peer").unwrap_or(0),
        unix_length: at("unix_address", "len").unwrap_or(0),
        unix_name: at("unix_address", "name").unwrap_or(0),
        files: at("task_struct", "files")?,
        descriptors: at("files_struct", "fdt")?,
        descriptor_array: at("fdtable", "fd")?,
        private_data: at("file", "private_data")?,
        sock: at("socket", "sk")?,
        reserved: 0,
    };
    let NetOffsets { family, remote_v4, local_v4, remote_v6, local_v6, remote_port, local_port, .. } = offsets;
    let last = [family, remote_v4, local_v4, remote_v6 + 8, local_v6 + 8, remote_port, local_port].into_iter().max();
    if last > u32::try_from(COMMON_WORDS * 8 - 8).ok() {
        return Err(BpfError::NoField { structure: "sock_common", field: "(all near its beginning)" });
    }
    Ok(offsets)
}

impl NetHook {
    /// What the running kernel has.
    ///
    /// # Errors
    ///
    /// [`BpfError::NoNet`] where it has neither, [`BpfError::NoBtf`] when it publishes no types.
    pub fn detect() -> Result<Self, BpfError> {
        let (tracepoints, exits) = with_types(|types| {
            let tracepoints = ["btf_trace_sock_send_length", "btf_trace_sock_recv_length"];
            let has_tracepoints = tracepoints.into_iter().all(|name| types.find(KIND_TYPEDEF, name).is_some());
            Ok((has_tracepoints, types.find(KIND_FUNCTION, EXITS[0].1).is_some()))
        })?;
        if tracepoints {
            return Ok(Self::Tracepoints);
        }
        if exits { Ok(Self::Exits) } else { Err(BpfError::NoNet) }
    }

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tracepoints => "sock_send_length, sock_recv_length",
            Self::Exits => "fexit of inet_sendmsg, inet_recvmsg and others",
        }
    }
}

impl Kernel {
    /// What messages of sockets are seen by.
    #[must_use]
    pub const fn net_hook(&self) -> Option<NetHook> {
        self.net.hook
    }

    /// Loads the programs that record sockets.
    ///
    /// # Errors
    ///
    /// When the verifier refuses one, or the kernel lacks what they are attached to.
    pub(super) fn load_net_programs(&mut self) -> Result<(), BpfError> {
        let hook = NetHook::detect()?;
        self.net.hook = Some(hook);
        let mut tracepoints = CONNECTIONS.to_vec();
        match hook {
            NetHook::Tracepoints => {
                self.pythons.expect(PythonProgram::NET);
                tracepoints.extend(MESSAGES);
            }
            NetHook::Exits => self.load_exits()?,
        }
        for (name, _) in tracepoints {
            let program: &mut RawTracePoint = self.program(name)?;
            program.load().map_err(|cause| program_error("load", name, cause))?;
        }
        let program: &mut TracePoint = self.program(ACCEPT)?;
        program.load().map_err(|cause| program_error("load", ACCEPT, cause))
    }

    /// Loads the programs for the ends of functions.
    fn load_exits(&mut self) -> Result<(), BpfError> {
        let failed = |name| move |cause| program_error("load", name, cause);
        let types = Btf::from_sys_fs().map_err(|cause| failed(EXITS[0].0)(cause.into()))?;
        let has = |function| with_types(|types| Ok(types.find(KIND_FUNCTION, function).is_some()));
        for (name, function) in EXITS {
            if !has(function)? {
                self.net.unseen.push(format!("this kernel has no function {function}: messages by it were not seen"));
                continue;
            }
            let program: &mut FExit = self.program(name)?;
            if let Err(cause) = program.load(function, &types).map_err(failed(name)) {
                self.net.unseen.push(format!("messages by {function} were not seen: {cause}"));
            }
        }
        Ok(())
    }

    /// Attaches what [`Kernel::load_net_programs`] has loaded.
    ///
    /// # Errors
    ///
    /// When the kernel has nothing to attach it to.
    pub(super) fn begin_net(&mut self) -> Result<(), BpfError> {
        let messages = if self.net.hook == Some(NetHook::Tracepoints) { &MESSAGES[..] } else { &[] };
        // Connections first: of a socket that is seen it is known when it closes.
        for &(name, tracepoint) in CONNECTIONS.iter().chain(messages) {
            let program: &mut RawTracePoint = self.program(name)?;
            let link = program.attach(tracepoint).map_err(|cause| program_error("attach", name, cause))?;
            self.net.links.push((name, link));
        }
        for (name, function) in EXITS {
            let program: &mut FExit = self.program(name)?;
            // One without a function is not loaded.
            if program.fd().is_ok() {
                match program.attach().map_err(|cause| program_error("attach", name, cause)) {
                    Ok(link) => self.net.exits.push((name, link)),
                    Err(cause) => self.net.unseen.push(format!("messages by {function} were not seen: {cause}")),
                }
            }
        }
        for tracepoint in ACCEPTS {
            let program: &mut TracePoint = self.program(ACCEPT)?;
            match program.attach("syscalls", tracepoint) {
                Ok(link) => self.net.accepts.push(link),
                // The rest can do without.
                Err(error) => {
                    let text =
                        format!("connections that were accepted were not seen ({tracepoint}): {}", chain(&error));
                    self.net.unseen.push(text);
                }
            }
        }
        Ok(())
    }

    /// Detaches it again: what is sent from now on is not counted.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub(super) fn end_net(&mut self) -> Result<(), BpfError> {
        for (name, link) in std::mem::take(&mut self.net.exits) {
            let program: &mut FExit = self.program(name)?;
            program.detach(link).map_err(|cause| program_error("detach", name, cause))?;
        }
        for (name, link) in std::mem::take(&mut self.net.links) {
            let program: &mut RawTracePoint = self.program(name)?;
            program.detach(link).map_err(|cause| program_error("detach", name, cause))?;
        }
        for link in std::mem::take(&mut self.net.accepts) {
            let program: &mut TracePoint = self.program(ACCEPT)?;
            program.detach(link).map_err(|cause| program_error("detach", ACCEPT, cause))?;
        }
        Ok(())
    }

    /// Forgets what was counted of a process that has ended.
    pub fn forget_net_stats(&self, key: &NetKey) {
        self.net.stats.remove(key);
    }

    /// What was counted of sockets so far.
    ///
    /// # Errors
    ///
    /// When a map cannot be read.
    pub fn net_counted(&self) -> Result<NetCounted, BpfError> {
        let net = &self.net;
        let (rows, names) = (net.stats.read_all()?, net.names.read_all()?);
        let failed = |error| BpfError::map("read", "NET_TIMES", error);
        let mut times = std::collections::BTreeMap::new();
        for number in rows.iter().map(|(_, stats)| stats.times).filter(|&number| number != 0) {
            let read = |time: NetTime| net.times.get(&time.element(number), 0).map(|times| times.0).map_err(failed);
            times.insert(number, [read(NetTime::Connect)?, read(NetTime::Accept)?, read(NetTime::RoundTrip)?]);
        }
        let counts = net.counts.get(&0, 0).map_err(|error| BpfError::map("read", "NET_COUNTS", error))?.0;
        Ok(NetCounted { rows, times, names, counts, unseen: net.unseen.clone() })
    }
}

/// An error with what it comes from.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Whether the tracepoints of connections that are accepted can be found.
pub(super) fn has_accepts() -> bool {
    let roots = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
    let has = |root: &str| ACCEPTS.iter().all(|name| Path::new(root).join("events/syscalls").join(name).exists());
    roots.into_iter().any(has)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_names_its_socket_fields() {
        if !Path::new("/sys/kernel/btf/vmlinux").exists() {
            return;
        }
        let offsets = with_types(offsets).unwrap();
        // Pairs that the kernel compares at once. Source: `skc_addrpair` and `skc_portpair`, include/net/sock.h.
        assert_eq!(offsets.local_v4, offsets.remote_v4 + 4);
        assert_eq!(offsets.local_port, offsets.remote_port + 2);
        assert_ne!(offsets.kind_shift, offsets.protocol_shift);
        assert!(offsets.unix_address > offsets.sort && offsets.smoothed_rtt > offsets.bind_bucket);
        // The length is between the use count and the name.
        assert_eq!((offsets.unix_length, offsets.unix_name), (4, 8));
        assert_ne!(NetHook::detect().unwrap().name(), "");
    }
}
