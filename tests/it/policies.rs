//! Policies through sockets: each takes traffic, says why, and does what its name says.

use std::collections::HashSet;

use crate::support::{Ask, Lb, Proto, echo, eventually, holding, lb};

/// A chat long enough to have blocks.
fn story(nth: usize) -> Ask {
    Ask::chat(&format!("{nth} {}", "once upon a time ".repeat(40)))
}

async fn four(config: &str) -> Lb {
    lb().worker(echo()).worker(echo()).worker(echo()).worker(echo()).config(config).start().await
}

#[tokio::test]
async fn every_policy_takes_traffic_and_says_why() {
    let lb = four("policy_override: true").await;
    for (policy, reasons) in [
        ("prefix-aware", &["no-match", "prefix", "spill"][..]),
        ("round-robin", &["round-robin"]),
        ("random", &["random"]),
        ("least-loaded", &["least-loaded"]),
        ("power-of-two", &["power-of-two"]),
        ("session-affinity", &["session"]),
        ("prefix-affinity", &["prefix-hash", "prefix-hash-spill", "least-loaded"]),
        ("sticky-least-loaded", &["sticky", "least-loaded"]),
        ("weighted", &["weighted"]),
    ] {
        for proto in [Proto::H1, Proto::H2] {
            for nth in 0..3 {
                let ask = story(nth).header("x-router-policy", policy).header("x-session-id", "s");
                let answer = lb.ask(&ask.over(proto)).await;
                assert_eq!(answer.status, 200, "{policy}");
                let reason = answer.header("x-router-reason");
                assert!(reasons.contains(&reason), "{policy}: {reason}");
            }
        }
    }
    lb.idle().await;
}

#[tokio::test]
async fn a_policy_can_be_configured() {
    for (policy, reason) in [("random", "random"), ("weighted", "weighted")] {
        let lb = lb().worker(echo()).config(&format!("policy: {policy}")).start().await;
        assert_eq!(lb.ask(&story(1)).await.header("x-router-reason"), reason);
    }
}

#[tokio::test]
async fn a_client_chooses_no_policy_unless_it_may() {
    let lb = four("policy: round-robin").await;
    for policy in ["random", "none such"] {
        let answer = lb.ask(&story(1).header("x-router-policy", policy)).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("x-router-reason"), "round-robin");
    }
}

#[tokio::test]
async fn round_robin_spreads_evenly() {
    let lb = four("policy: round-robin").await;
    for _ in 0..40 {
        assert_eq!(lb.ask(&story(1)).await.status, 200);
    }
    for worker in &lb.workers {
        assert_eq!(worker.request_count(), 10);
    }
}

#[tokio::test]
async fn round_robin_heeds_weights() {
    let lb = lb()
        .worker(echo().yaml("weight: 3"))
        .worker(echo())
        .config("policy: round-robin")
        .start()
        .await;
    for _ in 0..40 {
        assert_eq!(lb.ask(&story(1)).await.status, 200);
    }
    let counts = [lb.workers[0].request_count(), lb.workers[1].request_count()];
    assert!((29..=31).contains(&counts[0]), "three in four: {counts:?}");
}

#[tokio::test]
async fn a_session_stays_with_its_worker() {
    let lb = four("policy: session-affinity").await;
    let mut used = HashSet::new();
    for session in 0..12 {
        let mut of_session = HashSet::new();
        for nth in 0..4 {
            let ask = story(nth).header("x-session-id", &format!("session {session}"));
            let answer = lb.ask(&ask).await;
            assert_eq!(answer.header("x-router-reason"), "session");
            of_session.insert(answer.echo().worker);
        }
        assert_eq!(of_session.len(), 1, "session {session}");
        used.extend(of_session);
    }
    assert!(used.len() > 1, "sessions are spread");
    let without = lb.ask(&story(0)).await;
    assert_eq!(without.header("x-router-reason"), "least-loaded");
}

#[tokio::test]
async fn the_session_header_can_be_named() {
    let lb = four("{policy: session-affinity, session_header: x-chat}").await;
    let answer = lb.ask(&story(0).header("x-chat", "1")).await;
    assert_eq!(answer.header("x-router-reason"), "session");
}

#[tokio::test]
async fn tenants_do_not_share_prefixes() {
    let lb = lb().worker(echo()).config("tenant_header: x-tenant").start().await;
    let matched = async |tenant| {
        let answer = lb.ask(&story(1).header("x-tenant", tenant)).await;
        let (matched, _) = answer.header("x-router-matched").split_once('/').expect("n/m");
        matched.parse::<usize>().expect("a number")
    };
    assert_eq!(matched("a").await, 0);
    assert!(matched("a").await > 0);
    assert_eq!(matched("b").await, 0);
}

#[tokio::test]
async fn a_full_worker_is_passed_over_and_a_full_fleet_sheds() {
    let lb =
        lb().worker(holding()).worker(holding()).config("limits: {inflight_max: 1}").start().await;
    let ask = story(1);
    let first = async { lb.ask(&ask).await };
    let others = async {
        let busy = async |count: usize| {
            eventually("the workers are busy", async || {
                lb.workers[0].at_work() + lb.workers[1].at_work() == count
            })
            .await;
        };
        busy(1).await;
        let holder = usize::from(lb.workers[1].at_work() == 1);
        let second = async { lb.ask(&ask).await };
        let third = async {
            busy(2).await;
            for proto in [Proto::H1, Proto::H2] {
                let shed = lb.ask(&ask.clone().over(proto)).await;
                shed.assert_error(503, "saturated");
                assert_eq!(shed.header("retry-after"), "1");
                assert_eq!(shed.header("x-router-reason"), "shed");
            }
            lb.workers[0].let_go(1);
            lb.workers[1].let_go(1);
        };
        let (second, ()) = tokio::join!(second, third);
        assert_eq!(second.header("x-router-reason"), "spill");
        assert_eq!(second.echo().worker, format!("w{}", 1 - holder));
    };
    let (first, ()) = tokio::join!(first, others);
    assert_eq!(first.header("x-router-reason"), "no-match");
    lb.idle().await;
    lb.workers[0].let_go(10);
    lb.workers[1].let_go(10);
    assert_eq!(lb.ask(&ask).await.header("x-router-reason"), "prefix");
}

#[tokio::test]
async fn a_full_worker_of_a_session_hands_it_to_the_next() {
    let lb = lb()
        .worker(holding())
        .worker(holding())
        .config("{policy: session-affinity, limits: {inflight_max: 1}}")
        .start()
        .await;
    let ask = story(1).header("x-session-id", "s");
    let first = async { lb.ask(&ask).await };
    let second = async {
        let at_work = || lb.workers[0].at_work() + lb.workers[1].at_work();
        eventually("the first is at work", async || at_work() == 1).await;
        let go = async {
            eventually("both are at work", async || at_work() == 2).await;
            lb.workers[0].let_go(1);
            lb.workers[1].let_go(1);
        };
        tokio::join!(lb.ask(&ask), go).0
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!(first.header("x-router-reason"), "session");
    assert_eq!(second.header("x-router-reason"), "session-spill");
    assert_ne!(first.echo().worker, second.echo().worker);
}
