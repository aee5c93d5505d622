//! Memory: pages that come back from disk, swapping, pressure, and a resident set that only grows.

use profiler_common::event::Origin;

use super::scene::{Scene, SceneFrame, float, percent, time};
use crate::analyze::memory::size;
use crate::profile::{Column, Finding, FindingKind, LeakVerdict, Severity};

/// Growth of the resident memory over the recording, as a part of what it was, from which on it is told.
const GROWTH: f64 = 0.2;
/// Slices that a growth is judged by, at least.
const LEAST_SLICES: usize = 5;
/// Confidence from which on a leak is more than info.
const SURE: f64 = 0.9;

pub(super) fn rules(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    faults(scene, findings);
    pressure(scene, findings);
    swap(scene, findings);
    fragmentation(scene, findings);
    if !leak(scene, findings) {
        growth(scene, findings);
    }
}

/// A site whose blocks are not freed: nobody waits for it until there is no memory left, so that its severity is by how sure it is.
fn leak(scene: &Scene<'_>, findings: &mut Vec<Finding>) -> bool {
    let mut leaks = scene.report.leaks.iter().filter(|leak| leak.verdict == LeakVerdict::Leak);
    let Some(first) = leaks.next() else { return false };
    let function = first.site.first().map_or("[unknown]", String::as_str);
    let [low, high] = first.interval.map(|rate| rate / 1024.0);
    let mut finding = scene.finding(
        FindingKind::Memory,
        format!("`{function}` leaks {:.1} KiB a second", first.growth_bytes_per_s / 1024.0),
        0.0,
        first.confidence,
        vec![
            format!(
                "{low:.1} to {high:.1} KiB a second; {} of {} bytes in use",
                first.live_bytes, first.allocated_bytes
            ),
            first.reason.clone(),
            first.site.iter().rev().map(String::as_str).collect::<Vec<_>>().join(" > "),
        ],
        format!("free what `{function}` allocates, or bound what keeps it; `live.svg` has all that is in use"),
    );
    if first.confidence >= SURE {
        finding.severity = Severity::Medium;
    }
    findings.push(finding);
    true
}

/// Pages that were taken away and are read again.
fn faults(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(profile) = scene.profile(Origin::OffCpu) else { return };
    let faults = ["handle_mm_fault", "do_swap_page", "filemap_fault", "asm_exc_page_fault", "exc_page_fault"];
    let is_fault = |frames: &[&SceneFrame]| {
        let is_wait = frames.first().is_some_and(|frame| frame.name == "[fault]" || frame.name == "[disk]");
        is_wait && frames.iter().any(|frame| faults.contains(&frame.plain()))
    };
    let Some((site, part)) = scene.site(Origin::OffCpu, is_fault) else { return };
    let waits = part * float(profile.totals()[profile.origin.row().primary]);
    let effect = (waits / scene.duration_ns()).min(1.0);
    if effect < scene.rules.thresholds.wait_share {
        return;
    }
    let major = scene.sum(Column::TargetMajorFaults).unwrap_or(0.0);
    findings.push(scene.finding(
        FindingKind::Memory,
        format!("`{}` waits for pages that are read from disk again, {} of the time", site.function, percent(effect)),
        effect,
        0.95,
        vec![format!("{major:.0} major faults, {} waiting in page faults", time(waits)), site.stack],
        format!(
            "give it more memory (memory.max, the container's limit), or touch less of it at a time in `{}`",
            site.function
        ),
    ));
}

fn pressure(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let columns = [
        (Column::TargetPressureMemorySome, "the target's tasks"),
        (Column::HostPressureMemorySome, "tasks of the host"),
    ];
    let found = columns.into_iter().find_map(|(column, whose)| {
        let part = (scene.sum(column)? / scene.duration_ns()).min(1.0);
        (part >= scene.rules.thresholds.memory_pressure).then_some((part, whose, column))
    });
    let Some((part, whose, column)) = found else { return };
    let effect = if column == Column::TargetPressureMemorySome { part } else { 0.0 };
    findings.push(scene.finding(
        FindingKind::Memory,
        format!("{whose} wait for memory {} of the time", percent(part)),
        effect,
        0.8,
        vec![format!("{} by {}", percent(part), column.name())],
        "raise the memory limit, or use less: `record -e alloc` shows who allocates".to_owned(),
    ));
}

fn swap(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let timeline = &scene.capture.index.timeline;
    let Some(most) = timeline.column(Column::TargetSwap).and_then(|figures| figures.iter().flatten().max()) else {
        return;
    };
    if *most == 0 {
        return;
    }
    findings.push(scene.finding(
        FindingKind::System,
        format!("{} MiB of the target are swapped out", most >> 20),
        0.0,
        0.9,
        vec![format!("at most {most} bytes")],
        "give the host more memory, or lower vm.swappiness".to_owned(),
    ));
}

/// Heap that is resident and in no block in use.
fn fragmentation(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let (Some(memory), Some(report)) = (&scene.capture.index.memory, &scene.report.memory) else { return };
    let Some(part) = report.fragmentation.filter(|&part| part > scene.rules.thresholds.fragmentation) else { return };
    let heap = memory.at_end(|shares| shares.heap_bytes);
    findings.push(
        scene.finding(
            FindingKind::Memory,
            format!("{} of the heap is in no block in use", percent(part)),
            0.0,
            // Some of it may be thread's stacks, and what an allocator keeps for the next allocation.
            0.5,
            vec![format!("{} of anonymous memory are resident at the end", size(heap))],
            "see which sizes come and go in the table of sizes; an allocator that gives memory back sooner \
         (`MALLOC_ARENA_MAX=2`, `malloc_trim`, jemalloc's `dirty_decay_ms`), or pools for blocks that live long"
                .to_owned(),
        ),
    );
}

/// Resident memory that was never less than before and is much more in the end.
fn growth(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(figures) = scene.capture.index.timeline.column(Column::TargetRss) else { return };
    let figures: Vec<f64> = figures.iter().flatten().map(|&figure| float(figure)).collect();
    // What a program begins with is no leak.
    let later = &figures[figures.len() / 3..];
    let (Some(first), Some(last)) = (later.first(), later.last()) else { return };
    let grows = later.windows(2).filter(|pair| pair[1] > pair[0]).count();
    if later.len() < LEAST_SLICES || *first <= 0.0 || last / first < 1.0 + GROWTH || grows * 10 < later.len() * 7 {
        return;
    }
    findings.push(scene.finding(
        FindingKind::Memory,
        format!("resident memory grows: {} more in the last two thirds of the recording", percent(last / first - 1.0)),
        0.0,
        0.5,
        vec![format!(
            "from {:.1} to {:.1} MiB, in {grows} of {} slices",
            first / 1048576.0,
            last / 1048576.0,
            later.len() - 1
        )],
        "`record -e alloc` over a longer time tells a leak from a cache that fills".to_owned(),
    ));
}
