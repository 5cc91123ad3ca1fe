//! Configuration: one strict YAML file.
//!
//! Two levels (STYLE.md): `file.rs` follows the YAML key by key; `Config` below can only hold what
//! runs. `load` is the one way from the first to the second and touches no socket, except that host
//! names are resolved.

mod cold;
mod discovery;
mod discovery_file;
pub mod file;
mod limits;
mod parse;
mod peers;
mod shadow_file;
mod truth;
mod validate;
mod workers;

use std::{
    collections::HashMap, net::SocketAddr, num::NonZeroUsize, path::PathBuf, sync::Arc,
    time::Duration,
};

pub use cold::changed_keys;
pub use discovery::{DiscoveryConfig, DnsSource, FileSource};
pub use limits::RETRIES_MAX;
pub use parse::{Loaded, load, read};
pub use peers::{Login, PeersConfig, SharedSecret};
pub use truth::{AlignedConfig, AlignedParams, BlockHashConfig, KvEvents, KvSource};
pub use workers::{WorkerDefaults, worker_url};

use crate::routing::{
    InflightMax, LimitParams,
    breaker::BreakerParams,
    policy::{Policy, PolicyParams},
    worker::WorkerId,
};

/// Why a configuration cannot run: names the key, what it holds, and what to write instead.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{key}: {value}: {problem}; {remedy}")]
pub struct ConfigError {
    /// Where in the file, as a dotted path.
    pub key: String,
    /// What stands there, shortened.
    pub value: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

impl ConfigError {
    pub(crate) fn new(
        key: impl Into<String>,
        value: impl std::fmt::Display,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let mut value = value.to_string().replace('\n', " ");
        if value.chars().count() > 80 {
            value = value.chars().take(77).chain("...".chars()).collect();
        }
        Self { key: key.into(), value, problem: problem.into(), remedy: remedy.into() }
    }
}

/// A configuration that can run.
#[derive(Debug, Clone)]
pub struct Config {
    /// Plain addresses of the proxy.
    pub listen: Vec<SocketAddr>,
    /// TLS address of the proxy.
    pub tls: Option<TlsConfig>,
    /// Threads of the proxy service.
    pub threads: usize,
    /// The static fleet.
    pub workers: Vec<WorkerConfig>,
    /// Slow start of workers that join by heartbeat.
    pub slow_start: Duration,
    /// Where more workers are found.
    pub discovery: Option<DiscoveryConfig>,
    /// Admin listener.
    pub admin: Option<AdminConfig>,
    /// Metrics listener.
    pub metrics: Option<SocketAddr>,
    /// Report listener.
    pub reports: Option<ReportsConfig>,
    /// Other routers.
    pub peers: Option<PeersConfig>,
    /// Policies.
    pub policies: Policies,
    /// What a request tells about itself in headers.
    pub headers: HeadersConfig,
    /// Bounds.
    pub limits: file::Limits,
    /// What bounds go by that are found automatically.
    pub auto_limit: LimitParams,
    /// Clocks.
    pub timeouts: Timeouts,
    /// Health checks.
    pub health: HealthConfig,
    /// Breaker.
    pub breaker: BreakerParams,
    /// Prefix indexes.
    pub index: IndexConfig,
    /// KV events of workers that join by heartbeat.
    pub kv_events: KvEvents,
    /// Models in aligned mode, by name.
    pub aligned_models: HashMap<String, AlignedConfig>,
    /// Aligned mode.
    pub aligned: AlignedParams,
    /// Whether streams are asked for their usage.
    pub include_usage: bool,
    /// What is kept across a crash.
    pub state: StateConfig,
    /// TLS towards workers.
    pub upstream_tls: file::UpstreamTls,
    /// Logs.
    pub log: LogConfig,
}

/// Certificate and key of the TLS listener; they fitted each other when checked.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// Address.
    pub listen: SocketAddr,
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
}

/// Where a worker listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerUrl {
    /// As written, without a trailing slash.
    pub text: Arc<str>,
    /// Whether TLS is spoken.
    pub https: bool,
    /// Host name or address, for `Host`.
    pub host: String,
    /// Name for SNI, and the one its certificate is checked against.
    pub tls_name: String,
    /// The first address the host resolved to.
    pub addr: SocketAddr,
}

/// What a worker serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelsDeclared {
    /// Ask its /v1/models.
    Learn,
    /// Any model name.
    Any,
    /// These.
    Listed(Vec<String>),
}

/// The admin listener.
#[derive(Debug, Clone)]
pub struct AdminConfig {
    /// Address.
    pub listen: SocketAddr,
    /// Expected `Authorization: Bearer` token.
    pub token: Option<String>,
}

/// One worker.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerConfig {
    /// Name.
    pub id: WorkerId,
    /// Address.
    pub url: WorkerUrl,
    /// Models.
    pub models: ModelsDeclared,
    /// Relative share, over 0.
    pub weight: f64,
    /// Saturation bound, requests in flight.
    pub inflight_max: InflightMax,
    /// KV cache, tokens.
    pub cache_tokens: u64,
    /// Health path.
    pub health_path: String,
    /// KV events.
    pub kv_events: KvEvents,
    /// How long it takes to get its share when it comes to others that serve.
    pub slow_start: Duration,
}

impl WorkerConfig {
    /// A worker of which nobody has said more.
    pub fn by_default(
        id: WorkerId,
        url: WorkerUrl,
        models: ModelsDeclared,
        config: &Config,
    ) -> Self {
        Self {
            id,
            url,
            models,
            weight: 1.0,
            inflight_max: config.limits.inflight_max,
            cache_tokens: config.index.cache_tokens,
            health_path: config.health.path.clone(),
            kv_events: config.kv_events.clone(),
            slow_start: config.slow_start,
        }
    }
}

/// The report listener.
#[derive(Debug, Clone)]
pub struct ReportsConfig {
    /// Address.
    pub listen: SocketAddr,
    /// Expected `Authorization: Bearer` token.
    pub token: Option<String>,
    /// Largest body, bytes.
    pub body_bytes_max: usize,
    /// Batches waiting.
    pub queue_batches_max: usize,
    /// Whether unknown workers may join.
    pub join: bool,
    /// Joined workers at any time.
    pub joined_workers_max: usize,
    /// Default lease.
    pub lease: Duration,
}

/// Which policy serves which model.
#[derive(Debug, Clone)]
pub struct Policies {
    /// For models that name none.
    pub default: (Policy, PolicyParams),
    /// By model name.
    pub models: HashMap<String, (Policy, PolicyParams)>,
    /// Whether X-Router-Policy is obeyed.
    pub override_allowed: bool,
    /// Picks beside whatever policy is in force, and is not obeyed.
    pub shadow: Option<(Policy, PolicyParams)>,
}

impl Policies {
    /// The policy of `model`.
    pub fn of(&self, model: Option<&str>) -> &(Policy, PolicyParams) {
        model.and_then(|model| self.models.get(model)).unwrap_or(&self.default)
    }

    /// Whether `policy` may have to pick, or to say what it would have picked.
    pub fn may_use(&self, policy: Policy) -> bool {
        let all = self.models.values().chain([&self.default]).chain(&self.shadow);
        self.override_allowed || all.into_iter().any(|(used, _)| *used == policy)
    }
}

/// Headers that carry meaning for routing.
#[derive(Debug, Clone)]
pub struct HeadersConfig {
    /// Names the session.
    pub session: http::HeaderName,
    /// Names the tenant.
    pub tenant: Option<http::HeaderName>,
    /// Whether the client's X-Request-Id is kept.
    pub trust_request_id: bool,
}

/// Clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is documented at its key in file.rs")]
pub struct Timeouts {
    pub connect: Duration,
    pub silence: Duration,
    pub pool_idle: Duration,
    pub body_silence: Duration,
    pub body_total: Duration,
    pub client_write: Duration,
    pub drain: Duration,
    pub upgrade: Duration,
}

/// How workers are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthConfig {
    /// Connect only, instead of asking a path.
    pub tcp: bool,
    /// Pause between checks.
    pub interval: Duration,
    /// One check.
    pub timeout: Duration,
    /// Passed checks that readmit.
    pub healthy_after: usize,
    /// Failed checks that take out.
    pub unhealthy_after: usize,
    /// Default path.
    pub path: String,
    /// Pause between looks at /v1/models.
    pub models_interval: Duration,
}

/// Sizes of the prefix indexes.
#[derive(Debug, Clone, Copy)]
pub struct IndexConfig {
    /// Bytes a block.
    pub block_bytes: NonZeroUsize,
    /// Memory a worker, bytes: half for the tree, half for the engine's own block names.
    pub bytes_max: usize,
    /// KV cache assumed, tokens.
    pub cache_tokens: u64,
    /// Life of a presumption that events do not confirm.
    pub presumed_ttl: Duration,
    /// Worth of a block in host memory and of one further away, of one ready for use.
    pub credits: [f64; 2],
}

/// Bytes of text in a token, on average: the estimate used wherever no tokenizer is at hand.
/// English in the usual BPE vocabularies has 3.5 to 4.5.
pub const BYTES_PER_TOKEN: usize = 4;

impl IndexConfig {
    /// Bound of the tree, bytes.
    pub fn tree_bytes_max(&self) -> usize {
        self.bytes_max - self.engine_bytes_max()
    }

    /// Bound of the engine block records, bytes.
    pub fn engine_bytes_max(&self) -> usize {
        self.bytes_max / 2
    }

    /// How many blocks a cache of `cache_tokens` holds, at least one.
    pub fn blocks_of(&self, cache_tokens: u64) -> usize {
        let bytes = cache_tokens.saturating_mul(BYTES_PER_TOKEN as u64);
        usize::try_from(bytes / self.block_bytes.get() as u64).unwrap_or(usize::MAX).max(1)
    }
}

/// What is kept across a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateConfig {
    /// Folder of the snapshot.
    pub dir: Option<PathBuf>,
    /// Pause between two; none = no snapshots.
    pub interval: Option<Duration>,
    /// How old one may be to be used.
    pub age_max: Duration,
    /// Largest one written, bytes.
    pub bytes_max: u64,
}

/// Logs.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// JSON instead of text.
    pub json: bool,
    /// Filter level.
    pub level: tracing::Level,
    /// Access log.
    pub access: bool,
}
