//! One worker, as the fleet keeps it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, Guard};
use http::HeaderValue;
use parking_lot::Mutex;

use super::{
    belief::Belief,
    index::FleetIndex,
    inflight::Counts,
    membership::Origin,
    peer_loads::{self, PeerLoads},
    published::Published,
    reported::Reported,
    truth::{Truth, holdings_params},
};
use crate::{
    config::{Config, ModelsDeclared, WorkerConfig, WorkerUrl},
    routing::{Breaker, BreakerState, Limit, Load, Pace, WorkerId, ramp_share},
    telemetry::metrics::WorkerMetrics,
    wire::models::ModelEntry,
};

/// Most requests of others believed of one worker: its heartbeat is only somebody's word.
const FOREIGN_MAX: u32 = 1 << 20;

/// What a worker serves.
#[derive(Debug, Clone)]
pub enum Models {
    /// Not learned yet: takes any.
    Unknown,
    /// Declared to take any.
    Any,
    /// These.
    Known(Vec<ModelEntryOrName>),
}

/// A model by name, with its worker's own description where that was learned.
#[derive(Debug, Clone)]
pub struct ModelEntryOrName {
    /// Name.
    pub id: String,
    /// The worker's JSON for it.
    pub entry: Option<ModelEntry>,
}

impl Models {
    fn declared(models: &ModelsDeclared) -> Self {
        match models {
            ModelsDeclared::Learn => Self::Unknown,
            ModelsDeclared::Any => Self::Any,
            ModelsDeclared::Listed(names) => Self::Known(
                names.iter().map(|id| ModelEntryOrName { id: id.clone(), entry: None }).collect(),
            ),
        }
    }

    /// Whether a request for `model` may go here.
    pub fn serves(&self, model: Option<&str>) -> bool {
        match (self, model) {
            (Models::Known(known), Some(model)) => known.iter().any(|known| known.id == model),
            _ => true,
        }
    }
}

/// Verdict of the active health checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Health {
    /// Not checked yet: gets no traffic.
    Unknown = 0,
    /// Passes.
    Healthy = 1,
    /// Fails.
    Unhealthy = 2,
}

/// No slow start is under way.
const NO_RAMP: u64 = u64::MAX;

/// Tells the members of one process apart, also those of one name.
static SERIALS: AtomicU64 = AtomicU64::new(0);

/// One worker, for as long as it is in the fleet under one name and address. Locks are held for
/// moments, never across an await. Where two are held, `reported` or `published` was taken before
/// `truth`, and either before `belief`.
#[derive(Debug)]
pub struct Member {
    id: WorkerId,
    url: WorkerUrl,
    /// What its origin says of it, now; name and address never change.
    settings: ArcSwap<WorkerConfig>,
    /// Serializes changes of `settings` with those of `models` that follow from them.
    settling: Mutex<()>,
    /// Who says that it belongs to the fleet.
    origin: Origin,
    /// Number of this member, never given twice.
    serial: u64,
    /// When it came; `ramp_since` counts from here.
    joined_at: Instant,
    /// Its name as a header value.
    header: HeaderValue,
    /// Metric series.
    pub metrics: Arc<WorkerMetrics>,
    /// Requests in flight.
    pub counts: Arc<Counts>,
    /// When a worker that joined by heartbeat leaves, unless renewed; `None` for any other.
    pub(super) lease_until: Option<Mutex<Instant>>,
    /// What we believe of its cache.
    pub(super) belief: Belief,
    /// How far that is true.
    pub(super) truth: Mutex<Truth>,
    /// Whether its reporter is asked to sync although no batch is missing.
    pub(super) ask_resync: AtomicBool,
    /// Its breaker.
    pub(super) breaker: Mutex<Breaker>,
    /// What its bound on requests in flight is found by.
    pub(super) limit: Mutex<Limit>,
    /// What prefill it has before it, and how fast it goes.
    pub pace: Arc<Mutex<Pace>>,
    /// What it said in reports.
    pub(super) reported: Mutex<Reported>,
    /// How far what it publishes has been followed.
    pub(super) published: Mutex<Published>,
    /// Requests at the worker that are not ours, by its heartbeats.
    foreign: AtomicU32,
    /// What other routers told of theirs.
    peer_loads: Mutex<PeerLoads>,
    /// Whether there is any, so that without peers no lock is taken for it.
    has_peers: AtomicBool,
    health: AtomicU8,
    /// Whether it gets no new requests.
    drained: AtomicBool,
    /// Beginning of its slow start, in microseconds after `joined_at`.
    ramp_since: AtomicU64,
    /// Times it came back to health.
    flaps: AtomicU64,
    /// Whether it pushes what it stores.
    pushes: AtomicBool,
    models: ArcSwap<Models>,
}

impl Member {
    /// A worker that has not been checked yet.
    pub fn new(
        worker: WorkerConfig,
        config: &Config,
        origin: Origin,
        lease: Option<Instant>,
        index: Arc<FleetIndex>,
        now: Instant,
    ) -> Self {
        let blocks_max = config.index.blocks_of(worker.cache_tokens);
        let models = Models::declared(&worker.models);
        let metrics = WorkerMetrics::of(worker.id.as_str());
        metrics.weight.set(worker.weight);
        Self {
            header: HeaderValue::from_str(worker.id.as_str())
                .expect("worker ids hold header characters only"),
            metrics: Arc::new(metrics),
            id: worker.id.clone(),
            url: worker.url.clone(),
            settings: ArcSwap::from_pointee(worker),
            settling: Mutex::new(()),
            origin,
            serial: SERIALS.fetch_add(1, Relaxed),
            joined_at: now,
            counts: Arc::default(),
            lease_until: lease.map(Mutex::new),
            belief: Belief::new(index, holdings_params(&config.index, blocks_max), now),
            truth: Mutex::new(Truth::new(blocks_max)),
            ask_resync: AtomicBool::new(false),
            breaker: Mutex::new(Breaker::new(config.breaker, now)),
            limit: Mutex::default(),
            pace: Arc::new(Mutex::new(Pace::new(now))),
            reported: Mutex::default(),
            published: Mutex::default(),
            foreign: AtomicU32::new(0),
            peer_loads: Mutex::default(),
            has_peers: AtomicBool::new(false),
            health: AtomicU8::new(Health::Unknown as u8),
            drained: AtomicBool::new(false),
            ramp_since: AtomicU64::new(NO_RAMP),
            flaps: AtomicU64::new(0),
            pushes: AtomicBool::new(false),
            models: ArcSwap::from_pointee(models),
        }
    }

    /// Name.
    pub fn id(&self) -> &WorkerId {
        &self.id
    }

    /// Name, as the value of X-Router-Backend.
    pub fn header(&self) -> &HeaderValue {
        &self.header
    }

    /// Address.
    pub fn url(&self) -> &WorkerUrl {
        &self.url
    }

    /// What its origin says of it, now.
    pub fn settings(&self) -> Guard<Arc<WorkerConfig>> {
        self.settings.load()
    }

    /// Who says that it belongs to the fleet.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Number of this member, never given to another: a worker that comes back is another member.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// Takes over other settings of the same worker; true when they are others.
    pub(super) fn set_settings(&self, worker: WorkerConfig) -> bool {
        debug_assert!((&worker.id, &worker.url) == (&self.id, &self.url), "another worker");
        let _settling = self.settling.lock();
        let before = self.settings.load_full();
        if *before == worker {
            return false;
        }
        if before.models != worker.models {
            let declared = Models::declared(&worker.models);
            let known = matches!(&**self.models.load(), Models::Known(_));
            // What was declared or learned holds until the worker has been asked.
            if !(known && matches!(declared, Models::Unknown)) {
                self.models.store(Arc::new(declared));
            }
        }
        self.settings.store(Arc::new(worker));
        true
    }

    /// Whether it gets no new requests.
    pub fn is_drained(&self) -> bool {
        self.drained.load(Relaxed)
    }

    /// Drains or undrains; true when it was otherwise before.
    pub(super) fn set_drained(&self, drained: bool) -> bool {
        self.metrics.drained.set(i64::from(drained));
        self.drained.swap(drained, Relaxed) != drained
    }

    /// Whether requests go to it: healthy, not drained, its breaker closed.
    pub(super) fn serves_now(&self, now: Instant) -> bool {
        self.health() == Health::Healthy
            && !self.is_drained()
            && self.breaker.lock().state(now) == BreakerState::Closed
    }

    /// It starts slowly from now on, or has its whole weight at once.
    pub(super) fn start(&self, slowly: bool, now: Instant) {
        let since = now.saturating_duration_since(self.joined_at).as_micros() as u64;
        self.ramp_since.store(if slowly { since } else { NO_RAMP }, Relaxed);
    }

    /// Its weight at `now`, of the one its settings give.
    pub(super) fn weight(&self, settings: &WorkerConfig, now: Instant) -> f64 {
        settings.weight * self.ramp_share(settings, now)
    }

    /// The share of it that it has got.
    pub(super) fn ramp_share(&self, settings: &WorkerConfig, now: Instant) -> f64 {
        match self.ramp_since.load(Relaxed) {
            NO_RAMP => 1.0,
            since => {
                let since = self.joined_at + Duration::from_micros(since);
                ramp_share(since, settings.slow_start, now)
            }
        }
    }

    /// Verdict of the health checks.
    pub fn health(&self) -> Health {
        match self.health.load(Relaxed) {
            1 => Health::Healthy,
            2 => Health::Unhealthy,
            _ => Health::Unknown,
        }
    }

    /// Sets the verdict; true when it is another than before.
    pub fn set_health(&self, healthy: bool) -> bool {
        let health = if healthy { Health::Healthy } else { Health::Unhealthy };
        self.metrics.healthy.set(i64::from(healthy));
        let changed = self.health.swap(health as u8, Relaxed) != health as u8;
        if changed && healthy {
            self.flaps.fetch_add(1, Relaxed);
        }
        changed
    }

    /// How often it came to health.
    pub fn flaps(&self) -> u64 {
        self.flaps.load(Relaxed)
    }

    /// Whether it pushes what it stores, so that what it publishes is not needed.
    pub fn pushes(&self) -> bool {
        self.pushes.load(Relaxed)
    }

    pub(super) fn set_pushes(&self, pushes: bool) {
        self.pushes.store(pushes, Relaxed);
    }

    /// Its models.
    pub fn models(&self) -> Arc<Models> {
        self.models.load_full()
    }

    /// Whether a request for `model` may go here.
    pub fn serves(&self, model: Option<&str>) -> bool {
        self.models.load().serves(model)
    }

    /// Whether its models are to be asked for.
    pub fn learns_models(&self) -> bool {
        self.settings.load().models == ModelsDeclared::Learn
    }

    /// Takes in what /v1/models answered; true when the names are others than before. What is
    /// declared since it was asked holds.
    pub fn set_models(&self, entries: Vec<ModelEntry>) -> bool {
        let _settling = self.settling.lock();
        if !self.learns_models() {
            return false;
        }
        let same = match &**self.models.load() {
            Models::Known(known) => {
                known.iter().map(|model| &model.id).eq(entries.iter().map(|entry| &entry.id))
            }
            _ => false,
        };
        let known = entries
            .into_iter()
            .map(|entry| ModelEntryOrName { id: entry.id.clone(), entry: Some(entry) })
            .collect();
        self.models.store(Arc::new(Models::Known(known)));
        !same
    }

    /// Takes up the models another process had learned, until this one has.
    pub(super) fn restore_models(&self, models: Vec<ModelEntryOrName>) {
        self.models.store(Arc::new(Models::Known(models)));
    }

    /// The first model it serves, if they are known: adapters come after their base model.
    pub fn first_model(&self) -> Option<String> {
        match &**self.models.load() {
            Models::Known(known) => known.first().map(|model| model.id.clone()),
            _ => None,
        }
    }

    /// The model `model` is an adapter of, as far as this worker said.
    pub fn parent_of(&self, model: &str) -> Option<String> {
        match &**self.models.load() {
            Models::Known(known) => {
                let entry = known.iter().find(|known| known.id == model)?.entry.as_ref()?;
                entry.parent.clone()
            }
            _ => None,
        }
    }

    /// The worker's load: what we sent, and what others did by their or its own account.
    pub fn load(&self, now: Instant) -> Load {
        peer_loads::whole(self.counts.load(), self.peer_load(now), self.foreign.load(Relaxed))
    }

    /// What other routers sent it, by their own account.
    pub fn peer_load(&self, now: Instant) -> Load {
        if !self.has_peers.load(Relaxed) {
            return Load::default();
        }
        self.peer_loads.lock().sum(now)
    }

    /// Forgets what peers told and no longer stands.
    pub(super) fn peers_age(&self, now: Instant) {
        if self.has_peers.load(Relaxed) {
            let mut loads = self.peer_loads.lock();
            loads.expire(now);
            self.has_peers.store(!loads.is_empty(), Relaxed);
        }
    }

    pub(super) fn hear_load(&self, from: &str, load: Load, until: Instant, now: Instant) {
        if load == Load::default() && !self.has_peers.load(Relaxed) {
            return;
        }
        let mut loads = self.peer_loads.lock();
        loads.tell(from, load, until, now);
        self.has_peers.store(!loads.is_empty(), Relaxed);
    }

    pub(super) fn set_foreign(&self, requests: u32) {
        self.foreign.store(requests.min(FOREIGN_MAX), Relaxed);
    }
}
