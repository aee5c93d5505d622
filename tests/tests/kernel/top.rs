//! `profiler top`, in a terminal of its own.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use profiler_tests::{Target, Workload, profiler_command, require_bpf, run_profiler, scratch, wait_until};
use serde_json::Value;

/// Both ends of a terminal of 110 columns and 30 lines: the user's and the program's.
fn terminal() -> (File, File) {
    let (mut user, mut program) = (0, 0);
    let size = libc::winsize { ws_row: 30, ws_col: 110, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the pointers are to variables that outlive the call, or null where that is allowed.
    let opened = unsafe {
        libc::openpty(&raw mut user, &raw mut program, std::ptr::null_mut(), std::ptr::null(), &raw const size)
    };
    assert_eq!(opened, 0, "no terminal: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptors were just made, and nobody else has them.
    [user, program].map(|fd| File::from(unsafe { OwnedFd::from_raw_fd(fd) })).into()
}

#[test]
fn top_shows_the_function_that_runs_and_saves_what_it_recorded() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let saved = directory.path().join("saved");
    let target = Target::start(&Workload::c("burn").build(), &["60"]);
    let (user, program) = terminal();
    let end = || Stdio::from(program.try_clone().expect("the terminal"));
    let mut top = profiler_command()
        .args(["top", "-F", "499", "-p", &target.pid().to_string(), "-o"])
        .arg(&saved)
        .stdin(end())
        .stdout(end())
        .stderr(end())
        .spawn()
        .expect("start top");
    drop(program);
    let seen = Arc::new(Mutex::new(String::new()));
    let mut screen = user.try_clone().expect("the terminal");
    let reader = std::thread::spawn({
        let seen = Arc::clone(&seen);
        move || {
            let mut bytes = [0; 4096];
            // Fails when nobody has the other end any more.
            while let Ok(length @ 1..) = screen.read(&mut bytes) {
                seen.lock().expect("the screen").push_str(&String::from_utf8_lossy(&bytes[..length]));
            }
        }
    });
    let shows = |text: &str| seen.lock().expect("the screen").contains(text).then_some(());
    wait_until("the function that burns", || shows("burn_hot"));
    wait_until("the accounting", || shows("complete"));
    (&user).write_all(b"s").expect("press a key");
    let status = wait_until("the end of top", || top.try_wait().expect("wait for top"));
    drop(user);
    assert_eq!(status.code(), Some(0), "{}", seen.lock().expect("the screen"));
    reader.join().expect("the reader");
    let index: Value =
        serde_json::from_slice(&std::fs::read(saved.join("capture.json")).expect("capture.json")).expect("JSON");
    assert!(index["origins"]["cpu"]["n"].as_u64().is_some_and(|samples| samples > 0), "{index}");
}

#[test]
fn top_says_that_it_needs_a_terminal() {
    let ended = run_profiler(&["top"]);
    assert_eq!(ended.code(), 2, "{ended:?}");
    assert!(ended.stderr.contains("top needs a terminal"), "{ended:?}");
}
