//! Time by phase of a program's work: what the functions of a stack say that it is for.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use super::findings::fits;
use super::{Weighted, share};
use crate::profile::{FrameKind, PhaseShare, Report};

/// The rules that are built in.
const BUILT_IN: &str = include_str!("phases.toml");

/// Functions of one phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// What it is called: `state root`.
    pub name: String,
    /// Whose functions these are: `reth`; empty where that does not matter.
    #[serde(default)]
    pub client: String,
    /// Their names; `*` stands for anything.
    pub functions: Vec<String>,
}

/// The part of a file of rules that has phases.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    phase: Vec<Phase>,
}

/// The phases that are built in.
pub(super) fn built_in() -> Vec<Phase> {
    // The tests read it too: what is built in is sound.
    toml::from_str::<File>(BUILT_IN).map(|file| lower_case(file.phase)).unwrap_or_default()
}

/// Phases as [`add`] takes them.
pub(super) fn lower_case(mut phases: Vec<Phase>) -> Vec<Phase> {
    for function in phases.iter_mut().flat_map(|phase| &mut phase.functions) {
        *function = function.to_lowercase();
    }
    phases
}

/// The first phase that a function belongs to, by its place. The patterns are in lower case.
fn find(phases: &[Phase], name: &str) -> Option<usize> {
    let name = name.to_lowercase();
    phases.iter().position(|phase| phase.functions.iter().any(|glob| fits(glob, &name)))
}

/// Adds one origin's values by phase: each stack is of the phase of the innermost function that has one. Nothing is added
/// where none has.
pub(super) fn add(weighted: &Weighted<'_>, phases: &[Phase], report: &mut Report) {
    let mut known: HashMap<String, Option<usize>> = HashMap::new();
    let profile = weighted.profile;
    let of_location = |location: u32| {
        let mut frames = profile.location_frames(location).filter(|frame| frame.kind != FrameKind::Reason);
        frames.find_map(|frame| {
            let name = frame.name.into_owned();
            *known.entry(name).or_insert_with_key(|name| find(phases, name))
        })
    };
    let of_locations: Vec<Option<usize>> = (0..).take(profile.locations.len()).map(of_location).collect();
    let mut values: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for (stack, value) in weighted.iter() {
        if let Some(phase) = stack.iter().find_map(|&location| of_locations[location as usize]) {
            let Phase { name, client, .. } = &phases[phase];
            *values.entry((name, client)).or_default() += value;
        }
    }
    let mut shares: Vec<PhaseShare> = values
        .into_iter()
        .map(|((phase, client), value)| PhaseShare {
            origin: weighted.origin.to_owned(),
            phase: phase.to_owned(),
            client: client.to_owned(),
            value,
            share: share(value, weighted.total),
        })
        .collect();
    shares.sort_by_key(|share| Reverse(share.value));
    report.phases.extend(shares);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_in_is_read_and_tells_phases_apart() {
        let phases = built_in();
        assert!(phases.len() >= 30, "{}", phases.len());
        let phase = |name: &str| find(&phases, name).map(|at| (phases[at].name.as_str(), phases[at].client.as_str()));
        for (name, expected) in [
            ("reth_trie_parallel::root::ParallelStateRoot<F>::calculate", Some(("state root", "reth"))),
            ("<revm_interpreter::interpreter::Interpreter as core::fmt::Debug>::fmt", Some(("execution", "reth"))),
            ("mdbx_cursor_get", Some(("database read", "reth"))),
            ("github.com/ethereum/go-ethereum/core.(*StateProcessor).Process", Some(("execution", "geth"))),
            ("github.com/ethereum/go-ethereum/core/state.(*StateDB).IntermediateRoot", Some(("state root", "geth"))),
            ("github.com/ethereum/go-ethereum/p2p/discover.(*UDPv5).dispatch", Some(("p2p", "geth"))),
            ("github.com/cometbft/cometbft/state.(*BlockExecutor).ApplyBlock", Some(("execution", "CometBFT"))),
            ("github.com/cometbft/cometbft/consensus.(*State).finalizeCommit", Some(("consensus", "CometBFT"))),
            (
                "Chainstate::ConnectBlock(CBlock const&, BlockValidationState&, CBlockIndex*, CCoinsViewCache&, bool)",
                Some(("execution", "bitcoin")),
            ),
            ("CCoinsViewDB::GetCoin(COutPoint const&) const", Some(("database read", "bitcoin"))),
            ("(anonymous namespace)::PeerManagerImpl::ProcessMessages(CNode*)", Some(("p2p", "bitcoin"))),
            ("github.com/syndtr/goleveldb/leveldb.(*DB).tableCompaction", Some(("compaction", "kubo"))),
            ("github.com/ipfs/boxo/bitswap/client.(*Client).GetBlocks", Some(("block exchange", "kubo"))),
            ("runtime.gcBgMarkWorker.func2", Some(("GC", "Go"))),
            ("main", None),
            ("runtime.mallocgc", None),
            ("memcpy", None),
        ] {
            assert_eq!(phase(name), expected, "{name}");
        }
    }
}
