//! The files of the example, byte for byte. `BLESS=1` writes them anew.

use std::path::{Path, PathBuf};

use profiler::analyze::analyze;
use profiler::output::capture::{self, CaptureError};
use profiler::output::{OutputFile, derived};
use profiler::profile::{Capture, Column, Fold, FunctionSlices, Index, Report, Timeline};

use crate::example;

fn check(path: &Path, found: &str) {
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, found).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    if expected == found {
        return;
    }
    let line = expected.lines().zip(found.lines()).position(|(expected, found)| expected != found);
    let line = line.unwrap_or_else(|| expected.lines().count().min(found.lines().count()));
    let expected = expected.lines().nth(line).unwrap_or("");
    let found = found.lines().nth(line).unwrap_or("");
    panic!("{}:{}: BLESS=1 accepts\nexpected {expected}\n   found {found}", path.display(), line + 1);
}

/// Every file that `record` writes.
fn files(capture: &Capture, report: &Report) -> std::io::Result<Vec<OutputFile>> {
    let mut files = capture::write(capture)?;
    files.extend(derived(capture, report)?);
    Ok(files)
}

fn golden(capture: &Capture, name: &str) {
    let directory: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "golden", name].iter().collect();
    let files = files(capture, &analyze(capture)).unwrap();
    // The page is a fixed text with report.json and the stacks in it, and has a test of its own in a browser.
    for file in files.into_iter().filter(|file| file.name != "report.html") {
        // Compressed bytes change with the library; what is in them is compared elsewhere.
        if let Ok(text) = String::from_utf8(file.bytes) {
            check(&directory.join(&file.name), &without_script(&text));
        }
    }
}

/// The text without the script that inferno puts into its pictures: it is long, and not ours.
fn without_script(text: &str) -> String {
    match (text.find("<script"), text.find("</script>")) {
        (Some(start), Some(end)) => format!("{}{}", &text[..start], &text[end..]),
        _ => text.to_owned(),
    }
}

/// What `report` makes of the files of a capture.
fn read_back(files: &[OutputFile]) -> Result<Capture, CaptureError> {
    let bytes = |name: &str| files.iter().find(|file| file.name == name).map(|file| file.bytes.clone());
    capture::read(&bytes(capture::INDEX_FILE).unwrap(), |name| bytes(name).ok_or(std::io::ErrorKind::NotFound.into()))
}

#[test]
fn a_capture_is_written_as_blessed() {
    golden(&example::capture(), "example");
}

#[test]
fn a_capture_of_two_origins_is_written_as_blessed() {
    golden(&example::capture_with_waits(), "waits");
}

#[test]
fn a_capture_with_a_table_is_written_as_blessed() {
    golden(&example::capture_with_calls(), "calls");
}

#[test]
fn a_capture_of_requests_is_written_as_blessed() {
    golden(&example::capture_with_requests(), "requests");
}

#[test]
fn the_files_of_a_capture_with_blocks_of_memory() {
    golden(&example::capture_with_blocks(), "blocks");
}

#[test]
fn latencies_of_slices_that_are_not_there_are_refused() {
    let mut capture = example::capture_with_requests();
    capture.index.io_latency.cells[0].slice = 3;
    let files = capture::write(&capture).unwrap();
    assert!(matches!(read_back(&files), Err(CaptureError::IoLatency)));
}

#[test]
fn slices_that_do_not_fit_are_refused() {
    let mut capture = example::capture();
    let slices = FunctionSlices { length_ns: vec![1, 2], totals: vec![3], functions: Vec::new() };
    capture.index.function_slices.insert("cpu".to_owned(), slices);
    let files = capture::write(&capture).unwrap();
    assert!(matches!(read_back(&files), Err(CaptureError::Slices(name)) if name == "cpu"));
}

#[test]
fn a_table_whose_rows_do_not_fit_is_refused() {
    let mut capture = example::capture_with_calls();
    capture.index.tables.values_mut().for_each(|table| table.rows[0].values.clear());
    let files = capture::write(&capture).unwrap();
    assert!(matches!(read_back(&files), Err(CaptureError::Table(name)) if name == "syscall"));
}

#[test]
fn a_capture_without_samples_is_written_as_blessed() {
    let mut capture = example::capture();
    capture.profiles[0].samples.clear();
    let summary = capture.index.origins.get_mut("cpu").unwrap();
    (summary.n, summary.total) = (0, 0);
    capture.index.accounting.clear();
    capture.index.objects.clear();
    golden(&capture, "empty");
}

#[test]
fn every_other_file_follows_from_the_capture() {
    for capture in [
        example::capture_with_waits(),
        example::capture_with_calls(),
        example::capture_with_requests(),
        example::capture_with_blocks(),
    ] {
        let written = files(&capture, &analyze(&capture)).unwrap();
        let again = read_back(&written).unwrap();
        for (again, profile) in again.profiles.iter().zip(&capture.profiles) {
            assert_eq!(again.canonical(), profile.canonical());
        }
        let derived = derived(&again, &analyze(&again)).unwrap();
        assert!(!derived.is_empty());
        for file in derived {
            assert!(written.contains(&file), "{} differs", file.name);
        }
        assert_eq!(written, files(&again, &analyze(&again)).unwrap());
    }
}

#[test]
fn a_capture_of_a_version_without_timelines_has_none() {
    let mut capture = example::capture();
    capture.index.timeline = Timeline::default();
    let written = files(&capture, &analyze(&capture)).unwrap();
    for file in written.iter().filter(|file| file.name != "report.html") {
        let mentions = String::from_utf8_lossy(&file.bytes).to_lowercase().contains("timeline");
        assert!(!mentions && !file.name.contains("timeline"), "{}", file.name);
    }
    assert!(read_back(&written).unwrap().index.timeline.is_empty());
}

#[test]
fn every_column_of_the_timeline_is_explained() {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "docs", "report-schema.md"].iter().collect();
    let text = std::fs::read_to_string(path).unwrap();
    for column in Column::ALL {
        let fold = match column.fold() {
            Fold::Sum => "sum",
            Fold::Maximum => "largest",
            Fold::Minimum => "least",
        };
        let line = format!("| `{}` | {} | {fold} | {} |", column.name(), column.unit(), column.text());
        assert!(text.lines().any(|found| found == line), "docs/report-schema.md has no line\n{line}");
    }
}

#[test]
fn a_hostile_timeline_is_refused_or_drawn() {
    let mut capture = example::capture();
    for text in ["</text><script>alert(1)</script>", "a & b\u{1}\u{fffe}\n\"'"] {
        capture.index.target.description = text.to_owned();
        capture.index.host.name = text.to_owned();
        let file = written_as(&capture, "timeline.svg");
        assert!(!file.contains("<script") && !file.contains("a & b"), "{file}");
        assert!(file.chars().all(|character| !character.is_control() || character == '\n'));
    }
    // Figures that no host has.
    for figures in capture.index.timeline.columns.values_mut() {
        figures.fill(Some(u64::MAX));
    }
    for times in [0, 1, u64::MAX] {
        capture.index.timeline.start_ns.fill(times);
        capture.index.timeline.length_ns.fill(times);
        for name in ["timeline.svg", "timeline.csv", "report.md"] {
            let text = written_as(&capture, name);
            let words: Vec<&str> = text.split(|character: char| !character.is_alphanumeric()).collect();
            assert!(!words.contains(&"NaN") && !words.contains(&"inf"), "{text}");
        }
    }
    capture.index.timeline.columns.values_mut().next().unwrap().pop();
    let index = serde_json::to_vec(&capture.index).unwrap();
    assert!(matches!(capture::read(&index, |_| Ok(Vec::new())), Err(CaptureError::Timeline)));
}

/// The text of one of the files.
fn written_as(capture: &Capture, name: &str) -> String {
    let files = derived(capture, &analyze(capture)).unwrap();
    String::from_utf8(files.into_iter().find(|file| file.name == name).unwrap().bytes).unwrap()
}

#[test]
fn a_newer_capture_is_refused_by_its_version_alone() {
    let error = capture::read(br#"{"schema_version": 999, "origins": "new form"}"#, |_| Ok(Vec::new())).unwrap_err();
    assert!(matches!(error, CaptureError::Newer { found: 999 }));
    assert!(error.to_string().contains("999"));
}

#[test]
fn a_capture_with_an_unknown_origin_or_impossible_counts_is_refused() {
    let with = |change: &dyn Fn(&mut Index)| {
        let mut index = example::capture().index;
        change(&mut index);
        let index = serde_json::to_vec(&index).unwrap();
        capture::read(&index, |_| Err(std::io::ErrorKind::NotFound.into())).unwrap_err()
    };
    let error = with(&|index| {
        let summary = index.origins["cpu"].clone();
        index.origins.insert("../../etc/passwd".to_owned(), summary);
    });
    assert!(matches!(error, CaptureError::Origin(_)));
    let error = with(&|index| index.accounting.get_mut("cpu").unwrap().complete = u64::MAX);
    assert!(matches!(error, CaptureError::Count(_)));
    assert!(matches!(with(&|_| {}), CaptureError::Io { .. }));
}
