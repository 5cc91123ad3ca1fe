//! What we presume a worker to hold because we sent it there: two generations.
//!
//! While the engine's events tell the truth, what they do not confirm must go. The younger
//! generation takes what is presumed; every `ttl` it becomes the older one, and what that held is
//! dropped whole. So a presumption lives from one to two `ttl` after it was last made, and none
//! carries a time stamp. Without events nothing expires.

use std::ops::{Index, IndexMut};
use std::time::{Duration, Instant};

use super::super::super::block::BlockHash;
use super::super::{Bounds, PrefixIndex};

/// A generation of presumptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    Young,
    Old,
}

impl Age {
    /// In the order in which they make room: the older first.
    pub(super) const ALL: [Self; 2] = [Self::Old, Self::Young];
}

#[derive(Clone, Debug)]
pub(super) struct Presumed {
    young: PrefixIndex,
    old: PrefixIndex,
    /// When the younger generation began.
    since: Instant,
    confirming: bool,
}

impl Index<Age> for Presumed {
    type Output = PrefixIndex;
    fn index(&self, age: Age) -> &PrefixIndex {
        match age {
            Age::Young => &self.young,
            Age::Old => &self.old,
        }
    }
}

impl IndexMut<Age> for Presumed {
    fn index_mut(&mut self, age: Age) -> &mut PrefixIndex {
        match age {
            Age::Young => &mut self.young,
            Age::Old => &mut self.old,
        }
    }
}

impl Presumed {
    pub(super) fn new(now: Instant) -> Self {
        let none = Bounds { blocks_max: 0, bytes_max: 0 };
        let (young, old) = (PrefixIndex::new(none), PrefixIndex::new(none));
        Self { young, old, since: now, confirming: false }
    }

    /// Generations of which the younger began at `since`.
    pub(super) const fn of(
        young: PrefixIndex,
        old: PrefixIndex,
        since: Instant,
        confirming: bool,
    ) -> Self {
        Self { young, old, since, confirming }
    }

    /// How long the younger generation has been so.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    pub(super) const fn confirming(&self) -> bool {
        self.confirming
    }

    pub(super) fn blocks(&self) -> usize {
        self.young.blocks() + self.old.blocks()
    }

    pub(super) fn holds(&self, block: BlockHash) -> bool {
        self.young.contains(block) || self.old.contains(block)
    }

    pub(super) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }

    /// Whether events tell the truth from now on. What was presumed so far becomes the older
    /// generation; if there is one (it outlived an earlier change), each waits for its turn.
    pub(super) fn set_confirming(&mut self, confirming: bool, now: Instant) {
        if confirming && !self.confirming {
            if self.old.blocks() == 0 {
                std::mem::swap(&mut self.young, &mut self.old);
            }
            self.since = now;
        }
        self.confirming = confirming;
    }

    /// Drops what is too old; returns how many blocks. O(1) but when a generation ends, then
    /// O(its runs) to free them.
    pub(super) fn expire(&mut self, ttl: Duration, now: Instant) -> usize {
        let age = self.age(now);
        if !self.confirming || age < ttl {
            return 0;
        }
        let before = self.blocks();
        self.old.clear();
        if age.saturating_sub(ttl) < ttl {
            std::mem::swap(&mut self.young, &mut self.old);
            self.since += ttl;
        } else {
            self.young.clear();
            self.since = now;
        }
        before - self.blocks()
    }
}
