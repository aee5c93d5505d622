//! Files: what is done to them, what is noted and counted of it, and where the kernel keeps what is read of them.

use crate::event::COMM_LEN;
use crate::histogram::HISTOGRAM_BUCKETS;

/// Byte offsets of kernel fields, from the running kernel's BTF.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileOffsets {
    /// `inode.i_ino`.
    pub inode_number: u32,
    /// `inode.i_generation`.
    pub inode_generation: u32,
    /// `inode.i_sb`.
    pub inode_super_block: u32,
    /// `inode.i_dentry.first`: the names that the kernel has in memory.
    pub inode_names: u32,
    /// `super_block.s_dev`.
    pub super_block_device: u32,
    /// `dentry.d_u.d_alias`: where the next of a file's names is linked.
    pub dentry_link: u32,
    /// `dentry.d_parent`.
    pub dentry_parent: u32,
    /// `dentry.d_name.name`.
    pub dentry_name: u32,
    /// `dentry.d_hash.pprev`: nothing where the name is not in its directory any more.
    pub dentry_hashed: u32,
    /// `inode.i_mode`.
    pub inode_mode: u32,
    /// `inode.i_nlink`.
    pub inode_links: u32,
    /// `file.f_inode`.
    pub file_inode: u32,
    /// `file.f_path.dentry`.
    pub file_dentry: u32,
    /// `task_struct.files`.
    pub task_files: u32,
    /// `files_struct.fdt`.
    pub files_table: u32,
    /// `fdtable.max_fds`.
    pub table_size: u32,
    /// `fdtable.fd`.
    pub table_files: u32,
    /// `io_kiocb.file`.
    pub request_file: u32,
    /// `io_kiocb.opcode`.
    pub request_operation: u32,
    /// `io_kiocb.cqe.res`; 0 where the kernel has none (before Linux 5.19): requests of `io_uring` are not recorded then.
    pub request_result: u32,
    /// `file.f_mapping`.
    pub file_mapping: u32,
    /// `file.f_flags`.
    pub file_flags: u32,
    /// `address_space.host`.
    pub mapping_host: u32,
    /// `address_space.nrpages`.
    pub mapping_pages: u32,
    /// `folio.mapping`.
    pub folio_mapping: u32,
    /// `folio.flags`.
    pub folio_flags: u32,
    /// The bit of `PG_head` in it: the folio has more than one page.
    pub folio_large_mask: u32,
    /// `folio._nr_pages` (`_folio_nr_pages` before Linux 6.14); 0 where the kernel has none.
    pub folio_pages: u32,
    /// Zero.
    pub reserved: u32,
}

impl FileOffsets {
    /// The value the object carries before user space replaces it.
    pub const UNSET: Self = Self {
        inode_number: 0,
        inode_generation: 0,
        inode_super_block: 0,
        inode_names: 0,
        super_block_device: 0,
        dentry_link: 0,
        dentry_parent: 0,
        dentry_name: 0,
        dentry_hashed: 0,
        inode_mode: 0,
        inode_links: 0,
        file_inode: 0,
        file_dentry: 0,
        task_files: 0,
        files_table: 0,
        table_size: 0,
        table_files: 0,
        request_file: 0,
        request_operation: 0,
        request_result: 0,
        file_mapping: 0,
        file_flags: 0,
        mapping_host: 0,
        mapping_pages: 0,
        folio_mapping: 0,
        folio_flags: 0,
        folio_large_mask: 0,
        folio_pages: 0,
        reserved: 0,
    };
}

/// A file, whatever it is called.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// Number of its inode.
    pub inode: u64,
    /// Device of its file system, as the kernel writes it: 12 bits, then 20.
    pub device: u32,
    /// What tells it from an earlier file with the same inode number, where the file system keeps that.
    pub generation: u32,
}

impl FileId {
    /// The device's two numbers.
    #[must_use]
    pub const fn device_numbers(self) -> (u32, u32) {
        (self.device >> 20, self.device & 0xf_ffff)
    }
}

/// Bytes of a path in a [`FileNameRecord`], at most.
pub const MAX_NAME_BYTES: usize = 4096;

/// Bytes of one name in a path, with the zero that ends it. Source: `NAME_MAX`, include/uapi/linux/limits.h.
pub const MAX_COMPONENT_BYTES: usize = 256;

/// Names in a path, at most.
pub const MAX_COMPONENTS: usize = 40;

/// The path of a file up to the root of its file system, sent once at its own length.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FileNameRecord {
    /// [`crate::event::RING_FILE_NAME`].
    pub kind: u16,
    /// [`FILE_DELETED`], [`NAME_CUT`].
    pub flags: u16,
    /// Bytes of `names` used.
    pub bytes: u32,
    /// The file.
    pub id: FileId,
    /// A process that uses it, as the profiler's pid namespace numbers it; 0 when that is not known.
    pub pid: u32,
    /// With [`FILE_RENAMED`]: the descriptor of the directory that the path begins at. Else 0.
    pub directory: i32,
    /// The names in the path, the file's own first, a zero after each. Room for one more than is used.
    pub names: [u8; MAX_NAME_BYTES + MAX_COMPONENT_BYTES],
}

/// The name is not in its directory any more.
pub const FILE_DELETED: u16 = 1;

/// The path goes on.
pub const NAME_CUT: u16 = 2;

/// Not the name of a known file, but the path that a process gave a file as its new name: all of it in the first name.
pub const FILE_RENAMED: u16 = 4;

/// Names that are sent in a window, at most: a process that makes ever more files must not keep the ring for itself.
pub const MAX_NAMES_IN_A_WINDOW: u64 = 4_096;

/// Files whose names the programs remember to have sent.
pub const MAX_SEEN_FILES: u32 = 16_384;

/// What is done to a file.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileOperation {
    /// Reads of any kind.
    Read = 1,
    /// Writes of any kind.
    Write = 2,
    /// Waits until what was written is on its device.
    Sync = 3,
    /// Opens it.
    Open = 4,
    /// Gives it another name.
    Rename = 5,
    /// Writes to memory that it is mapped to, by page.
    MappedWrite = 6,
}

/// Names of what is done to files, by number from 1: the reasons of the origin.
pub const FILE_OPERATIONS: [&str; 6] = ["read", "write", "sync", "open", "rename", "mapped write"];

/// What a system call does to the files that it is given.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileCallKind {
    /// Reads from its first argument, a descriptor.
    Read = 1,
    /// Writes to its first argument.
    Write = 2,
    /// Waits until what was written to its first argument is on the device.
    Sync = 3,
    /// Returns a descriptor.
    Open = 4,
    /// Gives a file another name.
    Rename = 5,
    /// Reads from its second argument and writes to its first.
    Send = 6,
    /// Reads from its first argument and writes to its third.
    Copy = 7,
}

impl FileCallKind {
    /// What the system call of a number does; `None` when it does nothing to files that is recorded.
    #[inline(always)]
    #[must_use]
    pub const fn of(number: u32) -> Option<Self> {
        match number {
            // read, pread64, readv, preadv, preadv2
            0 | 17 | 19 | 295 | 327 => Some(Self::Read),
            // write, pwrite64, writev, pwritev, pwritev2
            1 | 18 | 20 | 296 | 328 => Some(Self::Write),
            // fsync, fdatasync, sync_file_range
            74 | 75 | 277 => Some(Self::Sync),
            // open, creat, openat, openat2
            2 | 85 | 257 | 437 => Some(Self::Open),
            // rename, renameat, renameat2
            82 | 264 | 316 => Some(Self::Rename),
            // sendfile
            40 => Some(Self::Send),
            // splice, copy_file_range
            275 | 326 => Some(Self::Copy),
            _ => None,
        }
    }
}

impl FileOperation {
    /// What a request of `io_uring` does by its number; `None` when it is none that is recorded. Source: `enum io_uring_op`,
    /// include/uapi/linux/io_uring.h.
    #[inline(always)]
    #[must_use]
    pub const fn of_request(number: u32) -> Option<Self> {
        match number {
            // READV, READ_FIXED, READ, READ_MULTISHOT, READV_FIXED
            1 | 4 | 22 | 49 | 60 => Some(Self::Read),
            // WRITEV, WRITE_FIXED, WRITE, WRITEV_FIXED
            2 | 5 | 23 | 61 => Some(Self::Write),
            // FSYNC, SYNC_FILE_RANGE
            3 | 8 => Some(Self::Sync),
            _ => None,
        }
    }
}

/// A request of `io_uring` that was submitted: an element of the `FILE_REQUESTS` map. A later one may take its place.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileRequest {
    /// Address of the kernel's structure of it.
    pub address: u64,
    /// When, in ns of the monotonic clock.
    pub since_ns: u64,
}

/// Elements of the `FILE_REQUESTS` map: 256 KB.
pub const MAX_FILE_REQUESTS: u32 = 1 << 14;

impl FileRequest {
    /// Index of the element of a request. The factor is the golden ratio's: addresses are multiples of the same number.
    #[inline(always)]
    #[must_use]
    pub const fn place(address: u64) -> u32 {
        (address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u32 & (MAX_FILE_REQUESTS - 1)
    }
}

/// A file that a system call was given, or has opened.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsedFile {
    /// Address of its `struct file`; 0 where that is not known.
    pub file: u64,
    /// Address of its inode; 0 where there is none, or where it is no file but a socket or the like.
    pub inode: u64,
    /// Which file it is.
    pub id: FileId,
    /// 1 when it has no name any more.
    pub is_deleted: u32,
    /// Zero.
    pub reserved: u32,
}

/// A thread that was asked for, since its first call for a file: an element of the `FILE_CALLS` map, which is an array as
/// `WAITS` is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileCall {
    /// When it began its call, in ns of the monotonic clock; 0 outside one, and in one that is for no file.
    pub since_ns: u64,
    /// Start of its process since boot, ns.
    pub start_time_ns: u64,
    /// What it reads, writes or syncs.
    pub file: UsedFile,
    /// Where a call that reads one file and writes another writes to.
    pub target: UsedFile,
    /// What a request of `io_uring` or a page is of: not of the call.
    pub other: UsedFile,
    /// The thread, as the initial pid namespace numbers it; 0 in an element that is free.
    pub tid: u32,
    /// Its process, as the profiler's pid namespace numbers it.
    pub pid: u32,
    /// A [`FileCallKind`].
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
}

/// A file that a process uses: a key of the `FILE_STATS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileKey {
    /// Start of the process since boot, ns: tells a reused pid apart.
    pub start_time_ns: u64,
    /// The process, as the profiler's pid namespace numbers it.
    pub pid: u32,
    /// Programs that it had executed.
    pub exec_count: u32,
    /// The file.
    pub file: FileId,
}

/// What was counted of one operation.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OperationStats {
    /// How often it ended, with or without an error.
    pub operations: u64,
    /// How often with one.
    pub errors: u64,
    /// Bytes that were moved.
    pub bytes: u64,
    /// Time in it, ns.
    pub total_ns: u64,
    /// The longest, ns.
    pub max_ns: u64,
}

/// Room for operations in [`FileStats`], by number less 1: a power of two.
pub const OPERATIONS: usize = 8;

/// Operations that have a histogram, the first ones: reads, writes and syncs. A power of two has room for them.
pub const TIMED_OPERATIONS: usize = 3;

/// What a process has done to a file.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStats {
    /// By [`FileOperation`], from 1.
    pub by_operation: [OperationStats; OPERATIONS],
    /// Where the histogram of how long each operation took is in the `FILE_HISTOGRAMS` map, from 1; 0 where there is none.
    pub histograms: [u32; TIMED_OPERATIONS + 1],
    /// The process's name when it first used the file.
    pub process_comm: [u8; COMM_LEN],
    /// Pages of the page cache that reads of it took, found there or not.
    pub pages_read: u64,
    /// Pages that came to the page cache for them.
    pub pages_added: u64,
    /// Pages that came for faults.
    pub pages_faulted: u64,
    /// 1 once the file had no name any more.
    pub is_deleted: u64,
}

/// How many operations took how long: see [`crate::histogram`].
pub type FileHistogram = [u64; HISTOGRAM_BUCKETS];

/// Bytes of a page. Source: x86-64.
pub const PAGE_BYTES: u64 = 4096;

/// Entries of the `FILE_STATS` map, which are allocated as they come: 29 MB when it is full.
pub const MAX_FILE_STATS: u32 = 1 << 16;

/// Elements of the `FILE_HISTOGRAMS` map: 16 MB.
pub const MAX_FILE_HISTOGRAMS: u32 = 4096;

/// What found no room: elements of the `FILES_MISSED` map.
pub mod files_missed {
    /// Operations that [`MAX_FILE_STATS`](super::MAX_FILE_STATS) left no room for.
    pub const OPERATIONS: u32 = 0;
    /// Operations that [`MAX_FILE_HISTOGRAMS`](super::MAX_FILE_HISTOGRAMS) left no room for.
    pub const TIMES: u32 = 1;
    /// How many there are.
    pub const COUNT: u32 = 2;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_numbered_as_named() {
        assert_eq!(FILE_OPERATIONS[FileOperation::Read as usize - 1], "read");
        assert_eq!(FILE_OPERATIONS[FileOperation::MappedWrite as usize - 1], "mapped write");
    }

    #[test]
    fn calls_are_those_of_their_numbers() {
        let named = |kind| {
            let numbers = (0..).zip(crate::system_call::SYSTEM_CALLS);
            numbers.filter(move |(number, _)| FileCallKind::of(*number) == Some(kind)).map(|(_, name)| name)
        };
        assert!(named(FileCallKind::Read).eq(["read", "pread64", "readv", "preadv", "preadv2"]));
        assert!(named(FileCallKind::Write).eq(["write", "pwrite64", "writev", "pwritev", "pwritev2"]));
        assert!(named(FileCallKind::Sync).eq(["fsync", "fdatasync", "sync_file_range"]));
        assert!(named(FileCallKind::Open).eq(["open", "creat", "openat", "openat2"]));
        assert!(named(FileCallKind::Rename).eq(["rename", "renameat", "renameat2"]));
        assert!(named(FileCallKind::Send).eq(["sendfile"]));
        assert!(named(FileCallKind::Copy).eq(["splice", "copy_file_range"]));
    }

    #[test]
    fn layouts_have_no_hidden_padding() {
        assert_eq!(size_of::<UsedFile>(), 40);
        assert_eq!(size_of::<FileCall>(), 16 + 3 * 40 + 16);
        assert_eq!(size_of::<FileKey>(), 32);
        assert_eq!(size_of::<FileStats>(), OPERATIONS * 40 + 16 + COMM_LEN + 4 * 8);
        assert_eq!(size_of::<FileId>(), 16);
        assert_eq!(size_of::<FileNameRecord>(), 32 + MAX_NAME_BYTES + MAX_COMPONENT_BYTES);
        assert_eq!(FileId { device: 254 << 20 | 7, ..FileId::default() }.device_numbers(), (254, 7));
    }
}
