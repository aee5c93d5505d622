//! Free words of the shards: which there are, taken and given back. No system call here.

use std::collections::BTreeMap;

use profiler_common::config::SHARD_WORDS;

/// A piece of the shards' words, inside one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Index of its first word, counted through all shards.
    pub(super) start: u32,
    /// Words.
    pub(super) length: u32,
}

/// The pieces that are free, by start; neighbours in one shard are joined.
#[derive(Debug, Default)]
pub(super) struct Space {
    free: BTreeMap<u32, u32>,
}

#[expect(clippy::cast_possible_truncation, reason = "2^18")]
const SHARD: u32 = SHARD_WORDS as u32;

impl Piece {
    /// The whole of a shard.
    pub(super) const fn shard(number: u32) -> Self {
        Self { start: number * SHARD, length: SHARD }
    }

    /// The shard it is in.
    pub(super) const fn shard_number(self) -> u32 {
        self.start / SHARD
    }

    /// Index of its first word in its shard.
    pub(super) const fn index(self) -> u32 {
        self.start % SHARD
    }
}

impl Space {
    /// Free words.
    pub(super) fn words(&self) -> u64 {
        self.free.values().map(|&length| u64::from(length)).sum()
    }

    /// Takes the first piece of at least `least` words, and of it at most `most`.
    pub(super) fn take(&mut self, least: u32, most: u32) -> Option<Piece> {
        let (&start, &length) = self.free.iter().find(|&(_, &length)| length >= least && length > 0)?;
        let taken = length.min(most.max(least));
        self.free.remove(&start);
        if taken < length {
            self.free.insert(start + taken, length - taken);
        }
        Some(Piece { start, length: taken })
    }

    /// Gives a piece back, or a new shard.
    pub(super) fn give(&mut self, piece: Piece) {
        let Piece { mut start, mut length } = piece;
        if length == 0 {
            return;
        }
        if let Some((&before, &before_length)) = self.free.range(..start).next_back()
            && before + before_length == start
            && !start.is_multiple_of(SHARD)
        {
            start = before;
            length += before_length;
        }
        let end = piece.start + piece.length;
        if !end.is_multiple_of(SHARD)
            && let Some(after_length) = self.free.remove(&end)
        {
            length += after_length;
        }
        self.free.insert(start, length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_joined_inside_its_shard() {
        let mut space = Space::default();
        space.give(Piece::shard(1));
        space.give(Piece::shard(0));
        assert_eq!(space.words(), 2 * u64::from(SHARD));
        assert_eq!(space.free.len(), 2, "no piece straddles shards");
        let pieces: Vec<Piece> = (0..4).map(|_| space.take(SHARD / 2, SHARD / 2).unwrap()).collect();
        assert_eq!(space.take(1, 1), None);
        assert_eq!(pieces[2].shard_number(), 1);
        assert_eq!(pieces[3].index(), SHARD / 2);
        for index in [1, 0, 3, 2] {
            space.give(pieces[index]);
        }
        assert_eq!(space.free, BTreeMap::from([(0, SHARD), (SHARD, SHARD)]));
    }

    #[test]
    fn a_piece_is_no_larger_than_asked_for_and_no_smaller() {
        let mut space = Space::default();
        space.give(Piece { start: 0, length: 10 });
        space.give(Piece { start: 20, length: 100 });
        assert_eq!(space.take(11, 50), Some(Piece { start: 20, length: 50 }));
        assert_eq!(space.take(1, 50), Some(Piece { start: 0, length: 10 }));
        assert_eq!(space.take(51, 60), None);
    }
}
