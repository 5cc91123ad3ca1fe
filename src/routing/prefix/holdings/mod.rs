//! What one worker holds, as far as we know: in which memory, and on whose word.
//!
//! *Confirmed* is what the engine's own events say. One URL may hide several engines (data-parallel
//! ranks), each with its own caches and its own ids, so every rank has a row of the shared [`Index`]
//! with a layer for each memory tier, and a [`WorkerCache`] of engine blocks for each. *Presumed* is
//! what we sent there and nobody has confirmed yet (`presumed`): all there is to go by without
//! events, and what keeps a burst together until they come with them. We do not choose the rank, so
//! every rank of a worker is presumed to hold it. *Unconfirmed* is what we sent there and its
//! reports cannot speak of: text prompts of a worker that reports tokens, say.
//!
//! Whatever changes is changed in the index that comes as an argument; it must be the same one
//! always. `stats` says what is there, `image` tells it to others.

mod believe;
mod image;
mod presumed;
mod reports;
mod stats;

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::super::block::BlockHash;
use super::super::index::{Holder, Layers};
use super::{EngineBlocks, Index, WorkerCache, layer};
pub use image::{HoldingsImage, Telling, TierImage};
use presumed::{Age, Presumed};
pub use stats::{HoldingsStats, TierStats};

/// Ranks of one worker that are kept apart; what further ones report is rejected.
pub const RANKS_MAX: usize = 64;

/// Blocks trimmed beyond those added, at most, where a bound is exceeded.
const TRIMMED_MORE: usize = 64;

/// Where a worker keeps a block, the fastest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// The accelerator's own memory: ready for use.
    #[default]
    Gpu,
    /// The host's memory: has to be loaded first.
    Cpu,
    /// Disk or another machine: slower still.
    Storage,
}

impl Tier {
    /// All tiers, the fastest first.
    pub const ALL: [Self; 3] = [Self::Gpu, Self::Cpu, Self::Storage];

    /// Its layer of a row.
    pub(super) const fn layer(self) -> u8 {
        match self {
            Self::Gpu => layer::GPU,
            Self::Cpu => layer::CPU,
            Self::Storage => layer::STORAGE,
        }
    }

    /// The layers that say how far a rank gets with this tier and those above it.
    pub const fn reach(self) -> Layers {
        match self {
            Self::Gpu => Layers(layer::BELIEVED),
            Self::Cpu => Layers(layer::BELIEVED | 1 << layer::CPU),
            Self::Storage => Layers(layer::BELIEVED | 1 << layer::CPU | 1 << layer::STORAGE),
        }
    }
}

/// What a worker's holdings may grow to, and how long a presumption stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldingsParams {
    /// Blocks presumed, and blocks that reports cannot confirm: an estimate of the worker's
    /// capacity.
    pub blocks_max: usize,
    /// Heap bytes of all records of engine blocks.
    pub engine_bytes_max: usize,
    /// What nobody who reports knows: engines' names for blocks are spread by it, so that none can aim
    /// them at one place. Of use when holdings are made.
    pub id_seed: u64,
    /// How long a presumption stands at least while events could have confirmed it.
    pub presumed_ttl: Duration,
}

/// How much of a prompt is held, in leading blocks.
///
/// `gpu`, `gpu + cpu` and `gpu + cpu + storage` each say how far the rank gets that gets farthest;
/// it need not be the same rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Matched {
    /// Blocks in a rank's GPU tier, or presumed.
    pub gpu: usize,
    /// Further blocks reached if the CPU tier counts too.
    pub cpu: usize,
    /// Further blocks reached if the storage tier counts too.
    pub storage: usize,
    /// Blocks that a rank confirmed in its GPU tier, without any presumption.
    pub confirmed: usize,
}

#[derive(Clone, Debug)]
struct Rank {
    number: u32,
    row: u32,
    /// By [`Tier`]; none before the first report.
    tiers: [Option<Box<WorkerCache>>; Tier::ALL.len()],
}

impl Rank {
    fn caches(&self) -> impl Iterator<Item = (Tier, &WorkerCache)> {
        let tiers = Tier::ALL.into_iter().zip(&self.tiers);
        tiers.filter_map(|(tier, cache)| Some((tier, &**cache.as_ref()?)))
    }

    const fn holder(&self, tier: Tier) -> Holder {
        Holder { row: self.row, layer: tier.layer() }
    }
}

/// What we believe one worker holds.
#[derive(Clone, Debug)]
pub struct Holdings {
    params: HoldingsParams,
    /// Whose rows it has in the index.
    owner: u32,
    ranks: Vec<Rank>,
    /// The row in use while no rank is known; none where the index has no more.
    spare: Option<u32>,
    presumed: Presumed,
}

type Rows = SmallVec<[u32; 4]>;

/// Records of engine blocks that are not needed any more.
#[derive(Debug, Default)]
#[must_use = "is to be dropped when nobody waits"]
pub struct Forgotten(#[expect(dead_code, reason = "only freed")] Vec<EngineBlocks>);

impl Holdings {
    /// Nothing held, events not trusted. Takes a row of `index`, which [`leave`](Self::leave) gives
    /// back.
    pub fn new(params: HoldingsParams, index: &mut Index, now: Instant) -> Self {
        let owner = index.add_owner();
        let (spare, presumed) = (index.add_row(owner), Presumed::new(now, false));
        Self { params, owner, ranks: Vec::new(), spare, presumed }
    }

    /// Gives all rows back; nothing may be asked of it after that.
    pub fn leave(&mut self, index: &mut Index) {
        index.drop_owner(self.owner);
    }

    /// Whose rows it has in the index; see [`Index::by_owner`](super::super::index::SharedIndex::by_owner).
    pub const fn owner(&self) -> u32 {
        self.owner
    }

    /// Changes the parameters. What is over the new bounds goes by [`settle`](Self::settle).
    pub fn set_params(&mut self, params: HoldingsParams) {
        self.params = params;
    }

    /// Trims presumptions to their bounds, at most `blocks` blocks; whether there may be more.
    pub fn settle(&mut self, index: &mut Index, blocks: usize) -> bool {
        let mut left = blocks;
        for (holder, over) in self.excess(index) {
            let held = index.blocks_of(holder);
            left -= index.trim(holder, held - over.min(left) as u64);
        }
        left == 0
    }

    /// Whether [`settle`](Self::settle) has anything to do.
    pub fn is_over(&self, index: &Index) -> bool {
        !self.excess(index).is_empty()
    }

    /// By how many blocks who is over its bound.
    fn excess(&self, index: &Index) -> SmallVec<[(Holder, usize); 4]> {
        let rows = self.rows();
        let young_max = self.params.blocks_max;
        // Both generations share the bound, and the older makes room.
        let young = self.presumed.blocks_of(index, &rows, Age::Young).min(young_max);
        let bounds = [
            (self.presumed.layer(Age::Young), young_max),
            (self.presumed.layer(Age::Old), young_max - young),
            (layer::UNCONFIRMED, young_max),
        ];
        let holders = rows
            .into_iter()
            .flat_map(|row| bounds.map(|(layer, blocks_max)| (Holder { row, layer }, blocks_max)));
        let over = |(holder, blocks_max): (Holder, usize)| {
            let over = (index.blocks_of(holder) as usize).saturating_sub(blocks_max);
            (over > 0).then_some((holder, over))
        };
        holders.filter_map(over).collect()
    }

    /// How much of a prompt is held. Changes nothing, recency included, and allocates nothing.
    ///
    /// A rank's leading blocks are followed through its layers and the presumed ones together, so
    /// neither a part that only the CPU tier holds nor a hole that another layer fills ends a match.
    pub fn matched(&self, index: &Index, blocks: &[BlockHash]) -> Matched {
        let rows = self.rows();
        let farthest = |layers| {
            let reach = rows.iter().map(|&row| index.matched(row, layers, blocks));
            reach.max().unwrap_or(0)
        };
        // Most fleets tell of few tiers: what nobody has need not be followed.
        let uses = |layer: u8| index.uses(Layers(1 << layer));
        let gpu = farthest(Tier::Gpu.reach());
        let cpu = if uses(layer::CPU) { farthest(Tier::Cpu.reach()) } else { gpu };
        let storage = if uses(layer::STORAGE) { farthest(Tier::Storage.reach()) } else { cpu };
        let confirmed = if uses(layer::GPU) { farthest(Layers(1 << layer::GPU)) } else { 0 };
        Matched { gpu, cpu: cpu - gpu, storage: storage - cpu, confirmed }
    }

    /// As [`matched`](Self::matched), where what reports cannot confirm counts too.
    pub fn matched_unconfirmed(&self, index: &Index, blocks: &[BlockHash]) -> Matched {
        let held = self.matched(index, blocks);
        let layers = Layers(1 << layer::UNCONFIRMED);
        let apart = self.rows().iter().map(|&row| index.matched(row, layers, blocks)).max();
        Matched { gpu: held.gpu.max(apart.unwrap_or(0)), ..held }
    }

    /// A rank dropped all its caches; presumptions go too. What is returned is only to be dropped,
    /// when nobody waits: it takes long.
    pub fn cleared(&mut self, index: &mut Index, rank: u32) -> Forgotten {
        self.presumed.clear(index, &self.rows());
        let Some(at) = self.ranks.iter().position(|other| other.number == rank) else {
            return Forgotten::default();
        };
        // A row is clean at once, a layer of it would have to be swept first.
        if let Some(fresh) = index.add_row(self.owner) {
            let rank = &mut self.ranks[at];
            index.drop_row(std::mem::replace(&mut rank.row, fresh));
            let caches = rank.tiers.iter_mut().flatten();
            return Forgotten(caches.map(|cache| cache.cleared()).collect());
        }
        self.take_rank(index, at)
    }

    /// As [`cleared`](Self::cleared), for a rank that is heard of no more: makes room for another.
    pub fn drop_rank(&mut self, index: &mut Index, rank: u32) -> Forgotten {
        if let Some(at) = self.ranks.iter().position(|other| other.number == rank) {
            return self.take_rank(index, at);
        }
        self.presumed.clear(index, &self.rows());
        Forgotten::default()
    }

    fn take_rank(&mut self, index: &mut Index, at: usize) -> Forgotten {
        let rank = self.ranks.remove(at);
        index.drop_row(rank.row);
        self.presumed.clear(index, &self.rows());
        if self.ranks.is_empty() {
            self.spare = index.add_row(self.owner);
        }
        Forgotten(rank.tiers.into_iter().flatten().map(|mut cache| cache.cleared()).collect())
    }

    /// Forgets all ranks, presumptions and what reports cannot confirm.
    pub fn drop_all(&mut self, index: &mut Index) -> Forgotten {
        for row in self.rows() {
            index.drop_row(row);
        }
        self.spare = index.add_row(self.owner);
        let tiers = self.ranks.drain(..).flat_map(|rank| rank.tiers.into_iter().flatten());
        Forgotten(tiers.map(|mut cache| cache.cleared()).collect())
    }

    /// Gives back memory of records that is not in use any more.
    pub fn shrink_when_sparse(&mut self) {
        for rank in &mut self.ranks {
            rank.tiers.iter_mut().flatten().for_each(|cache| cache.shrink_when_sparse());
        }
    }

    /// Forgets what reports cannot confirm. Until the index is swept nothing of that kind is held.
    pub fn drop_unconfirmed(&mut self, index: &mut Index) {
        for row in self.rows() {
            index.drop_holder(Holder { row, layer: layer::UNCONFIRMED });
        }
    }

    /// Asserts every invariant, but those of the index.
    pub fn check(&self, index: &Index) {
        let mut records = 0;
        for (_, cache) in self.ranks.iter().flat_map(Rank::caches) {
            cache.check();
            records += cache.engine_stats().bytes;
        }
        assert!(self.ranks.len() <= RANKS_MAX, "ranks");
        assert!(self.ranks.is_empty() || self.spare.is_none(), "a spare row beside others");
        let stats = self.stats(index);
        assert_eq!(stats.engine_bytes(), records, "bytes of records");
        let gone = stats.trimmed_total + stats.removed_total;
        assert_eq!(stats.inserted_total - gone, stats.held_blocks, "totals");
        let presumed = self.presumed.blocks(index, &self.rows());
        assert!(presumed <= self.params.blocks_max, "block bound");
    }

    fn rows(&self) -> Rows {
        self.spare.into_iter().chain(self.ranks.iter().map(|rank| rank.row)).collect()
    }
}
