//! Images of anything: restored, they behave as what they were taken of; garbage does no harm.
//!
//! That well-formed histories go on alike is tested where the models are (`tests.rs`,
//! `holdings/tests.rs`): a step of their histories is to be told and restored.

#![expect(clippy::disallowed_methods, reason = "a test needs an instant to start from")]

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::super::block::{BlockHash, Chain, Root, Secret, mix};
use super::holdings::{RANKS_MAX, TierImage};
use super::image::{RecordImage, RecordsImage, RunImage};
use super::record::Record;
use super::solo::{Alone, Solo};
use super::*;

const BLOCK_BYTES: NonZeroUsize = NonZeroUsize::new(4).expect("not zero");

fn root() -> Root {
    Secret::from_seed(5).root(&[])
}

/// Few, so that they meet.
fn block() -> impl Strategy<Value = BlockHash> {
    (0..24_u64).prop_map(|number| BlockHash::new(mix(number)))
}

fn run() -> impl Strategy<Value = RunImage> {
    let depth = prop_oneof![8 => 0..6_u32, 1 => any::<u32>()];
    let blocks = prop_oneof![8 => 0..6_u32, 1 => any::<u32>()];
    (prop::option::weighted(0.7, block()), depth, blocks, any::<bool>()).prop_map(
        |(parent, depth, blocks, right)| RunImage {
            parent: if right { parent.filter(|_| depth > 0) } else { parent },
            depth,
            blocks,
        },
    )
}

fn index_image() -> impl Strategy<Value = IndexImage> {
    (prop::collection::vec(run(), 0..12), prop::collection::vec(block(), 0..30))
        .prop_map(|(runs, blocks)| IndexImage { runs, blocks })
}

fn record() -> impl Strategy<Value = RecordImage> {
    let id = || (0..9_u64).prop_map(EngineBlockId);
    let depth = prop_oneof![8 => 0..5_u32, 1 => any::<u32>()];
    (
        (id(), prop::option::of(id()), any::<bool>(), 0..7_u16, 0..3_u32),
        (depth, any::<u64>(), 0..5_u32, 0..4_u32),
    )
        .prop_map(
            |((id, parent, joined, block_bytes, copies), (depth, chain, tail, completed))| {
                let chain = Chain::new(chain);
                let tail_bytes = tail;
                RecordImage {
                    id,
                    parent,
                    joined,
                    block_bytes,
                    copies,
                    depth,
                    chain,
                    tail_bytes,
                    completed,
                }
            },
        )
}

fn cache_image() -> impl Strategy<Value = CacheImage> {
    let records = (
        prop::collection::vec(record(), 0..16),
        prop::collection::vec(any::<u8>(), 0..40),
        prop::collection::vec(block(), 0..30),
    );
    (index_image(), records).prop_map(|(index, (records, tails, completed))| CacheImage {
        index,
        records: RecordsImage { records, tails, completed },
    })
}

fn holdings_image() -> impl Strategy<Value = HoldingsImage> {
    let tier = prop::sample::select(Tier::ALL.to_vec());
    let told = (0..3_u32, tier, cache_image()).prop_map(|(rank, tier, cache)| TierImage {
        rank,
        tier,
        cache,
    });
    let age = prop_oneof![(0..100_u64).prop_map(Duration::from_secs), Just(Duration::MAX)];
    (prop::collection::vec(told, 0..6), index_image(), index_image(), age, any::<bool>()).prop_map(
        |(caches, young, old, young_for, confirming)| HoldingsImage {
            caches,
            young,
            old,
            young_for,
            confirming,
        },
    )
}

type Reports = Vec<(bool, u64, Vec<(u64, String)>)>;

fn reports() -> impl Strategy<Value = Reports> {
    let blocks = prop::collection::vec((0..8_u64, "[ab]{0,5}"), 1..4);
    prop::collection::vec((any::<bool>(), 0..9_u64, blocks), 1..40)
}

/// Ids whose text and place change, texts that come twice, empty ones.
fn report(
    cache: &mut Solo,
    (stores, parent, blocks): &(bool, u64, Vec<(u64, String)>),
) -> (StoredOutcome, RemovedOutcome) {
    if *stores {
        let parent = (*parent < 8).then_some(EngineBlockId(*parent));
        let blocks = blocks.iter().map(|(id, text)| (EngineBlockId(*id), text.as_bytes()));
        (cache.stored(root(), parent, blocks, BLOCK_BYTES), RemovedOutcome::default())
    } else {
        let ids: Vec<_> = blocks.iter().map(|(id, _)| EngineBlockId(*id)).collect();
        (StoredOutcome::default(), cache.removed(&ids))
    }
}

#[test]
fn an_image_of_nothing_is_nothing() {
    let mut solo = Solo::restore(0, &CacheImage::default());
    assert_eq!((solo.blocks(), solo.engine_stats()), Default::default());
    assert_eq!(solo.image(), CacheImage::default());
}

#[test]
fn what_was_used_last_is_told_last() {
    let mut solo = Solo::new(0);
    let chain =
        |seed: u64| -> Vec<_> { (0..10).map(|at| BlockHash::new(mix(mix(seed) ^ at))).collect() };
    for seed in 0..10 {
        solo.insert(&chain(seed));
    }
    solo.insert(&chain(3));
    let mut restored = Solo::restore(0, &solo.image());
    restored.check();
    restored.trim(25);
    assert_eq!(restored.matched_blocks(&chain(3)), 10);
    assert_eq!(restored.matched_blocks(&chain(9)), 10);
    assert_eq!(restored.matched_blocks(&chain(7)), 0);
    assert_eq!(restored.matched_blocks(&chain(8)), 5);
}

#[test]
fn records_without_room_take_their_blocks_with_them() {
    let mut cache = Solo::new(usize::MAX);
    let text = |id: u64| format!("{id:04}");
    for id in 0..100 {
        let text = text(id);
        let block = std::iter::once((EngineBlockId(id), text.as_bytes()));
        cache.stored(root(), None, block, BLOCK_BYTES);
    }
    let room = cache.engine_stats().bytes / 2;
    let restored = Solo::restore(room, &cache.image());
    restored.check();
    let (records, blocks) = (restored.engine_stats(), restored.blocks());
    assert!(records.bytes <= room, "{records:?}");
    assert!(records.engine_blocks > 30 && records.engine_blocks == blocks, "{records:?}, {blocks}");
}

/// Of one whose parent is not in the image: the block that both lie under cannot be told gone any
/// more, so it must not be held.
#[test]
fn a_joint_goes_with_a_record_that_is_missing() {
    let mut cache = Solo::new(usize::MAX);
    let blocks = [(1, "abcdef"), (2, "g"), (3, "hijkl")];
    let blocks = blocks.map(|(id, text)| (EngineBlockId(id), text.as_bytes()));
    cache.stored(root(), None, blocks.into_iter(), BLOCK_BYTES);
    assert_eq!(cache.blocks(), 3);
    for missing in [1, 2] {
        let mut image = cache.image();
        let record = image.records.records.iter_mut().find(|record| record.id.0 == missing);
        record.expect("is there").depth = u32::MAX;
        let restored = Solo::restore(usize::MAX, &image);
        restored.check();
        assert_eq!(restored.engine_stats().engine_blocks, 2);
        assert_eq!(restored.blocks(), 2);
    }
}

#[test]
fn ranks_are_bounded() {
    let tiers = (0..=RANKS_MAX as u32).map(|rank| {
        let (tier, cache) = (Tier::Gpu, CacheImage::default());
        TierImage { rank, tier, cache }
    });
    let image = HoldingsImage { caches: tiers.collect(), ..HoldingsImage::default() };
    let holdings = Alone::restore(PARAMS, &image, Duration::MAX, Instant::now());
    holdings.check();
    assert_eq!(holdings.stats().ranks, RANKS_MAX);
}

const PARAMS: HoldingsParams = HoldingsParams {
    blocks_max: 1000,
    engine_bytes_max: 1 << 20,
    id_seed: 5,
    presumed_ttl: Duration::from_secs(30),
};

proptest! {
    /// What no model covers: told and restored in the middle, a history of contradictory reports
    /// goes on as it would have.
    #[test]
    fn contradictory_reports_go_on_alike(before in reports(), after in reports()) {
        let mut cache = Solo::new(usize::MAX);
        for step in &before {
            report(&mut cache, step);
        }
        let mut restored = Solo::restore(usize::MAX, &cache.image());
        for step in &after {
            prop_assert_eq!(report(&mut restored, step), report(&mut cache, step));
            restored.check();
            prop_assert_eq!(restored.image().index, cache.image().index);
            let records = |cache: &Solo| {
                let mut records = cache.cache.engine_blocks.records.clone();
                records.sort_by_key(|record| record.id);
                let told = |r: Record| {
                    (r.id, r.parent(), r.copies, r.tail().to_vec(), r.completed().to_vec())
                };
                records.into_iter().map(told).collect::<Vec<_>>()
            };
            prop_assert_eq!(records(&restored), records(&cache));
        }
    }

    #[test]
    fn any_index_image_can_be_restored(
        image in index_image(),
        prompts in prop::collection::vec(prop::collection::vec(block(), 0..6), 0..6),
    ) {
        let image = CacheImage { index: image, records: RecordsImage::default() };
        let mut solo = Solo::restore(0, &image);
        solo.check_parts();
        let again = Solo::restore(0, &solo.image());
        again.check_parts();
        prop_assert_eq!(again.blocks(), solo.blocks());
        for prompt in prompts {
            solo.insert(&prompt);
            solo.check_parts();
            solo.trim(15);
            solo.check_parts();
        }
    }

    #[test]
    fn any_cache_image_can_be_restored(
        image in cache_image(),
        engine_bytes_max in prop_oneof![Just(usize::MAX), 0..2000_usize],
        after in reports(),
    ) {
        let mut cache = Solo::restore(engine_bytes_max, &image);
        cache.check_parts();
        prop_assert!(cache.engine_stats().bytes <= engine_bytes_max);
        for step in &after {
            report(&mut cache, step);
            cache.check_parts();
            prop_assert!(cache.engine_stats().bytes <= engine_bytes_max);
        }
        let ids: Vec<_> = (0..9).map(EngineBlockId).collect();
        while cache.removed(&ids).known > 0 {}
        prop_assert_eq!(cache.engine_stats(), EngineStats::default());
    }

    #[test]
    fn any_holdings_image_can_be_restored(
        image in holdings_image(),
        (blocks_max, engine_bytes_max) in (0..30_usize, 0..9000_usize),
        away in prop_oneof![Just(Duration::ZERO), Just(Duration::MAX)],
        prompts in prop::collection::vec(prop::collection::vec(block(), 0..6), 0..6),
    ) {
        let params = HoldingsParams { blocks_max, engine_bytes_max, ..PARAMS };
        let now = Instant::now();
        let mut holdings = Alone::restore(params, &image, away, now);
        holdings.check_parts();
        let stats = holdings.stats();
        prop_assert!(stats.engine_bytes() <= engine_bytes_max);
        for prompt in prompts {
            let matched = holdings.matched(&prompt);
            prop_assert!(matched.gpu + matched.cpu + matched.storage <= prompt.len());
            holdings.presume(&prompt, now);
            let ids: Vec<_> = (0..9).map(EngineBlockId).collect();
            holdings.stored_known(0, Tier::Cpu, &ids);
            holdings.removed(1, Tier::Gpu, &ids);
            holdings.check_parts();
        }
    }
}
