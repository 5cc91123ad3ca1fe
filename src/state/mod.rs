//! All that is known of the workers, as bytes: for the process that takes over in an upgrade, and
//! for the one that starts after a crash.
//!
//! A state is a stream of frames ([`frame`]): a header, one frame a worker, an end. So it is sent
//! and restored a worker at a time, and neither side holds all of it. What is small has names
//! (JSON), so that a later version can add to it; blocks and records are packed (`packed`), nine
//! bytes a block. Bytes in, bytes out: files and sockets are the caller's, and what the images mean
//! is `routing`'s. Why so: docs/adr/0009.
//!
//! It is input like any other: read within a bound, checked by a checksum a frame, and garbage is
//! an error, never a panic nor an allocation by a length that is only claimed.

pub mod frame;
mod packed;
mod stream;
#[cfg(test)]
mod tests;

use std::{
    io::{self, Read, Write},
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use stream::{Reader, StateError, Writer};

use crate::routing::{
    block::Secret,
    breaker::BreakerImage,
    capacity::CapacityImage,
    limit::LimitImage,
    prefill::PrefillImage,
    prefix::{HoldingsImage, IndexImage},
    trust::TrustImage,
};

/// What precedes the workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateHeader {
    /// Version of the product that wrote it.
    pub product: String,
    /// When, milliseconds since 1970.
    pub made_at_unix_ms: u64,
    /// How prompts are cut and hashed: with another fingerprint, no block has the same name.
    pub hashing: String,
    /// The key of all block hashes.
    pub secret: Secret,
}

/// What one rank's pushed reports have come to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RankState {
    /// Its number.
    pub rank: u32,
    /// Life of the engine process, as last seen.
    pub epoch: Option<String>,
    /// Number of the next batch.
    pub next_seq: Option<u64>,
    /// Gaps seen in this epoch.
    pub gaps: u64,
    /// Whether batches are missing that no sync has made good.
    pub missing: bool,
    /// Requests in hand, by the worker's count.
    pub current_load: u32,
    /// KV cache, blocks.
    pub kv_blocks_total: Option<u64>,
    /// KV cache in use, blocks.
    pub kv_blocks_used: Option<u64>,
    /// Tokens a KV block.
    pub kv_block_tokens: Option<u64>,
    /// The model it named.
    pub model: Option<String>,
}

/// How far one publisher of KV events has been followed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PublishedState {
    /// The number of its rank.
    pub rank: u32,
    /// The batch that comes next.
    pub next: Option<u64>,
    /// What the batch before it was like.
    pub last_print: Option<u64>,
    /// Whether all that it ever said is known.
    pub complete: bool,
}

/// What is known of a worker's cache besides its blocks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TruthState {
    /// Blocks its cache was taken to hold at first.
    pub configured: u64,
    /// What its reports name blocks by, as the fleet numbers it.
    pub domain: Option<u8>,
    /// Whether its reports name tenants.
    pub names_tenants: bool,
    /// Tokens in one of its engine blocks.
    pub block_tokens: Option<u32>,
    /// How far to believe what is held.
    pub trust: TrustImage,
    /// How much of it fits. Packed.
    #[serde(skip)]
    pub capacity: CapacityImage,
}

/// One worker.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerState {
    /// Name.
    pub id: String,
    /// Address.
    pub url: String,
    /// Who brought it in, as the fleet names it.
    pub origin: String,
    /// Verdict of the health checks, as the fleet numbers it.
    pub health: u8,
    /// Whether it gets no new requests.
    pub drained: bool,
    /// Whether it has left and only finishes.
    pub removed: bool,
    /// Whether it pushes what it stores.
    pub pushes: bool,
    /// How long its registration lasted still.
    pub lease_left: Option<Duration>,
    /// Its models by name, with its own JSON for them; `None` before they are known.
    pub models: Option<Vec<(String, Option<String>)>>,
    /// Its pushed reports.
    pub ranks: Vec<RankState>,
    /// Its publishers.
    pub published: Vec<PublishedState>,
    /// What is known of its cache besides the blocks.
    pub truth: TruthState,
    /// What it holds. Packed.
    #[serde(skip)]
    pub holdings: HoldingsImage,
    /// What it got that its reports cannot confirm. Packed.
    #[serde(skip)]
    pub unconfirmed: IndexImage,
    /// Its breaker.
    pub breaker: BreakerImage,
    /// What its bound on requests in flight is found by.
    pub limit: LimitImage,
    /// What its prefill costs. Packed.
    #[serde(skip)]
    pub prefill: PrefillImage,
}

/// A whole state, where it is small enough to be held at once.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// What precedes the workers.
    pub header: StateHeader,
    /// The workers.
    pub workers: Vec<WorkerState>,
}

impl State {
    /// Writes it, end included.
    ///
    /// # Errors
    /// What `to` gives.
    pub fn write(&self, to: impl Write) -> io::Result<()> {
        let mut writer = Writer::new(to, &self.header)?;
        for worker in &self.workers {
            writer.worker(worker)?;
        }
        writer.end().map(drop)
    }

    /// Reads it, up to its end; no frame may be longer than `frame_bytes_max`.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn read(from: impl Read, frame_bytes_max: u64) -> Result<Self, StateError> {
        let mut reader = Reader::new(from, frame_bytes_max)?;
        let mut workers = Vec::new();
        while let Some(worker) = reader.next_worker()? {
            workers.push(worker);
        }
        Ok(Self { header: reader.header().clone(), workers })
    }
}
