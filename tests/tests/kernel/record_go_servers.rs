//! Go servers as a distribution ships them, without symbols and under load: held against their own CPU profile of the
//! same time, which is Go's account of its own stacks.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use profiler_tests::{
    Captured, Record, Target, Workload, find_program, float, long_tests, require_bpf, scratch, wait_until,
};

use crate::record_unwinding::check_complete;
use crate::servers::free_port;

/// Most that a share may differ, in percent of all: what Go's 100 samples a second leave open is a third of it in 30 s.
const MOST: f64 = 5.0;

/// The same where a test takes a third of the time.
const MOST_IN_SHORT: f64 = 7.0;

/// Where Go's own timer signal finds a goroutine that is asked to make room: nothing that takes time.
const PREEMPTED: &str = "runtime.asyncPreempt";

/// A program that sends requests.
pub(crate) fn workloads() -> Vec<Workload> {
    Workload::go("load").into_iter().collect()
}

#[test]
fn etcd_has_the_totals_of_its_own_profile() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(etcd) = find_program("etcd") else { return };
    let directory = scratch();
    let (clients, peers) = (free_port(), free_port());
    let [client_url, peer_url] = [clients, peers].map(|port| format!("http://127.0.0.1:{port}"));
    let mut command = Command::new(&etcd);
    command.arg("--enable-pprof").arg("--data-dir").arg(directory.path().join("data"));
    command.args(["--name", "test", "--initial-cluster", &format!("test={peer_url}")]);
    command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url]);
    command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
    let put = format!("{client_url}/v3/kv/put");
    // A key and a value, in base 64.
    let load = [put.as_str(), r#"{"key": "Zm9v", "value": "YmFyYmFyYmFy"}"#];
    check_totals(&etcd, &mut command, clients, &load, directory.path());
}

#[test]
fn prometheus_has_the_totals_of_its_own_profile() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(prometheus) = find_program("prometheus") else { return };
    let directory = scratch();
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let configuration = directory.path().join("prometheus.yml");
    let text = format!(
        "global: {{scrape_interval: 100ms}}\nscrape_configs: [{{job_name: own, static_configs: [{{targets: [\"{address}\"]}}]}}]\n"
    );
    fs::write(&configuration, text).expect("write a configuration");
    let mut command = Command::new(&prometheus);
    command.arg(format!("--config.file={}", configuration.display()));
    command.arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()));
    command.arg(format!("--web.listen-address={address}"));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970").as_secs();
    let query = format!(
        "http://{address}/api/v1/query_range?query=rate(prometheus_http_request_duration_seconds_bucket%5B5s%5D)\
         &start={now}&end={}&step=1",
        now + 60
    );
    check_totals(&prometheus, &mut command, port, &[&query], directory.path());
}

/// Records a server under load while it profiles itself, and compares.
fn check_totals(program: &Path, command: &mut Command, port: u16, load: &[&str], directory: &Path) {
    let Some(workload) = workloads().pop() else { return };
    let (seconds, most) = if long_tests() { (30_u64, MOST) } else { (10, MOST_IN_SHORT) };
    let log = fs::File::create(directory.join("log")).expect("create a log");
    let mut server = Target::start_unready(command.stderr(log));
    wait_until("the server", || {
        assert!(server.runs(), "{}", fs::read_to_string(directory.join("log")).unwrap_or_default());
        TcpStream::connect(("127.0.0.1", port)).ok()
    });
    let busy_for = (seconds + 10).to_string();
    let client = Target::start(&workload.build(), &[&[busy_for.as_str(), "4"][..], load].concat());
    // Caches fill, and the first collections are unlike those after.
    std::thread::sleep(Duration::from_secs(2));
    let mut recording = Record::new().rate(499).pid(server.pid()).start();
    recording.wait_for_samples();
    let own = fetch(port, &format!("/debug/pprof/profile?seconds={seconds}"), seconds + 30);
    recording.signal(libc::SIGINT);
    let captured = recording.finish();
    let answered = client.truth()["answered"].as_u64().expect("a count");
    drop(server);
    let path = directory.join("own.pprof");
    fs::write(&path, own).expect("write a profile");
    println!("{answered} answers, {} samples", captured.total());
    assert!(answered > 100 && captured.total() > 100 * seconds, "{answered} answers\n{}", captured.folded());
    check_complete(&captured, 0.99);
    check_named(&captured, program);
    compare(&captured, &theirs(&path, directory), most);
}

/// Checks that the program's own frames have names.
fn check_named(captured: &Captured, program: &Path) {
    let objects = captured.report["objects"].as_array().expect("objects");
    let program = program.canonicalize().expect("a path");
    let own = objects.iter().find(|object| object["path"].as_str() == program.to_str());
    let own = own.unwrap_or_else(|| panic!("{objects:#?}"));
    println!("{} of {} frames named", own["named"], own["frames"]);
    assert!(own["named_share"].as_f64().is_some_and(|share| share >= 0.99), "{own}");
}

/// Holds self and total of the ten functions that have most by Go's account against ours.
fn compare(captured: &Captured, theirs: &HashMap<String, [f64; 2]>, most: f64) {
    let ours = shares(captured);
    assert!(theirs.len() > 100, "{theirs:?}");
    for (column, what) in ["self", "total"].into_iter().enumerate() {
        let mut top: Vec<_> = theirs.iter().filter(|(name, _)| *name != PREEMPTED).collect();
        top.sort_by(|(_, left), (_, right)| right[column].total_cmp(&left[column]));
        for (name, expected) in top.into_iter().take(10) {
            let found = ours.get(name.as_str()).copied().unwrap_or_default()[column];
            println!("{what} {found:6.2} % for {:6.2} %: {name}", expected[column]);
            assert!((found - expected[column]).abs() <= most, "{what} of {name}\n{}", captured.folded());
        }
    }
}

/// Self and total by function in percent of all samples. What the kernel does for a function is its own, as it is by a
/// profile that the kernel's functions are not in.
fn shares(captured: &Captured) -> HashMap<&str, [f64; 2]> {
    let mut shares: HashMap<&str, [f64; 2]> = HashMap::new();
    let one = 100.0 / float(captured.total());
    for stack in &captured.stacks {
        let frames = stack.user_frames().into_iter();
        let frames: Vec<&str> = frames.map(|frame| frame.strip_suffix("_[i]").unwrap_or(frame)).collect();
        let samples = one * float(stack.count);
        if let Some(leaf) = frames.last() {
            shares.entry(leaf).or_default()[0] += samples;
        }
        for frame in frames.into_iter().collect::<HashSet<_>>() {
            shares.entry(frame).or_default()[1] += samples;
        }
    }
    shares
}

/// The same by Go's account, as `go tool pprof` reads it.
fn theirs(profile: &Path, directory: &Path) -> HashMap<String, [f64; 2]> {
    let mut go = Command::new("go");
    // Nothing of it outside the test's own directory; no symbols from elsewhere.
    go.env("HOME", directory).env("PPROF_TMPDIR", directory).stdin(Stdio::null());
    go.args(["tool", "pprof", "-symbolize=none", "-top", "-nodecount=100000", "-nodefraction=0"]).arg(profile);
    let output = go.output().expect("start go tool pprof");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    crate::record_go::shares(&String::from_utf8_lossy(&output.stdout))
}

/// The body of a page, by a version of HTTP in which it is all that comes.
fn fetch(port: u16, page: &str, seconds: u64) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(seconds))).expect("set a time limit");
    write!(stream, "GET {page} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n").expect("ask for a page");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("read a page");
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8_lossy(&answer[..end]);
    assert!(head.lines().next().is_some_and(|line| line.contains(" 200 ")), "{head}");
    answer.split_off(end + 4)
}
