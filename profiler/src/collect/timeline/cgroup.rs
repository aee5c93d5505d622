//! What a cgroup uses, by its own files, where its controllers are on.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::host::Pressure;
use crate::process::{ProcFile, number, number_after};
use crate::profile::{Column, Figures};

/// Most cgroups below the target's whose processes are listed.
const MAX_CGROUPS: usize = 256;

/// The files of a cgroup, held open; those that are not there are missing.
#[derive(Debug)]
pub(super) struct CgroupFiles {
    path: PathBuf,
    cpu: Option<ProcFile>,
    memory: Option<ProcFile>,
    swap: Option<ProcFile>,
    tasks: Option<ProcFile>,
    pressure: Pressure,
}

impl CgroupFiles {
    pub(super) fn open(path: &Path) -> Self {
        let open = |name: &str| ProcFile::open(path.join(name)).ok();
        Self {
            path: path.to_owned(),
            cpu: open("cpu.stat"),
            memory: open("memory.current"),
            swap: open("memory.swap.current"),
            tasks: open("pids.current"),
            pressure: Pressure::open(|resource| path.join(format!("{resource}.pressure"))),
        }
    }

    /// Puts what the cgroup says of itself in the place of what its processes add up to.
    /// Source: Documentation/admin-guide/cgroup-v2.rst.
    pub(super) fn read(&self, buffer: &mut Vec<u8>, figures: &mut Figures) {
        if let Some(text) = self.cpu.as_ref().and_then(|file| file.read(buffer).ok()) {
            read_cpu(text, figures);
        }
        let single = [
            (&self.memory, Column::TargetMemory),
            (&self.swap, Column::TargetSwap),
            // It counts tasks, of which every thread is one.
            (&self.tasks, Column::TargetThreads),
        ];
        for (file, column) in single {
            let text = file.as_ref().and_then(|file| file.read(buffer).ok());
            if let Some(figure) = text.and_then(|text| number(text.trim_ascii())) {
                figures.set(column, Some(figure));
            }
        }
        let [cpu, io, memory] = self.pressure.read(buffer);
        figures.set(Column::TargetPressureCpuSome, cpu.0);
        figures.set(Column::TargetPressureCpuFull, cpu.1);
        figures.set(Column::TargetPressureIoSome, io.0);
        figures.set(Column::TargetPressureIoFull, io.1);
        figures.set(Column::TargetPressureMemorySome, memory.0);
        figures.set(Column::TargetPressureMemoryFull, memory.1);
    }

    /// The processes in it and in those below it.
    pub(super) fn members(&self, buffer: &mut Vec<u8>) -> BTreeSet<u32> {
        let mut members = BTreeSet::new();
        let mut todo = vec![self.path.clone()];
        let mut listed = 0;
        while let Some(path) = todo.pop() {
            if let Ok(file) = ProcFile::open(path.join("cgroup.procs")) {
                let text = file.read(buffer).unwrap_or_default();
                let pids = text.split(|&byte| byte == b'\n').filter_map(|line| u32::try_from(number(line)?).ok());
                // 0 stands for a process of another pid namespace.
                members.extend(pids.filter(|&pid| pid != 0));
            }
            let below = fs::read_dir(&path).into_iter().flatten().flatten();
            let below = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            for entry in below.take(MAX_CGROUPS - listed) {
                listed += 1;
                todo.push(entry.path());
            }
        }
        members
    }
}

/// Reads `cpu.stat`, which has microseconds.
fn read_cpu(text: &[u8], figures: &mut Figures) {
    let time = |word: &[u8]| Some(number_after(text, word)?.saturating_mul(1000));
    for (column, word) in
        [(Column::TargetCpuUser, b"user_usec ".as_slice()), (Column::TargetCpuSystem, b"system_usec ")]
    {
        if let Some(time) = time(word) {
            figures.set(column, Some(time));
        }
    }
    figures.set(Column::TargetThrottled, time(b"throttled_usec "));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroups_own_figures_come_first_and_what_it_has_not_stays() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("cpu.stat", "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_throttled 2\nthrottled_usec 5\n");
        write("memory.current", "4096\n");
        write("io.pressure", "some avg10=0.00 total=7\nfull avg10=0.00 total=6\n");
        write("cgroup.procs", "12\n0\n13\n");
        let below = directory.path().join("below");
        fs::create_dir(&below).unwrap();
        fs::write(below.join("cgroup.procs"), "14\n").unwrap();
        let files = CgroupFiles::open(directory.path());
        let mut figures = Figures::default();
        figures.set(Column::TargetThreads, Some(3));
        figures.set(Column::TargetCpuUser, Some(1));
        let mut buffer = Vec::new();
        files.read(&mut buffer, &mut figures);
        let expected = [
            (Column::TargetCpuUser, Some(20_000)),
            (Column::TargetCpuSystem, Some(10_000)),
            (Column::TargetThrottled, Some(5_000)),
            (Column::TargetMemory, Some(4096)),
            (Column::TargetThreads, Some(3)),
            (Column::TargetSwap, None),
            (Column::TargetPressureIoSome, Some(7_000)),
            (Column::TargetPressureIoFull, Some(6_000)),
            (Column::TargetPressureCpuSome, None),
        ];
        for (column, figure) in expected {
            assert_eq!(figures.of(column), figure, "{column:?}");
        }
        assert_eq!(files.members(&mut buffer), BTreeSet::from([12, 13, 14]));
    }
}
