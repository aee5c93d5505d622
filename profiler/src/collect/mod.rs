//! The loop that turns what the kernel aggregates into a capture: windows, targets, symbols, accounting.
//!
//! Input: a validated [`RecordConfig`]. Output: a [`Recording`]. Prints nothing and writes no file.

mod alloc_duty;
mod allocations;
mod blocks;
mod calls;
mod choice;
mod command;
mod cut;
mod disks;
mod events;
mod file_names;
mod files;
mod functions;
mod gathered;
mod host;
mod latencies;
mod live;
mod lock_times;
mod memory;
mod naming;
mod net;
mod place;
mod processes;
mod pythons;
mod readings;
mod record;
mod recorder;
mod remainder;
mod session;
mod sliced;
mod tables;
mod target;
mod thread_times;
mod timeline;
mod unwinding;
mod view;
mod waiting;
mod warnings;
mod watch;

pub use command::{CommandEnd, CommandError, RunningCommand};
pub use cut::{Cost, Cut};
pub use functions::FunctionPattern;
pub use record::{Progress, Recording, record};
pub use recorder::Recorder;
pub use session::{DRAIN_EVERY, Ended};
pub use target::{AllocConfig, CacheDirectory, NamingConfig, RecordConfig, TargetError, TargetSelection};
pub use view::{Facts, Line, Lines, Sum, View};
pub use watch::{OriginWindow, Window};
