//! What a worker says that it holds.

use std::num::NonZeroUsize;

use super::super::super::block::{BlockHash, Root};
use super::super::super::index::Holder;
use super::super::worker_cache::Tree;
use super::super::{
    Digest, EngineBlockId, Index, Rejection, RemovedOutcome, StoredOutcome, WorkerCache, bucket_of,
    mix_id,
};
use super::presumed::Age;
use super::{Holdings, RANKS_MAX, Rank, Tier};

impl Holdings {
    /// Makes room for the records of so many engine blocks that a rank is about to store: to be done
    /// before the index is locked.
    pub fn prepare(&mut self, rank: u32, tier: Tier, engine_blocks: usize) {
        if let Some((cache, _)) = self.cache_mut(rank, tier) {
            cache.prepare(engine_blocks);
        }
    }

    /// A rank stored a chain of blocks in a tier: see [`WorkerCache::stored`].
    #[expect(clippy::too_many_arguments, reason = "an event's fields")]
    pub fn stored<'a>(
        &mut self,
        index: &mut Index,
        rank: u32,
        tier: Tier,
        root: Root,
        parent: Option<EngineBlockId>,
        blocks: impl Iterator<Item = (EngineBlockId, &'a [u8])>,
        block_bytes: NonZeroUsize,
    ) -> StoredOutcome {
        let rooted = parent.is_none() || self.cache(rank, tier).is_some();
        let added =
            if rooted { self.add_cache(index, rank, tier) } else { Err(Rejection::UnknownParent) };
        if let Err(reason) = added {
            let mut outcome = StoredOutcome::default();
            outcome.reject(reason, blocks.count());
            return outcome;
        }
        let mut gone = Vec::new();
        let (cache, holder) = self.cache_mut(rank, tier).expect("there is one now");
        let mut tree = Tree { index, holder };
        let outcome = cache.stored(&mut tree, root, parent, blocks, block_bytes, |b| gone.push(b));
        self.uncovered(index, tier, gone);
        outcome
    }

    /// Whether all these blocks are known to some tier of a rank: what they stand for, if not where.
    pub fn knows(&self, index: &Index, rank: u32, ids: &[EngineBlockId]) -> bool {
        let caches = || Tier::ALL.into_iter().filter_map(|tier| self.cache(rank, tier));
        ids.iter().all(|&id| caches().any(|cache| cache.known(index, id).is_some()))
    }

    /// A rank stored blocks in a tier that the report names by id alone. What they stand for is
    /// taken from another tier of the rank; a block that none knows is rejected, the others are
    /// not.
    pub fn stored_known(
        &mut self,
        index: &mut Index,
        rank: u32,
        tier: Tier,
        ids: &[EngineBlockId],
    ) -> StoredOutcome {
        let mut outcome = StoredOutcome::default();
        let mut gone = Vec::new();
        for &id in ids {
            let mut tiers = Tier::ALL.into_iter().filter_map(|tier| self.cache(rank, tier));
            let known = tiers.find_map(|cache| cache.known(index, id));
            let known = known.filter(|_| self.add_cache(index, rank, tier).is_ok());
            match (known, self.cache_mut(rank, tier)) {
                (Some(known), Some((cache, holder))) => {
                    let mut tree = Tree { index, holder };
                    cache.stored_known(&mut tree, known, &mut outcome, |block| gone.push(block));
                }
                _ => {
                    outcome.reject(Rejection::UnknownParent, outcome.rejected_engine_blocks + 1);
                }
            }
        }
        self.uncovered(index, tier, gone);
        outcome
    }

    /// A rank removed one copy of each of these blocks from a tier. What its GPU tier lost so is
    /// not presumed any more either, unless another rank's has it.
    pub fn removed(
        &mut self,
        index: &mut Index,
        rank: u32,
        tier: Tier,
        ids: &[EngineBlockId],
    ) -> RemovedOutcome {
        let Some((cache, holder)) = self.cache_mut(rank, tier) else {
            return RemovedOutcome { unknown: ids.len(), ..RemovedOutcome::default() };
        };
        let mut gone = Vec::new();
        let outcome = cache.removed(&mut Tree { index, holder }, ids, |block| gone.push(block));
        self.uncovered(index, tier, gone);
        outcome
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
    pub fn set_copies(
        &mut self,
        index: &mut Index,
        rank: u32,
        id: EngineBlockId,
        copies: u32,
    ) -> usize {
        let Some((cache, holder)) = self.cache_mut(rank, Tier::Gpu) else { return 0 };
        let mut gone = Vec::new();
        let mut tree = Tree { index, holder };
        let removed = cache.set_copies(&mut tree, id, copies, |block| gone.push(block));
        self.uncovered(index, Tier::Gpu, gone);
        removed
    }

    fn cache(&self, rank: u32, tier: Tier) -> Option<&WorkerCache> {
        let rank = self.ranks.iter().find(|other| other.number == rank)?;
        rank.tiers[tier as usize].as_deref()
    }

    /// A cache that there is, with the bound of now: to be got again for every change.
    fn cache_mut(&mut self, rank: u32, tier: Tier) -> Option<(&mut WorkerCache, Holder)> {
        let bytes_max = self.engine_bytes_max_of(tier, self.cache(rank, tier)?);
        let rank = self.ranks.iter_mut().find(|other| other.number == rank)?;
        let holder = rank.holder(tier);
        let cache = rank.tiers[tier as usize].as_mut()?;
        cache.set_bytes_max(bytes_max);
        Some((cache, holder))
    }

    /// What the records of one cache may take now. Records cannot be trimmed, so the lower tiers
    /// together may take half.
    pub(super) fn engine_bytes_max_of(&self, tier: Tier, cache: &WorkerCache) -> usize {
        let (mut all, mut lower) = (0, 0);
        for (tier, cache) in self.ranks.iter().flat_map(Rank::caches) {
            let bytes = cache.engine_stats().bytes;
            all += bytes;
            lower += if tier == Tier::Gpu { 0 } else { bytes };
        }
        let own = cache.engine_stats().bytes;
        let room = self.params.engine_bytes_max.saturating_sub(all - own);
        if tier == Tier::Gpu {
            return room;
        }
        room.min((self.params.engine_bytes_max / 2).saturating_sub(lower - own))
    }

    fn copies(&self, rank: u32) -> impl Iterator<Item = (EngineBlockId, u32)> {
        self.cache(rank, Tier::Gpu).into_iter().flat_map(WorkerCache::copies)
    }

    /// Makes the cache of a rank and tier, if there is none yet.
    pub(super) fn add_cache(
        &mut self,
        index: &mut Index,
        number: u32,
        tier: Tier,
    ) -> Result<(), Rejection> {
        let known = self.ranks.iter().position(|other| other.number == number);
        let at = known.unwrap_or(self.ranks.len());
        if known.is_none() {
            let row = if at < RANKS_MAX {
                self.spare.take().or_else(|| index.add_row(self.owner))
            } else {
                None
            };
            let row = row.ok_or(Rejection::TooManyRanks)?;
            self.ranks.push(Rank { number, row, tiers: Default::default() });
        }
        let cache = &mut self.ranks[at].tiers[tier as usize];
        cache.get_or_insert_with(|| Box::new(WorkerCache::new(0, self.params.id_seed)));
        Ok(())
    }

    /// Takes blocks that a rank's tier lost out of the presumptions, but for those that some rank
    /// holds in its GPU tier.
    fn uncovered(&self, index: &mut Index, tier: Tier, mut gone: Vec<BlockHash>) {
        if tier != Tier::Gpu {
            return;
        }
        let rows = self.rows();
        gone.retain(|&block| {
            let mut gpus = self.ranks.iter().map(|rank| rank.holder(Tier::Gpu));
            self.presumed.holds(index, &rows, block) && !gpus.any(|gpu| index.holds(gpu, block))
        });
        for row in rows {
            for age in Age::ALL {
                index.release(Holder { row, layer: self.presumed.layer(age) }, &gone);
            }
        }
    }
}
