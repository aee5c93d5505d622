//! Survives a target's file that shrinks while it is read.
//!
//! blazesym maps files into memory. When such a file is truncated meanwhile, touching what is gone raises SIGBUS,
//! which would end us. The handler puts a page of zeros there instead: the parsers take that for a damaged file.

use std::sync::Once;

/// `BUS_ADRERR`: the address is in a mapping, but there is nothing behind it. Source: `sigaction(2)`.
const NOTHING_BEHIND: libc::c_int = 2;

/// Installs the handler, once in a process.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: an all-zero structure is a valid one, and the handler only makes async-signal-safe calls.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_bus_error as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
        }
    });
}

/// Puts zeros behind the address; for every other cause of the signal, lets it have its default effect.
extern "C" fn on_bus_error(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    const PAGE: usize = 4096;
    // SAFETY: the kernel hands a valid structure. The page is part of a file mapping that has lost its file, so that
    // nobody can have a use for what is there; mmap with MAP_FIXED replaces just it.
    unsafe {
        if (*info).si_code == NOTHING_BEHIND {
            let page = ((*info).si_addr() as usize & !(PAGE - 1)) as *mut libc::c_void;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            if libc::mmap(page, PAGE, libc::PROT_READ, flags, -1, 0) != libc::MAP_FAILED {
                return;
            }
        }
        libc::signal(libc::SIGBUS, libc::SIG_DFL);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_mapped_file_that_shrinks_reads_as_zeros() {
        install();
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        // SAFETY: a new mapping of a file that is ours.
        let page = unsafe {
            let flags = libc::MAP_SHARED;
            libc::mmap(std::ptr::null_mut(), 8192, libc::PROT_READ, flags, file.as_raw_fd(), 0)
        };
        assert_ne!(page, libc::MAP_FAILED);
        file.set_len(0).unwrap();
        // SAFETY: the mapping has this byte; what is behind it is the handler's business.
        let byte = unsafe { std::ptr::read_volatile(page.cast::<u8>().add(5000)) };
        assert_eq!(byte, 0);
    }
}
