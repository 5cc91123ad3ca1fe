//! The admin listener: who may see and do what.

use crate::support::{Ask, Lb, echo, lb};

async fn status(lb: &Lb, ask: Ask) -> (u16, String) {
    let answer = lb.admin_as(&ask).await;
    assert_eq!(answer.header("content-type"), "application/json", "{answer:?}");
    (answer.status, answer.json()["error"]["code"].as_str().unwrap_or("").to_owned())
}

fn post(path: &str) -> Ask {
    Ask::post(path, "")
}

#[tokio::test]
async fn pages_show_and_acts_answer() {
    let mut lb = lb().worker(echo()).worker(echo()).start().await;
    let alive = lb.admin("/livez").await.json();
    assert_eq!(
        (alive["status"].as_str(), alive["pid"].as_u64()),
        (Some("alive"), Some(u64::from(lb.pid())))
    );
    let all = lb.admin("/workers").await.json();
    assert_eq!(all["workers"].as_array().map(Vec::len), Some(2));
    assert_eq!(all["removed"], serde_json::json!([]));
    let one = lb.admin("/workers/w1").await.json();
    for (key, value) in [("id", "w1"), ("origin", "static"), ("health", "healthy")] {
        assert_eq!(one[key], value, "{one}");
    }
    assert_eq!((&one["drained"], &one["weight_now"]), (&false.into(), &1.0.into()), "{one}");
    for (ask, expected) in [
        (Ask::get("/workers/w7"), (404, "unknown_worker")),
        (Ask::get("/workers/"), (404, "not_found")),
        (Ask::get("/"), (404, "not_found")),
        (post("/workers/w7/drain"), (404, "unknown_worker")),
        (post("/workers/w7/undrain"), (404, "unknown_worker")),
        (post("/workers/w7/remove"), (404, "unknown_worker")),
        (post("/workers/w0/destroy"), (404, "not_found")),
        (Ask::get("/workers/w0/drain"), (405, "method_not_allowed")),
        (post("/workers"), (405, "method_not_allowed")),
        (post("/livez"), (405, "method_not_allowed")),
    ] {
        let what = format!("{} {}", ask.method, ask.path);
        let (code, error) = status(&lb, ask).await;
        assert_eq!((code, &*error), expected, "{what}");
    }
    assert_eq!(lb.admin_as(&Ask::get("/workers/w0/drain")).await.header("allow"), "POST");
    // An act takes no body, but does not mind a small one.
    let large = Ask::post("/workers/w0/drain", vec![b'x'; 100 << 10]);
    assert_eq!(status(&lb, large).await, (400, "bad_body".to_owned()));
    assert_eq!(lb.admin("/workers/w0").await.json()["drained"], false);
    let done = lb.admin_as(&Ask::post("/workers/w0/drain", "{}")).await;
    assert_eq!(done.json(), serde_json::json!({"id": "w0", "drained": true, "inflight": 0}));
    let done = lb.admin_post("/workers/w0/undrain").await.json();
    assert_eq!(done, serde_json::json!({"id": "w0", "drained": false, "in_fleet": true}));
    let done = lb.admin_post("/workers/w0/remove").await.json();
    assert_eq!(done, serde_json::json!({"id": "w0", "removed": true, "inflight": 0}));
    assert_eq!(lb.admin("/workers").await.json()["removed"], serde_json::json!(["w0"]));
    assert!(lb.exit_status().is_none());
}

#[tokio::test]
async fn a_browser_changes_nothing() {
    for token in ["", "token: secret-1"] {
        let lb = lb().worker(echo()).config(&format!("admin: {{{token}}}")).start().await;
        let ask = post("/workers/w0/drain")
            .header("origin", "http://evil.example")
            .header("authorization", "Bearer secret-1");
        assert_eq!(status(&lb, ask).await, (403, "browser".to_owned()));
        let read = Ask::get("/workers/w0").header("authorization", "Bearer secret-1");
        assert_eq!(lb.admin_as(&read).await.json()["drained"], false);
    }
}

#[tokio::test]
async fn a_token_guards_all_but_what_orchestrators_ask() {
    let lb = lb().worker(echo()).config("admin: {token: secret-1}").start().await;
    for open in ["/livez", "/readyz"] {
        assert_eq!(lb.admin(open).await.status, 200, "{open}");
    }
    let asks = [Ask::get("/workers"), Ask::get("/workers/w0"), post("/workers/w0/drain")];
    for ask in asks {
        assert_eq!(
            status(&lb, ask.clone()).await,
            (401, "unauthorized".to_owned()),
            "{}",
            ask.path
        );
        for wrong in ["Bearer secret-2", "Bearer secret-11", "Basic secret-1", "secret-1", "Bearer"]
        {
            let ask = ask.clone().header("authorization", wrong);
            assert_eq!(status(&lb, ask).await.0, 401, "{wrong}");
        }
        let ask = ask.header("authorization", "bearer secret-1");
        assert_eq!(lb.admin_as(&ask).await.status, 200);
    }
    assert!(!lb.stderr().contains("secret-1"), "the token is in the log");
}

#[tokio::test]
async fn an_address_that_others_reach_needs_a_token() {
    let lb1 = lb().worker(echo()).config("admin: {listen: 0.0.0.0}").start().await;
    assert_eq!(lb1.admin("/workers").await.status, 200, "reading is free");
    let refused = lb1.admin_post("/workers/w0/drain").await;
    assert_eq!(refused.status, 403);
    let message = refused.json()["error"]["message"].to_string();
    assert!(message.contains("set admin.token"), "{message}");
    let config = "admin: {listen: 0.0.0.0, token: secret-1}";
    let lb2 = lb().worker(echo()).config(config).start().await;
    let ask = post("/workers/w0/drain").header("authorization", "Bearer secret-1");
    assert_eq!(lb2.admin_as(&ask).await.status, 200);
}
