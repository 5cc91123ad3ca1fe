//! Forgetting all that a holder holds: at once for look-ups, in small parts for the memory.
//!
//! A dropped holder is masked by a bit. What it has is then taken out run by run along its own list
//! of recency, so that sweeping costs what it held, however much others hold.

use super::run::bit_of;
use super::{Holder, SharedIndex};

/// What a run costs that is looked at, in blocks taken out.
const RUN_COST: usize = 4;

impl<const LAYERS: usize> SharedIndex<LAYERS> {
    /// Forgets all that `holder` holds: at once for look-ups, in parts ([`sweep`](Self::sweep)) for
    /// the memory. Until that is done it may hold nothing.
    pub fn drop_holder(&mut self, holder: Holder) {
        let Some(holder) = self.alive(holder) else { return };
        let blocks = self.recency.blocks(holder);
        if blocks > 0 {
            self.rows.totals_mut::<LAYERS>(holder).removed += blocks;
            let (word, bit) = bit_of::<LAYERS>(holder);
            self.dead[word] |= bit;
            self.dropped.push(holder);
        }
    }

    /// Whether `holder` was dropped and is not swept out.
    pub fn is_dropped(&self, holder: Holder) -> bool {
        self.number(holder).is_some_and(|holder| self.is_dead(holder))
    }

    /// Takes some of what dropped holders held out: about `blocks` blocks, a run that others hold
    /// too counting as a few. Returns whether there is more to do.
    pub fn sweep(&mut self, blocks: usize) -> bool {
        self.sweep_some(blocks).is_none()
    }

    /// The same; returns what is left of `blocks` if there is no more to do.
    pub(super) fn sweep_some(&mut self, blocks: usize) -> Option<usize> {
        let mut left = blocks;
        while let Some(&holder) = self.dropped.last() {
            let Some(id) = self.recency.oldest(holder) else {
                let (word, bit) = bit_of::<LAYERS>(holder);
                self.dead[word] &= !bit;
                self.dropped.pop();
                self.lend_again();
                continue;
            };
            if left == 0 {
                return None;
            }
            let run = self.runs.run(id);
            let (from, to) = run.last_span::<LAYERS>(holder);
            let shared = run.whole.is_some() && from == 0 && to as usize == run.len();
            // A part of what is in a set would make a span of it first.
            let count = if shared { to - from } else { (to - from).min(left as u32) };
            let before = self.places.len();
            let lost = self.subtract(id, holder, to - count, to);
            self.held -= lost as u64;
            self.recency.weigh(holder);
            left = left.saturating_sub(before - self.places.len() + RUN_COST);
        }
        Some(left)
    }
}
