//! Workers that join by heartbeat, and leave when they fall silent.

use serde_json::{Value, json};

use crate::support::{
    Ask, DEADLINE, Lb, Reporter, Worker, echo, eventually, lb, stored, streaming_gated,
};

const JOIN: &str = "reports: {join: true}";

async fn beat(lb: &Lb, id: &str, url: &str, lease_s: u64) -> crate::support::Answer {
    let beat = json!({"worker_id": id, "worker_url": url, "model": "m", "lease_s": lease_s});
    lb.report("/v1/heartbeat", &beat).await
}

/// Joins or is renewed.
async fn joins(lb: &Lb, worker: &Worker, lease_s: u64) -> bool {
    let answer = beat(lb, &worker.id, worker.url(), lease_s).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["ok"], true);
    answer.json()["joined"].as_bool().expect("a bool")
}

async fn in_fleet(lb: &Lb, id: &str) -> Option<Value> {
    let all = lb.admin("/workers").await.json();
    all["workers"].as_array().expect("a list").iter().find(|worker| worker["id"] == id).cloned()
}

async fn takes_traffic(lb: &Lb, id: &str) {
    eventually(&format!("{id} takes traffic"), async || {
        in_fleet(lb, id).await.is_some_and(|worker| worker["takes_traffic"] == true)
    })
    .await;
}

async fn leaves(lb: &Lb, id: &str) {
    eventually(&format!("{id} leaves"), async || in_fleet(lb, id).await.is_none()).await;
}

fn malformed(answer: &crate::support::Answer, field: &str) {
    assert_eq!(answer.status, 400, "{answer:?}");
    let error = answer.json()["error"].clone();
    assert_eq!((&error["code"], &error["field"]), (&json!("malformed"), &json!(field)), "{error}");
}

#[tokio::test]
async fn a_worker_joins_after_its_first_health_check_and_leaves_with_its_lease() {
    // One that never works, so that nobody waits for a first verdict.
    let lb =
        lb().worker(echo().sick()).config(JOIN).config("index: {block_bytes: 32}").start().await;
    let worker = echo().models(&["m"]).with_late_health().start("j0".to_owned()).await;
    lb.ask(&Ask::chat("hello")).await.assert_error(503, "no_worker");
    assert!(joins(&lb, &worker, 60).await, "it was not there before");
    assert!(!joins(&lb, &worker, 60).await, "it was");
    assert_eq!(in_fleet(&lb, "j0").await.expect("it is there")["joined"], true);
    // What it reports counts at once, but traffic waits for a health check.
    let text = "a word or two ".repeat(40);
    Reporter::new(&lb, "j0").send_well(&[stored(1..=10, None, &text[..320], 32)]).await;
    lb.ask(&Ask::chat("hello")).await.assert_error(503, "no_worker");
    eventually("it is asked for its health", async || worker.health_checks() > 0).await;
    lb.ask(&Ask::chat("hello")).await.assert_error(503, "no_worker");
    worker.let_health_go();
    takes_traffic(&lb, "j0").await;
    let prompt = json!({"model": "m", "prompt": text[..320]}).to_string();
    let answer = lb.ask(&Ask::post("/v1/completions", prompt)).await;
    assert_eq!(answer.header("x-router-backend"), "j0");
    assert_eq!(answer.header("x-router-matched"), "10/10");
    let page = lb.metrics_page().await;
    assert!(page.contains("warmroute_workers 2\n") && page.contains("worker=\"j0\""), "{page}");

    // The last heartbeat's lease counts.
    assert!(!joins(&lb, &worker, 1).await);
    leaves(&lb, "j0").await;
    lb.ask(&Ask::chat("hello")).await.assert_error(503, "no_worker");
    eventually("its series are gone", async || !lb.metrics_page().await.contains("worker=\"j0\""))
        .await;
    assert_eq!(lb.metrics().await.sum("warmroute_workers", &[]), 1);
    let (asked, open) = (worker.health_checks(), worker.connections());
    assert!(joins(&lb, &worker, 60).await, "it may come back");
    takes_traffic(&lb, "j0").await;
    assert!(worker.health_checks() > asked && worker.connections() >= open);
    let blocks = in_fleet(&lb, "j0").await.expect("it is there")["index"]["blocks"].clone();
    assert_eq!(blocks, 0, "nothing is left of its former life");
}

#[tokio::test]
async fn a_worker_that_leaves_in_the_middle_of_an_answer_finishes_it_and_leaves_no_series() {
    let lb = lb().config(JOIN).start().await;
    let worker = streaming_gated(3).models(&["m"]).start("j0".to_owned()).await;
    assert!(joins(&lb, &worker, 1).await);
    takes_traffic(&lb, "j0").await;
    let mut open = lb.open(&Ask::stream("hello")).await;
    assert_eq!(open.header("x-router-backend"), "j0");
    leaves(&lb, "j0").await;
    worker.let_go(3);
    let (events, end) = open.rest().await;
    assert_eq!((events.len(), end), (4, Ok(())), "{events:?}");
    eventually("its end is counted", async || {
        lb.metrics().await.sum("warmroute_request_seconds_count", &[("endpoint", "chat")]) == 1
    })
    .await;
    // Upkeep has a second; then nothing may be left that nobody will ever drop.
    let until = tokio::time::Instant::now() + DEADLINE / 6;
    loop {
        let page = lb.metrics_page().await;
        let left: Vec<_> = page.lines().filter(|line| line.contains("worker=\"j0\"")).collect();
        if left.is_empty() {
            break;
        }
        assert!(tokio::time::Instant::now() < until, "series of a worker that left: {left:#?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn heartbeats_keep_a_worker_in_the_fleet() {
    let lb = lb().config("reports: {join: true, lease_s: 1}").start().await;
    let worker = echo().models(&["m"]).start("j0".to_owned()).await;
    let plain = json!({"worker_id": "j0", "worker_url": worker.url()});
    assert_eq!(lb.report("/v1/heartbeat", &plain).await.json()["joined"], true);
    let start = tokio::time::Instant::now();
    while start.elapsed() < std::time::Duration::from_millis(1600) {
        let answer = lb.report("/v1/heartbeat", &plain).await.json();
        assert_eq!(answer["joined"], false, "it was out for a moment");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    leaves(&lb, "j0").await;
}

#[tokio::test]
async fn nobody_joins_where_that_is_off() {
    let lb = lb().worker(echo()).config("reports: {}").start().await;
    let worker = echo().start("j0".to_owned()).await;
    let answer = beat(&lb, "j0", worker.url(), 60).await;
    assert_eq!(answer.status, 404, "{answer:?}");
    assert_eq!(answer.json()["error"]["code"], "unknown_worker");
    assert!(in_fleet(&lb, "j0").await.is_none());
    assert_eq!(worker.connections(), 0);
}

#[tokio::test]
async fn only_so_many_may_join() {
    let lb =
        lb().worker(echo()).config("reports: {join: true, joined_workers_max: 2}").start().await;
    let mut workers = Vec::new();
    for nth in 0..3 {
        workers.push(echo().start(format!("j{nth}")).await);
    }
    assert!(joins(&lb, &workers[0], 60).await);
    assert!(joins(&lb, &workers[1], 1).await);
    let answer = beat(&lb, "j2", workers[2].url(), 60).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.json()["error"]["code"], "fleet_full");
    assert!(in_fleet(&lb, "j2").await.is_none());
    assert!(!joins(&lb, &workers[0], 60).await, "those inside are not touched");
    leaves(&lb, "j1").await;
    assert!(joins(&lb, &workers[2], 60).await, "there is room again");
    assert!(in_fleet(&lb, "w0").await.is_some());
}

#[tokio::test]
async fn a_full_fleet_says_when_to_come_again() {
    let lb =
        lb().worker(echo()).config("reports: {join: true, joined_workers_max: 0}").start().await;
    let answer = beat(&lb, "j0", "http://127.0.0.1:9", 60).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.headers.contains_key("retry-after"), "docs/reports.md says so: {answer:?}");
}

#[tokio::test]
async fn the_same_name_from_another_address_moves_the_worker() {
    let lb = lb().config("reports: {join: true, joined_workers_max: 1}").start().await;
    let old = echo().models(&["m"]).start("j0".to_owned()).await;
    let new = echo().models(&["m"]).start("j0".to_owned()).await;
    joins(&lb, &old, 60).await;
    takes_traffic(&lb, "j0").await;
    assert_eq!(lb.ask(&Ask::chat("hello")).await.status, 200);
    joins(&lb, &new, 60).await;
    let moved = in_fleet(&lb, "j0").await.expect("it is there");
    assert_eq!(moved["url"], new.url());
    assert_eq!(moved["index"]["blocks"], 0, "another engine, another cache");
    takes_traffic(&lb, "j0").await;
    for _ in 0..5 {
        assert_eq!(lb.ask(&Ask::chat("hello")).await.status, 200);
    }
    assert_eq!((old.request_count(), new.request_count()), (1, 5));
    let all = lb.admin("/workers").await.json();
    assert_eq!(all["workers"].as_array().map(Vec::len), Some(1), "{all}");
    let checks = old.health_checks();
    eventually("the new one is checked on", async || new.health_checks() > 5).await;
    assert!(old.health_checks() <= checks + 1, "the old one is still checked");
}

#[tokio::test]
async fn two_workers_cannot_have_one_address() {
    let lb = lb().worker(echo().yaml("models: [m]")).config(JOIN).start().await;
    let worker = echo().start("j0".to_owned()).await;
    let url = lb.workers[0].url();
    malformed(&beat(&lb, "j0", url, 60).await, "worker_url");
    malformed(&beat(&lb, "j0", &url.replace("127.0.0.1", "localhost"), 60).await, "worker_url");
    joins(&lb, &worker, 60).await;
    malformed(&beat(&lb, "j1", worker.url(), 60).await, "worker_url");
    malformed(&beat(&lb, "j0", url, 60).await, "worker_url");
    assert_eq!(in_fleet(&lb, "j0").await.expect("it is there")["url"], worker.url());
    // A worker of the configuration stays where that says it is.
    assert_eq!(beat(&lb, "w0", worker.url(), 60).await.status, 200);
    assert_eq!(in_fleet(&lb, "w0").await.expect("it is there")["url"], url);
    assert_eq!(in_fleet(&lb, "w0").await.expect("it is there")["joined"], false);
}

#[tokio::test]
async fn names_and_addresses_of_those_who_join_are_checked() {
    let lb = lb().worker(echo()).config(JOIN).start().await;
    let long = "x".repeat(129);
    for id in ["", "a b", "a/b", "w\n0", "é", &long] {
        malformed(&beat(&lb, id, "http://127.0.0.1:9", 60).await, "worker_id");
    }
    for url in [
        "",
        "127.0.0.1:9",
        "ftp://127.0.0.1:9",
        "http://127.0.0.1:9/v1",
        "http://",
        "http://user@127.0.0.1:9",
        "http://no-such-host.invalid:9",
        "https://127.0.0.1:9",
    ] {
        malformed(&beat(&lb, "j0", url, 60).await, "worker_url");
    }
    assert_eq!(lb.admin("/workers").await.json()["workers"].as_array().map(Vec::len), Some(1));
}
