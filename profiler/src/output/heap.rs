//! `heap.pb.gz`: what was allocated and what is in use in one pprof profile, with the names and in the order that pprof's
//! heap profiles have.

use profiler_common::event::{COLUMNS, Origin, OriginRow};

use super::pprof;
use crate::profile::{Index, Line, Location, Profile, Sample};

/// Name of the file.
pub(super) const FILE: &str = "heap.pb.gz";

/// What its values are. Source: runtime/pprof of Go, `writeHeapProto`.
const ROW: OriginRow = OriginRow {
    origin: Origin::Alloc,
    name: "heap",
    unit: "bytes",
    primary: 3,
    also: &[],
    columns: &[
        ("alloc_objects", "count"),
        ("alloc_space", "bytes"),
        ("inuse_objects", "count"),
        ("inuse_space", "bytes"),
    ],
    reasons: &[],
    kernel_stacks: false,
    event: "allocation",
    total: "in use",
    reasons_title: "",
};

/// Columns of bytes and of blocks in both origins' rows.
const BYTES: usize = 1;
const OBJECTS: usize = 2;

/// The file.
pub(super) fn encode(allocated: &Profile, in_use: &Profile, index: &Index) -> Vec<u8> {
    let mut heap = Profile::new(Origin::Alloc);
    append(&mut heap, allocated, |values| [values[OBJECTS], values[BYTES], 0, 0]);
    append(&mut heap, in_use, |values| [0, 0, values[OBJECTS], values[BYTES]]);
    pprof::encode_as(&heap, &ROW, &pprof::Meta::new(index, Origin::Alloc.row().name))
}

/// Appends a profile to another; equal things become one when it is encoded.
fn append(heap: &mut Profile, profile: &Profile, values: impl Fn(&[u64; COLUMNS]) -> [u64; COLUMNS]) {
    let next = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    let (functions, objects) = (next(heap.functions.len()), next(heap.objects.len()));
    let (locations, stacks, threads) = (next(heap.locations.len()), next(heap.stacks.len()), next(heap.threads.len()));
    heap.functions.extend(profile.functions.iter().cloned());
    heap.objects.extend(profile.objects.iter().cloned());
    heap.locations.extend(profile.locations.iter().map(|location| Location {
        object: location.object.map(|object| object + objects),
        lines: location.lines.iter().map(|line| Line { function: line.function + functions, ..*line }).collect(),
        ..*location
    }));
    heap.stacks.extend(profile.stacks.iter().map(|stack| stack.iter().map(|location| location + locations).collect()));
    heap.threads.extend(profile.threads.iter().cloned());
    heap.samples.extend(profile.samples.iter().map(|sample| Sample {
        stack: sample.stack + stacks,
        thread: sample.thread + threads,
        reason: 0,
        span: 0,
        values: values(&sample.values),
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{FrameKind, Function, Thread};

    fn profile(origin: Origin, name: &str, values: [u64; COLUMNS]) -> Profile {
        let function = |name: &str| Function { name: name.to_owned(), file: String::new() };
        let location = |function| Location {
            kind: FrameKind::Native,
            object: None,
            address: u64::from(function) + 1,
            lines: vec![Line { function, line: 0 }],
        };
        let thread = Thread {
            pid: 1,
            tid: 1,
            start_time_ns: 2,
            exec_count: 0,
            process_name: "a".to_owned(),
            thread_name: "a".to_owned(),
            cgroup: String::new(),
        };
        Profile {
            functions: vec![function("malloc"), function(name)],
            locations: vec![location(0), location(1)],
            stacks: vec![vec![0, 1]],
            threads: vec![thread],
            samples: vec![Sample { stack: 0, thread: 0, reason: 0, span: 7, values }],
            ..Profile::new(origin)
        }
    }

    #[test]
    fn both_are_in_one_file_in_the_order_of_pprof() {
        let allocated = profile(Origin::Alloc, "work", [9, 4_000, 40, 5]);
        let in_use = profile(Origin::Live, "work", [2, 1_000, 10, 5]);
        let mut heap = Profile::new(Origin::Alloc);
        append(&mut heap, &allocated, |values| [values[OBJECTS], values[BYTES], 0, 0]);
        append(&mut heap, &in_use, |values| [0, 0, values[OBJECTS], values[BYTES]]);
        let heap = heap.canonical();
        // Equal stacks are one.
        assert_eq!((heap.stacks.len(), heap.functions.len(), heap.samples.len()), (1, 2, 1));
        assert_eq!(heap.samples[0].values, [40, 4_000, 10, 1_000]);
    }
}
