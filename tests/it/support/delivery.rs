//! The ways a body can travel.

use serde_json::Value;

use super::{Ask, Lb};

/// How a body is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// HTTP/1.1 with Content-Length.
    Length,
    /// HTTP/1.1 in chunks.
    Chunked,
    /// HTTP/1.1 with Content-Length, once the router says that it may.
    Expect,
    /// HTTP/2 with content-length.
    H2Length,
    /// HTTP/2 without.
    H2Unsized,
}

impl How {
    /// All of them.
    pub(crate) const ALL: [How; 5] =
        [How::Length, How::Chunked, How::Expect, How::H2Length, How::H2Unsized];

    /// Whether the router cannot know where the body ends before it is there.
    pub(crate) fn is_chunked(self) -> bool {
        self == How::Chunked
    }
}

/// An answer, whatever it came by.
#[derive(Debug)]
pub(crate) struct Delivered {
    pub(crate) status: u16,
    pub(crate) backend: String,
    pub(crate) reason: String,
    pub(crate) json: Value,
}

const PIECE_BYTES: usize = 9_000;

/// Sends the body this way; panics when there is no answer before the deadline.
pub(crate) async fn deliver(lb: &Lb, how: How, ask: &Ask) -> Delivered {
    let ask = ask.clone();
    let ask = match how {
        How::Expect => return expect(lb, &ask).await,
        How::Length => ask,
        How::Chunked => ask.in_pieces(PIECE_BYTES),
        How::H2Length => ask.h2(),
        How::H2Unsized => ask.h2().in_pieces(PIECE_BYTES),
    };
    let answer = lb.ask(&ask).await;
    assert_eq!(answer.broken, None, "{answer:?}");
    answer.assert_stamped();
    Delivered {
        status: answer.status,
        backend: answer.header("x-router-backend").to_owned(),
        reason: answer.header("x-router-reason").to_owned(),
        json: answer.json(),
    }
}

async fn expect(lb: &Lb, ask: &Ask) -> Delivered {
    let mut raw = lb.raw().await;
    let (path, length) = (&ask.path, ask.body.len());
    raw.send(format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\nExpect: 100-continue\r\n\r\n"
    ))
    .await;
    if length > 0 {
        let (status, head) = raw.head().await.expect("leave to send the body");
        assert_eq!(status, 100, "{head}");
        raw.send(&ask.body).await;
    }
    let answer = raw.answer().await;
    let header = |name| answer.header(name).unwrap_or_else(|| panic!("{name}: {answer:?}"));
    Delivered {
        status: answer.status,
        backend: header("x-router-backend").to_owned(),
        reason: header("x-router-reason").to_owned(),
        json: answer.json(),
    }
}
