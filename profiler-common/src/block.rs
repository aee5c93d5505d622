//! Requests to block devices: their kinds, what is noted of one that is under way, what is counted of all, and where the
//! kernel keeps what is read of them.

use crate::event::{COMM_LEN, RecordKey, RecordValue};
use crate::file::FileId;
use crate::histogram::HISTOGRAM_BUCKETS;

/// Byte offsets of kernel fields, from the running kernel's BTF.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockOffsets {
    /// Address of `iomap_dio_bio_end_io`, which ends the requests of reads and writes that go past the page cache; 0 where it
    /// is not known.
    pub direct_end: u64,
    /// Address of `submit_bio_wait_endio`, which ends requests that a thread waits for at once; 0 where it is not known.
    pub awaited_end: u64,
    /// Address of `blkdev_bio_end_io_simple`, which did the same for devices that are read and written as files before Linux
    /// 6.5; 0 where there is none.
    pub task_end: u64,
    /// Address of `blk_throtl_dispatch_work_fn`, the work that makes the requests which a cgroup's limit has held back; 0
    /// where it is not known.
    pub throttler: u64,
    /// `request.cmd_flags`.
    pub request_flags: u32,
    /// `request.__data_len`.
    pub request_length: u32,
    /// `request.__sector`.
    pub request_sector: u32,
    /// `request.bio`.
    pub request_bio: u32,
    /// `request.start_time_ns`.
    pub request_start: u32,
    /// `request.io_start_time_ns`.
    pub request_issued: u32,
    /// `bio.bi_next`.
    pub bio_next: u32,
    /// `bio.bi_bdev`.
    pub bio_device: u32,
    /// `bio.bi_opf`.
    pub bio_flags: u32,
    /// `bio.bi_iter.bi_size`.
    pub bio_size: u32,
    /// `bio.bi_iter.bi_idx`.
    pub bio_index: u32,
    /// `bio.bi_io_vec`.
    pub bio_pages: u32,
    /// `bio.bi_end_io`.
    pub bio_end: u32,
    /// `bio.bi_private`.
    pub bio_private: u32,
    /// `bio.bi_blkg`; 0 where the kernel has no groups of block I/O, as of the next three.
    pub bio_group: u32,
    /// `blkcg_gq.blkcg`.
    pub group_owner: u32,
    /// `blkcg.css.cgroup`.
    pub owner_cgroup: u32,
    /// `cgroup.kn`.
    pub cgroup_node: u32,
    /// `kernfs_node.id`.
    pub node_id: u32,
    /// `block_device.bd_dev`.
    pub device_number: u32,
    /// `bio_vec.bv_page`.
    pub vector_page: u32,
    /// Size of a `bio_vec`.
    pub vector_size: u32,
    /// `page.compound_head`.
    pub page_head: u32,
    /// `page.mapping`.
    pub page_mapping: u32,
    /// `address_space.host`.
    pub mapping_host: u32,
    /// `iomap_dio.iocb`.
    pub direct_call: u32,
    /// `kiocb.ki_filp`.
    pub call_file: u32,
    /// `file.f_inode`.
    pub file_inode: u32,
    /// `folio.flags`.
    pub folio_flags: u32,
    /// The bit of it that says that a folio has more than one page.
    pub folio_large_mask: u32,
    /// The byte of a folio of more than one page with the power of two that they are.
    pub folio_order: u32,
    /// `iomap_dio.submit.waiter`.
    pub direct_waiter: u32,
    /// `completion.wait.task_list.next`: where the first that waits is linked.
    pub completion_first: u32,
    /// `swait_queue.task_list`, which is linked there.
    pub waiter_link: u32,
    /// `swait_queue.task`.
    pub waiter_task: u32,
    /// `task_struct.worker_private`.
    pub task_worker: u32,
    /// `kthread.data`.
    pub kthread_data: u32,
    /// `worker.current_func`.
    pub worker_function: u32,
    /// 1 where the program that notes when requests are given to their devices is attached.
    pub issue_is_noted: u32,
    /// Numbers of the types `iomap_dio` and `inode`, where the verifier can be told them: see [`CAST`].
    pub direct_type: u32,
    /// See there.
    pub inode_type: u32,
    /// Zero.
    pub reserved: u32,
}

impl BlockOffsets {
    /// The value the object carries before user space replaces it.
    pub const UNSET: Self = Self {
        direct_end: 0,
        awaited_end: 0,
        task_end: 0,
        throttler: 0,
        request_flags: 0,
        request_length: 0,
        request_sector: 0,
        request_bio: 0,
        request_start: 0,
        request_issued: 0,
        bio_next: 0,
        bio_device: 0,
        bio_flags: 0,
        bio_size: 0,
        bio_index: 0,
        bio_pages: 0,
        bio_end: 0,
        bio_private: 0,
        bio_group: 0,
        group_owner: 0,
        owner_cgroup: 0,
        cgroup_node: 0,
        node_id: 0,
        device_number: 0,
        vector_page: 0,
        vector_size: 0,
        page_head: 0,
        page_mapping: 0,
        mapping_host: 0,
        direct_call: 0,
        call_file: 0,
        file_inode: 0,
        folio_flags: 0,
        folio_large_mask: 0,
        folio_order: 0,
        direct_waiter: 0,
        completion_first: 0,
        waiter_link: 0,
        waiter_task: 0,
        task_worker: 0,
        kthread_data: 0,
        worker_function: 0,
        issue_is_noted: 0,
        direct_type: 0,
        inode_type: 0,
        reserved: 0,
    };
}

/// Stands in the object for the number of `bpf_rdonly_cast` (Linux 6.2), which tells the verifier the type of an address: what is
/// behind it is then read without a call. User space replaces it when it loads the object; it is no helper's number.
pub const CAST: u32 = 0x0ca5_7000;

/// Bytes of a `request` and of a `bio` that are read at once: every field is in them.
pub const STRUCT_BYTES: usize = 160;

/// What a request does.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockOperation {
    /// Reads what somebody waits for.
    Read = 1,
    /// Reads ahead of who reads.
    ReadAhead = 2,
    /// Reads what the file system keeps of itself.
    ReadMetadata = 3,
    /// Writes nobody waits for.
    Write = 4,
    /// Writes what somebody waits for.
    SyncWrite = 5,
    /// Writes what the file system keeps of itself.
    WriteMetadata = 6,
    /// Makes the device empty its cache.
    Flush = 7,
    /// Tells the device what is not needed any more.
    Discard = 8,
    /// Anything else.
    Other = 9,
}

/// Names of what requests do, by number from 1: the reasons of the origin.
pub const BLOCK_OPERATIONS: [&str; 9] =
    ["read", "readahead", "metadata read", "write", "sync write", "metadata write", "flush", "discard", "other"];

/// Operations and flags of a request. Source: include/linux/blk_types.h, the same since Linux 4.10.
mod flags {
    pub(super) const OPERATION: u32 = 0xff;
    pub(super) const READ: u32 = 0;
    pub(super) const WRITE: u32 = 1;
    pub(super) const FLUSH: u32 = 2;
    pub(super) const DISCARD: u32 = 3;
    pub(super) const SECURE_ERASE: u32 = 5;
    pub(super) const SYNC: u32 = 1 << 11;
    pub(super) const METADATA: u32 = 1 << 12;
    pub(super) const READ_AHEAD: u32 = 1 << 19;
}

/// Requests that a program makes of a device's driver itself, past all that is traced here.
pub const PASSTHROUGH: [u32; 2] = [34, 35];

impl BlockOperation {
    /// What a request with these flags does to so many bytes.
    #[inline(always)]
    #[must_use]
    pub const fn of(request: u32, bytes: u32) -> Self {
        match request & flags::OPERATION {
            flags::READ if request & flags::METADATA != 0 => Self::ReadMetadata,
            flags::READ if request & flags::READ_AHEAD != 0 => Self::ReadAhead,
            flags::READ => Self::Read,
            // The kernel takes the flag of a flush off before it makes one.
            flags::WRITE if bytes == 0 => Self::Flush,
            flags::WRITE if request & flags::METADATA != 0 => Self::WriteMetadata,
            flags::WRITE if request & flags::SYNC != 0 => Self::SyncWrite,
            flags::WRITE => Self::Write,
            flags::FLUSH => Self::Flush,
            flags::DISCARD | flags::SECURE_ERASE => Self::Discard,
            _ => Self::Other,
        }
    }
}

/// Whether a request with these flags writes.
#[inline(always)]
#[must_use]
pub const fn is_write(request: u32) -> bool {
    request & flags::OPERATION == flags::WRITE
}

/// Most bytes of the requests of a size class, but of the last; the first is of those without any.
pub const SIZE_CLASSES: [u32; 7] = [0, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, u32::MAX];

/// Names of the size classes.
pub const SIZE_NAMES: [&str; 7] = ["none", "<= 4 KiB", "<= 16 KiB", "<= 64 KiB", "<= 256 KiB", "<= 1 MiB", "> 1 MiB"];

/// The size class of so many bytes: an index of [`SIZE_CLASSES`].
#[inline(always)]
#[must_use]
pub const fn size_class(bytes: u32) -> u16 {
    let mut class = 0;
    while class < SIZE_CLASSES.len() - 1 && bytes > SIZE_CLASSES[class] {
        class += 1;
    }
    class as u16
}

/// Who asked for a request, and the record that it is added to when it is done. First what is read of each request.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asker {
    /// Start of his process since boot, ns.
    pub start_time_ns: u64,
    /// The process, as the profiler's pid namespace numbers it.
    pub pid: u32,
    /// Programs that it had executed.
    pub exec_count: u32,
    /// Requests that the record stands for; 0 where the request is in no profile.
    pub weight: u32,
    /// Why it is in none though it was chosen: an [`Outcome`](crate::counters::Outcome); 0 where it is.
    pub lost: u32,
    /// The record's key where there is one: process, thread and chains, which were sent when he asked.
    pub key: RecordKey,
    /// The record's value without the columns; of all of them the process's name.
    pub value: RecordValue,
}

/// A request under way: an element of the `BLOCK_REQUESTS` map, which is an array with [`REQUEST_PLACES`] places for each.
///
/// One CPU makes requests and another one may be told of their ends: what both write is in the first 64 bytes, which they hand
/// to each other at once.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockRequest {
    /// Address of its first part (`struct bio`); 0 where the element is free.
    pub part: u64,
    /// When it was made, in ns of the monotonic clock, where the kernel does not keep that; 0 otherwise.
    pub made_ns: u64,
    /// When it was given to the device, where the kernel does not keep that.
    pub issued_ns: u64,
    /// When it was made in ticks of the kernel, always: the lower half.
    pub made_ticks: u32,
    /// Bytes of it that were done before the rest.
    pub done_bytes: u32,
    /// The thread, as the initial pid namespace numbers it.
    pub tid: u32,
    /// [`THROTTLED`] and the like.
    pub flags: u32,
    /// Who made it.
    pub asker: Asker,
}

/// A cgroup's limit had held the request back.
pub const THROTTLED: u32 = 1;

/// A thread of the kernel made the request.
pub const OF_KERNEL: u32 = 2;

/// Who made the request was not asked for: only its times are known, should those have been who made dirty what it writes.
pub const UNASKED: u32 = 4;

/// A part of the request failed, and the rest went on.
pub const FAILED: u32 = 8;

/// Elements of the `BLOCK_REQUESTS` map, a power of two: 1.5 MB.
pub const MAX_REQUESTS: u32 = 8192;

/// Elements that a request may have.
pub const REQUEST_PLACES: u32 = 4;

/// The places together that something at this address may have: see [`place`].
#[inline(always)]
#[must_use]
pub const fn group(address: u64, elements: u32) -> u32 {
    place(address, 0, elements) / REQUEST_PLACES
}

/// Index of one of the elements, of a power of two of them, that something at this address may have.
#[inline(always)]
#[must_use]
pub const fn place(address: u64, place: u32, elements: u32) -> u32 {
    // The upper half of a product with the golden ratio: addresses are multiples of their size.
    let hash = (address.wrapping_mul(crate::event::HASH_SEED) >> 32) as u32;
    ((hash & !(REQUEST_PLACES - 1)) + place) & (elements - 1)
}

/// A thread that waits for a block device, as the kernel counts it: an element of the `BLOCK_WAITERS` map, placed as
/// [`BlockRequest`] by its number. Whose they are is in the `BLOCK_WAITING` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockWaiter {
    /// The thread, as the initial pid namespace numbers it.
    pub tid: u64,
    /// Since when it waits, in ns of the monotonic clock.
    pub since_ns: u64,
    /// Of its request that was done last: when it was made, was given to the device and was done; 0 where none was.
    pub made_ns: u64,
    /// See there.
    pub issued_ns: u64,
    /// See there.
    pub done_ns: u64,
    /// 1 when a cgroup's limit had held that one back.
    pub throttled: u64,
    /// Its number where it was slow; 0 otherwise.
    pub slow: u64,
    /// Who it is, and his chains where he had made no request before he waited: it may be held back.
    pub asker: Asker,
}

/// Elements of the `BLOCK_WAITERS` map, a power of two: 0.8 MB.
pub const MAX_WAITERS: u32 = 4096;

/// Parts of a wait, and first all of it: until the request was made, by a cgroup's limit or otherwise; until it was given to
/// the device; until it was done; until the thread was back on a CPU.
pub const WAIT_PARTS: [&str; 6] = ["total", "throttled", "held", "queue", "device", "wake_up"];

/// Waits that are counted together: a key of the `BLOCK_WAITS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockWaitKey {
    /// Start of the process since boot, ns.
    pub start_time_ns: u64,
    /// The process.
    pub pid: u32,
    /// Programs that it had executed.
    pub exec_count: u32,
}

/// What was counted of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockWaitStats {
    /// Waits that have ended.
    pub waits: u64,
    /// Those that were held back by a cgroup's limit.
    pub throttled: u64,
    /// Sums of their parts, ns.
    pub sums_ns: [u64; WAIT_PARTS.len()],
    /// The longest, ns.
    pub max_ns: [u64; WAIT_PARTS.len()],
    /// The process's name.
    pub process_comm: [u8; COMM_LEN],
    /// How many took how long: see [`crate::histogram`].
    pub histograms: [[u32; HISTOGRAM_BUCKETS]; WAIT_PARTS.len()],
}

/// Entries of the `BLOCK_WAITS` map: 6 MB.
pub const MAX_BLOCK_WAITS: u32 = 512;

/// A file with pages that were written to and not yet back to the device: an element of the `DIRTY_FILES` map, placed as
/// [`BlockRequest`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirtyFile {
    /// Address of its inode; 0 in an element that is free.
    pub inode: u64,
    /// Number of its inode, and what tells it from an earlier one of that number: the address may be used again.
    pub number: u64,
    /// See there.
    pub generation: u64,
    /// When it was written to last, in ns of the monotonic clock.
    pub written_ns: u64,
    /// Who did, in no order.
    pub dirtiers: [Dirtier; MAX_DIRTIERS],
}

/// A process that has written to a file.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dirtier {
    /// Tells his process from any other: a hash of its number and start; 0 in one that is free.
    pub process: u64,
    /// It.
    pub asker: Asker,
    /// Bytes of its pages that are still to be written back.
    pub bytes: u64,
    /// When it began to have some, in ns of the monotonic clock: whose are older is written back first.
    pub since_ns: u64,
}

/// Processes that a file's pages are told apart by.
pub const MAX_DIRTIERS: usize = 8;

/// Elements of the `DIRTY_FILES` map, a power of two: 5.9 MB.
pub const MAX_DIRTY_FILES: u32 = 4096;

/// Requests that are counted together: a key of the `BLOCK_STATS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockKey {
    /// Start of the process since boot, ns.
    pub start_time_ns: u64,
    /// The cgroup that the kernel charges; 0 where it knows none.
    pub cgroup: u64,
    /// The process, as the profiler's pid namespace numbers it; 0 where nobody knows who asked.
    pub pid: u32,
    /// Programs that it had executed.
    pub exec_count: u32,
    /// Device, as the kernel writes it: 12 bits, then 20.
    pub device: u32,
    /// A [`BlockOperation`].
    pub operation: u16,
    /// A [`size_class`].
    pub size: u16,
}

/// Times of a request that are counted, [`BlockStats::histograms`]: from when it was made until it was done, until it was
/// given to the device, and from then on.
pub const BLOCK_TIMES: [&str; 3] = ["total", "queue", "device"];

/// What is counted of them, but for distributions.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockCounts {
    /// Requests that are done.
    pub requests: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those of them that failed.
    pub errors: u64,
    /// Those that go on where the one before on their device ended.
    pub sequential: u64,
    /// Sums of all of their time and of that in a queue, ns; the rest is the device's.
    pub total_ns: u64,
    /// See there.
    pub queue_ns: u64,
    /// The longest of their times, ns.
    pub max_ns: [u64; BLOCK_TIMES.len()],
}

/// How many took how long, see [`crate::histogram`]: of those that were given to the device at once, all that they took; of the
/// others each of [`BLOCK_TIMES`]. Most are of the first kind, and CPUs that write to the same memory wait for each other.
pub type BlockHistograms = [[u32; HISTOGRAM_BUCKETS]; 1 + BLOCK_TIMES.len()];

/// A value of the `BLOCK_STATS` map: what CPUs have counted before they turned to others, see [`BlockTally`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockRow {
    /// The counts.
    pub counts: BlockCounts,
    /// Where the distributions are: an element of the `BLOCK_HISTOGRAMS` map.
    pub histograms: u64,
    /// The process's name.
    pub process_comm: [u8; COMM_LEN],
}

/// What a CPU counts of requests of one kind, and of one file, until it turns to others: an element of the `BLOCK_TALLIES` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockTally {
    /// Which.
    pub key: BlockKey,
    /// And of which file; no inode where they are of none.
    pub file: FileId,
    /// As of their row, plus 1; 0 where they have none.
    pub histograms: u64,
    /// Requests that had been counted in the row of the file before, plus 1; 0 where they have none.
    pub of_file: u64,
    /// What was counted since.
    pub counts: BlockCounts,
}

impl BlockTally {
    /// The row of the file.
    #[inline(always)]
    #[must_use]
    pub const fn file_key(&self) -> BlockFileKey {
        let BlockKey { start_time_ns, pid, operation, .. } = self.key;
        BlockFileKey { file: self.file, start_time_ns, pid, operation, reserved: 0 }
    }
}

/// Elements of the `BLOCK_TALLIES` map on each CPU, a power of two: 11 KB.
pub const BLOCK_TALLIES: u32 = 64;

/// What was counted of requests of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockStats {
    /// By all CPUs.
    pub counts: BlockCounts,
    /// The process's name.
    pub process_comm: [u8; COMM_LEN],
    /// How many took how long.
    pub histograms: BlockHistograms,
}

impl BlockCounts {
    /// Adds what another CPU has counted.
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.sequential += other.sequential;
        self.total_ns += other.total_ns;
        self.queue_ns += other.queue_ns;
        for (max, &other) in self.max_ns.iter_mut().zip(&other.max_ns) {
            *max = (*max).max(other);
        }
    }
}

/// Entries of the `BLOCK_STATS` map, and elements of the `BLOCK_HISTOGRAMS` map: 17 MB.
pub const MAX_BLOCK_STATS: u32 = 2048;

impl BlockStats {
    /// How many took how long, by [`BLOCK_TIMES`] and bucket.
    pub fn counts(&self) -> [[u64; HISTOGRAM_BUCKETS]; BLOCK_TIMES.len()] {
        let [at_once, others @ ..] = &self.histograms;
        let mut counts = others.map(|histogram| histogram.map(u64::from));
        for (bucket, &requests) in at_once.iter().enumerate() {
            let requests = u64::from(requests);
            counts[0][bucket] += requests;
            counts[1][0] += requests;
            counts[2][bucket] += requests;
        }
        counts
    }
}

/// Requests of a file: a key of the `BLOCK_FILES` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockFileKey {
    /// The file.
    pub file: FileId,
    /// Start of the process since boot, ns.
    pub start_time_ns: u64,
    /// The process.
    pub pid: u32,
    /// A [`BlockOperation`].
    pub operation: u16,
    /// Zero.
    pub reserved: u16,
}

/// What was counted of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockFileStats {
    /// Requests that are done.
    pub requests: u64,
    /// Bytes.
    pub bytes: u64,
    /// From when they were made until they were done, ns.
    pub total_ns: u64,
    /// The longest, ns.
    pub max_ns: u64,
    /// The process's name.
    pub process_comm: [u8; COMM_LEN],
}

/// Entries of the `BLOCK_FILES` map: 1 MB.
pub const MAX_BLOCK_FILES: u32 = 8192;

/// A request that took long, as it is sent to user space when it is done.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlowRequest {
    /// [`crate::event::RING_SLOW`].
    pub kind: u16,
    /// A [`BlockOperation`].
    pub operation: u16,
    /// Device, as the kernel writes it.
    pub device: u32,
    /// Its number, from 1: the span of its record, where it has one.
    pub number: u64,
    /// When it was done, in ns of the monotonic clock.
    pub done_ns: u64,
    /// Where it begins, in sectors of 512 bytes.
    pub sector: u64,
    /// Its times: see [`BLOCK_TIMES`].
    pub times_ns: [u64; BLOCK_TIMES.len()],
    /// The file; no inode where it has none.
    pub file: FileId,
    /// Its bytes.
    pub bytes: u32,
    /// Who asked; 0 where nobody knows.
    pub pid: u32,
    /// And on which thread, where its stack was walked.
    pub tid: u32,
    /// Zero.
    pub reserved: u32,
    /// The process's name.
    pub process_comm: [u8; COMM_LEN],
}

/// How long it took a thread to be back on a CPU once its slow request was done, as it is sent to user space.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlowWakeUp {
    /// [`crate::event::RING_SLOW_WAKE_UP`].
    pub kind: u16,
    /// Zero.
    pub reserved: [u16; 3],
    /// Number of the request.
    pub number: u64,
    /// How long, ns.
    pub wake_up_ns: u64,
}

/// Slow requests that are sent, at most: the first. Each has a sample of its own in the profile.
pub const MAX_SLOW: u64 = 10_000;

/// What the programs could not note: elements of the `BLOCKS_MISSED` map.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockMissed {
    /// Requests in no row of the table, for want of room.
    Stats = 0,
    /// Requests of files in no row of the table of files.
    Files = 1,
    /// Requests under way whose asker was forgotten, for want of room, or cannot be told: a cgroup's limit held it back.
    Requests = 2,
    /// Files and processes whose writes to the page cache could not be noted.
    Dirtiers = 3,
    /// Waits that could not be noted, or are in no row of the table.
    Waits = 4,
    /// Slow requests, whether they were sent or not.
    Slow = 5,
    /// Slow requests that were not sent for want of room in the ring.
    SlowLost = 6,
    /// Requests whose end was not seen: the kernel did not run the program.
    Ends = 7,
}

impl BlockMissed {
    /// How many there are.
    pub const COUNT: usize = 8;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_numbered_as_named() {
        assert_eq!(BLOCK_OPERATIONS[BlockOperation::Read as usize - 1], "read");
        assert_eq!(BLOCK_OPERATIONS[BlockOperation::SyncWrite as usize - 1], "sync write");
        assert_eq!(BLOCK_OPERATIONS[BlockOperation::Other as usize - 1], "other");
    }

    #[test]
    fn flags_make_an_operation() {
        use BlockOperation as Is;
        for (request, bytes, operation) in [
            (0, 4096, Is::Read),
            (flags::READ_AHEAD, 4096, Is::ReadAhead),
            (flags::METADATA | flags::SYNC, 4096, Is::ReadMetadata),
            (1, 4096, Is::Write),
            (1 | flags::SYNC, 4096, Is::SyncWrite),
            (1 | flags::SYNC, 0, Is::Flush),
            (1 | flags::METADATA, 4096, Is::WriteMetadata),
            (2, 0, Is::Flush),
            (3, 1 << 20, Is::Discard),
            (9, 1 << 20, Is::Other),
        ] {
            assert_eq!(BlockOperation::of(request, bytes), operation, "{request:#x}");
        }
    }

    #[test]
    fn sizes_have_a_class_each() {
        for (bytes, class) in [(0, 0), (1, 1), (4096, 1), (4097, 2), (1 << 20, 5), ((1 << 20) + 1, 6), (u32::MAX, 6)] {
            assert_eq!(size_class(bytes), class, "{bytes}");
        }
    }

    #[test]
    fn layouts_have_no_hidden_padding() {
        assert_eq!(size_of::<BlockOffsets>(), 4 * 8 + 42 * 4);
        assert_eq!(size_of::<Asker>(), 24 + size_of::<RecordKey>() + size_of::<RecordValue>());
        assert_eq!(size_of::<BlockRequest>(), 3 * 64);
        assert_eq!(core::mem::offset_of!(BlockRequest, asker) + core::mem::offset_of!(Asker, key), 64);
        assert_eq!(size_of::<DirtyFile>(), 32 + MAX_DIRTIERS * (24 + size_of::<Asker>()));
        assert_eq!(size_of::<BlockKey>(), 2 * 8 + 3 * 4 + 4);
        assert_eq!(size_of::<BlockRow>(), 10 * 8 + COMM_LEN);
        assert_eq!(size_of::<BlockTally>(), size_of::<BlockKey>() + 16 + 11 * 8);
        assert_eq!(size_of::<BlockWaiter>(), 7 * 8 + size_of::<Asker>());
        assert_eq!(size_of::<BlockWaitStats>(), 14 * 8 + COMM_LEN + 6 * 4 * HISTOGRAM_BUCKETS);
        assert_eq!(size_of::<SlowRequest>(), 8 + 6 * 8 + 32 + COMM_LEN);
        assert_eq!(size_of::<SlowWakeUp>(), 24);
        assert_eq!(size_of::<BlockFileKey>(), 32);
        assert_eq!(size_of::<BlockFileStats>(), 32 + COMM_LEN);
    }
}
