//! Naive models: a prefix index as a list of blocks, a worker's cache as text under engine blocks,
//! a worker's holdings as sets of those.
//!
//! All search everything for every answer and share no code with what they check, but for the
//! hashes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use super::super::block::{BlockHash, mix};
use super::{Inserted, Matched, Tier};

/// The chained hash of each block of a path of symbols.
pub(super) fn path(symbols: &[u8]) -> Vec<BlockHash> {
    let chain = |hash: &mut u64, &symbol: &u8| {
        *hash = mix(*hash ^ (u64::from(symbol) + 1).wrapping_mul(0x1234_5678_9abc_def1));
        Some(BlockHash::new(*hash))
    };
    symbols.iter().scan(7, chain).collect()
}

/// The blocks held, the most recently used first.
///
/// A *run* is a maximal chain of held blocks in which each but the last has one held child. Its
/// blocks stand together in the list, the deepest last, and are used as one; so the list's last
/// block always has no held child, and trimming is popping.
#[derive(Default)]
pub(super) struct IndexModel {
    pub(super) order: Vec<BlockHash>,
    /// Of every block ever seen.
    parents: HashMap<BlockHash, Option<BlockHash>>,
    pub(super) blocks_max: usize,
}

impl IndexModel {
    pub(super) fn learn(&mut self, blocks: &[BlockHash]) {
        let mut parent = None;
        for &block in blocks {
            self.parents.insert(block, parent);
            parent = Some(block);
        }
    }

    pub(super) fn holds(&self, block: BlockHash) -> bool {
        self.order.contains(&block)
    }

    pub(super) fn matched_blocks(&self, blocks: &[BlockHash]) -> usize {
        blocks.iter().take_while(|&&block| self.holds(block)).count()
    }

    pub(super) fn holes(&self) -> usize {
        let parents = self.order.iter().filter_map(|block| self.parents[block]);
        parents.filter(|&parent| !self.holds(parent)).collect::<HashSet<_>>().len()
    }

    pub(super) fn runs(&self) -> usize {
        self.order.iter().filter(|&&block| self.in_run_above(block, None).is_none()).count()
    }

    fn children(&self, of: BlockHash) -> Vec<BlockHash> {
        self.order.iter().copied().filter(|block| self.parents[block] == Some(of)).collect()
    }

    fn in_run_above(&self, block: BlockHash, pinned: Option<BlockHash>) -> Option<BlockHash> {
        let parent = self.parents[&block].filter(|&parent| self.holds(parent))?;
        (self.children(parent).len() == 1 && pinned != Some(parent)).then_some(parent)
    }

    /// The run of `block`; a run ends with `pinned`.
    fn run(&self, block: BlockHash, pinned: Option<BlockHash>) -> Vec<BlockHash> {
        let above = |&block: &BlockHash| self.in_run_above(block, pinned);
        let mut run: Vec<_> = std::iter::successors(Some(block), above).collect();
        run.reverse();
        loop {
            let last = *run.last().expect("holds the block");
            match self.children(last)[..] {
                [child] if pinned != Some(last) => run.push(child),
                _ => return run,
            }
        }
    }

    fn place(&mut self, run: &[BlockHash], at: usize) {
        self.order.splice(at..at, run.iter().copied());
    }

    fn refresh_path(&mut self, mut at: Option<BlockHash>, pinned: Option<BlockHash>) {
        while let Some(block) = at.filter(|&block| self.holds(block)) {
            let run = self.run(block, pinned);
            self.order.retain(|block| !run.contains(block));
            self.place(&run, 0);
            at = self.parents[&run[0]];
        }
    }

    /// A block that has just got its only child: their runs become one, in the child's place.
    fn join(&mut self, at: Option<BlockHash>) {
        let Some(block) = at.filter(|&block| self.holds(block)) else { return };
        if let [child] = self.children(block)[..] {
            let upper = self.run(block, Some(block));
            self.order.retain(|block| !upper.contains(block));
            let at = self.order.iter().position(|&other| other == child).expect("held");
            self.place(&upper, at);
        }
    }

    pub(super) fn remove(&mut self, block: BlockHash) -> bool {
        self.remove_but_pinned(block, None)
    }

    fn remove_but_pinned(&mut self, block: BlockHash, pinned: Option<BlockHash>) -> bool {
        let held = self.holds(block);
        self.order.retain(|&other| other != block);
        if held && self.parents[&block] != pinned {
            // Nothing changes unless the block had siblings.
            self.join(self.parents[&block]);
        }
        held
    }

    pub(super) fn trim(&mut self, incoming: usize, pinned: Option<BlockHash>) -> usize {
        let mut trimmed = 0;
        while self.order.len() + incoming > self.blocks_max {
            let Some(&last) = self.order.last().filter(|&&last| pinned != Some(last)) else {
                break;
            };
            self.remove_but_pinned(last, pinned);
            trimmed += 1;
        }
        trimmed
    }

    pub(super) fn touch(&mut self, blocks: &[BlockHash]) {
        let matched = self.matched_blocks(blocks);
        self.refresh_path(blocks[..matched].last().copied(), None);
    }

    pub(super) fn retract(&mut self, blocks: &[BlockHash], keep: usize) -> usize {
        let matched = self.matched_blocks(blocks);
        let mut left = matched;
        while left > keep && self.children(blocks[left - 1]).is_empty() {
            self.remove(blocks[left - 1]);
            left -= 1;
        }
        matched - left
    }

    /// Inserts `blocks` behind `parent`, which is held or has left a hole.
    pub(super) fn insert(
        &mut self,
        mut parent: Option<BlockHash>,
        mut blocks: &[BlockHash],
    ) -> Inserted {
        let mut inserted = Inserted::default();
        loop {
            let matched = self.matched_blocks(blocks);
            parent = blocks[..matched].last().copied().or(parent);
            blocks = &blocks[matched..];
            let mut new = blocks.iter().take_while(|&&block| !self.holds(block)).count();
            let waited_for = |block: &BlockHash| !self.children(*block).is_empty();
            new = blocks[..new].iter().position(waited_for).map_or(new, |at| at + 1);
            let pinned = parent.filter(|&parent| self.holds(parent));
            if new == 0 {
                break;
            }
            self.refresh_path(pinned, pinned);
            inserted.trimmed_blocks += self.trim(new, pinned);
            new = new.min(self.blocks_max - self.order.len());
            if new == 0 {
                self.join(pinned);
                break;
            }
            let at = pinned.map_or(0, |pinned| {
                1 + self.order.iter().position(|&b| b == pinned).expect("held")
            });
            self.place(&blocks[..new], at);
            self.join(Some(blocks[new - 1]));
            inserted.new_blocks += new;
            parent = Some(blocks[new - 1]);
            blocks = &blocks[new..];
        }
        self.refresh_path(parent, None);
        inserted
    }
}

/// Engine blocks are named by their path of symbols; their texts differ in the first byte.
pub(super) fn engine_text(path: &[u8], text_bytes_max: u64) -> Vec<u8> {
    let seed = path.iter().fold(path.len() as u64, |hash, &s| mix(hash ^ (u64::from(s) + 1) << 32));
    let bytes = 1 + seed % text_bytes_max;
    let symbol = *path.last().expect("a path is not empty");
    std::iter::once(symbol).chain((1..bytes).map(|at| mix(seed ^ at) as u8)).collect()
}

/// The text from the root to the end of an engine block.
pub(super) fn engine_prompt(path: &[u8], text_bytes_max: u64) -> Vec<u8> {
    (1..=path.len()).flat_map(|end| engine_text(&path[..end], text_bytes_max)).collect()
}

/// Copies of engine blocks, and blocks of ours by the text that they stand for.
pub(super) struct CacheModel {
    pub(super) copies: HashMap<Vec<u8>, u32>,
    pub(super) ours: HashSet<Vec<u8>>,
    pub(super) block_bytes: usize,
    pub(super) text_bytes_max: u64,
}

impl CacheModel {
    pub(super) fn holds(&self, path: &[u8]) -> bool {
        self.copies.contains_key(path)
    }

    /// The blocks of ours (as text from the root) that an engine block completes, each with the
    /// lengths of the paths whose engine blocks lie under it.
    fn completed(&self, path: &[u8]) -> Vec<(Vec<u8>, Vec<usize>)> {
        let ends: Vec<usize> = (0..=path.len())
            .map(|end| engine_prompt(&path[..end], self.text_bytes_max).len())
            .collect();
        let text = engine_prompt(path, self.text_bytes_max);
        let (from, to) = (ends[path.len() - 1] / self.block_bytes, text.len() / self.block_bytes);
        (from..to)
            .map(|block| {
                let (start, end) = (block * self.block_bytes, (block + 1) * self.block_bytes);
                let under = (1..=path.len()).filter(|&at| ends[at] > start && ends[at - 1] < end);
                (text[..end].to_vec(), under.collect())
            })
            .collect()
    }

    fn covered(&self, path: &[u8], under: &[usize]) -> bool {
        under.iter().all(|&length| self.holds(&path[..length]))
    }

    /// False if the engine block before it is not held.
    pub(super) fn store(&mut self, path: &[u8]) -> bool {
        if path.len() > 1 && !self.holds(&path[..path.len() - 1]) {
            return false;
        }
        self.store_alone(path);
        true
    }

    /// As [`store`](Self::store), whatever comes before it.
    fn store_alone(&mut self, path: &[u8]) {
        *self.copies.entry(path.to_vec()).or_default() += 1;
        for held in self.copies.keys().filter(|held| held.starts_with(path)) {
            for (block, under) in self.completed(held) {
                if under.contains(&path.len()) && self.covered(held, &under) {
                    self.ours.insert(block);
                }
            }
        }
    }

    pub(super) fn remove(&mut self, path: &[u8]) -> bool {
        let copies = self.copies.get(path).copied();
        copies.inspect(|copies| drop(self.set_copies(path, copies - 1))).is_some()
    }

    /// Sets the copies of what is held; returns the blocks that the last one uncovers.
    fn set_copies(&mut self, path: &[u8], copies: u32) -> Vec<Vec<u8>> {
        let mut gone = Vec::new();
        if !self.holds(path) {
            return gone;
        }
        self.copies.insert(path.to_vec(), copies);
        if copies == 0 {
            for held in self.copies.keys().filter(|held| held.starts_with(path)) {
                for (block, under) in self.completed(held) {
                    if under.contains(&path.len()) {
                        self.ours.remove(&block);
                        gone.push(block);
                    }
                }
            }
            self.copies.remove(path);
        }
        gone.sort_unstable_by_key(|block| std::cmp::Reverse(block.len()));
        gone
    }

    pub(super) fn insert(&mut self, text: &[u8]) {
        for blocks in 1..=text.len() / self.block_bytes {
            self.ours.insert(text[..blocks * self.block_bytes].to_vec());
        }
    }

    pub(super) fn matched_blocks(&self, text: &[u8]) -> usize {
        (1..=text.len() / self.block_bytes)
            .take_while(|blocks| self.ours.contains(&text[..blocks * self.block_bytes]))
            .count()
    }

    /// By the definition, which needs no history: leading blocks with all engine blocks held.
    pub(super) fn covered_blocks(&self, path: &[u8]) -> usize {
        let blocks = (1..=path.len()).flat_map(|end| self.completed(&path[..end]));
        blocks.take_while(|(_, under)| self.covered(path, under)).count()
    }
}

/// A cache per rank and tier, and two generations of presumptions.
pub(super) struct HoldingsModel {
    pub(super) caches: BTreeMap<(u32, Tier), CacheModel>,
    pub(super) young: IndexModel,
    pub(super) old: IndexModel,
    pub(super) blocks_max: usize,
    pub(super) block_bytes: usize,
    pub(super) text_bytes_max: u64,
    pub(super) hash: fn(&[u8], usize) -> Vec<BlockHash>,
    confirming: bool,
    since: Instant,
    ttl: Duration,
}

impl HoldingsModel {
    pub(super) fn new(
        (blocks_max, ttl): (usize, Duration),
        (block_bytes, text_bytes_max): (usize, u64),
        hash: fn(&[u8], usize) -> Vec<BlockHash>,
        since: Instant,
    ) -> Self {
        let (young, old) = (IndexModel::default(), IndexModel::default());
        let caches = BTreeMap::new();
        let confirming = false;
        Self {
            caches,
            young,
            old,
            blocks_max,
            block_bytes,
            text_bytes_max,
            hash,
            confirming,
            since,
            ttl,
        }
    }

    fn cache(&mut self, rank: u32, tier: Tier) -> &mut CacheModel {
        let (block_bytes, text_bytes_max) = (self.block_bytes, self.text_bytes_max);
        let (copies, ours) = (HashMap::new(), HashSet::new());
        let fresh = || CacheModel { copies, ours, block_bytes, text_bytes_max };
        self.caches.entry((rank, tier)).or_insert_with(fresh)
    }

    fn last(&self, text: &[u8]) -> BlockHash {
        *(self.hash)(text, self.block_bytes).last().expect("a block")
    }

    /// Leading blocks held by those caches of one rank, together with what is presumed.
    fn reach(&self, text: &[u8], presumed: bool, which: impl Fn(u32, Tier) -> bool) -> usize {
        (1..=text.len() / self.block_bytes)
            .take_while(|blocks| {
                let text = &text[..blocks * self.block_bytes];
                let block = self.last(text);
                let mut caches = self.caches.iter().filter(|((rank, tier), _)| which(*rank, *tier));
                (presumed && (self.young.holds(block) || self.old.holds(block)))
                    || caches.any(|(_, cache)| cache.ours.contains(text))
            })
            .count()
    }

    pub(super) fn matched(&self, text: &[u8]) -> Matched {
        let ranks: HashSet<_> = self.caches.keys().map(|(rank, _)| *rank).chain([999]).collect();
        let farthest = |presumed, last| {
            let of_rank = |rank| self.reach(text, presumed, |r, tier| r == rank && tier <= last);
            ranks.iter().map(|&rank| of_rank(rank)).max().expect("a rank")
        };
        let reach = Tier::ALL.map(|last| farthest(true, last));
        let [gpu, cpu, storage] = reach;
        let confirmed = farthest(false, Tier::Gpu);
        Matched { gpu, cpu: cpu - gpu, storage: storage - cpu, confirmed }
    }

    pub(super) fn presume(&mut self, text: &[u8], now: Instant) {
        self.expire(now);
        let blocks = (self.hash)(text, self.block_bytes);
        if self.confirming && self.matched(text).confirmed == blocks.len() {
            return;
        }
        self.young.learn(&blocks);
        self.old.learn(&blocks);
        self.young.blocks_max = self.blocks_max;
        self.young.insert(None, &blocks);
        self.trim();
    }

    pub(super) fn trim(&mut self) {
        self.old.blocks_max = self.blocks_max.saturating_sub(self.young.order.len());
        self.old.trim(0, None);
        self.young.blocks_max = self.blocks_max;
        self.young.trim(0, None);
    }

    pub(super) fn retract(&mut self, blocks: &[BlockHash], keep: usize) -> usize {
        self.young.retract(blocks, keep) + self.old.retract(blocks, keep)
    }

    pub(super) fn prefilled(&mut self, text: &[u8], now: Instant) {
        if self.confirming {
            let blocks = (self.hash)(text, self.block_bytes);
            self.young.touch(&blocks);
            self.old.touch(&blocks);
        } else {
            self.presume(text, now);
        }
    }

    pub(super) fn set_confirming(&mut self, confirming: bool, now: Instant) {
        if confirming && !self.confirming {
            self.since = now;
            if self.old.order.is_empty() {
                std::mem::swap(&mut self.young, &mut self.old);
            }
        }
        self.confirming = confirming;
    }

    pub(super) fn expire(&mut self, now: Instant) {
        let generations = (now - self.since).as_nanos() / self.ttl.as_nanos();
        if self.confirming && generations > 0 {
            self.old.order.clear();
            std::mem::swap(&mut self.young, &mut self.old);
            self.since += self.ttl;
            if generations > 1 {
                self.old.order.clear();
                self.since = now;
            }
        }
    }

    /// How many engine blocks of a chain are taken.
    pub(super) fn store(&mut self, rank: u32, tier: Tier, path: &[u8], from: usize) -> usize {
        if from > 0 && !self.caches.contains_key(&(rank, tier)) {
            return 0;
        }
        let cache = self.cache(rank, tier);
        (from + 1..=path.len()).take_while(|&end| cache.store(&path[..end])).count()
    }

    pub(super) fn store_known(&mut self, rank: u32, tier: Tier, path: &[u8]) -> bool {
        let known = Tier::ALL
            .iter()
            .any(|tier| self.caches.get(&(rank, *tier)).is_some_and(|cache| cache.holds(path)));
        if known {
            self.cache(rank, tier).store_alone(path);
        }
        known
    }

    pub(super) fn remove(&mut self, rank: u32, tier: Tier, paths: &[Vec<u8>]) -> usize {
        let Some(cache) = self.caches.get_mut(&(rank, tier)) else { return 0 };
        let (mut known, mut gone) = (0, Vec::new());
        for path in paths {
            if let Some(&copies) = cache.copies.get(path) {
                known += 1;
                gone.extend(cache.set_copies(path, copies - 1));
            }
        }
        self.uncovered(tier, &gone);
        known
    }

    pub(super) fn set_copies(&mut self, rank: u32, path: &[u8], copies: u32) {
        if let Some(cache) = self.caches.get_mut(&(rank, Tier::Gpu)) {
            let gone = cache.set_copies(path, copies);
            self.uncovered(Tier::Gpu, &gone);
        }
    }

    fn uncovered(&mut self, tier: Tier, gone: &[Vec<u8>]) {
        for text in gone {
            let mut gpus = self.caches.iter().filter(|((_, tier), _)| *tier == Tier::Gpu);
            if tier == Tier::Gpu && !gpus.any(|(_, cache)| cache.ours.contains(text)) {
                let block = self.last(text);
                self.young.remove(block);
                self.old.remove(block);
            }
        }
    }

    pub(super) fn clear(&mut self, rank: u32) {
        for (_, cache) in self.caches.iter_mut().filter(|((other, _), _)| *other == rank) {
            cache.copies.clear();
            cache.ours.clear();
        }
        self.young.order.clear();
        self.old.order.clear();
    }
}
