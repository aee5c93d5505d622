//! Callgrind's format: self values by line of a function, and inclusive values by call.
//!
//! A profile of stacks does not know how often a function was called: `calls=` has the events of the stacks with the call.
//!
//! Source: "Callgrind Format Specification" of Valgrind's manual, version 1.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Write};

use profiler_common::event::COLUMNS;

use super::plain;
use crate::profile::{FrameKind, Index, NamedFrame, Profile};

/// A function: object, source file, name.
type Function = (String, String, String);
type Values = [u64; COLUMNS];

#[derive(Default)]
struct Costs {
    /// By line.
    own: BTreeMap<u32, Values>,
    /// By line of the call, function called and its line.
    calls: BTreeMap<(u32, Function, u32), Values>,
}

pub(super) fn write(profile: &Profile, index: &Index, writer: &mut impl Write) -> io::Result<()> {
    let columns = profile.origin.row().columns;
    let functions = costs(profile);
    writeln!(writer, "# callgrind format\nversion: 1\ncreator: profiler {}", plain(&index.profiler_version))?;
    writeln!(writer, "cmd: {}\npositions: line", plain(&index.target.description))?;
    let events: Vec<String> = columns.iter().map(|(name, unit)| format!("{name}_{unit}")).collect();
    writeln!(writer, "events: {}\nsummary: {}\n", events.join(" "), join(&profile.totals(), columns.len()))?;
    let mut names = Names::default();
    for ((object, file, name), costs) in &functions {
        writeln!(writer, "ob={}", names.object(object))?;
        writeln!(writer, "fl={}", names.file(file))?;
        writeln!(writer, "fn={}", names.function(name))?;
        for (line, values) in &costs.own {
            writeln!(writer, "{line} {}", join(values, columns.len()))?;
        }
        for ((line, (object, file, name), at), values) in &costs.calls {
            writeln!(writer, "cob={}", names.object(object))?;
            writeln!(writer, "cfi={}", names.file(file))?;
            writeln!(writer, "cfn={}", names.function(name))?;
            writeln!(writer, "calls={} {at}\n{line} {}", values[0].max(1), join(values, columns.len()))?;
        }
        writeln!(writer)?;
    }
    Ok(())
}

fn costs(profile: &Profile) -> BTreeMap<Function, Costs> {
    let mut functions: BTreeMap<Function, Costs> = BTreeMap::new();
    for sample in &profile.samples {
        // A marker says that the caller is not known: that is no call.
        let frames: Vec<_> = profile.frames(sample.stack).filter(|frame| frame.kind != FrameKind::Marker).collect();
        let mut counted = BTreeSet::new();
        for (depth, frame) in frames.iter().enumerate() {
            let costs = functions.entry(function(frame)).or_default();
            match depth.checked_sub(1).map(|callee| &frames[callee]) {
                None => add(costs.own.entry(frame.line).or_default(), &sample.values),
                // A recursive call counts once a stack.
                Some(callee) => {
                    let call = (frame.line, function(callee), callee.line);
                    if counted.insert((function(frame), call.clone())) {
                        add(costs.calls.entry(call).or_default(), &sample.values);
                    }
                }
            }
        }
    }
    functions
}

fn function(frame: &NamedFrame<'_>) -> Function {
    let unknown = |text: &str| if text.is_empty() { "???".to_owned() } else { plain(text) };
    (unknown(frame.object.map_or("", |object| object.path.as_str())), unknown(frame.file), unknown(&frame.name))
}

fn add(sums: &mut Values, values: &Values) {
    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
}

fn join(values: &Values, columns: usize) -> String {
    values[..columns].iter().map(u64::to_string).collect::<Vec<_>>().join(" ")
}

/// Names in their short form: `(number) name` the first time, `(number)` from then on.
#[derive(Default)]
struct Names {
    objects: HashMap<String, usize>,
    files: HashMap<String, usize>,
    functions: HashMap<String, usize>,
}

impl Names {
    fn object(&mut self, name: &str) -> String {
        short(&mut self.objects, name)
    }

    fn file(&mut self, name: &str) -> String {
        short(&mut self.files, name)
    }

    fn function(&mut self, name: &str) -> String {
        short(&mut self.functions, name)
    }
}

fn short(names: &mut HashMap<String, usize>, name: &str) -> String {
    let next = names.len() + 1;
    match names.get(name) {
        Some(number) => format!("({number})"),
        None => {
            names.insert(name.to_owned(), next);
            format!("({next}) {name}")
        }
    }
}
