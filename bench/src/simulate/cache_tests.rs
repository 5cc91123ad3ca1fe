//! The cache against a naive one.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

/// The same by lists that are searched.
#[derive(Debug, Default)]
struct Naive {
    capacity: usize,
    /// Evictable ones, the oldest first.
    idle: Vec<u32>,
    pins: HashMap<u32, u32>,
    nameless: usize,
}

impl Naive {
    fn holds(&self, block: u32) -> bool {
        self.idle.contains(&block) || self.pins.contains_key(&block)
    }

    fn matched(&self, blocks: &[u32]) -> usize {
        blocks.iter().take_while(|block| self.holds(**block)).count()
    }

    fn room(&self) -> usize {
        self.capacity.saturating_sub(self.pins.len() + self.nameless)
    }

    fn shrink(&mut self) {
        while self.idle.len() + self.pins.len() + self.nameless > self.capacity
            && !self.idle.is_empty()
        {
            self.idle.remove(0);
        }
    }

    fn pin(&mut self, blocks: &[u32]) {
        for block in blocks {
            self.idle.retain(|idle| idle != block);
            *self.pins.entry(*block).or_default() += 1;
        }
    }

    fn unpin(&mut self, blocks: &[u32]) {
        for block in blocks.iter().rev() {
            let pins = self.pins.get_mut(block).unwrap();
            *pins -= 1;
            if *pins == 0 {
                self.pins.remove(block);
                self.idle.push(*block);
            }
        }
    }

    fn store(&mut self, blocks: &[u32]) {
        for block in blocks.iter().rev().filter(|block| !self.pins.contains_key(block)) {
            self.idle.retain(|idle| idle != block);
            self.idle.push(*block);
        }
        self.shrink();
    }
}

const BLOCKS: usize = 40;

/// Prompts of a tree: block `b` is the child of `b / 2`.
fn path(leaf: u32) -> Vec<u32> {
    let mut path: Vec<u32> =
        std::iter::successors(Some(leaf), |b| (*b > 1).then_some(b / 2)).collect();
    path.reverse();
    path
}

#[derive(Debug, Clone)]
enum Act {
    Store(u32),
    Pin(u32),
    Unpin(usize),
    Take(usize),
    Give(usize),
    Name(u32),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let leaf = 1..BLOCKS as u32;
    let act = prop_oneof![
        leaf.clone().prop_map(Act::Store),
        leaf.clone().prop_map(Act::Pin),
        any::<usize>().prop_map(Act::Unpin),
        (0_usize..4).prop_map(Act::Take),
        (0_usize..4).prop_map(Act::Give),
        leaf.prop_map(Act::Name),
    ];
    prop::collection::vec(act, 1..120)
}

proptest! {
    #[test]
    fn does_what_a_naive_one_does(capacity in 1_usize..30, acts in acts()) {
        let mut cache = BlockCache::new(capacity, BLOCKS);
        let mut naive = Naive { capacity, ..Naive::default() };
        let mut pinned: Vec<Vec<u32>> = Vec::new();
        let mut heard = std::collections::HashSet::new();
        for act in acts {
            match act {
                Act::Store(leaf) => {
                    cache.store(&path(leaf));
                    naive.store(&path(leaf));
                }
                Act::Pin(leaf) => {
                    let blocks = path(leaf)[..cache.matched(&path(leaf))].to_vec();
                    cache.pin(&blocks);
                    naive.pin(&blocks);
                    pinned.push(blocks);
                }
                Act::Unpin(at) if !pinned.is_empty() => {
                    let blocks = pinned.swap_remove(at % pinned.len());
                    cache.unpin(&blocks);
                    naive.unpin(&blocks);
                }
                Act::Take(count) if count <= cache.room() => {
                    cache.take(count);
                    naive.nameless += count;
                    naive.shrink();
                }
                Act::Give(count) if count <= naive.nameless => {
                    cache.give(count);
                    naive.nameless -= count;
                }
                // The next block of a sequence whose prefix is pinned, out of what it has taken.
                Act::Name(leaf) if naive.nameless > 0 => {
                    let path = path(leaf);
                    let matched = cache.matched(&path);
                    cache.pin(&path[..matched]);
                    naive.pin(&path[..matched]);
                    let mut held = matched;
                    if let Some(&next) = path.get(matched) {
                        prop_assert!(cache.name_pinned(next));
                        cache.give(1);
                        naive.pin(&[next]);
                        naive.nameless -= 1;
                        held += 1;
                    }
                    pinned.push(path[..held].to_vec());
                }
                _ => {}
            }
            cache.check();
            for event in cache.events.drain(..) {
                match event {
                    CacheEvent::Stored(block) => prop_assert!(heard.insert(block)),
                    CacheEvent::Removed(block) => prop_assert!(heard.remove(&block)),
                }
            }
            prop_assert_eq!(cache.room(), naive.room());
            for block in 1..BLOCKS as u32 {
                prop_assert_eq!(cache.matched(&[block]) == 1, naive.holds(block));
                prop_assert_eq!(heard.contains(&block), naive.holds(block));
                prop_assert_eq!(cache.matched(&path(block)), naive.matched(&path(block)));
            }
            prop_assert_eq!(cache.blocks().count(), heard.len());
        }
        for blocks in pinned.drain(..) {
            cache.unpin(&blocks);
        }
        cache.give(naive.nameless);
        cache.check();
        prop_assert!(cache.is_at_rest());
    }
}

#[test]
fn the_deepest_block_of_the_oldest_prompt_goes_first() {
    let mut cache = BlockCache::new(4, 10);
    cache.store(&[0, 1, 2]);
    cache.store(&[0, 3]);
    assert_eq!(cache.matched(&[0, 1, 2]), 3);
    cache.events.clear();
    cache.store(&[0, 4]);
    assert_eq!(cache.events, [CacheEvent::Stored(4), CacheEvent::Removed(2)]);
    assert_eq!((cache.matched(&[0, 1, 2]), cache.matched(&[0, 3])), (2, 2));
}

#[test]
fn a_prompt_larger_than_the_cache_leaves_its_beginning() {
    let mut cache = BlockCache::new(3, 10);
    cache.store(&[0, 1, 2, 3, 4]);
    assert_eq!(cache.matched(&[0, 1, 2, 3, 4]), 3);
    cache.check();
}
