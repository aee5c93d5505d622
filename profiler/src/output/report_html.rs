//! `report.html`: one page that needs nothing else: no other file, no network, no server.
//!
//! The page is a fixed text (`report_html/page.html`) with the report and the stacks as JSON in it; its script makes text
//! nodes of them, never markup. Its style and much of its script are also those of the daemon's page.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use profiler_common::event::Origin;
use serde::Serialize;

use super::flamegraph::CPU_NS;
use super::folded::Folded;
use super::numbers::{duration, seconds};
use super::report_json;
use crate::profile::{Capture, Index, Profile, Report, Severity};

/// The page, with marks for what is put in.
const PAGE: &str = include_str!("report_html/page.html");
/// What it looks like, and the mark for it.
const STYLE: (&str, &str) = ("@style@", include_str!("report_html/style.css"));
/// What its script shares, and the mark for it.
const PARTS: (&str, &str) = ("@parts@", include_str!("report_html/parts.js"));
/// Stands for the title.
const TITLE: &str = "@title@";
/// Stands for the data.
const DATA: &str = "@data@";
/// Most nodes of one flamegraph: browsers draw as many at once. The smallest are added up beyond.
const MAX_NODES: usize = 60_000;

/// Numbers that a node is.
const NODE: usize = 3;
/// Frames of a stack that are shown: scripts in browsers cannot go much deeper.
const MAX_DEPTH: usize = 2000;

/// What the page shows.
#[derive(Serialize)]
struct Data<'a, R> {
    summary: [String; 3],
    report: R,
    /// In the order of the origins, what they were made of together last.
    flames: Vec<Flame<'a>>,
}

/// One flamegraph.
#[derive(Serialize)]
struct Flame<'a> {
    name: &'a str,
    unit: &'a str,
    total: u64,
    frames: Vec<String>,
    /// Number of the frame, value, and the nodes above it, flat: `[frame, value, children, ...]`, depth first.
    nodes: Vec<u64>,
    /// Value that is in no node, since it was too little for one.
    left_out: u64,
}

/// Writes the page.
///
/// # Errors
///
/// When `writer` fails.
pub fn write(capture: &Capture, index: &Index, report: &Report, writer: &mut impl Write) -> io::Result<()> {
    let data =
        Data { summary: summary(index, report), report: report_json::document(index, report), flames: flames(capture) };
    // In a script element nothing but `</` and `<!--` ends or changes the text.
    let data = serde_json::to_string(&data).map_err(io::Error::other)?.replace('<', "\\u003c");
    let title = super::flamegraph::escape(&super::folded::clean(&index.target.description));
    let page = with_parts(PAGE);
    let (front, rest) = page.split_once(TITLE).unwrap_or((&page, ""));
    let (middle, back) = rest.split_once(DATA).unwrap_or((rest, ""));
    for part in [front, &title, middle, &data, back] {
        writer.write_all(part.as_bytes())?;
    }
    Ok(())
}

/// A page with the style and the script that pages share, in the places that `@style@` and `@parts@` mark.
#[must_use]
pub fn with_parts(page: &str) -> String {
    [STYLE, PARTS].iter().fold(page.to_owned(), |page, (mark, text)| page.replacen(mark, text, 1))
}

/// Writes the flamegraphs of a capture as JSON, as the page has them. `origin`: only that one.
///
/// # Errors
///
/// When `writer` fails.
pub fn write_flames(capture: &Capture, origin: Option<&str>, writer: &mut impl Write) -> io::Result<()> {
    #[derive(Serialize)]
    struct Flames<'a> {
        started_at_ns: u64,
        duration_ns: u64,
        flames: Vec<Flame<'a>>,
    }
    let mut flames = flames(capture);
    flames.retain(|flame| origin.is_none_or(|origin| flame.name == origin));
    let Index { started_at_ns, duration_ns, .. } = capture.index;
    serde_json::to_writer(writer, &Flames { started_at_ns, duration_ns, flames }).map_err(io::Error::other)
}

/// What was recorded, where the time went, and what is worst: a sentence each.
fn summary(index: &Index, report: &Report) -> [String; 3] {
    let recorded = format!(
        "{} was recorded for {}{}.",
        index.target.description,
        seconds(index.duration_ns),
        super::cpus(index, Origin::Cpu.row().name)
            .map_or_else(String::new, |cpus| format!(" and used {cpus:.2} of {} CPUs", index.host.cpus)),
    );
    let went = match report.ledger.as_ref().map(|ledger| &ledger.total) {
        Some(total) if total.wall_ns > 0 => {
            let mut parts: Vec<(&str, u64)> =
                total.waits.iter().map(|(reason, &time)| (reason.as_str(), time)).collect();
            parts.push(("running", total.cpu_ns));
            parts.sort_by_key(|&(_, time)| std::cmp::Reverse(time));
            let shares = parts
                .iter()
                .take(3)
                .map(|(name, time)| format!("{name} {}", super::numbers::percent(*time, total.wall_ns)));
            format!(
                "Of {} of its threads' time most was {}.",
                duration(total.wall_ns),
                shares.collect::<Vec<_>>().join(", ")
            )
        }
        _ => match report.hotspots.iter().find(|hotspot| hotspot.kind != "marker") {
            Some(top) => format!("Most is in {}: {:.1} % of {}.", top.function, top.self_share * 100.0, top.origin),
            None => "There are no samples.".to_owned(),
        },
    };
    let worst = report.findings.iter().find(|finding| finding.severity > Severity::Info);
    let found = worst.map_or_else(
        || "Nothing was found that costs much of the wall time.".to_owned(),
        |finding| format!("What costs most: {}.", finding.title.replace('`', "")),
    );
    [recorded, went, found]
}

fn flames(capture: &Capture) -> Vec<Flame<'_>> {
    let of = |origin| capture.profiles.iter().find(|profile: &&Profile| profile.origin == origin);
    let mut flames: Vec<Flame<'_>> = capture
        .profiles
        .iter()
        .map(|profile| {
            let row = profile.origin.row();
            flame(row.name, row.unit, Folded::new(profile))
        })
        .collect();
    if let (Some(cpu), Some(offcpu)) = (of(Origin::Cpu), of(Origin::OffCpu)) {
        let folded = Folded::of(&[(cpu, CPU_NS), (offcpu, offcpu.origin.row().primary)]);
        flames.push(flame("wall", "ns", folded));
    }
    flames
}

/// A node while the tree is built.
#[derive(Default)]
struct Node {
    value: u64,
    children: BTreeMap<u32, Node>,
}

fn flame<'a>(name: &'a str, unit: &'a str, folded: Folded) -> Flame<'a> {
    let mut root = Node::default();
    for (stack, value) in &folded.stacks {
        root.value += value;
        let mut node = &mut root;
        for frame in stack.iter().take(MAX_DEPTH) {
            node = node.children.entry(*frame).or_default();
            node.value += value;
        }
    }
    // The smallest value that leaves no more nodes than can be drawn.
    let mut values = Vec::new();
    collect(&root, &mut values);
    values.sort_unstable_by_key(|&value| std::cmp::Reverse(value));
    let least = values.get(MAX_NODES).map_or(0, |value| value + 1);
    let (mut nodes, mut left_out) = (Vec::new(), 0);
    flatten(&root, least, &mut nodes, &mut left_out);
    // A profile that was just made has frames that no stack has any more; one that was read back has none.
    let used: BTreeSet<u64> = nodes.iter().copied().step_by(NODE).collect();
    let numbers: BTreeMap<u64, u64> = used.iter().copied().zip(0..).collect();
    for frame in nodes.iter_mut().step_by(NODE) {
        *frame = numbers[frame];
    }
    let text = |frame: &u64| usize::try_from(*frame).ok().and_then(|frame| folded.frames.get(frame)).cloned();
    Flame { name, unit, total: root.value, frames: used.iter().filter_map(text).collect(), nodes, left_out }
}

fn collect(node: &Node, values: &mut Vec<u64>) {
    for child in node.children.values() {
        values.push(child.value);
        collect(child, values);
    }
}

fn flatten(node: &Node, least: u64, nodes: &mut Vec<u64>, left_out: &mut u64) {
    for (&frame, child) in &node.children {
        if child.value < least {
            *left_out += child.value;
            continue;
        }
        let kept = child.children.values().filter(|grandchild| grandchild.value >= least).count();
        nodes.extend([u64::from(frame), child.value, kept as u64]);
        flatten(child, least, nodes, left_out);
    }
}
