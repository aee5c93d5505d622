//! What a process uses: CPU time, memory, threads, descriptors, faults, storage, by /proc/PID.
//!
//! Everything that is read here a process can have a hand in: its name may contain any byte.
//! Source: proc_pid_stat(5), proc_pid_io(5), proc_pid_fd(5).

use std::fs::{self, File};
use std::io;

use super::proc_file::{ProcFile, number, number_after};

/// Most descriptors of a process that are counted one by one, where the kernel does not tell their number.
const MAX_DESCRIPTORS: usize = 1 << 14;

/// `/proc/PID/stat`, as far as it is of use here. Times are in clock ticks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessStat {
    /// The command name, as the kernel keeps it.
    pub name: Vec<u8>,
    /// Whether the process is over, and only waits for its parent to ask for it.
    pub is_zombie: bool,
    /// Whether its first thread is over; others may run.
    pub leader_is_gone: bool,
    /// Its parent.
    pub parent: u32,
    /// When it was started, in clock ticks since boot.
    pub start_ticks: u64,
    /// What its threads have used so far, those that have ended included.
    pub own: Ticks,
    /// What its children have used that have ended and that it has waited for, and theirs.
    pub children: Ticks,
    /// Its threads.
    pub threads: u64,
    /// Resident memory, in pages.
    pub rss_pages: u64,
}

/// CPU time and page faults of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticks {
    /// Time in user mode.
    pub user: u64,
    /// Time in the kernel.
    pub system: u64,
    /// Faults that needed no reading.
    pub minor_faults: u64,
    /// Faults that waited for a disk.
    pub major_faults: u64,
}

/// Reads the text of `/proc/PID/stat`.
#[must_use]
pub fn parse_stat(text: &[u8]) -> Option<ProcessStat> {
    // The name is in parentheses and may contain any character: these, spaces and line ends included.
    let start = text.iter().position(|&byte| byte == b'(')? + 1;
    let end = text.iter().rposition(|&byte| byte == b')')?;
    let name = text.get(start..end)?.to_owned();
    let words: Vec<&[u8]> =
        text.get(end + 1..)?.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).collect();
    // Fields as the manual numbers them; the state is the third.
    let field = |number_of: usize| words.get(number_of - 3).copied();
    let value = |number_of: usize| number(field(number_of)?);
    let threads = value(20)?;
    let leader_is_gone = matches!(field(3)?, b"Z" | b"X");
    Some(ProcessStat {
        name,
        is_zombie: leader_is_gone && threads <= 1,
        leader_is_gone,
        parent: u32::try_from(value(4)?).ok()?,
        start_ticks: value(22)?,
        own: Ticks { minor_faults: value(10)?, major_faults: value(12)?, user: value(14)?, system: value(15)? },
        children: Ticks { minor_faults: value(11)?, major_faults: value(13)?, user: value(16)?, system: value(17)? },
        threads,
        rss_pages: value(24)?,
    })
}

/// The files of a process, held open: they stay its own when its number becomes another's.
#[derive(Debug)]
pub struct ProcessFiles {
    pid: u32,
    stat: ProcFile,
    io: Option<ProcFile>,
    descriptors: Option<File>,
}

impl ProcessFiles {
    /// Opens those of a process.
    ///
    /// # Errors
    ///
    /// When it is gone. Files that may not be read are left out.
    pub fn open(pid: u32) -> io::Result<Self> {
        Ok(Self {
            pid,
            stat: ProcFile::open(format!("/proc/{pid}/stat"))?,
            io: ProcFile::open(format!("/proc/{pid}/io")).ok(),
            descriptors: File::open(format!("/proc/{pid}/fd")).ok(),
        })
    }

    /// Its `stat`; `None` when it is gone.
    pub fn stat(&self, buffer: &mut Vec<u8>) -> Option<ProcessStat> {
        parse_stat(self.stat.read(buffer).ok()?)
    }

    /// Bytes read from storage and written to it, those of children that it has waited for included.
    pub fn storage(&self, buffer: &mut Vec<u8>) -> Option<(u64, u64)> {
        let text = self.io.as_ref()?.read(buffer).ok()?;
        Some((number_after(text, b"read_bytes:")?, number_after(text, b"write_bytes:")?))
    }

    /// Its open descriptors; `None` where they may not be counted, or are too many for it.
    #[must_use]
    pub fn descriptors(&self) -> Option<u64> {
        // Since Linux 6.2 the directory has their number for its size.
        match self.descriptors.as_ref()?.metadata().ok()?.len() {
            0 => {
                let entries = fs::read_dir(format!("/proc/{}/fd", self.pid)).ok()?.take(MAX_DESCRIPTORS + 1).count();
                (entries <= MAX_DESCRIPTORS).then_some(entries as u64)
            }
            size => Some(size),
        }
    }

    /// Its swapped out memory, bytes.
    #[must_use]
    pub fn swap_bytes(&self, buffer: &mut Vec<u8>) -> Option<u64> {
        let status = ProcFile::open(format!("/proc/{}/status", self.pid)).ok()?;
        Some(number_after(status.read(buffer).ok()?, b"VmSwap:")?.saturating_mul(1024))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAIL: &str = "S 7 9 9 0 -1 4194304 101 102 3 4 50 60 70 80 20 0 5 0 12345 1000000 250 18446744073709551615 1";

    #[test]
    fn a_name_may_contain_anything() {
        for name in ["plain", "with space", ") R 1 (", "a) S 1 2 3", "", "line\nend", "\u{fffd}é"] {
            let stat = parse_stat(format!("42 ({name}) {TAIL}\n").as_bytes()).unwrap();
            assert_eq!(stat.name, name.as_bytes());
            assert_eq!((stat.parent, stat.threads, stat.start_ticks, stat.rss_pages), (7, 5, 12345, 250));
            let own = Ticks { user: 50, system: 60, minor_faults: 101, major_faults: 3 };
            let children = Ticks { user: 70, system: 80, minor_faults: 102, major_faults: 4 };
            assert_eq!((stat.own, stat.children, stat.is_zombie), (own, children, false));
        }
    }

    #[test]
    fn a_zombie_with_threads_is_none() {
        let stat = |tail: &str| parse_stat(format!("42 (x) {tail}").as_bytes()).unwrap();
        let leader_ended = stat(&TAIL.replacen('S', "Z", 1));
        assert!(leader_ended.leader_is_gone && !leader_ended.is_zombie);
        assert!(stat(&TAIL.replacen('S', "Z", 1).replace(" 5 0 12345", " 1 0 12345")).is_zombie);
    }

    #[test]
    fn damaged_text_is_refused() {
        let whole = format!("42 (x) {TAIL}");
        let needed = whole.find(" 18446744073709551615").unwrap();
        for length in 0..whole.len() {
            let parsed = parse_stat(&whole.as_bytes()[..length]);
            // Of the last field a part is a number too.
            assert_eq!(parsed.is_some(), length > needed - 3, "{length}");
        }
        for wrong in ["", "42", "42 x S", ")(", "42 (x) S -1", "42 (x) S 7 9 9 0 -1 4194304 x"] {
            assert_eq!(parse_stat(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn our_own_figures_can_be_read() {
        let files = ProcessFiles::open(std::process::id()).unwrap();
        let mut buffer = Vec::new();
        let stat = files.stat(&mut buffer).unwrap();
        assert!(stat.threads >= 2 && stat.rss_pages > 0 && !stat.is_zombie, "{stat:?}");
        let before = files.descriptors().unwrap();
        let more: Vec<File> = (0..10).map(|_| File::open("/proc/self/stat").unwrap()).collect();
        assert!(files.descriptors().unwrap() >= before + 5);
        drop(more);
        assert!(ProcessFiles::open(u32::MAX).is_err());
    }

    #[test]
    fn the_files_of_a_process_that_is_gone_say_nothing() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let files = ProcessFiles::open(child.id()).unwrap();
        let mut buffer = Vec::new();
        assert_eq!(files.stat(&mut buffer).unwrap().parent, std::process::id());
        child.kill().unwrap();
        while !files.stat(&mut buffer).unwrap().is_zombie {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert_eq!(files.stat(&mut buffer), None);
    }
}
