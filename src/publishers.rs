//! The engines' KV events and the fleet: who publishes, and what becomes of it.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::{server::ShutdownWatch, services::background::BackgroundService};
use tokio::sync::watch;

use crate::{
    clock,
    config::{KvEvents, KvSource},
    fleet::{Fleet, Member},
    kv_events::{
        Attach, Endpoint, KvEventService, Mode, Place, Position, Resume, Settings, Sink, SourceKey,
        Worker, Workers,
    },
    telemetry::access_log::unix_s,
    wire::kv_events::DecodedBatch,
    worker_http::WorkerHttp,
};

/// The service: follows the publishers of all workers of `fleet`, and takes in what they say once
/// `gate` is open.
pub fn service(fleet: Arc<Fleet>, http: WorkerHttp, gate: watch::Receiver<bool>) -> Publishers {
    let link = Arc::new(Link { fleet, http, gate, followed: Mutex::default() });
    Publishers { service: KvEventService::new(link.clone(), link, Settings::default()) }
}

/// See [`service`].
pub struct Publishers {
    service: KvEventService<Link, Link>,
}

#[async_trait]
impl BackgroundService for Publishers {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        self.service.run(async move { drop(shutdown.changed().await) }).await;
    }
}

struct Link {
    fleet: Arc<Fleet>,
    http: WorkerHttp,
    gate: watch::Receiver<bool>,
    /// Ranks that were connected, by the serial of their member.
    followed: Mutex<HashMap<u64, BTreeSet<u32>>>,
}

impl Link {
    /// The worker of a source; not one that has taken its name since.
    fn member(&self, source: &SourceKey) -> Option<Arc<Member>> {
        self.fleet.member(&source.worker).filter(|member| member.serial() == source.life)
    }

    /// What was published by a worker that reports in another way now is forgotten.
    fn dismiss(&self, member: &Member) {
        let Some(ranks) = self.followed.lock().remove(&member.serial()) else { return };
        for rank in ranks {
            Fleet::publisher_dismissed(member, rank, clock::now());
        }
    }
}

#[async_trait]
impl Workers for Link {
    fn workers(&self) -> Vec<Worker> {
        let members = self.fleet.members();
        let present: HashSet<_> = members.iter().map(|member| member.serial()).collect();
        self.followed.lock().retain(|serial, _| present.contains(serial));
        let worker = |member: &Arc<Member>| {
            let mode = mode(member);
            if mode == Mode::Off {
                self.dismiss(member);
            }
            Worker {
                id: member.id().as_str().into(),
                host: member.url().host.as_str().into(),
                mode: Arc::new(mode),
                life: member.serial(),
                flaps: member.flaps(),
            }
        };
        members.iter().map(worker).collect()
    }

    async fn get(&self, worker: &Worker, path: &str) -> Result<Vec<u8>, String> {
        let member = self.fleet.member(&worker.id).filter(|m| m.serial() == worker.life);
        let member = member.ok_or("the worker has left")?;
        match self.http.ask(member.url(), path, None).await {
            Ok((200, body)) => Ok(body),
            Ok((status, _)) => Err(format!("{path} answers {status}")),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// How a worker's events are come by, now.
fn mode(member: &Member) -> Mode {
    // Blocks are filed under the worker's model; and one that pushes its events must not be heard
    // twice.
    if member.base_model().is_none() || member.pushes() {
        return Mode::Off;
    }
    match &member.settings().kv_events {
        KvEvents::Off => Mode::Off,
        KvEvents::Auto => Mode::Auto,
        KvEvents::Sources(sources) => {
            Mode::Explicit(sources.iter().filter_map(|source| place(source).ok()).collect())
        }
    }
}

/// A configured source.
///
/// # Errors
/// A sentence on what is wrong with it.
pub fn place(source: &KvSource) -> Result<Place, String> {
    let endpoint = |text: &str| Endpoint::parse(text).map_err(|bad| bad.to_string());
    let events = if source.bind {
        let address = source.endpoint.trim_start_matches("tcp://");
        Attach::Bind(address.parse().map_err(|_| format!("`{address}` is no address to bind"))?)
    } else {
        Attach::Connect(endpoint(&source.endpoint)?)
    };
    let replay = source.replay_endpoint.as_deref().map(endpoint).transpose()?;
    Ok(Place { events, replay, topic: source.topic.clone() })
}

impl Sink for Link {
    async fn admitted(&self, source: &SourceKey) {
        let mut gate = self.gate.clone();
        if *gate.borrow() {
            return;
        }
        if let Some(member) = self.member(source) {
            member.awaits_publisher(source.rank);
        }
        // The gate's other end lives as long as the process.
        let _ = gate.wait_for(|open| *open).await;
    }

    fn resume(&self, source: &SourceKey) -> Option<Resume> {
        self.member(source)?.resumes_publisher(source.rank)
    }

    fn batch(&self, source: &SourceKey, position: Position, batch: DecodedBatch) {
        // One that has begun to push is not let go before the next look at the workers.
        let Some(member) = self.member(source).filter(|member| !member.pushes()) else { return };
        self.fleet.published(&member, source.rank, position, &batch.events, clock::now());
        member.metrics.kv_batches.inc();
        member.metrics.report_lag.observe((unix_s() - batch.ts).max(0.0));
        let skipped = batch.skipped;
        let refused = skipped.kinds + skipped.malformed + skipped.groups;
        member.metrics.kv_refused.inc_by(u64::from(refused));
    }

    fn restarted(&self, source: &SourceKey) {
        if let Some(member) = self.member(source) {
            Fleet::publisher_restarted(&member, source.rank, clock::now());
        }
    }

    fn gap(&self, source: &SourceKey, expected: u64, got: u64) {
        if let Some(member) = self.member(source) {
            Fleet::publisher_gap(&member, source.rank, expected, got, clock::now());
        }
    }

    fn connected(&self, source: &SourceKey, complete: bool) {
        if let Some(member) = self.member(source) {
            self.followed.lock().entry(source.life).or_default().insert(source.rank);
            Fleet::publisher_connected(&member, source.rank, complete, clock::now());
            let (worker, rank) = (&*source.worker, source.rank);
            tracing::info!(worker, rank, complete, "KV events of worker are followed");
        }
    }

    fn disconnected(&self, source: &SourceKey, why: &str) {
        if let Some(member) = self.member(source) {
            Fleet::publisher_lost(&member, source.rank, clock::now());
            let (worker, rank) = (&*source.worker, source.rank);
            tracing::warn!(worker, rank, why, "KV events of worker are not followed");
        }
    }

    fn replayed(&self, source: &SourceKey, batches: u64) {
        if let Some(member) = self.member(source) {
            member.metrics.replayed.inc_by(batches);
        }
    }

    fn garbage(&self, source: &SourceKey, why: &str, first: bool) {
        if let Some(member) = self.member(source) {
            member.metrics.kv_refused.inc();
        }
        if first {
            let (worker, rank) = (&*source.worker, source.rank);
            tracing::warn!(worker, rank, why, "garbage among the KV events of worker");
        }
    }

    fn discovered(&self, worker: &Arc<str>, sources: Result<usize, &str>) {
        match sources {
            Ok(sources) => tracing::info!(%worker, sources, "worker publishes KV events"),
            // Most engines do not.
            Err(why) => tracing::debug!(%worker, why, "worker publishes no KV events"),
        }
    }
}
