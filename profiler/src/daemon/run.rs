//! The daemon's loop: cuts a window every few seconds and hands it to a thread that names it and passes it on.
//!
//! The loop only cuts: it never waits for names, for the disk or for a network. Where that thread is behind, a window becomes
//! longer; none is dropped and none is missing in between.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use profiler_common::event::Origin;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::Receiver;

use super::budget::{Controller, Cost, Plan};
use super::config::{Config, ConfigError, Settings};
use crate::collect::{Cut, Ended, Recorder};
use crate::profile::Capture;
use crate::symbolize::{KnownNames, Options};

/// Who is handed every window, in their order, on a thread that may take its time.
pub type Sink = Box<dyn FnMut(Capture) + Send>;

/// Windows that may wait for their names before the next becomes longer.
const MOST_WAITING: usize = 2;

/// How often names that were kept are looked up anew: a module of the kernel may have taken the place of another.
const FORGET_NAMES_EVERY: u64 = 1_000;

/// What happens, for a person or for metrics.
#[derive(Debug)]
pub enum Notice {
    /// Recording has begun.
    Started(String),
    /// Another configuration is in force.
    Reloaded,
    /// The configuration could not be read again: the one before stays.
    NotReloaded(anyhow::Error),
    /// More or less is recorded than before; nothing where all is.
    Planned(Option<String>),
    /// Memory is above the budget: what can be looked up again was forgotten.
    MemoryFreed {
        /// What there was, bytes.
        bytes: u64,
    },
    /// What was selected has ended.
    TargetEnded,
    /// Everything is recorded for a time, since an alert asks for it.
    Depth(Duration),
}

/// Who supervises the daemon, as systemd does.
pub trait Supervisor {
    /// The daemon records.
    fn ready(&mut self);
    /// It reads its configuration again.
    fn reloading(&mut self);
    /// It is about to end.
    fn stopping(&mut self);
    /// It is alive.
    fn alive(&mut self);
    /// How often that must be said, if at all.
    fn alive_every(&self) -> Option<Duration>;
    /// Something happened.
    fn tell(&mut self, notice: Notice);
}

/// How the daemon does, for whoever looks at any time.
#[derive(Clone, Debug)]
pub struct State {
    /// Windows that were handed on.
    pub windows: u64,
    /// Windows that became longer, since those before had no names yet.
    pub delayed: u64,
    /// How much is recorded.
    pub plan: Plan,
    /// What the last window has cost.
    pub cost: Cost,
    /// Mean cost since the start, of one CPU.
    pub mean_cpu: f64,
}

impl State {
    /// Of nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self { windows: 0, delayed: 0, plan: Plan::ALL, cost: Cost::default(), mean_cpu: 0.0 }
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes the threads to come take their memory from one arena, before any is started: each would have one of its own, of which
/// little is given back, and they allocate too rarely to wait for each other.
pub fn share_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes numbers. Source: mallopt(3).
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Runs until SIGTERM or SIGINT comes, or all that was selected has ended; the window that goes on then is handed on as well.
///
/// `load`: reads the configuration, at the start and at SIGHUP. `depth`: for how long everything is to be recorded from now
/// on. `state`: where it is shown how it does.
///
/// # Errors
///
/// When the configuration cannot be used, or something cannot be attached or read.
pub async fn run(
    mut load: impl FnMut() -> Result<Settings, ConfigError>,
    mut sink: Sink,
    mut depth: Receiver<Duration>,
    state: &Arc<Mutex<State>>,
    supervisor: &mut dyn Supervisor,
) -> Result<()> {
    let mut settings = load()?;
    // From here on a signal ends it in good order.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hangup = signal(SignalKind::hangup())?;
    let mut every = supervisor.alive_every().map(tokio::time::interval);
    supervisor.ready();
    // Until when everything is recorded.
    let mut deep: Option<Instant> = None;
    loop {
        let config = if deep.is_some() { settings.config.in_depth() } else { settings.config.clone() };
        let mut windows = Windows::start(&config, sink, Arc::clone(state))?;
        supervisor.tell(Notice::Started(windows.target.clone()));
        let why = loop {
            tokio::select! {
                biased;
                _ = interrupt.recv() => break Why::Stopped,
                _ = terminate.recv() => break Why::Stopped,
                _ = hangup.recv() => {
                    supervisor.reloading();
                    let loaded = load();
                    supervisor.ready();
                    match loaded {
                        Ok(new) if new.config == settings.config => supervisor.tell(Notice::Reloaded),
                        Ok(new) => {
                            settings = new;
                            break Why::Reloaded;
                        }
                        Err(error) => supervisor.tell(Notice::NotReloaded(error.into())),
                    }
                }
                () = tick(&mut every) => supervisor.alive(),
                Some(time) = depth.recv() => {
                    supervisor.tell(Notice::Depth(time));
                    let goes_on = deep.replace(Instant::now() + time).is_some();
                    if !goes_on {
                        break Why::Depth;
                    }
                }
                ended = windows.next() => match ended? {
                    Ended::Deadline => {
                        windows.end_window(supervisor)?;
                        if deep.is_some_and(|end| Instant::now() >= end) {
                            deep = None;
                            break Why::Depth;
                        }
                    }
                    Ended::Target => break Why::Ended,
                }
            }
        };
        if why == Why::Stopped {
            supervisor.stopping();
        }
        sink = windows.finish()?;
        match why {
            Why::Stopped => return Ok(()),
            Why::Ended => {
                supervisor.tell(Notice::TargetEnded);
                return Ok(());
            }
            Why::Reloaded => supervisor.tell(Notice::Reloaded),
            Why::Depth => {}
        }
    }
}

/// Why windows have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    Stopped,
    Reloaded,
    Ended,
    /// More is to be recorded, or no longer.
    Depth,
}

async fn tick(interval: &mut Option<tokio::time::Interval>) {
    match interval {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}

/// The windows of one configuration.
struct Windows {
    recorder: Recorder,
    target: String,
    length: Duration,
    rate_hz: u64,
    /// When the window that goes on ends.
    end: Instant,
    number: u64,
    controller: Controller,
    /// What the plan leaves out of the window that goes on.
    plan: Plan,
    state: Arc<Mutex<State>>,
    namer: Namer,
}

impl Windows {
    fn start(configured: &Config, sink: Sink, state: Arc<Mutex<State>>) -> Result<Self> {
        let config = configured.record();
        let (recorder, naming) = Recorder::start(&config)?;
        let origins = configured.origins();
        let has = |origin| origins.contains(&origin);
        let controller =
            Controller::new(configured.budget(), has(Origin::OffCpu) || has(Origin::Lock), has(Origin::BlockIo));
        let length = configured.window();
        Ok(Self {
            target: recorder.target().to_owned(),
            recorder,
            length,
            rate_hz: config.rate_hz,
            end: Instant::now() + length,
            number: 0,
            controller,
            plan: Plan::ALL,
            state,
            namer: Namer::start(naming, sink)?,
        })
    }

    /// Records until the window that goes on ends.
    async fn next(&mut self) -> Result<Ended> {
        self.recorder.run(self.end, &mut |_| ()).await
    }

    /// Cuts the window that goes on, unless too many have no names yet: then it goes on for as long again.
    fn end_window(&mut self, supervisor: &mut dyn Supervisor) -> Result<()> {
        self.end += self.length;
        // After the host was suspended, or the machine was stopped.
        self.end = self.end.max(Instant::now());
        let mut shown = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if self.namer.waiting() >= MOST_WAITING {
            shown.delayed += 1;
            return Ok(());
        }
        let mut cut = self.recorder.cut()?;
        if let Some(warning) = self.plan.warning() {
            let (waits, blocks) = self.plan.records(self.number);
            let left_out =
                |is_in: bool, what: &str| if is_in { String::new() } else { format!("; this one has no {what}") };
            cut.warn(format!("{warning}{}{}", left_out(waits, "waits"), left_out(blocks, "requests to block devices")));
        }
        let cost = cost(&cut.cost());
        self.namer.name(cut)?;
        self.number += 1;
        let before = self.plan;
        self.plan = self.controller.look(&cost);
        let (waits, blocks) = self.plan.records(self.number);
        self.recorder.set_rate((self.rate_hz / self.plan.rate_divisor).max(1))?;
        self.recorder.set_waits(waits)?;
        self.recorder.set_blocks(blocks)?;
        if self.plan != before {
            supervisor.tell(Notice::Planned(self.plan.warning()));
        }
        if self.controller.is_over_memory(&cost) {
            self.namer.forget();
            supervisor.tell(Notice::MemoryFreed { bytes: cost.memory_bytes });
        } else if self.number.is_multiple_of(FORGET_NAMES_EVERY) {
            self.namer.forget();
        }
        #[expect(clippy::cast_precision_loss, reason = "a mean over windows")]
        let windows = (shown.windows + 1) as f64;
        shown.mean_cpu += (cost.cpu - shown.mean_cpu) / windows;
        shown.windows += 1;
        (shown.plan, shown.cost) = (self.plan, cost);
        Ok(())
    }

    /// Detaches everything and hands the window that went on on; waits until all windows were handed on.
    fn finish(self) -> Result<Sink> {
        let Self { recorder, namer, .. } = self;
        let (cut, _) = recorder.finish()?;
        namer.name(cut)?;
        namer.finish()
    }
}

/// What a window has cost, as the budget has it.
#[expect(clippy::cast_precision_loss, reason = "shares of a CPU, of which few digits say something")]
fn cost(cost: &crate::collect::Cost) -> Cost {
    let of_cpu = |ns: u64| ns as f64 / (cost.duration.as_nanos() as f64).max(1.0);
    let agent_ns = u64::try_from(cost.agent_cpu.as_nanos()).unwrap_or(u64::MAX);
    Cost {
        cpu: of_cpu(agent_ns.saturating_add(cost.bpf_ns).saturating_add(cost.trap_ns)),
        waits: of_cpu(cost.of_waits_ns),
        blocks: of_cpu(cost.of_blocks_ns),
        memory_bytes: cost.anonymous_bytes + cost.bpf_map_bytes,
    }
}

/// The thread that names windows and hands them on.
struct Namer {
    cuts: Sender<Work>,
    waiting: Arc<AtomicUsize>,
    thread: JoinHandle<Sink>,
}

/// What it is given.
enum Work {
    Name(Box<Cut>),
    /// Forget names that can be looked up again, and give memory back.
    Forget,
}

impl Namer {
    fn start(mut naming: Options, mut sink: Sink) -> Result<Self> {
        let (cuts, work) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let left = Arc::clone(&waiting);
        naming.known = Some(KnownNames::new());
        let run = move || {
            while let Ok(work) = work.recv() {
                match work {
                    Work::Name(cut) => {
                        sink(cut.name(&naming));
                        left.fetch_sub(1, Ordering::Relaxed);
                    }
                    Work::Forget => {
                        if let Some(known) = &naming.known {
                            known.forget();
                        }
                        // SAFETY: takes a number.
                        unsafe { libc::malloc_trim(0) };
                    }
                }
            }
            sink
        };
        let thread = std::thread::Builder::new().name("names".to_owned()).spawn(run);
        Ok(Self { cuts, waiting, thread: thread.context("cannot start the thread that names windows")? })
    }

    fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    fn name(&self, cut: Cut) -> Result<()> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.cuts.send(Work::Name(Box::new(cut))).map_err(|_| anyhow!("the thread that names windows has ended"))
    }

    fn forget(&self) {
        // Without the thread the next window says so.
        let _ = self.cuts.send(Work::Forget);
    }

    fn finish(self) -> Result<Sink> {
        drop(self.cuts);
        self.thread.join().map_err(|_| anyhow!("the thread that names windows has failed"))
    }
}
