//! What the fleet serves: learned, merged, and routed by.

use crate::support::{Act, Ask, Proto, echo, eventually, lb};

fn ids(list: &serde_json::Value) -> Vec<&str> {
    let entries = list["data"].as_array().expect("a list");
    entries.iter().map(|entry| entry["id"].as_str().expect("an id")).collect()
}

#[tokio::test]
async fn the_list_merges_what_the_workers_tell() {
    let lb = lb()
        .worker(echo().models(&["alpha", "org/beta"]))
        .worker(echo().models(&["org/beta", "gamma"]))
        .worker(echo().yaml("models: [delta]"))
        .start()
        .await;
    for proto in [Proto::H1, Proto::H2] {
        let list = lb.ask(&Ask::get("/v1/models").over(proto)).await;
        assert_eq!(list.status, 200);
        let list = list.json();
        assert_eq!(list["object"], "list");
        assert_eq!(ids(&list), ["alpha", "org/beta", "gamma", "delta"]);
        assert_eq!(list["data"][0]["owned_by"], "fake", "the worker's own description");
        assert_eq!(list["data"][3]["object"], "model");
        for (path, id) in [
            ("/v1/models/alpha", "alpha"),
            ("/v1/models/org/beta", "org/beta"),
            ("/v1/models/org%2Fbeta", "org/beta"),
            ("/v1/models/delta", "delta"),
        ] {
            let one = lb.ask(&Ask::get(path).over(proto)).await;
            assert_eq!((one.status, one.json()["id"].as_str()), (200, Some(id)), "{path}");
        }
        let none = lb.ask(&Ask::get("/v1/models/epsilon").over(proto)).await;
        none.assert_error(404, "model_not_found");
    }
    assert_eq!(lb.request_count(), 0, "all answered by the router");
}

#[tokio::test]
async fn a_request_goes_to_a_worker_of_its_model() {
    let lb = lb()
        .worker(echo().models(&["alpha"]))
        .worker(echo().models(&["beta"]))
        .worker(echo().yaml("models: [beta, gamma]"))
        .start()
        .await;
    for nth in 0..6 {
        let of = async |model| {
            let ask = Ask::chat_with(model, &format!("{nth} {}", "x".repeat(300)));
            lb.ask(&ask).await.echo().worker
        };
        assert_eq!(of("alpha").await, "w0");
        assert_ne!(of("beta").await, "w0");
        assert_eq!(of("gamma").await, "w2");
    }
    assert_eq!(
        lb.ask(&Ask::post("/v1/embeddings", r#"{"model":"gamma"}"#)).await.echo().worker,
        "w2"
    );
}

#[tokio::test]
async fn a_form_upload_goes_to_a_worker_of_its_model() {
    let lb = lb()
        .worker(echo().yaml("models: [chat]"))
        .worker(echo().yaml("models: [whisper]"))
        .start()
        .await;
    let file = "x".repeat(100_000);
    let body = format!(
        "--edge\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n{file}\r\n\
         --edge\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper\r\n--edge--\r\n"
    );
    let ask = Ask::new(http::Method::POST, "/v1/audio/transcriptions", body)
        .header("content-type", "multipart/form-data; boundary=edge");
    for proto in [Proto::H1, Proto::H2] {
        let echo = lb.ask(&ask.clone().over(proto)).await.echo();
        assert_eq!((echo.worker.as_str(), echo.sha256), ("w1", ask.sha256()));
    }
}

#[tokio::test]
async fn a_worker_that_tells_no_models_takes_any() {
    let lb = lb().worker(echo()).start().await;
    assert_eq!(lb.ask(&Ask::chat_with("whatever", "hello")).await.status, 200);
    assert_eq!(ids(&lb.ask(&Ask::get("/v1/models")).await.json()), [] as [&str; 0]);
}

#[tokio::test]
async fn a_worker_declared_to_take_any_model_takes_any() {
    let lb = lb()
        .worker(echo().models(&["alpha"]))
        .worker(echo().models(&["alpha"]).yaml("models: ['*']"))
        .start()
        .await;
    assert_eq!(lb.ask(&Ask::chat_with("whatever", "hello")).await.echo().worker, "w1");
}

#[tokio::test]
async fn a_request_without_a_model_goes_anywhere() {
    let lb = lb().worker(echo().models(&["alpha"])).start().await;
    let body = r#"{"messages":[{"role":"user","content":"hello"}]}"#;
    assert_eq!(lb.ask(&Ask::post("/v1/chat/completions", body)).await.status, 200);
}

#[tokio::test]
async fn a_model_whose_workers_are_all_out_is_a_503_and_not_a_404() {
    let lb = lb().worker(echo().models(&["alpha"])).worker(echo().models(&["beta"])).start().await;
    lb.workers[0].set_healthy(false);
    lb.health_is(0, "unhealthy").await;
    lb.ask(&Ask::chat_with("alpha", "hello")).await.assert_error(503, "no_worker");
    assert_eq!(lb.ask(&Ask::chat_with("beta", "hello")).await.status, 200);
}

#[tokio::test]
async fn a_model_of_its_own_policy_is_routed_by_it() {
    let lb = lb().worker(echo()).config("models: {alpha: {policy: round-robin}}").start().await;
    let reason = async |model| {
        let answer = lb.ask(&Ask::chat_with(model, "hello")).await;
        answer.header("x-router-reason").to_owned()
    };
    assert_eq!(reason("alpha").await, "round-robin");
    assert_eq!(reason("beta").await, "no-match");
}

#[tokio::test]
async fn health_is_the_fleets() {
    let lb = lb().worker(echo()).worker(echo()).start().await;
    let health = async || lb.ask(&Ask::get("/health")).await.status;
    assert_eq!(health().await, 200);
    lb.workers[0].set_healthy(false);
    lb.health_is(0, "unhealthy").await;
    assert_eq!(health().await, 200, "one is left");
    lb.workers[1].set_healthy(false);
    lb.health_is(1, "unhealthy").await;
    assert_eq!(health().await, 503);
    assert_eq!(lb.admin("/readyz").await.status, 503);
    assert_eq!(lb.admin("/livez").await.status, 200);
    lb.workers[1].set_healthy(true);
    eventually("it is well again", async || health().await == 200).await;
    lb.workers[1].set_act(Act::Echo);
    assert_eq!(lb.ask(&Ask::chat("hello")).await.echo().worker, "w1");
}
