//! Unit tests by claim, and the index and the worker's cache against the models of `model.rs`.

use std::collections::HashMap;
use std::num::NonZeroUsize;

use proptest::prelude::*;
use proptest::sample::Index;

use super::super::block::{BlockHash, BlockHasher, Root, Secret, mix};
use super::model::{CacheModel, IndexModel, engine_prompt, engine_text, path};
use super::*;

const UNBOUNDED: Bounds = Bounds { blocks_max: usize::MAX, bytes_max: usize::MAX };

fn index() -> PrefixIndex {
    PrefixIndex::new(UNBOUNDED)
}

fn index_of(blocks_max: usize) -> PrefixIndex {
    PrefixIndex::new(Bounds { blocks_max, ..UNBOUNDED })
}

/// A chain of `length` blocks like no other.
fn chain(seed: u64, length: usize) -> Vec<BlockHash> {
    (0..length as u64).map(|at| BlockHash::new(mix(mix(seed) ^ at))).collect()
}

#[test]
fn matches_the_longest_prefix_held_at_every_depth() {
    let mut index = index();
    let trunk = chain(1, 300);
    index.insert(&trunk);
    for leave in [1, 2, 3, 100, 150, 151, 298, 299] {
        let mut branch = trunk[..leave].to_vec();
        branch.extend(chain(1000 + leave as u64, 40));
        index.insert(&branch);
        index.check();
        for depth in 0..=branch.len() {
            let mut prompt = branch[..depth].to_vec();
            prompt.extend(chain(9, 5));
            assert_eq!(index.matched_blocks(&prompt), depth);
            assert_eq!(index.matched_blocks(&branch[..depth]), depth);
        }
    }
    assert_eq!(index.matched_blocks(&trunk), 300);
    assert_eq!(index.stats().nodes, 9 + 8);
}

#[test]
fn a_prompt_that_goes_on_lengthens_its_run_in_place() {
    let mut index = index();
    for end in 1..=50 {
        assert_eq!(index.insert(&chain(1, end)).new_blocks, 1);
    }
    index.check();
    assert_eq!(index.stats().nodes, 1);
}

#[test]
fn a_hole_hides_what_lies_behind_it_until_it_is_filled() {
    let mut index = index();
    let blocks = chain(1, 10);
    index.insert(&blocks);
    assert!(index.remove(blocks[4]));
    assert!(!index.remove(blocks[4]));
    index.check();
    assert_eq!(index.matched_blocks(&blocks), 4);
    assert!(index.contains(blocks[5]) && !index.contains(blocks[4]));
    assert_eq!((index.stats().blocks, index.stats().holes), (9, 1));
    assert_eq!(index.insert(&blocks[..5]).new_blocks, 1);
    index.check();
    assert_eq!(index.matched_blocks(&blocks), 10);
    assert_eq!((index.stats().nodes, index.stats().holes), (1, 0));
}

#[test]
fn blocks_grow_behind_a_hole_too() {
    let mut index = index();
    let blocks = chain(1, 10);
    index.insert(&blocks[..6]);
    index.remove(blocks[2]);
    assert_eq!(index.insert_after(Some(blocks[5]), &blocks[6..]).map(|i| i.new_blocks), Ok(4));
    index.check();
    assert_eq!(index.matched_blocks(&blocks), 2);
    index.insert(&blocks[..3]);
    assert_eq!(index.matched_blocks(&blocks), 10);
}

#[test]
fn an_unknown_parent_is_rejected_and_nothing_changes() {
    let mut index = index();
    let blocks = chain(1, 4);
    let unknown = Err(UnknownParent(blocks[0]));
    assert_eq!(index.insert_after(Some(blocks[0]), &blocks[1..]), unknown);
    assert_eq!(index.stats(), Stats::default());
    let text = UnknownParent(BlockHash::new(16)).to_string();
    assert_eq!(text, "parent block 0000000000000010 is not held");
}

#[test]
fn trims_the_least_recently_used_leaf_first() {
    let mut index = index_of(6);
    let (a, b, c) = (chain(1, 3), chain(2, 3), chain(3, 2));
    index.insert(&a);
    index.insert(&b);
    index.touch(&a[..1]);
    assert_eq!(index.insert(&c), Inserted { new_blocks: 2, trimmed_blocks: 2 });
    index.check();
    assert_eq!(index.matched_blocks(&a), 3);
    assert_eq!(index.matched_blocks(&b), 1);
    assert_eq!(index.matched_blocks(&c), 2);
}

#[test]
fn looking_up_does_not_count_as_use() {
    let mut index = index_of(2);
    let (a, b, c) = (chain(1, 1), chain(2, 1), chain(3, 1));
    index.insert(&a);
    index.insert(&b);
    index.matched_blocks(&a);
    index.insert(&c);
    assert!(!index.contains(a[0]) && index.contains(b[0]));
}

#[test]
fn a_prompt_over_the_bound_loses_its_deepest_blocks() {
    let mut index = index_of(5);
    index.insert(&chain(1, 4));
    let long = chain(2, 9);
    assert_eq!(index.insert(&long), Inserted { new_blocks: 5, trimmed_blocks: 4 });
    index.check();
    assert_eq!(index.matched_blocks(&long), 5);
    assert_eq!(index.insert(&long), Inserted::default());
    assert_eq!(index.set_bounds(Bounds { blocks_max: 0, ..UNBOUNDED }), 5);
    assert_eq!(index.stats().bytes, 0);
    assert_eq!(index.insert(&long), Inserted::default());
}

#[test]
fn a_split_is_joined_again_when_the_branch_goes() {
    let mut index = index();
    let trunk = chain(1, 100);
    index.insert(&trunk);
    let mut bytes = None;
    for leave in 1..100 {
        let branch: Vec<_> = trunk[..leave].iter().copied().chain(chain(2, 3)).collect();
        index.insert(&branch);
        assert_eq!(index.stats().nodes, 3);
        assert_eq!(index.retract(&branch, leave), 3);
        index.check();
        assert_eq!(index.stats().nodes, 1);
        assert_eq!(index.stats().bytes, *bytes.get_or_insert(index.stats().bytes));
    }
}

#[test]
fn a_retraction_stops_at_what_something_else_follows() {
    let mut index = index();
    let blocks = chain(1, 10);
    let other: Vec<_> = blocks[..7].iter().copied().chain(chain(2, 2)).collect();
    index.insert(&blocks);
    index.insert(&other);
    assert_eq!(index.retract(&blocks, 4), 3);
    index.check();
    assert_eq!(index.matched_blocks(&other), 9);
    assert_eq!(index.retract(&other, 4), 5);
    assert_eq!(index.retract(&other, 4), 0);
    assert_eq!(index.stats().blocks, 4);
}

#[test]
fn an_undone_insert_leaves_no_trace_in_the_recency() {
    let mut index = index_of(8);
    let (a, b) = (chain(1, 3), chain(2, 3));
    index.insert(&a);
    index.insert(&b);
    let branch: Vec<_> = a[..2].iter().copied().chain(chain(3, 1)).collect();
    index.insert(&branch);
    index.retract(&branch, 2);
    index.insert(&chain(4, 3));
    assert_eq!((index.matched_blocks(&a), index.matched_blocks(&b)), (2, 3));
}

#[test]
fn tightening_the_byte_bound_keeps_about_as_much_as_fits() {
    let mut index = index();
    for seed in 0..1000 {
        index.insert(&chain(seed, 20));
    }
    let bytes_max = index.stats().bytes / 2;
    index.set_bounds(Bounds { bytes_max, ..UNBOUNDED });
    index.check();
    let stats = index.stats();
    assert!(stats.bytes <= bytes_max && stats.blocks > 8_000, "{stats:?}");
    assert_eq!(index.matched_blocks(&chain(999, 20)), 20);
}

#[test]
fn hits_its_byte_bound_and_uses_most_of_it() {
    let bytes_max = 300_000;
    let mut index = PrefixIndex::new(Bounds { bytes_max, ..UNBOUNDED });
    let mut blocks_least = usize::MAX;
    for seed in 0..3000 {
        index.insert(&chain(seed, 20));
        let stats = index.stats();
        assert!(stats.bytes <= bytes_max);
        if seed > 1000 {
            blocks_least = blocks_least.min(stats.blocks);
        }
    }
    index.check();
    // 8 bytes of label, 20 of table, 3 of node, each block.
    assert!(blocks_least > 8_500, "{blocks_least}");
}

#[test]
fn churn_returns_the_memory() {
    let mut index = index_of(2_000);
    let trunk = chain(0, 500);
    index.insert(&trunk);
    let bytes = index.stats().bytes;
    let mut recent: Vec<Vec<BlockHash>> = Vec::new();
    for turn in 0..100_000_u64 {
        let random = mix(turn);
        if random.is_multiple_of(2) || recent.is_empty() {
            let leave = (random >> 8) as usize % 500;
            let mut prompt = trunk[..leave].to_vec();
            prompt.extend(chain(turn + 1, 1 + (random >> 40) as usize % 8));
            index.insert(&prompt);
            recent.push(prompt);
        } else {
            let prompt = recent.swap_remove((random >> 8) as usize % recent.len());
            for &block in prompt.iter().filter(|block| !trunk.contains(block)) {
                index.remove(block);
            }
        }
        index.touch(&trunk);
        if turn % 10_000 == 0 {
            index.check();
        }
    }
    for block in recent.iter().flatten().filter(|block| !trunk.contains(block)) {
        index.remove(*block);
    }
    index.check();
    let stats = index.stats();
    assert_eq!((stats.blocks, stats.nodes, stats.holes), (500, 1, 0));
    assert!(stats.bytes <= bytes + bytes / 2, "{} bytes, {bytes} at first", stats.bytes);
}

#[derive(Clone, Debug)]
enum Step {
    Insert(Vec<u8>),
    InsertAfter(Vec<u8>, Index),
    InsertBehind(Vec<u8>, Index),
    Remove(Vec<u8>),
    Retract(Vec<u8>, Index),
    Touch(Vec<u8>),
    Bound(usize),
    Clear,
    Restored,
}

fn symbols() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0..2_u8, 1..10)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => symbols().prop_map(Step::Insert),
        3 => (symbols(), any::<Index>()).prop_map(|(s, at)| Step::InsertAfter(s, at)),
        2 => (symbols(), any::<Index>()).prop_map(|(s, at)| Step::InsertBehind(s, at)),
        8 => symbols().prop_map(Step::Remove),
        3 => (symbols(), any::<Index>()).prop_map(|(s, at)| Step::Retract(s, at)),
        3 => symbols().prop_map(Step::Touch),
        1 => (0..40_usize).prop_map(Step::Bound),
        1 => Just(Step::Clear),
        3 => Just(Step::Restored),
    ]
}

fn apply(step: Step, index: &mut PrefixIndex, model: &mut IndexModel) {
    match step {
        Step::Insert(symbols) => {
            let blocks = path(&symbols);
            model.learn(&blocks);
            assert_eq!(index.insert(&blocks), model.insert(None, &blocks));
        }
        Step::InsertAfter(symbols, at) => {
            let blocks = path(&symbols);
            let (above, below) = blocks.split_at(at.index(blocks.len()));
            model.learn(&blocks);
            let parent = above.last().copied();
            if parent.is_none_or(|parent| model.holds(parent)) {
                let expected = Ok(model.insert(parent, below));
                assert_eq!(index.insert_after(parent, below), expected);
            } else {
                assert!(index.insert_after(parent, below).is_err());
            }
        }
        Step::InsertBehind(symbols, at) => {
            let blocks = path(&symbols);
            let (above, below) = blocks.split_at(at.index(blocks.len()));
            model.learn(&blocks);
            let parent = above.last().copied();
            let expected = model.insert(parent, below);
            assert_eq!(index.insert_behind(parent, above.len() as u32, below), expected);
        }
        Step::Remove(symbols) => {
            let blocks = path(&symbols);
            model.learn(&blocks);
            let block = blocks[blocks.len() - 1];
            assert_eq!(index.remove(block), model.remove(block));
        }
        Step::Retract(symbols, keep) => {
            let blocks = path(&symbols);
            let keep = keep.index(blocks.len() + 1);
            assert_eq!(index.retract(&blocks, keep), model.retract(&blocks, keep));
        }
        Step::Touch(symbols) => {
            index.touch(&path(&symbols));
            model.touch(&path(&symbols));
        }
        Step::Bound(blocks_max) => {
            model.blocks_max = blocks_max;
            let trimmed = index.set_bounds(Bounds { blocks_max, ..UNBOUNDED });
            assert_eq!(trimmed, model.trim(0, None));
        }
        Step::Clear => {
            index.clear();
            model.order.clear();
        }
        Step::Restored => {
            let image = index.image();
            let bytes = index.stats().bytes;
            *index = PrefixIndex::restore(index.bounds, &image);
            assert_eq!(index.image(), image);
            assert!(index.stats().bytes <= bytes, "packed no tighter");
        }
    }
}

/// All blocks, the most recently used first.
fn order(index: &PrefixIndex) -> Vec<BlockHash> {
    let nodes = &index.tree.nodes;
    let labels = index.tree.recency.order(nodes).into_iter();
    labels.flat_map(|id| nodes[id].label().to_vec()).collect()
}

proptest! {
    /// Not only the answers: also the order in which every block would be trimmed, the number of
    /// runs and the number of holes.
    #[test]
    fn the_index_does_as_the_model_does(
        blocks_max in prop_oneof![Just(1000_usize), 0..40_usize],
        steps in prop::collection::vec(step(), 1..80),
        prompts in prop::collection::vec(symbols(), 8),
    ) {
        let mut index = index_of(blocks_max);
        let mut model = IndexModel::default();
        model.blocks_max = blocks_max;
        for step in steps {
            apply(step, &mut index, &mut model);
            index.check();
            prop_assert_eq!(order(&index), &model.order[..]);
            prop_assert_eq!(index.stats().nodes, model.runs());
            prop_assert_eq!(index.stats().holes, model.holes());
            for prompt in &prompts {
                let blocks = path(prompt);
                prop_assert_eq!(index.matched_blocks(&blocks), model.matched_blocks(&blocks));
                prop_assert!(blocks.iter().all(|&b| index.contains(b) == model.holds(b)));
            }
        }
    }

    /// Whatever comes, the bounds hold, and a prompt that fits by itself is held after its insert.
    #[test]
    fn the_byte_bound_holds_whatever_comes(
        steps in prop::collection::vec((0..3_u8, 0..20_u64, 0..60_usize, 0..8000_usize), 1..120)
    ) {
        let mut bound = 4000;
        let mut index = PrefixIndex::new(Bounds { blocks_max: 500, bytes_max: bound });
        for (action, seed, length, bytes_max) in steps {
            let trunk = length / 2;
            let branch = chain((seed + 1) * 1000 + trunk as u64, length);
            let blocks = [chain(0, trunk), branch].concat();
            match action {
                0 | 1 => {
                    index.insert(&blocks);
                    if 600 + blocks.len() * 40 < bound {
                        prop_assert_eq!(index.matched_blocks(&blocks), blocks.len());
                    }
                }
                _ if length % 4 == 0 => {
                    bound = bytes_max;
                    index.set_bounds(Bounds { blocks_max: 500, bytes_max });
                }
                _ => {
                    blocks.get(trunk).map(|&block| index.remove(block));
                }
            }
            index.check();
        }
    }

    /// Hashes that collide, repeat and change their depth, as chained ones never do: answers are
    /// then free, invariants are not.
    #[test]
    fn unchained_hashes_break_no_invariant(
        steps in prop::collection::vec(
            (0..6_u8, prop::collection::vec(0..12_u64, 0..8), 0..8_usize),
            1..80,
        )
    ) {
        let mut index = index_of(20);
        for (action, hashes, number) in steps {
            let blocks: Vec<_> = hashes.into_iter().map(|hash| BlockHash::new(mix(hash))).collect();
            match (action, blocks.split_first()) {
                (0 | 1, _) => drop(index.insert(&blocks)),
                (2, Some((&first, rest))) => drop(index.insert_after(Some(first), rest)),
                (3, Some((&first, rest))) => {
                    index.insert_behind(Some(first), number as u32 + 1, rest);
                }
                (4, Some((&first, _))) => drop(index.remove(first)),
                _ => drop(index.retract(&blocks, number)),
            }
            index.touch(&blocks);
            index.check();
        }
    }
}

mod worker_cache {
    use super::*;

    const BLOCK_BYTES: NonZeroUsize = NonZeroUsize::new(4).expect("not zero");

    fn root() -> Root {
        Secret::from_seed(5).root(&[])
    }

    fn blocks(text: &[u8]) -> Vec<BlockHash> {
        let mut hasher = BlockHasher::new(root(), BLOCK_BYTES);
        hasher.push(text);
        hasher.finish()
    }

    fn cache() -> WorkerCache {
        WorkerCache::new(UNBOUNDED, usize::MAX)
    }

    fn store(
        cache: &mut WorkerCache,
        parent: Option<u64>,
        blocks: &[(u64, &'static str)],
    ) -> StoredOutcome {
        let blocks = blocks.iter().map(|&(id, text)| (EngineBlockId(id), text.as_bytes()));
        let outcome = cache.stored(root(), parent.map(EngineBlockId), blocks, BLOCK_BYTES);
        cache.check();
        outcome
    }

    fn remove(cache: &mut WorkerCache, ids: &[u64]) -> RemovedOutcome {
        let ids: Vec<_> = ids.iter().map(|&id| EngineBlockId(id)).collect();
        let outcome = cache.removed(&ids);
        cache.check();
        outcome
    }

    #[test]
    fn a_block_is_held_once_the_engine_block_that_completes_it_is_stored() {
        let mut cache = cache();
        assert_eq!(store(&mut cache, None, &[(1, "abc")]).new_blocks, 0);
        assert_eq!(store(&mut cache, Some(1), &[(2, "defgh"), (3, "i")]).new_blocks, 2);
        assert_eq!(cache.matched_blocks(&blocks(b"abcdefghijkl")), 2);
        assert_eq!(store(&mut cache, Some(3), &[(4, "jkl")]).new_blocks, 1);
        assert_eq!(cache.matched_blocks(&blocks(b"abcdefghijkl")), 3);
    }

    #[test]
    fn a_block_goes_with_any_engine_block_under_it_and_comes_back_with_it() {
        let chain = [(1, "ab"), (2, "cdef"), (3, "g"), (4, "hijk"), (5, "lmno")];
        let prompt = blocks(b"abcdefghijklmno");
        for (at, left) in [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2)] {
            let mut cache = cache();
            store(&mut cache, None, &chain);
            assert_eq!(cache.matched_blocks(&prompt), 3);
            let gone = remove(&mut cache, &[chain[at].0]);
            assert_eq!(cache.matched_blocks(&prompt), left);
            let parent = at.checked_sub(1).map(|at| chain[at].0);
            assert_eq!(store(&mut cache, parent, &chain[at..=at]).new_blocks, gone.removed_blocks);
            assert_eq!(cache.matched_blocks(&prompt), 3);
        }
    }

    #[test]
    fn a_block_with_several_copies_goes_with_the_last() {
        let mut cache = cache();
        for _ in 0..3 {
            store(&mut cache, None, &[(1, "abcd")]);
        }
        assert_eq!(cache.engine_stats().engine_blocks, 1);
        let outcome = RemovedOutcome { known: 1, ..RemovedOutcome::default() };
        assert_eq!(remove(&mut cache, &[1]), outcome);
        assert_eq!(remove(&mut cache, &[1]), outcome);
        assert_eq!(cache.matched_blocks(&blocks(b"abcd")), 1);
        let outcome = RemovedOutcome { known: 1, unknown: 2, removed_blocks: 1 };
        assert_eq!(remove(&mut cache, &[1, 1, 9]), outcome);
        assert_eq!(cache.engine_stats().engine_blocks, 0);
    }

    #[test]
    fn an_unknown_parent_is_rejected_with_all_behind_it() {
        let mut cache = cache();
        store(&mut cache, None, &[(1, "ab"), (2, "cdef")]);
        // Gone, though its record is kept for the second block.
        remove(&mut cache, &[1]);
        for parent in [7, 1] {
            let outcome = store(&mut cache, Some(parent), &[(3, "cdefgh"), (4, "ijkl")]);
            assert_eq!(outcome.rejected, Some(Rejection::UnknownParent));
            assert_eq!((outcome.rejected_engine_blocks, outcome.new_blocks), (2, 0));
        }
        let outcome = store(&mut cache, Some(2), &[(2, "")]);
        assert_eq!(outcome.rejected, Some(Rejection::UnknownParent));
    }

    #[test]
    fn an_id_with_another_text_replaces_what_it_stood_for() {
        let mut cache = cache();
        store(&mut cache, None, &[(1, "abcdef"), (2, "ghij")]);
        store(&mut cache, None, &[(1, "ABCDE")]);
        assert_eq!(cache.matched_blocks(&blocks(b"abcd")), 0);
        assert_eq!(cache.matched_blocks(&blocks(b"ABCD")), 1);
        assert_eq!(remove(&mut cache, &[1, 2]).known, 2);
        assert_eq!(cache.stats().blocks, 0);
    }

    #[test]
    fn an_id_that_ends_alike_but_begins_earlier_is_another_text() {
        let mut cache = cache();
        store(&mut cache, None, &[(1, "abcd"), (2, "e")]);
        store(&mut cache, Some(2), &[(1, "")]);
        store(&mut cache, None, &[(2, "abcde")]);
        assert_eq!(cache.matched_blocks(&blocks(b"abcd")), 1);
        assert_eq!(remove(&mut cache, &[2, 1]).removed_blocks, 1);
        assert_eq!(cache.stats().blocks, 0);
    }

    #[test]
    fn an_engine_block_behind_trimmed_blocks_waits_for_them() {
        let mut cache = WorkerCache::new(Bounds { blocks_max: 2, ..UNBOUNDED }, usize::MAX);
        let prompt = blocks(b"abcdefghijkl");
        store(&mut cache, None, &[(1, "abcdefgh")]);
        cache.insert(&blocks(b"ABCDEFGH"));
        assert_eq!(store(&mut cache, Some(1), &[(2, "ijkl")]).new_blocks, 1);
        assert_eq!(cache.matched_blocks(&prompt), 0);
        cache.set_bounds(UNBOUNDED, usize::MAX);
        cache.insert(&prompt[..2]);
        assert_eq!(cache.matched_blocks(&prompt), 3);
    }

    #[test]
    fn a_removal_takes_what_was_presumed_too_and_a_retraction_what_it_added() {
        let mut cache = cache();
        let prompt = blocks(b"abcdefghijkl");
        cache.insert(&prompt);
        store(&mut cache, None, &[(1, "abcd"), (2, "efgh")]);
        assert_eq!(cache.retract(&prompt, 2), 1);
        assert_eq!(remove(&mut cache, &[2]).removed_blocks, 1);
        assert_eq!(cache.matched_blocks(&prompt), 1);
        cache.cleared();
        assert_eq!(cache.stats().blocks + cache.engine_stats().engine_blocks, 0);
    }

    #[test]
    fn a_full_table_of_records_rejects_and_does_not_grow() {
        let mut cache = WorkerCache::new(UNBOUNDED, 20_000);
        let text = b"abcdef";
        let mut taken = 0;
        for id in 0..1000 {
            let blocks = std::iter::once((EngineBlockId(id), &text[..]));
            let outcome = cache.stored(root(), None, blocks, BLOCK_BYTES);
            taken += outcome.engine_blocks;
            let full = outcome.engine_blocks == 0;
            assert_eq!(outcome.rejected, full.then_some(Rejection::Full));
            assert_eq!(outcome.rejected_engine_blocks, usize::from(full));
        }
        cache.check();
        let stats = cache.engine_stats();
        assert!(taken > 110 && stats.engine_blocks == taken && stats.bytes <= 20_000, "{stats:?}");
        assert_eq!(cache.matched_blocks(&blocks(text)), 1);
        let ids: Vec<_> = (0..1000).map(EngineBlockId).collect();
        let outcome = cache.removed(&ids);
        assert_eq!((outcome.known, outcome.unknown), (taken, 1000 - taken));
        assert_eq!(cache.engine_stats(), EngineStats::default());
    }

    #[derive(Clone, Debug)]
    enum Event {
        Stored(Vec<u8>, Index),
        Removed(Vec<Vec<u8>>),
        Insert(Vec<u8>),
        Cleared,
        Restored,
    }

    fn symbols() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(0..2_u8, 1..6)
    }

    fn event(insert_weight: u32) -> impl Strategy<Value = Event> {
        let paths = prop::collection::vec(symbols(), 1..3);
        prop_oneof![
            20 => (symbols(), any::<Index>()).prop_map(|(path, from)| Event::Stored(path, from)),
            20 => paths.prop_map(Event::Removed),
            insert_weight => symbols().prop_map(Event::Insert),
            1 => Just(Event::Cleared),
            4 => Just(Event::Restored),
        ]
    }

    fn id(path: &[u8]) -> EngineBlockId {
        EngineBlockId(path.iter().fold(1, |id, &symbol| id * 2 + u64::from(symbol)))
    }

    fn run(events: Vec<Event>, block_bytes: usize, text_bytes_max: u64, presumes: bool) {
        let block_bytes = NonZeroUsize::new(block_bytes).expect("not zero");
        let hash = |text: &[u8]| {
            let mut hasher = BlockHasher::new(root(), block_bytes);
            hasher.push(text);
            hasher.finish()
        };
        let mut cache = cache();
        let mut model = CacheModel {
            copies: HashMap::new(),
            ours: std::collections::HashSet::new(),
            block_bytes: block_bytes.get(),
            text_bytes_max,
        };
        for event in events {
            match event {
                Event::Stored(path, from) => {
                    let from = from.index(path.len());
                    let texts: Vec<_> = (from + 1..=path.len())
                        .map(|end| (id(&path[..end]), engine_text(&path[..end], text_bytes_max)))
                        .collect();
                    let parent = (from > 0).then(|| id(&path[..from]));
                    let blocks = texts.iter().map(|(id, text)| (*id, &text[..]));
                    let outcome = cache.stored(root(), parent, blocks, block_bytes);
                    let taken = (from + 1..=path.len())
                        .take_while(|&end| model.store(&path[..end]))
                        .count();
                    assert_eq!(outcome.engine_blocks, taken);
                    assert_eq!(outcome.rejected_engine_blocks, texts.len() - taken);
                }
                Event::Removed(paths) => {
                    let ids: Vec<_> = paths.iter().map(|path| id(path)).collect();
                    let outcome = cache.removed(&ids);
                    let known = paths.iter().filter(|path| model.remove(path)).count();
                    assert_eq!((outcome.known, outcome.unknown), (known, ids.len() - known));
                }
                Event::Insert(path) => {
                    let text = engine_prompt(&path, text_bytes_max);
                    cache.insert(&hash(&text));
                    model.insert(&text);
                }
                Event::Cleared => {
                    cache.cleared();
                    model.copies.clear();
                    model.ours.clear();
                }
                Event::Restored => {
                    let image = cache.image();
                    let bytes = cache.engine_stats().bytes;
                    cache = WorkerCache::restore(UNBOUNDED, usize::MAX, &image);
                    assert_eq!(cache.image().index, image.index);
                    assert!(cache.engine_stats().bytes <= bytes, "packed no tighter");
                }
            }
            cache.check();
            assert_eq!(cache.engine_stats().engine_blocks, model.copies.len());
            assert_eq!(cache.stats().blocks, model.ours.len());
            for number in 32..64_u8 {
                let path: Vec<u8> = (0..5).map(|bit| number >> bit & 1).collect();
                let text = engine_prompt(&path, text_bytes_max);
                let matched = cache.matched_blocks(&hash(&text));
                assert_eq!(matched, model.matched_blocks(&text));
                if !presumes {
                    assert_eq!(matched, model.covered_blocks(&path));
                }
            }
        }
        let ids: Vec<_> = (2..64).map(EngineBlockId).collect();
        while cache.removed(&ids).known > 0 {}
        cache.check();
        assert_eq!(cache.engine_stats(), EngineStats::default());
    }

    proptest! {
        /// What matches is exactly what engine blocks held cover.
        #[test]
        fn reports_alone_give_what_the_engine_blocks_cover(
            events in prop::collection::vec(event(0), 1..40),
            block_bytes in 1..12_usize,
            text_bytes_max in 1..12_u64,
        ) {
            run(events, block_bytes, text_bytes_max, false);
        }

        #[test]
        fn reports_and_presumptions_do_as_the_model_does(
            events in prop::collection::vec(event(10), 1..40),
            block_bytes in 1..12_usize,
            text_bytes_max in 1..12_u64,
        ) {
            run(events, block_bytes, text_bytes_max, true);
        }

        /// Ids whose text and place change, texts tokenised twice, empty texts, tight bounds: no
        /// panic, and never more matched than some chain of held texts could be.
        #[test]
        fn inconsistent_reports_break_no_invariant(
            events in prop::collection::vec(
                (any::<bool>(), 0..9_u64, prop::collection::vec((0..8_u64, "[ab]{0,5}"), 1..4)),
                1..60,
            ),
            engine_bytes_max in prop_oneof![Just(usize::MAX), 0..3000_usize],
        ) {
            let bounds = Bounds { blocks_max: 12, bytes_max: 2000 };
            let mut cache = WorkerCache::new(bounds, engine_bytes_max);
            for (stores, parent, blocks) in events {
                if stores {
                    let parent = (parent < 8).then_some(EngineBlockId(parent));
                    let blocks = blocks.iter().map(|(id, text)| (EngineBlockId(*id), text.as_bytes()));
                    cache.stored(root(), parent, blocks, BLOCK_BYTES);
                } else {
                    let ids: Vec<_> = blocks.iter().map(|(id, _)| EngineBlockId(*id)).collect();
                    cache.removed(&ids);
                }
                cache.check();
                prop_assert!(cache.engine_stats().bytes <= engine_bytes_max);
            }
            let ids: Vec<_> = (0..8).map(EngineBlockId).collect();
            while cache.removed(&ids).known > 0 {}
            prop_assert_eq!(cache.engine_stats(), EngineStats::default());
            prop_assert_eq!(cache.stats().blocks, 0);
        }
    }
}
