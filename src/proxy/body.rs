//! Receives the whole request body before a worker is picked, and replays it on every attempt.
//!
//! Pingora 0.9.1 replays at most 64 KiB by itself, and once it cannot it waits in silence for body
//! bytes that were already read. The way around it ("late arming", ADR 0002): we keep the body, and
//! switch Pingora's own retry buffer on only when at most 64 KiB are left to read, so that it is
//! never empty and never overflows. On every attempt Pingora then calls `request_body_filter`
//! exactly once with that tail, where `Replay::filter` puts the whole body in its place.
//!
//! One case cannot be armed: a chunked HTTP/1.1 body over 64 KiB, whose last chunk is not known as
//! the last until the end mark has been read. There we stop reading before the end mark (at the end
//! of the JSON document, or at once when it is none) and let Pingora read on; what we hold goes
//! before its first piece. Such a body can be replayed only until its first byte was sent.

use std::{future::poll_fn, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, header};
use pingora::{
    ErrorSource, Result as PingoraResult, http::RequestHeader, protocols::http::ServerSession,
};
use tokio::time::{Instant, timeout_at};

use super::{
    buffered::{Budget, Share},
    json_end::JsonEnd,
};
use crate::{config::Timeouts, wire::error_body::OwnError};

/// Pingora's `BODY_BUF_LIMIT`: what its retry buffer holds, and its largest single read.
const ARM_BYTES: usize = 64 << 10;
/// Memory reserved at once on the word of a Content-Length.
const RESERVE_BYTES_MAX: usize = 256 << 10;

/// A body as far as it was received.
#[derive(Debug)]
pub struct Held {
    /// The bytes.
    pub bytes: Bytes,
    /// Whether that is all of it.
    pub whole: bool,
    _share: Share,
}

/// Why a body was not received.
#[derive(Debug)]
pub(super) enum BodyError {
    /// We answer.
    Own(OwnError),
    /// The client is gone.
    Gone(Box<pingora::Error>),
}

impl From<OwnError> for BodyError {
    fn from(error: OwnError) -> Self {
        BodyError::Own(error)
    }
}

/// Bounds of one body.
#[derive(Debug)]
pub(super) struct BodyLimits<'a> {
    /// `limits.body_bytes_max`.
    pub bytes_max: usize,
    /// Clocks.
    pub timeouts: &'a Timeouts,
    /// Shared memory bound.
    pub budget: &'a Arc<Budget>,
    /// Bytes of all bodies together.
    pub buffered_bytes_max: usize,
}

/// Receives the body; `None` when the request has none.
///
/// # Errors
/// `BodyError`: too large, too slow, incomplete, or the client left.
pub(super) async fn receive(
    session: &mut ServerSession,
    limits: &BodyLimits<'_>,
) -> Result<Option<Held>, BodyError> {
    if session.is_body_empty() {
        return Ok(None);
    }
    let length = content_length(session);
    if length.is_some_and(|length| length > limits.bytes_max) {
        return Err(OwnError::BodyTooLarge { limit: limits.bytes_max }.into());
    }
    if expects_continue(session) {
        session.write_continue_response().await.map_err(gone)?;
    }
    let mut reader = Reader {
        length,
        limits,
        got: Got::default(),
        share: Share::new(limits.budget, limits.buffered_bytes_max),
        end: JsonEnd::default(),
        total_until: Instant::now() + limits.timeouts.body_total,
    };
    let whole = reader.read_all(session).await?;
    let bytes = reader.got.into_bytes();
    Ok(Some(Held { bytes, whole, _share: reader.share }))
}

fn content_length(session: &ServerSession) -> Option<usize> {
    let value = session.req_header().headers.get(header::CONTENT_LENGTH)?;
    value.to_str().ok()?.trim().parse().ok()
}

fn expects_continue(session: &ServerSession) -> bool {
    session
        .req_header()
        .headers
        .get(header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

fn gone(error: Box<pingora::Error>) -> BodyError {
    BodyError::Gone(error.into_down())
}

/// Bytes received: one piece is kept as it came, more are joined.
#[derive(Debug, Default)]
struct Got {
    first: Bytes,
    joined: BytesMut,
}

impl Got {
    fn len(&self) -> usize {
        self.first.len() + self.joined.len()
    }

    fn push(&mut self, piece: Bytes, length: Option<usize>) {
        if self.len() == 0 {
            self.first = piece;
            return;
        }
        if self.joined.is_empty() {
            let first = std::mem::take(&mut self.first);
            let expected = length.unwrap_or(0).min(RESERVE_BYTES_MAX);
            self.joined.reserve(expected.max(first.len() + piece.len()));
            self.joined.extend_from_slice(&first);
        }
        if self.joined.capacity() - self.joined.len() < piece.len() {
            // By steps of four, up to what was announced: little is copied again, and no more
            // memory is taken on a client's word than four times what it sent.
            let left = length.map_or(0, |length| length.saturating_sub(self.joined.len()));
            self.joined.reserve(piece.len().max(left.min(3 * self.joined.len())));
        }
        self.joined.extend_from_slice(&piece);
    }

    fn into_bytes(self) -> Bytes {
        if self.joined.is_empty() { self.first } else { self.joined.freeze() }
    }
}

struct Reader<'a> {
    length: Option<usize>,
    limits: &'a BodyLimits<'a>,
    got: Got,
    share: Share,
    end: JsonEnd,
    total_until: Instant,
}

impl Reader<'_> {
    /// True when the body was read to its end.
    async fn read_all(&mut self, session: &mut ServerSession) -> Result<bool, BodyError> {
        let chunked_h1 = self.length.is_none() && !session.is_http2();
        loop {
            let left = self.length.map_or(0, |length| length.saturating_sub(self.got.len()));
            if left <= ARM_BYTES {
                session.enable_retry_buffering();
            }
            let Some(piece) = self.read(session).await? else {
                if chunked_h1 && self.got.len() > ARM_BYTES {
                    // The end mark is consumed and the tail cannot be armed: only a JSON document
                    // that never closes comes here.
                    return Err(OwnError::BodyIncomplete.into());
                }
                return Ok(true);
            };
            if self.got.len() + piece.len() > self.limits.bytes_max {
                return Err(OwnError::BodyTooLarge { limit: self.limits.bytes_max }.into());
            }
            if !self.share.grow(piece.len()) {
                return Err(OwnError::BuffersFull.into());
            }
            if chunked_h1 {
                self.end.feed(&piece);
            }
            self.got.push(piece, self.length);
            if chunked_h1 {
                if self.got.len() > ARM_BYTES && self.end.is_settled() {
                    return Ok(false);
                }
            } else if session.is_body_done() {
                return Ok(true);
            }
        }
    }

    async fn read(&mut self, session: &mut ServerSession) -> Result<Option<Bytes>, BodyError> {
        let until = self.total_until.min(Instant::now() + self.limits.timeouts.body_silence);
        // HTTP/2 without a length: only the first piece may go into Pingora's buffer. Later ones
        // are read past it, by a method that does not write to it.
        let past_buffer = self.length.is_none() && self.got.len() > 0;
        let read = async {
            match session {
                ServerSession::H2(h2) if past_buffer => {
                    let piece = poll_fn(|cx| h2.poll_read_body_bytes(cx)).await.transpose();
                    piece.map_err(|error| {
                        let explain = "reading an HTTP/2 body";
                        BodyError::Gone(pingora::Error::because(pingora::ReadError, explain, error))
                    })
                }
                _ => session.read_request_body().await.map_err(classify),
            }
        };
        match timeout_at(until, read).await {
            Ok(piece) => piece,
            Err(_) => Err(OwnError::BodyTimeout.into()),
        }
    }
}

fn classify(error: Box<pingora::Error>) -> BodyError {
    match error.etype() {
        pingora::ReadTimedout => BodyError::Own(OwnError::BodyTimeout),
        pingora::InvalidHTTPHeader => BodyError::Own(OwnError::BadRequest),
        _ => gone(error),
    }
}

/// Reads and drops what a refused client still sends, for a moment: closing at once would reset
/// the connection and the client might never see why.
pub(super) async fn linger(session: &mut ServerSession, bytes_max: usize, time_max: Duration) {
    let until = Instant::now() + time_max;
    let mut left = bytes_max;
    while let Ok(Ok(Some(piece))) = timeout_at(until, session.read_request_body()).await {
        left = left.saturating_sub(piece.len());
        if left == 0 {
            return;
        }
    }
}

/// Frames a request whose body is sent whole, by its length.
///
/// # Errors
/// None in practice.
pub(super) fn frame(request: &mut RequestHeader, length: usize) -> PingoraResult<()> {
    request.remove_header(&header::TRANSFER_ENCODING);
    let is_said = |value: &HeaderValue| value.to_str().is_ok_and(|said| said.parse() == Ok(length));
    let mut said = request.headers.get_all(header::CONTENT_LENGTH).iter();
    if said.next().is_some_and(is_said) && said.next().is_none() {
        return Ok(());
    }
    request.insert_header(header::CONTENT_LENGTH, length)
}

/// Sends a held body on each attempt.
#[derive(Debug, Default)]
pub struct Replay {
    sent: bool,
    consumed: bool,
    passed: usize,
}

impl Replay {
    /// A further attempt begins.
    pub fn restart(&mut self) {
        self.sent = false;
    }

    /// Whether another attempt would send the same body again.
    pub fn can_replay(&self, held: Option<&Held>) -> bool {
        held.is_none_or(|held| held.whole) || !self.consumed
    }

    /// Puts what we hold in the place of what Pingora read.
    ///
    /// # Errors
    /// `BodyTooLarge` when the part of the body that was not held exceeds the bound.
    pub fn filter(
        &mut self,
        held: Option<&Held>,
        piece: &mut Option<Bytes>,
        end: bool,
        bytes_max: usize,
    ) -> Result<(), OwnError> {
        let Some(held) = held else { return Ok(()) };
        if held.whole {
            if end && !self.sent {
                self.sent = true;
                *piece = Some(held.bytes.clone());
            } else if !end {
                // `None` would end the body here.
                *piece = Some(Bytes::new());
            }
            return Ok(());
        }
        self.passed += piece.as_ref().map_or(0, Bytes::len);
        if held.bytes.len() + self.passed > bytes_max {
            return Err(OwnError::BodyTooLarge { limit: bytes_max });
        }
        if !self.sent {
            self.sent = true;
            self.consumed = true;
            *piece = Some(match piece.take() {
                Some(rest) if !rest.is_empty() => {
                    let mut joined = BytesMut::with_capacity(held.bytes.len() + rest.len());
                    joined.extend_from_slice(&held.bytes);
                    joined.extend_from_slice(&rest);
                    joined.freeze()
                }
                _ => held.bytes.clone(),
            });
        }
        Ok(())
    }
}

/// Waits for `ready` while watching whether the client leaves. Only after the body was read.
///
/// # Errors
/// The client left, or sent something where it should wait.
pub(super) async fn while_client_waits<T>(
    session: &mut ServerSession,
    ready: impl Future<Output = T>,
) -> PingoraResult<T> {
    tokio::select! {
        value = ready => Ok(value),
        gone = session.read_body_or_idle(true) => match gone {
            Err(error) => Err(error.into_down()),
            Ok(_) => Err(pingora::Error::create(
                pingora::ConnectionClosed,
                ErrorSource::Downstream,
                Some("data after the end of the body".into()),
                None,
            )),
        },
    }
}
