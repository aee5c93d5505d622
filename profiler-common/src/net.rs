//! Sockets: what is done with them, and where the kernel keeps what is read of them.

/// Byte offsets of kernel fields, from the running kernel's BTF.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetOffsets {}

impl NetOffsets {
    /// The value the object carries before user space replaces it.
    pub const UNSET: Self = Self {};
}

/// What is done with a socket.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetOperation {
    /// Sends by TCP.
    TcpSend = 1,
    /// Receives by TCP.
    TcpReceive = 2,
    /// Sends by UDP.
    UdpSend = 3,
    /// Receives by UDP.
    UdpReceive = 4,
    /// Sends to a process of this host.
    UnixSend = 5,
    /// Receives from one.
    UnixReceive = 6,
    /// Sends by another protocol.
    OtherSend = 7,
    /// Receives by another protocol.
    OtherReceive = 8,
}

/// Names of what is done with sockets, by number from 1: the reasons of the origin.
pub const NET_OPERATIONS: [&str; 8] =
    ["TCP send", "TCP receive", "UDP send", "UDP receive", "Unix send", "Unix receive", "other send", "other receive"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_numbered_as_named() {
        assert_eq!(NET_OPERATIONS[NetOperation::TcpSend as usize - 1], "TCP send");
        assert_eq!(NET_OPERATIONS[NetOperation::OtherReceive as usize - 1], "other receive");
    }
}
