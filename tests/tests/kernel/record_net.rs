//! Sockets: how many bytes and messages each end sent and received, by what, and from which function.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use profiler_common::event::Origin;
use profiler_tests::{
    Captured, Record, Target, Workload, find_program, float, is_emulated, missing, require_bpf, run_profiler, scratch,
    wait_until,
};
use serde_json::Value;

use crate::servers::free_port;

/// Programs that are attached when sockets are recorded, at least: two that follow processes, and five of sockets.
const LINKS: usize = 7;

/// The program that sends to itself.
fn sockets() -> Workload {
    Workload::c("sockets")
}

/// The rows of the table.
fn rows(captured: &Captured) -> &[Value] {
    captured.report["tables"]["net"]["rows"].as_array().expect("rows")
}

/// Sum of a value over the rows whose labels are wanted.
fn sum(captured: &Captured, value: &str, wanted: impl Fn(&str, &str, &str) -> bool) -> u64 {
    let label = |row: &Value, name: &str| row["labels"][name].as_str().expect("a label").to_owned();
    let is_wanted = |row: &&Value| wanted(&label(row, "protocol"), &label(row, "local"), &label(row, "remote"));
    rows(captured).iter().filter(is_wanted).map(|row| row["values"][value].as_u64().expect("a value")).sum()
}

/// Values of a column on stacks with a function and this as the leaf.
fn column(captured: &Captured, column: usize, function: &str, leaf: &str) -> u64 {
    let profile = &captured.profile;
    let is_wanted = |stack: u32| {
        let names: Vec<_> = profile.frames(stack).map(|frame| frame.name.into_owned()).collect();
        names.first().is_some_and(|name| name == leaf) && names.iter().any(|name| name == function)
    };
    let samples = profile.samples.iter().filter(|sample| is_wanted(sample.stack));
    samples.map(|sample| sample.values[column]).sum()
}

/// The values of the table and the fields of the program's own account that they must be.
const VALUES: [(&str, &str); 4] =
    [("sent_bytes", "sent"), ("sends", "sends"), ("received_bytes", "received"), ("receives", "receives")];

/// Checks both ends of every kind of socket against the program's own account.
fn check_ends(captured: &Captured) {
    let truth = captured.truth();
    for (kind, protocol) in [
        ("tcp", "TCP"),
        ("tcp6", "TCP"),
        ("udp", "UDP"),
        ("udp6", "UDP"),
        ("unix_stream", "Unix stream"),
        ("unix_packets", "Unix packets"),
        ("unix_datagram", "Unix datagram"),
    ] {
        let address = truth[kind]["address"].as_str().expect("an address");
        for (value, field) in VALUES {
            let expected = |end: &str| truth[kind][end][field].as_u64().expect("a figure");
            let (client, server) = (
                sum(captured, value, |found, local, remote| {
                    found == protocol && remote == address && local.ends_with('*')
                }),
                sum(captured, value, |found, local, _| found == protocol && local == address),
            );
            println!("{kind} {value}: {client} and {server} of {} and {}", expected("client"), expected("server"));
            assert_eq!(client, expected("client"), "{kind} {value}: {:#?}", rows(captured));
            assert_eq!(server, expected("server"), "{kind} {value}: {:#?}", rows(captured));
        }
    }
    for (value, field) in VALUES {
        let found =
            sum(captured, value, |protocol, local, remote| protocol == "Unix stream" && (local, remote) == ("*", "*"));
        let expected: u64 = ["client", "server"].iter().filter_map(|end| truth["pair"][end][field].as_u64()).sum();
        assert_eq!(found, expected, "pair {value}");
    }
    println!("{} messages of a pair by a ring", truth["by_ring"]);
}

/// Checks that table, accounting and profile are of the same messages.
fn check_sums(captured: &Captured) {
    let messages = sum(captured, "sends", |_, _, _| true) + sum(captured, "receives", |_, _, _| true);
    let bytes = sum(captured, "traffic_bytes", |_, _, _| true);
    assert_eq!(captured.report["tables"]["net"]["missing"], 0);
    assert_eq!(captured.accounting.hits, messages, "{:#?}", captured.accounting);
    assert!(captured.accounting.lost.is_empty(), "{:#?}", captured.accounting);
    let by_number = &captured.report["origins"]["net"]["by_number"];
    assert_eq!(by_number["measured"].as_u64(), Some(messages));
    if by_number["weight"] == 1 {
        assert_eq!((captured.total(), captured.profile.totals()[2]), (bytes, messages));
    } else {
        let found = float(captured.profile.totals()[2]) / float(messages);
        println!("{found} of the messages, each for up to {}", by_number["weight"]);
        assert!((found - 1.0).abs() < 0.05, "{by_number}");
    }
}

#[test]
fn every_message_is_counted_at_both_ends_and_stands_on_its_function() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = Record::new().args(["-e", "net"]).program(&sockets().build(), &["each", "10"]).run();
    let truth = captured.truth();
    check_ends(&captured);
    check_sums(&captured);
    let rounds = truth["rounds"].as_u64().expect("rounds");
    // Stream and message sockets of the Internet, and of this host.
    for (function, leaf, kinds, messages, bytes) in [
        ("write_here", "[TCP send]", 2, 1, 100),
        ("writev_here", "[TCP send]", 2, 1, 30),
        ("sendmsg_here", "[UDP send]", 2, 1, 3_000),
        ("sendmmsg_here", "[UDP send]", 2, 2, 77),
        ("sendfile_here", "[Unix send]", 2, 1, 3_000),
        ("sendmmsg_here", "[Unix send]", 3, 2, 77),
    ] {
        let found = (column(&captured, 2, function, leaf), column(&captured, 1, function, leaf));
        let expected = (kinds * messages * rounds, kinds * bytes * rounds);
        assert_eq!(found, expected, "{function} {leaf}\n{}", captured.folded());
    }
    let by_ring =
        ["[Unix send]", "[Unix receive]"].map(|leaf| column(&captured, 2, "ring_here", leaf)).iter().sum::<u64>();
    assert_eq!(Some(by_ring), truth["by_ring"].as_u64(), "{}", captured.folded());
    for function in ["peek_here", "miss_here"] {
        assert_eq!(captured.count(|stack| stack.has(function)), 0, "{function}\n{}", captured.folded());
    }
}

#[test]
fn many_messages_are_all_counted_and_their_stacks_chosen() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = Record::new().args(["-e", "net"]).program(&sockets().build(), &["each", "3000"]).run();
    check_ends(&captured);
    check_sums(&captured);
    assert!(captured.accounting.sampled_out > 0, "{:#?}", captured.accounting);
}

#[test]
fn inside_namespaces_of_pids_and_networks_messages_are_as_outside() {
    let Some(_kernel) = require_bpf() else { return };
    let (Some(unshare), Some(ip)) = (find_program("unshare"), find_program("ip")) else { return };
    let mut command = Command::new(unshare);
    command.args(["--net", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c"]);
    command.arg(format!("{} link set lo up && exec \"$@\"", ip.display())).arg("sh");
    let captured = Record::under(command).args(["-e", "net"]).program(&sockets().build(), &["each", "10"]).run();
    check_ends(&captured);
    check_sums(&captured);
    // As the namespace numbers it.
    let pids = rows(&captured).iter().map(|row| row["labels"]["pid"].as_str().expect("a pid"));
    assert!(pids.into_iter().all(|pid| pid.len() < 3), "{:#?}", rows(&captured));
}

#[test]
fn report_makes_the_table_of_sockets_again() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = Record::new().args(["-e", "cpu,net"]).program(&sockets().build(), &["each", "50"]).run();
    let directory = captured.path();
    let again = scratch();
    let arguments = ["report", directory.to_str().expect("UTF-8"), "-o", again.path().to_str().expect("UTF-8")];
    let ended = run_profiler(&arguments);
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    for name in ["net.svg", "net.folded", "report.md", "report.json"] {
        let read = |directory: &std::path::Path| std::fs::read(directory.join(name)).expect("a file");
        assert!(read(&directory) == read(again.path()), "{name} differs");
    }
    let markdown = std::fs::read_to_string(directory.join("report.md")).expect("report.md");
    assert!(markdown.contains("### Sockets") && markdown.contains("`Unix stream`"), "{markdown}");
    let captured = captured.into_origin(Origin::Net);
    check_ends(&captured);
    check_sums(&captured);
}

/// The only row of an end of TCP connections.
fn tcp_row<'a>(captured: &'a Captured, local: &str, remote: &str) -> &'a Value {
    let is_wanted = |row: &&Value| row["labels"]["local"] == local && row["labels"]["remote"] == remote;
    let found: Vec<_> = rows(captured).iter().filter(is_wanted).collect();
    let [row] = found[..] else { panic!("{found:#?} of {local} and {remote}: {:#?}", rows(captured)) };
    row
}

/// A port of an address that was given to one connection only.
const CHOSEN: &str = "127.0.0.1:*";

#[test]
fn connections_have_their_times_failures_and_retransmits() {
    let Some(_kernel) = require_bpf() else { return };
    let captured = Record::new().args(["-e", "net"]).program(&sockets().build(), &["connections", "300"]).run();
    let truth = captured.truth();
    let figure = |what: &str, field: &str| truth[what][field].as_u64().expect("a figure");
    let client = |what: &str| tcp_row(&captured, CHOSEN, truth[what]["address"].as_str().expect("an address"));
    let server = |what: &str| tcp_row(&captured, truth[what]["address"].as_str().expect("an address"), CHOSEN);
    // A wait in the accept queue, against the program's own clock.
    let waits = &server("late")["distributions"]["accept_wait_ns"];
    assert_eq!(server("late")["values"]["accepts"].as_u64(), Some(figure("late", "count")));
    assert_eq!(waits["count"].as_u64(), Some(figure("late", "count")));
    println!("accepted after {waits} of {}", truth["late"]);
    for (found, expected) in [("p50", "median_ns"), ("max", "longest_ns")] {
        let ratio = waits[found].as_f64().expect("ns") / float(figure("late", expected));
        // The program's clock begins when its call has returned, which an emulated CPU may put off for long.
        let is_late = is_emulated() && found == "max" && ratio > 1.0;
        assert!(is_late || (ratio - 1.0).abs() < 0.05, "{found}: {waits} {}", truth["late"]);
    }
    // The program's clock holds the call besides.
    let connects = &client("late")["distributions"]["connect_ns"];
    assert_eq!(client("late")["values"]["connects"].as_u64(), Some(figure("late", "count")));
    assert!(connects["p50"].as_u64().is_some_and(|ns| ns > 0 && ns <= figure("late", "connect_ns")), "{connects}");
    // One that had to ask twice.
    let slow = client("slow");
    println!("connected after {} of {}", slow["distributions"]["connect_ns"], truth["slow"]);
    let ratio = slow["distributions"]["connect_ns"]["max"].as_f64().expect("ns") / float(figure("slow", "connect_ns"));
    assert!((ratio - 1.0).abs() < 0.05, "{slow}: {}", truth["slow"]);
    assert_eq!(slow["values"]["connects"], 2);
    assert_eq!(slow["values"]["retransmits"].as_u64(), Some(figure("slow", "retransmits")));
    let vain = &client("vain")["values"];
    assert_eq!(vain["failed_connects"].as_u64(), Some(figure("vain", "count")), "{vain}");
    assert_eq!(vain["connects"], 0);
    // What was sent again, by the kernel's own account of the socket.
    let again = &client("again")["values"];
    println!("sent again: {} of {}", again["retransmits"], figure("again", "retransmits"));
    assert!(figure("again", "retransmits") > 1);
    assert_eq!(again["retransmits"].as_u64(), Some(figure("again", "retransmits")));
    assert_eq!(again["sent_bytes"], 50_000);
    // What comes when the connection is gone belongs to it still.
    assert_eq!(server("reset")["values"]["received_bytes"].as_u64(), Some(figure("reset", "received")));
    // A connection that several processes use has a row of each.
    let forked = truth["forked"]["address"].as_str().expect("an address");
    let mut sent: Vec<_> = rows(&captured)
        .iter()
        .filter(|row| row["labels"]["local"] == forked)
        .map(|row| row["values"]["sent_bytes"].as_u64().expect("bytes"))
        .collect();
    sent.sort_unstable();
    let child = figure("forked", "child");
    assert_eq!(sent, [child, child, child, figure("forked", "parent")], "{:#?}", rows(&captured));
    // The way there and back, within what the program saw; it cannot look at the same moments.
    let there_and_back = &client("ping")["distributions"]["round_trip_ns"];
    println!("round trips: {there_and_back} of {}", truth["ping"]);
    assert_eq!(there_and_back["count"].as_u64(), Some(2 * figure("ping", "count")));
    let p50 = there_and_back["p50"].as_f64().expect("ns") / 1e3;
    let (least, most) = (float(figure("ping", "least_us")), float(figure("ping", "most_us")));
    assert!((least * 0.9..=most * 1.1 + 1.0).contains(&p50), "{there_and_back} {}", truth["ping"]);
    check_sums(&captured);
}

/// A `redis-server` without a load; `None` where it is not installed.
fn idle_redis(directory: &Path, port: u16) -> Option<Target> {
    let server = find_program("redis-server")?;
    let arguments =
        ["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no", "--dir", "."];
    let target = Target::start_unready(Command::new(server).args(arguments).current_dir(directory));
    wait_until("redis-server to listen", || TcpStream::connect(("127.0.0.1", port)).ok());
    Some(target)
}

/// What `INFO` is asked with.
const INFO: &[u8] = b"INFO\r\n";

/// Bytes that a server says it has received and sent until it was asked, and the length of its answer.
fn info(stream: &mut TcpStream) -> (u64, u64, u64) {
    stream.write_all(INFO).expect("ask redis");
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    let head_length = reader.read_line(&mut head).expect("an answer");
    let length: usize = head.trim_start_matches('$').trim().parse().expect("a length");
    let mut body = vec![0; length + 2];
    reader.read_exact(&mut body).expect("the answer");
    let text = String::from_utf8_lossy(&body).into_owned();
    let figure = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no {name} in {text}"))
    };
    (figure("total_net_input_bytes"), figure("total_net_output_bytes"), (head_length + body.len()) as u64)
}

#[test]
fn redis_counts_the_same_bytes_itself() {
    let Some(_kernel) = require_bpf() else { return };
    let (directory, port) = (scratch(), free_port());
    let (Some(server), Some(load)) = (idle_redis(directory.path(), port), find_program("redis-benchmark")) else {
        return;
    };
    let mut recording = Record::new().args(["-e", "net"]).pid(server.pid()).start();
    recording.wait_for_links(LINKS);
    let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("connect to redis");
    let (received, sent, _) = info(&mut stream);
    let requests = if is_emulated() { "1000" } else { "20000" };
    let arguments =
        ["-h", "127.0.0.1", "-p", &port.to_string(), "-q", "-n", requests, "-c", "20", "-t", "set,get,lrange"];
    let ended = Command::new(load).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    assert!(ended.expect("run redis-benchmark").success());
    let (received_then, sent_then, answer) = info(&mut stream);
    // What it is asked first was counted then, what it answers last was not.
    let expected = (received_then - received + INFO.len() as u64, sent_then - sent + answer);
    recording.signal(libc::SIGINT);
    let captured = recording.finish();
    let local = format!("127.0.0.1:{port}");
    let of_server = |value| sum(&captured, value, |protocol, found, _| protocol == "TCP" && found == local);
    let found = (of_server("received_bytes"), of_server("sent_bytes"));
    println!("received and sent: {found:?} of {expected:?}");
    assert_eq!(found, expected, "{:#?}", rows(&captured));
    // One row for all of its clients.
    assert!(of_server("accepts") > 20, "{:#?}", rows(&captured));
    assert_eq!(rows(&captured).iter().filter(|row| row["labels"]["local"] == local).count(), 1);
    check_sums(&captured);
}

#[test]
fn python_functions_are_on_the_stacks_of_their_messages() {
    let Some(_kernel) = require_bpf() else { return };
    let Some(python) = find_program("python3") else { return };
    let can_import = Command::new(&python).args(["-c", "import socket"]).stderr(Stdio::null()).status();
    if !can_import.expect("run python3").success() {
        return missing("python3 has no sockets here");
    }
    let script = "\
import socket, time
def exchange_here(a, b):
    for _ in range(100):
        a.send(b'x' * 50)
        b.recv(50)
a, b = socket.socketpair()
until = time.time() + 3
while time.time() < until:
    exchange_here(a, b)
    time.sleep(0.01)
";
    let captured = Record::new().args(["-e", "net"]).program(&python, &["-c", script]).run();
    if !captured.report["origins"]["net"]["event"].as_str().is_some_and(|event| event.starts_with("sock_send_length")) {
        println!("native frames only: {}", captured.report["origins"]["net"]["event"]);
        return;
    }
    // The first messages come before the interpreter is known.
    let share = captured.share(|stack| stack.leaf() == "[Unix send]", |stack| stack.has("exchange_here_[p]"));
    println!("{:.1} % of the bytes on the function", 100.0 * share);
    assert!(share > 0.8, "{}", captured.folded());
    check_sums(&captured);
}
