//! Structures of the kernel: read whole, or field by field through pointers that the verifier knows the types of.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use profiler_common::block::{CAST, STRUCT_BYTES};

/// Words of a structure of the kernel, and one of its fields.
pub(crate) type Words = [u64; STRUCT_BYTES / 8];

/// A field of 64 bits. `offset` is a constant of the load.
#[inline(always)]
pub(crate) fn word(words: &Words, offset: u32) -> u64 {
    words[(offset as usize / 8) % words.len()]
}

/// A field of 32 bits.
#[inline(always)]
pub(crate) fn number(words: &Words, offset: u32) -> u32 {
    (word(words, offset) >> (8 * (offset % 8))) as u32
}

/// Reads as much of a structure as has its fields; zeros where it cannot be read.
#[inline(always)]
pub(crate) fn read(words: &mut Words, address: *const u8) {
    // SAFETY: the helper writes as many bytes as there are, and survives any source address.
    unsafe { bpf_probe_read_kernel(words.as_mut_ptr().cast(), STRUCT_BYTES as u32, address.cast()) };
}

/// Reads a field through a pointer that the verifier knows the type of: no call, and 0 where it cannot be read.
macro_rules! typed {
    ($pointer:expr, $($offset:ident).+, $type:ty) => {
        // SAFETY: the offset is of this field in the running kernel. Volatile: in one piece, as the verifier wants it.
        unsafe { core::ptr::read_volatile($pointer.wrapping_add(config!($($offset).+) as usize).cast::<$type>()) }
    };
}

pub(crate) use typed;

/// An address as a pointer to a structure of the kernel's that the verifier knows the type of. `kind`: the type's number, a
/// constant of the load, never 0.
#[inline(always)]
pub(crate) fn cast(address: u64, kind: u32) -> *const u8 {
    // SAFETY: a call by number, as of helpers: user space has put the one of `bpf_rdonly_cast` there.
    let cast = unsafe { core::mem::transmute::<usize, unsafe extern "C" fn(u64, u32) -> *const u8>(CAST as usize) };
    // SAFETY: takes any address; what is read through what it returns is 0 where it cannot be read.
    unsafe { cast(address, kind) }
}

/// A pointer that the verifier knows the type of as a number, with which one may calculate.
#[inline(always)]
pub(crate) fn address(cell: &mut u64, pointer: *const u8) -> u64 {
    let cell = &raw mut *cell;
    // SAFETY: the cell is in a map element: what is read of one is a number for the verifier. Volatile, so that it is read.
    unsafe {
        core::ptr::write_volatile(cell.cast::<*const u8>(), pointer);
        core::ptr::read_volatile(cell)
    }
}
