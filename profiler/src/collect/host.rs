//! Facts about the host and about ourselves.

use std::ffi::CStr;
use std::time::Duration;

use crate::bpf::online_cpus;
use crate::process::number_after;
use crate::profile::Host;

/// The host, as the capture describes it.
pub(super) fn host() -> Host {
    // SAFETY: an all-zero structure is a valid one, and the call fills it.
    let names = unsafe {
        let mut names: libc::utsname = std::mem::zeroed();
        libc::uname(&raw mut names);
        names
    };
    // SAFETY: the kernel ends each of these names with a zero, and so does the zeroed structure.
    let text = |name: &[libc::c_char]| unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
    Host {
        name: text(&names.nodename),
        kernel: text(&names.release),
        architecture: text(&names.machine),
        cpus: online_cpus().map_or(0, |cpus| u32::try_from(cpus.len()).unwrap_or(u32::MAX)),
    }
}

/// CPU time of this process so far, user and kernel, and its largest resident size in bytes.
pub(super) fn own_usage() -> (Duration, u64) {
    // SAFETY: an all-zero structure is a valid one, and the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let time = |value: libc::timeval| {
        Duration::from_secs(value.tv_sec.unsigned_abs()) + Duration::from_micros(value.tv_usec.unsigned_abs())
    };
    (time(usage.ru_utime) + time(usage.ru_stime), usage.ru_maxrss.unsigned_abs() * 1024)
}

/// Memory that this process has of its own, bytes; 0 when the kernel does not say.
pub(super) fn anonymous_bytes() -> u64 {
    let status = std::fs::read("/proc/self/status").unwrap_or_default();
    number_after(&status, b"RssAnon:").unwrap_or(0).saturating_mul(1024)
}

/// Lets this process keep as many files open as it may: every object that is seen is one.
pub(super) fn raise_file_limit() {
    // SAFETY: an all-zero structure is a valid one, and the calls read and fill it.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}
