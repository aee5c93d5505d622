//! `bpf(2)`, for the commands that aya does not wrap.

use std::io;

/// Runs a command.
///
/// `attributes`: the beginning of `union bpf_attr` that the command takes, with valid pointers in it; the kernel may
/// write to it.
pub(super) fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the structure has the size that is stated, and the caller's pointers live through the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    i32::try_from(result).ok().filter(|&result| result >= 0).ok_or_else(io::Error::last_os_error)
}
