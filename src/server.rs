//! Composition root: the only file that knows every service.

use std::{net::TcpListener, sync::Arc, time::Duration};

use async_trait::async_trait;
use pingora::{
    apps::http_app::HttpServer,
    listeners::tls::TlsSettings,
    prelude::Server,
    server::{
        RunArgs, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch, configuration::ServerConf,
    },
    services::{
        background::{BackgroundService, background_service},
        listening::Service,
    },
};
use pingora_prometheus::prometheus_http_service;
use rand::Rng;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    admin::Admin,
    clock,
    config::{Config, ConfigError},
    drain::DrainState,
    fleet::{AlignedModels, Fleet, Health},
    health::HealthService,
    parity::ParityService,
    proxy::{Front, Peers, Proxy},
    publishers,
    reports::{Queue, ReportListener},
    routing::block::Secret,
    telemetry::{access_log, logging, metrics},
    worker_http::WorkerHttp,
};

/// Between the signal to stop and the end of accepting: clients learn by `Connection: close`.
const LET_GO: Duration = Duration::from_secs(1);
/// Latest moment after the start at which systemd is told that we are ready.
const READY_AFTER: Duration = Duration::from_secs(5);
/// How often a draining process looks whether it is empty.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Runs the load balancer until it is told to stop.
///
/// # Errors
/// When an address cannot be bound or a file of the configuration has gone; nothing was started.
pub fn run(config: Config) -> Result<(), ConfigError> {
    let aligned = AlignedModels::load(&config)?;
    for (addr, key) in config.addresses() {
        // Bound and let go: Pingora binds later and would only panic in its own thread.
        TcpListener::bind(addr).map_err(|error| {
            let remedy = "stop what listens there, or choose another port";
            ConfigError::new(key, addr, error.to_string(), remedy)
        })?;
    }
    logging::start(&config.log);
    if config.log.access {
        access_log::start(config.log.json).map_err(|error| {
            ConfigError::new("log.access", true, error.to_string(), "allow this user more threads")
        })?;
    }
    metrics::register_all();
    metrics::BUILD_INFO.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);

    let config = Arc::new(config);
    let drain = Arc::new(DrainState::default());
    let secret = Secret::from_seed(rand::rng().random());
    let fleet = Arc::new(Fleet::new(config.clone(), aligned, secret, clock::now()));
    let server = compose(&config, &fleet, &drain)?;
    announce(&config);
    let signal = Drain { state: drain, time_max: config.timeouts.drain };
    server.run(RunArgs { shutdown_signal: Box::new(signal) });
    access_log::flush();
    Ok(())
}

fn compose(
    config: &Arc<Config>,
    fleet: &Arc<Fleet>,
    drain: &Arc<DrainState>,
) -> Result<Server, ConfigError> {
    let conf = ServerConf {
        threads: config.threads,
        // Attempts, not retries.
        max_retries: config.limits.retries_max + 1,
        // A global LRU of idle connections: must exceed what the fleet can have in flight.
        upstream_keepalive_pool_size: 16_384,
        // We leave by ourselves as soon as we are empty; this is the latest.
        grace_period_seconds: Some(config.timeouts.drain.as_secs()),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();

    let peers = Peers::new(config)?;
    let http = WorkerHttp::new(peers.clone(), config.health.timeout);
    if let Some(every) = config.aligned.parity_interval.filter(|_| !fleet.aligned().is_empty()) {
        let parity = ParityService::new(fleet.clone(), http.clone(), every);
        let mut parity = background_service("parity", parity);
        parity.threads = Some(1);
        server.add_service(parity);
    }
    let mut publishers = background_service("kv-events", publishers::service(fleet.clone(), http));
    publishers.threads = Some(1);
    server.add_service(publishers);
    let checks = HealthService::new(fleet.clone(), config.health.clone(), peers);
    let mut checks = background_service("health", checks);
    checks.threads = Some(1);
    server.add_service(checks);
    let mut ready = background_service("ready", Ready { fleet: fleet.clone() });
    ready.threads = Some(1);
    server.add_service(ready);

    let logic = Proxy::new(config.clone(), fleet.clone(), drain.clone())?;
    let front = Front::new(&server.configuration, &logic);
    let mut proxy = Service::new("proxy".to_owned(), front);
    proxy.threads = Some(config.threads);
    for addr in &config.listen {
        proxy.add_tcp(&addr.to_string());
    }
    if let Some(tls) = &config.tls {
        let bad = |error: Box<pingora::Error>| {
            let value = format!("`{}`", tls.cert.display());
            ConfigError::new("tls.cert", value, error.to_string(), "give a PEM chain and its key")
        };
        let (cert, key) = (tls.cert.to_string_lossy(), tls.key.to_string_lossy());
        let mut settings = TlsSettings::intermediate(&cert, &key).map_err(bad)?;
        settings.enable_h2();
        proxy.add_tls_with_settings(&tls.listen.to_string(), None, settings);
    }
    server.add_service(proxy);

    if let Some(reports) = &config.reports {
        let queue = Queue::start(reports.queue_batches_max, fleet.clone()).map_err(|error| {
            ConfigError::new("reports", "", error.to_string(), "allow this user more threads")
        })?;
        let app = HttpServer::new_app(ReportListener::new(reports.clone(), queue));
        let mut service = Service::new("reports".to_owned(), app);
        service.add_tcp(&reports.listen.to_string());
        service.threads = Some(1);
        server.add_service(service);
    }
    if let Some(addr) = config.admin {
        let app = HttpServer::new_app(Admin::new(fleet.clone(), drain.clone()));
        let mut service = Service::new("admin".to_owned(), app);
        service.add_tcp(&addr.to_string());
        service.threads = Some(1);
        server.add_service(service);
    }
    if let Some(addr) = config.metrics {
        let mut service = prometheus_http_service();
        service.add_tcp(&addr.to_string());
        service.threads = Some(1);
        server.add_service(service);
    }
    Ok(server)
}

fn announce(config: &Config) {
    for (addr, key) in config.addresses() {
        tracing::info!(%addr, "{key}");
    }
    let workers = config.workers.len();
    let policy = config.policies.default.0.as_str();
    tracing::info!(workers, policy, version = env!("CARGO_PKG_VERSION"), "warmroute starts");
    if config.metrics.is_none() {
        tracing::info!("metrics are off: set metrics.listen");
    }
    if config.reports.is_none() {
        tracing::info!("reports are off (what workers hold is presumed): set reports.listen");
    }
}

/// Tells systemd that we serve, once some worker was checked (or would have been).
struct Ready {
    fleet: Arc<Fleet>,
}

#[async_trait]
impl BackgroundService for Ready {
    async fn start(&self, _shutdown: ShutdownWatch) {
        let mut verdict = self.fleet.first_verdict();
        let _ = tokio::time::timeout(READY_AFTER, verdict.wait_for(|known| *known)).await;
        let healthy = self.fleet.members().iter().filter(|m| m.health() == Health::Healthy).count();
        tracing::info!(healthy, "serving");
        notify(&[NotifyState::Ready]);
    }
}

/// Does nothing where there is no systemd.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd could not be notified");
    }
}

/// SIGTERM drains, SIGINT stops at once.
struct Drain {
    state: Arc<DrainState>,
    time_max: Duration,
}

#[async_trait]
impl ShutdownSignalWatch for Drain {
    async fn recv(&self) -> ShutdownSignal {
        let terminate = signal(SignalKind::terminate());
        let interrupt = signal(SignalKind::interrupt());
        let hangup = signal(SignalKind::hangup());
        let (Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)) = (terminate, interrupt, hangup)
        else {
            tracing::error!("signals cannot be watched");
            return ShutdownSignal::FastShutdown;
        };
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => return self.stop("SIGINT"),
                // Unhandled it would end the process.
                _ = hangup.recv() => {
                    tracing::warn!("SIGHUP: this version reads its configuration at start only");
                }
            }
        }
        notify(&[NotifyState::Stopping]);
        let open = self.state.open_requests();
        tracing::info!(open, deadline_s = self.time_max.as_secs(), "SIGTERM: draining");
        self.state.begin();
        // Still accepting: keep-alive clients are told to close with their next answer.
        tokio::time::sleep(LET_GO.min(self.time_max)).await;
        self.leave_when_empty();
        ShutdownSignal::GracefulTerminate
    }
}

impl Drain {
    fn stop(&self, signal: &str) -> ShutdownSignal {
        tracing::info!(open = self.state.open_requests(), "{signal}: stopping at once");
        access_log::flush();
        ShutdownSignal::FastShutdown
    }

    /// Pingora sleeps the whole grace period however empty it is; we look ourselves, from a thread,
    /// as its runtimes are on their way out.
    fn leave_when_empty(&self) {
        let (state, until) = (self.state.clone(), clock::now() + self.time_max);
        std::thread::spawn(move || {
            // Some looks' time for the listeners to hear the broadcast and stop.
            let mut empty_looks = 0;
            while clock::now() < until && empty_looks < 4 {
                std::thread::sleep(LOOK_EVERY);
                empty_looks = if state.open_requests() == 0 { empty_looks + 1 } else { 0 };
            }
            tracing::info!(open = state.open_requests(), "drained");
            access_log::flush();
            std::process::exit(0);
        });
    }
}
