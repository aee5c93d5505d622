//! Memory of a process, read while it lives.

use std::io;

/// Fills `buffer` from a process's memory.
///
/// # Errors
///
/// When the process is gone, may not be looked into, or has not all of that mapped.
pub fn read_memory(pid: u32, address: u64, buffer: &mut [u8]) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    let address = usize::try_from(address).map_err(io::Error::other)?;
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len: buffer.len() };
    // SAFETY: the local part is `buffer`; the kernel checks the remote one against the other process's memory.
    let read = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    match usize::try_from(read) {
        Ok(read) if read == buffer.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Reads a process's memory into `buffer` as far as it is there, and returns how much that is.
#[must_use]
pub fn read_memory_up_to(pid: u32, address: u64, buffer: &mut [u8]) -> usize {
    let (Ok(pid), Ok(address)) = (libc::pid_t::try_from(pid), usize::try_from(address)) else { return 0 };
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let remote = libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len: buffer.len() };
    // SAFETY: as above.
    let read = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    usize::try_from(read).unwrap_or(0).min(buffer.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_whole_or_not_at_all() {
        let word = 0x1234_5678_9abc_def0_u64;
        let mut bytes = [0; 8];
        read_memory(std::process::id(), (&raw const word) as u64, &mut bytes).unwrap();
        assert_eq!(u64::from_ne_bytes(bytes), word);
        assert!(read_memory(std::process::id(), 16, &mut bytes).is_err());
        assert!(read_memory(u32::MAX, 16, &mut bytes).is_err());
        assert_eq!(read_memory_up_to(std::process::id(), (&raw const word) as u64, &mut bytes), 8);
        assert_eq!(read_memory_up_to(std::process::id(), 16, &mut bytes), 0);
    }
}
