//! `profiler top`: a recording that is looked at in the terminal while it goes on.
//!
//! The recording runs as ever; threads of their own name what each window has, and draw it and read the keys.

mod screen;

use std::ffi::OsString;
use std::io::{IsTerminal as _, stdin, stdout};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use clap::Args as ClapArgs;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event as TerminalEvent, KeyEventKind};
use tokio::sync::Notify;

use self::screen::{Action, Moment, Screen};
use super::CommandResult;
use super::files::{OutputDirectory, default_name};
use super::options::{Event, RecordingArgs, TargetArgs};
use super::record::make_files;
use crate::collect::{Progress, RecordConfig, View, Window, record};

/// How long a key waits at most to be read.
const PATIENCE: Duration = Duration::from_millis(100);

#[derive(Debug, ClapArgs)]
#[command(
    override_usage = "profiler top [OPTIONS] [-p PID... | --cgroup PATH | --comm NAME | -a | -- COMMAND ARG...]",
    after_help = "Without a target it looks at the whole host.\n\nKeys: Tab the next origin \u{b7} t threads or functions \u{b7} / filter \u{b7} \
                        space freeze \u{b7} s save what was recorded and end \u{b7} q end"
)]
pub(super) struct TopArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    recording: RecordingArgs,
    /// Directory that `s` writes to, made when missing [default: profile-TARGET-TIME]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Run this command and look at it and its children; what it prints is thrown away, and it goes on when the view ends
    #[arg(last = true, value_name = "COMMAND", group = "target", conflicts_with = "children")]
    command: Vec<OsString>,
}

/// How the view ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Somebody wanted no more.
    Quit,
    /// What was recorded is to be kept.
    Save,
    /// The target ended, or a signal came.
    Over,
}

/// Runs it.
pub(super) fn run(args: &TopArgs) -> CommandResult {
    if !stdin().is_terminal() || !stdout().is_terminal() {
        let advice = "elsewhere use `profiler record -d 10`";
        return Err(anyhow!("top needs a terminal to show things in and to read keys from: {advice}").into());
    }
    let (target, name) = args.target.selection(&args.command);
    target.selection()?;
    let (sender, windows) = channel();
    let config = args.recording.config(target, None, &[Event::Cpu, Event::Offcpu])?;
    let config = RecordConfig { watch: Some(sender), hushes_command: true, ..config };
    let (quit, over) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
    // It may take long where there is much to be named: nobody waits for its end.
    let (named, moments) = channel();
    let view = View::new(&config.naming, &config.cache);
    std::thread::spawn(move || name_windows(view, &windows, &named));
    let shown = {
        let (quit, over, name) = (Arc::clone(&quit), Arc::clone(&over), name.clone());
        std::thread::spawn(move || {
            let end = show(&name, &moments, &over);
            if matches!(end, Ok(End::Save)) {
                // As Ctrl-C ends `record`, in good order: here it is a key.
                // SAFETY: a signal to ourselves, which the recording waits for.
                unsafe { libc::kill(libc::getpid(), libc::SIGINT) };
            } else {
                quit.notify_one();
            }
            end
        })
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let mut unseen = |_: Progress| ();
    let recording = runtime.block_on(async {
        tokio::select! {
            recording = record(&config, &mut unseen) => Some(recording),
            () = quit.notified() => None,
        }
    });
    // Before anything is said: the terminal is the view's until it has ended.
    over.store(true, Ordering::Relaxed);
    let end = shown.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let Some(recording) = recording else { return Ok(0) };
    let capture = recording?.capture;
    if end != End::Save {
        eprintln!("{} has ended", capture.index.target.description.escape_default());
        return Ok(0);
    }
    let directory = OutputDirectory::create(args.output.clone().unwrap_or_else(|| default_name(&name)))?;
    let (_, files) = make_files(&capture);
    directory.write(&files?)?;
    eprintln!("wrote {}: report.html, capture.json and more", directory.path().display());
    Ok(0)
}

/// Names what windows have, for as long as there are any and somebody looks.
fn name_windows(mut view: View, windows: &Receiver<Window>, named: &Sender<Moment>) {
    while let Ok(window) = windows.recv() {
        view.take(window);
        // Of those that came meanwhile the last one is shown.
        windows.try_iter().for_each(|window| view.take(window));
        if named.send(Moment::of(&view)).is_err() {
            return;
        }
    }
}

/// Shows windows until somebody has seen enough, or there are no more.
fn show(target: &str, moments: &Receiver<Moment>, over: &AtomicBool) -> Result<End> {
    let mut terminal = ratatui::try_init().context("cannot use the terminal")?;
    let end = show_in(&mut terminal, target, moments, over);
    ratatui::restore();
    end
}

fn show_in(terminal: &mut DefaultTerminal, target: &str, moments: &Receiver<Moment>, over: &AtomicBool) -> Result<End> {
    let mut screen = Screen::new(target);
    loop {
        terminal.draw(|frame| screen.draw(frame))?;
        if over.load(Ordering::Relaxed) {
            return Ok(End::Over);
        }
        if event::poll(PATIENCE)?
            && let TerminalEvent::Key(key) = event::read()?
            && key.kind != KeyEventKind::Release
        {
            match screen.press(key) {
                Action::None => {}
                Action::Quit => return Ok(End::Quit),
                Action::Save => return Ok(End::Save),
            }
        }
        if let Some(moment) = moments.try_iter().last() {
            screen.update(moment);
        }
    }
}
