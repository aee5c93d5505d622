//! pprof of whoever made it: its sample types become the columns of an origin.

use profiler_common::event::Origin;
use prost::Message as _;

use super::{ImportError, Imported, capture};
use crate::output::pprof::{decode_message, expand};
use crate::output::pprof_proto as proto;

pub(super) fn read(bytes: &[u8], name: &str) -> Result<Imported, ImportError> {
    let expanded = expand(bytes)?;
    let mut message = proto::Profile::decode(&*expanded).map_err(crate::output::pprof::DecodeError::from)?;
    let started_at_ns = u64::try_from(message.time_nanos).unwrap_or(0);
    let period = u64::try_from(message.period).unwrap_or(0);
    let text = |message: &proto::Profile, number: i64| {
        let string = usize::try_from(number).ok().and_then(|number| message.string_table.get(number));
        string.cloned().unwrap_or_default()
    };
    let of_time = message.period_type.is_some_and(|kind| text(&message, kind.unit) == "nanoseconds");
    let rate_hz = if of_time && period > 0 { 1_000_000_000 / period } else { 0 };
    if decode_message(&message).is_err() {
        adopt(&mut message, if of_time { period } else { 0 })?;
    }
    let profile = decode_message(&message)?;
    if profile.samples.is_empty() {
        return Err(ImportError::Empty);
    }
    let row = profile.origin.row();
    let length = u64::try_from(message.duration_nanos).unwrap_or(0);
    // Without a length of its own, as long as its samples would take on one CPU.
    let duration_ns = if length > 0 { length } else { profile.totals()[1].max(1) };
    let capture = capture(profile, name, row.name.to_owned(), started_at_ns, duration_ns, rate_hz);
    Ok(Imported { capture, lengths_ns: Vec::new(), sliced: Vec::new() })
}

/// Makes the values of an origin's columns of a sample's.
type Columns = Box<dyn Fn(&[i64]) -> Vec<i64>>;

/// Gives a message the columns of an origin. `period_ns`: between two samples; 0 when that is not known.
fn adopt(message: &mut proto::Profile, period_ns: u64) -> Result<(), ImportError> {
    let strings = &message.string_table;
    let text = |number: i64| usize::try_from(number).ok().and_then(|number| strings.get(number)).map_or("", |s| s);
    let types: Vec<(String, String)> =
        message.sample_type.iter().map(|kind| (text(kind.r#type).to_owned(), text(kind.unit).to_owned())).collect();
    let place =
        |unit: &str, names: &[&str]| types.iter().position(|(name, of)| of == unit && names.contains(&name.as_str()));
    let count = place("count", &["samples", "sample", "count", "cpu"]);
    let time = place("nanoseconds", &["cpu", "time", "wall", "samples"]);
    let (contentions, delay) = (place("count", &["contentions"]), place("nanoseconds", &["delay"]));
    let period = i64::try_from(period_ns).unwrap_or(0);
    let of = |values: &[i64], place: usize| values.get(place).copied().unwrap_or(0);
    let (origin, columns): (Origin, Columns) = match (count, time, contentions, delay) {
        (_, _, Some(contentions), Some(delay)) => {
            (Origin::OffCpu, Box::new(move |v| vec![of(v, contentions), of(v, delay), of(v, contentions), 0]))
        }
        (Some(count), Some(time), ..) => (Origin::Cpu, Box::new(move |v| vec![of(v, count), of(v, time)])),
        (Some(count), None, ..) => {
            (Origin::Cpu, Box::new(move |v| vec![of(v, count), of(v, count).saturating_mul(period)]))
        }
        (None, Some(time), ..) if period > 0 => {
            (Origin::Cpu, Box::new(move |v| vec![of(v, time) / period, of(v, time)]))
        }
        _ => {
            let types: Vec<_> = types.iter().map(|(name, unit)| format!("{name}/{unit}")).collect();
            return Err(ImportError::Types(types.join(", ")));
        }
    };
    for sample in &mut message.sample {
        sample.value = columns(&sample.value);
    }
    drop(columns);
    let mut number = |text: &str| {
        message.string_table.push(text.to_owned());
        i64::try_from(message.string_table.len() - 1).unwrap_or(0)
    };
    let types =
        origin.row().columns.iter().map(|(name, unit)| proto::ValueType { r#type: number(name), unit: number(unit) });
    message.sample_type = types.collect();
    Ok(())
}
