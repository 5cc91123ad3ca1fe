//! Active health checks decide who gets traffic.

use crate::support::{Ask, Proto, echo, eventually, holding, lb, within};

#[tokio::test]
async fn a_worker_that_fails_its_checks_gets_no_traffic_until_it_passes_again() {
    let lb = lb().worker(echo()).worker(echo()).config("policy: round-robin").start().await;
    lb.workers[0].set_healthy(false);
    lb.health_is(0, "unhealthy").await;
    let before = lb.workers[0].request_count();
    for _ in 0..10 {
        assert_eq!(lb.ask(&Ask::chat("hello")).await.echo().worker, "w1");
    }
    assert_eq!(lb.workers[0].request_count(), before);
    let healthy =
        async |worker| lb.metrics().await.sum("warmroute_worker_healthy", &[("worker", worker)]);
    assert_eq!((healthy("w0").await, healthy("w1").await), (0, 1));
    lb.workers[0].set_healthy(true);
    eventually("it gets traffic again", async || {
        lb.ask(&Ask::chat("hello")).await.echo().worker == "w0"
    })
    .await;
}

#[tokio::test]
async fn one_failed_check_of_a_worker_that_was_well_does_not_count() {
    let lb = lb().worker(echo()).config("health: {unhealthy_after: 1000000}").start().await;
    lb.workers[0].set_healthy(false);
    let checks = lb.workers[0].health_checks();
    let more = async || lb.workers[0].health_checks() >= checks + 3;
    eventually("it is checked again", more).await;
    assert_eq!(lb.ask(&Ask::chat("hello")).await.status, 200);
}

#[tokio::test]
async fn a_worker_is_asked_at_its_own_path() {
    let lb = lb().worker(echo().yaml("health_path: /health/deep")).start().await;
    lb.health_is(0, "healthy").await;
    assert!(lb.workers[0].health_checks() > 0);
}

#[tokio::test]
async fn a_worker_that_only_listens_can_be_checked_by_tcp() {
    let lb = lb().worker(echo().sick()).config("health: {kind: tcp}").start().await;
    lb.health_is(0, "healthy").await;
    assert_eq!(lb.ask(&Ask::chat("hello")).await.status, 200);
    lb.workers[0].kill().await;
    lb.health_is(0, "unhealthy").await;
}

#[tokio::test]
async fn requests_wait_for_the_first_verdict() {
    for proto in [Proto::H1, Proto::H2] {
        let lb = lb()
            .worker(echo().with_late_health())
            .config("health: {timeout_ms: 20000}")
            .at_once()
            .start()
            .await;
        assert_eq!(lb.admin("/readyz").await.status, 503);
        let asks = (0..5).map(|nth| {
            let ask = Ask::chat(&format!("hello {nth}")).over(proto);
            let lb = &lb;
            async move { lb.ask(&ask).await.status }
        });
        let all = futures_util::future::join_all(asks);
        let verdict = async {
            let held = async || lb.metrics().await.sum("warmroute_buffered_bytes", &[]) > 0;
            eventually("a request waits", held).await;
            assert_eq!(lb.request_count(), 0, "nobody gets traffic unchecked");
            lb.workers[0].let_health_go();
        };
        let (statuses, ()) = tokio::join!(all, verdict);
        assert_eq!(statuses, [200; 5]);
    }
}

#[tokio::test]
async fn a_worker_that_is_down_at_the_start_joins_when_it_comes_up() {
    let lb = lb().worker(echo().sick()).worker(echo()).start().await;
    lb.workers[0].kill().await;
    assert_eq!(lb.ask(&Ask::chat("hello")).await.echo().worker, "w1");
    lb.workers[0].set_healthy(true);
    lb.workers[0].revive().await;
    lb.health_is(0, "healthy").await;
}

/// 200 requests are in flight on two workers and one is killed: those on it may fail, no other.
#[tokio::test]
async fn a_killed_worker_takes_only_its_own_requests_with_it() {
    let lb = lb().worker(holding()).worker(holding()).config("policy: least-loaded").start().await;
    let asks = (0..200).map(|nth| {
        let proto = if nth % 2 == 0 { Proto::H1 } else { Proto::H2 };
        let ask = Ask::chat(&format!("hello {nth}")).over(proto);
        let lb = &lb;
        async move { lb.ask(&ask).await }
    });
    let kill = async {
        let at_work = async || lb.workers[0].at_work() + lb.workers[1].at_work() == 200;
        eventually("all are at work", at_work).await;
        let lost = lb.workers[0].at_work();
        lb.workers[0].kill().await;
        lb.workers[1].let_go(1000);
        // And those that come now find the other, whatever the checks have noticed yet.
        for nth in 0..50 {
            let answer = within("an answer", lb.ask(&Ask::chat(&format!("later {nth}")))).await;
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        lost
    };
    let (answers, lost) = tokio::join!(futures_util::future::join_all(asks), kill);
    let failed: Vec<_> = answers.iter().filter(|answer| answer.status != 200).collect();
    assert!(lost > 50, "the load was spread: {lost}");
    assert_eq!(failed.len(), lost, "only those in flight on the killed worker");
    for answer in failed {
        answer.assert_error(502, "worker_failed");
        assert_eq!(answer.header("x-router-backend"), "w0");
    }
    assert_eq!(lb.request_count(), 250, "none was generated twice");
    lb.idle().await;
}
