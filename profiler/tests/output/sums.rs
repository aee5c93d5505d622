//! Every output says the same, of any profile.

use profiler::analyze::analyze;
use profiler::output::{derived, flamegraph, folded, pprof};
use profiler::profile::{Capture, FrameKind, Function, Line, Location, Profile};
use serde_json::Value;

use crate::example;
use crate::random::{self, Random};

fn folded_lines(profile: &Profile) -> Vec<(String, u64)> {
    let mut bytes = Vec::new();
    folded::write(profile, &mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    text.lines()
        .map(|line| line.rsplit_once(' ').unwrap())
        .map(|(stack, value)| (stack.to_owned(), value.parse().unwrap()))
        .collect()
}

fn svg(capture: &Capture) -> String {
    let mut bytes = Vec::new();
    flamegraph::write(&capture.profiles[0], &capture.index, &mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn folded_flamegraph_pprof_and_report_have_one_total() {
    let mut random = Random(3);
    let mut profiles = vec![example::profile()];
    profiles.extend((0..200).map(|_| random::profile(&mut random)));
    for profile in profiles {
        let total = profile.totals()[0];
        let capture = Capture { profiles: vec![profile.clone()], ..example::capture() };
        let report = analyze(&capture);
        let lines = folded_lines(&profile);
        // Frame by frame.
        assert!(lines.is_sorted_by(|left, right| left.0.split(';').lt(right.0.split(';'))));
        assert_eq!(lines.iter().map(|(_, value)| value).sum::<u64>(), total);
        let message = pprof::encode_message(&profile, &pprof::Meta::default());
        assert_eq!(message.sample.iter().map(|sample| sample.value[0]).sum::<i64>(), i64::try_from(total).unwrap());
        assert_eq!(report.breakdowns["cpu"].total, total);
        assert_eq!(report.breakdowns["cpu"].self_by_kind.values().sum::<u64>(), total);
        assert_eq!(report.threads.iter().map(|thread| thread.value).sum::<u64>(), total);
        assert_eq!(report.processes.iter().map(|process| process.value).sum::<u64>(), total);
        let in_svg = if total == 0 { "no samples".to_owned() } else { format!("total_samples=\"{total}\"") };
        assert!(svg(&capture).contains(&in_svg));
    }
}

#[test]
fn a_cut_stack_says_so_next_to_its_process() {
    let lines = folded_lines(&example::profile());
    let has = |stack: &str, value| assert!(lines.contains(&(stack.to_owned(), value)), "{stack} is not in {lines:#?}");
    has("server;[truncated: no_frame_pointer];libc.so.6+0x29d00", 30);
    has("worker_2;[lost: ring_full];do_syscall_64_[k]", 2);
    has("server;libc.so.6+0x29d00;main;serve(std::vector<int, std::allocator<int> >&);parse_[i]", 1007);
    has("worker_2;main;render_[p];LazyCompile:~handle /app/index.js:12_[j]", 40);
    has("worker_2;[unknown]+0x7fff00001234", 1);
}

#[test]
fn a_recursive_function_counts_once_a_stack() {
    let report = analyze(&example::capture());
    let recursive = report.hotspots.iter().find(|hotspot| hotspot.function.starts_with("<[u8; 8]")).unwrap();
    assert_eq!((recursive.self_value, recursive.total_value), (25, 25));
    let itself = report.callgraph.edges.iter().find(|edge| edge.caller == edge.callee).unwrap();
    assert_eq!(itself.value, 25);
    let main = report.hotspots.iter().find(|hotspot| hotspot.function == "main").unwrap();
    assert_eq!((main.self_value, main.total_value), (0, 1192));
    assert!(report.callgraph.edges.iter().all(|edge| !edge.caller.starts_with('[') || edge.caller.contains('+')));
}

#[test]
fn the_flamegraph_tells_kinds_apart_and_is_the_same_every_time() {
    let capture = example::capture();
    let first = svg(&capture);
    assert_eq!(first, svg(&capture));
    assert!(first.contains("5.0 s at 99 Hz · 1,234 samples · 3 lost · 42 truncated"));
    for kind in ["native", "inlined", "kernel", "JIT", "interpreted", "stack cut or lost"] {
        assert!(first.contains(&format!("</tspan> {kind}")), "{kind} is not in the legend");
    }
    assert!(first.contains("<title>render ("), "suffixes are for colours only");
    assert!(!first.contains("@legend@"));
}

#[test]
fn a_stack_of_600_frames_is_written_by_every_format() {
    let mut capture = example::capture();
    let profile = &mut capture.profiles[0];
    profile.stacks[0].clear();
    for depth in 0..600 {
        let function = u32::try_from(profile.functions.len()).unwrap();
        profile.functions.push(Function { name: format!("level_{depth}"), file: String::new() });
        profile.stacks[0].push(u32::try_from(profile.locations.len()).unwrap());
        let lines = vec![Line { function, line: 0 }];
        profile.locations.push(Location { kind: FrameKind::Native, object: Some(1), address: 0x4000 + depth, lines });
    }
    let report = analyze(&capture);
    assert_eq!(report.breakdowns["cpu"].total, capture.profiles[0].totals()[0]);
    assert!(svg(&capture).contains("level_599 ("));
    let bytes = pprof::encode(&capture.profiles[0], &pprof::Meta::default());
    assert_eq!(pprof::decode(&bytes).unwrap().canonical(), capture.profiles[0].canonical());
}

#[test]
fn the_json_report_has_the_pinned_fields() {
    let capture = example::capture();
    let files = derived(&capture, &analyze(&capture)).unwrap();
    let report = files.iter().find(|file| file.name == "report.json").unwrap();
    let json: Value = serde_json::from_slice(&report.bytes).unwrap();
    assert_eq!(json["schema_version"], 1);
    assert_eq!(json["origins"]["cpu"]["total"], 1234);
    assert_eq!(json["accounting"]["cpu"]["lost"]["map_full"], 3);
    assert_eq!(json["accounting"]["cpu"]["expected"], 1300.3);
    assert_eq!(json["hotspots"][0]["function"], "parse");
    assert_eq!(json["accounting"]["cpu"]["not_delivered"], 1.3);
    assert_eq!(json["objects"][3]["path"], "/usr/lib/libc.so.6");
    assert_eq!(json["objects"][3]["advice"], "install libc6-dbg for build ID aa01");
    for field in ["target", "host", "duration_ns", "overhead", "callgraph", "threads", "processes", "warnings"] {
        assert!(!json[field].is_null(), "{field} is missing");
    }
}
