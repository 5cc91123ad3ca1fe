//! Composition root: the only file that knows every service.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use pingora::{
    apps::http_app::HttpServer,
    listeners::{ListenerConfig, tls::TlsSettings},
    prelude::Server,
    protocols::l4::stream::L4BufferSettings,
    server::{RunArgs, configuration::ServerConf},
    services::{background::background_service, listening::Service},
};
use pingora_prometheus::prometheus_http_service;
use rand::Rng;
use tokio::sync::watch;

use crate::{
    admin::Admin,
    clock,
    config::{self, Config, ConfigError, WorkerConfig},
    discovery::{Discovery, SharedDiscovery, Sink, Source},
    drain::DrainState,
    fleet::{Cause, Fleet, Live, Origin},
    health::HealthService,
    lifecycle::{
        Control, Finish, Given, Predecessor, Reloader, Signals, Sockets, Upgrader, launch,
        ready::Ready,
        snapshot::{self, SnapshotService, Snapshots},
    },
    parity::ParityService,
    peers::{self, PeersService},
    proxy::{CertKey, Certificates, Front, Presenter, Proxy, Settings, SharedSettings},
    publishers,
    reports::{Queue, ReportListener, Tap},
    routing::block::Secret,
    telemetry::{access_log, lifecycle, logging, metrics},
    worker_http::WorkerHttp,
};

/// Runs the load balancer by the file at `path` until it is told to stop.
///
/// # Errors
/// When the file cannot run, an address cannot be bound or a file it names has gone; nothing was
/// started.
pub fn run(path: &Path) -> Result<(), ConfigError> {
    if launch().map_err(|error| inherits_badly(&error))? {
        return Ok(());
    }
    // Now: once a package has replaced the file, the system names one that is deleted.
    let program = std::env::current_exe().map_err(|error| {
        let remedy = "start it by its path";
        ConfigError::new("warmroute", "this program", error.to_string(), remedy)
    })?;
    let (mut predecessor, sockets) = inherited()?;
    let config::Loaded { config, yaml } = config::read(path)?;
    logging::start(&config.log);
    let config = Arc::new(config);
    let secret = match &config.peers {
        Some(peers) => Secret::from_passphrase(peers.secret.as_str()),
        None => Secret::from_seed(rand::rng().random()),
    };
    let live = Live::new(config.clone(), secret, None)?;
    sockets.fit(&config)?;
    if config.log.access {
        access_log::start(config.log.json)
            .map_err(|error| threads_missing("log.access", &error))?;
    }
    metrics::register_all();
    metrics::BUILD_INFO.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
    lifecycle::started();

    let fleet = restore(live, predecessor.as_mut());
    let (gate, gated) = watch::channel(predecessor.is_none());
    let (hearing, heard) = watch::channel(false);
    let settings = Arc::new(ArcSwap::from_pointee(Settings::new(fleet.live())?));
    let certificates = match &config.tls {
        Some(tls) => Some(Arc::new(ArcSwap::from_pointee(CertKey::load(tls)?))),
        None => None,
    };
    let (control, commands) = Control::new();
    let (discover, discovery) = watch::channel(config.discovery.clone().map(Arc::new));
    let parts = Parts {
        settings: settings.clone(),
        drain: Arc::default(),
        snapshots: Snapshots::new(&config.state, fleet.clone(), gated.clone()),
        tap: Arc::default(),
        certificates: certificates.clone(),
        fleet: fleet.clone(),
        sockets: sockets.clone(),
        gate: gated,
        hears: heard,
        control,
        discovery,
    };
    let server = parts.compose()?;
    announce(&config);
    let (tap, snapshots) = (parts.tap, parts.snapshots);
    let upgrader = Upgrader::new(program, fleet.clone(), sockets.clone(), tap, snapshots.clone());
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let drain = parts.drain;
    let signals = Signals {
        drain: drain.clone(),
        reloader: Arc::new(Reloader::new(
            path,
            yaml,
            fleet.clone(),
            settings,
            certificates,
            discover,
        )),
        upgrader: Arc::new(upgrader),
        snapshots,
        commands: Mutex::new(Some(commands)),
        hearing,
    };
    if let Some(predecessor) = predecessor {
        let finish = Finish { fleet, gate, sockets, drain };
        predecessor.follow(finish).map_err(|error| threads_missing("threads", &error))?;
        server.run(RunArgs { shutdown_signal: Box::new(signals) });
    } else {
        server.run(RunArgs { shutdown_signal: Box::new(signals) });
        drop(gate);
    }
    access_log::flush();
    Ok(())
}

/// The process before us, and the sockets that it or systemd gave us.
fn inherited() -> Result<(Option<Predecessor>, Sockets), ConfigError> {
    match Predecessor::find().map_err(|error| inherits_badly(&error))? {
        Some((predecessor, sockets)) => Ok((Some(predecessor), sockets)),
        None => Ok((None, Sockets::activated().map_err(|error| inherits_badly(&error))?)),
    }
}

fn inherits_badly(error: &std::io::Error) -> ConfigError {
    let remedy = "see systemd.socket(5), or unset LISTEN_FDS and WARMROUTE_HANDOVER";
    ConfigError::new("environment", "inherited sockets", error.to_string(), remedy)
}

fn threads_missing(key: &str, error: &std::io::Error) -> ConfigError {
    ConfigError::new(key, "", error.to_string(), "allow this user more threads")
}

/// The fleet, with what the process before us knew of it, or a snapshot.
fn restore(mut live: Live, predecessor: Option<&mut Predecessor>) -> Arc<Fleet> {
    let now = clock::now();
    let handed_over = predecessor.is_some();
    let (given, cause, found) = match predecessor {
        Some(predecessor) => (predecessor.state(), Cause::HandOver, None),
        None => match snapshot::find(&live.config.state) {
            Some(found) => {
                let cause = Cause::Snapshot { away: found.away };
                (Some(found.given.clone()), cause, Some(found))
            }
            None => (None, Cause::HandOver, None),
        },
    };
    let mut same_names = false;
    if let Some(Given { header, .. }) = &given {
        // Routers that share a secret name blocks by that.
        same_names = header.hashing == live.hashing.fingerprint()
            && (live.config.peers.is_none() || header.secret == live.hashing.secret);
        if same_names {
            live.hashing.secret = header.secret.clone();
        } else {
            tracing::warn!(
                "blocks are named otherwise than before: what workers hold is forgotten"
            );
        }
    }
    let fleet = Arc::new(Fleet::new(live, now));
    if let Some(Given { header, workers }) = given {
        let (version, mut restored) = (&header.product, 0);
        fleet.expect(&workers, now);
        for mut worker in workers {
            if !same_names {
                Fleet::without_blocks(&mut worker);
            }
            restored += usize::from(fleet.restore(&worker, cause, now));
        }
        lifecycle::restored(restored);
        tracing::info!(
            workers = restored,
            version,
            handed_over,
            "what was known of workers is taken over"
        );
    }
    if let Some(found) = found {
        found.keep();
    }
    fleet
}

/// What services are made of.
struct Parts {
    settings: SharedSettings,
    fleet: Arc<Fleet>,
    drain: Arc<DrainState>,
    snapshots: Option<Arc<Snapshots>>,
    tap: Arc<Tap>,
    certificates: Option<Certificates>,
    sockets: Sockets,
    gate: watch::Receiver<bool>,
    /// True once signals are heard.
    hears: watch::Receiver<bool>,
    control: Control,
    discovery: SharedDiscovery,
}

/// What is discovered joins the fleet.
struct DiscoveredWorkers(Arc<Fleet>);

impl Sink for DiscoveredWorkers {
    fn set_workers(&self, source: &Source, workers: Vec<WorkerConfig>) {
        let origin = match source {
            Source::File => Origin::File,
            Source::Dns(key) => Origin::Dns(key.clone()),
        };
        self.0.set_workers(&origin, workers, clock::now());
    }

    fn sources(&self) -> BTreeSet<Source> {
        let source = |origin: &Origin| match origin {
            Origin::File => Some(Source::File),
            Origin::Dns(key) => Some(Source::Dns(key.clone())),
            Origin::Static | Origin::Lease => None,
        };
        self.0.members().iter().filter_map(|member| source(member.origin())).collect()
    }
}

impl Parts {
    fn compose(&self) -> Result<Server, ConfigError> {
        let live = self.fleet.live();
        let mut server = Server::new_with_opt_and_conf(None, server_conf(&live.config));
        server.bootstrap();
        self.add_background(&mut server);
        let peers = self.add_peers(&mut server, &live.config);
        self.add_proxy(&mut server, &live.config)?;
        self.add_reports(&mut server, &live.config)?;
        self.add_pages(&mut server, &live.config, peers);
        Ok(server)
    }

    fn add_background(&self, server: &mut Server) {
        let Self { fleet, settings, gate, .. } = self;
        let http = WorkerHttp::new(settings.clone());
        let parity = ParityService::new(fleet.clone(), http.clone());
        add(server, "parity", parity);
        let publishers = publishers::service(fleet.clone(), http.clone(), gate.clone());
        add(server, "kv-events", publishers);
        add(server, "health", HealthService::new(fleet.clone(), settings.clone(), http));
        add(
            server,
            "ready",
            Ready {
                fleet: fleet.clone(),
                gate: gate.clone(),
                hears: self.hears.clone(),
                drain: self.drain.clone(),
            },
        );
        // Also where nothing is to be discovered: a reload may name sources.
        let discovered = Arc::new(DiscoveredWorkers(fleet.clone()));
        add(server, "discovery", Discovery::new(self.discovery.clone(), discovered));
        if let Some(snapshots) = &self.snapshots {
            add(server, "snapshots", SnapshotService(snapshots.clone()));
        }
    }

    fn add_peers(&self, server: &mut Server, config: &Config) -> Option<Arc<peers::Shared>> {
        let peers = config.peers.as_ref()?;
        let service = PeersService::new(self.fleet.clone(), peers.clone(), &config.index);
        let shared = service.shared();
        add(server, "peers", service);
        Some(shared)
    }

    fn add_proxy(&self, server: &mut Server, config: &Config) -> Result<(), ConfigError> {
        let logic = Proxy::new(self.settings.clone(), self.fleet.clone(), self.drain.clone());
        let front = Front::new(&server.configuration, &logic);
        let mut proxy = Service::new("proxy".to_owned(), front);
        proxy.threads = Some(config.threads);
        for addr in &config.listen {
            let listener = ListenerConfig::tcp(addr.to_string());
            proxy.add_listener(listener.l4_buffer(CLIENT_BUFFERS));
        }
        if let (Some(tls), Some(certificates)) = (&config.tls, &self.certificates) {
            let bad = |error: Box<pingora::Error>| {
                let value = format!("`{}`", tls.cert.display());
                let remedy = "give a PEM chain and its key";
                ConfigError::new("tls.cert", value, error.to_string(), remedy)
            };
            let presenter = Box::new(Presenter(certificates.clone()));
            let mut settings = TlsSettings::with_callbacks(presenter).map_err(bad)?;
            settings.enable_h2();
            proxy.add_tls_with_settings(&tls.listen.to_string(), None, settings);
        }
        server.add_service(self.sockets.serve(proxy, self.gate.clone()));
        Ok(())
    }

    fn add_reports(&self, server: &mut Server, config: &Config) -> Result<(), ConfigError> {
        let Self { fleet, sockets, gate, .. } = self;
        if let Some(reports) = &config.reports {
            let queue = Queue::start(reports.queue_batches_max, fleet.clone())
                .map_err(|error| threads_missing("reports", &error))?;
            let listener = ReportListener::new(fleet.clone(), queue, self.tap.clone());
            let mut service = Service::new("reports".to_owned(), HttpServer::new_app(listener));
            service.add_tcp(&reports.listen.to_string());
            service.threads = Some(1);
            server.add_service(sockets.serve(service, gate.clone()));
        }
        Ok(())
    }

    fn add_pages(&self, server: &mut Server, config: &Config, peers: Option<Arc<peers::Shared>>) {
        let Self { fleet, drain, sockets, gate, control, .. } = self;
        if let Some(admin) = &config.admin {
            let addr = admin.listen;
            let admin = Admin::new(fleet.clone(), drain.clone(), peers, control.clone());
            let mut service = Service::new("admin".to_owned(), HttpServer::new_app(admin));
            service.add_tcp(&addr.to_string());
            service.threads = Some(1);
            server.add_service(sockets.serve(service, gate.clone()));
        }
        if let Some(addr) = config.metrics {
            let mut service = prometheus_http_service();
            service.add_tcp(&addr.to_string());
            service.threads = Some(1);
            server.add_service(sockets.serve(service, gate.clone()));
        }
    }
}

fn add(
    server: &mut Server,
    name: &str,
    service: impl pingora::services::background::BackgroundService + Send + Sync + 'static,
) {
    let mut service = background_service(name, service);
    service.threads = Some(1);
    server.add_service(service);
}

fn server_conf(config: &Config) -> ServerConf {
    ServerConf {
        threads: config.threads,
        // Attempts, not retries: the most that a reload can allow.
        max_retries: config::RETRIES_MAX + 1,
        // A global LRU of idle connections: must exceed what the fleet can have in flight.
        upstream_keepalive_pool_size: 16_384,
        // We leave by ourselves as soon as we are empty; a reload may still change how late that is.
        grace_period_seconds: Some(GRACE_MAX_S),
        graceful_shutdown_timeout_seconds: Some(1),
        ..ServerConf::default()
    }
}

/// Buffers of a client's connection in clear, for Pingora's 64 KiB to read and 1,460 bytes to write: a
/// longer body is read past the buffer to where it belongs, and the header of a whole answer leaves
/// together with its body (events are sent one by one all the same).
const CLIENT_BUFFERS: L4BufferSettings =
    L4BufferSettings { read: Some(16 << 10), write: Some(16 << 10) };

/// Longer than any drain.
const GRACE_MAX_S: u64 = 7 * 24 * 3600;

fn announce(config: &Config) {
    for (addr, key) in config.addresses() {
        tracing::info!(%addr, "{key}");
    }
    let workers = config.workers.len();
    let policy = config.policies.default.0.as_str();
    tracing::info!(workers, policy, version = env!("CARGO_PKG_VERSION"), "warmroute starts");
    if let Some((policy, _)) = &config.policies.shadow {
        tracing::info!(policy = policy.as_str(), "a shadow policy is evaluated and not obeyed");
    }
    if config.metrics.is_none() {
        tracing::info!("metrics are off: set metrics.listen");
    }
    if config.reports.is_none() {
        tracing::info!("reports are off (what workers hold is presumed): set reports.listen");
    }
}
