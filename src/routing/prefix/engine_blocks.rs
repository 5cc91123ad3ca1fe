//! Applies a worker's own reports (stored, removed, cleared) to its prefix index.
//!
//! Engines name their blocks themselves and cut them by tokens, so an engine block covers any
//! number of text bytes and ends anywhere in one of ours. One of ours is held once the engine block
//! that completes it is stored, if all others under it are held too, and is removed with any engine
//! block under it, whatever had presumed it. At most one of our blocks that an engine block
//! completes begins before it (the *joint*); a record is linked to its parent's only while they
//! share such a block, so the walks here end within one block of ours.
//!
//! A record whose block is gone stays while others are linked to it, so that their joints come back
//! when it is stored again. Rebuilding them from the index was turned down: it may have trimmed the
//! hashes. Where two different chains of engine blocks carry the same text (tokenised twice), a
//! removal in either removes what they share: too little is matched then, never too much.

use std::ops::{Index, IndexMut};

use super::super::block::{BlockHash, mix};
use super::record::{Record, RecordId};
use super::record_map::RecordMap;

/// An engine's name for one of its blocks, as it reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EngineBlockId(pub u64);

/// Why the rest of a stored report was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// A report was lost, or ours began in the middle; rooting the blocks would be a false match.
    #[error("the parent engine block is not held")]
    UnknownParent,
    /// The byte bound on engine block records is reached.
    #[error("no room for more engine block records")]
    Full,
    /// One worker reports from more engines than are kept apart.
    #[error("too many ranks")]
    TooManyRanks,
}

/// What a stored report changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoredOutcome {
    /// Engine blocks taken, further copies included.
    pub engine_blocks: usize,
    /// Blocks of ours added to the index.
    pub new_blocks: usize,
    /// Engine blocks not taken.
    pub rejected_engine_blocks: usize,
    /// Why, if any was not taken.
    pub rejected: Option<Rejection>,
}

impl StoredOutcome {
    pub(super) fn reject(&mut self, reason: Rejection, engine_blocks: usize) {
        self.rejected = Some(reason);
        self.rejected_engine_blocks = engine_blocks;
    }
}

/// What a removed report changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemovedOutcome {
    /// Ids held, be it that further copies remain.
    pub known: usize,
    /// Ids not held: never seen, rejected, or removed once too often.
    pub unknown: usize,
    /// Blocks of ours removed from the index.
    pub removed_blocks: usize,
}

/// Sizes of the engine block records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Engine blocks held, each counted once.
    pub engine_blocks: usize,
    /// Records kept for engine blocks that are gone but share a block of ours with others.
    pub gone_records: usize,
    /// Heap bytes: records and table slots by capacity, and the bytes and hashes in records.
    pub bytes: usize,
}

/// The engine blocks that a worker reported, by id. Records lie densely in memory.
#[derive(Clone, Debug)]
pub struct EngineBlocks {
    pub(super) records: Vec<Record>,
    pub(super) by_id: RecordMap,
    /// Records with `copies` above zero.
    pub(super) held: usize,
    /// Sum of `Record::heap_bytes`.
    pub(super) heap_bytes: usize,
    pub(super) bytes_max: usize,
    /// See [`HoldingsParams::id_seed`](super::HoldingsParams::id_seed).
    pub(super) id_seed: u64,
}

impl EngineBlocks {
    pub(super) fn new(bytes_max: usize, id_seed: u64) -> Self {
        let (records, by_id) = (Vec::new(), RecordMap::default());
        Self { records, by_id, held: 0, heap_bytes: 0, bytes_max, id_seed }
    }

    const fn key(&self, id: EngineBlockId) -> u64 {
        mix(id.0 ^ self.id_seed)
    }

    pub(super) fn stats(&self) -> EngineStats {
        EngineStats {
            engine_blocks: self.held,
            gone_records: self.records.len() - self.held,
            bytes: self.bytes(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.records.capacity() * size_of::<Record>() + self.by_id.bytes() + self.heap_bytes
    }

    pub(super) fn find(&self, id: EngineBlockId) -> Option<RecordId> {
        self.by_id.get(self.key(id), |number| self[RecordId(number)].id == id).map(RecordId)
    }

    pub(super) fn find_held(&self, id: EngineBlockId) -> Option<RecordId> {
        self.find(id).filter(|&at| self[at].copies > 0)
    }

    /// The engine blocks held, each with its copies.
    pub(super) fn copies(&self) -> impl Iterator<Item = (EngineBlockId, u32)> {
        let held = self.records.iter().filter(|record| record.copies > 0);
        held.map(|record| (record.id, record.copies.into()))
    }

    /// Counts one more copy; true if there was none.
    pub(super) fn add_copy(&mut self, at: RecordId) -> bool {
        let copies = self[at].copies;
        self[at].copies = copies.saturating_add(1);
        if copies == 0 {
            self.held += 1;
        }
        copies == 0
    }

    pub(super) fn children(&self, of: RecordId) -> impl Iterator<Item = RecordId> {
        std::iter::successors(self[of].first_child(), move |&at| self[at].next())
    }

    /// Whether all that lies under the last, incomplete block of ours in `at` is held.
    pub(super) fn tail_is_covered(&self, mut at: RecordId) -> bool {
        loop {
            let record = &self[at];
            if record.copies == 0 {
                return false;
            }
            if !record.completed().is_empty() || !record.joined() {
                return true;
            }
            let Some(parent) = record.parent().and_then(|parent| self.find(parent)) else {
                return false;
            };
            at = parent;
        }
    }

    /// The records whose joint begins in the tail of `at`, each with the joint and whether all
    /// that lies under it behind `at` is held.
    pub(super) fn joints_after(&self, at: RecordId) -> Vec<(&Record, BlockHash, bool)> {
        let mut joints = Vec::new();
        let mut todo = vec![(at, true)];
        while let Some((at, covered)) = todo.pop() {
            for child in self.children(at) {
                let covered = covered && self[child].copies > 0;
                match self[child].completed().first() {
                    Some(&joint) => joints.push((&self[child], joint, covered)),
                    None => todo.push((child, covered)),
                }
            }
        }
        joints
    }

    /// Adds a record unless it would exceed the bound.
    pub(super) fn add(&mut self, record: Record) -> Option<RecordId> {
        let at = self.fits(&record).then(|| self.push(record))?;
        self.link(at);
        Some(at)
    }

    /// Room for records that one more asks for, and bytes without the table then.
    fn step_to(&self, record: &Record) -> (usize, usize) {
        let len = self.records.len();
        let step = if len == self.records.capacity() { 4 + len / 8 } else { 0 };
        let records = (self.records.capacity() + step) * size_of::<Record>();
        (step, records + self.heap_bytes + record.heap_bytes())
    }

    /// Whether one more record keeps the bound.
    pub(super) fn fits(&self, record: &Record) -> bool {
        let (_, fixed) = self.step_to(record);
        fixed + self.by_id.bytes_with(self.records.len() + 1) <= self.bytes_max
    }

    /// Makes room for just so many records with so many bytes in them, where there are none and
    /// the bound allows it.
    pub(super) fn reserve_for(&mut self, records: usize, heap_bytes: usize) {
        let fixed = records.saturating_mul(size_of::<Record>()).saturating_add(heap_bytes);
        if fixed.saturating_add(RecordMap::bytes_for(records)) <= self.bytes_max {
            self.records.reserve_exact(records);
            self.by_id.reserve(records, 0);
        }
    }

    /// Adds a record that fits and whose id is new; it has to be linked.
    pub(super) fn push(&mut self, record: Record) -> RecordId {
        let (step, fixed) = self.step_to(&record);
        let at = RecordId::from_slot(self.records.len());
        self.records.reserve_exact(step);
        self.by_id.reserve(self.records.len() + 1, self.bytes_max - fixed);
        self.by_id.add(self.key(record.id), at.0);
        self.heap_bytes += record.heap_bytes();
        self.held += usize::from(record.copies > 0);
        self.records.push(record);
        at
    }

    /// The record of an engine block that others may begin inside a block of ours with: one that
    /// ends with a block of ours shares none.
    pub(super) fn find_parent(&self, id: EngineBlockId) -> Option<RecordId> {
        self.find(id).filter(|&at| self[at].may_be_parent())
    }

    /// Puts a record at the head of its parent's list; without such a parent it has none.
    pub(super) fn link(&mut self, at: RecordId) {
        let Some(parent) = self[at].parent() else { return };
        let Some(parent) = self.find_parent(parent) else {
            self[at].set_parent(None);
            return;
        };
        let next = self[parent].set_first_child(Some(at));
        self[at].set_next(next);
        if let Some(next) = next {
            self[next].set_previous(Some(at));
        }
    }

    /// Sets what leads to `at` in its parent's list, and back to it from the one behind.
    pub(super) fn relink(
        &mut self,
        at: RecordId,
        forward: Option<RecordId>,
        back: Option<RecordId>,
    ) {
        let record = &self[at];
        let (previous, next, parent) = (record.previous(), record.next(), record.parent());
        if let Some(previous) = previous {
            self[previous].set_next(forward);
        } else if let Some(parent) = parent.and_then(|parent| self.find(parent)) {
            self[parent].set_first_child(forward);
        }
        if let Some(next) = next {
            self[next].set_previous(back);
        }
    }

    /// Drops a record that is gone and has no other linked to it, and those above that it kept.
    pub(super) fn free(&mut self, mut at: RecordId) {
        while self[at].copies == 0 && self[at].first_child().is_none() {
            self.relink(at, self[at].next(), self[at].previous());
            let id = self[at].id;
            self.by_id.remove(self.key(id), at.0);
            let moved = RecordId::from_slot(self.records.len() - 1);
            if moved != at {
                self.relink(moved, Some(at), Some(at));
                self.by_id.renumber(self.key(self[moved].id), moved.0, at.0);
            }
            let record = self.records.swap_remove(at.slot());
            self.heap_bytes -= record.heap_bytes();
            let Some(parent) = record.parent().and_then(|parent| self.find(parent)) else { break };
            at = parent;
        }
    }

    /// Gives back memory that is not in use any more, which moves what is there. Apart from
    /// removals, as others may wait for those.
    pub(super) fn shrink_when_sparse(&mut self) {
        self.by_id.shrink_when_sparse();
        if self.records.len() * 4 < self.records.capacity() {
            self.records.shrink_to(self.records.len() * 2);
        }
    }

    /// Makes room for so many more records now, as far as the bound allows, so that adding them does
    /// not have to move what is there.
    pub(super) fn prepare(&mut self, more: usize) {
        let len = self.records.len() + more;
        if len > self.records.capacity() {
            let capacity = self.records.capacity() + more.max(4 + len / 8);
            let records = capacity * size_of::<Record>();
            if records + self.heap_bytes + self.by_id.bytes_with(len) > self.bytes_max {
                return;
            }
            self.records.reserve_exact(capacity - self.records.len());
        }
        let fixed = self.records.capacity() * size_of::<Record>() + self.heap_bytes;
        if fixed + self.by_id.bytes_with(len) <= self.bytes_max {
            self.by_id.reserve(len, self.bytes_max - fixed);
        }
    }

    /// Cuts the links of all records that are linked to `at`: their joints stay removed.
    pub(super) fn orphan_children(&mut self, at: RecordId) {
        let mut child = self[at].set_first_child(None);
        while let Some(id) = child {
            let record = &mut self[id];
            record.set_parent(None);
            record.set_previous(None);
            child = record.set_next(None);
        }
    }

    pub(super) fn check(&self) {
        self.by_id.check();
        assert_eq!(self.by_id.len(), self.records.len(), "records by id");
        assert_eq!(
            self.heap_bytes,
            self.records.iter().map(Record::heap_bytes).sum::<usize>(),
            "bytes"
        );
        assert_eq!(self.held, self.records.iter().filter(|r| r.copies > 0).count(), "held");
        let mut linked = 0;
        for (at, record) in self.records.iter().enumerate() {
            assert_eq!(self.find(record.id), Some(RecordId::from_slot(at)), "record of an id");
            assert!(record.copies > 0 || record.first_child().is_some(), "a record nobody needs");
            let mut previous = None;
            for child in self.children(RecordId::from_slot(at)) {
                assert_eq!(self[child].parent(), Some(record.id), "a child names its parent");
                assert_eq!(self[child].previous(), previous, "links disagree");
                previous = Some(child);
                linked += 1;
            }
        }
        let with_parent = self.records.iter().filter(|record| record.parent().is_some()).count();
        assert_eq!(linked, with_parent, "every child is in its parent's list");
    }
}

impl Index<RecordId> for EngineBlocks {
    type Output = Record;
    fn index(&self, at: RecordId) -> &Record {
        &self.records[at.slot()]
    }
}

impl IndexMut<RecordId> for EngineBlocks {
    fn index_mut(&mut self, at: RecordId) -> &mut Record {
        &mut self.records[at.slot()]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_aimed_at_one_place_are_spread() {
        const PLACES: u32 = 10;
        let place = |blocks: &EngineBlocks, id| blocks.key(EngineBlockId(id)) >> (64 - PLACES);
        let known = EngineBlocks::new(0, 0);
        let aimed = (0..).filter(|&id| place(&known, id) == 77);
        let aimed: Vec<u64> = aimed.take(500).collect();
        for id_seed in [1, 0x7fff_ffff_0000_0000, u64::MAX] {
            let blocks = EngineBlocks::new(0, id_seed);
            let places: BTreeSet<_> = aimed.iter().map(|&id| place(&blocks, id)).collect();
            // Of 500 drawn out of 1,024 some 395 differ.
            assert!(places.len() > 300, "{id_seed:x}: {}", places.len());
        }
    }
}
