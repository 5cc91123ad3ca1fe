//! Regret: what decisions left unused of caches that are known, in tokens.

use serde_json::json;

use crate::support::{
    Act, Ask, Lb, Reporter, dying, echo, eventually, holding, ids_prompt, lb, stored_ids,
    streaming_gated, tokens,
};

/// Nobody is ejected and no check runs again: dead workers stay candidates.
const BLIND: &str = "
health: {interval_ms: 600000}
breaker: {failures_in_row_max: 1000, success_share_min: 0}
";

/// Prompt, chosen, best.
async fn regret(lb: &Lb, basis: &str) -> [i64; 3] {
    let metrics = lb.metrics().await;
    ["prompt", "chosen", "best"].map(|side| {
        metrics.sum(&format!("warmroute_regret_{side}_tokens_total"), &[("basis", basis)])
    })
}

/// Count and tokens of the spills of this cause.
async fn spills(lb: &Lb, cause: &str) -> [i64; 2] {
    let metrics = lb.metrics().await;
    ["warmroute_spills_total", "warmroute_spill_recomputed_tokens_total"]
        .map(|name| metrics.sum(name, &[("cause", cause)]))
}

async fn believed_is(lb: &Lb, wanted: [i64; 3]) {
    let mut seen = [0; 3];
    eventually(&format!("prompt, chosen and best are {wanted:?}"), async || {
        seen = regret(lb, "believed").await;
        assert!(seen[0] <= wanted[0], "counted twice: {seen:?}, not {wanted:?}");
        seen[0] == wanted[0]
    })
    .await;
    assert_eq!(seen, wanted);
}

/// An answer to a prompt of so many tokens, of which so many were cached.
fn said(prompt: usize, cached: usize) -> Act {
    Act::json(&json!({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": cached}}}))
}

/// Two workers, of which the first holds 96 and the second 32 tokens of prompts that begin with
/// `tokens(1, ..)`. Requests go to them in turn.
async fn known_caches(config: &str) -> Lb {
    let lb = lb()
        .worker(echo().yaml("models: [m]"))
        .worker(echo().yaml("models: [m]"))
        .config("reports: {}\npolicy: round-robin")
        .config(config)
        .start()
        .await;
    for (worker, held) in [("w0", 96), ("w1", 32)] {
        let held = tokens(1, held);
        Reporter::new(&lb, worker).send_well(&[stored_ids(&[1], None, &held, held.len())]).await;
    }
    lb
}

#[tokio::test]
async fn tokens_seen_chosen_and_best_add_up_where_caches_are_known() {
    let lb = known_caches("").await;
    let prompt = ids_prompt("m", &tokens(1, 128));
    lb.workers[0].set_act(said(128, 96));
    lb.workers[1].set_act(said(128, 16));
    assert_eq!(lb.ask(&prompt).await.header("x-router-backend"), "w0");
    believed_is(&lb, [128, 96, 96]).await;
    assert_eq!(regret(&lb, "answered").await, [128, 96, 96]);
    assert_eq!(spills(&lb, "policy").await, [0, 0]);
    // The first holds all of it by now, as far as we presume; the second as much as it said.
    let longer = ids_prompt("m", &tokens(1, 160));
    lb.workers[1].set_act(said(200, 20));
    assert_eq!(lb.ask(&longer).await.header("x-router-backend"), "w1");
    believed_is(&lb, [288, 128, 224]).await;
    // 128 of 160 tokens are 160 of 200; the chosen one held 20, whatever was believed.
    assert_eq!(regret(&lb, "answered").await, [328, 116, 256]);
    assert_eq!(spills(&lb, "policy").await, [1, 96]);
    assert_eq!(spills(&lb, "saturated").await, [0, 0]);
}

#[tokio::test]
async fn what_carries_no_prompt_and_what_says_nothing_of_it_has_no_tokens() {
    let lb = known_caches("").await;
    for ask in [
        Ask::get("/v1/files"),
        Ask::post("/v1/chat/completions", "no JSON"),
        Ask::post("/v1/embeddings", json!({"model": "m", "input": "hello"}).to_string()),
        Ask::get("/health"),
    ] {
        assert_eq!(lb.ask(&ask).await.status, 200);
    }
    // By now all of these are counted, had they anything to count.
    assert_eq!(lb.ask(&ids_prompt("m", &tokens(2, 48))).await.status, 200);
    believed_is(&lb, [48, 0, 0]).await;
    assert_eq!(regret(&lb, "answered").await, [0, 0, 0], "an echo says nothing of its cache");
}

#[tokio::test]
async fn a_drained_worker_is_not_eligible_and_no_regret() {
    let lb = known_caches("").await;
    assert_eq!(lb.admin_post("/workers/w0/drain").await.status, 200);
    let prompt = ids_prompt("m", &tokens(1, 128));
    assert_eq!(lb.ask(&prompt).await.header("x-router-backend"), "w1");
    believed_is(&lb, [128, 32, 32]).await;
    assert_eq!(spills(&lb, "policy").await, [0, 0]);
}

#[tokio::test]
async fn a_spill_off_a_saturated_worker_counts_what_is_prefilled_again() {
    let lb = lb()
        .worker(holding().yaml("models: [m]"))
        .worker(holding().yaml("models: [m]"))
        .config("limits: {inflight_max: 1}")
        .start()
        .await;
    let prompt = ids_prompt("m", &tokens(1, 160));
    let at_work = || lb.workers[0].at_work() + lb.workers[1].at_work();
    let first = async { lb.ask(&prompt).await };
    let second = async {
        eventually("the first is at work", async || at_work() == 1).await;
        let go = async {
            eventually("both are at work", async || at_work() == 2).await;
            lb.workers[0].let_go(1);
            lb.workers[1].let_go(1);
        };
        tokio::join!(lb.ask(&prompt), go).0
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!(first.header("x-router-reason"), "no-match");
    assert_eq!(second.header("x-router-reason"), "spill");
    believed_is(&lb, [320, 0, 160]).await;
    assert_eq!(spills(&lb, "saturated").await, [1, 160]);
    assert_eq!(spills(&lb, "policy").await, [0, 0]);
}

#[tokio::test]
async fn a_request_that_is_tried_again_counts_once_and_one_that_reaches_nobody_not_at_all() {
    let lb = lb()
        .worker(echo().yaml("{models: [m], weight: 1000}"))
        .worker(echo().yaml("{models: [m], weight: 0.001}"))
        .config(BLIND)
        .config("policy: random")
        .start()
        .await;
    let prompt = ids_prompt("m", &tokens(1, 160));
    // Both hold it; the first goes, and so is not eligible when the second is picked.
    assert_eq!(lb.ask(&prompt).await.status, 200);
    believed_is(&lb, [160, 0, 0]).await;
    lb.workers[0].kill().await;
    assert_eq!(lb.ask(&prompt).await.header("x-router-reason"), "retry");
    believed_is(&lb, [320, 0, 0]).await;
    assert_eq!(lb.ask(&prompt).await.header("x-router-reason"), "retry");
    believed_is(&lb, [480, 160, 160]).await;
    lb.workers[1].kill().await;
    lb.ask(&prompt).await.assert_error(502, "worker_unreachable");
    let last = lb.metrics().await;
    assert!(last.sum("warmroute_retries_total", &[("cause", "connect")]) >= 3);
    assert_eq!(regret(&lb, "believed").await, [480, 160, 160]);
}

#[tokio::test]
async fn a_request_whose_connection_was_stale_counts_once() {
    let lb = lb().worker(echo().act(Act::DieOnReuse).yaml("models: [m]")).start().await;
    let prompt = ids_prompt("m", &tokens(1, 160));
    let mut asked = 0;
    loop {
        asked += 1;
        assert!(asked < 50, "no connection is ever reused");
        let answer = lb.ask(&prompt).await;
        assert_eq!(answer.status, 200);
        if answer.header("x-router-reason") == "retry" {
            break;
        }
    }
    let (all, first) = (160 * asked, 160);
    believed_is(&lb, [all, all - first, all - first]).await;
}

#[tokio::test]
async fn a_request_counts_when_its_answer_begins() {
    let lb = lb().worker(streaming_gated(3)).start().await;
    let mut open = lb.open(&ids_prompt("m", &tokens(1, 160))).await;
    believed_is(&lb, [160, 0, 0]).await;
    lb.workers[0].let_go(3);
    let _ = open.rest().await;
    lb.idle().await;
    assert_eq!(regret(&lb, "believed").await, [160, 0, 0]);
}

#[tokio::test]
async fn a_request_that_ends_badly_at_its_worker_counts_too() {
    let lb = lb()
        .worker(dying().yaml("models: [dies]"))
        .worker(holding().yaml("models: [holds]"))
        .config(BLIND)
        .start()
        .await;
    let prompt = ids_prompt("dies", &tokens(1, 160));
    lb.ask(&prompt).await.assert_error(502, "worker_failed");
    believed_is(&lb, [160, 0, 0]).await;
    // A client that leaves before there is an answer.
    let ask = ids_prompt("holds", &tokens(1, 160));
    let leaves = async {
        let mut conn = lb.conn(ask.proto).await;
        let came = async {
            eventually("it is at work", async || lb.workers[1].at_work() == 1).await;
        };
        tokio::select! {
            _ = conn.send(&ask) => panic!("answered"),
            () = came => {}
        }
    };
    leaves.await;
    believed_is(&lb, [320, 0, 0]).await;
    lb.workers[1].let_go(1);
    lb.idle().await;
    assert_eq!(regret(&lb, "believed").await, [320, 0, 0]);
}
