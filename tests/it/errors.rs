//! Every error of our own: OpenAI's shape, a stable code, and what may help.

use crate::support::{Ask, Lb, Proto, dying, echo, holding, lb, stalled};

const BOTH: [Proto; 2] = [Proto::H1, Proto::H2];

async fn chat_fails(lb: &Lb, status: u16, code: &str, reason: &str) {
    for proto in BOTH {
        let answer = lb.ask(&Ask::chat("hello").over(proto)).await;
        answer.assert_error(status, code);
        assert_eq!(answer.header("x-router-reason"), reason);
        let may_retry = answer.headers.contains_key("retry-after");
        assert_eq!(may_retry, status == 503, "{answer:?}");
    }
}

#[tokio::test]
async fn a_worker_that_breaks_off_is_a_502() {
    let lb = lb().worker(dying()).start().await;
    chat_fails(&lb, 502, "worker_failed", "worker-failed").await;
}

#[tokio::test]
async fn a_worker_that_is_silent_for_too_long_is_a_504() {
    let lb = lb().worker(stalled()).config("timeouts: {silence_s: 1}").start().await;
    chat_fails(&lb, 504, "worker_timeout", "worker-failed").await;
    assert_eq!(lb.request_count(), 2, "it was not sent again");
    lb.idle().await;
}

#[tokio::test]
async fn a_worker_that_cannot_be_reached_is_a_502() {
    let lb = lb().worker(echo()).config("health: {interval_ms: 600000}").start().await;
    lb.workers[0].kill().await;
    chat_fails(&lb, 502, "worker_unreachable", "worker-failed").await;
}

#[tokio::test]
async fn a_fleet_without_a_healthy_worker_is_a_503() {
    let lb = lb().worker(echo().sick()).worker(echo().sick()).start().await;
    chat_fails(&lb, 503, "no_worker", "no-worker").await;
    let answer = lb.ask(&Ask::chat("hello")).await;
    let message = answer.json()["error"]["message"].as_str().expect("text").to_owned();
    assert!(message.contains("`m`"), "it names the model: {message}");
}

#[tokio::test]
async fn a_saturated_fleet_is_a_503() {
    let lb = lb().worker(holding()).config("limits: {inflight_max: 1}").start().await;
    let held = async {
        let answer = lb.ask(&Ask::chat("first")).await;
        assert_eq!(answer.status, 200);
    };
    let others = async {
        let taken = async || lb.workers[0].at_work() == 1;
        crate::support::eventually("the worker is busy", taken).await;
        chat_fails(&lb, 503, "saturated", "shed").await;
        lb.workers[0].let_go(1);
    };
    tokio::join!(held, others);
    lb.idle().await;
}

#[tokio::test]
async fn an_unknown_model_is_a_404_that_names_the_known_ones() {
    let lb = lb()
        .worker(echo().models(&["alpha", "beta"]))
        .worker(echo().yaml("models: [gamma]"))
        .start()
        .await;
    for proto in BOTH {
        let answer = lb.ask(&Ask::chat_with("delta", "hello").over(proto)).await;
        answer.assert_error(404, "model_not_found");
        let error = &answer.json()["error"];
        assert_eq!(error["param"], "model");
        assert_eq!(error["type"], "not_found_error");
        let message = error["message"].as_str().expect("text");
        for name in ["delta", "alpha", "beta", "gamma"] {
            assert!(message.contains(name), "{message}");
        }
    }
    assert_eq!(lb.request_count(), 0);
}

#[tokio::test]
async fn an_unknown_policy_is_a_400_that_names_the_known_ones() {
    let lb = lb().worker(echo()).config("policy_override: true").start().await;
    for proto in BOTH {
        let ask = Ask::chat("hello").over(proto).header("x-router-policy", "best");
        let answer = lb.ask(&ask).await;
        answer.assert_error(400, "unknown_policy");
        let message = answer.json()["error"]["message"].as_str().expect("text").to_owned();
        assert!(message.contains("prefix-aware, round-robin"), "{message}");
    }
}

#[tokio::test]
async fn a_connection_survives_an_error_that_was_nobodys_fault() {
    let lb = lb().worker(echo().models(&["alpha"])).start().await;
    for proto in BOTH {
        let mut conn = lb.conn(proto).await;
        for _ in 0..3 {
            let answer = conn.ask(&Ask::chat_with("beta", "hello")).await;
            answer.assert_error(404, "model_not_found");
            assert_eq!(conn.ask(&Ask::chat_with("alpha", "hello")).await.status, 200);
        }
    }
}

#[tokio::test]
async fn head_requests_get_the_header_alone() {
    let lb = lb().worker(echo()).start().await;
    for path in ["/health", "/v1/models", "/v1/models/none"] {
        let ask = Ask::new(http::Method::HEAD, path, "");
        for proto in BOTH {
            let answer = lb.ask(&ask.clone().over(proto)).await;
            assert_eq!(answer.body, "", "{path} {proto:?}");
            answer.assert_stamped();
        }
    }
}
