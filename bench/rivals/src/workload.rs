//! What is stored, removed and asked: synthetic chats, or a trace of real ones.

use std::io::BufRead;

use dynamo_kv_router::protocols::{LocalBlockHash, compute_seq_hash_for_block};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::Deserialize;

use crate::index::{Change, Plain, Prompt};

/// Changes in order, and prompts to look up after them.
pub struct Workload {
    /// Workers there are.
    pub workers: u32,
    /// What changes refer to.
    pub prompts: Vec<Prompt>,
    /// What is stored at first.
    pub stores: Vec<Change>,
    /// Tails to remove, and to store again.
    pub removals: Vec<Change>,
    /// What is looked up.
    pub queries: Vec<Prompt>,
}

/// The prompt of these contents.
pub fn prompt(contents: Vec<u64>) -> Prompt {
    let local: Vec<_> = contents.iter().map(|&content| LocalBlockHash(content)).collect();
    let blocks = compute_seq_hash_for_block(&local);
    Prompt { contents, blocks }
}

/// The tails of a tenth of the stored blocks, as many single removals.
fn removals(stores: &[Change], rng: &mut StdRng) -> Vec<Change> {
    let blocks: usize = stores.iter().map(|store| store.to - store.from).sum();
    let mut removed = std::collections::HashSet::new();
    let mut left = blocks / 10;
    let mut removals = Vec::new();
    for _ in 0..stores.len() * 4 {
        let store = stores[rng.random_range(0..stores.len())];
        // The last store of a prompt at a worker holds its tail; each is cut once.
        if left == 0 || store.from == 0 && store.prompt < SYSTEMS {
            continue;
        }
        if !removed.insert((store.worker, store.prompt)) {
            continue;
        }
        let count = rng.random_range(1..=store.to - store.from).min(left);
        left -= count;
        removals.push(Change { from: store.to - count, ..store });
    }
    removals
}

const SYSTEMS: usize = 8;

impl Workload {
    /// Chats of `length` blocks: an eighth of it one of eight system prompts, which as many workers
    /// hold as a quarter of `blocks` allows; the rest in four turns of one worker, or of two in
    /// every tenth chat. A query is a chat and one more turn.
    pub fn synthetic(workers: u32, length: usize, blocks: usize, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut prompts, mut stores, mut queries) = (Vec::new(), Vec::new(), Vec::new());
        let system = (length / 8).max(4);
        let holders = (blocks / 4 / (SYSTEMS * system)).clamp(1, workers as usize) as u32;
        for at in 0..SYSTEMS {
            prompts.push(prompt((0..system).map(|_| rng.random()).collect()));
            for worker in 0..holders {
                stores.push(Change { worker, prompt: at, from: 0, to: system });
            }
        }
        let mut stored = SYSTEMS * system * holders as usize;
        let mut chats = Vec::new();
        while stored < blocks {
            let mut contents = prompts[rng.random_range(0..SYSTEMS)].contents.clone();
            contents.extend((system..length).map(|_| rng.random::<u64>()));
            let at = prompts.len();
            let copies = if rng.random_range(0..10) == 0 { 2 } else { 1 };
            for copy in 0..copies {
                let worker = (rng.random_range(0..workers) + copy) % workers;
                chats.push((at, worker));
                stored += length;
            }
            prompts.push(prompt(contents));
        }
        // Turn by turn, all chats mixed, as a fleet's reports come.
        let ends: Vec<usize> = (1..=4).map(|turn| system + (length - system) * turn / 4).collect();
        for window in chats.chunks(64) {
            for turn in 0..4 {
                for &(at, worker) in window {
                    // The first store carries the system prompt: this worker may not hold it.
                    let from = if turn == 0 { 0 } else { ends[turn - 1] };
                    stores.push(Change { worker, prompt: at, from, to: ends[turn] });
                }
            }
        }
        for _ in 0..1000 {
            let (at, _) = chats[rng.random_range(0..chats.len())];
            let mut contents = prompts[at].contents.clone();
            contents.truncate(ends[rng.random_range(0..4)]);
            contents.extend((0..=length / 16).map(|_| rng.random::<u64>()));
            queries.push(prompt(contents));
        }
        let tails: Vec<_> = stores.iter().filter(|store| store.to == length).copied().collect();
        let removals = removals(&tails, &mut rng);
        Self { workers, prompts, stores, removals, queries }
    }

    /// A trace of block ids (`{"blocks": [..]}` a line), each block in 32: every prompt goes to
    /// the worker that holds most of it, of those the one that holds least. The last thousand are
    /// the queries.
    pub fn of_trace(workers: u32, lines: impl BufRead, seed: u64) -> Self {
        #[derive(Deserialize)]
        struct Line {
            blocks: Vec<u64>,
        }
        let mut rng = StdRng::seed_from_u64(seed);
        let mut prompts: Vec<Prompt> = lines
            .lines()
            .map(|line| serde_json::from_str(&line.expect("text")).expect("a line of the trace"))
            .map(|Line { blocks }| {
                let parts = |id: u64| (0..32).map(move |part| mix(id * 32 + part + 1));
                prompt(blocks.into_iter().flat_map(parts).collect())
            })
            .collect();
        let queries = prompts.split_off(prompts.len().saturating_sub(1000));
        let mut plain = Plain::new(workers);
        let mut held = vec![0; workers as usize];
        let mut depths = held.clone();
        let mut stores = Vec::new();
        for (at, prompt) in prompts.iter().enumerate() {
            plain.depths(prompt, &mut depths);
            let best = |worker: &u32| {
                let worker = *worker as usize;
                (depths[worker], std::cmp::Reverse(held[worker]))
            };
            let worker = (0..workers).max_by_key(best).expect("a worker");
            let from = depths[worker as usize] as usize;
            let store = Change { worker, prompt: at, from, to: prompt.blocks.len() };
            if from < store.to {
                plain.set(store, prompt, true);
                held[worker as usize] += (store.to - from) as u32;
                stores.push(store);
            }
        }
        // Only what nothing follows is a tail.
        let mut followed = std::collections::HashSet::new();
        for store in stores.iter().filter(|store| store.from > 0) {
            followed.insert((store.worker, prompts[store.prompt].blocks[store.from - 1]));
        }
        let is_tail = |store: &&Change| {
            let blocks = &prompts[store.prompt].blocks[store.from..store.to];
            blocks.iter().all(|&block| !followed.contains(&(store.worker, block)))
        };
        let tails: Vec<_> = stores.iter().filter(is_tail).copied().collect();
        let removals = removals(&tails, &mut rng);
        Self { workers, prompts, stores, removals, queries }
    }
}

/// SplitMix64.
pub fn mix(value: u64) -> u64 {
    let value = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
