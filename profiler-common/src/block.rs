//! Requests to block devices: their kinds, and where the kernel keeps what is read of them.

/// Byte offsets of kernel fields, from the running kernel's BTF.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockOffsets {}

impl BlockOffsets {
    /// The value the object carries before user space replaces it.
    pub const UNSET: Self = Self {};
}

/// What a request does.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockOperation {
    /// Reads what somebody waits for.
    Read = 1,
    /// Reads ahead of who reads.
    ReadAhead = 2,
    /// Reads what the file system keeps of itself.
    ReadMetadata = 3,
    /// Writes nobody waits for.
    Write = 4,
    /// Writes what somebody waits for.
    SyncWrite = 5,
    /// Writes what the file system keeps of itself.
    WriteMetadata = 6,
    /// Makes the device empty its cache.
    Flush = 7,
    /// Tells the device what is not needed any more.
    Discard = 8,
    /// Anything else.
    Other = 9,
}

/// Names of what requests do, by number from 1: the reasons of the origin.
pub const BLOCK_OPERATIONS: [&str; 9] =
    ["read", "readahead", "metadata read", "write", "sync write", "metadata write", "flush", "discard", "other"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_numbered_as_named() {
        assert_eq!(BLOCK_OPERATIONS[BlockOperation::Read as usize - 1], "read");
        assert_eq!(BLOCK_OPERATIONS[BlockOperation::SyncWrite as usize - 1], "sync write");
        assert_eq!(BLOCK_OPERATIONS[BlockOperation::Other as usize - 1], "other");
    }
}
