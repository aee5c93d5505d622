//! What the profiler and the process that holds its probes tell each other: messages of one size, with descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Probes in one message: more functions than any allocator has.
pub(in super::super) const MAX_POINTS: usize = 64;

/// What is asked.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Keep a program; it is the message's descriptor.
    Keep = 1,
    /// Put a program's probes into a file, which is the message's descriptor.
    Attach = 2,
    /// Take the probes of a number away. Has no answer.
    Detach = 3,
}

/// A program that probes run, and how they are made.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Program {
    /// Calls of functions that allocate: perf events.
    Enter = 0,
    /// The same, and the return of those that the program has chosen: one link for all (Linux 6.13).
    Session = 1,
    /// Calls of functions that free: as the session, without returns.
    Free = 2,
    /// Calls of functions that somebody named: perf events.
    FunctionEnter = 3,
    /// Their ends: perf events.
    FunctionEnd = 4,
}

impl Program {
    pub(super) const ALL: [Self; 5] = [Self::Enter, Self::Session, Self::Free, Self::FunctionEnter, Self::FunctionEnd];
}

/// A place for a probe.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Point {
    /// Offset in the file.
    pub(super) offset: u64,
    /// What the program is told.
    pub(super) cookie: u64,
}

/// A request. Plain numbers without padding.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    /// An [`Ask`].
    pub(super) ask: u32,
    /// A [`Program`].
    pub(super) program: u32,
    /// The number of these probes.
    pub(super) number: u64,
    /// The process they are for; 0 for every one.
    pub(super) pid: u32,
    /// How many points there are.
    pub(super) count: u32,
    pub(super) points: [Point; MAX_POINTS],
}

/// The answer to a request.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reply {
    /// Of which probes.
    pub(super) number: u64,
    /// 0, or an error of the kernel.
    pub(super) error: i32,
    /// Zero.
    pub(super) reserved: u32,
}

/// Messages: `repr(C)`, plain numbers, without padding.
pub(super) trait Message: Copy {}
impl Message for Request {}
impl Message for Reply {}

impl Request {
    pub(super) const fn new(ask: Ask, program: Program, number: u64) -> Self {
        let points = [Point { offset: 0, cookie: 0 }; MAX_POINTS];
        Self { ask: ask as u32, program: program as u32, number, pid: 0, count: 0, points }
    }
}

/// Room for one descriptor beside a message, aligned as control messages are.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// Sends a message, with a descriptor if there is one.
pub(super) fn send<T: Message>(socket: BorrowedFd<'_>, message: &T, file: Option<BorrowedFd<'_>>) -> io::Result<()> {
    // SAFETY: a message is plain numbers without padding.
    let bytes = unsafe { std::slice::from_raw_parts(std::ptr::from_ref(message).cast::<u8>(), size_of::<T>()) };
    let mut parts = [IoSlice::new(bytes)];
    let mut control = Control([0; 64]);
    // SAFETY: a structure of numbers and pointers, for which zeros are a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    (header.msg_iov, header.msg_iovlen) = (parts.as_mut_ptr().cast(), parts.len());
    if let Some(file) = file {
        let length = u32::try_from(size_of::<RawFd>()).unwrap_or(0);
        header.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: takes a number.
        header.msg_controllen = unsafe { libc::CMSG_SPACE(length) } as usize;
        // SAFETY: the header has room for one control message of this length.
        unsafe {
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(length) as usize;
            libc::CMSG_DATA(first).cast::<RawFd>().write_unaligned(file.as_raw_fd());
        }
    }
    loop {
        // SAFETY: the header's pointers are to what is above.
        if unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) } >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Receives a message, and its descriptor; `None` when the other end is closed.
pub(super) fn receive<T: Message>(socket: BorrowedFd<'_>, flags: i32) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    // SAFETY: a message is plain numbers, for which zeros are a value.
    let mut message: T = unsafe { std::mem::zeroed() };
    // SAFETY: any bytes are a value of it.
    let bytes =
        unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(&mut message).cast::<u8>(), size_of::<T>()) };
    let mut parts = [IoSliceMut::new(bytes)];
    let mut control = Control([0; 64]);
    // SAFETY: as in `send`.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    (header.msg_iov, header.msg_iovlen) = (parts.as_mut_ptr().cast(), parts.len());
    let received = loop {
        (header.msg_control, header.msg_controllen) = (control.0.as_mut_ptr().cast(), control.0.len());
        // SAFETY: the header's pointers are to what is above.
        let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags | libc::MSG_CMSG_CLOEXEC) };
        match usize::try_from(received) {
            Ok(received) => break received,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    };
    // SAFETY: the kernel has filled the header in; a descriptor in it is new and ours.
    let file = unsafe {
        let first = libc::CMSG_FIRSTHDR(&raw const header);
        let is_file =
            !first.is_null() && (*first).cmsg_level == libc::SOL_SOCKET && (*first).cmsg_type == libc::SCM_RIGHTS;
        is_file.then(|| OwnedFd::from_raw_fd(libc::CMSG_DATA(first).cast::<RawFd>().read_unaligned()))
    };
    // What is shorter is none of ours; nothing at all is the end.
    Ok((received == size_of::<T>()).then_some((message, file)))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_message_and_its_descriptor_arrive() {
        let (near, far) = super::super::client::socket_pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut request = Request::new(Ask::Attach, Program::Free, 7);
        (request.pid, request.count, request.points[1]) = (12, 2, Point { offset: 3, cookie: 4 });
        send(near.as_fd(), &request, Some(writer.as_fd())).unwrap();
        drop(writer);
        let (got, file) = receive::<Request>(far.as_fd(), 0).unwrap().unwrap();
        assert_eq!((got.ask, got.number, got.pid, got.points[1].cookie), (Ask::Attach as u32, 7, 12, 4));
        std::fs::File::from(file.unwrap()).write_all(b"x").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        drop(near);
        assert!(receive::<Request>(far.as_fd(), 0).unwrap().is_none());
    }
}
