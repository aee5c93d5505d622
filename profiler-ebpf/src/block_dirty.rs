//! Who made pages of files dirty: what is written back of them is theirs, whoever writes it back.
//!
//! `writeback_dirty_folio` runs in the context of a thread that writes to a page that was clean. For each file the processes
//! that do are told apart, with the bytes of their pages; a write-back takes from whoever has had dirty pages for longest.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use profiler_common::block::{BlockMissed, DirtyFile, MAX_DIRTIERS, MAX_DIRTY_FILES, REQUEST_PLACES, place};

use crate::atomic;
use crate::block_asker::{DIRTIERS_AT, ask_ahead, identify, process_of};
use crate::block_noted::missed;
use crate::config::config;
use crate::maps::DIRTY_FILES;
use crate::task::{Task, kernel_number, kernel_word};

/// Bytes of a page.
const PAGE_BYTES: u64 = 4096;

/// The largest folio, as a power of two of pages: more is not believed. Source: `MAX_PAGECACHE_ORDER`,
/// include/linux/pagemap.h.
const MAX_ORDER: u32 = 18;

/// Notes who makes a page dirty. Arguments: the page, or several, and the file's pages (`struct address_space`).
#[raw_tracepoint(tracepoint = "writeback_dirty_folio")]
pub(crate) fn block_dirty(context: RawTracePointContext) -> i32 {
    let Some(task) = Task::current() else { return 0 };
    if !task.is_running_wanted() {
        return 0;
    }
    let mapping: *const u8 = context.arg(1);
    let inode = kernel_word(mapping, config!(block.mapping_host));
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some((index, file)) = add(inode, now) else { return 0 };
    let bytes = bytes(context.arg(0));
    let process_number = process_of(task.start_time_ns(), task.pid);
    let Some((slot, is_new)) = claim(file, process_number) else {
        missed(BlockMissed::Dirtiers);
        return 0;
    };
    let dirtier = &mut file.dirtiers[slot % MAX_DIRTIERS];
    // SAFETY: the pointers are to a map element that every CPU writes, hence atomic and volatile.
    let (before, owner) = unsafe {
        let before = atomic::add(&raw mut dirtier.bytes, bytes);
        (before, core::ptr::read_volatile(&raw const dirtier.process))
    };
    // Another has claimed the place meanwhile, or had still added to it: he has the bytes of both.
    if owner != process_number || (is_new && before != 0) {
        missed(BlockMissed::Dirtiers);
    }
    if owner == process_number && (is_new || before == 0) {
        dirtier.since_ns = now;
        let at = DIRTIERS_AT + u64::from(index) * MAX_DIRTIERS as u64 + slot as u64;
        identify(&task, &mut dirtier.asker);
        ask_ahead(&context, &task, &mut dirtier.asker, at);
    }
    0
}

/// Bytes of a folio.
#[inline(always)]
fn bytes(folio: *const u8) -> u64 {
    let large = config!(block.folio_large_mask);
    if large == 0 || kernel_number(folio, config!(block.folio_flags)) & large == 0 {
        return PAGE_BYTES;
    }
    let order = kernel_number(folio, config!(block.folio_order)) & 0xff;
    PAGE_BYTES << if order > MAX_ORDER { 0 } else { order }
}

/// The element of a file.
#[inline(always)]
pub(crate) fn find(inode: u64) -> Option<(u32, &'static mut DirtyFile)> {
    let mut index = 0;
    while index < REQUEST_PLACES {
        let at = place(inode, index, MAX_DIRTY_FILES);
        let file = DIRTY_FILES.get_ptr_mut(at)?;
        // SAFETY: the pointer is to a map element, which others may claim at any time, hence volatile.
        if unsafe { core::ptr::read_volatile(&raw const (*file).inode) } == inode {
            // SAFETY: the element is this file's, and all that is written in it is by atomic operations or of one dirtier.
            return Some((at, unsafe { &mut *file }));
        }
        index += 1;
    }
    None
}

/// An element for a file: its own, a free one, or that of the file that was written to least recently.
#[inline(always)]
fn add(inode: u64, now: u64) -> Option<(u32, &'static mut DirtyFile)> {
    let identity = identity(inode);
    if let Some((at, file)) = find(inode) {
        if (file.number, file.generation) != identity {
            clear(file, identity);
        }
        file.written_ns = now;
        return Some((at, file));
    }
    let (mut oldest, mut oldest_ns) = (0, u64::MAX);
    let mut index = 0;
    while index < REQUEST_PLACES {
        let at = place(inode, index, MAX_DIRTY_FILES);
        let file = DIRTY_FILES.get_ptr_mut(at)?;
        // SAFETY: the pointer is to a map element that every CPU writes, hence volatile.
        let written_ns =
            unsafe { if is_gone(&*file) { 0 } else { core::ptr::read_volatile(&raw const (*file).written_ns) } };
        if written_ns < oldest_ns {
            (oldest, oldest_ns) = (at, written_ns);
        }
        index += 1;
    }
    let file = DIRTY_FILES.get_ptr_mut(oldest)?;
    // SAFETY: as in `find`.
    let file = unsafe { &mut *file };
    if clear(file, identity) && oldest_ns != 0 {
        missed(BlockMissed::Dirtiers);
    }
    // SAFETY: a reference is valid and aligned. Volatile: others look for it.
    unsafe { core::ptr::write_volatile(&raw mut file.inode, inode) };
    file.written_ns = now;
    Some((oldest, file))
}

/// Number of an inode, and its generation.
#[inline(always)]
fn identity(inode: u64) -> (u64, u64) {
    let inode = inode as *const u8;
    let generation = kernel_number(inode, config!(file.inode_generation));
    (kernel_word(inode, config!(file.inode_number)), u64::from(generation))
}

/// Whether a file has no name any more, or its inode is another's: what was dirty of it was not written back, and hardly will be.
#[inline(always)]
fn is_gone(file: &DirtyFile) -> bool {
    kernel_number(file.inode as *const u8, config!(file.inode_links)) == 0
        || identity(file.inode) != (file.number, file.generation)
}

/// Forgets who wrote; returns whether there was something left to be written back.
#[inline(always)]
fn clear(file: &mut DirtyFile, identity: (u64, u64)) -> bool {
    let mut slot = 0;
    let mut left = 0;
    while slot < MAX_DIRTIERS {
        left |= file.dirtiers[slot].bytes;
        file.dirtiers[slot].process = 0;
        file.dirtiers[slot].bytes = 0;
        slot += 1;
    }
    (file.number, file.generation) = identity;
    left != 0
}

/// The place of a process among those that write to a file: its own, a free one, or that of one whose pages are all written
/// back. And whether it was another's.
#[inline(always)]
fn claim(file: &mut DirtyFile, process: u64) -> Option<(usize, bool)> {
    // Another time where others claim the same one at the same time, among them maybe a thread of this process.
    for _ in 0..2 {
        let (mut free, mut owner) = (MAX_DIRTIERS, 0);
        let mut slot = 0;
        while slot < MAX_DIRTIERS {
            let dirtier = &file.dirtiers[slot];
            // SAFETY: references are valid and aligned. Volatile: others may claim it at any time.
            let (found, bytes) = unsafe {
                let found = core::ptr::read_volatile(&raw const dirtier.process);
                (found, core::ptr::read_volatile(&raw const dirtier.bytes))
            };
            if found == process {
                return Some((slot, false));
            }
            if bytes == 0 && (free == MAX_DIRTIERS || (found == 0 && owner != 0)) {
                (free, owner) = (slot, found);
            }
            slot += 1;
        }
        if free == MAX_DIRTIERS {
            return None;
        }
        let cell = &raw mut file.dirtiers[free % MAX_DIRTIERS].process;
        // SAFETY: the pointer is to a map element that every CPU may claim, hence atomic.
        if unsafe { atomic::replace(cell, owner, process) } {
            return Some((free, true));
        }
    }
    None
}

/// Takes up to `bytes` that are written back of a file from whoever has had dirty pages for longest; returns whose they are, and
/// how many, which may be none. `None` where nobody has any that is known: they were dirty before the recording began, or of somebody who was not
/// asked for.
#[inline(always)]
pub(crate) fn take(file: &mut DirtyFile, bytes: u64) -> Option<(usize, u64)> {
    let (mut oldest, mut oldest_ns) = (MAX_DIRTIERS, u64::MAX);
    let mut slot = 0;
    while slot < MAX_DIRTIERS {
        let dirtier = &file.dirtiers[slot];
        if dirtier.process != 0 && dirtier.bytes != 0 && dirtier.since_ns < oldest_ns {
            (oldest, oldest_ns) = (slot, dirtier.since_ns);
        }
        slot += 1;
    }
    if oldest == MAX_DIRTIERS {
        return None;
    }
    let dirtier = &mut file.dirtiers[oldest % MAX_DIRTIERS];
    // SAFETY: the pointer is to a map element that every CPU writes, hence atomic.
    Some((oldest, unsafe { atomic::take(&raw mut dirtier.bytes, bytes) }))
}
