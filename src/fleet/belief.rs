//! What one worker is believed to hold: its rows of the fleet's index, and its engine's names for
//! blocks.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Instant,
};

use parking_lot::Mutex;

use super::index::{FleetIndex, PRESUMED_A_HOLD, TIDIED_A_HOLD, TOLD_A_HOLD};
use crate::routing::{
    Holdings, HoldingsParams, Matched, Tier,
    block::BlockHash,
    prefix::{HoldingsImage, HoldingsStats, Index, IndexImage},
};

/// A worker's holdings. Its rows are given back when it is dropped.
#[derive(Debug)]
pub(super) struct Belief {
    index: Arc<FleetIndex>,
    holdings: Mutex<Holdings>,
    /// [`Holdings::owner`], without a lock.
    owner: AtomicU32,
}

impl Belief {
    pub(super) fn new(index: Arc<FleetIndex>, params: HoldingsParams, now: Instant) -> Self {
        let holdings = index.write(|index| Holdings::new(params, index, now));
        let owner = AtomicU32::new(holdings.owner());
        Self { index, holdings: Mutex::new(holdings), owner }
    }

    /// Whose rows it has.
    pub(super) fn owner(&self) -> u32 {
        self.owner.load(Relaxed)
    }

    /// Changes it, and the index with it, for microseconds only; requests that wait come first
    /// when it is called again.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Holdings, &mut Index) -> T) -> T {
        let mut holdings = self.holdings.lock();
        self.index.write_fairly(|index| change(&mut holdings, index))
    }

    /// The same for a request, which waits for it.
    fn change_at_once<T>(&self, change: impl FnOnce(&mut Holdings, &mut Index) -> T) -> T {
        let mut holdings = self.holdings.lock();
        self.index.write(|index| change(&mut holdings, index))
    }

    /// Asks it something.
    pub(super) fn ask<T>(&self, ask: impl FnOnce(&Holdings, &Index) -> T) -> T {
        let holdings = self.holdings.lock();
        self.index.read(|index| ask(&holdings, index))
    }

    /// Asks or changes what concerns the index in nothing.
    pub(super) fn alone<T>(&self, ask: impl FnOnce(&mut Holdings) -> T) -> T {
        ask(&mut self.holdings.lock())
    }

    /// A rank is about to store so many engine blocks: makes room for their records while nobody else
    /// waits for the index.
    pub(super) fn prepare(&self, rank: u32, tier: Tier, engine_blocks: usize) {
        self.alone(|holdings| holdings.prepare(rank, tier, engine_blocks));
    }

    /// How much of a prompt is held; `confirms` as for [`send`](Self::send).
    pub(super) fn matched(&self, prompt: &[BlockHash], confirms: bool) -> Matched {
        self.ask(|holdings, index| matched(holdings, index, prompt, confirms))
    }

    /// A prompt is sent there: returns how much of it is held, and presumes all of it held.
    /// `confirms` says whether the worker's reports would confirm that.
    pub(super) fn send(&self, prompt: &[BlockHash], confirms: bool, now: Instant) -> Matched {
        let (matched, done) = self.change_at_once(|holdings, index| {
            let matched = matched(holdings, index, prompt, confirms);
            // What is held costs by the run, not by the block.
            let part = prompt.len().min(matched.gpu + PRESUMED_A_HOLD);
            if !confirms {
                holdings.hold_unconfirmed(index, prompt, 0, part);
                return (matched, part);
            }
            if !holdings.begin_presumption(index, prompt, now) {
                return (matched, prompt.len());
            }
            let (done, _) = holdings.presume_first(index, prompt, part, PRESUMED_A_HOLD);
            (matched, done)
        });
        self.presume_rest(prompt, done, confirms);
        matched
    }

    fn presume_rest(&self, prompt: &[BlockHash], from: usize, confirms: bool) {
        for (from, to) in parts(from, prompt.len()) {
            self.change_at_once(|holdings, index| {
                if confirms {
                    holdings.presume_part(index, prompt, from, to);
                } else {
                    holdings.hold_unconfirmed(index, prompt, from, to);
                }
            });
        }
    }

    /// It was not sent after all: `prompt[keep..]` is as it was.
    pub(super) fn retract(&self, prompt: &[BlockHash], keep: usize) {
        let mut left = prompt.len();
        while left > keep {
            left = keep.max(left.saturating_sub(PRESUMED_A_HOLD));
            self.change_at_once(|holdings, index| {
                holdings.retract(index, prompt, left);
                holdings.retract_unconfirmed(index, prompt, left);
            });
        }
    }

    /// It was prefilled, its answer says.
    pub(super) fn prefilled(&self, prompt: &[BlockHash], now: Instant) {
        let done = self.change_at_once(|holdings, index| {
            if holdings.prefilled(index, prompt) && holdings.begin_presumption(index, prompt, now) {
                holdings.presume_first(index, prompt, 0, PRESUMED_A_HOLD).0
            } else {
                prompt.len()
            }
        });
        self.presume_rest(prompt, done, true);
    }

    /// Trims some of what is over its bounds; whether there may be more.
    pub(super) fn settle(&self) -> bool {
        // Most of the time nothing is, and to find that out needs no change.
        self.ask(Holdings::is_over)
            && self.change(|holdings, index| holdings.settle(index, TIDIED_A_HOLD))
    }

    /// Sizes of now.
    pub(super) fn stats(&self) -> HoldingsStats {
        self.ask(Holdings::stats)
    }

    /// Its share of the index's memory, by the blocks it holds, and the records of its engine blocks,
    /// bytes.
    pub(super) fn bytes(&self, stats: &HoldingsStats) -> usize {
        let index = self.index.read(Index::stats);
        let share = stats.held_blocks as f64 / index.held.max(1) as f64;
        (index.bytes as f64 * share) as usize + stats.engine_bytes()
    }

    /// What it holds, told, and what reports cannot confirm of it. Between parts of it others get to
    /// the index, so a pick may change what is presumed meanwhile.
    pub(super) fn image(&self, now: Instant) -> (HoldingsImage, IndexImage) {
        let mut telling = self.alone(|holdings| holdings.begin_image(now));
        while self.index.write_fairly(|index| telling.part(index, TOLD_A_HOLD)) {}
        telling.finish()
    }

    /// Holds what `restore` makes of the index in place of all that it holds.
    pub(super) fn replace(&self, restore: impl FnOnce(&mut Index) -> Holdings) {
        let mut holdings = self.holdings.lock();
        let before = self.index.write_fairly(|index| {
            holdings.leave(index);
            std::mem::replace(&mut *holdings, restore(index))
        });
        drop(before);
        self.owner.store(holdings.owner(), Relaxed);
    }
}

impl Drop for Belief {
    fn drop(&mut self) {
        let holdings = self.holdings.get_mut();
        self.index.write(|index| holdings.leave(index));
    }
}

fn matched(holdings: &Holdings, index: &Index, prompt: &[BlockHash], confirms: bool) -> Matched {
    if confirms {
        holdings.matched(index, prompt)
    } else {
        holdings.matched_unconfirmed(index, prompt)
    }
}

/// Parts of a prompt, none larger than one hold of the lock allows.
fn parts(from: usize, blocks: usize) -> impl Iterator<Item = (usize, usize)> {
    let from = (from..blocks).step_by(PRESUMED_A_HOLD);
    from.map(move |from| (from, blocks.min(from + PRESUMED_A_HOLD)))
}
