//! The block cache by example, and against a naive model.

use super::*;
use proptest::prelude::*;

/// Runs a request of full blocks to its end and gives what it found and what it displaced.
fn run(cache: &mut BlockCache, hashes: &[u64]) -> (usize, Vec<u64>) {
    let admission = cache.admit(hashes, hashes.len() - 1, hashes.len()).expect("it fits");
    let mut hold = admission.hold;
    for &hash in &hashes[admission.hit_blocks..] {
        cache.fill(&mut hold, hash);
    }
    cache.release(hold);
    cache.check();
    (admission.hit_blocks, admission.evicted)
}

#[test]
fn evicts_the_tail_of_the_least_recently_used_chain_first() {
    let mut cache = BlockCache::new(6);
    run(&mut cache, &[1, 2, 3]);
    run(&mut cache, &[11, 12, 13]);
    assert_eq!(run(&mut cache, &[21, 22]), (0, vec![3, 2]));
    assert_eq!(run(&mut cache, &[1, 2, 3]), (1, vec![13, 12]), "1 was kept, its tail was not");
}

#[test]
fn a_hit_makes_a_chain_recent() {
    let mut cache = BlockCache::new(7);
    run(&mut cache, &[1, 2, 3]);
    run(&mut cache, &[11, 12, 13]);
    // The last block of the repeat is computed again and merged into the one that is there.
    assert_eq!(run(&mut cache, &[1, 2, 3]), (2, vec![]));
    assert_eq!(run(&mut cache, &[21, 22]).1, vec![13]);
}

#[test]
fn pinned_blocks_are_never_evicted_and_what_does_not_fit_waits() {
    let mut cache = BlockCache::new(4);
    let mut running = cache.admit(&[1, 2], 1, 3).expect("it fits");
    cache.fill(&mut running.hold, 1);
    cache.fill(&mut running.hold, 2);
    assert!(cache.admit(&[11, 12], 1, 2).is_none());
    assert!(cache.admit(&[1, 2, 12], 2, 4).is_none(), "hits are free, the rest is not");
    let other = cache.admit(&[1, 2], 1, 2).expect("one new block fits");
    assert_eq!((other.hit_blocks, cache.used()), (1, 4));
    cache.release(other.hold);
    cache.release(running.hold);
    cache.check();
    assert_eq!(run(&mut cache, &[11, 12, 13]).1, vec![2]);
}

#[test]
fn clear_keeps_only_what_runs() {
    let mut cache = BlockCache::new(8);
    run(&mut cache, &[1, 2, 3]);
    let running = cache.admit(&[1, 9], 1, 2).expect("it fits");
    cache.clear();
    cache.check();
    assert_eq!((cache.named(), cache.used()), (1, 2));
    cache.release(running.hold);
    assert_eq!(run(&mut cache, &[1, 2, 3]).0, 1);
}

/// The naive model: every block with its last use, searched in full for each question.
#[derive(Default)]
struct Naive {
    capacity: usize,
    blocks: Vec<(u64, usize, u64)>,
    reserved: usize,
    clock: u64,
}

impl Naive {
    fn admit(&mut self, hashes: &[u64], hit_max: usize, count: usize) -> Option<(usize, Vec<u64>)> {
        let has = |hash: &u64| self.blocks.iter().any(|block| block.0 == *hash);
        let hits = hashes[..hit_max].iter().take_while(|hash| has(hash)).count();
        let held = |block: &&(u64, usize, u64)| block.1 > 0 || hashes[..hits].contains(&block.0);
        let fixed = self.blocks.iter().filter(held).count() + self.reserved;
        if fixed + count - hits > self.capacity {
            return None;
        }
        for block in self.blocks.iter_mut().filter(|block| hashes[..hits].contains(&block.0)) {
            block.1 += 1;
        }
        self.reserved += count - hits;
        let mut evicted = Vec::new();
        while self.blocks.len() + self.reserved > self.capacity {
            let unpinned = self.blocks.iter().filter(|block| block.1 == 0);
            let oldest = unpinned.min_by_key(|block| block.2).expect("it fits").0;
            self.blocks.retain(|block| block.0 != oldest);
            evicted.push(oldest);
        }
        Some((hits, evicted))
    }

    fn finish(&mut self, hashes: &[u64], from: usize, filled: usize, reserved: usize) {
        for hash in &hashes[from..filled] {
            match self.blocks.iter_mut().find(|block| block.0 == *hash) {
                Some(block) => block.1 += 1,
                None => self.blocks.push((*hash, 1, 0)),
            }
        }
        self.reserved -= reserved;
        for hash in hashes[..filled].iter().rev() {
            let block = self.blocks.iter_mut().find(|block| block.0 == *hash).expect("pinned");
            block.1 -= 1;
            if block.1 == 0 {
                block.2 = self.clock;
                self.clock += 1;
            }
        }
    }
}

/// A chain over a tiny alphabet, so that prefixes are shared often.
fn chain(steps: &[u8]) -> Vec<u64> {
    let mut parent = 1_u64;
    let mut grow = |step: &u8| {
        parent = parent.wrapping_mul(31).wrapping_add(u64::from(*step));
        parent
    };
    steps.iter().map(&mut grow).collect()
}

type Running = (Vec<u64>, Hold, usize, usize);

fn step(
    cache: &mut BlockCache,
    naive: &mut Naive,
    running: &mut Vec<Running>,
    steps: &[u8],
    end: u8,
) {
    if end.is_multiple_of(2) && !running.is_empty() {
        let (hashes, mut hold, hits, reserved) = running.swap_remove(end as usize % running.len());
        // Some requests are cancelled half way.
        let filled = hits + (hashes.len() - hits).min(end as usize / 8);
        for &hash in &hashes[hits..filled] {
            cache.fill(&mut hold, hash);
        }
        cache.release(hold);
        naive.finish(&hashes, hits, filled, reserved);
        return;
    }
    let hashes = chain(steps);
    let count = hashes.len() + 1;
    let ours = cache.admit(&hashes, hashes.len() - 1, count);
    let theirs = naive.admit(&hashes, hashes.len() - 1, count);
    assert_eq!(ours.as_ref().map(|a| (a.hit_blocks, a.evicted.clone())), theirs);
    if let Some(admission) = ours {
        let hits = admission.hit_blocks;
        running.push((hashes, admission.hold, hits, count - hits));
    }
}

proptest! {
    #[test]
    fn behaves_like_the_naive_model(
        capacity in 6_usize..24,
        steps in prop::collection::vec((prop::collection::vec(0_u8..3, 1..6), 0_u8..64), 1..120),
    ) {
        let mut cache = BlockCache::new(capacity);
        let mut naive = Naive { capacity, ..Naive::default() };
        let mut running = Vec::new();
        for (chain, end) in steps {
            step(&mut cache, &mut naive, &mut running, &chain, end);
            cache.check();
            prop_assert_eq!(cache.named(), naive.blocks.len());
        }
    }
}
