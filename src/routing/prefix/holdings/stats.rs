//! The sizes of what a worker is believed to hold.

use super::super::{Stats, WorkerCache};
use super::Tier;

/// Sizes of one tier, over all ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierStats {
    /// Blocks of ours that the engine confirmed, counted once per rank.
    pub blocks: usize,
    /// Heap bytes of their trees.
    pub bytes: usize,
    /// Engine blocks held, each counted once per rank.
    pub engine_blocks: usize,
    /// Records of engine blocks that are gone, kept for others.
    pub gone_records: usize,
    /// Heap bytes of all records.
    pub engine_bytes: usize,
}

/// Sizes of now, and totals since the worker is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HoldingsStats {
    /// What the engine confirmed, by tier.
    pub tiers: [TierStats; Tier::ALL.len()],
    /// Blocks presumed; one in both generations counts twice.
    pub presumed_blocks: usize,
    /// Heap bytes of the presumed trees.
    pub presumed_bytes: usize,
    /// Data-parallel ranks heard of.
    pub ranks: usize,
    /// Runs without a branch or hole, in all trees.
    pub nodes: usize,
    /// Missing blocks with blocks held behind them, in all trees.
    pub holes: usize,
    /// Blocks added to any tree.
    pub inserted_total: u64,
    /// Blocks cut from any tree to keep the bounds.
    pub trimmed_total: u64,
    /// Blocks removed, retracted, expired or dropped from any tree.
    pub removed_total: u64,
}

impl HoldingsStats {
    /// One tier's part.
    pub const fn tier(&self, tier: Tier) -> TierStats {
        self.tiers[tier as usize]
    }

    /// Blocks in all trees.
    pub fn blocks(&self) -> usize {
        self.presumed_blocks + self.tiers.iter().map(|tier| tier.blocks).sum::<usize>()
    }

    /// Heap bytes of all trees.
    pub fn bytes(&self) -> usize {
        self.presumed_bytes + self.tiers.iter().map(|tier| tier.bytes).sum::<usize>()
    }

    /// Heap bytes of all records.
    pub fn engine_bytes(&self) -> usize {
        self.tiers.iter().map(|tier| tier.engine_bytes).sum()
    }

    pub(super) fn add_presumed(&mut self, stats: Stats) {
        self.presumed_blocks += stats.blocks;
        self.presumed_bytes += stats.bytes;
        self.add_tree(stats);
    }

    pub(super) fn add_cache(&mut self, tier: Tier, cache: &WorkerCache) {
        let (stats, engine) = (cache.stats(), cache.engine_stats());
        self.add_tree(stats);
        let tier = &mut self.tiers[tier as usize];
        tier.blocks += stats.blocks;
        tier.bytes += stats.bytes;
        tier.engine_blocks += engine.engine_blocks;
        tier.gone_records += engine.gone_records;
        tier.engine_bytes += engine.bytes;
    }

    /// What a tree leaves behind when it is dropped.
    pub(super) fn add_totals(&mut self, stats: Stats) {
        self.inserted_total += stats.inserted_total;
        self.trimmed_total += stats.trimmed_total;
        self.removed_total += stats.removed_total;
    }

    fn add_tree(&mut self, stats: Stats) {
        self.nodes += stats.nodes;
        self.holes += stats.holes;
        self.add_totals(stats);
    }
}
