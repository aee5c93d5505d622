//! Sockets: where the kernel keeps what is read of them.

use profiler_common::net::NetOffsets;

use super::BpfError;
use super::btf::Types;

/// Where the kernel keeps it.
///
/// # Errors
///
/// [`BpfError::NoField`] when a field is not there.
pub(super) fn offsets(_types: &Types<'_>) -> Result<NetOffsets, BpfError> {
    Ok(NetOffsets::UNSET)
}
