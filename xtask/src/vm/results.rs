//! What became of the tests: the lines of libtest with `--show-output` -> counts and names.

/// What became of the tests on one kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Results {
    /// Tests that passed, those in part included.
    pub(crate) passed: usize,
    /// Tests that passed and said that something was missing for all or a part of them: name, what.
    pub(crate) in_part: Vec<(String, String)>,
    /// Tests that failed.
    pub(crate) failed: Vec<String>,
    /// Whether the tests did not come to their end.
    pub(crate) broken: bool,
}

/// Where in libtest's output a line is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) enum Section {
    /// Before the tests' own output: one line a test.
    #[default]
    Tests,
    /// What tests said that passed; this one.
    Passed(String),
    /// What tests said that failed.
    Failed,
}

impl Results {
    /// Takes a line. Whether it is worth printing: how a test ended, and what those said that failed.
    pub(crate) fn read(&mut self, line: &str, section: &mut Section) -> bool {
        match line {
            "successes:" => *section = Section::Passed(String::new()),
            "failures:" => *section = Section::Failed,
            _ => {}
        }
        match section {
            Section::Tests => {
                if let Some((name, ended)) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) {
                    match ended {
                        "ok" => self.passed += 1,
                        "FAILED" => self.failed.push(name.to_owned()),
                        _ => {}
                    }
                }
                true
            }
            Section::Passed(test) => {
                if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
                    name.clone_into(test);
                } else if let Some(why) = line.strip_prefix("skipped: ") {
                    self.in_part.push((test.clone(), why.to_owned()));
                }
                false
            }
            Section::Failed => true,
        }
    }

    /// Whether a test failed, or may have.
    pub(crate) fn is_failure(&self) -> bool {
        self.broken || !self.failed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passed_failed_and_partial_tests_are_told_apart() {
        let text = "running 3 tests\ntest a::b ... ok\ntest a::c ... FAILED\ntest a::d ... ok\ntest e ... ignored, why\n\n\
                    successes:\n\n---- a::b stdout ----\n50 %\nskipped: go is not installed\n\nsuccesses:\n    a::b\n    \
                    a::d\n\nfailures:\n\n---- a::c stdout ----\nskipped: not this\n";
        let (mut results, mut section) = (Results::default(), Section::default());
        let printed = text.lines().filter(|line| results.read(line, &mut section)).count();
        assert_eq!(results.passed, 2);
        assert_eq!(results.failed, ["a::c"]);
        assert_eq!(results.in_part, [("a::b".to_owned(), "go is not installed".to_owned())]);
        assert!(results.is_failure());
        assert_eq!(printed, 10);
    }
}
