//! Every body arrives whole, however long it is and however it is sent.
//!
//! This is the guard of the late arming in `src/proxy/body.rs`: a change of Pingora shows as a hang
//! (every request has a deadline) or as another hash at the worker.

use crate::support::{
    Ask, How, Lb, Proto, chat_body_of, deliver, echo, eventually, lb, noise, sha256_hex,
};

/// Around Pingora's bound of 64 KiB, and far from it.
const SIZES: [usize; 9] = [0, 1, 6 << 10, 65_535, 65_536, 65_537, 67 << 10, 78 << 10, 1_700_000];

/// A chat of this size; bytes that are none when it is too short for one.
fn chat_of(bytes: usize) -> Ask {
    let body = if bytes < 100 { noise(bytes) } else { chat_body_of(bytes) };
    Ask::post("/v1/chat/completions", body)
}

/// Bytes that are no JSON, for a path that carries no prompt.
fn blob_of(bytes: usize) -> Ask {
    Ask::post("/v1/audio/translations", noise(bytes))
}

async fn arrives_whole(lb: &Lb, how: How, ask: &Ask) {
    let before = lb.request_count();
    let delivered = deliver(lb, how, ask).await;
    let what = format!("{how:?}, {} bytes to {}", ask.body.len(), ask.path);
    assert_eq!(delivered.status, 200, "{what}: {delivered:?}");
    assert_eq!(delivered.json["body_bytes"], ask.body.len(), "{what}");
    assert_eq!(delivered.json["sha256"], ask.sha256(), "{what}");
    assert_eq!(lb.request_count(), before + 1, "{what}: sent once");
}

async fn every_size_arrives(how: How) {
    let lb = lb().worker(echo()).start().await;
    for bytes in SIZES {
        arrives_whole(&lb, how, &chat_of(bytes)).await;
        arrives_whole(&lb, how, &blob_of(bytes)).await;
    }
    for seen in lb.workers[0].requests() {
        assert!(!seen.headers.contains_key("expect"), "{seen:?}");
    }
    lb.idle().await;
}

#[tokio::test]
async fn http1_bodies_of_every_size_arrive_with_content_length() {
    every_size_arrives(How::Length).await;
}

#[tokio::test]
async fn http1_bodies_of_every_size_arrive_in_chunks() {
    every_size_arrives(How::Chunked).await;
}

#[tokio::test]
async fn http1_bodies_of_every_size_arrive_after_100_continue() {
    every_size_arrives(How::Expect).await;
}

#[tokio::test]
async fn http2_bodies_of_every_size_arrive_with_content_length() {
    every_size_arrives(How::H2Length).await;
}

#[tokio::test]
async fn http2_bodies_of_every_size_arrive_without_content_length() {
    every_size_arrives(How::H2Unsized).await;
}

/// A reader that recursed would end the process.
#[tokio::test]
async fn bodies_of_brackets_arrive_too() {
    let lb = lb().worker(echo()).start().await;
    let open = |bracket: &str| bracket.repeat((2 << 20) / bracket.len()).into_bytes();
    let in_chat = |bracket: &str| {
        let begun = br#"{"model":"m","messages":[{"role":"user","content":"x"}],"x":"#;
        [begun, &*open(bracket)].concat()
    };
    for path in ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"] {
        for body in [open("["), open("{\"a\":"), in_chat("["), in_chat("{\"a\":")] {
            arrives_whole(&lb, How::Length, &Ask::post(path, body)).await;
        }
    }
    arrives_whole(&lb, How::Length, &chat_of(6 << 10)).await;
}

#[tokio::test]
async fn a_body_of_64_mib_arrives() {
    let lb = lb().worker(echo()).start().await;
    arrives_whole(&lb, How::Length, &blob_of(64 << 20)).await;
    lb.idle().await;
}

#[tokio::test]
async fn one_kept_connection_carries_bodies_of_every_size_one_after_the_other() {
    let lb = lb().worker(echo()).start().await;
    for (proto, in_pieces) in
        [(Proto::H1, false), (Proto::H1, true), (Proto::H2, false), (Proto::H2, true)]
    {
        let mut conn = lb.conn(proto).await;
        for bytes in SIZES {
            for ask in [chat_of(bytes), blob_of(bytes)] {
                let ask = if in_pieces { ask.in_pieces(10_000) } else { ask };
                let answer = conn.ask(&ask).await;
                assert_eq!(answer.echo().sha256, ask.sha256(), "{proto:?} {bytes}");
            }
        }
        assert!(conn.is_open().await, "{proto:?}");
    }
}

#[tokio::test]
async fn expect_without_a_body_is_answered_at_once() {
    let lb = lb().worker(echo()).start().await;
    let mut raw = lb.raw().await;
    raw.send("GET /v1/files HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n").await;
    assert_eq!(raw.answer().await.status, 200);
}

/// A chunked request as it stands on the wire.
fn chunked(chunks: impl IntoIterator<Item = Vec<u8>>, end: &str) -> Vec<u8> {
    let mut wire = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n\
        Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        .to_vec();
    for chunk in chunks {
        wire.extend(chunk);
    }
    wire.extend(end.as_bytes());
    wire
}

fn chunk(bytes: &[u8], extension: &str) -> Vec<u8> {
    [format!("{:x}{extension}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

async fn raw_body_arrives(lb: &Lb, wire: &[u8], body: &[u8]) {
    let mut raw = lb.raw().await;
    raw.send(wire).await;
    let answer = raw.answer().await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["sha256"], sha256_hex(body));
}

#[tokio::test]
async fn many_tiny_chunks_arrive() {
    let lb = lb().worker(echo()).start().await;
    for bytes in [6 << 10, 70_000] {
        let body = chat_body_of(bytes);
        let wire = chunked(body.chunks(1).map(|byte| chunk(byte, "")), "0\r\n\r\n");
        raw_body_arrives(&lb, &wire, &body).await;
    }
}

#[tokio::test]
async fn chunk_extensions_are_taken() {
    let lb = lb().worker(echo()).start().await;
    for bytes in [6 << 10, 70_000] {
        let body = chat_body_of(bytes);
        let chunks = body.chunks(1000).map(|piece| chunk(piece, ";name=value"));
        raw_body_arrives(&lb, &chunked(chunks, "0\r\n\r\n"), &body).await;
    }
}

#[tokio::test]
async fn a_trailer_does_no_harm() {
    let lb = lb().worker(echo()).start().await;
    for bytes in [6 << 10, 70_000] {
        let body = chat_body_of(bytes);
        let chunks = body.chunks(1000).map(|piece| chunk(piece, ""));
        raw_body_arrives(&lb, &chunked(chunks, "0\r\nX-Checksum: 1\r\n\r\n"), &body).await;
    }
}

#[tokio::test]
async fn a_chunked_body_whose_end_mark_comes_late_arrives() {
    let lb = lb().worker(echo()).start().await;
    for bytes in [6 << 10, 70_000] {
        let body = chat_body_of(bytes);
        let mut raw = lb.raw().await;
        raw.send(chunked([chunk(&body, "")], "")).await;
        let inflight = async || lb.metrics().await.sum("warmroute_buffered_bytes", &[]) > 0;
        eventually("the body is held", inflight).await;
        raw.send("0\r\n\r\n").await;
        let answer = raw.answer().await;
        assert_eq!(answer.json()["sha256"], sha256_hex(&body), "{bytes}");
    }
}

#[tokio::test]
async fn white_space_after_a_long_chunked_document_arrives_too() {
    let lb = lb().worker(echo()).start().await;
    let mut body = chat_body_of(70_000);
    body.extend([b' '; 5_000]);
    let chunks = body.chunks(3_000).map(|piece| chunk(piece, ""));
    raw_body_arrives(&lb, &chunked(chunks, "0\r\n\r\n"), &body).await;
}

#[tokio::test]
async fn json_that_never_closes_passes_while_it_is_short_and_is_refused_when_it_is_long() {
    let lb = lb().worker(echo()).start().await;
    let open = |bytes: usize| [br#"{"model":"m","messages":[""#, noise(bytes).as_slice()].concat();
    for how in How::ALL {
        for bytes in [6 << 10, 80_000] {
            let ask = Ask::post("/v1/chat/completions", open(bytes));
            let delivered = deliver(&lb, how, &ask).await;
            if how.is_chunked() && bytes > 65_536 {
                assert_eq!(delivered.status, 400, "{delivered:?}");
                assert_eq!(delivered.json["error"]["code"], "body_incomplete");
            } else {
                assert_eq!(delivered.json["sha256"], ask.sha256(), "{how:?} {bytes}");
            }
        }
    }
    lb.idle().await;
}

#[tokio::test]
async fn requests_without_a_body_pass_by_every_method() {
    let lb = lb().worker(echo()).start().await;
    for method in ["GET", "DELETE", "OPTIONS", "PUT", "PATCH"] {
        for proto in [Proto::H1, Proto::H2] {
            let method = method.parse().expect("a method");
            let ask = Ask::new(method, "/v1/files/f1?purpose=x", "").over(proto);
            let echo = lb.ask(&ask).await.echo();
            assert_eq!((echo.method, echo.body_bytes), (ask.method.to_string(), 0));
            assert_eq!((echo.worker.as_str(), echo.path.as_str()), ("w0", "/v1/files/f1"));
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_of_its_body_frees_what_was_held() {
    let lb = lb().worker(echo()).start().await;
    let mut raw = lb.raw().await;
    raw.send("POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        .await;
    raw.send(noise(50_000)).await;
    let held = async || lb.metrics().await.sum("warmroute_buffered_bytes", &[]) > 0;
    eventually("the body is held", held).await;
    drop(raw);
    lb.idle().await;
    assert_eq!(lb.request_count(), 0);
}

#[tokio::test]
async fn connections_to_a_worker_are_used_again() {
    let lb = lb().worker(echo()).config("health: {interval_ms: 600000}").start().await;
    let before = lb.workers[0].connections();
    for how in How::ALL {
        for bytes in [200, 6 << 10, 80_000] {
            arrives_whole(&lb, how, &chat_of(bytes)).await;
        }
    }
    let made = lb.workers[0].connections() - before;
    assert!(made <= 8, "{made} connections for 15 requests in a row");
}
