//! SIGTERM: what runs is finished, nothing new begins, and then it ends well.

use std::time::Duration;

use tokio::net::TcpStream;

use crate::support::{Act, Ask, Lb, Proto, echo, eventually, lb, streaming_gated};

const BOTH: [Proto; 2] = [Proto::H1, Proto::H2];

async fn ends_well(lb: &mut Lb) {
    let mut status = None;
    eventually("the process ends", async || {
        status = lb.exit_status();
        status.is_some()
    })
    .await;
    assert!(status.is_some_and(|status| status.success()), "{status:?}");
}

#[tokio::test]
async fn an_open_stream_finishes_and_new_connections_are_turned_away() {
    for proto in BOTH {
        let mut lb = lb().worker(streaming_gated(10)).start().await;
        lb.workers[0].let_go(1);
        let mut open = lb.open(&Ask::stream("hello").over(proto)).await;
        assert!(open.event().await.expect("a stream").is_some());
        lb.signal("TERM");
        eventually("it says that it drains", async || {
            lb.admin("/readyz").await.json()["status"] == "draining"
        })
        .await;
        eventually("new connections are refused", async || {
            TcpStream::connect(lb.addr()).await.is_err()
        })
        .await;
        lb.workers[0].let_go(100);
        let (events, end) = open.rest().await;
        assert_eq!((events.len(), end), (10, Ok(())), "{proto:?}: nine tokens and the end mark");
        ends_well(&mut lb).await;
    }
}

#[tokio::test]
async fn while_it_still_accepts_clients_are_told_to_close() {
    let mut lb = lb().worker(echo()).start().await;
    let mut kept = lb.conn(Proto::H1).await;
    assert_eq!(kept.ask(&Ask::chat("hello")).await.status, 200);
    lb.signal("TERM");
    eventually("it says that it drains", async || {
        lb.admin("/readyz").await.json()["status"] == "draining"
    })
    .await;
    let answer = kept.ask(&Ask::chat("on a kept connection")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("connection"), "close");
    assert!(!kept.is_open().await);
    let answer = lb.ask(&Ask::chat("on a new connection")).await;
    assert_eq!((answer.status, answer.header("connection")), (200, "close"));
    let health = lb.ask(&Ask::get("/health")).await;
    assert_eq!((health.status, health.json()["status"].as_str()), (503, Some("draining")));
    ends_well(&mut lb).await;
}

#[tokio::test]
async fn an_idle_process_ends_soon() {
    let mut lb = lb().worker(echo()).start().await;
    let _idle = lb.conn(Proto::H1).await;
    lb.signal("TERM");
    ends_well(&mut lb).await;
    assert!(lb.stderr().contains("drained"), "{}", lb.stderr());
}

#[tokio::test]
async fn what_does_not_finish_in_time_is_given_up() {
    let mut lb = lb().worker(streaming_gated(10)).config("timeouts: {drain_s: 2}").start().await;
    lb.workers[0].let_go(1);
    let mut open = lb.open(&Ask::stream("hello")).await;
    assert!(open.event().await.is_ok());
    lb.signal("TERM");
    ends_well(&mut lb).await;
    assert!(open.rest().await.1.is_err(), "the stream has no clean end");
}

#[tokio::test]
async fn no_request_is_lost_by_clients_that_come_while_it_drains() {
    let mut lb = lb().worker(echo()).start().await;
    let client = async |nth: usize| {
        let mut answered = 0_usize;
        let mut conn = lb.conn(BOTH[nth % 2]).await;
        for turn in 0.. {
            let ask = Ask::chat(&format!("{nth} {turn}"));
            if !conn.is_open().await {
                let Ok(next) = crate::support::Conn::open(lb.addr(), Proto::H1).await else {
                    break;
                };
                conn = next;
            }
            match conn.send(&ask).await {
                Ok(response) => {
                    assert_eq!(response.status(), 200);
                    drop(http_body_util::BodyExt::collect(response.into_body()).await);
                    answered += 1;
                }
                // Closed while idle, or never accepted: a client may send it again elsewhere.
                Err(error) if error.is_canceled() || error.is_closed() => break,
                Err(error) if TcpStream::connect(lb.addr()).await.is_err() => {
                    eprintln!("at the very end: {error:?}");
                    break;
                }
                Err(error) => panic!("lost: {error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        answered
    };
    let clients = futures_util::future::join_all((0..8).map(client));
    let signal = async {
        eventually("they are at it", async || lb.request_count() > 20).await;
        lb.signal("TERM");
    };
    let (answered, ()) = tokio::join!(clients, signal);
    assert!(answered.iter().sum::<usize>() > 20);
    ends_well(&mut lb).await;
}

#[tokio::test]
async fn sigint_stops_at_once() {
    let mut lb = lb().worker(echo().act(Act::Stall)).start().await;
    let mut conn = lb.conn(Proto::H1).await;
    let pending = tokio::spawn(async move { conn.send(&Ask::chat("hello")).await.is_err() });
    eventually("a request is at work", async || lb.workers[0].at_work() == 1).await;
    lb.signal("INT");
    eventually("the process ends", async || lb.exit_status().is_some()).await;
    assert!(pending.await.expect("ends"), "its connection was closed");
}
