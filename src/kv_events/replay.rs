//! Asks a publisher for batches it still has.
//!
//! vLLM answers on a ROUTER: the batches from the one asked for, then an end mark. A ROUTER drops
//! what its queue cannot hold, in the middle or at the end, so each answer is judged by its
//! number, not by the end mark alone.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::{
    Endpoint,
    zmtp::{Broken, Connection, Message, Role},
};

/// The number of no batch: the end of an answer.
const END: u64 = u64::MAX;

/// One request and its answers.
pub(super) struct Replay {
    connection: Connection,
    within: Duration,
}

/// Why a replay stopped.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stopped {
    #[error("{0}")]
    Broken(#[from] Broken),
    #[error("no answer in time")]
    Late,
    #[error("an answer that is no batch")]
    Garbage,
}

impl Replay {
    /// Asks for the batches from `from` on.
    pub(super) async fn ask(
        endpoint: &Endpoint,
        from: u64,
        within: Duration,
    ) -> Result<Self, Stopped> {
        let open = async {
            let mut connection =
                Connection::connect(&endpoint.host, endpoint.port, Role::Dealer).await?;
            connection.send(&[b"", &from.to_be_bytes()]).await?;
            Ok::<_, Broken>(connection)
        };
        let connection = timeout(within, open).await.map_err(|_| Stopped::Late)??;
        Ok(Self { connection, within })
    }

    /// The next batch, or `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<(u64, Bytes)>, Stopped> {
        let answer = timeout(self.within, self.connection.recv()).await;
        let frames = answer.map_err(|_| Stopped::Late)??;
        match numbered(frames, &[3, 4]) {
            Some((END, _)) => Ok(None),
            Some(batch) => Ok(Some(batch)),
            None => Err(Stopped::Garbage),
        }
    }
}

/// The number and payload of a message, which are its last two frames. Published ones have a topic
/// before them, replayed ones an empty frame and, except from older engines, the topic.
pub(super) fn numbered(mut frames: Message, counts: &[usize]) -> Option<(u64, Bytes)> {
    if !counts.contains(&frames.len()) {
        return None;
    }
    let payload = frames.pop()?;
    let seq = frames.pop()?;
    Some((u64::from_be_bytes(seq[..].try_into().ok()?), payload))
}
