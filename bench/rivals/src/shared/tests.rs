//! The index against sets of blocks, one a holder; with short runs, small segments and lists of
//! five spans, so that cutting, joining and growing are the rule.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::{Holder, Layers, Reach, SharedIndex};

const LAYERS: usize = 2;
const ROWS: u32 = 70;

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// The chained hash of each block of a path of symbols.
fn path(symbols: &[u8]) -> Vec<u64> {
    let chain = |hash: &mut u64, &symbol: &u8| {
        *hash = mix(*hash ^ (u64::from(symbol) + 1).wrapping_mul(0x1234_5678_9abc_def1));
        Some(*hash)
    };
    symbols.iter().scan(7, chain).collect()
}

#[derive(Default)]
struct Model(
    HashMap<Holder, HashSet<u64>>,
    /// Of every block ever held.
    HashMap<u64, Option<u64>>,
);

impl Model {
    fn holds(&self, holder: Holder, block: u64) -> bool {
        self.0.get(&holder).is_some_and(|blocks| blocks.contains(&block))
    }

    fn depth(&self, row: u32, layers: &[u8], blocks: &[u64]) -> u32 {
        let held = |block| layers.iter().any(|&layer| self.holds(Holder { row, layer }, block));
        blocks.iter().take_while(|&&block| held(block)).count() as u32
    }

    /// Every run names the block before its first one, be that held or not.
    fn check_parents(&self, index: &SharedIndex<LAYERS>) {
        for id in index.runs.ids() {
            let first = index.runs.run(id).label()[0];
            assert_eq!(index.runs.parent(id), self.1[&first], "parent of a run");
        }
    }

    fn distinct(&self) -> usize {
        self.0.values().flatten().collect::<HashSet<_>>().len()
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Blocks of the path from a share of it on.
    Hold(Holder, Vec<u8>, usize),
    /// Single blocks, the deepest first.
    ReleaseTail(Holder, Vec<u8>, usize),
    /// One block anywhere.
    ReleaseOne(Holder, Vec<u8>),
    ReleaseAll(Holder, Vec<u8>),
    Everybody(Vec<u8>),
    Touch(Holder, Vec<u8>),
    Trim(Holder, u64),
    Drop(Holder),
    Sweep(u32),
}

fn holder() -> impl Strategy<Value = Holder> {
    let row = prop_oneof![4 => 0..4_u32, 2 => 0..12_u32, 1 => 60..ROWS];
    (row, 0..LAYERS as u8).prop_map(|(row, layer)| Holder { row, layer })
}

fn symbols() -> impl Strategy<Value = Vec<u8>> {
    let few = prop::collection::vec(prop_oneof![5 => Just(0_u8), 1 => Just(1_u8)], 1..24);
    prop_oneof![few, prop::collection::vec(0..2_u8, 1..10)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (holder(), symbols(), Just(0)).prop_map(|(h, s, at)| Step::Hold(h, s, at)),
        6 => (holder(), symbols(), 0..24_usize).prop_map(|(h, s, at)| Step::Hold(h, s, at)),
        6 => (holder(), symbols(), 0..24_usize).prop_map(|(h, s, at)| Step::ReleaseTail(h, s, at)),
        6 => (holder(), symbols()).prop_map(|(h, s)| Step::ReleaseOne(h, s)),
        3 => (holder(), symbols()).prop_map(|(h, s)| Step::ReleaseAll(h, s)),
        2 => symbols().prop_map(Step::Everybody),
        3 => (holder(), symbols()).prop_map(|(h, s)| Step::Touch(h, s)),
        3 => (holder(), 0..40_u64).prop_map(|(h, max)| Step::Trim(h, max)),
        2 => holder().prop_map(Step::Drop),
        2 => (0..40_u32).prop_map(Step::Sweep),
    ]
}

fn hold(index: &mut SharedIndex<LAYERS>, model: &mut Model, holder: Holder, s: &[u8], at: usize) {
    while index.is_dropped(holder) {
        index.sweep(3);
    }
    let blocks = path(s);
    let (above, below) = blocks.split_at(at.min(blocks.len()));
    let parents = std::iter::once(None).chain(blocks.iter().copied().map(Some));
    model.1.extend(blocks.iter().copied().zip(parents));
    let held = model.0.entry(holder).or_default();
    let gained = below.iter().filter(|&&block| held.insert(block)).count();
    let result = index.hold(holder, above.last().copied(), above.len() as u32, below);
    assert_eq!((result.gained, result.refused), (gained, 0));
}

/// Which blocks go is for `the_least_recently_used_goes_first`; here, that nothing else does, and
/// that none goes before one that follows it.
fn trim(index: &mut SharedIndex<LAYERS>, model: &mut Model, holder: Holder, blocks_max: u64) {
    if index.is_dropped(holder) {
        return;
    }
    let before = model.0.entry(holder).or_default();
    let trimmed = index.trim(holder, blocks_max);
    assert_eq!(trimmed, before.len().saturating_sub(blocks_max as usize));
    let after: HashSet<u64> =
        before.iter().copied().filter(|&block| index.holds(holder, block)).collect();
    assert_eq!(after.len(), before.len() - trimmed);
    for block in before.iter().filter(|block| after.contains(block)) {
        let parent = model.1[block].filter(|parent| before.contains(parent));
        assert!(parent.is_none_or(|parent| after.contains(&parent)), "trimming left a hole");
    }
    *before = after;
}

fn apply(step: Step, index: &mut SharedIndex<LAYERS>, model: &mut Model) {
    let mut release = |index: &mut SharedIndex<LAYERS>, holder, blocks: &[u64]| {
        let held: &mut HashSet<u64> = model.0.entry(holder).or_default();
        let released = blocks.iter().filter(|&block| held.remove(block)).count();
        if !index.is_dropped(holder) {
            assert_eq!(index.release(holder, blocks), released);
        }
    };
    match step {
        Step::Hold(holder, symbols, at) => hold(index, model, holder, &symbols, at),
        Step::ReleaseTail(holder, symbols, at) => {
            let blocks = path(&symbols);
            let from = at.min(blocks.len());
            blocks[from..].iter().rev().for_each(|&block| release(index, holder, &[block]));
        }
        Step::ReleaseOne(holder, symbols) => {
            release(index, holder, &path(&symbols)[symbols.len() - 1..]);
        }
        Step::ReleaseAll(holder, symbols) => release(index, holder, &path(&symbols)),
        Step::Everybody(symbols) => {
            for row in 0..ROWS / 2 {
                hold(index, model, Holder { row: row * 2, layer: 0 }, &symbols, 0);
            }
        }
        Step::Touch(holder, symbols) => {
            let blocks = path(&symbols);
            let depth = blocks.iter().take_while(|&&block| model.holds(holder, block)).count();
            assert_eq!(index.touch(holder, &blocks), depth);
        }
        Step::Trim(holder, blocks_max) => trim(index, model, holder, blocks_max),
        Step::Drop(holder) => {
            index.drop_holder(holder);
            model.0.remove(&holder);
        }
        Step::Sweep(runs) => drop(index.sweep(runs)),
    }
}

fn compare(index: &SharedIndex<LAYERS>, model: &Model, prompt: &[u8]) {
    let blocks = path(prompt);
    let mut reach = Reach::default();
    for layers in [&[0][..], &[1], &[0, 1]] {
        let mask = layers.iter().map(|layer| 1 << layer).sum();
        index.look_up(&blocks, Layers(mask), &mut reach);
        let mut depths = HashMap::new();
        reach.for_each(|row, depth| {
            assert!(
                depth > 0 && depths.insert(row, depth).is_none(),
                "a row twice, or for nothing"
            );
        });
        for row in 0..ROWS {
            let depth = depths.get(&row).copied().unwrap_or_default();
            assert_eq!(depth, model.depth(row, layers, &blocks), "row {row} in {layers:?}");
        }
    }
    for holder in model.0.keys() {
        for &block in &blocks {
            assert_eq!(index.holds(*holder, block), model.holds(*holder, block));
        }
    }
}

/// Sweeps to the end, and compares what is left to the block.
fn settle(index: &mut SharedIndex<LAYERS>, model: &Model) {
    while index.sweep(7) {}
    index.check();
    let stats = index.stats();
    assert_eq!(stats.blocks, model.distinct());
    assert_eq!(stats.held, model.0.values().map(HashSet::len).sum::<usize>() as u64);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(256)
    ))]

    #[test]
    fn it_does_as_the_sets_do(
        steps in prop::collection::vec(step(), 1..60),
        prompts in prop::collection::vec(symbols(), 6),
    ) {
        let mut index = SharedIndex::<LAYERS>::new(usize::MAX);
        let mut model = Model::default();
        for step in steps {
            apply(step, &mut index, &mut model);
            index.check();
            model.check_parents(&index);
            for prompt in &prompts {
                compare(&index, &model, prompt);
            }
        }
        settle(&mut index, &model);
    }
}

fn row(row: u32) -> Holder {
    Holder { row, layer: 0 }
}

impl SharedIndex<LAYERS> {
    /// The depth of one holder, recency untouched.
    fn touch_free_depth(&self, holder: Holder, blocks: &[u64]) -> usize {
        blocks.iter().take_while(|&&block| self.holds(holder, block)).count()
    }
}

fn depths(index: &SharedIndex<LAYERS>, blocks: &[u64]) -> Vec<(u32, u32)> {
    let mut reach = Reach::default();
    let mut depths = Vec::new();
    index.look_up(blocks, Layers(1), &mut reach);
    reach.for_each(|row, depth| depths.push((row, depth)));
    depths.sort_unstable();
    depths
}

#[test]
fn a_block_at_another_depth_is_another_block() {
    let mut index = SharedIndex::<LAYERS>::new(usize::MAX);
    let (a, b, c) = (mix(1), mix(2), mix(3));
    index.hold(row(0), None, 0, &[a, b]);
    index.hold(row(0), None, 0, &[c]);
    assert_eq!(depths(&index, &[c, a, b]), [(0, 1)]);
    assert_eq!(index.hold(row(1), Some(c), 1, &[a, b]), super::Held { gained: 0, refused: 2 });
    assert_eq!(index.hold(row(1), None, 0, &[c, a]), super::Held { gained: 1, refused: 1 });
    index.check();
}

#[test]
fn a_block_twice_in_one_prompt_ends_it() {
    let mut index = SharedIndex::<LAYERS>::new(usize::MAX);
    let (a, b) = (mix(1), mix(2));
    let held = index.hold(row(0), None, 0, &[a, b, a, b]);
    assert_eq!(held, super::Held { gained: 2, refused: 2 });
    index.check();
}

#[test]
fn runs_are_joined_when_what_parted_them_is_gone() {
    let mut index = SharedIndex::<LAYERS>::new(usize::MAX);
    let blocks = path(&[0; 8]);
    index.hold(row(0), None, 0, &blocks);
    index.release(row(0), &blocks[3..4]);
    assert_eq!((index.stats().runs, depths(&index, &blocks)), (2, vec![(0, 3)]));
    index.hold(row(0), None, 0, &blocks);
    assert_eq!((index.stats().runs, depths(&index, &blocks)), (1, vec![(0, 8)]));

    // Many that hold different parts of it cut it; when they go it is one again.
    for at in 1..8 {
        index.hold(row(at), None, 0, &blocks[..at as usize]);
    }
    index.check();
    assert!(index.stats().runs > 1);
    for at in 1..8 {
        index.release(row(at), &blocks);
    }
    index.hold(row(0), None, 0, &blocks);
    index.check();
    assert_eq!((index.stats().runs, index.stats().held), (1, 8));
}

#[test]
fn what_all_hold_is_a_set_and_what_one_keeps_is_not() {
    let mut index = SharedIndex::<LAYERS>::new(usize::MAX);
    let blocks = path(&[0; 6]);
    for at in 0..70 {
        index.hold(row(at), None, 0, &blocks);
    }
    let stats = index.stats();
    assert_eq!((stats.blocks, stats.held, stats.runs), (6, 420, 1));
    assert_eq!(depths(&index, &blocks).len(), 70);
    for at in 1..70 {
        index.drop_holder(row(at));
    }
    assert_eq!(depths(&index, &blocks), [(0, 6)], "at once");
    while index.sweep(1) {}
    index.check();
    assert_eq!(index.stats().held, 6);
}

#[test]
fn the_sweep_takes_out_what_is_joined_into_the_slot_it_is_at() {
    let mut index = SharedIndex::<LAYERS>::new(usize::MAX);
    let blocks = path(&[0; 10]);
    index.hold(Holder { row: 0, layer: 1 }, Some(blocks[7]), 8, &blocks[8..]);
    index.hold(row(0), None, 0, &blocks[..9]);
    for at in 0..ROWS / 2 {
        index.hold(row(at * 2), None, 0, &blocks[..7]);
    }
    index.drop_holder(row(0));
    while index.sweep(7) {}
    index.check();
    assert_eq!(index.stats().blocks, 9, "the eighth is gone");
}

#[test]
fn churn_returns_the_tables() {
    let mut index = SharedIndex::<LAYERS>::new(usize::MAX);
    let chain = |seed: u64| (0..8).map(|at| mix(seed * 8 + at + 1)).collect::<Vec<_>>();
    for seed in 0..20_000 {
        index.hold(row(seed as u32 % 3), None, 0, &chain(seed));
    }
    let full = index.stats().bytes;
    for seed in 0..20_000 {
        assert_eq!(index.release(row(seed as u32 % 3), &chain(seed)), 8);
    }
    index.check();
    let stats = index.stats();
    assert_eq!((stats.blocks, stats.held, stats.runs), (0, 0, 0));
    assert!(index.places.bytes() + index.heads.bytes() < full / 4, "tables");
}

#[test]
fn the_byte_bound_refuses_what_is_over_it() {
    let bound = 100_000;
    let mut index = SharedIndex::<LAYERS>::new(bound);
    let (mut refused, mut at) = (0, 0);
    while refused < 100 {
        let blocks: Vec<_> = (0..50).map(|block| mix(at * 50 + block + 1)).collect();
        let held = index.hold(row(at as u32 % 5), None, 0, &blocks);
        assert_eq!(held.gained + held.refused, 50);
        refused += held.refused;
        assert!(index.stats().bytes <= bound + 20_000, "{:?}", index.stats());
        at += 1;
    }
    index.check();
    assert!(index.stats().held > 500, "{:?}", index.stats());
}

#[test]
fn the_least_recently_used_goes_first() {
    let mut index = SharedIndex::<LAYERS>::new(usize::MAX);
    let chain = |seed: u64| (0..5).map(|at| mix(seed * 5 + at + 1)).collect::<Vec<_>>();
    let mut used: Vec<u64> = Vec::new();
    for turn in 0..2_000_u64 {
        let seed = mix(turn) % 40;
        used.retain(|&other| other != seed);
        used.insert(0, seed);
        // Others hold some of it too, which changes nothing for the first.
        index.hold(row(1 + (turn % 3) as u32), None, 0, &chain(seed)[..=turn as usize % 5]);
        if index.touch(row(0), &chain(seed)) < 5 {
            index.hold(row(0), None, 0, &chain(seed));
        }
        index.trim(row(0), 52);
        used.truncate(11);
        for (at, &seed) in used.iter().enumerate() {
            let held = index.touch_free_depth(row(0), &chain(seed));
            assert_eq!(held, if at < 10 { 5 } else { held.min(2) }, "turn {turn}, place {at}");
        }
    }
    index.check();
    assert_eq!(index.blocks_of(row(0)), 52);
}
