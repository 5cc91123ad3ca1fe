//! What a worker will hold because a prompt is sent there.

use std::ops::Range;
use std::time::Instant;

use smallvec::SmallVec;

use super::super::super::block::BlockHash;
use super::super::super::index::{Holder, Path};
use super::super::{Index, layer};
use super::presumed::Age;
use super::{Holdings, TRIMMED_MORE, Tier};

impl Holdings {
    /// A prompt is sent there: what it has of it is just used, and the rest it will have. Returns
    /// how many blocks were not presumed before.
    ///
    /// While events are trusted, what one rank confirmed from end to end needs no presumption.
    pub fn presume(&mut self, index: &mut Index, blocks: &[BlockHash], now: Instant) -> usize {
        if !self.begin_presumption(index, blocks, now) {
            return 0;
        }
        self.presume_first(index, blocks, blocks.len(), 0).1
    }

    /// The first part of [`presume`](Self::presume): marks what it has as just used; whether the
    /// rest is to be presumed, by [`presume_part`](Self::presume_part).
    pub fn begin_presumption(
        &mut self,
        index: &mut Index,
        blocks: &[BlockHash],
        now: Instant,
    ) -> bool {
        self.expire(index, now);
        let mut confirmed = 0;
        for rank in &self.ranks {
            for (tier, _) in rank.caches() {
                let touched = index.touch(rank.holder(tier), blocks);
                if tier == Tier::Gpu {
                    confirmed = confirmed.max(touched);
                }
            }
        }
        !(self.presumed.confirming() && confirmed == blocks.len())
    }

    /// Presumes the first part of a prompt held: `held` blocks, or so many `more` than are presumed
    /// already if that is farther; returns where it ends, and how many blocks were not presumed
    /// before. What is there costs by the run, not by the block.
    pub fn presume_first(
        &mut self,
        index: &mut Index,
        blocks: &[BlockHash],
        held: usize,
        more: usize,
    ) -> (usize, usize) {
        let rows = self.rows();
        self.presumed.take_clean(index, &rows);
        let layer = self.presumed.layer(Age::Young);
        let path = |&row: &u32| index.path(Holder { row, layer }, blocks);
        let paths: SmallVec<[Path; 1]> = rows.iter().map(path).collect();
        let from = paths.iter().map(|path| path.held).min().unwrap_or(0);
        let to = held.max(from.saturating_add(more)).min(blocks.len());
        // A prompt larger than the bound is held as far as that, and used all the same.
        if from < to.min(self.params.blocks_max) {
            return (to, self.hold_part(index, layer, blocks, from..to));
        }
        for (row, path) in rows.into_iter().zip(&paths) {
            index.touch_path(Holder { row, layer }, path);
        }
        (to, 0)
    }

    /// Presumes `blocks[from..to]` held, of a prompt whose earlier blocks were before.
    pub fn presume_part(
        &mut self,
        index: &mut Index,
        blocks: &[BlockHash],
        from: usize,
        to: usize,
    ) -> usize {
        self.presumed.take_clean(index, &self.rows());
        self.hold_part(index, self.presumed.layer(Age::Young), blocks, from..to)
    }

    /// A prompt is sent there that its reports cannot confirm: `blocks[from..to]` of it is held.
    /// Returns how many blocks were not.
    pub fn hold_unconfirmed(
        &mut self,
        index: &mut Index,
        blocks: &[BlockHash],
        from: usize,
        to: usize,
    ) -> usize {
        self.hold_part(index, layer::UNCONFIRMED, blocks, from..to)
    }

    fn hold_part(
        &mut self,
        index: &mut Index,
        layer: u8,
        blocks: &[BlockHash],
        part: Range<usize>,
    ) -> usize {
        // What lies deeper than the bound would only be trimmed again.
        let part = part.start..part.end.min(self.params.blocks_max);
        if part.is_empty() {
            return 0;
        }
        let parent = part.start.checked_sub(1).map(|above| blocks[above]);
        let (depth, part) = (part.start as u32, &blocks[part]);
        let mut gained = 0;
        for row in self.rows() {
            let holder = Holder { row, layer };
            if !index.is_dropped(holder) {
                gained = gained.max(index.hold(holder, parent, depth, part).gained);
            }
        }
        self.settle(index, (gained + TRIMMED_MORE) * self.rows().len());
        gained
    }

    /// It was not sent after all: takes the presumption of `blocks[keep..]` back, unless something
    /// else follows. What is confirmed stays. Returns how many presumed blocks went.
    pub fn retract(&mut self, index: &mut Index, blocks: &[BlockHash], keep: usize) -> usize {
        let layers = [self.presumed.layer(Age::Young), self.presumed.layer(Age::Old)];
        layers.into_iter().map(|layer| self.retract_in(index, layer, blocks, keep)).sum()
    }

    /// As [`retract`](Self::retract), of what reports cannot confirm.
    pub fn retract_unconfirmed(
        &mut self,
        index: &mut Index,
        blocks: &[BlockHash],
        keep: usize,
    ) -> usize {
        self.retract_in(index, layer::UNCONFIRMED, blocks, keep)
    }

    fn retract_in(&self, index: &mut Index, layer: u8, blocks: &[BlockHash], keep: usize) -> usize {
        let rows = self.rows().into_iter();
        rows.map(|row| index.retract(Holder { row, layer }, blocks, keep)).max().unwrap_or(0)
    }

    /// Marks what is held of a prompt as just used.
    pub fn touch(&mut self, index: &mut Index, blocks: &[BlockHash]) {
        for rank in &self.ranks {
            for (tier, _) in rank.caches() {
                index.touch(rank.holder(tier), blocks);
            }
        }
        for row in self.rows() {
            for age in Age::ALL {
                index.touch(Holder { row, layer: self.presumed.layer(age) }, blocks);
            }
        }
    }

    /// The engine has prefilled this prompt, says its answer: whatever it held of it before, it
    /// held all of it then. Without events that is presumed again; events that are trusted already
    /// said so, and may have said since that it is gone. True if it is to be presumed, as
    /// [`presume`](Self::presume) does.
    ///
    /// That it held less than we believed only says that its cache is smaller or busier than we
    /// believe. Which other blocks it lacks cannot be told from here at a price a request should
    /// pay (a run does not know its children), so that is left to a lower
    /// [`HoldingsParams::blocks_max`](super::HoldingsParams::blocks_max), which trims what is least recently used.
    pub fn prefilled(&mut self, index: &mut Index, blocks: &[BlockHash]) -> bool {
        if self.presumed.confirming() {
            self.touch(index, blocks);
        }
        !self.presumed.confirming()
    }

    /// Whether the engine's events tell the truth from now on. If so, what was presumed so far
    /// expires unless confirmed; if not, nothing does any more.
    pub fn set_confirming(&mut self, index: &Index, confirming: bool, now: Instant) {
        if confirming != self.presumed.confirming() {
            self.presumed.set_confirming(confirming, index, &self.rows(), now);
        }
    }

    /// Drops presumptions that events should have confirmed by now; returns how many blocks.
    pub fn expire(&mut self, index: &mut Index, now: Instant) -> usize {
        self.presumed.expire(self.params.presumed_ttl, index, &self.rows(), now)
    }
}
