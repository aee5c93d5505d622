//! A history that is served: the page in a real browser, profiles by `go tool pprof`, metrics by `promtool`.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use profiler::daemon::http::{HttpSettings, Server, Service};
use profiler::daemon::store::{Store, StoreConfig};
use profiler::profile::Capture;
use profiler_common::event::Origin;
use profiler_tests::{Target, profiler_command, scratch, wait_until};

use crate::page::{attribute, open};
use crate::{example, program, run};

const SECOND: u64 = 1_000_000_000;
/// A full hour.
const START: u64 = 500_000 * 3600;

/// A window of 10 s; from the sixth on it has twice as much of `parse`.
fn window(number: u64) -> Capture {
    let mut capture = example::capture_with_waits();
    capture.index.started_at_ns = (START + number * 10) * SECOND;
    capture.index.duration_ns = 10 * SECOND;
    if number >= 6 {
        let profile = &mut capture.profiles[0];
        for sample in &mut profile.samples {
            if profile.stacks[sample.stack as usize].first() == Some(&1) {
                sample.values.iter_mut().for_each(|value| *value *= 2);
            }
        }
    }
    capture
}

/// A history of twelve windows, and its address, as long as the first lives.
fn served(directory: &Path) -> (Target, String) {
    let state = directory.join("state");
    let mut store = Store::open(&state, StoreConfig::default()).expect("a history");
    for number in 0..12 {
        store.put(&window(number)).expect("a window");
    }
    drop(store);
    let said = directory.join("said");
    let mut command = profiler_command();
    command.args(["query", "serve", "--listen", "127.0.0.1:0", "--state-dir"]).arg(&state);
    command.stderr(fs::File::create(&said).expect("a file"));
    let server = Target::start_unready(&mut command);
    let address = wait_until("the server's address", || {
        let said = fs::read_to_string(&said).expect("what it said");
        Some(said.split_once("http://")?.1.split_once("/\n")?.0.to_owned())
    });
    (server, address)
}

#[test]
fn the_page_of_a_history_shows_everything_in_light_and_dark_and_asks_nobody_else() {
    let Some(browser) = program("chromium") else { return };
    let directory = scratch();
    let (_server, address) = served(directory.path());
    for (width, theme) in [(1000, "light"), (2000, "dark")] {
        let hash = format!("theme={theme}&search=parse&from={}&to={}", START + 20, START + 50);
        let (document, said) = open(&browser, directory.path(), &format!("http://{address}/"), width, &hash);
        assert_eq!(attribute(&document, "ready"), Some("true"), "{said}");
        assert_eq!(attribute(&document, "errors"), None);
        assert_eq!(attribute(&document, "state"), Some(""));
        assert_eq!(attribute(&document, "overflows"), Some("false"), "at {width}");
        assert_eq!(attribute(&document, "theme"), Some(theme));
        assert_eq!((attribute(&document, "windows"), attribute(&document, "bars")), (Some("12"), Some("12")));
        let boxes: u32 = attribute(&document, "boxes").and_then(|boxes| boxes.parse().ok()).expect("boxes");
        assert!(boxes > 4, "{boxes} boxes");
        assert!(!said.contains("CONSOLE"), "{said}");
        assert!(document.contains("3 windows") && document.contains("matched: "), "{document}");
        for section in ["Time", "Flamegraphs", "Changes", "Findings", "Targets", "Losses"] {
            assert!(document.contains(&format!("<h2>{section}</h2>")), "{section} is missing");
        }
        for origin in ["cpu", "offcpu", "wall"] {
            assert!(document.contains(&format!("data-name=\"{origin}\"")), "{origin} cannot be chosen");
        }
        assert!(document.contains("server (42)"), "no process can be chosen");
        let requests = fs::read_to_string(directory.path().join("net.json")).expect("the browser's log");
        let hosts = requests.split("\"url\":\"http").skip(1).filter_map(|rest| rest.split('/').nth(2));
        let own = ["google.com", "googleapis.com", "gvt1.com"];
        let others: Vec<&str> =
            hosts.filter(|host| *host != address && !own.iter().any(|own| host.ends_with(own))).collect();
        assert!(others.is_empty(), "the page asked {others:?}");
    }
}

#[test]
fn the_page_compares_two_ranges() {
    let Some(browser) = program("chromium") else { return };
    let directory = scratch();
    let (_server, address) = served(directory.path());
    let hash = format!("from={}&to={}&base_from={START}&base_to={}", START + 60, START + 120, START + 60);
    let (document, said) = open(&browser, directory.path(), &format!("http://{address}/"), 1400, &hash);
    assert_eq!((attribute(&document, "ready"), attribute(&document, "errors")), (Some("true"), None), "{said}");
    assert!(document.contains("compared with"), "{document}");
    let changes = document.split_once("<h2>Changes</h2>").expect("a section").1;
    let row = changes.split("<tr>").find(|row| row.contains(">parse<")).expect("what has changed");
    assert!(row.contains("regression"), "{row}");
}

#[test]
fn go_reads_profiles_by_http() {
    let Some(go) = program("go") else { return };
    let directory = scratch();
    let (_server, address) = served(directory.path());
    for (name, function) in [("profile?seconds=5", "parse"), ("block", "fsync")] {
        let url = format!("http://{address}/debug/pprof/{name}");
        let home = directory.path();
        let text =
            run(Command::new(&go).args(["tool", "pprof", "-top", &url]).env("PPROF_TMPDIR", home).env("HOME", home));
        assert!(text.contains(function), "{text}");
    }
}

#[test]
fn promtool_finds_nothing_wrong_with_the_metrics() {
    let Some(promtool) = program("promtool") else { return };
    let mut snapshot = profiler::daemon::metrics::Snapshot { healthy: true, ..Default::default() };
    let hub = profiler::daemon::hub::Hub::default();
    let window = window(0);
    assert!(window.profiles.iter().any(|profile| profile.origin == Origin::OffCpu));
    snapshot.findings = profiler::analyze::analyze(&window).findings;
    hub.publish(window.into());
    snapshot.totals = Some(hub.totals());
    snapshot.store = Some(Default::default());
    snapshot.requests = vec![("2xx".to_owned(), 7)];
    let text = profiler::daemon::metrics::classic(&snapshot.to_open_metrics());
    let mut child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start promtool");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("tell it");
    let output = child.wait_with_output().expect("wait for promtool");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}

/// Resident memory of a process, bytes.
fn resident(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process");
    let line = text.lines().find(|line| line.starts_with("VmRSS")).expect("a line");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
}

#[test]
fn clients_that_ask_for_ever_or_take_nothing_do_not_make_it_grow() {
    let directory = scratch();
    let (mut server, address) = served(directory.path());
    let send = |text: &str| {
        let mut stream = TcpStream::connect(&address).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
        stream.write_all(text.as_bytes()).expect("a request");
        stream
    };
    let round = || {
        let mut idle: Vec<TcpStream> = Vec::new();
        for number in 0..40 {
            idle.push(match number % 4 {
                0 => send("GET /api/v1/report HTTP/1.1\r\nHost: localhost\r\n\r\n"),
                1 => send("GET / HTT"),
                2 => send(&format!("GET / HTTP/1.1\r\nX: {}", "y".repeat(8000))),
                _ => send("GET /api/v1/flamegraph HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            });
        }
        let mut answer = String::new();
        let _ =
            send("GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").read_to_string(&mut answer);
        assert!(answer.contains(" 200 ") && answer.ends_with("ok\n"), "{answer}");
    };
    // What an allocator keeps is kept after a few rounds.
    (0..5).for_each(|_| round());
    let before = resident(server.pid());
    (0..15).for_each(|_| round());
    let after = resident(server.pid());
    assert!(server.runs());
    assert!(after < before + before / 2, "from {before} to {after} bytes");
}

/// Makes a certificate of `name`, signed by the one called `signer`, or by itself.
fn certificate(openssl: &Path, directory: &Path, name: &str, signer: Option<&str>) {
    let mut command = Command::new(openssl);
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]);
    command.args([
        "-subj",
        &format!("/CN={name}"),
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        &format!("{name}.key"),
    ]);
    command.args(["-out", &format!("{name}.pem")]).current_dir(directory);
    if let Some(signer) = signer {
        command.args(["-CA", &format!("{signer}.pem"), "-CAkey", &format!("{signer}.key")]);
        command.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    }
    run(&mut command);
}

#[test]
fn only_who_has_a_certificate_is_let_in_where_that_is_asked_for() {
    let (Some(openssl), Some(curl)) = (program("openssl"), program("curl")) else { return };
    let directory = scratch();
    let file = |name: &str| directory.path().join(name);
    certificate(&openssl, directory.path(), "ca", None);
    certificate(&openssl, directory.path(), "server", Some("ca"));
    certificate(&openssl, directory.path(), "client", Some("ca"));
    certificate(&openssl, directory.path(), "stranger", None);
    let state = file("state");
    let mut store = Store::open(&state, StoreConfig::default()).expect("a history");
    store.put(&window(0)).expect("a window");
    let (tell, told) = std::sync::mpsc::channel();
    let settings = HttpSettings {
        // Every address: only certificates make that possible.
        listen: "0.0.0.0:0".to_owned(),
        tls_certificate: file("server.pem"),
        tls_key: file("server.key"),
        tls_client_ca: file("ca.pem"),
        ..HttpSettings::default()
    };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let config = settings.config().expect("settings").expect("an address");
            let server = Server::bind(config).await.expect("a server");
            tell.send(server.address().expect("its address").port()).expect("tell");
            server.serve(Arc::new(Service::of_history(state))).await;
        });
    });
    let url = format!("https://127.0.0.1:{}/api/v1/windows", told.recv().expect("a port"));
    let ask = |client: Option<&str>| {
        let mut command = Command::new(&curl);
        command.args(["--silent", "--max-time", "30", "--cacert"]).arg(file("ca.pem"));
        if let Some(client) = client {
            command.arg("--cert").arg(file(&format!("{client}.pem"))).arg("--key").arg(file(&format!("{client}.key")));
        }
        let output = command.arg(&url).output().expect("start curl");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (is_let_in, answer) = ask(Some("client"));
    assert!(is_let_in && answer.contains("\"windows\""), "{answer}");
    for stranger in [None, Some("stranger")] {
        let (is_let_in, answer) = ask(stranger);
        assert!(!is_let_in && answer.is_empty(), "{stranger:?}: {answer}");
    }
}
