//! The parts of a request that is done: of which file and cgroup each is, and who is credited with it.

use profiler_common::block::{MAX_DIRTIERS, OF_KERNEL, STRUCT_BYTES, UNASKED};
use profiler_common::file::FileId;

use crate::block_asker::{DIRTIERS_AT, asker, process_of};
use crate::block_count::credit_bytes;
use crate::block_dirty;
use crate::block_noted::{find, remove};
use crate::config::config;
use crate::maps::{BLOCK_DONE, BLOCK_REQUESTS, DoneRequest, NO_REQUEST, RequestPart};
use crate::structure::{address, cast, number, read, typed, word};
use crate::task::{kernel_number, kernel_word};

/// What is read of a device, a cgroup or a file system is read again after so long: its structure may be another's by then.
pub(crate) const READ_AGAIN_NS: u64 = 50_000_000;

/// Bits of a page's mapping that is none of a file. Source: `PAGE_MAPPING_FLAGS` (`FOLIO_MAPPING_FLAGS` since Linux 6.17),
/// include/linux/page-flags.h.
const NO_FILE: u64 = 3;

/// Credits whoever asked for a part of the request that is done; returns whether there is another.
///
/// A global function, as `walk_frame` is: the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn credit(bio: u64, writes: u32, is_last: u32) -> u32 {
    let Some(done) = BLOCK_DONE.get_ptr_mut(0) else { return 0 };
    // SAFETY: the element is this CPU's, and the program that calls is the only one to use it.
    let done = unsafe { &mut *done };
    if done.part.at != bio {
        read_part(done, bio);
        // It was the first part of a request until another one came before it: who asked for it is known.
        remove(done.own);
        done.own = NO_REQUEST;
        if let Some(noted) = find(bio) {
            done.own = u64::from(noted.at);
            done.place = if noted.request.flags & UNASKED == 0 { done.own } else { NO_REQUEST };
        }
    }
    let size = u64::from(done.part.size);
    // The last part has all that is left, so that no byte is missing where there are more parts than are looked at.
    let mut left = if is_last != 0 || size > done.left { done.left } else { size };
    done.left -= left;
    done.part_left = size.saturating_sub(left);
    done.key.cgroup = cgroup(done);
    let found = inode(&done.part, &mut done.address);
    done.inode = found;
    if done.inode == 0 {
        done.file = FileId { inode: 0, device: 0, generation: 0 };
    } else {
        identify_file(done);
    }
    let is_written_back = writes != 0 && done.inode != 0 && !is_direct(&done.part);
    if is_written_back
        && let Some((index, file)) = block_dirty::find(done.inode)
        && file.number == done.file.inode
        && file.generation == u64::from(done.file.generation)
    {
        let who = asker(done.place).map_or(0, |asker| process_of(asker.start_time_ns, asker.pid));
        let mut turns = 0;
        while turns < MAX_DIRTIERS && left > 0 {
            let Some((dirtier, part)) = block_dirty::take(file, left) else { break };
            // Who writes back what he wrote himself is known with the stack on which he does.
            let at = if file.dirtiers[dirtier].process == who {
                done.place
            } else {
                DIRTIERS_AT + u64::from(index) * MAX_DIRTIERS as u64 + dirtier as u64
            };
            turns += 1;
            if part > 0 {
                credit_bytes(at, part);
                left -= part;
            }
        }
        // Nor is the rest that of who wrote to another page of the file.
        if left > 0 {
            credit_bytes(NO_REQUEST, left);
        }
        return u32::from(is_last == 0);
    }
    // What was dirty before the recording began is nobody's that is known, and not the kernel's who writes it back.
    let of_kernel = BLOCK_REQUESTS.get(done.place as u32).is_some_and(|request| request.flags & OF_KERNEL != 0);
    credit_bytes(if is_written_back && of_kernel { NO_REQUEST } else { done.place }, left);
    u32::from(is_last == 0)
}

/// Reads a part behind the first.
#[inline(always)]
fn read_part(done: &mut DoneRequest, bio: u64) {
    read(&mut done.bio, bio as *const u8);
    let words = &done.bio;
    done.part = RequestPart {
        at: bio,
        next: word(words, config!(block.bio_next)),
        group: if config!(block.bio_group) == 0 { 0 } else { word(words, config!(block.bio_group)) },
        pages: word(words, config!(block.bio_pages)),
        end: word(words, config!(block.bio_end)),
        private: word(words, config!(block.bio_private)),
        size: number(words, config!(block.bio_size)),
        index: number(words, config!(block.bio_index)),
    };
}

/// Number of the cgroup that a part is charged to; 0 where there is none.
#[inline(always)]
fn cgroup(done: &mut DoneRequest) -> u64 {
    if config!(block.bio_group) == 0 {
        return 0;
    }
    let group = done.part.group;
    if group == 0 {
        return 0;
    }
    if done.read_group.0 != group {
        let owner = kernel_word(group as *const u8, config!(block.group_owner)) as *const u8;
        let cgroup = kernel_word(owner, config!(block.owner_cgroup)) as *const u8;
        let node = kernel_word(cgroup, config!(block.cgroup_node)) as *const u8;
        done.read_group = (group, kernel_word(node, config!(block.node_id)));
    }
    done.read_group.1
}

/// Notes which file a part is of: as `file_name::id_of`, with fewer reads.
#[inline(always)]
fn identify_file(done: &mut DoneRequest) {
    if config!(block.inode_type) != 0 {
        let inode = cast(done.inode, config!(block.inode_type));
        let super_block = typed!(inode, file.inode_super_block, *const u8);
        done.file = FileId {
            inode: typed!(inode, file.inode_number, u64),
            device: typed!(super_block, file.super_block_device, u32),
            generation: typed!(inode, file.inode_generation, u32),
        };
        return;
    }
    read(&mut done.bio_inode, done.inode as *const u8);
    let super_block = word(&done.bio_inode, config!(file.inode_super_block));
    if done.read_super_block.0 != super_block {
        let device = kernel_number(super_block as *const u8, config!(file.super_block_device));
        done.read_super_block = (super_block, u64::from(device));
    }
    done.file = FileId {
        inode: word(&done.bio_inode, config!(file.inode_number)),
        device: done.read_super_block.1 as u32,
        generation: generation(done),
    };
}

/// What tells a file from an earlier one of the same number: far behind the rest before Linux 6.12.
#[inline(always)]
fn generation(done: &DoneRequest) -> u32 {
    let offset = config!(file.inode_generation);
    if offset as usize + 8 <= STRUCT_BYTES {
        number(&done.bio_inode, offset)
    } else {
        kernel_number(done.inode as *const u8, offset)
    }
}

/// Whether a part is read or written past the page cache of a file.
#[inline(always)]
fn is_direct(part: &RequestPart) -> bool {
    config!(block.direct_end) != 0 && part.end == config!(block.direct_end)
}

/// Address of the inode whose pages a part reads or writes, or which is read and written past the page cache; 0 where there is
/// none. `cell`: for [`address`].
#[inline(always)]
fn inode(part: &RequestPart, cell: &mut u64) -> u64 {
    if is_direct(part) {
        if config!(block.direct_type) != 0 {
            let direct = cast(part.private, config!(block.direct_type));
            let call = typed!(direct, block.direct_call, *const u8);
            let file = typed!(call, block.call_file, *const u8);
            return address(cell, typed!(file, block.file_inode, *const u8));
        }
        let direct = part.private as *const u8;
        let call = kernel_word(direct, config!(block.direct_call)) as *const u8;
        let file = kernel_word(call, config!(block.call_file)) as *const u8;
        return kernel_word(file, config!(block.file_inode));
    }
    let (vectors, index) = (part.pages as *const u8, part.index);
    if vectors.is_null() || part.size == 0 {
        return 0;
    }
    let page = kernel_word(vectors, index * config!(block.vector_size) + config!(block.vector_page)) as *const u8;
    let head = kernel_word(page, config!(block.page_head));
    let page = if head & 1 != 0 { (head - 1) as *const u8 } else { page };
    let mapping = kernel_word(page, config!(block.page_mapping));
    if mapping == 0 || mapping & NO_FILE != 0 {
        return 0;
    }
    kernel_word(mapping as *const u8, config!(block.mapping_host))
}
