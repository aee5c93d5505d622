//! CSV (RFC 4180): one row a sample, with who it is of, its values and its stack.

use std::io::{self, Write};

use super::plain;
use crate::output::folded::clean;
use crate::profile::Profile;

pub(super) fn write(profile: &Profile, writer: &mut impl Write) -> io::Result<()> {
    let row = profile.origin.row();
    write!(writer, "pid,tid,process,thread,cgroup,reason")?;
    for (name, unit) in row.columns {
        write!(writer, ",{name}_{unit}")?;
    }
    writeln!(writer, ",stack")?;
    for sample in &profile.samples {
        let thread = &profile.threads[sample.thread as usize];
        let reason = profile.origin.reason_name(sample.reason).unwrap_or_default();
        let names = [&thread.process_name, &thread.thread_name, &thread.cgroup].map(|name| quoted(&plain(name)));
        write!(writer, "{},{},{},{}", thread.pid, thread.tid, names.join(","), quoted(reason))?;
        for value in sample.values.iter().take(row.columns.len()) {
            write!(writer, ",{value}")?;
        }
        let mut frames: Vec<String> =
            profile.frames(sample.stack).map(|frame| format!("{}{}", clean(&frame.name), frame.suffix())).collect();
        frames.reverse();
        writeln!(writer, ",{}", quoted(&frames.join(";")))?;
    }
    Ok(())
}

/// A field: in quotes where it must be, and never one that a spreadsheet takes for a formula.
fn quoted(text: &str) -> String {
    // Source: OWASP, "CSV Injection".
    let text = if text.starts_with(['=', '+', '-', '@']) { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn fields_stay_fields() {
        assert_eq!(quoted("main"), "main");
        assert_eq!(quoted("f<a, b>"), "\"f<a, b>\"");
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
        assert_eq!(quoted("=cmd"), "'=cmd");
    }
}
