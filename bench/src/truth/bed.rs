//! The test bed: engines, the relay, and the router as a process of its own.

use std::{
    fmt::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};
use warmroute_engine::{
    Engine, EngineHandle, EngineOptions, EngineStats, ReportTo, load, process::ChildProcess,
};

use super::{Any, WORKERS, relay::Relay, worker_id};
use crate::process::free_addresses;

/// KV blocks of one engine: less than its share of the conversations.
const KV_BLOCKS: usize = 640;
const REPORT_EVERY: Duration = Duration::from_millis(10);
/// Longer than the longest delay, which is to be late and not to be sent again.
const ANSWER_WITHIN: Duration = Duration::from_secs(8);
const READY_WITHIN: Duration = Duration::from_secs(20);

/// Everything of one scenario. Dropping it ends it all.
pub struct Bed {
    /// `None` while it is down.
    router: Option<ChildProcess>,
    program: PathBuf,
    folder: PathBuf,
    name: String,
    starts: usize,
    listen: SocketAddr,
    admin: SocketAddr,
    metrics: SocketAddr,
    /// The router's report listener.
    pub reports: SocketAddr,
    /// Between the engines and that.
    pub relay: Relay,
    /// `None` while it is dead.
    engines: Vec<Option<EngineHandle>>,
    /// What engines that are gone had counted.
    buried: Vec<EngineStats>,
}

impl Bed {
    /// Starts engines, which report if `reporting`, and then the router; waits until it is ready.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start(
        program: &Path,
        folder: &Path,
        name: &str,
        reporting: bool,
    ) -> Result<Self, Any> {
        let addrs = free_addresses(4)?;
        let (listen, admin, metrics, reports) = (addrs[0], addrs[1], addrs[2], addrs[3]);
        let relay = Relay::start(reports).await?;
        let start = |at| Engine::start(options(&relay, at, 0, reporting)).map(Some);
        let engines = (0..WORKERS).map(start).collect::<Result<Vec<_>, _>>()?;
        let mut bed = Self {
            router: None,
            program: program.to_owned(),
            folder: folder.to_owned(),
            name: name.to_owned(),
            starts: 0,
            listen,
            admin,
            metrics,
            reports,
            relay,
            engines,
            buried: vec![EngineStats::default(); WORKERS],
        };
        std::fs::write(bed.conf(), bed.yaml())?;
        bed.start_router().await?;
        Ok(bed)
    }

    fn conf(&self) -> PathBuf {
        self.folder.join(format!("{}.yaml", self.name))
    }

    fn yaml(&self) -> String {
        let Self { listen, admin, metrics, reports, .. } = self;
        let mut yaml = format!(
            "listen: {listen}\nthreads: 2\nadmin: {{listen: \"{admin}\"}}\n\
             metrics: {{listen: \"{metrics}\"}}\nreports: {{listen: \"{reports}\"}}\n\
             # As the engines' blocks, so that predictions can be exact.\n\
             index: {{block_bytes: 64}}\n\
             health: {{interval_ms: 500}}\nlog: {{level: info, access: false}}\nworkers:\n"
        );
        for (at, engine) in self.engines.iter().enumerate() {
            let url = engine.as_ref().map(EngineHandle::url).unwrap_or_default();
            let _ = writeln!(yaml, "  - {{id: {}, url: \"{url}\"}}", worker_id(at));
        }
        yaml
    }

    async fn start_router(&mut self) -> Result<(), Any> {
        self.starts += 1;
        let log = self.folder.join(format!("{}-{}.log", self.name, self.starts));
        let conf = self.conf();
        let arguments = ["run".as_ref(), "--conf".as_ref(), conf.as_os_str()];
        let mut router = ChildProcess::start(&self.program, arguments, &log)?;
        let admin = format!("http://{}", self.admin);
        let begun = Instant::now();
        loop {
            if let Some(status) = router.try_wait()? {
                let text = format!("the router ended: {status}: {}", router.last_lines(3));
                return Err(text.into());
            }
            let answer = timeout(Duration::from_secs(1), load::fetch(&admin, "/readyz")).await;
            if matches!(answer, Ok(Ok((200, _)))) {
                break;
            }
            if begun.elapsed() > READY_WITHIN {
                return Err(format!("the router is not ready: {}", router.last_lines(3)).into());
            }
            sleep(Duration::from_millis(10)).await;
        }
        self.router = Some(router);
        Ok(())
    }

    /// SIGKILL, and a new one in its place.
    ///
    /// # Errors
    /// When that does not start.
    pub async fn restart_router(&mut self) -> Result<(), Any> {
        // Dropping it kills it.
        self.router = None;
        self.start_router().await
    }

    /// As a crash; gives how many requests it had.
    pub fn kill_engine(&mut self, at: usize) -> usize {
        let Some(engine) = self.engines[at].take() else { return 0 };
        let stats = engine.stats();
        engine.kill();
        self.buried[at] = added(&self.buried[at], &stats);
        stats.running + stats.waiting
    }

    /// Starts a dead engine again, on its port.
    ///
    /// # Errors
    /// When its port is taken.
    pub fn revive_engine(&mut self, at: usize, url: &str) -> Result<(), Any> {
        let port = url.rsplit(':').next().unwrap_or_default().parse()?;
        self.engines[at] = Some(Engine::start(options(&self.relay, at, port, true))?);
        Ok(())
    }

    /// A living engine.
    pub fn engine(&self, at: usize) -> Option<&EngineHandle> {
        self.engines[at].as_ref()
    }

    /// Where clients send.
    pub fn url(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// The router's metrics page, if it gives one.
    pub async fn metrics(&self) -> Option<String> {
        let url = format!("http://{}", self.metrics);
        let page = timeout(Duration::from_secs(1), load::fetch(&url, "/metrics")).await;
        page.ok()?.ok().filter(|(status, _)| *status == 200).map(|(_, page)| page)
    }

    /// What all engines counted since the start, the dead ones too.
    pub fn counted(&self) -> EngineStats {
        let living = self.engines.iter().zip(&self.buried);
        living.fold(EngineStats::default(), |sum, (engine, buried)| {
            let sum = added(&sum, buried);
            engine.as_ref().map_or(sum, |engine| added(&sum, &engine.stats()))
        })
    }
}

fn options(relay: &Relay, at: usize, port: u16, reporting: bool) -> EngineOptions {
    let to = ReportTo {
        interval: REPORT_EVERY,
        answer_within: ANSWER_WITHIN,
        ..ReportTo::new(relay.url(), worker_id(at))
    };
    EngineOptions {
        port,
        kv_blocks: KV_BLOCKS,
        prefill_tokens_per_s: 20_000.0,
        decode_step_ms: 5.0,
        reports: reporting.then_some(to),
        ..EngineOptions::default()
    }
}

fn added(a: &EngineStats, b: &EngineStats) -> EngineStats {
    let mut sum = *a;
    sum.requests += b.requests;
    sum.prompt_tokens += b.prompt_tokens;
    sum.cached_tokens += b.cached_tokens;
    sum.evicted_blocks += b.evicted_blocks;
    sum.reports_accepted += b.reports_accepted;
    sum.reports_failed += b.reports_failed;
    sum.syncs += b.syncs;
    sum.resyncs += b.resyncs;
    sum
}
