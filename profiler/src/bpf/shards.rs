//! Shards: pieces of 1 MiB of the memory that the unwind tables are in, which programs read and we write.
//!
//! They are added as they are needed and never taken away while programs run: freeing a map inside a map under a
//! running program has crashed kernels (CVE-2023-52447).

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::thread::JoinHandle;

use aya::maps::MapData;
use profiler_common::config::{SHARD_FLAGS, SHARD_WORDS};

use super::syscall::bpf;

const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE: libc::c_long = 2;
const TYPE_ARRAY: u32 = 2;
const SHARD_BYTES: usize = size_of::<u32>() * SHARD_WORDS;

/// The shards, and one that is being made.
pub(super) struct Shards {
    outer: MapData,
    shards: Vec<Shard>,
    most: usize,
    /// Adding one waits for every program that runs, which takes the kernel up to 140 ms: the next is made aside.
    spare: Option<JoinHandle<io::Result<Shard>>>,
}

/// A shard: an array of one element, mapped.
struct Shard {
    words: NonNull<u32>,
    _map: OwnedFd,
}

// SAFETY: the memory belongs to the shard alone, which is used by one thread at a time.
unsafe impl Send for Shard {}

/// Source: `union bpf_attr`, `BPF_MAP_CREATE`.
#[repr(C)]
struct CreateAttributes {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

/// Source: `union bpf_attr`, `BPF_MAP_UPDATE_ELEM`.
#[repr(C)]
struct UpdateAttributes {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl Shards {
    /// `outer`: the map that they are put into; `most`: how many there may be.
    pub(super) const fn new(outer: MapData, most: usize) -> Self {
        Self { outer, shards: Vec::new(), most, spare: None }
    }

    /// How many there are.
    pub(super) const fn len(&self) -> usize {
        self.shards.len()
    }

    /// Whether one more may be added.
    pub(super) const fn may_grow(&self) -> bool {
        self.shards.len() < self.most
    }

    /// Adds no more.
    pub(super) const fn stop_growing(&mut self) {
        self.most = self.shards.len();
    }

    /// Adds one, and returns its number.
    pub(super) fn add(&mut self) -> io::Result<u32> {
        let shard = match self.spare.take() {
            Some(thread) => thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that makes it failed"))),
            None => Shard::make(self.outer.fd().as_fd().try_clone_to_owned()?, self.shards.len()),
        };
        self.shards.push(shard?);
        Ok(u32::try_from(self.shards.len() - 1).unwrap_or(u32::MAX))
    }

    /// Begins to make the next one aside.
    pub(super) fn prepare(&mut self) {
        if self.spare.is_some() || !self.may_grow() {
            return;
        }
        let Ok(outer) = self.outer.fd().as_fd().try_clone_to_owned() else { return };
        let number = self.shards.len();
        // When there can be no thread, it is made when it is needed.
        self.spare = std::thread::Builder::new().spawn(move || Shard::make(outer, number)).ok();
    }

    /// The words of a shard.
    pub(super) fn words(&self, shard: u32) -> Option<&[u32]> {
        let shard = self.shards.get(shard as usize)?;
        // SAFETY: the memory is mapped as long as the shard lives; only we write it, through `words_mut`.
        Some(unsafe { std::slice::from_raw_parts(shard.words.as_ptr(), SHARD_WORDS) })
    }

    /// The words of a shard, to write. Programs may read them at any time: what they can reach must stay as it is.
    pub(super) fn words_mut(&mut self, shard: u32) -> Option<&mut [u32]> {
        let shard = self.shards.get_mut(shard as usize)?;
        // SAFETY: as in `words`.
        Some(unsafe { std::slice::from_raw_parts_mut(shard.words.as_ptr(), SHARD_WORDS) })
    }
}

impl Shard {
    fn make(outer: OwnedFd, number: usize) -> io::Result<Self> {
        let mut attributes = CreateAttributes {
            map_type: TYPE_ARRAY,
            key_size: 4,
            value_size: u32::try_from(SHARD_BYTES).unwrap_or(u32::MAX),
            max_entries: 1,
            flags: u32::try_from(SHARD_FLAGS).unwrap_or(0),
        };
        let fd = bpf(MAP_CREATE, &mut attributes)?;
        // SAFETY: the descriptor was just made, and nobody else has it.
        let map = unsafe { OwnedFd::from_raw_fd(fd) };
        let (protection, sharing) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping of an array's memory, at an address of the kernel's choice.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), SHARD_BYTES, protection, sharing, fd, 0) };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let words = NonNull::new(memory.cast()).ok_or_else(io::Error::last_os_error)?;
        let shard = Self { words, _map: map };
        let key = u32::try_from(number).unwrap_or(u32::MAX);
        let mut attributes = UpdateAttributes {
            map: outer.as_raw_fd().unsigned_abs(),
            padding: 0,
            key: (&raw const key) as u64,
            value: (&raw const fd) as u64,
            flags: 0,
        };
        bpf(MAP_UPDATE, &mut attributes)?;
        Ok(shard)
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        // SAFETY: the memory was mapped with this size, and nobody has a reference to it any more.
        unsafe { libc::munmap(self.words.as_ptr().cast(), SHARD_BYTES) };
    }
}
