//! HTTP by sockets: what is answered, to whom, and what hostile clients can do.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use profiler::daemon::http::{HttpConfig, OPENAPI, Server, Service, Token};
use profiler::daemon::hub::Hub;
use profiler::daemon::store::{Store, StoreConfig};
use profiler::output::pprof;
use serde_json::Value;

use crate::store::{START, window};

/// Time that no answer takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server of a history of six windows, until it is dropped.
struct Served {
    address: SocketAddr,
    hub: Arc<Hub>,
    state: tempfile::TempDir,
    /// Ends the server when it is dropped.
    _stop: tokio::sync::oneshot::Sender<()>,
}

fn serve(token: Option<&str>) -> Served {
    let state = tempfile::tempdir().unwrap();
    let mut store = Store::open(state.path(), StoreConfig::default()).unwrap();
    let hub = Arc::new(Hub::default());
    for number in 0..6 {
        store.put(&window(number)).unwrap();
        hub.publish(Arc::new(window(number)));
    }
    let service = Service::of_daemon(state.path().to_owned(), Arc::clone(&hub), store.shown(), Duration::from_secs(10));
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = HttpConfig { listen, token: token.map(|token| Token::new(token).unwrap()), tls: None };
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Server::bind(config).await.unwrap();
            tell.send(server.address().unwrap()).unwrap();
            tokio::select! {
                () = server.serve(Arc::new(service)) => {}
                _ = stopped => {}
            }
        });
        runtime.shutdown_background();
    });
    Served { address: told.recv().unwrap(), hub, state, _stop: stop }
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

/// Sends bytes; what comes until the other side closes.
fn send(address: SocketAddr, bytes: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap_or(answer.len());
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let (head, body) = (head.to_ascii_lowercase(), answer.get(end + 4..).unwrap_or_default());
    let body = if head.contains("transfer-encoding: chunked") { dechunk(body) } else { body.to_vec() };
    Answer { status, head, body }
}

/// What chunks hold: one that begins before it is known how much there will be is sent in these. Source: RFC 9112, section 7.1.
fn dechunk(mut chunks: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = chunks.windows(2).position(|two| two == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&chunks[..end]).unwrap(), 16).unwrap();
        body.extend_from_slice(&chunks[end + 2..end + 2 + length]);
        chunks = &chunks[(end + 4 + length).min(chunks.len())..];
    }
    body
}

fn ask(served: &Served, path: &str, headers: &str) -> Answer {
    let host = served.address;
    send(
        served.address,
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}Connection: close\r\n\r\n").as_bytes(),
    )
}

#[test]
fn every_route_that_is_described_answers_as_described() {
    let served = serve(None);
    let described: Value = serde_json::from_str(OPENAPI).unwrap();
    let paths = described["paths"].as_object().unwrap();
    let start = START / 1_000_000_000;
    for (path, operations) in paths {
        assert_eq!(operations.as_object().unwrap().keys().collect::<Vec<_>>(), ["get"], "{path}");
        let mut query = format!("from={}&to={}", start + 30, start + 60);
        for parameter in operations["get"]["parameters"].as_array().into_iter().flatten() {
            if parameter["required"] == true {
                let value = if parameter["name"] == "base_from" { start } else { start + 30 };
                query.push_str(&format!("&{}={value}", parameter["name"].as_str().unwrap()));
            }
        }
        let answer = ask(&served, &format!("{path}?{query}"), "");
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        let content = operations["get"]["responses"]["200"]["content"].as_object().unwrap();
        let (kind, content) = content.iter().next().unwrap();
        assert!(answer.head.contains(&format!("content-type: {kind}")), "{path}: {}", answer.head);
        if kind == "application/json" {
            check(&answer.json(), &content["schema"], &described, path);
        }
        // What is wrong is said as described.
        if operations["get"]["parameters"].is_array() {
            let answer = ask(&served, &format!("{path}?from=x"), "");
            assert_eq!(answer.status, 400, "{path}");
            assert!(answer.json()["error"].as_str().is_some_and(|error| error.contains("moment")));
        }
    }
    // No route of the API is missing from the description.
    let source = include_str!("../../src/daemon/http/api.rs");
    let routes: Vec<String> =
        source.split(".route(\"").skip(1).map(|rest| format!("/api/v1{}", rest.split('"').next().unwrap())).collect();
    assert_eq!(routes.len(), paths.len());
    assert!(routes.iter().all(|route| paths.contains_key(route)), "{routes:?}");
}

/// Holds a value against a schema: types, what is required, what is in lists and objects.
fn check(value: &Value, schema: &Value, whole: &Value, place: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        let schema = whole.pointer(name.trim_start_matches('#')).unwrap_or_else(|| panic!("{name} is not described"));
        return check(value, schema, whole, place);
    }
    let is_right = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64(),
        Some("boolean") => value.is_boolean(),
        _ => panic!("{place}: no type"),
    };
    assert!(is_right, "{place}: {value} is no {}", schema["type"]);
    for name in schema["required"].as_array().into_iter().flatten() {
        assert!(value.get(name.as_str().unwrap()).is_some(), "{place} has no {name}");
    }
    for (name, inside) in value.as_object().into_iter().flatten() {
        match (schema["properties"].get(name), &schema["additionalProperties"]) {
            (Some(schema), _) => check(inside, schema, whole, &format!("{place}.{name}")),
            (None, schema @ Value::Object(_)) => check(inside, schema, whole, &format!("{place}.{name}")),
            // The report is described elsewhere.
            (None, _) => assert!(schema["properties"].is_null(), "{place}.{name} is not described"),
        }
    }
    for inside in value.as_array().into_iter().flatten() {
        check(inside, &schema["items"], whole, place);
    }
}

#[test]
fn answers_are_of_the_range_and_the_process() {
    let served = serve(None);
    let one = window(0).profiles[0].totals()[0];
    let start = START / 1_000_000_000;
    let total = |query: &str| {
        let answer = ask(&served, &format!("/api/v1/flamegraph?origin=cpu&{query}"), "").json();
        assert_eq!(answer["flames"].as_array().unwrap().len(), 1);
        answer["flames"][0]["total"].as_u64().unwrap()
    };
    assert_eq!(total(""), 6 * one);
    assert_eq!(total(&format!("from={}&to={}", start + 10, start + 30)), 2 * one);
    assert!(total("pid=42") < 6 * one);
    assert_eq!(total("pid=42") + total("pid=99"), 6 * one);
    assert_eq!(total("process=server"), total("pid=42"));
    let profile = ask(&served, "/api/v1/profile?pid=42", "");
    assert_eq!(pprof::decode(&profile.body).unwrap().totals()[0], total("pid=42"));
    assert_eq!(ask(&served, "/api/v1/report?from=0&to=1", "").status, 404);
    assert_eq!(ask(&served, "/api/v1/profile?origin=fault", "").status, 404);
    assert_eq!(ask(&served, "/api/v1/report?pid=x", "").status, 400);
    assert_eq!(ask(&served, "/nothing", "").status, 404);
}

#[test]
fn pprof_is_served_as_go_serves_it() {
    let served = serve(None);
    let index = ask(&served, "/debug/pprof/", "");
    assert!(index.head.contains("content-type: text/html") && index.text().contains("href=\"profile\""));
    // Of windows that come.
    let hub = Arc::clone(&served.hub);
    let more = std::thread::spawn(move || {
        for number in 6..200 {
            std::thread::sleep(Duration::from_millis(100));
            hub.publish(Arc::new(window(number)));
        }
    });
    let awaited = ask(&served, "/debug/pprof/profile?seconds=1", "");
    assert_eq!(awaited.status, 200, "{}", awaited.text());
    for header in ["application/octet-stream", "attachment; filename=\"profile\"", "x-content-type-options: nosniff"] {
        assert!(awaited.head.contains(header), "{}", awaited.head);
    }
    let found = pprof::decode(&awaited.body).unwrap().totals()[0];
    let one = window(0).profiles[0].totals()[0];
    assert!(found >= one && found.is_multiple_of(one), "{found}");
    let selected = pprof::decode(&ask(&served, "/debug/pprof/profile?seconds=1&pid=99", "").body).unwrap();
    assert!(selected.threads.iter().all(|thread| thread.pid == 99) && !selected.samples.is_empty());
    // Without a time, the last minute of the history.
    let block = ask(&served, "/debug/pprof/block", "");
    assert_eq!(pprof::decode(&block.body).unwrap().origin.row().name, "offcpu");
    let text = ask(&served, "/debug/pprof/block?debug=1", "");
    assert!(text.head.contains("text/plain") && text.text().contains("main;"), "{}", text.text());
    for (path, status) in [
        ("heap", 404),
        ("mutex", 404),
        ("nothing", 404),
        ("profile?seconds=x", 400),
        ("profile?seconds=1e9", 400),
        ("profile?seconds=-1", 400),
        ("profile?seconds=NaN", 400),
    ] {
        let answer = ask(&served, &format!("/debug/pprof/{path}"), "");
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        assert!(answer.head.contains("x-go-pprof: 1"), "{path}: {}", answer.head);
    }
    drop(served);
    more.join().unwrap();
}

#[test]
fn without_the_token_there_is_nothing_but_health() {
    let served = serve(Some("0123456789abcdef0123"));
    for path in ["/", "/metrics", "/api/v1/windows", "/debug/pprof/profile?seconds=1", "/nothing"] {
        for headers in ["", "Authorization: Bearer 0123456789abcdef012\r\n", "Authorization: Basic Og==\r\n"] {
            let answer = ask(&served, path, headers);
            assert_eq!(answer.status, 401, "{path}");
            assert!(answer.head.contains("www-authenticate: basic"), "{}", answer.head);
        }
    }
    assert_eq!(ask(&served, "/healthz", "").text(), "ok\n");
    assert_eq!(ask(&served, "/api/v1/windows", "Authorization: Bearer 0123456789abcdef0123\r\n").status, 200);
}

#[test]
fn another_name_of_this_host_is_refused() {
    let served = serve(None);
    let answer =
        send(served.address, b"GET /api/v1/windows HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    assert_eq!(answer.status, 421, "{}", answer.head);
}

#[test]
fn hostile_clients_are_answered_or_cut_off_and_others_served() {
    let served = serve(None);
    assert_eq!(ask(&served, "/api/v1/windows", "").status, 200);
    let long = "x".repeat(100_000);
    let many: String = (0..1000).map(|number| format!("X-{number}: y\r\n")).collect();
    let requests: Vec<Vec<u8>> = vec![
        b"\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        vec![0; 5000],
        vec![0xff; 5000],
        format!("GET /{long} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes(),
        format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {long}\r\n\r\n").into_bytes(),
        format!("GET / HTTP/1.1\r\nHost: localhost\r\n{many}\r\n").into_bytes(),
        b"POST /api/v1/windows HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\nConnection: close\r\n\r\n".to_vec(),
        b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nffffffffffffffff\r\n".to_vec(),
        b"GET /..%2f..%2fetc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".to_vec(),
        b"GET /debug/pprof/..%2f..%2f HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".to_vec(),
        b"GET /api/v1/windows?from=%ff%fe&to=%00 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".to_vec(),
        b"GET /api/v1/windows?from=0&to=18446744073.7 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".to_vec(),
    ];
    for request in &requests {
        let answer = send(served.address, request);
        assert!(!(answer.status == 200 && answer.text().contains("root:")), "{}", answer.text());
        assert!(
            answer.status < 500,
            "{}: {}",
            answer.status,
            String::from_utf8_lossy(&request[..request.len().min(60)])
        );
    }
    // Some that say nothing, some that take nothing.
    let mut idle = Vec::new();
    for number in 0..60 {
        let mut stream = TcpStream::connect(served.address).unwrap();
        if number % 2 == 0 {
            stream.write_all(b"GET /api/v1/report HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        } else {
            stream.write_all(b"GET / HTT").unwrap();
        }
        idle.push(stream);
    }
    assert_eq!(ask(&served, "/healthz", "").status, 200);
    drop(idle);
    assert_eq!(ask(&served, "/api/v1/report", "").status, 200);
}

#[test]
fn too_much_is_refused() {
    // Sparse: it takes no room, and is more than may be read.
    let served = serve(None);
    let directory = served.state.path().join("windows");
    for entry in std::fs::read_dir(&directory).unwrap() {
        let info = entry.unwrap().path().join("window.json");
        let mut value: Value = serde_json::from_slice(&std::fs::read(&info).unwrap()).unwrap();
        value["bytes"] = (100_u64 << 20).into();
        std::fs::write(&info, value.to_string()).unwrap();
    }
    let answer = ask(&served, "/api/v1/report", "");
    assert_eq!(answer.status, 413, "{}", answer.text());
    assert!(answer.json()["error"].as_str().unwrap().contains("shorter range"));
}

#[test]
fn a_damaged_window_is_an_error_that_names_it() {
    let served = serve(None);
    let directory = served.state.path().join("windows");
    let first = std::fs::read_dir(&directory).unwrap().next().unwrap().unwrap().path();
    damage(&first.join("cpu.pb.gz"));
    let answer = ask(&served, "/api/v1/report", "");
    assert_eq!(answer.status, 500);
    let name = first.file_name().unwrap().to_string_lossy().into_owned();
    assert!(answer.json()["error"].as_str().unwrap().contains(&name), "{}", answer.text());
}

fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn metrics_are_of_what_was_recorded() {
    let served = serve(None);
    let open = ask(&served, "/metrics", "Accept: application/openmetrics-text; version=1.0.0\r\n");
    assert!(open.head.contains("openmetrics-text") && open.text().ends_with("# EOF\n"), "{}", open.head);
    let classic = ask(&served, "/metrics", "");
    assert!(classic.head.contains("text/plain; version=0.0.4"), "{}", classic.head);
    let text = classic.text();
    let value = |name: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}:\n{text}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    };
    let capture = window(0);
    let accounting = &capture.index.accounting["cpu"];
    let is = |name: &str, expected: u64| {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let expected = expected as f64;
        assert!((value(name) - expected).abs() < 1e-6, "{name}: {} for {expected}", value(name));
    };
    is("profiler_windows_total", 6);
    is("profiler_samples_total{origin=\"cpu\",outcome=\"complete\"", 6 * accounting.complete);
    is("profiler_history_windows", 6);
    let (reason, lost) = accounting.lost.iter().next().unwrap();
    is(&format!("profiler_samples_lost_total{{origin=\"cpu\",reason=\"{reason}\"}}"), 6 * lost);
    // Few labels: neither pids nor names of processes.
    assert!(!text.contains("server") && !text.contains("pid"), "{text}");
}
