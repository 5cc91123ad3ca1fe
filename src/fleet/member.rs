//! One worker, as the fleet keeps it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use http::HeaderValue;
use parking_lot::Mutex;

use super::{
    inflight::Counts,
    reported::Reported,
    truth::{Truth, holdings_params, unconfirmed_bounds},
};
use crate::{
    config::{Config, ModelsDeclared, WorkerConfig, WorkerUrl},
    routing::{
        Breaker, Load, PrefillRate, WorkerId,
        prefix::{Holdings, PrefixIndex},
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

/// One worker. Locks are held for moments, never across an await. Where two are held, `reported` was
/// taken before `truth`, and either before `holdings`.
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
    pub(super) holdings: Mutex<Holdings>,
    /// What it got that its reports cannot confirm, though it reports: text prompts of a worker that
    /// reports tokens, say. Kept apart, as presumptions in `holdings` expire unless confirmed.
    pub(super) unconfirmed: Mutex<PrefixIndex>,
    /// How far that is true.
    pub(super) truth: Mutex<Truth>,
    /// Whether its reporter is asked to sync although no batch is missing.
    pub(super) ask_resync: AtomicBool,
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
        lease: Option<Instant>,
        now: Instant,
    ) -> Self {
        let blocks_max = config.index.blocks_of(worker.cache_tokens);
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
            holdings: Mutex::new(Holdings::new(holdings_params(&config.index, blocks_max), now)),
            unconfirmed: Mutex::new(PrefixIndex::new(unconfirmed_bounds(
                &config.index,
                blocks_max,
            ))),
            truth: Mutex::new(Truth::new(blocks_max)),
            ask_resync: AtomicBool::new(false),
            breaker: Mutex::new(Breaker::new(config.breaker, now)),
            rate: Mutex::new(PrefillRate::new()),
            reported: Mutex::default(),
            comparable_rate: AtomicU64::new(RATE_UNTIL_LEARNED.to_bits()),
            foreign: AtomicU32::new(0),
            health: AtomicU8::new(Health::Unknown as u8),
            flaps: AtomicU64::new(0),
            pushes: AtomicBool::new(false),
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
