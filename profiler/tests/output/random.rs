//! Profiles at random, the same ones every time.

use profiler::profile::{FrameKind, Function, Line, Location, Object, Profile, Sample, Thread};
use profiler_common::event::Origin;

/// A linear congruential generator (D. Knuth's MMIX constants).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn small(&mut self, limit: u32) -> u32 {
        u32::try_from(self.below(limit.into())).unwrap()
    }

    fn address(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX - self.below(3),
            2 => 0xffff_ffff_8000_0000 + self.below(1 << 24),
            3 => 0x7f00_0000_0000 + self.below(1 << 30),
            _ => self.below(1 << 22),
        }
    }

    fn name(&mut self) -> String {
        let names =
            ["", "main", "a;b", "x 1", "# c", "[jit]", "[kernel]", "[truncated: no]", "f\u{1}\n", "é\u{ffff}", "g_[k]"];
        format!(
            "{}{}",
            names[usize::try_from(self.below(11)).unwrap()],
            ["", "2"][usize::try_from(self.below(2)).unwrap()]
        )
    }
}

/// A profile in which anything that the types allow happens, in canonical form.
pub(crate) fn profile(random: &mut Random) -> Profile {
    let mut profile = Profile::new(Origin::Cpu);
    for _ in 0..4 {
        profile.functions.push(Function { name: random.name(), file: random.name() });
        let (start, end, file_offset) = (random.address(), random.address(), random.address());
        profile.objects.push(Object { path: random.name(), build_id: random.name(), start, end, file_offset });
    }
    for _ in 0..16 {
        let kind = FrameKind::ALL[usize::try_from(random.below(6)).unwrap()];
        let object = (random.below(3) > 0).then(|| random.small(4));
        let lines = (0..random.below(3)).map(|_| Line { function: random.small(4), line: random.small(3) }).collect();
        profile.locations.push(Location { kind, object, address: random.address(), lines });
        profile.threads.push(Thread {
            pid: random.small(u32::MAX),
            tid: random.small(3),
            start_time_ns: random.address(),
            exec_count: random.small(3),
            process_name: random.name(),
            thread_name: random.name(),
            cgroup: random.name(),
        });
        let stack =
            (0..random.below(9)).map(|_| random.small(u32::try_from(profile.locations.len()).unwrap())).collect();
        profile.stacks.push(stack);
    }
    for _ in 0..random.below(24) {
        profile.samples.push(Sample {
            stack: random.small(16),
            thread: random.small(16),
            reason: u16::try_from(random.below(3)).unwrap(),
            span: random.address() * random.below(2),
            values: [random.below(1000), random.below(1 << 40), 0, 0],
        });
    }
    profile.canonical()
}
