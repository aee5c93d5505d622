//! Where names come from: debug information in every place and form that distributions and compilers leave it.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use profiler_tests::{
    Captured, Record, Target, Workload, enough, find_program, owned_by, require_bpf, scratch, wait_until,
};

/// What the workload `inlined` is named when everything is found, and when only its functions are.
const WITH_INLINED: [&str; 4] = ["main", "outer", "inlined_middle_[i]", "inlined_inner_[i]"];
const WITHOUT_INLINED: [&str; 2] = ["main", "outer"];

/// Runs a tool of binutils or another in a directory; false, and why, where it is not there.
fn tool(directory: &Path, name: &str, arguments: &[&str]) -> bool {
    let Some(program) = find_program(name) else { return false };
    let status = Command::new(program).args(arguments).current_dir(directory).status();
    assert!(status.expect("start a tool").success(), "{name} {arguments:?}");
    true
}

/// A copy of the workload `inlined`, built with these flags, and the directory it is in.
fn copy(flags: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let directory = scratch();
    let program = directory.path().join("named");
    let workload = flags.iter().fold(Workload::c("inlined"), |workload, flag| workload.flag(flag));
    fs::copy(workload.build(), &program).expect("copy the program");
    (directory, program)
}

/// Records a program for a second, with these arguments of ours.
fn record(program: &Path, arguments: &[&str]) -> Captured {
    let target = Target::start(program, &["30"]);
    let captured = Record::new().rate(999).seconds(1).pid(target.pid()).args(arguments).run();
    assert!(captured.total() > enough(60), "{}", captured.folded());
    captured
}

fn check(captured: &Captured, chain: &[&str]) {
    let found = captured.share(|stack| stack.user_leaf() != "", |stack| stack.has_chain(chain));
    assert!(found >= 0.95, "{found} have {chain:?}\n{}\n{}", captured.folded(), captured.ended.stderr);
}

#[test]
fn compressed_debug_information_is_read_whatever_compressed_it() {
    let Some(_kernel) = require_bpf() else { return };
    for method in ["zlib", "zlib-gnu", "zstd"] {
        let (directory, program) = copy(&[]);
        if !tool(directory.path(), "objcopy", &[&format!("--compress-debug-sections={method}"), "named"]) {
            return;
        }
        let sections = Command::new("readelf").args(["-SW"]).arg(&program).output().expect("start readelf").stdout;
        let sections = String::from_utf8_lossy(&sections).into_owned();
        assert!(sections.contains(" C ") || sections.contains(".zdebug_info"), "{method}: {sections}");
        check(&record(&program, &[]), &WITH_INLINED);
    }
}

#[test]
fn a_section_that_claims_to_be_endless_costs_its_content_and_nothing_else() {
    let Some(_kernel) = require_bpf() else { return };
    let (directory, program) = copy(&[]);
    if !tool(directory.path(), "objcopy", &["--compress-debug-sections=zlib", "named"]) {
        return;
    }
    let list = Command::new("readelf").args(["-SW"]).arg(&program).output().expect("start readelf").stdout;
    let list = String::from_utf8_lossy(&list).into_owned();
    let line = list.lines().find(|line| line.contains(".debug_info")).expect("debug information");
    let offset = line.split_whitespace().skip_while(|word| *word != "PROGBITS").nth(2).expect("its offset");
    let offset = u64::from_str_radix(offset, 16).expect("a hexadecimal number");
    let file = fs::OpenOptions::new().write(true).open(&program).expect("open the program");
    // The size that a compressed section states is in its second word.
    file.write_all_at(&(1_u64 << 60).to_le_bytes(), offset + 8).expect("write the size");
    drop(file);
    let captured = record(&program, &[]);
    check(&captured, &WITHOUT_INLINED);
    assert!(captured.ended.stderr.contains("names of"), "{}", captured.ended.stderr);
    let peak = captured.report["overhead"]["peak_rss_bytes"].as_u64().expect("the peak");
    // What it claims is a thousand million times as much; how much of the rest is read side by side differs.
    assert!(peak < 400 << 20, "{peak} bytes");
}

#[test]
fn the_compressed_symbol_table_of_a_stripped_program_names_it() {
    let Some(_kernel) = require_bpf() else { return };
    let (directory, program) = copy(&[]);
    let run = |name: &str, arguments: &[&str]| tool(directory.path(), name, arguments);
    // As Fedora's packages are made. Source: GDB manual, "MiniDebugInfo".
    let made = run("objcopy", &["--only-keep-debug", "named", "mini"])
        && run("strip", &["--strip-debug", "mini"])
        && run("xz", &["--keep", "mini"])
        && run("strip", &["named"])
        && run("objcopy", &["--add-section", ".gnu_debugdata=mini.xz", "named"]);
    if made {
        check(&record(&program, &[]), &WITHOUT_INLINED);
        // A damaged one names nothing, and is no trouble.
        let bytes = fs::read(directory.path().join("mini.xz")).expect("read the table");
        fs::write(directory.path().join("cut.xz"), &bytes[..bytes.len() / 2]).expect("write a part of it");
        run("objcopy", &["--update-section", ".gnu_debugdata=cut.xz", "named"]);
        let captured = record(&program, &[]);
        assert!(captured.ended.stderr.contains("compressed symbol table"), "{}", captured.ended.stderr);
    }
}

#[test]
fn a_file_that_a_program_names_as_a_part_of_its_own_is_not_opened() {
    let Some(_kernel) = require_bpf() else { return };
    let (directory, program) = copy(&[]);
    let fifo = directory.path().join("fifo");
    let name = std::ffi::CString::new(fifo.to_str().expect("UTF-8")).expect("a path");
    // SAFETY: the path is a C string.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0, "make a FIFO");
    // A path, and the build ID that the file should have.
    let link = [name.as_bytes_with_nul(), &[7; 20]].concat();
    fs::write(directory.path().join("link"), link).expect("write the section");
    if tool(directory.path(), "objcopy", &["--add-section", ".gnu_debugaltlink=link", "named"]) {
        // Who opened it would wait for a writer.
        check(&record(&program, &[]), &WITH_INLINED);
    }
}

/// Puts the debug information of a program into `debug`, by build ID, and strips the program.
fn apart(directory: &Path, program: &Path, debug: &Path) -> Option<()> {
    let notes = Command::new("readelf").arg("-n").arg(program).output().expect("start readelf").stdout;
    let notes = String::from_utf8_lossy(&notes).into_owned();
    let id = notes.lines().find_map(|line| line.trim().strip_prefix("Build ID: ")).expect("a build ID");
    let place = debug.join(".build-id").join(&id[..2]);
    fs::create_dir_all(&place).expect("make the directory");
    let file = place.join(format!("{}.debug", &id[2..]));
    let made = tool(directory, "objcopy", &["--only-keep-debug", "named", file.to_str().expect("UTF-8")])
        && tool(directory, "strip", &["named"]);
    made.then_some(())
}

#[test]
fn debug_files_are_found_by_build_id_in_the_directories_that_are_named() {
    let Some(_kernel) = require_bpf() else { return };
    let (directory, program) = copy(&["-Wl,--build-id"]);
    let debug = directory.path().join("debug");
    let Some(()) = apart(directory.path(), &program, &debug) else { return };
    check(&record(&program, &["--debug-dir", debug.to_str().expect("UTF-8")]), &WITH_INLINED);
    // What is missing is told, with where it would be looked for.
    let captured = record(&program, &[]);
    let objects = captured.report["objects"].as_array().expect("objects");
    let own = objects.iter().find(|object| object["path"].as_str().is_some_and(|path| path.ends_with("/named")));
    let advice = own.and_then(|own| own["advice"].as_str()).unwrap_or_default();
    assert!(advice.contains("stripped") && advice.contains(".build-id/"), "{objects:#?}");
}

#[test]
fn debug_files_are_fetched_by_build_id_when_that_is_asked_for() {
    let Some(_kernel) = require_bpf() else { return };
    let (Some(server), Some(_)) = (find_program("debuginfod"), find_program("debuginfod-find")) else { return };
    let (directory, program) = copy(&["-Wl,--build-id"]);
    let debug = directory.path().join("debug");
    let Some(()) = apart(directory.path(), &program, &debug) else { return };
    // A port that was free a moment ago.
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
    let mut command = Command::new(server);
    command.args(["-F", "-p", &port.to_string(), "-d"]).arg(directory.path().join("index")).arg(&debug);
    command.env("HOME", directory.path()).stdout(Stdio::null()).stderr(Stdio::null());
    owned_by(&mut command);
    let mut server = command.spawn().expect("start debuginfod");
    let url = format!("http://127.0.0.1:{port}");
    let target = Target::start(&program, &["60"]);
    let run = |url: &str, arguments: &[&str]| {
        let mut record = Record::new().rate(999).seconds(1).pid(target.pid()).args(arguments);
        record.command().env("DEBUGINFOD_URLS", url).env("DEBUGINFOD_CACHE_PATH", directory.path().join("cache"));
        record.command().env("HOME", directory.path());
        record.run()
    };
    // It is asked only when it may be.
    let captured = run(&url, &[]);
    assert_eq!(captured.count(|stack| stack.has("outer")), 0, "{}", captured.folded());
    let captured = run("", &["--debuginfod"]);
    assert!(captured.ended.stderr.contains("DEBUGINFOD_URLS"), "{}", captured.ended.stderr);
    let mut found = None;
    // It scans its directory first.
    wait_until("the server's index", || {
        let captured = run(&url, &["--debuginfod"]);
        let named = captured.count(|stack| stack.has("outer")) > 0;
        fs::remove_dir_all(directory.path().join("cache")).ok();
        found = named.then_some(captured);
        named.then_some(())
    });
    let _ = server.kill();
    let _ = server.wait();
    check(&found.expect("a recording"), &WITH_INLINED);
}

#[test]
fn split_debug_information_is_found_beside_the_program() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads/inlined.c");
    let include = source.parent().and_then(Path::to_str).expect("UTF-8").to_owned();
    let source = source.to_str().expect("UTF-8").to_owned();
    // GNU's dwp of Debian 12 cannot pack version 5.
    let arguments =
        ["-O2", "-g", "-gdwarf-4", "-gsplit-dwarf", "-D_GNU_SOURCE", "-fno-optimize-sibling-calls", "-I", &include];
    let made = tool(directory.path(), "gcc", &[&arguments[..], &["-c", "-o", "named.o", &source]].concat())
        && tool(directory.path(), "gcc", &["-pthread", "-o", "named", "named.o"])
        && tool(directory.path(), "dwp", &["-e", "named", "-o", "named.dwp"]);
    if !made {
        return;
    }
    fs::remove_file(directory.path().join("named.dwo")).expect("remove what was packed");
    check(&record(&directory.path().join("named"), &[]), &WITH_INLINED);
    // Without it, functions have names all the same.
    fs::remove_file(directory.path().join("named.dwp")).expect("remove the package");
    check(&record(&directory.path().join("named"), &[]), &WITHOUT_INLINED);
}

#[test]
fn an_async_function_has_the_name_of_its_source() {
    let Some(_kernel) = require_bpf() else { return };
    for flags in [["-C", "debuginfo=2"], ["-C", "debuginfo=line-tables-only"]] {
        let workload = flags.iter().fold(Workload::rust("awaits"), |workload, flag| workload.flag(flag));
        let captured = record(&workload.build(), &[]);
        check(&captured, &["awaits::drive", "awaits::answer_request", "awaits::burn"]);
        // Which is told from its symbol alone by nobody.
        let closures =
            captured.count(|stack| stack.frames.iter().any(|frame| frame.starts_with("awaits::answer_request::")));
        assert_eq!(closures, 0, "{}", captured.folded());
    }
}

#[test]
fn arguments_of_generics_are_left_out_on_request() {
    let Some(_kernel) = require_bpf() else { return };
    let program = Workload::rust("awaits").flag("-C").flag("symbol-mangling-version=v0").build();
    let target = Target::start(&program, &["30"]);
    let run = |arguments: &[&str]| Record::new().rate(999).seconds(1).pid(target.pid()).args(arguments).run();
    let with =
        |captured: &Captured, text: &str| captured.count(|stack| stack.frames.iter().any(|frame| frame.contains(text)));
    let (full, short) = (run(&[]), run(&["--short-names"]));
    assert!(with(&full, "black_box::<u64>") > enough(30), "{}", full.folded());
    assert!(with(&short, "black_box::<..>") > enough(30), "{}", short.folded());
}

#[test]
fn a_target_that_is_killed_and_deleted_meanwhile_is_named() {
    let Some(_kernel) = require_bpf() else { return };
    let (directory, program) = copy(&[]);
    let target = Target::start(&program, &["30"]);
    let mut recording = Record::new().rate(999).seconds(20).pid(target.pid()).start();
    recording.wait_for_samples();
    std::thread::sleep(std::time::Duration::from_secs(2));
    directory.close().expect("delete the program and where it was");
    drop(target);
    // It ends with its target.
    let captured = recording.finish();
    assert!(captured.total() > enough(300), "{}", captured.folded());
    check(&captured, &WITH_INLINED);
    let objects = captured.report["objects"].as_array().expect("objects");
    let sum = |field: &str| objects.iter().filter_map(|object| object[field].as_f64()).sum::<f64>();
    assert!(sum("named") / sum("frames") >= 0.99, "{objects:#?}");
}
