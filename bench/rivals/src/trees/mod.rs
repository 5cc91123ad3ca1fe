//! What the product had before it shared runs between workers: a compressed radix tree a worker, kept
//! here to be measured against.
//!
//! It is a belief, not a fact: a wrong one costs a cache miss on the worker, never a wrong answer.
//! Since a block hash commits to all that precedes it, a run of blocks equals the prompt's exactly
//! if its *last* one does; otherwise a binary search finds where they part. So a match costs one
//! look-up per branch passed, not per block.
//!
//! Removing a block from the middle leaves a *hole*: what lies behind it is still held (the worker
//! holds it too), cannot be matched, and is back as soon as the hole is filled. Cutting all behind
//! a hole was turned down: it loses what the worker still has, and walks what it cuts.
//!
//! The parts: `node` (the runs and where each block lies), `recency` (what is trimmed, and when).

mod node;
mod place_map;
mod recency;

use std::collections::HashMap;

use self::node::{Children, NodeId, Tree};
use crate::routing::block::BlockHash;

/// What an index may grow to; at either bound the least recently used blocks are trimmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Blocks held, unreachable ones included.
    pub blocks_max: usize,
    /// Heap bytes, counted as in [`Stats::bytes`].
    pub bytes_max: usize,
}

/// What an insert changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inserted {
    /// Blocks added. Less than what was missing where the blocks exceed the bounds by themselves.
    pub new_blocks: usize,
    /// Blocks trimmed to make room.
    pub trimmed_blocks: usize,
}

/// The block to insert after is not held; to root its children would claim a false prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("parent block {:016x} is not held", .0.as_u64())]
pub struct UnknownParent(pub BlockHash);

/// Sizes of now and totals since the index was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Blocks held, unreachable ones included.
    pub blocks: usize,
    /// Runs without a branch or hole.
    pub nodes: usize,
    /// Missing blocks with blocks held behind them.
    pub holes: usize,
    /// Heap bytes by capacity: 16 a slot of the position table (at most 4/5 full) and of the
    /// table of holes, 8 a block of label capacity, and the node slots and their free list. A
    /// table being resized holds its old and its new slots for that moment. The allocator's own
    /// overhead is not in it.
    pub bytes: usize,
    /// Blocks added.
    pub inserted_total: u64,
    /// Blocks cut to keep the bounds.
    pub trimmed_total: u64,
    /// Blocks removed, retracted or cleared.
    pub removed_total: u64,
}

/// Our belief about one worker's cache.
#[derive(Clone, Debug)]
pub struct PrefixIndex {
    tree: Tree,
    bounds: Bounds,
    inserted_total: u64,
    trimmed_total: u64,
    removed_total: u64,
}

/// A point between two blocks of a path.
#[derive(Clone, Copy)]
struct Cursor {
    /// The node whose label was entered; none at depth 0 and behind a missing block.
    node: Option<NodeId>,
    /// Blocks of its label passed.
    taken: usize,
    /// The block just passed.
    parent: Option<BlockHash>,
    /// Blocks passed from the root on.
    depth: u32,
}

impl Cursor {
    const ROOT: Self = Self { node: None, taken: 0, parent: None, depth: 0 };
}

impl PrefixIndex {
    /// An empty index; it takes no heap memory yet.
    pub fn new(bounds: Bounds) -> Self {
        let tree = Tree::default();
        Self { tree, bounds, inserted_total: 0, trimmed_total: 0, removed_total: 0 }
    }

    /// Adds a prompt's blocks, from the first one on, and marks all of them as just used.
    ///
    /// Older blocks are trimmed to the bounds; of these blocks themselves the deepest are left out
    /// when nothing else is left to trim. O(branches passed + blocks added or trimmed), plus the
    /// shorter part of each run split or joined.
    pub fn insert(&mut self, blocks: &[BlockHash]) -> Inserted {
        self.graft(Cursor::ROOT, blocks)
    }

    /// As [`insert`](Self::insert), for blocks that follow `parent` (none: from the root).
    ///
    /// # Errors
    ///
    /// [`UnknownParent`] when `parent` is not held; nothing is changed then.
    pub fn insert_after(
        &mut self,
        parent: Option<BlockHash>,
        blocks: &[BlockHash],
    ) -> Result<Inserted, UnknownParent> {
        let Some(parent) = parent else { return Ok(self.insert(blocks)) };
        let (_, depth) = self.tree.position(parent).ok_or(UnknownParent(parent))?;
        Ok(self.insert_behind(Some(parent), depth + 1, blocks))
    }

    /// As [`insert_after`](Self::insert_after), for a parent known to have stood at `depth - 1`:
    /// where it is not held any more, the blocks wait behind the hole it left.
    fn insert_behind(
        &mut self,
        parent: Option<BlockHash>,
        depth: u32,
        blocks: &[BlockHash],
    ) -> Inserted {
        let held = parent.and_then(|parent| self.tree.position(parent));
        let cursor = match held {
            Some((id, at)) if at + 1 == depth => self.cursor_in(id, parent, depth),
            _ => Cursor { node: None, taken: 0, parent, depth },
        };
        self.graft(cursor, blocks)
    }

    /// How many leading blocks of a prompt are held. Changes nothing, recency included.
    pub fn matched_blocks(&self, blocks: &[BlockHash]) -> usize {
        self.walk(Cursor::ROOT, blocks).1
    }

    /// Marks the matching part of a prompt as just used; returns how many blocks that is.
    pub fn touch(&mut self, blocks: &[BlockHash]) -> usize {
        let (cursor, matched) = self.walk(Cursor::ROOT, blocks);
        self.refresh_path(cursor.node);
        matched
    }

    /// Whether a block is held, be it reachable or behind a hole.
    pub fn contains(&self, block: BlockHash) -> bool {
        self.tree.position(block).is_some()
    }

    /// Removes one block, wherever it lies; what lies behind it stays. False if it is not held.
    pub fn remove(&mut self, block: BlockHash) -> bool {
        let Some((mut id, depth)) = self.tree.position(block) else { return false };
        let node = &self.tree.nodes[id];
        let end = (depth - node.start) as usize + 1;
        if end < node.label().len() {
            id = self.tree.split(id, end);
        }
        self.tree.cut(id, 1, None);
        self.removed_total += 1;
        self.settle();
        true
    }

    /// Takes back a presumption: removes `blocks[keep..]` from the deepest held one backwards, up
    /// to the first that something else follows. Returns how many were removed.
    pub fn retract(&mut self, blocks: &[BlockHash], keep: usize) -> usize {
        let matched = self.matched_blocks(blocks);
        let mut left = matched;
        while left > keep {
            let last = blocks[left - 1];
            let Some((id, _)) = self.tree.position(last) else { break };
            let node = &self.tree.nodes[id];
            if node.children.count > 0 || node.last() != last {
                break;
            }
            let count = node.label().len().min(left - keep);
            self.tree.cut(id, count, None);
            left -= count;
        }
        self.removed_total += (matched - left) as u64;
        self.settle();
        matched - left
    }

    /// Forgets all blocks and gives their memory back; bounds and totals stay.
    pub fn clear(&mut self) {
        self.removed_total += self.blocks() as u64;
        self.tree = Tree::default();
    }

    /// Sizes and totals, in O(1).
    pub fn stats(&self) -> Stats {
        Stats {
            blocks: self.blocks(),
            nodes: self.tree.nodes.len(),
            holes: self.tree.orphans.len(),
            bytes: self.tree.bytes(),
            inserted_total: self.inserted_total,
            trimmed_total: self.trimmed_total,
            removed_total: self.removed_total,
        }
    }

    fn blocks(&self) -> usize {
        self.tree.positions.len()
    }

    fn cursor_in(&self, id: NodeId, parent: Option<BlockHash>, depth: u32) -> Cursor {
        let taken = (depth - self.tree.nodes[id].start) as usize;
        Cursor { node: Some(id), taken, parent, depth }
    }

    /// Follows `blocks` from `cursor` on; returns where they leave what is held, and how many do
    /// not.
    fn walk(&self, mut cursor: Cursor, blocks: &[BlockHash]) -> (Cursor, usize) {
        let mut matched = 0;
        while matched < blocks.len() {
            let rest =
                cursor.node.map_or(&[][..], |id| &self.tree.nodes[id].label()[cursor.taken..]);
            if rest.is_empty() {
                let Some(child) = self.child(cursor, blocks[matched]) else { break };
                cursor.node = Some(child);
                cursor.taken = 0;
                continue;
            }
            let common = common_blocks(rest, &blocks[matched..]);
            if common > 0 {
                cursor.taken += common;
                cursor.depth += common as u32;
                matched += common;
                cursor.parent = Some(blocks[matched - 1]);
            }
            if common < rest.len() {
                break;
            }
        }
        (cursor, matched)
    }

    fn child(&self, cursor: Cursor, block: BlockHash) -> Option<NodeId> {
        let (id, depth) = self.tree.position(block)?;
        let node = &self.tree.nodes[id];
        // By the hash alone it is the child, unless two hashes collide.
        let follows = node.parent() == cursor.parent && node.start == depth;
        (follows && depth == cursor.depth).then_some(id)
    }

    fn graft(&mut self, mut cursor: Cursor, mut blocks: &[BlockHash]) -> Inserted {
        let (inserted, trimmed) = (self.inserted_total, self.trimmed_total);
        loop {
            // More than one turn where the new blocks fill a hole and go on behind it.
            let (next, matched) = self.walk(cursor, blocks);
            cursor = next;
            blocks = &blocks[matched..];
            let new = self.leading_new(blocks, cursor.depth);
            let added = self.append(&mut cursor, &blocks[..new]);
            if added == 0 {
                break;
            }
            blocks = &blocks[added..];
        }
        self.refresh_path(cursor.node);
        self.settle();
        Inserted {
            new_blocks: (self.inserted_total - inserted) as usize,
            trimmed_blocks: (self.trimmed_total - trimmed) as usize,
        }
    }

    /// How many leading blocks can go into one run: none is held, and only the last may be one
    /// that orphans wait for.
    fn leading_new(&self, blocks: &[BlockHash], depth: u32) -> usize {
        // Without holes, a held block behind one that is not held would be a hash collision;
        // `Tree::append` sees those.
        let certain = if self.tree.orphans.len() == 0 { 1 } else { blocks.len() };
        for (at, (block, depth)) in
            blocks[..certain.min(blocks.len())].iter().zip(depth..).enumerate()
        {
            if self.contains(*block) {
                return at;
            }
            if self.tree.orphans_of(*block, depth).count > 0 {
                return at + 1;
            }
        }
        blocks.len()
    }

    /// Adds blocks of which none is held at the cursor, as many as there is room for, and moves
    /// the cursor behind them.
    fn append(&mut self, cursor: &mut Cursor, blocks: &[BlockHash]) -> usize {
        if blocks.is_empty() {
            return 0;
        }
        if let Some(id) = cursor.node {
            let inside = cursor.taken < self.tree.nodes[id].label().len();
            let id = if inside { self.tree.split(id, cursor.taken) } else { id };
            cursor.node = Some(id);
            self.refresh_path(cursor.node);
        }
        let pinned = cursor.node.and(cursor.parent);
        let room = self.make_room(blocks.len(), pinned);
        // Trimming may have joined the node with its parent.
        cursor.node = pinned.and_then(|pinned| self.tree.position(pinned)).map(|(id, _)| id);
        let mut added = 0;
        if room > 0 {
            let blocks = &blocks[..room];
            added = self.tree.append(cursor.node, cursor.parent, cursor.depth, blocks);
            self.inserted_total += added as u64;
            cursor.parent = Some(blocks[added - 1]);
            cursor.depth += added as u32;
        } else if let Some(id) = cursor.node {
            self.tree.merge_only_child(id);
        }
        if added > 0 || cursor.node.is_some() {
            // The node may have been joined with others.
            let parent = cursor.parent.and_then(|parent| self.tree.position(parent));
            let (id, _) = parent.expect("the block just passed is held");
            *cursor = self.cursor_in(id, cursor.parent, cursor.depth);
        }
        added
    }

    /// Marks a node and all above it as just used, the root last.
    fn refresh_path(&mut self, mut at: Option<NodeId>) {
        while let Some(id) = at {
            self.tree.recency.refresh(&mut self.tree.nodes, id);
            at = self.tree.parent_of(id);
        }
    }

    /// Asserts every invariant, the byte count included.
    pub fn check(&self) {
        let Tree { nodes, positions, orphans, recency } = &self.tree;
        nodes.check();
        positions.check();
        orphans.check();
        let order = recency.order(nodes);
        assert_eq!(order.len(), nodes.len(), "every node has a place in the recency list");
        let (mut blocks, mut waiting) = (0, HashMap::<_, Children>::new());
        let mut children = HashMap::<_, Children>::new();
        let rank: HashMap<_, _> = order.into_iter().zip(0..).collect();
        for id in nodes.ids() {
            let node = &nodes[id];
            blocks += node.label().len();
            for (&block, depth) in node.label().iter().zip(node.start..) {
                assert_eq!(self.tree.position(block), Some((id, depth)), "position of a block");
            }
            match (self.tree.parent_of(id), node.parent()) {
                (Some(parent), Some(hash)) => {
                    assert_eq!(nodes[parent].last(), hash, "a child hangs from the last block");
                    assert!(rank[&parent] < rank[&id], "a parent is more recent than its child");
                    children.entry(parent).or_default().add(id);
                }
                (None, Some(hash)) => waiting.entry((hash, node.start - 1)).or_default().add(id),
                (_, None) => assert_eq!(node.start, 0, "only first blocks have no parent"),
            }
        }
        for id in nodes.ids() {
            let expected = children.get(&id).copied().unwrap_or_default();
            assert_eq!(nodes[id].children, expected, "children counted");
            assert_ne!(expected.count, 1, "an only child is joined");
        }
        assert_eq!(waiting.len(), orphans.len(), "holes counted");
        for ((block, depth), expected) in waiting {
            assert_eq!(self.tree.orphans_of(block, depth), expected, "orphans counted");
        }
        assert_eq!(blocks, positions.len(), "blocks counted");
        assert!(blocks <= self.bounds.blocks_max, "block bound");
        assert!(self.tree.bytes() <= self.bounds.bytes_max, "byte bound");
        let gone = self.trimmed_total + self.removed_total;
        assert_eq!(self.inserted_total - gone, blocks as u64, "totals");
    }
}

/// How many leading blocks two runs share, given that equal hashes imply equal hashes before them.
fn common_blocks(a: &[BlockHash], b: &[BlockHash]) -> usize {
    let len = a.len().min(b.len());
    if len == 0 || a[len - 1] == b[len - 1] {
        return len;
    }
    let (mut low, mut high) = (0, len - 1);
    while low < high {
        let middle = low + (high - low) / 2;
        if a[middle] == b[middle] {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}
