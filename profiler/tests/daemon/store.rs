//! The history: what is written is read, whatever happens in between.

use std::fs;
use std::path::Path;
use std::time::Duration;

use profiler::daemon::store::{History, HistoryError, Level, Range, Store, StoreConfig, WindowKey};
use profiler::profile::{Capture, Selection};

use crate::example;

const SECOND: u64 = 1_000_000_000;
/// A full hour.
pub(crate) const START: u64 = 500_000 * 3600 * SECOND;

/// A window of 10 s, the one of that number.
pub(crate) fn window(number: u64) -> Capture {
    let mut capture = example::capture_with_waits();
    capture.index.started_at_ns = START + number * 10 * SECOND;
    capture.index.duration_ns = 10 * SECOND;
    capture
}

fn config(max_bytes: u64) -> StoreConfig {
    StoreConfig { max_bytes, ..StoreConfig::default() }
}

const MUCH: u64 = 1 << 30;
pub(crate) const ALL: Range = Range { from_ns: 0, to_ns: u64::MAX };

fn read(state: &Path, range: Range) -> Result<Capture, HistoryError> {
    History::open(state)?.read(range, &Selection::default(), MUCH)
}

/// Bytes that a directory takes on disk, as `du` counts them.
fn taken(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let own = fs::symlink_metadata(path).unwrap().blocks() * 512;
    match fs::read_dir(path) {
        Ok(entries) => own + entries.map(|entry| taken(&entry.unwrap().path())).sum::<u64>(),
        Err(_) => own,
    }
}

#[test]
fn what_was_put_is_read() {
    let state = tempfile::tempdir().unwrap();
    let mut store = Store::open(state.path(), config(MUCH)).unwrap();
    for number in 0..6 {
        store.put(&window(number)).unwrap();
    }
    // While the daemon has it.
    let whole = read(state.path(), ALL).unwrap();
    assert_eq!(whole.index.duration_ns, 60 * SECOND);
    assert_eq!(whole.profiles[0].totals(), window(0).profiles[0].totals().map(|total| 6 * total));
    let from_ns = START + 15 * SECOND;
    let part = read(state.path(), Range { from_ns, to_ns: START + 30 * SECOND }).unwrap();
    assert_eq!((part.index.started_at_ns, part.index.duration_ns), (START + 10 * SECOND, 20 * SECOND));
    let error = read(state.path(), Range { from_ns: 0, to_ns: START }).unwrap_err().to_string();
    assert!(error.contains("the history goes from") && error.contains("Z"), "{error}");
    let much = History::open(state.path()).unwrap().read(ALL, &Selection::default(), 1000);
    assert!(matches!(much, Err(HistoryError::TooMuch { .. })));
    let none = read(&state.path().join("missing"), ALL);
    assert!(matches!(none, Err(HistoryError::Directory(..))));
    let infos = History::open(state.path()).unwrap().windows(ALL).unwrap();
    assert_eq!(infos.len(), 6);
    assert_eq!((infos[0].processes[0].pid, infos[0].processes[0].process.as_str()), (42, "server"));
}

#[test]
fn another_daemon_is_refused() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::open(state.path(), config(MUCH)).unwrap();
    let error = Store::open(state.path(), config(MUCH)).err().unwrap().to_string();
    assert!(error.contains("another daemon"), "{error}");
    drop(store);
    Store::open(state.path(), config(MUCH)).unwrap();
}

#[test]
fn an_index_that_is_gone_or_damaged_is_made_again() {
    let state = tempfile::tempdir().unwrap();
    let mut store = Store::open(state.path(), config(MUCH)).unwrap();
    let keys: Vec<WindowKey> = (0..3).map(|number| store.put(&window(number)).unwrap()).collect();
    drop(store);
    let index = state.path().join("index.redb");
    for damage in ["nothing", "gone", "cut", "noise", "link"] {
        match damage {
            "gone" => fs::remove_file(&index).unwrap(),
            "cut" => fs::File::options().write(true).open(&index).unwrap().set_len(100).unwrap(),
            "noise" => fs::write(&index, vec![0x5a; 1 << 16]).unwrap(),
            "link" => {
                fs::remove_file(&index).unwrap();
                std::os::unix::fs::symlink("/dev/zero", &index).unwrap();
            }
            _ => {}
        }
        let store = Store::open(state.path(), config(MUCH)).unwrap();
        let found: Vec<WindowKey> = store.windows().keys().copied().collect();
        assert_eq!(found, keys, "{damage}");
        assert!(store.windows().values().all(|info| info.origins["cpu"].n > 0), "{damage}");
    }
}

#[test]
fn a_window_that_was_not_complete_is_gone_and_the_others_are_there() {
    let state = tempfile::tempdir().unwrap();
    let mut store = Store::open(state.path(), config(MUCH)).unwrap();
    let key = store.put(&window(0)).unwrap();
    drop(store);
    // Killed while it wrote.
    let new = state.path().join("windows").join(format!(".new-{}", key.name()));
    fs::create_dir(&new).unwrap();
    fs::write(new.join("cpu.pb.gz"), "half").unwrap();
    // A power failure left names without content.
    let empty = WindowKey { started_at_ns: START + 50 * SECOND, ..key };
    fs::create_dir(state.path().join("windows").join(empty.name())).unwrap();
    let store = Store::open(state.path(), config(MUCH)).unwrap();
    assert_eq!(store.windows().keys().copied().collect::<Vec<_>>(), [key]);
    assert!(!new.exists());
    assert_eq!(read(state.path(), ALL).unwrap().index.duration_ns, 10 * SECOND);
}

#[test]
fn the_limit_is_never_passed() {
    let state = tempfile::tempdir().unwrap();
    // The index takes one MiB of it.
    let limit = 3 << 20;
    let mut store = Store::open(state.path(), config(limit)).unwrap();
    for number in 0..200 {
        store.put(&window(number)).unwrap();
        assert!(taken(state.path()) <= limit + 8192, "after {number}: {}", taken(state.path()));
    }
    let state_now = store.shown().lock().unwrap().clone();
    assert_eq!((state_now.written, state_now.lost), (200, 0));
    assert!(state_now.removed > 50 && state_now.windows > 5, "{state_now:?}");
    // The newest are there.
    let infos = History::open(state.path()).unwrap().windows(ALL).unwrap();
    assert_eq!(infos.last().unwrap().key.started_at_ns, START + 1990 * SECOND);
    drop(store);
    // One that is lowered is kept from the start.
    let store = Store::open(state.path(), config(limit / 2)).unwrap();
    assert!(taken(state.path()) <= limit / 2 + 8192, "{}", taken(state.path()));
    drop(store);
    // Too little for one.
    let mut store = Store::open(state.path(), config(1000)).unwrap();
    assert!(store.put(&window(300)).is_err());
    assert_eq!(store.shown().lock().unwrap().lost, 1);
}

#[test]
fn windows_that_are_kept_outlast_the_others() {
    let state = tempfile::tempdir().unwrap();
    let mut store = Store::open(state.path(), config(3 << 20)).unwrap();
    let key = store.put(&window(0)).unwrap();
    let kept = store.keep(Range { from_ns: START, to_ns: START + 1 }).unwrap();
    assert_eq!(kept, 1);
    for number in 1..150 {
        store.put(&window(number)).unwrap();
    }
    assert!(store.windows().contains_key(&key));
    assert!(store.shown().lock().unwrap().removed > 0, "nothing had to make room");
    drop(store);
    let store = Store::open(state.path(), config(3 << 20)).unwrap();
    assert!(store.windows()[&key].kept);
}

#[test]
fn old_windows_become_longer_and_keep_their_values() {
    let state = tempfile::tempdir().unwrap();
    let levels = vec![Level { after: Duration::from_secs(120), length: Duration::from_secs(60) }];
    let mut store = Store::open(state.path(), StoreConfig { max_bytes: MUCH, levels }).unwrap();
    for number in 0..60 {
        store.put(&window(number)).unwrap();
        let sum = read(state.path(), ALL).unwrap();
        assert_eq!(sum.index.duration_ns, (number + 1) * 10 * SECOND);
        assert_eq!(sum.profiles[0].totals()[0], (number + 1) * window(0).profiles[0].totals()[0]);
    }
    let infos = History::open(state.path()).unwrap().windows(ALL).unwrap();
    let lengths: Vec<u64> = infos.iter().map(|info| info.key.duration_ns / SECOND).collect();
    assert_eq!(lengths, [vec![60; 8], vec![10; 12]].concat());
    assert!(infos.windows(2).all(|pair| pair[0].key.end_ns() == pair[1].key.started_at_ns));
    assert_eq!(infos[0].origins["cpu"].n, 6 * infos[10].origins["cpu"].n);
    drop(store);
    // What has become longer is still of its run, and a start finds it as it was.
    let store = Store::open(state.path(), config(MUCH)).unwrap();
    assert_eq!(store.windows().values().cloned().collect::<Vec<_>>(), infos);
}

#[test]
fn parts_and_whole_together_count_once() {
    let state = tempfile::tempdir().unwrap();
    let mut store = Store::open(state.path(), config(MUCH)).unwrap();
    let parts: Vec<WindowKey> = (0..6).map(|number| store.put(&window(number)).unwrap()).collect();
    drop(store);
    // Killed when the whole was written and a part not yet removed.
    let whole = WindowKey { duration_ns: 60 * SECOND, ..parts[0] };
    let directory = state.path().join("windows");
    let mut capture = window(0);
    capture.index.duration_ns = 60 * SECOND;
    fs::rename(directory.join(parts[0].name()), directory.join(whole.name())).unwrap();
    let read_now = read(state.path(), ALL).unwrap();
    assert_eq!(read_now.profiles[0].totals(), window(0).profiles[0].totals());
    let store = Store::open(state.path(), config(MUCH)).unwrap();
    assert_eq!(store.windows().keys().copied().collect::<Vec<_>>(), [whole]);
}

#[test]
fn a_clock_that_was_set_back_loses_nothing() {
    let state = tempfile::tempdir().unwrap();
    let levels = vec![Level { after: Duration::from_secs(60), length: Duration::from_secs(60) }];
    let mut store = Store::open(state.path(), StoreConfig { max_bytes: MUCH, levels: levels.clone() }).unwrap();
    for number in 0..30 {
        store.put(&window(number)).unwrap();
    }
    drop(store);
    // The next run starts two minutes earlier, within what has become longer.
    let mut store = Store::open(state.path(), StoreConfig { max_bytes: MUCH, levels }).unwrap();
    for number in 0..3 {
        store.put(&window(number + 4)).unwrap();
    }
    let sum = read(state.path(), ALL).unwrap();
    assert_eq!(sum.profiles[0].totals()[0], 33 * window(0).profiles[0].totals()[0]);
}
