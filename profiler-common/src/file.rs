//! Files: what is done to them, and where the kernel keeps what is read of them.

/// Byte offsets of kernel fields, from the running kernel's BTF.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileOffsets {
    /// `inode.i_ino`.
    pub inode_number: u32,
    /// `inode.i_generation`.
    pub inode_generation: u32,
    /// `inode.i_sb`.
    pub inode_super_block: u32,
    /// `inode.i_dentry.first`: the names that the kernel has in memory.
    pub inode_names: u32,
    /// `super_block.s_dev`.
    pub super_block_device: u32,
    /// `dentry.d_u.d_alias`: where the next of a file's names is linked.
    pub dentry_link: u32,
    /// `dentry.d_parent`.
    pub dentry_parent: u32,
    /// `dentry.d_name.name`.
    pub dentry_name: u32,
    /// `dentry.d_hash.pprev`: nothing where the name is not in its directory any more.
    pub dentry_hashed: u32,
    /// Zero.
    pub reserved: u32,
}

impl FileOffsets {
    /// The value the object carries before user space replaces it.
    pub const UNSET: Self = Self {
        inode_number: 0,
        inode_generation: 0,
        inode_super_block: 0,
        inode_names: 0,
        super_block_device: 0,
        dentry_link: 0,
        dentry_parent: 0,
        dentry_name: 0,
        dentry_hashed: 0,
        reserved: 0,
    };
}

/// A file, whatever it is called.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// Number of its inode.
    pub inode: u64,
    /// Device of its file system, as the kernel writes it: 12 bits, then 20.
    pub device: u32,
    /// What tells it from an earlier file with the same inode number, where the file system keeps that.
    pub generation: u32,
}

impl FileId {
    /// The device's two numbers.
    #[must_use]
    pub const fn device_numbers(self) -> (u32, u32) {
        (self.device >> 20, self.device & 0xf_ffff)
    }
}

/// Bytes of a path in a [`FileNameRecord`], at most.
pub const MAX_NAME_BYTES: usize = 4096;

/// Bytes of one name in a path, with the zero that ends it. Source: `NAME_MAX`, include/uapi/linux/limits.h.
pub const MAX_COMPONENT_BYTES: usize = 256;

/// Names in a path, at most.
pub const MAX_COMPONENTS: usize = 40;

/// The path of a file up to the root of its file system, sent once at its own length.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FileNameRecord {
    /// [`crate::event::RING_FILE_NAME`].
    pub kind: u16,
    /// [`FILE_DELETED`], [`NAME_CUT`].
    pub flags: u16,
    /// Bytes of `names` used.
    pub bytes: u32,
    /// The file.
    pub id: FileId,
    /// A process that uses it, as the profiler's pid namespace numbers it; 0 when that is not known.
    pub pid: u32,
    /// Zero.
    pub reserved: u32,
    /// The names in the path, the file's own first, a zero after each. Room for one more than is used.
    pub names: [u8; MAX_NAME_BYTES + MAX_COMPONENT_BYTES],
}

/// The name is not in its directory any more.
pub const FILE_DELETED: u16 = 1;

/// The path goes on.
pub const NAME_CUT: u16 = 2;

/// Files whose names the programs remember to have sent.
pub const MAX_SEEN_FILES: u32 = 16_384;

/// What is done to a file.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileOperation {
    /// Reads of any kind.
    Read = 1,
    /// Writes of any kind.
    Write = 2,
    /// Waits until what was written is on its device.
    Sync = 3,
    /// Opens it.
    Open = 4,
    /// Gives it another name.
    Rename = 5,
    /// Writes to memory that it is mapped to, by page.
    MappedWrite = 6,
}

/// Names of what is done to files, by number from 1: the reasons of the origin.
pub const FILE_OPERATIONS: [&str; 6] = ["read", "write", "sync", "open", "rename", "mapped write"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_numbered_as_named() {
        assert_eq!(FILE_OPERATIONS[FileOperation::Read as usize - 1], "read");
        assert_eq!(FILE_OPERATIONS[FileOperation::MappedWrite as usize - 1], "mapped write");
    }

    #[test]
    fn layouts_have_no_hidden_padding() {
        assert_eq!(size_of::<FileId>(), 16);
        assert_eq!(size_of::<FileNameRecord>(), 32 + MAX_NAME_BYTES + MAX_COMPONENT_BYTES);
        assert_eq!(FileId { device: 254 << 20 | 7, ..FileId::default() }.device_numbers(), (254, 7));
    }
}
