//! KV events over ZMQ, through the binary: what an engine publishes is what the router believes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::support::{
    Ask, Lb, Reporter, WorkerSpec, block_stored, confirmed, drops, echo, eventually, free_port,
    holds, ids_prompt, kv_batch, lb, matched, stored_ids, tokens, trust_is,
    zmq_engine::{TOPIC, ZmqEngine, recording},
};

/// A worker of the model `m` whose engine publishes, without a word of it in the configuration.
fn publisher(engine: &ZmqEngine) -> WorkerSpec {
    let sources = engine.sources();
    echo()
        .yaml("models: [m]")
        .yaml("kv_events: auto")
        .side("/kv_event_sources", move |_| (200, sources.clone()))
}

/// That worker behind a router that follows it.
async fn follow(engine: &ZmqEngine) -> Lb {
    let lb = lb().worker(publisher(engine)).config("reports: {}").start().await;
    trust_is(&lb, 0, "exact").await;
    engine.subscribed().await;
    lb
}

async fn count(lb: &Lb, name: &str) -> i64 {
    lb.metrics().await.sum(name, &[])
}

/// Waits until so many published batches are applied.
async fn applied(lb: &Lb, batches: i64) {
    eventually(&format!("{batches} batches are applied"), async || {
        count(lb, "warmroute_kv_event_batches_total").await == batches
    })
    .await;
}

/// Publishes `events` and waits until they are applied.
async fn publish(lb: &Lb, engine: &ZmqEngine, events: &[Value]) {
    let before = count(lb, "warmroute_kv_event_batches_total").await;
    engine.publish(&kv_batch(events));
    applied(lb, before + 1).await;
}

fn removed(ids: &[u64], medium: &str) -> Value {
    json!({"type": "BlockRemoved", "block_hashes": ids, "medium": medium, "group_idx": 0})
}

/// What an engine holds by its own events: a reference to hold the router to, decoded by another
/// library.
#[derive(Default)]
struct Model {
    copies: BTreeMap<u64, u32>,
    /// Every block ever told of: the one before it, its tokens, the salt of its prompt.
    blocks: BTreeMap<u64, (Option<u64>, Vec<u32>, String)>,
}

impl Model {
    fn apply(&mut self, payload: &[u8]) {
        let batch = rmpv::decode::read_value(&mut &*payload).expect("MessagePack");
        for event in batch[1].as_array().expect("events") {
            let ids: Vec<u64> = list(&event["block_hashes"]);
            match event["type"].as_str().expect("a type") {
                "AllBlocksCleared" => self.copies.clear(),
                "BlockRemoved" => {
                    for id in ids {
                        let copies = self.copies.get_mut(&id).expect("the engine held it");
                        *copies -= 1;
                        if *copies == 0 {
                            self.copies.remove(&id);
                        }
                    }
                }
                "BlockStored" => self.store(event, &ids),
                other => panic!("{other} is not in the recordings"),
            }
        }
    }

    fn store(&mut self, event: &rmpv::Value, ids: &[u64]) {
        assert_eq!(event["medium"].as_str(), Some("GPU"));
        let mut parent = event["parent_block_hash"].as_u64();
        let size = event["block_size"].as_u64().expect("a size") as usize;
        let all: Vec<u64> = list(&event["token_ids"]);
        let salt = event["extra_keys"][0][0].as_str().unwrap_or_default();
        let mut salt = match parent {
            None => salt.to_owned(),
            Some(parent) => self.blocks[&parent].2.clone(),
        };
        for (id, tokens) in ids.iter().zip(all.chunks(size)) {
            let tokens = tokens.iter().map(|id| *id as u32).collect();
            self.blocks.insert(*id, (parent, tokens, std::mem::take(&mut salt)));
            salt.clone_from(&self.blocks[id].2);
            parent = Some(*id);
            *self.copies.entry(*id).or_default() += 1;
        }
    }

    /// All prompts ever told of, as the names of their blocks.
    fn chains(&self) -> Vec<Vec<u64>> {
        let parents: BTreeSet<_> = self.blocks.values().filter_map(|block| block.0).collect();
        let ends = self.blocks.keys().filter(|id| !parents.contains(id));
        ends.map(|end| {
            let mut chain = vec![*end];
            while let Some(parent) = self.blocks[&chain[0]].0 {
                chain.insert(0, parent);
            }
            chain
        })
        .collect()
    }

    fn held(&self, chain: &[u64]) -> usize {
        chain.iter().take_while(|id| self.copies.contains_key(id)).count()
    }

    fn ask(&self, chain: &[u64]) -> Ask {
        let ids: Vec<u32> = chain.iter().flat_map(|id| self.blocks[id].1.clone()).collect();
        let salt = &self.blocks[&chain[0]].2;
        let mut body = json!({"model": "m", "prompt": ids});
        if !salt.is_empty() {
            body["cache_salt"] = json!(salt);
        }
        Ask::post("/v1/completions", body.to_string())
    }
}

fn list(value: &rmpv::Value) -> Vec<u64> {
    let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().map(|id| id.as_u64().expect("a number")).collect()
}

async fn replays_like(name: &str) {
    let engine = ZmqEngine::start().await;
    let lb = follow(&engine).await;
    let mut model = Model::default();
    // Chains that were asked for whole while a part was gone: that part is presumed since.
    let mut presumed = BTreeSet::new();
    let (mut whole, mut parted) = (0, 0);
    for (nth, payload) in recording(name).iter().enumerate() {
        engine.publish(payload);
        applied(&lb, nth as i64 + 1).await;
        model.apply(payload);
        let blocks = 2 * model.copies.len() as u64;
        assert_eq!(confirmed(&lb, 0).await, [blocks, 0, 0], "{name}, message {nth}");
        for chain in model.chains() {
            let held = model.held(&chain);
            if held > 0 {
                let ask = model.ask(&chain[..held]);
                let wanted = (2 * held, 2 * held);
                assert_eq!(matched(&lb, &ask).await, wanted, "{name}, message {nth}");
                whole += 1;
            }
            if held < chain.len() && presumed.insert(chain.clone()) {
                let wanted = (2 * held, 2 * chain.len());
                let ask = model.ask(&chain);
                assert_eq!(matched(&lb, &ask).await, wanted, "{name}, message {nth}");
                parted += 1;
            }
        }
        // What was asked for and is not there changes nothing of what is confirmed.
        assert_eq!(confirmed(&lb, 0).await, [blocks, 0, 0], "{name}, message {nth}");
    }
    assert!(whole > 10 && parted > 1, "{name}: {whole} {parted}");
    holds(&lb, "w0", "gpu", 2 * model.copies.len() as i64).await;
    assert_eq!(lb.status(0).await["trust"], "exact");
    for clean in ["warmroute_report_gaps_total", "warmroute_kv_events_refused_total"] {
        assert_eq!(count(&lb, clean).await, 0, "{clean}");
    }
    assert_eq!(count(&lb, "warmroute_stores_rejected_total").await, 0);
}

#[tokio::test]
async fn a_recorded_sequence_is_believed_message_by_message() {
    replays_like("basic_sequence.jsonl").await;
}

#[tokio::test]
async fn a_recorded_storm_of_evictions_is_believed_message_by_message() {
    replays_like("eviction_storm_64blocks.jsonl").await;
}

#[tokio::test]
async fn what_was_published_before_the_router_came_is_replayed() {
    let engine = ZmqEngine::start().await;
    let mut model = Model::default();
    let payloads = recording("eviction_storm_64blocks.jsonl");
    for payload in &payloads {
        engine.publish(payload);
        model.apply(payload);
    }
    let lb = follow(&engine).await;
    assert_eq!(confirmed(&lb, 0).await, [2 * model.copies.len() as u64, 0, 0]);
    assert_eq!(count(&lb, "warmroute_reports_replayed_total").await, payloads.len() as i64);
    for chain in model.chains() {
        let held = model.held(&chain);
        assert_eq!(matched(&lb, &model.ask(&chain)).await, (2 * held, 2 * chain.len()));
    }
}

#[tokio::test]
async fn a_gap_is_closed_by_the_replay_socket() {
    let engine = ZmqEngine::start().await;
    let lb = follow(&engine).await;
    let all = tokens(1, 64);
    let event = |at: u64| {
        let parent = (at > 0).then_some(at);
        block_stored(&[at + 1], parent, &all[16 * at as usize..][..16], 16)
    };
    publish(&lb, &engine, &[event(0)]).await;
    let before = count(&lb, "warmroute_reports_replayed_total").await;
    engine.publish_unheard(&kv_batch(&[event(1)]));
    engine.publish_unheard(&kv_batch(&[event(2)]));
    engine.publish(&kv_batch(&[event(3)]));
    applied(&lb, 4).await;
    assert_eq!(count(&lb, "warmroute_reports_replayed_total").await, before + 2);
    assert_eq!(matched(&lb, &ids_prompt("m", &all)).await, (4, 4));
    assert_eq!(lb.status(0).await["trust"], "exact");
    assert_eq!(count(&lb, "warmroute_report_gaps_total").await, 0);
}

#[tokio::test]
async fn a_gap_that_stays_open_degrades_trust_and_keeps_what_is_held() {
    let engine = ZmqEngine::start().await;
    engine.keep(1);
    let lb = follow(&engine).await;
    let (first, lost, last) = (tokens(1, 64), tokens(2, 64), tokens(3, 64));
    publish(&lb, &engine, &[block_stored(&[1, 2, 3, 4], None, &first, 16)]).await;
    engine.publish_unheard(&kv_batch(&[block_stored(&[5, 6, 7, 8], None, &lost, 16)]));
    let behind_lost = block_stored(&[20], Some(8), &tokens(4, 16), 16);
    let last_event = block_stored(&[9, 10, 11, 12], None, &last, 16);
    engine.publish(&kv_batch(&[behind_lost, last_event]));
    applied(&lb, 2).await;
    assert_eq!(lb.status(0).await["trust"], "degraded");
    assert_eq!(count(&lb, "warmroute_report_gaps_total").await, 1);
    assert_eq!(confirmed(&lb, 0).await, [8, 0, 0]);
    assert_eq!(count(&lb, "warmroute_stores_rejected_total").await, 1, "its parent was lost");
    assert_eq!(matched(&lb, &ids_prompt("m", &first)).await, (4, 4), "what we hold stays");
    assert_eq!(matched(&lb, &ids_prompt("m", &last)).await, (4, 4));
    assert_eq!(matched(&lb, &ids_prompt("m", &lost)).await.0, 0);
    let log = lb.stderr();
    assert!(log.contains("KV events of worker are lost for good"), "{log}");
}

#[tokio::test]
async fn a_restarted_engine_is_believed_empty_at_once() {
    let mut engine = ZmqEngine::start().await;
    let lb = follow(&engine).await;
    let (old, new) = (tokens(1, 64), tokens(2, 64));
    publish(&lb, &engine, &[block_stored(&[1, 2, 3, 4], None, &old, 16)]).await;
    assert_eq!(confirmed(&lb, 0).await, [4, 0, 0]);
    engine.restart().await;
    eventually("its holdings are gone", async || confirmed(&lb, 0).await == [0; 3]).await;
    trust_is(&lb, 0, "exact").await;
    engine.subscribed().await;
    assert_eq!(drops(&lb, "w0").await, 1);
    publish(&lb, &engine, &[block_stored(&[1, 2, 3, 4], None, &new, 16)]).await;
    assert_eq!(matched(&lb, &ids_prompt("m", &new)).await, (4, 4));
    assert_eq!(matched(&lb, &ids_prompt("m", &old)).await.0, 0);
    assert!(lb.stderr().contains("what was believed of worker's cache is dropped"));
}

/// Without a replay socket only the numbers tell.
#[tokio::test]
async fn numbers_that_begin_again_mean_a_restart() {
    let engine = ZmqEngine::start().await;
    let source = format!("kv_events: {{endpoint: \"{}\", topic: {TOPIC}}}", engine.events_at());
    let lb = lb().worker(echo().yaml("models: [m]").yaml(&source)).start().await;
    engine.subscribed().await;
    let (old, new) = (tokens(1, 64), tokens(2, 64));
    publish(&lb, &engine, &[block_stored(&[1, 2], None, &old[..32], 16)]).await;
    publish(&lb, &engine, &[block_stored(&[3, 4], Some(2), &old[32..], 16)]).await;
    assert_eq!(confirmed(&lb, 0).await, [4, 0, 0]);
    let first_of_new = kv_batch(&[block_stored(&[1], None, &new[..16], 16)]);
    engine.send(&[TOPIC.as_bytes(), &0_u64.to_be_bytes(), &first_of_new]);
    applied(&lb, 3).await;
    assert_eq!(confirmed(&lb, 0).await, [1, 0, 0]);
    assert_eq!(matched(&lb, &ids_prompt("m", &new)).await, (1, 4));
    assert_eq!(matched(&lb, &ids_prompt("m", &old)).await.0, 0);
    trust_is(&lb, 0, "exact").await;
}

#[tokio::test]
async fn a_cleared_cache_is_believed_empty() {
    let engine = ZmqEngine::start().await;
    let lb = follow(&engine).await;
    let (old, new) = (tokens(1, 64), tokens(2, 32));
    let before = block_stored(&[1, 2, 3, 4], None, &old, 16);
    publish(&lb, &engine, std::slice::from_ref(&before)).await;
    let after = block_stored(&[1, 2], None, &new, 16);
    publish(&lb, &engine, &[before, json!({"type": "AllBlocksCleared"}), after]).await;
    assert_eq!(confirmed(&lb, 0).await, [2, 0, 0], "what came after it stays");
    assert_eq!(matched(&lb, &ids_prompt("m", &new)).await, (2, 2));
    assert_eq!(matched(&lb, &ids_prompt("m", &old)).await.0, 0);
    assert_eq!(lb.status(0).await["trust"], "exact");
}

#[tokio::test]
async fn a_worker_that_pushes_is_not_heard_twice() {
    let engine = ZmqEngine::start().await;
    let lb = follow(&engine).await;
    let (both, more) = (tokens(1, 64), tokens(2, 64));
    publish(&lb, &engine, &[block_stored(&[1, 2, 3, 4], None, &both, 16)]).await;
    assert_eq!(confirmed(&lb, 0).await, [4, 0, 0]);
    let mut reporter = Reporter::new(&lb, "w0");
    reporter.send_well(&[stored_ids(&[1, 2, 3, 4], None, &both, 16)]).await;
    eventually("what was published is dismissed", async || {
        engine.publish(&kv_batch(&[block_stored(&[5, 6, 7, 8], None, &more, 16)]));
        engine.subscribers() == 0
    })
    .await;
    eventually("only what was pushed is believed", async || confirmed(&lb, 0).await == [4, 0, 0])
        .await;
    assert_eq!(matched(&lb, &ids_prompt("m", &both)).await, (4, 4));
    reporter.send_well(&[json!({"type": "removed", "block_hashes": [4]})]).await;
    assert_eq!(confirmed(&lb, 0).await, [3, 0, 0], "there was one copy");
    assert_eq!(matched(&lb, &ids_prompt("m", &both)).await.0, 3);
    assert_eq!(lb.status(0).await["trust"], "exact", "by its pushed reports alone");
}

#[tokio::test]
async fn a_worker_whose_reporter_synced_is_not_heard_twice() {
    let engine = ZmqEngine::start().await;
    let lb = follow(&engine).await;
    let all = tokens(1, 32);
    publish(&lb, &engine, &[block_stored(&[1, 2], None, &all, 16)]).await;
    let block = |at: usize| {
        json!({"block_hash": at + 1, "parent_block_hash": (at > 0).then_some(at),
            "token_ids": all[16 * at..][..16], "block_size": 16})
    };
    let step = json!({"worker_id": "w0", "epoch": "a", "seq": 4,
        "snapshot": {"part": 0, "last": true, "blocks": [block(0), block(1)]}});
    assert_eq!(lb.report("/v1/sync", &step).await.json()["want"], "nothing");
    eventually("what was published is dismissed", async || confirmed(&lb, 0).await == [2, 0, 0])
        .await;
    trust_is(&lb, 0, "exact").await;
    assert_eq!(matched(&lb, &ids_prompt("m", &all)).await, (2, 2));
}

#[tokio::test]
async fn blocks_in_host_memory_may_be_told_with_their_tokens() {
    let engine = ZmqEngine::start().await;
    let lb = lb().worker(publisher(&engine)).config("index: {cpu_credit: 0.5}").start().await;
    trust_is(&lb, 0, "exact").await;
    engine.subscribed().await;
    let all = tokens(1, 128);
    publish(&lb, &engine, &[block_stored(&[1, 2, 3, 4, 5, 6, 7, 8], None, &all, 16)]).await;
    // Behind a parent that only the GPU holds.
    let mut moved = block_stored(&[5, 6, 7, 8], Some(4), &all[64..], 16);
    moved["medium"] = json!("CPU");
    publish(&lb, &engine, &[moved, removed(&[5, 6, 7, 8], "GPU")]).await;
    assert_eq!(confirmed(&lb, 0).await, [4, 4, 0]);
    assert_eq!(matched(&lb, &ids_prompt("m", &all)).await, (4 + 2, 8));
}

#[tokio::test]
async fn an_engine_that_connects_to_the_router_is_followed() {
    let address = format!("127.0.0.1:{}", free_port());
    let mut engine = ZmqEngine::start_towards(address.parse().expect("an address")).await;
    let all = tokens(1, 64);
    engine.publish_unheard(&kv_batch(&[block_stored(&[1, 2], None, &all[..32], 16)]));
    let source = format!(
        "kv_events: {{bind: \"tcp://{address}\", replay_endpoint: \"{}\", topic: {TOPIC}}}",
        engine.replays_at()
    );
    let lb = lb().worker(echo().yaml("models: [m]").yaml(&source)).start().await;
    engine.subscribed().await;
    trust_is(&lb, 0, "exact").await;
    publish(&lb, &engine, &[block_stored(&[3, 4], Some(2), &all[32..], 16)]).await;
    assert_eq!(matched(&lb, &ids_prompt("m", &all)).await, (4, 4));
    engine.restart().await;
    eventually("its holdings are gone", async || confirmed(&lb, 0).await == [0; 3]).await;
    engine.subscribed().await;
    publish(&lb, &engine, &[block_stored(&[1], None, &all[..16], 16)]).await;
    assert_eq!(confirmed(&lb, 0).await, [1, 0, 0]);
}

#[tokio::test]
async fn a_publisher_of_garbage_does_no_harm() {
    let engine = ZmqEngine::start().await;
    let other = ZmqEngine::start().await;
    let both = lb().worker(publisher(&engine)).worker(publisher(&other));
    let lb = both.config("policy: sticky-least-loaded").start().await;
    trust_is(&lb, 0, "exact").await;
    trust_is(&lb, 1, "exact").await;
    other.subscribed().await;
    let bad: [&[u8]; 5] = [
        &[1, 0].repeat(50),
        b"\x02\0\0\x01\0\0\0\0\0xxxx",
        &[0xff; 300],
        b"\x04\x06\x05ERROR",
        b"\x06\x7f\xff\xff\xff\xff\xff\xff\xffzz",
    ];
    for bytes in bad {
        engine.subscribed().await;
        engine.send(&[b"one"]);
        engine.send(&[TOPIC.as_bytes(), b"short", b""]);
        engine.send(&[TOPIC.as_bytes(), &u64::MAX.to_be_bytes(), b"\x93"]);
        engine.send_bytes(bytes);
        // Through all of it requests are answered, and the other engine is heard.
        assert_eq!(lb.ask(&ids_prompt("m", &tokens(9, 20))).await.status, 200);
        other.publish(&kv_batch(&[]));
        eventually("the connection is given up or goes on", async || {
            engine.send(&[b"one"]);
            count(&lb, "warmroute_kv_events_refused_total").await > 0
        })
        .await;
    }
    applied(&lb, 5).await;
    // Events that are half right: what can be read is taken.
    let batches = count(&lb, "warmroute_kv_event_batches_total").await;
    let all = tokens(1, 32);
    let mut wrong = block_stored(&[7], None, &all, 16);
    wrong["token_ids"] = json!("text");
    let unknown = json!({"type": "BlockMoved", "to": [1, {"a": null}]});
    let events = [wrong, unknown, json!(7), block_stored(&[1, 2], None, &all, 16)];
    other.publish(&kv_batch(&events));
    applied(&lb, batches + 1).await;
    assert_eq!(confirmed(&lb, 1).await, [2, 0, 0]);
    assert_eq!(matched(&lb, &ids_prompt("m", &all)).await, (2, 2));
    let refused = lb.metrics().await.sum("warmroute_kv_events_refused_total", &[("worker", "w1")]);
    assert_eq!(refused, 3);
    assert_eq!(lb.status(1).await["trust"], "exact");
}

#[tokio::test]
async fn ranks_behind_one_url_have_caches_of_their_own() {
    let (one, two) = (ZmqEngine::start().await, ZmqEngine::start().await);
    let sources = ZmqEngine::sources_of(&[&one, &two]);
    let worker = echo()
        .yaml("models: [m]")
        .yaml("kv_events: auto")
        .side("/kv_event_sources", move |_| (200, sources.clone()));
    let lb = lb().worker(worker).start().await;
    for engine in [&one, &two] {
        engine.subscribed().await;
    }
    trust_is(&lb, 0, "exact").await;
    let all = tokens(1, 96);
    let other = tokens(2, 64);
    // The same names in both, as ranks of one engine have.
    publish(&lb, &one, &[block_stored(&[1, 2], None, &all[..32], 16)]).await;
    publish(&lb, &two, &[block_stored(&[1, 2, 3, 4], None, &all[..64], 16)]).await;
    publish(&lb, &one, &[block_stored(&[11, 12, 13, 14], None, &other, 16)]).await;
    assert_eq!(confirmed(&lb, 0).await, [10, 0, 0]);
    assert_eq!(matched(&lb, &ids_prompt("m", &all[..64])).await, (4, 4), "the better rank");
    assert_eq!(matched(&lb, &ids_prompt("m", &other)).await, (4, 4));
    // A block of one rank does not go on in the other.
    publish(&lb, &one, &[block_stored(&[21], Some(4), &all[64..80], 16)]).await;
    assert_eq!(count(&lb, "warmroute_stores_rejected_total").await, 1);

    publish(&lb, &two, &[json!({"type": "AllBlocksCleared"})]).await;
    assert_eq!(confirmed(&lb, 0).await, [6, 0, 0]);
    assert_eq!(matched(&lb, &ids_prompt("m", &other)).await, (4, 4), "the other rank's stay");
    assert_eq!(matched(&lb, &ids_prompt("m", &all[..64])).await, (2, 4));
    publish(&lb, &one, &[removed(&[2], "GPU")]).await;
    assert_eq!(confirmed(&lb, 0).await, [5, 0, 0]);
}

#[tokio::test]
async fn blocks_moved_to_host_memory_count_by_what_loading_them_costs() {
    let engine = ZmqEngine::start().await;
    let config = "index: {cpu_credit: 0.5, storage_credit: 0.25}";
    let lb = lb().worker(publisher(&engine)).config(config).start().await;
    trust_is(&lb, 0, "exact").await;
    engine.subscribed().await;
    let all = tokens(1, 160);
    let ids: Vec<u64> = (1..=10).collect();
    let ask = ids_prompt("m", &all);
    publish(&lb, &engine, &[block_stored(&ids, None, &all, 16)]).await;
    assert_eq!(matched(&lb, &ask).await, (10, 10));
    let in_tier = |ids: &[u64], medium: &str| {
        let mut event = block_stored(ids, None, &[], 0);
        event["medium"] = json!(medium);
        event
    };
    publish(&lb, &engine, &[in_tier(&ids, "CPU")]).await;
    assert_eq!(matched(&lb, &ask).await, (10, 10), "the GPU has them as well");
    assert_eq!(confirmed(&lb, 0).await, [10, 10, 0]);
    publish(&lb, &engine, &[removed(&ids[4..], "GPU")]).await;
    assert_eq!(confirmed(&lb, 0).await, [4, 10, 0]);
    holds(&lb, "w0", "cpu", 10).await;
    holds(&lb, "w0", "gpu", 4).await;
    assert_eq!(matched(&lb, &ask).await, (4 + 3, 10), "six in host memory, at a half");
    // What was just sent there is presumed now, so ask for it no more than once a step.
    let other = tokens(2, 160);
    let ids: Vec<u64> = (101..=110).collect();
    publish(&lb, &engine, &[block_stored(&ids, None, &other, 16), in_tier(&ids, "FS")]).await;
    publish(&lb, &engine, &[removed(&ids[2..], "GPU")]).await;
    assert_eq!(confirmed(&lb, 0).await, [6, 10, 10]);
    holds(&lb, "w0", "storage", 10).await;
    assert_eq!(matched(&lb, &ids_prompt("m", &other)).await, (2 + 2, 10), "eight, at a quarter");
    // Names that nobody told of before stand for nothing.
    publish(&lb, &engine, &[in_tier(&[999], "CPU")]).await;
    assert_eq!(count(&lb, "warmroute_stores_rejected_total").await, 1);
    publish(&lb, &engine, &[removed(&(1..=10).collect::<Vec<_>>(), "CPU")]).await;
    assert_eq!(confirmed(&lb, 0).await, [6, 0, 10]);
}

#[tokio::test]
async fn a_worker_without_events_is_asked_and_left_alone() {
    let gone = |_: &[u8]| (404, "{}".to_owned());
    let none = |_: &[u8]| (200, "{}".to_owned());
    let html = |_: &[u8]| (200, "<html>".to_owned());
    let worker = || echo().yaml("models: [m]").yaml("kv_events: auto");
    let lb = lb()
        .worker(worker().side("/kv_event_sources", gone))
        .worker(worker().side("/kv_event_sources", none))
        .worker(worker().side("/kv_event_sources", html))
        .start()
        .await;
    eventually("all were asked", async || {
        let log = lb.stderr();
        log.matches("worker publishes no KV events").count() == 2
            && log.contains("worker publishes KV events")
    })
    .await;
    let ask = ids_prompt("m", &tokens(1, 64));
    assert_eq!(matched(&lb, &ask).await, (0, 4));
    assert_eq!(matched(&lb, &ask).await, (4, 4), "what was sent there is presumed");
    for worker in 0..3 {
        assert_eq!(lb.status(worker).await["trust"], "presumed");
    }
}
