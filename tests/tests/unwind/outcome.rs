//! What was compared and how it came out, by class.

use std::collections::BTreeMap;

/// Differences that are understood: part of a class's name, and why.
const EXPLANATIONS: [(&str, &str); 3] = [
    (
        "BadUnwindRule",
        "the frame address is relative to a register that no table follows, as in longjmp and in the first and last \
         instructions of OpenSSL's assembly; `inspect` lists these functions",
    ),
    (
        "we end after a frame in libgcc_s",
        "the whole stack of the same: the last instructions of _Unwind_RaiseException, whose frame is relative to rcx, \
         the stack pointer of the handler",
    ),
    (
        "they end after a frame in ld-linux",
        "elfutils ends at _dl_runtime_resolve, whose frame is relative to rbx, while its callee has not saved rbx yet; \
         we go on to the entry",
    ),
];

/// Counts of one comparison.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Compared and equal.
    pub(crate) equal: u64,
    /// By class: how many, and the first.
    pub(crate) different: BTreeMap<String, (u64, String)>,
    /// Not compared, by why.
    pub(crate) left_out: BTreeMap<String, u64>,
}

impl Outcome {
    /// Counts one.
    pub(crate) fn add(&mut self, class: Result<(), String>, example: impl FnOnce() -> String) {
        match class {
            Ok(()) => self.equal += 1,
            Err(class) => self.different.entry(class).or_insert_with(|| (0, example())).0 += 1,
        }
    }

    /// Adds another's counts.
    pub(crate) fn merge(&mut self, other: Self) {
        self.equal += other.equal;
        for (class, (count, example)) in other.different {
            self.different.entry(class).or_insert((0, example)).0 += count;
        }
        for (why, count) in other.left_out {
            *self.left_out.entry(why).or_default() += count;
        }
    }

    /// How many were compared.
    pub(crate) fn compared(&self) -> u64 {
        self.equal + self.different.values().map(|(count, _)| count).sum::<u64>()
    }

    /// The share that is equal.
    pub(crate) fn share(&self) -> f64 {
        profiler_tests::float(self.equal) / profiler_tests::float(self.compared().max(1))
    }

    /// The share that is different without an explanation.
    pub(crate) fn unexplained(&self) -> f64 {
        let explained = |class: &String| EXPLANATIONS.iter().any(|(part, _)| class.contains(part));
        let different = self.different.iter().filter(|(class, _)| !explained(class)).map(|(_, (count, _))| count);
        profiler_tests::float(different.sum::<u64>()) / profiler_tests::float(self.compared().max(1))
    }

    /// All of it, for a person.
    pub(crate) fn text(&self, what: &str) -> String {
        let mut text = format!("{what}: {} of {} equal, {:.4} %\n", self.equal, self.compared(), 100.0 * self.share());
        for (class, (count, example)) in &self.different {
            let why = EXPLANATIONS.iter().find(|(part, _)| class.contains(part));
            let why = why.map_or("not explained", |(_, why)| why);
            text.push_str(&format!("  {count:>7} different: {class}\n          {why}; first: {example}\n"));
        }
        for (why, count) in &self.left_out {
            text.push_str(&format!("  {count:>7} not compared: {why}\n"));
        }
        text
    }
}
