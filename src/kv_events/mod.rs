//! Cache events as engines publish them over ZMQ (vLLM, SGLang): subscribes, orders, repairs.
//!
//! One task a source, which is one data-parallel rank of one worker. A source connects, has the
//! publisher's buffer replayed, and hands the batches of each life of the engine to a [`Sink`] in
//! order: what is missing is asked for again, and what cannot be had is said. Who the workers are,
//! how they are asked over HTTP and what becomes of the batches is the caller's; this folder knows
//! sockets and numbers.
//!
//! ```text
//! service -> worker (discovery) -> source -> { zmtp, replay, sequence } -> Sink
//! ```

use std::{net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::wire::kv_events::DecodedBatch;

mod backoff;
pub mod discover;
mod door;
mod endpoint;
mod replay;
mod sequence;
mod service;
mod source;
mod worker;
mod zmtp;

pub use self::{
    endpoint::{BadEndpoint, Endpoint},
    sequence::{Position, Print, Sequence, Step},
    service::KvEventService,
};

/// One publisher: a data-parallel rank of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SourceKey {
    /// The worker's id.
    pub worker: Arc<str>,
    /// Which worker of that id, see [`Worker::life`].
    pub life: u64,
    /// Its rank, from 0.
    pub rank: u32,
}

/// How to come by a worker's sources.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Mode {
    /// Not at all.
    #[default]
    Off,
    /// By asking the worker.
    Auto,
    /// As configured, one place a rank.
    Explicit(Vec<Place>),
}

/// Where one rank publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Batches, as they are made.
    pub events: Attach,
    /// Batches again, if the engine was given a replay endpoint.
    pub replay: Option<Endpoint>,
    /// Prefix of the topics wanted; all when empty.
    pub topic: String,
}

/// Which end of the connection is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attach {
    /// The engine binds, as with `tcp://*:5557`.
    Connect(Endpoint),
    /// The engine connects, as vLLM does when its endpoint names a host.
    Bind(SocketAddr),
}

/// A worker, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// Its id.
    pub id: Arc<str>,
    /// Its host, without brackets.
    pub host: Arc<str>,
    /// How its sources are found.
    pub mode: Arc<Mode>,
    /// Another whenever another worker takes the id: its sources are others then.
    pub life: u64,
    /// Counts up whenever the worker comes back to health; a change makes it be asked again.
    pub flaps: u64,
}

/// What the service needs to know about the fleet.
#[async_trait]
pub trait Workers: Send + Sync + 'static {
    /// The workers of this moment. Called every [`Settings::look_every`].
    fn workers(&self) -> Vec<Worker>;

    /// The body of a `200` answer of this worker to `GET path`, at most
    /// [`discover::ANSWER_BYTES_MAX`] long. An error is a sentence for the log. May take its time;
    /// it is given up after [`Settings::ask_within`].
    async fn get(&self, worker: &Worker, path: &str) -> Result<Vec<u8>, String>;
}

/// Where a source goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    /// As far as it was followed.
    pub position: Position,
    /// Whether it was followed until now. Else its engine may have restarted since unseen.
    pub unbroken: bool,
}

/// Takes what sources say. Called from their tasks, one call at a time a source; it should be
/// short.
pub trait Sink: Send + Sync + 'static {
    /// Returns when what a source says may be taken; a source that waits is subscribed already.
    /// At once, but while state is handed over.
    fn admitted(&self, source: &SourceKey) -> impl Future<Output = ()> + Send;
    /// Where a source goes on, if it was followed before.
    fn resume(&self, source: &SourceKey) -> Option<Resume>;
    /// A batch, in order; `position` is the one behind it.
    fn batch(&self, source: &SourceKey, position: Position, batch: DecodedBatch);
    /// The engine restarted: what came before is no longer true. Batches of its new life follow.
    fn restarted(&self, source: &SourceKey);
    /// The batches from `expected` up to, not including, `got` are lost.
    fn gap(&self, source: &SourceKey, expected: u64, got: u64);
    /// The source is followed, and what could be replayed was. `complete`: every batch of this
    /// life of the engine was seen. Comes again whenever a restart was dealt with.
    fn connected(&self, source: &SourceKey, complete: bool);
    /// The source is not followed (any more). Said once, not for every attempt.
    fn disconnected(&self, source: &SourceKey, why: &str);
    /// That many batches came by replay.
    fn replayed(&self, source: &SourceKey, batches: u64);
    /// Something that is no batch came. `first`: of a burst, so worth a line in the log.
    fn garbage(&self, source: &SourceKey, why: &str, first: bool);
    /// The worker was asked for its sources; said when the answer changes. `Err` says why it has
    /// none that can be used.
    fn discovered(&self, worker: &Arc<str>, sources: Result<usize, &str>);
}

/// Times and bounds; the defaults are for production.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How often the workers are looked at.
    pub look_every: Duration,
    /// How often a worker is asked for its sources.
    pub ask_every: Duration,
    /// How long an answer may take.
    pub ask_within: Duration,
    /// How long the next batch of a replay may take.
    pub replay_within: Duration,
    /// How long one replay may take from first to last.
    pub replay_total: Duration,
    /// How long no replay is tried after one that failed.
    pub replay_pause: Duration,
    /// After this much silence the publisher is asked whether its last batches were lost.
    pub tail_check_after: Duration,
    /// Wait before the second attempt to connect; doubles from one to the next.
    pub backoff_first: Duration,
    /// Longest such wait.
    pub backoff_longest: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            look_every: Duration::from_millis(100),
            ask_every: Duration::from_secs(30),
            ask_within: Duration::from_secs(5),
            replay_within: Duration::from_secs(2),
            replay_total: Duration::from_secs(30),
            replay_pause: Duration::from_secs(5),
            tail_check_after: Duration::from_secs(30),
            backoff_first: Duration::from_millis(100),
            backoff_longest: Duration::from_secs(5),
        }
    }
}
