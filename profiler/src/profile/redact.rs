//! A capture that can be shared: without arguments, paths, peers and names of hosts.
//!
//! What is taken out is replaced by the last component of a path, or by a number that is the same for the same thing. Names of
//! functions, programs and threads stay, and so do pids and build IDs: without them nothing could be found.

use std::collections::BTreeMap;

use super::{Capture, Index, Profile};

/// Labels of tables that name something outside: a file, an end of a socket, a cgroup.
const PRIVATE_LABELS: [(&str, &str); 4] =
    [("file", "file"), ("local", "peer"), ("remote", "peer"), ("cgroup", "cgroup")];

impl Capture {
    /// The same capture without arguments, paths, peers and host names.
    #[must_use]
    pub fn redacted(mut self) -> Self {
        let mut numbers = Numbers::default();
        redact_index(&mut self.index, &mut numbers);
        for profile in &mut self.profiles {
            redact_profile(profile, &mut numbers);
        }
        self
    }
}

fn redact_index(index: &mut Index, numbers: &mut Numbers) {
    index.target.description = without_arguments(&index.target.description);
    index.host.name = String::new();
    for object in &mut index.objects {
        object.path = last(&object.path);
        object.advice = without_paths(&object.advice);
    }
    for table in index.tables.values_mut() {
        for (place, label) in table.labels.iter().enumerate() {
            let Some((_, kind)) = PRIVATE_LABELS.iter().find(|(name, _)| name == label) else { continue };
            for text in table.rows.iter_mut().filter_map(|row| row.labels.get_mut(place)) {
                *text = numbers.of(kind, text);
            }
        }
    }
    for request in &mut index.slow_requests.requests {
        request.file = numbers.of("file", &request.file);
    }
    for cgroup in index.memory.iter_mut().flat_map(|memory| &mut memory.cgroups) {
        cgroup.path = numbers.of("cgroup", &cgroup.path);
    }
    for slice in index.function_slices.values_mut().flat_map(|slices| &mut slices.functions) {
        slice.function = without_paths(&slice.function);
        slice.object = last(&slice.object);
    }
    index.warnings.iter_mut().for_each(|warning| *warning = without_paths(warning));
}

fn redact_profile(profile: &mut Profile, numbers: &mut Numbers) {
    for function in &mut profile.functions {
        function.name = without_paths(&function.name);
        function.file = last(&function.file);
    }
    profile.objects.iter_mut().for_each(|object| object.path = last(&object.path));
    for thread in &mut profile.threads {
        thread.cgroup = numbers.of("cgroup", &thread.cgroup);
    }
}

/// Numbers for things that must not be named.
#[derive(Default)]
struct Numbers(BTreeMap<(&'static str, String), usize>);

impl Numbers {
    /// `KIND-NUMBER`; nothing and `*` stay what they are.
    fn of(&mut self, kind: &'static str, text: &str) -> String {
        if text.is_empty() || text == "*" {
            return text.to_owned();
        }
        let next = self.0.len() + 1;
        format!("{kind}-{}", self.0.entry((kind, text.to_owned())).or_insert(next))
    }
}

/// The last component of a path; a name in brackets is none.
fn last(path: &str) -> String {
    if path.starts_with('[') {
        return path.to_owned();
    }
    path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned()
}

/// `command: /opt/x --key 5` without its arguments, other descriptions without their paths.
fn without_arguments(description: &str) -> String {
    match description.strip_prefix("command: ") {
        Some(command) => format!("command: {}", last(command.split_whitespace().next().unwrap_or_default())),
        None => without_paths(description),
    }
}

/// A text in which every absolute path is its last component.
fn without_paths(text: &str) -> String {
    let begins = |before: Option<char>| before.is_none_or(|c| c.is_whitespace() || "([{'\"`=:,<~".contains(c));
    let ends = |c: char| c.is_whitespace() || ")]}'\"`,;>".contains(c);
    let mut written = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(place) = rest.find('/') {
        let (front, path) = rest.split_at(place);
        written.push_str(front);
        let length = path.find(ends).unwrap_or(path.len());
        let (path, after) = path.split_at(length);
        // A relative path goes with the directory that it begins with.
        let is_path = begins(written.chars().next_back()) || path.matches('/').count() > 1;
        if is_path {
            let word = written.rfind(|c: char| begins(Some(c))).map_or(0, |place| place + 1);
            written.truncate(word);
            written.push_str(&last(path));
        } else {
            written.push_str(path);
        }
        rest = after;
    }
    written.push_str(rest);
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_give_way_to_their_last_component() {
        for (text, expected) in [
            ("LazyCompile:~handle /app/secret/index.js:12", "LazyCompile:~handle index.js:12"),
            ("cannot read /home/me/x, skipped", "cannot read x, skipped"),
            ("operator/(int, int)", "operator/(int, int)"),
            ("a/b", "a/b"),
            ("src/deep/file.rs", "file.rs"),
            ("github.com/me/secret.(*T).Do", "secret.(*T).Do"),
            ("no path", "no path"),
            ("/", ""),
        ] {
            assert_eq!(without_paths(text), expected, "{text}");
        }
        assert_eq!(last("/usr/lib/libc.so.6"), "libc.so.6");
        assert_eq!(last("[kernel]"), "[kernel]");
        assert_eq!(without_arguments("command: /opt/x --key 5"), "command: x");
        assert_eq!(without_arguments("cgroup /machine/secret"), "cgroup secret");
    }

    #[test]
    fn numbers_are_the_same_for_the_same_thing() {
        let mut numbers = Numbers::default();
        assert_eq!(numbers.of("file", "/a"), "file-1");
        assert_eq!(numbers.of("peer", "/a"), "peer-2");
        assert_eq!(numbers.of("file", "/a"), "file-1");
        assert_eq!((numbers.of("file", ""), numbers.of("peer", "*")), (String::new(), "*".to_owned()));
    }
}
