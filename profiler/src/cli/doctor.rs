//! `profiler doctor`.

use super::args::DoctorArgs;
use super::{CommandResult, print};
use crate::bpf::{Check, Verdict, checks};

/// Something `record` needs is missing.
const RECORD_DOES_NOT_WORK: u8 = 1;

/// Runs it.
pub(super) fn run(args: &DoctorArgs) -> CommandResult {
    let checks = checks();
    let works = checks.iter().all(|check| check.verdict != Verdict::Missing);
    if args.json {
        print(&format!("{}\n", serde_json::json!({ "record_works": works, "checks": checks })))?;
    } else {
        for check in &checks {
            print(&text(check))?;
        }
        print(if works { "\nrecord works here\n" } else { "\nrecord does not work here\n" })?;
    }
    Ok(if works { 0 } else { RECORD_DOES_NOT_WORK })
}

fn text(check: &Check) -> String {
    let verdict = match check.verdict {
        Verdict::Ok => "ok      ",
        Verdict::Degraded => "degraded",
        Verdict::Missing => "MISSING ",
    };
    let mut text = format!("{verdict}  {:<22} {}\n", check.name, check.found);
    if !check.remedy.is_empty() {
        text.push_str(&format!("{:34}-> {}\n", "", check.remedy));
    }
    text
}
