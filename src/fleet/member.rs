//! One worker, as the fleet keeps it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use http::HeaderValue;
use parking_lot::Mutex;

use super::{inflight::Counts, reported::Reported};
use crate::{
    config::{Config, ModelsDeclared, WorkerConfig, WorkerUrl},
    routing::{
        Breaker, Load, PrefillRate, WorkerId,
        prefix::{Bounds, WorkerCache},
        rate::RATE_UNTIL_LEARNED,
    },
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

/// One worker. Locks are held for moments, never across an await, and never two at a time.
#[derive(Debug)]
pub struct Member {
    /// What the configuration (or its heartbeat) says of it.
    pub config: WorkerConfig,
    /// Its name as a header value.
    header: HeaderValue,
    /// Metric series.
    pub metrics: Arc<WorkerMetrics>,
    /// Requests in flight.
    pub counts: Arc<Counts>,
    /// When a worker that joined by heartbeat leaves, unless renewed; `None` for a static one.
    pub lease_until: Option<Mutex<Instant>>,
    /// What we believe of its cache.
    pub(super) cache: Mutex<WorkerCache>,
    /// Its breaker.
    pub(super) breaker: Mutex<Breaker>,
    /// Its prefill speed.
    pub(super) rate: Mutex<PrefillRate>,
    /// What it said in reports.
    pub(super) reported: Mutex<Reported>,
    /// `rate` made comparable with the fleet's, as the bits of an f64.
    comparable_rate: AtomicU64,
    /// Requests at the worker that are not ours, by its heartbeats.
    foreign: AtomicU32,
    health: AtomicU8,
    models: ArcSwap<Models>,
}

impl Member {
    /// A worker that has not been checked yet.
    pub fn new(
        worker: WorkerConfig,
        config: &Config,
        lease: Option<Instant>,
        now: Instant,
    ) -> Self {
        let bounds = Bounds {
            blocks_max: config.index.blocks_of(worker.cache_tokens),
            bytes_max: config.index.tree_bytes_max(),
        };
        let models = match &worker.models {
            ModelsDeclared::Learn => Models::Unknown,
            ModelsDeclared::Any => Models::Any,
            ModelsDeclared::Listed(names) => Models::Known(
                names.iter().map(|id| ModelEntryOrName { id: id.clone(), entry: None }).collect(),
            ),
        };
        Self {
            header: HeaderValue::from_str(worker.id.as_str())
                .expect("worker ids hold header characters only"),
            metrics: Arc::new(WorkerMetrics::of(worker.id.as_str())),
            config: worker,
            counts: Arc::default(),
            lease_until: lease.map(Mutex::new),
            cache: Mutex::new(WorkerCache::new(bounds, config.index.engine_bytes_max())),
            breaker: Mutex::new(Breaker::new(config.breaker, now)),
            rate: Mutex::new(PrefillRate::new()),
            reported: Mutex::default(),
            comparable_rate: AtomicU64::new(RATE_UNTIL_LEARNED.to_bits()),
            foreign: AtomicU32::new(0),
            health: AtomicU8::new(Health::Unknown as u8),
            models: ArcSwap::from_pointee(models),
        }
    }

    /// Name.
    pub fn id(&self) -> &WorkerId {
        &self.config.id
    }

    /// Name, as the value of X-Router-Backend.
    pub fn header(&self) -> &HeaderValue {
        &self.header
    }

    /// Address.
    pub fn url(&self) -> &WorkerUrl {
        &self.config.url
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
        self.health.swap(health as u8, Relaxed) != health as u8
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
        self.config.models == ModelsDeclared::Learn
    }

    /// Takes in what /v1/models answered; true when the names are others than before.
    pub fn set_models(&self, entries: Vec<ModelEntry>) -> bool {
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

    /// The one model it serves, if it is known to serve exactly one (adapters come after their
    /// base model, so the first is the base).
    pub fn first_model(&self) -> Option<String> {
        match &**self.models.load() {
            Models::Known(known) => known.first().map(|model| model.id.clone()),
            _ => None,
        }
    }

    /// The worker's load: what we sent, and what others did by its own account.
    pub fn load(&self) -> Load {
        let ours = self.counts.load();
        let foreign = self.foreign.load(Relaxed);
        Load { requests: ours.requests + foreign, decodes: ours.decodes + foreign, ..ours }
    }

    pub(super) fn set_foreign(&self, requests: u32) {
        self.foreign.store(requests.min(FOREIGN_MAX), Relaxed);
    }

    /// Prefill rate for decisions, tokens a second.
    pub fn comparable_rate(&self) -> f64 {
        f64::from_bits(self.comparable_rate.load(Relaxed))
    }

    pub(super) fn set_comparable_rate(&self, tokens_per_s: f64) {
        self.comparable_rate.store(tokens_per_s.to_bits(), Relaxed);
    }
}
