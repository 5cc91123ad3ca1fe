//! The pace of workers: what waits there is known, leaves nothing behind, and is learned from.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use futures_util::future::join_all;
use serde_json::{Value, json};
#[cfg(feature = "demo")]
use warmroute_engine::{Engine, EngineHandle, EngineOptions};

use crate::support::{Act, Ask, Lb, echo, eventually, holding, lb, noise, streaming_gated};

/// No two are alike from the start; a token is four bytes.
fn prompt(tokens: usize) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let rest = String::from_utf8(noise(tokens * 4)).expect("ASCII");
    format!("{:06} {rest}", NEXT.fetch_add(1, Relaxed))
}

async fn backlog_s(lb: &Lb, worker: usize) -> f64 {
    lb.status(worker).await["backlog_s"].as_f64().expect("a number")
}

/// What no forecast of a second and more becomes by mere waiting in a test.
async fn nothing_is_left(lb: &Lb, worker: usize) {
    assert_eq!(backlog_s(lb, worker).await.to_bits(), 0.0_f64.to_bits());
    let gauge = async || {
        let labels = format!("warmroute_backlog_seconds{{worker=\"w{worker}\"}} 0\n");
        lb.metrics_page().await.contains(&labels)
    };
    eventually("the gauge says so", gauge).await;
}

#[tokio::test]
async fn what_waits_is_forecast_and_goes_with_its_clients() {
    let lb = lb().worker(streaming_gated(3)).start().await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(lb.open(&Ask::stream(&prompt(200_000))).await);
    }
    // 25 seconds each by what is assumed, and as much again for attention.
    assert!(backlog_s(&lb, 0).await > 75.0);
    let told = async || lb.metrics().await.sum("warmroute_backlog_seconds", &[("worker", "w0")]);
    eventually("the gauge says so", async || told().await > 75).await;
    drop(open.pop());
    drop(open.remove(0));
    eventually("two are gone", async || backlog_s(&lb, 0).await < 75.0).await;
    assert!(backlog_s(&lb, 0).await > 25.0, "one waits");
    lb.workers[0].let_go(1);
    assert!(open[0].event().await.is_ok());
    nothing_is_left(&lb, 0).await;
    assert_eq!(lb.status(0).await["inflight"], 1, "it decodes");
    drop(open);
    lb.idle().await;
    nothing_is_left(&lb, 0).await;
}

#[tokio::test]
async fn requests_that_are_not_streamed_leave_nothing_either() {
    let lb = lb().worker(holding()).start().await;
    let asks = (0..3).map(|_| async { lb.ask(&Ask::chat(&prompt(4_000))).await });
    let look = async {
        eventually("all are there", async || lb.request_count() == 3).await;
        assert!(backlog_s(&lb, 0).await > 0.0);
        // Half a second each: nothing says that they are prefilled, so their time says it.
        eventually("their time is over", async || backlog_s(&lb, 0).await <= 0.0).await;
        assert_eq!(lb.status(0).await["inflight"], 3);
        lb.workers[0].let_go(3);
    };
    tokio::join!(join_all(asks), look);
    nothing_is_left(&lb, 0).await;
    lb.workers[0].set_act(Act::Echo);
    assert_eq!(lb.ask(&Ask::chat(&prompt(100_000))).await.status, 200);
    lb.idle().await;
    nothing_is_left(&lb, 0).await;
    lb.workers[0].set_act(Act::answer(429));
    assert_eq!(lb.ask(&Ask::stream(&prompt(100_000))).await.status, 429);
    lb.idle().await;
    nothing_is_left(&lb, 0).await;
    assert_eq!(lb.status(0).await["prefill"]["learned"], false, "nothing of that tells a speed");
}

#[tokio::test]
async fn what_could_not_be_sent_waits_nowhere() {
    let lb = lb()
        .worker(echo().yaml("weight: 1000"))
        .worker(echo().yaml("weight: 0.001"))
        .config("{policy: random, health: {interval_ms: 600000}}")
        .config("breaker: {failures_in_row_max: 1000, success_share_min: 0}")
        .start()
        .await;
    lb.workers[0].kill().await;
    for _ in 0..4 {
        let answer = lb.ask(&Ask::stream(&prompt(100_000))).await;
        assert_eq!((answer.status, answer.header("x-router-backend")), (200, "w1"));
        assert_eq!(answer.header("x-router-reason"), "retry");
    }
    lb.idle().await;
    nothing_is_left(&lb, 0).await;
    nothing_is_left(&lb, 1).await;
}

#[cfg(feature = "demo")]
fn engine(speed: f64) -> EngineHandle {
    let options = EngineOptions { speed, answer_tokens: 2, ..EngineOptions::default() };
    Engine::start(options).expect("an engine")
}

#[cfg(feature = "demo")]
async fn tokens_per_s(lb: &Lb, worker: usize) -> f64 {
    let status: Value = lb.status(worker).await;
    assert_eq!(status["prefill"]["learned"], true, "{status}");
    status["prefill_tokens_per_s"].as_f64().expect("a number")
}

/// Aim: a third of the speed is a third of the work, and an upgrade forgets it not. Method: real
/// sockets, simulated engines, eight clients that ask again and again.
#[cfg(feature = "demo")]
#[tokio::test]
async fn a_slower_worker_is_known_and_gets_its_smaller_share() {
    let (fast, slow) = (engine(6.0), engine(2.0));
    let yaml = "models: [\"*\"]";
    let mut lb = lb()
        .external("fast", &format!("http://127.0.0.1:{}", fast.port()), yaml)
        .external("slow", &format!("http://127.0.0.1:{}", slow.port()), yaml)
        .start()
        .await;
    let round = async || {
        let client = || async {
            for _ in 0..12 {
                let body = json!({"model": "sim-model", "stream": true,
                    "messages": [{"role": "user", "content": prompt(2_000)}]});
                let ask = Ask::post("/v1/chat/completions", body.to_string());
                assert_eq!(lb.ask(&ask).await.status, 200);
            }
        };
        join_all((0..8).map(|_| client())).await;
    };
    let before = [fast.stats().requests, slow.stats().requests];
    round().await;
    let ratio = tokens_per_s(&lb, 0).await / tokens_per_s(&lb, 1).await;
    assert!((2.0..4.5).contains(&ratio), "thrice as fast: {ratio}");
    let between = [fast.stats().requests, slow.stats().requests];
    assert_eq!(between[0] + between[1] - before[0] - before[1], 96);
    round().await;
    let share = (slow.stats().requests - between[1]) as f64 / 96.0;
    assert!((0.1..0.38).contains(&share), "a quarter would be fair: {share}");
    lb.idle().await;
    for worker in 0..2 {
        nothing_is_left_of(&lb, worker).await;
    }
    let known = [tokens_per_s(&lb, 0).await, tokens_per_s(&lb, 1).await];
    lb.upgrade().await;
    for (worker, known) in known.into_iter().enumerate() {
        // Once a second what is believed moves a little towards what was learned, at both.
        let ratio = tokens_per_s(&lb, worker).await / known;
        assert!((0.95..1.05).contains(&ratio), "the successor knows: {ratio}");
    }
}

#[cfg(feature = "demo")]
async fn nothing_is_left_of(lb: &Lb, worker: usize) {
    eventually("nothing waits", async || backlog_s(lb, worker).await <= 0.0).await;
}
