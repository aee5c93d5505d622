//! Processes as they start, map code and end, from a side-band perf event on every CPU. No eBPF is involved.
//!
//! Source: `perf_event_open(2)`, "MMAP layout".

use std::io;
use std::os::fd::OwnedFd;

use super::BpfError;
use super::perf::{Attributes, Event, Ring, SAMPLE_TIME, SOFTWARE_DUMMY, TYPE_SOFTWARE, flag};
use super::sampler::online_cpus;
use crate::process::{Mapping, backing_of};

/// Pages of one CPU's ring: 256 KiB hold the mappings of some two hundred program starts.
const RING_PAGES: usize = 64;

const RECORD_LOST: u32 = 2;
const RECORD_COMM: u32 = 3;
const RECORD_EXIT: u32 = 4;
const RECORD_FORK: u32 = 7;
const RECORD_MMAP2: u32 = 10;
/// `PERF_RECORD_MISC_COMM_EXEC`.
const MISC_COMM_EXEC: u16 = 1 << 13;
const PROT_EXEC: u32 = 4;

/// Something that happened to a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LifecycleEvent {
    /// `parent` made `pid`.
    Fork {
        /// The new process.
        pid: u32,
        /// Its parent.
        parent: u32,
    },
    /// `pid` executed a program: all it had mapped is gone.
    Exec {
        /// The process.
        pid: u32,
    },
    /// `pid` mapped code.
    Map {
        /// The process.
        pid: u32,
        /// What it mapped.
        mapping: Mapping,
    },
    /// The first thread of `pid` ended, and most often the process with it.
    Exit {
        /// The process.
        pid: u32,
    },
    /// The ring was full: some events are missing, and what is known of processes has to be read again.
    Lost {
        /// How many.
        events: u64,
    },
}

/// The side-band events of every CPU.
#[derive(Debug)]
pub struct Lifecycle {
    rings: Vec<(Event, Ring)>,
}

impl Lifecycle {
    /// Starts listening on every online CPU.
    ///
    /// # Errors
    ///
    /// When the events cannot be opened.
    pub fn start() -> Result<Self, BpfError> {
        let failed = |cpu, cause: io::Error| match cause.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => BpfError::Permission("open perf events on every CPU"),
            _ => BpfError::PerfEvent { event: "dummy", cpu, cause },
        };
        let attributes = Attributes {
            kind: TYPE_SOFTWARE,
            config: SOFTWARE_DUMMY,
            sample_period_or_frequency: 1,
            sample_type: SAMPLE_TIME,
            flags: flag::MMAP
                | flag::MMAP2
                | flag::COMM
                | flag::COMM_EXEC
                | flag::TASK
                | flag::WATERMARK
                | flag::SAMPLE_ID_ALL
                | flag::USE_CLOCK,
            wakeup: 1,
            clock: libc::CLOCK_MONOTONIC,
            ..Attributes::default()
        };
        let mut rings = Vec::new();
        for cpu in online_cpus().map_err(|cause| failed(0, cause))? {
            let event = match Event::open(attributes, cpu) {
                Ok(event) => event,
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => continue,
                Err(error) => return Err(failed(cpu, error)),
            };
            let ring = Ring::map(&event, RING_PAGES).map_err(|cause| failed(cpu, cause))?;
            rings.push((event, ring));
        }
        Ok(Self { rings })
    }

    /// Descriptors that become readable when there are events, for the caller to keep.
    pub fn descriptors(&self) -> impl Iterator<Item = io::Result<OwnedFd>> {
        self.rings.iter().map(|(event, _)| event.descriptor())
    }

    /// The events that have come, in the order in which they happened.
    pub fn read(&mut self) -> Vec<LifecycleEvent> {
        let mut events = Vec::new();
        for (_, ring) in &mut self.rings {
            ring.read(|record| events.extend(parse(record)));
        }
        events.sort_by_key(|&(time, _)| time);
        events.into_iter().map(|(_, event)| event).collect()
    }
}

/// Reads one record: its time in ns and what it says, if that is of interest.
fn parse(record: &[u8]) -> Option<(u64, LifecycleEvent)> {
    let u32_at = |at: usize| Some(u32::from_ne_bytes(record.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_ne_bytes(record.get(at..at + 8)?.try_into().ok()?));
    let misc = u16::from_ne_bytes(record.get(4..6)?.try_into().ok()?);
    // sample_id_all with PERF_SAMPLE_TIME alone: the last 8 bytes.
    let time = u64_at(record.len().checked_sub(8)?)?;
    let event = match u32_at(0)? {
        RECORD_LOST => LifecycleEvent::Lost { events: u64_at(16)? },
        RECORD_COMM if misc & MISC_COMM_EXEC != 0 => LifecycleEvent::Exec { pid: u32_at(8)? },
        RECORD_EXIT if u32_at(8)? == u32_at(16)? => LifecycleEvent::Exit { pid: u32_at(8)? },
        RECORD_FORK if u32_at(8)? != u32_at(12)? => LifecycleEvent::Fork { pid: u32_at(8)?, parent: u32_at(12)? },
        RECORD_MMAP2 if u32_at(64)? & PROT_EXEC != 0 => {
            let (start, length, file_offset) = (u64_at(16)?, u64_at(24)?, u64_at(32)?);
            let device = (u32_at(40)?, u32_at(44)?);
            let inode = u64_at(48)?;
            let name = record.get(72..record.len() - 8)?;
            let name = name.split(|&byte| byte == 0).next()?;
            let path = String::from_utf8_lossy(name).into_owned();
            let backing = backing_of(device, inode, path);
            LifecycleEvent::Map {
                pid: u32_at(8)?,
                mapping: Mapping { start, end: start.checked_add(length)?, file_offset, backing },
            }
        }
        _ => return None,
    };
    Some((time, event))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Backing, FileKey};

    #[test]
    fn a_mapping_record_is_read() {
        let mut record = Vec::new();
        record.extend(RECORD_MMAP2.to_ne_bytes());
        record.extend(2_u16.to_ne_bytes());
        record.extend(88_u16.to_ne_bytes());
        for word in [7_u32, 7] {
            record.extend(word.to_ne_bytes());
        }
        for word in [0x1000_u64, 0x2000, 0x3000] {
            record.extend(word.to_ne_bytes());
        }
        for word in [8_u32, 1] {
            record.extend(word.to_ne_bytes());
        }
        for word in [99_u64, 0] {
            record.extend(word.to_ne_bytes());
        }
        for word in [5_u32, 2] {
            record.extend(word.to_ne_bytes());
        }
        record.extend(b"/bin/a\0\0");
        record.extend(1234_u64.to_ne_bytes());
        let backing = Backing::File(FileKey { device: (8, 1), inode: 99 }, "/bin/a".to_owned());
        let mapping = Mapping { start: 0x1000, end: 0x3000, file_offset: 0x3000, backing };
        assert_eq!(parse(&record), Some((1234, LifecycleEvent::Map { pid: 7, mapping })));
        for length in 0..record.len() {
            // A cut record must not panic; what it says does not matter.
            let _ = parse(&record[..length]);
        }
    }
}
