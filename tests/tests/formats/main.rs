//! Every format that is exported, opened by the program it is for. Needs no root; a program that is missing is skipped.
//!
//! `cargo xtask setup --test` installs the programs: Debian's by apt-get, others below `target/npm` and `target/pypi`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use profiler::output::export::{Format, export};
use profiler::output::import::import;
use profiler::profile::{Capture, Profile};
use profiler_common::event::Origin;
use profiler_tests::{find_program, missing, scratch, tools};
use serde_json::Value;

mod history;
mod packaging;
mod page;
mod stores;

#[expect(dead_code, reason = "the tests of outputs have more examples")]
#[path = "../../../profiler/tests/output/example.rs"]
mod example;

/// Runs a program to its end; panics with what it said when it fails.
fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{command:?}: {status}\n{stderr}");
    String::from_utf8_lossy(&stdout).into_owned()
}

/// A program that the tests are run with; says so where it is missing.
fn program(name: &str) -> Option<PathBuf> {
    let found = find_program(name);
    if found.is_none() {
        missing(&format!("{name} is not installed"));
    }
    found
}

/// A capture of samples and waits, whose frames are of every kind.
fn example() -> Capture {
    example::capture_with_waits()
}

fn profile(capture: &Capture, origin: Origin) -> &Profile {
    capture.profiles.iter().find(|profile| profile.origin == origin).expect("the origin")
}

/// Writes an origin in a format; returns where.
fn written(capture: &Capture, origin: Origin, format: Format, directory: &Path) -> PathBuf {
    let file = export(profile(capture, origin), &capture.index, format).expect("an export");
    let path = directory.join(file.name);
    fs::write(&path, file.bytes).expect("write the export");
    path
}

/// Values of a profile by the name of its leaf function, reasons left out.
fn total(profile: &Profile, column: usize) -> u64 {
    profile.totals()[column]
}

#[test]
fn go_reads_pprof() {
    let Some(go) = program("go") else { return };
    let (capture, directory) = (example(), scratch());
    for (origin, index) in [(Origin::Cpu, "samples"), (Origin::OffCpu, "delay")] {
        let path = written(&capture, origin, Format::Pprof, directory.path());
        let mut command = Command::new(&go);
        command.env("HOME", directory.path()).env("PPROF_TMPDIR", directory.path());
        let text = run(command.args(["tool", "pprof", "-raw", "-symbolize=none", "-sample_index", index]).arg(path));
        assert!(text.contains("Samples:") && text.contains("main"), "{text}");
    }
}

#[test]
fn inferno_draws_folded_stacks() {
    let (capture, directory) = (example(), scratch());
    let path = written(&capture, Origin::Cpu, Format::Folded, directory.path());
    let text = fs::read_to_string(path).expect("text");
    let mut svg = Vec::new();
    let mut options = inferno::flamegraph::Options::default();
    inferno::flamegraph::from_lines(&mut options, text.lines(), &mut svg).expect("a flamegraph");
    let expected = total(profile(&capture, Origin::Cpu), 0);
    let svg = String::from_utf8(svg).expect("text");
    assert!(svg.contains(&format!("total_samples=\"{expected}\"")), "{expected} are not in the picture");
}

#[test]
fn callgrind_annotate_reads_callgrind() {
    let Some(annotate) = program("callgrind_annotate") else { return };
    let (capture, directory) = (example(), scratch());
    for (origin, column) in [(Origin::Cpu, 0), (Origin::OffCpu, 1)] {
        let path = written(&capture, origin, Format::Callgrind, directory.path());
        let text = run(Command::new(&annotate).args(["--auto=no", "--threshold=100", "--inclusive=yes"]).arg(path));
        let totals = text.lines().find(|line| line.contains("PROGRAM TOTALS")).expect("totals");
        let numbers: Vec<u64> =
            totals.split_whitespace().filter_map(|word| word.replace(',', "").parse().ok()).collect();
        assert_eq!(numbers[column], total(profile(&capture, origin), column), "{text}");
        // Everything but stacks without a root is below main.
        let main = text.lines().find(|line| line.contains(":main")).expect("main");
        assert!(main.contains('%'), "{main}");
    }
}

#[test]
fn inferno_and_our_import_read_perf_script() {
    let (capture, directory) = (example(), scratch());
    let path = written(&capture, Origin::Cpu, Format::PerfScript, directory.path());
    let expected = profile(&capture, Origin::Cpu);
    let mut folded = Vec::new();
    let mut folder = inferno::collapse::perf::Folder::default();
    inferno::collapse::Collapse::collapse_file(&mut folder, Some(&path), &mut folded).expect("folded stacks");
    let folded = String::from_utf8(folded).expect("text");
    let counts = folded.lines().filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
    // It counts periods, which are times.
    assert_eq!(counts.sum::<u64>(), total(expected, 1), "{folded}");
    let imported = import(&fs::read(&path).expect("the file"), "x").expect("an import");
    let found = &imported.capture.profiles[0];
    assert_eq!(found.totals(), expected.totals());
    // Names and order of frames, and who ran.
    let stacks = |profile: &Profile| {
        let mut stacks: Vec<_> = profile
            .samples
            .iter()
            .map(|sample| {
                let names: Vec<_> = profile.frames(sample.stack).map(|frame| frame.name.into_owned()).collect();
                (names.first().cloned(), names.len(), profile.threads[sample.thread as usize].tid, sample.values[0])
            })
            .filter(|(leaf, ..)| leaf.as_ref().is_some_and(|leaf| !leaf.contains("+0x")))
            .collect();
        stacks.sort();
        stacks
    };
    assert_eq!(stacks(found), stacks(expected));
}

#[test]
fn pprof_of_others_is_imported() {
    let (capture, directory) = (example(), scratch());
    let path = written(&capture, Origin::Cpu, Format::Pprof, directory.path());
    let imported = import(&fs::read(path).expect("the file"), "cpu.pb.gz").expect("an import");
    assert_eq!(imported.capture.profiles[0].canonical(), profile(&capture, Origin::Cpu).canonical());
    assert_eq!(imported.capture.index.origins["cpu"].n, total(profile(&capture, Origin::Cpu), 0));
}

#[test]
fn a_pprof_profile_that_go_wrote_is_imported() {
    let Some(go) = program("go") else { return };
    let directory = scratch();
    let source = directory.path().join("busy.go");
    fs::write(
        &source,
        "package main\nimport (\"os\"; \"runtime/pprof\"; \"time\")\nvar sink int\n\
         //go:noinline\nfunc busyHere() { for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); { sink++ } }\n\
         func main() { f, _ := os.Create(os.Args[1]); pprof.StartCPUProfile(f); busyHere(); pprof.StopCPUProfile(); f.Close() }\n",
    )
    .expect("write the program");
    let path = directory.path().join("go.pb.gz");
    let mut command = Command::new(go);
    command.env("HOME", directory.path()).env("GOCACHE", directory.path().join("cache")).env("GOFLAGS", "-mod=mod");
    run(command.arg("run").arg(source).arg(&path));
    let imported = import(&fs::read(path).expect("the file"), "go").expect("an import");
    let found = &imported.capture.profiles[0];
    assert_eq!(found.origin, Origin::Cpu);
    assert_eq!(imported.capture.index.origins["cpu"].rate_hz, 100);
    let is_busy = |stack| found.frames(stack).any(|frame| frame.name == "main.busyHere");
    assert!(found.samples.iter().any(|sample| is_busy(sample.stack)), "{:#?}", found.functions);
    // Ten milliseconds each.
    assert_eq!(found.totals()[1], found.totals()[0] * 10_000_000);
}

#[test]
fn speedscope_opens_its_json() {
    let Some(chromium) = program("chromium") else { return };
    let page = tools("npm/node_modules/speedscope/dist/release/index.html");
    if !page.exists() {
        return missing("speedscope is not installed");
    }
    let (capture, directory) = (example(), scratch());
    for origin in [Origin::Cpu, Origin::OffCpu] {
        let path = written(&capture, origin, Format::Speedscope, directory.path());
        let document: Value = serde_json::from_slice(&fs::read(path).expect("the file")).expect("JSON");
        let sum: u64 = document["profiles"]
            .as_array()
            .expect("profiles")
            .iter()
            .flat_map(|profile| profile["weights"].as_array().expect("weights"))
            .map(|weight| weight.as_u64().expect("a number"))
            .sum();
        assert_eq!(sum, total(profile(&capture, origin), profile(&capture, origin).origin.row().primary));
        // As speedscope's own command does it: a script beside the page that has the file.
        let script = directory.path().join("profile.js");
        let text = Value::String(document.to_string());
        let load = format!("speedscope.loadFileFromBase64('x.json', btoa(unescape(encodeURIComponent({text}))))");
        fs::write(&script, load).expect("write the script");
        let mut command = Command::new(&chromium);
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]);
        command.args(["--virtual-time-budget=5000", "--dump-dom"]);
        command.arg(format!("--user-data-dir={}", directory.path().join("browser").display()));
        let dom = run(command.arg(format!("file://{}#localProfilePath={}", page.display(), script.display())));
        let name = document["profiles"][0]["name"].as_str().expect("a name");
        assert!(dom.contains("speedscope</title>") && dom.contains(name), "{name} is not in\n{dom}");
        assert!(!dom.contains("Something went wrong"), "{dom}");
    }
}

#[test]
fn the_firefox_profiler_reads_its_format() {
    let cli = tools("npm/node_modules/.bin/profiler-cli");
    if !cli.exists() {
        return missing("the Firefox Profiler's command is not installed");
    }
    let (capture, directory) = (example(), scratch());
    let path = written(&capture, Origin::Cpu, Format::Firefox, directory.path());
    // What it keeps running is ended by itself at the end, found by this directory.
    let command = || {
        let mut command = Command::new(&cli);
        command.env("HOME", directory.path());
        command
    };
    // It gives its own daemon half a second to start, which on a busy host is too little.
    let opened = (0..20)
        .map(|_| {
            let _ = command().args(["stop", "--all"]).output();
            command().arg("load").arg(&path).output().expect("start it")
        })
        .find(|opened| opened.status.success());
    let threads = command().args(["thread", "list"]).output().expect("start it");
    let functions = command().args(["thread", "functions", "--include-idle"]).output().expect("start it");
    let stopped = command().args(["stop", "--all"]).output().expect("start it");
    assert!(opened.is_some() && stopped.status.success(), "{opened:?} {stopped:?}");
    let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text(&threads).contains("worker"), "{threads:?}");
    // 1,000 samples of its own, by the example.
    assert!(text(&functions).contains("parse_[i] - self: 1000"), "{}", text(&functions));
}

#[test]
fn opentelemetrys_own_messages_read_otlp() {
    let modules = tools("pypi");
    if !modules.join("opentelemetry").exists() {
        return missing("opentelemetry-proto is not installed");
    }
    let Some(python) = program("python3") else { return };
    let (capture, directory) = (example(), scratch());
    for origin in [Origin::Cpu, Origin::OffCpu] {
        let path = written(&capture, origin, Format::Otlp, directory.path());
        let script = "import json, sys\n\
            from opentelemetry.proto.profiles.v1development import profiles_pb2\n\
            data = profiles_pb2.ProfilesData.FromString(open(sys.argv[1], 'rb').read())\n\
            words = data.dictionary\n\
            assert words.string_table[0] == '' and not words.stack_table[0].location_indices\n\
            found = {}\n\
            leaves = set()\n\
            for profile in data.resource_profiles[0].scope_profiles[0].profiles:\n\
            \x20   name = words.string_table[profile.sample_type.type_strindex]\n\
            \x20   found[name] = sum(sum(sample.values) for sample in profile.samples)\n\
            \x20   for sample in profile.samples:\n\
            \x20       stack = words.stack_table[sample.stack_index].location_indices\n\
            \x20       for line in words.location_table[stack[-1]].lines if stack else []:\n\
            \x20           leaves.add(words.string_table[words.function_table[line.function_index].name_strindex])\n\
            print(json.dumps({'totals': found, 'roots': sorted(leaves)}))\n";
        let mut command = Command::new(&python);
        let text = run(command.env("PYTHONPATH", &modules).args(["-c", script]).arg(path));
        let found: Value = serde_json::from_str(&text).expect("JSON");
        for (&(name, _), total) in origin.row().columns.iter().zip(profile(&capture, origin).totals()) {
            assert_eq!(found["totals"][name], total, "{name}: {found}");
        }
        assert!(found["roots"].as_array().is_some_and(|roots| roots.iter().any(|root| root == "main")), "{found}");
    }
}

#[test]
fn pythons_csv_module_reads_csv() {
    let Some(python) = program("python3") else { return };
    let (capture, directory) = (example(), scratch());
    let path = written(&capture, Origin::OffCpu, Format::Csv, directory.path());
    let script = "import csv, sys\n\
        rows = list(csv.DictReader(open(sys.argv[1], newline='')))\n\
        assert all(None not in row and None not in row.values() for row in rows), rows\n\
        print(sum(int(row['delay_nanoseconds']) for row in rows), rows[0]['stack'].split(';')[0])\n";
    let text = run(Command::new(python).args(["-c", script]).arg(path));
    let (sum, root) = text.trim().split_once(' ').expect("two words");
    assert_eq!(sum.parse(), Ok(total(profile(&capture, Origin::OffCpu), 1)));
    assert_eq!(root, "main");
}

#[test]
fn hostile_names_break_no_format() {
    let mut capture = example();
    for (number, function) in capture.profiles[0].functions.iter_mut().enumerate() {
        function.name = format!("a;b\n\t\"c\",\u{1}</script> fn=(9) 'd' +0x1 (e) {number}");
    }
    capture.index.target.description = "x\nfn=y;\"z\"".to_owned();
    for format in Format::ALL {
        let file = export(&capture.profiles[0], &capture.index, format).expect("an export");
        if matches!(format, Format::Speedscope | Format::Firefox) {
            serde_json::from_slice::<Value>(&file.bytes).expect("JSON");
        }
        if matches!(format, Format::Callgrind | Format::PerfScript | Format::Csv | Format::Folded) {
            let text = String::from_utf8(file.bytes).expect("text");
            let is_whole = |line: &str| !line.starts_with("\t\"c\"") && !line.starts_with("fn=y");
            assert!(text.lines().all(is_whole), "{}: {text}", format.name());
        }
    }
}
