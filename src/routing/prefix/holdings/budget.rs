//! Divides the bytes a worker's trees and records may take.
//!
//! Every tree has a *reserve* and may take beyond it whatever the others neither hold nor have in
//! reserve. So none can starve another, an unused reserve is all that stays idle, and the sum keeps
//! its bound. Only where reserves change (new parameters, a cache heard of for the first time) are
//! trees trimmed for others; on a request's way a tree makes room in itself alone. Turned down:
//! equal parts, which leave most of the budget idle, and first come, first served, by which one
//! large disk would leave nothing for the accelerator.
//!
//! Records cannot be trimmed. There the lower tiers together may take half.

use super::super::{Bounds, PrefixIndex, WorkerCache};
use super::presumed::Age;
use super::{Holdings, Tier};

/// A tree's bytes or, if more, its reserve.
fn claim(index: &PrefixIndex, reserve: usize) -> usize {
    index.stats().bytes.max(reserve)
}

impl Holdings {
    /// Half the budget, in equal parts.
    fn cache_reserve(&self) -> usize {
        self.params.bytes_max / 2 / self.caches().count().max(1)
    }

    const fn presumed_reserve(&self, age: Age) -> usize {
        match age {
            Age::Old if !self.presumed.confirming() => 0,
            _ => self.params.bytes_max / 16,
        }
    }

    fn claims(&self) -> usize {
        let reserve = self.cache_reserve();
        let caches: usize = self.caches().map(|(_, cache)| claim(cache.index(), reserve)).sum();
        let presumed = Age::ALL.map(|age| claim(&self.presumed[age], self.presumed_reserve(age)));
        caches + presumed.iter().sum::<usize>()
    }

    /// What one tree may take now.
    fn bytes_max_of(&self, index: &PrefixIndex, reserve: usize) -> usize {
        let others = self.claims() - claim(index, reserve);
        // Less than the reserve only while `rebound` is under way.
        self.params.bytes_max.saturating_sub(others).max(reserve)
    }

    /// What the records of one cache may take now.
    pub(super) fn engine_bytes_max_of(&self, tier: Tier, cache: &WorkerCache) -> usize {
        let (mut all, mut lower) = (0, 0);
        for (tier, cache) in self.caches() {
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

    /// A generation of presumptions, with the bounds of now: to be got again for every change.
    pub(super) fn generation(&mut self, age: Age) -> &mut PrefixIndex {
        let blocks_max = match age {
            Age::Young => self.params.blocks_max,
            Age::Old => self.params.blocks_max.saturating_sub(self.presumed[Age::Young].blocks()),
        };
        let bytes_max = self.bytes_max_of(&self.presumed[age], self.presumed_reserve(age));
        let index = &mut self.presumed[age];
        index.set_bounds(Bounds { blocks_max, bytes_max });
        index
    }

    /// A cache that there is, with the bounds of now: to be got again for every change.
    pub(super) fn cache_mut(&mut self, rank: u32, tier: Tier) -> Option<&mut WorkerCache> {
        let cache = self.cache(rank, tier)?;
        let bytes_max = self.bytes_max_of(cache.index(), self.cache_reserve());
        let engine_bytes_max = self.engine_bytes_max_of(tier, cache);
        let rank = self.ranks.iter_mut().find(|other| other.number == rank)?;
        let cache = rank.tiers[tier as usize].as_mut()?;
        cache.set_bounds(Bounds { blocks_max: usize::MAX, bytes_max }, engine_bytes_max);
        Some(cache)
    }

    /// Trims all trees to the bounds of now, the least valuable first.
    pub(super) fn rebound(&mut self) {
        let numbers: Vec<_> = self.ranks.iter().map(|rank| rank.number).collect();
        for tier in [Tier::Storage, Tier::Cpu] {
            for &rank in &numbers {
                self.cache_mut(rank, tier);
            }
        }
        for age in Age::ALL {
            self.generation(age);
        }
        for &rank in &numbers {
            self.cache_mut(rank, Tier::Gpu);
        }
    }

    pub(super) fn check_budget(&self) {
        assert!(self.claims() <= self.params.bytes_max, "reserves and bytes beyond them");
        let stats = self.stats();
        assert!(stats.bytes() <= self.params.bytes_max, "byte bound");
        assert!(stats.presumed_blocks <= self.params.blocks_max, "block bound");
    }
}
