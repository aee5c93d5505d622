//! What the host uses, by /proc/stat, /proc/meminfo and /proc/pressure.

use crate::process::{ProcFile, number, number_after};
use crate::profile::{Column, Figures};

/// The files, held open; those that are not there are missing.
#[derive(Debug, Default)]
pub(super) struct HostFiles {
    stat: Option<ProcFile>,
    memory: Option<ProcFile>,
    pressure: Pressure,
    buffer: Vec<u8>,
}

/// The files of one pressure (PSI).
#[derive(Debug, Default)]
pub(super) struct Pressure {
    cpu: Option<ProcFile>,
    io: Option<ProcFile>,
    memory: Option<ProcFile>,
}

/// Stalls in all, ns: of some task, and of all at once.
type Stalls = (Option<u64>, Option<u64>);

impl Pressure {
    /// Opens three files. `path`: where that of a resource is.
    pub(super) fn open(path: impl Fn(&str) -> std::path::PathBuf) -> Self {
        let [cpu, io, memory] = ["cpu", "io", "memory"].map(|resource| ProcFile::open(path(resource)).ok());
        Self { cpu, io, memory }
    }

    /// Stalls for want of CPUs, of storage and of memory.
    pub(super) fn read(&self, buffer: &mut Vec<u8>) -> [Stalls; 3] {
        [&self.cpu, &self.io, &self.memory].map(|file| {
            // Reading fails where the kernel was started with psi=0.
            let text = file.as_ref().and_then(|file| file.read(buffer).ok());
            text.map_or((None, None), stalls)
        })
    }
}

/// The totals of a pressure file, which has them in microseconds. Source: Documentation/accounting/psi.rst.
fn stalls(text: &[u8]) -> Stalls {
    let total = |kind: &[u8]| {
        let line = text.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(kind))?;
        let word = line.split(u8::is_ascii_whitespace).find_map(|word| word.strip_prefix(b"total="))?;
        Some(number(word)?.saturating_mul(1000))
    };
    (total(b"some "), total(b"full "))
}

impl HostFiles {
    pub(super) fn open() -> Self {
        Self {
            stat: ProcFile::open("/proc/stat").ok(),
            memory: ProcFile::open("/proc/meminfo").ok(),
            pressure: Pressure::open(|resource| format!("/proc/pressure/{resource}").into()),
            buffer: Vec::new(),
        }
    }

    /// Reads them into `figures`; returns whether the host has swap space, or may have.
    pub(super) fn read(&mut self, figures: &mut Figures) -> bool {
        if let Some(text) = self.stat.as_ref().and_then(|file| file.read(&mut self.buffer).ok()) {
            read_stat(text, tick_ns(), figures);
        }
        let [(cpu, _), io, memory] = self.pressure.read(&mut self.buffer);
        // For the host as a whole, `full` of CPU means nothing and is always 0.
        figures.set(Column::HostPressureCpuSome, cpu);
        figures.set(Column::HostPressureIoSome, io.0);
        figures.set(Column::HostPressureIoFull, io.1);
        figures.set(Column::HostPressureMemorySome, memory.0);
        figures.set(Column::HostPressureMemoryFull, memory.1);
        let text = self.memory.as_ref().and_then(|file| file.read(&mut self.buffer).ok());
        text.is_none_or(|text| read_memory(text, figures))
    }
}

/// Reads `/proc/stat`. Source: proc_stat(5).
fn read_stat(text: &[u8], tick_ns: u64, figures: &mut Figures) {
    let line = text.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"cpu ")).unwrap_or_default();
    // user nice system idle iowait irq softirq steal; guests are in user and nice already.
    let times: Vec<Option<u64>> = line
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
        .map(|word| Some(number(word)?.saturating_mul(tick_ns)))
        .collect();
    let time = |place: usize| times.get(place).copied().flatten();
    let sum = |first: usize, second: usize| Some(time(first)?.saturating_add(time(second)?));
    figures.set(Column::HostCpuUser, sum(0, 1));
    figures.set(Column::HostCpuSystem, time(2));
    figures.set(Column::HostCpuIdle, time(3));
    figures.set(Column::HostCpuIowait, time(4));
    figures.set(Column::HostCpuIrq, sum(5, 6));
    figures.set(Column::HostCpuSteal, time(7));
    figures.set(Column::HostSwitches, number_after(text, b"ctxt "));
    figures.set(Column::HostForks, number_after(text, b"processes "));
    figures.set(Column::HostRunnable, number_after(text, b"procs_running "));
    figures.set(Column::HostBlocked, number_after(text, b"procs_blocked "));
}

/// Reads `/proc/meminfo`; returns whether there is swap space. Source: proc_meminfo(5).
fn read_memory(text: &[u8], figures: &mut Figures) -> bool {
    let bytes = |word: &[u8]| Some(number_after(text, word)?.saturating_mul(1024));
    figures.set(Column::HostMemoryAvailable, bytes(b"MemAvailable:"));
    figures.set(Column::HostMemoryFree, bytes(b"MemFree:"));
    figures.set(Column::HostMemoryCached, bytes(b"Cached:"));
    figures.set(Column::HostMemoryDirty, bytes(b"Dirty:"));
    let total = bytes(b"SwapTotal:");
    figures.set(Column::HostSwapUsed, total.zip(bytes(b"SwapFree:")).map(|(total, free)| total.saturating_sub(free)));
    total != Some(0)
}

/// Length of a clock tick, by which /proc counts CPU time.
pub(super) fn tick_ns() -> u64 {
    // SAFETY: no pointers.
    let hz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    1_000_000_000 / u64::try_from(hz).unwrap_or(100).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_the_host_are_read() {
        let mut figures = Figures::default();
        let stat = b"cpu  100 10 20 300 5 1 2 3 40 4\ncpu0 1 2 3 4\nintr 5 0 0\nctxt 77\nbtime 1\nprocesses 9\n\
            procs_running 2\nprocs_blocked 1\nsoftirq 1 2\n";
        read_stat(stat, 10_000_000, &mut figures);
        let expected = [
            (Column::HostCpuUser, 1_100_000_000),
            (Column::HostCpuSystem, 200_000_000),
            (Column::HostCpuIdle, 3_000_000_000),
            (Column::HostCpuIowait, 50_000_000),
            (Column::HostCpuIrq, 30_000_000),
            (Column::HostCpuSteal, 30_000_000),
            (Column::HostSwitches, 77),
            (Column::HostForks, 9),
            (Column::HostRunnable, 2),
            (Column::HostBlocked, 1),
        ];
        for (column, figure) in expected {
            assert_eq!(figures.of(column), Some(figure), "{column:?}");
        }
        let memory = b"MemTotal: 99 kB\nMemFree: 1 kB\nMemAvailable:  2 kB\nCached: 3 kB\nSwapCached: 8 kB\n\
            SwapTotal: 10 kB\nSwapFree: 4 kB\n";
        assert!(read_memory(memory, &mut figures));
        assert_eq!(figures.of(Column::HostMemoryFree), Some(1024));
        assert_eq!(figures.of(Column::HostMemoryCached), Some(3072));
        assert_eq!(figures.of(Column::HostSwapUsed), Some(6144));
        // Not there is not 0.
        assert_eq!(figures.of(Column::HostMemoryDirty), None);
        assert!(!read_memory(b"SwapTotal: 0 kB\n", &mut figures));
    }

    #[test]
    fn an_old_or_damaged_stat_gives_what_it_has() {
        let mut figures = Figures::default();
        read_stat(b"cpu  100 10 20 x 5\n", 1, &mut figures);
        assert_eq!(figures.of(Column::HostCpuUser), Some(110));
        assert_eq!(figures.of(Column::HostCpuIdle), None);
        assert_eq!(figures.of(Column::HostCpuIrq), None);
        read_stat(b"", 1, &mut figures);
        assert_eq!(figures.of(Column::HostCpuUser), None);
    }

    #[test]
    fn stalls_are_totals_in_ns() {
        let text = b"some avg10=0.00 avg60=1.00 avg300=0.58 total=3615\nfull avg10=0.00 total=20\n";
        assert_eq!(stalls(text), (Some(3_615_000), Some(20_000)));
        assert_eq!(stalls(b"some avg10=0.00 total=5\n"), (Some(5000), None));
        assert_eq!(stalls(b"full total=\nsome x"), (None, None));
    }
}
