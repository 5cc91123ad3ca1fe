//! What a worker holds, told so that it can be stored and held again.

use std::time::{Duration, Instant};

use super::super::super::before;
use super::super::super::index::{Holder, ImageCursor};
use super::super::image::{CacheImage, IndexImage};
use super::super::{Index, WorkerCache, layer};
use super::presumed::Age;
use super::{Holdings, HoldingsParams, Presumed, Tier};

/// What one memory tier of one rank holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierImage {
    /// The rank's number.
    pub rank: u32,
    /// Its tier.
    pub tier: Tier,
    /// What that holds.
    pub cache: CacheImage,
}

/// What [`Holdings`] hold. Bounds are not part of it, nor are totals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HoldingsImage {
    /// What was confirmed, in the order of ranks first heard of.
    pub caches: Vec<TierImage>,
    /// The younger generation of what is presumed.
    pub young: IndexImage,
    /// The older.
    pub old: IndexImage,
    /// How long the younger had been so.
    pub young_for: Duration,
    /// Whether the engine's events were trusted.
    pub confirming: bool,
}

impl HoldingsImage {
    /// Blocks of ours in it, and engine blocks.
    pub fn counts(&self) -> (usize, usize) {
        let presumed = self.young.blocks.len() + self.old.blocks.len();
        let caches = || self.caches.iter().map(|tier| &tier.cache);
        (
            presumed + caches().map(|cache| cache.index.blocks.len()).sum::<usize>(),
            caches().map(|cache| cache.records.records.len()).sum(),
        )
    }
}

/// Which of the images blocks belong to.
#[derive(Clone, Copy, Debug)]
enum Part {
    Cache(usize),
    Young,
    Old,
    Unconfirmed,
}

/// What a worker holds, on its way into images.
#[derive(Debug)]
pub struct Telling {
    image: HoldingsImage,
    unconfirmed: IndexImage,
    /// The next last.
    todo: Vec<(Part, Holder)>,
    /// How far the next has been told, if it was begun.
    cursor: Option<ImageCursor>,
}

impl Telling {
    /// Tells about `blocks` more blocks; whether there is more. What changes in the index between two
    /// parts may be told or not; all else is told once.
    pub fn part(&mut self, index: &mut Index, blocks: usize) -> bool {
        let Some(&(part, holder)) = self.todo.last() else { return false };
        let image = match part {
            Part::Cache(at) => &mut self.image.caches[at].cache.index,
            Part::Young => &mut self.image.young,
            Part::Old => &mut self.image.old,
            Part::Unconfirmed => &mut self.unconfirmed,
        };
        let cursor = self.cursor.get_or_insert_with(|| index.begin_image(holder));
        if !image.tell_part(index, cursor, blocks) {
            self.todo.pop();
            self.cursor = None;
        }
        !self.todo.is_empty()
    }

    /// What was told: what is held, and what reports cannot confirm of it.
    pub fn finish(self) -> (HoldingsImage, IndexImage) {
        (self.image, self.unconfirmed)
    }
}

impl Holdings {
    /// Begins to tell what is held: the records of engine blocks at once, blocks part by part, so
    /// that the index need not be kept from others for long. O(records).
    pub fn begin_image(&self, now: Instant) -> Telling {
        let mut telling = Telling {
            image: HoldingsImage {
                young_for: self.presumed.age(now),
                confirming: self.presumed.confirming(),
                ..HoldingsImage::default()
            },
            unconfirmed: IndexImage::default(),
            todo: Vec::new(),
            cursor: None,
        };
        for rank in &self.ranks {
            for (tier, cache) in rank.caches() {
                let part = Part::Cache(telling.image.caches.len());
                telling.todo.push((part, rank.holder(tier)));
                let cache = CacheImage { index: IndexImage::default(), records: cache.image() };
                telling.image.caches.push(TierImage { rank: rank.number, tier, cache });
            }
        }
        // What all rows are told of, the one that has been there longest knows.
        if let Some(&row) = self.rows().first() {
            for (part, layer) in [
                (Part::Young, self.presumed.layer(Age::Young)),
                (Part::Old, self.presumed.layer(Age::Old)),
                (Part::Unconfirmed, layer::UNCONFIRMED),
            ] {
                telling.todo.push((part, Holder { row, layer }));
            }
        }
        telling
    }

    /// What is held, and what reports cannot confirm of it, all at once.
    pub fn image(&self, index: &mut Index, now: Instant) -> (HoldingsImage, IndexImage) {
        let mut telling = self.begin_image(now);
        while telling.part(index, usize::MAX) {}
        telling.finish()
    }

    /// Holds again what images tell of that were taken `away` ago, within the bounds of `params`.
    /// Of several caches of one rank and tier the first counts; ranks beyond [`RANKS_MAX`](super::RANKS_MAX) are left
    /// out.
    pub fn restore(
        params: HoldingsParams,
        index: &mut Index,
        (image, unconfirmed): (&HoldingsImage, &IndexImage),
        away: Duration,
        now: Instant,
    ) -> Self {
        let mut holdings = Self::new(params, index, now);
        let since = before(now, image.young_for.saturating_add(away));
        holdings.presumed = Presumed::new(since, image.confirming);
        // Records cannot be trimmed later, so the fastest tier comes first; but ranks stay in order.
        for told in &image.caches {
            let known = holdings.ranks.iter().any(|rank| rank.number == told.rank);
            if !known && holdings.add_cache(index, told.rank, told.tier).is_ok() {
                let rank = holdings.ranks.last_mut().expect("it was added");
                rank.tiers = Default::default();
            }
        }
        for tier in Tier::ALL {
            for told in image.caches.iter().filter(|told| told.tier == tier) {
                holdings.restore_cache(index, told);
            }
        }
        for row in holdings.rows() {
            let young = Holder { row, layer: holdings.presumed.layer(Age::Young) };
            image.young.restore(index, young);
            image.old.restore(index, Holder { row, layer: holdings.presumed.layer(Age::Old) });
            unconfirmed.restore(index, Holder { row, layer: layer::UNCONFIRMED });
        }
        while holdings.settle(index, 1 << 20) {}
        holdings
    }

    fn restore_cache(&mut self, index: &mut Index, told: &TierImage) {
        let number = told.rank;
        let Some(at) = self.ranks.iter().position(|rank| rank.number == number) else { return };
        if self.ranks[at].tiers[told.tier as usize].is_some() {
            return;
        }
        let bytes_max = self.engine_bytes_max_of(told.tier, &WorkerCache::new(0, 0));
        let holder = self.ranks[at].holder(told.tier);
        told.cache.index.restore(index, holder);
        let cache =
            WorkerCache::restore(bytes_max, self.params.id_seed, &told.cache.records, |block| {
                index.release(holder, &[block]);
            });
        self.ranks[at].tiers[told.tier as usize] = Some(Box::new(cache));
    }
}
