//! Background checks: is the worker there, and what does it serve?
//!
//! One task a worker, so that a hung one delays nobody. The check itself is Pingora's; what its
//! verdict means is the fleet's. Connectors and checks are shared: each of Pingora's loads the
//! system's certificates, which takes some 25 ms and megabytes.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::{
    ErrorType, http::RequestHeader, server::ShutdownWatch, services::background::BackgroundService,
};
use pingora_load_balancing::{
    Backend,
    health_check::{HealthCheck, HttpHealthCheck, TcpHealthCheck},
};
use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    clock,
    config::HealthConfig,
    fleet::{Fleet, Member},
    proxy::{Settings, SharedSettings},
    wire::models,
    worker_http::{WorkerHttp, host_header},
};

/// Upkeep of the fleet (leases, gauges, rates).
const UPKEEP_EVERY: Duration = Duration::from_secs(1);
/// How soon a worker that joined gets its first check.
const WATCH_MEMBERS_EVERY: Duration = Duration::from_millis(100);

/// The service.
pub struct HealthService {
    fleet: Arc<Fleet>,
    settings: SharedSettings,
    http: WorkerHttp,
    checks: Mutex<HashMap<CheckKey, SharedCheck>>,
}

type SharedCheck = Arc<dyn HealthCheck + Send + Sync>;

/// Workers that agree in these can share a check; the address comes with each call.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct CheckKey {
    https: bool,
    tls_name: String,
    host: String,
    path: String,
}

impl HealthService {
    /// Checks every worker of `fleet`, also those that join later.
    pub fn new(fleet: Arc<Fleet>, settings: SharedSettings, http: WorkerHttp) -> Self {
        Self { fleet, settings, http, checks: Mutex::default() }
    }

    fn check_for(&self, member: &Member, settings: &Settings) -> SharedCheck {
        let url = member.url();
        let key = CheckKey {
            https: url.https,
            tls_name: if url.https { url.tls_name.clone() } else { String::new() },
            // Nobody routes by a host that is an address.
            host: if url.host.parse::<IpAddr>().is_ok() {
                "localhost".to_owned()
            } else {
                host_header(member.url())
            },
            path: member.settings().health_path.clone(),
        };
        let make = || check(settings, member, &key.host);
        self.checks.lock().entry(key.clone()).or_insert_with(make).clone()
    }

    /// Starts tasks for workers that have none, ends those of workers that left or are checked in
    /// another way now.
    fn follow_members(&self, tasks: &mut HashMap<u64, Task>) {
        let settings = self.settings.load_full();
        let members = self.fleet.members();
        let paths: HashMap<_, _> = members
            .iter()
            .map(|member| (member.serial(), member.settings().health_path.clone()))
            .collect();
        tasks.retain(|serial, task| {
            let stays = paths.get(serial) == Some(&task.path) && !task.handle.is_finished();
            if !stays {
                task.handle.abort();
            }
            stays
        });
        // Only the map holds it: no worker is checked this way any more.
        self.checks.lock().retain(|_, check| Arc::strong_count(check) > 1);
        for member in members.iter() {
            tasks.entry(member.serial()).or_insert_with(|| {
                let watch = Watch::new(self, &settings, member.clone());
                let path = paths.get(&member.serial()).cloned().unwrap_or_default();
                Task { path, handle: tokio::spawn(watch.run()) }
            });
        }
    }
}

#[async_trait]
impl BackgroundService for HealthService {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut tasks: HashMap<u64, Task> = HashMap::new();
        let mut settings = self.settings.load_full();
        let mut look = interval(WATCH_MEMBERS_EVERY);
        let mut upkeep = interval(UPKEEP_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Skip);
        upkeep.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                _ = look.tick() => {
                    let now = self.settings.load_full();
                    let before = std::mem::replace(&mut settings, now);
                    if !settings.checks_as(&before) {
                        // Checked anew by the new settings; verdicts stand until then.
                        for (_, task) in tasks.drain() {
                            task.handle.abort();
                        }
                        self.checks.lock().clear();
                    }
                    self.follow_members(&mut tasks);
                }
                _ = upkeep.tick() => {
                    self.fleet.upkeep(clock::now());
                    // In small parts, so that neither requests nor other tasks wait.
                    while self.fleet.tidy() {
                        tokio::task::yield_now().await;
                    }
                }
                _ = shutdown.changed() => return,
            }
        }
    }
}

/// A worker's checks under way.
struct Task {
    /// The path they ask for.
    path: String,
    handle: JoinHandle<()>,
}

/// One worker's checks.
struct Watch {
    fleet: Arc<Fleet>,
    member: Arc<Member>,
    config: HealthConfig,
    http: WorkerHttp,
    check: SharedCheck,
    backend: Option<Backend>,
    passed_in_row: AtomicUsize,
    failed_in_row: AtomicUsize,
}

impl Watch {
    fn new(service: &HealthService, settings: &Settings, member: Arc<Member>) -> Self {
        let backend = Backend::new(&member.url().addr.to_string()).ok();
        Self {
            check: service.check_for(&member, settings),
            http: service.http.clone(),
            fleet: service.fleet.clone(),
            config: settings.config().health.clone(),
            passed_in_row: AtomicUsize::new(0),
            failed_in_row: AtomicUsize::new(0),
            backend,
            member,
        }
    }

    async fn run(self) {
        let mut due = interval(self.config.interval);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut models_due = clock::now();
        loop {
            due.tick().await;
            let passed = self.check_once().await;
            if passed && self.member.learns_models() && clock::now() >= models_due {
                models_due = self.learn_models().await;
            }
        }
    }

    async fn check_once(&self) -> bool {
        let result = match &self.backend {
            Some(backend) => timeout(self.config.timeout, self.check.check(backend)).await,
            None => return false,
        };
        let failed = match result {
            Ok(Ok(())) => None,
            Ok(Err(error)) => {
                Some((error.to_string(), *error.etype() == ErrorType::ConnectRefused))
            }
            Err(_) => Some(("timed out".to_owned(), false)),
        };
        let Some((why, refused)) = failed else {
            self.failed_in_row.store(0, Relaxed);
            let passed = self.passed_in_row.fetch_add(1, Relaxed) + 1;
            if passed >= self.config.healthy_after {
                self.fleet.record_health(&self.member, true, "", false);
            }
            return true;
        };
        self.passed_in_row.store(0, Relaxed);
        let failed = self.failed_in_row.fetch_add(1, Relaxed) + 1;
        // A worker that never passed is out at once; one that did is given the benefit of a few.
        let known = self.member.health() != crate::fleet::Health::Unknown;
        if failed >= self.config.unhealthy_after || !known {
            self.fleet.record_health(&self.member, false, &why, refused);
        }
        false
    }

    /// Asks for the models; gives when to ask again.
    async fn learn_models(&self) -> std::time::Instant {
        match self.ask_models().await {
            Ok(entries) => {
                let names: Vec<_> = entries.iter().map(|entry| entry.id.clone()).collect();
                if self.member.set_models(entries) {
                    crate::telemetry::events::models_learned(self.member.id().as_str(), &names);
                }
                clock::now() + self.config.models_interval
            }
            Err(error) => {
                tracing::debug!(worker = %self.member.id(), error = %error, "no models learned");
                clock::now() + self.config.interval
            }
        }
    }

    async fn ask_models(
        &self,
    ) -> Result<Vec<models::ModelEntry>, Box<dyn std::error::Error + Send + Sync>> {
        let (status, body) = self.http.ask(self.member.url(), "/v1/models", None).await?;
        if status != 200 {
            return Err(format!("/v1/models answered {status}").into());
        }
        Ok(models::parse(&body)?)
    }
}

fn check(settings: &Settings, member: &Member, host: &str) -> SharedCheck {
    let config = &settings.config().health;
    let template = settings.peers.of(member.url());
    if config.tcp {
        let mut check = *TcpHealthCheck::new();
        check.peer_template.options.connection_timeout = Some(config.timeout);
        return Arc::new(check);
    }
    let mut check = HttpHealthCheck::new(&member.url().tls_name, member.url().https);
    check.peer_template.options = template.options;
    check.peer_template.options.connection_timeout = Some(config.timeout);
    check.peer_template.options.total_connection_timeout = Some(config.timeout);
    check.peer_template.options.read_timeout = Some(config.timeout);
    // A fresh connection each time: a pooled one would hide a worker that accepts no more.
    check.reuse_connection = false;
    if let Ok(mut request) =
        RequestHeader::build("GET", member.settings().health_path.as_bytes(), None)
    {
        let _ = request.insert_header("host", host);
        check.req = request;
    }
    Arc::new(check)
}
