//! How far a worker's holdings are believed, and what makes the router drop them.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use serde_json::{Value, json};

use crate::support::{
    Act, Ask, Lb, Reporter, Seen, block_stored, confirmed, drops, echo, eventually, holds,
    ids_prompt, kv_batch, lb, matched, presumed, stored_ids, tokens, trust_is,
    zmq_engine::ZmqEngine,
};

/// A worker of the model `m` that may report.
async fn one(config: &str) -> Lb {
    let lb = lb().worker(echo().yaml("models: [m]")).config("reports: {}");
    lb.config(config).start().await
}

async fn beat(lb: &Lb, epoch: &str, more: &Value) -> Value {
    let mut beat = json!({"worker_id": "w0", "worker_url": lb.workers[0].url(), "epoch": epoch});
    for (key, value) in more.as_object().expect("an object") {
        beat[key] = value.clone();
    }
    let answer = lb.report("/v1/heartbeat", &beat).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// The process dies: nobody listens at its port, and the router has seen it.
async fn dies(lb: &Lb) {
    lb.workers[0].kill().await;
    lb.health_is(0, "unhealthy").await;
}

async fn comes_back(lb: &Lb) {
    lb.workers[0].revive().await;
    lb.health_is(0, "healthy").await;
}

/// Four blocks of 16 tokens under the names 1 to 4.
fn four() -> (Vec<u32>, Value) {
    let all = tokens(1, 64);
    let event = stored_ids(&[1, 2, 3, 4], None, &all, 16);
    (all, event)
}

#[tokio::test]
async fn reports_from_the_first_one_on_are_exact() {
    let lb = one("").await;
    assert_eq!(lb.status(0).await["trust"], "presumed");
    beat(&lb, "x", &json!({"seq": 0})).await;
    assert_eq!(lb.status(0).await["trust"], "presumed", "a heartbeat tells of no block");
    for (seq, trust) in [(0, "exact"), (1, "exact"), (2, "degraded"), (1, "exact"), (9, "degraded")]
    {
        let mut reporter = Reporter::new(&lb, "w0");
        reporter.epoch = format!("from {seq} {trust} {}", drops(&lb, "w0").await);
        reporter.seq = seq;
        reporter.send(&[four().1]).await;
        trust_is(&lb, 0, trust).await;
        reporter.send(&[]).await;
        assert_eq!(lb.status(0).await["trust"], trust, "and the next batch changes nothing");
    }
    let log = lb.stderr();
    assert!(log.contains("trust in what is known of worker's cache changed"), "{log}");
}

#[tokio::test]
async fn a_gap_degrades_and_right_answers_heal() {
    let lb = one("").await;
    let (all, event) = four();
    let mut reporter = Reporter::new(&lb, "w0");
    reporter.send_well(&[event]).await;
    trust_is(&lb, 0, "exact").await;
    reporter.seq = 7;
    reporter.send(&[]).await;
    trust_is(&lb, 0, "degraded").await;
    assert_eq!(confirmed(&lb, 0).await, [4, 0, 0], "what is held stays");
    let said = |cached: usize| {
        Act::json(&json!({"choices": [], "usage": {"prompt_tokens": 65, "completion_tokens": 1,
            "prompt_tokens_details": {"cached_tokens": cached}}}))
    };
    let mut prompt = all.clone();
    prompt.push(7);
    let ask = ids_prompt("m", &prompt);
    let right = async |count: usize| {
        lb.workers[0].set_act(said(64));
        for _ in 0..count {
            assert_eq!(matched(&lb, &ask).await.0, 4);
        }
    };
    right(63).await;
    lb.workers[0].set_act(said(16));
    matched(&lb, &ask).await;
    right(63).await;
    assert_eq!(lb.status(0).await["trust"], "degraded", "not in a row");
    right(1).await;
    trust_is(&lb, 0, "exact").await;
}

#[tokio::test]
async fn an_exact_worker_that_is_often_wrong_is_degraded_and_asked_to_sync() {
    let lb = one("").await;
    let (all, event) = four();
    let mut reporter = Reporter::new(&lb, "w0");
    reporter.send_well(&[event]).await;
    let cached = Arc::new(AtomicUsize::new(16));
    let now = cached.clone();
    lb.workers[0].set_act(Act::script(move |_: &Seen| {
        Act::json(&json!({"choices": [], "usage": {"prompt_tokens": 65, "completion_tokens": 1,
            "prompt_tokens_details": {"cached_tokens": now.load(SeqCst)}}}))
    }));
    let mut prompt = all.clone();
    prompt.push(7);
    let ask = ids_prompt("m", &prompt);
    for nth in 0..3 {
        matched(&lb, &ask).await;
        assert_eq!(lb.status(0).await["trust"], "exact", "after {nth}");
    }
    cached.store(64, SeqCst);
    matched(&lb, &ask).await;
    cached.store(16, SeqCst);
    matched(&lb, &ask).await;
    trust_is(&lb, 0, "degraded").await;
    assert_eq!(confirmed(&lb, 0).await, [4, 0, 0], "nothing is thrown away for that");
    assert_eq!(beat(&lb, "a", &json!({"seq": 1})).await["resync"], true);
    assert_eq!(reporter.send(&[]).await["resync"], true);
}

#[tokio::test]
async fn a_worker_that_died_and_came_back_is_believed_empty() {
    let lb = one("").await;
    let ask = ids_prompt("m", &tokens(1, 64));
    matched(&lb, &ask).await;
    assert_eq!(presumed(&lb, 0).await, 4);
    // Failing its checks is no loss of a cache.
    lb.workers[0].set_healthy(false);
    lb.health_is(0, "unhealthy").await;
    lb.workers[0].set_healthy(true);
    lb.health_is(0, "healthy").await;
    assert_eq!(presumed(&lb, 0).await, 4);
    assert_eq!(drops(&lb, "w0").await, 0);

    dies(&lb).await;
    comes_back(&lb).await;
    eventually("its presumptions are gone", async || presumed(&lb, 0).await == 0).await;
    assert_eq!(drops(&lb, "w0").await, 1);
    assert_eq!(matched(&lb, &ask).await, (0, 4));
    assert_eq!(matched(&lb, &ask).await, (4, 4));
}

#[tokio::test]
async fn heartbeats_of_the_same_epoch_show_that_it_is_the_same_process() {
    let lb = one("").await;
    let (all, event) = four();
    let mut reporter = Reporter::new(&lb, "w0");
    reporter.send_well(std::slice::from_ref(&event)).await;
    dies(&lb).await;
    beat(&lb, "a", &json!({"seq": 1})).await;
    comes_back(&lb).await;
    assert_eq!(matched(&lb, &ids_prompt("m", &all)).await, (4, 4));
    assert_eq!(drops(&lb, "w0").await, 0);
    assert_eq!(lb.status(0).await["trust"], "exact");

    // Silent meanwhile: it may be another.
    dies(&lb).await;
    comes_back(&lb).await;
    eventually("its holdings are gone", async || confirmed(&lb, 0).await == [0; 3]).await;
    assert_eq!(drops(&lb, "w0").await, 1);
    trust_is(&lb, 0, "degraded").await;
    assert_eq!(beat(&lb, "a", &json!({"seq": 1})).await["resync"], true, "it should tell anew");

    // Another epoch says so at once, and what it tells is all there is.
    reporter.epoch = "b".to_owned();
    reporter.seq = 1;
    reporter.send_well(std::slice::from_ref(&event)).await;
    dies(&lb).await;
    assert_eq!(beat(&lb, "c", &json!({})).await["resync"], false);
    assert_eq!(confirmed(&lb, 0).await, [0; 3]);
    reporter.epoch = "c".to_owned();
    reporter.seq = 0;
    reporter.send_well(&[event]).await;
    comes_back(&lb).await;
    assert_eq!(matched(&lb, &ids_prompt("m", &all)).await, (4, 4), "of its new life");
    assert_eq!(lb.status(0).await["trust"], "exact");
}

#[tokio::test]
async fn a_publisher_that_goes_on_shows_that_it_is_the_same_process() {
    let engine = ZmqEngine::start().await;
    let sources = engine.sources();
    let worker = echo()
        .yaml("models: [m]")
        .yaml("kv_events: auto")
        .side("/kv_event_sources", move |_| (200, sources.clone()));
    let lb = lb().worker(worker).start().await;
    trust_is(&lb, 0, "exact").await;
    engine.subscribed().await;
    let batches = async |count: i64| {
        eventually("the batch is applied", async || {
            lb.metrics().await.sum("warmroute_kv_event_batches_total", &[]) == count
        })
        .await;
    };
    let all = tokens(1, 64);
    engine.publish(&kv_batch(&[block_stored(&[1, 2], None, &all[..32], 16)]));
    batches(1).await;
    dies(&lb).await;
    engine.publish(&kv_batch(&[block_stored(&[3, 4], Some(2), &all[32..], 16)]));
    batches(2).await;
    comes_back(&lb).await;
    assert_eq!(matched(&lb, &ids_prompt("m", &all)).await, (4, 4));
    assert_eq!(drops(&lb, "w0").await, 0);
    assert_eq!(lb.status(0).await["trust"], "exact");
}

#[tokio::test]
async fn a_reporter_that_falls_silent_degrades_trust_until_it_speaks_again() {
    let lb = one("").await;
    let (all, event) = four();
    let mut reporter = Reporter::new(&lb, "w0");
    reporter.send_well(&[event]).await;
    beat(&lb, "a", &json!({"seq": 1, "lease_s": 1})).await;
    trust_is(&lb, 0, "degraded").await;
    assert_eq!(confirmed(&lb, 0).await, [4, 0, 0]);
    beat(&lb, "a", &json!({"seq": 1})).await;
    trust_is(&lb, 0, "exact").await;
    assert_eq!(matched(&lb, &ids_prompt("m", &all)).await, (4, 4));
}

#[tokio::test]
async fn a_worker_whose_lease_lapsed_is_new_when_it_joins_again() {
    let lb = lb().worker(echo().sick()).config("reports: {join: true}").start().await;
    let worker = echo().start("j0".to_owned()).await;
    let joins = async |lease_s: u64| {
        let beat = json!({"worker_id": "j0", "worker_url": worker.url(), "model": "m",
            "epoch": "a", "seq": 1, "lease_s": lease_s});
        lb.report("/v1/heartbeat", &beat).await.json()
    };
    assert_eq!(joins(60).await["joined"], true);
    let (all, event) = four();
    let mut reporter = Reporter::new(&lb, "j0");
    reporter.send_well(std::slice::from_ref(&event)).await;
    let ask = ids_prompt("m", &all);
    let up = async || {
        eventually("it takes traffic", async || lb.status(1).await["takes_traffic"] == true).await;
    };
    up().await;
    assert_eq!(matched(&lb, &ask).await, (4, 4));
    joins(1).await;
    eventually("it leaves", async || lb.status(1).await.is_null()).await;
    let back = joins(60).await;
    assert_eq!((&back["joined"], &back["resync"]), (&json!(true), &json!(true)));
    up().await;
    assert_eq!(confirmed(&lb, 1).await, [0; 3]);
    assert_eq!(lb.status(1).await["trust"], "presumed");
    assert_eq!(matched(&lb, &ask).await, (0, 4));
    // Its next batch is in the middle of what it said.
    assert_eq!(reporter.send(&[]).await["resync"], true);
    trust_is(&lb, 1, "degraded").await;
}

#[tokio::test]
async fn a_presumption_that_reports_do_not_confirm_expires() {
    let lb = one("index: {presumed_ttl_s: 1}").await;
    let mut reporter = Reporter::new(&lb, "w0");
    let (_, event) = four();
    reporter.send_well(&[event]).await;
    let (never, later) = (tokens(2, 64), tokens(3, 48));
    assert_eq!(matched(&lb, &ids_prompt("m", &never)).await, (0, 4));
    assert_eq!(matched(&lb, &ids_prompt("m", &later)).await, (0, 3));
    assert_eq!(presumed(&lb, 0).await, 7);
    reporter.send_well(&[stored_ids(&[11, 12, 13], None, &later, 16)]).await;
    // A prompt of text is none that reports of tokens could confirm.
    let text =
        Ask::post("/v1/completions", json!({"model": "m", "prompt": "t".repeat(640)}).to_string());
    assert_eq!(matched(&lb, &text).await, (0, 5));
    eventually("the presumptions expire", async || presumed(&lb, 0).await == 5).await;
    holds(&lb, "w0", "presumed", 5).await;
    holds(&lb, "w0", "gpu", 7).await;
    assert_eq!(matched(&lb, &text).await, (5, 5), "and stays");
    assert_eq!(matched(&lb, &ids_prompt("m", &later)).await, (3, 3), "it was confirmed");
    assert_eq!(matched(&lb, &ids_prompt("m", &never)).await, (0, 4));
}

#[tokio::test]
async fn without_reports_a_presumption_does_not_expire() {
    let lb = one("index: {presumed_ttl_s: 1}").await;
    // Another worker's upkeep shows that time has passed.
    let silent = ids_prompt("m", &tokens(1, 64));
    assert_eq!(matched(&lb, &silent).await, (0, 4));
    beat(&lb, "a", &json!({"lease_s": 3})).await;
    eventually("time passes", async || {
        lb.metrics().await.sum("warmroute_report_age_seconds", &[("worker", "w0")]) >= 3
    })
    .await;
    assert_eq!(matched(&lb, &silent).await, (4, 4));
}

#[tokio::test]
async fn a_failed_dispatch_leaves_no_presumption() {
    let config = "health: {interval_ms: 600000}\nbreaker: {failures_in_row_max: 1000}";
    let lb = one(config).await;
    let all = tokens(1, 128);
    let ask = ids_prompt("m", &all[..64]);
    assert_eq!(matched(&lb, &ask).await, (0, 4));
    lb.workers[0].kill().await;
    for prompt in [&all[..], &tokens(2, 64), &all[..64]] {
        let answer = lb.ask(&ids_prompt("m", prompt)).await;
        assert_eq!(answer.status, 502, "{answer:?}");
    }
    assert_eq!(presumed(&lb, 0).await, 4, "what it had before stays");
    lb.workers[0].revive().await;
    assert_eq!(matched(&lb, &ids_prompt("m", &all)).await, (4, 8));

    // The same of a worker that reports, and of a prompt its reports cannot confirm.
    let mut reporter = Reporter::new(&lb, "w0");
    reporter.send_well(&[json!({"type": "cleared"}), four().1]).await;
    assert_eq!(presumed(&lb, 0).await, 0);
    lb.workers[0].kill().await;
    let text =
        Ask::post("/v1/completions", json!({"model": "m", "prompt": "t".repeat(640)}).to_string());
    for ask in [ids_prompt("m", &tokens(5, 64)), text] {
        assert_eq!(lb.ask(&ask).await.status, 502);
    }
    assert_eq!(presumed(&lb, 0).await, 0);
    assert_eq!(confirmed(&lb, 0).await, [4, 0, 0]);
}
