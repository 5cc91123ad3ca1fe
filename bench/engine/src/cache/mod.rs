//! The KV cache: blocks by name, pinned by running requests, evicted least recently used first.
//!
//! A request pins the whole chain from its first block, so a block is never pinned while its
//! parent is not, and chains are let go tail first: eviction therefore always takes a leaf, and
//! prefixes shrink from the end. Blocks a request has reserved but not yet filled have no name;
//! only their count is known.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

/// Named blocks and the reservations of running requests, within a fixed capacity.
#[derive(Debug)]
pub(crate) struct BlockCache {
    capacity: usize,
    blocks: HashMap<u64, Block>,
    /// Blocks nobody pins, the next to be evicted first.
    idle: BTreeMap<u64, u64>,
    /// Blocks reserved by running requests and not named yet.
    reserved: usize,
    clock: u64,
}

#[derive(Debug)]
struct Block {
    pins: usize,
    /// Its key in `idle`; meaningless while pinned.
    idle_since: u64,
}

/// What a running request holds: pinned named blocks, then reserved ones.
#[derive(Debug, Default)]
pub(crate) struct Hold {
    pinned: Vec<u64>,
    reserved: usize,
}

/// An admitted request's share of the cache.
#[derive(Debug)]
pub(crate) struct Admission {
    pub(crate) hold: Hold,
    /// Leading blocks that were there already.
    pub(crate) hit_blocks: usize,
    /// Blocks that had to go, in the order they went.
    pub(crate) evicted: Vec<u64>,
}

impl BlockCache {
    /// An empty cache of `capacity` blocks.
    pub(crate) fn new(capacity: usize) -> Self {
        let (blocks, idle) = (HashMap::new(), BTreeMap::new());
        Self { capacity, blocks, idle, reserved: 0, clock: 0 }
    }

    /// Pins what is held of `hashes` (at most `hit_max` of them) and reserves the rest of
    /// `block_count`, or changes nothing and gives `None` if that does not fit now.
    pub(crate) fn admit(
        &mut self,
        hashes: &[u64],
        hit_max: usize,
        block_count: usize,
    ) -> Option<Admission> {
        let leading = &hashes[..hit_max.min(hashes.len())];
        let hit_blocks = leading.iter().take_while(|hash| self.blocks.contains_key(hash)).count();
        let hits = &leading[..hit_blocks];
        let idle_hits = hits.iter().filter(|hash| self.blocks[hash].pins == 0).count();
        let needed = block_count - hit_blocks;
        if needed + idle_hits > self.capacity - self.used() {
            return None;
        }
        for &hash in hits {
            self.pin(hash);
        }
        self.reserved += needed;
        let mut evicted = Vec::new();
        while self.blocks.len() + self.reserved > self.capacity {
            let (_, hash) = self.idle.pop_first().expect("the fit was checked above");
            self.blocks.remove(&hash);
            evicted.push(hash);
        }
        let hold = Hold { pinned: hits.to_vec(), reserved: needed };
        Some(Admission { hold, hit_blocks, evicted })
    }

    /// Names the next block of `hold`. False if it was held already: the copy is dropped then.
    pub(crate) fn fill(&mut self, hold: &mut Hold, hash: u64) -> bool {
        assert!(hold.reserved > 0, "a request fills only what it reserved");
        hold.reserved -= 1;
        self.reserved -= 1;
        hold.pinned.push(hash);
        if self.blocks.contains_key(&hash) {
            self.pin(hash);
            return false;
        }
        self.blocks.insert(hash, Block { pins: 1, idle_since: 0 });
        true
    }

    /// Lets go of all that `hold` has. Named blocks stay until they are evicted.
    pub(crate) fn release(&mut self, hold: Hold) {
        self.reserved -= hold.reserved;
        for hash in hold.pinned.into_iter().rev() {
            let block = self.blocks.get_mut(&hash).expect("a pinned block stays");
            block.pins -= 1;
            if block.pins == 0 {
                block.idle_since = self.clock;
                self.idle.insert(self.clock, hash);
                self.clock += 1;
            }
        }
    }

    /// Drops all blocks that nobody pins.
    pub(crate) fn clear(&mut self) {
        self.blocks.retain(|_, block| block.pins > 0);
        self.idle.clear();
    }

    /// Blocks of running requests, filled or reserved.
    pub(crate) fn used(&self) -> usize {
        self.blocks.len() - self.idle.len() + self.reserved
    }

    /// Whether a block of this name is held.
    pub(crate) fn contains(&self, hash: u64) -> bool {
        self.blocks.contains_key(&hash)
    }

    /// Blocks that have a name, pinned or not.
    pub(crate) fn named(&self) -> usize {
        self.blocks.len()
    }

    fn pin(&mut self, hash: u64) {
        let block = self.blocks.get_mut(&hash).expect("only held blocks are pinned");
        if block.pins == 0 {
            self.idle.remove(&block.idle_since);
        }
        block.pins += 1;
    }

    /// Asserts what must hold after every call.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        assert!(self.blocks.len() + self.reserved <= self.capacity, "over capacity");
        let unpinned = self.blocks.values().filter(|block| block.pins == 0).count();
        assert_eq!(unpinned, self.idle.len(), "idle holds exactly the unpinned blocks");
        for (since, hash) in &self.idle {
            assert_eq!(self.blocks[hash].idle_since, *since);
        }
    }
}
