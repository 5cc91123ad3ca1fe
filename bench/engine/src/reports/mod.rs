//! Tells a router what the cache took in and evicted, and that the engine lives.
//!
//! Nothing here can hold up the engine: the step loop only appends to the bounded journal, and
//! two tasks of their own send from it. A batch that failed is sent again under its number; a
//! router that lost count, or a journal that overflowed, is answered by a new epoch that states
//! everything held.

mod journal;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::time::MissedTickBehavior;

use crate::client::Connection;
use crate::engine::{Shared, unix_time};
use crate::options::ReportTo;

pub(crate) use journal::{Event, Journal};

const HEARTBEAT_EVERY: Duration = Duration::from_millis(500);
const LEASE: Duration = Duration::from_secs(5);
/// No answer for this long counts as none.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A batch ends with the event that takes it to this many blocks.
const BATCH_BLOCKS: usize = 2048;
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// The name of this engine's current stretch of uninterrupted reports.
#[derive(Debug)]
pub(crate) struct Epoch {
    name: Mutex<String>,
    resyncs: AtomicU64,
    /// The router asked for a new one in its answer to a heartbeat.
    wanted: AtomicU64,
}

impl Epoch {
    pub(crate) fn new() -> Self {
        Self {
            name: Mutex::new(fresh_name()),
            resyncs: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
        }
    }

    pub(crate) fn resyncs(&self) -> u64 {
        self.resyncs.load(Ordering::Relaxed)
    }

    fn name(&self) -> String {
        self.name.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn renew(&self) {
        *self.name.lock().unwrap_or_else(PoisonError::into_inner) = fresh_name();
        self.resyncs.fetch_add(1, Ordering::Relaxed);
    }
}

fn fresh_name() -> String {
    format!("{:x}", unix_time().as_nanos())
}

#[derive(Debug, Serialize)]
struct Heartbeat<'a> {
    worker_id: &'a str,
    worker_url: &'a str,
    current_load: usize,
    model: &'a str,
    kv_blocks_total: usize,
    kv_blocks_used: usize,
    kv_block_tokens: usize,
    epoch: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_s: Option<u64>,
}

#[derive(Debug, Serialize)]
struct EventBatch<'a> {
    worker_id: &'a str,
    epoch: String,
    seq: u64,
    events: Vec<Event>,
}

#[derive(Debug, Default, Deserialize)]
struct Answer {
    #[serde(default)]
    resync: bool,
}

/// What a router made of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reply {
    Accepted,
    Resync,
    /// It was not there, or busy: the same again later.
    Later,
    /// It will never take this one.
    Refused,
}

/// Starts the two reporting tasks on the current runtime.
pub(crate) fn spawn(shared: &Arc<Shared>, report_to: &ReportTo) {
    let post = || Connection::new(&report_to.url).ok().map(|to| Post::new(to, report_to));
    if let (Some(heartbeats), Some(events)) = (post(), post()) {
        tokio::spawn(heartbeat_loop(Arc::clone(shared), heartbeats, report_to.clone()));
        tokio::spawn(event_loop(Arc::clone(shared), events, report_to.clone()));
    }
}

async fn heartbeat_loop(shared: Arc<Shared>, mut post: Post, report_to: ReportTo) {
    let mut ticks = tokio::time::interval(HEARTBEAT_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let stats = shared.stats();
        let heartbeat = Heartbeat {
            worker_id: &report_to.worker_id,
            worker_url: &shared.url,
            current_load: stats.running + stats.waiting,
            model: &shared.options.model,
            kv_blocks_total: stats.kv_blocks_total,
            kv_blocks_used: stats.kv_blocks_used,
            kv_block_tokens: shared.options.block_tokens,
            epoch: shared.epoch.name(),
            lease_s: report_to.join.then_some(LEASE.as_secs()),
        };
        match post.send("/v1/heartbeat", &heartbeat).await {
            Reply::Accepted => {}
            Reply::Resync => shared.epoch.wanted.store(1, Ordering::Relaxed),
            Reply::Later | Reply::Refused => shared.desk().reports_failed += 1,
        }
    }
}

async fn event_loop(shared: Arc<Shared>, mut post: Post, report_to: ReportTo) {
    let mut ticks = tokio::time::interval(report_to.interval.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seq = 1;
    let mut unsent: Vec<Event> = Vec::new();
    let mut backoff = report_to.interval;
    loop {
        ticks.tick().await;
        let asked = shared.epoch.wanted.swap(0, Ordering::Relaxed) > 0;
        {
            let mut desk = shared.desk();
            let Some(journal) = desk.batch.journal() else { return };
            if asked || journal.has_overflowed() {
                journal.restate();
                shared.epoch.renew();
                unsent.clear();
                seq = 1;
            }
            if unsent.is_empty() {
                unsent = journal.take(BATCH_BLOCKS);
            }
        }
        if unsent.is_empty() {
            continue;
        }
        let (worker_id, epoch) = (report_to.worker_id.as_str(), shared.epoch.name());
        let batch = EventBatch { worker_id, epoch, seq, events: std::mem::take(&mut unsent) };
        let reply = post.send("/v1/events", &batch).await;
        if matches!(reply, Reply::Accepted | Reply::Resync) {
            shared.desk().reports_accepted += u64::from(reply == Reply::Accepted);
            backoff = report_to.interval;
            seq += 1;
        } else {
            shared.desk().reports_failed += 1;
            unsent = batch.events;
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
        if matches!(reply, Reply::Resync | Reply::Refused) {
            shared.epoch.wanted.store(1, Ordering::Relaxed);
        }
    }
}

/// One of the two message streams to the router.
struct Post {
    to: Connection,
    headers: Vec<(String, String)>,
}

impl Post {
    fn new(to: Connection, report_to: &ReportTo) -> Self {
        let bearer = |token: &String| ("authorization".to_owned(), format!("Bearer {token}"));
        Self { to, headers: report_to.token.iter().map(bearer).collect() }
    }

    async fn send(&mut self, path: &str, message: &impl Serialize) -> Reply {
        let body = Bytes::from(serde_json::to_vec(message).expect("a message is plain data"));
        let answer = tokio::time::timeout(ANSWER_WITHIN, self.exchange(path, body)).await;
        let Ok(Some((status, body))) = answer else {
            self.to.close();
            return Reply::Later;
        };
        if status.is_success() {
            let answer: Answer = serde_json::from_slice(&body).unwrap_or_default();
            return if answer.resync { Reply::Resync } else { Reply::Accepted };
        }
        match status.as_u16() {
            400 | 413 | 422 => Reply::Refused,
            _ => Reply::Later,
        }
    }

    async fn exchange(&mut self, path: &str, body: Bytes) -> Option<(StatusCode, Bytes)> {
        let response = self.to.send(Method::POST, path, &self.headers, body).await.ok()?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.ok()?;
        Some((status, body.to_bytes()))
    }
}
