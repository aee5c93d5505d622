//! Names of kernel addresses, from /proc/kallsyms: modules and BPF programs included.

use blazesym::MaybeDefault;
use blazesym::symbolize::Input;
use blazesym::symbolize::source::{Kernel, Source};

use super::Names;
use super::native::Native;

/// Names for kernel addresses. No vmlinux is looked for: kallsyms names everything, and a vmlinux that lies about may
/// be another kernel's.
pub(super) fn names(native: &Native, addresses: &[u64]) -> Result<Names, String> {
    let kernel = Kernel { vmlinux: MaybeDefault::None, debug_syms: false, ..Kernel::default() };
    native.look_up(&Source::Kernel(kernel), Input::AbsAddr(addresses), addresses, |_, _| true)
}
