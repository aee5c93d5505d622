//! The process that holds probes: what it does from its beginning to its end.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::thread::JoinHandle;

use super::super::perf::Attributes;
use super::super::syscall::bpf;
use super::message::{Ask, MAX_POINTS, Point, Program, Reply, Request, receive, send};

/// The kind of event that a uprobe is. Source: kernel/events/core.c, the PMU that is registered under this name.
pub(in super::super) const UPROBES: &str = "/sys/bus/event_source/devices/uprobe";

/// Threads that take probes away at once: the kernel waits for all CPUs before it lets go of each.
const REMOVERS: usize = 8;

/// `BPF_LINK_CREATE`, and types of links. Source: include/uapi/linux/bpf.h.
const LINK_CREATE: libc::c_long = 28;
const PERF_EVENT: u32 = 41;
const UPROBE_SESSION: u32 = 57;

/// The part of `union bpf_attr` that makes a link to a perf event.
#[repr(C)]
struct PerfLink {
    program: i32,
    event: i32,
    kind: u32,
    flags: u32,
    cookie: u64,
}

/// The part of it that makes a link to places in a file.
#[repr(C)]
struct MultiLink {
    program: i32,
    target: i32,
    kind: u32,
    flags: u32,
    path: *const libc::c_char,
    offsets: *const u64,
    references: *const u64,
    cookies: *const u64,
    count: u32,
    multi_flags: u32,
    pid: u32,
    reserved: u32,
}

/// Holds probes as the other end of `socket` asks for them, until that is closed; then takes them all away.
pub fn hold_probes(socket: BorrowedFd<'_>) {
    // What ends the profiler's group, session or terminal is not to end this process before it has taken probes away.
    // SAFETY: both calls take numbers.
    unsafe {
        libc::setsid();
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGTSTP] {
            libc::signal(signal, libc::SIG_IGN);
        }
    }
    let mut programs: HashMap<u32, OwnedFd> = HashMap::new();
    let mut held: HashMap<u64, Vec<Link>> = HashMap::new();
    let mut removing: Vec<JoinHandle<()>> = Vec::new();
    while let Ok(Some((request, file))) = receive::<Request>(socket, 0) {
        let Request { ask, number, .. } = request;
        if ask == Ask::Detach as u32 {
            removing.retain(|thread| !thread.is_finished());
            removing.extend(remove(held.remove(&number).unwrap_or_default()));
            continue;
        }
        let done = match file {
            None => Err(io::Error::from_raw_os_error(libc::EBADF)),
            Some(program) if ask == Ask::Keep as u32 => {
                programs.insert(request.program, program);
                Ok(Vec::new())
            }
            Some(file) => match programs.get(&request.program) {
                Some(program) => attach(program.as_fd(), &request, file.as_fd()),
                None => Err(io::Error::from_raw_os_error(libc::ENOENT)),
            },
        };
        let error = done.map_or_else(
            |error| error.raw_os_error().unwrap_or(libc::EIO),
            |links| {
                held.insert(number, links);
                0
            },
        );
        if send(socket, &Reply { number, error, reserved: 0 }, None).is_err() {
            break;
        }
    }
    removing.extend(remove(held.into_values().flatten().collect()));
    for thread in removing {
        let _ = thread.join();
    }
}

/// Probes that are there until this is dropped; the link goes before its event.
#[expect(dead_code, reason = "held for what their drop does")]
struct Link(OwnedFd, Option<OwnedFd>);

/// Takes probes away, several at once.
fn remove(mut links: Vec<Link>) -> Vec<JoinHandle<()>> {
    let each = links.len().div_ceil(REMOVERS).max(1);
    let mut threads = Vec::new();
    while !links.is_empty() {
        let part = links.split_off(links.len().saturating_sub(each));
        // Where there can be no thread, the drop is done here.
        threads.extend(std::thread::Builder::new().spawn(move || drop(part)).ok());
    }
    threads
}

fn attach(program: BorrowedFd<'_>, request: &Request, file: BorrowedFd<'_>) -> io::Result<Vec<Link>> {
    let points = &request.points[..MAX_POINTS.min(request.count as usize)];
    // The file that is held open, whatever is at its path now.
    let path = std::ffi::CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    if [Program::Session, Program::Free].map(|program| program as u32).contains(&request.program) {
        return attach_session(program, request.pid, points, &path).map(|link| vec![Link(link, None)]);
    }
    let kind = fs::read_to_string(format!("{UPROBES}/type"))?;
    let kind = kind.trim().parse().map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    points.iter().map(|point| attach_event(program, request.pid, point, &path, kind)).collect()
}

fn attach_event(
    program: BorrowedFd<'_>,
    pid: u32,
    point: &Point,
    path: &std::ffi::CStr,
    kind: u32,
) -> io::Result<Link> {
    const FLAG_CLOSE_ON_EXEC: libc::c_ulong = 8;
    let attributes = Attributes {
        kind,
        size: u32::try_from(size_of::<Attributes>()).unwrap_or(0),
        config1: path.as_ptr() as u64,
        config2: point.offset,
        ..Attributes::default()
    };
    // One process on every CPU, or every process, by an event of one CPU: the probe is the same. Source:
    // `perf_uprobe_event_init`, and `uprobe_perf_filter` in kernel/trace/trace_uprobe.c.
    let (pid, cpu) = if pid == 0 { (-1, 0) } else { (i32::try_from(pid).unwrap_or(-1), -1) };
    // SAFETY: the structure has the size it states, and the path outlives the call.
    let event = unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw const attributes, pid, cpu, -1_i32, FLAG_CLOSE_ON_EXEC)
    };
    let event = owned(event)?;
    let (program, file) = (program.as_raw_fd(), event.as_raw_fd());
    let link =
        bpf(LINK_CREATE, &mut PerfLink { program, event: file, kind: PERF_EVENT, flags: 0, cookie: point.cookie })?;
    Ok(Link(owned(link.into())?, Some(event)))
}

fn attach_session(program: BorrowedFd<'_>, pid: u32, points: &[Point], path: &std::ffi::CStr) -> io::Result<OwnedFd> {
    let offsets: Vec<u64> = points.iter().map(|point| point.offset).collect();
    let cookies: Vec<u64> = points.iter().map(|point| point.cookie).collect();
    let link = bpf(
        LINK_CREATE,
        &mut MultiLink {
            program: program.as_raw_fd(),
            target: 0,
            kind: UPROBE_SESSION,
            flags: 0,
            path: path.as_ptr(),
            offsets: offsets.as_ptr(),
            references: std::ptr::null(),
            cookies: cookies.as_ptr(),
            count: u32::try_from(points.len()).unwrap_or(0),
            multi_flags: 0,
            pid,
            reserved: 0,
        },
    )?;
    owned(link.into())
}

/// A descriptor that the kernel has just made.
fn owned(descriptor: libc::c_long) -> io::Result<OwnedFd> {
    let descriptor = i32::try_from(descriptor).ok().filter(|&descriptor| descriptor >= 0);
    let descriptor = descriptor.ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the descriptor was just made, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
