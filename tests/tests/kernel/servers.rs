//! Servers that nobody here wrote, each under a load of its own making.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use profiler_tests::{Ended, Target, find_program, missing, scratch, wait_until};

/// A server with its load. Both end when it is dropped.
pub(crate) struct Server {
    /// The server.
    pub(crate) target: Target,
    _load: Target,
    _directory: tempfile::TempDir,
}

/// A port that nobody listens on: it is free again when this returns.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr()).expect("a port").port()
}

/// `redis-server` under `redis-benchmark`; `None` where they are not installed.
pub(crate) fn redis() -> Option<Server> {
    let (server, client) = (find_program("redis-server")?, find_program("redis-benchmark")?);
    let (directory, port) = (scratch(), free_port());
    let port_text = port.to_string();
    let arguments = ["--bind", "127.0.0.1", "--port", &port_text, "--save", "", "--appendonly", "no", "--dir", "."];
    let target = Target::start_unready(Command::new(server).args(arguments).current_dir(directory.path()));
    wait_until("redis-server to listen", || TcpStream::connect(("127.0.0.1", port)).ok());
    let mut command = Command::new(client);
    command.args(["-h", "127.0.0.1", "-p", &port_text, "-q", "-n", "100000000", "-c", "10", "-t", "set,get"]);
    let load = Target::start_unready(command.stderr(Stdio::null()));
    Some(Server { target, _load: load, _directory: directory })
}

/// `postgres` under `pgbench`; `None` where they are not installed.
pub(crate) fn postgres() -> Option<Server> {
    let Some(programs) = postgres_programs() else {
        missing("postgresql is not installed");
        return None;
    };
    let (directory, port) = (scratch(), free_port().to_string());
    let data = directory.path().join("data");
    std::fs::create_dir(&data).expect("make a directory");
    // It refuses to run as root.
    let run = |program: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(programs.join(program));
        command.current_dir(directory.path());
        command
    };
    let finish = |command: &mut Command| {
        let output = command.output().expect("run a program");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ended { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
    };
    let owned = finish(Command::new("chown").arg("postgres:postgres").arg(&data));
    assert_eq!(owned.code(), 0, "{owned:?}");
    let made = finish(run("initdb").args(["--auth=trust", "--no-sync", "-D"]).arg(&data));
    assert_eq!(made.code(), 0, "{made:?}");
    let mut server = run("postgres");
    server.args(["-p", &port, "-c", "unix_socket_directories=", "-D"]).arg(&data).stderr(Stdio::null());
    let target = Target::start_unready(&mut server);
    let address = ["-h", "127.0.0.1", "-p", &port, "-U", "postgres"];
    wait_until("postgres to answer", || (finish(run("pg_isready").args(address)).status.success()).then_some(()));
    let filled = finish(run("pgbench").args(address).args(["--initialize", "--quiet", "--scale=2", "postgres"]));
    assert_eq!(filled.code(), 0, "{filled:?}");
    let mut load = run("pgbench");
    load.args(address).args(["--client=4", "--time=120", "postgres"]).stderr(Stdio::null());
    Some(Server { target, _load: Target::start_unready(&mut load), _directory: directory })
}

/// Where Debian keeps the programs of the newest `PostgreSQL`.
fn postgres_programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let newest = versions.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).max()?;
    let programs = Path::new("/usr/lib/postgresql").join(newest.to_string()).join("bin");
    programs.join("initdb").exists().then_some(programs)
}
