//! What the daemon may cost, and what it does without when it costs more. No clock, no system call: windows in, a plan out.
//!
//! Steps are taken one at a time, the dearest thing first, and taken back in the opposite order once there is room for a while. A
//! step that had to be taken again soon after waits twice as long the next time, so that nothing swings.

/// What may be used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// Of one CPU, 0 to 1 and above: our own time, that in the BPF programs, and that in traps.
    pub cpu: f64,
    /// Our own memory and that of the maps, bytes.
    pub memory_bytes: u64,
}

/// What a window has cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Of one CPU, all together.
    pub cpu: f64,
    /// The programs of waits, of that.
    pub waits: f64,
    /// The programs of requests to block devices, of that.
    pub blocks: f64,
    /// Memory, bytes.
    pub memory_bytes: u64,
}

/// What is recorded in part only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Samples of whoever is on a CPU.
    Samples,
    /// Waits.
    Waits,
    /// Requests to block devices.
    Blocks,
}

/// How much is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What the rate of samples is divided by.
    pub rate_divisor: u64,
    /// One in so many windows has waits; 0 for none.
    pub waits_every: u64,
    /// The same of requests to block devices.
    pub blocks_every: u64,
}

impl Plan {
    /// Everything.
    pub const ALL: Self = Self { rate_divisor: 1, waits_every: 1, blocks_every: 1 };

    /// Whether waits, and requests to block devices, are recorded in the window of this number.
    #[must_use]
    pub const fn records(&self, window: u64) -> (bool, bool) {
        const fn is_turn(every: u64, window: u64) -> bool {
            every != 0 && window.is_multiple_of(every)
        }
        (is_turn(self.waits_every, window), is_turn(self.blocks_every, window))
    }

    /// Recording less of a part; `None` where there is no less.
    fn less(mut self, part: Part) -> Option<Self> {
        // Fewer windows than one in eight say little; then rather none.
        let fewer = |every: u64| if every >= 8 { 0 } else { every * 2 };
        match part {
            Part::Samples if self.rate_divisor < 4 => self.rate_divisor *= 2,
            Part::Waits if self.waits_every > 0 => self.waits_every = fewer(self.waits_every),
            Part::Blocks if self.blocks_every > 0 => self.blocks_every = fewer(self.blocks_every),
            _ => return None,
        }
        Some(self)
    }

    /// What is recorded in part only, for a reader of the windows; nothing where all is.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        let every = |name: &str, every: u64| match every {
            0 => Some(format!("{name} are not recorded")),
            1 => None,
            every => Some(format!("{name} are recorded in one window of {every}")),
        };
        let rate = (self.rate_divisor > 1).then(|| format!("one sample in {} is taken", self.rate_divisor));
        let parts = [rate, every("waits", self.waits_every), every("requests to block devices", self.blocks_every)];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        (!parts.is_empty()).then(|| format!("to keep within [budget]: {}", parts.join("; ")))
    }
}

/// Windows that are looked at together before less is recorded; of those that cost twice the budget one is enough.
const PATIENCE: u64 = 2;

/// Windows at the start that are not looked at: names and tables are looked up then that later ones have.
const FIRST: u64 = 3;

/// Windows with room before more is recorded again, and the most of them.
const CALM: u64 = 6;
const MOST_CALM: u64 = 384;

/// The part of the budget below which there is room.
const ROOM: f64 = 0.6;

/// Keeps to a budget.
#[derive(Clone, Debug)]
pub struct Controller {
    budget: Budget,
    plan: Plan,
    /// The plans before, each with the part that a step took.
    steps: Vec<(Plan, Part)>,
    /// What is recorded at all.
    has_waits: bool,
    has_blocks: bool,
    /// Of the first windows, those that have been.
    seen: u64,
    /// Windows since the plan changed, and what they cost.
    windows: u64,
    cost: f64,
    of_waits: f64,
    of_blocks: f64,
    /// Windows in a row with room, and how many there must be.
    calm: u64,
    needed: u64,
}

impl Controller {
    /// Begins with everything. `has_waits`, `has_blocks`: whether these are recorded at all.
    #[must_use]
    pub const fn new(budget: Budget, has_waits: bool, has_blocks: bool) -> Self {
        Self {
            budget,
            plan: Plan::ALL,
            steps: Vec::new(),
            has_waits,
            has_blocks,
            seen: 0,
            windows: 0,
            cost: 0.0,
            of_waits: 0.0,
            of_blocks: 0.0,
            calm: 0,
            needed: CALM,
        }
    }

    /// How much is recorded.
    #[must_use]
    pub const fn plan(&self) -> Plan {
        self.plan
    }

    /// Whether memory is above the budget.
    #[must_use]
    pub const fn is_over_memory(&self, cost: &Cost) -> bool {
        cost.memory_bytes > self.budget.memory_bytes
    }

    /// Takes in what a window has cost; returns how much is recorded from now on.
    pub fn look(&mut self, cost: &Cost) -> Plan {
        if self.seen < FIRST {
            self.seen += 1;
            return self.plan;
        }
        self.windows += 1;
        self.cost += cost.cpu;
        self.of_waits += cost.waits;
        self.of_blocks += cost.blocks;
        // As many as the plan needs to come round: one with waits is dear, the others are not.
        let round = self.plan.waits_every.max(self.plan.blocks_every).max(PATIENCE);
        #[expect(clippy::cast_precision_loss, reason = "a mean over some windows")]
        let windows = self.windows as f64;
        let mean = self.cost / windows;
        if mean > self.budget.cpu && (self.windows >= round || mean > 2.0 * self.budget.cpu) {
            let (waits, blocks) = (self.of_waits / windows, self.of_blocks / windows);
            if let Some((plan, part)) = self.step(mean, waits, blocks) {
                // Taken back a moment ago, and too much again.
                if self.windows < 2 * CALM && self.calm == 0 && !self.steps.is_empty() {
                    self.needed = (self.needed * 2).min(MOST_CALM);
                }
                self.steps.push((self.plan, part));
                self.change(plan);
            }
        } else if self.windows >= round && !self.steps.is_empty() {
            self.calm = if mean < ROOM * self.budget.cpu { self.calm + 1 } else { 0 };
            if self.calm >= self.needed
                && let Some((plan, _)) = self.steps.pop()
            {
                self.needed = (self.needed * 2).min(MOST_CALM);
                self.change(plan);
            }
        }
        self.plan
    }

    /// The next step down: what takes most of the cost, else samples.
    fn step(&self, mean: f64, waits: f64, blocks: f64) -> Option<(Plan, Part)> {
        let dearest = if waits >= blocks { (waits, Part::Waits) } else { (blocks, Part::Blocks) };
        let other = if dearest.1 == Part::Waits { Part::Blocks } else { Part::Waits };
        // Our own time follows from what is recorded, and is nobody's part.
        let order =
            if dearest.0 > mean / 3.0 { [dearest.1, Part::Samples, other] } else { [Part::Samples, dearest.1, other] };
        let is_there = |part: &Part| match part {
            Part::Samples => true,
            Part::Waits => self.has_waits,
            Part::Blocks => self.has_blocks,
        };
        order.into_iter().filter(is_there).find_map(|part| Some((self.plan.less(part)?, part)))
    }

    fn change(&mut self, plan: Plan) {
        self.plan = plan;
        (self.windows, self.cost, self.of_waits, self.of_blocks, self.calm) = (0, 0.0, 0.0, 0.0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Budget = Budget { cpu: 0.005, memory_bytes: 1 << 27 };

    /// Runs windows on a host where waits cost `waits` while they are recorded, samples `samples` at the full rate, and the rest
    /// `rest`; the plans that there were.
    fn run(controller: &mut Controller, windows: u64, waits: f64, samples: f64, rest: f64) -> Vec<Plan> {
        let mut plans = Vec::new();
        for window in 0..windows {
            let plan = controller.plan();
            let has_waits = plan.records(window).0;
            let waits = if has_waits { waits } else { 0.0 };
            #[expect(clippy::cast_precision_loss, reason = "a small number")]
            let samples = samples / plan.rate_divisor as f64;
            let cost = Cost { cpu: waits + samples + rest, waits, blocks: 0.0, memory_bytes: 0 };
            plans.push(controller.look(&cost));
        }
        plans
    }

    #[test]
    fn what_fits_is_recorded_whole() {
        let mut controller = Controller::new(BUDGET, true, true);
        assert!(run(&mut controller, 100, 0.002, 0.001, 0.001).iter().all(|&plan| plan == Plan::ALL));
        assert_eq!(Plan::ALL.warning(), None);
    }

    #[test]
    fn many_switches_cost_the_waits_first_and_come_back_when_they_are_over() {
        let mut controller = Controller::new(BUDGET, true, true);
        let plans = run(&mut controller, 200, 0.08, 0.0005, 0.001);
        let last = plans.last().unwrap();
        assert_eq!((last.waits_every, last.rate_divisor, last.blocks_every), (0, 1, 1), "{last:?}");
        assert!(last.warning().unwrap().contains("waits are not recorded"));
        // It went by one window of several before it gave up.
        for every in [2, 4, 8] {
            assert!(plans.iter().any(|plan| plan.waits_every == every), "{every}");
        }
        let plans = run(&mut controller, 2_000, 0.001, 0.0005, 0.001);
        assert_eq!(plans.last(), Some(&Plan::ALL));
    }

    #[test]
    fn a_load_that_stays_is_tried_less_and_less_often() {
        let mut controller = Controller::new(BUDGET, true, false);
        let plans = run(&mut controller, 5_000, 0.08, 0.0005, 0.001);
        let changes = |plans: &[Plan]| plans.windows(2).filter(|pair| pair[0] != pair[1]).count();
        let (early, late) = (changes(&plans[..1_000]), changes(&plans[4_000..]));
        assert!(late <= early && late <= 40, "{early} {late}");
        // Of all windows nearly all fit.
        let over = plans[100..].iter().filter(|plan| plan.waits_every == 1).count();
        assert!(over < 50, "{over}");
    }

    #[test]
    fn samples_are_taken_less_often_when_they_are_what_costs() {
        let mut controller = Controller::new(BUDGET, true, true);
        let plans = run(&mut controller, 50, 0.0005, 0.006, 0.001);
        assert_eq!(plans.last().map(|plan| (plan.rate_divisor, plan.waits_every)), Some((2, 1)));
        let mut controller = Controller::new(BUDGET, false, false);
        // There is nothing else to do without.
        let plans = run(&mut controller, 50, 0.0, 0.1, 0.0);
        assert_eq!(plans.last().map(|plan| plan.rate_divisor), Some(4));
    }
}
