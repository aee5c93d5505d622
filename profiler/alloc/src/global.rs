//! A global allocator of Rust that samples what it gives out.

use std::alloc::{GlobalAlloc, Layout, System};

use crate::sampler::{choose, passes};
use crate::{MARK, blocks, is_marked, otel_memory_alloc, otel_memory_free};

/// An allocator whose allocations are sampled.
///
/// ```
/// use std::alloc::System;
///
/// #[global_allocator]
/// static ALLOCATOR: profiler_alloc::Sampled<System> = profiler_alloc::Sampled(System);
///
/// let numbers: Vec<u32> = (0..1_000_000).collect();
/// assert_eq!(numbers.last(), Some(&999_999));
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Sampled<A = System>(
    /// The allocator that gives out memory.
    pub A,
);

/// The layout of a block that is announced.
fn marked(layout: Layout) -> Option<Layout> {
    layout.align_to(MARK).ok()
}

impl<A: GlobalAlloc> Sampled<A> {
    /// An allocation that has not passed. `is_zeroed`: whether the block is to be zero.
    ///
    /// # Safety
    ///
    /// As that of [`GlobalAlloc::alloc`].
    #[cold]
    unsafe fn chosen(&self, layout: Layout, is_zeroed: bool) -> *mut u8 {
        // SAFETY: passed on to the caller.
        let plain = |layout| unsafe { if is_zeroed { self.0.alloc_zeroed(layout) } else { self.0.alloc(layout) } };
        let Some(weight) = choose(layout.size()) else { return plain(layout) };
        let Some(marked) = marked(layout) else { return plain(layout) };
        let block = plain(marked);
        if block.is_null() {
            return plain(layout);
        }
        if blocks::add(block) {
            return otel_memory_alloc(block, layout.size(), weight);
        }
        // It must be given back by the layout that it was asked for by, which is told by its being in the set.
        // SAFETY: it was allocated by this layout.
        unsafe { self.0.dealloc(block, marked) };
        otel_memory_alloc(std::ptr::null_mut(), layout.size(), weight);
        plain(layout)
    }

    /// Frees a block that begins at a page.
    ///
    /// # Safety
    ///
    /// As that of [`GlobalAlloc::dealloc`].
    #[cold]
    unsafe fn free_marked(&self, block: *mut u8, layout: Layout) {
        let announced = blocks::take(block).then(|| marked(layout)).flatten();
        if announced.is_some() {
            otel_memory_free(block);
        }
        // SAFETY: a block in the set was allocated by the layout of one that is announced.
        unsafe { self.0.dealloc(block, announced.unwrap_or(layout)) };
    }
}

// SAFETY: blocks are those of the inner allocator, each given back by the layout that it was asked for by.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Sampled<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on to the caller.
        unsafe { if passes(layout.size()) { self.0.alloc(layout) } else { self.chosen(layout, false) } }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on to the caller.
        unsafe { if passes(layout.size()) { self.0.alloc_zeroed(layout) } else { self.chosen(layout, true) } }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: passed on to the caller.
        unsafe { if is_marked(block) { self.free_marked(block, layout) } else { self.0.dealloc(block, layout) } }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let passes = passes(size);
        if passes && !(is_marked(block) && blocks::has(block)) {
            // SAFETY: passed on to the caller.
            return unsafe { self.0.realloc(block, layout, size) };
        }
        // SAFETY: the caller sees to it that the size, rounded up, is no more than there can be.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: both blocks are as long as what is copied, and the old one is given back once.
        unsafe {
            let moved = if passes { self.0.alloc(new) } else { self.chosen(new, false) };
            if !moved.is_null() {
                std::ptr::copy_nonoverlapping(block, moved, layout.size().min(size));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::points::announced;
    use crate::sampler::restart;

    /// An allocator that checks that blocks come back by the layout that they were asked for by.
    #[derive(Default)]
    struct Strict(std::sync::Mutex<HashMap<usize, Layout>>);

    // SAFETY: blocks are the system's; one that comes back by another layout is refused.
    unsafe impl GlobalAlloc for Strict {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: passed on.
            let block = unsafe { System.alloc(layout) };
            assert_eq!(self.0.lock().unwrap().insert(block.addr(), layout), None);
            block
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            assert_eq!(self.0.lock().unwrap().remove(&block.addr()), Some(layout));
            // SAFETY: passed on.
            unsafe { System.dealloc(block, layout) };
        }
    }

    #[test]
    fn every_announced_block_is_announced_again_when_it_is_freed() {
        let allocator = Sampled(Strict::default());
        restart(11);
        announced::take();
        let layout = |size| Layout::from_size_align(size, 8).unwrap();
        let (mut held, mut asked) = (Vec::new(), 0);
        for number in 0..20_000_usize {
            let size = 1 + number * 37 % 5_000;
            // SAFETY: the size is not zero, blocks are freed once, and written within their size.
            unsafe {
                let block = allocator.alloc(layout(size));
                block.write_bytes(0x5a, size);
                asked += size;
                held.push((block, size));
                if number % 3 == 0 {
                    let (block, size) = held.swap_remove(number * 7 % held.len());
                    let new_size = 1 + (2 * size) % 7_000;
                    let block = allocator.realloc(block, layout(size), new_size);
                    assert!((0..size.min(new_size)).all(|place| *block.add(place) == 0x5a), "{number}");
                    asked += new_size;
                    held.push((block, new_size));
                    block.write_bytes(0x5a, new_size);
                }
                if number % 2 == 0 {
                    let (block, size) = held.swap_remove(number * 11 % held.len());
                    allocator.dealloc(block, layout(size));
                }
            }
        }
        for (block, size) in held {
            // SAFETY: as above.
            unsafe { allocator.dealloc(block, layout(size)) };
        }
        assert!(allocator.0.0.lock().unwrap().is_empty());
        let announced = announced::take();
        let (mut there, mut stands_for) = (HashMap::new(), 0);
        for (address, weight) in announced {
            match weight {
                Some(weight) => {
                    assert!(address.is_multiple_of(MARK) && address != 0);
                    assert_eq!(there.insert(address, weight), None);
                    stands_for += weight;
                }
                None => assert!(there.remove(&address).is_some(), "{address:#x} was not announced"),
            }
        }
        assert!(there.is_empty());
        #[expect(clippy::cast_precision_loss, reason = "a ratio")]
        let ratio = stands_for as f64 / asked as f64;
        // Some 130 points, so that a standard error is 9 in 100.
        assert!((0.6..1.4).contains(&ratio), "{ratio}");
    }

    #[test]
    fn zeroed_blocks_are_zero_and_alignments_hold() {
        let allocator = Sampled(System);
        restart(3);
        for align in [1, 16, 4096, 65_536] {
            for _ in 0..40 {
                let layout = Layout::from_size_align(300_000, align).unwrap();
                // SAFETY: the size is not zero, and the block is read within it and freed once.
                unsafe {
                    let block = allocator.alloc_zeroed(layout);
                    assert!(block.addr().is_multiple_of(align));
                    assert!(std::slice::from_raw_parts(block, 300_000).iter().all(|&byte| byte == 0));
                    block.write_bytes(1, 300_000);
                    allocator.dealloc(block, layout);
                }
            }
        }
        assert!(!announced::take().is_empty());
    }
}
