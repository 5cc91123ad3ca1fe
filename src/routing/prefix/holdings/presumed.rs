//! What we presume a worker to hold because we sent it there: two generations.
//!
//! While the engine's events tell the truth, what they do not confirm must go. The younger
//! generation takes what is presumed; every `ttl` it becomes the older one, and what that held is
//! dropped whole. So a presumption lives from one to two `ttl` after it was last made, and none
//! carries a time stamp. Without events nothing expires.
//!
//! A generation is a layer of the worker's rows. One that was dropped cannot be used until it is
//! swept out of the index, so there are more layers than generations; should none be clean, nothing
//! is presumed for that moment.

use std::time::{Duration, Instant};

use super::super::super::block::BlockHash;
use super::super::super::index::Holder;
use super::super::{Index, layer};

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
    young: u8,
    old: u8,
    /// When the younger generation began.
    since: Instant,
    confirming: bool,
}

impl Presumed {
    pub(super) const fn new(since: Instant, confirming: bool) -> Self {
        let [young, old, ..] = layer::PRESUMED;
        Self { young, old, since, confirming }
    }

    /// The layer of a generation.
    pub(super) const fn layer(&self, age: Age) -> u8 {
        match age {
            Age::Young => self.young,
            Age::Old => self.old,
        }
    }

    /// How long the younger generation has been so.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    pub(super) const fn confirming(&self) -> bool {
        self.confirming
    }

    /// Blocks of one generation: in the row that has most, as every row of a worker is told of
    /// every presumption while it is there.
    pub(super) fn blocks_of(&self, index: &Index, rows: &[u32], age: Age) -> usize {
        let layer = self.layer(age);
        let blocks = rows.iter().map(|&row| index.blocks_of(Holder { row, layer }) as usize);
        blocks.max().unwrap_or(0)
    }

    pub(super) fn blocks(&self, index: &Index, rows: &[u32]) -> usize {
        Age::ALL.into_iter().map(|age| self.blocks_of(index, rows, age)).sum()
    }

    pub(super) fn holds(&self, index: &Index, rows: &[u32], block: BlockHash) -> bool {
        let layers = [self.young, self.old];
        rows.iter()
            .any(|&row| layers.iter().any(|&layer| index.holds(Holder { row, layer }, block)))
    }

    pub(super) fn clear(&mut self, index: &mut Index, rows: &[u32]) {
        for age in Age::ALL {
            let layer = self.layer(age);
            for &row in rows {
                index.drop_holder(Holder { row, layer });
            }
        }
        self.take_clean(index, rows);
    }

    /// Puts clean layers in the place of those that are being swept, as far as there are any.
    pub(super) fn take_clean(&mut self, index: &Index, rows: &[u32]) {
        let is_swept = |layer| rows.iter().any(|&row| index.is_dropped(Holder { row, layer }));
        for age in Age::ALL {
            if !is_swept(self.layer(age)) {
                continue;
            }
            let clean = layer::PRESUMED.into_iter();
            let mut clean = clean.filter(|layer| ![self.young, self.old].contains(layer));
            let Some(clean) = clean.find(|&layer| !is_swept(layer)) else { return };
            match age {
                Age::Young => self.young = clean,
                Age::Old => self.old = clean,
            }
        }
    }

    /// Whether events tell the truth from now on. What was presumed so far becomes the older
    /// generation; if there is one (it outlived an earlier change), each waits for its turn.
    pub(super) fn set_confirming(
        &mut self,
        confirming: bool,
        index: &Index,
        rows: &[u32],
        now: Instant,
    ) {
        if confirming && !self.confirming {
            if self.blocks_of(index, rows, Age::Old) == 0 {
                std::mem::swap(&mut self.young, &mut self.old);
            }
            self.since = now;
        }
        self.confirming = confirming;
    }

    /// Drops what is too old; returns how many blocks. O(rows).
    pub(super) fn expire(
        &mut self,
        ttl: Duration,
        index: &mut Index,
        rows: &[u32],
        now: Instant,
    ) -> usize {
        let age = self.age(now);
        if !self.confirming || age < ttl {
            return 0;
        }
        let before = self.blocks(index, rows);
        let mut drop =
            |layer| rows.iter().for_each(|&row| index.drop_holder(Holder { row, layer }));
        drop(self.old);
        if age.saturating_sub(ttl) < ttl {
            std::mem::swap(&mut self.young, &mut self.old);
            self.since += ttl;
        } else {
            drop(self.young);
            self.since = now;
        }
        self.take_clean(index, rows);
        before - self.blocks(index, rows)
    }
}
