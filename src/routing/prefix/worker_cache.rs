//! What one memory tier of an engine holds: its engine blocks, and by them blocks of ours.
//!
//! What `engine_blocks` knows of one record, this applies to whole reports, and to what the tier's
//! holder has in the [`Index`].

use std::num::NonZeroUsize;

use super::super::block::{BlockHash, BlockHasher, Root};
use super::super::index::Holder;
use super::Index;
use super::engine_blocks::{
    EngineBlockId, EngineBlocks, EngineStats, Rejection, RemovedOutcome, StoredOutcome,
};
use super::record::{Record, RecordId, Told};

/// What one cache knows of an engine block, for another cache of the same engine to record it.
pub(super) struct Known {
    record: Record,
    /// The block of ours before the first that it completes.
    above: Option<BlockHash>,
}

/// A chain of engine blocks on its way into the records and the index.
struct Run {
    /// The block of ours before its first, and how many there are before.
    above: Option<BlockHash>,
    depth: u32,
    hasher: BlockHasher,
    block_bytes: u16,
    /// How many of its blocks of ours are in the index or were left out.
    inserted: usize,
}

impl Run {
    /// The record of the engine block pushed last; `complete` blocks of ours came before it.
    fn record(
        &self,
        id: EngineBlockId,
        parent: Option<EngineBlockId>,
        complete: usize,
        joined: bool,
    ) -> Record {
        let blocks = self.hasher.blocks();
        Record::from(Told {
            id,
            parent,
            joined,
            block_bytes: self.block_bytes,
            copies: 1,
            depth: self.depth + blocks.len() as u32,
            chain: self.hasher.chain(),
            tail: self.hasher.tail(),
            completed: &blocks[complete..],
        })
    }
}

/// The engine blocks of one tier.
#[derive(Clone, Debug)]
pub struct WorkerCache {
    pub(super) engine_blocks: EngineBlocks,
}

/// An index and who holds in it here.
pub struct Tree<'a> {
    /// The index.
    pub index: &'a mut Index,
    /// Who holds.
    pub holder: Holder,
}

impl Tree<'_> {
    /// These blocks are held, the first behind `above` at `depth`; returns how many were not.
    fn hold(&mut self, above: Option<BlockHash>, depth: u32, blocks: &[BlockHash]) -> usize {
        self.index.hold(self.holder, above, depth, blocks).gained
    }

    fn release(&mut self, block: BlockHash) -> bool {
        self.index.release(self.holder, &[block]) > 0
    }
}

impl WorkerCache {
    /// Empty; `engine_bytes_max` bounds the heap bytes of engine block records. `id_seed` is what
    /// [`HoldingsParams::id_seed`](super::HoldingsParams::id_seed) is.
    pub fn new(engine_bytes_max: usize, id_seed: u64) -> Self {
        Self { engine_blocks: EngineBlocks::new(engine_bytes_max, id_seed) }
    }

    /// Changes the bound. Records over it stay until the engine removes them, but no more are
    /// taken.
    pub fn set_bytes_max(&mut self, engine_bytes_max: usize) {
        self.engine_blocks.bytes_max = engine_bytes_max;
    }

    /// The engine stored a chain of blocks (id, text), behind `parent` or else from `root` on.
    ///
    /// An id may come once per physical copy and counts as often. One that comes with another text
    /// or place than before replaces what it stood for, in all copies: its removal was lost. The
    /// first block rejected rejects all behind it. `block_bytes` is the size of our blocks; a
    /// parent that was stored with another size counts as unknown.
    ///
    /// Tells `gone` the blocks of ours that a replaced id stood for.
    pub fn stored<'a>(
        &mut self,
        tree: &mut Tree<'_>,
        root: Root,
        mut parent: Option<EngineBlockId>,
        mut blocks: impl Iterator<Item = (EngineBlockId, &'a [u8])>,
        block_bytes: NonZeroUsize,
        mut gone: impl FnMut(BlockHash),
    ) -> StoredOutcome {
        let mut outcome = StoredOutcome::default();
        let Some(mut run) = self.run_after(root, parent, block_bytes) else {
            outcome.reject(Rejection::UnknownParent, blocks.count());
            return outcome;
        };
        let mut revived = Vec::new();
        while let Some((id, text)) = blocks.next() {
            if parent == Some(id) {
                outcome.reject(Rejection::UnknownParent, 1 + blocks.count());
                break;
            }
            let (complete, joined) = (run.hasher.blocks().len(), !run.hasher.tail().is_empty());
            run.hasher.push(text);
            let record = run.record(id, parent.filter(|_| joined), complete, joined);
            let completes = !record.completed().is_empty();
            let mut known = self.engine_blocks.find(id);
            if let Some(at) = known.filter(|&at| !self.engine_blocks[at].agrees(&record)) {
                Self::insert_run(tree, &mut run, complete, &mut outcome);
                self.forget(tree, at, &mut gone);
                known = None;
            }
            if let Some(at) = known {
                if self.engine_blocks.add_copy(at) {
                    revived.push(id);
                }
            } else if self.engine_blocks.add(record).is_none() {
                Self::insert_run(tree, &mut run, complete, &mut outcome);
                run.inserted = run.hasher.blocks().len();
                outcome.reject(Rejection::Full, 1 + blocks.count());
                break;
            }
            outcome.engine_blocks += 1;
            let above = parent.and_then(|parent| self.engine_blocks.find(parent));
            let covered = above.is_some_and(|above| self.engine_blocks.tail_is_covered(above));
            if joined && completes && !covered {
                Self::insert_run(tree, &mut run, complete, &mut outcome);
                run.inserted = complete + 1;
            }
            parent = Some(id);
        }
        let complete = run.hasher.blocks().len();
        Self::insert_run(tree, &mut run, complete, &mut outcome);
        for id in revived {
            self.restore_joints(tree, id, &mut outcome);
        }
        outcome
    }

    /// The engine removed one copy of each of these blocks. Tells `gone` every block of ours that
    /// this leaves uncovered, trimmed ones included.
    pub fn removed(
        &mut self,
        tree: &mut Tree<'_>,
        ids: &[EngineBlockId],
        mut gone: impl FnMut(BlockHash),
    ) -> RemovedOutcome {
        let mut outcome = RemovedOutcome::default();
        for &id in ids {
            let Some(at) = self.engine_blocks.find_held(id) else {
                outcome.unknown += 1;
                continue;
            };
            outcome.known += 1;
            let copies = u32::from(self.engine_blocks[at].copies) - 1;
            outcome.removed_blocks += self.set_copies_at(tree, at, copies, &mut gone);
        }
        outcome
    }

    /// Corrects the copies of an engine block that is held; returns how many blocks of ours that
    /// removed.
    pub(super) fn set_copies(
        &mut self,
        tree: &mut Tree<'_>,
        id: EngineBlockId,
        copies: u32,
        mut gone: impl FnMut(BlockHash),
    ) -> usize {
        let at = self.engine_blocks.find_held(id);
        at.map_or(0, |at| self.set_copies_at(tree, at, copies, &mut gone))
    }

    /// What is known of an engine block, held or kept for others; none where the block of ours
    /// before it has to be known too and is not.
    pub(super) fn known(&self, index: &Index, id: EngineBlockId) -> Option<Known> {
        let record = self.engine_blocks[self.engine_blocks.find(id)?].clone();
        let above = match record.completed().first() {
            Some(&first) if record.depth as usize > record.completed().len() => {
                Some(index.block_before(first)??)
            }
            _ => None,
        };
        Some(Known { record, above })
    }

    /// The engine stored a block here too that another of its caches knows.
    pub(super) fn stored_known(
        &mut self,
        tree: &mut Tree<'_>,
        known: Known,
        outcome: &mut StoredOutcome,
        mut gone: impl FnMut(BlockHash),
    ) {
        let Known { record, above } = known;
        let id = record.id;
        let parent = record.parent().filter(|&id| self.engine_blocks.find_parent(id).is_some());
        let mut record = record.told_of(parent);
        let mut at = self.engine_blocks.find(id);
        if let Some(other) = at.filter(|&at| !self.engine_blocks[at].agrees(&record)) {
            self.forget(tree, other, &mut gone);
            // With it may have gone a parent that was kept for it.
            record.set_parent(parent.filter(|&id| self.engine_blocks.find_parent(id).is_some()));
            at = None;
        }
        if let Some(at) = at {
            self.engine_blocks.add_copy(at);
        } else {
            at = self.engine_blocks.add(record);
        }
        let Some(at) = at else {
            outcome.reject(Rejection::Full, outcome.rejected_engine_blocks + 1);
            return;
        };
        outcome.engine_blocks += 1;
        let record = &self.engine_blocks[at];
        let parent = record.parent().and_then(|parent| self.engine_blocks.find(parent));
        let covered = parent.is_some_and(|parent| self.engine_blocks.tail_is_covered(parent));
        if let Some(&joint) = record.completed().first() {
            let (above, from) =
                if record.joined() && !covered { (Some(joint), 1) } else { (above, 0) };
            let blocks = &record.completed()[from..];
            let depth = record.depth - blocks.len() as u32;
            outcome.new_blocks += tree.hold(above, depth, blocks);
        }
        self.restore_joints(tree, id, outcome);
    }

    /// The engine blocks held, each with its copies.
    pub(super) fn copies(&self) -> impl Iterator<Item = (EngineBlockId, u32)> {
        self.engine_blocks.copies()
    }

    /// The engine dropped its whole cache: forgets the records, and returns them, as freeing them
    /// takes long. What is held in the index is its holder's, to be dropped by whoever has that.
    pub fn cleared(&mut self) -> EngineBlocks {
        let none = EngineBlocks::new(self.engine_blocks.bytes_max, self.engine_blocks.id_seed);
        std::mem::replace(&mut self.engine_blocks, none)
    }

    /// Makes room for so many more engine blocks, as far as the bound allows.
    pub(super) fn prepare(&mut self, more: usize) {
        self.engine_blocks.prepare(more);
    }

    /// Gives back memory that is not in use any more.
    pub(super) fn shrink_when_sparse(&mut self) {
        self.engine_blocks.shrink_when_sparse();
    }

    /// Sizes of the engine block records, in O(1).
    pub fn engine_stats(&self) -> EngineStats {
        self.engine_blocks.stats()
    }

    /// Asserts every invariant.
    pub fn check(&self) {
        self.engine_blocks.check();
    }

    fn run_after(
        &self,
        root: Root,
        parent: Option<EngineBlockId>,
        block_bytes: NonZeroUsize,
    ) -> Option<Run> {
        let size = Record::size(block_bytes);
        let Some(parent) = parent else {
            let hasher = BlockHasher::new(root, block_bytes);
            return Some(Run { above: None, depth: 0, hasher, block_bytes: size, inserted: 0 });
        };
        let record = &self.engine_blocks[self.engine_blocks.find_held(parent)?];
        if record.block_bytes != size {
            return None;
        }
        let hasher = BlockHasher::resume(record.chain(), record.tail(), block_bytes);
        let (above, depth) = (record.above(), record.depth);
        Some(Run { above, depth, hasher, block_bytes: size, inserted: 0 })
    }

    /// Inserts the blocks of a run up to its block `end`, but for those inserted or left out.
    fn insert_run(tree: &mut Tree<'_>, run: &mut Run, end: usize, outcome: &mut StoredOutcome) {
        let from = run.inserted;
        if from < end {
            let blocks = run.hasher.blocks();
            let above = if from > 0 { Some(blocks[from - 1]) } else { run.above };
            let depth = run.depth + from as u32;
            outcome.new_blocks += tree.hold(above, depth, &blocks[from..end]);
            run.inserted = end;
        }
    }

    /// Brings back the blocks of ours that an engine block just stored again was missing under.
    fn restore_joints(&self, tree: &mut Tree<'_>, id: EngineBlockId, outcome: &mut StoredOutcome) {
        let Some(at) = self.engine_blocks.find_held(id) else { return };
        if self.engine_blocks.tail_is_covered(at) {
            let record = &self.engine_blocks[at];
            for (_, joint, covered) in self.engine_blocks.joints_after(at) {
                if covered {
                    outcome.new_blocks += tree.hold(record.above(), record.depth, &[joint]);
                }
            }
        }
    }

    fn set_copies_at(
        &mut self,
        tree: &mut Tree<'_>,
        at: RecordId,
        copies: u32,
        gone: &mut impl FnMut(BlockHash),
    ) -> usize {
        self.engine_blocks[at].copies = copies.try_into().unwrap_or(u16::MAX);
        if copies > 0 {
            return 0;
        }
        let removed = self.remove_covered(tree, at, gone);
        self.engine_blocks.free(at);
        removed
    }

    /// Counts an engine block as gone and removes every block of ours that it lies under.
    fn remove_covered(
        &mut self,
        tree: &mut Tree<'_>,
        at: RecordId,
        gone: &mut impl FnMut(BlockHash),
    ) -> usize {
        self.engine_blocks.held -= 1;
        let joints = self.engine_blocks.joints_after(at).into_iter();
        let joints = joints.filter(|(by, ..)| by.copies > 0).map(|(_, joint, _)| joint);
        let completed = self.engine_blocks[at].completed().iter().rev().copied();
        let blocks = joints.chain(completed).inspect(|&block| gone(block));
        blocks.filter(|&block| tree.release(block)).count()
    }

    /// Drops an engine block in all copies.
    fn forget(&mut self, tree: &mut Tree<'_>, at: RecordId, gone: &mut impl FnMut(BlockHash)) {
        if std::mem::take(&mut self.engine_blocks[at].copies) > 0 {
            self.remove_covered(tree, at, gone);
        }
        self.engine_blocks.orphan_children(at);
        self.engine_blocks.free(at);
    }
}
