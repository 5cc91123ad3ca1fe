//! Keeping to bounds: bytes for all together, blocks for one holder.
//!
//! Where bytes run short, the holder that holds the most loses what it used least recently (longest
//! queue drop; Suter et al., INFOCOM 1998), so nobody within a fair share is trimmed for one who is
//! not. As much is done in a call as it adds, and a little more. What others hold too is no memory
//! gained: it goes on until the blocks are nobody's.

use super::super::block::BlockHash;
use super::run::Run;
use super::table::SEGMENT_BYTES;
use super::{Held, Holder, SharedIndex};

/// Near the byte bound, blocks are held in parts of so many.
pub(super) const PART: usize = 32;

/// How far [`Stats::bytes`](super::Stats::bytes) may get over the bound at worst, where each of 32
/// blocks cuts a segment of the table in two; a run that many hold adds an entry for each of them
/// when it is cut.
pub const SLACK_BYTES: usize = 48 * SEGMENT_BYTES;

/// Bytes of a block: its hash with some room to grow, and a slot that is half used.
const BLOCK_BYTES: usize = 9 + 16;
/// Bytes of a run beside its blocks: itself and its parent, its head, its holder's entry.
const RUN_BYTES: usize = size_of::<Run>() + 8 + 16 + 20 + 16;

/// What a run costs that is looked at, in blocks taken out.
const RUN_COST: usize = 4;

impl<const LAYERS: usize> SharedIndex<LAYERS> {
    /// Changes the bound on [`Stats::bytes`](super::Stats::bytes). A smaller one is reached by
    /// [`settle`](Self::settle).
    pub fn set_bytes_max(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
    }

    /// Does some of what is left to do: sweeps dropped holders out, then trims down to the byte bound,
    /// about `blocks` blocks in all. Returns whether there is more to do.
    pub fn settle(&mut self, blocks: usize) -> bool {
        let Some(left) = self.sweep_some(blocks) else { return true };
        !self.make_room(0, left) && self.recency.largest().is_some()
    }

    /// Takes from `holder` what it used least recently, the deepest blocks first, until it holds at
    /// most `blocks_max`; returns how many blocks. What it holds of a run counts as used when any of
    /// it was.
    pub fn trim(&mut self, holder: Holder, blocks_max: u64) -> usize {
        self.trim_part(holder, blocks_max, usize::MAX)
    }

    /// The same, but no more than `at_most` blocks of it, to be called again while that many are
    /// returned. O(`at_most`).
    pub fn trim_part(&mut self, holder: Holder, blocks_max: u64, at_most: usize) -> usize {
        let Some(holder) = self.alive(holder) else { return 0 };
        let mut trimmed = 0;
        while trimmed < at_most && self.recency.blocks(holder) > blocks_max {
            let over = self.recency.blocks(holder) - blocks_max;
            trimmed += self.trim_oldest(holder, over.min((at_most - trimmed) as u64), false);
        }
        self.note_trimmed(holder, trimmed);
        trimmed
    }

    /// Takes up to `blocks` blocks from the end of what a holder used least recently; all that it has
    /// of a run, if it is in that run's set and `sets` go whole: a part would cut the run for others.
    fn trim_oldest(&mut self, holder: u32, blocks: u64, sets: bool) -> usize {
        let id = self.recency.oldest(holder).expect("who holds blocks has a run");
        let run = self.runs.run(id);
        let (from, to) = run.last_span::<LAYERS>(holder);
        let in_set = run.whole.as_ref().is_some_and(|whole| whole.has::<LAYERS>(holder));
        let all = u64::from(to - from);
        let count = if in_set && sets { all } else { all.min(blocks) } as u32;
        self.subtract(id, holder, to - count, to)
    }

    fn note_trimmed(&mut self, holder: u32, trimmed: usize) {
        self.held -= trimmed as u64;
        self.rows.totals_mut::<LAYERS>(holder).trimmed += trimmed as u64;
        self.recency.weigh(holder);
    }

    /// Makes room for so many bytes, at a cost of about `work` blocks; whether there is.
    pub(super) fn make_room(&mut self, bytes: usize, mut work: usize) -> bool {
        while self.bytes().saturating_add(bytes) > self.bytes_max {
            if work == 0 {
                return false;
            }
            if !self.dropped.is_empty() {
                let Some(left) = self.sweep_some(work) else { return false };
                work = left;
                continue;
            }
            let Some(holder) = self.recency.largest() else { return false };
            let before = self.places.len();
            let trimmed = self.trim_oldest(holder, work.min(PART) as u64, true);
            self.note_trimmed(holder, trimmed);
            work = work.saturating_sub(before - self.places.len() + RUN_COST);
        }
        true
    }

    /// See [`SharedIndex::hold`]; in parts of 32 blocks where the bound is near.
    pub(super) fn hold_bounded(
        &mut self,
        holder: u32,
        mut parent: Option<BlockHash>,
        depth: u32,
        blocks: &[BlockHash],
    ) -> Held {
        let mut held = Held::default();
        let mut at = 0;
        while at < blocks.len() {
            let rest = blocks.len() - at;
            let here = depth + at as u32;
            // Even if each block cut a segment, there would be room.
            let worst = rest * (SEGMENT_BYTES + BLOCK_BYTES) + SLACK_BYTES;
            let far = self.bytes().saturating_add(worst) <= self.bytes_max;
            let part = &blocks[at..][..if far { rest } else { rest.min(PART) }];
            if !far && !self.make_room_for(part.len(), parent.filter(|_| here > 0), here) {
                break;
            }
            let taken = self.hold_part(holder, parent, here, part);
            held.gained += taken.gained;
            at += part.len() - taken.refused;
            if taken.refused > 0 {
                break;
            }
            parent = part.last().copied();
        }
        held.refused = blocks.len() - at;
        held
    }

    /// Makes room for a part; false if what it follows was there and had to go for it.
    fn make_room_for(&mut self, blocks: usize, parent: Option<BlockHash>, depth: u32) -> bool {
        let headroom = SLACK_BYTES.min(self.bytes_max / 16);
        let bytes = blocks * BLOCK_BYTES + RUN_BYTES + headroom;
        if self.bytes().saturating_add(bytes) <= self.bytes_max {
            return true;
        }
        let follows =
            |index: &Self| parent.is_some_and(|parent| index.place_at(parent, depth - 1).is_some());
        let followed = follows(self);
        self.make_room(bytes, 8 * blocks + 2 * PART);
        !followed || follows(self)
    }

    /// How many of `blocks` more there is room for now.
    pub(super) fn room(&self, blocks: usize, new_run: bool) -> usize {
        if !self.runs.has_room() {
            return 0;
        }
        let run = if new_run { RUN_BYTES } else { 0 };
        let left = self.bytes_max.saturating_sub(self.bytes()).saturating_sub(run);
        blocks.min(left / BLOCK_BYTES)
    }
}
