//! The probe points, as functions and as USDT notes of the provider `otel_memory`: a nop each, which a probe replaces.
//!
//! The profiler goes by the functions' names, other tools by the notes. Source of the layout of notes: systemtap's sdt.h, and
//! <https://sourceware.org/systemtap/wiki/UserSpaceProbeImplementation>.

#[cfg(target_arch = "x86_64")]
use std::arch::asm;

/// A nop that a note tells of. `$name`: of the probe; `$arguments`: where they are.
#[cfg(target_arch = "x86_64")]
macro_rules! point {
    ($name:literal, $arguments:literal, $($register:tt = $value:expr),+) => {
        asm!(
            "990: nop",
            ".pushsection .note.stapsdt, \"\", \"note\"",
            ".balign 4",
            ".4byte 992f-991f, 994f-993f, 3",
            "991: .asciz \"stapsdt\"",
            "992: .balign 4",
            "993: .8byte 990b",
            // No base, by which tools would tell that the file was changed by prelink, and no semaphore.
            ".8byte 0, 0",
            ".asciz \"otel_memory\"",
            concat!(".asciz \"", $name, "\""),
            concat!(".asciz \"", $arguments, "\""),
            "994: .balign 4",
            ".popsection",
            $(in($register) $value,)+
            options(nostack, preserves_flags)
        )
    };
}

/// Announces a block. `block`: null where it will not be announced when it is freed, for want of room; `size`: what was asked
/// for, bytes; `weight`: bytes that it stands for. Returns the block, by which it is followed.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn otel_memory_alloc(block: *mut u8, size: usize, weight: u64) -> *mut u8 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a nop; the rest goes to other sections.
    unsafe {
        point!("alloc", "8@%rdi 8@%rsi 8@%rdx", "rdi" = block, "rsi" = size, "rdx" = weight);
    }
    #[cfg(test)]
    announced::note(block, Some(weight));
    block
}

/// Announces that a block is freed.
#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn otel_memory_free(block: *mut u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above.
    unsafe {
        point!("free", "8@%rdi", "rdi" = block);
    }
    #[cfg(test)]
    announced::note(block, None);
}

/// What was announced, for tests.
#[cfg(test)]
pub(crate) mod announced {
    use std::cell::RefCell;

    thread_local! {
        static ANNOUNCED: RefCell<Vec<(usize, Option<u64>)>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn note(block: *mut u8, weight: Option<u64>) {
        ANNOUNCED.with_borrow_mut(|announced| announced.push((block.addr(), weight)));
    }

    /// Addresses, with the weight of those that were allocated.
    pub(crate) fn take() -> Vec<(usize, Option<u64>)> {
        ANNOUNCED.take()
    }
}
