//! The test bed: engines, a broker, and routers as processes of their own.

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

use super::{Any, Routers, WORKERS};
use crate::process::free_addresses;

/// KV blocks of one engine: a bit more than its share of the open conversations.
const KV_BLOCKS: usize = 2_000;
const READY_WITHIN: Duration = Duration::from_secs(20);

/// Everything of one run. Dropping it ends it all, the routers first.
pub struct Bed {
    routers: Vec<Router>,
    _broker: Option<ChildProcess>,
    engines: Vec<EngineHandle>,
}

struct Router {
    child: ChildProcess,
    listen: SocketAddr,
    admin: SocketAddr,
    metrics: SocketAddr,
}

/// What a run starts.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// The product.
    pub program: &'a Path,
    /// The broker.
    pub nats: &'a Path,
    /// Where configurations and logs go.
    pub folder: &'a Path,
    /// How many routers.
    pub routers: Routers,
    /// Whether the engines report to them.
    pub reporting: bool,
}

impl Bed {
    /// Starts all of it; waits until the routers take traffic and, if they should, hear each other.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start(plan: &Plan<'_>) -> Result<Self, Any> {
        let count = plan.routers.count();
        let addrs = free_addresses(4 * count + 1)?;
        let (broker_addr, addrs) = addrs.split_last().ok_or("no ports")?;
        let reports: Vec<String> =
            addrs.chunks(4).map(|addrs| format!("http://{}", addrs[3])).collect();
        let engine = |at: usize| {
            let to = ReportTo {
                also: reports[1..].to_vec(),
                interval: Duration::from_millis(20),
                ..ReportTo::new(reports[0].clone(), format!("w{at}"))
            };
            Engine::start(EngineOptions {
                kv_blocks: KV_BLOCKS,
                prefill_tokens_per_s: 5_000.0,
                max_batched_tokens: 1024,
                reports: plan.reporting.then_some(to),
                ..EngineOptions::default()
            })
        };
        let engines = (0..WORKERS).map(engine).collect::<Result<Vec<_>, _>>()?;
        let mut broker = None;
        if plan.routers == Routers::TwoPeers {
            let port = broker_addr.port().to_string();
            let arguments = ["--addr", "127.0.0.1", "--port", &port];
            let log = plan.folder.join("broker.log");
            broker = Some(ChildProcess::start(plan.nats, arguments, &log)?);
        }
        let mut bed = Self { routers: Vec::new(), _broker: broker, engines };
        for (at, addrs) in addrs.chunks(4).enumerate() {
            let conf = plan.folder.join(format!("router-{at}.yaml"));
            let peers = (plan.routers == Routers::TwoPeers).then_some(*broker_addr);
            std::fs::write(&conf, bed.yaml(addrs, peers, at))?;
            let log = plan.folder.join(format!("router-{at}.log"));
            let arguments = ["run".as_ref(), "--conf".as_ref(), conf.as_os_str()];
            let child = ChildProcess::start(plan.program, arguments, &log)?;
            let (listen, admin, metrics) = (addrs[0], addrs[1], addrs[2]);
            bed.routers.push(Router { child, listen, admin, metrics });
        }
        bed.until_ready(plan.routers).await?;
        Ok(bed)
    }

    fn yaml(&self, addrs: &[SocketAddr], broker: Option<SocketAddr>, at: usize) -> String {
        let [listen, admin, metrics, reports] = addrs else { return String::new() };
        let mut yaml = format!(
            "listen: {listen}\nthreads: 1\nadmin: {{listen: \"{admin}\"}}\n\
             metrics: {{listen: \"{metrics}\"}}\nreports: {{listen: \"{reports}\"}}\n\
             index: {{block_bytes: 64}}\nkv_events: off\nhealth: {{interval_ms: 500}}\n\
             log: {{level: info, access: false}}\n"
        );
        if let Some(broker) = broker {
            let _ = writeln!(
                yaml,
                "peers: {{nats: \"nats://{broker}\", subject: warmroute.bench, \
                 secret: the secret of the bench, name: router-{at}}}"
            );
        }
        yaml += "workers:\n";
        for (at, engine) in self.engines.iter().enumerate() {
            let _ = writeln!(yaml, "  - {{id: w{at}, url: \"{}\"}}", engine.url());
        }
        yaml
    }

    async fn until_ready(&mut self, routers: Routers) -> Result<(), Any> {
        let begun = Instant::now();
        for router in &mut self.routers {
            let admin = format!("http://{}", router.admin);
            loop {
                if let Some(status) = router.child.try_wait()? {
                    let said = router.child.last_lines(3);
                    return Err(format!("a router ended: {status}: {said}").into());
                }
                let workers = asked(&admin, "/workers").await;
                let healthy = workers.matches("\"health\":\"healthy\"").count() == WORKERS;
                let heard = routers != Routers::TwoPeers
                    || asked(&admin, "/peers").await.contains("\"heard_s\"");
                if healthy && heard {
                    break;
                }
                if begun.elapsed() > READY_WITHIN {
                    let said = router.child.last_lines(3);
                    return Err(format!("a router is not ready: {said}").into());
                }
                sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    /// Where clients send.
    pub fn urls(&self) -> Vec<String> {
        self.routers.iter().map(|router| format!("http://{}", router.listen)).collect()
    }

    /// What every engine counted.
    pub fn counted(&self) -> Vec<EngineStats> {
        self.engines.iter().map(EngineHandle::stats).collect()
    }

    /// Every router's metrics page.
    pub async fn metrics(&self) -> Vec<String> {
        let mut pages = Vec::new();
        for router in &self.routers {
            pages.push(asked(&format!("http://{}", router.metrics), "/metrics").await);
        }
        pages
    }
}

/// The page, or nothing.
async fn asked(url: &str, path: &str) -> String {
    let page = timeout(Duration::from_secs(1), load::fetch(url, path)).await;
    page.ok().and_then(Result::ok).map_or_else(String::new, |(_, page)| page)
}

/// The broker's program: where Debian puts it, or wherever it is found.
pub fn nats_server() -> PathBuf {
    let debian = PathBuf::from("/usr/sbin/nats-server");
    if debian.exists() { debian } else { PathBuf::from("nats-server") }
}
