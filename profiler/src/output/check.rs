//! What a gate says: text, JSON, JUnit's XML and annotations of GitHub Actions.

use std::io;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::json;
use crate::profile::{Check, Severity, Trend};

/// Text: one line a check, those that fail first.
#[must_use]
pub fn to_text(checks: &[Check]) -> String {
    let failed = checks.iter().filter(|check| check.fails()).count();
    let mut sorted: Vec<&Check> = checks.iter().collect();
    sorted.sort_by_key(|check| (!check.fails(), check.passed));
    let mut text = String::new();
    for check in sorted {
        let word = match (check.passed, check.fails()) {
            (true, _) => "ok  ",
            (false, true) => "FAIL",
            (false, false) => "note",
        };
        text.push_str(&format!("{word} {}: {} ({})\n", check.group, one_line(&check.message), check.severity.name()));
    }
    text.push_str(&format!("{} checked, {failed} failed\n", checks.len()));
    text
}

/// JSON: whether it passed, and every check.
///
/// # Errors
///
/// When it cannot be put into JSON.
pub fn to_json(checks: &[Check]) -> io::Result<Vec<u8>> {
    let passed = !checks.iter().any(Check::fails);
    let mut bytes = Vec::new();
    json::write(&serde_json::json!({ "passed": passed, "checks": checks }), &mut bytes)?;
    Ok(bytes)
}

/// JUnit's XML: a suite for each group, a case for each check.
///
/// # Errors
///
/// When it cannot be written.
pub fn to_junit(checks: &[Check]) -> io::Result<String> {
    let mut report = Report::new("profiler check");
    let mut groups: Vec<&str> = checks.iter().map(|check| check.group.as_str()).collect();
    groups.dedup();
    for group in groups {
        let mut suite = TestSuite::new(group);
        for check in checks.iter().filter(|check| check.group == group) {
            let mut status = if check.fails() {
                TestCaseStatus::non_success(NonSuccessKind::Failure)
            } else {
                TestCaseStatus::success()
            };
            status.set_message(check.message.as_str());
            let mut case = TestCase::new(check.name.as_str(), status);
            case.set_classname(format!("profiler.{group}"));
            suite.add_test_case(case);
        }
        report.add_test_suite(suite);
    }
    report.to_string().map_err(io::Error::other)
}

/// Workflow commands of GitHub Actions: errors for what fails, notices for what does not.
///
/// Source: "Workflow commands for GitHub Actions", which are escaped as `actions/toolkit` does it.
#[must_use]
pub fn to_github(checks: &[Check]) -> String {
    let data = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = |text: &str| data(text).replace(':', "%3A").replace(',', "%2C");
    let wrong = checks.iter().filter(|check| !check.passed);
    wrong
        .map(|check| {
            let command = match check.severity {
                Severity::High => "error",
                Severity::Medium => "warning",
                Severity::Info => "notice",
            };
            format!("::{command} title={}::{}\n", property(&check.name), data(&check.message))
        })
        .collect()
}

/// A trend as JSON.
///
/// # Errors
///
/// When it cannot be put into JSON.
pub fn trend_to_json(trend: &Trend) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    json::write(trend, &mut bytes)?;
    Ok(bytes)
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, passed: bool, severity: Severity) -> Check {
        let message = format!("{name} is 100 %,\nwhich is <much>");
        Check { name: name.to_owned(), group: "budget".to_owned(), severity, passed, message }
    }

    #[test]
    fn every_form_tells_what_failed() {
        let checks = [
            check("good", true, Severity::High),
            check("bad, sad: a<b>", false, Severity::High),
            check("note", false, Severity::Info),
        ];
        let text = to_text(&checks);
        assert!(
            text.starts_with("FAIL budget: bad, sad: a<b> is 100 %,?which") && text.ends_with("3 checked, 1 failed\n")
        );
        let json: serde_json::Value = serde_json::from_slice(&to_json(&checks).unwrap()).unwrap();
        assert_eq!((&json["passed"], json["checks"].as_array().unwrap().len()), (&serde_json::Value::Bool(false), 3));
        let junit = to_junit(&checks).unwrap();
        assert!(junit.contains("failures=\"1\"") && junit.contains("bad, sad: a&lt;b"), "{junit}");
        assert_eq!(
            to_github(&checks),
            "::error title=bad%2C sad%3A a<b>::bad, sad: a<b> is 100 %25,%0Awhich is <much>\n\
             ::notice title=note::note is 100 %25,%0Awhich is <much>\n"
        );
    }
}
