//! What was counted exactly, as tables: since the window before.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use profiler_common::block::{BlockFileKey, BlockKey, BlockMissed, BlockWaitKey};
use profiler_common::event::Origin;
use profiler_common::file::FileKey;
use profiler_common::function::{FunctionKey, FunctionMissed};
use profiler_common::net::NetKey;
use profiler_common::system_call::CallKey;

use super::allocations::{self, Allocations};
use super::blocks::{self, Cgroups};
use super::disks::{DEVICES, Disks};
use super::readings::Readings;
use super::session::Session;
use super::{calls, files, net};
use crate::bpf::Limits;
use crate::profile::{IoLatency, Table};

/// What was counted when the window before ended.
#[derive(Debug, Default)]
pub(super) struct Counted {
    calls: Readings<CallKey>,
    blocks: Readings<BlockKey>,
    block_files: Readings<BlockFileKey>,
    block_waits: Readings<BlockWaitKey>,
    files: Readings<FileKey>,
    functions: Readings<FunctionKey>,
    net: Readings<NetKey>,
    cgroups: Cgroups,
    /// Events that were in no row, by table.
    missing: BTreeMap<String, u64>,
    ends_unseen: u64,
}

/// The tables of a window.
#[derive(Debug, Default)]
pub(super) struct Tables {
    /// By name, of what was asked for.
    pub(super) tables: BTreeMap<String, Table>,
    pub(super) latencies: IoLatency,
    /// What a reader must know of them.
    pub(super) warnings: Vec<String>,
}

/// The tables of the window that ends now. `elapsed`: since the start of the recording; `length`: of the window; `is_last`:
/// there is no other one, and the programs are detached.
pub(super) fn tables(
    session: &mut Session,
    limits: Limits,
    elapsed: Duration,
    length: Duration,
    is_last: bool,
) -> Result<Tables> {
    let mut counted = std::mem::take(&mut session.counted);
    let mut made = Tables::default();
    let mut add = |name: &str, mut table: Table| {
        let before = counted.missing.insert(name.to_owned(), table.missing).unwrap_or(0);
        table.missing = table.missing.saturating_sub(before);
        made.tables.insert(name.to_owned(), table);
    };
    if limits.calls {
        let (stats, uncounted) = (session.kernel.call_stats()?, session.kernel.calls_uncounted());
        add(Origin::Syscall.row().name, calls::table(&stats, uncounted, &mut counted.calls, is_last));
        for key in counted.calls.end().iter().filter(|key| !session.processes.knows(key.pid)) {
            session.kernel.forget_call_stats(key);
        }
    }
    if limits.blocks {
        let kernel = &session.kernel;
        let (stats, requested) = (kernel.block_stats()?, kernel.block_files()?);
        let missed = |what| kernel.blocks_missed(what);
        let disks = Disks::read();
        // Without an end they are under way, or the kernel has not run the program then.
        let left = if is_last { kernel.blocks_left()?.saturating_sub(disks.in_flight()) } else { 0 };
        let unseen = missed(BlockMissed::Ends) + left;
        let new = unseen.saturating_sub(std::mem::replace(&mut counted.ends_unseen, unseen));
        if new > 0 {
            made.warnings.push(blocks::unseen(new));
        }
        let (cgroups, readings) = (&mut counted.cgroups, &mut counted.blocks);
        let table = blocks::table(&stats, missed(BlockMissed::Stats) + unseen, cgroups, readings, is_last);
        add(Origin::BlockIo.row().name, table);
        let (names, uncounted) = (&session.file_names, missed(BlockMissed::Files));
        add(blocks::FILES, blocks::files(&requested, names, uncounted, &mut counted.block_files, is_last));
        let (waits, uncounted) = (kernel.block_waits()?, missed(BlockMissed::Waits));
        add(blocks::WAITS, blocks::waits(&waits, uncounted, &mut counted.block_waits, is_last));
        let devices = stats.iter().map(|(key, _)| key.device).collect();
        add(DEVICES, disks.since(&session.disks, &devices, length));
        session.disks = disks;
        session.latencies.end_slice(elapsed, &stats);
        made.latencies = session.latencies.take_slices(&stats);
        let has_ended = |pid: u32| pid != 0 && !session.processes.knows(pid);
        let kinds: Vec<BlockKey> = counted.blocks.end().into_iter().filter(|key| has_ended(key.pid)).collect();
        let files: Vec<BlockFileKey> = counted.block_files.end().into_iter().filter(|key| has_ended(key.pid)).collect();
        let waits: Vec<BlockWaitKey> = counted.block_waits.end().into_iter().filter(|key| has_ended(key.pid)).collect();
        if !is_last {
            session.kernel.forget_requests(&kinds, &files, &waits)?;
        }
    }
    if limits.files {
        let counts = session.kernel.file_counts()?;
        made.warnings.extend(files::warnings(&counts));
        add(Origin::FileIo.row().name, files::table(&counts, &mut session.file_names, &mut counted.files, is_last));
        for key in counted.files.end().iter().filter(|key| !session.processes.knows(key.pid)) {
            session.kernel.forget_file_stats(key);
        }
    }
    if limits.net {
        let counts = session.kernel.net_counted()?;
        made.warnings.extend(net::warnings(&counts));
        add(Origin::Net.row().name, net::table(&counts, &mut counted.net, is_last));
        for key in counted.net.end().iter().filter(|key| !session.processes.knows(key.pid)) {
            session.kernel.forget_net_stats(key);
        }
    }
    if session.allocations.as_ref().is_some_and(Allocations::follows) {
        add(Origin::Alloc.row().name, allocations::sizes(&session.kernel.size_stats()?));
    }
    if let Some(functions) = &mut session.functions {
        made.warnings.extend(functions.take_warnings(&session.kernel));
        let stats = session.kernel.function_stats()?;
        let missing = [FunctionMissed::Callers, FunctionMissed::Deep, FunctionMissed::Stats];
        let missing = missing.map(|what| session.kernel.functions_missed(what)).iter().sum();
        add(Origin::Func.row().name, functions.table(&stats, missing, &mut counted.functions, is_last));
        for key in counted.functions.end().iter().filter(|key| !session.processes.knows(key.pid)) {
            session.kernel.forget_function_stats(key);
        }
    }
    session.counted = counted;
    Ok(made)
}
