//! What a worker has said of itself: where its reports stand, and its load.

use std::{collections::BTreeMap, time::Instant};

use serde::Serialize;

/// Data-parallel ranks of one worker that are told apart.
pub const RANKS_MAX: usize = 64;

/// State of one worker's pushed reports.
#[derive(Debug, Default, Clone)]
pub struct Reported {
    /// By data-parallel rank; at most `RANKS_MAX`.
    pub ranks: BTreeMap<u32, RankReports>,
    /// Last heartbeat or batch.
    pub at: Option<Instant>,
    /// When the next heartbeat is overdue; of one that sends none, silence means nothing.
    pub due: Option<Instant>,
    /// Requests the worker had beyond ours, at its last two heartbeats.
    pub excess: [u32; 2],
}

/// State of one rank's reports.
#[derive(Debug, Default, Clone)]
pub struct RankReports {
    /// Life of the engine process, as last seen.
    pub epoch: Option<String>,
    /// Number of the next batch; `None` before the first of the epoch.
    pub next_seq: Option<u64>,
    /// Gaps seen in this epoch.
    pub gaps: u64,
    /// Whether batches are missing that no sync has made good.
    pub missing: bool,
    /// Next part of a snapshot under way.
    pub snapshot_part: Option<u64>,
    /// The last heartbeat's figures.
    pub said: Said,
}

/// Figures of a heartbeat.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Said {
    /// Requests in hand, by the worker's count (those of other routers too).
    pub current_load: u32,
    /// KV cache, blocks.
    pub kv_blocks_total: Option<u64>,
    /// KV cache in use, blocks.
    pub kv_blocks_used: Option<u64>,
    /// Tokens a KV block.
    pub kv_block_tokens: Option<u64>,
    /// The model it named.
    pub model: Option<String>,
}

/// What the number of a batch says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sequence {
    /// The next one.
    Next,
    /// Seen before: to be ignored.
    Repeat,
    /// Some are missing before it.
    Gap {
        /// The number that was due.
        expected: u64,
    },
}

/// What an epoch says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entered {
    /// The one we know.
    Same,
    /// The first we see of this rank.
    First,
    /// A new life of a rank we knew.
    Restarted,
}

impl Reported {
    /// Requests in the worker's hands that are not ours. The smaller of two heartbeats': a request
    /// that ends between the worker's count and ours is no stranger's.
    pub fn foreign(&mut self, ours: u32) -> u32 {
        let load = self.ranks.values().map(|rank| rank.said.current_load);
        let load = load.fold(0, u32::saturating_add);
        self.excess = [self.excess[1], load.saturating_sub(ours)];
        self.excess[0].min(self.excess[1])
    }

    /// One rank's state, if there is room for one more.
    pub fn rank(&mut self, rank: u32) -> Option<&mut RankReports> {
        if self.ranks.len() >= RANKS_MAX && !self.ranks.contains_key(&rank) {
            return None;
        }
        Some(self.ranks.entry(rank).or_default())
    }

    /// Ranks that told of their cache.
    pub fn telling(&self) -> Vec<u32> {
        let told = self.ranks.iter().filter(|(_, rank)| rank.next_seq.is_some());
        told.map(|(rank, _)| *rank).collect()
    }

    /// The model its heartbeats name.
    pub fn model(&self) -> Option<&String> {
        self.ranks.values().find_map(|rank| rank.said.model.as_ref())
    }

    /// Tokens its KV caches hold, as far as it said.
    pub fn capacity_tokens(&self) -> Option<u64> {
        let tokens = |said: &Said| {
            let blocks = said.kv_blocks_total.filter(|blocks| *blocks > 0)?;
            Some(blocks.saturating_mul(said.kv_block_tokens.unwrap_or(KV_BLOCK_TOKENS).max(1)))
        };
        self.ranks.values().filter_map(|rank| tokens(&rank.said)).reduce(u64::saturating_add)
    }
}

/// Tokens a KV block of vLLM holds unless the worker says otherwise.
const KV_BLOCK_TOKENS: u64 = 16;

impl RankReports {
    /// Enters `epoch`.
    pub fn enter_epoch(&mut self, epoch: &str) -> Entered {
        if self.epoch.as_deref() == Some(epoch) {
            return Entered::Same;
        }
        let restarted = self.epoch.replace(epoch.to_owned()).is_some();
        self.next_seq = None;
        self.gaps = 0;
        self.missing = false;
        self.snapshot_part = None;
        if restarted { Entered::Restarted } else { Entered::First }
    }

    /// Takes the number of a batch of the present epoch. The first batch we ever see must be
    /// number 0 or 1; a later one means that we missed the beginning.
    pub fn take_seq(&mut self, seq: u64) -> Sequence {
        let verdict = match self.next_seq {
            None if seq <= 1 => Sequence::Next,
            None => Sequence::Gap { expected: 1 },
            Some(next) if seq < next => return Sequence::Repeat,
            Some(next) if seq == next => Sequence::Next,
            Some(expected) => Sequence::Gap { expected },
        };
        self.next_seq = Some(seq.saturating_add(1));
        if matches!(verdict, Sequence::Gap { .. }) {
            self.gaps += 1;
            self.missing = true;
        }
        verdict
    }

    /// Whether a reporter that has sent batches up to `sent` has to sync.
    pub fn wants_sync(&self, sent: Option<u64>) -> bool {
        let behind = sent.is_some_and(|sent| self.next_seq != Some(sent.saturating_add(1)));
        self.missing || behind
    }

    /// What is believed equals the state after batch `seq` (none: before the first).
    pub fn synced(&mut self, seq: Option<u64>) {
        // Before the first, a reporter may begin with 0 or 1.
        self.next_seq = seq.map(|seq| seq.saturating_add(1));
        self.missing = false;
        self.snapshot_part = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_tell_repeats_and_gaps() {
        let mut rank = RankReports::default();
        assert_eq!(rank.enter_epoch("a"), Entered::First);
        assert_eq!(rank.take_seq(1), Sequence::Next);
        assert_eq!(rank.take_seq(1), Sequence::Repeat);
        assert_eq!(rank.take_seq(2), Sequence::Next);
        assert!(!rank.wants_sync(Some(2)) && rank.wants_sync(Some(3)));
        assert_eq!(rank.take_seq(5), Sequence::Gap { expected: 3 });
        assert!(rank.wants_sync(Some(5)));
        assert_eq!(rank.take_seq(4), Sequence::Repeat);
        assert_eq!(rank.take_seq(6), Sequence::Next);
        assert_eq!(rank.enter_epoch("a"), Entered::Same);
        assert_eq!(rank.enter_epoch("b"), Entered::Restarted);
        assert!(!rank.wants_sync(None));
        assert_eq!(rank.take_seq(0), Sequence::Next);
        assert_eq!(rank.take_seq(1), Sequence::Next);
    }

    #[test]
    fn a_sync_makes_good_what_was_missing() {
        let mut rank = RankReports::default();
        rank.enter_epoch("a");
        assert_eq!(rank.take_seq(9), Sequence::Gap { expected: 1 });
        rank.synced(Some(11));
        assert!(!rank.wants_sync(Some(11)));
        assert_eq!(rank.take_seq(12), Sequence::Next);
        for first in [0, 1] {
            rank.synced(None);
            assert_eq!(rank.take_seq(first), Sequence::Next);
        }
    }

    #[test]
    fn only_lasting_excess_is_foreign() {
        let mut reported = Reported::default();
        let mut say = |load: &[u32], ours| {
            for (rank, load) in load.iter().enumerate() {
                let rank = reported.rank(rank as u32).expect("room");
                rank.said.current_load = *load;
            }
            reported.foreign(ours)
        };
        assert_eq!(say(&[5], 2), 0);
        assert_eq!(say(&[3, 1], 2), 2);
        assert_eq!(say(&[0, 1], 2), 0);
    }

    #[test]
    fn joining_in_the_middle_is_a_gap() {
        let mut rank = RankReports::default();
        rank.enter_epoch("a");
        assert_eq!(rank.take_seq(57), Sequence::Gap { expected: 1 });
        assert_eq!(rank.take_seq(u64::MAX), Sequence::Gap { expected: 58 });
    }

    #[test]
    fn ranks_are_bounded() {
        let mut reported = Reported::default();
        assert!((0..RANKS_MAX as u32).all(|rank| reported.rank(rank).is_some()));
        assert!(reported.rank(1000).is_none() && reported.rank(3).is_some());
    }
}
