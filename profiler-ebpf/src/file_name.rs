//! Names of files: the path from a file up to the root of its file system, sent to user space once for each file.
//!
//! The names are those that the kernel has in memory. One that a process has opened the file by is better than any that the
//! inode has: a file may have several.

use aya_ebpf::helpers::generated::{bpf_probe_read_kernel_str, bpf_probe_read_user_str};
use profiler_common::event::RING_FILE_NAME;
use profiler_common::file::{
    FILE_DELETED, FILE_RENAMED, FileId, FileNameRecord, MAX_COMPONENT_BYTES, MAX_COMPONENTS, MAX_NAME_BYTES,
    MAX_NAMES_IN_A_WINDOW, NAME_CUT,
};

use crate::aggregate;
use crate::atomic;
use crate::config::config;
use crate::maps::{CONTROL, FILE_NAME, FILES_SEEN, FILL, Namer};
use crate::task::{kernel_number, kernel_word};

/// What a file is known by.
#[inline(always)]
pub(crate) fn id_of(inode: *const u8) -> FileId {
    let super_block = kernel_word(inode, config!(file.inode_super_block)) as *const u8;
    FileId {
        inode: kernel_word(inode, config!(file.inode_number)),
        device: kernel_number(super_block, config!(file.super_block_device)),
        generation: kernel_number(inode, config!(file.inode_generation)),
    }
}

/// Sends a file's name, unless that was done. `dentry`: the name that a process has opened it by; null where that is not known.
#[inline(always)]
pub(crate) fn see(namer: Namer, pid: u32, inode: *const u8, dentry: *const u8, id: &FileId) {
    if FILES_SEEN.get_ptr(id).is_some() || !may_send() {
        return;
    }
    let Some(name) = FILE_NAME.get_ptr_mut(namer as u32) else { return };
    // SAFETY: the element is this CPU's; a program that interrupts this one sees the flag.
    if unsafe { atomic::swap(&raw mut (*name).claimed, 1) } != 0 {
        return;
    }
    // SAFETY: the flag makes it this program's alone.
    let name = unsafe { &mut *name };
    name.record.id = *id;
    name.record.pid = pid;
    name.record.directory = 0;
    if send(if dentry.is_null() { first_name(inode) } else { dentry }, &mut name.record) {
        // When the mark does not fit, the name is sent again: user space keeps one.
        let _ = FILES_SEEN.insert(id, 1, 0);
    }
    name.claimed = 0;
}

/// Sends the path in a process's memory that it has given a file as its new name, relative to the directory of a descriptor.
#[inline(always)]
pub(crate) fn see_renamed(namer: Namer, pid: u32, directory: i32, path: u64) {
    if !may_send() {
        return;
    }
    let Some(name) = FILE_NAME.get_ptr_mut(namer as u32) else { return };
    // SAFETY: as in `see`.
    if unsafe { atomic::swap(&raw mut (*name).claimed, 1) } != 0 {
        return;
    }
    // SAFETY: as in `see`.
    let name = unsafe { &mut *name };
    let record = &mut name.record;
    // SAFETY: there is room for so many bytes; the helper survives any source address.
    let length = unsafe {
        bpf_probe_read_user_str(
            record.names.as_mut_ptr().cast(),
            MAX_NAME_BYTES as u32,
            path as *const core::ffi::c_void,
        )
    };
    if length > 0 && length <= MAX_NAME_BYTES as i64 {
        (record.kind, record.flags) = (RING_FILE_NAME, FILE_RENAMED);
        (record.id, record.pid, record.directory) = (FileId::default(), pid, directory);
        record.bytes = length as u32;
        // Where there is no room, it stays one of the files that have no name.
        let _ = aggregate::send(record, core::mem::offset_of!(FileNameRecord, names) + length as usize);
    }
    name.claimed = 0;
}

/// Whether one more name may be sent in this window.
#[inline(always)]
fn may_send() -> bool {
    let Some(control) = CONTROL.get_ptr(0) else { return false };
    // SAFETY: the pointer is to a map element that user space may write at any time, hence volatile.
    let window = unsafe { core::ptr::read_volatile(&raw const (*control).window) } & 1;
    let Some(fill) = FILL.get_ptr_mut(window) else { return false };
    // SAFETY: the pointer is to a map element that every CPU writes, hence atomic.
    unsafe { atomic::add(&raw mut (*fill).file_names, 1) < MAX_NAMES_IN_A_WINDOW }
}

/// The first name that the kernel has in memory of a file; null when it has none.
#[inline(always)]
fn first_name(inode: *const u8) -> *const u8 {
    match kernel_word(inode, config!(file.inode_names)) {
        0 => core::ptr::null(),
        link => (link as *const u8).wrapping_sub(config!(file.dentry_link) as usize),
    }
}

/// Sends the path of a name; false when there was no room.
#[inline(always)]
fn send(mut dentry: *const u8, record: &mut FileNameRecord) -> bool {
    record.kind = RING_FILE_NAME;
    record.flags = NAME_CUT;
    if !dentry.is_null() && is_deleted(dentry) {
        record.flags |= FILE_DELETED;
    }
    let mut used = 0_usize;
    let mut components = 0;
    while components < MAX_COMPONENTS {
        let parent = kernel_word(dentry, config!(file.dentry_parent)) as *const u8;
        if parent == dentry || parent.is_null() {
            record.flags &= !NAME_CUT;
            break;
        }
        let Some(length) = copy(dentry, record, used) else { break };
        used += length;
        dentry = parent;
        components += 1;
    }
    record.bytes = used as u32;
    aggregate::send(record, core::mem::offset_of!(FileNameRecord, names) + used)
}

/// Whether a name is not in its directory any more. The root of a file system is in none.
#[inline(always)]
fn is_deleted(dentry: *const u8) -> bool {
    kernel_word(dentry, config!(file.dentry_hashed)) == 0
        && kernel_word(dentry, config!(file.dentry_parent)) != dentry as u64
}

/// Copies a name behind what is used; returns its length, with the zero. `None` when it cannot be read, or there is no room.
#[inline(always)]
fn copy(dentry: *const u8, record: &mut FileNameRecord, used: usize) -> Option<usize> {
    if used >= MAX_NAME_BYTES {
        return None;
    }
    let name = kernel_word(dentry, config!(file.dentry_name)) as *const core::ffi::c_void;
    // Read anew, so that the compiler does not leave out the mask, which verifiers before Linux 6.2 need.
    let target = record.names.as_mut_ptr().wrapping_add(crate::config::read(&used) & (MAX_NAME_BYTES - 1));
    // SAFETY: behind all that is used there is room for one more name; the helper survives any source address.
    let length = unsafe { bpf_probe_read_kernel_str(target.cast(), MAX_COMPONENT_BYTES as u32, name) };
    if length <= 0 || length > MAX_COMPONENT_BYTES as i64 { None } else { Some(length as usize) }
}
