//! `perf_event_open(2)`, as far as it is used: counting and sampling events, and the ring of a side-band event.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// `struct perf_event_attr` up to version 5 (112 bytes), which Linux 4.1 and later know.
/// Source: include/uapi/linux/perf_event.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attributes {
    pub(super) kind: u32,
    pub(super) size: u32,
    pub(super) config: u64,
    /// A period in events, or a frequency in Hz.
    pub(super) sample_period_or_frequency: u64,
    pub(super) sample_type: u64,
    pub(super) read_format: u64,
    pub(super) flags: u64,
    pub(super) wakeup: u32,
    pub(super) breakpoint_type: u32,
    pub(super) config1: u64,
    pub(super) config2: u64,
    pub(super) branch_sample_type: u64,
    pub(super) sample_regs_user: u64,
    pub(super) sample_stack_user: u32,
    pub(super) clock: i32,
    pub(super) sample_regs_interrupt: u64,
    pub(super) aux_watermark: u32,
    pub(super) sample_max_stack: u16,
    pub(super) reserved: u16,
}

pub(super) const TYPE_HARDWARE: u32 = 0;
pub(super) const TYPE_SOFTWARE: u32 = 1;
pub(super) const TYPE_TRACEPOINT: u32 = 2;
pub(super) const HARDWARE_CYCLES: u64 = 0;
pub(super) const SOFTWARE_CPU_CLOCK: u64 = 0;
pub(super) const SOFTWARE_PAGE_FAULTS_MIN: u64 = 5;
pub(super) const SOFTWARE_PAGE_FAULTS_MAJ: u64 = 6;
pub(super) const SOFTWARE_DUMMY: u64 = 9;

/// Bits of [`Attributes::flags`].
pub(super) mod flag {
    pub(in super::super) const DISABLED: u64 = 1;
    pub(in super::super) const EXCLUDE_IDLE: u64 = 1 << 7;
    pub(in super::super) const EXCLUDE_GUEST: u64 = 1 << 20;
    pub(in super::super) const MMAP: u64 = 1 << 8;
    pub(in super::super) const COMM: u64 = 1 << 9;
    pub(in super::super) const FREQUENCY: u64 = 1 << 10;
    pub(in super::super) const TASK: u64 = 1 << 13;
    pub(in super::super) const WATERMARK: u64 = 1 << 14;
    pub(in super::super) const SAMPLE_ID_ALL: u64 = 1 << 18;
    pub(in super::super) const MMAP2: u64 = 1 << 23;
    pub(in super::super) const COMM_EXEC: u64 = 1 << 24;
    pub(in super::super) const USE_CLOCK: u64 = 1 << 25;
}

/// `PERF_SAMPLE_TIME`.
pub(super) const SAMPLE_TIME: u64 = 1 << 2;

const IOC_ENABLE: libc::c_ulong = 0x2400;
const IOC_DISABLE: libc::c_ulong = 0x2401;
const IOC_SET_BPF: libc::c_ulong = 0x4004_2408;
const FLAG_CLOSE_ON_EXEC: libc::c_ulong = 8;

/// An open perf event; it ends when it is dropped.
#[derive(Debug)]
pub(super) struct Event {
    file: File,
}

impl Event {
    /// Opens an event on one CPU, for every task.
    pub(super) fn open(mut attributes: Attributes, cpu: u32) -> io::Result<Self> {
        attributes.size = u32::try_from(size_of::<Attributes>()).unwrap_or(0);
        let cpu = i32::try_from(cpu).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: the structure has the size it states; -1 stands for every task, and for no group.
        let fd = unsafe {
            libc::syscall(libc::SYS_perf_event_open, &raw const attributes, -1_i32, cpu, -1_i32, FLAG_CLOSE_ON_EXEC)
        };
        let fd = i32::try_from(fd).ok().filter(|&fd| fd >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the descriptor was just made, and nobody else has it.
        Ok(Self { file: File::from(unsafe { OwnedFd::from_raw_fd(fd) }) })
    }

    /// Runs a program on each sample.
    pub(super) fn set_program(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        self.control(IOC_SET_BPF, program.as_raw_fd())
    }

    pub(super) fn enable(&self) -> io::Result<()> {
        self.control(IOC_ENABLE, 0)
    }

    pub(super) fn disable(&self) -> io::Result<()> {
        self.control(IOC_DISABLE, 0)
    }

    fn control(&self, request: libc::c_ulong, argument: i32) -> io::Result<()> {
        // SAFETY: these requests take a number.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), request, argument) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Another descriptor of the event, to wait on.
    pub(super) fn descriptor(&self) -> io::Result<OwnedFd> {
        self.file.try_clone().map(OwnedFd::from)
    }

    /// The event's count, in its own unit.
    pub(super) fn count(&self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        (&self.file).read_exact(&mut bytes)?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

impl AsRawFd for Event {
    fn as_raw_fd(&self) -> i32 {
        self.file.as_raw_fd()
    }
}

/// The memory an event writes its records to.
#[derive(Debug)]
pub(super) struct Ring {
    base: *mut u8,
    page: usize,
    /// Bytes of the data area, a power of two.
    size: usize,
}

// SAFETY: the memory is the ring's own, and reading it needs `&mut`.
unsafe impl Send for Ring {}

/// Where head and tail are in the first page. Source: `struct perf_event_mmap_page`.
const DATA_HEAD: usize = 1024;
const DATA_TAIL: usize = 1032;

impl Ring {
    /// Maps the ring of an event; `pages` is a power of two.
    pub(super) fn map(event: &Event, pages: usize) -> io::Result<Self> {
        // SAFETY: takes a number.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping of a descriptor that we own.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), page * (pages + 1), protection, libc::MAP_SHARED, event.as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { base: base.cast(), page, size: page * pages })
    }

    fn position(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: the first page holds these words, aligned; the kernel writes them atomically.
        unsafe { AtomicU64::from_ptr(self.base.add(offset).cast()) }
    }

    /// Hands each record that has come, header included, to `take`.
    pub(super) fn read(&mut self, mut take: impl FnMut(&[u8])) {
        let head = self.position(DATA_HEAD).load(Ordering::Acquire);
        let mut tail = self.position(DATA_TAIL).load(Ordering::Relaxed);
        let mut record = Vec::new();
        while tail < head {
            let header = self.bytes(tail, 8, &mut record);
            let size = header.get(6..8).map_or(0, |size| usize::from(u16::from_ne_bytes([size[0], size[1]])));
            if size < 8 || size as u64 > head - tail {
                // The kernel does not write such a record: skip what is there rather than go round for ever.
                tail = head;
                break;
            }
            take(self.bytes(tail, size, &mut record));
            tail += size as u64;
        }
        self.position(DATA_TAIL).store(tail, Ordering::Release);
    }

    /// Copies `size` bytes at a position that counts from the ring's beginning.
    fn bytes<'a>(&self, position: u64, size: usize, record: &'a mut Vec<u8>) -> &'a [u8] {
        record.clear();
        #[expect(clippy::cast_possible_truncation, reason = "reduced to the size of the ring")]
        let start = (position % self.size as u64) as usize;
        let first = size.min(self.size - start);
        for (at, length) in [(start, first), (0, size - first)] {
            // SAFETY: both pieces are inside the data area, which the kernel does not write before the tail moves.
            record.extend_from_slice(unsafe { std::slice::from_raw_parts(self.base.add(self.page + at), length) });
        }
        record
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and has this size.
        unsafe { libc::munmap(self.base.cast(), self.page + self.size) };
    }
}
