//! Load is counted up and always down again.

use std::time::Duration;

use crate::support::{
    Act, Ask, Lb, Proto, chat_body_of, cutting, dying, echo, eventually, lb, noise, streaming,
    streaming_gated,
};

const BLIND: &str = "
policy: round-robin
breaker: {failures_in_row_max: 1000, success_share_min: 0}
timeouts: {body_silence_s: 1, silence_s: 2}
limits: {body_bytes_max: 200000}
";

/// A client that loses patience.
async fn leaves(lb: &Lb, ask: Ask) {
    let mut conn = lb.conn(ask.proto).await;
    let _ = tokio::time::timeout(Duration::from_millis(30), conn.send(&ask)).await;
}

#[tokio::test]
async fn every_count_returns_to_zero_after_whatever_can_happen() {
    let lb = lb()
        .worker(echo())
        .worker(streaming(5))
        .worker(dying())
        .worker(cutting(2))
        .worker(echo().act(Act::CutPlain))
        .worker(streaming_gated(3))
        .worker(echo().act(Act::Stall))
        .worker(echo().act(Act::answer(500)))
        .config(BLIND)
        .start()
        .await;
    let clients = (0..64).map(|nth| {
        let lb = &lb;
        let proto = if nth % 2 == 0 { Proto::H1 } else { Proto::H2 };
        async move {
            let ask =
                Ask::post("/v1/chat/completions", chat_body_of(500 + nth * 2_000)).over(proto);
            match nth % 4 {
                0 | 1 => leaves(lb, ask).await,
                2 => leaves(lb, ask.in_pieces(3_000)).await,
                _ => drop(lb.ask(&ask).await),
            }
        }
    });
    let odd = async {
        let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n";
        let mut stalls = lb.raw().await;
        stalls.send(format!("{head}Content-Length: 9000\r\n\r\n")).await;
        stalls.send(noise(5_000)).await;
        let mut large = lb.raw().await;
        large.send(format!("{head}Content-Length: 900000\r\n\r\n")).await;
        let mut halves = lb.raw().await;
        halves.send(format!("{head}Content-Length: 9000\r\n\r\n")).await;
        halves.send(noise(5_000)).await;
        halves.finish().await;
        let _ = (stalls.answer().await, large.answer().await, halves.try_answer().await);
    };
    let gate = async {
        eventually("some wait for the gate", async || lb.workers[5].at_work() > 0).await;
        lb.workers[5].let_go(10_000);
    };
    tokio::join!(futures_util::future::join_all(clients), odd, gate);
    lb.idle().await;
    for worker in 0..lb.workers.len() {
        let status = lb.status(worker).await;
        for count in ["inflight", "queued_tokens", "decodes"] {
            assert_eq!(status[count], 0, "{status}");
        }
        assert_eq!(status["backlog_s"], 0.0, "{status}");
    }
    let metrics = lb.metrics().await;
    assert!(metrics.sum("warmroute_responses_total", &[("class", "2xx")]) > 0);
    assert!(metrics.sum("warmroute_responses_total", &[("class", "gone")]) > 0);
    assert!(metrics.sum("warmroute_responses_total", &[("class", "5xx")]) > 0);
}

#[tokio::test]
async fn a_request_is_counted_as_queued_and_then_as_decoding() {
    let lb = lb().worker(streaming_gated(3)).start().await;
    let loads = async || {
        let metrics = lb.metrics().await;
        ["warmroute_inflight", "warmroute_queued_tokens", "warmroute_decodes"]
            .map(|name| metrics.sum(name, &[("worker", "w0")]))
    };
    let ask = Ask::post("/v1/chat/completions", chat_body_of(8_000));
    let mut open = lb.open(&ask).await;
    let queued = loads().await;
    assert_eq!((queued[0], queued[2]), (1, 0), "{queued:?}");
    assert!(queued[1] > 1000, "about a token for four bytes: {queued:?}");
    lb.workers[0].let_go(1);
    assert!(open.event().await.is_ok());
    assert_eq!(loads().await, [1, 0, 1]);
    lb.workers[0].let_go(2);
    let _ = open.rest().await;
    lb.idle().await;
}

#[tokio::test]
async fn answers_are_counted_by_worker_and_class() {
    let lb = lb().worker(echo()).start().await;
    for _ in 0..3 {
        let _ = lb.ask(&Ask::chat("hello")).await;
    }
    lb.workers[0].set_act(Act::answer(404));
    let _ = lb.ask(&Ask::chat("hello")).await;
    let _ = lb.ask(&Ask::get("/v1/models/none")).await;
    eventually("all are counted", async || {
        let metrics = lb.metrics().await;
        let count = |worker, class| {
            metrics.sum("warmroute_responses_total", &[("worker", worker), ("class", class)])
        };
        [count("w0", "2xx"), count("w0", "4xx"), count("none", "4xx")] == [3, 1, 1]
    })
    .await;
}
