//! Reloads and upgrades while requests and streams run: none may be lost.
//!
//! `make bench-upgrade` does the same with engines, at length and with figures.

use std::{
    fmt::Write,
    fs::{self, File, Permissions},
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    task::{JoinSet, yield_now},
    time::{interval, timeout},
};

use crate::support::{
    Answer, Ask, Conn, Metrics, Proto, Worker, echo, eventually, free_port, streaming_gated, within,
};

const STREAMS: usize = 100;
const EVENTS: usize = 20;
/// Between two requests.
const EVERY: Duration = Duration::from_millis(20);
/// A stream lasts as long as the whole test.
const STREAM_WITHIN: Duration = Duration::from_mins(2);
/// Longer than a successor that hangs is waited for.
const UPGRADE_WITHIN: Duration = Duration::from_mins(1);

/// The router, started from a file of its own, and its successors; killed when dropped.
struct Generations {
    child: Child,
    folder: TempDir,
    proxy: SocketAddr,
    admin: SocketAddr,
    metrics: SocketAddr,
    workers: Vec<Worker>,
    pids: Vec<u32>,
}

impl Drop for Generations {
    fn drop(&mut self) {
        for pid in self.pids.iter().filter(|pid| self.is_ours(**pid)) {
            let _ = Command::new("kill").args(["-s", "KILL", &pid.to_string()]).status();
        }
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            let from = log.len().saturating_sub(8 << 10);
            let from = (from..=log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or(0);
            eprintln!("--- log of all generations\n{}", &log[from..]);
        }
    }
}

/// What a reload changes.
#[derive(Clone, Copy)]
struct Settings {
    inflight_max: usize,
    weight: f64,
    has_spare: bool,
}

impl Generations {
    async fn start() -> Self {
        let streams = "models: [streams]";
        let mut workers = Vec::new();
        for at in 0..4 {
            let spec = if at < 2 { streaming_gated(EVENTS).yaml(streams) } else { echo() };
            workers.push(spec.start(format!("w{at}")).await);
        }
        let [proxy, admin, metrics] =
            [(); 3].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
        let folder = TempDir::new().expect("a folder");
        let program = folder.path().join("warmroute");
        fs::copy(env!("CARGO_BIN_EXE_warmroute"), &program).expect("copies");
        let log = File::create(folder.path().join("log")).expect("creates");
        let conf = folder.path().join("warmroute.yaml");
        let settings = Settings { inflight_max: 500, weight: 1.0, has_spare: true };
        fs::write(&conf, yaml([proxy, admin, metrics], &workers, settings)).expect("writes");
        let child = Command::new(&program)
            .args(["run", "--conf"])
            .arg(&conf)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("starts");
        let pids = vec![child.id()];
        let us = Self { child, folder, proxy, admin, metrics, workers, pids };
        eventually("all workers are healthy", async || {
            let Ok(mut conn) = Conn::open(us.admin, Proto::H1).await else { return false };
            let all = conn.ask(&Ask::get("/workers")).await.json();
            let all = all["workers"].as_array().expect("a list");
            all.iter().all(|worker| worker["health"] == "healthy")
        })
        .await;
        us
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write_conf(&self, settings: Settings) {
        let text = yaml([self.proxy, self.admin, self.metrics], &self.workers, settings);
        replace(&self.path("warmroute.yaml"), text.as_bytes());
    }

    fn pid(&self) -> u32 {
        *self.pids.last().expect("one at least")
    }

    fn is_ours(&self, pid: u32) -> bool {
        let program = fs::read_link(format!("/proc/{pid}/exe"));
        program.is_ok_and(|program| program.starts_with(self.folder.path()))
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    async fn post(&self, path: &str) -> Answer {
        let mut conn = Conn::open(self.admin, Proto::H1).await.expect("connects");
        let response = timeout(UPGRADE_WITHIN, conn.send(&Ask::post(path, ""))).await;
        let response = response.expect("an answer in time").expect("an answer");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body, broken: None }
    }

    /// Who serves.
    async fn serving(&self) -> u32 {
        let mut conn = Conn::open(self.admin, Proto::H1).await.expect("connects");
        let answer = conn.ask(&Ask::get("/livez")).await.json();
        answer["pid"].as_u64().expect("a process id") as u32
    }

    async fn counted(&self, name: &str, result: &str) -> i64 {
        let mut conn = Conn::open(self.metrics, Proto::H1).await.expect("connects");
        let page = conn.ask(&Ask::get("/metrics")).await;
        let page = String::from_utf8(page.body.to_vec()).expect("UTF-8");
        Metrics::parse(&page).sum(name, &[("result", result)])
    }

    async fn reload(&self, by_signal: bool) {
        if by_signal {
            let before = self.counted("warmroute_reloads_total", "ok").await;
            self.signal("HUP");
            eventually("a reload is counted", async || {
                self.counted("warmroute_reloads_total", "ok").await == before + 1
            })
            .await;
        } else {
            let answer = self.post("/reload").await;
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    }

    async fn upgrade(&mut self, by_signal: bool) {
        let old = self.pid();
        if by_signal {
            self.signal("USR2");
            let mut seen = old;
            eventually("a successor serves", async || {
                seen = self.serving().await;
                seen != old
            })
            .await;
            self.pids.push(seen);
        } else {
            let answer = self.post("/upgrade").await;
            assert_eq!(answer.status, 200, "{answer:?}");
            self.pids.push(answer.json()["pid"].as_u64().expect("a process id") as u32);
        }
        assert_ne!(self.pid(), old);
        // For a moment both accept.
        eventually("only the successor accepts", async || self.serving().await == self.pid()).await;
    }
}

fn yaml(listen: [SocketAddr; 3], workers: &[Worker], settings: Settings) -> String {
    let Settings { inflight_max, weight, has_spare } = settings;
    let [proxy, admin, metrics] = listen;
    let mut yaml = format!(
        "listen: {proxy}\nadmin: {{listen: \"{admin}\"}}\nmetrics: {{listen: \"{metrics}\"}}\n\
         threads: 2\nkv_events: off\nhealth: {{interval_ms: 100}}\nlog: {{access: false}}\n\
         limits: {{inflight_max: {inflight_max}}}\nworkers:\n"
    );
    for (at, worker) in workers.iter().enumerate() {
        let model = if at < 2 { "streams" } else { "m" };
        let weight = if at == 2 { weight } else { 1.0 };
        if at < 3 || has_spare {
            let (id, url) = (&worker.id, worker.url());
            let _ = writeln!(
                yaml,
                "  - {{id: {id}, url: \"{url}\", models: [{model}], weight: {weight}}}"
            );
        }
    }
    yaml
}

/// Puts a file in the place of another, at once.
fn replace(path: &Path, bytes: &[u8]) {
    let new = path.with_extension("new");
    fs::write(&new, bytes).expect("writes");
    fs::set_permissions(&new, Permissions::from_mode(0o755)).expect("changes its mode");
    fs::rename(&new, path).expect("renames");
}

/// Requests that arrive by schedule, in four ways.
struct Load {
    addr: SocketAddr,
    kept: Mutex<Vec<Conn>>,
    shared: tokio::sync::Mutex<Option<Conn>>,
    answered: AtomicUsize,
    lost: Mutex<Vec<String>>,
    ended: AtomicBool,
}

impl Load {
    async fn run(self: Arc<Self>) {
        let mut ticks = interval(EVERY);
        let mut requests = JoinSet::new();
        for nth in 0.. {
            ticks.tick().await;
            if self.ended.load(SeqCst) {
                break;
            }
            let load = self.clone();
            requests.spawn(async move {
                let answered = timeout(Duration::from_secs(20), load.one(nth)).await;
                match answered.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
                    Ok(()) => drop(load.answered.fetch_add(1, SeqCst)),
                    Err(error) => load.lost.lock().push(format!("request {nth}: {error}")),
                }
            });
        }
        requests.join_all().await;
    }

    async fn one(&self, nth: usize) -> Result<(), String> {
        let ask = Ask::chat(&format!("request {nth}, {}", "and so on ".repeat(nth % 50)));
        let mut conn = match nth % 4 {
            // HTTP/2, one request after the other on one connection.
            0 => {
                let mut shared = self.shared.lock().await;
                if let Some(mut conn) = shared.take().filter(|_| !nth.is_multiple_of(40))
                    && is_open(&mut conn).await
                {
                    *shared = Some(whole(conn, &ask).await?);
                } else {
                    *shared = Some(whole(self.connect(Proto::H2).await?, &ask).await?);
                }
                return Ok(());
            }
            1 => Some(self.connect(Proto::H1).await?),
            _ => self.kept.lock().pop(),
        };
        if let Some(kept) = &mut conn
            && !is_open(kept).await
        {
            conn = None;
        }
        let conn = match conn {
            Some(conn) => conn,
            None => self.connect(Proto::H1).await?,
        };
        let conn = whole(conn, &ask).await?;
        if nth % 4 > 1 {
            self.kept.lock().push(conn);
        }
        Ok(())
    }

    async fn connect(&self, proto: Proto) -> Result<Conn, String> {
        Conn::open(self.addr, proto).await.map_err(|error| format!("connecting: {error}"))
    }
}

/// As a careful client: looks at a kept connection before it sends.
async fn is_open(conn: &mut Conn) -> bool {
    // What the system knows of the socket becomes known, and its task hears of it.
    yield_now().await;
    yield_now().await;
    conn.is_open().await
}

/// Sends and holds the answer to what was sent.
async fn whole(mut conn: Conn, ask: &Ask) -> Result<Conn, String> {
    let response = conn.send(ask).await.map_err(|error| format!("sending: {error:?}"))?;
    let status = response.status();
    let has_backend = response.headers().contains_key("x-router-backend");
    let body = response.into_body().collect().await;
    let body = body.map_err(|error| format!("in the body: {error:?}"))?.to_bytes();
    let json: Value = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
    if status != 200 || !has_backend || json["sha256"] != ask.sha256() {
        return Err(format!("{status}: {json}"));
    }
    Ok(conn)
}

/// Opens a stream; reads it to its end in the task that is given back.
async fn stream(addr: SocketAddr, nth: usize) -> impl Future<Output = Result<(), String>> {
    let proto = [Proto::H1, Proto::H2][nth % 2];
    let message = json!({"role": "user", "content": format!("stream {nth}")});
    let body = json!({"model": "streams", "stream": true, "messages": [message]});
    let ask = Ask::post("/v1/chat/completions", body.to_string()).over(proto);
    let mut conn = Conn::open(addr, proto).await.expect("connects");
    let response = within("the head of a stream", conn.send(&ask)).await.expect("an answer");
    assert_eq!(response.status(), 200);
    async move {
        let body = timeout(STREAM_WITHIN, response.into_body().collect()).await;
        let body = body.map_err(|_| "it does not end".to_owned())?;
        let body = body.map_err(|error| format!("it broke: {error:?}"))?.to_bytes();
        // A connection dropped before would be closed.
        drop(conn);
        let text = String::from_utf8_lossy(&body);
        let events: Vec<_> = text.split_terminator("\n\n").collect();
        let is_whole = events.len() == EVENTS + 1
            && events[EVENTS] == "data: [DONE]"
            && events
                .iter()
                .take(EVENTS)
                .enumerate()
                .all(|(at, event)| event.contains(&format!("\"token {}\"", at + 1)));
        if is_whole { Ok(()) } else { Err(format!("{} events: {text}", events.len())) }
    }
}

#[tokio::test]
async fn reloads_and_upgrades_lose_no_request_and_no_stream() {
    let mut lb = Generations::start().await;
    let let_go = |lb: &Generations, count: usize| {
        lb.workers[..2].iter().for_each(|worker| worker.let_go(count));
    };
    // Some events of every stream come before, some after; the workers take turns at random.
    let_go(&lb, STREAMS * 2);
    let mut streams = JoinSet::new();
    for nth in 0..STREAMS {
        streams.spawn(stream(lb.proxy, nth).await);
    }
    let load = Arc::new(Load {
        addr: lb.proxy,
        kept: Mutex::default(),
        shared: tokio::sync::Mutex::default(),
        answered: AtomicUsize::new(0),
        lost: Mutex::default(),
        ended: AtomicBool::new(false),
    });
    let running = tokio::spawn(load.clone().run());
    let flows = async |what: &str, load: &Load| {
        let before = load.answered.load(SeqCst);
        eventually(&format!("requests are answered after {what}"), async || {
            load.answered.load(SeqCst) >= before + 25
        })
        .await;
    };
    flows("the start", &load).await;

    let mut settings = Settings { inflight_max: 500, weight: 1.0, has_spare: true };
    for nth in 0..5 {
        match nth {
            0 => settings.inflight_max = 600,
            1 => settings.has_spare = false,
            2 => settings.weight = 2.0,
            3 => settings.has_spare = true,
            _ => {
                replace(&lb.path("warmroute.yaml"), b"listen: nowhere\n");
                let answer = lb.post("/reload").await;
                assert_eq!(answer.status, 422, "{answer:?}");
                assert_eq!(lb.counted("warmroute_reloads_total", "refused").await, 1);
            }
        }
        lb.write_conf(settings);
        lb.reload(nth % 2 == 0).await;
        flows("a reload", &load).await;
    }
    lb.upgrade(false).await;
    flows("an upgrade", &load).await;
    let_go(&lb, STREAMS * 2);

    let good = lb.path("good");
    fs::rename(lb.path("warmroute"), &good).expect("renames");
    replace(&lb.path("warmroute"), b"#!/bin/sh\nexit 3\n");
    let answer = lb.post("/upgrade").await;
    assert!(answer.status == 409 || answer.status >= 500, "{answer:?}");
    assert_eq!(lb.serving().await, lb.pid());
    assert_eq!(lb.counted("warmroute_upgrades_total", "failed").await, 1);
    fs::rename(&good, lb.path("warmroute")).expect("renames");
    flows("a failed upgrade", &load).await;

    lb.upgrade(true).await;
    flows("another upgrade", &load).await;

    let_go(&lb, STREAMS * EVENTS);
    let ends = streams.join_all().await;
    let cut: Vec<_> = ends.into_iter().filter_map(Result::err).collect();
    load.ended.store(true, SeqCst);
    running.await.expect("runs");
    let (answered, lost) = (load.answered.load(SeqCst), load.lost.lock().clone());
    assert_eq!((cut, lost), (Vec::new(), Vec::new()), "of {STREAMS} and {answered}");
    let old = lb.pids[..lb.pids.len() - 1].to_vec();
    eventually("old processes have left", async || {
        let _ = lb.child.try_wait();
        old.iter().all(|pid| !lb.is_ours(*pid))
    })
    .await;
}
