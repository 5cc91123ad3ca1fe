//! The sizes of what a worker is believed to hold.

use super::super::super::index::Holder;
use super::super::{Index, layer};
use super::{Holdings, Tier};

/// Sizes of one tier, over all ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierStats {
    /// Blocks of ours that the engine confirmed, counted once per rank.
    pub blocks: usize,
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
    /// Blocks presumed; one in both generations counts twice, one in several ranks once.
    pub presumed_blocks: usize,
    /// Blocks that reports cannot confirm.
    pub unconfirmed_blocks: usize,
    /// Blocks held in the index, each counted as often as it is.
    pub held_blocks: u64,
    /// Data-parallel ranks heard of.
    pub ranks: usize,
    /// Blocks added, in all ranks, tiers and generations.
    pub inserted_total: u64,
    /// Blocks cut to keep a bound.
    pub trimmed_total: u64,
    /// Blocks removed, retracted, expired or dropped.
    pub removed_total: u64,
}

impl HoldingsStats {
    /// One tier's part.
    pub const fn tier(&self, tier: Tier) -> TierStats {
        self.tiers[tier as usize]
    }

    /// Blocks of all kinds.
    pub fn blocks(&self) -> usize {
        let confirmed: usize = self.tiers.iter().map(|tier| tier.blocks).sum();
        self.presumed_blocks + self.unconfirmed_blocks + confirmed
    }

    /// Heap bytes of all records.
    pub fn engine_bytes(&self) -> usize {
        self.tiers.iter().map(|tier| tier.engine_bytes).sum()
    }
}

impl Holdings {
    /// Sizes and totals, in O(ranks).
    pub fn stats(&self, index: &Index) -> HoldingsStats {
        let rows = self.rows();
        let held = |row, layer| index.blocks_of(Holder { row, layer });
        let totals = index.totals(self.owner);
        let unconfirmed = rows.iter().map(|&row| held(row, layer::UNCONFIRMED) as usize);
        let mut stats = HoldingsStats {
            presumed_blocks: self.presumed.blocks(index, &rows),
            unconfirmed_blocks: unconfirmed.max().unwrap_or(0),
            ranks: self.ranks.len(),
            inserted_total: totals.inserted,
            trimmed_total: totals.trimmed,
            removed_total: totals.removed,
            ..HoldingsStats::default()
        };
        for &row in &rows {
            stats.held_blocks += (0..layer::COUNT as u8).map(|layer| held(row, layer)).sum::<u64>();
        }
        for rank in &self.ranks {
            for (tier, cache) in rank.caches() {
                let (engine, tier_stats) = (cache.engine_stats(), &mut stats.tiers[tier as usize]);
                tier_stats.blocks += held(rank.row, tier.layer()) as usize;
                tier_stats.engine_blocks += engine.engine_blocks;
                tier_stats.gone_records += engine.gone_records;
                tier_stats.engine_bytes += engine.bytes;
            }
        }
        stats
    }
}
