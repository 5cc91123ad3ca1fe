//! What is too large, too slow or too much is refused with a word, never by a hang.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;

use crate::support::{
    Ask, Lb, Proto, Raw, chat_body_of, echo, error_of, eventually, lb, noise, within,
};

const HEAD: &str = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n";

async fn small() -> Lb {
    lb().worker(echo())
        .config("limits: {body_bytes_max: 100000, buffered_bytes_max: 150000}")
        .config("timeouts: {body_silence_s: 1}")
        .start()
        .await
}

async fn assert_raw_error(raw: &mut Raw, status: u16, code: &str) {
    let answer = raw.answer().await;
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(error_of(&answer.json()), code);
    for name in ["x-router-backend", "x-router-reason", "x-router-matched", "x-request-id"] {
        assert!(answer.header(name).is_some(), "{name}: {answer:?}");
    }
    assert_eq!(answer.header("x-router-reason"), Some("rejected"));
    assert_eq!(answer.header("x-router-backend"), Some("none"));
}

#[tokio::test]
async fn a_declared_length_over_the_limit_is_refused_before_the_body_is_sent() {
    let lb = small().await;
    let mut raw = lb.raw().await;
    raw.send(format!("{HEAD}Content-Length: 100001\r\n\r\n")).await;
    assert_raw_error(&mut raw, 413, "body_too_large").await;

    let mut raw = lb.raw().await;
    raw.send(format!("{HEAD}Content-Length: 100001\r\nExpect: 100-continue\r\n\r\n")).await;
    let (status, head) = raw.head().await.expect("an answer");
    assert_eq!(status, 413, "no leave to send it: {head}");

    let mut conn = lb.conn(Proto::H2).await;
    let ask = Ask::post("/v1/chat/completions", "").header("content-length", "100001").h2();
    let never = StreamBody::new(stream::pending::<Result<Frame<Bytes>, Infallible>>());
    let response = within("413", conn.send_with(&ask, BodyExt::boxed(never))).await;
    assert_eq!(response.expect("an answer").status(), 413);
    assert_eq!(lb.request_count(), 0);
    lb.idle().await;
}

#[tokio::test]
async fn a_client_that_sends_its_too_large_body_anyway_still_sees_the_answer() {
    let lb = small().await;
    let mut raw = lb.raw().await;
    raw.send(format!("{HEAD}Content-Length: 1000000\r\n\r\n")).await;
    raw.send(noise(1_000_000)).await;
    assert_raw_error(&mut raw, 413, "body_too_large").await;
    assert_eq!(raw.until_end().await, b"", "the connection is closed afterwards");
}

#[tokio::test]
async fn an_undeclared_length_over_the_limit_is_refused_on_the_way() {
    let lb = small().await;
    for body in [chat_body_of(300_000), noise(300_000), [b"{".as_slice(), &noise(300_000)].concat()]
    {
        let is_json = body.first() == Some(&b'{');
        let mut raw = lb.raw().await;
        raw.send(format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n")).await;
        for piece in body.chunks(10_000) {
            let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
            if !raw.try_send(&chunk).await {
                break;
            }
        }
        let _ = raw.try_send(b"0\r\n\r\n").await;
        let answer = raw.answer().await;
        assert_eq!(answer.status, 413, "{answer:?}");
        assert_eq!(error_of(&answer.json()), "body_too_large", "JSON: {is_json}");

        let ask = Ask::post("/v1/chat/completions", body).h2().in_pieces(10_000);
        lb.ask(&ask).await.assert_error(413, "body_too_large");
    }
    lb.idle().await;
    assert_eq!(lb.request_count(), 0, "no worker was given a part of it");
}

#[tokio::test]
async fn a_body_of_exactly_the_limit_passes() {
    let lb = small().await;
    let ask = Ask::post("/v1/chat/completions", chat_body_of(100_000));
    for ask in
        [ask.clone(), ask.clone().in_pieces(9_000), ask.clone().h2(), ask.h2().in_pieces(9_000)]
    {
        assert_eq!(lb.ask(&ask).await.echo().sha256, ask.sha256());
    }
}

#[tokio::test]
async fn a_client_that_stalls_its_body_is_told_so() {
    let lb = small().await;
    for framing in ["Content-Length: 5000", "Transfer-Encoding: chunked"] {
        let mut raw = lb.raw().await;
        raw.send(format!("{HEAD}{framing}\r\n\r\n3e8\r\n")).await;
        assert_raw_error(&mut raw, 408, "body_timeout").await;
    }
    let mut conn = lb.conn(Proto::H2).await;
    let ask = Ask::post("/v1/chat/completions", "").h2();
    let piece = Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"{")));
    let stuck = StreamBody::new(stream::iter([piece]).chain(stream::pending()));
    let response = within("408", conn.send_with(&ask, BodyExt::boxed(stuck))).await;
    assert_eq!(response.expect("an answer").status(), 408);
    lb.idle().await;
}

#[tokio::test]
async fn a_client_that_stalls_the_end_mark_of_a_long_chunked_body_is_not_waited_for_for_ever() {
    let lb = small().await;
    let body = chat_body_of(80_000);
    let mut raw = lb.raw().await;
    raw.send(format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len())).await;
    raw.send(&body).await;
    raw.send("\r\n").await;
    let answer = raw.try_answer().await;
    if let Some(answer) = answer {
        assert_eq!(answer.status, 408, "{answer:?}");
    }
    lb.idle().await;
}

#[tokio::test]
async fn a_body_for_which_no_memory_is_left_is_refused_for_the_moment() {
    let lb = small().await;
    let mut first = lb.raw().await;
    first.send(format!("{HEAD}Content-Length: 90000\r\n\r\n")).await;
    first.send(noise(89_000)).await;
    let held = async || lb.metrics().await.sum("warmroute_buffered_bytes", &[]) >= 89_000;
    eventually("the first body is held", held).await;
    for proto in [Proto::H1, Proto::H2] {
        let ask = Ask::post("/v1/chat/completions", chat_body_of(90_000)).over(proto);
        let answer = lb.ask(&ask).await;
        answer.assert_error(503, "buffers_full");
        assert_eq!(answer.header("retry-after"), "1");
        assert_eq!(answer.header("x-router-reason"), "shed");
    }
    drop(first);
    lb.idle().await;
    assert_eq!(lb.ask(&Ask::chat("hello")).await.status, 200);
}

#[tokio::test]
async fn a_chunk_size_that_is_none_is_a_bad_request() {
    let lb = small().await;
    let mut raw = lb.raw().await;
    raw.send(format!("{HEAD}Transfer-Encoding: chunked\r\n\r\nnonsense\r\nabc\r\n")).await;
    assert_raw_error(&mut raw, 400, "bad_request").await;
    lb.idle().await;
}

#[tokio::test]
async fn bytes_that_are_no_http_get_a_400_or_the_end_of_the_connection() {
    let lb = small().await;
    for garbage in [
        "\u{1}\u{2}\u{3} and more of the same\r\n\r\n",
        "GET\r\nthis is not how it goes\r\n\r\n",
        "GET / HTTP/1.1\r\nno colon\r\n\r\n",
    ] {
        let mut raw = lb.raw().await;
        raw.send(garbage).await;
        if let Some(answer) = raw.try_answer().await {
            assert_eq!(answer.status, 400, "{answer:?}");
        }
    }
    assert_eq!(lb.ask(&Ask::chat("still there")).await.status, 200);
}

/// Shorter than the preface of HTTP/2 that the listener looks for; old health checkers send it.
#[tokio::test]
async fn the_shortest_requests_there_are_are_answered() {
    let lb = small().await;
    for request in ["GET /a HTTP/1.0\r\n\r\n", "OPTIONS / HTTP/1.0\r\n\r\n", "GET\r\n\r\n"] {
        let mut raw = lb.raw().await;
        raw.send(request).await;
        if let Some(answer) = raw.try_answer().await {
            assert!(answer.status == 200 || request == "GET\r\n\r\n", "{answer:?}");
        }
    }
}

#[tokio::test]
async fn length_and_chunks_at_once_reach_no_worker_in_two_meanings() {
    let lb = small().await;
    let mut raw = lb.raw().await;
    raw.send(format!(
        "{HEAD}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n\
         5\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
    ))
    .await;
    raw.finish().await;
    let _ = raw.until_end().await;
    lb.idle().await;
    for seen in lb.workers[0].requests() {
        let lengths = (
            seen.headers.contains_key("content-length"),
            seen.headers.contains_key("transfer-encoding"),
        );
        assert!(lengths != (true, true), "both lengths reached the worker: {seen:?}");
        assert!(seen.body_bytes == 5 || seen.path == "/smuggled", "{seen:?}");
    }
}
