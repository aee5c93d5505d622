//! The profiler's end: starts the process that holds probes, and asks it for them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::message::{Ask, MAX_POINTS, Point, Program, Reply, Request, receive, send};

/// The argument that makes the profiler be this process. Source: `cli/args.rs`.
const ARGUMENT: &str = "hold-probes";

/// How long its end is waited for: it has to take its probes away, which takes a tenth of a second each at most.
const END: Duration = Duration::from_secs(30);

/// Probes to be put in one file.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Work<'a> {
    pub(in super::super) program: Program,
    /// The file.
    pub(in super::super) file: BorrowedFd<'a>,
    /// The process in which the program runs; 0 for every one.
    pub(in super::super) pid: u32,
    /// Offsets of instructions in the file, and what the program is told at each.
    pub(in super::super) points: &'a [(u64, u64)],
}

/// Why there are no probes.
#[derive(Debug)]
pub(in super::super) enum HolderError {
    /// The process that holds them is gone.
    Gone,
    /// The kernel refuses.
    Refused(io::Error),
}

/// The process that holds probes. It takes them away when this is dropped, which waits until it has.
#[derive(Debug)]
pub(in super::super) struct ProbeHolder {
    socket: Option<OwnedFd>,
    child: Child,
    programs: BTreeMap<u32, OwnedFd>,
    next: u64,
}

/// Two ends of a socket that keeps messages apart.
pub(super) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [-1; 2];
    // SAFETY: there is room for two descriptors.
    let made =
        unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, ends.as_mut_ptr()) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptors were just made, and nobody else has them.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

impl ProbeHolder {
    pub(in super::super) fn start() -> io::Result<Self> {
        let (socket, child) = Self::spawn()?;
        Ok(Self { socket: Some(socket), child, programs: BTreeMap::new(), next: 1 })
    }

    fn spawn() -> io::Result<(OwnedFd, Child)> {
        let (near, far) = socket_pair()?;
        // The file that runs, whatever is at its path now. It has our name and nothing else of ours open.
        let child = Command::new("/proc/self/exe")
            .arg0("profiler")
            .arg(ARGUMENT)
            .stdin(far)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok((near, child))
    }

    /// Gives it a program.
    pub(in super::super) fn keep(&mut self, program: Program, descriptor: OwnedFd) -> Result<(), HolderError> {
        self.ask(&Request::new(Ask::Keep, program, 0), descriptor.as_fd())?;
        self.programs.insert(program as u32, descriptor);
        Ok(())
    }

    /// Puts probes into a file, and returns the number under which they are taken away.
    pub(in super::super) fn attach(&mut self, work: Work<'_>) -> Result<u64, HolderError> {
        let number = self.next;
        self.next += 1;
        let mut request = Request::new(Ask::Attach, work.program, number);
        let points = &work.points[..work.points.len().min(MAX_POINTS)];
        (request.pid, request.count) = (work.pid, u32::try_from(points.len()).unwrap_or(0));
        for (place, &(offset, cookie)) in request.points.iter_mut().zip(points) {
            *place = Point { offset, cookie };
        }
        self.ask(&request, work.file)?;
        Ok(number)
    }

    /// Takes probes away, without waiting for it.
    pub(in super::super) fn detach(&mut self, number: u64) -> Result<(), HolderError> {
        let socket = self.socket.as_ref().ok_or(HolderError::Gone)?;
        send(socket.as_fd(), &Request::new(Ask::Detach, Program::Enter, number), None).map_err(|_| HolderError::Gone)
    }

    /// Whether it is still there.
    pub(in super::super) fn is_there(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Starts another one in place of one that is gone; it has the programs and no probe.
    pub(in super::super) fn restart(&mut self) -> Result<(), HolderError> {
        self.close();
        let (socket, child) = Self::spawn().map_err(HolderError::Refused)?;
        (self.socket, self.child) = (Some(socket), child);
        let programs = std::mem::take(&mut self.programs);
        for program in Program::ALL {
            if let Some(descriptor) = programs.get(&(program as u32)) {
                let descriptor = descriptor.try_clone().map_err(HolderError::Refused)?;
                self.keep(program, descriptor)?;
            }
        }
        Ok(())
    }

    fn ask(&self, request: &Request, file: BorrowedFd<'_>) -> Result<(), HolderError> {
        let socket = self.socket.as_ref().ok_or(HolderError::Gone)?.as_fd();
        send(socket, request, Some(file)).map_err(|_| HolderError::Gone)?;
        match receive::<Reply>(socket, 0) {
            Ok(Some((Reply { error: 0, .. }, _))) => Ok(()),
            Ok(Some((Reply { error, .. }, _))) => Err(HolderError::Refused(io::Error::from_raw_os_error(error))),
            Ok(None) | Err(_) => Err(HolderError::Gone),
        }
    }

    /// Lets it end, and waits until it has.
    pub(in super::super) fn close(&mut self) {
        self.socket = None;
        let until = Instant::now() + END;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for ProbeHolder {
    fn drop(&mut self) {
        self.close();
    }
}
