//! The slots that runs lie in: chunks that never move, so that growing copies nothing.

use super::run::Run;
use super::table::RUNS_MAX;

const CHUNK: usize = 64;

/// All runs, in slots that are used again.
#[derive(Clone, Debug, Default)]
pub(super) struct Runs {
    chunks: Vec<Box<[Run]>>,
    /// The block before each run's first; apart, as no look-up reads it.
    parents: Vec<Box<[u64]>>,
    free: Vec<u32>,
    len: usize,
    /// Sum of `Run::bytes`.
    run_bytes: usize,
}

impl Runs {
    pub(super) fn run(&self, id: u32) -> &Run {
        &self.chunks[id as usize / CHUNK][id as usize % CHUNK]
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Slots ever used: ids are below.
    pub(super) fn slots(&self) -> u32 {
        (self.len + self.free.len()) as u32
    }

    /// Whether one more run has an id.
    pub(super) const fn has_room(&self) -> bool {
        self.len < RUNS_MAX
    }

    /// The block before a run's first; means nothing at depth 0.
    pub(super) fn parent(&self, id: u32) -> Option<u64> {
        let parent = self.parents[id as usize / CHUNK][id as usize % CHUNK];
        (self.run(id).start > 0).then_some(parent)
    }

    pub(super) fn set_parent(&mut self, id: u32, parent: u64) {
        self.parents[id as usize / CHUNK][id as usize % CHUNK] = parent;
    }

    /// Heap bytes by capacity.
    pub(super) fn bytes(&self) -> usize {
        self.chunks.len() * CHUNK * (size_of::<Run>() + size_of::<u64>())
            + self.chunks.capacity() * size_of::<Box<[Run]>>()
            + self.parents.capacity() * size_of::<Box<[u64]>>()
            + self.free.capacity() * size_of::<u32>()
            + self.run_bytes
    }

    /// Changes a run and keeps the count of its memory.
    pub(super) fn edit<T>(&mut self, id: u32, edit: impl FnOnce(&mut Run) -> T) -> T {
        let run = &mut self.chunks[id as usize / CHUNK][id as usize % CHUNK];
        let before = run.bytes();
        let result = edit(run);
        self.run_bytes = self.run_bytes - before + run.bytes();
        result
    }

    pub(super) fn add(&mut self, run: Run, parent: u64) -> u32 {
        let id = self.free.pop().unwrap_or_else(|| {
            if self.len == self.chunks.len() * CHUNK {
                self.chunks.push(std::iter::repeat_with(Run::default).take(CHUNK).collect());
                self.parents.push(vec![0; CHUNK].into_boxed_slice());
            }
            self.len as u32
        });
        self.len += 1;
        self.edit(id, |slot| *slot = run);
        self.set_parent(id, parent);
        id
    }

    pub(super) fn remove(&mut self, id: u32) {
        self.edit(id, |slot| *slot = Run::default());
        self.len -= 1;
        self.free.push(id);
    }

    /// The ids in use.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        (0..self.slots()).filter(|&id| self.run(id).len() > 0)
    }

    pub(super) fn check(&self) {
        assert_eq!(self.ids().count(), self.len, "runs counted");
        let bytes: usize = self.ids().map(|id| self.run(id).bytes()).sum();
        assert_eq!(bytes, self.run_bytes, "bytes of runs");
    }
}
