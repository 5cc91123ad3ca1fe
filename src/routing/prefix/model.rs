//! Naive models: a worker's cache as text under engine blocks, a worker's holdings as sets of
//! those. Which blocks are trimmed is not part of them.
//!
//! All search everything for every answer and share no code with what they check, but for the
//! hashes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use super::super::block::{BlockHash, mix};
use super::{Matched, Tier};

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

/// What one row of a worker has beside its caches.
#[derive(Default)]
pub(super) struct RowModel {
    pub(super) rank: Option<u32>,
    pub(super) young: HashSet<BlockHash>,
    pub(super) old: HashSet<BlockHash>,
}

/// A cache per rank and tier, and a row per rank with two generations of presumptions.
pub(super) struct HoldingsModel {
    pub(super) caches: BTreeMap<(u32, Tier), CacheModel>,
    pub(super) rows: Vec<RowModel>,
    pub(super) blocks_max: usize,
    pub(super) block_bytes: usize,
    pub(super) text_bytes_max: u64,
    pub(super) hash: fn(&[u8], usize) -> Vec<BlockHash>,
    /// Of every block ever presumed.
    pub(super) parents: HashMap<BlockHash, Option<BlockHash>>,
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
        let (caches, parents, rows) = (BTreeMap::new(), HashMap::new(), vec![RowModel::default()]);
        let confirming = false;
        Self {
            caches,
            rows,
            blocks_max,
            block_bytes,
            text_bytes_max,
            hash,
            parents,
            confirming,
            since,
            ttl,
        }
    }

    fn cache(&mut self, rank: u32, tier: Tier) -> &mut CacheModel {
        if !self.rows.iter().any(|row| row.rank == Some(rank)) {
            match &mut self.rows[..] {
                [spare] if spare.rank.is_none() => spare.rank = Some(rank),
                _ => self.rows.push(RowModel { rank: Some(rank), ..RowModel::default() }),
            }
        }
        let (block_bytes, text_bytes_max) = (self.block_bytes, self.text_bytes_max);
        let (copies, ours) = (HashMap::new(), HashSet::new());
        let fresh = || CacheModel { copies, ours, block_bytes, text_bytes_max };
        self.caches.entry((rank, tier)).or_insert_with(fresh)
    }

    fn last(&self, text: &[u8]) -> BlockHash {
        *(self.hash)(text, self.block_bytes).last().expect("a block")
    }

    /// Leading blocks held by those caches of a row's rank, together with what is presumed.
    fn reach(
        &self,
        text: &[u8],
        presumed: bool,
        row: &RowModel,
        which: impl Fn(Tier) -> bool,
    ) -> usize {
        (1..=text.len() / self.block_bytes)
            .take_while(|blocks| {
                let text = &text[..blocks * self.block_bytes];
                let block = self.last(text);
                let mut caches = self
                    .caches
                    .iter()
                    .filter(|((rank, tier), _)| Some(*rank) == row.rank && which(*tier));
                (presumed && (row.young.contains(&block) || row.old.contains(&block)))
                    || caches.any(|(_, cache)| cache.ours.contains(text))
            })
            .count()
    }

    pub(super) fn matched(&self, text: &[u8]) -> Matched {
        let farthest = |presumed, last| {
            let rows = self.rows.iter();
            rows.map(|row| self.reach(text, presumed, row, |tier| tier <= last)).max().expect("one")
        };
        let reach = Tier::ALL.map(|last| farthest(true, last));
        let [gpu, cpu, storage] = reach;
        let confirmed = farthest(false, Tier::Gpu);
        Matched { gpu, cpu: cpu - gpu, storage: storage - cpu, confirmed }
    }

    /// Blocks presumed, as they are counted.
    pub(super) fn presumed(&self) -> usize {
        let most = |of: fn(&RowModel) -> usize| self.rows.iter().map(of).max().expect("a row");
        most(|row| row.young.len()) + most(|row| row.old.len())
    }

    pub(super) fn presume(&mut self, text: &[u8], now: Instant) {
        self.expire(now);
        let blocks = (self.hash)(text, self.block_bytes);
        if self.confirming && self.matched(text).confirmed == blocks.len() {
            return;
        }
        let mut parent = None;
        for &block in &blocks {
            self.parents.insert(block, parent);
            parent = Some(block);
        }
        self.rows.iter_mut().for_each(|row| row.young.extend(&blocks));
    }

    pub(super) fn prefilled(&mut self, text: &[u8], now: Instant) {
        if !self.confirming {
            self.presume(text, now);
        }
    }

    fn each_row(&mut self, change: impl FnMut(&mut RowModel)) {
        self.rows.iter_mut().for_each(change);
    }

    fn age(row: &mut RowModel) {
        std::mem::swap(&mut row.young, &mut row.old);
    }

    pub(super) fn set_confirming(&mut self, confirming: bool, now: Instant) {
        if confirming && !self.confirming {
            self.since = now;
            if self.rows.iter().all(|row| row.old.is_empty()) {
                self.each_row(Self::age);
            }
        }
        self.confirming = confirming;
    }

    pub(super) fn expire(&mut self, now: Instant) {
        let generations = (now - self.since).as_nanos() / self.ttl.as_nanos();
        if self.confirming && generations > 0 {
            self.each_row(|row| row.old.clear());
            self.each_row(Self::age);
            self.since += self.ttl;
            if generations > 1 {
                self.each_row(|row| row.old.clear());
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
                self.each_row(|row| {
                    row.young.remove(&block);
                    row.old.remove(&block);
                });
            }
        }
    }

    pub(super) fn clear(&mut self, rank: u32) {
        for (_, cache) in self.caches.iter_mut().filter(|((other, _), _)| *other == rank) {
            cache.copies.clear();
            cache.ours.clear();
        }
        self.each_row(|row| {
            row.young.clear();
            row.old.clear();
        });
    }

    pub(super) fn drop_rank(&mut self, rank: u32) {
        self.clear(rank);
        self.caches.retain(|(other, _), _| *other != rank);
        self.rows.retain(|row| row.rank != Some(rank));
        if self.rows.is_empty() {
            self.rows.push(RowModel::default());
        }
    }
}
