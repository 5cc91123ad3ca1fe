//! The test bed of one run: simulated engines that are cold, and a router of its own in front.

use std::{
    fmt::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};
use warmroute_engine::{
    Engine, EngineHandle, EngineOptions, EngineStats, ReportTo, load, process::ChildProcess,
};

use super::Any;
use crate::process::free_addresses;

const READY_WITHIN: Duration = Duration::from_secs(20);
/// Tokens of an engine's KV block.
pub const KV_BLOCK_TOKENS: usize = 16;
/// Most tokens of one step: a long prompt is prefilled in parts, between the tokens of others.
const BATCHED_TOKENS_MAX: usize = 512;

/// Simulated engines.
#[derive(Debug, Clone, Serialize, Deserialize, clap::Args)]
pub struct Fleet {
    /// Simulated engines
    #[arg(long, default_value_t = 4)]
    pub engines: usize,
    /// KV blocks (16 tokens) of an engine
    #[arg(long, default_value_t = 2_000)]
    pub kv_blocks: usize,
    /// Prompt tokens that an engine computes a second
    #[arg(long, default_value_t = 4_000.0)]
    pub prefill_tokens_per_s: f64,
    /// Fixed cost of an engine's step, milliseconds
    #[arg(long, default_value_t = 8.0)]
    pub decode_step_ms: f64,
    /// Attention: nanoseconds for each prefilled token and token of context before it
    #[arg(long, default_value_t = 0.0)]
    pub attention_ns: f64,
    /// Speed of the last engine relative to the others
    #[arg(long, default_value_t = 1.0)]
    pub slow_worker: f64,
    /// Whether engines report to the router what they store and evict
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    pub reports: bool,
    /// How often they do, milliseconds
    #[arg(long, default_value_t = 100)]
    pub report_interval_ms: u64,
}

/// The router in front of them.
#[derive(Debug, Clone, Serialize, Deserialize, clap::Args)]
pub struct RouterSettings {
    /// Threads of the router
    #[arg(long, default_value_t = 1)]
    pub router_threads: usize,
    /// Bytes of its blocks (`index.block_bytes`); 64 are those of the engines
    #[arg(long, default_value_t = 64)]
    pub index_block_bytes: usize,
    /// A further line of its configuration, such as `policy_params: {decode_tokens: 32}`; repeatable
    #[arg(long = "router-yaml", value_name = "YAML")]
    pub router_yaml: Vec<String>,
}

/// One bed. Dropping it ends it all, the router first.
pub struct Bed {
    router: ChildProcess,
    listen: SocketAddr,
    metrics: SocketAddr,
    engines: Vec<EngineHandle>,
}

impl Bed {
    /// Starts cold engines and a router with that policy; waits until it takes traffic.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start(
        fleet: &Fleet,
        router: &RouterSettings,
        policy: &str,
        program: &Path,
        folder: &Path,
    ) -> Result<Self, Any> {
        let addrs = free_addresses(4)?;
        let engines = (0..fleet.engines)
            .map(|at| Engine::start(options(fleet, at, addrs[3])))
            .collect::<Result<Vec<_>, _>>()?;
        let conf = folder.join(format!("router-{policy}.yaml"));
        std::fs::write(&conf, yaml(router, policy, &addrs, &engines))?;
        let log = folder.join(format!("router-{policy}.log"));
        let arguments = ["run".as_ref(), "--conf".as_ref(), conf.as_os_str()];
        let child = ChildProcess::start(program, arguments, &log)?;
        let mut bed = Self { router: child, listen: addrs[0], metrics: addrs[2], engines };
        bed.until_ready(addrs[1]).await?;
        Ok(bed)
    }

    async fn until_ready(&mut self, admin: SocketAddr) -> Result<(), Any> {
        let admin = format!("http://{admin}");
        let begun = Instant::now();
        loop {
            if let Some(status) = self.router.try_wait()? {
                let text = format!("the router ended: {status}: {}", self.router.last_lines(3));
                return Err(text.into());
            }
            let page = asked(&admin, "/workers").await.unwrap_or_default();
            if page.matches("\"health\":\"healthy\"").count() == self.engines.len() {
                return Ok(());
            }
            if begun.elapsed() > READY_WITHIN {
                let text = format!("the router is not ready: {}", self.router.last_lines(3));
                return Err(text.into());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Where clients send.
    pub fn url(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// Its metrics listener.
    pub fn metrics_url(&self) -> String {
        format!("http://{}", self.metrics)
    }

    /// What every engine counted so far, by worker id.
    pub fn counted(&self) -> Vec<(String, EngineStats)> {
        let named = |(at, engine): (usize, &EngineHandle)| (worker_id(at), engine.stats());
        self.engines.iter().enumerate().map(named).collect()
    }
}

/// The page at a path, if it comes within a second.
pub async fn asked(url: &str, path: &str) -> Option<String> {
    let page = timeout(Duration::from_secs(1), load::fetch(url, path)).await;
    page.ok()?.ok().filter(|(status, _)| *status == 200).map(|(_, page)| page)
}

/// Where the router is: as told, the optimized one of this build folder, or one without
/// optimization, which a person should know of.
///
/// # Errors
/// There is none.
pub fn program(told: Option<&PathBuf>, say: &mut dyn FnMut(&str)) -> Result<PathBuf, Any> {
    if let Some(path) = told {
        let found = path.exists().then(|| path.clone());
        return found.ok_or_else(|| format!("--router {}: no such file", path.display()).into());
    }
    let ours = std::env::current_exe()?;
    let folder = ours.parent().unwrap_or(Path::new("."));
    let release = folder.join("../release/warmroute");
    if release.exists() {
        return Ok(release);
    }
    let beside = folder.join("warmroute");
    if !beside.exists() {
        let text = "warmroute is not built: run `cargo build --release`, or name one with --router";
        return Err(text.into());
    }
    say("NOTE: the router is a debug build, its times mean little: run `cargo build --release`");
    Ok(beside)
}

fn worker_id(at: usize) -> String {
    format!("w{at}")
}

fn options(fleet: &Fleet, at: usize, reports: SocketAddr) -> EngineOptions {
    let to = ReportTo {
        interval: Duration::from_millis(fleet.report_interval_ms),
        ..ReportTo::new(format!("http://{reports}"), worker_id(at))
    };
    let is_slow = at + 1 == fleet.engines;
    EngineOptions {
        block_tokens: KV_BLOCK_TOKENS,
        kv_blocks: fleet.kv_blocks,
        max_batched_tokens: BATCHED_TOKENS_MAX,
        max_model_len: fleet.kv_blocks * KV_BLOCK_TOKENS,
        prefill_tokens_per_s: fleet.prefill_tokens_per_s,
        decode_step_ms: fleet.decode_step_ms,
        attention_ns: fleet.attention_ns,
        speed: if is_slow { fleet.slow_worker } else { 1.0 },
        reports: fleet.reports.then_some(to),
        ..EngineOptions::default()
    }
}

fn yaml(
    router: &RouterSettings,
    policy: &str,
    addrs: &[SocketAddr],
    engines: &[EngineHandle],
) -> String {
    let (listen, admin, metrics, reports) = (addrs[0], addrs[1], addrs[2], addrs[3]);
    let mut yaml = format!(
        "listen: {listen}\nthreads: {}\nadmin: {{listen: \"{admin}\"}}\n\
         metrics: {{listen: \"{metrics}\"}}\nreports: {{listen: \"{reports}\"}}\n\
         index: {{block_bytes: {}}}\npolicy: {policy}\nkv_events: off\n\
         health: {{interval_ms: 500}}\nlog: {{level: info, access: false}}\n",
        router.router_threads, router.index_block_bytes,
    );
    for line in &router.router_yaml {
        yaml += line;
        yaml.push('\n');
    }
    yaml += "workers:\n";
    for (at, engine) in engines.iter().enumerate() {
        let _ = writeln!(yaml, "  - {{id: {}, url: \"{}\"}}", worker_id(at), engine.url());
    }
    yaml
}
