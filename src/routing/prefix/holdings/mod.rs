//! What one worker holds, as far as we know: in which memory, and on whose word.
//!
//! *Confirmed* is what the engine's own events say. One URL may hide several engines (data-parallel
//! ranks), each with its own caches and its own ids, so every rank has a [`WorkerCache`] per memory
//! tier. *Presumed* is what we sent there and nobody has confirmed yet (`presumed`): all there is
//! to go by without events, and what keeps a burst together until they come with them. We do not
//! choose the rank, so presumptions belong to none.
//!
//! `budget` divides the memory, `stats` says what is in it, `image` tells it to others.

mod budget;
mod image;
mod presumed;
mod stats;

#[cfg(test)]
mod tests;

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use super::super::block::{BlockHash, Root};
use super::{
    Bounds, Digest, EngineBlockId, Inserted, PrefixIndex, Rejection, RemovedOutcome, StoredOutcome,
    WorkerCache, bucket_of, mix_id,
};
pub use image::{HoldingsImage, TierImage};
use presumed::{Age, Presumed};
pub use stats::{HoldingsStats, TierStats};

/// Ranks of one worker that are kept apart; what further ones report is rejected.
pub const RANKS_MAX: usize = 64;

/// Changes from tree to tree while a match is followed; past that it is taken to end.
const TURNS_MAX: usize = 64;

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
}

/// What a worker's holdings may grow to, and how long a presumption stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HoldingsParams {
    /// Blocks presumed: an estimate of the worker's capacity.
    pub blocks_max: usize,
    /// Heap bytes of all trees.
    pub bytes_max: usize,
    /// Heap bytes of all records of engine blocks.
    pub engine_bytes_max: usize,
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
    /// By [`Tier`]; none before the first report.
    tiers: [Option<Box<WorkerCache>>; Tier::ALL.len()],
}

/// What we believe one worker holds.
#[derive(Clone, Debug)]
pub struct Holdings {
    params: HoldingsParams,
    ranks: Vec<Rank>,
    presumed: Presumed,
    /// The totals of caches that were dropped.
    dropped: HoldingsStats,
}

impl Holdings {
    /// Nothing held, events not trusted.
    pub fn new(params: HoldingsParams, now: Instant) -> Self {
        let dropped = HoldingsStats::default();
        Self { params, ranks: Vec::new(), presumed: Presumed::new(now), dropped }
    }

    /// Changes the parameters; returns how many blocks were trimmed. Records over their new bound
    /// stay until the engine removes them, but no more are taken.
    pub fn set_params(&mut self, params: HoldingsParams) -> usize {
        self.params = params;
        let trimmed_total = self.stats().trimmed_total;
        self.rebound();
        (self.stats().trimmed_total - trimmed_total) as usize
    }

    /// How much of a prompt is held. Changes nothing, recency included, and allocates nothing.
    ///
    /// A rank's leading blocks are followed through its trees and the presumed ones together, so
    /// neither a part that only the CPU tier holds nor a hole that another tree fills ends a match.
    /// One walk per tree, and a look-up per tree at every place where the match changes trees (at
    /// most `TURNS_MAX`).
    pub fn matched(&self, blocks: &[BlockHash]) -> Matched {
        let young = Some(&self.presumed[Age::Young]);
        let old = Some(&self.presumed[Age::Old]);
        let presumed = follow(&[young, old], blocks, 0);
        let (mut reach, mut confirmed) = ([presumed; Tier::ALL.len()], 0);
        for rank in &self.ranks {
            let [gpu, cpu, storage] = rank.tiers.each_ref().map(|t| t.as_ref().map(|t| t.index()));
            let own = gpu.map_or(0, |gpu| gpu.matched_blocks(blocks));
            confirmed = confirmed.max(own);
            let mut at = own.max(presumed);
            let trees = [young, old, gpu, cpu, storage];
            for tier in Tier::ALL {
                // An absent tier reaches no farther than the one before.
                if tier == Tier::Gpu || rank.tiers[tier as usize].is_some() {
                    at = follow(&trees[..3 + tier as usize], blocks, at);
                }
                reach[tier as usize] = reach[tier as usize].max(at);
            }
        }
        let [gpu, cpu, storage] = reach;
        Matched { gpu, cpu: cpu - gpu, storage: storage - cpu, confirmed }
    }

    /// A prompt is sent there: what it has of it is just used, and the rest it will have.
    ///
    /// While events are trusted, what one rank confirmed from end to end needs no presumption.
    pub fn presume(&mut self, blocks: &[BlockHash], now: Instant) -> Inserted {
        self.expire(now);
        let mut confirmed = 0;
        for rank in &mut self.ranks {
            for cache in rank.tiers.iter_mut().flatten() {
                cache.touch(blocks);
            }
            let gpu = rank.tiers[Tier::Gpu as usize].as_mut();
            confirmed = confirmed.max(gpu.map_or(0, |gpu| gpu.touch(blocks)));
        }
        if self.presumed.confirming() && confirmed == blocks.len() {
            return Inserted::default();
        }
        let trimmed_total = self.presumed_trimmed_total();
        let inserted = self.generation(Age::Young).insert(blocks);
        // Both generations share the bound on blocks, and the older makes room.
        self.generation(Age::Old);
        let trimmed_blocks = (self.presumed_trimmed_total() - trimmed_total) as usize;
        Inserted { trimmed_blocks, ..inserted }
    }

    /// It was not sent after all: takes the presumption of `blocks[keep..]` back, from its end up
    /// to what something else follows. What is confirmed stays. Returns by how many blocks
    /// [`HoldingsStats::presumed_blocks`] sank.
    pub fn retract(&mut self, blocks: &[BlockHash], keep: usize) -> usize {
        Age::ALL.into_iter().map(|age| self.generation(age).retract(blocks, keep)).sum()
    }

    /// Marks what is held of a prompt as just used.
    pub fn touch(&mut self, blocks: &[BlockHash]) {
        for cache in self.ranks.iter_mut().flat_map(|rank| rank.tiers.iter_mut().flatten()) {
            cache.touch(blocks);
        }
        for age in Age::ALL {
            self.presumed[age].touch(blocks);
        }
    }

    /// The engine has prefilled this prompt, says its answer: whatever it held of it before, it
    /// held all of it then. Without events that is presumed again; events that are trusted already
    /// said so, and may have said since that it is gone.
    ///
    /// That it held less than we believed only says that its cache is smaller or busier than we
    /// believe. Which other blocks it lacks cannot be told from here at a price a request should
    /// pay (a run does not know its children), so that is left to a lower
    /// [`HoldingsParams::blocks_max`], which trims what is least recently used.
    pub fn prefilled(&mut self, blocks: &[BlockHash], now: Instant) {
        if self.presumed.confirming() {
            self.touch(blocks);
        } else {
            self.presume(blocks, now);
        }
    }

    /// Whether the engine's events tell the truth from now on. If so, what was presumed so far
    /// expires unless confirmed; if not, nothing does any more.
    pub fn set_confirming(&mut self, confirming: bool, now: Instant) {
        if confirming != self.presumed.confirming() {
            self.presumed.set_confirming(confirming, now);
            self.rebound();
        }
    }

    /// Drops presumptions that events should have confirmed by now; returns how many blocks. O(1)
    /// but once per `presumed_ttl`; then it frees one generation, run by run.
    pub fn expire(&mut self, now: Instant) -> usize {
        self.presumed.expire(self.params.presumed_ttl, now)
    }

    /// A rank stored a chain of blocks in a tier: see [`WorkerCache::stored`].
    pub fn stored<'a>(
        &mut self,
        rank: u32,
        tier: Tier,
        root: Root,
        parent: Option<EngineBlockId>,
        blocks: impl Iterator<Item = (EngineBlockId, &'a [u8])>,
        block_bytes: NonZeroUsize,
    ) -> StoredOutcome {
        let rooted = parent.is_none() || self.cache(rank, tier).is_some();
        let cache = if rooted { self.add_cache(rank, tier) } else { Err(Rejection::UnknownParent) };
        let cache = match cache {
            Ok(cache) => cache,
            Err(reason) => {
                let mut outcome = StoredOutcome::default();
                outcome.reject(reason, blocks.count());
                return outcome;
            }
        };
        let mut gone = Vec::new();
        let outcome = cache.stored_and(root, parent, blocks, block_bytes, |b| gone.push(b));
        self.uncovered(tier, gone);
        outcome
    }

    /// Whether all these blocks are known to some tier of a rank: what they stand for, if not where.
    pub fn knows(&self, rank: u32, ids: &[EngineBlockId]) -> bool {
        let caches = || Tier::ALL.into_iter().filter_map(|tier| self.cache(rank, tier));
        ids.iter().all(|&id| caches().any(|cache| cache.known(id).is_some()))
    }

    /// A rank stored blocks in a tier that the report names by id alone. What they stand for is
    /// taken from another tier of the rank; a block that none knows is rejected, the others are
    /// not.
    pub fn stored_known(&mut self, rank: u32, tier: Tier, ids: &[EngineBlockId]) -> StoredOutcome {
        let mut outcome = StoredOutcome::default();
        let mut gone = Vec::new();
        for &id in ids {
            let mut tiers = Tier::ALL.into_iter().filter_map(|tier| self.cache(rank, tier));
            let known = tiers.find_map(|cache| cache.known(id));
            let cache = known.and_then(|known| Some((known, self.add_cache(rank, tier).ok()?)));
            match cache {
                Some((known, cache)) => {
                    cache.stored_known(known, &mut outcome, |block| gone.push(block));
                }
                None => {
                    outcome.reject(Rejection::UnknownParent, outcome.rejected_engine_blocks + 1);
                }
            }
        }
        self.uncovered(tier, gone);
        outcome
    }

    /// A rank removed one copy of each of these blocks from a tier. What its GPU tier lost so is
    /// not presumed any more either, unless another rank's has it.
    pub fn removed(&mut self, rank: u32, tier: Tier, ids: &[EngineBlockId]) -> RemovedOutcome {
        let Some(cache) = self.cache_mut(rank, tier) else {
            return RemovedOutcome { unknown: ids.len(), ..RemovedOutcome::default() };
        };
        let mut gone = Vec::new();
        let outcome = cache.removed_and(ids, |block| gone.push(block));
        self.uncovered(tier, gone);
        outcome
    }

    /// A rank dropped all its caches; presumptions go too.
    pub fn cleared(&mut self, rank: u32) {
        if let Some(rank) = self.ranks.iter_mut().find(|other| other.number == rank) {
            rank.tiers.iter_mut().flatten().for_each(|cache| cache.cleared());
        }
        self.presumed.clear();
    }

    /// As [`cleared`](Self::cleared), for a rank that is heard of no more: makes room for another.
    pub fn drop_rank(&mut self, rank: u32) {
        self.cleared(rank);
        for rank in self.ranks.extract_if(.., |other| other.number == rank) {
            for cache in rank.tiers.iter().flatten() {
                self.dropped.add_totals(cache.stats());
            }
        }
    }

    /// Forgets all ranks and presumptions.
    pub fn drop_all(&mut self) {
        while let Some(rank) = self.ranks.last() {
            self.drop_rank(rank.number);
        }
        self.presumed.clear();
    }

    /// Which engine blocks a rank's GPU tier holds, in short. O(records).
    pub fn digest(&self, rank: u32, buckets: usize) -> Digest {
        Digest::of(self.copies(rank), buckets)
    }

    /// The engine blocks, with their copies, that a rank's GPU tier holds in the buckets `wanted`.
    pub fn copies_in(
        &self,
        rank: u32,
        wanted: impl Fn(usize) -> bool,
        buckets: usize,
    ) -> Vec<(EngineBlockId, u32)> {
        self.copies(rank).filter(|(id, _)| wanted(bucket_of(mix_id(id.0), buckets))).collect()
    }

    /// Corrects the copies of an engine block that a rank's GPU tier holds; zero removes it.
    /// Returns how many blocks of ours that removed. A block not held stays so: its text is not
    /// known here.
    pub fn set_copies(&mut self, rank: u32, id: EngineBlockId, copies: u32) -> usize {
        let Some(cache) = self.cache_mut(rank, Tier::Gpu) else { return 0 };
        let mut gone = Vec::new();
        let removed = cache.set_copies(id, copies, |block| gone.push(block));
        self.uncovered(Tier::Gpu, gone);
        removed
    }

    /// Sizes and totals, in O(trees).
    pub fn stats(&self) -> HoldingsStats {
        let mut stats = HoldingsStats { ranks: self.ranks.len(), ..self.dropped };
        for age in Age::ALL {
            stats.add_presumed(self.presumed[age].stats());
        }
        for (tier, cache) in self.caches() {
            stats.add_cache(tier, cache);
        }
        stats
    }

    /// Asserts every invariant.
    pub fn check(&self) {
        for (_, cache) in self.caches() {
            cache.check();
        }
        for age in Age::ALL {
            self.presumed[age].check();
        }
        assert!(self.ranks.len() <= RANKS_MAX, "ranks");
        let stats = self.stats();
        let gone = stats.trimmed_total + stats.removed_total;
        assert_eq!(stats.inserted_total - gone, stats.blocks() as u64, "totals");
        self.check_budget();
    }

    fn caches(&self) -> impl Iterator<Item = (Tier, &WorkerCache)> {
        self.ranks.iter().flat_map(|rank| {
            let tiers = Tier::ALL.into_iter().zip(&rank.tiers);
            tiers.filter_map(|(tier, cache)| Some((tier, &**cache.as_ref()?)))
        })
    }

    fn cache(&self, rank: u32, tier: Tier) -> Option<&WorkerCache> {
        let rank = self.ranks.iter().find(|other| other.number == rank)?;
        rank.tiers[tier as usize].as_deref()
    }

    fn copies(&self, rank: u32) -> impl Iterator<Item = (EngineBlockId, u32)> {
        self.cache(rank, Tier::Gpu).into_iter().flat_map(WorkerCache::copies)
    }

    /// The cache of a rank and tier, made if there is none yet.
    fn add_cache(&mut self, number: u32, tier: Tier) -> Result<&mut WorkerCache, Rejection> {
        if self.cache(number, tier).is_none() {
            let known = self.ranks.iter().position(|other| other.number == number);
            let at = known.unwrap_or(self.ranks.len());
            if at == RANKS_MAX {
                return Err(Rejection::TooManyRanks);
            }
            if known.is_none() {
                self.ranks.push(Rank { number, tiers: Default::default() });
            }
            let none = Bounds { blocks_max: 0, bytes_max: 0 };
            self.ranks[at].tiers[tier as usize] = Some(Box::new(WorkerCache::new(none, 0)));
            self.rebound();
        }
        Ok(self.cache_mut(number, tier).expect("there is one now"))
    }

    /// Takes blocks that a rank's tier lost out of the presumptions, but for those that some rank
    /// holds in its GPU tier.
    fn uncovered(&mut self, tier: Tier, mut gone: Vec<BlockHash>) {
        if tier != Tier::Gpu {
            return;
        }
        gone.retain(|&block| {
            let mut gpus = self.caches().filter(|(tier, _)| *tier == Tier::Gpu);
            self.presumed.holds(block) && !gpus.any(|(_, cache)| cache.index().contains(block))
        });
        if gone.is_empty() {
            return;
        }
        for age in Age::ALL {
            let index = self.generation(age);
            for &block in &gone {
                index.remove(block);
            }
        }
    }

    fn presumed_trimmed_total(&self) -> u64 {
        Age::ALL.map(|age| self.presumed[age].stats().trimmed_total).iter().sum()
    }
}

/// How many leading blocks all `trees` together hold, of which `at` are known to be.
fn follow(trees: &[Option<&PrefixIndex>], blocks: &[BlockHash], mut at: usize) -> usize {
    let mut idle = 0;
    for tree in trees.iter().cycle().take(trees.len() * TURNS_MAX) {
        let held = tree.map_or(0, |tree| tree.held_from(blocks, at));
        at += held;
        // A tree that has just been followed goes no farther by itself.
        idle = if held > 0 { 1 } else { idle + 1 };
        if idle == trees.len() || at == blocks.len() {
            break;
        }
    }
    at
}
