//! The index against sets of blocks, one a holder; with short runs, small segments and lists of
//! five spans, so that cutting, joining and growing are the rule.

mod world;

use proptest::prelude::*;

use self::world::{ROWS, World, mix, path, prompts, steps};
use super::super::block::BlockHash;
use super::{Held, Holder, Layers, Reach, SLACK_BYTES, SharedIndex};

const LAYERS: usize = 2;

fn cases() -> ProptestConfig {
    let cases = std::env::var("CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig::with_cases(cases.unwrap_or(256))
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn it_does_as_the_sets_do(steps in steps(2), prompts in prompts()) {
        World::<2>::new(usize::MAX).play(steps, &prompts);
    }

    #[test]
    fn it_does_as_the_sets_do_with_eight_layers(steps in steps(8), prompts in prompts()) {
        World::<8>::new(usize::MAX).play(steps, &prompts);
    }

    #[test]
    fn it_keeps_to_a_byte_bound(steps in steps(2), prompts in prompts(), room in 1_000..8_000_usize) {
        let world = World::<2>::new(usize::MAX);
        let bytes = world.index.stats().bytes;
        World::<2>::new(bytes + room).play(steps, &prompts);
    }
}

/// Every row lent, to a few owners.
fn an_index(bytes_max: usize) -> SharedIndex<LAYERS> {
    World::new(bytes_max).index
}

fn row(row: u32) -> Holder {
    Holder { row, layer: 0 }
}

impl SharedIndex<LAYERS> {
    /// The depth of one holder, recency untouched.
    fn touch_free_depth(&self, holder: Holder, blocks: &[BlockHash]) -> usize {
        blocks.iter().take_while(|&&block| self.holds(holder, block)).count()
    }
}

fn depths(index: &SharedIndex<LAYERS>, blocks: &[BlockHash]) -> Vec<(u32, u32)> {
    let mut reach = Reach::default();
    let mut depths = Vec::new();
    index.look_up(blocks, Layers(1), &mut reach);
    reach.for_each(|row, depth| depths.push((row, depth)));
    depths.sort_unstable();
    depths
}

#[test]
fn a_block_at_another_depth_is_another_block() {
    let mut index = an_index(usize::MAX);
    let [a, b, c] = [1, 2, 3].map(|n| BlockHash::new(mix(n)));
    index.hold(row(0), None, 0, &[a, b]);
    index.hold(row(0), None, 0, &[c]);
    assert_eq!(depths(&index, &[c, a, b]), [(0, 1)]);
    assert_eq!(index.hold(row(1), Some(c), 1, &[a, b]), Held { gained: 0, refused: 2 });
    assert_eq!(index.hold(row(1), None, 0, &[c, a]), Held { gained: 1, refused: 1 });
    index.check();
}

#[test]
fn a_block_twice_in_one_prompt_ends_it() {
    let mut index = an_index(usize::MAX);
    let [a, b] = [1, 2].map(|n| BlockHash::new(mix(n)));
    let held = index.hold(row(0), None, 0, &[a, b, a, b]);
    assert_eq!(held, Held { gained: 2, refused: 2 });
    index.check();
}

#[test]
fn runs_are_joined_when_what_parted_them_is_gone() {
    let mut index = an_index(usize::MAX);
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
    let mut index = an_index(usize::MAX);
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
    let mut index = an_index(usize::MAX);
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
    let mut index = an_index(usize::MAX);
    let chain =
        |seed: u64| (0..8).map(|at| BlockHash::new(mix(seed * 8 + at + 1))).collect::<Vec<_>>();
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

fn chain(seed: u64, count: u64) -> Vec<BlockHash> {
    (0..count).map(|at| BlockHash::new(mix((count << 40) + seed * count + at + 1))).collect()
}

#[test]
fn whoever_holds_the_most_makes_room() {
    let bound = 200_000;
    let mut index = an_index(bound);
    index.hold(row(0), None, 0, &chain(0, 100));
    let mut at = 1;
    while index.totals(1).trimmed == 0 {
        index.hold(row(1), None, 0, &chain(at, 50));
        at += 1;
    }
    let full = index.blocks_of(row(1));
    assert!(full > 3_000, "{:?}", index.stats());
    let mut gained = 0;
    for at in at..at + 300 {
        // A third one's share grows at the cost of the largest alone.
        gained += index.hold(row(2), None, 0, &chain(at, 5)).gained as u64;
        assert!(index.stats().bytes <= bound, "{:?}", index.stats());
    }
    index.check();
    // Full tables grow in steps, so now and then there is not room enough yet.
    assert!(gained > 1_000, "{gained}");
    assert_eq!((index.blocks_of(row(0)), index.blocks_of(row(2))), (100, gained));
    assert_eq!((index.totals(0).trimmed, index.totals(2).trimmed), (0, 0));
    assert!(index.blocks_of(row(1)) < full);
    assert_eq!(index.totals(1).trimmed, index.totals(1).inserted - index.blocks_of(row(1)));
}

#[test]
fn a_bound_below_what_one_prompt_takes_is_kept() {
    let bound = 60_000;
    let mut index = an_index(bound);
    for seed in 0..20 {
        let held = index.hold(row(0), None, 0, &chain(seed, 5_000));
        assert_eq!(held.gained + held.refused, 5_000);
        assert!(held.gained > 200, "{held:?}");
        assert!(index.stats().bytes <= bound + SLACK_BYTES, "{:?}", index.stats());
    }
    index.check();
}

#[test]
fn nothing_to_trim_means_refused() {
    let mut index = an_index(1);
    assert_eq!(index.hold(row(0), None, 0, &chain(1, 5)), Held { gained: 0, refused: 5 });
    assert!(!index.settle(10));
}

#[test]
fn what_follows_a_block_that_had_to_go_is_refused() {
    let mut index = an_index(usize::MAX);
    let blocks = chain(1, 40);
    index.hold(row(0), None, 0, &blocks[..8]);
    index.set_bytes_max(1);
    let held = index.hold(row(0), Some(blocks[7]), 8, &blocks[8..]);
    assert_eq!(held, Held { gained: 0, refused: 32 });
}

#[test]
fn a_part_whose_parent_was_trimmed_for_it_is_refused() {
    let mut index = an_index(usize::MAX);
    let blocks = chain(1, 40);
    index.hold(row(0), None, 0, &blocks[..8]);
    // Room for the eight, or for others in their place.
    index.set_bytes_max(index.stats().bytes);
    let held = index.hold(row(0), Some(blocks[7]), 8, &blocks[8..]);
    assert_eq!((held, index.stats().blocks), (Held { gained: 0, refused: 32 }, 0));
    assert_eq!(index.hold(row(0), None, 0, &blocks[..4]).gained, 4, "there is room now");
}

#[test]
fn what_was_dropped_makes_room_first() {
    let mut index = an_index(usize::MAX);
    index.hold(row(0), None, 0, &chain(1, 400));
    index.hold(row(1), None, 0, &chain(2, 1_000));
    index.set_bytes_max(index.stats().bytes);
    index.drop_holder(row(1));
    for seed in 3..9 {
        index.hold(row(2), None, 0, &chain(seed, 20));
    }
    assert_eq!((index.blocks_of(row(0)), index.totals(0).trimmed), (400, 0));
    assert!(index.blocks_of(row(2)) >= 100, "{}", index.blocks_of(row(2)));
    index.check();
}

/// Aim: what an image has yet to tell is told, whatever happens to the run that is next. Method: an
/// image of three runs, one of them told; then the next one is used, cut or joined.
#[test]
fn an_image_goes_on_where_its_next_run_moves() {
    let told_after = |change: fn(&mut SharedIndex<LAYERS>, &[Vec<BlockHash>; 3])| {
        let mut index = an_index(usize::MAX);
        let chains = [1, 2, 3].map(|seed| chain(seed, 8));
        for chain in &chains {
            index.hold(row(0), None, 0, chain);
        }
        let mut cursor = index.begin_image(row(0));
        let mut told = Vec::new();
        assert!(index.image_part(&mut cursor, 1, |_, _, run| told.extend_from_slice(run)));
        assert_eq!(told, chains[0], "the least recently used first");
        change(&mut index, &chains);
        index.check();
        while index.image_part(&mut cursor, 1, |_, _, run| told.extend_from_slice(run)) {}
        for block in chains.iter().flatten().filter(|&&block| index.holds(row(0), block)) {
            assert_eq!(told.iter().filter(|&told| told == block).count(), 1);
        }
        told.len()
    };
    assert_eq!(told_after(|index, chains| assert_eq!(index.touch(row(0), &chains[1]), 8)), 24);
    assert_eq!(told_after(|index, chains| assert_eq!(index.release(row(0), &chains[1]), 8)), 16);
    let cut = |index: &mut SharedIndex<LAYERS>, chains: &[Vec<BlockHash>; 3]| {
        for (at, to) in (1..7).enumerate() {
            index.hold(row(at as u32 + 1), None, 0, &chains[1][..to]);
        }
        assert!(index.stats().runs > 3);
    };
    assert_eq!(told_after(cut), 24);
}

#[test]
fn a_run_that_was_told_is_not_joined_with_one_that_was_not() {
    let mut index = an_index(usize::MAX);
    let blocks = chain(1, 8);
    index.hold(row(0), None, 0, &blocks[..4]);
    index.hold(row(0), None, 0, &chain(2, 2));
    // A hole is filled by another holder, which leaves two runs.
    index.hold(row(0), Some(blocks[4]), 5, &blocks[5..]);
    let mut cursor = index.begin_image(row(0));
    let mut told = Vec::new();
    assert!(index.image_part(&mut cursor, 1, |_, _, run| told.extend_from_slice(run)));
    assert_eq!(told, blocks[..4]);
    let runs = index.stats().runs;
    index.hold(row(0), Some(blocks[3]), 4, &blocks[4..]);
    index.check();
    while index.image_part(&mut cursor, 1, |_, _, run| told.extend_from_slice(run)) {}
    for block in &blocks[5..] {
        assert_eq!(told.iter().filter(|&told| told == block).count(), 1);
    }
    assert!(index.stats().runs >= runs - 1);
}

#[test]
fn a_smaller_bound_is_reached_by_and_by() {
    let mut index = an_index(usize::MAX);
    let empty = index.stats().bytes;
    for seed in 0..2_000 {
        index.hold(row(seed as u32 % 5), None, 0, &chain(seed, 10));
    }
    let full = index.stats().bytes;
    let bound = empty + (full - empty) / 4;
    index.set_bytes_max(bound);
    let mut calls = 0;
    let mut held = index.stats().held;
    while index.settle(64) {
        let now = index.stats().held;
        assert!(held - now <= 64 + 8, "{} in one call", held - now);
        (held, calls) = (now, calls + 1);
    }
    index.check();
    assert!(calls > 50, "{calls}");
    assert!(index.stats().bytes <= bound, "{:?}", index.stats());
    assert!(index.stats().held > 1_500, "no more than it takes: {:?}", index.stats());
    let each: Vec<_> = (0..5).map(|at| index.blocks_of(row(at))).collect();
    assert!(each.iter().max() <= each.iter().min().map(|min| min + 40).as_ref(), "{each:?}");
}

#[test]
fn a_trim_in_parts_takes_what_one_at_once_does() {
    let mut parts = an_index(usize::MAX);
    for seed in 0..30 {
        parts.hold(row(0), None, 0, &chain(seed, 10));
        parts.hold(row(1), None, 0, &chain(seed, 1 + seed % 10));
    }
    let mut whole = parts.clone();
    assert_eq!(whole.trim(row(0), 93), 207);
    let mut trimmed = Vec::new();
    while trimmed.last().is_none_or(|&last| last == 20) {
        trimmed.push(parts.trim_part(row(0), 93, 20));
    }
    assert_eq!((trimmed.len(), trimmed.iter().sum::<usize>()), (11, 207));
    parts.check();
    for seed in 0..30 {
        for block in chain(seed, 10) {
            assert_eq!(parts.holds(row(0), block), whole.holds(row(0), block));
        }
    }
}

#[test]
fn the_least_recently_used_goes_first() {
    let mut index = an_index(usize::MAX);
    let chain =
        |seed: u64| (0..5).map(|at| BlockHash::new(mix(seed * 5 + at + 1))).collect::<Vec<_>>();
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

/// A peer, or a file, may name blocks by anything.
#[test]
fn hashes_that_are_not_random_are_refused_and_break_nothing() {
    let mut index = an_index(usize::MAX);
    let same_tag = |at: u64| BlockHash::new(at << 29 | 5);
    let mut held = 0;
    for chain in 0..20 {
        let blocks: Vec<_> = (0..7).map(|at| same_tag(chain * 7 + at + 1)).collect();
        let parent = Some(same_tag(1000 + chain)).filter(|_| chain % 2 == 1);
        let result = index.hold(row(0), parent, (chain % 2) as u32, &blocks);
        assert_eq!(result.gained + result.refused, 7);
        held += result.gained;
        index.check_parts();
    }
    assert_eq!((index.stats().blocks, held), (15, 15), "as many as a segment takes");
    index.trim(row(0), 0);
    index.check_parts();
    assert_eq!(index.hold(row(0), None, 0, &[same_tag(1)]).gained, 1);
}
