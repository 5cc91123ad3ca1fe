//! How many of our blocks one worker's cache really holds, learned from what it had cached.
//!
//! The *distance* of a block is how many other blocks the worker was sent since it last got this
//! one. A cache that drops the least recently used holds a block exactly while its distance is
//! below the cache's size. So every answer that says how much of its prompt was cached brackets the
//! size: above the distance of the deepest block cached, at most that of the first one that was
//! not. The estimate is the size that contradicts the fewest of the last few hundred answers;
//! single wrong or unlucky ones are outvoted. It is in blocks of *prompts*: what the worker keeps
//! for answers, other clients' prompts or running requests is off its size, as it should be.
//!
//! Nudging the budget up and down by stale and missed predictions was turned down. What was
//! predicted depends on the budget itself, so a loop needs a gain, and hunts; the distance does not
//! depend on it, and an answer says at once *where* the size lies, not only on which side.
//!
//! Distances are counted over a sample of the blocks, chosen by their hashes (as SHARDS does,
//! Waldspurger et al. 2015), so that 10 KiB a worker cover several times any cache.

use smallvec::SmallVec;

use super::block::BlockHash;

/// Sampled blocks remembered.
const SAMPLED_MAX: usize = 1024;
/// The sample reaches back over at least this many times the estimate, or a cache larger than it
/// could not show; and where it reaches over eight times as far, it is too coarse.
const REACH: usize = 4;
const REACH_MAX: usize = 8 * REACH;
/// Beyond it no sample is thinned.
const COARSENESS_MAX: u32 = 40;
/// Sizes tried: eight a doubling, from a 64th of the configured one to 64 times that.
const SIZES_PER_DOUBLING: i32 = 8;
const DOUBLINGS: i32 = 6;
const SIZES: usize = (2 * DOUBLINGS * SIZES_PER_DOUBLING + 1) as usize;
/// What an answer's weight falls to with each later one: half of all weight lies in the last 200.
const DECAY: f32 = 1.0 - 1.0 / 288.0;
/// More than all answers ever weigh together.
const WEIGHT_MAX: f32 = 300.0;
/// Answers by which another size must fit better before the estimate moves.
const MOVE_GAIN: f32 = 3.0;
/// Sizes that fit this much worse than the best are as good; of all these, the nearest is taken.
const SAME_FIT: f32 = 0.5;
/// Blocks behind the last cached one that say nothing, and their share of the depth: workers round
/// to blocks of their own, and compute a prompt's last token in any case.
const EDGE_BLOCKS: usize = 2;
const EDGE_SHARE: usize = 20;
/// Marks kept of one prompt.
const MARKS_MAX: usize = 64;

/// What a [`CapacityEstimate`] has learned, the blocks of late included (10 KiB): without them it
/// would be deaf until as many had come again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CapacityImage {
    /// The configured size, blocks.
    pub configured: u64,
    /// The size believed in: eighths of a doubling above a 64th of the configured one.
    pub size: u32,
    /// Weight of hits, and of misses, by the number of sizes not above their distance.
    pub hits: Vec<f32>,
    /// See `hits`.
    pub misses: Vec<f32>,
    /// One in `2^coarseness` blocks is sampled.
    pub coarseness: u32,
    /// The sampled blocks, the most recently sent last.
    pub sampled: Vec<u64>,
}

/// Learns one worker's cache size.
#[derive(Clone, Debug)]
pub struct CapacityEstimate {
    configured: usize,
    /// Index of the size believed in.
    size: usize,
    /// Weight of hits and misses by the number of sizes not above their distance.
    hits: [f32; SIZES + 1],
    misses: [f32; SIZES + 1],
    /// One in `2^coarseness` blocks is sampled.
    coarseness: u32,
    /// The sampled blocks, the most recently sent last. Of one prompt, the deepest comes first: it
    /// is what caches drop first. So none is older than one that follows it in any prompt.
    recency: Vec<u64>,
}

/// What a prompt's fate will tell; made when it is sent, used when it is answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    marks: SmallVec<[Mark; 4]>,
}

/// A block that was sent before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    /// Its index in the prompt.
    index: u32,
    /// Hits and misses of it count for the sizes from this one on.
    above: u32,
}

impl CapacityEstimate {
    /// Begins at the configured size, in blocks.
    pub fn new(configured: usize) -> Self {
        let mut estimate = Self {
            configured: configured.max(1),
            size: SIZES / 2,
            hits: [0.0; SIZES + 1],
            misses: [0.0; SIZES + 1],
            coarseness: 0,
            recency: Vec::new(),
        };
        estimate.fit_sample();
        estimate
    }

    /// What was learned.
    pub fn image(&self) -> CapacityImage {
        CapacityImage {
            configured: self.configured as u64,
            size: self.size as u32,
            hits: self.hits.to_vec(),
            misses: self.misses.to_vec(),
            coarseness: self.coarseness,
            sampled: self.recency.clone(),
        }
    }

    /// Goes on from what was learned. What cannot be is taken as not learned.
    pub fn restore(image: &CapacityImage) -> Self {
        let mut estimate = Self::new(usize::try_from(image.configured).unwrap_or(usize::MAX));
        estimate.size = (image.size as usize).min(SIZES - 1);
        estimate.coarseness = image.coarseness.min(COARSENESS_MAX);
        let weights = [(&mut estimate.hits, &image.hits), (&mut estimate.misses, &image.misses)];
        for (weights, learned) in weights {
            // All weight of one kind together stays below the sum of DECAY's powers.
            let can_be = |weight: &&f32| (0.0..=WEIGHT_MAX).contains(*weight);
            for (weight, &learned) in weights.iter_mut().zip(learned).filter(|(_, l)| can_be(l)) {
                *weight = learned;
            }
        }
        let mask = (1_u64 << estimate.coarseness) - 1;
        let sampled = image.sampled.iter().copied().filter(|block| block & mask == 0);
        estimate.recency = sampled.take(SAMPLED_MAX + SAMPLED_MAX / 4).collect();
        estimate.fit_sample();
        estimate
    }

    /// How many blocks to believe in: within a 64th and 64 times the configured number.
    pub fn blocks(&self) -> usize {
        let doublings = self.size as f64 / f64::from(SIZES_PER_DOUBLING) - f64::from(DOUBLINGS);
        ((self.configured as f64 * doublings.exp2()) as usize).max(1)
    }

    /// A prompt goes to the worker. Every prompt must pass here, in the order in which they go.
    pub fn sent(&mut self, blocks: &[BlockHash]) -> Sent {
        let mask = (1_u64 << self.coarseness) - 1;
        let sampled: SmallVec<[(u32, u64); 16]> = (0..)
            .zip(blocks)
            .map(|(index, block)| (index, block.as_u64()))
            .filter(|(_, block)| block & mask == 0)
            .take(SAMPLED_MAX)
            .collect();
        let mut found: SmallVec<[usize; 16]> = SmallVec::new();
        let mut sent = Sent::default();
        for &(index, block) in &sampled {
            // The next deeper block was mostly sent together with this one.
            let guess = found.last().and_then(|at: &usize| at.checked_sub(1));
            let guess = guess.filter(|&at| self.recency[at] == block);
            // Where one is not found, none behind it is.
            let Some(at) = guess.or_else(|| find_last(&self.recency, block)) else { break };
            let later = self.recency.len() - 1 - at;
            sent.marks.push(Mark { index, above: self.sizes_below(later) });
            found.push(at);
        }
        if sent.marks.len() > MARKS_MAX {
            let stride = sent.marks.len().div_ceil(MARKS_MAX);
            sent.marks = sent.marks.iter().copied().step_by(stride).collect();
        }
        self.make_most_recent(&mut found, &sampled);
        sent
    }

    /// The worker answered: so many leading blocks of that prompt were cached. Says whether the
    /// estimate moved.
    pub fn answered(&mut self, sent: &Sent, cached_blocks: usize) -> bool {
        let edge = EDGE_BLOCKS + cached_blocks / EDGE_SHARE;
        let first_missing = cached_blocks.saturating_add(edge);
        let hit = sent.marks.iter().rfind(|mark| (mark.index as usize) < cached_blocks);
        let miss = sent.marks.iter().find(|mark| mark.index as usize >= first_missing);
        if hit.is_none() && miss.is_none() {
            return false;
        }
        for weight in self.hits.iter_mut().chain(&mut self.misses) {
            *weight *= DECAY;
        }
        if let Some(hit) = hit {
            self.hits[hit.above as usize] += 1.0;
        }
        if let Some(miss) = miss {
            self.misses[miss.above as usize] += 1.0;
        }
        self.settle()
    }

    /// The worker's cache is empty again (restart, reset). Its size is still what it was.
    pub fn cleared(&mut self) {
        self.recency.clear();
    }

    /// How many sizes are not above the distance of a block that `later` sampled ones follow.
    fn sizes_below(&self, later: usize) -> u32 {
        let spacing = (1_u64 << self.coarseness) as f64;
        let distance = (later as f64 + 0.5) * spacing;
        let doublings = (distance / self.configured as f64).log2() + f64::from(DOUBLINGS);
        let sizes = (doublings * f64::from(SIZES_PER_DOUBLING)).floor() + 1.0;
        sizes.clamp(0.0, SIZES as f64) as u32
    }

    /// Moves to the size that contradicts the fewest answers, if it is better by enough.
    fn settle(&mut self) -> bool {
        let mut contradicted = [0.0_f32; SIZES];
        let mut sum: f32 = self.hits.iter().sum();
        for (size, contradicted) in contradicted.iter_mut().enumerate() {
            sum += self.misses[size] - self.hits[size];
            *contradicted = sum;
        }
        let least = contradicted.iter().copied().fold(f32::INFINITY, f32::min);
        if contradicted[self.size] < least + MOVE_GAIN {
            return false;
        }
        let good = (0..SIZES).filter(|&size| contradicted[size] <= least + SAME_FIT);
        let Some(nearest) = good.min_by_key(|&size| size.abs_diff(self.size)) else { return false };
        self.size = nearest;
        self.fit_sample();
        true
    }

    /// Adapts the sample's coarseness to the estimate.
    fn fit_sample(&mut self) {
        let blocks = self.blocks();
        while (SAMPLED_MAX << self.coarseness) < REACH.saturating_mul(blocks)
            && self.coarseness < COARSENESS_MAX
        {
            self.coarseness += 1;
            let mask = (1_u64 << self.coarseness) - 1;
            self.recency.retain(|block| block & mask == 0);
        }
        while self.coarseness > 0
            && SAMPLED_MAX << (self.coarseness - 1) >= REACH_MAX.saturating_mul(blocks)
        {
            // The blocks left out so far are unknown: begin again.
            self.coarseness -= 1;
            self.recency.clear();
        }
    }

    /// Puts `sampled` behind all others, the deepest first; `found` is where some of them stand.
    fn make_most_recent(&mut self, found: &mut [usize], sampled: &[(u32, u64)]) {
        found.sort_unstable();
        if let Some(&first) = found.first() {
            let mut write = first;
            // A prompt told by another process may name a block twice.
            let mut places = found.chunk_by(|a, b| a == b).map(|same| same[0]).peekable();
            while let Some(at) = places.next() {
                let end = places.peek().copied().unwrap_or(self.recency.len());
                self.recency.copy_within(at + 1..end, write);
                write += end - at - 1;
            }
            self.recency.truncate(write);
        }
        // The oldest go in one sweep now and then: each sweep moves all others.
        if self.recency.len() + sampled.len() > SAMPLED_MAX + SAMPLED_MAX / 4 {
            let keep = SAMPLED_MAX - sampled.len();
            self.recency.drain(..self.recency.len().saturating_sub(keep));
        }
        self.recency.extend(sampled.iter().rev().map(|&(_, block)| block));
    }
}

/// The last place of `wanted`. In lumps, which the compiler turns into vector instructions.
fn find_last(blocks: &[u64], wanted: u64) -> Option<usize> {
    let mut end = blocks.len();
    for lump in blocks.rchunks(16) {
        end -= lump.len();
        if lump.iter().map(|&block| u8::from(block == wanted)).fold(0, u8::max) > 0 {
            return lump.iter().rposition(|&block| block == wanted).map(|at| end + at);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap, VecDeque};

    use proptest::prelude::*;
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;
    use crate::routing::index::{Holder, Layers, SharedIndex};

    const ROW: Holder = Holder { row: 0, layer: 0 };

    /// An engine's cache: drops the least recently used block, of one prompt the deepest first.
    #[derive(Default)]
    struct Engine {
        blocks_max: usize,
        used: HashMap<BlockHash, u64>,
        order: BTreeMap<u64, BlockHash>,
        clock: u64,
    }

    impl Engine {
        /// How many leading blocks of `prompt` are held; it and its `answer` then are.
        fn serve(&mut self, prompt: &[BlockHash], answer: &[BlockHash]) -> usize {
            let cached = prompt.iter().take_while(|block| self.used.contains_key(block)).count();
            for &block in answer.iter().rev().chain(prompt.iter().rev()) {
                self.clock += 1;
                if let Some(before) = self.used.insert(block, self.clock) {
                    self.order.remove(&before);
                }
                self.order.insert(self.clock, block);
            }
            while self.used.len() > self.blocks_max {
                let (_, oldest) = self.order.pop_first().expect("holds blocks");
                self.used.remove(&oldest);
            }
            cached
        }
    }

    /// Conversations of several turns under a few system prompts; some go on much more often than
    /// others.
    struct Traffic {
        rng: SmallRng,
        conversations: Vec<Vec<BlockHash>>,
        systems: Vec<Vec<BlockHash>>,
        scale: usize,
    }

    impl Traffic {
        fn new(seed: u64, conversations: usize, scale: usize) -> Self {
            let mut rng = SmallRng::seed_from_u64(seed);
            let systems =
                (0..5).map(|_| (0..4 * scale).map(|_| BlockHash::new(rng.random())).collect());
            let systems = systems.collect();
            Self { rng, conversations: vec![Vec::new(); conversations], systems, scale }
        }

        fn some(&mut self, blocks_max: usize) -> Vec<BlockHash> {
            let blocks = self.rng.random_range(1..=blocks_max);
            (0..blocks).map(|_| BlockHash::new(self.rng.random())).collect()
        }

        /// A prompt and its answer, which the conversation's next prompt begins with.
        fn next(&mut self) -> (Vec<BlockHash>, Vec<BlockHash>) {
            let count = self.conversations.len() as f64;
            // Zipf's law with exponent 1, by inversion.
            let which = (count.powf(self.rng.random::<f64>()) - 1.0) as usize;
            let (turn, answer) = (self.some(8 * self.scale), self.some(4 * self.scale));
            if self.conversations[which].len() < 4 || self.rng.random_ratio(1, 8) {
                let system = self.rng.random_range(0..self.systems.len());
                self.conversations[which] = self.systems[system].clone();
            }
            self.conversations[which].extend(turn);
            let prompt = self.conversations[which].clone();
            self.conversations[which].extend(&answer);
            (prompt, answer)
        }
    }

    /// A worker with `capacity` blocks, told to have `configured`.
    struct Trial {
        engine: Engine,
        traffic: Traffic,
        index: SharedIndex<1>,
        blocks_max: usize,
        estimate: CapacityEstimate,
        /// Answers on their way: what was sent, and cached.
        underway: VecDeque<(Sent, usize)>,
        concurrency: usize,
        /// Share of answers that say something else.
        noise: f64,
        learns: bool,
        /// Blocks predicted wrongly, and blocks in all.
        wrong: usize,
        total: usize,
    }

    impl Trial {
        fn new(seed: u64, capacity: usize, configured: usize) -> Self {
            let mut index = SharedIndex::new(usize::MAX);
            let owner = index.add_owner();
            assert_eq!(index.add_row(owner), Some(ROW.row));
            // Scaled so that all conversations together exceed the cache about three times.
            let scale = (capacity / 1000).max(1);
            Self {
                engine: Engine { blocks_max: capacity, ..Engine::default() },
                traffic: Traffic::new(seed, 100 * capacity / (1000 * scale), scale),
                index,
                blocks_max: configured,
                estimate: CapacityEstimate::new(configured),
                underway: VecDeque::new(),
                concurrency: 1,
                noise: 0.0,
                learns: true,
                wrong: 0,
                total: 0,
            }
        }

        fn run(&mut self, requests: usize) {
            for _ in 0..requests {
                let (prompt, answer) = self.traffic.next();
                let predicted = self.index.matched(ROW.row, Layers(1), &prompt);
                self.index.hold(ROW, None, 0, &prompt);
                self.index.trim(ROW, self.blocks_max as u64);
                let sent = self.estimate.sent(&prompt);
                let mut cached = self.engine.serve(&prompt, &answer);
                self.wrong += predicted.abs_diff(cached);
                self.total += prompt.len();
                if self.traffic.rng.random_bool(self.noise) {
                    cached = self.traffic.rng.random_range(0..=prompt.len());
                }
                self.underway.push_back((sent, cached));
                if self.underway.len() >= self.concurrency {
                    let (sent, cached) = self.underway.pop_front().expect("one");
                    if self.learns && self.estimate.answered(&sent, cached) {
                        self.blocks_max = self.estimate.blocks();
                        self.index.trim(ROW, self.blocks_max as u64);
                    }
                }
            }
        }

        /// Share of blocks predicted wrongly since last asked.
        fn wrong_share(&mut self) -> f64 {
            let share = self.wrong as f64 / self.total as f64;
            (self.wrong, self.total) = (0, 0);
            share
        }

        /// The estimate over what the engine has.
        fn factor(&self) -> f64 {
            self.estimate.blocks() as f64 / self.engine.blocks_max as f64
        }
    }

    /// Share of blocks predicted wrongly by an index that never learns.
    fn wrong_share_without_learning(seed: u64, capacity: usize, configured: usize) -> f64 {
        let mut trial = Trial::new(seed, capacity, configured);
        trial.learns = false;
        trial.run(400);
        trial.wrong_share();
        trial.run(1000);
        trial.wrong_share()
    }

    /// Aim: from a configuration 4 (and 16) times off either way, reach the engine's size within a
    /// few hundred requests, stay there, and predict about as well as with the right one.
    #[test]
    fn finds_the_size_from_a_wrong_configuration() {
        for (seed, capacity) in [(1, 1000), (3, 2000)] {
            let right = wrong_share_without_learning(seed, capacity, capacity);
            for (numerator, denominator) in [(4, 1), (1, 4), (16, 1), (1, 16)] {
                let configured = capacity * numerator / denominator;
                let mut trial = Trial::new(seed, capacity, configured);
                let mut reached = 0;
                while !(0.67..1.5).contains(&trial.factor()) {
                    trial.run(1);
                    reached += 1;
                }
                trial.run(400 - reached.min(400));
                trial.wrong_share();
                for _ in 0..20 {
                    trial.run(50);
                    let factor = trial.factor();
                    assert!((0.67..1.5).contains(&factor), "{factor}: {numerator}/{denominator}");
                }
                let wrong = trial.wrong_share();
                let unlearned = wrong_share_without_learning(seed, capacity, configured);
                println!(
                    "{capacity} x {numerator}/{denominator}: after {reached}, {:.2}; wrong {wrong:.3}, unlearned {unlearned:.3}, right {right:.3}",
                    trial.factor()
                );
                // A size too large shows only once the cache has filled and dropped something.
                let most = if numerator > 4 { 700 } else { 500 };
                assert!(reached <= most, "reached after {reached}");
                // Further off, the sample has to begin anew on the way.
                let slack = if numerator > 4 { 0.06 } else { 0.03 };
                assert!(wrong < right + slack && wrong < unlearned / 2.0, "{wrong}, {right}");
            }
        }
    }

    #[test]
    fn noise_does_not_destroy_a_right_size() {
        for (noise, seed) in [(0.01, 5), (0.01, 6), (0.05, 7), (0.2, 8)] {
            let mut trial = Trial::new(seed, 1000, 1000);
            trial.noise = noise;
            for _ in 0..40 {
                trial.run(100);
                let factor = trial.factor();
                assert!((0.67..1.5).contains(&factor), "{factor} at noise {noise}");
            }
        }
    }

    #[test]
    fn answers_may_come_late_and_out_of_step() {
        for (numerator, denominator) in [(4, 1), (1, 4)] {
            let mut trial = Trial::new(9, 2000, 2000 * numerator / denominator);
            trial.concurrency = 32;
            trial.run(500);
            for _ in 0..20 {
                trial.run(100);
                let factor = trial.factor();
                assert!((0.67..1.5).contains(&factor), "{factor}");
            }
        }
    }

    /// Traffic that fits the cache shows no misses: a size too large does no harm and stays.
    #[test]
    fn a_cache_that_never_fills_is_not_shrunk() {
        let mut trial = Trial::new(10, 100_000, 100_000);
        trial.traffic = Traffic::new(10, 20, 1);
        trial.run(3000);
        assert_eq!(trial.estimate.blocks(), 100_000);
        let mut trial = Trial::new(10, 100_000, 100);
        trial.traffic = Traffic::new(10, 20, 1);
        trial.run(600);
        trial.wrong_share();
        trial.run(2000);
        let mut unbounded = Trial::new(10, 100_000, 100_000);
        unbounded.traffic = Traffic::new(10, 20, 1);
        unbounded.run(600);
        unbounded.wrong_share();
        unbounded.run(2000);
        assert!(trial.wrong_share() < unbounded.wrong_share() + 0.01);
    }

    #[test]
    fn follows_a_worker_that_comes_back_with_another_size() {
        let mut trial = Trial::new(11, 4000, 4000);
        trial.run(2000);
        trial.engine = Engine { blocks_max: 1000, ..Engine::default() };
        trial.estimate.cleared();
        trial.run(1500);
        assert!((0.67..1.5).contains(&trial.factor()), "{}", trial.factor());
    }

    #[test]
    fn stays_within_64_times_either_way() {
        let prompt: Vec<_> =
            (0..64 << 10).map(|n| BlockHash::new(crate::routing::block::mix(n))).collect();
        let mut estimate = CapacityEstimate::new(256);
        for _ in 0..100 {
            let sent = estimate.sent(&prompt);
            estimate.answered(&sent, prompt.len());
        }
        assert_eq!(estimate.blocks(), 64 * 256);
        for _ in 0..2000 {
            let sent = estimate.sent(&prompt);
            estimate.answered(&sent, 0);
        }
        assert!((4..=16).contains(&estimate.blocks()), "{}", estimate.blocks());
    }

    proptest! {
        /// Distances as counted equal those of a plain list, when all blocks are sampled; for
        /// prompts as engines see them, where a block commits to all before it.
        #[test]
        fn distances_are_those_of_a_plain_list(
            prompts in prop::collection::vec(prop::collection::vec(0..3_u64, 0..12), 0..40),
        ) {
            let mut estimate = CapacityEstimate::new(16);
            prop_assert_eq!(estimate.coarseness, 0);
            let mut list: Vec<BlockHash> = Vec::new();
            for prompt in prompts {
                let mut chain = 1;
                let prompt: Vec<_> = prompt
                    .into_iter()
                    .map(|symbol| {
                        chain = crate::routing::block::mix(chain ^ (symbol + 7));
                        BlockHash::new(chain)
                    })
                    .collect();
                let expected: SmallVec<[Mark; 4]> = (0..)
                    .zip(&prompt)
                    .filter_map(|(index, block)| {
                        let later = list.iter().rev().position(|held| held == block)?;
                        Some(Mark { index, above: estimate.sizes_below(later) })
                    })
                    .collect();
                prop_assert_eq!(estimate.sent(&prompt).marks, expected);
                list.retain(|block| !prompt.contains(block));
                list.extend(prompt.iter().rev());
            }
        }

        /// No real prompt names a block twice, but one that is told by another process may.
        #[test]
        fn blocks_named_twice_do_no_harm(prompts in prop::collection::vec(
            prop::collection::vec(0..30_u64, 1..60), 1..40)) {
            let mut estimate = CapacityEstimate::new(64);
            for prompt in prompts {
                let name = |n: u64| BlockHash::new(crate::routing::block::mix(n));
                let prompt: Vec<_> = prompt.into_iter().map(name).collect();
                let sent = estimate.sent(&prompt);
                estimate.answered(&sent, prompt.len() / 2);
            }
        }

        /// Restored in the middle, it goes on as it would have; from nonsense, it does no harm.
        #[test]
        fn what_was_learned_is_taken_up_again(
            configured in prop_oneof![Just(64_usize), Just(100_000)],
            answers in prop::collection::vec((0..40_u64, 0..60_u64, 0..60_usize), 1..120),
            from in any::<prop::sample::Index>(),
            nonsense in (any::<u64>(), any::<u32>(), any::<u32>(), any::<f32>()),
        ) {
            let prompt = |first, len| -> Vec<_> {
                (first..first + len).map(|n| BlockHash::new(crate::routing::block::mix(n))).collect()
            };
            let mut estimate = CapacityEstimate::new(configured);
            let mut restored = None;
            let from = from.index(answers.len());
            for (at, (first, len, cached)) in answers.into_iter().enumerate() {
                if at == from {
                    restored = Some(CapacityEstimate::restore(&estimate.image()));
                }
                let prompt = prompt(first, len);
                let sent = estimate.sent(&prompt);
                let moved = estimate.answered(&sent, cached);
                if let Some(restored) = &mut restored {
                    prop_assert_eq!(restored.sent(&prompt), sent.clone());
                    prop_assert_eq!(restored.answered(&sent, cached), moved);
                    prop_assert_eq!(restored.image(), estimate.image());
                }
            }
            let (configured, size, coarseness, weight) = nonsense;
            let image = CapacityImage {
                configured, size, coarseness, hits: vec![weight; 200], ..estimate.image()
            };
            let mut estimate = CapacityEstimate::restore(&image);
            for _ in 0..20 {
                let sent = estimate.sent(&prompt(0, 50));
                estimate.answered(&sent, 10);
                prop_assert!(estimate.blocks() > 0);
                prop_assert!(estimate.hits.iter().all(|weight| weight.is_finite()));
                prop_assert!(estimate.recency.len() <= SAMPLED_MAX + SAMPLED_MAX / 4);
            }
        }

        #[test]
        fn no_answer_does_harm(
            configured in prop_oneof![0..3_usize, Just(usize::MAX), 0..100_000_usize],
            answers in prop::collection::vec((0..200_usize, any::<usize>(), any::<bool>()), 0..200),
        ) {
            let mut estimate = CapacityEstimate::new(configured);
            for (len, cached, cleared) in answers {
                if cleared {
                    estimate.cleared();
                }
                let prompt: Vec<_> = (0..len as u64).map(BlockHash::new).collect();
                let sent = estimate.sent(&prompt);
                estimate.answered(&sent, cached);
                prop_assert!(estimate.blocks() >= configured / 65 && estimate.blocks() > 0);
                prop_assert!(estimate.recency.len() <= SAMPLED_MAX + SAMPLED_MAX / 4);
            }
        }
    }
}
