//! What can be shared has nothing in it that must not be.

use profiler::analyze::analyze;
use profiler::output::{capture, derived};

use crate::example;

#[test]
fn a_redacted_capture_has_no_path_argument_peer_or_host() {
    let captures = [
        example::capture_with_waits(),
        example::capture_with_calls(),
        example::capture_with_requests(),
        example::capture_with_blocks(),
    ];
    for mut capture in captures {
        let index = &mut capture.index;
        index.target.description = "command: /opt/secret/server --token secret".to_owned();
        index.host.name = "secret.example".to_owned();
        index.warnings.push("cannot read /var/secret/file: gone".to_owned());
        index.slow_requests.requests.iter_mut().for_each(|request| request.file = "/secret/file".to_owned());
        for cgroup in index.memory.iter_mut().flat_map(|memory| &mut memory.cgroups) {
            cgroup.path = "/secret.slice".to_owned();
        }
        for table in index.tables.values_mut() {
            let private: Vec<usize> = (0..table.labels.len())
                .filter(|&place| ["file", "local", "remote", "cgroup"].contains(&table.labels[place].as_str()))
                .collect();
            for row in &mut table.rows {
                private.iter().for_each(|&place| row.labels[place] = "/secret/thing".to_owned());
            }
        }
        for profile in &mut capture.profiles {
            profile.functions.iter_mut().for_each(|function| function.file = "/home/secret/main.c".to_owned());
            profile.functions[0].name = "LazyCompile:~f /srv/secret/app.js:1".to_owned();
            let named = profile.objects.iter_mut().filter(|object| !object.path.starts_with('['));
            named.for_each(|object| object.path = format!("/opt/secret{}", object.path));
            profile.threads.iter_mut().for_each(|thread| thread.cgroup = "/secret.slice".to_owned());
        }
        let redacted = capture.clone().redacted();
        let report = analyze(&redacted);
        let mut files = capture::write(&redacted).unwrap();
        files.extend(derived(&redacted, &report).unwrap());
        for file in files.iter().filter(|file| !file.name.ends_with(".gz")) {
            let text = String::from_utf8_lossy(&file.bytes);
            let found = text.find("secret").map(|place| &text[place.saturating_sub(60)..(place + 30).min(text.len())]);
            assert_eq!(found, None, "{}", file.name);
        }
        // What the profiles in pprof are made of.
        assert!(!format!("{:?}", redacted.profiles).contains("secret"));
        // All else stays.
        assert_eq!(redacted.index.tables.len(), capture.index.tables.len());
        for (redacted, profile) in redacted.profiles.iter().zip(&capture.profiles) {
            assert_eq!(redacted.totals(), profile.totals());
        }
    }
}
