//! Captures made for a test.

use profiler::analyze::function_slices;
use profiler::profile::{
    Capture, FrameKind, Function, Host, Index, Line, Location, Object, OriginSummary, Profile, Sample, Target,
    TargetKind, Thread,
};
use profiler_common::event::Origin;

/// Numbers by chance, the same each time. Source: G. Marsaglia, "Xorshift RNGs", 2003, with a multiplier (xorshift64*).
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn number(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        #[expect(clippy::cast_precision_loss, reason = "53 bits")]
        let number = (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64;
        number / (1_u64 << 53) as f64
    }

    /// Of the normal distribution, nearly: the sum of twelve.
    pub(crate) fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.number()).sum::<f64>() - 6.0
    }
}

/// An index with nothing in it that was asked for by `description`.
pub(crate) fn index(description: &str, duration_ns: u64) -> Index {
    let (kind, description) = (TargetKind::Command, description.to_owned());
    let target = Target { kind, description, pids: vec![1], exit_code: None };
    let host = Host { name: "host".to_owned(), kernel: "6.18".to_owned(), architecture: "x86_64".to_owned(), cpus: 4 };
    Index { host, ..Index::empty(target, duration_ns) }
}

/// A profile of stacks: names root first, a `[k]` at the end of one of the kernel, with values by column.
pub(crate) fn profile(origin: Origin, stacks: &[(&str, [u64; 4])]) -> Profile {
    let mut profile = Profile::new(origin);
    profile.objects = vec![Object {
        path: "/opt/program".to_owned(),
        build_id: String::new(),
        start: 0,
        end: 1 << 20,
        file_offset: 0,
    }];
    profile.threads = vec![Thread {
        pid: 1,
        tid: 1,
        start_time_ns: 1,
        exec_count: 1,
        process_name: "program".to_owned(),
        thread_name: "program".to_owned(),
        cgroup: String::new(),
    }];
    for (frames, values) in stacks {
        let mut stack = Vec::new();
        for frame in frames.split(';').rev() {
            let name = frame.trim_end_matches("_[k]").to_owned();
            let function = Function { name, file: String::new() };
            let place = profile.functions.iter().position(|known| *known == function).unwrap_or_else(|| {
                profile.functions.push(function);
                let function = u32::try_from(profile.functions.len() - 1).unwrap();
                let kind = match frame {
                    frame if frame.ends_with("_[k]") => FrameKind::Kernel,
                    frame if frame.starts_with('[') => FrameKind::Reason,
                    _ => FrameKind::Native,
                };
                let object = (kind == FrameKind::Native).then_some(0);
                let lines = vec![Line { function, line: 0 }];
                profile.locations.push(Location { kind, object, address: u64::from(function), lines });
                profile.functions.len() - 1
            });
            stack.push(u32::try_from(place).unwrap());
        }
        profile.stacks.push(stack);
        let stack = u32::try_from(profile.stacks.len() - 1).unwrap();
        let reason = profile.origin.row().reasons.iter().position(|reason| frames.ends_with(&format!("[{reason}]")));
        let reason = reason.map_or(0, |reason| u16::try_from(reason + 1).unwrap());
        profile.samples.push(Sample { stack, thread: 0, reason, span: 0, values: *values });
    }
    profile
}

/// A capture of profiles.
pub(crate) fn capture(profiles: Vec<Profile>, seconds: u64) -> Capture {
    let mut index = index("made", seconds * 1_000_000_000);
    for profile in &profiles {
        let row = profile.origin.row();
        let summary = OriginSummary {
            unit: row.unit.to_owned(),
            total: profile.totals()[row.primary],
            n: profile.totals()[0],
            event: String::new(),
            rate_hz: if profile.origin == Origin::Cpu { 999 } else { 0 },
            by_length: None,
            by_number: None,
            by_size: None,
        };
        index.origins.insert(row.name.to_owned(), summary);
    }
    Capture { index, profiles }
}

/// A recording of a program that is busy all the time, slice by slice.
///
/// `rates`: samples a second of each function; they vary from second to second by `deviation` of themselves.
pub(crate) fn sampled(chance: &mut Chance, seconds: u32, rates: &[(&str, f64)], deviation: f64) -> Capture {
    let mut sums = vec![0_u64; rates.len()];
    let mut sliced = Vec::new();
    for slice in 0..seconds {
        for (function, (_, rate)) in (0..).zip(rates) {
            let own = rate * (1.0 + deviation * chance.normal()) + rate.sqrt() * chance.normal();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative")]
            let samples = own.max(0.0).round() as u64;
            sums[function as usize] += samples;
            sliced.push(((function, slice), samples));
        }
    }
    let stacks: Vec<(String, [u64; 4])> = rates
        .iter()
        .zip(&sums)
        .map(|((name, _), &sum)| (format!("main;{name}"), [sum, sum * 1_001_001, 0, 0]))
        .collect();
    let stacks: Vec<_> = stacks.iter().map(|(name, values)| (name.as_str(), *values)).collect();
    let profile = profile(Origin::Cpu, &stacks);
    let slices = function_slices(&profile, vec![1_000_000_000; seconds as usize], sliced);
    let mut capture = capture(vec![profile], seconds.into());
    capture.index.function_slices.insert("cpu".to_owned(), slices);
    capture
}
