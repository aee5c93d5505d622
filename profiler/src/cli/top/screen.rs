//! What is on the screen, and what keys do to it.

use profiler_common::event::Origin;
use ratatui::Frame;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Style, Stylize as _};
use ratatui::text::{Line as TextLine, Span};
use ratatui::widgets::{Paragraph, Row, Table};

use crate::collect::{Facts, Line, Lines, Sum, View};
use crate::profile::Column;

/// Lines of a kind that are kept of a moment: as many as anybody looks through.
const MOST_LINES: usize = 1000;
/// Longest filter, in characters.
const MOST_FILTER: usize = 60;

/// What keys do.
const KEYS: &str =
    " Tab origin \u{b7} t threads/functions \u{b7} / filter \u{b7} space freeze \u{b7} s save, end \u{b7} q end";

/// What a key asks of others than the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing.
    None,
    /// To end.
    Quit,
    /// To keep what was recorded, and end.
    Save,
}

/// A window as it is shown.
#[derive(Debug, Default)]
pub(super) struct Moment {
    facts: Facts,
    origins: Vec<OriginMoment>,
}

/// An origin in it.
#[derive(Debug)]
struct OriginMoment {
    origin: Origin,
    sum: Sum,
    functions: Vec<Line>,
    threads: Vec<Line>,
}

impl Moment {
    /// The last window.
    pub(super) fn of(view: &View) -> Self {
        let lines = |origin, what| {
            let mut lines = view.lines(origin, what);
            lines.truncate(MOST_LINES);
            // Names come from targets: none may speak to the terminal.
            lines.iter_mut().for_each(|line| line.name = line.name.replace(char::is_control, "?"));
            lines
        };
        let origin = |origin| OriginMoment {
            origin,
            sum: view.sum(origin),
            functions: lines(origin, Lines::Functions),
            threads: lines(origin, Lines::Threads),
        };
        Self { facts: view.facts().clone(), origins: view.origins().map(origin).collect() }
    }
}

/// The screen.
#[derive(Debug)]
pub(super) struct Screen {
    target: String,
    moment: Option<Moment>,
    /// Which origin, of those there are.
    chosen: usize,
    lines: Lines,
    filter: String,
    is_typing: bool,
    is_frozen: bool,
    /// Lines that are left out at the top.
    above: usize,
}

impl Screen {
    /// Without anything to show yet.
    pub(super) fn new(target: &str) -> Self {
        Self {
            target: target.replace(char::is_control, "?"),
            moment: None,
            chosen: 0,
            lines: Lines::Functions,
            filter: String::new(),
            is_typing: false,
            is_frozen: false,
            above: 0,
        }
    }

    /// Shows another window, unless it is frozen.
    pub(super) fn update(&mut self, moment: Moment) {
        if !self.is_frozen {
            self.moment = Some(moment);
        }
    }

    /// Takes a key.
    pub(super) fn press(&mut self, key: KeyEvent) -> Action {
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if is_control => return Action::Quit,
            KeyCode::Enter if self.is_typing => self.is_typing = false,
            KeyCode::Esc => (self.is_typing, self.filter) = (false, String::new()),
            KeyCode::Backspace if self.is_typing => {
                self.filter.pop();
            }
            KeyCode::Char(letter) if self.is_typing => {
                if self.filter.chars().count() < MOST_FILTER {
                    self.filter.push(letter);
                }
            }
            KeyCode::Char('q') => return Action::Quit,
            KeyCode::Char('s') => return Action::Save,
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Char(' ') => self.is_frozen = !self.is_frozen,
            KeyCode::Char('t') => {
                self.lines = if self.lines == Lines::Functions { Lines::Threads } else { Lines::Functions };
            }
            KeyCode::Tab => self.chosen = (self.chosen + 1) % self.origins().len().max(1),
            KeyCode::Down => self.above += 1,
            KeyCode::Up => self.above = self.above.saturating_sub(1),
            _ => return Action::None,
        }
        if !matches!(key.code, KeyCode::Down | KeyCode::Up) {
            self.above = 0;
        }
        self.above = self.above.min(self.visible().len().saturating_sub(1));
        Action::None
    }

    fn origins(&self) -> &[OriginMoment] {
        self.moment.as_ref().map_or(&[], |moment| &moment.origins)
    }

    fn origin(&self) -> Option<&OriginMoment> {
        self.origins().get(self.chosen)
    }

    /// The lines of the origin that is looked at, which the filter leaves.
    fn visible(&self) -> Vec<&Line> {
        let Some(origin) = self.origin() else { return Vec::new() };
        let lines = if self.lines == Lines::Functions { &origin.functions } else { &origin.threads };
        lines.iter().filter(|line| line.name.contains(&self.filter)).collect()
    }

    /// Draws it.
    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let [head, tabs, body, foot] =
            Layout::vertical([Constraint::Length(4), Constraint::Length(1), Constraint::Min(1), Constraint::Length(1)])
                .areas(frame.area());
        frame.render_widget(Paragraph::new(self.head()), head);
        frame.render_widget(self.tabs(), tabs);
        frame.render_widget(self.table(), body);
        let foot_text = match (self.is_typing, self.filter.is_empty()) {
            (true, _) => format!(" filter: {}\u{2588}  (Enter keeps it, Esc drops it)", self.filter),
            (false, false) => format!(" filter: {}  (Esc drops it)", self.filter),
            (false, true) => KEYS.to_owned(),
        };
        frame.render_widget(Paragraph::new(foot_text).dim(), foot);
    }

    /// Target, resources, losses and what it costs.
    fn head(&self) -> Vec<TextLine<'_>> {
        let Some(Moment { facts, .. }) = &self.moment else {
            return vec![TextLine::from(format!(" {} \u{b7} attaching, and looking names up", self.target)).bold()];
        };
        let mut first = vec![Span::from(format!(" {} \u{b7} {} s", self.target, facts.elapsed.as_secs())).bold()];
        if self.is_frozen {
            first.push(" \u{b7} frozen".bold().reversed());
        }
        let mut lines = vec![TextLine::from(first), TextLine::from(format!(" {}", resources(facts)))];
        if let Some(OriginMoment { origin, sum, .. }) = self.origin() {
            let samples = sum.complete + sum.truncated;
            let losses = format!(
                " {}: {samples} samples \u{b7} {} complete \u{b7} {} cut \u{b7} {} lost",
                origin.row().name,
                percent(sum.complete, samples),
                percent(sum.truncated, samples),
                sum.lost
            );
            let losses = TextLine::from(losses);
            lines.push(if sum.lost > 0 { losses.bold() } else { losses });
        }
        let length_ns = u64::try_from(facts.length.as_nanos()).unwrap_or(u64::MAX);
        let agent_ns = u64::try_from(facts.agent_cpu.as_nanos()).unwrap_or(u64::MAX);
        lines.push(TextLine::from(format!(
            " overhead: programs in the kernel {} of a CPU, profiler {}",
            percent(facts.bpf_ns, length_ns),
            percent(agent_ns, length_ns)
        )));
        lines
    }

    /// The origins, the one that is looked at in reverse.
    fn tabs(&self) -> TextLine<'_> {
        let tab = |(number, origin): (usize, &OriginMoment)| {
            let name = Span::from(format!(" {} ", origin.origin.row().name));
            if number == self.chosen { name.reversed() } else { name }
        };
        TextLine::from(self.origins().iter().enumerate().map(tab).collect::<Vec<_>>())
    }

    fn table(&self) -> Table<'_> {
        let (total, unit) = self.origin().map_or((0, ""), |origin| (origin.sum.total, origin.origin.row().unit));
        let row = |line: &Line| {
            Row::new([percent(line.own, total), percent(line.total, total), amount(line.own, unit), line.name.clone()])
        };
        let what = if self.lines == Lines::Functions { "function" } else { "thread" };
        let rows: Vec<Row<'_>> = self.visible().into_iter().skip(self.above).map(row).collect();
        let widths = [Constraint::Length(8), Constraint::Length(8), Constraint::Length(12), Constraint::Min(10)];
        let unit = if unit == "ns" { "time" } else { unit };
        let head = ["self", "total", unit, what].map(str::to_owned);
        Table::new(rows, widths).header(Row::new(head).style(Style::new().bold().underlined()))
    }
}

/// What the target and the host use.
fn resources(facts: &Facts) -> String {
    let of = |column| facts.figures.of(column);
    let slice_ns = u64::try_from(facts.slice.as_nanos()).unwrap_or(u64::MAX);
    let mut parts = Vec::new();
    if let (Some(user), Some(system)) = (of(Column::TargetCpuUser), of(Column::TargetCpuSystem)) {
        let (user, system) = (percent(user + system, slice_ns), percent(system, slice_ns));
        parts.push(format!("target {user} of a CPU, {system} in the kernel"));
    }
    if let Some(bytes) = of(Column::TargetRss) {
        parts.push(format!("{} resident", amount(bytes, "bytes")));
    }
    if let Some(threads) = of(Column::TargetThreads) {
        parts.push(format!("{threads} threads"));
    }
    let sum = |columns: &[Column]| columns.iter().filter_map(|&column| of(column)).sum::<u64>();
    let busy = sum(&[Column::HostCpuUser, Column::HostCpuSystem, Column::HostCpuIrq]);
    let rest = sum(&[Column::HostCpuIdle, Column::HostCpuIowait]);
    parts.push(format!("host {} busy", percent(busy, busy + rest)));
    if let Some(bytes) = of(Column::HostMemoryAvailable) {
        parts.push(format!("{} available", amount(bytes, "bytes")));
    }
    parts.join(" \u{b7} ")
}

/// A part of a whole: `12.3 %`; `-` of nothing.
fn percent(part: u64, whole: u64) -> String {
    if whole == 0 { "-".to_owned() } else { format!("{:.1} %", 100.0 * float(part) / float(whole)) }
}

/// A value in its unit.
fn amount(value: u64, unit: &str) -> String {
    match unit {
        "ns" => format!("{:.1} ms", float(value) / 1e6),
        "bytes" if value >= 1 << 30 => format!("{:.1} GiB", float(value) / f64::from(1 << 30)),
        "bytes" => format!("{:.1} MiB", float(value) / f64::from(1 << 20)),
        _ => value.to_string(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
const fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn moment(function: &str) -> Moment {
        let line = |name: &str, own, total| Line { name: name.to_owned(), own, total };
        let origin = |origin, name: &str| OriginMoment {
            origin,
            sum: Sum { total: 100, complete: 90, truncated: 10, lost: 3 },
            functions: vec![line(name, 75, 100), line("other", 25, 25)],
            threads: vec![line("server 7 \u{b7} worker 8", 100, 100)],
        };
        Moment {
            facts: Facts::default(),
            origins: vec![origin(Origin::Cpu, function), origin(Origin::OffCpu, "waits_here")],
        }
    }

    fn drawn(screen: &Screen) -> String {
        let mut terminal = Terminal::new(TestBackend::new(110, 12)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        terminal.backend().to_string()
    }

    fn press(screen: &mut Screen, keys: &str) {
        for key in keys.chars() {
            let code = match key {
                '\t' => KeyCode::Tab,
                '\n' => KeyCode::Enter,
                letter => KeyCode::Char(letter),
            };
            assert_eq!(screen.press(KeyEvent::from(code)), Action::None, "{key:?}");
        }
    }

    #[test]
    fn functions_threads_losses_and_origins_are_shown() {
        let mut screen = Screen::new("server-7");
        assert!(drawn(&screen).contains("attaching"));
        screen.update(moment("hash_here"));
        let first = drawn(&screen);
        for text in ["server-7", "75.0 %", "hash_here", "90.0 % complete", "3 lost", "overhead", "offcpu"] {
            assert!(first.contains(text), "{text}: {first}");
        }
        press(&mut screen, "t");
        assert!(drawn(&screen).contains("worker 8") && !drawn(&screen).contains("hash_here"));
        press(&mut screen, "t\t");
        assert!(drawn(&screen).contains("waits_here"), "{}", drawn(&screen));
        press(&mut screen, "\t");
        assert!(drawn(&screen).contains("hash_here"));
    }

    #[test]
    fn a_filter_takes_letters_that_are_keys_otherwise() {
        let mut screen = Screen::new("x");
        screen.update(moment("squash"));
        press(&mut screen, "/squ\n");
        let text = drawn(&screen);
        assert!(text.contains("squash") && !text.contains("other"), "{text}");
        assert_eq!(screen.press(KeyEvent::from(KeyCode::Esc)), Action::None);
        assert!(drawn(&screen).contains("other"));
        assert_eq!(screen.press(KeyEvent::from(KeyCode::Char('q'))), Action::Quit);
        assert_eq!(screen.press(KeyEvent::from(KeyCode::Char('s'))), Action::Save);
        assert_eq!(screen.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Action::Quit);
    }

    #[test]
    fn a_frozen_screen_stays_and_still_switches() {
        let mut screen = Screen::new("x");
        screen.update(moment("before"));
        press(&mut screen, " ");
        screen.update(moment("after"));
        assert!(drawn(&screen).contains("before") && drawn(&screen).contains("frozen"));
        press(&mut screen, "\t \t");
        screen.update(moment("after"));
        assert!(drawn(&screen).contains("after"));
        for _ in 0..5 {
            screen.press(KeyEvent::from(KeyCode::Down));
        }
        assert!(drawn(&screen).contains("other") && !drawn(&screen).contains("after"), "{}", drawn(&screen));
    }
}
