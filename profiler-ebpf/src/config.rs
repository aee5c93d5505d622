//! The load-time configuration.

use profiler_common::config::Config;

/// Replaced by user space before the load, then frozen: the verifier treats what is read from it as constants.
#[unsafe(no_mangle)]
pub(crate) static CONFIG: Config = Config::UNSET;

/// Reads one field, so that the compiler cannot fold the value the object was built with.
macro_rules! config {
    ($($field:ident).+) => {
        $crate::config::read(&$crate::config::CONFIG.$($field).+)
    };
}
pub(crate) use config;

/// A volatile read.
#[inline(always)]
pub(crate) fn read<T: Copy>(field: &T) -> T {
    // SAFETY: a reference is valid and aligned.
    unsafe { core::ptr::read_volatile(core::ptr::from_ref(field)) }
}
