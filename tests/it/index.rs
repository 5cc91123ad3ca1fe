//! The prefix index of all workers: what bounds it, what it shares, what it forgets.

use serde_json::json;

use crate::support::{Ask, Lb, Reporter, echo, eventually, lb, noise, stored};

const POOL: &str = "index: {block_bytes: 32, bytes_max: 65536}";

async fn fleet(more: &str) -> Lb {
    lb().worker(echo().yaml("models: [m]"))
        .worker(echo().yaml("models: [m]"))
        .config("{reports: {}, policy: sticky-least-loaded}")
        .config(more)
        .start()
        .await
}

/// So many bytes of text that parts from every other seed's at the start.
fn text(seed: usize, bytes: usize) -> String {
    let mut text = format!("{seed:06} ");
    text.push_str(std::str::from_utf8(&noise(bytes - text.len())).expect("ASCII"));
    text
}

/// The worker that answered, and how many blocks it was believed to hold.
async fn ask(lb: &Lb, text: &str) -> (String, usize) {
    let body = json!({"model": "m", "prompt": text}).to_string();
    let answer = lb.ask(&Ask::post("/v1/completions", body)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let matched = answer.header("x-router-matched").split_once('/').expect("n/m").0;
    (answer.header("x-router-backend").to_owned(), matched.parse().expect("a number"))
}

async fn gauge(lb: &Lb, name: &str) -> i64 {
    lb.metrics().await.sum(name, &[])
}

/// Far more than fits: the coldest goes, nothing fails, and the latest is known.
#[tokio::test]
async fn the_pool_bounds_what_all_hold_together() {
    let lb = fleet(POOL).await;
    for seed in 0..250 {
        ask(&lb, &text(seed, 2048)).await;
    }
    assert_eq!(ask(&lb, &text(249, 2048)).await.1, 64, "the latest is kept");
    assert_eq!(ask(&lb, &text(0, 2048)).await.1, 0, "the oldest went");
    eventually("the gauges have followed", async || {
        let metrics = lb.metrics().await;
        let [bytes, most, blocks] = [
            "warmroute_index_shared_bytes",
            "warmroute_index_shared_bytes_max",
            "warmroute_index_distinct_blocks",
        ]
        .map(|name| metrics.sum(name, &[]));
        let trimmed = metrics.sum("warmroute_index_trimmed_blocks_total", &[]);
        // 16,000 blocks were asked for, in 64 KiB.
        most == 65536 && bytes <= most && blocks > 500 && trimmed > 10_000
    })
    .await;
}

/// One worker that reports more than everything else together gives way to the others.
#[tokio::test]
async fn who_holds_the_most_gives_way_first() {
    let lb = fleet("index: {block_bytes: 32, bytes_max: 131072}").await;
    let small = text(1_000_000 - 1, 640);
    let (holder, _) = ask(&lb, &small).await;
    let other = if holder == "w0" { "w1" } else { "w0" };
    let mut reporter = Reporter::new(&lb, other);
    for seed in 0..100 {
        // Engine blocks of 50 blocks of ours: few names for much text.
        reporter.send_well(&[stored([seed as u64], None, &text(seed, 1600), 1600)]).await;
    }
    assert_eq!(ask(&lb, &small).await, (holder, 20), "a small share is left alone");
    let trimmed = async |worker: &str| {
        let labels = [("worker", worker)];
        lb.metrics().await.sum("warmroute_index_trimmed_blocks_total", &labels)
    };
    eventually("the large one was trimmed", async || trimmed(other).await > 100).await;
}

/// A prefix that both hold lies there once.
#[tokio::test]
async fn what_workers_have_in_common_is_stored_once() {
    let lb = fleet("index: {block_bytes: 32}").await;
    let shared = text(7, 3200);
    for worker in ["w0", "w1"] {
        let mut reporter = Reporter::new(&lb, worker);
        reporter.send_well(&[stored(1..101, None, &shared, 32)]).await;
    }
    eventually("both hold it", async || gauge(&lb, "warmroute_index_held_blocks").await == 200)
        .await;
    assert_eq!(gauge(&lb, "warmroute_index_distinct_blocks").await, 100);
    assert_eq!(gauge(&lb, "warmroute_index_runs").await, 1);
    assert_eq!(ask(&lb, &shared).await.1, 100);
}

/// What a worker held that leaves the fleet is taken out of memory, not only out of sight.
#[tokio::test]
async fn what_a_restarted_engine_held_is_swept_out() {
    let lb = fleet("index: {block_bytes: 32}").await;
    let mut reporter = Reporter::new(&lb, "w0");
    for seed in 0..20 {
        let ids = seed as u64 * 100..seed as u64 * 100 + 100;
        reporter.send_well(&[stored(ids, None, &text(seed, 3200), 32)]).await;
    }
    assert_eq!(ask(&lb, &text(3, 3200)).await, ("w0".to_owned(), 100));
    reporter.send_well(&[json!({"type": "cleared"})]).await;
    assert_eq!(ask(&lb, &text(4, 3200)).await.1, 0, "at once");
    eventually("its blocks are gone", async || {
        // But for the prompt just asked for, which is presumed.
        gauge(&lb, "warmroute_index_distinct_blocks").await == 100
    })
    .await;
}
