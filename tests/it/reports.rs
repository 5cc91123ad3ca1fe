//! The report listener: what workers say they hold is what the next request is matched with.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};

use http::Method;
use serde_json::{Value, json};

use crate::support::{
    Answer, Ask, Conn, Lb, Proto, Raw, Reporter, echo, eventually, lb, noise, stored, stored_list,
};

const BLOCK_BYTES: [usize; 3] = [16, 32, 128];

/// Two workers of the model `m`, and a report listener.
async fn fleet(block_bytes: usize, more: &str) -> Lb {
    lb().worker(echo().yaml("models: [m]"))
        .worker(echo().yaml("models: [m]"))
        .config(&format!("index: {{block_bytes: {block_bytes}}}"))
        // The price of a request outweighs a match of some tokens.
        .config("{reports: {}, policy: sticky-least-loaded}")
        .config(more)
        .start()
        .await
}

/// So many bytes of text that parts from every other seed's at the start.
fn text(seed: usize, bytes: usize) -> String {
    let mut text = format!("{seed:04} ");
    text.push_str(std::str::from_utf8(&noise(bytes - text.len())).expect("ASCII"));
    text
}

fn prompt(text: &str) -> Ask {
    Ask::post("/v1/completions", json!({"model": "m", "prompt": text}).to_string())
}

/// Worker, reason, matched, total.
async fn ask(lb: &Lb, prompt: &Ask) -> (String, String, usize, usize) {
    let answer = lb.ask(prompt).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let (matched, total) = answer.header("x-router-matched").split_once('/').expect("n/m");
    let number = |text: &str| text.parse().expect("a number");
    let header = |name| answer.header(name).to_owned();
    (header("x-router-backend"), header("x-router-reason"), number(matched), number(total))
}

/// How many blocks of a prompt that was never asked for before are matched.
async fn matched(lb: &Lb, text: &str) -> usize {
    ask(lb, &prompt(text)).await.2
}

/// An error of the listener: its code, and the field it names.
#[track_caller]
fn refused(answer: &Answer, status: u16, code: &str) -> Value {
    assert_eq!(answer.status, status, "{answer:?}");
    let error = answer.json()["error"].clone();
    assert_eq!(error["code"], code, "{answer:?}");
    assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{answer:?}");
    error["field"].clone()
}

#[tokio::test]
async fn stored_text_is_matched_and_removed_text_is_not() {
    for block_bytes in BLOCK_BYTES {
        let lb = fleet(block_bytes, "").await;
        for (nth, worker) in ["w1", "w0", "w1"].into_iter().enumerate() {
            let mut reporter = Reporter::new(&lb, worker);
            reporter.epoch = format!("{worker} {nth}");
            let text = text(nth, 8 * block_bytes);
            let ids: Vec<u64> = (1..=8).map(|id| id + 100 * nth as u64).collect();
            reporter.send_well(&[stored(ids.clone(), None, &text, block_bytes)]).await;
            let whole = (worker.to_owned(), "sticky".to_owned(), 8, 8);
            assert_eq!(ask(&lb, &prompt(&text)).await, whole, "blocks of {block_bytes}");

            let removed = json!({"type": "removed", "block_hashes": [ids[7]]});
            reporter.send_well(&[removed]).await;
            assert_eq!(ask(&lb, &prompt(&text)).await.2, 7, "blocks of {block_bytes}");

            let removed = json!({"type": "removed", "block_hashes": ids[..7]});
            reporter.send_well(&[removed]).await;
            let (_, reason, matched, _) = ask(&lb, &prompt(&text)).await;
            assert_eq!((reason.as_str(), matched), ("least-loaded", 0), "blocks of {block_bytes}");
        }
    }
}

#[tokio::test]
async fn a_chat_is_matched_by_its_canonical_text() {
    let lb = fleet(32, "").await;
    let content = text(0, 300);
    let canonical = format!(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n{content}<|im_end|>\n\
         <|im_start|>assistant\n"
    );
    let engine_blocks = canonical.len() / 48;
    let ids = 1..=engine_blocks as u64;
    let held = &canonical[..engine_blocks * 48];
    Reporter::new(&lb, "w1").send_well(&[stored(ids, None, held, 48)]).await;
    let messages = json!([{"role": "system", "content": "Be brief."},
        {"role": "user", "content": content}]);
    let body = json!({"model": "m", "messages": messages}).to_string();
    let (worker, _, matched, total) = ask(&lb, &Ask::post("/v1/chat/completions", body)).await;
    assert_eq!(worker, "w1");
    assert_eq!((matched, total), (held.len() / 32, canonical.len() / 32));
}

#[tokio::test]
async fn engine_blocks_may_have_any_size() {
    for (ours, theirs) in [(32, 48), (16, 64), (128, 16), (32, 100), (128, 127), (16, 1)] {
        let lb = fleet(ours, "").await;
        let mut reporter = Reporter::new(&lb, "w1");
        let count = 6 * ours.max(theirs) / theirs;
        let bytes = count * theirs;
        let half = count / 2;
        let case = format!("ours {ours}, theirs {theirs}");

        let short = text(1, bytes);
        let ids = 1..=half as u64;
        reporter.send_well(&[stored(ids, None, &short[..half * theirs], theirs)]).await;
        assert_eq!(matched(&lb, &short).await, half * theirs / ours, "{case}");

        // In two batches, the second behind the last block of the first.
        let long = text(2, bytes);
        let first = 1000..1000 + half as u64;
        let second = 1000 + half as u64..1000 + count as u64;
        reporter.send_well(&[stored(first, None, &long[..half * theirs], theirs)]).await;
        let parent = Some(999 + half as u64);
        reporter.send_well(&[stored(second, parent, &long[half * theirs..], theirs)]).await;
        assert_eq!(matched(&lb, &long).await, bytes / ours, "{case}");

        // Every block of ours that one of theirs lies under goes with it.
        let gone = half + 1;
        let removed = json!({"type": "removed", "block_hashes": [1000 + gone as u64]});
        reporter.send_well(&[removed]).await;
        assert_eq!(matched(&lb, &long).await, gone * theirs / ours, "{case}");
    }
}

#[tokio::test]
async fn text_may_be_a_list_of_blocks_of_any_size() {
    let lb = fleet(32, "").await;
    let mut reporter = Reporter::new(&lb, "w1");
    let text = text(0, 400);
    let mut texts = Vec::new();
    let mut rest = &*text;
    for size in [1, 31, 70, 3, 95, 128, 72] {
        let (block, behind) = rest.split_at(size);
        texts.push(block);
        rest = behind;
    }
    assert!(rest.is_empty());
    reporter.send_well(&[stored_list(1..=4, None, &texts[..4])]).await;
    reporter.send_well(&[stored_list(5..=7, Some(4), &texts[4..])]).await;
    assert_eq!(matched(&lb, &text).await, 400 / 32);
    reporter.send_well(&[json!({"type": "removed", "block_hashes": [6]})]).await;
    assert_eq!(matched(&lb, &text).await, 200 / 32);
}

#[tokio::test]
async fn names_of_blocks_are_numbers_of_either_sign_or_strings() {
    let lb = fleet(32, "").await;
    let mut reporter = Reporter::new(&lb, "w1");
    let names = [json!(-1), json!(u64::MAX - 1), json!("abc"), json!(""), json!(i64::MIN)];
    for (nth, name) in names.into_iter().enumerate() {
        let (root, next) = (text(nth, 64), text(nth + 50, 64));
        let first = json!({"type": "stored", "block_hashes": [name], "text": [root]});
        let second = json!({"type": "stored", "block_hashes": [format!("next {nth}")],
            "parent_block_hash": name, "text": next, "block_size": 64});
        reporter.send_well(&[first, second]).await;
        let whole = format!("{root}{next}");
        assert_eq!(matched(&lb, &whole).await, 4, "{name}");
        reporter.send_well(&[json!({"type": "removed", "block_hashes": [name]})]).await;
        assert_eq!(matched(&lb, &whole).await, 0, "{name}");
    }
}

#[tokio::test]
async fn blocks_behind_an_unknown_parent_are_rejected_and_counted() {
    let lb = fleet(32, "").await;
    let mut reporter = Reporter::new(&lb, "w1");
    let text = text(0, 320);
    let applied = reporter.send(&[stored(1..=10, Some(99), &text, 32)]).await;
    assert_eq!((&applied["stored"], &applied["rejected"]), (&json!(0), &json!(10)), "{applied}");
    assert_eq!(applied["resync"], false, "{applied}");
    assert_eq!(lb.status(1).await["index"]["blocks"], 0);
    let count = lb.metrics().await.sum("warmroute_stores_rejected_total", &[("worker", "w1")]);
    assert_eq!(count, 10);
    assert_eq!(matched(&lb, &text).await, 0, "they were not taken for the start of a prompt");
    let unknown = reporter.send(&[json!({"type": "removed", "block_hashes": [1, 99]})]).await;
    assert_eq!((&unknown["removed"], &unknown["unknown"]), (&json!(0), &json!(2)), "{unknown}");
}

#[tokio::test]
async fn copies_of_a_block_are_counted() {
    let lb = fleet(32, "").await;
    let mut reporter = Reporter::new(&lb, "w1");
    let text = text(0, 160);
    let twice = stored(1..=5, None, &text, 32);
    reporter.send_well(std::slice::from_ref(&twice)).await;
    reporter.send_well(&[twice]).await;
    let once = json!({"type": "removed", "block_hashes": [1, 2, 3, 4, 5]});
    reporter.send_well(std::slice::from_ref(&once)).await;
    assert_eq!(matched(&lb, &text).await, 5, "one copy is left");
    reporter.send_well(std::slice::from_ref(&once)).await;
    assert_eq!(matched(&lb, &text).await, 0, "none is left");
    let applied = reporter.send(&[once]).await;
    assert_eq!((&applied["removed"], &applied["unknown"]), (&json!(0), &json!(5)), "{applied}");
}

#[tokio::test]
async fn cleared_drops_everything() {
    let lb = fleet(32, "").await;
    let mut reporter = Reporter::new(&lb, "w1");
    let (old, new) = (text(0, 320), text(1, 320));
    reporter.send_well(&[stored(1..=10, None, &old, 32)]).await;
    let cleared = json!({"type": "cleared"});
    reporter.send_well(&[cleared, stored(1..=10, None, &new, 32)]).await;
    assert_eq!(lb.status(1).await["index"]["blocks"], 10, "what came after it stays");
    assert_eq!(matched(&lb, &old).await, 0);
    assert_eq!(matched(&lb, &new).await, 10);
}

#[tokio::test]
async fn a_repeat_is_ignored_and_a_gap_asks_for_a_resync() {
    let lb = fleet(32, "").await;
    let mut reporter = Reporter::new(&lb, "w1");
    reporter.send_well(&[]).await;
    reporter.seq = 1;
    let repeated = text(0, 320);
    let applied = reporter.send(&[stored(1..=10, None, &repeated, 32)]).await;
    assert_eq!((&applied["repeat"], &applied["stored"]), (&json!(true), &json!(0)), "{applied}");
    assert_eq!(matched(&lb, &repeated).await, 0);

    reporter.seq = 5;
    let after = text(1, 320);
    let applied = reporter.send(&[stored(11..=20, None, &after, 32)]).await;
    assert_eq!((&applied["resync"], &applied["stored"]), (&json!(true), &json!(10)), "{applied}");
    assert_eq!(matched(&lb, &after).await, 10, "the batch is applied all the same");
    let reports = lb.status(1).await["reports"].clone();
    assert_eq!((&reports["gaps"], &reports["next_seq"]), (&json!(1), &json!(6)), "{reports}");

    // One that came late is a repeat; the next one is due.
    reporter.seq = 3;
    assert_eq!(reporter.send(&[]).await["repeat"], true);
    reporter.seq = 6;
    assert_eq!(reporter.send(&[]).await["resync"], true, "until it is mended");
    let metrics = lb.metrics().await;
    let outcomes = ["applied", "repeat", "gap"]
        .map(|outcome| metrics.sum("warmroute_reports_total", &[("outcome", outcome)]));
    assert_eq!(outcomes, [2, 2, 1]);
}

#[tokio::test]
async fn numbers_begin_at_zero_or_one() {
    let lb = fleet(32, "").await;
    for (seq, resync) in [(0, false), (1, false), (2, true), (57, true)] {
        let mut reporter = Reporter::new(&lb, "w0");
        reporter.epoch = format!("from {seq}");
        reporter.seq = seq;
        assert_eq!(reporter.send(&[]).await["resync"], resync, "from {seq}");
        assert_eq!(reporter.send(&[]).await["resync"], resync, "after {seq}");
    }
}

#[tokio::test]
async fn a_new_epoch_drops_the_index() {
    let lb = fleet(32, "").await;
    let mut reporter = Reporter::new(&lb, "w1");
    let (first, second, third) = (text(0, 320), text(1, 320), text(2, 320));
    reporter.send_well(&[stored(1..=10, None, &first, 32)]).await;
    assert_eq!(lb.status(1).await["index"]["blocks"], 10);

    (reporter.epoch, reporter.seq) = ("b".to_owned(), 1);
    reporter.send_well(&[stored(1..=10, None, &second, 32)]).await;
    assert_eq!(lb.status(1).await["index"]["blocks"], 10, "only what the new one said");
    assert_eq!(matched(&lb, &first).await, 0);

    // A heartbeat may be what says so first; its epoch is then no new one for the next batch.
    let url = lb.workers[1].url();
    let mut beat = json!({"worker_id": "w1", "worker_url": url, "epoch": 3});
    assert_eq!(lb.report("/v1/heartbeat", &beat).await.status, 200);
    assert_eq!(lb.status(1).await["index"]["blocks"], 0);
    assert_eq!(lb.status(1).await["reports"]["epoch"], "3");
    (reporter.epoch, reporter.seq) = ("3".to_owned(), 1);
    reporter.send_well(&[stored(1..=10, None, &third, 32)]).await;
    beat["epoch"] = json!("3");
    assert_eq!(lb.report("/v1/heartbeat", &beat).await.status, 200);
    assert_eq!(lb.status(1).await["index"]["blocks"], 10, "the same epoch, as text");
    assert_eq!(matched(&lb, &second).await, 0);
    assert_eq!(matched(&lb, &third).await, 10);
}

#[tokio::test]
async fn one_worker_s_reports_say_nothing_of_another() {
    let lb = fleet(32, "").await;
    let text = text(0, 320);
    Reporter::new(&lb, "w0").send_well(&[stored(1..=10, None, &text, 32)]).await;
    let mut other = Reporter::new(&lb, "w1");
    other.epoch = "another".to_owned();
    other.send_well(&[json!({"type": "cleared"})]).await;
    let removed = other.send(&[json!({"type": "removed", "block_hashes": [1]})]).await;
    assert_eq!(removed["unknown"], 1, "{removed}");
    let whole = ("w0".to_owned(), "sticky".to_owned(), 10, 10);
    assert_eq!(ask(&lb, &prompt(&text)).await, whole);
}

#[tokio::test]
async fn prompts_and_reports_must_agree_in_their_root() {
    let lb = fleet(32, "tenant_header: x-tenant").await;
    let mut reporter = Reporter::new(&lb, "w1");
    for (nth, (field, key)) in
        [("cache_salt", "cache_salt"), ("lora_name", "lora_name"), ("tenant", "")]
            .iter()
            .enumerate()
    {
        let text = text(nth, 320);
        let mut event = stored(1..=10, None, &text, 32);
        event[field] = json!("x");
        reporter.send_well(&[json!({"type": "cleared"}), event]).await;
        assert_eq!(matched(&lb, &text).await, 0, "{field} is missing");
        let with = |value: &str| {
            let mut body = json!({"model": "m", "prompt": text});
            let header = if key.is_empty() { value } else { "" };
            if !key.is_empty() {
                body[key] = json!(value);
            }
            Ask::post("/v1/completions", body.to_string()).header("x-tenant", header)
        };
        assert_eq!(ask(&lb, &with("y")).await.2, 0, "another {field}");
        assert_eq!(ask(&lb, &with("x")).await.2, 10, "the same {field}");
    }
}

#[tokio::test]
async fn a_heartbeat_refreshes_what_is_known_of_a_worker() {
    let lb = fleet(32, "").await;
    let before = lb.status(0).await["reports"].clone();
    assert_eq!(before["age_s"], Value::Null, "{before}");
    let beat = json!({"worker_id": "w0", "worker_url": lb.workers[0].url(), "current_load": 3,
        "model": "m", "kv_blocks_total": 1000, "kv_blocks_used": 12, "kv_block_tokens": 16,
        "epoch": "a1", "lease_s": 15, "something_new": {"a": 1}});
    let answer = lb.report("/v1/heartbeat", &beat).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json(), json!({"ok": true, "joined": false, "resync": false}));
    let after = lb.status(0).await["reports"].clone();
    assert!(after["age_s"].as_f64().is_some_and(|age| age < 5.0), "{after}");
    assert_eq!(after["epoch"], "a1");
    let said = json!({"current_load": 3, "kv_blocks_total": 1000, "kv_blocks_used": 12,
        "kv_block_tokens": 16, "model": "m"});
    assert_eq!(after["said"], said);
    let smallest = json!({"worker_id": "w0", "worker_url": lb.workers[0].url()});
    assert_eq!(lb.report("/v1/heartbeat", &smallest).await.status, 200);
    assert_eq!(lb.status(0).await["reports"]["epoch"], "a1", "it said nothing of its epoch");
    assert!(lb.status(0).await["takes_traffic"] == true);
}

#[tokio::test]
async fn the_size_of_the_cache_bounds_the_index() {
    let lb = fleet(32, "").await;
    // 16 blocks of 16 tokens of about 4 bytes.
    let mut beat = json!({"worker_id": "w1", "worker_url": lb.workers[1].url(),
        "kv_blocks_total": 16});
    assert_eq!(lb.report("/v1/heartbeat", &beat).await.status, 200);
    lb.workers[0].set_healthy(false);
    eventually("w0 is out", async || lb.status(0).await["takes_traffic"] == false).await;
    for nth in 0..10 {
        let _ = ask(&lb, &prompt(&text(nth, 320))).await;
    }
    let index = lb.status(1).await["index"].clone();
    let count = |key: &str| index[key].as_u64().expect("a number");
    // With some headroom: what an engine's token is in bytes of text is a guess.
    let fits = 16 * 16 * 4 / 32;
    assert!((fits..=2 * fits).contains(&count("blocks")), "{index}");
    assert_eq!(count("blocks") + count("trimmed_total"), 100, "{index}");
    assert_eq!(matched(&lb, &text(9, 320)).await, 10, "the latest are kept");
    assert_eq!(matched(&lb, &text(0, 320)).await, 0, "the oldest went");

    // A smaller cache cuts at once.
    for nth in 20..30 {
        let _ = ask(&lb, &prompt(&text(nth, 320))).await;
    }
    assert!(
        lb.status(1).await["index"]["blocks"].as_u64().is_some_and(|blocks| blocks <= 2 * fits)
    );
    (beat["kv_blocks_total"], beat["kv_block_tokens"]) = (json!(2), json!(32));
    assert_eq!(lb.report("/v1/heartbeat", &beat).await.status, 200);
    let blocks = lb.status(1).await["index"]["blocks"].clone();
    assert!(blocks.as_u64().is_some_and(|blocks| blocks <= 16), "{blocks}");
    // Nonsense changes nothing.
    beat["kv_blocks_total"] = json!(0);
    assert_eq!(lb.report("/v1/heartbeat", &beat).await.status, 200);
    beat["kv_blocks_total"] = json!(u64::MAX);
    assert_eq!(lb.report("/v1/heartbeat", &beat).await.status, 200);
    let mut reporter = Reporter::new(&lb, "w1");
    reporter.send_well(&[stored(5000..5010, None, &text(50, 320), 32)]).await;
    assert_eq!(matched(&lb, &text(50, 320)).await, 10);
}

#[tokio::test]
async fn a_token_is_asked_for() {
    let lb = fleet(32, "reports: {token: s3cret}").await;
    let beat = json!({"worker_id": "w0", "worker_url": lb.workers[0].url()});
    let batch = Reporter::new(&lb, "w0").batch(&[]);
    for (path, body) in [("/v1/heartbeat", &beat), ("/v1/events", &batch)] {
        let ask = Ask::post(path, body.to_string());
        let long = "s3cret".repeat(1000);
        for wrong in [
            "",
            "s3cret",
            "Basic s3cret",
            "Bearer",
            "Bearer ",
            "Bearer s3cre",
            "Bearer s3cret ",
            "Bearer s3crets",
            "Bearer S3CRET",
            &format!("Bearer {long}"),
        ] {
            // A trailing space is no part of a header's value.
            let fine = wrong.trim() == "Bearer s3cret";
            let answer = lb.report_as(&ask.clone().header("authorization", wrong)).await;
            if fine {
                assert_eq!(answer.status, 200, "{answer:?}");
            } else {
                refused(&answer, 401, "unauthorized");
            }
        }
        refused(&lb.report_as(&ask).await, 401, "unauthorized");
        let right = ask.header("authorization", "Bearer s3cret");
        assert_eq!(lb.report_as(&right).await.status, 200);
    }
    // Nothing that came without it was looked at.
    let unknown = json!({"worker_id": "nobody"});
    refused(&lb.report("/v1/heartbeat", &unknown).await, 401, "unauthorized");
    let metrics = lb.metrics().await;
    assert!(metrics.sum("warmroute_reports_total", &[("outcome", "unauthorized")]) > 10);
    assert!(!lb.stderr().contains("s3cret"), "a token in the log");
}

#[tokio::test]
async fn a_malformed_batch_is_refused_with_the_field_s_name() {
    let lb = fleet(32, "").await;
    let hashes = json!([1, 2]);
    for (event, field) in [
        (json!({"block_hashes": hashes, "text": ["a", "b"]}), "type"),
        (json!({"type": 7, "block_hashes": hashes, "text": ["a", "b"]}), "type"),
        (json!({"type": "stored", "text": ["a", "b"]}), "block_hashes"),
        (json!({"type": "stored", "block_hashes": 7, "text": ["a"]}), "block_hashes"),
        (json!({"type": "stored", "block_hashes": [1.5], "text": ["a"]}), "block_hashes"),
        (json!({"type": "stored", "block_hashes": [null], "text": ["a"]}), "block_hashes"),
        (json!({"type": "stored", "block_hashes": hashes}), "text"),
        (json!({"type": "stored", "block_hashes": hashes, "text": ["a"]}), "text"),
        (json!({"type": "stored", "block_hashes": hashes, "text": ["a", "b", "c"]}), "text"),
        (json!({"type": "stored", "block_hashes": hashes, "text": 7}), "text"),
        (json!({"type": "stored", "block_hashes": hashes, "text": ["a", 7]}), "text"),
        (json!({"type": "stored", "block_hashes": hashes, "text": "abcd"}), "block_size"),
        (
            json!({"type": "stored", "block_hashes": hashes, "text": "", "block_size": 0}),
            "block_size",
        ),
        (
            json!({"type": "stored", "block_hashes": hashes, "text": "abcd", "block_size": -2}),
            "block_size",
        ),
        (
            json!({"type": "stored", "block_hashes": hashes, "text": "abcd", "block_size": 3}),
            "text",
        ),
        (
            json!({"type": "stored", "block_hashes": hashes, "text": "abcd",
            "block_size": u64::MAX}),
            "text",
        ),
        (
            json!({"type": "stored", "block_hashes": hashes, "parent_block_hash": {},
            "text": ["a", "b"]}),
            "parent_block_hash",
        ),
        (
            json!({"type": "stored", "block_hashes": hashes, "cache_salt": 7, "text": ["a", "b"]}),
            "cache_salt",
        ),
        (json!({"type": "removed"}), "block_hashes"),
        (json!({"type": "removed", "block_hashes": "1"}), "block_hashes"),
    ] {
        // The second of two, so that the place is told from the first.
        let batch = Reporter::new(&lb, "w0").batch(&[json!({"type": "cleared"}), event.clone()]);
        let answer = lb.report("/v1/events", &batch).await;
        let named = refused(&answer, 400, "malformed");
        let named = named.as_str().unwrap_or_default();
        assert!(named.starts_with(&format!("events[1].{field}")), "{event}: {named}");
    }
    for (key, wrong) in [
        ("worker_id", json!(null)),
        ("worker_id", json!(7)),
        ("epoch", json!(null)),
        ("epoch", json!(1.5)),
        ("epoch", json!("e".repeat(129))),
        ("epoch", json!({})),
        ("seq", json!(null)),
        ("seq", json!(-1)),
        ("seq", json!("1")),
        ("seq", json!(0.5)),
        ("events", json!(null)),
        ("events", json!({})),
        ("ts", json!("now")),
    ] {
        let mut batch = Reporter::new(&lb, "w0").batch(&[]);
        batch[key] = wrong.clone();
        let answer = lb.report("/v1/events", &batch).await;
        assert_eq!(refused(&answer, 400, "malformed"), key, "{wrong}");
        batch.as_object_mut().expect("an object").remove(key);
        let answer = lb.report("/v1/events", &batch).await;
        if key != "ts" {
            assert_eq!(refused(&answer, 400, "malformed"), key, "without it");
        }
    }
    assert_eq!(lb.status(0).await["reports"]["epoch"], json!("a"), "the one without ts was taken");
    assert_eq!(lb.status(0).await["reports"]["next_seq"], 2);
}

#[tokio::test]
async fn a_malformed_heartbeat_is_refused_with_the_field_s_name() {
    let lb = fleet(32, "").await;
    for (key, wrong) in [
        ("worker_id", json!(null)),
        ("worker_id", json!([])),
        ("worker_url", json!(null)),
        ("worker_url", json!(7)),
        ("current_load", json!(-1)),
        ("current_load", json!(1_u64 << 40)),
        ("model", json!(7)),
        ("kv_blocks_total", json!(-1)),
        ("kv_blocks_used", json!("7")),
        ("kv_block_tokens", json!(1.5)),
        ("epoch", json!([])),
        ("lease_s", json!(-1)),
        ("lease_s", json!("15")),
    ] {
        let mut beat = json!({"worker_id": "w0", "worker_url": lb.workers[0].url()});
        beat[key] = wrong.clone();
        let answer = lb.report("/v1/heartbeat", &beat).await;
        assert_eq!(refused(&answer, 400, "malformed"), key, "{wrong}");
    }
    assert_eq!(lb.status(0).await["reports"]["age_s"], Value::Null, "none of them counted");
}

#[tokio::test]
async fn what_is_no_json_object_is_refused() {
    let lb = fleet(32, "").await;
    let deep = "[".repeat(100_000);
    let good = Reporter::new(&lb, "w0").batch(&[]).to_string();
    for path in ["/v1/heartbeat", "/v1/events"] {
        for body in [
            b"".to_vec(),
            b"null".to_vec(),
            b"7".to_vec(),
            b"\"x\"".to_vec(),
            b"{".to_vec(),
            b"[]".to_vec(),
            b"\xff\xfe".to_vec(),
            b"\0".to_vec(),
            deep.clone().into_bytes(),
            b"{\"worker_id\": \"\xff\", \"worker_url\": \"\xff\"}".to_vec(),
            format!("{good} x").into_bytes(),
            format!("{good}{good}").into_bytes(),
        ] {
            let answer = lb.report_as(&Ask::post(path, body.clone())).await;
            let shown = String::from_utf8_lossy(&body).chars().take(40).collect::<String>();
            let field = refused(&answer, 400, "malformed");
            assert!(field.as_str().is_some_and(|field| !field.is_empty()), "{path} {shown}");
        }
    }
    assert_eq!(lb.status(0).await["reports"]["next_seq"], Value::Null);
}

/// A list in the place of an object names nothing.
#[tokio::test]
async fn a_list_is_no_object() {
    let lb = fleet(32, "").await;
    let list = json!(["w0", "a", 1, []]);
    refused(&lb.report("/v1/events", &list).await, 400, "malformed");
    let event = json!(["removed", [1]]);
    let batch = Reporter::new(&lb, "w0").batch(&[event]);
    refused(&lb.report("/v1/events", &batch).await, 400, "malformed");
}

#[tokio::test]
async fn unknown_fields_and_unknown_events_are_skipped() {
    let lb = fleet(32, "").await;
    let mut reporter = Reporter::new(&lb, "w1");
    let text = text(0, 320);
    let mut event = stored(1..=10, None, &text, 32);
    event["medium"] = json!("GPU");
    event["extra_keys"] = json!([[1, 2], null]);
    let applied = reporter.send(&[json!({"type": "moved", "to": {"tier": 2}}), event]).await;
    assert_eq!((&applied["skipped"], &applied["stored"]), (&json!(1), &json!(10)), "{applied}");
    assert_eq!(matched(&lb, &text).await, 10);
}

/// Whatever a later version writes into its events, under names we know too.
#[tokio::test]
async fn events_of_an_unknown_type_may_hold_anything() {
    let lb = fleet(32, "").await;
    let mut reporter = Reporter::new(&lb, "w1");
    let later = json!({"type": "of-a-later-version", "block_hashes": {"from": 1, "to": 9},
        "text": 7, "block_size": "large", "parent_block_hash": []});
    let applied = reporter.send(&[later]).await;
    assert_eq!(applied["skipped"], 1, "{applied}");
}

#[tokio::test]
async fn token_ids_are_matched_by_prompts_of_token_ids() {
    let lb = fleet(32, "").await;
    let ids: Vec<u32> = (0..96).collect();
    let mut reporter = Reporter::new(&lb, "w1");
    // Engine blocks of 48 tokens, ours of 16.
    let event = json!({"type": "stored", "block_hashes": [1, 2], "token_ids": ids,
        "block_size": 48});
    reporter.send_well(std::slice::from_ref(&event)).await;
    let body = |ids: &[u32]| json!({"model": "m", "prompt": ids}).to_string();
    let prompt = |ids: &[u32]| Ask::post("/v1/completions", body(ids));
    assert_eq!(ask(&lb, &prompt(&ids)).await, ("w1".into(), "sticky".into(), 6, 6));
    let parted: Vec<u32> = ids[..64].iter().copied().chain(1000..1032).collect();
    assert_eq!(ask(&lb, &prompt(&parted)).await.2, 4);
    reporter.send_well(&[json!({"type": "removed", "block_hashes": [2]})]).await;
    assert_eq!(ask(&lb, &prompt(&ids)).await.2, 3, "only the first is left");

    let mut wrong = event;
    wrong["block_size"] = json!(47);
    let batch = reporter.batch(&[json!({"type": "cleared"}), wrong]);
    let field = refused(&lb.report("/v1/events", &batch).await, 400, "malformed");
    assert_eq!(field, "events[1].token_ids");
}

#[tokio::test]
async fn the_model_must_be_known_or_named() {
    let lb =
        lb().worker(echo()).config("index: {block_bytes: 32}").config("reports: {}").start().await;
    let text = text(0, 320);
    let mut reporter = Reporter::new(&lb, "w0");
    let unnamed = stored(1..=10, None, &text, 32);
    let batch = reporter.batch(&[json!({"type": "cleared"}), unnamed.clone()]);
    let field = refused(&lb.report("/v1/events", &batch).await, 422, "unsupported");
    assert_eq!(field, "events[1].model");
    // Neither what names it nor what stands behind a parent needs one.
    let mut named = stored(1..=5, None, &text[..160], 32);
    named["model"] = json!("m");
    let behind = stored(6..=10, Some(5), &text[160..], 32);
    reporter.send_well(&[named, behind]).await;
    assert_eq!(matched(&lb, &text).await, 10);

    let beat = json!({"worker_id": "w0", "worker_url": lb.workers[0].url(), "model": "m"});
    assert_eq!(lb.report("/v1/heartbeat", &beat).await.status, 200);
    reporter.send_well(&[json!({"type": "cleared"}), unnamed]).await;
    assert_eq!(matched(&lb, &text).await, 10);
}

#[tokio::test]
async fn an_unknown_worker_is_told_so() {
    let lb = fleet(32, "").await;
    let batch = Reporter::new(&lb, "nobody").batch(&[]);
    refused(&lb.report("/v1/events", &batch).await, 404, "unknown_worker");
    let beat = json!({"worker_id": "nobody", "worker_url": "http://127.0.0.1:1"});
    refused(&lb.report("/v1/heartbeat", &beat).await, 404, "unknown_worker");
    let count = lb.metrics().await;
    assert_eq!(count.sum("warmroute_reports_total", &[("outcome", "unknown_worker")]), 2);
}

#[tokio::test]
async fn paths_and_verbs_are_checked() {
    let lb = fleet(32, "").await;
    for path in ["/", "/v1", "/v1/events/", "/v1/event", "/v1/heartbeats", "/metrics", "/health"] {
        refused(&lb.report(path, &json!({})).await, 404, "not_found");
    }
    for method in [Method::GET, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS] {
        for path in ["/v1/events", "/v1/heartbeat"] {
            let answer = lb.report_as(&Ask::new(method.clone(), path, "")).await;
            refused(&answer, 405, "method_not_allowed");
        }
    }
    let head = lb.report_as(&Ask::new(Method::HEAD, "/v1/events", "")).await;
    assert_eq!((head.status, head.body.len()), (405, 0));
}

#[tokio::test]
async fn bodies_are_bounded() {
    let lb = fleet(32, "reports: {body_bytes_max: 4096}").await;
    let beat = |bytes: usize| {
        let beat = json!({"worker_id": "w0", "worker_url": lb.workers[0].url(), "pad": ""});
        let pad = "x".repeat(bytes - beat.to_string().len());
        beat.to_string().replace("\"pad\":\"\"", &format!("\"pad\":\"{pad}\""))
    };
    assert_eq!(lb.report_as(&Ask::post("/v1/heartbeat", beat(4096))).await.status, 200);
    for bytes in [4097, 10_000] {
        for path in ["/v1/heartbeat", "/v1/events"] {
            let whole = Ask::post(path, beat(bytes));
            refused(&lb.report_as(&whole).await, 413, "body_too_large");
            refused(&lb.report_as(&whole.in_pieces(1000)).await, 413, "body_too_large");
        }
    }
    assert_eq!(lb.report_as(&Ask::post("/v1/heartbeat", beat(4096))).await.status, 200);
    let count = lb.metrics().await;
    assert_eq!(count.sum("warmroute_reports_total", &[("outcome", "too_large")]), 8);
}

/// The listener closes after such an answer; that must not cost a client its answer that has not
/// sent all yet: a close with unread bytes is a reset, which discards what the client has not read.
#[tokio::test]
async fn a_client_that_is_still_sending_gets_its_refusal() {
    let lb = fleet(32, "reports: {body_bytes_max: 4096, token: s3cret}").await;
    let piece = vec![b'x'; 100_000];
    let right = "Authorization: Bearer s3cret\r\n";
    for (path, token, status) in
        [("/v1/events", right, 413), ("/v1/events", "", 401), ("/v1/elsewhere", right, 404)]
    {
        for nth in 0..20 {
            let mut raw = Raw::connect(lb.reports_addr()).await;
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: x\r\n{token}Content-Length: 2000000\r\n\r\n"
            );
            raw.send(head).await;
            for _ in 0..20 {
                if !raw.try_send(&piece).await {
                    break;
                }
            }
            let answer = raw.try_answer().await;
            let answer =
                answer.unwrap_or_else(|| panic!("no {status} the {nth}th time, but a reset"));
            assert_eq!(answer.status, status);
        }
    }
}

#[tokio::test]
async fn garbage_does_no_harm() {
    let lb = fleet(32, "").await;
    let noise = noise(100_000);
    let long =
        format!("POST /v1/events HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "x".repeat(1 << 20));
    for garbage in [
        noise.clone(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"\r\n\r\n\r\n".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        b"POST /v1/events HTTP/9.9\r\n\r\n".to_vec(),
        b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n".to_vec(),
        b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}"
            .to_vec(),
        b"POST /v1/events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_vec(),
        b"POST /v1/events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"
            .to_vec(),
        b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{\"worker".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
        long.into_bytes(),
    ] {
        let mut raw = Raw::connect(lb.reports_addr()).await;
        let _ = raw.try_send(&garbage).await;
        raw.finish().await;
        let said = raw.until_end().await;
        let said = String::from_utf8_lossy(&said).into_owned();
        let begins = said.get(..said.len().min(12)).unwrap_or_default().to_owned();
        let fine = said.is_empty() || begins.starts_with("HTTP/1.1 4") || !said.starts_with("HTTP");
        assert!(fine, "{:?}: {said}", String::from_utf8_lossy(&garbage[..garbage.len().min(60)]));
        Reporter::new(&lb, "w0").send(&[]).await;
    }
    assert_eq!(lb.ask(&Ask::chat_with("m", "hello")).await.status, 200);
}

/// What many reporters send in a burst: some of it fine, some of it not.
fn tiny(nth: usize, url: &str) -> Ask {
    let events = |body: Value| Ask::post("/v1/events", body.to_string());
    match nth % 8 {
        0 => Ask::post("/v1/heartbeat", json!({"worker_id": "w0", "worker_url": url}).to_string()),
        1 => events(json!({"worker_id": "w0", "epoch": "a", "seq": nth, "events": []})),
        2 => events(json!({"worker_id": "w1", "epoch": nth, "seq": 1, "events":
            [stored([nth as u64], None, &text(nth, 64), 64)]})),
        3 => events(json!({"worker_id": "nobody", "epoch": "a", "seq": nth, "events": []})),
        4 => events(json!({"worker_id": "w0"})),
        5 => Ask::post("/v1/events", "garbage"),
        6 => Ask::post("/v1/nowhere", "{}"),
        _ => Ask::get("/v1/events"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_reports_is_answered_and_traffic_flows_meanwhile() {
    const CONNECTIONS: usize = 8;
    const REPORTS: usize = 10_000;
    let lb = fleet(32, "").await;
    let over = AtomicBool::new(false);
    let url = lb.workers[0].url();
    let reports = async {
        let each = (0..CONNECTIONS).map(|first| {
            let lb = &lb;
            async move {
                let mut conn = Conn::open(lb.reports_addr(), Proto::H1).await.expect("connects");
                let mut statuses = BTreeMap::new();
                for nth in (first..REPORTS).step_by(CONNECTIONS) {
                    // Every connection sends every kind.
                    let answer = conn.ask(&tiny(nth + nth / CONNECTIONS, url)).await;
                    if answer.header("connection") == "close" {
                        conn = Conn::open(lb.reports_addr(), Proto::H1).await.expect("connects");
                    }
                    *statuses.entry(answer.status).or_insert(0_usize) += 1;
                }
                statuses
            }
        });
        let statuses = futures_util::future::join_all(each).await;
        over.store(true, SeqCst);
        statuses
    };
    let traffic = async {
        let mut sent = 0_usize;
        while !over.load(SeqCst) {
            let answer = lb.ask(&prompt(&text(sent, 200))).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            answer.assert_stamped();
            sent += 1;
        }
        sent
    };
    let (statuses, sent) = tokio::join!(reports, traffic);
    let mut all = BTreeMap::new();
    for (status, count) in statuses.into_iter().flatten() {
        *all.entry(status).or_insert(0) += count;
    }
    assert_eq!(all.values().sum::<usize>(), REPORTS, "{all:?}");
    let known = [200, 400, 404, 405, 503];
    assert!(all.keys().all(|status| known.contains(status)), "{all:?}");
    assert!(sent > 0 && all[&200] > 0);
    let counted = lb.metrics().await.sum("warmroute_reports_total", &[]);
    let not_reports = REPORTS / 4;
    assert_eq!(counted, (REPORTS - not_reports) as i64, "every report is counted once");
    assert_eq!(lb.ask(&prompt(&text(1, 200))).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_says_come_again() {
    let lb = fleet(16, "reports: {queue_batches_max: 1}").await;
    let mut slow = Reporter::new(&lb, "w0");
    let count = 300_000;
    let long = text(0, 16 * count);
    let batch = [stored(1..=count as u64, None, &long, 16)];
    let over = AtomicBool::new(false);
    let applies = async {
        let applied = slow.send(&batch).await;
        over.store(true, SeqCst);
        applied
    };
    let url = lb.workers[1].url();
    let hurry = (0..8).map(|_| async {
        let mut full = 0;
        let beat = json!({"worker_id": "w1", "worker_url": url});
        let mut conn = Conn::open(lb.reports_addr(), Proto::H1).await.expect("connects");
        while !over.load(SeqCst) {
            let answer = conn.ask(&Ask::post("/v1/heartbeat", beat.to_string())).await;
            if answer.status != 200 {
                refused(&answer, 503, "queue_full");
                assert_eq!(answer.header("retry-after"), "1");
                full += 1;
            }
        }
        full
    });
    let (applied, full) = tokio::join!(applies, futures_util::future::join_all(hurry));
    assert!(full.iter().sum::<usize>() > 0, "the queue was never full: {applied}");
    let beat = json!({"worker_id": "w1", "worker_url": url});
    eventually("there is room again", async || {
        lb.report("/v1/heartbeat", &beat).await.status == 200
    })
    .await;
}
