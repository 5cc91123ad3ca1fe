//! What a worker holds, told so that it can be stored and held again.

use std::time::{Duration, Instant};

use super::super::super::before;
use super::super::image::{CacheImage, IndexImage};
use super::super::{Bounds, PrefixIndex, WorkerCache};
use super::presumed::Age;
use super::{Holdings, HoldingsParams, Presumed, RANKS_MAX, Rank, Tier};

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

impl Holdings {
    /// What is held. A copy of all blocks and records into a few vectors: see [`IndexImage`].
    pub fn image(&self, now: Instant) -> HoldingsImage {
        let tiers = self.ranks.iter().flat_map(|rank| {
            let tiers = Tier::ALL.into_iter().zip(&rank.tiers);
            tiers.filter_map(|(tier, cache)| {
                let cache = cache.as_ref()?.image();
                Some(TierImage { rank: rank.number, tier, cache })
            })
        });
        HoldingsImage {
            caches: tiers.collect(),
            young: self.presumed[Age::Young].image(),
            old: self.presumed[Age::Old].image(),
            young_for: self.presumed.age(now),
            confirming: self.presumed.confirming(),
        }
    }

    /// Holds again what an image tells of that was taken `away` ago, within the bounds of `params`.
    /// Of several caches of one rank and tier the first counts; ranks beyond [`RANKS_MAX`] are left
    /// out.
    pub fn restore(
        params: HoldingsParams,
        image: &HoldingsImage,
        away: Duration,
        now: Instant,
    ) -> Self {
        let mut holdings = Self::new(params, now);
        // Trimmed to what each may take once all are there.
        let bounds = Bounds { blocks_max: usize::MAX, bytes_max: params.bytes_max };
        let presumed = |image| {
            let blocks_max = params.blocks_max;
            PrefixIndex::restore(Bounds { blocks_max, ..bounds }, image)
        };
        let since = before(now, image.young_for.saturating_add(away));
        holdings.presumed =
            Presumed::of(presumed(&image.young), presumed(&image.old), since, image.confirming);
        for told in &image.caches {
            let known = holdings.ranks.iter().any(|rank| rank.number == told.rank);
            if !known && holdings.ranks.len() < RANKS_MAX {
                holdings.ranks.push(Rank { number: told.rank, tiers: Default::default() });
            }
        }
        // Records cannot be trimmed later, so the fastest tier comes first.
        for tier in Tier::ALL {
            for told in image.caches.iter().filter(|told| told.tier == tier) {
                let number = told.rank;
                let at = holdings.ranks.iter().position(|rank| rank.number == number);
                let Some(at) = at.filter(|&at| holdings.ranks[at].tiers[tier as usize].is_none())
                else {
                    continue;
                };
                let none = WorkerCache::new(bounds, 0);
                let engine_bytes_max = holdings.engine_bytes_max_of(tier, &none);
                let cache = WorkerCache::restore(bounds, engine_bytes_max, &told.cache);
                holdings.ranks[at].tiers[tier as usize] = Some(Box::new(cache));
            }
        }
        holdings.rebound();
        holdings
    }
}
