//! Text as `perf script -F comm,pid,tid,time,period,event,ip,sym,dso` prints it: one block an event.
//!
//! The events of a profile have no times of their own: they are spread evenly over the recording.

use std::io::{self, Write};

use super::plain;
use crate::output::numbers::float;
use crate::profile::{FrameKind, Index, Location, NamedFrame, Profile};

/// Most events that are written: 10 million are gigabytes of text.
const MAX_EVENTS: u64 = 10_000_000;

pub(super) fn write(profile: &Profile, index: &Index, writer: &mut impl Write) -> io::Result<()> {
    let row = profile.origin.row();
    let events = profile.totals()[0];
    if events > MAX_EVENTS {
        return Err(io::Error::other(format!(
            "{events} events are too many for perf script's text, which has a block for each: export pprof or folded"
        )));
    }
    let event = index.origins.get(row.name).map(|summary| plain(&summary.event)).filter(|event| !event.is_empty());
    let event = event.unwrap_or_else(|| row.name.to_owned()).replace([' ', ':'], "-");
    // A column of time, or what the origin is of.
    let period = row.columns.iter().position(|(_, unit)| *unit == "nanoseconds").unwrap_or(row.primary);
    let step = float(index.duration_ns) / 1e9 / float(events).max(1.0);
    let mut number = 0;
    for sample in &profile.samples {
        let thread = &profile.threads[sample.thread as usize];
        let mut frames = Vec::new();
        for (location, frame) in profile.stacks[sample.stack as usize]
            .iter()
            .flat_map(|&location| profile.location_frames(location).map(move |frame| (location, frame)))
        {
            write_frame(&frame, &profile.locations[location as usize], &mut frames)?;
        }
        let count = sample.values[0];
        // perf cuts names at 15 bytes and may have spaces in them.
        let name = plain(&thread.thread_name);
        for nth in 0..count {
            let time = step * float(number);
            number += 1;
            // Together the periods are the sample's value.
            let value = sample.values[period];
            let period = value / count + u64::from(nth < value % count);
            writeln!(writer, "{name} {}/{} {time:.6}: {period:>10} {event}: ", thread.pid, thread.tid)?;
            writer.write_all(&frames)?;
            writeln!(writer)?;
        }
    }
    Ok(())
}

/// `    address symbol (object)`; an inlined function has the address of what it was inlined into.
fn write_frame(frame: &NamedFrame<'_>, location: &Location, writer: &mut Vec<u8>) -> io::Result<()> {
    let object = match (frame.kind, frame.object) {
        (FrameKind::Kernel, _) => "[kernel.kallsyms]".to_owned(),
        (FrameKind::Interpreted, _) => "[interpreted]".to_owned(),
        (_, Some(object)) => plain(&object.path),
        (_, None) => "[unknown]".to_owned(),
    };
    let object = if frame.inlined { "inlined".to_owned() } else { object };
    let name = if location.lines.is_empty() { "[unknown]".to_owned() } else { plain(&frame.name) };
    writeln!(writer, "\t{:16x} {name} ({object})", location.address)
}
