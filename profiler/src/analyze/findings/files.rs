//! Operations on files: syncs that are waited for, and small reads and writes one after the other.

use profiler_common::event::Origin;

use super::scene::{Scene, SceneFrame, Site, float, label, percent, time, value};
use crate::profile::{Finding, FindingKind, Table};

/// Calls that wait until files are on disk.
const SYNCS: [&str; 6] = ["fsync", "fdatasync", "sync_file_range", "msync", "sync", "syncfs"];
/// Calls that read or write a little of a file or socket.
const TRANSFERS: [&str; 6] = ["read", "pread64", "readv", "write", "pwrite64", "writev"];

/// Part of the time of calls from which on it is the disk that they take it for.
const DISK_PART: f64 = 0.25;

pub(super) fn rules(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    syncs(scene, findings);
    small_transfers(scene, findings);
}

/// Who is nearest to the calls that `is_call` is true of, in whichever profile there is.
fn caller(scene: &Scene<'_>, is_call: impl Fn(&str) -> bool) -> Option<Site> {
    let origins = [Origin::OffCpu, Origin::Syscall, Origin::FileIo, Origin::Cpu];
    origins.into_iter().find_map(|origin| {
        let is_meant = |frames: &[&SceneFrame]| {
            frames.iter().any(|frame| {
                let name = frame.plain().trim_start_matches("__x64_sys_").trim_start_matches('_');
                is_call(name.trim_matches(['[', ']']))
            })
        };
        scene.site(origin, is_meant).map(|(site, _)| site)
    })
}

/// Time and number of calls of some names, in the table of system calls.
fn calls(table: &Table, names: &[&str]) -> (f64, u64) {
    let rows = (0..table.rows.len()).filter(|&row| names.contains(&label(table, row, "call")));
    rows.fold((0.0, 0), |(time, calls), row| {
        (time + float(value(table, row, "time_ns")), calls + value(table, row, "calls"))
    })
}

/// Time in calls that sync, from the tables, else from the waits below such calls.
fn syncs(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let mut evidence = Vec::new();
    let mut spent: f64 = 0.0;
    if let Some(table) = scene.table("syscall") {
        let (time_ns, count) = calls(table, &SYNCS);
        if count > 0 {
            evidence.push(format!("{count} calls that sync took {} in all", time(time_ns)));
        }
        spent = spent.max(time_ns);
    }
    let mut file = String::new();
    if let Some(table) = scene.table("fileio") {
        let rows = || 0..table.rows.len();
        let time_ns: f64 = rows().map(|row| float(value(table, row, "sync_time_ns"))).sum();
        let worst = rows().max_by_key(|&row| value(table, row, "sync_time_ns"));
        if let Some(row) = worst.filter(|&row| value(table, row, "syncs") > 0) {
            label(table, row, "file").clone_into(&mut file);
            let (count, of) = (value(table, row, "syncs"), float(value(table, row, "sync_time_ns")));
            evidence.push(format!("{count} syncs of `{file}` took {}", time(of)));
        }
        spent = spent.max(time_ns);
    }
    let is_sync = |name: &str| SYNCS.contains(&name) || ["vfs_fsync_range", "do_fsync"].contains(&name);
    if let Some(profile) = scene.profile(Origin::OffCpu) {
        let below = scene.site(Origin::OffCpu, |frames| frames.iter().any(|frame| is_sync(frame.plain())));
        if let Some((_, share)) = below {
            let waited = share * float(profile.totals()[profile.origin.row().primary]);
            evidence.push(format!("threads waited {} below fsync and the like", time(waited)));
            spent = spent.max(waited);
        }
    }
    let effect = (spent / scene.duration_ns()).min(1.0);
    if effect < scene.rules.thresholds.wait_share {
        return;
    }
    let site = caller(scene, is_sync);
    let who = site.as_ref().map_or_else(|| "the target".to_owned(), |site| format!("`{}`", site.function));
    evidence.extend(site.map(|site| site.stack));
    let of = if file.is_empty() { String::new() } else { format!(" of `{file}`") };
    findings.push(scene.finding(
        FindingKind::File,
        format!("{who} waits for fsync{of} {} of the time", percent(effect)),
        effect,
        0.95,
        evidence,
        format!(
            "sync less in {who}: several changes at once, fdatasync in the place of fsync, or from a thread of its own"
        ),
    ));
}

/// Many small reads or writes one after the other: each costs a call, and a query more than one row.
fn small_transfers(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let thresholds = &scene.rules.thresholds;
    let seconds = scene.duration_ns() / 1e9;
    if let Some(table) = scene.table("fileio") {
        for (what, count, bytes, spent) in
            [("reads", "reads", "read_bytes", "read_time_ns"), ("writes", "writes", "written_bytes", "write_time_ns")]
        {
            let Some(row) = (0..table.rows.len()).max_by_key(|&row| value(table, row, count)) else { continue };
            let (number, size) = (value(table, row, count), value(table, row, bytes));
            let mean = size.checked_div(number).unwrap_or(u64::MAX);
            let rate = float(number) / seconds;
            if rate < thresholds.small_io_per_second || mean > thresholds.small_io_bytes {
                continue;
            }
            let file = label(table, row, "file");
            small(scene, what, rate, mean, &format!("`{file}`"), float(value(table, row, spent)), findings);
        }
        return;
    }
    // Without files by name: by call, as far as the table of calls tells.
    let Some(table) = scene.table("syscall") else { return };
    let (time_ns, number) = calls(table, &TRANSFERS);
    let rate = float(number) / seconds;
    if rate >= thresholds.small_io_per_second && time_ns / scene.duration_ns() >= thresholds.wait_share {
        small(scene, "reads and writes", rate, 0, "files or sockets", time_ns, findings);
    }
}

fn small(scene: &Scene<'_>, what: &str, rate: f64, mean: u64, of: &str, spent: f64, findings: &mut Vec<Finding>) {
    let site = caller(scene, |name| TRANSFERS.contains(&name) || ["vfs_read", "vfs_write"].contains(&name));
    let who = site.as_ref().map_or_else(|| "the target".to_owned(), |site| format!("`{}`", site.function));
    // The way to the kernel and back costs about as much again as what is timed there, and goes too.
    let on_cpu = site.as_ref().and_then(|site| {
        let (_, share) = scene.site(Origin::Cpu, |frames| frames.iter().any(|frame| frame.name == site.function))?;
        Some(share * scene.cpus().unwrap_or(0.0).min(1.0))
    });
    let effect = (spent / scene.duration_ns()).max(on_cpu.unwrap_or(0.0)).min(1.0);
    // What waits for the disk is no matter of calls.
    if scene.waited("disk") > spent * DISK_PART {
        return;
    }
    let size = if mean > 0 { format!(" of {mean} bytes") } else { String::new() };
    let mut evidence = vec![format!("{rate:.0} {what} a second{size}, {} in all", time(spent))];
    evidence.extend(site.map(|site| site.stack));
    findings.push(scene.finding(
        FindingKind::File,
        format!("{who} makes {rate:.0} small {what} a second, of {of}"),
        effect,
        0.9,
        evidence,
        format!(
            "take more at once in {who}: larger buffers, one query for many rows, readv, mmap, or keep what was read"
        ),
    ));
}
