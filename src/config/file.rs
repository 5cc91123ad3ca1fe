//! The configuration file, key by key.
//!
//! These types mirror the YAML and nothing else: they know defaults and spelling, not meaning.
//! `validate.rs` turns them into a `Config`, which can only hold what runs. Unknown keys are
//! errors everywhere.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;

pub use super::discovery_file::{Discovery, DnsName};
pub use super::shadow_file::Shadow;
use crate::routing::InflightMax;

/// One value or a list of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// A single value.
    One(String),
    /// A list.
    Many(Vec<String>),
}

impl OneOrMany {
    pub(super) fn into_vec(self) -> Vec<String> {
        match self {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(many) => many,
        }
    }
}

macro_rules! section {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $field:ident : $ty:ty = $default:expr,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name { $($(#[$doc])* pub $field: $ty,)* }
        impl Default for $name {
            fn default() -> Self { Self { $($field: $default,)* } }
        }
    };
}

pub(super) use section;

section! {
    /// The whole file.
    File {
        /// Addresses of the proxy, plain HTTP/1.1 and h2c.
        listen: Option<OneOrMany> = None,
        /// The proxy over TLS, ALPN h2 and http/1.1.
        tls: Option<Tls> = None,
        /// Worker threads of the proxy; 0 means one per core.
        threads: usize = 0,
        /// The fleet.
        workers: Vec<Worker> = Vec::new(),
        /// How long a worker that comes to others that serve takes to get its share, seconds.
        slow_start_s: u64 = 10,
        /// Where more of it is found.
        discovery: Option<Discovery> = None,
        /// Admin listener.
        admin: Admin = Admin::default(),
        /// Prometheus listener.
        metrics: Listener = Listener::default(),
        /// Report listener.
        reports: Option<Reports> = None,
        /// Other routers of the fleet.
        peers: Option<Peers> = None,
        /// Policy of every model that names none.
        policy: String = "prefix-aware".to_owned(),
        /// Whether the request header `X-Router-Policy` may choose another policy.
        policy_override: bool = false,
        /// Constants of the policies.
        policy_params: PolicyParams = PolicyParams::default(),
        /// A policy that is evaluated and not obeyed.
        shadow: Option<Shadow> = None,
        /// Per-model settings, by model name.
        models: BTreeMap<String, Model> = BTreeMap::new(),
        /// Header that names a session, for `session-affinity`.
        session_header: String = "x-session-id".to_owned(),
        /// Header that names a tenant; tenants never share prefixes.
        tenant_header: Option<String> = None,
        /// Whether a client's own X-Request-Id is kept.
        trust_request_id: bool = false,
        /// Bounds.
        limits: Limits = Limits::default(),
        /// Clocks.
        timeouts: Timeouts = Timeouts::default(),
        /// Active health checks.
        health: Health = Health::default(),
        /// Passive breaker.
        breaker: Breaker = Breaker::default(),
        /// Prefix indexes.
        index: Index = Index::default(),
        /// Engines' own KV events, for workers that say nothing of them: `auto` or `off`.
        kv_events: String = "auto".to_owned(),
        /// Aligned mode (models with a `tokenizer`).
        aligned: Aligned = Aligned::default(),
        /// What answers tell about the workers' caches.
        feedback: Feedback = Feedback::default(),
        /// What is kept across a crash.
        state: State = State::default(),
        /// TLS towards workers.
        upstream_tls: UpstreamTls = UpstreamTls::default(),
        /// Logs.
        log: Log = Log::default(),
    }
}

/// The TLS listener.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Address.
    pub listen: String,
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
}

/// One worker.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Worker {
    /// Unique name; the value of X-Router-Backend.
    pub id: String,
    /// `http://host:port` or `https://host:port`.
    pub url: String,
    /// Models it serves; absent = learned from its /v1/models; `["*"]` = takes any.
    #[serde(default)]
    pub models: Option<Vec<String>>,
    /// Share of traffic relative to others.
    #[serde(default = "one")]
    pub weight: f64,
    /// Overrides `limits.inflight_max`.
    #[serde(default)]
    pub inflight_max: Option<InflightMax>,
    /// KV cache size in tokens, when known; overrides `index.cache_tokens`.
    #[serde(default)]
    pub cache_tokens: Option<u64>,
    /// Name its certificate is checked against (and SNI); default: the URL's host.
    #[serde(default)]
    pub tls_name: Option<String>,
    /// Overrides `health.path`.
    #[serde(default)]
    pub health_path: Option<String>,
    /// Overrides the top-level `slow_start_s`.
    #[serde(default)]
    pub slow_start_s: Option<u64>,
    /// Overrides the top-level `kv_events`; may name sources.
    #[serde(default)]
    pub kv_events: Option<KvEvents>,
}

/// Where a worker's KV events come from.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum KvEvents {
    /// `auto` or `off`.
    Mode(String),
    /// One source a data-parallel rank, in order. (Before `One`, which an empty list fits too.)
    Many(Vec<KvSource>),
    /// One source.
    One(KvSource),
}

/// One publisher of KV events.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvSource {
    /// `tcp://HOST:PORT` the engine binds and we connect to.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// `tcp://ADDRESS:PORT` we bind and the engine connects to, instead of `endpoint`.
    #[serde(default)]
    pub bind: Option<String>,
    /// Replay socket of the engine; without it a gap cannot be closed.
    #[serde(default)]
    pub replay_endpoint: Option<String>,
    /// Topic subscribed to; empty = all.
    #[serde(default)]
    pub topic: String,
}

fn one() -> f64 {
    1.0
}

/// Per-model settings.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// Policy for this model.
    pub policy: Option<String>,
    /// Constants of the policies for this model; absent keys keep the top-level values.
    pub policy_params: Option<PolicyParams>,
    /// Folder with tokenizer.json and tokenizer_config.json: switches aligned mode on.
    pub tokenizer: Option<PathBuf>,
    /// Other names the engines serve it under.
    pub aliases: Vec<String>,
    /// How engines name their blocks, for reporters that send bare hashes.
    pub block_hash: Option<BlockHash>,
}

/// The engines' own block hash.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockHash {
    /// `sha256` or `sha256_cbor`.
    pub algorithm: String,
    /// Tokens a block.
    pub block_tokens: usize,
    /// The engines' PYTHONHASHSEED, where it is set.
    #[serde(default)]
    pub seed: Option<String>,
}

section! {
    /// A listener that is off unless it has an address.
    Listener {
        /// Address.
        listen: Option<String> = None,
    }
}

section! {
    /// The admin listener: off unless it has an address.
    Admin {
        /// Address.
        listen: Option<String> = None,
        /// Bearer token for all but /livez and /readyz.
        token: Option<String> = None,
    }
}

section! {
    /// The report listener.
    Reports {
        /// Address.
        listen: Option<String> = None,
        /// Bearer token reporters must send.
        token: Option<String> = None,
        /// Largest report body, bytes.
        body_bytes_max: usize = 8 << 20,
        /// Batches waiting to be applied.
        queue_batches_max: usize = 1024,
        /// Whether workers unknown to this file may join by heartbeat.
        join: bool = false,
        /// Workers that may have joined at any time.
        joined_workers_max: usize = 1024,
        /// Lease of a joined worker whose heartbeat names none, seconds.
        lease_s: u64 = 15,
    }
}

section! {
    /// Other routers in front of the same workers, reached through a NATS broker.
    Peers {
        /// `nats://HOST:PORT` or `tls://HOST:PORT`, one or more of one cluster.
        nats: Option<OneOrMany> = None,
        /// What the routers of one fleet publish under.
        subject: Option<String> = None,
        /// Shared by the routers that understand each other.
        secret: Option<String> = None,
        /// File with that secret.
        secret_file: Option<PathBuf> = None,
        /// Login of the broker, as `nsc` writes it.
        credentials: Option<PathBuf> = None,
        /// Extra certificate authority of the broker, PEM.
        ca: Option<PathBuf> = None,
        /// This router, in logs and pages of the others.
        name: Option<String> = None,
        /// Pause between two accounts of this router's load, milliseconds.
        loads_interval_ms: u64 = 100,
    }
}

section! {
    /// Constants of the policies.
    PolicyParams {
        /// Price of one running decode, in prefill tokens (`prefix-aware`).
        decode_tokens: Option<f64> = None,
        /// Weight of the matched share (`weighted`).
        hit_weight: Option<f64> = None,
        /// Weight of the free share (`weighted`).
        load_weight: Option<f64> = None,
        /// Load bound relative to the mean (`prefix-affinity`).
        bounded_load: Option<f64> = None,
    }
}

section! {
    /// Bounds.
    Limits {
        /// Largest request body, bytes.
        body_bytes_max: usize = 64 << 20,
        /// Request bodies held in memory at once, bytes.
        buffered_bytes_max: usize = 1 << 30,
        /// Requests in flight a worker; beyond it the worker is saturated. `auto` or a number.
        inflight_max: InflightMax = InflightMax::Auto,
        /// Longest queue that `auto` lets grow at a worker, seconds.
        queue_s: u64 = 30,
        /// Most that `auto` allows.
        inflight_auto_max: u32 = 1024,
        /// Further attempts after a failed one.
        retries_max: usize = 2,
        /// Largest share of the fleet the breaker may eject.
        ejected_share_max: f64 = 0.5,
    }
}

section! {
    /// Clocks.
    Timeouts {
        /// TCP (and TLS) connection to a worker, milliseconds.
        connect_ms: u64 = 1000,
        /// Longest silence of a worker, before the first byte or between two, seconds.
        silence_s: u64 = 600,
        /// How long an idle connection to a worker is kept, milliseconds.
        pool_idle_ms: u64 = 4000,
        /// Longest silence of a client while it sends its body, seconds.
        body_silence_s: u64 = 10,
        /// A whole request body, seconds.
        body_total_s: u64 = 300,
        /// A client that does not take what is sent to it, seconds.
        client_write_s: u64 = 60,
        /// Requests in flight get this long after SIGTERM or an upgrade, seconds.
        drain_s: u64 = 600,
        /// A new process must serve this soon in an upgrade, seconds.
        upgrade_s: u64 = 60,
    }
}

section! {
    /// Active health checks.
    Health {
        /// `http` or `tcp`.
        kind: String = "http".to_owned(),
        /// Path asked for; 200 is healthy.
        path: String = "/health".to_owned(),
        /// Pause between two checks of a worker, milliseconds.
        interval_ms: u64 = 2000,
        /// One check, milliseconds.
        timeout_ms: u64 = 2000,
        /// Passed checks in a row that readmit a worker.
        healthy_after: usize = 1,
        /// Failed checks in a row that take a worker out.
        unhealthy_after: usize = 2,
        /// Pause between two looks at a worker's /v1/models, milliseconds.
        models_interval_ms: u64 = 30_000,
    }
}

section! {
    /// Passive breaker.
    Breaker {
        /// Failures in a row that trip it.
        failures_in_row_max: u32 = 3,
        /// Success share under which it trips.
        success_share_min: f64 = 0.5,
        /// Outcomes in the window before the share counts.
        outcomes_min: u32 = 10,
        /// Window of the share, milliseconds.
        window_ms: u64 = 10_000,
        /// First cool-down, milliseconds.
        cool_down_first_ms: u64 = 1000,
        /// Longest cool-down, milliseconds.
        cool_down_max_ms: u64 = 60_000,
    }
}

section! {
    /// Prefix indexes.
    Index {
        /// Size of a block of canonical text, bytes.
        block_bytes: usize = 128,
        /// Memory of one worker's index, bytes.
        bytes_max: usize = 64 << 20,
        /// KV cache assumed for a worker that has not said, tokens.
        cache_tokens: u64 = 2_000_000,
        /// Life of a presumption that a worker's events do not confirm, seconds.
        presumed_ttl_s: u64 = 60,
        /// Worth of a block in a worker's host memory, of one in its accelerator's.
        cpu_credit: f64 = 0.7,
        /// Worth of a block on a worker's disk or further away.
        storage_credit: f64 = 0.3,
    }
}

section! {
    /// Aligned mode.
    Aligned {
        /// Pause between two comparisons with a worker's /tokenize, seconds; 0 = none.
        parity_interval_s: u64 = 600,
        /// Memory of the tokens of message texts seen before, bytes a model.
        segment_cache_bytes: usize = 64 << 20,
        /// Larger requests are routed in text mode, bytes.
        body_bytes_max: usize = 4 << 20,
    }
}

section! {
    /// What answers tell about the workers' caches.
    Feedback {
        /// Ask for usage in streams whose client did not, and take it out again.
        include_usage: bool = false,
    }
}

section! {
    /// What is kept across a crash or restart.
    State {
        /// Folder of the snapshot; absent = `$STATE_DIRECTORY`, and without that none is written.
        dir: Option<PathBuf> = None,
        /// Pause between two snapshots, seconds; 0 = none.
        interval_s: u64 = 30,
        /// An older snapshot is not used, seconds.
        age_max_s: u64 = 300,
        /// A larger snapshot is not written, bytes.
        bytes_max: u64 = 1 << 30,
    }
}

section! {
    /// TLS towards https workers.
    UpstreamTls {
        /// Whether certificates and host names are checked.
        verify: bool = true,
        /// Extra certificate authorities, PEM.
        ca: Option<PathBuf> = None,
    }
}

section! {
    /// Logs.
    Log {
        /// `text` or `json`.
        format: String = "text".to_owned(),
        /// `error`, `warn`, `info`, `debug` or `trace`.
        level: String = "info".to_owned(),
        /// One line a request on stdout.
        access: bool = true,
    }
}
