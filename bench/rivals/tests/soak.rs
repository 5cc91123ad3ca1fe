//! The shared index as it is built for use (the unit tests build it with short runs) against plain
//! sets, for long: `SOAK_STEPS` and `SOAK_SEED` for more than the few thousand steps of every run.

use std::collections::HashSet;

use rand::{Rng, SeedableRng, rngs::StdRng};
use warmroute_rivals::routing::block::BlockHash;
use warmroute_rivals::routing::index::{Holder, Layers, Reach, SharedIndex};

const ROWS: u32 = 130;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

struct Soak {
    index: SharedIndex<1>,
    /// Every chain ever made.
    chains: Vec<Vec<BlockHash>>,
    held: Vec<HashSet<BlockHash>>,
    rng: StdRng,
}

const fn holder(row: usize) -> Holder {
    Holder { row: row as u32, layer: 0 }
}

impl Soak {
    /// A new chain: the first part of an old one (most often of a few) and something else.
    fn grow(&mut self) {
        let mut chain = Vec::new();
        if let Some(last) = self.chains.len().checked_sub(1)
            && self.rng.random_range(0..20) > 0
        {
            let near = self.rng.random_range(0..=last.min(3));
            let at = if self.rng.random() { near } else { self.rng.random_range(0..=last) };
            let old = &self.chains[at];
            chain.extend_from_slice(&old[..self.rng.random_range(0..=old.len())]);
        }
        let most = if self.rng.random_range(0..10) == 0 { 4000 } else { 60 };
        let new = self.rng.random_range(1..=most);
        chain.extend((0..new).map(|_| BlockHash::new(self.rng.random())));
        self.chains.push(chain);
    }

    fn ready(&mut self, row: usize) {
        while self.index.is_dropped(holder(row)) {
            let budget = self.rng.random_range(1..300);
            self.index.sweep(budget);
        }
    }

    fn step(&mut self) {
        if self.chains.len() < 4 || self.rng.random_range(0..6) == 0 {
            self.grow();
        }
        let rows = if self.rng.random() { 6 } else { ROWS };
        let row = self.rng.random_range(0..rows) as usize;
        let chain = self.chains[self.rng.random_range(0..self.chains.len())].clone();
        let from = self.rng.random_range(0..chain.len());
        let to = self.rng.random_range(from + 1..=chain.len());
        match self.rng.random_range(0..100) {
            0..50 => {
                let from = if self.rng.random_range(0..4) == 0 { from } else { 0 };
                self.ready(row);
                let above = from.checked_sub(1).map(|at| chain[at]);
                let held = self.index.hold(holder(row), above, from as u32, &chain[from..to]);
                let new = chain[from..to].iter().filter(|&&b| self.held[row].insert(b)).count();
                assert_eq!((held.gained, held.refused), (new, 0));
            }
            50..65 => self.release(row, &chain[from..]),
            65..75 => self.release(row, &chain[from..to]),
            75..85 => chain[from..].iter().rev().take(40).for_each(|b| self.release(row, &[*b])),
            85..90 => {
                self.ready(row);
                let depth = chain.iter().take_while(|block| self.held[row].contains(block)).count();
                assert_eq!(self.index.touch(holder(row), &chain), depth);
            }
            90..93 => {
                self.ready(row);
                let keep = self.rng.random_range(0..=self.held[row].len());
                let trimmed = self.index.trim(holder(row), keep as u64);
                assert_eq!(trimmed, self.held[row].len() - keep);
                self.held[row].retain(|&block| self.index.holds(holder(row), block));
                assert_eq!(self.held[row].len(), keep);
            }
            93..95 => {
                self.index.drop_holder(holder(row));
                self.held[row].clear();
            }
            _ => {
                // Many at once, as with a system prompt.
                for row in 0..ROWS as usize {
                    self.ready(row);
                    self.index.hold(holder(row), None, 0, &chain[..=from.min(50)]);
                    self.held[row].extend(&chain[..=from.min(50)]);
                }
            }
        }
        let budget = self.rng.random_range(0..50);
        self.index.sweep(budget);
    }

    fn release(&mut self, row: usize, blocks: &[BlockHash]) {
        let held = blocks.iter().filter(|block| self.held[row].remove(block)).count();
        if !self.index.is_dropped(holder(row)) {
            assert_eq!(self.index.release(holder(row), blocks), held);
        }
    }

    fn compare(&mut self) {
        let mut reach = Reach::default();
        for _ in 0..10 {
            let mut chain = self.chains[self.rng.random_range(0..self.chains.len())].clone();
            chain.truncate(self.rng.random_range(1..=chain.len()));
            chain.push(BlockHash::new(self.rng.random()));
            self.index.look_up(&chain, Layers(1), &mut reach);
            let mut depths = vec![0; ROWS as usize];
            reach.for_each(|row, depth| depths[row as usize] = depth as usize);
            for (held, depth) in self.held.iter().zip(depths) {
                assert_eq!(depth, chain.iter().take_while(|block| held.contains(block)).count());
            }
        }
    }
}

#[test]
fn it_does_as_plain_sets_do_for_long() {
    let steps = number("SOAK_STEPS", 4_000);
    let rng = StdRng::seed_from_u64(number("SOAK_SEED", 1));
    let held = vec![HashSet::new(); ROWS as usize];
    let mut index = SharedIndex::new(usize::MAX);
    let owner = index.add_owner();
    for row in 0..ROWS {
        assert_eq!(index.add_row(owner), Some(row));
    }
    let mut soak = Soak { index, chains: Vec::new(), held, rng };
    for step in 1..=steps {
        soak.step();
        if step % 20 == 0 {
            soak.compare();
        }
        if step % 1_000 == 0 {
            soak.index.check();
        }
    }
    while soak.index.sweep(1_000) {}
    soak.index.check();
    let distinct: HashSet<BlockHash> = soak.held.iter().flatten().copied().collect();
    assert_eq!(soak.index.stats().blocks, distinct.len());
    for row in 0..ROWS as usize {
        soak.index.drop_holder(holder(row));
    }
    while soak.index.sweep(1_000) {}
    soak.index.check();
    let stats = soak.index.stats();
    assert_eq!((stats.blocks, stats.held, stats.runs), (0, 0, 0));
}
