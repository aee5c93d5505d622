//! Layouts of Python that the programs know, and the programs that walk by them: loaded when the first process with one
//! comes, which nobody else pays for.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use aya::Ebpf;
use aya::maps::{Array, Map, MapData};
use aya::programs::Program;
use profiler_common::python::{MAX_PYTHON_LAYOUTS, PythonLayout};

use super::BpfError;
use super::load::{Kernel, Shared, program_error, take, typed};
use super::syscall::bpf;

/// A program that goes on with a Python chain where another one has begun, and the map of its slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PythonProgram {
    program: &'static str,
    map: &'static str,
}

impl PythonProgram {
    const ALL: [Self; 10] = [
        Self::CPU,
        Self::OFF_CPU,
        Self::OFF_CPU_PROBE,
        Self::FAULT,
        Self::SYSCALL,
        Self::BLOCK,
        Self::FILE,
        Self::NET,
        Self::ALLOC,
        Self::FUNCTION,
    ];
    /// For samples on the CPU.
    pub(super) const CPU: Self = Self { program: "cpu_python", map: "CPU_PYTHON" };
    /// For waits.
    pub(super) const OFF_CPU: Self = Self { program: "offcpu_python", map: "OFFCPU_PYTHON" };
    /// For page faults.
    pub(super) const FAULT: Self = Self { program: "fault_python", map: "FAULT_PYTHON" };
    /// For system calls.
    pub(super) const SYSCALL: Self = Self { program: "syscall_python", map: "SYSCALL_PYTHON" };
    /// For messages of sockets.
    pub(super) const NET: Self = Self { program: "net_python", map: "NET_PYTHON" };
    /// For operations on files.
    pub(super) const FILE: Self = Self { program: "file_python", map: "FILE_PYTHON" };
    /// For requests to block devices.
    pub(super) const BLOCK: Self = Self { program: "block_python", map: "BLOCK_PYTHON" };
    /// For allocations.
    pub(super) const ALLOC: Self = Self { program: "alloc_python", map: "ALLOC_PYTHON" };
    /// For calls of functions.
    pub(super) const FUNCTION: Self = Self { program: "function_python", map: "FUNCTION_PYTHON" };
    /// For waits that a kprobe sees.
    pub(super) const OFF_CPU_PROBE: Self = Self { program: "offcpu_python_probe", map: "OFFCPU_PROBE_PYTHON" };
}

/// `BPF_MAP_UPDATE_ELEM`, and the part of `union bpf_attr` that it takes: aya writes only programs that it has loaded itself.
const MAP_UPDATE: libc::c_long = 2;
#[repr(C)]
struct UpdateAttributes {
    map: i32,
    reserved: u32,
    key: *const u32,
    value: *const i32,
    flags: u64,
}

/// A [`PythonProgram`] and what is known of it.
struct Walk {
    names: PythonProgram,
    slots: MapData,
    /// Whether something that is attached calls it.
    expected: bool,
    /// Once it is loaded.
    loaded: Option<OwnedFd>,
}

/// The layouts and the programs.
pub(super) struct Pythons {
    layouts: Array<MapData, Shared<PythonLayout>>,
    walks: Vec<Walk>,
    /// The layouts that are in the map.
    known: Vec<PythonLayout>,
}

impl Pythons {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, BpfError> {
        let mut walks = Vec::new();
        for names in PythonProgram::ALL {
            let Map::ProgramArray(slots) = take(ebpf, names.map)? else { return Err(BpfError::Missing(names.map)) };
            walks.push(Walk { names, slots, expected: false, loaded: None });
        }
        Ok(Self { layouts: typed(ebpf, "PYTHON_LAYOUTS")?, walks, known: Vec::new() })
    }

    /// Says that a program is needed, once there is a layout.
    pub(super) fn expect(&mut self, names: PythonProgram) {
        for walk in self.walks.iter_mut().filter(|walk| walk.names == names) {
            walk.expected = true;
        }
    }
}

impl Kernel {
    /// Makes a layout of Python known to the programs, and returns its number for
    /// [`Process::python_layout`](profiler_common::config::Process::python_layout); `None` when there are too many.
    ///
    /// # Errors
    ///
    /// When the verifier refuses the programs that walk by it, or a map cannot be written.
    pub fn python_layout(&mut self, layout: PythonLayout) -> Result<Option<u32>, BpfError> {
        let known = self.pythons.known.iter().position(|known| *known == layout);
        let index = known.unwrap_or(self.pythons.known.len());
        if index >= MAX_PYTHON_LAYOUTS {
            return Ok(None);
        }
        let number = u32::try_from(index).unwrap_or(u32::MAX);
        if known.is_none() {
            let written = self.pythons.layouts.set(number, Shared(layout), 0);
            written.map_err(|error| BpfError::map("write", "PYTHON_LAYOUTS", error))?;
            for walk in 0..self.pythons.walks.len() {
                self.set_walk(walk, number)?;
            }
            self.pythons.known.push(layout);
        }
        Ok(Some(number + 1))
    }

    /// Puts a program that is needed into a slot, and loads it when it is the first one.
    fn set_walk(&mut self, walk: usize, slot: u32) -> Result<(), BpfError> {
        let Walk { names, expected, loaded, .. } = &self.pythons.walks[walk];
        let names = *names;
        if !expected {
            return Ok(());
        }
        if loaded.is_none() {
            let loaded = self.load_walk(names)?;
            self.pythons.walks[walk].loaded = Some(loaded);
        }
        let Walk { slots, loaded, .. } = &mut self.pythons.walks[walk];
        match loaded {
            Some(program) => {
                let program = program.as_raw_fd();
                let mut attributes = UpdateAttributes {
                    map: slots.fd().as_fd().as_raw_fd(),
                    reserved: 0,
                    key: &raw const slot,
                    value: &raw const program,
                    flags: 0,
                };
                let written = bpf(MAP_UPDATE, &mut attributes).map(drop);
                written.map_err(|error| BpfError::map("write", names.map, error))
            }
            None => Ok(()),
        }
    }

    fn load_walk(&mut self, names: PythonProgram) -> Result<OwnedFd, BpfError> {
        let name = names.program;
        // A program is continued by one of its own kind.
        if names == PythonProgram::ALLOC && self.follows_blocks() {
            return self.load_session_program(name);
        }
        let failed = |cause| program_error("load", name, cause);
        let program = self.ebpf.program_mut(name).ok_or(BpfError::Missing(name))?;
        match program {
            Program::PerfEvent(program) => program.load(),
            Program::RawTracePoint(program) => program.load(),
            Program::TracePoint(program) => program.load(),
            Program::KProbe(program) => program.load(),
            Program::UProbe(program) => program.load(),
            _ => return Err(BpfError::Missing(name)),
        }
        .map_err(failed)?;
        let descriptor = program.fd().map_err(failed)?.as_fd().try_clone_to_owned();
        descriptor.map_err(|error| BpfError::map("duplicate", name, error))
    }
}
