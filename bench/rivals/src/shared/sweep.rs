//! Forgetting all that a holder holds: at once for look-ups, in small parts for the memory.

use super::recency::set_has;
use super::run::{SPANS_MAX, bit_of};
use super::{Holder, SharedIndex};

/// With more slots than this to come to again the sweep begins anew.
const UNSWEPT_MAX: usize = if cfg!(test) { 4 } else { 4096 };

impl<const LAYERS: usize> SharedIndex<LAYERS> {
    /// Forgets all that `holder` holds: at once for look-ups, in parts ([`sweep`](Self::sweep)) for
    /// the memory. Until that is done it may hold nothing.
    pub fn drop_holder(&mut self, holder: Holder) {
        if let Some(holder) = self.number(holder) {
            let (word, bit) = bit_of::<LAYERS>(holder);
            self.dead[word] |= bit;
        }
    }

    /// Whether `holder` was dropped and is not swept out.
    pub fn is_dropped(&self, holder: Holder) -> bool {
        self.number(holder).is_some_and(|holder| self.is_dead(holder))
    }

    /// Takes some of what dropped holders hold out: at most `blocks` blocks that nobody else holds,
    /// and at most two runs for each of them are looked at. Returns whether there is more to do; a holder is out
    /// after a whole pass.
    pub fn sweep(&mut self, blocks: u32) -> bool {
        if self.sweeping.iter().all(|&word| word == 0) {
            if self.dead.iter().all(|&word| word == 0) {
                return false;
            }
            self.sweeping.clone_from(&self.dead);
            self.swept_to = 0;
        }
        let (mut left, mut runs) = (blocks, u64::from(blocks) * 2);
        while left > 0 && runs > 0 {
            let again = self.unswept.last().copied();
            let at = again.unwrap_or(self.swept_to);
            if at >= self.runs.slots() {
                self.unswept = Vec::new();
                let ended = std::mem::take(&mut self.sweeping);
                self.dead.iter_mut().zip(ended).for_each(|(dead, ended)| *dead &= !ended);
                return self.dead.iter().any(|&word| word != 0);
            }
            if again.is_some() {
                self.unswept.pop();
            }
            let (taken, done) = self.sweep_run(at, left);
            match (again, done) {
                (None, true) => self.swept_to += 1,
                (Some(_), false) => self.unswept.push(at),
                _ => {}
            }
            left -= taken;
            runs -= 1;
        }
        true
    }

    /// Blocks have come into a slot: if the sweep has passed it, it has to come again.
    pub(super) fn sweep_again(&mut self, id: u32) {
        // The slot that is being swept may have got the blocks of one behind it.
        if id <= self.swept_to && self.sweeping.iter().any(|&word| word != 0) {
            self.unswept.push(id);
            if self.unswept.len() > UNSWEPT_MAX {
                self.unswept.clear();
                self.swept_to = 0;
            }
        }
    }

    /// Takes the holders that are being swept out of one slot, or out of its end, so that no more
    /// than `blocks` blocks go; returns how many went, and whether those holders are out of it.
    fn sweep_run(&mut self, id: u32, blocks: u32) -> (u32, bool) {
        let run = self.runs.run(id);
        if run.len() == 0 {
            return (0, true);
        }
        let mut holders = run.holders::<LAYERS>();
        holders.retain(|holder| set_has::<LAYERS>(&self.sweeping, *holder));
        if holders.is_empty() {
            return (0, true);
        }
        let len = run.len() as u32;
        let mut rest = run.clone();
        for &holder in &holders {
            rest.subtract::<LAYERS>(holder, 0, len);
        }
        let mut gaps = rest.gaps(0, len);
        // From the end on, as that is cut off without moving anything.
        let (mut from, mut left) = (0, blocks);
        while let Some((start, end)) = gaps.pop() {
            if end - start > left {
                from = end - left;
                break;
            }
            left -= end - start;
            if left == 0 && !gaps.is_empty() {
                from = start;
                break;
            }
        }
        for holder in holders {
            let lost = self.runs.edit(id, |run| run.subtract::<LAYERS>(holder, from, len));
            self.held -= u64::from(lost);
            self.note_lost(id, holder, lost);
        }
        let run = self.runs.run(id);
        let gaps = run.gaps(from, len);
        let taken = gaps.iter().map(|(from, to)| to - from).sum();
        if !gaps.is_empty() {
            self.cut_all(id, &gaps);
        } else if run.spans.len() > SPANS_MAX {
            self.relieve(id);
        } else {
            self.join_above(id);
        }
        (taken, from == 0)
    }
}
