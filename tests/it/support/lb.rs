//! The real binary with its fleet of fake workers.

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use serde_json::Value;
use serde_yaml_ng::{Mapping, Value as Yaml};
use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

use super::{
    Answer, Ask, Conn, DEADLINE, Open, Proto, Raw, eventually,
    metrics::Metrics,
    ports::free_port,
    within,
    worker::{Worker, WorkerSpec},
};

/// Ports are looked for again when somebody else was quicker.
const STARTS_MAX: usize = 5;
/// What every test gets unless it says otherwise.
// Fake workers count what they are asked; tests of KV events switch them on.
const BASE: &str = "
threads: 2
health: {interval_ms: 100, timeout_ms: 2000, models_interval_ms: 500}
log: {level: debug}
slow_start_s: 0
kv_events: off
";

/// A scene not started yet.
pub(crate) struct Scene {
    specs: Vec<WorkerSpec>,
    externals: Vec<(String, String, String)>,
    config: Mapping,
    folder: TempDir,
    waits: bool,
}

/// A load balancer to be.
pub(crate) fn lb() -> Scene {
    Scene {
        specs: Vec::new(),
        externals: Vec::new(),
        config: serde_yaml_ng::from_str(BASE).expect("YAML"),
        folder: TempDir::new().expect("a folder"),
        waits: true,
    }
}

impl Scene {
    /// With this worker; they are called w0, w1 and so on.
    pub(crate) fn worker(mut self, spec: WorkerSpec) -> Self {
        self.specs.push(spec);
        self
    }

    /// With a worker that runs already and teaches its models, unless `yaml` declares them; it stands
    /// behind those of `worker`.
    pub(crate) fn external(mut self, id: &str, url: &str, yaml: &str) -> Self {
        self.externals.push((id.to_owned(), url.to_owned(), yaml.to_owned()));
        self
    }

    /// With these keys in the configuration; later ones win, sections are merged.
    pub(crate) fn config(mut self, yaml: &str) -> Self {
        let more: Mapping = serde_yaml_ng::from_str(yaml).expect("YAML");
        merge(&mut self.config, more);
        self
    }

    /// Where files of the scene may lie.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Without waiting for any verdict of a health check: only until it accepts.
    pub(crate) fn at_once(mut self) -> Self {
        self.waits = false;
        self
    }

    /// Starts workers and binary; waits until every worker has a verdict of its health checks, and
    /// until the models of those that tell them are known.
    pub(crate) async fn start(mut self) -> Lb {
        let mut workers = Vec::new();
        let mut entries = Vec::new();
        let mut teaches = Vec::new();
        for (at, spec) in std::mem::take(&mut self.specs).into_iter().enumerate() {
            let yaml = spec.yaml.clone();
            teaches.push(spec.teaches_models());
            let worker = spec.start(format!("w{at}")).await;
            let mut entry = Mapping::new();
            entry.insert("id".into(), worker.id.clone().into());
            entry.insert("url".into(), worker.url().into());
            for line in yaml {
                merge(&mut entry, serde_yaml_ng::from_str(&line).expect("YAML"));
            }
            entries.push(Yaml::Mapping(entry));
            workers.push(worker);
        }
        for (id, url, yaml) in &self.externals {
            let mut entry: Mapping = serde_yaml_ng::from_str(yaml).expect("YAML");
            entry.insert("id".into(), id.as_str().into());
            entry.insert("url".into(), url.as_str().into());
            entries.push(Yaml::Mapping(entry));
            teaches.push(!yaml.contains("models:"));
        }
        self.config.insert("workers".into(), Yaml::Sequence(entries));
        for _ in 0..STARTS_MAX {
            let mut process = self.spawn();
            if process.is_up().await {
                let lb = Lb { process, workers, folder: self.folder };
                if self.waits {
                    lb.verdicts(&teaches).await;
                }
                return lb;
            }
        }
        panic!("does not start");
    }

    fn spawn(&self) -> Process {
        let [proxy, admin, metrics] =
            [(); 3].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
        let mut config = self.config.clone();
        config.entry("listen".into()).or_insert(proxy.to_string().into());
        let mut tls_addr = None;
        if let Some(Yaml::Mapping(tls)) = config.get_mut("tls") {
            let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
            tls.insert("listen".into(), addr.to_string().into());
            tls_addr = Some(addr);
        }
        let mut reports_addr = None;
        if let Some(Yaml::Mapping(reports)) = config.get_mut("reports") {
            let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
            reports.insert("listen".into(), addr.to_string().into());
            reports_addr = Some(addr);
        }
        let listener = |addr: SocketAddr| {
            let mut section = Mapping::new();
            section.insert("listen".into(), addr.to_string().into());
            Yaml::Mapping(section)
        };
        // A scene may name the address, and a token.
        let mut section = match config.remove("admin") {
            Some(Yaml::Mapping(section)) => section,
            _ => Mapping::new(),
        };
        let host = section.get("listen").and_then(Yaml::as_str).unwrap_or("127.0.0.1");
        let admin_listen = format!("{host}:{}", admin.port());
        section.insert("listen".into(), admin_listen.into());
        config.insert("admin".into(), Yaml::Mapping(section));
        config.insert("metrics".into(), listener(metrics));
        let file = self.folder.path().join("warmroute.yaml");
        std::fs::write(&file, serde_yaml_ng::to_string(&config).expect("YAML")).expect("writes");
        let log = |name| File::create(self.folder.path().join(name)).expect("creates");
        let child = start(&file, log("stdout"), log("stderr"));
        let successors = Vec::new();
        Process { child, successors, proxy, tls: tls_addr, admin, metrics, reports: reports_addr }
    }
}

fn start(conf: &Path, stdout: File, stderr: File) -> Child {
    Command::new(env!("CARGO_BIN_EXE_warmroute"))
        .args(["run", "--conf"])
        .arg(conf)
        .env("RUST_BACKTRACE", "1")
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .expect("starts")
}

fn merge(into: &mut Mapping, more: Mapping) {
    for (key, value) in more {
        match (into.get_mut(&key), value) {
            (Some(Yaml::Mapping(old)), Yaml::Mapping(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

/// The child and the processes that took over from it; killed when dropped.
struct Process {
    child: Child,
    successors: Vec<u32>,
    proxy: SocketAddr,
    tls: Option<SocketAddr>,
    admin: SocketAddr,
    metrics: SocketAddr,
    reports: Option<SocketAddr>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for pid in self.successors.iter().filter(|pid| is_ours(**pid)) {
            let _ = Command::new("kill").args(["-s", "KILL", &pid.to_string()]).status();
        }
    }
}

/// Whether this is a process of our binary: ids are given again.
fn is_ours(pid: u32) -> bool {
    let program = std::fs::read_link(format!("/proc/{pid}/exe"));
    program.is_ok_and(|path| path == Path::new(env!("CARGO_BIN_EXE_warmroute")))
}

impl Process {
    /// Whether it came up: all its listeners accept.
    async fn is_up(&mut self) -> bool {
        let until = Instant::now() + DEADLINE;
        let all = [Some(self.proxy), self.tls, Some(self.admin), Some(self.metrics), self.reports];
        for addr in all.into_iter().flatten() {
            while TcpStream::connect(addr).await.is_err() {
                if Instant::now() > until || self.child.try_wait().is_ok_and(|s| s.is_some()) {
                    return false;
                }
                sleep(Duration::from_millis(5)).await;
            }
        }
        // It, and not somebody who took its port: it would have left by now.
        self.child.try_wait().is_ok_and(|status| status.is_none())
    }
}

/// A running load balancer and its workers.
pub(crate) struct Lb {
    process: Process,
    pub(crate) workers: Vec<Worker>,
    folder: TempDir,
}

impl Drop for Lb {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let file = self.folder.path().join("warmroute.yaml");
            eprintln!("--- configuration\n{}", std::fs::read_to_string(file).unwrap_or_default());
            for name in ["stderr", "stdout"] {
                let text = std::fs::read_to_string(self.folder.path().join(name));
                let text = text.unwrap_or_default();
                let from = text.len().saturating_sub(8 << 10);
                let from = (from..=text.len()).find(|at| text.is_char_boundary(*at));
                eprintln!("--- {name} of warmroute\n{}", &text[from.unwrap_or(0)..]);
            }
        }
    }
}

impl Lb {
    /// The plain listener.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.process.proxy
    }

    /// The TLS listener.
    pub(crate) fn tls_addr(&self) -> SocketAddr {
        self.process.tls.expect("the scene has a TLS listener")
    }

    /// The report listener; the scene has one when its configuration has `reports`.
    pub(crate) fn reports_addr(&self) -> SocketAddr {
        self.process.reports.expect("the scene has a report listener")
    }

    /// A POST of JSON to the report listener.
    pub(crate) async fn report(&self, path: &str, report: &Value) -> Answer {
        self.report_as(&Ask::post(path, report.to_string())).await
    }

    /// Any request to the report listener.
    pub(crate) async fn report_as(&self, ask: &Ask) -> Answer {
        let mut conn = Conn::open(self.reports_addr(), ask.proto).await.expect("connects");
        conn.ask(ask).await
    }

    /// A fresh connection.
    pub(crate) async fn conn(&self, proto: Proto) -> Conn {
        Conn::open(self.addr(), proto).await.expect("connects")
    }

    /// A fresh connection for raw bytes.
    pub(crate) async fn raw(&self) -> Raw {
        Raw::connect(self.addr()).await
    }

    /// Sends on a fresh connection and reads the whole answer.
    pub(crate) async fn ask(&self, ask: &Ask) -> Answer {
        self.conn(ask.proto).await.ask(ask).await
    }

    /// Sends on a fresh connection; the answer when its header is there.
    pub(crate) async fn open(&self, ask: &Ask) -> Open {
        let mut conn = self.conn(ask.proto).await;
        let response = within("the header of an answer", conn.send(ask)).await;
        Open::new(response.expect("an answer"), conn)
    }

    /// GET on the admin listener.
    pub(crate) async fn admin(&self, path: &str) -> Answer {
        self.admin_as(&Ask::get(path)).await
    }

    /// POST on the admin listener.
    pub(crate) async fn admin_post(&self, path: &str) -> Answer {
        self.admin_as(&Ask::post(path, "")).await
    }

    /// Any request to the admin listener.
    pub(crate) async fn admin_as(&self, ask: &Ask) -> Answer {
        let mut conn = Conn::open(self.process.admin, ask.proto).await.expect("connects");
        conn.ask(ask).await
    }

    /// The admin listener.
    pub(crate) fn admin_addr(&self) -> SocketAddr {
        self.process.admin
    }

    /// The metrics listener.
    pub(crate) fn metrics_addr(&self) -> SocketAddr {
        self.process.metrics
    }

    /// The configuration it was started with.
    pub(crate) fn conf(&self) -> PathBuf {
        self.folder.path().join("warmroute.yaml")
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.child.id()
    }

    /// Where files of the scene lie.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Changes keys of the configuration file; sections are merged. Nothing is reloaded.
    pub(crate) fn edit(&self, yaml: &str) {
        self.edit_with(|config| merge(config, serde_yaml_ng::from_str(yaml).expect("YAML")));
    }

    /// As `edit`, by a function.
    pub(crate) fn edit_with(&self, change: impl FnOnce(&mut Mapping)) {
        let text = std::fs::read_to_string(self.conf()).expect("reads");
        let mut config: Mapping = serde_yaml_ng::from_str(&text).expect("YAML");
        change(&mut config);
        let text = serde_yaml_ng::to_string(&config).expect("YAML");
        std::fs::write(self.conf(), text).expect("writes");
    }

    /// Changes keys and reloads; gives what the reload said.
    pub(crate) async fn reload(&self, yaml: &str) -> Value {
        self.edit(yaml);
        let answer = self.admin_post("/reload").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// Has a new process take over; when this returns it serves.
    pub(crate) async fn upgrade(&mut self) {
        let answer = within("an upgrade", self.admin_post("/upgrade")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let pid = answer.json()["pid"].as_u64().expect("a process id") as u32;
        self.process.successors.push(pid);
        // The listeners of the old one may still have taken the order for a new connection.
        eventually("the new process answers", async || {
            self.admin("/livez").await.json()["pid"] == pid
        })
        .await;
    }

    /// Kills the process, and starts another on the same configuration.
    pub(crate) async fn crash_and_start(&mut self) {
        self.kill();
        self.start_again().await;
    }

    /// Ends the process at once, without a chance to say anything.
    pub(crate) fn kill(&mut self) {
        self.process.child.kill().expect("the child is ours");
        self.process.child.wait().expect("the child is ours");
        for pid in self.process.successors.drain(..) {
            let _ = Command::new("kill").args(["-s", "KILL", &pid.to_string()]).status();
        }
    }

    /// Starts a process on the same configuration where none runs; its workers have verdicts.
    pub(crate) async fn start_again(&mut self) {
        let log = |name| {
            let path = self.folder.path().join(name);
            File::options().append(true).open(path).expect("the log is there")
        };
        self.process.child = start(&self.conf(), log("stdout"), log("stderr"));
        assert!(self.process.is_up().await, "starts again");
        let teaches = vec![false; self.workers.len()];
        self.verdicts(&teaches).await;
    }

    /// One worker as /workers shows it.
    pub(crate) async fn status(&self, worker: usize) -> Value {
        self.admin("/workers").await.json()["workers"][worker].clone()
    }

    /// A scrape.
    pub(crate) async fn metrics(&self) -> Metrics {
        Metrics::parse(&self.metrics_page().await)
    }

    /// The text of a scrape.
    pub(crate) async fn metrics_page(&self) -> String {
        let mut conn = Conn::open(self.process.metrics, Proto::H1).await.expect("connects");
        let answer = conn.ask(&Ask::get("/metrics")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        String::from_utf8(answer.body.to_vec()).expect("UTF-8")
    }

    /// Waits until the worker's health is this.
    pub(crate) async fn health_is(&self, worker: usize, health: &str) {
        let what = format!("worker {worker} is {health}");
        eventually(&what, async || self.status(worker).await["health"] == health).await;
    }

    /// Waits until the worker's breaker is this.
    pub(crate) async fn breaker_is(&self, worker: usize, state: &str) {
        let what = format!("breaker of worker {worker} is {state}");
        eventually(&what, async || self.status(worker).await["breaker"] == state).await;
    }

    /// Waits until no request is counted anywhere.
    pub(crate) async fn idle(&self) {
        eventually("all load is accounted for", async || {
            let metrics = self.metrics().await;
            assert!(metrics.has("warmroute_inflight"), "{metrics:?}");
            ["warmroute_inflight", "warmroute_queued_tokens", "warmroute_decodes"]
                .iter()
                .all(|name| metrics.sum(name, &[]) == 0)
                && metrics.sum("warmroute_buffered_bytes", &[]) == 0
        })
        .await;
    }

    /// Requests that reached any worker.
    pub(crate) fn request_count(&self) -> usize {
        self.workers.iter().map(Worker::request_count).sum()
    }

    /// Sends a signal to the process.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.process.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status().expect("kill runs");
        assert!(status.success());
    }

    /// Whether the process has ended, and how.
    pub(crate) fn exit_status(&mut self) -> Option<ExitStatus> {
        self.process.child.try_wait().expect("the child is ours")
    }

    /// What the process wrote to stderr so far.
    pub(crate) fn stderr(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default()
    }

    /// What the process wrote to stdout so far: the access log.
    pub(crate) fn stdout(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("stdout")).unwrap_or_default()
    }

    async fn verdicts(&self, teaches: &[bool]) {
        eventually("every worker has a verdict", async || {
            let conf: Yaml = {
                let text = std::fs::read_to_string(self.conf()).expect("its configuration");
                serde_yaml_ng::from_str(&text).expect("YAML")
            };
            let token = conf["admin"]["token"].as_str().unwrap_or_default();
            let ask = Ask::get("/workers").header("authorization", &format!("Bearer {token}"));
            let all = self.admin_as(&ask).await.json();
            let all = all["workers"].as_array().expect("a list");
            all.iter().zip(teaches).all(|(worker, teaches)| match worker["health"].as_str() {
                Some("healthy") => !teaches || worker["models_known"] == true,
                Some("unhealthy") => true,
                _ => false,
            })
        })
        .await;
    }
}
