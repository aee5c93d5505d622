//! The part of the report that says where the values are by phase of the programs' work.

use std::io::{self, Write};

use crate::output::markdown::prose;
use crate::output::numbers::{percent, value};
use crate::profile::{PhaseShare, Report};

/// Values of an origin by phase; nothing where no function says one.
pub(super) fn write(origin: &str, unit: &str, total: u64, report: &Report, writer: &mut impl Write) -> io::Result<()> {
    let phases: Vec<&PhaseShare> = report.phases.iter().filter(|phase| phase.origin == origin).collect();
    if phases.is_empty() {
        return Ok(());
    }
    writeln!(writer, "### Phases\n")?;
    writeln!(writer, "By the innermost function of each stack that a rule names.\n")?;
    writeln!(writer, "| % | {} | phase | client |", prose(unit))?;
    writeln!(writer, "|--:|--:|:--|:--|")?;
    let row = |writer: &mut dyn Write, of: u64, phase: &str, client: &str| {
        writeln!(writer, "| {} | {} | {} | {} |", percent(of, total), value(of, unit), prose(phase), prose(client))
    };
    for phase in &phases {
        row(writer, phase.value, &phase.phase, &phase.client)?;
    }
    let rest = total.saturating_sub(phases.iter().map(|phase| phase.value).sum());
    if rest > 0 {
        row(writer, rest, "none of these", "")?;
    }
    writeln!(writer)
}
