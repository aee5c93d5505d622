//! Where the running kernel keeps what the programs read, and what of its tracing there is.

use std::fs;

use profiler_common::block::BlockOffsets;
use profiler_common::config::TaskOffsets;
use profiler_common::file::FileOffsets;
use profiler_common::net::NetOffsets;

use super::BpfError;
use super::btf::{KIND_FUNCTION, KIND_TYPEDEF, MAX_NESTING, Types};
use super::load::Limits;
use super::{blocks, files, net};

const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// Where the kernel keeps what the programs read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Offsets {
    pub(super) task: TaskOffsets,
    pub(super) block: BlockOffsets,
    pub(super) file: FileOffsets,
    pub(super) net: NetOffsets,
}

/// Where the kernel keeps what the programs read of a task.
///
/// # Errors
///
/// [`BpfError::NoBtf`] when the kernel publishes no types, [`BpfError::NoField`] when a field is not there.
pub fn read_task_offsets() -> Result<TaskOffsets, BpfError> {
    with_types(task_offsets)
}

/// Where it keeps what the programs read that record what `limits` says.
///
/// # Errors
///
/// As of [`read_task_offsets`].
pub(super) fn read_offsets(limits: Limits) -> Result<Offsets, BpfError> {
    with_types(|types| {
        let mut offsets = Offsets { task: task_offsets(types)?, ..Offsets::default() };
        if limits.blocks {
            offsets.block = blocks::offsets(types)?;
        }
        if limits.blocks || limits.files {
            offsets.file = files::offsets(types)?;
        }
        if limits.net {
            offsets.net = net::offsets(types)?;
        }
        Ok(offsets)
    })
}

/// What `read` finds in the kernel's types.
pub(super) fn with_types<T>(read: impl FnOnce(&Types<'_>) -> Result<T, BpfError>) -> Result<T, BpfError> {
    let no_btf = |reason: String| BpfError::NoBtf { path: BTF_PATH.to_owned(), reason };
    let bytes = fs::read(BTF_PATH).map_err(|error| no_btf(error.to_string()))?;
    read(&Types::parse(&bytes).ok_or_else(|| no_btf("not in BTF format".to_owned()))?)
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
    with_types(|types| {
        Ok(WaitHooks {
            exit_tracepoint: types.find(KIND_TYPEDEF, "btf_trace_sched_exit_tp").is_some(),
            task_iterator: types.find(KIND_FUNCTION, "bpf_iter_task"),
        })
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
}
