//! Go's line table to a table: how far the return address is above the stack pointer, at every address.
//!
//! A Go program that is stripped has no call-frame information of its own, only that of C that was linked into it. It
//! keeps frame pointers, but functions that call nobody and need no frame have none: by frame pointers their callers
//! would be missing.

use profiler_common::unwind::{Base, PAGE_SHIFT, Packed, Rule, Saved, Special, rule_of, start_of};

use super::compile::{Compiled, MAX_ROWS, MAX_SPAN};
use super::rules::Rules;
use super::table::{Table, TableBuilder};
use crate::process::{GoCode, LineTable};

/// Adds Go's frames to what was made of call-frame information; `None` when there are none that can be read.
pub(super) fn add(lines: &mut LineTable<'_>, compiled: &mut Compiled, rules: &mut Rules) -> Option<()> {
    let code = lines.code().filter(|code| code.end - code.start <= MAX_SPAN)?;
    let mut builder = TableBuilder::default();
    each_row(&compiled.table, |start, end, rule| {
        if end <= code.start || start >= code.end {
            builder.add(start, end, rule);
        }
    });
    let (mut rows, mut done) = (0, code.start);
    // A table that is damaged in the middle is good up to there.
    let _ = lines.each_frame(|start, end, go| {
        let start = start.max(done);
        if start < end && end <= code.end && rows < MAX_ROWS {
            builder.add(start, end, pack(go, rules));
            (rows, done) = (rows + 1, end);
        }
    });
    (rows > 0).then(|| {
        compiled.table = builder.build();
        compiled.section = ".gopclntab";
        compiled.kinds.insert("by Go's line table", rows);
    })
}

fn pack(go: GoCode, rules: &mut Rules) -> Packed {
    match go {
        GoCode::Root => Packed::special(Special::End),
        GoCode::SignalReturn => Packed::special(Special::Signal),
        GoCode::Unknown => Packed::special(Special::None),
        GoCode::OtherStack => Packed::special(Special::OtherStack),
        GoCode::Goroutine { thread, current, frame_pointer, resumes } => {
            let rule = Rule::goroutine(thread, current, frame_pointer, resumes);
            // Where there is no room for it, the chain ends at the switch.
            rules.pack(rule).unwrap_or(Packed::special(Special::End))
        }
        GoCode::Depth(depth) => {
            let Some(offset) = i32::try_from(depth).ok().and_then(|depth| depth.checked_add(8)) else {
                return Packed::special(Special::Bad);
            };
            let mut rule = Rule::new(Base::Rsp, offset);
            // A function with a frame keeps its caller's frame pointer right below the return address.
            if depth > 0 {
                (rule.rbp, rule.rbp_offset) = (Saved::AtCfa as u8, -16);
            }
            rules.pack(rule).unwrap_or(Packed::special(Special::None))
        }
    }
}

/// The ranges of a table and their rules, by address.
fn each_row(table: &Table, mut visit: impl FnMut(u64, u64, Packed)) {
    for (number, page) in table.pages.iter().enumerate() {
        let page_start = (table.first_page + number as u64) << PAGE_SHIFT;
        let rows = table.rows.get(page.first_row as usize..).unwrap_or_default();
        let rows = rows.get(..usize::from(page.rows)).unwrap_or_default();
        for (index, &row) in rows.iter().enumerate() {
            let start = page_start + u64::from(start_of(row));
            let next = rows.get(index + 1).map_or(1 << PAGE_SHIFT, |&next| u64::from(start_of(next)));
            visit(start, page_start + next, rule_of(row));
        }
    }
}
