//! Sockets: where the kernel keeps what is read of them; loads and attaches what records them, and reads what was counted
//! exactly.

use std::path::Path;

use aya::maps::{Array, MapData};
use aya::programs::raw_trace_point::RawTracePointLinkId;
use aya::programs::trace_point::TracePointLinkId;
use aya::programs::{RawTracePoint, TracePoint};
use profiler_common::net::{COMMON_WORDS, NetCounts, NetKey, NetOffsets, NetStats, NetTime, NetTimes, UnixName};

use super::BpfError;
use super::btf::{KIND_TYPEDEF, MAX_NESTING, Types};
use super::drain::Batch;
use super::kernel_types::with_types;
use super::load::{Kernel, Shared, program_error};
use super::pythons::PythonProgram;

/// The programs and their tracepoints.
const HOOKS: [(&str, &str); 4] = [
    ("net_state", "inet_sock_set_state"),
    ("net_retransmit", "tcp_retransmit_skb"),
    ("net_send", "sock_send_length"),
    ("net_receive", "sock_recv_length"),
];

/// The program that takes connections that were accepted, and its tracepoints, which are behind files.
const ACCEPT: &str = "net_accept";
const ACCEPTS: [&str; 2] = ["sys_exit_accept", "sys_exit_accept4"];

/// What is held of sockets.
pub(super) struct Net {
    pub(super) stats: Batch<NetKey, NetStats>,
    pub(super) names: Batch<u64, UnixName>,
    pub(super) times: Array<MapData, Shared<NetTimes>>,
    pub(super) counts: Array<MapData, Shared<NetCounts>>,
    /// The programs that are attached.
    pub(super) links: Vec<(&'static str, RawTracePointLinkId)>,
    pub(super) accepts: Vec<TracePointLinkId>,
    /// Why connections that are accepted are not seen; empty when they are.
    pub(super) accepts_missing: String,
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
    /// Why connections that were accepted were not seen; empty when they were.
    pub accepts_missing: String,
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
        unix_address: at("unix_sock", "addr")?,
        unix_peer: at("unix_sock", "peer")?,
        unix_length: at("unix_address", "len")?,
        unix_name: at("unix_address", "name")?,
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

impl Kernel {
    /// Name of the hooks in reports.
    pub const NET_HOOKS: &str = "sock_send_length, sock_recv_length";

    /// Loads the programs that record sockets.
    ///
    /// # Errors
    ///
    /// When the verifier refuses one, or the kernel lacks the tracepoints.
    pub fn load_net_programs(&mut self) -> Result<(), BpfError> {
        check_hooks()?;
        self.pythons.expect(PythonProgram::NET);
        for (name, _) in HOOKS {
            let program: &mut RawTracePoint = self.program(name)?;
            program.load().map_err(|cause| program_error("load", name, cause))?;
        }
        let program: &mut TracePoint = self.program(ACCEPT)?;
        program.load().map_err(|cause| program_error("load", ACCEPT, cause))
    }

    /// Attaches what [`Kernel::load_net_programs`] has loaded.
    ///
    /// # Errors
    ///
    /// When the kernel has nothing to attach it to.
    pub fn begin_net(&mut self) -> Result<(), BpfError> {
        for (name, tracepoint) in HOOKS {
            let program: &mut RawTracePoint = self.program(name)?;
            let link = program.attach(tracepoint).map_err(|cause| program_error("attach", name, cause))?;
            self.net.links.push((name, link));
        }
        for tracepoint in ACCEPTS {
            let program: &mut TracePoint = self.program(ACCEPT)?;
            match program.attach("syscalls", tracepoint) {
                Ok(link) => self.net.accepts.push(link),
                // The rest can do without.
                Err(error) => self.net.accepts_missing = chain(&error),
            }
        }
        Ok(())
    }

    /// Detaches it again: what is sent from now on is not counted.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn end_net(&mut self) -> Result<(), BpfError> {
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

    /// Takes what was counted of sockets.
    ///
    /// # Errors
    ///
    /// When a map cannot be read.
    pub fn take_net(&mut self) -> Result<NetCounted, BpfError> {
        let net = &mut self.net;
        let (rows, names) = (net.stats.take_all()?, net.names.take_all()?);
        let failed = |error| BpfError::map("read", "NET_TIMES", error);
        let mut times = std::collections::BTreeMap::new();
        for number in rows.iter().map(|(_, stats)| stats.times).filter(|&number| number != 0) {
            let read = |time: NetTime| net.times.get(&time.element(number), 0).map(|times| times.0).map_err(failed);
            times.insert(number, [read(NetTime::Connect)?, read(NetTime::Accept)?, read(NetTime::RoundTrip)?]);
        }
        let counts = net.counts.get(&0, 0).map_err(|error| BpfError::map("read", "NET_COUNTS", error))?.0;
        Ok(NetCounted { rows, times, names, counts, accepts_missing: net.accepts_missing.clone() })
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

/// Whether the kernel has the tracepoints.
///
/// # Errors
///
/// [`BpfError::NoNet`] where it has not, [`BpfError::NoBtf`] when it publishes no types.
pub(super) fn check_hooks() -> Result<(), BpfError> {
    let all = with_types(|types| {
        let is_there = |name: &str| types.find(KIND_TYPEDEF, name).is_some();
        Ok(is_there("btf_trace_sock_send_length") && is_there("btf_trace_sock_recv_length"))
    })?;
    if all { Ok(()) } else { Err(BpfError::NoNet) }
}
