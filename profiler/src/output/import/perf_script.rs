//! The text of `perf script`: blocks of a line that tells the event and a line a frame, leaf first.
//!
//! ```text
//! comm pid/tid [cpu] seconds.micros: period event:
//!     address symbol+0xoffset (object)
//! ```
//!
//! The pid, the CPU and the period may be missing. Source: tools/perf/builtin-script.c.

use std::collections::BTreeMap;

use hashbrown::HashMap;
use profiler_common::event::{COLUMNS, Origin};

use super::{ImportError, Imported, capture};
use crate::profile::{
    FrameKind, Function, Interner, KERNEL_OBJECT, Line, Location, Object, Profile, Sample, StackId, Thread,
};

/// Most frames of a stack.
const MAX_FRAMES: usize = 1 << 12;
/// Longest line, in bytes: the longest names are those of C++ templates.
const MAX_LINE: usize = 1 << 20;
/// Most slices that the samples are divided into.
const MAX_SLICES: u64 = 64;

pub(super) fn read(bytes: &[u8], name: &str) -> Result<Imported, ImportError> {
    let mut events = Events::default();
    let text = String::from_utf8_lossy(bytes);
    for (line, number) in text.lines().zip(1..) {
        let wrong = |what| ImportError::PerfScript { line: number, what };
        if line.len() > MAX_LINE {
            return Err(wrong("the line is longer than any that perf writes"));
        }
        if line.trim().is_empty() {
            events.end();
        } else if line.starts_with('#') {
            continue;
        } else if line.starts_with([' ', '\t']) && events.open.is_some() {
            events.frame(line.trim()).map_err(wrong)?;
        } else {
            events.end();
            events.open = Some(header(line).ok_or_else(|| wrong("it does not tell an event"))?);
        }
    }
    events.end();
    events.finish(name)
}

/// An event that was begun.
struct Event {
    thread: Thread,
    time_ns: u64,
    period: u64,
    name: String,
    /// Leaf first.
    stack: Vec<u32>,
    /// Functions inlined into the next frame.
    inlined: Vec<Line>,
}

#[derive(Default)]
struct Events {
    open: Option<Event>,
    functions: Interner<Function>,
    objects: Interner<Object>,
    locations: Interner<Location>,
    stacks: Interner<Vec<u32>>,
    threads: Interner<Thread>,
    samples: HashMap<(u32, u32), [u64; COLUMNS]>,
    /// When, which stack.
    times: Vec<(u64, StackId)>,
    names: BTreeMap<String, u64>,
}

impl Events {
    fn frame(&mut self, line: &str) -> Result<(), &'static str> {
        let Some(event) = &mut self.open else { return Ok(()) };
        if event.stack.len() >= MAX_FRAMES {
            return Err("the stack is deeper than any that perf writes");
        }
        let (address, rest) = line.split_once(' ').ok_or("it does not tell a frame")?;
        let address = u64::from_str_radix(address, 16).map_err(|_| "it does not tell a frame")?;
        let (symbol, object) = split_object(rest.trim());
        let name = match symbol.rsplit_once("+0x") {
            Some((name, offset)) if offset.bytes().all(|byte| byte.is_ascii_hexdigit()) => name,
            _ => symbol,
        };
        let is_named = !name.is_empty() && name != "[unknown]";
        let mut line_of = |name: &str| Line {
            function: self.functions.intern(Function { name: name.to_owned(), file: String::new() }),
            line: 0,
        };
        if object == "inlined" {
            let line = line_of(name);
            event.inlined.push(line);
            return Ok(());
        }
        let mut lines = std::mem::take(&mut event.inlined);
        if is_named {
            lines.push(line_of(name));
        }
        let is_kernel =
            ["[kernel", "[guest.kernel"].iter().any(|start| object.starts_with(start)) || object.ends_with(".ko");
        let kind = match object {
            _ if is_kernel => FrameKind::Kernel,
            "[interpreted]" => FrameKind::Interpreted,
            object if object.starts_with("/tmp/perf-") || object.starts_with("//anon") || object == "[JIT]" => {
                FrameKind::Jit
            }
            _ => FrameKind::Native,
        };
        let path = if is_kernel { KERNEL_OBJECT } else { object };
        let path = (!path.is_empty() && path != "[unknown]" && kind != FrameKind::Interpreted).then_some(path);
        let object = path.map(|path| {
            let object = Object { path: path.to_owned(), build_id: String::new(), start: 0, end: 0, file_offset: 0 };
            self.objects.intern(object)
        });
        event.stack.push(self.locations.intern(Location { kind, object, address, lines }));
        Ok(())
    }

    fn end(&mut self) {
        let Some(event) = self.open.take() else { return };
        let stack = self.stacks.intern(event.stack);
        let thread = self.threads.intern(event.thread);
        // A clock's period is time; that of another event says nothing of time.
        let time_ns = if event.name.contains("clock") { event.period } else { 0 };
        let values = self.samples.entry((stack, thread)).or_default();
        values[0] += 1;
        values[1] = values[1].saturating_add(time_ns).min(1 << 53);
        self.times.push((event.time_ns, stack));
        *self.names.entry(event.name).or_default() += 1;
    }

    fn finish(self, name: &str) -> Result<Imported, ImportError> {
        let (Some(&first), Some(&last)) =
            (self.times.iter().map(|(time, _)| time).min(), self.times.iter().map(|(time, _)| time).max())
        else {
            return Err(ImportError::Empty);
        };
        let duration_ns = (last - first).max(1);
        let samples = self.samples.into_iter().map(|((stack, thread), values)| Sample {
            stack,
            thread,
            reason: 0,
            span: 0,
            values,
        });
        let profile = Profile {
            origin: Origin::Cpu,
            functions: self.functions.into_values(),
            objects: self.objects.into_values(),
            locations: self.locations.into_values(),
            stacks: self.stacks.into_values(),
            threads: self.threads.into_values(),
            samples: samples.collect(),
        };
        // A second each, or longer ones in a long recording; none where there is no time to speak of.
        let seconds = duration_ns / 1_000_000_000;
        let count = seconds.min(MAX_SLICES);
        let length = duration_ns.div_ceil(count.max(1));
        let mut sliced: HashMap<(StackId, u32), u64> = HashMap::new();
        for &(time, stack) in self.times.iter().filter(|_| count > 0) {
            let slice = ((time - first) / length.max(1)).min(count - 1);
            *sliced.entry((stack, u32::try_from(slice).unwrap_or(0))).or_default() += 1;
        }
        let lengths_ns = (0..count).map(|_| length).collect();
        let event = self.names.into_iter().max_by_key(|(_, count)| *count).map(|(name, _)| name).unwrap_or_default();
        let capture = capture(profile, name, event, 0, duration_ns, 0);
        Ok(Imported { capture, lengths_ns, sliced: sliced.into_iter().collect() })
    }
}

/// The line that begins an event.
fn header(line: &str) -> Option<Event> {
    let words: Vec<(usize, &str)> = words(line);
    let place = words.iter().position(|(_, word)| seconds(word).is_some())?;
    let time_ns = seconds(words[place].1)?;
    let mut front = &words[..place];
    if let Some(((_, word), rest)) = front.split_last()
        && word.starts_with('[')
        && word.ends_with(']')
    {
        front = rest;
    }
    let ((start, ids), _) = front.split_last()?;
    let name = line[..*start].trim().to_owned();
    let (pid, tid) = ids.split_once('/').unwrap_or((ids, ids));
    let (pid, tid) = (pid.parse::<i64>().ok()?, tid.parse::<i64>().ok()?);
    let after = &words[place + 1..];
    let period = after.first().and_then(|(_, word)| word.parse().ok());
    let event = after.get(usize::from(period.is_some())).map_or("", |(_, word)| *word);
    let thread = Thread {
        // perf writes -1 for a thread that it does not know.
        pid: u32::try_from(pid).unwrap_or(0),
        tid: u32::try_from(tid).unwrap_or(0),
        start_time_ns: 0,
        exec_count: 0,
        process_name: name.clone(),
        thread_name: name,
        cgroup: String::new(),
    };
    let name = event.trim_end_matches(':').to_owned();
    Some(Event { thread, time_ns, period: period.unwrap_or(1), name, stack: Vec::new(), inlined: Vec::new() })
}

/// `12345.678901:` in ns.
fn seconds(word: &str) -> Option<u64> {
    let (whole, fraction) = word.strip_suffix(':')?.split_once('.')?;
    let digits = |text: &str| !text.is_empty() && text.len() <= 9 && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    let nanoseconds: u64 = format!("{fraction:0<9}").parse().ok()?;
    Some(whole.parse::<u64>().ok()? * 1_000_000_000 + nanoseconds)
}

/// The words of a line, with where they start.
fn words(line: &str) -> Vec<(usize, &str)> {
    let base = line.as_ptr() as usize;
    line.split_ascii_whitespace().map(|word| (word.as_ptr() as usize - base, word)).collect()
}

/// The symbol and the object, which is in the last pair of parentheses.
fn split_object(text: &str) -> (&str, &str) {
    let Some(inner) = text.strip_suffix(')') else { return (text, "") };
    // A deleted file's name ends in one of its own.
    let (body, _) = inner.strip_suffix(" (deleted)").map_or((inner, false), |body| (body, true));
    match body.rfind(" (").or_else(|| body.starts_with('(').then_some(0)) {
        Some(0) if body.starts_with('(') => ("", &inner[1..]),
        Some(place) => (inner[..place].trim(), &inner[place + 2..]),
        None => (text, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# captured on a host\n\
        swapper     0 [000]  100.000000:     250000 cpu-clock:pppH: \n\
        \tffffffff81000010 native_halt+0x10 ([kernel.kallsyms])\n\n\
        my prog 42/43 [001]  101.500000:     250000 cpu-clock:pppH: \n\
        \t    1200 inner (inlined)\n\
        \t    1200 outer(int, std::pair<a, b>)+0x20 (/opt/x (deleted))\n\
        \t    2000 [unknown] ([unknown])\n\n\
        my prog 42/43 [001]  103.500000:     250000 cpu-clock:pppH: \n\
        \t    1200 inner (inlined)\n\
        \t    1200 outer(int, std::pair<a, b>)+0x20 (/opt/x (deleted))\n\
        \t    2000 [unknown] ([unknown])\n";

    #[test]
    fn events_become_samples_of_threads_and_slices() {
        let imported = read(TEXT.as_bytes(), "x").unwrap();
        let profile = &imported.capture.profiles[0];
        assert_eq!(profile.totals()[..2], [3, 750_000]);
        let busy = profile.threads.iter().position(|thread| thread.tid == 43).unwrap();
        assert_eq!((profile.threads[busy].pid, profile.threads[busy].process_name.as_str()), (42, "my prog"));
        let sample = profile.samples.iter().find(|sample| sample.thread as usize == busy).unwrap();
        assert_eq!(sample.values[0], 2);
        let names: Vec<_> =
            profile.frames(sample.stack).map(|frame| (frame.name.into_owned(), frame.inlined)).collect();
        let named = |name: &str, inlined| (name.to_owned(), inlined);
        assert_eq!(
            names,
            [named("inner", true), named("outer(int, std::pair<a, b>)", false), named("[unknown]+0x2000", false)]
        );
        let object = profile
            .locations
            .iter()
            .find_map(|location| (location.kind == FrameKind::Native).then_some(location.object).flatten());
        assert_eq!(profile.objects[object.unwrap() as usize].path, "/opt/x (deleted)");
        assert_eq!(imported.lengths_ns.len(), 3);
        assert_eq!(imported.sliced.iter().map(|(_, value)| value).sum::<u64>(), 3);
        assert_eq!(imported.capture.index.origins["cpu"].event, "cpu-clock:pppH");
    }

    #[test]
    fn fields_may_be_missing() {
        for line in ["a 7 1.5: cycles: ", "a 7/7 1.500000000: 12 cycles:u:", "a   7 [002] 1.5: "] {
            let event = header(line).unwrap_or_else(|| panic!("{line}"));
            assert_eq!((event.thread.tid, event.time_ns, event.thread.thread_name.as_str()), (7, 1_500_000_000, "a"));
        }
    }

    #[test]
    fn what_is_no_text_of_perf_is_refused_with_its_line() {
        for (text, line) in [("hello\n", 1), ("a 7 1.5: cycles:\n\tnot a frame\n", 2), ("\n\tffff x (y)\n", 2)] {
            match read(text.as_bytes(), "x") {
                Err(ImportError::PerfScript { line: found, .. }) => assert_eq!(found, line),
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(read(b"# nothing\n", "x"), Err(ImportError::Empty)));
    }
}
