//! Which leaf is trimmed next, and when: a list of all nodes, the most recently used first.
//!
//! The links lie in the nodes. A path is refreshed leaf first and root last, so a parent always
//! stands before its children and the end of the list is always a leaf: no search for a victim, no
//! time stamps, no heap.

use super::node::{NodeId, Nodes};
use super::place_map::PlaceMap;
use super::{Bounds, PrefixIndex};
use crate::routing::block::BlockHash;

/// A node's neighbours in the list.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Links {
    newer: Option<NodeId>,
    older: Option<NodeId>,
}

/// The ends of the list.
#[derive(Clone, Debug, Default)]
pub(super) struct Recency {
    newest: Option<NodeId>,
    oldest: Option<NodeId>,
}

impl Recency {
    pub(super) const fn oldest(&self) -> Option<NodeId> {
        self.oldest
    }

    pub(super) fn link_newest(&mut self, nodes: &mut Nodes, id: NodeId) {
        self.link(nodes, id, None, self.newest);
    }

    /// Puts `id` just behind `newer`.
    pub(super) fn link_behind(&mut self, nodes: &mut Nodes, id: NodeId, newer: NodeId) {
        self.link(nodes, id, Some(newer), nodes[newer].links.older);
    }

    /// Puts `id` just before `older`.
    pub(super) fn link_before(&mut self, nodes: &mut Nodes, id: NodeId, older: NodeId) {
        self.link(nodes, id, nodes[older].links.newer, Some(older));
    }

    pub(super) fn unlink(&mut self, nodes: &mut Nodes, id: NodeId) {
        let Links { newer, older } = std::mem::take(&mut nodes[id].links);
        *self.older_of(nodes, newer) = older;
        *self.newer_of(nodes, older) = newer;
    }

    pub(super) fn refresh(&mut self, nodes: &mut Nodes, id: NodeId) {
        if self.newest != Some(id) {
            self.unlink(nodes, id);
            self.link_newest(nodes, id);
        }
    }

    /// Points the neighbours at `id`, whose node, links included, was moved there.
    pub(super) fn relocated(&mut self, nodes: &mut Nodes, id: NodeId) {
        let Links { newer, older } = nodes[id].links;
        *self.older_of(nodes, newer) = Some(id);
        *self.newer_of(nodes, older) = Some(id);
    }

    fn link(
        &mut self,
        nodes: &mut Nodes,
        id: NodeId,
        newer: Option<NodeId>,
        older: Option<NodeId>,
    ) {
        nodes[id].links = Links { newer, older };
        *self.older_of(nodes, newer) = Some(id);
        *self.newer_of(nodes, older) = Some(id);
    }

    /// The link towards older nodes that leads away from `id`, or from the list's front.
    fn older_of<'a>(
        &'a mut self,
        nodes: &'a mut Nodes,
        id: Option<NodeId>,
    ) -> &'a mut Option<NodeId> {
        match id {
            Some(id) => &mut nodes[id].links.older,
            None => &mut self.newest,
        }
    }

    fn newer_of<'a>(
        &'a mut self,
        nodes: &'a mut Nodes,
        id: Option<NodeId>,
    ) -> &'a mut Option<NodeId> {
        match id {
            Some(id) => &mut nodes[id].links.newer,
            None => &mut self.oldest,
        }
    }

    /// All nodes, the most recently used first; asserts that both directions agree.
    pub(super) fn order(&self, nodes: &Nodes) -> Vec<NodeId> {
        let (mut order, mut newer, mut at) = (Vec::new(), None, self.newest);
        while let Some(id) = at {
            assert_eq!(nodes[id].links.newer, newer, "links disagree");
            order.push(id);
            newer = at;
            at = nodes[id].links.older;
        }
        assert_eq!(self.oldest, newer, "the list's end");
        order
    }
}

/// Least bytes a block takes: 8 in a label and 16 at 4/5 in the table.
const BLOCK_COST_BYTES: usize = 28;

impl PrefixIndex {
    /// Changes the bounds and trims to them; returns how many blocks were trimmed.
    pub fn set_bounds(&mut self, bounds: Bounds) -> usize {
        self.bounds = bounds;
        let trimmed_before = self.trimmed_total;
        loop {
            // As if the table were shrunk after each cut; it is shrunk once, below.
            let table = PlaceMap::bytes_for(self.blocks());
            let over = self.excess(self.tree.bytes() - self.tree.positions.bytes() + table, 0);
            if over == 0 || self.trim(over, None) == 0 {
                break;
            }
        }
        if self.tree.bytes() > bounds.bytes_max {
            self.tree.positions.shrink_to_fit();
            self.tree.compact();
        }
        self.settle();
        (self.trimmed_total - trimmed_before) as usize
    }

    /// How many blocks to trim at least before `bytes`, with `incoming` more blocks, are within
    /// the bounds. An estimate from below where bytes are exceeded: ask again after trimming.
    fn excess(&self, bytes: usize, incoming: usize) -> usize {
        let blocks = (self.blocks() + incoming).saturating_sub(self.bounds.blocks_max);
        let bytes =
            (bytes + incoming * size_of::<BlockHash>()).saturating_sub(self.bounds.bytes_max);
        blocks.max(bytes.div_ceil(BLOCK_COST_BYTES))
    }

    /// Cuts up to `count` blocks from the end of the least recently used leaf; none of the path
    /// that ends in `pinned`.
    fn trim(&mut self, count: usize, pinned: Option<BlockHash>) -> usize {
        let Some(id) = self.tree.recency.oldest() else { return 0 };
        let node = &self.tree.nodes[id];
        if pinned == Some(node.last()) {
            return 0;
        }
        let count = count.min(node.label().len());
        self.tree.cut(id, count, pinned);
        self.trimmed_total += count as u64;
        count
    }

    /// Trims until `incoming` blocks fit, and makes room in the table; returns how many fit when
    /// only the path that ends in `pinned` is left.
    pub(super) fn make_room(&mut self, mut incoming: usize, pinned: Option<BlockHash>) -> usize {
        let mut compacted = false;
        // Grown before trimming, the table would be past its bound for good.
        loop {
            let table = self.tree.positions.bytes_with(self.blocks() + incoming);
            let rest = self.tree.bytes() - self.tree.positions.bytes();
            let over = self.excess(rest + table, incoming);
            if over == 0 || incoming == 0 {
                // Labels and nodes grow with the table, so it may not take all that is left.
                let blocks = self.blocks() + incoming;
                let block_bytes = (rest / blocks.max(1)).max(8) + BLOCK_COST_BYTES - 8;
                let blocks_max = self.bounds.blocks_max.min(self.bounds.bytes_max / block_bytes);
                self.tree.positions.reserve(blocks, PlaceMap::bytes_for(blocks_max));
                return incoming;
            }
            if self.trim(over, pinned) > 0 {
                continue;
            }
            // Slack that trimmed nodes left must not cost the path that stays.
            if compacted {
                incoming -= over.min(incoming);
            } else {
                self.tree.positions.shrink_to_fit();
                self.tree.compact();
                compacted = true;
            }
        }
    }

    /// Ends every change: gives slack memory back, and trims what is still over the bounds (node
    /// slots and label slack are counted only once they are there).
    pub(super) fn settle(&mut self) {
        loop {
            self.tree.shrink_when_sparse();
            let over = self.excess(self.tree.bytes(), 0);
            if over == 0 || self.trim(over, None) == 0 {
                break;
            }
        }
    }
}
