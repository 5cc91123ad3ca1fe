//! What became of every request.

use std::sync::{
    Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use serde::Serialize;
use tokio::time::Instant;

/// How a client came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// HTTP/1.1 over a connection that was used before, if one is open.
    Kept,
    /// HTTP/1.1 over a new connection.
    Fresh,
    /// HTTP/2 without TLS.
    H2,
    /// As `Kept`, in TLS.
    TlsKept,
    /// HTTP/2 in TLS.
    TlsH2,
}

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// No TCP connection.
    Connect,
    /// No TLS or HTTP/2 handshake.
    Handshake,
    /// A kept connection, open when it was looked at before, ended before any byte of an answer.
    KeptClosed,
    /// A new connection did, or a stream of HTTP/2.
    NoAnswer,
    /// The server let go of the HTTP/2 connection and did not take this stream.
    NotTaken,
    /// The answer ended before its end.
    Truncated,
    /// A status that is not 200.
    Status,
    /// A whole answer, but not that of this request.
    Wrong,
    /// The stream carried an error.
    ErrorEvent,
    /// Nothing within the client's patience.
    Late,
    /// Not sent: the client had too many open.
    Full,
}

/// A cause, and what was seen.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What it was.
    pub cause: Cause,
    /// In words.
    pub text: String,
}

impl Failure {
    /// One of this cause.
    pub fn new(cause: Cause, text: impl Into<String>) -> Self {
        Self { cause, text: text.into() }
    }
}

/// Times in seconds since the load began.
#[derive(Debug, Clone)]
pub struct Record {
    /// How it came.
    pub way: Way,
    /// Whether it was one of the long streams.
    pub is_long: bool,
    /// When the client began with it, connecting included.
    pub sent: f64,
    /// First content of a streamed answer, head of another.
    pub first: Option<f64>,
    /// Whether `first` is that of content.
    pub is_streamed: bool,
    /// When it was over.
    pub ended: f64,
    /// Prompt tokens, and those of them that were cached, as the answer says.
    pub tokens: Option<(u64, u64)>,
    /// What went wrong.
    pub failure: Option<Failure>,
}

/// Takes records in.
#[derive(Debug)]
pub struct Recorder {
    begun: Instant,
    records: Mutex<Vec<Record>>,
    /// Long streams of which some content was read and the end was not.
    live: AtomicUsize,
    /// Microseconds that the schedule was behind at worst since last asked.
    behind: AtomicUsize,
}

impl Recorder {
    /// Time counts from now.
    pub fn start() -> Self {
        Self {
            begun: Instant::now(),
            records: Mutex::default(),
            live: AtomicUsize::new(0),
            behind: AtomicUsize::new(0),
        }
    }

    /// Seconds since the load began.
    pub fn now(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    /// A moment as seconds since the load began.
    pub fn at(&self, moment: Instant) -> f64 {
        moment.saturating_duration_since(self.begun).as_secs_f64()
    }

    /// One more.
    pub fn push(&self, record: Record) {
        self.records().push(record);
    }

    /// Takes them all out.
    pub fn take(&self) -> Vec<Record> {
        std::mem::take(&mut *self.records())
    }

    /// How many failed, and how many there are.
    pub fn counts(&self) -> (usize, usize) {
        let records = self.records();
        (records.iter().filter(|record| record.failure.is_some()).count(), records.len())
    }

    /// Long streams that are under way.
    pub fn live(&self) -> usize {
        self.live.load(Relaxed)
    }

    /// A long stream got under way; it is until the guard falls.
    pub fn enter(&self) -> Live<'_> {
        self.live.fetch_add(1, Relaxed);
        Live(self)
    }

    /// The schedule was behind by so many seconds.
    pub fn was_behind(&self, seconds: f64) {
        self.behind.fetch_max((seconds * 1e6) as usize, Relaxed);
    }

    /// Worst of that, seconds.
    pub fn behind(&self) -> f64 {
        self.behind.load(Relaxed) as f64 / 1e6
    }

    fn records(&self) -> MutexGuard<'_, Vec<Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One long stream under way.
pub struct Live<'a>(&'a Recorder);

impl Drop for Live<'_> {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Relaxed);
    }
}
