//! The report's part about the timeline.

use std::io::{self, Write};

use super::super::timeline::PANELS;
use super::super::timeline_csv;
use super::super::timeline_svg;
use crate::profile::Timeline;

/// Writes least, mean, largest and last values of what there is.
pub(super) fn write(timeline: &Timeline, writer: &mut impl Write) -> io::Result<()> {
    if timeline.is_empty() {
        return Ok(());
    }
    writeln!(writer, "## Timeline\n\n| | | least | mean | most | last |\n|:--|:--|--:|--:|--:|--:|")?;
    for panel in &PANELS {
        for series in panel.series.iter().filter(|series| series.is_main) {
            let Some(extremes) = series.extremes(timeline) else { continue };
            write!(writer, "| {} | {} |", panel.title, series.label)?;
            for value in [extremes.least, extremes.mean, extremes.most, extremes.last] {
                write!(writer, " {} |", series.measure.text(value))?;
            }
            writeln!(writer)?;
        }
    }
    let (slices, plural) = (timeline.len(), if timeline.len() == 1 { "" } else { "s" });
    writeln!(
        writer,
        "\nBy {slices} slice{plural}: [{0}]({0}); all figures: {1}.\n",
        timeline_svg::FILE,
        timeline_csv::FILE
    )
}
