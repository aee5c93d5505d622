//! `iolatency.csv`: a line for each slice, device and operation with requests.

use std::io::{self, Write};

use super::folded::clean;
use crate::profile::{Histogram, IoLatency};

/// Its name.
pub const FILE: &str = "iolatency.csv";

/// The percentiles of each distribution, in thousandths; the greatest comes after them.
const PERCENTILES: [(&str, u32); 4] = [("p50", 500), ("p90", 900), ("p99", 990), ("p999", 999)];

/// Writes the lines.
///
/// # Errors
///
/// When `writer` fails.
pub fn write(latency: &IoLatency, writer: &mut impl Write) -> io::Result<()> {
    write!(writer, "start_ns,length_ns,device,operation,requests,bytes")?;
    for part in ["queue", "device", "total"] {
        for (name, _) in PERCENTILES {
            write!(writer, ",{part}_{name}_ns")?;
        }
        write!(writer, ",{part}_max_ns")?;
    }
    writeln!(writer)?;
    for cell in &latency.cells {
        let slice = cell.slice as usize;
        let at = |of: &[u64]| of.get(slice).copied().unwrap_or(0);
        let (start, length) = (at(&latency.start_ns), at(&latency.length_ns));
        let (device, operation) = (field(&cell.device), field(&cell.operation));
        write!(writer, "{start},{length},{device},{operation},{},{}", cell.requests, cell.bytes)?;
        for distribution in [&cell.queue, &cell.on_device, &cell.total] {
            write_percentiles(distribution, writer)?;
        }
        writeln!(writer)?;
    }
    Ok(())
}

fn write_percentiles(distribution: &Histogram, writer: &mut impl Write) -> io::Result<()> {
    for (_, per_mille) in PERCENTILES {
        match distribution.percentile(per_mille) {
            Some(ns) => write!(writer, ",{ns}")?,
            None => write!(writer, ",")?,
        }
    }
    if distribution.count() == 0 { write!(writer, ",") } else { write!(writer, ",{}", distribution.max) }
}

/// A name that cannot be taken for anything else in a line.
fn field(name: &str) -> String {
    clean(name).replace([',', '"'], "_")
}
