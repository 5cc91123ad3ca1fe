//! What a router is told.

mod support;

use std::collections::HashMap;
use std::net::TcpListener;
use std::time::Duration;

use serde_json::{Value, json};
use support::receiver::Receiver;
use support::{eventually, post};
use warmroute_engine::{Engine, EngineHandle, EngineOptions, ReportTo};

fn engine(url: &str, kv_blocks: usize) -> EngineHandle {
    start(kv_blocks, ReportTo::new(url, "sim7"))
}

fn old_engine(url: &str, kv_blocks: usize) -> EngineHandle {
    start(kv_blocks, ReportTo { sync: false, ..ReportTo::new(url, "sim7") })
}

fn start(kv_blocks: usize, reports: ReportTo) -> EngineHandle {
    let reports = ReportTo {
        token: Some("secret".to_owned()),
        interval: Duration::from_millis(10),
        ..reports
    };
    let options = EngineOptions { kv_blocks, reports: Some(reports), ..EngineOptions::instant() };
    Engine::start(options).expect("a free port")
}

fn complete(engine: &EngineHandle, prompt: &str, more: &Value) {
    let mut body = json!({"prompt": prompt, "max_tokens": 1});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    assert_eq!(post(&engine.url(), "/v1/completions", &body).0, 200);
}

/// Checks that parents come first and gives the text each block hash stands for.
fn chains(events: &[Value]) -> HashMap<u64, String> {
    let mut held: HashMap<u64, String> = HashMap::new();
    for event in events {
        if event["type"] == "removed" {
            for hash in event["block_hashes"].as_array().expect("a list") {
                held.remove(&hash.as_u64().expect("a hash")).expect("only what was stored");
            }
            continue;
        }
        assert_eq!((&event["type"], &event["block_size"]), (&json!("stored"), &json!(64)));
        let mut text = match event["parent_block_hash"].as_u64() {
            Some(parent) => held[&parent].clone(),
            None => String::new(),
        };
        let bytes = event["text"].as_str().expect("text").as_bytes();
        let hashes = event["block_hashes"].as_array().expect("a list");
        assert_eq!(bytes.len(), hashes.len() * 64);
        for (hash, block) in hashes.iter().zip(bytes.chunks(64)) {
            text.push_str(std::str::from_utf8(block).expect("ASCII here"));
            assert!(held.insert(hash.as_u64().expect("a hash"), text.clone()).is_none());
        }
    }
    held
}

#[test]
fn tells_the_text_of_what_is_cached() {
    let receiver = Receiver::scripted([]);
    let engine = engine(&receiver.url, 1000);
    let prompt = "p".repeat(200);
    complete(&engine, &prompt, &json!({"cache_salt": "s"}));
    eventually("a report", || chains(&receiver.events()).len() == 3);
    let longer = prompt.clone() + &"q".repeat(200);
    complete(&engine, &prompt, &json!({"cache_salt": "s"}));
    complete(&engine, &longer, &json!({"cache_salt": "s"}));
    eventually("another", || chains(&receiver.events()).len() == 6);
    let events = receiver.events();
    assert_eq!((&events[0]["model"], &events[0]["cache_salt"]), (&json!("sim-model"), &json!("s")));
    assert_eq!((&events[1]["model"], &events[1]["cache_salt"]), (&Value::Null, &Value::Null));
    assert!(chains(&events).values().any(|text| *text == longer[..384]));
    let seqs: Vec<_> = receiver.batches().iter().map(|batch| batch["seq"].clone()).collect();
    assert_eq!(seqs, [json!(1), json!(2)], "a repeat says nothing");
    eventually("both accepted", || engine.stats().reports_accepted == 2);
}

#[test]
fn prompts_that_events_cannot_name_are_left_out() {
    let receiver = Receiver::scripted([]);
    let engine = engine(&receiver.url, 1000);
    complete(&engine, &"t".repeat(200), &json!({"chat_template_kwargs": {"a": 1}}));
    let body = json!({"prompt": vec![7; 50], "max_tokens": 1});
    assert_eq!(post(&engine.url(), "/v1/completions", &body).0, 200);
    complete(&engine, &"u".repeat(64), &json!({}));
    eventually("a report", || !receiver.batches().is_empty());
    assert_eq!(chains(&receiver.events()).len(), 1);
}

#[test]
fn evictions_are_told_and_state_stays_true() {
    let receiver = Receiver::scripted([]);
    let engine = engine(&receiver.url, 12);
    for letter in ["a", "b", "c", "a", "d"] {
        complete(&engine, &letter.repeat(500), &json!({}));
    }
    let held = engine.stats().kv_blocks_cached;
    assert!(engine.stats().evicted_blocks > 0);
    eventually("all told", || {
        let events = receiver.events();
        events.iter().any(|event| event["type"] == "removed") && chains(&events).len() == held
    });
    engine.clear_cache();
    eventually("cleared", || receiver.events().last().is_some_and(|e| e["type"] == "cleared"));
}

#[test]
fn heartbeats_say_how_it_is() {
    let receiver = Receiver::scripted([]);
    let engine = engine(&receiver.url, 1000);
    eventually("a heartbeat", || !receiver.bodies("/v1/heartbeat").is_empty());
    let beat = receiver.bodies("/v1/heartbeat").remove(0);
    assert_eq!(beat["worker_id"], "sim7");
    assert_eq!(beat["worker_url"], engine.url());
    assert_eq!(beat["model"], "sim-model");
    assert_eq!((&beat["current_load"], &beat["kv_blocks_used"]), (&json!(0), &json!(0)));
    assert_eq!((&beat["kv_blocks_total"], &beat["kv_block_tokens"]), (&json!(1000), &json!(16)));
    assert!(beat["epoch"].is_string() && beat.get("lease_s").is_none());
}

#[test]
fn a_busy_router_gets_the_same_batch_again() {
    let receiver = Receiver::scripted([(503, ""), (429, "{}")]);
    let engine = engine(&receiver.url, 1000);
    complete(&engine, &"p".repeat(200), &json!({}));
    eventually("three tries", || receiver.batches().len() == 3);
    let batches = receiver.batches();
    assert_eq!(batches[0], batches[2]);
    eventually("accepted", || engine.stats().reports_accepted == 1);
    assert_eq!(engine.stats().resyncs, 0);
}

#[test]
fn without_sync_a_router_that_lost_count_is_told_everything_again() {
    let receiver = Receiver::scripted([(200, "{}"), (200, "{\"resync\":true}")]);
    let engine = old_engine(&receiver.url, 1000);
    complete(&engine, &"p".repeat(200), &json!({}));
    eventually("one", || receiver.batches().len() == 1);
    complete(&engine, &("p".repeat(200) + &"q".repeat(200)), &json!({}));
    eventually("the statement of everything", || receiver.batches().len() == 3);
    let batches = receiver.batches();
    assert_ne!(batches[1]["epoch"], batches[2]["epoch"]);
    assert_eq!(batches[2]["seq"], 1);
    assert_eq!(chains(batches[2]["events"].as_array().expect("a list")).len(), 6);
    assert_eq!((engine.stats().resyncs, engine.stats().syncs), (1, 0));
    assert!(receiver.bodies("/v1/heartbeat").iter().all(|beat| beat.get("seq").is_none()));
}

#[test]
fn a_router_that_is_down_or_silent_stalls_nothing() {
    // Accepts and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let silent_url = format!("http://{}", silent.local_addr().expect("an address"));
    for url in ["http://127.0.0.1:1", &silent_url] {
        let engine = engine(url, 100);
        for number in 0..300 {
            complete(&engine, &format!("{number:03}").repeat(100), &json!({}));
        }
        assert_eq!(engine.stats().finished, 300);
        assert_eq!(engine.stats().reports_accepted, 0);
    }
}
