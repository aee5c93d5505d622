//! Files: what is done to them, and where the kernel keeps what is read of them.

/// Byte offsets of kernel fields, from the running kernel's BTF.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileOffsets {}

impl FileOffsets {
    /// The value the object carries before user space replaces it.
    pub const UNSET: Self = Self {};
}

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
}
