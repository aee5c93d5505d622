//! Names of kernel addresses, from /proc/kallsyms: modules and BPF programs included.

use blazesym::MaybeDefault;
use blazesym::symbolize::Input;
use blazesym::symbolize::source::{Kernel, Source};

use super::demangle::demangle_all;
use super::names::Names;
use super::native;

/// Names for kernel addresses. No vmlinux is looked for: kallsyms names everything, and a vmlinux that lies about may
/// be another kernel's.
pub(super) fn names(addresses: &[u64]) -> Result<Names, String> {
    let kernel = Kernel { vmlinux: MaybeDefault::None, debug_syms: false, ..Kernel::default() };
    let mut names = native::look_up(&Source::Kernel(kernel), Input::AbsAddr(addresses), addresses, &[], |_, _| true)?;
    // Parts of it are written in Rust.
    demangle_all(&mut names, &Names::new(), None);
    Ok(names)
}
