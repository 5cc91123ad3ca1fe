//! Several routers in front of one fleet, and the broker between them.

use std::time::Duration;

use futures_util::{StreamExt, future::join_all};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{
    Ask, Authority, DEADLINE, Lb, Nats, Worker, WorkerSpec, echo, eventually, free_port, holding,
    lb, within,
};

const SECRET: &str = "a secret that routers share";

fn peers(port: u16, name: &str) -> String {
    format!(
        "peers: {{nats: \"nats://127.0.0.1:{port}\", subject: warmroute.it, name: {name}, \
         secret: {SECRET}, loads_interval_ms: 10}}"
    )
}

async fn workers<const N: usize>(spec: fn() -> WorkerSpec) -> [Worker; N] {
    let all = join_all((0..N).map(|at| spec().start(format!("w{at}")))).await;
    all.try_into().unwrap_or_else(|_| panic!("as many as were started"))
}

/// A router in front of `workers` with this configuration.
async fn router(workers: &[Worker], configs: &[&str]) -> Lb {
    let mut scene = lb();
    for worker in workers {
        scene = scene.external(&worker.id, worker.url(), "models: [\"*\"]");
    }
    for config in configs {
        scene = scene.config(config);
    }
    scene.start().await
}

/// Waits until the router hears so many others.
async fn hears(lb: &Lb, others: i64) {
    eventually(&format!("{others} other routers are heard"), async || {
        let metrics = lb.metrics().await;
        metrics.sum("warmroute_peers_known", &[]) == others
    })
    .await;
}

async fn is_connected(lb: &Lb, connected: bool) {
    eventually(&format!("connected is {connected}"), async || {
        lb.metrics().await.sum("warmroute_peers_connected", &[]) == i64::from(connected)
    })
    .await;
}

fn story(nth: usize) -> Ask {
    Ask::chat(&format!("{nth} {}", "once upon a time ".repeat(60)))
}

/// Sends and gives the worker, and matched and all blocks.
async fn routed(lb: &Lb, ask: &Ask) -> (String, usize, usize) {
    let answer = lb.ask(ask).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let (matched, total) = answer.header("x-router-matched").split_once('/').expect("n/m");
    let number = |text: &str| text.parse().expect("a number");
    (answer.header("x-router-backend").to_owned(), number(matched), number(total))
}

async fn presumed_in_all(lb: &Lb) -> u64 {
    let all = lb.admin("/workers").await.json();
    let of = |worker: &Value| worker["index"]["presumed_blocks"].as_u64().expect("a number");
    all["workers"].as_array().expect("a list").iter().map(of).sum()
}

async fn peers_inflight(lb: &Lb, worker: usize) -> u64 {
    lb.status(worker).await["peers_inflight"].as_u64().expect("a number")
}

/// Waits until nothing is in flight at `a`, and `b` has heard so since.
async fn settled(a: &Lb, b: &Lb) {
    a.idle().await;
    let heard = async || {
        let page = b.admin("/peers").await.json();
        let of = |peer: &Value| peer["messages"].as_u64().expect("a number");
        page["peers"].as_array().expect("a list").iter().map(of).sum::<u64>()
    };
    // The next message may have been under way already.
    let before = heard().await;
    eventually("b has heard twice", async || heard().await >= before + 2).await;
}

fn lines(lb: &Lb, text: &str) -> usize {
    lb.stderr().lines().filter(|line| line.contains(text)).count()
}

/// Both know each other and have nothing in flight.
async fn pair(workers: &[Worker], nats: &Nats, config: &str) -> (Lb, Lb) {
    let a = router(workers, &[config, &peers(nats.port(), "router-a")]).await;
    let b = router(workers, &[config, &peers(nats.port(), "router-b")]).await;
    hears(&a, 1).await;
    hears(&b, 1).await;
    (a, b)
}

#[tokio::test]
async fn what_one_router_sends_the_other_presumes() {
    let nats = Nats::start().await;
    let workers = workers::<3>(echo).await;
    let (a, b) = pair(&workers, &nats, "policy: sticky-least-loaded").await;
    let mut held = 0;
    for nth in 0..10 {
        let (worker, matched, total) = routed(&a, &story(nth)).await;
        assert!(matched < total && total > 4, "{matched}/{total}");
        held += total - matched;
        settled(&a, &b).await;
        assert_eq!(presumed_in_all(&b).await, held as u64);
        assert_eq!(routed(&b, &story(nth)).await, (worker, total, total), "{nth}");
    }
    for (lb, name, other) in [(&a, "router-a", "router-b"), (&b, "router-b", "router-a")] {
        let page = lb.admin("/peers").await.json();
        assert_eq!(page["name"], name, "{page}");
        assert_eq!(page["connected"], true, "{page}");
        assert_eq!(page["peers"].as_array().expect("a list").len(), 1, "{page}");
        assert_eq!(page["peers"][0]["name"], other, "{page}");
        let metrics = lb.metrics().await;
        for direction in ["in", "out"] {
            let label = [("direction", direction)];
            assert!(metrics.sum("warmroute_peers_messages_total", &label) > 0);
            assert!(metrics.sum("warmroute_peers_bytes_total", &label) > 0);
        }
        assert_eq!(metrics.sum("warmroute_peers_refused_total", &[]), 0);
        assert_eq!(metrics.sum("warmroute_peers_dropped_total", &[]), 0);
    }
}

#[tokio::test]
async fn without_peers_there_is_no_page() {
    let lb = lb().worker(echo()).start().await;
    assert_eq!(lb.admin("/peers").await.status, 404);
    assert_eq!(lb.metrics().await.sum("warmroute_peers_messages_total", &[]), 0);
}

#[tokio::test]
async fn what_never_arrived_is_taken_back_at_both() {
    let nats = Nats::start().await;
    let workers = workers::<1>(echo).await;
    let config = "{timeouts: {connect_ms: 300}, limits: {retries_max: 0}, \
                  health: {interval_ms: 60000}}";
    let (a, b) = pair(&workers, &nats, config).await;
    workers[0].kill().await;
    let before = b.metrics().await.sum("warmroute_peers_messages_total", &[("direction", "in")]);
    assert_eq!(a.ask(&story(1)).await.status, 502);
    eventually("b was told of it and told again", async || {
        let metrics = b.metrics().await;
        let heard = metrics.sum("warmroute_peers_messages_total", &[("direction", "in")]);
        let inserted = metrics.sum("warmroute_index_inserted_blocks_total", &[]);
        heard > before + 3 && inserted > 0 && presumed_in_all(&b).await == 0
    })
    .await;
    assert_eq!(presumed_in_all(&a).await, 0);
}

/// The first router sends to one worker only; the second spares it while that lasts.
#[tokio::test]
async fn load_that_one_router_made_turns_the_other_away() {
    let nats = Nats::start().await;
    let workers = workers::<2>(holding).await;
    let policy = "policy: least-loaded";
    let a = router(&workers[..1], &[policy, &peers(nats.port(), "router-a")]).await;
    let b = router(&workers, &[policy, &peers(nats.port(), "router-b")]).await;
    hears(&b, 1).await;
    let ask = story(1);
    let from_a = join_all((0..4).map(|_| a.ask(&ask)));
    let scene = async {
        eventually("b knows what a sent", async || peers_inflight(&b, 0).await == 4).await;
        assert_eq!(b.status(0).await["inflight"], 0, "which is not its own");
        let from_b = join_all((0..4).map(|_| b.ask(&ask)));
        let see = async {
            eventually("all have arrived", async || workers[1].at_work() == 4).await;
            assert_eq!(workers[0].at_work(), 4);
            eventually("b told its own", async || peers_inflight(&a, 0).await == 0).await;
            workers[0].let_go(4);
            workers[1].let_go(4);
        };
        let (answers, ()) = tokio::join!(from_b, see);
        assert!(answers.iter().all(|answer| answer.status == 200));
        eventually("b knows that a is done", async || peers_inflight(&b, 0).await == 0).await;
    };
    let (answers, ()) = tokio::join!(from_a, scene);
    assert!(answers.iter().all(|answer| answer.status == 200));
}

#[tokio::test]
async fn the_load_of_a_router_that_died_is_forgotten() {
    let nats = Nats::start().await;
    let workers = workers::<1>(holding).await;
    let (a, b) = pair(&workers, &nats, "policy: least-loaded").await;
    let _held = tokio::spawn({
        let (addr, ask) = (a.addr(), story(1));
        async move {
            let mut conn = crate::support::Conn::open(addr, ask.proto).await.expect("connects");
            let _ = conn.send(&ask).await;
        }
    });
    eventually("b knows of it", async || peers_inflight(&b, 0).await == 1).await;
    a.signal("KILL");
    eventually("it counts no more", async || peers_inflight(&b, 0).await == 0).await;
    hears(&b, 0).await;
    assert_eq!(lines(&b, "another router has fallen silent"), 1);
    assert!(b.admin("/peers").await.json()["peers"].as_array().expect("a list").is_empty());
}

#[tokio::test]
async fn the_load_of_a_router_that_drains_counts_to_the_end() {
    let nats = Nats::start().await;
    let workers = workers::<1>(holding).await;
    let (mut a, mut b) = pair(&workers, &nats, "policy: least-loaded").await;
    let held = tokio::spawn({
        let (addr, ask) = (a.addr(), story(1));
        async move {
            crate::support::Conn::open(addr, ask.proto).await.expect("connects").ask(&ask).await
        }
    });
    eventually("b knows of it", async || peers_inflight(&b, 0).await == 1).await;
    a.signal("TERM");
    // Longer than what is told is believed for, and than clients are let go.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        assert_eq!(peers_inflight(&b, 0).await, 1, "{:?}", begun.elapsed());
    }
    workers[0].let_go(1);
    assert_eq!(held.await.expect("no panic").status, 200);
    eventually("a leaves", async || a.exit_status().is_some()).await;
    eventually("it counts no more", async || peers_inflight(&b, 0).await == 0).await;
    b.signal("INT");
    eventually("b leaves at once", async || b.exit_status().is_some()).await;
}

/// The worker's own count has the peer's requests in it; they must not fill it twice.
#[tokio::test]
async fn requests_of_a_peer_that_the_worker_counts_too_count_once() {
    let nats = Nats::start().await;
    let workers = workers::<1>(holding).await;
    let a = router(&workers, &[&peers(nats.port(), "router-a")]).await;
    let more = "{limits: {inflight_max: 5}, reports: {}}";
    let b = router(&workers, &[more, &peers(nats.port(), "router-b")]).await;
    hears(&b, 1).await;
    let beat = |load: u32| {
        json!({"worker_id": "w0", "worker_url": workers[0].url(), "current_load": load,
            "lease_s": 60})
    };
    let ask = story(1);
    let from_a = join_all((0..3).map(|_| a.ask(&ask)));
    let scene = async {
        eventually("b knows what a sent", async || peers_inflight(&b, 0).await == 3).await;
        for _ in 0..2 {
            assert_eq!(b.report("/v1/heartbeat", &beat(3)).await.status, 200);
        }
        let from_b = async { b.ask(&ask).await };
        let see = async {
            eventually("there was room", async || workers[0].at_work() == 4).await;
            for _ in 0..2 {
                assert_eq!(b.report("/v1/heartbeat", &beat(5)).await.status, 200);
            }
            let shed = b.ask(&ask).await;
            shed.assert_error(503, "saturated");
            workers[0].let_go(4);
        };
        assert_eq!(tokio::join!(from_b, see).0.status, 200);
    };
    tokio::join!(from_a, scene);
}

/// Requests go on through both, without end, until told to stop; gives their number and the longest.
async fn traffic(a: &Lb, b: &Lb, stop: &tokio::sync::Notify) -> (usize, Duration) {
    let (mut count, mut longest) = (0, Duration::ZERO);
    let stopped = stop.notified();
    tokio::pin!(stopped);
    loop {
        let begun = Instant::now();
        let ask = story(count % 50);
        let both = async { tokio::join!(a.ask(&ask), b.ask(&ask)) };
        let both = tokio::select! {
            both = both => both,
            () = &mut stopped => return (count, longest),
        };
        assert_eq!((both.0.status, both.1.status), (200, 200), "{both:?}");
        longest = longest.max(begun.elapsed());
        count += 1;
    }
}

#[tokio::test]
async fn a_broker_that_dies_costs_no_request_and_is_taken_up_again() {
    let mut nats = Nats::start().await;
    let workers = workers::<2>(echo).await;
    let (a, b) = pair(&workers, &nats, "policy: prefix-aware").await;
    let stop = tokio::sync::Notify::new();
    let scene = async {
        nats.kill();
        is_connected(&a, false).await;
        is_connected(&b, false).await;
        hears(&a, 0).await;
        let known = presumed_in_all(&b).await;
        assert!(known > 0, "what was known is not forgotten");
        eventually("what cannot be told is dropped", async || {
            let dropped = [("reason", "disconnected")];
            a.metrics().await.sum("warmroute_peers_dropped_total", &dropped) > 10
        })
        .await;
        nats.revive().await;
        is_connected(&a, true).await;
        hears(&a, 1).await;
        hears(&b, 1).await;
        // Hung rather than gone: nothing says so for seconds.
        nats.signal("STOP");
        hears(&a, 0).await;
        hears(&b, 0).await;
        nats.signal("CONT");
        hears(&a, 1).await;
        hears(&b, 1).await;
        stop.notify_one();
    };
    let ((count, longest), ()) = tokio::join!(traffic(&a, &b, &stop), scene);
    assert!(count > 100, "{count}");
    assert!(longest < Duration::from_secs(2), "{longest:?}");
    // And what is sent is heard again.
    let mut nth = 1000;
    eventually("b has heard", async || {
        // One that is sent while a connection is still being made anew may be lost.
        nth += 1;
        let (worker, _, total) = routed(&a, &story(nth)).await;
        settled(&a, &b).await;
        routed(&b, &story(nth)).await == (worker, total, total)
    })
    .await;
    for lb in [&a, &b] {
        assert!(lines(lb, "broker of the routers is lost") <= 2, "{}", lb.stderr());
        assert!(lines(lb, "broker of the routers is connected") <= 3);
        assert!(lines(lb, "broker of the routers cannot be reached") <= 4, "{}", lb.stderr());
    }
}

#[tokio::test]
async fn a_router_starts_without_its_broker_and_finds_it() {
    let port = free_port();
    let worker = workers::<1>(echo).await;
    let lb = router(&worker, &[&peers(port, "router-a")]).await;
    assert_eq!(lb.ask(&story(1)).await.status, 200);
    let line = "broker of the routers cannot be reached";
    eventually("it is said", async || lines(&lb, line) == 1).await;
    let begun = Instant::now();
    while begun.elapsed() < DEADLINE / 10 {
        assert_eq!(lb.ask(&story(1)).await.status, 200);
    }
    assert_eq!(lines(&lb, line), 1, "once is enough: {}", lb.stderr());
    is_connected(&lb, false).await;
}

#[tokio::test]
async fn a_router_with_another_secret_is_passed_over_with_one_line() {
    let nats = Nats::start().await;
    let workers = workers::<2>(echo).await;
    let (a, b) = pair(&workers, &nats, "policy: prefix-aware").await;
    let secret = "peers: {secret: another secret than theirs}";
    let c = router(&workers, &[&peers(nats.port(), "router-c"), secret]).await;
    let blocks =
        router(&workers, &[&peers(nats.port(), "router-d"), "index: {block_bytes: 64}"]).await;
    for lb in [&c, &blocks] {
        is_connected(lb, true).await;
        routed(lb, &story(1)).await;
    }
    for lb in [&a, &b] {
        let refused = async || {
            let label = [("reason", "configuration")];
            lb.metrics().await.sum("warmroute_peers_refused_total", &label)
        };
        let line = "is not taken, nor will others like it";
        eventually("both are refused", async || lines(lb, line) >= 2).await;
        let before = refused().await;
        eventually("and go on to be", async || refused().await > before + 20).await;
        assert_eq!(lines(lb, line), 2, "one each");
        assert_eq!(lb.metrics().await.sum("warmroute_peers_known", &[]), 1);
        assert_eq!(presumed_in_all(lb).await, 0);
    }
    let (_, matched, _) = routed(&a, &story(1)).await;
    assert_eq!(matched, 0);
    assert_eq!(c.metrics().await.sum("warmroute_peers_known", &[]), 0);
}

#[tokio::test]
async fn garbage_on_the_subject_changes_nothing() {
    let nats = Nats::start().await;
    let workers = workers::<2>(echo).await;
    let (a, b) = pair(&workers, &nats, "policy: prefix-aware").await;
    let stranger = nats.client().await;
    let mut overheard = stranger.subscribe("warmroute.it").await.expect("subscribes");
    let (worker, _, total) = routed(&a, &story(1)).await;
    let heard = routed(&a, &story(1)).await;
    assert_eq!(heard, (worker.clone(), total, total));
    let longest = within("a message with blocks", async {
        loop {
            let message = overheard.next().await.expect("a message");
            if message.payload.len() > 60 + 8 * total {
                return message.payload;
            }
        }
    })
    .await;
    settled(&a, &b).await;
    assert_eq!(presumed_in_all(&b).await, total as u64);
    let mut garbage: Vec<Vec<u8>> = vec![Vec::new(), vec![0; 3], vec![0xff; 900_000]];
    garbage.extend((1..60).map(|at| longest[..longest.len() * at / 60].to_vec()));
    garbage.extend((0..longest.len()).step_by(3).map(|at| {
        let mut flipped = longest.to_vec();
        flipped[at] ^= 0x20;
        flipped
    }));
    // As it was: a replay.
    garbage.extend([longest.to_vec(), longest.to_vec()]);
    for message in &garbage {
        stranger.publish("warmroute.it", message.clone().into()).await.expect("publishes");
    }
    stranger.flush().await.expect("is sent");
    eventually("all is refused", async || {
        let metrics = b.metrics().await;
        metrics.sum("warmroute_peers_refused_total", &[]) == garbage.len() as i64
    })
    .await;
    let metrics = b.metrics().await;
    for reason in ["garbage", "forged", "version", "configuration", "repeated"] {
        assert!(
            metrics.sum("warmroute_peers_refused_total", &[("reason", reason)]) > 0,
            "{reason}"
        );
    }
    assert_eq!(presumed_in_all(&b).await, total as u64);
    assert!(lines(&b, "is not taken") <= 16);
    settled(&a, &b).await;
    assert_eq!(routed(&b, &story(1)).await, (worker, total, total));
    hears(&b, 1).await;
}

#[tokio::test]
async fn a_broker_may_ask_who_is_there_and_speak_tls() {
    let authority = Authority::new("brokers");
    let folder = tempfile::TempDir::new().expect("a folder");
    let (cert, key) = authority.issue().write(folder.path());
    let ca = authority.write(folder.path(), "ca.pem").display().to_string();
    let (cert, key) = (cert.display().to_string(), key.display().to_string());
    let login = ["--user", "me", "--pass", "p@ss", "--tls", "--tlscert", &cert, "--tlskey", &key];
    let nats = Nats::start_with(&login).await;
    let worker = workers::<1>(echo).await;
    let url = |login: &str| format!("tls://{login}localhost:{}", nats.port());
    let config = |login: &str, ca: &str| {
        format!(
            "peers: {{nats: \"{}\", subject: warmroute.it, secret: {SECRET}, ca: \"{ca}\"}}",
            url(login)
        )
    };
    let a = router(&worker, &[&config("me:p%40ss@", &ca)]).await;
    let b = router(&worker, &[&config("me:p%40ss@", &ca)]).await;
    hears(&a, 1).await;
    hears(&b, 1).await;
    let wrong = router(&worker, &[&config("me:wrong@", &ca)]).await;
    eventually("it is told why", async || {
        lines(&wrong, "broker of the routers cannot be reached") >= 1
    })
    .await;
    assert_eq!(wrong.ask(&story(1)).await.status, 200);
    assert!(!wrong.stderr().contains("wrong@") && !wrong.stderr().contains(SECRET));
    is_connected(&wrong, false).await;
}
