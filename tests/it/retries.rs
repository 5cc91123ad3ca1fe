//! A worker that cannot be reached costs nothing but another attempt; one that broke off while it
//! may have begun to work costs the request, never a second generation.

use std::time::Duration;

use crate::support::{
    Act, Ask, Delivered, How, Lb, Proto, chat_body_of, deliver, dying, echo, eventually, lb,
};

/// Nobody is ejected and no check runs again: dead workers stay candidates.
const BLIND: &str = "
health: {interval_ms: 600000}
breaker: {failures_in_row_max: 1000, success_share_min: 0}
";

/// A fleet of a worker that refuses, tried first as good as always, and a good one.
async fn refusing_then_good() -> Lb {
    let lb = lb()
        .worker(echo().yaml("weight: 1000"))
        .worker(echo().yaml("weight: 0.001"))
        .config(BLIND)
        .config("policy: random")
        .start()
        .await;
    lb.workers[0].kill().await;
    lb
}

async fn bodies_reach_the_good_worker(how: How) {
    let lb = refusing_then_good().await;
    let sizes = [200, 6 << 10, 65_536, 65_537, 78 << 10, 1_700_000];
    for bytes in sizes {
        let ask = Ask::post("/v1/chat/completions", chat_body_of(bytes));
        let delivered = deliver(&lb, how, &ask).await;
        assert_eq!(delivered.status, 200, "{how:?} {bytes}: {delivered:?}");
        assert_eq!(delivered.json["sha256"], ask.sha256(), "{how:?} {bytes}");
        assert_eq!(delivered.backend, "w1");
        assert_eq!(delivered.reason, "retry", "{how:?} {bytes}");
    }
    let metrics = lb.metrics().await;
    let retries = metrics.sum("warmroute_retries_total", &[("cause", "connect")]);
    assert_eq!(retries, sizes.len() as i64);
    assert_eq!(lb.request_count(), sizes.len());
    lb.idle().await;
}

#[tokio::test]
async fn http1_bodies_with_content_length_reach_the_next_worker_when_one_refuses() {
    bodies_reach_the_good_worker(How::Length).await;
}

#[tokio::test]
async fn http1_bodies_in_chunks_reach_the_next_worker_when_one_refuses() {
    bodies_reach_the_good_worker(How::Chunked).await;
}

#[tokio::test]
async fn http1_bodies_after_100_continue_reach_the_next_worker_when_one_refuses() {
    bodies_reach_the_good_worker(How::Expect).await;
}

#[tokio::test]
async fn http2_bodies_with_content_length_reach_the_next_worker_when_one_refuses() {
    bodies_reach_the_good_worker(How::H2Length).await;
}

#[tokio::test]
async fn http2_bodies_without_content_length_reach_the_next_worker_when_one_refuses() {
    bodies_reach_the_good_worker(How::H2Unsized).await;
}

#[tokio::test]
async fn requests_without_a_body_reach_the_next_worker_when_one_refuses() {
    let lb = refusing_then_good().await;
    for proto in [Proto::H1, Proto::H2] {
        let answer = lb.ask(&Ask::get("/v1/files").over(proto)).await;
        assert_eq!(answer.header("x-router-reason"), "retry");
        assert_eq!(answer.echo().worker, "w1");
    }
}

#[tokio::test]
async fn no_more_than_retries_max_further_workers_are_tried() {
    let mut scene = lb().config(BLIND).config("limits: {retries_max: 1}");
    for _ in 0..4 {
        scene = scene.worker(echo());
    }
    let lb = scene.start().await;
    for worker in &lb.workers {
        worker.kill().await;
    }
    lb.ask(&Ask::chat("hello")).await.assert_error(502, "worker_unreachable");
    let retries = lb.metrics().await.sum("warmroute_retries_total", &[]);
    assert_eq!(retries, 1);
}

#[tokio::test]
async fn when_all_workers_refuse_the_client_is_told() {
    let lb = lb().worker(echo()).worker(echo()).config(BLIND).start().await;
    for worker in &lb.workers {
        worker.kill().await;
    }
    for how in How::ALL {
        for bytes in [200, 80_000, 1_700_000] {
            let ask = Ask::post("/v1/chat/completions", chat_body_of(bytes));
            let delivered = deliver(&lb, how, &ask).await;
            assert_eq!(delivered.status, 502, "{how:?} {bytes}: {delivered:?}");
            assert_eq!(delivered.json["error"]["code"], "worker_unreachable", "{how:?} {bytes}");
        }
    }
    lb.idle().await;
}

#[tokio::test]
async fn a_connection_the_worker_closed_while_idle_is_not_used_again() {
    let lb = lb().worker(echo().closes_idle_after(Duration::from_millis(40))).start().await;
    for how in How::ALL {
        let ask = Ask::post("/v1/chat/completions", chat_body_of(78_000));
        assert_eq!(deliver(&lb, how, &ask).await.json["sha256"], ask.sha256());
        let closed = async || lb.workers[0].open_connections() == 0;
        eventually("the worker has closed its idle connections", closed).await;
        let before = lb.request_count();
        assert_eq!(deliver(&lb, how, &ask).await.json["sha256"], ask.sha256());
        assert_eq!(lb.request_count(), before + 1);
    }
}

/// Asks until the router takes a pooled connection (the last one may not be back in the pool yet).
async fn ask_until_reused(lb: &Lb, how: How, ask: &Ask) -> (Delivered, usize) {
    for asked in 1..=50 {
        let delivered = deliver(lb, how, ask).await;
        if delivered.reason != "prefix" && asked > 1 {
            return (delivered, asked);
        }
    }
    panic!("no connection is ever reused");
}

#[tokio::test]
async fn a_connection_that_dies_as_it_is_used_again_is_replaced() {
    for how in How::ALL {
        for bytes in [6 << 10, 60_000, 1_700_000] {
            let lb = lb().worker(echo().act(Act::DieOnReuse)).start().await;
            let ask = Ask::post("/v1/chat/completions", chat_body_of(bytes));
            let (delivered, asked) = ask_until_reused(&lb, how, &ask).await;
            if how.is_chunked() && bytes > 65_536 {
                // Its body is not held to the end and cannot be sent twice.
                assert_eq!(delivered.status, 502, "{delivered:?}");
                assert_eq!(delivered.json["error"]["code"], "worker_failed");
                continue;
            }
            assert_eq!(delivered.reason, "retry", "{how:?} {bytes}: {delivered:?}");
            assert_eq!(delivered.json["sha256"], ask.sha256(), "{how:?} {bytes}: {delivered:?}");
            let metrics = lb.metrics().await;
            let labels = [("cause", "stale-connection")];
            assert_eq!(metrics.sum("warmroute_retries_total", &labels), 1);
            assert_eq!(lb.request_count(), asked);
            assert_eq!(lb.status(0).await["breaker"], "closed");
            lb.idle().await;
        }
    }
}

#[tokio::test]
async fn a_worker_that_dies_over_a_request_costs_this_request_and_no_second_generation() {
    let lb = lb().worker(dying()).worker(dying()).config(BLIND).start().await;
    let mut sent = 0;
    for how in How::ALL {
        for bytes in [200, 6 << 10, 80_000, 1_700_000] {
            let ask = Ask::post("/v1/chat/completions", chat_body_of(bytes));
            let delivered = deliver(&lb, how, &ask).await;
            assert_eq!(delivered.status, 502, "{how:?} {bytes}: {delivered:?}");
            assert_eq!(delivered.json["error"]["code"], "worker_failed");
            assert_eq!(delivered.reason, "worker-failed");
            assert_ne!(delivered.backend, "none", "the worker that failed is named");
            sent += 1;
            assert_eq!(lb.request_count(), sent, "{how:?} {bytes}: sent to one worker, once");
        }
    }
    lb.idle().await;
}

/// On a pooled connection too: that it died only after a while shows that it was not stale.
#[tokio::test]
async fn a_worker_that_dies_over_a_request_on_a_kept_connection_gets_no_second_try_either() {
    let lb = lb().worker(echo()).worker(echo()).config(BLIND).start().await;
    for nth in 0..10 {
        let _ = lb.ask(&Ask::chat(&format!("hello {nth}"))).await;
    }
    for worker in &lb.workers {
        worker.set_act(Act::DieAfter(Duration::from_millis(250)));
    }
    for how in How::ALL {
        let before = lb.request_count();
        let ask = Ask::post("/v1/chat/completions", chat_body_of(6 << 10));
        let delivered = deliver(&lb, how, &ask).await;
        assert_eq!(delivered.status, 502, "{how:?}: {delivered:?}");
        assert_eq!(delivered.json["error"]["code"], "worker_failed");
        assert_eq!(lb.request_count(), before + 1, "{how:?}");
    }
}

/// Within 100 ms a death on a pooled connection cannot be told from a stale connection, which may be
/// tried once more. A request that kills engines must not go round the fleet by that.
#[tokio::test]
async fn a_request_that_kills_its_worker_at_once_reaches_one_more_at_most() {
    let mut scene = lb().config(BLIND).config("policy: round-robin");
    for _ in 0..4 {
        scene = scene.worker(echo());
    }
    let lb = scene.start().await;
    for nth in 0..40 {
        let _ = lb.ask(&Ask::chat(&format!("hello {nth}"))).await;
    }
    for worker in &lb.workers {
        worker.set_act(Act::Die);
    }
    let answer = lb.ask(&Ask::chat("hello")).await;
    answer.assert_error(502, "worker_failed");
    assert!(lb.request_count() - 40 <= 2, "{} generations", lb.request_count() - 40);
}
