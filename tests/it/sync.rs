//! Anti-entropy: a reporter and the router find out where they differ, and mend only that.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::{
    Answer, Ask, Lb, Reporter, WorkerSpec, confirmed, drops, echo, ids_prompt, lb, matched, noise,
    stored, stored_ids, tokens, trust_is,
};

/// A worker of the model `m` that reports.
async fn one(worker: WorkerSpec, config: &str) -> Lb {
    let lb = lb().worker(worker.yaml("models: [m]")).config("reports: {}");
    lb.config(config).start().await
}

/// One block of an engine: the block before it, its tokens, and how many copies there are.
#[derive(Clone)]
struct Block {
    parent: Option<u64>,
    tokens: Vec<u32>,
    copies: u32,
}

/// What an engine holds, as its reporter knows it.
#[derive(Clone, Default)]
struct Engine {
    blocks: BTreeMap<u64, Block>,
}

/// A block's bucket and what a copy adds to the sum, by the formula of docs/reports.md.
fn mixed(id: u64, buckets: usize) -> (usize, u64) {
    let mut z = id.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    let bits = buckets.trailing_zeros();
    (if bits == 0 { 0 } else { (z >> (64 - bits)) as usize }, z)
}

impl Engine {
    /// Takes a chain of blocks of 16 tokens in; names follow `first`.
    fn store(&mut self, first: u64, parent: Option<u64>, tokens: &[u32]) {
        let mut parent = parent;
        for (id, tokens) in (first..).zip(tokens.chunks_exact(16)) {
            let block = Block { parent, tokens: tokens.to_vec(), copies: 0 };
            self.blocks.entry(id).or_insert(block).copies += 1;
            parent = Some(id);
        }
    }

    /// The event that tells of the blocks from `first` to `last`.
    fn event(&self, first: u64, last: u64) -> Value {
        let ids: Vec<u64> = (first..=last).collect();
        let tokens: Vec<u32> = ids.iter().flat_map(|id| self.blocks[id].tokens.clone()).collect();
        stored_ids(&ids, self.blocks[&first].parent, &tokens, 16)
    }

    fn digest(&self, buckets: usize) -> Value {
        let mut sums = vec![0_u64; buckets];
        for (id, block) in &self.blocks {
            let (bucket, sum) = mixed(*id, buckets);
            sums[bucket] = sums[bucket].wrapping_add(sum.wrapping_mul(block.copies.into()));
        }
        json!({"digest": {"buckets": buckets, "blocks": self.blocks.len(), "sums": sums}})
    }

    /// These blocks, parents first: names rise along every chain here.
    fn described(&self, wanted: impl Fn(u64) -> bool) -> Vec<Value> {
        let wanted = self.blocks.iter().filter(|(id, _)| wanted(**id));
        wanted
            .map(|(id, block)| {
                json!({"block_hash": id, "parent_block_hash": block.parent, "copies": block.copies,
                    "token_ids": block.tokens, "block_size": 16})
            })
            .collect()
    }

    fn buckets(&self, of: usize, list: &[usize]) -> Value {
        let blocks = self.described(|id| list.contains(&mixed(id, of).0));
        json!({"buckets": {"of": of, "list": list, "blocks": blocks}})
    }

    fn part(&self, part: usize, size: usize) -> Value {
        let all = self.described(|_| true);
        let blocks: Vec<_> = all.iter().skip(part * size).take(size).collect();
        let last = (part + 1) * size >= all.len();
        json!({"snapshot": {"part": part, "last": last, "blocks": blocks}})
    }
}

/// Sends a step of the worker `w0` as of batch `seq` in the epoch `a`.
async fn try_step(lb: &Lb, seq: i64, step: &Value) -> Answer {
    let mut body = json!({"worker_id": "w0", "epoch": "a", "seq": seq});
    for (key, value) in step.as_object().expect("an object") {
        body[key] = value.clone();
    }
    lb.report("/v1/sync", &body).await
}

async fn step(lb: &Lb, seq: i64, step: &Value) -> Value {
    let answer = try_step(lb, seq, step).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// What a step did: (want, stored, removed, rejected).
fn told(answer: &Value) -> (String, u64, u64, u64) {
    let number = |key: &str| answer[key].as_u64().unwrap_or_else(|| panic!("{answer}"));
    let want = answer["want"].as_str().unwrap_or_else(|| panic!("{answer}"));
    (want.to_owned(), number("stored"), number("removed"), number("rejected"))
}

fn done(stored: u64, removed: u64) -> (String, u64, u64, u64) {
    ("nothing".to_owned(), stored, removed, 0)
}

async fn synced(lb: &Lb, how: &str) -> i64 {
    lb.metrics().await.sum("warmroute_resyncs_total", &[("worker", "w0"), ("how", how)])
}

/// Holds what the router believes to what the engine holds; a prompt each `chains` says.
async fn agree(lb: &Lb, engine: &Engine, chains: &[(&[u32], usize)]) {
    assert_eq!(confirmed(lb, 0).await, [engine.blocks.len() as u64, 0, 0]);
    assert_eq!(step(lb, 0, &engine.digest(64)).await["want"], "nothing");
    for (tokens, held) in chains {
        assert_eq!(matched(lb, &ids_prompt("m", tokens)).await.0, *held);
    }
}

/// A hundred blocks in five chains of twenty.
fn hundred() -> (Engine, Vec<Vec<u32>>) {
    let chains: Vec<_> = (1..=5).map(|seed| tokens(seed, 320)).collect();
    let mut engine = Engine::default();
    for (nth, chain) in (0..).zip(&chains) {
        engine.store(1 + 20 * nth, None, chain);
    }
    (engine, chains)
}

async fn tell(reporter: &mut Reporter<'_>, engine: &Engine) {
    for nth in 0..5 {
        reporter.send_well(&[engine.event(1 + 20 * nth, 20 + 20 * nth)]).await;
    }
}

#[test]
fn the_formula_is_the_published_one() {
    let published = [
        (145, 10_451_216_379_200_822_465),
        (151, 10_905_525_725_756_348_110),
        (29, 2_092_789_425_003_139_053),
    ];
    for (id, wanted) in (1..).zip(published) {
        assert_eq!(mixed(id, 256), wanted, "id {id}");
    }
}

#[tokio::test]
async fn lost_batches_ask_for_a_sync_until_there_was_one() {
    let lb = one(echo(), "").await;
    let (mut engine, chains) = hundred();
    let mut reporter = Reporter::new(&lb, "w0");
    tell(&mut reporter, &engine).await;
    trust_is(&lb, 0, "exact").await;
    // A batch that never arrives: block 20 is removed, block 101 stored.
    reporter.seq += 1;
    engine.blocks.remove(&20);
    engine.store(101, None, &tokens(6, 16));
    assert_eq!(reporter.send(&[]).await["resync"], true);
    trust_is(&lb, 0, "degraded").await;
    let url = lb.workers[0].url().to_owned();
    let beat = json!({"worker_id": "w0", "worker_url": url, "epoch": "a", "seq": 7});
    assert_eq!(lb.report("/v1/heartbeat", &beat).await.json()["resync"], true);
    assert_eq!(reporter.send(&[]).await["resync"], true, "it was asked for and did not come");
    assert_eq!(confirmed(&lb, 0).await, [100, 0, 0]);

    let seq = i64::try_from(reporter.seq - 1).expect("small");
    let digest = step(&lb, seq, &engine.digest(256)).await;
    assert_eq!(digest["want"], "buckets", "{digest}");
    let mut wanted = vec![mixed(20, 256).0, mixed(101, 256).0];
    wanted.sort_unstable();
    assert_eq!(digest["differ"], json!(wanted));
    assert_eq!(lb.status(0).await["reports"]["missing"], true, "not before it is mended");
    let mended = step(&lb, seq, &engine.buckets(256, &wanted)).await;
    assert_eq!(told(&mended), done(1, 1));
    assert_eq!(synced(&lb, "buckets").await, 1);
    trust_is(&lb, 0, "exact").await;
    reporter.send_well(&[]).await;
    let beat = json!({"worker_id": "w0", "worker_url": url, "epoch": "a", "seq": seq + 1});
    assert_eq!(lb.report("/v1/heartbeat", &beat).await.json()["resync"], false);
    agree(&lb, &engine, &[(&chains[0], 19), (&chains[1], 20), (&tokens(6, 16), 1)]).await;
    assert_eq!(drops(&lb, "w0").await, 0, "nothing was thrown away");
    assert!(lb.stderr().contains("worker synced"), "{}", lb.stderr());
}

#[tokio::test]
async fn equal_digests_end_a_sync_at_once() {
    let lb = one(echo(), "").await;
    let (engine, _) = hundred();
    let mut reporter = Reporter::new(&lb, "w0");
    tell(&mut reporter, &engine).await;
    reporter.seq += 3;
    assert_eq!(reporter.send(&[]).await["resync"], true);
    trust_is(&lb, 0, "degraded").await;
    let seq = i64::try_from(reporter.seq - 1).expect("small");
    for buckets in [1, 2, 256, 4096] {
        let answer = step(&lb, seq, &engine.digest(buckets)).await;
        assert_eq!(told(&answer), done(0, 0), "{buckets} buckets");
        assert!(answer.get("differ").is_none(), "{answer}");
    }
    trust_is(&lb, 0, "exact").await;
    assert_eq!(synced(&lb, "digest").await, 4);
    assert_eq!(lb.metrics().await.sum("warmroute_reports_total", &[("outcome", "sync")]), 4);
    reporter.send_well(&[]).await;
    // And both hold nothing.
    reporter.send_well(&[json!({"type": "cleared"})]).await;
    let answer = step(&lb, seq + 2, &Engine::default().digest(256)).await;
    assert_eq!(told(&answer), done(0, 0));
}

#[tokio::test]
async fn few_differences_cost_a_few_buckets() {
    let lb = one(echo(), "").await;
    let (mut engine, chains) = hundred();
    let mut reporter = Reporter::new(&lb, "w0");
    tell(&mut reporter, &engine).await;
    // The ends of two chains are gone, one chain went on, one more began.
    let gone = [19, 20, 60];
    for id in gone {
        engine.blocks.remove(&id);
    }
    let mut further = chains[4].clone();
    further.extend(tokens(7, 32));
    engine.store(101, Some(100), &further[320..]);
    let fresh = tokens(8, 48);
    engine.store(103, None, &fresh);
    let changed: Vec<u64> = gone.into_iter().chain(101..=105).collect();

    let mut wanted: Vec<_> = changed.iter().map(|id| mixed(*id, 1024).0).collect();
    wanted.sort_unstable();
    wanted.dedup();
    let digest = step(&lb, 5, &engine.digest(1024)).await;
    assert_eq!((&digest["want"], &digest["differ"]), (&json!("buckets"), &json!(wanted)));
    let exchanged = engine.buckets(1024, &wanted);
    let sent = exchanged["buckets"]["blocks"].as_array().expect("a list").len();
    assert!(sent < 20, "{sent} of {} blocks were sent", engine.blocks.len());
    let answer = step(&lb, 5, &exchanged).await;
    assert_eq!(told(&answer), done(5, 3));
    agree(&lb, &engine, &[(&chains[0], 18), (&chains[2], 19), (&further, 22), (&fresh, 3)]).await;
}

#[tokio::test]
async fn copies_are_mended_and_respected() {
    let lb = one(echo(), "").await;
    let (mut engine, chains) = hundred();
    let mut reporter = Reporter::new(&lb, "w0");
    tell(&mut reporter, &engine).await;
    reporter.send_well(&[engine.event(1, 20)]).await;
    // The router believes 1 to 20 twice; in truth 20 is there once, 40 three times, and 101, which
    // it does not know, twice.
    for id in 1..=19 {
        engine.blocks.get_mut(&id).expect("held").copies = 2;
    }
    engine.blocks.get_mut(&40).expect("held").copies = 3;
    let fresh = tokens(6, 16);
    engine.store(101, None, &fresh);
    engine.store(101, None, &fresh);
    let digest = step(&lb, 6, &engine.digest(256)).await;
    let list: Vec<usize> = serde_json::from_value(digest["differ"].clone()).expect("buckets");
    assert_eq!(told(&step(&lb, 6, &engine.buckets(256, &list)).await), done(1, 0));
    agree(&lb, &engine, &[]).await;
    let remove = |ids: &[u64]| json!({"type": "removed", "block_hashes": ids});
    let all = [20, 40, 101];
    reporter.seq = 1;
    for (round, unknown, blocks, left) in [(1, 0, 100, 20), (2, 1, 99, 20), (3, 2, 98, 19)] {
        let answer = reporter.send(&[remove(&all)]).await;
        assert_eq!(answer["unknown"], unknown, "round {round}: {answer}");
        assert_eq!(confirmed(&lb, 0).await, [blocks, 0, 0], "round {round}");
        // No further than it is held: what is asked for beyond would be presumed.
        let ask = ids_prompt("m", &chains[1][..16 * left]);
        assert_eq!(matched(&lb, &ask).await, (left, left), "round {round}");
    }
    assert_eq!(matched(&lb, &ids_prompt("m", &chains[0])).await.0, 19);
    assert_eq!(matched(&lb, &ids_prompt("m", &fresh)).await.0, 0);
}

#[tokio::test]
async fn an_empty_router_takes_everything_in_parts() {
    let lb = one(echo(), "").await;
    let (mut engine, chains) = hundred();
    engine.blocks.get_mut(&7).expect("held").copies = 2;
    // A router that restarted hears of batch 41 first.
    let mut reporter = Reporter::new(&lb, "w0");
    reporter.seq = 41;
    assert_eq!(reporter.send(&[]).await["resync"], true);
    trust_is(&lb, 0, "degraded").await;
    let digest = step(&lb, 41, &engine.digest(256)).await;
    assert_eq!(told(&digest), ("snapshot".to_owned(), 0, 0, 0));
    for part in 0..4 {
        let answer = step(&lb, 41, &engine.part(part, 26)).await;
        let (want, stored) = if part < 3 { ("snapshot", 26) } else { ("nothing", 22) };
        assert_eq!(told(&answer), (want.to_owned(), stored, 0, 0), "part {part}");
        let trust = if part < 3 { "degraded" } else { "exact" };
        assert_eq!(lb.status(0).await["trust"], trust, "part {part}");
    }
    assert_eq!(synced(&lb, "snapshot").await, 1);
    reporter.send_well(&[json!({"type": "removed", "block_hashes": [7]})]).await;
    engine.blocks.get_mut(&7).expect("held").copies = 1;
    let all: Vec<_> = chains.iter().map(|chain| (&chain[..], 20)).collect();
    agree(&lb, &engine, &all).await;
}

#[tokio::test]
async fn much_that_differs_asks_for_everything_and_the_old_goes() {
    let lb = one(echo(), "").await;
    let (old, chains) = hundred();
    let mut reporter = Reporter::new(&lb, "w0");
    tell(&mut reporter, &old).await;
    let mut engine = Engine::default();
    let fresh = tokens(9, 320);
    engine.store(1, None, &chains[0]);
    engine.store(501, None, &fresh);
    assert_eq!(step(&lb, 5, &engine.digest(256)).await["want"], "snapshot");
    assert_eq!(told(&step(&lb, 5, &engine.part(0, 100)).await), done(40, 0));
    agree(&lb, &engine, &[(&chains[0], 20), (&chains[1], 0), (&fresh, 20)]).await;
}

#[tokio::test]
async fn parts_come_in_order_or_are_refused() {
    let lb = one(echo(), "").await;
    let (engine, chains) = hundred();
    let refused = async |part: usize| {
        let answer = try_step(&lb, -1, &engine.part(part, 30)).await;
        assert_eq!(answer.status, 400, "{answer:?}");
        assert_eq!(answer.json()["error"]["field"], "snapshot.part");
    };
    refused(1).await;
    step(&lb, -1, &engine.part(0, 30)).await;
    refused(2).await;
    step(&lb, -1, &engine.part(1, 30)).await;
    refused(1).await;
    step(&lb, -1, &engine.part(2, 30)).await;
    // From the start again, in the middle of it.
    step(&lb, -1, &engine.part(0, 60)).await;
    assert_eq!(told(&step(&lb, -1, &engine.part(1, 60)).await), done(40, 0));
    refused(2).await;
    agree(&lb, &engine, &[(&chains[4], 20)]).await;
    assert_eq!(synced(&lb, "snapshot").await, 1);
}

#[tokio::test]
async fn a_bucket_behind_an_unknown_parent_asks_for_everything() {
    let lb = one(echo(), "").await;
    let (mut engine, chains) = hundred();
    let mut reporter = Reporter::new(&lb, "w0");
    tell(&mut reporter, &engine).await;
    engine.store(101, None, &tokens(6, 16));
    engine.store(102, Some(101), &tokens(7, 16));
    // Only the bucket of the second is sent.
    let bucket = mixed(102, 4096).0;
    assert_ne!(bucket, mixed(101, 4096).0);
    let answer = step(&lb, 5, &engine.buckets(4096, &[bucket])).await;
    assert_eq!(told(&answer), ("snapshot".to_owned(), 0, 0, 1));
    assert_eq!(told(&step(&lb, 5, &engine.part(0, 1000)).await), done(102, 0));
    agree(&lb, &engine, &[(&chains[3], 20)]).await;
}

#[tokio::test]
async fn a_sync_of_a_new_epoch_drops_the_old_one() {
    let lb = one(echo(), "").await;
    let (old, chains) = hundred();
    let mut reporter = Reporter::new(&lb, "w0");
    tell(&mut reporter, &old).await;
    let mut engine = Engine::default();
    let fresh = tokens(9, 64);
    engine.store(1, None, &fresh);
    let mut body = engine.digest(256);
    body["worker_id"] = json!("w0");
    body["epoch"] = json!("b");
    body["seq"] = json!(3);
    let answer = lb.report("/v1/sync", &body).await;
    assert_eq!(answer.json()["want"], "snapshot", "{answer:?}");
    assert_eq!(confirmed(&lb, 0).await, [0; 3]);
    assert_eq!(drops(&lb, "w0").await, 1);
    let mut body = engine.part(0, 100);
    body["worker_id"] = json!("w0");
    body["epoch"] = json!("b");
    body["seq"] = json!(3);
    assert_eq!(lb.report("/v1/sync", &body).await.json()["want"], "nothing");
    trust_is(&lb, 0, "exact").await;
    assert_eq!(matched(&lb, &ids_prompt("m", &fresh)).await, (4, 4));
    assert_eq!(matched(&lb, &ids_prompt("m", &chains[0])).await.0, 0);
    (reporter.epoch, reporter.seq) = ("b".to_owned(), 4);
    reporter.send_well(&[]).await;
}

#[tokio::test]
async fn ranks_are_synced_apart() {
    let lb = one(echo(), "").await;
    let (engine, chains) = hundred();
    for rank in [0, 3] {
        let mut body = engine.part(0, 1000);
        body["worker_id"] = json!("w0");
        body["epoch"] = json!(format!("of rank {rank}"));
        body["rank"] = json!(rank);
        body["seq"] = json!(-1);
        assert_eq!(lb.report("/v1/sync", &body).await.json()["stored"], 100);
    }
    assert_eq!(confirmed(&lb, 0).await, [200, 0, 0]);
    let empty = json!({"worker_id": "w0", "epoch": "of rank 3", "rank": 3, "seq": -1,
        "snapshot": {"part": 0, "last": true, "blocks": []}});
    assert_eq!(lb.report("/v1/sync", &empty).await.json()["want"], "nothing");
    assert_eq!(confirmed(&lb, 0).await, [100, 0, 0]);
    assert_eq!(matched(&lb, &ids_prompt("m", &chains[0])).await, (20, 20));
}

#[tokio::test]
async fn text_is_synced_as_tokens_are() {
    let lb = one(echo(), "index: {block_bytes: 32}").await;
    let text = String::from_utf8(noise(640)).expect("ASCII");
    let mut reporter = Reporter::new(&lb, "w0");
    reporter.send_well(&[stored(1..=10, None, &text[..320], 32)]).await;
    let block = |at: usize| {
        json!({"block_hash": at + 1, "parent_block_hash": (at > 0).then_some(at),
            "text": &text[32 * at..][..32], "block_size": 32})
    };
    let blocks: Vec<_> = (0..20).map(block).collect();
    let snapshot = json!({"snapshot": {"part": 0, "last": true, "blocks": blocks}});
    assert_eq!(told(&step(&lb, 1, &snapshot).await), done(20, 0));
    let prompt = json!({"model": "m", "prompt": text}).to_string();
    let ask = Ask::post("/v1/completions", prompt);
    assert_eq!(matched(&lb, &ask).await, (20, 20));
}

#[tokio::test]
async fn a_malformed_step_names_its_field_and_changes_nothing() {
    let lb = one(echo(), "").await;
    let (engine, chains) = hundred();
    let mut reporter = Reporter::new(&lb, "w0");
    tell(&mut reporter, &engine).await;
    let block = json!({"block_hash": 1, "token_ids": [1, 2], "block_size": 2});
    let with = |key: &str, value: Value| {
        let mut block = block.clone();
        block[key] = value;
        json!({"snapshot": {"part": 0, "last": true, "blocks": [block]}})
    };
    let digest = |buckets: usize, sums: &Value| json!({"digest": {"buckets": buckets, "blocks": 0, "sums": sums}});
    let cases = [
        (json!({}), "body"),
        (json!({"digest": null}), "body"),
        (json!({"seq": "x", "snapshot": {"part": 0, "last": true, "blocks": []}}), "seq"),
        (json!({"seq": -2, "snapshot": {"part": 0, "last": true, "blocks": []}}), "seq"),
        (json!({"rank": -1, "snapshot": {"part": 0, "last": true, "blocks": []}}), "rank"),
        (json!({"epoch": [], "snapshot": {"part": 0, "last": true, "blocks": []}}), "epoch"),
        (digest(3, &json!([0, 0, 0])), "digest.buckets"),
        (digest(8192, &json!([])), "digest.buckets"),
        (digest(0, &json!([])), "digest.buckets"),
        (digest(4, &json!([0, 0])), "digest.sums"),
        (digest(2, &json!([0, -1])), "digest.sums[1]"),
        (json!({"digest": {"buckets": 1, "sums": [0]}}), "digest.blocks"),
        (json!({"buckets": {"of": 5, "list": [], "blocks": []}}), "buckets.of"),
        (json!({"buckets": {"of": 4, "list": [4], "blocks": []}}), "buckets.list"),
        (json!({"buckets": {"of": 4, "list": [1]}}), "buckets.blocks"),
        (json!({"snapshot": {"part": 0, "blocks": []}}), "snapshot.last"),
        (json!({"snapshot": {"part": -1, "last": true, "blocks": []}}), "snapshot.part"),
        (json!({"snapshot": {"part": 0, "last": true, "blocks": [7]}}), "snapshot.blocks[0]"),
        (with("block_hash", Value::Null), "snapshot.blocks[0].block_hash"),
        (with("block_size", json!(3)), "snapshot.blocks[0].token_ids"),
        (with("block_size", json!(0)), "snapshot.blocks[0].block_size"),
        (with("copies", json!(-1)), "snapshot.blocks[0].copies"),
        (with("copies", json!(0)), "snapshot.blocks[0].copies"),
        (with("token_ids", Value::Null), "snapshot.blocks[0].text"),
    ];
    for (case, field) in cases {
        let answer = try_step(&lb, 5, &case).await;
        assert_eq!(answer.status, 400, "{case}: {answer:?}");
        let error = answer.json()["error"].clone();
        assert_eq!(
            (&error["code"], &error["field"]),
            (&json!("malformed"), &json!(field)),
            "{case}"
        );
    }
    let both = json!({"digest": {"buckets": 1, "blocks": 0, "sums": [0]},
        "snapshot": {"part": 0, "last": true, "blocks": []}});
    assert_eq!(try_step(&lb, 5, &both).await.json()["error"]["field"], "body");
    let mut unknown = engine.digest(4);
    unknown["worker_id"] = json!("nobody");
    unknown["epoch"] = json!("a");
    unknown["seq"] = json!(0);
    let answer = lb.report("/v1/sync", &unknown).await;
    assert_eq!((answer.status, &answer.json()["error"]["code"]), (404, &json!("unknown_worker")));
    agree(&lb, &engine, &[(&chains[0], 20)]).await;
}
