//! Looking a prompt up: how far every row holds it, in one walk.

use super::super::block::BlockHash;
use super::run::Run;
use super::{Layers, SharedIndex};

/// How many leading blocks of a prompt each row holds; kept to be used again.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    alive: Vec<u64>,
    next: Vec<u64>,
    /// Depths at which many rows end at once, and the sets of those.
    depths: Vec<u32>,
    sets: Vec<u64>,
    /// Rows that end inside a run, with their depths.
    partial: Vec<(u32, u32)>,
}

impl Reach {
    fn clear(&mut self) {
        self.alive.clear();
        self.depths.clear();
        self.sets.clear();
        self.partial.clear();
    }

    /// The sets of rows (64 a word) that hold just so many blocks, the least first. Rows in none,
    /// and not in [`single`](Self::single), hold nothing; none is in two.
    pub fn levels(&self) -> impl Iterator<Item = (u32, &[u64])> {
        let words = self.sets.len() / self.depths.len().max(1);
        self.depths.iter().copied().zip(self.sets.chunks(words.max(1)))
    }

    /// Rows that end inside a run, with how many blocks they hold.
    pub fn single(&self) -> &[(u32, u32)] {
        &self.partial
    }

    /// Calls `each` with every row that holds something and the number of blocks.
    pub fn for_each(&self, mut each: impl FnMut(u32, u32)) {
        for (depth, set) in self.levels() {
            for (word, &bits) in set.iter().enumerate() {
                let mut left = bits;
                while left != 0 {
                    each(word as u32 * 64 + left.trailing_zeros(), depth);
                    left &= left - 1;
                }
            }
        }
        for &(row, depth) in &self.partial {
            each(row, depth);
        }
    }

    /// Whether a row has a bit in `alive`.
    fn lives(&self, row: u32) -> bool {
        self.alive.get(row as usize / 64).is_some_and(|word| word & 1 << (row % 64) != 0)
    }

    fn end(&mut self, depth: u32, died: impl Iterator<Item = u64>) {
        let from = self.sets.len();
        let mut any = 0;
        self.sets.extend(died.inspect(|word| any |= word));
        if any == 0 {
            self.sets.truncate(from);
        } else {
            self.depths.push(depth);
        }
    }
}

impl<const LAYERS: usize> SharedIndex<LAYERS> {
    /// How many leading blocks of a prompt each row holds in some of `layers`, together.
    ///
    /// O(runs passed): a run that is held to its end is one comparison and one pass over its sets.
    pub fn look_up(&self, blocks: &[BlockHash], layers: Layers, reach: &mut Reach) {
        reach.clear();
        let words = self.rows.len().div_ceil(64);
        let mut depth = 0;
        while depth < blocks.len() {
            let Some((id, common)) = self.child(blocks, depth) else { break };
            let run = self.runs.run(id);
            if depth == 0 {
                reach.alive.resize(words, u64::MAX);
            }
            self.pass(run, depth as u32, common as u32, layers, reach);
            depth += common;
            if reach.alive.iter().all(|&word| word == 0) {
                return;
            }
        }
        let alive = std::mem::take(&mut reach.alive);
        reach.end(depth as u32, alive.iter().copied());
        reach.alive = alive;
    }

    /// The run that begins with `blocks[depth]`, and how many blocks it has in common.
    fn child(&self, blocks: &[BlockHash], depth: usize) -> Option<(u32, usize)> {
        let begins = |id: u32| {
            let run = self.runs.run(id);
            let common = common_blocks(run, &blocks[depth..]);
            (run.start == depth as u32 && common > 0).then_some((id, common))
        };
        let guess = self.heads.guess(blocks[depth].as_u64())?.run;
        begins(guess).or_else(|| {
            let first = |run: u32| self.runs.run(run).label()[0].as_u64();
            begins(self.heads.find(blocks[depth].as_u64(), |place| first(place.run))?.run)
        })
    }

    /// Takes the first `common` blocks of a run at `depth`.
    fn pass(&self, run: &Run, depth: u32, common: u32, layers: Layers, reach: &mut Reach) {
        let words = reach.alive.len();
        reach.next.clear();
        reach.next.resize(words, 0);
        let all_live = self.dropped.is_empty();
        if let Some(whole) = &run.whole {
            for layer in layers.iter::<LAYERS>() {
                let rows = reach.next.iter_mut().zip(whole.rows(layer));
                if all_live {
                    rows.for_each(|(next, held)| *next |= held);
                } else {
                    let dead = self.dead.iter().skip(layer).step_by(LAYERS);
                    rows.zip(dead).for_each(|((next, held), dead)| *next |= held & !dead);
                }
            }
        }
        let ended = reach.partial.len();
        for span in run.spans.iter().filter(|span| span.from == 0) {
            if !layers.has(span.holder as usize % LAYERS) || !all_live && self.is_dead(span.holder)
            {
                continue;
            }
            let row = span.holder / LAYERS as u32;
            let enough = LAYERS == 1 || span.to >= common;
            let to = if enough { span.to } else { self.union_to(run, row, span.to, layers) };
            if to >= common {
                if let Some(word) = reach.next.get_mut(row as usize / 64) {
                    *word |= 1 << (row % 64);
                }
            } else if reach.lives(row) {
                reach.partial.push((row, depth + to));
            }
        }
        // A row that ends here by one layer may go on by another, or end later.
        let mut at = ended;
        while at < reach.partial.len() {
            let (row, to) = reach.partial[at];
            let goes_on = reach.next[row as usize / 64] & 1 << (row % 64) != 0;
            let others = reach.partial[ended..].iter().zip(ended..);
            let mut later = others.filter(|&(&(other, _), _)| other == row);
            if goes_on || later.any(|(&(_, other), i)| other > to || other == to && i < at) {
                reach.partial.swap_remove(at);
            } else {
                if depth > 0 {
                    reach.alive[row as usize / 64] &= !(1 << (row % 64));
                }
                at += 1;
            }
        }
        let mut next = std::mem::take(&mut reach.next);
        if depth > 0 {
            let alive = std::mem::take(&mut reach.alive);
            reach.end(depth, alive.iter().zip(&next).map(|(alive, next)| alive & !next));
            next.iter_mut().zip(&alive).for_each(|(next, alive)| *next &= alive);
            reach.alive = alive;
        }
        reach.next = std::mem::replace(&mut reach.alive, next);
    }

    /// How far a row holds the run from `to` on in any of `layers`.
    fn union_to(&self, run: &Run, row: u32, mut to: u32, layers: Layers) -> u32 {
        while let Some(span) = run.spans.iter().find(|span| {
            span.holder / LAYERS as u32 == row
                && layers.has(span.holder as usize % LAYERS)
                && (span.from..span.to).contains(&to)
                && !self.is_dead(span.holder)
        }) {
            to = span.to;
        }
        to
    }
}

/// How many leading blocks a run and `blocks` share, given that equal hashes imply equal hashes
/// before them. Prompts part near the end of what is held (the answer that was appended to it
/// comes back otherwise than it was said), so the search steps back from there first.
fn common_blocks(run: &Run, blocks: &[BlockHash]) -> usize {
    let len = run.len().min(blocks.len());
    if len == run.len() && run.last == blocks[len - 1] {
        return len;
    }
    common_in(run.label(), &blocks[..len])
}

pub(super) fn common_in(label: &[BlockHash], blocks: &[BlockHash]) -> usize {
    let len = label.len().min(blocks.len());
    if len == 0 || label[len - 1] == blocks[len - 1] {
        return len;
    }
    let (mut low, mut high) = (0, len - 1);
    for step in [8, 64, 512] {
        let Some(at) = (len - 1).checked_sub(step) else { break };
        if label[at] == blocks[at] {
            low = at + 1;
            break;
        }
        high = at;
    }
    while low < high {
        let middle = usize::midpoint(low, high);
        if label[middle] == blocks[middle] {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}
