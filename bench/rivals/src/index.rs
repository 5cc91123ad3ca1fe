//! What every index has to do here, and the plain answer that all are held to.

use std::collections::HashMap;

/// A chain of blocks by both names: what a block says by itself, and the chained name that commits
/// to all before it.
#[derive(Clone, Debug, Default)]
pub struct Prompt {
    /// A hash of each block's content alone.
    pub contents: Vec<u64>,
    /// The chained hash of each block: the rivals' engine hash, and our block hash.
    pub blocks: Vec<u64>,
}

/// One report of a worker.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// Who.
    pub worker: u32,
    /// Index of the prompt in the workload.
    pub prompt: usize,
    /// The blocks `from..to` of it; those before `from` are held.
    pub from: usize,
    /// End of the blocks.
    pub to: usize,
}

/// An index of which worker holds which prefix, with its own form of changes, queries and answers,
/// so that only its own work is timed.
pub trait Index {
    /// A change, ready to be applied.
    type Change;
    /// A prompt, ready to be looked up.
    type Query;
    /// All workers' depths in the index's own form.
    type Answer;

    /// Makes an empty index for so many workers.
    fn new(workers: u32) -> Self;
    /// A store of `change`'s blocks.
    fn stored(change: Change, prompt: &Prompt) -> Self::Change;
    /// A removal of each of `change`'s blocks, the deepest first.
    fn removed(change: Change, prompt: &Prompt) -> Self::Change;
    /// Applies changes in order; they are all visible on return.
    fn apply(&mut self, changes: Vec<Self::Change>);
    /// Forgets all that a worker holds.
    fn drop_worker(&mut self, worker: u32);
    /// Prepares a look-up, and warms the query.
    fn query(prompt: &Prompt) -> Self::Query;
    /// How many leading blocks each worker holds.
    fn look_up(&self, query: &mut Self::Query, answer: &mut Self::Answer);
    /// A place for answers, used again and again.
    fn answer(&self) -> Self::Answer;
    /// Writes the answer into `depths`, one a worker.
    fn depths(&self, answer: &Self::Answer, depths: &mut [u32]);
}

/// The plain answer: a set of workers for each block.
pub struct Plain {
    words: usize,
    places: HashMap<u64, usize, rustc_hash::FxBuildHasher>,
    sets: Vec<u64>,
}

impl Plain {
    /// An empty one for so many workers.
    pub fn new(workers: u32) -> Self {
        let words = (workers as usize).div_ceil(64);
        Self { words, places: HashMap::default(), sets: Vec::new() }
    }

    /// Stores or removes the blocks of a change.
    pub fn set(&mut self, change: Change, prompt: &Prompt, held: bool) {
        let (word, bit) = (change.worker as usize / 64, 1 << (change.worker % 64));
        for &block in &prompt.blocks[change.from..change.to] {
            let next = self.sets.len();
            let at = *self.places.entry(block).or_insert(next);
            if at == next {
                self.sets.resize(next + self.words, 0);
            }
            let set = &mut self.sets[at + word];
            *set = if held { *set | bit } else { *set & !bit };
        }
    }

    /// Forgets a worker.
    pub fn drop_worker(&mut self, worker: u32) {
        for set in self.sets.iter_mut().skip(worker as usize / 64).step_by(self.words) {
            *set &= !(1 << (worker % 64));
        }
    }

    /// How many leading blocks each worker holds.
    pub fn depths(&self, prompt: &Prompt, depths: &mut [u32]) {
        depths.fill(0);
        let mut alive = vec![u64::MAX; self.words];
        for (depth, block) in (1..).zip(&prompt.blocks) {
            let Some(&at) = self.places.get(block) else { return };
            let mut any = 0;
            for (word, (alive, set)) in alive.iter_mut().zip(&self.sets[at..]).enumerate() {
                *alive &= set;
                any |= *alive;
                let mut left = *alive;
                while left != 0 {
                    depths[word * 64 + left.trailing_zeros() as usize] = depth;
                    left &= left - 1;
                }
            }
            if any == 0 {
                return;
            }
        }
    }
}
