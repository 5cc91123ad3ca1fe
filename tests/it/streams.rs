//! Streams: each event at once, a break is told, and a client that leaves is not worked for.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::{
    Act, Ask, Lb, Proto, cutting, echo, error_of, eventually, lb, stalled, streaming,
    streaming_gated, within,
};

const BOTH: [Proto; 2] = [Proto::H1, Proto::H2];

fn content(event: &str) -> String {
    let json: serde_json::Value = serde_json::from_str(event).expect("JSON");
    json["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn every_event_passes_before_the_next_is_sent() {
    let lb = lb().worker(streaming_gated(20)).start().await;
    for proto in BOTH {
        let mut open = lb.open(&Ask::stream("hello").over(proto)).await;
        open.assert_stamped();
        assert_eq!(open.status, 200);
        assert_eq!(open.header("content-type"), "text/event-stream");
        for nth in 1..=20 {
            // The worker sends this one now, and the next only after we have seen this.
            lb.workers[0].let_go(1);
            let event = open.event().await.expect("a stream").expect("an event");
            assert_eq!(content(&event), format!("token {nth}"));
        }
        let (rest, end) = open.rest().await;
        assert_eq!((rest, end), (vec!["[DONE]".to_owned()], Ok(())));
    }
    assert!(lb.workers[0].cancels().is_empty());
    lb.idle().await;
}

#[tokio::test]
async fn a_hundred_streams_at_once_are_kept_apart() {
    let lb = lb().worker(streaming(30)).worker(streaming(30)).start().await;
    let streams = (0..100).map(|nth| {
        let lb = &lb;
        async move {
            let ask = Ask::stream(&format!("hello {nth}")).over(BOTH[nth % 2]);
            let (events, end) = lb.open(&ask).await.rest().await;
            assert_eq!(end, Ok(()));
            assert_eq!(events.len(), 31);
            let tokens = events[..30].iter().map(|event| content(event));
            assert!(tokens.eq((1..=30).map(|nth| format!("token {nth}"))), "{events:?}");
        }
    });
    futures_util::future::join_all(streams).await;
    lb.idle().await;
}

async fn a_break_is_told(proto: Proto) {
    for sent in [0, 1, 3] {
        let lb = lb().worker(cutting(sent)).start().await;
        let (events, end) = lb.open(&Ask::stream("hello").over(proto)).await.rest().await;
        assert!(end.is_err(), "{sent}: nobody may take it for whole");
        assert_eq!(events.len(), sent + 1, "{sent} and the error: {events:?}");
        let last = serde_json::from_str(events.last().expect("one")).expect("JSON");
        assert_eq!(error_of(&last), "worker_failed");
        lb.idle().await;
    }
}

#[tokio::test]
async fn an_http1_stream_that_breaks_off_ends_with_an_error_event_and_without_an_end_mark() {
    a_break_is_told(Proto::H1).await;
}

#[tokio::test]
async fn an_http2_stream_that_breaks_off_ends_with_an_error_event_and_without_an_end_mark() {
    a_break_is_told(Proto::H2).await;
}

#[tokio::test]
async fn a_plain_answer_that_breaks_off_gets_nothing_added_and_no_clean_end() {
    let lb = lb().worker(echo().act(Act::CutPlain)).start().await;
    for proto in BOTH {
        let answer = lb.ask(&Ask::chat("hello").over(proto)).await;
        assert_eq!(&answer.body[..], b"{\"half\":", "{proto:?}");
        assert!(answer.broken.is_some(), "{proto:?}");
    }
    lb.idle().await;
}

#[tokio::test]
async fn a_stream_that_falls_silent_is_ended_with_a_word() {
    let lb = lb().worker(streaming_gated(5)).config("timeouts: {silence_s: 1}").start().await;
    lb.workers[0].let_go(1);
    let (events, end) = lb.open(&Ask::stream("hello")).await.rest().await;
    assert_eq!(events.len(), 2, "{events:?}");
    assert_eq!(error_of(&serde_json::from_str(&events[1]).expect("JSON")), "worker_timeout");
    assert!(end.is_err());
    lb.idle().await;
}

/// Waits until worker 0 has seen so many clients leave; prints how long the news took.
async fn cancel_arrives(lb: &Lb, count: usize, left: Instant, what: &str) {
    let seen = async || lb.workers[0].cancels().len() >= count;
    eventually(&format!("the worker learns: {what}"), seen).await;
    let took = lb.workers[0].cancels()[count - 1].saturating_duration_since(left);
    eprintln!("cancel reached the worker after {took:?} ({what})");
    assert!(took < Duration::from_secs(1), "{what}: {took:?}");
}

#[tokio::test]
async fn a_client_that_leaves_in_mid_stream_is_not_worked_for_any_longer() {
    let lb = lb().worker(streaming_gated(5)).start().await;
    for (at, proto) in BOTH.into_iter().enumerate() {
        lb.workers[0].let_go(1);
        let mut open = lb.open(&Ask::stream("hello").over(proto)).await;
        assert!(open.event().await.is_ok());
        let left = Instant::now();
        drop(open);
        cancel_arrives(&lb, at + 1, left, &format!("{proto:?} in mid-stream")).await;
    }
    lb.idle().await;
}

#[tokio::test]
async fn one_http2_stream_can_be_given_up_and_its_connection_kept() {
    let lb = lb().worker(streaming_gated(5)).start().await;
    lb.workers[0].let_go(1);
    let mut open = lb.open(&Ask::stream("hello").h2()).await;
    assert!(open.event().await.is_ok());
    let left = Instant::now();
    let mut conn = open.reset();
    cancel_arrives(&lb, 1, left, "HTTP/2 reset in mid-stream").await;
    lb.workers[0].set_act(Act::Echo);
    assert_eq!(conn.ask(&Ask::chat("hello")).await.status, 200);
    lb.idle().await;
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_begins_is_not_worked_for_any_longer() {
    let lb = lb().worker(stalled()).start().await;
    for (at, proto) in BOTH.into_iter().enumerate() {
        for (nth, ask) in [Ask::chat("hello"), Ask::stream("hello")].into_iter().enumerate() {
            let count = at * 2 + nth + 1;
            let mut conn = lb.conn(proto).await;
            let pending = tokio::spawn(async move {
                let _ = conn.send(&ask).await;
            });
            let arrived = async || lb.request_count() == count;
            eventually("the request is at the worker", arrived).await;
            let left = Instant::now();
            pending.abort();
            cancel_arrives(&lb, count, left, &format!("{proto:?} before the header")).await;
        }
    }
    lb.idle().await;
    assert_eq!(lb.status(0).await["breaker"], "closed", "no fault of the worker");
}

#[tokio::test]
async fn a_client_that_leaves_while_nobody_has_a_verdict_is_forgotten() {
    for proto in BOTH {
        let lb = lb()
            .worker(echo().with_late_health())
            .config("health: {timeout_ms: 20000}")
            .at_once()
            .start()
            .await;
        let buffered = async || lb.metrics().await.sum("warmroute_buffered_bytes", &[]);
        let mut conn = lb.conn(proto).await;
        let pending = tokio::spawn(async move {
            let _ = conn.send(&Ask::chat("hello")).await;
        });
        eventually("the request waits", async || buffered().await > 0).await;
        let left = Instant::now();
        pending.abort();
        eventually("the request is forgotten", async || buffered().await == 0).await;
        // Well before the router itself would stop waiting.
        assert!(left.elapsed() < Duration::from_secs(3), "{:?}", left.elapsed());
        lb.workers[0].let_health_go();
        lb.health_is(0, "healthy").await;
        assert_eq!(within("an answer", lb.ask(&Ask::chat("next"))).await.status, 200);
        assert_eq!(lb.request_count(), 1);
    }
}
