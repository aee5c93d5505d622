//! When probes on allocators are on: as much of the time as a part of the target's CPU time allows.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::{Duration, Instant};

use super::target::AllocConfig;

/// The part of a CPU that the target is taken to use at least: one that hardly does anything does not mind.
const LEAST_CPU: f64 = 0.1;

/// How long probes are on at least: shorter windows are biased by how they begin and end.
pub(super) const WINDOW: Duration = Duration::from_millis(100);

/// How much more than the budget probes may cost until it is known what they cost in a second; twice as much they may for a
/// while, over which the cost is looked at as a whole.
const AT_FIRST: f64 = 10.0;
const PATIENCE: Duration = Duration::from_secs(5);

/// How long until the cost is looked at again while it fits.
const LOOK: Duration = Duration::from_secs(1);

/// No longer without probes.
const MOST_OFF: Duration = Duration::from_secs(30);

/// Longer than any recording.
const NEVER: Duration = Duration::from_secs(1 << 32);

/// When probes are on.
#[derive(Debug)]
pub(super) struct Duty {
    pub(super) is_on: bool,
    /// Since when they are, or are not.
    pub(super) since: Instant,
    /// When to look again.
    pub(super) next: Instant,
    /// How long they were on before `since`.
    pub(super) on: Duration,
    /// When the cycle began of which the cost has to fit, and what had been used then.
    cycle: (Instant, Usage),
    /// How much longer than needed this cycle is: not in step with what the target does. The first is twice as long: so the next
    /// window is paid for when it begins, and a recording of any length costs no more than the budget.
    jitter: f64,
    /// The largest part of the target's time that the probes took while they were there.
    pub(super) slowed: f64,
    pub(super) began: Instant,
    pub(super) ended: Option<Instant>,
    /// What recording allocations may cost.
    pub(super) config: AllocConfig,
    /// When probes were taken away for good, since every allocation was to be recorded and that cost more than the budget.
    pub(super) stopped: Option<Instant>,
}

/// What was used so far, ns.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    pub(super) cost_ns: u64,
    pub(super) cpu_ns: u64,
}

impl Duty {
    /// Probes are on from now on. `used`: what was used before.
    pub(super) fn new(now: Instant, config: AllocConfig, used: Usage) -> Self {
        Self {
            is_on: true,
            since: now,
            next: now + WINDOW,
            on: Duration::ZERO,
            cycle: (now, used),
            jitter: 0.0,
            slowed: 0.0,
            began: now,
            ended: None,
            config,
            stopped: None,
        }
    }

    /// Decides by what the probes have cost; returns whether they are to be put on or taken away.
    pub(super) fn look(&mut self, now: Instant, usage: Usage) -> bool {
        if now < self.next {
            return false;
        }
        let (cycle_began, before) = self.cycle;
        let (cost_ns, cpu_ns) =
            (usage.cost_ns.saturating_sub(before.cost_ns), usage.cpu_ns.saturating_sub(before.cpu_ns));
        #[expect(clippy::cast_precision_loss, reason = "a share, of which few digits say something")]
        let share = cost_ns as f64 / (cpu_ns as f64).max((now - cycle_began).as_nanos() as f64 * LEAST_CPU).max(1.0);
        if self.is_on {
            // One that waits most of the time is not held up.
            #[expect(clippy::cast_precision_loss, reason = "a share, of which few digits say something")]
            let of_time = cost_ns as f64 / (cpu_ns as f64).max((now - cycle_began).as_nanos() as f64).max(1.0);
            self.slowed = self.slowed.max(of_time);
            let budget = self.config.budget;
            if share <= budget {
                (self.next, self.cycle) = (now + LOOK, (now, usage));
                return false;
            }
            // A burst may be over soon, and what is off cannot follow blocks any more.
            let age = now - cycle_began;
            if (age < LOOK && share <= AT_FIRST * budget) || (age < PATIENCE && share <= 2.0 * budget) {
                self.next = now + if age < LOOK { LOOK - age } else { LOOK };
                return false;
            }
            self.on += now - self.since;
            (self.is_on, self.since, self.next) = (false, now, now + WINDOW);
            self.jitter = if self.jitter == 0.0 { 2.0 } else { 0.5 + chance() };
            if self.config.is_exact {
                // Some allocations for all is not what was asked for.
                (self.next, self.stopped) = (now + NEVER, Some(now));
            }
            return true;
        }
        // What taking the probes away has cost is in it.
        let cycle =
            (now - cycle_began).mul_f64((share / self.config.budget).min(1e3)).mul_f64(self.jitter).min(MOST_OFF);
        if now < cycle_began + cycle {
            self.next = (cycle_began + cycle).max(now + WINDOW / 10);
            return false;
        }
        (self.is_on, self.since, self.next, self.cycle) = (true, now, now + WINDOW, (now, usage));
        true
    }

    pub(super) fn end(&mut self, now: Instant) {
        if self.is_on {
            self.on += now - self.since;
        }
        (self.is_on, self.since, self.ended) = (false, now, Some(now));
    }
}

/// Any number from 0 to 1.
fn chance() -> f64 {
    // Keyed anew each time.
    let number = RandomState::new().build_hasher().finish() >> 32;
    f64::from(u32::try_from(number).unwrap_or(0)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: AllocConfig = AllocConfig { budget: 0.02, is_exact: false };

    #[test]
    fn probes_are_on_as_long_as_they_may_be() {
        let began = Instant::now();
        let mut duty = Duty::new(began, CONFIG, Usage::default());
        // One CPU, of which probes take a tenth while they are on: that is five times the budget.
        let (mut now, mut usage) = (began, Usage::default());
        while now < began + Duration::from_secs(200) {
            let elapsed = u64::try_from((duty.next - now).as_nanos()).unwrap();
            usage.cpu_ns += elapsed;
            usage.cost_ns += if duty.is_on { elapsed / 10 } else { 0 };
            now = duty.next;
            duty.look(now, usage);
        }
        duty.end(now);
        let share = duty.on.as_secs_f64() / (now - began).as_secs_f64();
        assert!((0.1..0.3).contains(&share), "{share}");
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let cost = usage.cost_ns as f64 / usage.cpu_ns as f64;
        assert!(cost < 1.5 * CONFIG.budget, "{cost}");
    }

    #[test]
    fn what_must_be_exact_ends_for_good() {
        let began = Instant::now();
        let mut duty = Duty::new(began, AllocConfig { is_exact: true, ..CONFIG }, Usage::default());
        let second = Duration::from_secs(1);
        let usage = |cost_ns| Usage { cost_ns, cpu_ns: 1_000_000_000 };
        assert!(!duty.look(began + second, usage(10_000_000)) && duty.stopped.is_none());
        assert!(duty.look(began + 3 * second, Usage { cpu_ns: 3_000_000_000, ..usage(1_000_000_000) }));
        assert_eq!((duty.is_on, duty.stopped), (false, Some(began + 3 * second)));
        assert!(!duty.look(began + 1_000 * second, usage(0)));
    }

    #[test]
    fn probes_that_cost_little_stay() {
        let began = Instant::now();
        let mut duty = Duty::new(began, CONFIG, Usage::default());
        for second in 1..10 {
            let now = began + Duration::from_secs(2 * second);
            let usage = Usage { cost_ns: second * 10_000_000, cpu_ns: second * 1_000_000_000 };
            assert!(!duty.look(now, usage));
            assert!(duty.is_on);
        }
    }
}
