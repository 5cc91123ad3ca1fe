//! For tests: what works on an index, with an index of its own.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use super::super::block::{BlockHash, Root};
use super::super::index::{Holder, Layers};
use super::*;

const HOLDER: Holder = Holder { row: 0, layer: layer::GPU };

/// Holdings with an index of their own. What is dropped is swept out at once, unless told.
pub(super) struct Alone {
    pub(super) index: Index,
    pub(super) held: Holdings,
}

impl Alone {
    pub(super) fn new(params: HoldingsParams, now: Instant) -> Self {
        let mut index = Index::new(1 << 30);
        let held = Holdings::new(params, &mut index, now);
        Self { index, held }
    }

    /// Does something with the holdings and the index.
    pub(super) fn with<T>(&mut self, change: impl FnOnce(&mut Holdings, &mut Index) -> T) -> T {
        let result = change(&mut self.held, &mut self.index);
        self.held.shrink_when_sparse();
        while self.index.sweep(1000) {}
        result
    }

    pub(super) fn stored<'a>(
        &mut self,
        (rank, tier): (u32, Tier),
        root: Root,
        parent: Option<EngineBlockId>,
        blocks: impl Iterator<Item = (EngineBlockId, &'a [u8])>,
        size: NonZeroUsize,
    ) -> StoredOutcome {
        self.with(|held, index| held.stored(index, rank, tier, root, parent, blocks, size))
    }

    pub(super) fn stored_known(
        &mut self,
        rank: u32,
        tier: Tier,
        ids: &[EngineBlockId],
    ) -> StoredOutcome {
        self.with(|held, index| held.stored_known(index, rank, tier, ids))
    }

    pub(super) fn removed(
        &mut self,
        rank: u32,
        tier: Tier,
        ids: &[EngineBlockId],
    ) -> RemovedOutcome {
        self.with(|held, index| held.removed(index, rank, tier, ids))
    }

    pub(super) fn set_copies(&mut self, rank: u32, id: EngineBlockId, copies: u32) -> usize {
        self.with(|held, index| held.set_copies(index, rank, id, copies))
    }

    pub(super) fn matched(&self, blocks: &[BlockHash]) -> Matched {
        self.held.matched(&self.index, blocks)
    }

    pub(super) fn presume(&mut self, blocks: &[BlockHash], now: Instant) -> usize {
        self.with(|held, index| held.presume(index, blocks, now))
    }

    pub(super) fn prefilled(&mut self, blocks: &[BlockHash], now: Instant) {
        self.with(|held, index| {
            if held.prefilled(index, blocks) {
                held.presume(index, blocks, now);
            }
        });
    }

    pub(super) fn retract(&mut self, blocks: &[BlockHash], keep: usize) -> usize {
        self.with(|held, index| held.retract(index, blocks, keep))
    }

    pub(super) fn touch(&mut self, blocks: &[BlockHash]) {
        self.with(|held, index| held.touch(index, blocks));
    }

    pub(super) fn expire(&mut self, now: Instant) -> usize {
        self.with(|held, index| held.expire(index, now))
    }

    pub(super) fn set_confirming(&mut self, confirming: bool, now: Instant) {
        self.with(|held, index| held.set_confirming(index, confirming, now));
    }

    /// Returns how many blocks were trimmed.
    pub(super) fn set_params(&mut self, params: HoldingsParams) -> usize {
        let before = self.stats().trimmed_total;
        self.with(|held, index| {
            held.set_params(params);
            while held.settle(index, 3) {}
        });
        (self.stats().trimmed_total - before) as usize
    }

    pub(super) fn cleared(&mut self, rank: u32) {
        drop(self.with(|held, index| held.cleared(index, rank)));
    }

    pub(super) fn drop_rank(&mut self, rank: u32) {
        drop(self.with(|held, index| held.drop_rank(index, rank)));
    }

    pub(super) fn drop_all(&mut self) {
        drop(self.with(Holdings::drop_all));
    }

    pub(super) fn image(&mut self, now: Instant) -> HoldingsImage {
        self.held.image(&mut self.index, now).0
    }

    pub(super) fn restore(
        params: HoldingsParams,
        image: &HoldingsImage,
        away: Duration,
        now: Instant,
    ) -> Self {
        let mut index = Index::new(1 << 30);
        let images = (image, &IndexImage::default());
        let held = Holdings::restore(params, &mut index, images, away, now);
        Self { index, held }
    }

    pub(super) fn stats(&self) -> HoldingsStats {
        self.held.stats(&self.index)
    }

    pub(super) fn check(&self) {
        self.check_parts();
        self.index.check();
    }

    /// As [`check`](Self::check), where hashes may be any.
    pub(super) fn check_parts(&self) {
        self.held.check(&self.index);
        self.index.check_parts();
        assert_eq!(self.stats().held_blocks, self.index.stats().held, "all there is");
    }
}

/// One tier, alone in its index.
pub(super) struct Solo {
    pub(super) index: Index,
    pub(super) cache: WorkerCache,
}

impl Solo {
    pub(super) fn new(engine_bytes_max: usize) -> Self {
        let mut index = Index::new(1 << 30);
        let owner = index.add_owner();
        assert_eq!(index.add_row(owner), Some(HOLDER.row));
        Self { index, cache: WorkerCache::new(engine_bytes_max, 7) }
    }

    pub(super) fn stored<'a>(
        &mut self,
        root: Root,
        parent: Option<EngineBlockId>,
        blocks: impl Iterator<Item = (EngineBlockId, &'a [u8])>,
        size: NonZeroUsize,
    ) -> StoredOutcome {
        self.cache.prepare(5);
        let mut tree = Tree { index: &mut self.index, holder: HOLDER };
        self.cache.stored(&mut tree, root, parent, blocks, size, |_| ())
    }

    pub(super) fn removed(&mut self, ids: &[EngineBlockId]) -> RemovedOutcome {
        let mut tree = Tree { index: &mut self.index, holder: HOLDER };
        let outcome = self.cache.removed(&mut tree, ids, |_| ());
        self.cache.shrink_when_sparse();
        outcome
    }

    pub(super) fn insert(&mut self, blocks: &[BlockHash]) -> usize {
        self.index.hold(HOLDER, None, 0, blocks).gained
    }

    pub(super) fn trim(&mut self, blocks_max: u64) {
        self.index.trim(HOLDER, blocks_max);
    }

    pub(super) fn retract(&mut self, blocks: &[BlockHash], keep: usize) -> usize {
        self.index.retract(HOLDER, blocks, keep)
    }

    pub(super) fn matched_blocks(&self, blocks: &[BlockHash]) -> usize {
        self.index.matched(HOLDER.row, Layers(1 << HOLDER.layer), blocks)
    }

    /// Blocks of ours.
    pub(super) fn blocks(&self) -> usize {
        self.index.blocks_of(HOLDER) as usize
    }

    pub(super) fn engine_stats(&self) -> EngineStats {
        self.cache.engine_stats()
    }

    pub(super) fn cleared(&mut self) {
        drop(self.cache.cleared());
        self.index.drop_holder(HOLDER);
        while self.index.sweep(100) {}
    }

    pub(super) fn image(&mut self) -> CacheImage {
        let mut index = IndexImage::default();
        let mut cursor = self.index.begin_image(HOLDER);
        while index.tell_part(&mut self.index, &mut cursor, 3) {}
        CacheImage { index, records: self.cache.image() }
    }

    pub(super) fn restore(engine_bytes_max: usize, image: &CacheImage) -> Self {
        let mut solo = Self::new(engine_bytes_max);
        image.index.restore(&mut solo.index, HOLDER);
        solo.cache = WorkerCache::restore(engine_bytes_max, 8, &image.records, |block| {
            solo.index.release(HOLDER, &[block]);
        });
        solo
    }

    pub(super) fn check(&self) {
        self.check_parts();
        self.index.check();
    }

    /// As [`check`](Self::check), where hashes may be any.
    pub(super) fn check_parts(&self) {
        self.cache.check();
        self.index.check_parts();
    }
}
