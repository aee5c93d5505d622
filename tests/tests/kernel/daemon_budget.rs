//! The daemon's budget: a host with very many switches costs the waits, not the host.

use profiler_tests::{BpfObjects, Daemon, Target, Workload, require_bpf, scratch, wait_until};

#[test]
fn waits_are_left_out_on_a_host_that_does_nothing_but_switch() {
    let Some(_kernel) = require_bpf() else { return };
    let directory = scratch();
    let switches = Target::start(&Workload::c("switches").build(), &["180"]);
    let target = format!("target.pids=[{}]", switches.pid());
    let daemon = Daemon::start(directory.path(), &["budget.cpu_percent=1.0", &target]);
    daemon.wait_started();
    wait_until("less is recorded", || daemon.said().contains("waits are recorded in one window of").then_some(()));
    wait_until("waits are not recorded", || daemon.said().contains("waits are not recorded").then_some(()));
    // The programs are loaded and run no more.
    let Some(objects) = BpfObjects::list() else { return };
    assert!(objects.has("prog", "offcpu_out"), "{objects:?}");
    println!("{}", daemon.said());
}
