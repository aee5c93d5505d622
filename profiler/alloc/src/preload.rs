//! The functions of the C library's allocator, in front of whoever has them next: what is preloaded.
//!
//! The next one's are looked up at the first call, which may come before anything else of the program runs. What is allocated
//! meanwhile, by the look-up itself, comes from a few pages that are never given back.

use std::cell::UnsafeCell;
use std::ffi::{CStr, c_int, c_void};
use std::marker::PhantomData;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use crate::sampler::{DEFAULT_PERIOD, choose, passes, set_period};
use crate::{MARK, blocks, is_marked, otel_memory_alloc, otel_memory_free};

/// The environment variable with the mean distance of points, bytes.
const PERIOD_VARIABLE: &CStr = c"PROFILER_ALLOC_PERIOD";

type Malloc = unsafe extern "C" fn(usize) -> *mut c_void;
type Calloc = unsafe extern "C" fn(usize, usize) -> *mut c_void;
type Realloc = unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void;
type Free = unsafe extern "C" fn(*mut c_void);
type PosixMemalign = unsafe extern "C" fn(*mut *mut c_void, usize, usize) -> c_int;
type UsableSize = unsafe extern "C" fn(*mut c_void) -> usize;

/// A function of whoever has it next: its address, or null while it is not known.
struct Next<F> {
    address: AtomicPtr<c_void>,
    function: PhantomData<F>,
}

impl<F> Next<F> {
    const fn new() -> Self {
        Self { address: AtomicPtr::new(null_mut()), function: PhantomData }
    }

    fn find(&self, name: &CStr) {
        // SAFETY: the name ends with a zero.
        let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
        self.address.store(found, Ordering::Relaxed);
    }
}

/// A function that is looked up, with its type.
macro_rules! next {
    ($($next:ident: $type:ty;)+) => {
        $(impl Next<$type> {
            /// The function; `None` while it is not known.
            #[inline(always)]
            fn known(&self) -> Option<$type> {
                let address: *const c_void = self.address.load(Ordering::Relaxed);
                // SAFETY: null, or what the dynamic linker has found for the C function whose type this is.
                unsafe { std::mem::transmute(address) }
            }
        }
        static $next: Next<$type> = Next::new();)+
    };
}

next! {
    MALLOC: Malloc;
    CALLOC: Calloc;
    REALLOC: Realloc;
    FREE: Free;
    POSIX_MEMALIGN: PosixMemalign;
    USABLE_SIZE: UsableSize;
}

/// Whether the functions are being looked up, or have been.
static LOOKED_UP: AtomicBool = AtomicBool::new(false);

/// Looks the functions up, unless it is this that wants memory.
#[cold]
fn look_up() {
    if LOOKED_UP.swap(true, Ordering::Relaxed) {
        return;
    }
    CALLOC.find(c"calloc");
    REALLOC.find(c"realloc");
    FREE.find(c"free");
    POSIX_MEMALIGN.find(c"posix_memalign");
    USABLE_SIZE.find(c"malloc_usable_size");
    // Last: who finds this one finds all.
    MALLOC.find(c"malloc");
}

/// Reads the environment, once the C library can.
extern "C" fn set_up() {
    // SAFETY: the name ends with a zero; nobody changes the environment before `main`.
    let value = unsafe { libc::getenv(PERIOD_VARIABLE.as_ptr()) };
    if !value.is_null() {
        // SAFETY: what getenv returns ends with a zero.
        let value = unsafe { CStr::from_ptr(value) };
        set_period(value.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(DEFAULT_PERIOD));
    }
}

#[used]
#[unsafe(link_section = ".init_array")]
static SET_UP: extern "C" fn() = set_up;

/// Pages for what is allocated while functions are looked up.
const FIRST_PAGES: usize = 16;

#[repr(align(4096))]
struct FirstMemory(UnsafeCell<[u8; FIRST_PAGES * MARK]>);

// SAFETY: every page is given out once.
unsafe impl Sync for FirstMemory {}

static FIRST: FirstMemory = FirstMemory(UnsafeCell::new([0; FIRST_PAGES * MARK]));
static FIRST_USED: AtomicUsize = AtomicUsize::new(0);

/// Memory that is zero; null where there is no more.
#[cold]
fn first(size: usize) -> *mut c_void {
    let pages = size.div_ceil(MARK).max(1);
    let used = FIRST_USED.fetch_add(pages.min(FIRST_PAGES), Ordering::Relaxed);
    if pages > FIRST_PAGES || used + pages > FIRST_PAGES {
        return null_mut();
    }
    FIRST.0.get().cast::<u8>().wrapping_add(used * MARK).cast()
}

/// Bytes from a block to the end of the first pages; `None` for one that is not in these.
fn in_first(block: *const c_void) -> Option<usize> {
    let into = block.addr().checked_sub(FIRST.0.get().addr())?;
    (FIRST_PAGES * MARK).checked_sub(into).filter(|&left| left > 0)
}

/// Allocates and announces. `align`: at least; `weight`: bytes that it stands for. Null where there is no memory.
unsafe fn announced(align: usize, size: usize, weight: u64) -> *mut c_void {
    let Some(posix_memalign) = POSIX_MEMALIGN.known() else { return null_mut() };
    let mut block = null_mut();
    // SAFETY: the alignment is a power of two and the place is ours.
    if unsafe { posix_memalign(&raw mut block, align.max(MARK), size) } != 0 {
        return null_mut();
    }
    let known = if blocks::add(block.cast()) { block } else { null_mut() };
    otel_memory_alloc(known.cast(), size, weight);
    block
}

/// An allocation that has not passed, or comes before functions are known: announced if it is chosen. Null where the caller has
/// to go on by itself.
#[cold]
unsafe fn chosen(align: usize, size: usize) -> *mut c_void {
    if MALLOC.known().is_none() {
        look_up();
        if MALLOC.known().is_none() {
            return first(size);
        }
    }
    match choose(size) {
        // SAFETY: passed on to the caller.
        Some(weight) => unsafe { announced(align, size, weight) },
        None => null_mut(),
    }
}

/// See malloc(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn malloc(size: usize) -> *mut c_void {
    // SAFETY: passed on to the caller, as everywhere below.
    unsafe {
        if !passes(size) {
            let block = chosen(1, size);
            if !block.is_null() {
                return block;
            }
        }
        MALLOC.known().map_or(null_mut(), |malloc| malloc(size))
    }
}

/// See malloc(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    // SAFETY: what is written is within the block.
    unsafe {
        if let Some(bytes) = count.checked_mul(size)
            && !passes(bytes)
        {
            let block = chosen(1, bytes);
            if !block.is_null() {
                block.write_bytes(0, bytes);
                return block;
            }
        }
        CALLOC.known().map_or(null_mut(), |calloc| calloc(count, size))
    }
}

/// See malloc(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn free(block: *mut c_void) {
    if is_marked(block.cast()) {
        if block.is_null() || in_first(block).is_some() {
            return;
        }
        if blocks::take(block.cast()) {
            otel_memory_free(block.cast());
        }
    }
    if let Some(free) = FREE.known() {
        // SAFETY: passed on to the caller.
        unsafe { free(block) };
    }
}

/// See malloc(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn realloc(block: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: passed on to the caller; what is copied is within both blocks.
    unsafe {
        if block.is_null() {
            return malloc(size);
        }
        let is_ours = || is_marked(block.cast()) && (blocks::has(block.cast()) || in_first(block).is_some());
        if size == 0 || (passes(size) && !is_ours()) {
            return other(block, size);
        }
        move_block(block, size)
    }
}

/// Changes the size of a block that is not announced, or is freed: realloc(3) of 0 bytes frees.
unsafe fn other(block: *mut c_void, size: usize) -> *mut c_void {
    if is_marked(block.cast()) {
        if in_first(block).is_some() {
            return null_mut();
        }
        if blocks::take(block.cast()) {
            otel_memory_free(block.cast());
        }
    }
    // SAFETY: passed on to the caller.
    unsafe { REALLOC.known().map_or(null_mut(), |realloc| realloc(block, size)) }
}

/// Moves a block that is announced, or that is to be.
#[cold]
unsafe fn move_block(block: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: passed on to the caller; what is copied is within both blocks.
    unsafe {
        let length = match (in_first(block), USABLE_SIZE.known()) {
            (Some(left), _) => left,
            (None, Some(usable_size)) => usable_size(block),
            // Its length cannot be had: it is not to be moved by us.
            (None, None) => return other(block, size),
        };
        let moved = malloc(size);
        if !moved.is_null() {
            moved.cast::<u8>().copy_from_nonoverlapping(block.cast(), length.min(size));
            free(block);
        }
        moved
    }
}

/// See posix_memalign(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn posix_memalign(place: *mut *mut c_void, align: usize, size: usize) -> c_int {
    // SAFETY: passed on to the caller, who gives a place for the address.
    unsafe {
        if align.is_power_of_two() && align.is_multiple_of(size_of::<usize>()) && !passes(size) {
            let block = chosen(align, size);
            if !block.is_null() && block.addr().is_multiple_of(align) {
                place.write(block);
                return 0;
            }
        }
        POSIX_MEMALIGN.known().map_or(libc::ENOMEM, |next| next(place, align, size))
    }
}

/// See posix_memalign(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn memalign(align: usize, size: usize) -> *mut c_void {
    let mut block = null_mut();
    // Less than a pointer's is as good.
    let align = align.max(size_of::<usize>());
    // SAFETY: the place is ours.
    match unsafe { posix_memalign(&raw mut block, align, size) } {
        0 => block,
        error => {
            // SAFETY: the thread's own.
            unsafe { *libc::__errno_location() = error };
            null_mut()
        }
    }
}

/// See posix_memalign(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut c_void {
    // SAFETY: passed on to the caller.
    unsafe { memalign(align, size) }
}

/// See posix_memalign(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn valloc(size: usize) -> *mut c_void {
    // SAFETY: passed on to the caller.
    unsafe { memalign(MARK, size) }
}

/// See posix_memalign(3).
#[unsafe(no_mangle)]
unsafe extern "C" fn pvalloc(size: usize) -> *mut c_void {
    // SAFETY: passed on to the caller.
    unsafe { memalign(MARK, size.div_ceil(MARK).saturating_mul(MARK)) }
}
