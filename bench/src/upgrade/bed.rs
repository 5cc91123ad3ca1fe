//! The test bed: engines, the load, the router and its files.

use std::{
    fmt::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;
use tokio::task::JoinSet;
use warmroute_engine::{Engine, EngineHandle, EngineOptions, ReportTo};

use super::{
    Any,
    asks::{CHAT_MODEL, PROMPT_TOKENS, STREAM_MODEL},
    io::{Target, write_certificate},
    load::{Load, live_seconds},
    process,
    record::Recorder,
    router::{Listeners, Router},
    streams::{Streams, TOKEN_S},
};
use crate::process::free_addresses;

/// Engines that hold chats, without the spare one.
pub const CHATS: usize = 4;
/// Slow engines, of which the last is in no file and joins by heartbeat.
const SLOW: usize = 4;
const BLOCK_BYTES: usize = 64;
const BLOCK_TOKENS: usize = 16;

/// How hard and how long.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Arrivals a second.
    pub rate: f64,
    /// Long streams.
    pub streams: u64,
    /// Their length, seconds, from and to.
    pub stream_s: (f64, f64),
    /// Milliseconds a user thinks, from and to.
    pub think: (u64, u64),
    /// Whether engines report what they hold.
    pub is_reporting: bool,
    /// Whether the router keeps its state on disk.
    pub has_state: bool,
}

/// What reloads change.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Weights of the chat engines.
    pub weights: [f64; CHATS],
    /// Whether the spare engine is in the fleet.
    pub has_spare: bool,
    /// `limits.inflight_max`.
    pub inflight_max: usize,
    /// `limits.retries_max`.
    pub retries_max: u64,
    /// `policy_params.decode_tokens`.
    pub decode_tokens: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            weights: [1.0; CHATS],
            has_spare: false,
            inflight_max: 2_000,
            retries_max: 2,
            decode_tokens: 64,
        }
    }
}

/// The configuration, but for what reloads change.
#[derive(Debug)]
pub struct Fleet {
    frame: String,
    urls: Vec<(String, String)>,
    spare: (String, String),
    cache_tokens: usize,
}

impl Fleet {
    /// The file with these settings.
    pub fn yaml(&self, settings: &Settings) -> String {
        let Settings { inflight_max, retries_max, decode_tokens, .. } = settings;
        let mut yaml = format!(
            "{}limits: {{inflight_max: {inflight_max}, retries_max: {retries_max}}}\n\
             policy_params: {{decode_tokens: {decode_tokens}}}\nworkers:\n",
            self.frame
        );
        let mut worker = |(id, url): &(String, String), weight: f64| {
            let is_chat = id.starts_with("chat");
            let model = if is_chat { CHAT_MODEL } else { STREAM_MODEL };
            let _ = write!(yaml, "  - {{id: {id}, url: \"{url}\", models: [{model}]");
            if is_chat {
                let _ = write!(yaml, ", weight: {weight}, cache_tokens: {}", self.cache_tokens);
            }
            yaml += "}\n";
        };
        for (at, named) in self.urls.iter().enumerate() {
            worker(named, settings.weights.get(at).copied().unwrap_or(1.0));
        }
        if settings.has_spare {
            worker(&self.spare, 1.0);
        }
        yaml
    }
}

/// Everything of one run. Dropping it ends it all.
pub struct Bed {
    /// The router.
    pub router: Router,
    /// What it is configured with.
    pub fleet: Fleet,
    /// The file it reads.
    pub conf: PathBuf,
    /// What became of the requests.
    pub recorder: Arc<Recorder>,
    /// The chats.
    pub load: Arc<Load>,
    // Ends before the engines.
    tasks: JoinSet<()>,
    engines: Vec<EngineHandle>,
    _folder: TempDir,
}

impl Bed {
    /// Starts engines, router and load.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start(program: &Path, out: &Path, name: &str, plan: &Plan) -> Result<Self, Any> {
        let folder = tempfile::Builder::new().prefix("warmroute-").tempdir()?;
        let addrs = free_addresses(5)?;
        let [plain, tls, admin, metrics, reports] = addrs[..] else { return Err("ports".into()) };
        let cert = folder.path().join("cert.pem");
        let authority = write_certificate(&cert, &folder.path().join("key.pem"))?;
        let kv_blocks = kv_blocks(plan);
        let mut engines = Vec::new();
        let mut urls = Vec::new();
        for at in 0..=CHATS {
            let id = format!("chat-{at}");
            let report = plan.is_reporting.then(|| report_to(reports, &id, false));
            engines.push(Engine::start(chat_engine(plan, kv_blocks, report))?);
            urls.push((id, engines[at].url()));
        }
        let spare = urls.pop().ok_or("no spare engine")?;
        for at in 0..SLOW {
            let id = format!("slow-{at}");
            let joins = at == SLOW - 1;
            let report = joins.then(|| report_to(reports, &id, true));
            let engine = Engine::start(slow_engine(report))?;
            if !joins {
                urls.push((id, engine.url()));
            }
            engines.push(engine);
        }
        let mut frame = format!(
            "listen: {plain}\nthreads: 2\n\
             tls: {{listen: \"{tls}\", cert: \"{cert}\", key: \"{key}\"}}\n\
             admin: {{listen: \"{admin}\"}}\nmetrics: {{listen: \"{metrics}\"}}\n\
             reports: {{listen: \"{reports}\", join: true}}\n\
             index: {{block_bytes: {BLOCK_BYTES}}}\nkv_events: off\n\
             timeouts: {{upgrade_s: 15}}\n\
             health: {{interval_ms: 500}}\nlog: {{level: info, access: false}}\n",
            cert = cert.display(),
            key = folder.path().join("key.pem").display(),
        );
        if plan.has_state {
            let state = folder.path().join("state");
            std::fs::create_dir(&state)?;
            let _ = writeln!(frame, "state: {{dir: \"{}\", interval_s: 1}}", state.display());
        }
        let fleet = Fleet { frame, urls, spare, cache_tokens: kv_blocks * BLOCK_TOKENS };
        let conf = folder.path().join("warmroute.yaml");
        std::fs::write(&conf, fleet.yaml(&Settings::default()))?;
        let listeners = Listeners { admin, metrics };
        let router =
            Router::start(program, folder.path(), &conf, &out.join(name), listeners).await?;
        let target = Target::new(plain, tls, &authority)?;
        let recorder = Arc::new(Recorder::start());
        let streams = Streams::prepare(recorder.clone(), target.clone(), plan.stream_s).await?;
        let mut tasks = streams.keep_open(plan.streams);
        let load = Load::new(recorder.clone(), target, plan.rate, plan.think);
        tasks.spawn(load.clone().run());
        Ok(Self { router, fleet, conf, recorder, load, tasks, engines, _folder: folder })
    }

    /// Writes the file the router reads, at once.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_conf(&self, yaml: &str) -> std::io::Result<()> {
        let new = self.conf.with_extension("new");
        std::fs::write(&new, yaml)?;
        std::fs::rename(&new, &self.conf)
    }

    /// Syncs that engines had to make with a router that missed something.
    pub fn syncs(&self) -> u64 {
        let stats = self.engines.iter().map(EngineHandle::stats);
        stats.map(|stats| stats.syncs + stats.resyncs).sum()
    }

    /// Processor time of the router and of all this, which is client and engines.
    pub fn cpu(&self) -> (Duration, Duration) {
        (self.router.cpu(), process::cpu(std::process::id()))
    }

    /// Ends the load: waits for chats under way, cuts the long streams.
    pub async fn end(mut self) -> Arc<Recorder> {
        self.load.end();
        for _ in 0..200 {
            if self.load.open() == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.tasks.shutdown().await;
        self.recorder.clone()
    }
}

/// Room for the chats that are under way and half as many again.
fn kv_blocks(plan: &Plan) -> usize {
    let live = plan.rate * live_seconds(plan.think);
    let blocks = live * PROMPT_TOKENS / BLOCK_TOKENS as f64 / CHATS as f64;
    (blocks * 1.5) as usize + 1_000
}

/// Fast enough for the load when half of what is cached was not.
fn chat_engine(plan: &Plan, kv_blocks: usize, reports: Option<ReportTo>) -> EngineOptions {
    let prefill_tokens_per_s = (plan.rate / CHATS as f64 * PROMPT_TOKENS).max(20_000.0);
    EngineOptions {
        model: CHAT_MODEL.to_owned(),
        block_tokens: BLOCK_TOKENS,
        kv_blocks,
        prefill_tokens_per_s,
        decode_step_ms: 3.0,
        decode_sequence_us: 20.0,
        max_num_seqs: 256,
        reports,
        ..EngineOptions::default()
    }
}

fn slow_engine(reports: Option<ReportTo>) -> EngineOptions {
    EngineOptions {
        model: STREAM_MODEL.to_owned(),
        kv_blocks: 16_384,
        prefill_tokens_per_s: 1e6,
        decode_step_ms: TOKEN_S * 1e3,
        decode_sequence_us: 0.0,
        max_num_seqs: 4_096,
        max_batched_tokens: 16_384,
        reports,
        ..EngineOptions::default()
    }
}

fn report_to(router: SocketAddr, id: &str, join: bool) -> ReportTo {
    ReportTo { join, ..ReportTo::new(format!("http://{router}"), id) }
}
