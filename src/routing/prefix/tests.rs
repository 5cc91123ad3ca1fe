//! A tier's reports by example, and against the model of `model.rs`.

use std::collections::HashMap;
use std::num::NonZeroUsize;

use proptest::prelude::*;
use proptest::sample::Index as Share;

use super::super::block::{BlockHash, BlockHasher, Root, Secret};
use super::model::{CacheModel, engine_prompt, engine_text};
use super::solo::Solo;
use super::{EngineBlockId, EngineStats, Rejection, RemovedOutcome, StoredOutcome};

const BLOCK_BYTES: NonZeroUsize = NonZeroUsize::new(4).expect("not zero");

fn root() -> Root {
    Secret::from_seed(5).root(&[])
}

fn blocks(text: &[u8]) -> Vec<BlockHash> {
    let mut hasher = BlockHasher::new(root(), BLOCK_BYTES);
    hasher.push(text);
    hasher.finish()
}

fn cache() -> Solo {
    Solo::new(usize::MAX)
}

fn store(cache: &mut Solo, parent: Option<u64>, blocks: &[(u64, &'static str)]) -> StoredOutcome {
    let blocks = blocks.iter().map(|&(id, text)| (EngineBlockId(id), text.as_bytes()));
    let outcome = cache.stored(root(), parent.map(EngineBlockId), blocks, BLOCK_BYTES);
    cache.check();
    outcome
}

fn remove(cache: &mut Solo, ids: &[u64]) -> RemovedOutcome {
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
    assert_eq!(cache.blocks(), 0);
}

#[test]
fn an_id_that_ends_alike_but_begins_earlier_is_another_text() {
    let mut cache = cache();
    store(&mut cache, None, &[(1, "abcd"), (2, "e")]);
    store(&mut cache, Some(2), &[(1, "")]);
    store(&mut cache, None, &[(2, "abcde")]);
    assert_eq!(cache.matched_blocks(&blocks(b"abcd")), 1);
    assert_eq!(remove(&mut cache, &[2, 1]).removed_blocks, 1);
    assert_eq!(cache.blocks(), 0);
}

#[test]
fn an_engine_block_behind_trimmed_blocks_waits_for_them() {
    let mut cache = cache();
    let prompt = blocks(b"abcdefghijkl");
    store(&mut cache, None, &[(1, "abcdefgh")]);
    cache.trim(0);
    assert_eq!(store(&mut cache, Some(1), &[(2, "ijkl")]).new_blocks, 1);
    assert_eq!(cache.matched_blocks(&prompt), 0);
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
    assert_eq!(cache.blocks() + cache.engine_stats().engine_blocks, 0);
}

#[test]
fn a_full_table_of_records_rejects_and_does_not_grow() {
    let mut cache = Solo::new(20_000);
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
    Stored(Vec<u8>, Share),
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
        20 => (symbols(), any::<Share>()).prop_map(|(path, from)| Event::Stored(path, from)),
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
                let taken =
                    (from + 1..=path.len()).take_while(|&end| model.store(&path[..end])).count();
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
                cache = Solo::restore(usize::MAX, &image);
                assert_eq!(cache.image().index, image.index);
                assert!(cache.engine_stats().bytes <= bytes, "packed no tighter");
            }
        }
        cache.check();
        assert_eq!(cache.engine_stats().engine_blocks, model.copies.len());
        assert_eq!(cache.blocks(), model.ours.len());
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
        let mut cache = Solo::new(engine_bytes_max);
        for (stores, parent, blocks) in events {
            if stores {
                let parent = (parent < 8).then_some(EngineBlockId(parent));
                let blocks = blocks.iter().map(|(id, text)| (EngineBlockId(*id), text.as_bytes()));
                cache.stored(root(), parent, blocks, BLOCK_BYTES);
            } else {
                let ids: Vec<_> = blocks.iter().map(|(id, _)| EngineBlockId(*id)).collect();
                cache.removed(&ids);
            }
            cache.trim(12);
            cache.check();
            prop_assert!(cache.engine_stats().bytes <= engine_bytes_max);
        }
        let ids: Vec<_> = (0..8).map(EngineBlockId).collect();
        while cache.removed(&ids).known > 0 {}
        prop_assert_eq!(cache.engine_stats(), EngineStats::default());
        prop_assert_eq!(cache.blocks(), 0);
    }
}
