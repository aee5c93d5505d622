//! What is shipped beside the program: the unit by systemd's own check, the configuration by the program that reads it.

use std::fs;
use std::path::{Path, PathBuf};

use profiler::daemon::config::{Config, Settings};
use profiler_tests::scratch;

use crate::program;

fn shipped(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(path)
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    let Some(analyze) = program("systemd-analyze") else { return };
    let directory = scratch();
    let check = |unit: &str| {
        // The program is not installed where the unit has it.
        let unit = unit.replace("/usr/bin/profiler", "/bin/true");
        let path = directory.path().join("profiler.service");
        fs::write(&path, unit).expect("write the unit");
        let output = std::process::Command::new(&analyze).arg("verify").arg(&path).output().expect("start it");
        // It says what is wrong, and ends as if nothing were.
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let unit = fs::read_to_string(shipped("systemd/profiler.service")).expect("the unit");
    let said = check(&unit);
    assert!(said.is_empty(), "{said}");
    let said = check(&unit.replace("WatchdogSec", "WatchdogSecs"));
    assert!(said.contains("WatchdogSecs"), "{said}");
}

#[test]
fn the_shipped_configuration_is_what_holds_without_one() {
    let path = shipped("config.toml");
    let text = fs::read_to_string(&path).expect("the configuration");
    let settings = Settings::new(Some((path, text)), [], &[]).expect("it is right");
    assert_eq!(settings.config, Config::default());
    // Every value is in it, but for lists of tables: an empty one would be in the way of those that a user adds.
    let missing: Vec<&str> =
        settings.values().filter_map(|(name, _, source)| source.to_string().eq("default").then_some(name)).collect();
    assert_eq!(missing, ["alerts.alert", "push.store"]);
}
