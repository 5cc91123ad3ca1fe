//! The router's own headers: on every answer, and nobody else's.

use crate::support::{
    Act, Ask, How, Proto, answering, chat_body_of, deliver, dying, echo, lb, streaming,
};

const BOTH: [Proto; 2] = [Proto::H1, Proto::H2];

#[tokio::test]
async fn every_answer_carries_them() {
    let lb = lb()
        .worker(echo().models(&["m"]))
        .config("policy_override: true")
        .config("limits: {body_bytes_max: 50000}")
        .start()
        .await;
    let large = Ask::post("/v1/chat/completions", chat_body_of(60_000)).in_pieces(5_000);
    for proto in BOTH {
        for (ask, status, reason) in [
            (Ask::chat("hello"), 200, None),
            (Ask::get("/v1/files"), 200, Some("no-prompt")),
            (Ask::post("/v1/chat/completions", "no JSON"), 200, Some("unreadable")),
            (Ask::get("/health"), 200, Some("local")),
            (Ask::get("/v1/models"), 200, Some("local")),
            (Ask::get("/v1/models/m"), 200, Some("local")),
            (Ask::get("/v1/models/other"), 404, Some("no-model")),
            (Ask::chat_with("other", "hello"), 404, Some("no-model")),
            (Ask::chat("hello").header("x-router-policy", "none such"), 400, Some("rejected")),
            (large.clone(), 413, Some("rejected")),
        ] {
            let answer = lb.ask(&ask.clone().over(proto)).await;
            assert_eq!(answer.status, status, "{ask:?}: {answer:?}");
            answer.assert_stamped();
            if let Some(reason) = reason {
                assert_eq!(answer.header("x-router-reason"), reason, "{ask:?}");
            }
            let ours = matches!(reason, Some("local" | "no-model" | "rejected"));
            let backend = if ours { "none" } else { "w0" };
            assert_eq!(answer.header("x-router-backend"), backend, "{ask:?}");
        }
        for status in [201, 204, 400, 404, 405, 422, 429, 500, 503] {
            lb.workers[0].set_act(Act::answer(status));
            let answer = lb.ask(&Ask::chat("hello").over(proto)).await;
            assert_eq!(answer.status, status);
            answer.assert_stamped();
            assert_eq!(answer.header("x-router-backend"), "w0", "a worker's own {status}");
        }
        lb.workers[0].set_act(Act::Die);
        let answer = lb.ask(&Ask::chat("hello").over(proto)).await;
        answer.assert_error(502, "worker_failed");
        lb.workers[0].set_act(Act::Stream { events: 2, gated: false });
        lb.open(&Ask::stream("hello").over(proto)).await.assert_stamped();
        lb.workers[0].set_act(Act::Echo);
    }
    lb.workers[0].set_healthy(false);
    lb.health_is(0, "unhealthy").await;
    for proto in BOTH {
        lb.ask(&Ask::chat("hello").over(proto)).await.assert_error(503, "no_worker");
        let health = lb.ask(&Ask::get("/health").over(proto)).await;
        assert_eq!(health.status, 503);
        health.assert_stamped();
    }
}

#[tokio::test]
async fn those_a_client_or_a_worker_makes_up_are_dropped() {
    let act = Act::answer(200)
        .header("x-router-backend", "evil")
        .header("x-router-reason", "evil")
        .header("x-router-matched", "9/9")
        .header("x-router-policy", "evil")
        .header("x-request-id", "evil")
        .header("x-worker-own", "kept");
    let lb = lb().worker(echo()).start().await;
    for proto in BOTH {
        let ask = Ask::chat("hello")
            .over(proto)
            .header("x-router-backend", "evil")
            .header("x-router-reason", "evil")
            .header("x-router-matched", "9/9")
            .header("x-router-policy", "round-robin")
            .header("x-request-id", "evil")
            .header("x-client-own", "kept");
        lb.workers[0].set_act(Act::Echo);
        let answer = lb.ask(&ask).await;
        let echo = answer.echo();
        for name in ["x-router-backend", "x-router-reason", "x-router-matched", "x-router-policy"] {
            assert_eq!(echo.header(name), [] as [&str; 0], "{name} at the worker");
        }
        assert_eq!(echo.header("x-client-own"), ["kept"]);
        assert_eq!(echo.header("x-request-id"), [answer.header("x-request-id")]);
        assert_ne!(answer.header("x-request-id"), "evil");

        lb.workers[0].set_act(act.clone());
        let answer = lb.ask(&ask).await;
        answer.assert_stamped();
        assert_eq!(answer.header("x-router-backend"), "w0");
        assert_eq!(answer.header("x-worker-own"), "kept");
        assert!(!answer.headers.contains_key("x-router-policy"), "{answer:?}");
        assert!(answer.headers.values().all(|value| value != "evil"), "{answer:?}");
    }
}

#[tokio::test]
async fn request_ids_are_long_and_never_twice_the_same() {
    let lb = lb().worker(echo()).start().await;
    let mut seen = std::collections::HashSet::new();
    let mut conn = lb.conn(Proto::H1).await;
    for nth in 0..20 {
        let answer = conn.ask(&Ask::chat(&format!("hello {nth}"))).await;
        let id = answer.header("x-request-id").to_owned();
        assert!(id.len() >= 32, "{id}");
        assert!(seen.insert(id));
    }
}

#[tokio::test]
async fn a_trusted_client_names_its_request() {
    let lb = lb().worker(echo()).config("trust_request_id: true").start().await;
    for proto in BOTH {
        let answer = lb.ask(&Ask::chat("hello").over(proto).header("x-request-id", "mine")).await;
        assert_eq!(answer.header("x-request-id"), "mine");
        assert_eq!(answer.echo().header("x-request-id"), ["mine"]);
        let without = lb.ask(&Ask::chat("hello").over(proto)).await;
        assert!(without.header("x-request-id").len() >= 32);
        let local = lb.ask(&Ask::get("/health").over(proto).header("x-request-id", "mine")).await;
        assert_eq!(local.header("x-request-id"), "mine");
    }
}

#[tokio::test]
async fn the_same_chat_again_goes_to_the_same_worker_and_matches_whole() {
    let lb = lb().worker(echo()).worker(echo()).worker(echo()).start().await;
    for nth in 0..5 {
        let ask = Ask::chat(&format!("{nth} {}", "a long story ".repeat(100)));
        let first = lb.ask(&ask).await;
        let (matched, total) = first.header("x-router-matched").split_once('/').expect("n/m");
        assert_eq!(matched, "0", "{first:?}");
        assert!(total.parse::<usize>().expect("a number") > 5);
        for how in [How::Length, How::Chunked, How::H2Unsized] {
            assert_eq!(deliver(&lb, how, &ask).await.backend, first.header("x-router-backend"));
        }
        let again = lb.ask(&ask).await;
        assert_eq!(again.header("x-router-matched"), format!("{total}/{total}"));
        assert_eq!(again.header("x-router-reason"), "prefix");
        assert_eq!(again.header("x-router-backend"), first.header("x-router-backend"));
    }
}

#[tokio::test]
async fn a_stream_tells_who_sends_it() {
    let lb = lb().worker(streaming(3)).start().await;
    for proto in BOTH {
        let open = lb.open(&Ask::stream("hello").over(proto)).await;
        assert_eq!(open.header("x-router-backend"), "w0");
        assert_eq!(open.header("cache-control"), "no-cache");
    }
}

#[tokio::test]
async fn a_worker_that_failed_is_named_and_one_that_was_not_involved_is_not() {
    let lb = lb().worker(dying()).start().await;
    assert_eq!(lb.ask(&Ask::chat("hello")).await.header("x-router-backend"), "w0");
    lb.workers[0].set_healthy(false);
    lb.health_is(0, "unhealthy").await;
    assert_eq!(lb.ask(&Ask::chat("hello")).await.header("x-router-backend"), "none");
}

#[tokio::test]
async fn a_worker_answers_for_itself() {
    let lb = lb().worker(answering(422)).start().await;
    let answer = lb.ask(&Ask::chat("hello")).await;
    assert_eq!(answer.status, 422);
    assert_eq!(answer.json()["error"]["message"], "the worker's own");
}
