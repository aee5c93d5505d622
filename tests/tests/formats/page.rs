//! `report.html` in a real browser.

use std::fs;
use std::path::Path;
use std::process::Command;

use profiler::analyze::analyze;
use profiler::output::derived;
use profiler::profile::Capture;
use profiler_tests::scratch;

use crate::{example, program};

/// Writes the page; returns its text.
fn written(capture: &Capture, path: &Path) -> String {
    let files = derived(capture, &analyze(capture)).expect("the files");
    let page = files.into_iter().find(|file| file.name == "report.html").expect("the page");
    fs::write(path, &page.bytes).expect("write the page");
    String::from_utf8(page.bytes).expect("text")
}

/// The address of a file.
fn address(page: &Path) -> String {
    format!("file://{}", page.display())
}

/// What the browser makes of a page: its document, and what it said.
pub(crate) fn open(browser: &Path, directory: &Path, page: &str, width: u32, hash: &str) -> (String, String) {
    let mut command = Command::new(browser);
    command.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--virtual-time-budget=3000",
    ]);
    command.args(["--disable-background-networking", "--disable-component-update", "--dump-dom"]);
    command.arg(format!("--window-size={width},1000"));
    command.arg(format!("--user-data-dir={}", directory.join("browser").display()));
    command.arg(format!("--log-net-log={}", directory.join("net.json").display()));
    let output = command.arg(format!("{page}#{hash}")).output().expect("start the browser");
    assert!(output.status.success(), "{output:?}");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// The value of an attribute of the document's first element.
pub(crate) fn attribute<'a>(document: &'a str, name: &str) -> Option<&'a str> {
    let head = document.split_once("<head>").map_or(document, |(head, _)| head);
    head.split_once(&format!("data-{name}=\""))?.1.split('"').next()
}

#[test]
fn the_page_shows_everything_in_light_and_dark_at_any_width_and_asks_nobody() {
    let Some(browser) = program("chromium") else { return };
    let directory = scratch();
    for (number, capture) in
        [example::capture_with_waits(), example::capture_with_calls(), example::capture_with_requests()]
            .into_iter()
            .enumerate()
    {
        let page = directory.path().join(format!("{number}.html"));
        let text = written(&capture, &page);
        let addresses: Vec<&str> = text.split("://").skip(1).filter_map(|rest| rest.split('/').next()).collect();
        // A name space, which nobody is asked for.
        assert_eq!(addresses, ["www.w3.org"]);
        for (width, theme) in [(1000, "light"), (2000, "dark")] {
            let (document, said) =
                open(&browser, directory.path(), &address(&page), width, &format!("theme={theme}&search=parse"));
            assert_eq!(attribute(&document, "ready"), Some("true"), "{said}");
            assert_eq!(attribute(&document, "errors"), None);
            assert_eq!(attribute(&document, "overflows"), Some("false"), "at {width}");
            assert_eq!(attribute(&document, "theme"), Some(theme));
            let boxes: u32 = attribute(&document, "boxes").and_then(|boxes| boxes.parse().ok()).expect("boxes");
            assert!(boxes > 4, "{boxes} boxes");
            assert!(!said.contains("CONSOLE"), "{said}");
            for section in ["Summary", "Findings", "Flamegraphs", "Timelines", "Functions", "Accounting"] {
                assert!(document.contains(&format!("<h2>{section}</h2>")), "{section} is missing");
            }
            // A button for each origin, of which one is pressed.
            for origin in capture.index.origins.keys() {
                assert!(document.contains(&format!("data-name=\"{origin}\"")), "{origin} cannot be chosen");
            }
            assert_eq!(document.matches("aria-pressed=\"true\">").count(), 1);
            if number == 0 {
                assert!(
                    document.contains("data-name=\"wall\"") && document.contains("<h2>Where the wall time went</h2>")
                );
                assert!(document.contains("matched: "), "nothing was searched for");
            }
            let requests = fs::read_to_string(directory.path().join("net.json")).expect("the browser's log");
            // Browsers ask their maker by themselves; the page has no address of anybody (see below).
            let hosts = requests.split("\"url\":\"http").skip(1).filter_map(|rest| rest.split('/').nth(2));
            let own = ["google.com", "googleapis.com", "gvt1.com"];
            let others: Vec<&str> = hosts.filter(|host| !own.iter().any(|own| host.ends_with(own))).collect();
            assert!(others.is_empty(), "the page asked {others:?}");
        }
    }
}

#[test]
fn another_origin_is_shown_when_it_is_asked_for() {
    let Some(browser) = program("chromium") else { return };
    let directory = scratch();
    let page = directory.path().join("page.html");
    written(&example::capture_with_waits(), &page);
    for origin in ["cpu", "offcpu", "wall"] {
        let (document, _) = open(&browser, directory.path(), &address(&page), 1400, &format!("origin={origin}"));
        let pressed = format!("data-name=\"{origin}\" aria-pressed=\"true\"");
        assert!(document.contains(&pressed), "{origin} is not shown");
    }
}

#[test]
fn hostile_names_stay_text() {
    let Some(browser) = program("chromium") else { return };
    let directory = scratch();
    let page = directory.path().join("page.html");
    let mut capture = example::capture_with_waits();
    let hostile = "</script><script>document.title='taken'</script><img src=x onerror=document.title='taken'> <!-- @data@ @title@";
    capture.index.target.description = hostile.to_owned();
    capture.index.warnings.push(hostile.to_owned());
    for profile in &mut capture.profiles {
        profile.functions.iter_mut().for_each(|function| function.name = format!("{hostile}{}", function.name));
        profile.threads.iter_mut().for_each(|thread| thread.thread_name = hostile.to_owned());
    }
    let text = written(&capture, &page);
    assert_eq!(text.matches("<script").count(), 2, "a script was added");
    let (document, said) = open(&browser, directory.path(), &address(&page), 1200, "");
    assert_eq!(attribute(&document, "ready"), Some("true"), "{said}");
    assert!(!document.contains("<title>taken") && !document.contains("<img"), "{document}");
}
