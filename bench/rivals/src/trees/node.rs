//! The compressed radix tree: a node is a run of blocks without a branch or a hole in it.
//!
//! A node names its parent by the hash of the block before its first one, not by slot: the name
//! outlives splits and merges, and it outlives the parent too. A node whose parent is gone is an
//! *orphan*: it stays, unreachable, and is reachable again once its missing block is stored.
//!
//! Every operation leaves the runs as long as they can be, so the shape depends on the blocks held
//! and not on how they came. To find an only child for that without a list of children, a node keeps
//! their number and the XOR of their ids: with one child the XOR is that child.

use std::num::NonZeroU32;
use std::ops::{Index, IndexMut};

use super::place_map::{Place, PlaceMap};
use super::recency::{Links, Recency};
use crate::routing::block::BlockHash;

/// A slot of [`Nodes`], plus one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct NodeId(NonZeroU32);

impl NodeId {
    fn from_slot(slot: usize) -> Self {
        let id = u32::try_from(slot + 1).ok().and_then(NonZeroU32::new);
        Self(id.expect("2^32 nodes do not fit in memory"))
    }

    fn new(id: u32) -> Self {
        Self(NonZeroU32::new(id).expect("ids begin at one"))
    }

    const fn slot(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// The children of a node, or of a missing block: how many, and the XOR of their ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Children {
    pub(super) count: u32,
    ids_xor: u32,
}

impl Children {
    pub(super) const fn one(id: NodeId) -> Self {
        Self { count: 1, ids_xor: id.0.get() }
    }

    pub(super) const fn add(&mut self, id: NodeId) {
        self.count += 1;
        self.ids_xor ^= id.0.get();
    }

    const fn leave(&mut self, id: NodeId) {
        self.count -= 1;
        self.ids_xor ^= id.0.get();
    }

    const fn replace(&mut self, old: NodeId, new: NodeId) {
        self.ids_xor ^= old.0.get() ^ new.0.get();
    }

    fn only(self) -> Option<NodeId> {
        (self.count == 1).then(|| NodeId::new(self.ids_xor))
    }
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Never empty in a node in use.
    label: Vec<BlockHash>,
    /// The block before the first; means nothing at depth 0.
    parent: BlockHash,
    /// Blocks before the first.
    pub(super) start: u32,
    pub(super) children: Children,
    pub(super) links: Links,
}

impl Node {
    pub(super) fn label(&self) -> &[BlockHash] {
        &self.label
    }

    pub(super) fn parent(&self) -> Option<BlockHash> {
        (self.start > 0).then_some(self.parent)
    }

    pub(super) fn last(&self) -> BlockHash {
        *self.label.last().expect("a label is never empty")
    }
}

/// All nodes, in slots that are used again.
#[derive(Clone, Debug, Default)]
pub(super) struct Nodes {
    slots: Vec<Node>,
    free: Vec<NodeId>,
    /// Sum of all label capacities, in blocks.
    label_blocks: usize,
}

impl Index<NodeId> for Nodes {
    type Output = Node;
    fn index(&self, id: NodeId) -> &Node {
        &self.slots[id.slot()]
    }
}

impl IndexMut<NodeId> for Nodes {
    fn index_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.slots[id.slot()]
    }
}

impl Nodes {
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Heap bytes: slots, free list and labels, each by its capacity.
    pub(super) fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Node>()
            + self.free.capacity() * size_of::<NodeId>()
            + self.label_blocks * size_of::<BlockHash>()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = NodeId> {
        let used = |(slot, node): (usize, &Node)| {
            (!node.label.is_empty()).then(|| NodeId::from_slot(slot))
        };
        self.slots.iter().enumerate().filter_map(used)
    }

    fn add(&mut self, node: Node) -> NodeId {
        self.label_blocks += node.label.capacity();
        if let Some(id) = self.free.pop() {
            self[id] = node;
            return id;
        }
        if self.slots.len() == self.slots.capacity() {
            // An eighth at a time: doubling would take a byte bound in one jump.
            self.slots.reserve_exact(4 + self.slots.len() / 8);
        }
        self.slots.push(node);
        NodeId::from_slot(self.slots.len() - 1)
    }

    fn take(&mut self, id: NodeId) -> Node {
        let unused = Node {
            label: Vec::new(),
            parent: BlockHash::new(0),
            start: 0,
            children: Children::default(),
            links: Links::default(),
        };
        let node = std::mem::replace(&mut self[id], unused);
        self.label_blocks -= node.label.capacity();
        if self.free.len() == self.free.capacity() {
            self.free.reserve_exact(4 + self.free.len() / 8);
        }
        self.free.push(id);
        node
    }

    /// Changes a label and keeps the count of its memory.
    fn edit_label<T>(&mut self, id: NodeId, edit: impl FnOnce(&mut Vec<BlockHash>) -> T) -> T {
        let label = &mut self.slots[id.slot()].label;
        let before = label.capacity();
        let result = edit(label);
        self.label_blocks = self.label_blocks - before + label.capacity();
        result
    }

    /// Asserts the count of label memory.
    pub(super) fn check(&self) {
        let labels = self.slots.iter().map(|node| node.label.capacity()).sum::<usize>();
        assert_eq!(labels, self.label_blocks, "label memory");
        assert_eq!(self.ids().count(), self.len(), "free slots");
    }
}

/// The nodes, where each block lies in them, and what misses its parent.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    pub(super) nodes: Nodes,
    /// Block to node id and depth (blocks before it, from the root).
    pub(super) positions: PlaceMap,
    /// Missing block, by `orphans_key`, to those that wait for it: XOR of ids, and count.
    pub(super) orphans: PlaceMap,
    pub(super) recency: Recency,
}

/// A hash at the wrong depth (a collision) must not adopt: the depth is part of the name.
const fn orphans_key(block: BlockHash, depth: u32) -> u64 {
    block.as_u64().wrapping_add((depth as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

impl Tree {
    pub(super) fn bytes(&self) -> usize {
        self.nodes.bytes() + self.positions.bytes() + self.orphans.bytes()
    }

    /// The node of a block and the block's depth.
    pub(super) fn position(&self, block: BlockHash) -> Option<(NodeId, u32)> {
        self.positions.get(block.as_u64()).map(|place| (NodeId::new(place.id), place.depth))
    }

    /// The node that a node hangs from; none for a first block and for an orphan.
    pub(super) fn parent_of(&self, id: NodeId) -> Option<NodeId> {
        let node = &self.nodes[id];
        let (parent, depth) = self.position(node.parent()?)?;
        (depth + 1 == node.start).then_some(parent)
    }

    pub(super) fn orphans_of(&self, block: BlockHash, depth: u32) -> Children {
        let place = self.orphans.get(orphans_key(block, depth));
        place.map_or(Children::default(), |p| Children { count: p.depth, ids_xor: p.id })
    }

    fn set_orphans(&mut self, block: BlockHash, depth: u32, children: Children) {
        let key = orphans_key(block, depth);
        if children.count == 0 {
            self.orphans.remove(key);
            self.orphans.shrink_when_sparse();
        } else {
            self.orphans.set(key, Place { id: children.ids_xor, depth: children.count });
        }
    }

    /// Changes the list of children in which `id` stands, wherever that is kept.
    fn among_siblings(&mut self, id: NodeId, change: impl FnOnce(&mut Children)) {
        if let Some(parent) = self.parent_of(id) {
            change(&mut self.nodes[parent].children);
        } else if let Some(missing) = self.nodes[id].parent() {
            let depth = self.nodes[id].start - 1;
            let mut children = self.orphans_of(missing, depth);
            change(&mut children);
            self.set_orphans(missing, depth, children);
        }
    }

    fn place_run(&mut self, id: NodeId, from: usize, to: usize) {
        let node = &self.nodes[id];
        for (block, depth) in node.label[from..to].iter().zip(node.start + from as u32..) {
            self.positions.set(block.as_u64(), Place { id: id.0.get(), depth });
        }
    }

    /// Cuts a run in two before `at`, which must lie inside; returns the upper node. The side with
    /// fewer blocks to place anew gets the new slot.
    pub(super) fn split(&mut self, id: NodeId, at: usize) -> NodeId {
        let Node { start, parent, children, links, .. } = self.nodes[id];
        let len = self.nodes[id].label.len();
        assert!(0 < at && at < len, "a split leaves both sides something");
        let boundary = self.nodes[id].label[at - 1];
        let lower_start = start + at as u32;
        if at <= len / 2 {
            let label = self.nodes.edit_label(id, |label| {
                let lower = label[at..].to_vec();
                let mut upper = std::mem::replace(label, lower);
                upper.truncate(at);
                upper.shrink_to_fit();
                upper
            });
            let upper = self.nodes.add(Node { label, parent, start, children, links });
            self.among_siblings(id, |siblings| siblings.replace(id, upper));
            self.nodes[upper].children = Children::one(id);
            self.nodes[id].parent = boundary;
            self.nodes[id].start = lower_start;
            self.recency.link_before(&mut self.nodes, upper, id);
            self.place_run(upper, 0, at);
            upper
        } else {
            let label = self.nodes.edit_label(id, |label| {
                let lower = label.split_off(at);
                label.shrink_to_fit();
                lower
            });
            let node = Node { label, parent: boundary, start: lower_start, children, links };
            let lower = self.nodes.add(node);
            self.nodes[id].children = Children::one(lower);
            self.recency.link_behind(&mut self.nodes, lower, id);
            self.place_run(lower, 0, len - at);
            id
        }
    }

    /// Joins a node with its only child, if it has exactly one. The run takes the child's place in
    /// the recency list: so an insert that is taken back leaves no trace there.
    pub(super) fn merge_only_child(&mut self, upper: NodeId) {
        let Some(lower) = self.nodes[upper].children.only() else { return };
        let (above, below) = (self.nodes[upper].label.len(), self.nodes[lower].label.len());
        self.recency.unlink(&mut self.nodes, upper);
        if above >= below {
            self.recency.link_before(&mut self.nodes, upper, lower);
            self.recency.unlink(&mut self.nodes, lower);
            let node = self.nodes.take(lower);
            self.nodes.edit_label(upper, |label| {
                label.reserve_exact(below);
                label.extend_from_slice(&node.label);
            });
            self.nodes[upper].children = node.children;
            self.place_run(upper, above, above + below);
        } else {
            self.among_siblings(upper, |siblings| siblings.replace(upper, lower));
            let mut node = self.nodes.take(upper);
            self.nodes.edit_label(lower, |label| {
                node.label.reserve_exact(below);
                node.label.extend_from_slice(label);
                *label = node.label;
            });
            self.nodes[lower].start = node.start;
            self.nodes[lower].parent = node.parent;
            self.place_run(lower, 0, above);
        }
    }

    /// Lengthens the childless node `at`, or hangs a new one below it, or, without one, below the
    /// missing block `parent`, or at depth 0. Returns how many blocks were added: all up to the
    /// first that is held already, before which there must be one.
    pub(super) fn append(
        &mut self,
        at: Option<NodeId>,
        parent: Option<BlockHash>,
        depth: u32,
        blocks: &[BlockHash],
    ) -> usize {
        let id = match at {
            Some(id) if self.nodes[id].children.count == 0 => id,
            _ => {
                let label = Vec::with_capacity(blocks.len());
                let (children, links) = (Children::default(), Links::default());
                let parent = parent.unwrap_or(BlockHash::new(0));
                let id = self.nodes.add(Node { label, parent, start: depth, children, links });
                self.among_siblings(id, |siblings| siblings.add(id));
                match at {
                    Some(parent) => self.recency.link_behind(&mut self.nodes, id, parent),
                    None => self.recency.link_newest(&mut self.nodes, id),
                }
                id
            }
        };
        let mut added = 0;
        for (block, depth) in blocks.iter().zip(depth..) {
            if !self.positions.add(block.as_u64(), Place { id: id.0.get(), depth }) {
                break;
            }
            added += 1;
        }
        assert!(added > 0, "the first block is new");
        self.nodes.edit_label(id, |label| {
            if label.capacity() < label.len() + added {
                // Some slack, so that a run which grows block by block is not copied each time.
                label.reserve_exact(added + label.len() / 8);
            }
            label.extend_from_slice(&blocks[..added]);
        });
        let (last, depth) = (blocks[added - 1], depth + added as u32 - 1);
        let orphans = self.orphans_of(last, depth);
        if orphans.count > 0 {
            self.set_orphans(last, depth, Children::default());
            self.nodes[id].children = orphans;
            self.merge_only_child(id);
        }
        added
    }

    /// Drops the last `count` blocks of a node. Children are orphaned; an empty node goes, and its
    /// parent may then join its only child, unless it ends in `pinned`.
    pub(super) fn cut(&mut self, id: NodeId, count: usize, pinned: Option<BlockHash>) {
        let keep = self.nodes[id].label.len() - count;
        let children = std::mem::take(&mut self.nodes[id].children);
        if children.count > 0 {
            let node = &self.nodes[id];
            assert_eq!(count, 1, "only a leaf is cut by more than its last block");
            let (block, depth) = (node.last(), node.start + keep as u32);
            self.set_orphans(block, depth, children);
        }
        for at in keep..keep + count {
            self.positions.remove(self.nodes[id].label[at].as_u64());
        }
        if keep > 0 {
            self.nodes.edit_label(id, |label| {
                label.truncate(keep);
                label.shrink_to_fit();
            });
            return;
        }
        let parent = self.parent_of(id);
        self.among_siblings(id, |siblings| siblings.leave(id));
        self.recency.unlink(&mut self.nodes, id);
        self.nodes.take(id);
        if let Some(parent) = parent.filter(|&parent| Some(self.nodes[parent].last()) != pinned) {
            self.merge_only_child(parent);
        }
    }

    /// Gives back memory that the present blocks are far from needing.
    pub(super) fn shrink_when_sparse(&mut self) {
        self.positions.shrink_when_sparse();
        if self.nodes.len() * 4 < self.nodes.slots.len() {
            self.compact();
        }
    }

    /// Moves the nodes to the lowest slots and gives the others back.
    pub(super) fn compact(&mut self) {
        let len = self.nodes.len();
        let mut free = std::mem::take(&mut self.nodes.free);
        free.retain(|id| id.slot() < len);
        for slot in len..self.nodes.slots.len() {
            let from = NodeId::from_slot(slot);
            if self.nodes[from].label.is_empty() {
                continue;
            }
            let to = free.pop().expect("as many free slots below as nodes above");
            self.among_siblings(from, |siblings| siblings.replace(from, to));
            self.nodes.slots.swap(from.slot(), to.slot());
            self.recency.relocated(&mut self.nodes, to);
            self.place_run(to, 0, self.nodes[to].label.len());
        }
        self.nodes.slots.truncate(len);
        self.nodes.slots.shrink_to_fit();
    }
}
