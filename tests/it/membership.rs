//! A fleet that changes under load: drained, removed, joined, slowly started.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::support::{Ask, Lb, Reporter, Worker, echo, eventually, lb, stored, streaming_gated};

async fn worker_of(lb: &Lb, id: &str) -> Value {
    lb.admin(&format!("/workers/{id}")).await.json()
}

async fn post(lb: &Lb, id: &str, act: &str) -> Value {
    let answer = lb.admin_post(&format!("/workers/{id}/{act}")).await;
    assert_eq!(answer.status, 200, "{act} of {id}: {answer:?}");
    answer.json()
}

async fn beat(lb: &Lb, worker: &Worker, epoch: &str, lease_s: u64) -> crate::support::Answer {
    let beat = json!({
        "worker_id": worker.id, "worker_url": worker.url(), "model": "m", "epoch": epoch,
        "lease_s": lease_s,
    });
    lb.report("/v1/heartbeat", &beat).await
}

#[tokio::test]
async fn a_drained_worker_finishes_its_work_and_gets_no_more() {
    let lb = lb()
        .worker(streaming_gated(3).models(&["m"]))
        .worker(echo().models(&["m"]))
        .config("{policy: round-robin, reports: {}, policy_override: true}")
        .config("index: {block_bytes: 32}")
        .start()
        .await;
    let mut open = lb.open(&Ask::stream("hello")).await;
    if open.header("x-router-backend") != "w0" {
        open = lb.open(&Ask::stream("hello")).await;
    }
    assert_eq!(open.header("x-router-backend"), "w0");
    let drained = post(&lb, "w0", "drain").await;
    assert_eq!(drained, json!({"id": "w0", "drained": true, "inflight": 1}));
    let metrics = lb.metrics().await;
    assert_eq!(metrics.sum("warmroute_worker_drained", &[("worker", "w0")]), 1);
    assert_eq!(metrics.sum("warmroute_worker_drained", &[("worker", "w1")]), 0);
    let shown = worker_of(&lb, "w0").await;
    assert_eq!((&shown["drained"], &shown["takes_traffic"]), (&json!(true), &json!(false)));
    let before = lb.workers[0].request_count();
    for _ in 0..20 {
        assert_eq!(lb.ask(&Ask::chat("hello")).await.echo().worker, "w1");
    }
    assert_eq!(lb.workers[0].request_count(), before);
    // It is checked and heard all the while.
    let checks = lb.workers[0].health_checks();
    eventually("it is still checked", async || lb.workers[0].health_checks() > checks).await;
    let text = "a word or two ".repeat(40);
    Reporter::new(&lb, "w0").send_well(&[stored(1..=10, None, &text[..320], 32)]).await;
    lb.workers[0].let_go(3);
    let (events, end) = open.rest().await;
    assert_eq!((events.len(), end), (4, Ok(())), "{events:?}");
    // Undrained, it is picked for what it holds.
    assert_eq!(post(&lb, "w0", "undrain").await["in_fleet"], true);
    lb.workers[0].set_act(crate::support::Act::Echo);
    let prompt = json!({"model": "m", "prompt": text[..320]}).to_string();
    let ask = Ask::post("/v1/completions", prompt).header("x-router-policy", "prefix-aware");
    let answer = lb.ask(&ask).await;
    assert_eq!(answer.header("x-router-backend"), "w0");
    assert_eq!(answer.header("x-router-matched"), "10/10");
    let log = lb.stderr();
    assert!(log.contains("worker drained") && log.contains("worker undrained"), "{log}");
    assert_eq!(lb.metrics().await.sum("warmroute_worker_drained", &[]), 0);
}

#[tokio::test]
async fn where_all_are_drained_the_model_is_known_and_nobody_serves() {
    let lb = lb().worker(echo().models(&["m"])).worker(echo().models(&["m"])).start().await;
    for id in ["w0", "w1"] {
        post(&lb, id, "drain").await;
    }
    lb.ask(&Ask::chat("hello")).await.assert_error(503, "no_worker");
    assert_eq!(lb.admin("/readyz").await.status, 503);
    let other = json!({"model": "other", "messages": []}).to_string();
    lb.ask(&Ask::post("/v1/chat/completions", other)).await.assert_error(404, "model_not_found");
    post(&lb, "w1", "undrain").await;
    assert_eq!(lb.ask(&Ask::chat("hello")).await.echo().worker, "w1");
    assert_eq!(lb.admin("/readyz").await.status, 200);
}

#[tokio::test]
async fn a_retry_does_not_go_to_a_drained_worker() {
    let lb = lb()
        .worker(echo())
        .worker(echo())
        .worker(echo())
        .config("{policy: round-robin, health: {interval_ms: 60000}}")
        .config("breaker: {failures_in_row_max: 1000, success_share_min: 0}")
        .start()
        .await;
    post(&lb, "w1", "drain").await;
    lb.workers[0].kill().await;
    for _ in 0..30 {
        assert_eq!(lb.ask(&Ask::chat("hello")).await.echo().worker, "w2");
    }
    assert_eq!(lb.workers[1].request_count(), 0);
    assert!(lb.metrics().await.sum("warmroute_retries_total", &[("cause", "connect")]) > 0);
}

/// Asks all the time until told to stop; counts what was answered.
struct Clients {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
}

impl Clients {
    fn new() -> Self {
        Self { stop: Arc::default(), answered: Arc::default() }
    }

    async fn ask(&self, lb: &Lb, client: usize) {
        for nth in 0.. {
            if self.stop.load(SeqCst) {
                return;
            }
            let answer = lb.ask(&Ask::chat(&format!("{client} asks {nth}"))).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.broken, None, "{answer:?}");
            self.answered.fetch_add(1, SeqCst);
        }
    }

    fn answered(&self) -> usize {
        self.answered.load(SeqCst)
    }
}

#[tokio::test]
async fn drains_and_removals_under_load_lose_nothing() {
    let lb = lb()
        .worker(echo())
        .worker(echo())
        .worker(echo())
        .config("policy: least-loaded")
        .start()
        .await;
    let clients = Clients::new();
    let change = async {
        for round in 0..6 {
            let id = ["w0", "w1", "w2"][round % 3];
            let worker = &lb.workers[round % 3];
            post(&lb, id, "drain").await;
            eventually("it is empty", async || worker_of(&lb, id).await["inflight"] == 0).await;
            let (received, answered) = (worker.request_count(), clients.answered());
            eventually("others serve on", async || clients.answered() > answered + 20).await;
            assert_eq!(worker.request_count(), received, "{id} is drained");
            if round >= 3 {
                post(&lb, id, "remove").await;
                assert_eq!(lb.admin(&format!("/workers/{id}")).await.status, 404);
                assert_eq!(lb.metrics().await.sum("warmroute_workers", &[]), 2);
            }
            post(&lb, id, "undrain").await;
            eventually("it serves again", async || worker.request_count() > received).await;
        }
        clients.stop.store(true, SeqCst);
    };
    tokio::join!(
        change,
        clients.ask(&lb, 0),
        clients.ask(&lb, 1),
        clients.ask(&lb, 2),
        clients.ask(&lb, 3)
    );
    lb.idle().await;
}

#[tokio::test]
async fn a_removed_worker_is_told_so_and_stays_out_until_it_is_undrained() {
    let lb = lb().worker(echo()).worker(echo()).config("reports: {join: true}").start().await;
    let joined = echo().models(&["m"]).start("j0".to_owned()).await;
    assert_eq!(beat(&lb, &joined, "a", 60).await.json()["joined"], true);
    eventually("it serves", async || worker_of(&lb, "j0").await["takes_traffic"] == true).await;
    for id in ["w0", "j0"] {
        post(&lb, id, "remove").await;
        assert_eq!(lb.admin(&format!("/workers/{id}")).await.status, 404);
    }
    for worker in [&joined, &lb.workers[0]] {
        let refused = beat(&lb, worker, "a", 60).await;
        assert_eq!(refused.status, 409, "{refused:?}");
        let error = refused.json()["error"].clone();
        assert_eq!(error["code"], "removed");
        assert!(error["message"].to_string().contains("undrain"), "{error}");
    }
    assert_eq!(lb.metrics().await.sum("warmroute_reports_total", &[("outcome", "removed")]), 2);
    for _ in 0..10 {
        assert_eq!(lb.ask(&Ask::chat("hello")).await.echo().worker, "w1");
    }
    let page = lb.metrics_page().await;
    assert!(!page.contains("worker=\"w0\"") && !page.contains("worker=\"j0\""), "{page}");
    assert_eq!(post(&lb, "w0", "undrain").await["in_fleet"], true, "its file still names it");
    assert_eq!(post(&lb, "j0", "undrain").await["in_fleet"], false, "it has to beat first");
    assert_eq!(beat(&lb, &joined, "a", 60).await.json()["joined"], true);
    for id in ["w0", "j0"] {
        eventually("it serves", async || worker_of(&lb, id).await["takes_traffic"] == true).await;
    }
}

#[tokio::test]
async fn a_new_life_on_the_same_address_begins_with_an_empty_index() {
    let lb = lb()
        .worker(echo().models(&["m"]))
        .config("{reports: {join: true}, index: {block_bytes: 32}}")
        .start()
        .await;
    let joined = echo().models(&["m"]).start("j0".to_owned()).await;
    let blocks = async |id: &str| worker_of(&lb, id).await["index"]["blocks"].as_u64();
    let text = "a word or two ".repeat(40);
    for worker in [&lb.workers[0], &joined] {
        let id = &*worker.id;
        assert_eq!(beat(&lb, worker, "a", 60).await.status, 200);
        Reporter::new(&lb, id).send_well(&[stored(1..=10, None, &text[..320], 32)]).await;
        assert_eq!(blocks(id).await, Some(10));
        assert_eq!(beat(&lb, worker, "b", 60).await.json()["joined"], false);
        assert_eq!(blocks(id).await, Some(0), "{id}: another epoch");
    }
    // The same after it was away.
    let mut reporter = Reporter::new(&lb, "j0");
    reporter.epoch = "b".to_owned();
    reporter.send_well(&[stored(1..=10, None, &text[..320], 32)]).await;
    assert_eq!(beat(&lb, &joined, "b", 1).await.status, 200);
    eventually("it leaves", async || lb.admin("/workers/j0").await.status == 404).await;
    assert_eq!(beat(&lb, &joined, "c", 60).await.json()["joined"], true);
    assert_eq!(blocks("j0").await, Some(0));
}

#[tokio::test]
async fn who_comes_to_others_that_serve_gets_a_small_share_first() {
    let lb = lb()
        .worker(echo())
        .worker(echo())
        .config("{policy: round-robin, slow_start_s: 3600, reports: {join: true}}")
        .start()
        .await;
    let weight_now = async |id: &str| worker_of(&lb, id).await["weight_now"].as_f64();
    for id in ["w0", "w1"] {
        assert_eq!(weight_now(id).await, Some(1.0), "{id}: nobody starts slowly with the process");
    }
    // Who comes within a round of checks of the first begins with it; after that it is slow.
    eventually("the fleet has begun", async || {
        post(&lb, "w1", "drain").await;
        post(&lb, "w1", "undrain").await;
        weight_now("w1").await.is_some_and(|weight| weight < 0.2)
    })
    .await;
    lb.workers[0].set_healthy(false);
    lb.health_is(0, "unhealthy").await;
    lb.workers[0].set_healthy(true);
    lb.health_is(0, "healthy").await;
    assert!(weight_now("w0").await.is_some_and(|weight| weight < 0.2), "back from illness");

    let joined = echo().models(&["m"]).start("j0".to_owned()).await;
    assert_eq!(beat(&lb, &joined, "a", 60).await.json()["joined"], true);
    eventually("it serves", async || worker_of(&lb, "j0").await["takes_traffic"] == true).await;
    assert!(weight_now("j0").await.is_some_and(|weight| weight < 0.2), "a newcomer");
    // Compared with one at full weight: nobody serves when that one comes.
    let full = echo().models(&["m"]).start("j1".to_owned()).await;
    for id in ["w0", "w1"] {
        post(&lb, id, "drain").await;
    }
    post(&lb, "j0", "drain").await;
    assert_eq!(beat(&lb, &full, "a", 60).await.json()["joined"], true);
    eventually("it serves", async || worker_of(&lb, "j1").await["takes_traffic"] == true).await;
    assert_eq!(weight_now("j1").await, Some(1.0), "nobody served when it came");
    for id in ["w0", "w1"] {
        post(&lb, id, "undrain").await;
    }
    // Undrained within a round of checks of its start, another would begin with it.
    eventually("others start slowly again", async || {
        post(&lb, "j0", "drain").await;
        post(&lb, "j0", "undrain").await;
        weight_now("j0").await.is_some_and(|weight| weight < 0.2)
    })
    .await;
    let (before, others) = (joined.request_count(), full.request_count());
    for _ in 0..120 {
        assert_eq!(lb.ask(&Ask::chat("hello")).await.status, 200);
    }
    let (slow, fast) = (joined.request_count() - before, full.request_count() - others);
    assert!(slow > 0 && slow * 4 < fast, "{slow} to {fast}: a tenth of the weight");
    eventually("the gauge follows", async || {
        let page = lb.metrics_page().await;
        let gauge = |id: &str| {
            let name = format!("warmroute_worker_weight{{worker=\"{id}\"}} ");
            page.lines().find_map(|line| line.strip_prefix(&name)?.parse::<f64>().ok())
        };
        gauge("j0").is_some_and(|w| w < 0.2) && gauge("j1").is_some_and(|w| w > 0.99)
    })
    .await;
}

#[tokio::test]
async fn a_slow_start_ends() {
    let lb = lb().worker(echo()).worker(echo()).config("slow_start_s: 1").start().await;
    let weight_now = async || worker_of(&lb, "w1").await["weight_now"].as_f64().unwrap_or(0.0);
    eventually("it starts slowly", async || {
        post(&lb, "w1", "drain").await;
        post(&lb, "w1", "undrain").await;
        weight_now().await < 0.9
    })
    .await;
    let mut last = 0.0;
    eventually("it has its whole weight", async || {
        let now = weight_now().await;
        assert!(now >= last, "{now} after {last}");
        last = now;
        now >= 1.0
    })
    .await;
}

/// Resident memory of a process, bytes.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("Linux");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("KiB") << 10
}

async fn series_count(lb: &Lb) -> usize {
    lb.metrics_page().await.lines().filter(|line| line.contains("{worker=")).count()
}

/// Workers come and go ten times a second for ten seconds, half of them removed and half by silence,
/// while clients ask. Each is drained before it goes and dies once it is gone.
#[tokio::test]
async fn churn_loses_no_request_and_leaves_nothing_behind() {
    const WORKERS: usize = 200;
    const AT_ONCE: usize = 40;
    let lb = lb()
        .worker(echo().models(&["m"]))
        .config("{reports: {join: true}, health: {interval_ms: 500}, log: {level: info}}")
        .start()
        .await;
    let mut away = VecDeque::new();
    for nth in 0..WORKERS {
        away.push_back(echo().models(&["m"]).start(format!("churn-{nth}")).await);
    }
    let joins = async |worker: &Worker, epoch: usize| {
        lb.admin_post(&format!("/workers/{}/undrain", worker.id)).await;
        let answer = beat(&lb, worker, &epoch.to_string(), 600).await;
        assert_eq!(answer.json()["joined"], true, "{answer:?}");
    };
    let mut here = VecDeque::new();
    for _ in 0..AT_ONCE {
        let worker = away.pop_front().expect("there are more");
        joins(&worker, 0).await;
        here.push_back(worker);
    }
    let count = async || lb.metrics().await.sum("warmroute_workers", &[]) as usize;
    eventually("all serve", async || {
        lb.metrics().await.sum("warmroute_worker_healthy", &[]) as usize == AT_ONCE + 1
    })
    .await;
    let clients = Clients::new();
    let churn = async {
        let (series, memory) = (series_count(&lb).await, resident(lb.pid()));
        let mut ticks = interval(Duration::from_millis(100));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let until = Instant::now() + Duration::from_secs(10);
        let mut changes = 0;
        let mut silent: VecDeque<Worker> = VecDeque::new();
        while Instant::now() < until {
            ticks.tick().await;
            changes += 1;
            if changes % 2 == 0 {
                // One that was removed comes back as often as a new one comes.
                let worker = if changes % 4 == 0 { away.pop_front() } else { away.pop_back() };
                let worker = worker.expect("most are away");
                if worker.is_dead() {
                    worker.revive().await;
                }
                joins(&worker, changes).await;
                here.push_back(worker);
                continue;
            }
            let worker = here.pop_front().expect("some are here");
            post(&lb, &worker.id, "drain").await;
            if changes % 4 == 1 {
                eventually("it is empty", async || {
                    worker_of(&lb, &worker.id).await["inflight"] == 0
                })
                .await;
                post(&lb, &worker.id, "remove").await;
                worker.kill().await;
                away.push_front(worker);
            } else {
                // Its last heartbeat; it is gone a second or two later.
                assert_eq!(beat(&lb, &worker, "last", 1).await.status, 200);
                silent.push_back(worker);
            }
        }
        assert!(changes >= 50, "only {changes} changes: this machine is too slow for the test");
        eventually("the silent have left", async || count().await == here.len() + 1).await;
        for worker in &silent {
            worker.kill().await;
        }
        while here.len() > AT_ONCE {
            let worker = here.pop_back().expect("there are more");
            post(&lb, &worker.id, "drain").await;
            eventually("it is empty", async || worker_of(&lb, &worker.id).await["inflight"] == 0)
                .await;
            post(&lb, &worker.id, "remove").await;
        }
        let answered = clients.answered();
        eventually("clients are served", async || clients.answered() > answered + 20).await;
        clients.stop.store(true, SeqCst);
        (series, memory, here)
    };
    let ((series, memory, here), (), (), (), ()) = tokio::join!(
        churn,
        clients.ask(&lb, 0),
        clients.ask(&lb, 1),
        clients.ask(&lb, 2),
        clients.ask(&lb, 3)
    );
    lb.idle().await;
    assert_eq!(count().await, here.len() + 1);
    let per_worker = series / (AT_ONCE + 1);
    eventually("no series are left of those that went", async || {
        series_count(&lb).await <= per_worker * (here.len() + 2)
    })
    .await;
    let grown = resident(lb.pid()).saturating_sub(memory);
    assert!(grown < 64 << 20, "{grown} bytes more than before");
    assert!(!lb.stderr().contains("panicked"), "{}", lb.stderr());
}
