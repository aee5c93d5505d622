//! Loads programs for sessions of uprobes, which run at a function's entry and, if they say so there, at its return (Linux 6.13).
//!
//! aya knows no such programs: the object is parsed and relocated once more, by the same crate, to the maps that are there.

use std::collections::{BTreeMap, HashSet};
use std::ffi::c_char;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};

use aya::Ebpf;
use aya::maps::Map;
use aya_obj::Object;

use super::BpfError;
use super::syscall::bpf;

/// Commands of `bpf(2)`, the type of programs that probes run, and the one that sessions do. Source:
/// include/uapi/linux/bpf.h.
const PROGRAM_LOAD: libc::c_long = 5;
const BTF_LOAD: libc::c_long = 18;
const TYPE_KPROBE: u32 = 2;
pub(super) const ATTACH_UPROBE_SESSION: u32 = 57;

/// What the verifier says of a program it refuses, bytes.
const LOG_BYTES: usize = 1 << 20;

/// The part of `union bpf_attr` that loads a program.
#[repr(C)]
#[derive(Default)]
struct ProgramAttributes {
    kind: u32,
    instructions_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
    btf: u32,
    function_size: u32,
    functions: u64,
    functions_count: u32,
    line_size: u32,
    lines: u64,
    lines_count: u32,
    reserved: u32,
}

/// The part that loads types.
#[repr(C)]
#[derive(Default)]
struct BtfAttributes {
    bytes: u64,
    log: u64,
    size: u32,
    log_size: u32,
    log_level: u32,
    reserved: u32,
}

/// The object, ready to load programs of it.
pub(super) struct SessionObject {
    object: Object,
    btf: Option<OwnedFd>,
    /// What its instructions name by number.
    _maps: BTreeMap<String, OwnedFd>,
}

/// The descriptors of an object's maps, by name, before they are taken out of it.
pub(super) fn map_descriptors(ebpf: &Ebpf) -> BTreeMap<String, OwnedFd> {
    let descriptor = |(name, map): (&str, &Map)| {
        let data = match map {
            Map::Array(data)
            | Map::ArrayOfMaps(data)
            | Map::HashMap(data)
            | Map::LruHashMap(data)
            | Map::PerCpuArray(data)
            | Map::PerCpuHashMap(data)
            | Map::ProgramArray(data)
            | Map::Queue(data)
            | Map::RingBuf(data) => data,
            _ => return None,
        };
        Some((name.to_owned(), data.fd().as_fd().try_clone_to_owned().ok()?))
    };
    ebpf.maps().filter_map(descriptor).collect()
}

impl SessionObject {
    /// Parses an object and binds it to maps.
    pub(super) fn new(bytes: &[u8], maps: BTreeMap<String, OwnedFd>) -> Result<Self, BpfError> {
        let failed = |cause: &dyn std::fmt::Display| BpfError::Session(cause.to_string());
        let mut object = Object::parse(bytes).map_err(|error| failed(&error))?;
        let features = aya::features();
        let mut btf = None;
        if let Some(features) = features.btf() {
            let types = object.fixup_and_sanitize_btf(features).map_err(|error| failed(&error))?;
            btf = types.map(|types| load_types(&types.to_bytes())).transpose().map_err(|error| failed(&error))?;
        }
        let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        let definitions = std::mem::take(&mut object.maps);
        // An instruction that names a map which is not there would be bound to another one.
        if let Some(missing) = definitions.keys().find(|name| !maps.contains_key(*name)) {
            return Err(failed(&format!("no descriptor of the map {missing}")));
        }
        let bound = definitions.iter().filter_map(|(name, definition)| {
            maps.get(name).map(|descriptor| (name.as_str(), descriptor.as_raw_fd(), definition))
        });
        object.relocate_maps(bound, &sections).map_err(|error| failed(&error))?;
        object.relocate_calls(&sections).map_err(|error| failed(&error))?;
        object.sanitize_functions(features);
        Ok(Self { object, btf, _maps: maps })
    }

    /// Loads a program.
    pub(super) fn load(&self, name: &'static str) -> Result<OwnedFd, BpfError> {
        let program = self.object.programs.get(name).ok_or(BpfError::Missing(name))?;
        let function = self.object.functions.get(&program.function_key()).ok_or(BpfError::Missing(name))?;
        let (functions, lines) = (function.func_info.func_info_bytes(), function.line_info.line_info_bytes());
        let count = |length: usize| u32::try_from(length).unwrap_or(0);
        let mut attributes = ProgramAttributes {
            kind: TYPE_KPROBE,
            instructions_count: count(function.instructions.len()),
            instructions: function.instructions.as_ptr() as u64,
            license: program.license.as_ptr().cast::<c_char>() as u64,
            expected_attach_type: ATTACH_UPROBE_SESSION,
            ..ProgramAttributes::default()
        };
        for (to, from) in attributes.name.iter_mut().take(15).zip(name.bytes()) {
            *to = from;
        }
        if let Some(btf) = &self.btf {
            attributes.btf = u32::try_from(btf.as_raw_fd()).unwrap_or(0);
            attributes.function_size = count(function.func_info_rec_size);
            attributes.functions = functions.as_ptr() as u64;
            attributes.functions_count = count(function.func_info.len());
            attributes.line_size = count(function.line_info_rec_size);
            attributes.lines = lines.as_ptr() as u64;
            attributes.lines_count = count(function.line_info.len());
        }
        if let Ok(loaded) = bpf(PROGRAM_LOAD, &mut attributes) {
            // SAFETY: the descriptor was just made, and nobody else has it.
            return Ok(unsafe { OwnedFd::from_raw_fd(loaded) });
        }
        let mut log = vec![0_u8; LOG_BYTES];
        (attributes.log, attributes.log_size, attributes.log_level) = (log.as_mut_ptr() as u64, count(LOG_BYTES), 1);
        match bpf(PROGRAM_LOAD, &mut attributes) {
            // SAFETY: as above.
            Ok(loaded) => Ok(unsafe { OwnedFd::from_raw_fd(loaded) }),
            Err(error) => {
                let said =
                    String::from_utf8_lossy(log.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned();
                let last: Vec<&str> = said.lines().rev().take(6).collect();
                let last: Vec<&str> = last.into_iter().rev().collect();
                Err(BpfError::Session(format!("{name}: {error}: {}", last.join("; "))))
            }
        }
    }
}

fn load_types(bytes: &[u8]) -> io::Result<OwnedFd> {
    let size = u32::try_from(bytes.len()).unwrap_or(0);
    let loaded = bpf(BTF_LOAD, &mut BtfAttributes { bytes: bytes.as_ptr() as u64, size, ..BtfAttributes::default() })?;
    // SAFETY: the descriptor was just made, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(loaded) })
}
