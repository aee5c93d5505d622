//! Waits: for locks, disks, the network and a CPU, and threads that wait for one that works.

use profiler_common::event::Origin;

use super::scene::{Scene, SceneFrame, float, label, percent, plural, time, value};
use crate::profile::{Column, Finding, FindingKind, LedgerRow};

/// Kinds of locks that threads wait for because another has them; the other kinds are waited for with nothing to do.
const HELD: [&str; 6] = ["mutex", "rwlock", "futex", "interpreter lock", "runtime lock", "once"];
/// Functions in which a server waits for somebody to ask for something.
const SERVING: [&str; 6] = ["accept", "accept4", "epoll_wait", "poll", "select", "inet_csk_accept"];

pub(super) fn rules(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    locks(scene, findings);
    network(scene, findings);
    disk(scene, findings);
    run_queue(scene, findings);
    throttled(scene, findings);
    stage(scene, findings);
}

/// Time of a thread's waits for a reason.
fn waited(row: &LedgerRow, reason: &str) -> u64 {
    row.waits.get(reason).copied().unwrap_or(0)
}

fn locks(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let mut known = false;
    for lock in scene.report.locks.iter().filter(|lock| HELD.contains(&lock.kind.as_str())).take(5) {
        // Threads of the process that wait for locks: this lock's part of their time.
        let of_process = scene.report.locks.iter().filter(|other| other.pid == lock.pid);
        let all: f64 = of_process.map(|lock| float(lock.delay_ns)).sum();
        let (share, threads) = scene.share_of_wall(|row| if row.pid == lock.pid { waited(row, "lock") } else { 0 });
        // Without a ledger, of the recording's own time: a thread waits at most as long.
        let effect = if threads > 0 {
            share * float(lock.delay_ns) / all.max(1.0)
        } else {
            float(lock.delay_ns) / scene.duration_ns()
        };
        if effect.min(1.0) < scene.rules.thresholds.wait_share {
            continue;
        }
        known = true;
        let mut evidence = vec![format!(
            "{} waits of {} in all, the longest {}, for the {} at {}",
            lock.waits,
            time(float(lock.delay_ns)),
            time(float(lock.longest_ns)),
            lock.kind,
            lock.address
        )];
        let holder = lock.holder.as_ref().filter(|holder| !holder.function.is_empty());
        if let Some(holder) = holder {
            evidence.push(format!(
                "given back by `{}` of thread {} for {} of that time",
                holder.function,
                holder.thread,
                percent(holder.share)
            ));
        }
        let held = holder.map_or_else(String::new, |holder| format!(" that `{}` gives back", holder.function));
        findings.push(scene.finding(
            FindingKind::Lock,
            format!("`{}` waits for a {}{held}, {} of the time", lock.site, lock.kind, percent(effect.min(1.0))),
            effect,
            0.95,
            evidence,
            format!("hold the {} of `{}`{held} for less time, split it by key, or do without it", lock.kind, lock.site),
        ));
    }
    if known || scene.profile(Origin::Lock).is_some() {
        return;
    }
    // Waits alone do not tell whether another has the lock: the functions that take it do.
    let Some(profile) = scene.profile(Origin::OffCpu) else { return };
    let takes = |frames: &[&SceneFrame]| {
        frames
            .iter()
            .any(|frame| ["mutex_lock", "lll_lock_wait", "rwlock"].iter().any(|part| frame.name.contains(part)))
            && !frames.iter().any(|frame| frame.name.contains("cond_"))
    };
    let Some((site, part)) = scene.site(Origin::OffCpu, takes) else { return };
    let all = float(profile.totals()[profile.origin.row().primary]) * part;
    let (share, threads) = scene.share_of_wall(|row| waited(row, "lock"));
    if threads == 0 || share < scene.rules.thresholds.wait_share {
        return;
    }
    findings.push(scene.finding(
        FindingKind::Lock,
        format!(
            "`{}` waits for a lock, {} of the time of {}",
            site.function,
            percent(share),
            plural(threads, "thread")
        ),
        share,
        0.7,
        vec![format!("{} of waits for locks that others have", time(all)), site.stack],
        format!("hold the lock of `{}` for less time; `record -e lock` shows who has it", site.function),
    ));
}

fn network(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let (share, threads) = scene.share_of_wall(|row| waited(row, "network"));
    if threads == 0 || share < scene.rules.thresholds.wait_share {
        return;
    }
    let plain = |frame: &SceneFrame| frame.plain().trim_start_matches("__x64_sys_").to_owned();
    let is_network = |frames: &[&SceneFrame]| frames.first().is_some_and(|frame| frame.name == "[network]");
    let asks =
        |frames: &[&SceneFrame]| is_network(frames) && !frames.iter().any(|frame| SERVING.contains(&&*plain(frame)));
    let Some((site, part)) = scene.site(Origin::OffCpu, asks) else { return };
    let Some((_, whole)) = scene.site(Origin::OffCpu, is_network) else { return };
    let effect = share * part / whole.max(f64::MIN_POSITIVE);
    if effect < scene.rules.thresholds.wait_share {
        return;
    }
    let mut evidence = vec![format!("{} of the time of {}", percent(effect), plural(threads, "thread")), site.stack];
    let mut remote = String::new();
    // A socket whose remote end has a port was connected from here: who waits on it has asked for something.
    let mut is_client = None;
    if let Some(table) = scene.table("net") {
        let has_port = |row: usize| label(table, row, "remote").rsplit(':').next().is_some_and(is_port);
        let worst = (0..table.rows.len()).find(|&row| has_port(row));
        is_client = Some(worst.is_some());
        if let Some(row) = worst {
            label(table, row, "remote").clone_into(&mut remote);
            evidence.push(format!(
                "{} bytes came from {remote}, {} went there",
                value(table, row, "received_bytes").max(value(table, row, "received")),
                value(table, row, "sent_bytes").max(value(table, row, "sent")),
            ));
        }
    }
    // One who only waits for others to ask costs nothing.
    let (effect, confidence) = match is_client {
        Some(true) => (effect, 0.9),
        Some(false) => (effect * 0.2, 0.4),
        None => (effect, 0.6),
    };
    let whom = if remote.is_empty() { "its peer".to_owned() } else { format!("`{remote}`") };
    findings.push(scene.finding(
        FindingKind::Network,
        format!("`{}` waits for {whom} {} of the time", site.function, percent(effect)),
        effect,
        confidence,
        evidence,
        format!(
            "ask {whom} for more at once or for several things side by side in `{}`, or find out why it is slow",
            site.function
        ),
    ));
}

fn is_port(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn disk(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let busiest = scene.table("blockio_devices").and_then(|table| {
        let busy = |row: usize| float(value(table, row, "busy_ns").max(value(table, row, "busy_time_ns")));
        let row = (0..table.rows.len()).max_by(|&a, &b| busy(a).total_cmp(&busy(b)))?;
        Some((label(table, row, "device").to_owned(), busy(row) / scene.duration_ns()))
    });
    if let Some((device, part)) = &busiest
        && *part >= scene.rules.thresholds.device_utilization
    {
        findings.push(scene.finding(
            FindingKind::Disk,
            format!("the device `{device}` is busy {} of the time", percent(*part)),
            0.0,
            0.9,
            vec![format!("it had requests under way for {} of the recording", percent(*part))],
            format!("spread the load of `{device}`, or ask it for less: larger requests, a cache, a faster device"),
        ));
    }
    if let Some(iowait) = scene.sum(Column::HostCpuIowait) {
        let part = iowait / scene.duration_ns() / float(scene.capture.index.host.cpus.max(1).into());
        if part >= scene.rules.thresholds.io_wait {
            findings.push(scene.finding(
                FindingKind::Disk,
                format!("the host's CPUs wait for I/O {} of the time", percent(part)),
                0.0,
                0.6,
                vec![format!("iowait of all CPUs: {}", time(iowait))],
                "see which requests are slow: `record -e blockio`".to_owned(),
            ));
        }
    }
    // Syncs have a finding of their own.
    let reads = |frames: &[&SceneFrame]| {
        frames.first().is_some_and(|frame| frame.name == "[disk]")
            && !frames.iter().any(|frame| frame.name.contains("fsync"))
    };
    let Some((site, part)) = scene.site(Origin::OffCpu, reads) else { return };
    let Some((_, whole)) =
        scene.site(Origin::OffCpu, |frames| frames.first().is_some_and(|frame| frame.name == "[disk]"))
    else {
        return;
    };
    let (share, threads) = scene.share_of_wall(|row| waited(row, "disk"));
    let effect = share * part / whole.max(f64::MIN_POSITIVE);
    if threads == 0 || effect < scene.rules.thresholds.wait_share {
        return;
    }
    let device = busiest.map_or_else(String::new, |(device, _)| format!(" on `{device}`"));
    findings.push(scene.finding(
        FindingKind::Disk,
        format!("`{}` waits for the disk{device} {} of the time", site.function, percent(effect)),
        effect,
        0.9,
        vec![format!("{} of the time of {}", percent(effect), plural(threads, "thread")), site.stack],
        format!(
            "read ahead or several requests at once in `{}`, keep what was read, or take a faster device",
            site.function
        ),
    ));
}

fn run_queue(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let wants = |row: &LedgerRow| waited(row, "run queue") + waited(row, "preempted");
    let Some(ledger) = &scene.report.ledger else { return };
    let (waits, runs) = (float(wants(&ledger.total)), float(ledger.total.cpu_ns));
    let (share, threads) = scene.share_of_wall(wants);
    if threads == 0 || waits / (waits + runs).max(1.0) < scene.rules.thresholds.wait_share {
        return;
    }
    findings.push(scene.finding(
        FindingKind::Scheduling,
        format!("{} ready to run without a CPU {} of the time", plural(threads, "thread"), percent(share)),
        share,
        0.9,
        vec![format!("{} ready to run and waiting, {} running", time(waits), time(runs))],
        format!(
            "run fewer threads than the {} CPUs can take, move other work away, or give it more CPUs",
            scene.capture.index.host.cpus
        ),
    ));
}

fn throttled(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(held) = scene.sum(Column::TargetThrottled) else { return };
    let part = (held / scene.duration_ns()).min(1.0);
    if part < scene.rules.thresholds.wait_share {
        return;
    }
    findings.push(scene.finding(
        FindingKind::System,
        format!("the cgroup's CPU limit holds threads back {} of the time", percent(part)),
        part,
        0.9,
        vec![format!("throttled for {} of {}", time(held), time(scene.duration_ns()))],
        "raise the limit (cpu.max, or the container's CPU limit), or run fewer threads".to_owned(),
    ));
}

/// One thread that works while the others of its process wait.
fn stage(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    /// Threads that must wait for one.
    const OTHERS: usize = 2;
    let thresholds = &scene.rules.thresholds;
    // Wanting a CPU is as good as having one.
    let part = |row: &LedgerRow, time: u64| float(time) / float(row.wall_ns).max(1.0);
    let works = |row: &LedgerRow| row.cpu_ns + waited(row, "run queue") + waited(row, "preempted");
    let mut threads = scene.threads();
    let Some(busy) = threads.find(|row| part(row, works(row)) >= thresholds.stage_busy) else { return };
    let rest: Vec<_> = scene.threads().filter(|row| row.pid == busy.pid && row.tid != busy.tid).collect();
    // The main thread may well wait for its pool to end.
    if rest.iter().any(|row| part(row, works(row)) >= thresholds.stage_busy / 2.0) {
        return;
    }
    let idle: Vec<_> = rest.iter().filter(|row| part(row, waited(row, "lock")) >= thresholds.stage_idle).collect();
    if idle.len() < OTHERS {
        return;
    }
    // Threads that wait for a lock that is held have a finding of their own.
    let held: f64 = scene
        .report
        .locks
        .iter()
        .filter(|lock| lock.pid == busy.pid && HELD.contains(&lock.kind.as_str()))
        .map(|lock| float(lock.delay_ns))
        .sum();
    let waits: f64 = idle.iter().map(|row| float(waited(row, "lock"))).sum();
    if held > waits / 2.0 {
        return;
    }
    let effect = part(busy, works(busy)) * (1.0 - 1.0 / float(idle.len() as u64 + 1));
    let site = scene.site(Origin::Cpu, |_| true).map(|(site, _)| site);
    let function = site.as_ref().map_or_else(String::new, |site| format!(", in `{}`", site.function));
    let mut evidence = vec![
        format!("thread {} ({}) works {} of its time", busy.tid, busy.thread, percent(part(busy, works(busy)))),
        format!(
            "{} others of `{}` wait for at least {} of theirs",
            idle.len(),
            busy.process,
            percent(thresholds.stage_idle)
        ),
    ];
    evidence.extend(site.map(|site| site.stack));
    findings.push(scene.finding(
        FindingKind::Scheduling,
        format!("one thread works while {} wait for it: `{}`{function}", idle.len(), busy.thread),
        effect,
        0.85,
        evidence,
        format!("share the work of thread `{}`{function} out among the others", busy.thread),
    ));
}
