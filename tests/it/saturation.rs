//! `inflight_max: auto`: seen by who overloads a fleet, by nobody else. The engines are simulated, the
//! sockets are real.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use serde_yaml_ng::Value as Yaml;
use tokio::time::Instant;
use warmroute_engine::{Engine, EngineHandle, EngineOptions};

use crate::support::{Act, Ask, Lb, eventually, holding, lb};

/// Two at a time, five begun a second at most where each says 50 words.
fn two_at_a_time() -> EngineHandle {
    let options = EngineOptions { max_num_seqs: 2, ..EngineOptions::default() };
    Engine::start(options).expect("an engine")
}

fn stream(words: usize) -> Ask {
    let message = json!({"role": "user", "content": "hello"});
    let body = json!({"model": "sim-model", "stream": true, "max_tokens": words,
        "ignore_eos": true, "messages": [message]});
    Ask::post("/v1/chat/completions", body.to_string())
}

/// One engine, with a queue of one second and no more than 48 in flight.
async fn scene(engine: &EngineHandle) -> Lb {
    lb().external("e0", &engine.url(), "{}")
        .config("limits: {queue_s: 1, inflight_auto_max: 48}")
        .start()
        .await
}

async fn bound(lb: &Lb) -> u64 {
    lb.status(0).await["inflight_max"].as_u64().expect("a number")
}

/// So many at once; how many were answered, and how many refused.
async fn wave(lb: &Lb, requests: usize) -> (usize, usize) {
    let ask = stream(50);
    let answers = join_all((0..requests).map(|_| lb.ask(&ask))).await;
    for refused in answers.iter().filter(|answer| answer.status != 200) {
        refused.assert_error(503, "saturated");
        assert_eq!(refused.header("retry-after"), "1");
        assert_eq!(refused.header("x-router-reason"), "shed");
    }
    let answered = answers.iter().filter(|answer| answer.status == 200).count();
    (answered, requests - answered)
}

async fn passed_over(lb: &Lb) -> i64 {
    lb.metrics().await.sum("warmroute_passed_over_total", &[])
}

#[tokio::test]
async fn an_overload_is_shed_and_then_forgotten() {
    let engine = two_at_a_time();
    let lb = scene(&engine).await;
    assert_eq!(bound(&lb).await, 48, "nothing is learned");
    // When most have been answered, 36 more could be in flight, but would wait for seven seconds.
    let more = async {
        let there = async || engine.stats().running + engine.stats().waiting;
        eventually("all are there", async || there().await == 40).await;
        eventually("most are answered", async || there().await <= 12).await;
        wave(&lb, 60).await
    };
    let (first, (answered, refused)) = tokio::join!(wave(&lb, 40), more);
    assert_eq!(first, (40, 0));
    assert!(refused > 24, "{answered} answered, as many as if nothing were learned");
    assert_eq!(passed_over(&lb).await, refused as i64);
    let limit = lb.status(0).await["limit"].clone();
    assert_eq!(limit["auto"], true);
    assert!(limit["waiting_max"].as_u64().is_some_and(|max| (8..48).contains(&max)), "{limit}");
    lb.idle().await;
    for _ in 0..40 {
        assert_eq!(lb.ask(&stream(1)).await.status, 200);
    }
    assert_eq!(bound(&lb).await, 48, "{}", lb.status(0).await);
    eventually("the metric says so", async || {
        lb.metrics().await.sum("warmroute_inflight_max", &[("worker", "e0")]) == 48
    })
    .await;
    assert_eq!(wave(&lb, 20).await, (20, 0));
}

#[tokio::test]
async fn a_fleet_that_keeps_up_sheds_nothing() {
    let engines = [two_at_a_time(), two_at_a_time()];
    let [a, b] = &engines;
    let lb = lb().external("e0", &a.url(), "{}").external("e1", &b.url(), "{}").start().await;
    let client = async || {
        for _ in 0..20 {
            assert_eq!(lb.ask(&stream(10)).await.status, 200);
        }
    };
    join_all((0..6).map(|_| client())).await;
    assert_eq!(passed_over(&lb).await, 0);
}

#[tokio::test]
async fn what_was_learned_survives_an_upgrade() {
    let engine = two_at_a_time();
    let mut lb = scene(&engine).await;
    assert_eq!(wave(&lb, 40).await, (40, 0));
    lb.idle().await;
    let learned = bound(&lb).await;
    assert!((8..40).contains(&learned), "{}", lb.status(0).await);
    lb.upgrade().await;
    assert!(bound(&lb).await.abs_diff(learned) <= 1, "{learned}, {}", lb.status(0).await);
}

#[tokio::test]
async fn a_number_holds_as_it_is_and_may_change_to_auto_and_back() {
    let lb = lb().worker(holding().yaml("inflight_max: 2")).worker(holding()).start().await;
    let fixed = lb.status(0).await;
    assert_eq!((&fixed["inflight_max"], &fixed["limit"]["auto"]), (&json!(2), &json!(false)));
    let auto = lb.status(1).await;
    assert_eq!((&auto["inflight_max"], &auto["limit"]["auto"]), (&json!(1024), &json!(true)));
    let set = async |inflight_max: Yaml| {
        lb.edit_with(|config| {
            let workers = config.get_mut("workers").and_then(Yaml::as_sequence_mut);
            let worker = workers.expect("workers")[0].as_mapping_mut().expect("a mapping");
            worker.insert("inflight_max".into(), inflight_max);
        });
        assert_eq!(lb.admin_post("/reload").await.status, 200);
        lb.status(0).await["inflight_max"].as_u64()
    };
    assert_eq!(set("auto".into()).await, Some(1024));
    assert_eq!(set(3.into()).await, Some(3));
    lb.reload("limits: {inflight_max: 9, inflight_auto_max: 500}").await;
    assert_eq!(lb.status(1).await["inflight_max"], 9, "it follows what holds for all");
    lb.reload("limits: {inflight_max: auto}").await;
    assert_eq!(lb.status(1).await["inflight_max"], 500);
}

#[tokio::test]
async fn who_refuses_is_asked_less_but_nobody_is_turned_away_for_it() {
    for status in [429, 503] {
        let busy = Act::answer(status).header("retry-after", "1");
        let lb = lb().worker(holding().act(busy)).start().await;
        // It refused one of one: eight is the least that is left.
        assert_eq!(lb.ask(&Ask::chat("hello")).await.status, status);
        assert_eq!(lb.status(0).await["limit"]["refused_max"], 8);
        lb.workers[0].set_act(Act::Hold);
        let ask = Ask::chat("hello");
        let asked = join_all((0..12).map(|_| lb.ask(&ask)));
        let let_go = async {
            eventually("all are there", async || lb.workers[0].at_work() == 12).await;
            assert!(passed_over(&lb).await > 0, "it was past what it takes");
            lb.workers[0].let_go(12);
        };
        let (answers, ()) = tokio::join!(asked, let_go);
        assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    }
}

/// Answers in one piece tell nothing of a queue.
#[tokio::test]
async fn answers_that_are_not_streamed_teach_nothing() {
    let lb = lb().worker(holding()).config("limits: {queue_s: 1}").start().await;
    let ask = Ask::chat("hello");
    let asked = join_all((0..20).map(|_| lb.ask(&ask)));
    let let_go = async {
        eventually("all are there", async || lb.workers[0].at_work() == 20).await;
        assert_eq!(lb.status(0).await["limit"]["waiting"], 0);
        let since = Instant::now();
        let long = async || since.elapsed() > Duration::from_millis(1200);
        eventually("they waited for longer than a stream may", long).await;
        lb.workers[0].let_go(20);
    };
    let (answers, ()) = tokio::join!(asked, let_go);
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    assert_eq!(bound(&lb).await, 1024);
}
