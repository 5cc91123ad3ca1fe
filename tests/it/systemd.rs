//! What a service manager sees: readiness, status, watchdog, reload, upgrade, inherited sockets.

use std::{net::TcpStream as StdTcpStream, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{
    Ask, Notification, Unit, Worker, chat_body_of, echo, eventually, holding, never, within,
};

async fn worker() -> Worker {
    echo().start("w0".to_owned()).await
}

fn is_true(notification: &Notification, name: &str) -> bool {
    notification.field(name) == Some("1")
}

/// A chat as raw bytes, on a connection that is made at once: nobody need accept it yet.
async fn sent_early(unit: &Unit) -> TcpStream {
    let mut conn = within("the kernel takes the connection", TcpStream::connect(unit.addr())).await;
    let conn_ref = conn.as_mut().expect("a listening socket");
    let body = String::from_utf8(chat_body_of(200)).expect("JSON");
    let text = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    conn_ref.write_all(text.as_bytes()).await.expect("the kernel takes the bytes");
    conn.expect("checked above")
}

async fn is_answered(mut conn: TcpStream) {
    let mut text = String::new();
    within("the answer", conn.read_to_string(&mut text)).await.expect("an answer");
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    assert!(text.to_ascii_lowercase().contains("x-router-backend: w0"), "{text}");
}

// --- readiness and status

#[tokio::test]
async fn it_is_ready_once_the_worker_was_judged() {
    let worker = echo().with_late_health().start("w0".to_owned()).await;
    let mut unit = Unit::new(&worker);
    unit.start();
    eventually("it checks the worker", async || worker.health_checks() > 0).await;
    let early = Duration::from_millis(300);
    assert!(never(early, async || unit.count("READY=1") > 0).await, "ready without a verdict");
    worker.let_health_go();
    eventually("it is ready", async || unit.count("READY=1") == 1).await;
    assert_eq!(unit.ask(&Ask::chat("hello")).await.status, 200);
}

#[tokio::test]
async fn it_is_ready_at_last_when_no_worker_answers() {
    let worker = echo().with_late_health().start("w0".to_owned()).await;
    let mut unit = Unit::new(&worker);
    unit.start_ready().await;
    assert_eq!(unit.ask(&Ask::get("/health")).await.status, 503);
}

#[tokio::test]
async fn its_status_is_one_line_for_people() {
    let worker = worker().await;
    let mut unit = Unit::new(&worker);
    unit.start_ready().await;
    eventually("a status", async || unit.last("STATUS").is_some_and(|text| text.len() > 3)).await;
    for heard in unit.heard() {
        if let Some(status) = heard.field("STATUS") {
            assert!(!status.chars().any(char::is_control), "{status:?}");
        }
    }
}

#[tokio::test]
async fn without_a_manager_it_runs_as_well() {
    let worker = worker().await;
    let mut unit = Unit::new(&worker);
    unit.set("NOTIFY_SOCKET", "/nonexistent/notify");
    unit.start();
    eventually("it listens", async || StdTcpStream::connect(unit.addr()).is_ok()).await;
    eventually("it serves", async || unit.ask(&Ask::chat("hello")).await.status == 200).await;
}

// --- watchdog

#[tokio::test]
async fn it_says_that_it_lives_twice_as_often_as_it_must() {
    let limit = Duration::from_secs(1);
    let worker = worker().await;
    let mut unit = Unit::new(&worker);
    unit.set("WATCHDOG_USEC", &limit.as_micros().to_string());
    unit.set("WATCHDOG_PID", "its own");
    unit.start_ready().await;
    eventually("seven signs of life", async || unit.count("WATCHDOG=1") >= 7).await;
    let heard = unit.heard();
    let alive: Vec<_> = heard.iter().filter(|one| is_true(one, "WATCHDOG")).collect();
    let mut gaps: Vec<_> = alive.windows(2).map(|two| two[1].at - two[0].at).collect();
    gaps.sort_unstable();
    // A busy machine may delay one; systemd would act at the limit.
    assert!(gaps[gaps.len() / 2] <= limit / 2 + limit / 20, "{gaps:?}");
    assert!(gaps[gaps.len() - 1] < limit, "{gaps:?}");
}

// One sign of life after the signal to stop winds systemd's watchdog up again.
#[tokio::test]
async fn it_lives_on_while_it_drains() {
    let worker = holding().start("w0".to_owned()).await;
    let mut unit = Unit::new(&worker);
    unit.set("WATCHDOG_USEC", "400000");
    unit.set("WATCHDOG_PID", "its own");
    unit.start_ready().await;
    let conn = sent_early(&unit).await;
    eventually("the worker has it", async || worker.at_work() == 1).await;
    unit.signal("TERM");
    eventually("it drains", async || StdTcpStream::connect(unit.addr()).is_err()).await;
    assert_eq!(unit.count("STOPPING=1"), 1);
    let before = unit.count("WATCHDOG=1");
    eventually("it still says so", async || unit.count("WATCHDOG=1") > before + 3).await;
    worker.let_go(1);
    is_answered(conn).await;
    assert!(unit.ended().await.success());
}

#[tokio::test]
async fn nobody_asked_and_it_says_nothing() {
    let worker = worker().await;
    for pid in [None, Some("1")] {
        let mut unit = Unit::new(&worker);
        if let Some(pid) = pid {
            unit.set("WATCHDOG_USEC", "100000");
            unit.set("WATCHDOG_PID", pid);
        }
        unit.start_ready().await;
        let long = Duration::from_millis(500);
        assert!(never(long, async || unit.count("WATCHDOG=1") > 0).await, "{pid:?}");
    }
}

// --- reload, stop, upgrade

#[tokio::test]
async fn a_reload_is_told_from_its_begin_to_its_end() {
    let worker = worker().await;
    let mut unit = Unit::new(&worker);
    unit.start_ready().await;
    unit.configure("policy: round-robin\n");
    unit.signal("HUP");
    eventually("it reloads", async || unit.count("RELOADING=1") == 1).await;
    eventually("it is ready again", async || unit.count("READY=1") == 2).await;
    let heard = unit.heard();
    let at = heard.iter().position(|one| is_true(one, "RELOADING")).expect("heard");
    let time = heard[at].field("MONOTONIC_USEC").and_then(|text| text.parse::<u64>().ok());
    assert!(time.is_some_and(|usec| usec > 0), "systemd drops it without a time: {:?}", heard[at]);
    assert!(heard[at..].iter().any(|one| is_true(one, "READY")), "ready before it reloads");
    assert_eq!(unit.ask(&Ask::chat("hello")).await.status, 200);
}

#[tokio::test]
async fn a_bad_reload_says_why_and_changes_nothing() {
    let worker = worker().await;
    let mut unit = Unit::new(&worker);
    unit.start_ready().await;
    unit.configure("retries: 3\n");
    unit.signal("HUP");
    let names_the_key = async || unit.last("STATUS").is_some_and(|text| text.contains("retries"));
    eventually("the status names the key", names_the_key).await;
    eventually("what began has ended", async || {
        unit.count("READY=1") == 1 + unit.count("RELOADING=1")
    })
    .await;
    assert_eq!(unit.ask(&Ask::chat("hello")).await.status, 200);
    unit.configure("");
    unit.signal("HUP");
    let is_well = async || unit.last("STATUS").is_some_and(|text| !text.contains("retries"));
    eventually("a good one takes that back", is_well).await;
}

#[tokio::test]
async fn it_says_that_it_stops() {
    let worker = worker().await;
    let mut unit = Unit::new(&worker);
    unit.start_ready().await;
    unit.signal("TERM");
    eventually("it says so", async || unit.count("STOPPING=1") == 1).await;
    assert!(unit.ended().await.success());
}

#[tokio::test]
async fn a_successor_says_that_it_is_the_main_process() {
    let worker = worker().await;
    let mut unit = Unit::new(&worker).with_socket();
    unit.set("WATCHDOG_USEC", "400000");
    unit.set("WATCHDOG_PID", "its own");
    unit.start_ready().await;
    unit.signal("USR2");
    eventually("another main process", async || !unit.successors().is_empty()).await;
    // systemd neither waits for a main process that is not its child nor notices its end.
    assert!(!unit.successor_is_a_child(), "of its predecessor");
    assert!(unit.ended().await.success(), "the old one leaves");
    assert_eq!(unit.count("STOPPING=1"), 0, "the service does not stop");
    assert_eq!(unit.ask(&Ask::chat("hello")).await.status, 200);
    let before = unit.count("WATCHDOG=1");
    eventually("it lives", async || unit.count("WATCHDOG=1") > before + 3).await;
}

// Where the main process ends, systemd ends what is left of the service.
#[tokio::test]
async fn a_successor_that_stops_waits_for_its_predecessor() {
    let worker = holding().start("w0".to_owned()).await;
    let mut unit = Unit::new(&worker);
    unit.start_ready().await;
    let conn = sent_early(&unit).await;
    eventually("the worker has it", async || worker.at_work() == 1).await;
    unit.signal("USR2");
    eventually("another main process", async || !unit.successors().is_empty()).await;
    unit.signal_successor("TERM");
    eventually("it stops", async || unit.count("STOPPING=1") == 1).await;
    eventually("it drains", async || StdTcpStream::connect(unit.addr()).is_err()).await;
    let long = Duration::from_millis(500);
    assert!(never(long, async || !unit.successor_runs()).await, "it left");
    worker.let_go(1);
    is_answered(conn).await;
    assert!(unit.ended().await.success());
    eventually("both have left", async || !unit.successor_runs()).await;
}

// --- inherited sockets

#[tokio::test]
async fn connections_made_before_the_start_are_served() {
    let worker = worker().await;
    let mut unit = Unit::new(&worker).with_socket();
    let mut early = Vec::new();
    for _ in 0..8 {
        early.push(sent_early(&unit).await);
    }
    unit.start_ready().await;
    for conn in early {
        is_answered(conn).await;
    }
}

#[tokio::test]
async fn requests_sent_between_a_crash_and_the_next_start_are_answered() {
    let worker = worker().await;
    let mut unit = Unit::new(&worker).with_socket();
    unit.start_ready().await;
    assert_eq!(unit.ask(&Ask::chat("hello")).await.status, 200);
    for _ in 0..3 {
        unit.kill();
        let between = [sent_early(&unit).await, sent_early(&unit).await];
        unit.start_ready().await;
        for conn in between {
            is_answered(conn).await;
        }
    }
}

#[tokio::test]
async fn requests_sent_after_it_drained_wait_for_the_next_start() {
    let worker = worker().await;
    let mut unit = Unit::new(&worker).with_socket();
    unit.start_ready().await;
    unit.signal("TERM");
    assert!(unit.ended().await.success());
    let between = sent_early(&unit).await;
    unit.start_ready().await;
    is_answered(between).await;
}

#[tokio::test]
async fn sockets_meant_for_another_process_are_left_alone() {
    let worker = worker().await;
    let mut unit = Unit::new(&worker).with_socket();
    unit.set("LISTEN_PID", "1");
    unit.start();
    assert_eq!(unit.ended().await.code(), Some(64), "it binds, and the address is in use");
    assert!(unit.stderr().contains(&unit.addr().to_string()), "{}", unit.stderr());
}

#[tokio::test]
async fn a_socket_of_an_address_that_is_not_configured_is_no_obstacle() {
    let worker = worker().await;
    let mut unit = Unit::new(&worker).with_socket();
    let other = Unit::new(&worker);
    unit.configure("");
    let conf = std::fs::read_to_string(unit.conf()).expect("a file");
    let conf = conf.replace(&unit.addr().to_string(), &other.addr().to_string());
    std::fs::write(unit.conf(), conf).expect("writes");
    unit.start_ready().await;
    assert_eq!(other.ask(&Ask::chat("hello")).await.status, 200);
}

#[tokio::test]
async fn nonsense_in_the_environment_is_no_obstacle() {
    let worker = worker().await;
    for count in ["", "x", "-1", "0", "99999999999999999999"] {
        let mut unit = Unit::new(&worker);
        unit.set("LISTEN_FDS", count);
        unit.set("LISTEN_PID", "its own");
        unit.start_ready().await;
        assert_eq!(unit.ask(&Ask::chat("hello")).await.status, 200, "LISTEN_FDS={count}");
    }
}

#[tokio::test]
async fn a_socket_that_is_promised_and_not_there_is_told_of() {
    let worker = worker().await;
    let mut unit = Unit::new(&worker);
    unit.set("LISTEN_FDS", "1");
    unit.set("LISTEN_PID", "its own");
    unit.start();
    assert_eq!(unit.ended().await.code(), Some(64));
    assert!(unit.stderr().contains("LISTEN_FDS"), "{}", unit.stderr());
}
