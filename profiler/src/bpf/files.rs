//! Files: where the kernel keeps what is read of them.

use profiler_common::file::FileOffsets;

use super::BpfError;
use super::btf::Types;

/// Where the kernel keeps it.
///
/// # Errors
///
/// [`BpfError::NoField`] when a field is not there.
pub(super) fn offsets(types: &Types<'_>) -> Result<FileOffsets, BpfError> {
    let offset = |structure, path: &[&'static str]| {
        let field = path.last().copied().unwrap_or_default();
        types.offset(structure, path).ok_or(BpfError::NoField { structure, field })
    };
    Ok(FileOffsets {
        inode_number: offset("inode", &["i_ino"])?,
        inode_generation: offset("inode", &["i_generation"])?,
        inode_super_block: offset("inode", &["i_sb"])?,
        inode_names: offset("inode", &["i_dentry", "first"])?,
        super_block_device: offset("super_block", &["s_dev"])?,
        // In a union of its own until Linux 6.18.
        dentry_link: offset("dentry", &["d_u", "d_alias"]).or_else(|_| offset("dentry", &["d_alias"]))?,
        dentry_parent: offset("dentry", &["d_parent"])?,
        dentry_name: offset("dentry", &["d_name", "name"])?,
        dentry_hashed: offset("dentry", &["d_hash", "pprev"])?,
        reserved: 0,
    })
}
