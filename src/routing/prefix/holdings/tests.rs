//! Holdings by example, and against the model of `model.rs`.

#![expect(clippy::disallowed_methods, reason = "a test needs an instant to start from")]

use std::num::NonZeroUsize;

use proptest::prelude::*;
use proptest::sample::Index as Share;

use super::super::super::block::{BlockHasher, Root, Secret};
use super::super::model::{HoldingsModel, engine_prompt, engine_text};
use super::super::solo::Alone;
use super::super::{Digest, EngineBlockId, Rejection, StoredOutcome, bucket_of, mix_id};
use super::*;

const BLOCK_BYTES: NonZeroUsize = NonZeroUsize::new(4).expect("not zero");
const TTL: Duration = Duration::from_secs(30);
const ALMOST_TTL: Duration = Duration::from_millis(29_999);
const PARAMS: HoldingsParams = HoldingsParams {
    blocks_max: usize::MAX,
    engine_bytes_max: 1 << 30,
    id_seed: 5,
    presumed_ttl: TTL,
};
const PROMPT: &[u8] = b"abcdefghijklmnopqrst";

fn root() -> Root {
    Secret::from_seed(5).root(&[])
}

fn hash(text: &[u8], block_bytes: usize) -> Vec<BlockHash> {
    let block_bytes = NonZeroUsize::new(block_bytes).expect("not zero");
    let mut hasher = BlockHasher::new(root(), block_bytes);
    hasher.push(text);
    hasher.finish()
}

fn blocks(text: &[u8]) -> Vec<BlockHash> {
    hash(text, BLOCK_BYTES.get())
}

fn start() -> (Alone, Instant) {
    let now = Instant::now();
    (Alone::new(PARAMS, now), now)
}

fn ids(ids: &[u64]) -> Vec<EngineBlockId> {
    ids.iter().map(|&id| EngineBlockId(id)).collect()
}

fn store(
    holdings: &mut Alone,
    (rank, tier): (u32, Tier),
    parent: Option<u64>,
    blocks: &[(u64, &str)],
) -> StoredOutcome {
    let blocks = blocks.iter().map(|&(id, text)| (EngineBlockId(id), text.as_bytes()));
    let parent = parent.map(EngineBlockId);
    let outcome = holdings.stored((rank, tier), root(), parent, blocks, BLOCK_BYTES);
    holdings.check();
    outcome
}

const GPU: (u32, Tier) = (0, Tier::Gpu);
const CHAIN: [(u64, &str); 5] = [(1, "abcd"), (2, "efgh"), (3, "ijkl"), (4, "mnop"), (5, "qrst")];

fn gpu(holdings: &Alone, text: &[u8]) -> (usize, usize) {
    let matched = holdings.matched(&blocks(text));
    (matched.gpu, matched.confirmed)
}

#[test]
fn without_events_a_presumption_stands() {
    let (mut holdings, now) = start();
    holdings.presume(&blocks(PROMPT), now);
    assert_eq!(holdings.expire(now + TTL * 100), 0);
    assert_eq!(gpu(&holdings, PROMPT), (5, 0));
}

#[test]
fn a_burst_presumed_expires_but_for_what_was_confirmed() {
    let (mut holdings, now) = start();
    holdings.set_confirming(true, now);
    let presumed_at = now + TTL / 2;
    holdings.presume(&blocks(PROMPT), presumed_at);
    store(&mut holdings, GPU, None, &CHAIN[..2]);
    assert_eq!(gpu(&holdings, PROMPT), (5, 2));
    for (after, dropped) in [(0, 0), (1, 0), (29, 0), (44, 0), (45, 5), (46, 0)] {
        assert_eq!(holdings.expire(presumed_at + Duration::from_secs(after)), dropped, "{after}");
        assert_eq!(gpu(&holdings, PROMPT), (if after < 45 { 5 } else { 2 }, 2));
        holdings.check();
    }
    assert_eq!(holdings.stats().presumed_blocks, 0);
}

#[test]
fn a_presumption_stands_for_one_to_two_ttl_whenever_it_is_made() {
    for made_ms in (0..60_000).step_by(700) {
        let (mut holdings, now) = start();
        holdings.set_confirming(true, now);
        let at = |ms| now + Duration::from_millis(ms);
        let gone_ms = (0..200_000).step_by(1000).find(|&ms| {
            holdings.expire(at(ms));
            if (made_ms..made_ms + 1000).contains(&ms) {
                holdings.presume(&blocks(PROMPT), at(made_ms.max(ms)));
            }
            ms > made_ms + 1000 && holdings.matched(&blocks(PROMPT)).gpu == 0
        });
        let lived_ms = gone_ms.expect("it expires") - made_ms;
        assert!((30_000..=61_000).contains(&lived_ms), "made at {made_ms}, lived {lived_ms}");
    }
}

#[test]
fn nothing_old_survives_a_long_silence() {
    let (mut holdings, now) = start();
    holdings.set_confirming(true, now);
    holdings.presume(&blocks(PROMPT), now);
    assert_eq!(holdings.expire(now + TTL * 2), 5);
    holdings.presume(&blocks(PROMPT), now + TTL * 2);
    assert_eq!(holdings.expire(now + TTL * 3 + ALMOST_TTL), 0);
}

#[test]
fn what_was_presumed_before_events_came_expires_and_stands_again_without_them() {
    let (mut holdings, now) = start();
    holdings.presume(&blocks(PROMPT), now);
    holdings.set_confirming(true, now + TTL * 9);
    assert_eq!(holdings.expire(now + TTL * 9 + ALMOST_TTL), 0);
    holdings.set_confirming(false, now + TTL * 10);
    assert_eq!(holdings.expire(now + TTL * 99), 0);
    holdings.presume(&blocks(b"ABCDEFGH"), now + TTL * 99);
    assert_eq!((gpu(&holdings, PROMPT).0, gpu(&holdings, b"ABCDEFGH").0), (5, 2));
    // Two generations that stood side by side go one after the other.
    holdings.set_confirming(true, now + TTL * 100);
    holdings.check();
    assert_eq!(holdings.expire(now + TTL * 101), 5);
    assert_eq!(holdings.expire(now + TTL * 102), 2);
}

#[test]
fn a_failed_dispatch_leaves_nothing() {
    for confirming in [false, true] {
        let (mut holdings, now) = start();
        holdings.set_confirming(confirming, now);
        store(&mut holdings, GPU, None, &CHAIN[..2]);
        let before = holdings.stats();
        let keep = holdings.matched(&blocks(PROMPT)).gpu;
        assert_eq!(keep, 2);
        holdings.presume(&blocks(PROMPT), now);
        assert_eq!(holdings.retract(&blocks(PROMPT), keep), 3);
        holdings.check();
        assert_eq!(gpu(&holdings, PROMPT), (2, 2));
        assert_eq!(holdings.retract(&blocks(PROMPT), 0), 2);
        assert_eq!(gpu(&holdings, PROMPT), (2, 2), "what is confirmed stays");
        let after = holdings.stats();
        assert_eq!((after.tiers, after.presumed_blocks), (before.tiers, before.presumed_blocks));
    }
}

#[test]
fn a_retraction_finds_what_has_aged_since() {
    let (mut holdings, now) = start();
    holdings.set_confirming(true, now);
    holdings.presume(&blocks(PROMPT), now);
    holdings.expire(now + TTL);
    assert_eq!(holdings.retract(&blocks(PROMPT), 0), 5);
    assert_eq!(gpu(&holdings, PROMPT), (0, 0));
}

#[test]
fn what_one_rank_confirmed_whole_is_not_presumed() {
    let (mut holdings, now) = start();
    store(&mut holdings, GPU, None, &CHAIN);
    holdings.set_confirming(true, now);
    holdings.presume(&blocks(PROMPT), now);
    assert_eq!(holdings.stats().presumed_blocks, 0);
    holdings.set_confirming(false, now);
    holdings.presume(&blocks(PROMPT), now);
    assert_eq!(holdings.stats().presumed_blocks, 5);
}

#[test]
fn an_answer_is_presumed_where_no_event_says_so() {
    let (mut holdings, now) = start();
    holdings.prefilled(&blocks(PROMPT), now);
    assert_eq!(gpu(&holdings, PROMPT), (5, 0));
    holdings.drop_all();
    holdings.set_confirming(true, now);
    holdings.prefilled(&blocks(PROMPT), now);
    assert_eq!(gpu(&holdings, PROMPT), (0, 0));
}

#[test]
fn each_rank_counts_its_own_copies() {
    let (mut holdings, now) = start();
    holdings.presume(&blocks(b"abcd"), now);
    for rank in [0, 1, 1] {
        store(&mut holdings, (rank, Tier::Gpu), None, &CHAIN[..1]);
    }
    let mut removed = |rank| {
        let outcome = holdings.removed(rank, Tier::Gpu, &ids(&[1]));
        holdings.check();
        (outcome.known, outcome.removed_blocks, gpu(&holdings, b"abcd"))
    };
    assert_eq!(removed(0), (1, 1, (1, 1)));
    assert_eq!(removed(0), (0, 0, (1, 1)));
    assert_eq!(removed(1), (1, 0, (1, 1)));
    assert_eq!(removed(1), (1, 1, (0, 0)), "the presumption goes with the last rank's last copy");
    assert_eq!(removed(2), (0, 0, (0, 0)));
}

#[test]
fn a_presumption_goes_with_a_block_that_was_trimmed_too_and_with_a_replaced_id() {
    let (mut holdings, now) = start();
    store(&mut holdings, GPU, None, &CHAIN[..2]);
    holdings.presume(&blocks(PROMPT), now);
    holdings.removed(0, Tier::Gpu, &ids(&[2]));
    assert_eq!(gpu(&holdings, PROMPT), (1, 1));
    store(&mut holdings, GPU, Some(1), &CHAIN[1..2]);
    assert_eq!(gpu(&holdings, PROMPT), (5, 2), "what lies behind the hole stayed");
    store(&mut holdings, GPU, None, &[(1, "ABCD")]);
    assert_eq!(gpu(&holdings, PROMPT), (0, 0));
    store(&mut holdings, GPU, None, &[(6, "abcd")]);
    assert_eq!(gpu(&holdings, PROMPT), (5, 2));
    let gpu_blocks = Holder { row: 0, layer: layer::GPU };
    holdings.set_params(HoldingsParams { blocks_max: 0, ..PARAMS });
    holdings.with(|_, index| index.trim(gpu_blocks, 0));
    holdings.set_params(PARAMS);
    assert_eq!(gpu(&holdings, PROMPT), (0, 0));
    holdings.presume(&blocks(PROMPT), now);
    holdings.removed(0, Tier::Gpu, &ids(&[6]));
    assert_eq!(gpu(&holdings, PROMPT), (0, 0));
}

#[test]
fn a_cleared_rank_takes_the_presumptions_and_leaves_the_other_ranks() {
    for dropped in [false, true] {
        let (mut holdings, now) = start();
        for rank in [3, 4] {
            store(&mut holdings, (rank, Tier::Gpu), None, &CHAIN[..rank as usize - 2]);
            store(&mut holdings, (rank, Tier::Cpu), None, &CHAIN);
        }
        holdings.presume(&blocks(PROMPT), now);
        let drop_it = if dropped { Alone::drop_rank } else { Alone::cleared };
        drop_it(&mut holdings, 4);
        holdings.check();
        let expected = Matched { gpu: 1, cpu: 4, storage: 0, confirmed: 1 };
        assert_eq!(holdings.matched(&blocks(PROMPT)), expected);
        let stats = holdings.stats();
        assert_eq!(stats.ranks, if dropped { 1 } else { 2 });
        assert_eq!(
            (stats.inserted_total, stats.removed_total),
            (1 + 2 + 5 + 5 + 2 * 5, 2 + 5 + 2 * 5)
        );
        holdings.drop_all();
        holdings.check();
        let stats = holdings.stats();
        assert_eq!((stats.blocks(), stats.engine_bytes(), stats.removed_total), (0, 0, 23));
    }
}

#[test]
fn lower_tiers_count_behind_and_between() {
    let (mut holdings, now) = start();
    store(&mut holdings, GPU, None, &CHAIN);
    assert_eq!(holdings.stored_known(0, Tier::Cpu, &ids(&[3, 4, 9])).engine_blocks, 2);
    assert_eq!(holdings.stored_known(0, Tier::Storage, &ids(&[2, 5])).new_blocks, 2);
    holdings.check();
    let mut lose = |id, expected: (usize, usize, usize)| {
        holdings.removed(0, Tier::Gpu, &ids(&[id]));
        holdings.check();
        let Matched { gpu, cpu, storage, confirmed } = holdings.matched(&blocks(PROMPT));
        assert_eq!((gpu, cpu, storage), expected);
        assert_eq!(confirmed, gpu);
    };
    lose(5, (4, 0, 1));
    lose(3, (2, 2, 1));
    lose(4, (2, 2, 1));
    lose(2, (1, 0, 4));
    lose(1, (0, 0, 0));
    holdings.presume(&blocks(b"abcdefgh"), now);
    let expected = Matched { gpu: 2, cpu: 2, storage: 1, confirmed: 0 };
    assert_eq!(holdings.matched(&blocks(PROMPT)), expected);
}

#[test]
fn a_tier_of_one_rank_does_not_help_another() {
    let (mut holdings, _) = start();
    store(&mut holdings, GPU, None, &CHAIN[..2]);
    store(&mut holdings, (1, Tier::Gpu), None, &CHAIN[..4]);
    holdings.stored_known(1, Tier::Cpu, &ids(&[3, 4]));
    holdings.removed(1, Tier::Gpu, &ids(&[1, 2, 3, 4]));
    let expected = Matched { gpu: 2, cpu: 0, storage: 0, confirmed: 2 };
    assert_eq!(holdings.matched(&blocks(PROMPT)), expected);
}

#[test]
fn a_block_named_by_id_alone_takes_its_place_from_any_tier_of_its_rank() {
    let (mut holdings, _) = start();
    store(&mut holdings, GPU, None, &CHAIN);
    let outcome = holdings.stored_known(1, Tier::Cpu, &ids(&[1]));
    assert_eq!((outcome.rejected, outcome.rejected_engine_blocks), (UNKNOWN, 1));
    let outcome = holdings.stored_known(0, Tier::Cpu, &ids(&[7, 2, 8, 1]));
    assert_eq!((outcome.engine_blocks, outcome.new_blocks), (2, 2));
    assert_eq!((outcome.rejected, outcome.rejected_engine_blocks), (UNKNOWN, 2));
    holdings.removed(0, Tier::Gpu, &ids(&[1, 2]));
    assert_eq!(holdings.stored_known(0, Tier::Storage, &ids(&[2])).new_blocks, 1);
    assert_eq!(holdings.stored_known(0, Tier::Gpu, &ids(&[1, 2])).new_blocks, 2);
    holdings.check();
    assert_eq!(gpu(&holdings, PROMPT), (5, 5));
    assert_eq!(holdings.removed(0, Tier::Cpu, &ids(&[1, 1])).known, 1);
    assert_eq!(holdings.stats().ranks, 1, "a rejected report makes no rank");
}

const UNKNOWN: Option<Rejection> = Some(Rejection::UnknownParent);

/// Engine blocks that share a block of ours, by id alone: joints need both, in order.
#[test]
fn joints_hold_in_a_lower_tier_once_both_sides_are_there() {
    let (mut holdings, now) = start();
    store(&mut holdings, GPU, None, &[(1, "abcdef"), (2, "ghijkl"), (3, "mn"), (4, "opqr")]);
    let only_cpu = |holdings: &mut Alone| {
        let image = holdings.image(now);
        let mut holdings = Alone::restore(PARAMS, &image, Duration::ZERO, now);
        holdings.removed(0, Tier::Gpu, &ids(&[1, 2, 3, 4]));
        holdings.check();
        holdings.matched(&blocks(PROMPT)).cpu
    };
    holdings.stored_known(0, Tier::Cpu, &ids(&[1]));
    assert_eq!(only_cpu(&mut holdings), 1);
    holdings.stored_known(0, Tier::Cpu, &ids(&[2]));
    assert_eq!(only_cpu(&mut holdings), 3);
    holdings.stored_known(0, Tier::Cpu, &ids(&[4]));
    assert_eq!(only_cpu(&mut holdings), 3);
    holdings.stored_known(0, Tier::Cpu, &ids(&[3]));
    assert_eq!(only_cpu(&mut holdings), 3, "out of order: too little, never too much");
    holdings.stored_known(0, Tier::Cpu, &ids(&[4]));
    assert_eq!(only_cpu(&mut holdings), 4);
    holdings.removed(0, Tier::Cpu, &ids(&[1]));
    holdings.check();
    assert_eq!(only_cpu(&mut holdings), 0);
    holdings.stored_known(0, Tier::Cpu, &ids(&[1]));
    assert_eq!(only_cpu(&mut holdings), 4);
}

/// The replaced block is the last that keeps the record of its parent, which is gone.
#[test]
fn a_replaced_id_lets_go_of_a_parent_that_was_kept_for_it() {
    let (mut holdings, _) = start();
    store(&mut holdings, GPU, None, &[(1, "abcdef"), (2, "ghijkl")]);
    holdings.stored_known(0, Tier::Cpu, &ids(&[1, 2]));
    holdings.removed(0, Tier::Cpu, &ids(&[1]));
    assert_eq!(holdings.stats().tier(Tier::Cpu).gone_records, 1);
    store(&mut holdings, GPU, Some(1), &[(2, "GHIJKL")]);
    assert_eq!(holdings.stored_known(0, Tier::Cpu, &ids(&[2])).engine_blocks, 1);
    holdings.check();
    assert_eq!(holdings.stats().tier(Tier::Cpu).gone_records, 0);
}

#[test]
fn a_chain_does_not_go_on_in_blocks_of_another_size() {
    let (mut holdings, _) = start();
    store(&mut holdings, GPU, None, &CHAIN[..1]);
    let tokens = NonZeroUsize::new(8).expect("not zero");
    let block = |id, text: &'static str| std::iter::once((EngineBlockId(id), text.as_bytes()));
    let parent = Some(EngineBlockId(1));
    let mut stored = |parent, block| holdings.stored(GPU, root(), parent, block, tokens).rejected;
    assert_eq!(stored(parent, block(2, "efghijkl")), UNKNOWN);
    assert_eq!(stored(None, block(1, "abcdefgh")), None, "replaces what it stood for");
    assert_eq!(stored(parent, block(2, "ijklmnop")), None);
    assert_eq!(gpu(&holdings, PROMPT), (0, 0));
    assert_eq!(holdings.matched(&hash(PROMPT, 8)).gpu, 2);
    let missed = store(&mut holdings, GPU, Some(1), &CHAIN[1..]);
    assert_eq!((missed.rejected, missed.rejected_engine_blocks), (UNKNOWN, 4));
}

#[test]
fn ranks_are_bounded() {
    let (mut holdings, _) = start();
    for rank in 0..RANKS_MAX as u32 {
        assert_eq!(store(&mut holdings, (rank * 7, Tier::Gpu), None, &CHAIN).rejected, None);
    }
    let outcome = store(&mut holdings, (9999, Tier::Gpu), None, &CHAIN);
    assert_eq!(outcome.rejected, Some(Rejection::TooManyRanks));
    assert_eq!(outcome.rejected_engine_blocks, 5);
    holdings.drop_rank(0);
    assert_eq!(store(&mut holdings, (9999, Tier::Gpu), None, &CHAIN).rejected, None);
}

fn store_quietly(holdings: &mut Alone, (rank, tier): (u32, Tier), id: u64, text: &str) {
    let block = std::iter::once((EngineBlockId(id), text.as_bytes()));
    holdings.stored((rank, tier), root(), None, block, BLOCK_BYTES);
}

#[test]
fn records_of_lower_tiers_leave_half_to_the_accelerator() {
    let engine_bytes_max = 100_000;
    let (mut holdings, _) = start();
    holdings.set_params(HoldingsParams { engine_bytes_max, ..PARAMS });
    for (rank, tier) in [(0, Tier::Storage), (1, Tier::Cpu), (0, Tier::Gpu)] {
        for id in 0..2000 {
            store_quietly(&mut holdings, (rank, tier), id, &format!("{id:04}"));
        }
        holdings.check();
    }
    let stats = holdings.stats();
    assert!(stats.engine_bytes() <= engine_bytes_max);
    assert!(stats.tier(Tier::Gpu).engine_bytes > engine_bytes_max * 2 / 5, "{stats:?}");
}

#[test]
fn the_older_presumptions_make_room_for_the_younger() {
    let (mut holdings, now) = start();
    holdings.set_params(HoldingsParams { blocks_max: 6, ..PARAMS });
    holdings.presume(&blocks(PROMPT), now);
    holdings.set_confirming(true, now);
    assert_eq!(holdings.presume(&blocks(b"ABCDEFGHIJKL"), now), 3);
    assert_eq!(holdings.stats().trimmed_total, 2);
    assert_eq!((gpu(&holdings, PROMPT).0, gpu(&holdings, b"ABCDEFGHIJKL").0), (3, 3));
    holdings.check();
    assert_eq!(holdings.set_params(HoldingsParams { blocks_max: 2, ..PARAMS }), 4);
    assert_eq!((gpu(&holdings, PROMPT).0, gpu(&holdings, b"ABCDEFGHIJKL").0), (0, 2));
}

#[test]
fn a_digest_is_the_sum_of_mixed_ids_by_their_top_bits() {
    // SplitMix64 from the seeds 0 and 1: published first outputs.
    assert_eq!(mix_id(0), 0xe220_a839_7b1d_cdaf);
    assert_eq!(mix_id(1), 0x910a_2dec_8902_5cc1);
    let (mut holdings, _) = start();
    store(&mut holdings, GPU, None, &CHAIN[..1]);
    for (buckets, at) in [(1, 0), (2, 1), (16, 9), (256, 0x91), (4096, 0x910)] {
        let digest = holdings.held.digest(0, buckets);
        assert_eq!((digest.blocks, digest.sums.len()), (1, buckets));
        assert_eq!(digest.sums[at], 0x910a_2dec_8902_5cc1);
        assert_eq!(digest.sums.iter().filter(|&&sum| sum != 0).count(), 1);
        assert_eq!(bucket_of(u64::MAX, buckets), buckets - 1);
        assert_eq!(
            holdings.held.copies_in(0, |bucket| bucket == at, buckets),
            [(EngineBlockId(1), 1)]
        );
        assert_eq!(holdings.held.copies_in(0, |bucket| bucket != at, buckets), []);
    }
    assert_eq!(holdings.held.digest(0, 0), holdings.held.digest(0, 1));
    assert_eq!(holdings.held.digest(0, 1000), holdings.held.digest(0, 512));
    assert_eq!(holdings.held.digest(0, usize::MAX).sums.len(), super::super::BUCKETS_MAX);
    assert_eq!(holdings.held.digest(1, 2), Digest { blocks: 0, sums: vec![0; 2] });
}

#[test]
fn copies_are_corrected_and_the_last_takes_its_blocks() {
    let (mut holdings, now) = start();
    store(&mut holdings, GPU, None, &CHAIN);
    holdings.presume(&blocks(PROMPT), now);
    assert_eq!(holdings.set_copies(0, EngineBlockId(3), 4), 0);
    assert_eq!(holdings.held.copies_in(0, |_| true, 1).iter().map(|(_, n)| n).sum::<u32>(), 8);
    assert_eq!(holdings.set_copies(0, EngineBlockId(3), 0), 1);
    assert_eq!(holdings.set_copies(0, EngineBlockId(3), 1), 0, "what it stood for is forgotten");
    assert_eq!(holdings.set_copies(1, EngineBlockId(1), 0), 0);
    holdings.check();
    assert_eq!(gpu(&holdings, PROMPT), (2, 2));
}

#[derive(Clone, Debug)]
enum Op {
    Stored(Vec<u8>, Share),
    StoredKnown(Vec<Vec<u8>>),
    Removed(Vec<Vec<u8>>),
    SetCopies(Vec<u8>, u32),
    Presume(Vec<u8>),
    Prefilled(Vec<u8>),
    Retract(Vec<u8>, Share),
    Touch(Vec<u8>),
    Expire,
    Confirming(bool),
    BlocksMax(usize),
    Cleared,
    DropRank,
    DropAll,
    Restored(u64),
}

fn symbols() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(0..2_u8, 1..6)
}

fn op() -> impl Strategy<Value = Op> {
    let paths = || prop::collection::vec(symbols(), 1..4);
    prop_oneof![
        20 => (symbols(), any::<Share>()).prop_map(|(path, from)| Op::Stored(path, from)),
        10 => paths().prop_map(Op::StoredKnown),
        16 => paths().prop_map(Op::Removed),
        4 => (symbols(), 0..3_u32).prop_map(|(path, copies)| Op::SetCopies(path, copies)),
        10 => symbols().prop_map(Op::Presume),
        3 => symbols().prop_map(Op::Prefilled),
        4 => (symbols(), any::<Share>()).prop_map(|(path, keep)| Op::Retract(path, keep)),
        2 => symbols().prop_map(Op::Touch),
        6 => Just(Op::Expire),
        4 => any::<bool>().prop_map(Op::Confirming),
        3 => (0..40_usize).prop_map(Op::BlocksMax),
        1 => Just(Op::Cleared),
        1 => Just(Op::DropRank),
        1 => Just(Op::DropAll),
        8 => (0..25_u64).prop_map(Op::Restored),
    ]
}

fn tier() -> impl Strategy<Value = Tier> {
    prop_oneof![3 => Just(Tier::Gpu), 1 => Just(Tier::Cpu), 1 => Just(Tier::Storage)]
}

fn ops() -> impl Strategy<Value = Vec<(u64, u32, Tier, Op)>> {
    prop::collection::vec((0..25_u64, 0..2_u32, tier(), op()), 1..60)
}

fn id(path: &[u8]) -> EngineBlockId {
    EngineBlockId(path.iter().fold(1, |id, &symbol| id * 2 + u64::from(symbol)))
}

/// Holdings and their model, through one history.
struct Pair {
    real: Alone,
    model: HoldingsModel,
    params: HoldingsParams,
    now: Instant,
}

impl Pair {
    fn new(block_bytes: usize, text_bytes_max: u64) -> Self {
        let (real, now) = start();
        let model = HoldingsModel::new((usize::MAX, TTL), (block_bytes, text_bytes_max), hash, now);
        Self { real, model, params: PARAMS, now }
    }

    fn text(&self, path: &[u8]) -> Vec<u8> {
        engine_prompt(path, self.model.text_bytes_max)
    }

    fn hash(&self, path: &[u8]) -> Vec<BlockHash> {
        hash(&self.text(path), self.model.block_bytes)
    }

    fn apply(&mut self, rank: u32, tier: Tier, op: Op) {
        let (real, model, now) = (&mut self.real, &mut self.model, self.now);
        // Where engine blocks end inside of ours, the order in which ids come decides which joints
        // a lower tier has, and the order in which blocks go decides who is trimmed.
        let aligned = model.block_bytes == 1;
        let ids = |paths: &[Vec<u8>]| paths.iter().map(|path| id(path)).collect::<Vec<_>>();
        match op {
            Op::Stored(path, from) => self.store(rank, tier, &path, from.index(path.len())),
            Op::StoredKnown(paths) if aligned => {
                let outcome = real.stored_known(rank, tier, &ids(&paths));
                let taken = paths.iter().filter(|path| model.store_known(rank, tier, path));
                assert_eq!(outcome.engine_blocks, taken.count());
                let rejected = paths.len() - outcome.engine_blocks;
                assert_eq!(outcome.rejected_engine_blocks, rejected);
            }
            Op::Removed(paths) => {
                let outcome = real.removed(rank, tier, &ids(&paths));
                assert_eq!(outcome.known, model.remove(rank, tier, &paths));
                assert_eq!(outcome.unknown, paths.len() - outcome.known);
            }
            Op::SetCopies(path, copies) => {
                real.set_copies(rank, id(&path), copies);
                model.set_copies(rank, &path, copies);
            }
            Op::Presume(path) => {
                let text = self.text(&path);
                self.real.presume(&self.hash(&path), now);
                self.model.presume(&text, now);
            }
            Op::Prefilled(path) => {
                let text = self.text(&path);
                self.real.prefilled(&self.hash(&path), now);
                self.model.prefilled(&text, now);
            }
            Op::Retract(path, keep) => {
                let blocks = self.hash(&path);
                let keep = keep.index(blocks.len() + 1);
                self.retract(&blocks, keep);
            }
            Op::Touch(path) => {
                let blocks = self.hash(&path);
                self.real.touch(&blocks);
            }
            Op::Expire => {
                let before = model.presumed();
                model.expire(now);
                assert_eq!(real.expire(now), before - model.presumed());
            }
            Op::Confirming(confirming) => {
                real.set_confirming(confirming, now);
                model.set_confirming(confirming, now);
            }
            Op::BlocksMax(blocks_max) if aligned => {
                self.params.blocks_max = blocks_max;
                real.set_params(self.params);
                model.blocks_max = blocks_max;
            }
            Op::Cleared => {
                real.cleared(rank);
                model.clear(rank);
            }
            Op::DropRank => {
                real.drop_rank(rank);
                model.drop_rank(rank);
            }
            Op::DropAll => {
                real.drop_all();
                (0..2).for_each(|rank| model.drop_rank(rank));
            }
            Op::Restored(secs) => {
                let image = real.image(now);
                let away = Duration::from_secs(secs);
                let (was, now) = (real.stats(), now + away);
                *real = Alone::restore(self.params, &image, away, now);
                // All rows have what the first one had.
                let [first, others @ ..] = &mut model.rows[..] else { panic!("a row") };
                for other in others {
                    (other.young, other.old) = (first.young.clone(), first.old.clone());
                }
                let is = real.stats();
                let records: usize =
                    was.tiers.iter().map(|tier| tier.engine_blocks + tier.gone_records).sum();
                let confirmed: usize = was.tiers.iter().map(|tier| tier.blocks).sum();
                let presumed = first.young.len() + first.old.len();
                assert_eq!(image.counts(), (confirmed + presumed, records));
                assert!(is.engine_bytes() <= was.engine_bytes());
                assert_eq!(
                    (is.tiers.map(|t| t.blocks), is.ranks),
                    (was.tiers.map(|t| t.blocks), was.ranks)
                );
                self.now = now;
            }
            Op::StoredKnown(_) | Op::BlocksMax(_) => {}
        }
    }

    /// Either all of it goes or, where something follows, nothing.
    fn retract(&mut self, blocks: &[BlockHash], keep: usize) {
        let presumed = self.real.held.presumed.clone();
        let rows = self.real.held.rows().into_iter();
        let layers = [Age::Young, Age::Old].map(|age| presumed.layer(age));
        let holders = rows.flat_map(|row| layers.map(|layer| Holder { row, layer }));
        let was = |index: &super::super::Index, holder: Holder| {
            let matched = index.matched(holder.row, Layers(1 << holder.layer), blocks);
            (holder, matched, index.blocks_of(holder))
        };
        let before: Vec<_> = holders.map(|holder| was(&self.real.index, holder)).collect();
        let (all, mut gone) = (self.real.index.stats().held, 0);
        self.real.retract(blocks, keep);
        for (model, before) in self.model.rows.iter_mut().zip(before.chunks(2)) {
            for (held, &(holder, matched, blocks_of)) in
                [&mut model.young, &mut model.old].into_iter().zip(before)
            {
                let more = blocks_of - self.real.index.blocks_of(holder);
                if more > 0 {
                    assert_eq!(more as usize, matched - keep);
                    blocks[keep..matched].iter().for_each(|block| assert!(held.remove(block)));
                }
                gone += more;
            }
        }
        assert_eq!(all - self.real.index.stats().held, gone);
    }

    /// What was trimmed is as much as it has to be, and leaves no hole.
    fn trimmed(&mut self) {
        let (index, presumed) = (&self.real.index, &self.real.held.presumed);
        let young_max = self.model.blocks_max;
        let most = self.model.rows.iter().map(|row| row.young.len().min(young_max)).max();
        let old_max = young_max - most.expect("a row");
        for (row, model) in self.real.held.rows().into_iter().zip(&mut self.model.rows) {
            for (age, held, blocks_max) in
                [(Age::Young, &mut model.young, young_max), (Age::Old, &mut model.old, old_max)]
            {
                let holder = Holder { row, layer: presumed.layer(age) };
                let mut after = held.clone();
                after.retain(|&block| index.holds(holder, block));
                assert_eq!(after.len(), held.len().min(blocks_max), "{age:?}");
                for block in &after {
                    let parent = self.model.parents[block].filter(|parent| held.contains(parent));
                    assert!(parent.is_none_or(|parent| after.contains(&parent)), "a hole");
                }
                *held = after;
            }
        }
    }

    fn store(&mut self, rank: u32, tier: Tier, path: &[u8], from: usize) {
        let text_bytes_max = self.model.text_bytes_max;
        let texts: Vec<_> = (from + 1..=path.len())
            .map(|end| (id(&path[..end]), engine_text(&path[..end], text_bytes_max)))
            .collect();
        let parent = (from > 0).then(|| id(&path[..from]));
        let blocks = texts.iter().map(|(id, text)| (*id, &text[..]));
        let size = NonZeroUsize::new(self.model.block_bytes).expect("not zero");
        let outcome = self.real.stored((rank, tier), root(), parent, blocks, size);
        assert_eq!(outcome.engine_blocks, self.model.store(rank, tier, path, from));
        assert_eq!(outcome.rejected_engine_blocks, texts.len() - outcome.engine_blocks);
    }

    fn compare(&self, before: HoldingsStats) {
        self.real.check();
        let stats = self.real.stats();
        for tier in Tier::ALL {
            let caches = || self.model.caches.iter().filter(move |((_, other), _)| *other == tier);
            let (blocks, engine_blocks) = (
                caches().map(|(_, cache)| cache.ours.len()).sum::<usize>(),
                caches().map(|(_, cache)| cache.copies.len()).sum::<usize>(),
            );
            let real = stats.tier(tier);
            assert_eq!((real.blocks, real.engine_blocks), (blocks, engine_blocks), "{tier:?}");
        }
        assert_eq!(stats.presumed_blocks, self.model.presumed());
        let totals = |s: HoldingsStats| [s.inserted_total, s.trimmed_total, s.removed_total];
        assert!(totals(before).iter().zip(totals(stats)).all(|(before, now)| *before <= now));
        let ranks: std::collections::HashSet<_> =
            self.model.caches.keys().map(|(rank, _)| rank).collect();
        assert_eq!(stats.ranks, ranks.len());
        for number in 32..64_u8 {
            let path: Vec<u8> = (0..5).map(|bit| number >> bit & 1).collect();
            let matched = self.model.matched(&self.text(&path));
            assert_eq!(self.real.matched(&self.hash(&path)), matched);
        }
        for rank in 0..2 {
            let copies = self.model.caches.get(&(rank, Tier::Gpu)).map(|cache| &cache.copies);
            let mut sums = vec![0_u64; 8];
            for (path, &copies) in copies.into_iter().flatten() {
                let mixed = mix_id(id(path).0);
                let sum = &mut sums[(mixed >> 61) as usize];
                *sum = sum.wrapping_add(mixed.wrapping_mul(u64::from(copies)));
            }
            let blocks = copies.map_or(0, std::collections::HashMap::len) as u64;
            assert_eq!(self.real.held.digest(rank, 8), Digest { blocks, sums });
        }
    }

    fn run(mut self, ops: Vec<(u64, u32, Tier, Op)>) {
        for (secs, rank, tier, op) in ops {
            self.now += Duration::from_secs(secs);
            let mut before = self.real.stats();
            if let Op::Restored(_) = op {
                (before.inserted_total, before.trimmed_total, before.removed_total) = (0, 0, 0);
            }
            self.apply(rank, tier, op);
            self.trimmed();
            self.compare(before);
        }
    }
}

proptest! {
    /// Engine blocks of one to three blocks of ours: every answer, and who is trimmed.
    #[test]
    fn holdings_do_as_the_model_does(ops in ops(), text_bytes_max in 1..4_u64) {
        Pair::new(1, text_bytes_max).run(ops);
    }

    /// Engine blocks that end anywhere in ours.
    #[test]
    fn holdings_with_joints_do_as_the_model_does(
        ops in ops(),
        block_bytes in 1..12_usize,
        text_bytes_max in 1..12_u64,
    ) {
        Pair::new(block_bytes, text_bytes_max).run(ops);
    }

    #[test]
    fn digests_are_equal_exactly_when_ids_and_copies_are(
        a in prop::collection::vec(0..12_u64, 0..20),
        b in prop::collection::vec(0..12_u64, 0..20),
        swaps in prop::collection::vec(any::<(Share, Share)>(), 20),
        buckets in prop::sample::select(vec![1_usize, 2, 64, 4096]),
    ) {
        let digest = |of: &[u64]| {
            let (mut holdings, _) = start();
            for &id in of {
                let text = [b'a' + id as u8; 4];
                let block = std::iter::once((EngineBlockId(id), &text[..]));
                holdings.stored(GPU, root(), None, block, BLOCK_BYTES);
            }
            holdings.held.digest(0, buckets)
        };
        let mut shuffled = a.clone();
        for (one, other) in swaps.iter().filter(|_| !a.is_empty()) {
            shuffled.swap(one.index(a.len()), other.index(a.len()));
        }
        prop_assert_eq!(digest(&a), digest(&shuffled));
        let sorted = |of: &[u64]| {
            let mut of = of.to_vec();
            of.sort_unstable();
            of
        };
        prop_assert_eq!(digest(&a) == digest(&b), sorted(&a) == sorted(&b));
    }

    /// Ids whose text, size and place change, from many ranks and tiers, under bounds that change:
    /// no panic, and the sums keep their bounds.
    #[test]
    fn whatever_comes_the_sums_keep_their_bounds(
        steps in prop::collection::vec(
            (
                (0..12_u8, 0..40_u64, 0..5_u32, tier(), any::<bool>()),
                0..9_u64,
                prop::collection::vec((0..8_u64, "[ab]{0,9}"), 1..6),
                0..40_usize,
            ),
            1..100,
        ),
        engine_bytes_max in 0..30_000_usize,
    ) {
        let (mut holdings, mut now) = start();
        let bounds =
            |blocks_max| HoldingsParams { blocks_max, engine_bytes_max, ..PARAMS };
        holdings.set_params(bounds(30));
        for ((action, secs, rank, tier, flag), parent, named, number) in steps {
            now += Duration::from_secs(secs / 4);
            let ids: Vec<_> = named.iter().map(|(id, _)| EngineBlockId(*id)).collect();
            let text: String = named.iter().map(|(_, text)| &text[..]).collect();
            let prompt = blocks(text.repeat(3).as_bytes());
            match action {
                0..=3 => {
                    let parent = (parent < 8).then_some(EngineBlockId(parent));
                    let named = named.iter().map(|(id, text)| (EngineBlockId(*id), text.as_bytes()));
                    let size = if number % 8 == 0 { 3 } else { 4 };
                    let size = NonZeroUsize::new(size).expect("not zero");
                    holdings.stored((rank, tier), root(), parent, named, size);
                }
                4 => drop(holdings.stored_known(rank, tier, &ids)),
                5 => drop(holdings.removed(rank, tier, &ids)),
                6 => drop(holdings.set_copies(rank, ids[0], number as u32 % 3)),
                7 => drop(holdings.presume(&prompt, now)),
                8 => drop(holdings.retract(&prompt, number / 4)),
                9 => drop(holdings.expire(now)),
                10 if number % 3 == 0 => {
                    holdings.set_params(bounds(number));
                }
                10 => holdings.set_confirming(flag, now),
                _ if number % 4 == 0 => holdings.drop_rank(rank),
                _ => holdings.touch(&prompt),
            }
            holdings.check();
            let stats = holdings.stats();
            prop_assert!(stats.engine_bytes() <= engine_bytes_max);
            let matched = holdings.matched(&prompt);
            prop_assert!(matched.confirmed <= matched.gpu);
            prop_assert!(matched.gpu + matched.cpu + matched.storage <= prompt.len());
        }
        for rank in 0..5 {
            for tier in Tier::ALL {
                let ids: Vec<_> = (0..8).map(EngineBlockId).collect();
                while holdings.removed(rank, tier, &ids).known > 0 {}
            }
        }
        let stats = holdings.stats();
        prop_assert_eq!((stats.blocks() - stats.presumed_blocks, stats.engine_bytes()), (0, 0));
        holdings.drop_all();
        prop_assert_eq!((holdings.stats().blocks(), holdings.index.stats().blocks), (0, 0));
    }
}
