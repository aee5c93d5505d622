//! Time on the CPUs: hot functions, hot kinds of function, the kernel's part, a busy host.

use std::collections::BTreeMap;

use profiler_common::event::Origin;

use super::scene::{Scene, SceneFrame, float, percent};
use crate::profile::{Column, Finding, FindingKind};

pub(super) fn rules(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    hot_kinds(scene, findings);
    hot_functions(scene, findings);
    busy_host(scene, findings);
}

/// The part of wall time in which something runs, at most all of it.
fn busy(scene: &Scene<'_>) -> f64 {
    scene.cpus().unwrap_or(0.0).min(1.0)
}

/// Kinds of function, by the table of patterns.
fn hot_kinds(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let Some(profile) = scene.profile(Origin::Cpu) else { return };
    let kind_of = |frames: &[&SceneFrame]| scene.pattern(frames).map(|pattern| pattern.kind.as_str());
    let mut kinds: BTreeMap<&str, _> = BTreeMap::new();
    for pattern in &scene.rules.patterns {
        kinds.entry(pattern.kind.as_str()).or_insert(pattern);
    }
    for (kind, pattern) in kinds {
        let Some((site, share)) = scene.site(Origin::Cpu, |frames| kind_of(frames) == Some(kind)) else { continue };
        let samples = share * float(profile.totals()[0]);
        if share < scene.rules.thresholds.function_share || samples < float(scene.rules.thresholds.least_samples) {
            continue;
        }
        findings.push(scene.finding(
            pattern.finding,
            format!("{kind} takes {} of the CPU time, most of it in `{}`", percent(share), site.function),
            share * busy(scene),
            0.9,
            vec![
                format!("{} of the samples on the CPU are in functions of this kind", percent(share)),
                format!("{} of these are below `{}`: {}", percent(site.share), site.function, site.stack),
            ],
            pattern.advice.replace("{function}", &format!("`{}`", site.function)),
        ));
    }
}

/// Functions that are of no kind that is known.
fn hot_functions(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let cpu = Origin::Cpu.row().name;
    let least = scene.rules.thresholds.least_samples;
    let mine = scene
        .report
        .hotspots
        .iter()
        .filter(|hotspot| hotspot.origin == cpu && hotspot.kind != "marker" && hotspot.self_value >= least);
    for hotspot in mine.filter(|hotspot| hotspot.self_share >= scene.rules.thresholds.function_share) {
        let suffix = if hotspot.kind == "kernel" { "_[k]" } else { "" };
        if scene.has_pattern(&format!("{}{suffix}", hotspot.function)) {
            continue;
        }
        let callers = scene.report.callgraph.edges.iter().filter(|edge| {
            edge.origin == cpu && edge.callee == hotspot.function && edge.callee_object == hotspot.object
        });
        let callers: Vec<String> =
            callers.take(3).map(|edge| format!("`{}` ({})", edge.caller, percent(edge.share))).collect();
        let mut evidence = vec![format!(
            "{} samples of its own, {} with all it calls",
            hotspot.self_value,
            percent(hotspot.total_share)
        )];
        if !callers.is_empty() {
            evidence.push(format!("called by {}", callers.join(", ")));
        }
        let place = if hotspot.file.is_empty() { &hotspot.object } else { &hotspot.file };
        let advice = if hotspot.kind == "kernel" {
            format!("call the kernel less for what `{}` does: the call graph shows who does", hotspot.function)
        } else {
            format!("make `{}` ({place}) cheaper, or call it less", hotspot.function)
        };
        findings.push(scene.finding(
            FindingKind::Cpu,
            format!("`{}` takes {} of the CPU time by itself", hotspot.function, percent(hotspot.self_share)),
            hotspot.self_share * busy(scene),
            0.7,
            evidence,
            advice,
        ));
    }
}

/// A host whose CPUs are all in use; that it costs something is told by those who wait for one.
fn busy_host(scene: &Scene<'_>, findings: &mut Vec<Finding>) {
    let busy = [Column::HostCpuUser, Column::HostCpuSystem, Column::HostCpuIrq].map(|column| scene.sum(column));
    let idle = [Column::HostCpuIdle, Column::HostCpuIowait, Column::HostCpuSteal].map(|column| scene.sum(column));
    let sum = |figures: [Option<f64>; 3]| figures.iter().flatten().sum::<f64>();
    let (busy, idle) = (sum(busy), sum(idle));
    if busy + idle <= 0.0 || busy / (busy + idle) < scene.rules.thresholds.cpu_utilization {
        return;
    }
    let target = [Column::TargetCpuUser, Column::TargetCpuSystem].iter().filter_map(|&column| scene.sum(column));
    let own = target.sum::<f64>() / (busy + idle);
    findings.push(scene.finding(
        FindingKind::Cpu,
        format!("the host's CPUs are busy {} of the time", percent(busy / (busy + idle))),
        0.0,
        0.9,
        vec![format!(
            "{} of all CPU time is the target's, of {} CPUs",
            percent(own),
            float(scene.capture.index.host.cpus.into())
        )],
        "move other work to other hosts, or give this one more CPUs".to_owned(),
    ));
}
