//! Tells a router what the cache took in and evicted, and that the engine lives.
//!
//! Nothing here can hold up the engine: the step loop only appends to the bounded journal, and one
//! task of its own sends from it: heartbeats, batches of events and syncs, never two at a time, so
//! that none overtakes another. A batch that failed is sent again under its number. A router that
//! missed some, or a journal that overflowed, is answered by a sync: digests are compared, and only
//! what differs is sent. A router that refuses that, or [`ReportTo::sync`] being off, gets a new
//! epoch that states everything held.

mod journal;
mod state;
mod wire;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::{Method, StatusCode};
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior};

use crate::client::Connection;
use crate::engine::{Shared, unix_time};
use crate::options::ReportTo;

pub(crate) use journal::Journal;
use state::State;
use wire::{Answer, Event, EventBatch, Heartbeat, Step, SyncBody, Want};

const HEARTBEAT_EVERY: Duration = Duration::from_millis(500);
const LEASE: Duration = Duration::from_secs(5);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A batch ends with the event that takes it to this many blocks.
const BATCH_BLOCKS: usize = 2048;
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Steps of one sync before everything is sent.
const STEPS_MAX: usize = 4;

/// What a router made of a message.
#[derive(Debug)]
enum Reply {
    Accepted(Answer),
    /// It was not there, or busy: the same again later.
    Later,
    /// It has forgotten this worker, or never heard of it.
    Unknown,
    /// It will never take this one.
    Refused,
}

/// Starts the reporting tasks on the current runtime, one for each router.
pub(crate) fn spawn(shared: &Arc<Shared>, report_to: &ReportTo) {
    let urls = std::iter::once(&report_to.url).chain(&report_to.also);
    for (router, url) in urls.enumerate() {
        spawn_one(shared, report_to, router, url);
    }
}

fn spawn_one(shared: &Arc<Shared>, report_to: &ReportTo, router: usize, url: &str) {
    let Ok(to) = Connection::new(url) else { return };
    let bearer = |token: &String| ("authorization".to_owned(), format!("Bearer {token}"));
    let reporter = Reporter {
        shared: Arc::clone(shared),
        report_to: report_to.clone(),
        router,
        to,
        headers: report_to.token.iter().map(bearer).collect(),
        epoch: fresh_name(),
        next: 1,
        unsent: Vec::new(),
        is_lost: false,
        synced_at: None,
        backoff: report_to.interval,
        not_before: Instant::now(),
    };
    tokio::spawn(reporter.run());
}

/// A name that no other life of this engine has.
fn fresh_name() -> String {
    format!("{:x}", unix_time().as_nanos())
}

struct Reporter {
    shared: Arc<Shared>,
    report_to: ReportTo,
    /// Which journal is ours.
    router: usize,
    to: Connection,
    headers: Vec<(String, String)>,
    /// Names a stretch of batches that are numbered through.
    epoch: String,
    /// Number of the next batch, which is `unsent` unless that is empty.
    next: u64,
    unsent: Vec<Event>,
    /// Whether the router lacks something that no batch to come will tell it.
    is_lost: bool,
    synced_at: Option<Instant>,
    backoff: Duration,
    /// Nothing but heartbeats before this.
    not_before: Instant,
}

impl Reporter {
    async fn run(mut self) {
        let mut beats = tokio::time::interval(HEARTBEAT_EVERY);
        let mut ticks =
            tokio::time::interval(self.report_to.interval.max(Duration::from_millis(1)));
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // The first heartbeat comes before the first batch.
            let is_beat = tokio::select! {
                biased;
                _ = beats.tick() => true,
                _ = ticks.tick() => false,
            };
            if self.shared.is_mute.load(Ordering::SeqCst) {
                continue;
            }
            let reply = if is_beat {
                self.beat().await
            } else if Instant::now() >= self.not_before {
                self.report().await
            } else {
                continue;
            };
            self.heed(reply.as_ref(), is_beat);
            if matches!(reply, Some(Reply::Unknown)) && !is_beat {
                beats.reset_immediately();
            }
        }
    }

    /// What follows from the last answer of a message or of a whole sync.
    fn heed(&mut self, reply: Option<&Reply>, is_beat: bool) {
        match reply {
            None => {}
            Some(Reply::Accepted(answer)) => {
                self.is_lost |= answer.resync;
                if !is_beat {
                    self.backoff = self.report_to.interval;
                }
            }
            Some(Reply::Later | Reply::Unknown | Reply::Refused) => {
                self.shared.desk().reports_failed += 1;
                if !is_beat {
                    self.not_before = Instant::now() + self.backoff;
                    self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
    }

    async fn beat(&mut self) -> Option<Reply> {
        let stats = self.shared.stats();
        let has_seq = self.report_to.sync && self.unsent.is_empty() && self.next > 1;
        let heartbeat = Heartbeat {
            worker_id: &self.report_to.worker_id,
            worker_url: &self.shared.url,
            current_load: stats.running + stats.waiting,
            model: &self.shared.options.model,
            kv_blocks_total: stats.kv_blocks_total,
            kv_blocks_used: stats.kv_blocks_used,
            kv_block_tokens: self.shared.options.block_tokens,
            epoch: &self.epoch,
            seq: has_seq.then(|| self.next - 1),
            lease_s: self.report_to.join.then_some(LEASE.as_secs()),
        };
        let body = to_json(&heartbeat);
        Some(self.post("/v1/heartbeat", body).await)
    }

    /// Sends a batch, or all it takes to make good what is lost. `None` if nothing is to be said.
    async fn report(&mut self) -> Option<Reply> {
        let has_overflowed = self
            .shared
            .desk()
            .batch
            .journal(self.router)
            .is_some_and(|journal| journal.has_overflowed());
        self.is_lost |= has_overflowed;
        // A router that is never content is not asked all the time.
        let pause = self.report_to.interval * 2;
        if self.is_lost && self.synced_at.is_none_or(|at| at.elapsed() >= pause) {
            self.synced_at = Some(Instant::now());
            if self.report_to.sync {
                return self.sync().await;
            }
            self.begin_anew();
        }
        self.send_batch().await
    }

    async fn send_batch(&mut self) -> Option<Reply> {
        if self.unsent.is_empty() {
            self.unsent = self.shared.desk().batch.journal(self.router)?.take(BATCH_BLOCKS);
        }
        if self.unsent.is_empty() {
            return None;
        }
        let batch = EventBatch {
            worker_id: &self.report_to.worker_id,
            epoch: &self.epoch,
            seq: self.next,
            events: &self.unsent,
        };
        let body = to_json(&batch);
        let reply = self.post("/v1/events", body).await;
        match &reply {
            Reply::Accepted(answer) => {
                self.shared.desk().reports_accepted += u64::from(!answer.resync);
                self.unsent.clear();
                self.next += 1;
            }
            Reply::Refused => self.is_lost = true,
            Reply::Later | Reply::Unknown => {}
        }
        Some(reply)
    }

    /// Compares the state with what the router believes, and mends that.
    async fn sync(&mut self) -> Option<Reply> {
        let state = State(self.shared.desk().batch.journal(self.router)?.state());
        // A batch not answered may have arrived; the state holds what it says, under its number.
        self.next += u64::from(!self.unsent.is_empty());
        self.unsent.clear();
        self.is_lost = true;
        let mut step = state.digest();
        for _ in 0..STEPS_MAX {
            let answer = match self.post_step(step).await {
                Reply::Accepted(answer) => answer,
                reply => return Some(self.sync_failed(reply)),
            };
            step = match answer.want {
                Want::Nothing => return Some(self.sync_done()),
                Want::Snapshot => break,
                Want::Buckets => match state.buckets(&answer.differ) {
                    Some(buckets) if !answer.differ.is_empty() => buckets,
                    _ => break,
                },
            };
        }
        let parts = state.parts();
        let last = parts.len() - 1;
        for (part, range) in parts.into_iter().enumerate() {
            match self.post_step(state.snapshot(part, part == last, range)).await {
                Reply::Accepted(answer) if part == last && answer.want != Want::Nothing => {
                    return Some(Reply::Later);
                }
                Reply::Accepted(_) => {}
                reply => return Some(self.sync_failed(reply)),
            }
        }
        Some(self.sync_done())
    }

    fn sync_done(&mut self) -> Reply {
        self.is_lost = false;
        self.shared.desk().syncs += 1;
        Reply::Accepted(Answer::default())
    }

    fn sync_failed(&mut self, reply: Reply) -> Reply {
        if matches!(reply, Reply::Refused) {
            self.begin_anew();
        }
        reply
    }

    /// A new epoch, whose first batches name everything held.
    fn begin_anew(&mut self) {
        let mut desk = self.shared.desk();
        if let Some(journal) = desk.batch.journal(self.router) {
            journal.restate();
        }
        desk.resyncs += 1;
        drop(desk);
        self.epoch = fresh_name();
        self.next = 1;
        self.unsent.clear();
        self.is_lost = false;
    }

    async fn post_step(&mut self, step: Step) -> Reply {
        let seq = i64::try_from(self.next - 1).unwrap_or(i64::MAX);
        let (worker_id, epoch) = (self.report_to.worker_id.as_str(), self.epoch.as_str());
        let body = SyncBody { worker_id, epoch, seq: if seq == 0 { -1 } else { seq }, step };
        let body = to_json(&body);
        self.post("/v1/sync", body).await
    }

    async fn post(&mut self, path: &str, body: Bytes) -> Reply {
        let answered =
            tokio::time::timeout(self.report_to.answer_within, self.exchange(path, body));
        let Ok(Some((status, body))) = answered.await else {
            self.to.close();
            return Reply::Later;
        };
        if status.is_success() {
            return Reply::Accepted(serde_json::from_slice(&body).unwrap_or_default());
        }
        match status.as_u16() {
            404 if contains(&body, b"unknown_worker") => Reply::Unknown,
            400 | 404 | 413 | 422 => Reply::Refused,
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

fn contains(body: &[u8], word: &[u8]) -> bool {
    body.windows(word.len()).any(|window| window == word)
}

fn to_json(message: &impl Serialize) -> Bytes {
    Bytes::from(serde_json::to_vec(message).expect("a message is plain data"))
}
