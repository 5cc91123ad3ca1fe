//! The passive breaker: a worker that fails is ejected for a while, and tried with one request.

use std::time::Duration;

use crate::support::{Act, Ask, Lb, answering, echo, eventually, lb};

const QUICK: &str = "
policy: round-robin
breaker: {failures_in_row_max: 3, cool_down_first_ms: 300, cool_down_max_ms: 300}
";

/// An ejection outlasts the test.
const LONG: &str = "
policy: round-robin
breaker: {failures_in_row_max: 3, cool_down_first_ms: 60000, cool_down_max_ms: 60000}
";

async fn ask_until_ejected(lb: &Lb) {
    eventually("the failing worker is ejected", async || {
        let _ = lb.ask(&Ask::chat("hello")).await;
        lb.status(0).await["breaker"] != "closed"
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_answers_500_is_ejected_after_the_allowed_failures_in_a_row() {
    let lb = lb().worker(answering(500)).worker(echo()).config(LONG).start().await;
    ask_until_ejected(&lb).await;
    assert_eq!(lb.workers[0].request_count(), 3);
    for _ in 0..10 {
        assert_eq!(lb.ask(&Ask::chat("hello")).await.echo().worker, "w1");
    }
    assert_eq!(lb.workers[0].request_count(), 3, "no further request");
    assert_eq!(lb.status(0).await["takes_traffic"], false);
    let metrics = lb.metrics().await;
    let labels = [("worker", "w0"), ("to", "open")];
    assert_eq!(metrics.sum("warmroute_breaker_transitions_total", &labels), 1);
}

#[tokio::test]
async fn a_worker_that_breaks_off_before_its_answer_is_ejected() {
    for act in [Act::Die, Act::CutStream { events: 0 }] {
        let lb = lb().worker(echo().act(act.clone())).worker(echo()).config(LONG).start().await;
        ask_until_ejected(&lb).await;
        assert_eq!(lb.workers[0].request_count(), 3, "{act:?}");
    }
}

/// It begins well every time, so a success and a failure take turns.
#[tokio::test]
async fn a_worker_that_breaks_off_every_answer_it_has_begun_is_ejected() {
    for act in [Act::CutStream { events: 3 }, Act::CutPlain] {
        let lb = lb().worker(echo().act(act.clone())).worker(echo()).config(LONG).start().await;
        for _ in 0..60 {
            let _ = lb.ask(&Ask::chat("hello")).await;
        }
        assert_eq!(lb.status(0).await["breaker"], "open", "{act:?}: 30 answers of 30 broke off");
        assert!(lb.workers[0].request_count() < 30, "{act:?}");
    }
}

#[tokio::test]
async fn after_its_cool_down_one_probe_decides() {
    let lb = lb().worker(answering(500)).worker(echo()).config(QUICK).start().await;
    ask_until_ejected(&lb).await;
    let [before, others] = [0, 1].map(|at| lb.workers[at].request_count());
    lb.workers[0].set_act(Act::Hold);
    lb.breaker_is(0, "half-open").await;
    let asks = (0..20).map(|nth| {
        let ask = Ask::chat(&format!("hello {nth}"));
        let lb = &lb;
        async move { lb.ask(&ask).await.echo().worker }
    });
    let release = async {
        eventually("the probe is out and the others are answered", async || {
            // Let go sooner, the worker would be well again for those not sent yet.
            lb.workers[1].request_count() >= others + 19 && lb.workers[0].at_work() > 0
        })
        .await;
        assert_eq!(lb.workers[0].at_work(), 1, "one probe, not more");
        lb.workers[0].let_go(1000);
    };
    let (workers, ()) = tokio::join!(futures_util::future::join_all(asks), release);
    assert_eq!(workers.iter().filter(|worker| *worker == "w0").count(), 1);
    assert_eq!(lb.workers[0].request_count(), before + 1);
    lb.breaker_is(0, "closed").await;
    lb.workers[0].set_act(Act::Echo);
    eventually("it gets its share again", async || {
        lb.ask(&Ask::chat("hello")).await.echo().worker == "w0"
    })
    .await;
}

#[tokio::test]
async fn a_probe_that_fails_ejects_again() {
    let lb = lb().worker(answering(500)).worker(echo()).config(QUICK).start().await;
    ask_until_ejected(&lb).await;
    lb.breaker_is(0, "half-open").await;
    let before = lb.workers[0].request_count();
    eventually("the probe went out", async || {
        let _ = lb.ask(&Ask::chat("hello")).await;
        lb.workers[0].request_count() > before
    })
    .await;
    assert_eq!(lb.workers[0].request_count(), before + 1);
    assert_eq!(lb.status(0).await["breaker"], "open");
}

#[tokio::test]
async fn a_probe_whose_client_leaves_makes_room_for_the_next() {
    let lb = lb().worker(answering(500)).worker(echo()).config(QUICK).start().await;
    ask_until_ejected(&lb).await;
    lb.workers[0].set_act(Act::Stall);
    lb.breaker_is(0, "half-open").await;
    let ask = Ask::chat("hello");
    eventually("the probe is out and its client loses patience", async || {
        tokio::time::timeout(Duration::from_millis(200), lb.ask(&ask)).await.is_err()
    })
    .await;
    lb.workers[0].set_act(Act::Echo);
    eventually("the next probe readmits it", async || {
        lb.ask(&Ask::chat("hello")).await.echo().worker == "w0"
    })
    .await;
    lb.breaker_is(0, "closed").await;
}

#[tokio::test]
async fn answers_that_are_the_clients_or_the_loads_fault_do_not_eject() {
    let busy = Act::answer(503).header("retry-after", "1");
    for act in [Act::answer(400), Act::answer(404), Act::answer(429), busy] {
        let lb = lb().worker(echo().act(act.clone())).worker(echo()).config(QUICK).start().await;
        let mut refused = 0;
        for _ in 0..20 {
            let answer = lb.ask(&Ask::chat("hello")).await;
            if answer.status != 200 {
                refused += 1;
                assert_eq!(answer.json()["error"]["message"], "the worker's own");
            }
        }
        assert_eq!(refused, 10, "{act:?}: passed on as they are, half of all");
        assert_eq!(lb.status(0).await["breaker"], "closed", "{act:?}");
    }
}

#[tokio::test]
async fn a_503_without_retry_after_counts_as_a_failure() {
    let lb = lb().worker(answering(503)).worker(echo()).config(QUICK).start().await;
    ask_until_ejected(&lb).await;
}

#[tokio::test]
async fn the_last_worker_is_never_ejected() {
    let lb = lb().worker(answering(500)).config(QUICK).start().await;
    for nth in 1..=10 {
        let answer = lb.ask(&Ask::chat("hello")).await;
        assert_eq!(answer.status, 500);
        assert_eq!(answer.json()["error"]["message"], "the worker's own");
        assert_eq!(lb.workers[0].request_count(), nth);
    }
    assert_eq!(lb.status(0).await["breaker"], "closed");
}

#[tokio::test]
async fn of_a_fleet_that_fails_as_a_whole_one_worker_stays_in() {
    let lb = lb().worker(answering(500)).worker(answering(500)).config(LONG).start().await;
    for _ in 0..20 {
        assert_eq!(lb.ask(&Ask::chat("hello")).await.status, 500, "never a 503 of our own");
    }
    let states = [lb.status(0).await, lb.status(1).await];
    let open = states.iter().filter(|worker| worker["breaker"] == "open").count();
    assert_eq!(open, 1, "{states:?}");
}
