//! The timeline: what the target and the host used, slice by slice.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::record_targets::Cgroup;
use profiler_tests::{Captured, Record, Target, Workload, float, is_emulated, require_bpf, run_profiler, scratch};

/// A program that burns half of a CPU and has more of all from a known moment on.
fn phases() -> Workload {
    Workload::c("phases")
}

/// The timeline of a recording.
struct Timeline {
    starts: Vec<u64>,
    lengths: Vec<u64>,
    columns: BTreeMap<String, Vec<Option<u64>>>,
}

impl Timeline {
    /// Reads it, and checks what must hold of every one.
    fn read(captured: &Captured) -> Self {
        let timeline = &captured.report["timeline"];
        let list = |name: &str| serde_json::from_value(timeline[name].clone()).expect("a list of ns");
        let columns = serde_json::from_value(timeline["columns"].clone()).expect("columns");
        let timeline = Self { starts: list("start_ns"), lengths: list("length_ns"), columns };
        let duration = captured.report["duration_ns"].as_u64().expect("ns");
        assert_eq!(timeline.lengths.iter().sum::<u64>(), duration, "slices cover the recording");
        let ends = timeline.starts.iter().zip(&timeline.lengths).map(|(start, length)| start + length);
        assert!(std::iter::once(0).chain(ends).zip(&timeline.starts).all(|(end, &start)| end == start));
        timeline.check_csv(&std::fs::read_to_string(captured.path().join("timeline.csv")).expect("timeline.csv"));
        let svg = std::fs::read_to_string(captured.path().join("timeline.svg")).expect("timeline.svg");
        assert!(svg.contains("</svg>") && !svg.contains("NaN"), "{svg}");
        timeline
    }

    /// Checks that the CSV file says the same.
    fn check_csv(&self, text: &str) {
        let mut lines = text.lines();
        let head: Vec<&str> = lines.next().expect("a head").split(',').collect();
        assert_eq!(head[..2], ["start_ns", "length_ns"]);
        for column in self.columns.keys() {
            assert!(head.contains(&column.as_str()), "{column} is not in {head:?}");
        }
        assert_eq!(lines.clone().count(), self.starts.len());
        for (slice, line) in lines.enumerate() {
            let fields: Vec<&str> = line.split(',').collect();
            assert_eq!(fields.len(), head.len(), "{line}");
            assert_eq!(fields[0], self.starts[slice].to_string());
            for (&name, field) in head.iter().zip(fields).skip(2) {
                let figure = self.columns.get(name).and_then(|figures| figures[slice]);
                assert_eq!(field, figure.map(|figure| figure.to_string()).unwrap_or_default(), "{name}");
            }
        }
    }

    /// The figures of a column, which has one for each slice.
    fn column(&self, name: &str) -> Vec<u64> {
        let figures = self.columns.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.columns.keys()));
        figures.iter().map(|figure| figure.unwrap_or_else(|| panic!("{name} is missing: {figures:?}"))).collect()
    }

    /// Sum of a column, for ratios.
    fn sum(&self, name: &str) -> f64 {
        float(self.column(name).iter().sum())
    }

    /// CPU time of the target, ns.
    fn target_cpu(&self) -> f64 {
        self.sum("target_cpu_user_ns") + self.sum("target_cpu_system_ns")
    }
}

/// Checks a figure against the truth. Ticks of 10 ms are lost where an emulated CPU gets no interrupt.
fn check(what: &str, found: f64, expected: f64) {
    let off = found / expected - 1.0;
    println!("{what}: {:+.2} % of {expected}", off * 100.0);
    assert!(off.abs() < if is_emulated() { 0.3 } else { 0.05 }, "{what}: {found} for {expected}");
}

#[test]
fn steps_are_seen_and_slices_add_up_to_the_whole() {
    let Some(_kernel) = require_bpf() else { return };
    const MIB: u64 = 1 << 20;
    let captured = Record::new().program(&phases().build(), &["6", "3", "40", "100", "64"]).run();
    let truth = captured.truth();
    let figure = |name: &str| truth[name].as_u64().expect("a figure");
    let timeline = Timeline::read(&captured);
    check("CPU time", timeline.target_cpu(), float(figure("cpu_ns")));
    check("minor faults", timeline.sum("target_minor_faults"), float(figure("minor_faults")));
    // The recording begins before the program says "ready", and not long before.
    let change = figure("change_ns");
    let slices = || timeline.starts.iter().zip(&timeline.lengths).map(|(&start, &length)| (start, start + length));
    let last = timeline.starts.len() - 1;
    // Read while it surely runs: it ends 6 s after it said "ready", and on a busy host the reading comes late.
    let runs = |end: u64| end < 5_500_000_000;
    let before: Vec<usize> = slices().enumerate().filter(|(_, (_, end))| *end < change).map(|(at, _)| at).collect();
    let after = slices().enumerate().filter(|(_, (start, end))| *start > change && runs(*end)).map(|(at, _)| at);
    let after: Vec<usize> = after.collect();
    assert!(before.len() >= 2 && !after.is_empty(), "{:?}: {change}", timeline.starts);
    let at = |name: &str, slices: &[usize]| -> Vec<u64> {
        let column = timeline.column(name);
        slices.iter().map(|&slice| column[slice]).collect()
    };
    assert!(at("target_threads", &before).iter().all(|&threads| threads == 1));
    assert!(at("target_threads", &after).iter().all(|&threads| threads == 41));
    assert!(at("target_processes", &after).iter().all(|&processes| processes == 1));
    let descriptors = at("target_descriptors", &before)[0];
    assert!(at("target_descriptors", &after).iter().all(|&after| after == descriptors + 100));
    let resident = at("target_rss_bytes", &before)[0];
    for after in at("target_rss_bytes", &after) {
        assert!((64 * MIB..72 * MIB).contains(&(after - resident)), "{after} after {resident}");
    }
    // The slice by slice figures are those of half a CPU, not one heap.
    for slice in after.iter().chain(&before) {
        let cpu = timeline.column("target_cpu_user_ns")[*slice] + timeline.column("target_cpu_system_ns")[*slice];
        let share = float(cpu) / float(timeline.lengths[*slice]);
        assert!(is_emulated() || (0.25..0.8).contains(&share), "{share} of a CPU in slice {slice}");
    }
    // The program is gone when the last slice ends.
    assert_eq!(timeline.column("target_processes")[last], 0);
    let report = std::fs::read_to_string(captured.path().join("report.md")).expect("report.md");
    assert!(report.contains("\n## Timeline\n") && report.contains("timeline.svg"), "{report}");
    check_report_again(&captured);
}

/// Checks that `report` makes the same files from what `capture.json` has.
fn check_report_again(captured: &Captured) {
    let (directory, again) = (captured.path(), scratch());
    let arguments = ["report", directory.to_str().expect("UTF-8"), "-o", again.path().to_str().expect("UTF-8")];
    let ended = run_profiler(&arguments);
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    for name in ["timeline.csv", "timeline.svg", "report.md", "report.json"] {
        let read = |directory: &std::path::Path| std::fs::read(directory.join(name)).expect("a file");
        assert!(read(&directory) == read(again.path()), "{name} differs");
    }
}

#[test]
fn children_that_come_and_go_between_slices_are_in_the_sum() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = Record::new().program(&Workload::c("family").build(), &["4", "30"]).run();
    let truth = captured.truth();
    let figure = |name: &str| truth[name].as_f64().expect("a figure");
    let timeline = Timeline::read(&captured);
    println!("{} short children", truth["children"]);
    check("CPU time of the tree", timeline.target_cpu(), figure("short_ns") + figure("long_ns"));
}

#[test]
fn a_target_that_ends_leaves_its_time_and_goes_from_the_gauges() {
    let Some(_kernel) = require_bpf() else { return };
    let program = phases().build();
    let first = Target::start(&program, &["4", "99", "0", "0", "0"]);
    let second = Target::start(&program, &["8", "99", "0", "0", "0"]);
    let captured = Record::new().rate(997).pid(first.pid()).pid(second.pid()).run();
    let timeline = Timeline::read(&captured);
    let processes = timeline.column("target_processes");
    println!("{processes:?}");
    assert!(processes[0] == 2 && processes.contains(&1), "{processes:?}");
    assert!(processes.windows(2).all(|pair| pair[1] <= pair[0]), "{processes:?}");
    check_samples(&timeline, &captured);
}

#[test]
fn the_host_has_its_own_columns_and_no_sum_of_processes() {
    let Some(_kernel) = require_bpf() else { return };
    let _load = Target::start(&phases().build(), &["20", "99", "0", "0", "0"]);
    let captured = Record::new().args(["-a"]).seconds(4).run();
    let timeline = Timeline::read(&captured);
    assert!(timeline.columns.keys().all(|name| name.starts_with("host_")), "{:?}", timeline.columns.keys());
    let kinds = ["user", "system", "irq", "iowait", "steal", "idle"];
    let all: f64 = kinds.into_iter().map(|kind| timeline.sum(&format!("host_cpu_{kind}_ns"))).sum();
    let duration = captured.report["duration_ns"].as_f64().expect("ns");
    check("all CPUs", all, duration * captured.report["host"]["cpus"].as_f64().expect("CPUs"));
    assert!(timeline.sum("host_cpu_user_ns") > 0.2 * duration);
    for name in ["host_memory_available_bytes", "host_context_switches", "host_runnable_tasks"] {
        assert!(timeline.column(name).iter().all(|&figure| figure > 0), "{name}");
    }
    if std::path::Path::new("/proc/pressure/cpu").exists() {
        // No more than there is, but for what the kernel had not yet added up before.
        assert!(timeline.sum("host_pressure_cpu_some_ns") < 1.1 * duration);
    }
}

#[test]
fn a_name_finds_its_processes_and_leaves_others() {
    let Some(_kernel) = require_bpf() else { return };
    let wanted = Workload::c("burn").called("wanted-name").build();
    let _others = Target::start(&phases().build(), &["30", "99", "0", "0", "0"]);
    let _first = Target::start(&wanted, &["30"]);
    let mut recording = Record::new().rate(997).args(["--comm", "wanted-name"]).seconds(5).start();
    recording.wait_for_samples();
    std::thread::sleep(Duration::from_millis(1500));
    let second = Target::start(&wanted, &["30"]);
    let captured = recording.finish();
    drop(second);
    let timeline = Timeline::read(&captured);
    let processes = timeline.column("target_processes");
    println!("{processes:?}");
    assert_eq!((processes.first(), processes.last()), (Some(&1), Some(&2)));
    check_samples(&timeline, &captured);
}

/// Checks CPU time against that of the samples, another count of the same: time that a hypervisor takes is in it, and it
/// has an error of its own.
fn check_samples(timeline: &Timeline, captured: &Captured) {
    let (found, sampled) = (timeline.target_cpu(), float(captured.profile.totals()[1]));
    let off = found / sampled - 1.0;
    println!("CPU time by samples: {:+.2} % of {sampled}, stolen {}", off * 100.0, timeline.sum("host_cpu_steal_ns"));
    assert!(off.abs() < if is_emulated() { 0.4 } else { 0.1 }, "{found} for {sampled}");
}

#[test]
fn a_cgroup_says_its_own_figures() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(cgroup) = Cgroup::create("timeline") else { return };
    let program = phases().build();
    let [inside, _outside] = [(); 2].map(|()| Target::start(&program, &["30", "99", "0", "0", "0"]));
    cgroup.take(inside.pid());
    let captured = Record::new().rate(997).seconds(4).args(["--cgroup"]).args([&cgroup.0]).run();
    let timeline = Timeline::read(&captured);
    check_samples(&timeline, &captured);
    assert!(timeline.column("target_processes").iter().all(|&processes| processes == 1));
    for (file, column) in [
        ("cpu.pressure", "target_pressure_cpu_some_ns"),
        ("memory.pressure", "target_pressure_memory_full_ns"),
        ("memory.current", "target_memory_bytes"),
    ] {
        assert_eq!(cgroup.0.join(file).exists(), timeline.columns.contains_key(column), "{column}");
    }
}
