//! HTTP/2 connections that many requests share.
//!
//! On h2 itself, as it says what the other side took: a client that has seen GOAWAY opens its streams
//! elsewhere, and a stream beyond the last that GOAWAY names was not processed and is sent again, as
//! browsers and Go do (RFC 9113, 6.8 and 8.7). That is counted. All else that fails is a loss.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;
use h2::{
    Reason, RecvStream,
    client::{self, ResponseFuture, SendRequest},
};
use hyper::Request;
use tokio::sync::Mutex;

use super::{
    answer::Head,
    io::Target,
    record::{Cause, Failure},
};

/// A request that was not sent, as its connection was closing, is sent on the next one so often.
const CONNECTIONS_MAX: usize = 3;

/// Some connections.
pub struct Pool {
    target: Target,
    tls: bool,
    slots: Vec<Mutex<Option<SendRequest<Bytes>>>>,
    turn: AtomicUsize,
}

/// Requests sent again, by all pools.
static SENT_AGAIN: AtomicU64 = AtomicU64::new(0);

/// Requests sent again so far, as the other side had not taken them.
pub fn sent_again() -> u64 {
    SENT_AGAIN.load(Relaxed)
}

impl Pool {
    /// So many, opened when they are needed.
    pub fn new(target: Target, tls: bool, connections: usize) -> Self {
        let slots = (0..connections).map(|_| Mutex::default()).collect();
        Self { target, tls, slots, turn: AtomicUsize::new(0) }
    }

    /// Sends a POST of JSON on the next connection.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn ask(&self, path: &str, body: Bytes) -> Result<(Head, RecvStream), Failure> {
        let slot = self.turn.fetch_add(1, Relaxed) % self.slots.len();
        let sent = self.send(slot, path, body.clone()).await?;
        let response = match sent.await.map_err(|error| failure(&error)) {
            Err(Failure { cause: Cause::NotTaken, .. }) => {
                SENT_AGAIN.fetch_add(1, Relaxed);
                let sent = self.send(slot, path, body).await?;
                sent.await.map_err(|error| failure(&error))?
            }
            other => other?,
        };
        let (parts, body) = response.into_parts();
        let value = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
        Ok((Head::new(parts.status.as_u16(), value), body))
    }

    async fn send(&self, slot: usize, path: &str, body: Bytes) -> Result<ResponseFuture, Failure> {
        let scheme = if self.tls { "https" } else { "http" };
        let mut why = String::new();
        let mut slot = self.slots[slot].lock().await;
        for _ in 0..CONNECTIONS_MAX {
            let request = Request::post(format!("{scheme}://localhost{path}"))
                .header("content-type", "application/json")
                .body(());
            let request =
                request.map_err(|error| Failure::new(Cause::NoAnswer, error.to_string()))?;
            let open = match slot.take() {
                Some(open) => open,
                None => self.connect().await?,
            };
            // Neither of the two has sent anything when it fails.
            let opened = match open.ready().await {
                Ok(mut open) => open.send_request(request, false).map(|stream| (open, stream)),
                Err(error) => Err(error),
            };
            match opened {
                Ok((open, (response, mut stream))) => {
                    *slot = Some(open);
                    stream.send_data(body, true).map_err(|error| failure(&error))?;
                    return Ok(response);
                }
                Err(error) => why = error.to_string(),
            }
        }
        Err(Failure::new(Cause::NoAnswer, format!("no connection takes a request: {why}")))
    }

    async fn connect(&self) -> Result<SendRequest<Bytes>, Failure> {
        let io = self.target.connect(self.tls, true).await?;
        let (sender, connection) = client::handshake(io)
            .await
            .map_err(|error| Failure::new(Cause::Handshake, error.to_string()))?;
        tokio::spawn(async { drop(connection.await) });
        Ok(sender)
    }
}

/// The next part of an answer; `None` at its end.
///
/// # Errors
/// The stream ended before that.
pub async fn data(body: &mut RecvStream) -> Result<Option<Bytes>, Failure> {
    let truncated = |error: &h2::Error| {
        Failure::new(Cause::Truncated, format!("in a body: {}", failure(error).text))
    };
    match body.data().await {
        None => Ok(None),
        Some(Ok(data)) => {
            let taken = body.flow_control().release_capacity(data.len());
            taken.map_err(|error| truncated(&error))?;
            Ok(Some(data))
        }
        Some(Err(error)) => Err(truncated(&error)),
    }
}

fn failure(error: &h2::Error) -> Failure {
    // The stream was beyond the last one that the other side took.
    let is_not_taken = error.is_remote()
        && (error.is_go_away() && error.reason() == Some(Reason::NO_ERROR)
            || error.reason() == Some(Reason::REFUSED_STREAM));
    let cause = if is_not_taken { Cause::NotTaken } else { Cause::NoAnswer };
    Failure::new(cause, format!("{error:?}"))
}
