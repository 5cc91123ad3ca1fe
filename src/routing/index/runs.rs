//! The slots that runs lie in, and the sum of their memory.

use super::super::block::BlockHash;
use super::run::Run;
use super::slots::{Slots, chunk_of, heap_bytes, per_chunk};
use super::table::RUNS_MAX;

/// All runs, by numbers that are used again.
#[derive(Clone, Debug, Default)]
pub(super) struct Runs {
    slots: Slots<Run>,
    /// The block before each run's first, in chunks like those of the runs; apart, as no look-up
    /// reads it.
    parents: Vec<Box<[BlockHash]>>,
    /// Sum of `Run::bytes`.
    run_bytes: usize,
}

impl Runs {
    #[inline]
    pub(super) fn run(&self, id: u32) -> &Run {
        self.slots.at(id)
    }

    pub(super) const fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether one more run has an id.
    pub(super) const fn has_room(&self) -> bool {
        self.slots.len() < RUNS_MAX
    }

    /// The block before a run's first; none at depth 0.
    pub(super) fn parent(&self, id: u32) -> Option<BlockHash> {
        let parent = self.parents[chunk_of(id)][id as usize % per_chunk()];
        (self.run(id).start > 0).then_some(parent)
    }

    pub(super) fn set_parent(&mut self, id: u32, parent: BlockHash) {
        self.parents[chunk_of(id)][id as usize % per_chunk()] = parent;
    }

    /// Heap bytes by capacity, as the allocator rounds them.
    pub(super) fn bytes(&self) -> usize {
        self.slots.bytes()
            + self.slots.chunks_in_use() * per_chunk() * size_of::<BlockHash>()
            + heap_bytes(self.parents.capacity() * size_of::<Box<[BlockHash]>>())
            + self.run_bytes
    }

    /// Changes a run and keeps the count of its memory.
    pub(super) fn edit<T>(&mut self, id: u32, edit: impl FnOnce(&mut Run) -> T) -> T {
        let run = self.slots.at_mut(id);
        let before = run.bytes();
        let result = edit(run);
        self.run_bytes = self.run_bytes - before + run.bytes();
        result
    }

    pub(super) fn add(&mut self, run: Run, parent: BlockHash) -> u32 {
        self.run_bytes += run.bytes();
        let id = self.slots.add(run);
        let chunk = chunk_of(id);
        if chunk == self.parents.len() {
            self.parents.push(Box::default());
        }
        if self.parents[chunk].is_empty() {
            self.parents[chunk] = vec![BlockHash::default(); per_chunk()].into_boxed_slice();
        }
        self.set_parent(id, parent);
        id
    }

    pub(super) fn remove(&mut self, id: u32) {
        self.run_bytes -= self.slots.remove(id).bytes();
        if !self.slots.is_in_use(chunk_of(id)) {
            self.parents[chunk_of(id)] = Box::default();
        }
    }

    /// The ids in use.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        self.slots.ids()
    }

    pub(super) fn check(&self) {
        self.slots.check();
        let bytes: usize = self.ids().map(|id| self.run(id).bytes()).sum();
        assert_eq!(bytes, self.run_bytes, "bytes of runs");
        for (chunk, parents) in self.parents.iter().enumerate() {
            assert_eq!(parents.is_empty(), !self.slots.is_in_use(chunk), "parents of runs");
        }
    }
}
