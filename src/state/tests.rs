//! States by example and by property: round trips, damage, garbage, and a sample kept for ever.

use std::time::Duration;

use proptest::prelude::*;

use super::{
    frame::{FrameError, read_frame, write_frame},
    *,
};
use crate::routing::{
    block::{BlockHash, Chain},
    prefix::{
        CacheImage, EngineBlockId, Tier,
        holdings::TierImage,
        image::{RecordImage, RecordsImage, RunImage},
    },
    trust::SourceImage,
    window::WindowImage,
};

const FRAME_BYTES_MAX: u64 = 1 << 20;

fn header() -> StateHeader {
    StateHeader {
        product: "0.1.0".to_owned(),
        made_at_unix_ms: 1_795_000_000_000,
        hashing: "text 128, tokens 16".to_owned(),
        secret: Secret::from_seed(1),
    }
}

fn blocks(hashes: &[u64]) -> Vec<BlockHash> {
    hashes.iter().map(|&hash| BlockHash::new(hash)).collect()
}

fn an_index() -> IndexImage {
    IndexImage {
        runs: vec![
            RunImage { parent: Some(BlockHash::new(2)), depth: 2, blocks: 1 },
            RunImage { parent: None, depth: 0, blocks: 2 },
        ],
        blocks: blocks(&[u64::MAX, 1, 2]),
    }
}

fn a_cache() -> CacheImage {
    let record = RecordImage {
        id: EngineBlockId(7),
        parent: None,
        joined: false,
        block_bytes: 128,
        copies: 1,
        depth: 1,
        chain: Chain::new(1),
        tail_bytes: 3,
        completed: 1,
    };
    let second = RecordImage {
        id: EngineBlockId(u64::MAX),
        parent: Some(EngineBlockId(7)),
        joined: true,
        copies: 300,
        tail_bytes: 5,
        completed: 0,
        ..record
    };
    let records = RecordsImage {
        records: vec![record, second],
        tails: b"abcabcde".to_vec(),
        completed: blocks(&[1]),
    };
    CacheImage { index: an_index(), records }
}

fn a_trust() -> TrustImage {
    let source = SourceImage {
        rank: 1 << 31,
        whole: true,
        lost_for: Some(Duration::from_millis(1500)),
        proven: true,
    };
    TrustImage {
        sources: vec![source],
        crowded: true,
        refused: true,
        dropped_for: Some(Duration::from_secs(90)),
        right: 1,
        right_hits: 2,
        cold: 3,
        stale: u64::MAX,
    }
}

/// What is in the stored sample: every field another than its default.
fn sample() -> State {
    let holdings = HoldingsImage {
        caches: vec![
            TierImage { rank: 1 << 31, tier: Tier::Gpu, cache: a_cache() },
            TierImage { rank: 1 << 31, tier: Tier::Storage, cache: CacheImage::default() },
        ],
        young: an_index(),
        old: IndexImage { runs: an_index().runs[1..].to_vec(), blocks: blocks(&[8, 9]) },
        young_for: Duration::new(12, 345),
        confirming: true,
    };
    let capacity = CapacityImage {
        configured: 50_000,
        size: 48,
        hits: vec![0.5, 1.25],
        misses: vec![0.1],
        coarseness: 6,
        sampled: vec![64, 128],
    };
    let breaker = BreakerImage {
        ejected: true,
        probe_in: Duration::from_millis(700),
        closed_for: Duration::from_secs(1),
        failures_in_row: 2,
        steady_for: Duration::from_secs(3),
        cool_down: Duration::from_secs(4),
        window: WindowImage {
            step: Duration::from_secs(1),
            phase: Duration::from_millis(10),
            counts: vec![(1, 2), (3, 4)],
        },
    };
    let rank = RankState {
        rank: 1,
        epoch: Some("e".to_owned()),
        next_seq: Some(u64::MAX),
        gaps: 1,
        missing: true,
        current_load: 2,
        kv_blocks_total: Some(3),
        kv_blocks_used: Some(4),
        kv_block_tokens: Some(16),
        model: Some("m".to_owned()),
    };
    let published =
        PublishedState { rank: 2, next: Some(5), last_print: Some(u64::MAX), complete: true };
    let worker = WorkerState {
        id: "vllm-0".to_owned(),
        url: "http://127.0.0.1:8001".to_owned(),
        origin: "file".to_owned(),
        health: 1,
        drained: true,
        removed: true,
        pushes: true,
        lease_left: Some(Duration::from_secs(9)),
        models: Some(vec![
            ("m".to_owned(), Some("{\"id\":\"m\"}".to_owned())),
            ("l".to_owned(), None),
        ]),
        ranks: vec![rank],
        published: vec![published],
        truth: TruthState {
            configured: 50_000,
            domain: Some(1),
            names_tenants: true,
            block_tokens: Some(16),
            trust: a_trust(),
            capacity,
        },
        holdings,
        unconfirmed: an_index(),
        breaker,
        // Added since; it was not written then.
        limit: LimitImage::default(),
        prefill: PrefillImage {
            log_speed: -0.3,
            observations: 12,
            sums: [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.5],
        },
    };
    let bare = WorkerState { id: "bare".to_owned(), ..WorkerState::default() };
    State { header: header(), workers: vec![worker, bare] }
}

fn written(state: &State) -> Vec<u8> {
    let mut bytes = Vec::new();
    state.write(&mut bytes).expect("memory takes all");
    bytes
}

fn read(bytes: &[u8]) -> Result<State, StateError> {
    State::read(bytes, FRAME_BYTES_MAX)
}

/// The promise: what format 1.0 wrote stays readable. The file is never to be written again.
#[test]
fn the_stored_sample_of_format_1_is_read() {
    let stored = include_bytes!("../../tests/fixtures/state/format-1.0.warmstat");
    let mut known = sample();
    known.workers[0].prefill = PrefillImage::of_log_rate(9.1, 12);
    assert_eq!(read(stored).expect("readable"), known);
}

/// As for format 1.0. What 1.1 added: costs of prefill in place of a rate.
#[test]
fn the_stored_sample_of_format_1_1_is_read() {
    let stored = include_bytes!("../../tests/fixtures/state/format-1.1.warmstat");
    assert_eq!(read(stored).expect("readable"), sample());
}

#[test]
fn what_is_written_is_read() {
    for state in [sample(), State { header: header(), workers: Vec::new() }] {
        assert_eq!(read(&written(&state)).expect("readable"), state);
    }
}

#[test]
fn nothing_after_the_end_is_read() {
    let mut bytes = written(&sample());
    bytes.extend_from_slice(b"next");
    let mut reader = Reader::new(&bytes[..], FRAME_BYTES_MAX).expect("readable");
    let mut workers = 0;
    while reader.next_worker().expect("readable").is_some() {
        workers += 1;
    }
    assert_eq!(workers, 2);
    assert!(reader.next_worker().expect("still at its end").is_none());
    assert_eq!(reader.into_inner(), b"next");
}

#[test]
fn every_flipped_byte_is_an_error() {
    let bytes = written(&sample());
    for at in 0..bytes.len() {
        for flip in (0..8).map(|bit| 1 << bit).chain([0xff]) {
            let mut bytes = bytes.clone();
            bytes[at] ^= flip;
            assert!(read(&bytes).is_err(), "byte {at} ^ {flip:#x} of {}", bytes.len());
        }
    }
}

#[test]
fn every_truncation_is_an_error_of_its_own() {
    let bytes = written(&sample());
    for end in 0..bytes.len() {
        assert!(matches!(read(&bytes[..end]), Err(StateError::Truncated)), "cut at {end}");
    }
}

#[test]
fn another_format_is_refused_in_a_sentence() {
    let mut bytes = written(&sample());
    bytes[8] = 2;
    let refused = read(&bytes).expect_err("another format");
    assert_eq!(
        refused.to_string(),
        "this state has format 2, and this version reads format 1 only: it was written by another \
         version of warmroute"
    );
    let refused = read(b"GIF89a, and more than 16 bytes").expect_err("no state");
    assert!(matches!(refused, StateError::NotState));
}

/// A frame over the limit is refused by its claim alone; one that claims what never comes takes
/// only as much memory as comes.
#[test]
fn claimed_lengths_are_not_believed() {
    let bytes = written(&sample());
    let Err(StateError::TooLong { bytes_max: 100, .. }) = State::read(&bytes[..], 100) else {
        panic!("a frame of over 100 bytes");
    };
    let claim = [&[2_u8][..], &(1_u64 << 60).to_le_bytes(), b"few"].concat();
    assert!(matches!(read_frame(&mut &claim[..], u64::MAX), Err(FrameError::Truncated)));
}

/// Frames, sections and fields that a later minor version may add.
#[test]
fn what_a_later_minor_version_adds_is_passed_over() {
    let state = sample();
    let bytes = written(&state);
    let mut rest = &bytes[16..];
    let mut longer = bytes[..16].to_vec();
    while let Some((kind, mut payload)) = read_frame(&mut rest, FRAME_BYTES_MAX).expect("frames") {
        write_frame(&mut longer, 200, b"what is this").expect("memory takes all");
        if kind < 3 {
            // Its first section is that of named fields: as JSON, an object.
            let named = 9 + u64::from_le_bytes(payload[1..9].try_into().expect("8")) as usize;
            payload.splice(named - 1..named - 1, *br#","later":[{"a":1}]"#);
            payload[1..9].copy_from_slice(&(named as u64 - 9 + 18).to_le_bytes());
            payload.extend_from_slice(&[200, 2, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
        }
        write_frame(&mut longer, kind, &payload).expect("memory takes all");
    }
    assert_eq!(read(&longer).expect("readable"), state);
}

#[test]
fn frames_out_of_order_or_missing_are_an_error() {
    let bytes = written(&sample());
    let mut rest = &bytes[16..];
    let mut frames = Vec::new();
    while let Some(frame) = read_frame(&mut rest, FRAME_BYTES_MAX).expect("frames") {
        frames.push(frame);
    }
    assert_eq!(frames.len(), 4);
    for order in [&[0, 1, 3][..], &[1, 0, 2, 3], &[0, 0, 1, 2, 3], &[3], &[0, 1, 2, 2, 3], &[0, 1]]
    {
        let mut bytes = bytes[..16].to_vec();
        for &at in order {
            let (kind, payload) = &frames[at];
            write_frame(&mut bytes, *kind, payload).expect("memory takes all");
        }
        assert!(read(&bytes).is_err(), "{order:?}");
    }
}

/// Eight bytes a block, and little more.
#[test]
fn blocks_and_records_are_packed() {
    let runs =
        (0..500).map(|n| RunImage { parent: Some(BlockHash::new(n)), depth: 1000, blocks: 20 });
    let hashes: Vec<u64> = (0..10_000).collect();
    let index = IndexImage { runs: runs.collect(), blocks: blocks(&hashes) };
    let size = |worker: &WorkerState| {
        written(&State { header: header(), workers: vec![worker.clone()] }).len()
    };
    let bare = size(&WorkerState::default());
    let mut worker = WorkerState { unconfirmed: index.clone(), ..WorkerState::default() };
    let bytes = size(&worker) - bare;
    assert!(bytes < 10_000 * 88 / 10, "{bytes} bytes for 10,000 blocks");

    worker.unconfirmed = IndexImage::default();
    let record = |n| RecordImage {
        id: EngineBlockId(n),
        parent: None,
        joined: false,
        block_bytes: 64,
        copies: 1,
        depth: 1000,
        chain: Chain::new(n),
        tail_bytes: 0,
        completed: 1,
    };
    let records = RecordsImage {
        records: (0..10_000).map(record).collect(),
        tails: Vec::new(),
        completed: blocks(&hashes),
    };
    let cache = CacheImage { index: IndexImage::default(), records };
    worker.holdings.caches = vec![TierImage { rank: 0, tier: Tier::Gpu, cache }];
    let bytes = size(&worker) - bare;
    assert!(bytes < 10_000 * 202 / 10, "{bytes} bytes for 10,000 records");
}

fn block() -> impl Strategy<Value = BlockHash> {
    any::<u64>().prop_map(BlockHash::new)
}

fn age() -> impl Strategy<Value = Duration> {
    (any::<u64>(), 0..1_000_000_000_u32).prop_map(|(secs, nanos)| Duration::new(secs, nanos))
}

fn index_image() -> impl Strategy<Value = IndexImage> {
    let run = (prop::option::of(block()), any::<u32>(), any::<u32>())
        .prop_map(|(parent, depth, blocks)| RunImage { parent, depth, blocks });
    (prop::collection::vec(run, 0..8), prop::collection::vec(block(), 0..8))
        .prop_map(|(runs, blocks)| IndexImage { runs, blocks })
}

fn record_image() -> impl Strategy<Value = RecordImage> {
    let id = || any::<u64>().prop_map(EngineBlockId);
    let numbers = (any::<u16>(), any::<u32>(), any::<u32>(), any::<u32>(), 0..4_u32);
    (id(), prop::option::of(id()), any::<bool>(), any::<u64>(), numbers).prop_map(
        |(id, parent, joined, chain, (block_bytes, copies, depth, tail_bytes, completed))| {
            let chain = Chain::new(chain);
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

fn holdings_image() -> impl Strategy<Value = HoldingsImage> {
    let records = (
        prop::collection::vec(record_image(), 0..8),
        prop::collection::vec(any::<u8>(), 0..8),
        prop::collection::vec(block(), 0..8),
    )
        .prop_map(|(records, tails, completed)| RecordsImage { records, tails, completed });
    let cache = (index_image(), records).prop_map(|(index, records)| CacheImage { index, records });
    let tier = prop::sample::select(Tier::ALL.to_vec());
    let caches =
        (any::<u32>(), tier, cache).prop_map(|(rank, tier, cache)| TierImage { rank, tier, cache });
    let caches = prop::collection::vec(caches, 0..4);
    (caches, index_image(), index_image(), age(), any::<bool>()).prop_map(
        |(caches, young, old, young_for, confirming)| HoldingsImage {
            caches,
            young,
            old,
            young_for,
            confirming,
        },
    )
}

fn truth() -> impl Strategy<Value = TruthState> {
    let source = (any::<u32>(), any::<bool>(), prop::option::of(age()), any::<bool>())
        .prop_map(|(rank, whole, lost_for, proven)| SourceImage { rank, whole, lost_for, proven });
    let trust = (
        prop::collection::vec(source, 0..4),
        any::<(bool, bool, u32, u32, u32, u64)>(),
        prop::option::of(age()),
    );
    let floats = || prop::collection::vec(-1e30..1e30_f32, 0..6);
    let capacity =
        (any::<(u64, u32, u32)>(), floats(), floats(), prop::collection::vec(any::<u64>(), 0..6));
    (any::<(u64, Option<u8>, bool, Option<u32>)>(), trust, capacity).prop_map(
        |((configured, domain, names_tenants, block_tokens), trust, capacity)| {
            let (sources, (crowded, refused, right, right_hits, cold, stale), dropped_for) = trust;
            let ((size, steps, coarseness), hits, misses, sampled) = capacity;
            TruthState {
                configured,
                domain,
                names_tenants,
                block_tokens,
                trust: TrustImage {
                    sources,
                    crowded,
                    refused,
                    dropped_for,
                    right,
                    right_hits,
                    cold,
                    stale,
                },
                capacity: CapacityImage {
                    configured: size,
                    size: steps,
                    hits,
                    misses,
                    coarseness,
                    sampled,
                },
            }
        },
    )
}

fn breaker() -> impl Strategy<Value = BreakerImage> {
    let counts = prop::collection::vec(any::<(u32, u32)>(), 0..12);
    (any::<(bool, u32)>(), prop::array::uniform6(age()), counts).prop_map(
        |((ejected, failures_in_row), times, counts)| {
            let [probe_in, closed_for, steady_for, cool_down, step, phase] = times;
            let window = WindowImage { step, phase, counts };
            BreakerImage {
                ejected,
                probe_in,
                closed_for,
                failures_in_row,
                steady_for,
                cool_down,
                window,
            }
        },
    )
}

fn reports() -> impl Strategy<Value = (Vec<RankState>, Vec<PublishedState>)> {
    let rank = (
        any::<(u32, Option<String>, Option<u64>, u64, bool, u32)>(),
        any::<(Option<u64>, Option<u64>, Option<u64>, Option<String>)>(),
    )
        .prop_map(|((rank, epoch, next_seq, gaps, missing, current_load), kv)| {
            let (kv_blocks_total, kv_blocks_used, kv_block_tokens, model) = kv;
            RankState {
                rank,
                epoch,
                next_seq,
                gaps,
                missing,
                current_load,
                kv_blocks_total,
                kv_blocks_used,
                kv_block_tokens,
                model,
            }
        });
    let published = any::<(u32, Option<u64>, Option<u64>, bool)>().prop_map(
        |(rank, next, last_print, complete)| PublishedState { rank, next, last_print, complete },
    );
    (prop::collection::vec(rank, 0..3), prop::collection::vec(published, 0..3))
}

fn worker() -> impl Strategy<Value = WorkerState> {
    let said = (any::<(String, String, String)>(), any::<(u8, bool, bool, bool)>());
    let models = any::<Option<Vec<(String, Option<String>)>>>();
    let limit =
        any::<(u64, u64, u64, u64, u32)>().prop_map(|(starts, running, prefill, best, n)| {
            LimitImage {
                starts_per_million_s: starts,
                running_milli: running,
                prefill_per_thousand_s: prefill,
                best_per_thousand_s: best,
                best_samples: n,
            }
        });
    let prefill = (-1e30..1e30, any::<u32>(), prop::array::uniform9(-1e30..1e30))
        .prop_map(|(log_speed, observations, sums)| PrefillImage { log_speed, observations, sums });
    let cache = (truth(), holdings_image(), index_image());
    (said, prop::option::of(age()), models, reports(), cache, breaker(), limit, prefill).prop_map(
        |(said, lease_left, models, (ranks, published), cache, breaker, limit, prefill)| {
            let ((id, url, origin), (health, drained, removed, pushes)) = said;
            let (truth, holdings, unconfirmed) = cache;
            WorkerState {
                id,
                url,
                origin,
                health,
                drained,
                removed,
                pushes,
                lease_left,
                models,
                ranks,
                published,
                truth,
                holdings,
                unconfirmed,
                breaker,
                limit,
                prefill,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_state_comes_back_as_it_was(
        workers in prop::collection::vec(worker(), 0..3),
        (product, hashing) in any::<(String, String)>(),
        (made_at_unix_ms, seed) in any::<(u64, u64)>(),
    ) {
        let secret = Secret::from_seed(seed);
        let header = StateHeader { product, made_at_unix_ms, hashing, secret };
        let state = State { header, workers };
        prop_assert_eq!(read(&written(&state)).expect("readable"), state);
    }

    #[test]
    fn garbage_is_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(read(&bytes).is_err());
        // Behind a right beginning too.
        let begun = [&written(&sample())[..16], &bytes[..]].concat();
        prop_assert!(read(&begun).is_err());
    }

    /// With right checksums: somebody wrote nonsense.
    #[test]
    fn nonsense_does_no_harm(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        cuts in any::<bool>(),
    ) {
        let bytes = written(&sample());
        let mut rest = &bytes[16..];
        let mut mad = bytes[..16].to_vec();
        while let Some((kind, mut payload)) = read_frame(&mut rest, FRAME_BYTES_MAX).expect("ok") {
            if kind == 2 {
                for (at, byte) in &flips {
                    let at = at.index(payload.len());
                    payload[at] = *byte;
                }
                if cuts {
                    payload.truncate(cut.index(payload.len()));
                }
            }
            write_frame(&mut mad, kind, &payload).expect("memory takes all");
        }
        // An error or some state; the images in it are tested in `routing`.
        drop(read(&mad));
    }

    #[test]
    fn frames_come_back_and_end(
        frames in prop::collection::vec(
            (any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)), 0..5
        ),
    ) {
        let mut bytes = Vec::new();
        for (kind, payload) in &frames {
            write_frame(&mut bytes, *kind, payload).expect("memory takes all");
        }
        let mut rest = &bytes[..];
        for frame in frames {
            prop_assert_eq!(read_frame(&mut rest, 40).expect("whole"), Some(frame));
        }
        prop_assert!(read_frame(&mut rest, 40).expect("whole").is_none());
    }
}
