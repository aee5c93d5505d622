//! The requests to block devices that took long.

use std::io::{self, Write};

use super::super::numbers::{bytes, count, duration};
use super::{ROWS, plural};
use crate::output::markdown::{code, name, prose};
use crate::profile::{SlowRequests, SlowShare};

/// Frames of a stack in its cell.
const FRAMES: usize = 4;

/// Suffix of a frame of the kernel: nearly all requests are made in the same few of its functions.
const KERNEL: &str = "_[k]";

/// The frames of a stack that say most, leaf first: those of the program, if it has any.
fn shown(stack: &[String]) -> String {
    let of_program = stack.iter().position(|frame| !frame.ends_with(KERNEL)).unwrap_or(0);
    stack[of_program..].iter().take(FRAMES).map(String::as_str).collect::<Vec<_>>().join(" < ")
}

/// Writes the section: the longest of those that were kept.
pub(super) fn write(all: &SlowRequests, slow: &[SlowShare], writer: &mut impl Write) -> io::Result<()> {
    if all.is_empty() {
        return Ok(());
    }
    writeln!(writer, "### Requests of {} or more\n", duration(all.threshold_ns))?;
    let number = (slow.len() as u64).saturating_add(all.missing);
    if slow.is_empty() {
        return writeln!(writer, "There were none.\n");
    }
    write!(writer, "There were {}", plural(number, "request"))?;
    if all.missing > 0 {
        write!(writer, ", of which {} were not kept, most of them the last", count(all.missing))?;
    }
    let of_these = if all.missing > 0 { " of the others" } else { "" };
    writeln!(writer, ". The longest{of_these}:\n")?;
    writeln!(
        writer,
        "| total | queued | on the device | wake-up | at | what | bytes | device | file | process | stack |"
    )?;
    writeln!(writer, "|--:|--:|--:|--:|--:|:--|--:|:--|:--|:--|:--|")?;
    for SlowShare { request, stack } in slow.iter().take(ROWS) {
        writeln!(
            writer,
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            duration(request.total_ns()),
            duration(request.queue_ns),
            duration(request.device_ns),
            request.wakeup_ns.map_or_else(|| "-".to_owned(), duration),
            duration(request.start_ns),
            prose(&request.operation),
            bytes(request.bytes),
            code(&request.device),
            code(&request.file),
            code(&format!("{} ({})", name(&request.process), request.pid)),
            code(&shown(stack)),
        )?;
    }
    if slow.len() > ROWS {
        writeln!(writer, "\nMore: see report.json.")?;
    }
    writeln!(writer)
}
