//! Pushing to stores: what they get, and what becomes of requests that they do not take.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use profiler::daemon::push::{PushConfig, PushState, Pusher, StoreKind};
use profiler::output::pprof;
use prost::Message as _;

use crate::store::window;

/// Time that nothing here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that answers each request with the next of some statuses, the last for ever.
fn server(statuses: &'static [u16]) -> (SocketAddr, mpsc::Receiver<(String, Vec<u8>)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for number in 0.. {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let mut bytes = Vec::new();
            let (head, length) = loop {
                let mut more = [0; 4096];
                let Ok(read) = stream.read(&mut more) else { return };
                bytes.extend_from_slice(&more[..read]);
                let Some(end) = bytes.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { continue };
                let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
                let length = head.split_once("content-length: ").unwrap().1.split("\r\n").next().unwrap();
                bytes.drain(..end + 4);
                break (head.clone(), length.parse::<usize>().unwrap());
            };
            let mut rest = vec![0; length - bytes.len()];
            stream.read_exact(&mut rest).unwrap();
            bytes.extend(rest);
            let status = statuses[number.min(statuses.len() - 1)];
            let _ = write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}");
            if tell.send((head, bytes)).is_err() {
                return;
            }
        }
    });
    (address, told)
}

fn config(kind: StoreKind, address: SocketAddr) -> PushConfig {
    PushConfig {
        kind,
        address: format!("http://{address}"),
        labels: BTreeMap::from([("service_name".to_owned(), "node".to_owned())]),
        authorization_file: Default::default(),
        ca: Default::default(),
        queue_mib: 1,
    }
}

/// Sends until `done`, by the state of the only store.
fn run_until(pusher: &Pusher, done: impl Fn(&PushState) -> bool) -> PushState {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let start = Instant::now();
        let mut sending = Box::pin(pusher.run());
        loop {
            tokio::select! {
                () = &mut sending => panic!("it ended"),
                () = tokio::time::sleep(Duration::from_millis(10)) => {}
            }
            let state = pusher.states().next().unwrap().1;
            if done(&state) {
                return state;
            }
            assert!(start.elapsed() < PATIENCE, "{state:?}");
        }
    })
}

/// The fields of a message, by their source: numbers, and bytes as they are.
#[derive(Clone, PartialEq, prost::Message)]
struct Request {
    #[prost(message, repeated, tag = "1")]
    series: Vec<Series>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Series {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Sample {
    #[prost(bytes = "vec", tag = "1")]
    profile: Vec<u8>,
}

#[test]
fn pyroscope_gets_each_origin_with_its_labels() {
    let (address, told) = server(&[200]);
    let state = tempfile::tempdir().unwrap();
    let token = state.path().join("token");
    std::fs::write(&token, "Bearer secret\n").unwrap();
    let config = PushConfig { authorization_file: token, ..config(StoreKind::Pyroscope, address) };
    let pusher = Pusher::new(state.path(), &[config]).unwrap();
    pusher.put(&window(0));
    run_until(&pusher, |state| state.sent == 1 && state.waiting == 0);
    let (head, body) = told.recv_timeout(PATIENCE).unwrap();
    assert!(head.starts_with("post /push.v1.pusherservice/push http/1.1"), "{head}");
    assert!(
        head.contains("content-type: application/proto") && head.contains("authorization: bearer secret"),
        "{head}"
    );
    let request = Request::decode(&*body).unwrap();
    let found: Vec<(String, Vec<u64>)> = request
        .series
        .iter()
        .map(|series| {
            let label = |name: &str| series.labels.iter().find(|label| label.name == name).unwrap().value.clone();
            assert_eq!(label("service_name"), "node");
            assert!(series.labels.is_sorted_by(|one, other| one.name < other.name));
            (label("__name__"), pprof::decode(&series.samples[0].profile).unwrap().totals().to_vec())
        })
        .collect();
    let window = window(0);
    let expected = [("process_cpu", 0), ("offcpu", 1)]
        .map(|(name, place)| (name.to_owned(), window.profiles[place].totals().to_vec()));
    assert_eq!(found, expected);
}

#[test]
fn what_may_be_taken_later_is_sent_again_and_what_is_refused_is_not() {
    // Twice later, then taken; the next is refused, the one after it taken.
    let (address, told) = server(&[503, 429, 200, 400, 200]);
    let state = tempfile::tempdir().unwrap();
    let pusher = Pusher::new(state.path(), &[config(StoreKind::Pyroscope, address)]).unwrap();
    for number in 0..3 {
        pusher.put(&window(number));
    }
    let found = run_until(&pusher, |state| state.waiting == 0);
    assert_eq!((found.sent, found.retried, found.refused, found.dropped), (2, 2, 1, 0), "{found:?}");
    let bodies: Vec<Vec<u8>> = told.try_iter().map(|(_, body)| body).collect();
    assert_eq!(bodies.len(), 5);
    assert!(bodies[0] == bodies[1] && bodies[1] == bodies[2], "not the same was sent again");
}

#[test]
fn a_store_that_is_not_there_holds_nothing_up_and_what_waits_is_there_after_a_restart() {
    // A port that nobody has.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let state = tempfile::tempdir().unwrap();
    let pusher = Pusher::new(state.path(), &[config(StoreKind::Pyroscope, address)]).unwrap();
    pusher.put(&window(0));
    let found = run_until(&pusher, |state| state.retried > 0);
    assert!(found.last_error.contains("cannot connect"), "{found:?}");
    assert_eq!(found.waiting, 1);
    for number in 1..1000 {
        pusher.put(&window(number));
    }
    let full = pusher.states().next().unwrap().1;
    assert!(full.waiting_bytes <= 1 << 20 && full.dropped > 0, "{full:?}");
    assert_eq!(full.waiting + full.dropped, 1000);
    drop(pusher);
    let again = Pusher::new(state.path(), &[config(StoreKind::Pyroscope, address)]).unwrap();
    assert_eq!(again.states().next().unwrap().1.waiting, full.waiting);
    let text: Vec<String> = again.metrics().into_iter().map(|family| family.name).collect();
    assert_eq!(text, ["push_requests", "push_waiting", "push_waiting_bytes"]);
}

#[test]
fn a_store_that_cannot_be_is_refused_before_anything_starts() {
    let state = tempfile::tempdir().unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    for (address, word) in [("x:1", "http://"), ("ftp://x", "http://"), ("http://", "address"), ("", "")] {
        let config = PushConfig {
            address: address.to_owned(),
            ..config(StoreKind::Parca, SocketAddr::from(([127, 0, 0, 1], 1)))
        };
        let error = format!("{:#}", Pusher::new(state.path(), &[config]).err().unwrap());
        assert!(error.contains(word), "{address}: {error}");
    }
    let twice = [config(StoreKind::Parca, address), config(StoreKind::Parca, address)];
    assert!(Pusher::new(state.path(), &twice).is_err());
}
