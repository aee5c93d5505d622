//! What was counted exactly, as tables.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use profiler_common::block::BlockMissed;
use profiler_common::event::Origin;
use profiler_common::function::FunctionMissed;

use super::allocations::{self, Allocations};
use super::disks::{DEVICES, Disks};
use super::session::Session;
use super::{blocks, calls, files, net};
use crate::bpf::Limits;
use crate::profile::Table;

/// The tables of what was asked for, by name, and what a reader must know of them.
pub(super) fn tables(
    session: &mut Session,
    limits: Limits,
    duration: Duration,
) -> Result<(BTreeMap<String, Table>, Vec<String>)> {
    let (mut tables, mut warnings) = (BTreeMap::new(), Vec::new());
    let mut add = |name: &str, table| tables.insert(name.to_owned(), table);
    if limits.calls {
        let (stats, uncounted) = (session.kernel.take_call_stats()?, session.kernel.calls_uncounted());
        add(Origin::Syscall.row().name, calls::table(&stats, uncounted));
    }
    if limits.blocks {
        let kernel = &session.kernel;
        let (stats, requested) = (kernel.block_stats()?, kernel.block_files()?);
        let missed = |what| kernel.blocks_missed(what);
        let disks = Disks::read();
        // Without an end they are under way, or the kernel has not run the program then.
        let unseen = missed(BlockMissed::Ends) + kernel.blocks_left()?.saturating_sub(disks.in_flight());
        if unseen > 0 {
            warnings.push(blocks::unseen(unseen));
        }
        add(Origin::BlockIo.row().name, blocks::table(&stats, missed(BlockMissed::Stats) + unseen));
        add(blocks::FILES, blocks::files(&requested, &session.file_names, missed(BlockMissed::Files)));
        add(blocks::WAITS, blocks::waits(&kernel.block_waits()?, missed(BlockMissed::Waits)));
        let devices = stats.iter().map(|(key, _)| key.device).collect();
        add(DEVICES, disks.since(&session.disks, &devices, duration));
        session.latencies.end_slice(duration, &stats);
    }
    if limits.files {
        let counts = session.kernel.take_file_counts()?;
        warnings.extend(files::warnings(&counts));
        add(Origin::FileIo.row().name, files::table(&counts, &session.file_names));
    }
    if limits.net {
        let counted = session.kernel.take_net()?;
        warnings.extend(net::warnings(&counted));
        add(Origin::Net.row().name, net::table(&counted));
    }
    if session.allocations.as_ref().is_some_and(Allocations::follows) {
        add(Origin::Alloc.row().name, allocations::sizes(&session.kernel.size_stats()?));
    }
    if let Some(functions) = &session.functions {
        warnings.extend(functions.warnings(&session.kernel));
        let stats = session.kernel.take_function_stats()?;
        let missing = [FunctionMissed::Callers, FunctionMissed::Deep, FunctionMissed::Stats];
        let missing = missing.map(|what| session.kernel.functions_missed(what)).iter().sum();
        add(Origin::Func.row().name, functions.table(&stats, missing));
    }
    Ok((tables, warnings))
}
