//! `timeline.csv`: a line for each slice, every column with its unit in its name, a missing figure left empty.

use std::io::{self, Write};

use crate::profile::{Column, Timeline};

/// Its name.
pub const FILE: &str = "timeline.csv";

/// Writes the slices.
///
/// # Errors
///
/// When `writer` fails.
pub fn write(timeline: &Timeline, writer: &mut impl Write) -> io::Result<()> {
    write!(writer, "start_ns,length_ns")?;
    for column in Column::ALL {
        write!(writer, ",{}", column.name())?;
    }
    writeln!(writer)?;
    let columns = Column::ALL.map(|column| timeline.column(column));
    for (slice, (start, length)) in timeline.start_ns.iter().zip(&timeline.length_ns).enumerate() {
        write!(writer, "{start},{length}")?;
        for column in columns {
            match column.and_then(|figures| figures.get(slice).copied().flatten()) {
                Some(figure) => write!(writer, ",{figure}")?,
                None => write!(writer, ",")?,
            }
        }
        writeln!(writer)?;
    }
    Ok(())
}
