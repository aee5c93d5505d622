//! The locks that were waited for.

use std::io::{self, Write};

use super::super::numbers::{count, duration, percent};
use super::ROWS;
use crate::output::markdown::{code, name, prose};
use crate::profile::{LockHolder, LockShare};

/// Writes the section.
///
/// `total`: all time that was waited for locks, ns.
pub(super) fn write(locks: &[LockShare], total: u64, writer: &mut impl Write) -> io::Result<()> {
    writeln!(writer, "### Locks\n")?;
    writeln!(
        writer,
        "Who waits for a condition, a semaphore or to be unparked may have nothing to do: those come last.\n"
    )?;
    writeln!(
        writer,
        "| time | % | waits | longest | what | waited for in | held by | gave it back in | address | process |"
    )?;
    writeln!(writer, "|--:|--:|--:|--:|:--|:--|:--|:--|:--|:--|")?;
    for lock in locks.iter().take(ROWS) {
        let (holder, function) = lock.holder.as_ref().map_or_else(Default::default, held_by);
        writeln!(
            writer,
            "| {} | {} | {} | {} | {} | {} | {holder} | {function} | {} | {} |",
            duration(lock.delay_ns),
            percent(lock.delay_ns, total),
            count(lock.waits),
            duration(lock.longest_ns),
            prose(&lock.kind),
            code(name(&lock.site)),
            code(&lock.address),
            code(&format!("{} ({})", lock.process, lock.pid)),
        )?;
    }
    if locks.len() > ROWS {
        writeln!(writer, "\nMore: see report.json.")?;
    }
    writeln!(writer)
}

/// The thread and the function.
fn held_by(holder: &LockHolder) -> (String, String) {
    if holder.pid == 0 {
        return ("an interrupt".to_owned(), String::new());
    }
    (code(&format!("{} ({})", holder.thread, holder.tid)), code(&holder.function))
}
