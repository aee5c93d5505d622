//! The set of blocks that were announced and have not been freed.
//!
//! Of a fixed size, without locks: an address has one bucket of eight places, and is in one of these or nowhere. A block is put in
//! before who asked for it knows its address, and taken out before the allocator may give it away again: so no two threads work
//! on one address at once.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::MARK;

/// Places of a bucket: a line of the cache.
const PLACES: usize = 8;
/// Buckets: with a block announced for each 512 KiB, room for 32 GiB.
const BUCKETS: usize = 1 << 13;

#[repr(align(64))]
struct Bucket([AtomicUsize; PLACES]);

/// 0 is a place that is free.
static BLOCKS: [Bucket; BUCKETS] = [const { Bucket([const { AtomicUsize::new(0) }; PLACES]) }; BUCKETS];

/// The places where an address may be. By its page, multiplied by the golden ratio of 2^64. Source: D. E. Knuth, "The Art of
/// Computer Programming", volume 3, 6.4.
fn bucket(block: *const u8) -> &'static [AtomicUsize; PLACES] {
    let mixed = ((block.addr() / MARK) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let number = (mixed >> (u64::BITS - BUCKETS.trailing_zeros())) as usize;
    &BLOCKS[number].0
}

/// Puts a block in; false where there is no room.
pub(crate) fn add(block: *const u8) -> bool {
    bucket(block)
        .iter()
        .any(|place| place.compare_exchange(0, block.addr(), Ordering::Relaxed, Ordering::Relaxed).is_ok())
}

/// Whether a block is in.
pub(crate) fn has(block: *const u8) -> bool {
    bucket(block).iter().any(|place| place.load(Ordering::Relaxed) == block.addr())
}

/// Takes a block out; whether it was in.
pub(crate) fn take(block: *const u8) -> bool {
    let place = bucket(block).iter().find(|place| place.load(Ordering::Relaxed) == block.addr());
    // Nobody else frees this block.
    place.map(|place| place.store(0, Ordering::Relaxed)).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(number: usize) -> *const u8 {
        std::ptr::without_provenance(number * MARK)
    }

    #[test]
    fn what_was_put_in_is_taken_out_once() {
        // Addresses that no allocator of the other tests gives.
        let pages = (1..=10_000).map(|number| page((1 << 45) + number));
        for page in pages.clone() {
            assert!(!has(page));
            assert!(add(page) && has(page), "{page:?}");
        }
        for page in pages {
            assert!(take(page) && !has(page) && !take(page), "{page:?}");
        }
    }

    #[test]
    fn a_bucket_that_is_full_takes_no_more() {
        let wanted = bucket(page(1 << 46));
        let same = ((1 << 46)..).map(page).filter(|&page| std::ptr::eq(bucket(page), wanted));
        let pages: Vec<*const u8> = same.take(PLACES + 1).collect();
        assert!(pages[..PLACES].iter().all(|&page| add(page)));
        assert!(!add(pages[PLACES]) && !has(pages[PLACES]) && !take(pages[PLACES]));
        assert!(take(pages[3]) && add(pages[PLACES]));
        assert!(pages[..3].iter().chain(&pages[4..]).all(|&page| take(page)));
    }
}
