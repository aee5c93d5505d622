//! What a daemon tells others while it records: profiles to `go tool pprof`, metrics to Prometheus, alerts to programs; and what
//! `query` finds of it afterwards.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use profiler_tests::{
    Ended, Target, Workload, find_program, missing, profiler_command, require_bpf, run_profiler, scratch, wait_until,
};
use serde_json::Value;

use crate::servers::free_port;

/// A daemon that records a process in windows of a second, and the address where it answers.
fn start(directory: &Path, pid: u32, more: &str) -> (Target, String) {
    let (config, said) = (directory.join("config.toml"), directory.join("said"));
    let text = "[collect]\nwindow_s = 1\nrate_hz = 199\nblockio = false\n[budget]\ncpu_percent = 100.0\n";
    fs::write(&config, format!("{text}[target]\npids = [{pid}]\n{more}")).expect("a configuration");
    let mut command = profiler_command();
    command.args(["daemon", "--listen", "127.0.0.1:0", "--config"]).arg(config);
    command.arg("--state-dir").arg(directory.join("state"));
    command.stderr(fs::File::create(&said).expect("a file"));
    let daemon = Target::start_unready(&mut command);
    let address = wait_until("the daemon's address", || {
        let said = fs::read_to_string(&said).expect("what it said");
        Some(said.split_once("listening on ")?.1.split_once('\n')?.0.to_owned())
    });
    (daemon, address)
}

/// The body of an answer.
fn ask(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("a connection");
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
}

/// The value of a metric without labels.
fn metric(address: &str, name: &str) -> Option<f64> {
    let text = ask(address, "/metrics");
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// Ends a daemon as systemd does.
fn terminate(mut daemon: Target) {
    // SAFETY: it sends a signal to a process that we have started and not waited for.
    unsafe { libc::kill(i32::try_from(daemon.pid()).expect("a pid"), libc::SIGTERM) };
    wait_until("the daemon's end", || (!daemon.runs()).then_some(()));
}

#[test]
fn go_and_prometheus_read_what_a_daemon_records_and_query_finds_it_later() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let target = Target::start(&Workload::c("burn").build(), &["120"]);
    let (daemon, address) = start(directory.path(), target.pid(), "");
    wait_until("a window", || (metric(&address, "profiler_windows_total")? >= 2.0).then_some(()));
    assert_eq!(ask(&address, "/healthz"), "ok\n");
    match find_program("go") {
        None => missing("go is not installed"),
        Some(go) => {
            let url = format!("http://{address}/debug/pprof/profile?seconds=5&pid={}", target.pid());
            let output = Command::new(go)
                .args(["tool", "pprof", "-top", &url])
                .env("HOME", directory.path())
                .env("PPROF_TMPDIR", directory.path())
                .output()
                .expect("start go");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success() && text.contains("burn_hot"), "{text}\n{output:?}");
        }
    }
    match find_program("prometheus") {
        None => missing("prometheus is not installed"),
        Some(prometheus) => {
            let config = directory.path().join("prometheus.yml");
            let job = format!(
                "scrape_configs:\n- job_name: profiler\n  scrape_interval: 1s\n  static_configs: [{{targets: [\"{address}\"]}}]\n"
            );
            fs::write(&config, job).expect("a configuration");
            let own = format!("127.0.0.1:{}", free_port());
            let mut command = Command::new(prometheus);
            command.arg(format!("--config.file={}", config.display())).arg(format!("--web.listen-address={own}"));
            command.arg(format!("--storage.tsdb.path={}", directory.path().join("tsdb").display()));
            command.stderr(fs::File::create(directory.path().join("prometheus")).expect("a file"));
            let _prometheus = Target::start_unready(&mut command);
            wait_until("prometheus", || TcpStream::connect(&own).ok());
            for name in [
                "profiler_windows_total",
                "profiler_host_cpu_user_seconds_total",
                "profiler_overhead_cpu_seconds_total",
            ] {
                wait_until(name, || {
                    let answer: Value =
                        serde_json::from_str(&ask(&own, &format!("/api/v1/query?query={name}"))).ok()?;
                    let value = answer["data"]["result"][0]["value"][1].as_str()?.parse::<f64>().ok()?;
                    (value > 0.0).then_some(())
                });
            }
        }
    }
    let pid = target.pid().to_string();
    terminate(daemon);
    let state = directory.path().join("state");
    let state = state.to_str().expect("a path");
    let listed: Ended = run_profiler(&["query", "list", "--last", "1h", "--json", "--state-dir", state]);
    let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    let windows = listed["windows"].as_array().expect("windows");
    assert!(windows.len() >= 3, "{listed}");
    let number = |window: &Value, name: &str| window[name].as_u64().expect("a number");
    for pair in windows.windows(2) {
        let end = number(&pair[0], "started_at_ns") + number(&pair[0], "duration_ns");
        assert_eq!(end, number(&pair[1], "started_at_ns"), "a gap between windows");
    }
    let found = run_profiler(&["query", "--last", "1h", "--pid", &pid, "--json", "--state-dir", state]);
    let report: Value = serde_json::from_str(&found.stdout).expect("JSON");
    assert_eq!(report["hotspots"][0]["function"], "burn_hot", "{}", report["hotspots"]);
    let output = directory.path().join("minute");
    let written = run_profiler(&[
        "query",
        "--last",
        "1h",
        "--pid",
        &pid,
        "-o",
        output.to_str().expect("a path"),
        "--state-dir",
        state,
    ]);
    assert_eq!(written.code(), 0, "{written:?}");
    for file in ["capture.json", "report.html", "cpu.svg", "cpu.pb.gz"] {
        assert!(output.join(file).exists(), "{file} is missing");
    }
}

#[test]
fn an_alert_keeps_what_was_before_tells_a_program_and_records_everything_for_a_time() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let told = directory.path().join("told");
    let alert = format!(
        "[[alerts.alert]]\nname = \"busy\"\nmetric = \"cpus\"\nabove = 0.3\nwindows = 2\nkeep_before_s = 2\ncapture_s = 3\n\
         hook = [\"/bin/sh\", \"-c\", \"cat > {0}.new && mv {0}.new {0}\"]\n",
        told.display()
    );
    let target = Target::start(&Workload::c("burn").build(), &["120"]);
    let (daemon, address) = start(directory.path(), target.pid(), &alert);
    let text = wait_until("the program to be told", || fs::read_to_string(&told).ok());
    let fired: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&fired["alert"], &fired["capture_s"]), (&"busy".into(), &3.into()));
    assert!(fired["value"].as_f64().is_some_and(|value| value > 0.3), "{fired}");
    // What is not recorded otherwise.
    let windows = wait_until("a window in depth", || {
        let answer: Value = serde_json::from_str(&ask(&address, "/api/v1/windows")).ok()?;
        let windows = answer["windows"].as_array()?.clone();
        windows.iter().any(|window| window["origins"]["net"].is_object()).then_some(windows)
    });
    let at = fired["at_ns"].as_u64().expect("a time");
    let kept = windows.iter().filter(|window| window["kept"] == true && window["started_at_ns"].as_u64() < Some(at));
    assert!(kept.count() >= 2, "{windows:?}");
    // And it is over after that time.
    wait_until("a window as before", || {
        let answer: Value = serde_json::from_str(&ask(&address, "/api/v1/windows")).ok()?;
        let newest = answer["windows"].as_array()?.last()?.clone();
        let since = newest["started_at_ns"].as_u64()?.checked_sub(at)?;
        (newest["origins"]["net"].is_null() && since > 3_000_000_000).then_some(())
    });
    terminate(daemon);
}
