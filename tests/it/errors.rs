//! Every error of our own: OpenAI's shape, a stable code, and what may help.

use crate::support::{
    Ask, Lb, Proto, chat_body_of, dying, echo, eventually, holding, lb, stalled, within,
};

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
        eventually("the worker is busy", taken).await;
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

/// A client that is not told otherwise sends its next request on the same connection.
#[tokio::test]
async fn after_an_error_of_ours_a_connection_goes_on_or_the_client_was_told_that_it_ends() {
    let lb = lb()
        .worker(holding().models(&["alpha"]))
        .config("{policy_override: true, limits: {inflight_max: 1, body_bytes_max: 50000}}")
        .start()
        .await;
    let busy = async { lb.ask(&Ask::chat_with("alpha", "first")).await };
    let errors = async {
        eventually("the worker is busy", async || lb.workers[0].at_work() == 1).await;
        for proto in BOTH {
            for (ask, status) in [
                (Ask::get("/v1/models/beta"), 404),
                (Ask::chat_with("beta", "hello"), 404),
                (Ask::chat_with("alpha", "hello"), 503),
                (Ask::chat("hello").header("x-router-policy", "none such"), 400),
                (Ask::post("/v1/chat/completions", chat_body_of(60_000)), 413),
            ] {
                let mut conn = lb.conn(proto).await;
                let answer = conn.ask(&ask).await;
                assert_eq!(answer.status, status, "{answer:?}");
                let told = answer.headers.get("connection").is_some_and(|value| value == "close");
                if proto == Proto::H2 || !told {
                    let next = within("the next answer", conn.send(&Ask::get("/v1/models"))).await;
                    assert!(next.is_ok(), "{proto:?} after {answer:?}: {next:?}");
                }
            }
        }
        lb.workers[0].let_go(1);
    };
    tokio::join!(busy, errors);
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
