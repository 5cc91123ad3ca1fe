//! Upgrade, stop and crash: what the next process knows.

use std::fs;

use serde_json::{Value, json};

use crate::support::{
    Ask, Lb, Proto, Reporter, WorkerSpec, block_stored, confirmed, drops, dying, echo, eventually,
    holding, ids_prompt, kv_batch, lb, matched, stored_ids, streaming_gated, tokens, trust_is,
    zmq_engine::ZmqEngine,
};

fn prompt(nth: usize) -> Ask {
    Ask::chat(&format!("{nth} {}", "word ".repeat(100)))
}

/// Where a prompt went, and how much of it was held.
async fn where_to(lb: &Lb, ask: &Ask) -> (String, String) {
    let answer = lb.ask(ask).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    (answer.header("x-router-backend").to_owned(), answer.header("x-router-matched").to_owned())
}

/// A worker of the model `m` that reports.
fn reporting() -> WorkerSpec {
    echo().yaml("models: [m]")
}

#[tokio::test]
async fn what_was_presumed_is_known_after_it() {
    let three = lb().worker(echo()).worker(echo()).worker(echo());
    let mut lb = three.config("policy: sticky-least-loaded").start().await;
    let mut before = Vec::new();
    for nth in 0..12 {
        lb.ask(&prompt(nth)).await;
        before.push(where_to(&lb, &prompt(nth)).await);
    }
    for _ in 0..3 {
        lb.upgrade().await;
        for (nth, before) in before.iter().enumerate() {
            assert_eq!(where_to(&lb, &prompt(nth)).await, *before, "prompt {nth}");
        }
    }
    eventually("the first process has left", async || lb.exit_status().is_some()).await;
    let metrics = lb.metrics().await;
    assert_eq!(metrics.sum("warmroute_state_restored_workers", &[]), 3);
}

#[tokio::test]
async fn reports_go_on_where_they_were() {
    let mut lb = lb().worker(reporting()).config("reports: {}").start().await;
    let ids = tokens(1, 64);
    let mut reporter = Reporter::new(&lb, "w0");
    reporter.send_well(&[stored_ids(&[1, 2], None, &ids[..32], 16)]).await;
    let (epoch, seq) = (reporter.epoch.clone(), reporter.seq);
    trust_is(&lb, 0, "exact").await;
    lb.upgrade().await;
    assert_eq!(confirmed(&lb, 0).await, [2, 0, 0]);
    assert_eq!(lb.status(0).await["trust"], "exact");
    let mut reporter = Reporter::new(&lb, "w0");
    (reporter.epoch, reporter.seq) = (epoch, seq - 1);
    let again = reporter.send(&[stored_ids(&[1, 2], None, &ids[..32], 16)]).await;
    assert_eq!(again["repeat"], true, "{again}");
    reporter.send_well(&[stored_ids(&[3], Some(2), &ids[32..48], 16)]).await;
    assert_eq!(matched(&lb, &ids_prompt("m", &ids[..48])).await, (3, 3));
    assert_eq!(lb.metrics().await.sum("warmroute_report_gaps_total", &[]), 0);
    // What is removed now was stored at the process before.
    let gone = json!({"type": "removed", "block_hashes": [1]});
    reporter.send_well(&[gone]).await;
    assert_eq!(confirmed(&lb, 0).await, [2, 0, 0]);
    assert_eq!(matched(&lb, &ids_prompt("m", &ids[..48])).await.0, 0);
}

#[tokio::test]
async fn a_report_on_a_connection_to_the_old_process_reaches_the_new_one() {
    let mut lb =
        lb().worker(reporting()).worker(streaming_gated(5)).config("reports: {}").start().await;
    // Keeps the old process there.
    lb.workers[1].let_go(1);
    let stream = Ask::post(
        "/v1/chat/completions",
        json!({"model": "sim", "stream": true, "messages": [{"role": "user", "content": "x"}]})
            .to_string(),
    );
    let mut open = lb.open(&stream).await;
    assert!(open.event().await.is_ok());
    let mut kept =
        crate::support::Conn::open(lb.reports_addr(), Proto::H1).await.expect("connects");
    let ids = tokens(1, 16);
    let batch = |seq: u64, id: u64| {
        let parent = (id > 1).then(|| id - 1);
        let event = stored_ids(&[id], parent, &ids, 16);
        let body = json!({"worker_id": "w0", "epoch": "e", "seq": seq, "events": [event]});
        Ask::post("/v1/events", body.to_string())
    };
    assert_eq!(kept.ask(&batch(1, 1)).await.status, 200);
    lb.upgrade().await;
    if kept.is_open().await {
        let answer = kept.ask(&batch(2, 2)).await;
        assert_eq!(answer.status, 200);
        eventually("the new process has it", async || confirmed(&lb, 0).await[0] == 2).await;
    }
    lb.workers[1].let_go(100);
    assert_eq!(open.rest().await.1, Ok(()));
}

#[tokio::test]
async fn published_events_are_neither_lost_nor_doubled() {
    for replay in [true, false] {
        let engine = ZmqEngine::start().await;
        let mut source = json!({"endpoint": engine.events_at()});
        if replay {
            source["replay_endpoint"] = json!(engine.replays_at());
        }
        let yaml = format!("kv_events: {source}");
        let mut lb = lb().worker(echo().yaml("models: [m]").yaml(&yaml)).start().await;
        engine.subscribed().await;
        // From its first batch on.
        let ids = tokens(1, 16 * 400);
        let (mut next, mut removed) = (1_u64, 0_u64);
        let mut publish = async |engine: &ZmqEngine, count: u64| {
            for _ in 0..count {
                let at = (next as usize - 1) * 16;
                let parent = (next > 1).then(|| next - 1);
                let mut events = vec![block_stored(&[next], parent, &ids[at..at + 16], 16)];
                if next.is_multiple_of(4) {
                    // A copy that comes and goes: taken twice, or not at all, it would show.
                    events.push(block_stored(&[next], parent, &ids[at..at + 16], 16));
                    events.push(json!({"type": "BlockRemoved", "block_hashes": [next],
                        "medium": "GPU", "group_idx": 0}));
                    removed += 1;
                }
                engine.publish(&kv_batch(&events));
                next += 1;
                tokio::task::yield_now().await;
            }
            next - 1
        };
        let before = publish(&engine, 50).await;
        eventually("they are applied", async || confirmed(&lb, 0).await[0] == before).await;
        trust_is(&lb, 0, "exact").await;
        for _ in 0..2 {
            let (last, ()) = tokio::join!(
                async {
                    let mut last = 0;
                    for _ in 0..60 {
                        last = publish(&engine, 1).await;
                        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                    }
                    last
                },
                lb.upgrade()
            );
            eventually("all of it is applied", async || confirmed(&lb, 0).await[0] == last).await;
            assert_eq!(lb.status(0).await["trust"], "exact", "replay {replay}");
        }
        let last = publish(&engine, 5).await;
        eventually("and what comes after", async || confirmed(&lb, 0).await[0] == last).await;
        assert_eq!(matched(&lb, &ids_prompt("m", &ids[..16 * last as usize])).await.0 as u64, last);
        assert_eq!(lb.metrics().await.sum("warmroute_report_gaps_total", &[]), 0);
        assert!(!lb.stderr().contains("restarted"), "{}", lb.stderr());
    }
}

#[tokio::test]
async fn what_operators_did_and_breakers_found_stays() {
    let mut lb = lb()
        .worker(echo())
        .worker(echo())
        .worker(dying())
        .worker(echo())
        .config("breaker: {cool_down_first_ms: 60000}\npolicy: round-robin")
        .start()
        .await;
    assert_eq!(lb.admin_post("/workers/w0/drain").await.status, 200);
    assert_eq!(lb.admin_post("/workers/w3/remove").await.status, 200);
    for nth in 0..40 {
        lb.ask(&prompt(nth)).await;
        if lb.status(2).await["breaker"] == "open" {
            break;
        }
    }
    lb.breaker_is(2, "open").await;
    lb.upgrade().await;
    let fleet = lb.admin("/workers").await.json();
    let ids: Vec<_> = fleet["workers"].as_array().expect("a list").iter().collect();
    assert_eq!(ids.len(), 3, "{fleet}");
    assert_eq!((&ids[0]["drained"], &ids[2]["breaker"]), (&json!(true), &json!("open")), "{fleet}");
    assert_eq!(fleet["removed"], json!(["w3"]));
    for nth in 0..10 {
        assert_eq!(lb.ask(&prompt(nth)).await.header("x-router-backend"), "w1");
    }
}

#[tokio::test]
async fn workers_that_joined_stay_and_their_leases_go_on() {
    let mut lb = lb().config("reports: {join: true}").start().await;
    let worker = echo().start("j0".to_owned()).await;
    let beat = json!({"worker_id": "j0", "worker_url": worker.url(), "current_load": 0,
        "lease_s": 3, "epoch": "e"});
    assert_eq!(lb.report("/v1/heartbeat", &beat).await.json()["joined"], true);
    lb.health_is(0, "healthy").await;
    lb.ask(&prompt(1)).await;
    lb.upgrade().await;
    let (backend, matched) = where_to(&lb, &prompt(1)).await;
    assert_eq!(backend, "j0");
    assert!(!matched.starts_with("0/"), "{matched}");
    assert_eq!(lb.report("/v1/heartbeat", &beat).await.json()["joined"], false);
    eventually("its lease lapses", async || {
        lb.admin("/workers").await.json()["workers"].as_array().is_some_and(Vec::is_empty)
    })
    .await;
}

#[tokio::test]
async fn the_load_of_the_old_process_counts_while_it_drains() {
    let mut lb = lb().worker(holding()).worker(echo()).config("policy: least-loaded").start().await;
    let mut waiting = Vec::new();
    for _ in 0..6 {
        let mut conn = lb.conn(Proto::H1).await;
        waiting.push(tokio::spawn(async move { conn.send(&Ask::chat("hello")).await.is_ok() }));
    }
    eventually("w0 holds one at least", async || lb.workers[0].at_work() > 0).await;
    lb.upgrade().await;
    for _ in 0..5 {
        assert_eq!(lb.ask(&Ask::chat("hello")).await.header("x-router-backend"), "w1");
    }
    for task in waiting {
        task.abort();
    }
}

#[tokio::test]
async fn idle_clients_are_told_to_connect_anew() {
    let mut lb = lb().worker(echo()).start().await;
    let mut kept = lb.conn(Proto::H1).await;
    assert_eq!(kept.ask(&Ask::chat("hello")).await.status, 200);
    lb.upgrade().await;
    let answer = kept.ask(&Ask::chat("once more on the same connection")).await;
    assert_eq!((answer.status, answer.header("connection")), (200, "close"));
    eventually("the old process has left", async || lb.exit_status().is_some()).await;
    assert!(lb.exit_status().is_some_and(|status| status.success()));
}

#[tokio::test]
async fn blocks_of_other_names_are_forgotten_and_nothing_else() {
    let mut lb = lb().worker(reporting()).config("reports: {}").start().await;
    let ids = tokens(1, 32);
    Reporter::new(&lb, "w0").send_well(&[stored_ids(&[1, 2], None, &ids, 16)]).await;
    assert_eq!(lb.admin_post("/workers/w0/drain").await.status, 200);
    lb.edit("index: {block_bytes: 64}");
    lb.upgrade().await;
    assert!(lb.stderr().contains("blocks are named otherwise"), "{}", lb.stderr());
    let status = lb.status(0).await;
    assert_eq!(
        (status["drained"].as_bool(), status["trust"].as_str()),
        (Some(true), Some("presumed"))
    );
    assert_eq!(confirmed(&lb, 0).await, [0, 0, 0]);
    // The next report is the first we hear of, in the middle: it must sync.
    let mut reporter = Reporter::new(&lb, "w0");
    reporter.seq = 2;
    let applied = reporter.send(&[stored_ids(&[3], Some(2), &ids[..16], 16)]).await;
    assert_eq!(applied["resync"], true, "{applied}");
}

// --- stop and crash

fn with_state(spec: WorkerSpec, config: &str) -> crate::support::Scene {
    let scene = lb().worker(spec).config("reports: {}").config(config);
    let dir = scene.folder().join("state");
    scene.config(&format!("state: {{dir: {}, interval_s: 1}}", dir.display()))
}

fn snapshot(lb: &Lb) -> std::path::PathBuf {
    lb.folder().join("state/state")
}

/// Waits until a snapshot was written that began after this call.
async fn snapshot_written(lb: &Lb) {
    let count = async || lb.metrics().await.sum("warmroute_snapshots_total", &[("result", "ok")]);
    let before = count().await;
    eventually("a snapshot is written", async || count().await >= before + 2).await;
}

#[tokio::test]
async fn a_crash_forgets_only_what_came_after_the_snapshot() {
    let mut lb = with_state(reporting(), "").start().await;
    let ids = tokens(1, 48);
    Reporter::new(&lb, "w0").send_well(&[stored_ids(&[1, 2], None, &ids[..32], 16)]).await;
    snapshot_written(&lb).await;
    lb.crash_and_start().await;
    assert_eq!(confirmed(&lb, 0).await, [2, 0, 0]);
    assert_eq!(lb.status(0).await["trust"], "degraded", "nobody has said that it is the same");
    assert_eq!(matched(&lb, &ids_prompt("m", &ids[..32])).await.0, 2);
    let mut reporter = Reporter::new(&lb, "w0");
    reporter.seq = 2;
    reporter.send_well(&[stored_ids(&[3], Some(2), &ids[32..], 16)]).await;
    assert_eq!(lb.status(0).await["trust"], "exact");
    assert_eq!(confirmed(&lb, 0).await, [3, 0, 0]);
}

#[tokio::test]
async fn an_engine_that_restarted_meanwhile_begins_with_an_empty_index() {
    let mut lb = with_state(reporting(), "").start().await;
    let ids = tokens(1, 48);
    Reporter::new(&lb, "w0").send_well(&[stored_ids(&[1, 2], None, &ids[..32], 16)]).await;
    snapshot_written(&lb).await;
    lb.crash_and_start().await;
    assert_eq!(drops(&lb, "w0").await, 0);
    let mut reporter = Reporter::new(&lb, "w0");
    "another".clone_into(&mut reporter.epoch);
    reporter.send_well(&[stored_ids(&[9], None, &ids[32..], 16)]).await;
    assert_eq!(confirmed(&lb, 0).await, [1, 0, 0]);
    assert_eq!(matched(&lb, &ids_prompt("m", &ids[..32])).await.0, 0);
}

#[tokio::test]
async fn a_report_missed_while_nobody_ran_is_a_gap() {
    let mut lb = with_state(reporting(), "").start().await;
    let ids = tokens(1, 48);
    Reporter::new(&lb, "w0").send_well(&[stored_ids(&[1, 2], None, &ids[..32], 16)]).await;
    snapshot_written(&lb).await;
    lb.crash_and_start().await;
    let mut reporter = Reporter::new(&lb, "w0");
    reporter.seq = 5;
    let applied = reporter.send(&[stored_ids(&[3], Some(2), &ids[32..], 16)]).await;
    assert_eq!(applied["resync"], true, "{applied}");
    assert_eq!(lb.status(0).await["trust"], "degraded");
}

#[tokio::test]
async fn a_stop_keeps_all_for_the_next_start() {
    let mut lb = with_state(reporting(), "state: {interval_s: 3600}").start().await;
    let ids = tokens(1, 32);
    Reporter::new(&lb, "w0").send_well(&[stored_ids(&[1, 2], None, &ids, 16)]).await;
    lb.signal("TERM");
    eventually("it ends", async || lb.exit_status().is_some()).await;
    assert!(snapshot(&lb).exists());
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata(snapshot(&lb)).expect("there").permissions(),
    );
    assert_eq!(mode & 0o777, 0o600, "it holds a key");
    lb.start_again().await;
    assert_eq!(confirmed(&lb, 0).await, [2, 0, 0]);
}

#[tokio::test]
async fn a_snapshot_that_is_damaged_old_or_foreign_is_not_used() {
    let mut lb = with_state(reporting(), "").start().await;
    let ids = tokens(1, 32);
    Reporter::new(&lb, "w0").send_well(&[stored_ids(&[1, 2], None, &ids, 16)]).await;
    snapshot_written(&lb).await;
    lb.kill();
    let good = fs::read(snapshot(&lb)).expect("a snapshot");
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    for (bytes, why) in [
        (flipped, "damaged"),
        (good[..good.len() - 3].to_vec(), "ends"),
        (b"something else altogether".to_vec(), "no state"),
        (Vec::new(), ""),
    ] {
        fs::write(snapshot(&lb), bytes).expect("writes");
        let said = lb.stderr().len();
        lb.start_again().await;
        assert_eq!(confirmed(&lb, 0).await, [0, 0, 0]);
        assert_eq!(
            lb.ask(&Ask::post("/v1/completions", json!({"model": "m", "prompt": "x"}).to_string()))
                .await
                .status,
            200
        );
        let new = lb.stderr()[said..].to_owned();
        assert!(new.contains("snapshot not used") && new.contains(why), "{new}");
        lb.kill();
    }
    lb.edit("state: {age_max_s: 0}");
    fs::write(snapshot(&lb), &good).expect("writes");
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    lb.start_again().await;
    assert_eq!(confirmed(&lb, 0).await, [0, 0, 0]);
    assert!(lb.stderr().contains("s old, and `state.age_max_s` is 0"), "{}", lb.stderr());
    let found: Value = lb.status(0).await;
    assert_eq!(found["trust"], "presumed");
}

#[tokio::test]
async fn discovered_workers_stay_while_nobody_has_named_them_again() {
    let found = echo().start("found".to_owned()).await;
    let scene = lb();
    let file = scene.folder().join("workers.yaml");
    fs::write(&file, format!("- {{id: found, url: '{}'}}\n", found.url())).expect("writes");
    let mut lb =
        scene.config(&format!("discovery: {{file: {}}}", file.display())).at_once().start().await;
    lb.health_is(0, "healthy").await;
    lb.ask(&prompt(1)).await;
    fs::write(&file, "- {").expect("writes");
    lb.upgrade().await;
    let (backend, matched) = where_to(&lb, &prompt(1)).await;
    assert_eq!(backend, "found");
    assert!(!matched.starts_with("0/"), "{matched}");
    assert_eq!(lb.status(0).await["origin"], "file");
}

#[tokio::test]
async fn after_a_crash_a_replay_brings_what_was_missed_or_shows_another_engine() {
    for restarts in [false, true] {
        let mut engine = ZmqEngine::start().await;
        let source =
            json!({"endpoint": engine.events_at(), "replay_endpoint": engine.replays_at()});
        let worker = reporting().yaml(&format!("kv_events: {source}"));
        let mut lb = with_state(worker, "").start().await;
        engine.subscribed().await;
        let ids = tokens(1, 16 * 8);
        let publish = |engine: &ZmqEngine, from: u64, to: u64| {
            for id in from..=to {
                let at = (id as usize - 1) * 16;
                let parent = (id > from).then(|| id - 1);
                let parent = parent.or_else(|| (id > 1 && !restarts).then(|| id - 1));
                let event = block_stored(&[id], parent, &ids[at..at + 16], 16);
                engine.publish(&kv_batch(&[event]));
            }
        };
        publish(&engine, 1, 5);
        eventually("they are applied", async || confirmed(&lb, 0).await[0] == 5).await;
        snapshot_written(&lb).await;
        lb.kill();
        if restarts {
            engine.restart().await;
        }
        publish(&engine, 6, 8);
        lb.start_again().await;
        let now = if restarts { 3 } else { 8 };
        eventually("it holds what the engine does", async || {
            confirmed(&lb, 0).await[0] == now && lb.status(0).await["trust"] == "exact"
        })
        .await;
        assert_eq!(drops(&lb, "w0").await, i64::from(restarts));
        assert_eq!(lb.metrics().await.sum("warmroute_report_gaps_total", &[]), 0);
    }
}
