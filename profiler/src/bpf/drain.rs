//! Windows: flip the generation, wait until no program is in the old one, empty it.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use aya::maps::{Map, MapData};
use profiler_common::block::{SlowRequest, SlowWakeUp};
use profiler_common::config::Control;
use profiler_common::event::{
    MAX_REMAINDER_BYTES, MAX_STACK_WORDS, RING_DRAIN, RING_FILE_NAME, RING_REMAINDER, RING_SLOW, RING_SLOW_WAKE_UP,
    RING_STACK, RING_THREAD, RecordKey, RecordValue, RemainderRecord, StackRecord,
};
use profiler_common::file::{FILE_DELETED, FILE_RENAMED, FileId, FileNameRecord, NAME_CUT};
use profiler_common::unwind::{LEAF_REGISTERS, Registers};
use profiler_common::wait::EndedThread;

use super::BpfError;
use super::load::{Kernel, Shared};
use super::syscall::bpf;

/// Longest wait for programs to leave a generation. They take microseconds; only a virtual machine that was stopped
/// in the middle of one takes longer, and what it then writes is drained with the next window but one.
const QUIESCE_LIMIT: Duration = Duration::from_millis(100);

/// Chains by hash, frame words leaf first.
pub type Stacks = HashMap<u64, Box<[u64]>>;

/// What one window left.
#[derive(Debug, Default)]
pub struct Drained {
    /// The records, in the map's order.
    pub records: Vec<(RecordKey, RecordValue)>,
    /// The chains they refer to.
    pub stacks: Stacks,
    /// What was left of walks, by the hash of the chain that was found.
    pub remainders: HashMap<u64, Remainder>,
    /// Threads that have ended, where waits are recorded.
    pub ended: Vec<EndedThread>,
    /// Files that have been named.
    pub file_names: Vec<NamedFile>,
    /// Slow requests to block devices, where these are told.
    pub slow: Vec<SlowRequest>,
    /// And the threads that waited for them.
    pub slow_wake_ups: Vec<SlowWakeUp>,
    /// Whether programs were still writing when it was emptied.
    pub unsettled: bool,
}

/// What a program left of a walk, for want of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remainder {
    /// Registers of the frame that was found last.
    pub registers: Registers,
    /// Whether the instruction pointer is where that frame is, rather than a return address.
    pub exact: bool,
    /// Registers of that frame by their DWARF number, where it is exact.
    pub leaf: [u64; LEAF_REGISTERS],
    /// Address of what `stack` holds.
    pub stack_start: u64,
    /// The stack from there on.
    pub stack: Box<[u8]>,
}

/// A file with its path up to the root of its file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile {
    /// The file.
    pub id: FileId,
    /// A process that uses it; 0 when that is not known.
    pub pid: u32,
    /// Names from the root down, each with a slash before it; nothing for the root itself. Any bytes.
    pub path: Vec<u8>,
    /// Whether the name is not in its directory any more.
    pub is_deleted: bool,
    /// Whether names at its beginning are missing.
    pub is_cut: bool,
    /// Where it is no known file but one that was given a new name, of which `path` is what the process said: the
    /// descriptor of the directory that it begins at.
    pub renamed_in: Option<i32>,
}

/// The maps of one generation.
#[derive(Debug)]
pub(super) struct Generation {
    records: Batch<RecordKey, RecordValue>,
    sent: Batch<u64, u8>,
    /// Chains that came for it and were not handed out yet.
    stacks: Stacks,
    remainders: HashMap<u64, Remainder>,
}

impl Generation {
    pub(super) fn new(records: Map, sent: Map) -> Result<Self, BpfError> {
        let (records, sent) = (Batch::new(records, "RECORDS")?, Batch::new(sent, "SENT")?);
        Ok(Self { records, sent, stacks: Stacks::new(), remainders: HashMap::new() })
    }
}

impl Kernel {
    /// Ends the current window and returns what it left; the next one has begun by then, without a gap.
    ///
    /// # Errors
    ///
    /// When a map cannot be read: what it held is lost, and the accounting shows it.
    pub fn drain(&mut self) -> Result<Drained, BpfError> {
        let old = self.current;
        self.current = 1 - old;
        let window = u32::from(self.current == 1);
        self.write_control(Control { window, ..self.controlled })?;
        let unsettled = !self.wait_until_left(old)?;
        self.read_ring();
        let records = self.generations[old].records.take_all()?;
        self.generations[old].sent.take_all()?;
        let index = u32::from(old == 1);
        self.fill.set(index, [0; 4], 0).map_err(|error| BpfError::map("reset", "FILL", error))?;
        let stacks = std::mem::take(&mut self.generations[old].stacks);
        let remainders = std::mem::take(&mut self.generations[old].remainders);
        let ended = std::mem::take(&mut self.ended);
        let file_names = std::mem::take(&mut self.file_names);
        let slow = std::mem::take(&mut self.slow);
        let slow_wake_ups = std::mem::take(&mut self.slow_wake_ups);
        Ok(Drained { records, stacks, remainders, ended, file_names, slow, slow_wake_ups, unsettled })
    }

    /// Waits until no program is inside a generation; false when the limit passed first.
    fn wait_until_left(&self, generation: usize) -> Result<bool, BpfError> {
        let started = Instant::now();
        loop {
            let by_cpu = self.in_flight.get(&0, 0).map_err(|error| BpfError::map("read", "IN_FLIGHT", error))?;
            // Each CPU is compared on its own: a program enters and leaves on one CPU.
            if by_cpu.iter().all(|Shared(counts)| counts.entered[generation] == counts.left[generation]) {
                return Ok(true);
            }
            if started.elapsed() > QUIESCE_LIMIT {
                return Ok(false);
            }
            std::thread::yield_now();
        }
    }

    /// Takes what the ring holds; returns whether a program asked for an early drain.
    pub fn read_ring(&mut self) -> bool {
        let mut asked = false;
        while let Some(item) = self.ring.next() {
            match kind_of(&item) {
                Some(RING_STACK) => {
                    if let Some((window, hash, words)) = parse_stack(&item) {
                        self.generations[usize::from(window & 1)].stacks.insert(hash, words);
                    }
                }
                Some(RING_REMAINDER) => {
                    if let Some((window, hash, remainder)) = parse_remainder(&item) {
                        self.generations[usize::from(window & 1)].remainders.insert(hash, remainder);
                    }
                }
                Some(RING_THREAD) => self.ended.extend(parse_plain::<EndedThread>(&item)),
                Some(RING_SLOW) => self.slow.extend(parse_plain::<SlowRequest>(&item)),
                Some(RING_FILE_NAME) => self.file_names.extend(parse_file_name(&item)),
                Some(RING_SLOW_WAKE_UP) => self.slow_wake_ups.extend(parse_plain::<SlowWakeUp>(&item)),
                Some(RING_DRAIN) => asked = true,
                _ => {}
            }
        }
        asked
    }
}

fn kind_of(item: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(item.get(..2)?.try_into().ok()?))
}

/// Generation, hash and words of a [`StackRecord`].
fn parse_stack(item: &[u8]) -> Option<(u16, u64, Box<[u64]>)> {
    let at = |offset: usize, size: usize| item.get(offset..offset + size);
    let window = u16::from_ne_bytes(at(std::mem::offset_of!(StackRecord, window), 2)?.try_into().ok()?);
    let length = u32::from_ne_bytes(at(std::mem::offset_of!(StackRecord, length), 4)?.try_into().ok()?) as usize;
    let hash = u64::from_ne_bytes(at(std::mem::offset_of!(StackRecord, hash), 8)?.try_into().ok()?);
    if length > MAX_STACK_WORDS {
        return None;
    }
    let words = item.get(std::mem::offset_of!(StackRecord, words)..)?;
    let words = words.get(..length * 8)?.as_chunks::<8>().0;
    Some((window, hash, words.iter().map(|word| u64::from_ne_bytes(*word)).collect()))
}

/// Structures that are sent as they are: made of integers only.
trait Sent: Copy {}
impl Sent for EndedThread {}
impl Sent for SlowRequest {}
impl Sent for SlowWakeUp {}

/// A structure that is sent as it is.
fn parse_plain<T: Sent>(item: &[u8]) -> Option<T> {
    let bytes = item.get(..size_of::<T>())?;
    // SAFETY: the structure is made of integers, and there are as many bytes.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// A file's name.
fn parse_file_name(item: &[u8]) -> Option<NamedFile> {
    let number = |offset: usize| Some(u32::from_ne_bytes(item.get(offset..offset + 4)?.try_into().ok()?));
    let at = std::mem::offset_of!(FileNameRecord, id);
    let inode = u64::from_ne_bytes(item.get(at..at + 8)?.try_into().ok()?);
    let id = FileId { inode, device: number(at + 8)?, generation: number(at + 12)? };
    let pid = number(std::mem::offset_of!(FileNameRecord, pid))?;
    let flags = u16::from_ne_bytes(item.get(2..4)?.try_into().ok()?);
    let bytes = number(std::mem::offset_of!(FileNameRecord, bytes))? as usize;
    let names = item.get(std::mem::offset_of!(FileNameRecord, names)..)?.get(..bytes)?;
    if flags & FILE_RENAMED != 0 {
        let directory = number(std::mem::offset_of!(FileNameRecord, directory))?.cast_signed();
        let path = names.strip_suffix(&[0]).unwrap_or(names).to_vec();
        return Some(NamedFile { id, pid, path, is_deleted: false, is_cut: false, renamed_in: Some(directory) });
    }
    let mut path = Vec::with_capacity(names.len());
    for name in names.strip_suffix(&[0]).unwrap_or_default().rsplit(|&byte| byte == 0) {
        path.push(b'/');
        path.extend(name);
    }
    if names.is_empty() {
        path.clear();
    }
    let (is_deleted, is_cut) = (flags & FILE_DELETED != 0, flags & NAME_CUT != 0);
    Some(NamedFile { id, pid, path, is_deleted, is_cut, renamed_in: None })
}

/// Generation, hash and content of a [`RemainderRecord`].
fn parse_remainder(item: &[u8]) -> Option<(u16, u64, Remainder)> {
    let word = |offset: usize| Some(u64::from_ne_bytes(item.get(offset..offset + 8)?.try_into().ok()?));
    let window = u16::from_ne_bytes(item.get(2..4)?.try_into().ok()?);
    let bytes = u32::from_ne_bytes(item.get(4..8)?.try_into().ok()?) as usize;
    let at = std::mem::offset_of!(RemainderRecord, registers);
    let registers = Registers { ip: word(at)?, sp: word(at + 8)?, fp: word(at + 16)?, bx: word(at + 24)? };
    let exact = word(std::mem::offset_of!(RemainderRecord, exact))? != 0;
    let mut leaf = [0; LEAF_REGISTERS];
    for (number, register) in leaf.iter_mut().enumerate() {
        *register = word(std::mem::offset_of!(RemainderRecord, leaf) + 8 * number)?;
    }
    let stack_start = word(std::mem::offset_of!(RemainderRecord, stack_start))?;
    let hash = word(std::mem::offset_of!(RemainderRecord, hash))?;
    if bytes > MAX_REMAINDER_BYTES {
        return None;
    }
    let stack = item.get(std::mem::offset_of!(RemainderRecord, stack)..)?.get(..bytes)?;
    Some((window, hash, Remainder { registers, exact, leaf, stack_start, stack: stack.into() }))
}

/// A hash map that is emptied by batch operations, which aya does not wrap. Source: `union bpf_attr`, `batch`.
#[derive(Debug)]
pub(super) struct Batch<K, V> {
    map: MapData,
    name: &'static str,
    kind: std::marker::PhantomData<(K, V)>,
}

/// `BPF_MAP_LOOKUP_BATCH` and `BPF_MAP_LOOKUP_AND_DELETE_BATCH`, since Linux 5.6.
const LOOKUP_BATCH: libc::c_long = 24;
const LOOKUP_AND_DELETE_BATCH: libc::c_long = 25;

/// Entries asked for at once. A call fails when a single bucket holds more.
const BATCH: usize = 4096;

#[repr(C)]
#[derive(Default)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// `BPF_MAP_DELETE_ELEM`, and the part of `union bpf_attr` that it takes.
const MAP_DELETE: libc::c_long = 3;
#[repr(C)]
struct RemoveAttributes {
    map: u32,
    reserved: u32,
    key: u64,
}

/// `BPF_MAP_LOOKUP_AND_DELETE_ELEM`, and the part of `union bpf_attr` that it takes.
const LOOKUP_AND_DELETE: libc::c_long = 21;
#[repr(C)]
struct TakeAttributes {
    map: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl<K: Copy, V: Copy> Batch<K, V> {
    pub(super) fn new(map: Map, name: &'static str) -> Result<Self, BpfError> {
        let Map::HashMap(map) = map else { return Err(BpfError::Missing(name)) };
        Ok(Self { map, name, kind: std::marker::PhantomData })
    }

    /// Removes and returns every entry.
    pub(super) fn take_all(&mut self) -> Result<Vec<(K, V)>, BpfError> {
        self.all(LOOKUP_AND_DELETE_BATCH)
    }

    /// Removes an entry, if it is there.
    pub(super) fn remove(&self, key: &K) {
        let mut attributes = RemoveAttributes {
            map: u32::try_from(self.map.fd().as_fd().as_raw_fd()).unwrap_or(0),
            reserved: 0,
            key: std::ptr::from_ref(key) as u64,
        };
        let _ = bpf(MAP_DELETE, &mut attributes);
    }

    /// Removes and returns an entry, if it is there. Source: `BPF_MAP_LOOKUP_AND_DELETE_ELEM`, of hash maps since Linux 5.14.
    pub(super) fn take(&self, key: &K) -> Option<V> {
        let mut value = std::mem::MaybeUninit::<V>::uninit();
        let mut attributes = TakeAttributes {
            map: u32::try_from(self.map.fd().as_fd().as_raw_fd()).unwrap_or(0),
            reserved: 0,
            key: std::ptr::from_ref(key) as u64,
            value: value.as_mut_ptr() as u64,
            flags: 0,
        };
        bpf(LOOKUP_AND_DELETE, &mut attributes).ok()?;
        // SAFETY: the kernel wrote the whole value, which is made of plain integers.
        Some(unsafe { value.assume_init() })
    }

    /// Returns every entry.
    pub(super) fn read_all(&self) -> Result<Vec<(K, V)>, BpfError> {
        self.all(LOOKUP_BATCH)
    }

    fn all(&self, command: libc::c_long) -> Result<Vec<(K, V)>, BpfError> {
        let mut keys: Vec<K> = Vec::with_capacity(BATCH);
        let mut values: Vec<V> = Vec::with_capacity(BATCH);
        let mut all = Vec::new();
        let mut position: Option<u32> = None;
        loop {
            let mut next = 0_u32;
            let mut attributes = BatchAttributes {
                in_batch: position.as_ref().map_or(0, |position| std::ptr::from_ref(position) as u64),
                out_batch: (&raw mut next) as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: u32::try_from(BATCH).unwrap_or(u32::MAX),
                map: u32::try_from(self.map.fd().as_fd().as_raw_fd()).unwrap_or(0),
                ..BatchAttributes::default()
            };
            let result = bpf(command, &mut attributes);
            let ended = match &result {
                Ok(_) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                Err(error) => return Err(BpfError::map("drain", self.name, error)),
            };
            let count = (attributes.count as usize).min(BATCH);
            // SAFETY: the kernel wrote `count` keys and values, which are plain integers, into the capacity.
            unsafe {
                keys.set_len(count);
                values.set_len(count);
            }
            all.extend(keys.drain(..).zip(values.drain(..)));
            if ended {
                return Ok(all);
            }
            position = Some(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_goes_from_the_root_down() {
        let record = |flags: u16, names: &[u8]| {
            let mut item = Vec::new();
            item.extend(RING_FILE_NAME.to_ne_bytes());
            item.extend(flags.to_ne_bytes());
            item.extend(u32::try_from(names.len()).unwrap().to_ne_bytes());
            item.extend(5_u64.to_ne_bytes());
            for number in [254_u32 << 20, 9, 77, 0] {
                item.extend(number.to_ne_bytes());
            }
            item.extend(names);
            item
        };
        let item = record(FILE_DELETED, b"wal.log\0db\0srv\0");
        let named = parse_file_name(&item).unwrap();
        assert_eq!(named.path, b"/srv/db/wal.log");
        assert_eq!((named.id, named.pid), (FileId { inode: 5, device: 254 << 20, generation: 9 }, 77));
        assert!(named.is_deleted && !named.is_cut);
        for length in 0..item.len() {
            assert_eq!(parse_file_name(&item[..length]), None);
        }
        assert!(parse_file_name(&record(0, b"")).unwrap().path.is_empty());
        let renamed = parse_file_name(&record(FILE_RENAMED, b"db/new.log\0")).unwrap();
        assert_eq!((&renamed.path[..], renamed.renamed_in), (&b"db/new.log"[..], Some(0)));
    }

    #[test]
    fn a_stack_record_is_read_at_its_own_length() {
        let mut item = Vec::new();
        item.extend(RING_STACK.to_ne_bytes());
        item.extend(1_u16.to_ne_bytes());
        item.extend(2_u32.to_ne_bytes());
        item.extend(77_u64.to_ne_bytes());
        for word in [5_u64, 6] {
            item.extend(word.to_ne_bytes());
        }
        assert_eq!(parse_stack(&item), Some((1, 77, vec![5, 6].into_boxed_slice())));
        for length in 0..item.len() {
            assert_eq!(parse_stack(&item[..length]), None);
        }
        item[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(parse_stack(&item), None);
    }
}
