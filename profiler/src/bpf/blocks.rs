//! Requests to block devices: where the kernel keeps what is read of them; loads and attaches what records them, and reads
//! what was counted exactly.

use std::collections::{BTreeMap, HashSet};
use std::fs;

use aya::Btf;
use aya::maps::{Array, MapData, PerCpuArray, Queue};
use aya::programs::raw_trace_point::RawTracePointLinkId;
use aya::programs::tp_btf::BtfTracePointLinkId;
use aya::programs::{BtfTracePoint, RawTracePoint};
use profiler_common::block::{
    BLOCK_TALLIES, BlockFileKey, BlockFileStats, BlockHistograms, BlockKey, BlockMissed, BlockOffsets, BlockRequest,
    BlockRow, BlockStats, BlockTally, BlockWaitKey, BlockWaitStats, CAST, MAX_REQUESTS, STRUCT_BYTES, UNASKED,
};

use super::BpfError;
use super::btf::{KIND_FUNCTION, KIND_STRUCT, Types};
use super::drain::Batch;
use super::kernel_types::with_types;
use super::load::{Kernel, Shared, program_error};
use super::pythons::PythonProgram;

/// Where the kernel keeps it.
///
/// # Errors
///
/// [`BpfError::NoField`] when a field is not there.
pub(super) fn offsets(types: &Types<'_>) -> Result<BlockOffsets, BpfError> {
    let offset = |structure, path: &[&'static str]| {
        let field = path.last().copied().unwrap_or_default();
        types.offset(structure, path).ok_or(BpfError::NoField { structure, field })
    };
    // Of structures that are read in one piece, of which this field must be.
    let near = |structure, path: &[&'static str]| {
        let field = path.last().copied().unwrap_or_default();
        offset(structure, path).and_then(|offset| {
            if offset as usize + 8 <= STRUCT_BYTES { Ok(offset) } else { Err(BpfError::NoField { structure, field }) }
        })
    };
    let mut offsets = BlockOffsets {
        direct_end: 0,
        request_flags: near("request", &["cmd_flags"])?,
        request_length: near("request", &["__data_len"])?,
        request_sector: near("request", &["__sector"])?,
        request_bio: near("request", &["bio"])?,
        request_start: near("request", &["start_time_ns"])?,
        request_issued: near("request", &["io_start_time_ns"])?,
        bio_next: near("bio", &["bi_next"])?,
        bio_device: near("bio", &["bi_bdev"])?,
        bio_flags: near("bio", &["bi_opf"])?,
        bio_size: near("bio", &["bi_iter", "bi_size"])?,
        bio_index: near("bio", &["bi_iter", "bi_idx"])?,
        bio_pages: near("bio", &["bi_io_vec"])?,
        bio_end: near("bio", &["bi_end_io"])?,
        bio_private: near("bio", &["bi_private"])?,
        device_number: offset("block_device", &["bd_dev"])?,
        vector_page: offset("bio_vec", &["bv_page"])?,
        vector_size: types.size("bio_vec").ok_or(BpfError::NoField { structure: "bio_vec", field: "(itself)" })?,
        page_head: offset("page", &["compound_head"])?,
        page_mapping: offset("page", &["mapping"])?,
        mapping_host: offset("address_space", &["host"])?,
        folio_flags: offset("folio", &["flags"])?,
        // Since Linux 6.6 it is the lowest byte of the second page's flags.
        folio_order: offset("folio", &["_folio_order"]).or_else(|_| offset("folio", &["_flags_1"]))?,
        folio_large_mask: types.number("pageflags", "PG_head").map_or(0, |bit| 1 << bit),
        issue_is_noted: u32::from(!times_are_kept()),
        ..BlockOffsets::UNSET
    };
    near("inode", &["i_sb"])?;
    near("inode", &["i_ino"])?;
    // Without the groups of block I/O there is nothing that could be charged.
    let group = (near("bio", &["bi_blkg"]), offset("blkcg_gq", &["blkcg"]), offset("blkcg", &["css", "cgroup"]));
    if let (Ok(bio_group), Ok(group_owner), Ok(owner_cgroup)) = group {
        let (cgroup_node, node_id) = (offset("cgroup", &["kn"])?, offset("kernfs_node", &["id"])?);
        offsets = BlockOffsets { bio_group, group_owner, owner_cgroup, cgroup_node, node_id, ..offsets };
    }
    let [direct_end, awaited_end, task_end, throttler] = addresses_of([
        "iomap_dio_bio_end_io",
        "submit_bio_wait_endio",
        "blkdev_bio_end_io_simple",
        "blk_throtl_dispatch_work_fn",
    ]);
    // Who waits for a request that a cgroup's limit has held back.
    if let (Ok(kthread_data), Ok(worker_function)) = (offset("kthread", &["data"]), offset("worker", &["current_func"]))
    {
        offsets = BlockOffsets {
            awaited_end,
            task_end,
            throttler,
            completion_first: offset("completion", &["wait", "task_list", "next"])?,
            waiter_link: offset("swait_queue", &["task_list"])?,
            waiter_task: offset("swait_queue", &["task"])?,
            task_worker: offset("task_struct", &["worker_private"])?,
            kthread_data,
            worker_function,
            ..offsets
        };
    }
    if types.find(KIND_FUNCTION, "bpf_rdonly_cast").is_some() {
        offsets.direct_type = types.find(KIND_STRUCT, "iomap_dio").unwrap_or(0);
        offsets.inode_type = types.find(KIND_STRUCT, "inode").unwrap_or(0);
    }
    // The names of files that are read and written past the page cache.
    if let Ok(direct_call) = offset("iomap_dio", &["iocb"]) {
        offsets.direct_end = direct_end;
        offsets.direct_call = direct_call;
        offsets.direct_waiter = offset("iomap_dio", &["submit", "waiter"])?;
        offsets.call_file = offset("kiocb", &["ki_filp"])?;
        offsets.file_inode = offset("file", &["f_inode"])?;
    }
    Ok(offsets)
}

/// Puts the number of `bpf_rdonly_cast` into an object's calls by [`CAST`]: aya knows no calls of the kernel's own functions.
/// Without it they become moves, which nothing leads to: the types are 0.
pub(super) fn link_casts(object: &mut [u8]) -> Result<(), BpfError> {
    let function = with_types(|types| Ok(types.find(KIND_FUNCTION, "bpf_rdonly_cast")))?;
    let (operation, number) = match function {
        // A call of a function of the kernel: `BPF_PSEUDO_KFUNC_CALL` in the source register.
        Some(function) => ([0x85, 0x20, 0, 0], function),
        // r0 = r1.
        None => ([0xbf, 0x10, 0, 0], 0),
    };
    for instruction in object.as_chunks_mut::<8>().0 {
        if instruction[..4] == [0x85, 0, 0, 0] && instruction[4..] == CAST.to_le_bytes() {
            instruction[..4].copy_from_slice(&operation);
            instruction[4..].copy_from_slice(&number.to_le_bytes());
        }
    }
    Ok(())
}

/// Addresses of functions of the kernel; 0 where it has none of that name, or does not tell.
fn addresses_of<const N: usize>(functions: [&str; N]) -> [u64; N] {
    let mut addresses = [0; N];
    let symbols = fs::read("/proc/kallsyms").unwrap_or_default();
    for line in symbols.split(|&byte| byte == b'\n') {
        // Address, kind, name and, of a module, its name.
        let mut fields = line.split(|&byte| byte == b' ' || byte == b'\t');
        let (Some(address), Some(name)) = (fields.next(), fields.nth(1)) else { continue };
        if let Some(index) = functions.iter().position(|function| function.as_bytes() == name) {
            let address = std::str::from_utf8(address).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
            addresses[index] = address.unwrap_or(0);
        }
    }
    addresses
}

/// The program that counts, and its tracepoint: attached first, so that every request that is seen is seen to be done. It is
/// told the types of what it reads, which spares it a call for each field.
const COMPLETE: (&str, &str) = ("block_complete", "block_rq_complete");

/// The other programs and their tracepoints.
const HOOKS: [(&str, &str); 5] = [
    ("block_issue", "block_rq_issue"),
    ("block_switch", "sched_switch"),
    ("block_dirty", "writeback_dirty_folio"),
    ("block_request", "block_getrq"),
    // Puts a new part before those that a request has: by the first one it is known.
    ("block_request", "block_bio_frontmerge"),
];

/// The program that is only needed where the kernel does not keep when a request was given to its device.
const ISSUE: &str = "block_issue";

/// What is held of requests to block devices.
pub(super) struct Blocks {
    pub(super) stats: Batch<BlockKey, BlockRow>,
    pub(super) histograms: Array<MapData, Shared<BlockHistograms>>,
    pub(super) tallies: PerCpuArray<MapData, Shared<BlockTally>>,
    pub(super) files: Batch<BlockFileKey, BlockFileStats>,
    pub(super) waits: Batch<BlockWaitKey, BlockWaitStats>,
    pub(super) missed: Array<MapData, u64>,
    pub(super) requests: Array<MapData, Shared<BlockRequest>>,
    pub(super) clock: Array<MapData, u64>,
    /// Places of distributions that nobody has any more, and those that programs may still write to.
    pub(super) free: Queue<MapData, u64>,
    pub(super) given_up: Vec<u64>,
    /// The programs that are attached.
    pub(super) complete: Option<BtfTracePointLinkId>,
    pub(super) links: Vec<(&'static str, RawTracePointLinkId)>,
}

impl Kernel {
    /// Name of the hooks in reports.
    pub const BLOCK_HOOKS: &str = "block_getrq, block_rq_complete, writeback_dirty_folio";

    /// Loads the programs that record requests to block devices.
    ///
    /// # Errors
    ///
    /// When the verifier refuses one.
    pub(super) fn load_block_programs(&mut self) -> Result<(), BpfError> {
        self.pythons.expect(PythonProgram::BLOCK);
        let failed = |cause| program_error("load", COMPLETE.0, cause);
        let types = Btf::from_sys_fs().map_err(|cause| failed(cause.into()))?;
        let program: &mut BtfTracePoint = self.program(COMPLETE.0)?;
        program.load(COMPLETE.1, &types).map_err(failed)?;
        let mut loaded = "";
        for (name, _) in hooks() {
            // One of them has two hooks.
            if name != loaded {
                let program: &mut RawTracePoint = self.program(name)?;
                program.load().map_err(|cause| program_error("load", name, cause))?;
                loaded = name;
            }
        }
        Ok(())
    }

    /// Attaches what [`Kernel::load_block_programs`] has loaded; after [`Kernel::begin_waits`] where waits are recorded too.
    ///
    /// # Errors
    ///
    /// When the kernel has nothing to attach it to.
    pub fn begin_blocks(&mut self) -> Result<(), BpfError> {
        let clock = u64::from(!starts_are_kept());
        self.blocks.clock.set(0, clock, 0).map_err(|error| BpfError::map("write", "BLOCK_CLOCK", error))?;
        let program: &mut BtfTracePoint = self.program(COMPLETE.0)?;
        self.blocks.complete = Some(program.attach().map_err(|cause| program_error("attach", COMPLETE.0, cause))?);
        for (name, tracepoint) in hooks() {
            let program: &mut RawTracePoint = self.program(name)?;
            let link = program.attach(tracepoint).map_err(|cause| program_error("attach", name, cause))?;
            self.blocks.links.push((name, link));
        }
        // What is under way by now was not seen to be made.
        if self.controlled.began_ns == 0 { self.begin_recorded() } else { Ok(()) }
    }

    /// Detaches it again: requests that are done from now on are not counted.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn end_blocks(&mut self) -> Result<(), BpfError> {
        for (name, link) in std::mem::take(&mut self.blocks.links) {
            let program: &mut RawTracePoint = self.program(name)?;
            program.detach(link).map_err(|cause| program_error("detach", name, cause))?;
        }
        if let Some(link) = self.blocks.complete.take() {
            let program: &mut BtfTracePoint = self.program(COMPLETE.0)?;
            program.detach(link).map_err(|cause| program_error("detach", COMPLETE.0, cause))?;
        }
        Ok(())
    }

    /// What was counted of requests so far, by kind and by file.
    ///
    /// # Errors
    ///
    /// When a map cannot be read.
    pub fn block_stats(&self) -> Result<Vec<(BlockKey, BlockStats)>, BpfError> {
        let failed = |name| move |error| BpfError::map("read", name, error);
        let blocks = &self.blocks;
        let mut rows: BTreeMap<BlockKey, BlockRow> = blocks.stats.read_all()?.into_iter().collect();
        // After the rows: what a CPU moves there meanwhile is missing until the next time, and never there twice.
        for index in 0..BLOCK_TALLIES {
            for Shared(tally) in blocks.tallies.get(&index, 0).map_err(failed("BLOCK_TALLIES"))?.iter() {
                if tally.histograms != 0
                    && let Some(row) = rows.get_mut(&tally.key)
                {
                    row.counts.add(&tally.counts);
                }
            }
        }
        let stats = |(key, row): (BlockKey, BlockRow)| {
            let at = u32::try_from(row.histograms).unwrap_or(u32::MAX);
            let Shared(histograms) = blocks.histograms.get(&at, 0).map_err(failed("BLOCK_HISTOGRAMS"))?;
            Ok((key, BlockStats { counts: row.counts, process_comm: row.process_comm, histograms }))
        };
        rows.into_iter().map(stats).collect()
    }

    /// The same by file.
    ///
    /// # Errors
    ///
    /// As of [`Kernel::block_stats`].
    pub fn block_files(&self) -> Result<Vec<(BlockFileKey, BlockFileStats)>, BpfError> {
        let failed = |error| BpfError::map("read", "BLOCK_TALLIES", error);
        let mut rows: BTreeMap<BlockFileKey, BlockFileStats> = self.blocks.files.read_all()?.into_iter().collect();
        for index in 0..BLOCK_TALLIES {
            for Shared(tally) in self.blocks.tallies.get(&index, 0).map_err(failed)?.iter() {
                if tally.of_file != 0
                    && let Some(row) = rows.get_mut(&tally.file_key())
                {
                    row.requests += tally.counts.requests;
                    row.bytes += tally.counts.bytes;
                    row.total_ns += tally.counts.total_ns;
                    row.max_ns = row.max_ns.max(tally.counts.max_ns[0]);
                }
            }
        }
        Ok(rows.into_iter().collect())
    }

    /// What was counted of the waits of threads for block devices.
    ///
    /// # Errors
    ///
    /// As of [`Kernel::block_stats`].
    pub fn block_waits(&self) -> Result<Vec<(BlockWaitKey, BlockWaitStats)>, BpfError> {
        self.blocks.waits.read_all()
    }

    /// Forgets what was counted of processes that have ended, but for what a CPU has at hand; by kind, file and wait. The places
    /// of distributions are given back with the next call, when no program can still write there.
    ///
    /// # Errors
    ///
    /// As of [`Kernel::block_stats`].
    pub fn forget_requests(
        &mut self,
        kinds: &[BlockKey],
        files: &[BlockFileKey],
        waits: &[BlockWaitKey],
    ) -> Result<(), BpfError> {
        if kinds.is_empty() && files.is_empty() && waits.is_empty() && self.blocks.given_up.is_empty() {
            return Ok(());
        }
        let blocks = &mut self.blocks;
        let failed = |name| move |error| BpfError::map("write", name, error);
        let (mut keys, mut of_files, mut places) = (HashSet::new(), HashSet::new(), HashSet::new());
        for index in 0..BLOCK_TALLIES {
            for Shared(tally) in blocks.tallies.get(&index, 0).map_err(failed("BLOCK_TALLIES"))?.iter() {
                keys.insert(tally.key);
                of_files.insert(tally.file_key());
                places.extend(tally.histograms.checked_sub(1));
            }
        }
        let none: Shared<BlockHistograms> = Shared([[0; _]; _]);
        for place in std::mem::take(&mut blocks.given_up) {
            if places.contains(&place) {
                blocks.given_up.push(place);
                continue;
            }
            let index = u32::try_from(place).unwrap_or(u32::MAX);
            blocks.histograms.set(index, none, 0).map_err(failed("BLOCK_HISTOGRAMS"))?;
            blocks.free.push(place, 0).map_err(failed("BLOCK_HISTOGRAMS_FREE"))?;
        }
        for key in kinds.iter().filter(|key| !keys.contains(key)) {
            blocks.given_up.extend(blocks.stats.take(key).map(|row| row.histograms));
        }
        files.iter().filter(|key| !of_files.contains(key)).for_each(|key| blocks.files.remove(key));
        waits.iter().for_each(|key| blocks.waits.remove(key));
        Ok(())
    }

    /// Requests that were seen to be made and not to be done: those that are under way, and those whose end was not seen.
    ///
    /// # Errors
    ///
    /// As of [`Kernel::block_stats`].
    pub fn blocks_left(&self) -> Result<u64, BpfError> {
        let mut left = 0;
        for index in 0..MAX_REQUESTS {
            let request = self.blocks.requests.get(&index, 0);
            let Shared(request) = request.map_err(|error| BpfError::map("read", "BLOCK_REQUESTS", error))?;
            left += u64::from(request.part != 0 && request.flags & UNASKED == 0);
        }
        Ok(left)
    }

    /// What could not be noted or counted.
    #[must_use]
    pub fn blocks_missed(&self, what: BlockMissed) -> u64 {
        self.blocks.missed.get(&(what as u32), 0).unwrap_or(0)
    }
}

/// The hooks that this machine needs.
fn hooks() -> impl Iterator<Item = (&'static str, &'static str)> {
    let issue = !times_are_kept();
    HOOKS.into_iter().filter(move |&(name, _)| name != ISSUE || issue)
}

/// Whether the kernel keeps of every device with requests when they were made, which it does where it keeps statistics of the
/// device. Source: `blk_mq_need_time_stamp` in block/blk-mq.c.
fn starts_are_kept() -> bool {
    let Ok(devices) = fs::read_dir("/sys/block") else { return false };
    devices
        .flatten()
        .map(|device| device.path())
        .filter(|device| device.join("mq").exists())
        .all(|device| fs::read(device.join("queue/iostats")).is_ok_and(|kept| kept.starts_with(b"1")))
}

/// Whether the kernel keeps of every device when its requests were given to it, which it does where it throttles write-back by
/// their times. Source: `QUEUE_FLAG_STATS`, `blk_mq_start_request` in block/blk-mq.c.
fn times_are_kept() -> bool {
    let Ok(devices) = fs::read_dir("/sys/block") else { return false };
    devices.flatten().all(|device| {
        let number = |file: &str| fs::read_to_string(device.path().join(file)).ok()?.trim().parse::<i64>().ok();
        number("size") == Some(0) || number("queue/wbt_lat_usec").is_some_and(|target| target > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_names_the_fields_of_its_requests() {
        let Ok(bytes) = fs::read("/sys/kernel/btf/vmlinux") else { return };
        let types = Types::parse(&bytes).unwrap();
        let found = offsets(&types).unwrap();
        assert_eq!(found.request_issued, found.request_start + 8);
        assert_eq!((found.vector_page, found.vector_size), (0, 16));
        // The eighth bit is the first of those that say more than one page has.
        assert!(found.folio_large_mask.is_power_of_two());
    }
}
