//! Offsets of kernel fields, from the kernel's own BTF.
//!
//! Only the two or three structures that are read are looked at: one pass over the types, no index.
//! Source: Documentation/bpf/btf.rst, section 2.

use std::fs;

use profiler_common::config::TaskOffsets;

use super::BpfError;

const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
const KIND_POINTER: u32 = 2;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_TYPEDEF: u32 = 8;
const KIND_FUNCTION: u32 = 12;
const KIND_FUNCTION_PROTOTYPE: u32 = 13;
/// Anonymous members inside `task_struct` are followed to this depth.
const MAX_NESTING: u32 = 8;

/// Where the kernel keeps what the programs read of a task.
///
/// # Errors
///
/// [`BpfError::NoBtf`] when the kernel publishes no types, [`BpfError::NoField`] when a field is not there.
pub fn read_task_offsets() -> Result<TaskOffsets, BpfError> {
    let no_btf = |reason: String| BpfError::NoBtf { path: BTF_PATH.to_owned(), reason };
    let bytes = fs::read(BTF_PATH).map_err(|error| no_btf(error.to_string()))?;
    let types = Types::parse(&bytes).ok_or_else(|| no_btf("not in BTF format".to_owned()))?;
    task_offsets(&types)
}

/// What of the kernel's tracing a recording of waits can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WaitHooks {
    /// Whether there is the tracepoint `sched_exit_tp` (Linux 6.15).
    pub(super) exit_tracepoint: bool,
    /// Number of the function that stands for the iterator over tasks.
    pub(super) task_iterator: Option<u32>,
}

/// What of the kernel's tracing a recording of waits can use.
///
/// # Errors
///
/// [`BpfError::NoBtf`] when the kernel publishes no types.
pub(super) fn read_wait_hooks() -> Result<WaitHooks, BpfError> {
    let no_btf = |reason: String| BpfError::NoBtf { path: BTF_PATH.to_owned(), reason };
    let bytes = fs::read(BTF_PATH).map_err(|error| no_btf(error.to_string()))?;
    let types = Types::parse(&bytes).ok_or_else(|| no_btf("not in BTF format".to_owned()))?;
    Ok(WaitHooks {
        exit_tracepoint: types.find(KIND_TYPEDEF, "btf_trace_sched_exit_tp").is_some(),
        task_iterator: types.find(KIND_FUNCTION, "bpf_iter_task"),
    })
}

fn task_offsets(types: &Types<'_>) -> Result<TaskOffsets, BpfError> {
    let structure = "task_struct";
    let task = types.find_struct(structure).ok_or(BpfError::NoField { structure, field: "(itself)" })?;
    let offset = |names: &[&'static str]| {
        names
            .iter()
            .find_map(|name| types.member_offset(task, name, MAX_NESTING))
            .ok_or(BpfError::NoField { structure, field: names[0] })
    };
    let in_iowait = types.member_bits(task, "in_iowait", MAX_NESTING);
    let in_execve = types.member_bits(task, "in_execve", MAX_NESTING);
    Ok(TaskOffsets {
        tgid: offset(&["tgid"])?,
        pid: offset(&["pid"])?,
        group_leader: offset(&["group_leader"])?,
        start_time: offset(&["start_boottime", "real_start_time"])?,
        exec_count: offset(&["self_exec_id"])?,
        comm: offset(&["comm"])?,
        mm: offset(&["mm"])?,
        flags: offset(&["flags"])?,
        voluntary_switches: offset(&["nvcsw"])?,
        involuntary_switches: offset(&["nivcsw"])?,
        in_execve: in_execve.map_or(0, |bits| bits / 8),
        in_execve_mask: in_execve.map_or(0, |bits| 1 << (bits % 8)),
        thread_pointer: types
            .inner_offset(task, "thread", "fsbase")
            .ok_or(BpfError::NoField { structure, field: "thread.fsbase" })?,
        state: offset(&["__state", "state"])?,
        run_delay: types.inner_offset(task, "sched_info", "run_delay").unwrap_or(0),
        in_iowait: in_iowait.map_or(0, |bits| bits / 8),
        in_iowait_mask: in_iowait.map_or(0, |bits| 1 << (bits % 8)),
        switch_state_argument: types.argument("btf_trace_sched_switch", "prev_state").unwrap_or(0),
        on_cpu: types.member_offset(task, "on_cpu", MAX_NESTING).unwrap_or(0),
        reserved: 0,
    })
}

/// BTF, not copied.
struct Types<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type starts in `types`; type 1 is the first.
    starts: Vec<u32>,
}

/// A type's header.
#[derive(Clone, Copy)]
struct Header {
    name: u32,
    kind: u32,
    members: u32,
    /// Whether member offsets carry a bit-field size in their top byte.
    has_bit_fields: bool,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

impl<'a> Types<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        if bytes.get(..2)? != MAGIC.to_le_bytes() {
            return None;
        }
        let header = word(bytes, 4)? as usize;
        let section = |offset: usize, length: usize| {
            let start = header.checked_add(word(bytes, offset)? as usize)?;
            bytes.get(start..start.checked_add(word(bytes, length)? as usize)?)
        };
        let (types, strings) = (section(8, 12)?, section(16, 20)?);
        let mut starts = Vec::with_capacity(types.len() / 24);
        let mut at = 0;
        while at < types.len() {
            starts.push(u32::try_from(at).ok()?);
            let (kind, members) = kind_and_members(word(types, at + 4)?);
            at = at.checked_add(12 + extra_bytes(kind, members)?)?;
        }
        Some(Self { types, strings, starts })
    }

    fn header(&self, start: usize) -> Option<Header> {
        let info = word(self.types, start + 4)?;
        let (kind, members) = kind_and_members(info);
        Some(Header { name: word(self.types, start)?, kind, members, has_bit_fields: info >> 31 == 1 })
    }

    fn is_named(&self, name: u32, wanted: &str) -> bool {
        self.strings
            .get(name as usize..)
            .and_then(|rest| rest.strip_prefix(wanted.as_bytes()))
            .is_some_and(|rest| rest.first() == Some(&0))
    }

    /// Where the structure of this name starts.
    fn find_struct(&self, name: &str) -> Option<usize> {
        self.starts.iter().map(|&start| start as usize).find(|&start| {
            self.header(start).is_some_and(|header| {
                header.kind == KIND_STRUCT && header.members > 0 && self.is_named(header.name, name)
            })
        })
    }

    /// Number of the type of this kind and name.
    fn find(&self, kind: u32, name: &str) -> Option<u32> {
        let index = self.starts.iter().position(|&start| {
            self.header(start as usize).is_some_and(|header| header.kind == kind && self.is_named(header.name, name))
        })?;
        u32::try_from(index + 1).ok()
    }

    /// Which argument of a tracepoint has this name, from 1.
    fn argument(&self, tracepoint: &str, name: &str) -> Option<u32> {
        let behind = |id: u32| Some(*self.starts.get((id as usize).checked_sub(1)?)? as usize);
        let pointer = behind(word(self.types, behind(self.find(KIND_TYPEDEF, tracepoint)?)? + 8)?)?;
        let prototype = behind(word(self.types, pointer + 8)?)?;
        let (pointer, header) = (self.header(pointer)?, self.header(prototype)?);
        if pointer.kind != KIND_POINTER || header.kind != KIND_FUNCTION_PROTOTYPE {
            return None;
        }
        // The first parameter is the tracepoint's own.
        (1..header.members).find(|&index| {
            word(self.types, prototype + 12 + 8 * index as usize).is_some_and(|at| self.is_named(at, name))
        })
    }

    /// Byte offset of a member.
    fn member_offset(&self, start: usize, name: &str, nesting: u32) -> Option<u32> {
        self.member_bits(start, name, nesting).map(|bits| bits / 8)
    }

    /// Bit offset of a member, also of one inside anonymous structures and unions.
    fn member_bits(&self, start: usize, name: &str, nesting: u32) -> Option<u32> {
        let header = self.header(start)?;
        for index in 0..header.members as usize {
            let at = start + 12 + 12 * index;
            let (member, kind, bits) = (word(self.types, at)?, word(self.types, at + 4)?, word(self.types, at + 8)?);
            let bits = if header.has_bit_fields { bits & 0x00ff_ffff } else { bits };
            if self.is_named(member, name) && member != 0 {
                return Some(bits);
            }
            if member == 0
                && nesting > 0
                && let Some(inner) = self.struct_behind(kind)
                && let Some(inner_bits) = self.member_bits(inner, name, nesting - 1)
            {
                return Some(bits + inner_bits);
            }
        }
        None
    }

    /// Byte offset of a member of a structure that is a named member itself.
    fn inner_offset(&self, start: usize, outer: &str, inner: &str) -> Option<u32> {
        let header = self.header(start)?;
        (0..header.members as usize).find_map(|index| {
            let at = start + 12 + 12 * index;
            if !self.is_named(word(self.types, at)?, outer) {
                return None;
            }
            let structure = self.struct_behind(word(self.types, at + 4)?)?;
            let bits = word(self.types, at + 8)? & if header.has_bit_fields { 0x00ff_ffff } else { u32::MAX };
            Some(bits / 8 + self.member_offset(structure, inner, 0)?)
        })
    }

    fn struct_behind(&self, id: u32) -> Option<usize> {
        let start = *self.starts.get((id as usize).checked_sub(1)?)? as usize;
        let header = self.header(start)?;
        matches!(header.kind, KIND_STRUCT | KIND_UNION).then_some(start)
    }
}

/// Kind and number of members, from a type's second word.
const fn kind_and_members(info: u32) -> (u32, u32) {
    ((info >> 24) & 0x1f, info & 0xffff)
}

/// Bytes that follow a type's header. Source: include/uapi/linux/btf.h.
fn extra_bytes(kind: u32, members: u32) -> Option<usize> {
    let members = members as usize;
    Some(match kind {
        // Pointer, forward, typedef, volatile, const, restrict, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Array.
        3 => 12,
        // Structure, union, data section, 64-bit enumeration.
        4 | 5 | 15 | 19 => 12 * members,
        // Enumeration, function prototype.
        6 | 13 => 8 * members,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_names_its_task_fields() {
        if !std::path::Path::new(BTF_PATH).exists() {
            return;
        }
        let offsets = read_task_offsets().unwrap();
        assert_eq!(offsets.tgid, offsets.pid + 4);
        assert_ne!(offsets.comm, 0);
        assert_ne!(offsets.start_time, offsets.mm);
        assert_eq!(offsets.thread_pointer % 8, 0);
        assert_ne!(offsets.thread_pointer, 0);
        assert_ne!(offsets.state, offsets.flags);
        assert_ne!(offsets.in_iowait_mask, 0);
        // Preempted or not, the task, the next one, the state.
        assert!([0, 4].contains(&offsets.switch_state_argument));
        assert!(read_wait_hooks().unwrap().task_iterator > Some(1));
    }

    #[test]
    fn garbage_is_refused() {
        assert!(Types::parse(&[]).is_none());
        assert!(Types::parse(&[0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 255, 255, 255, 255]).is_none());
    }
}
