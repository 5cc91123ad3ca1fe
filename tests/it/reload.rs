//! Reload: what changes at once, what waits for a new process, and what a bad file does.

use std::{
    pin::Pin,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
use serde_json::{Value, json};
use serde_yaml_ng::Value as Yaml;
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

use crate::support::{
    Ask, Authority, Conn, Lb, chat_body_of, echo, eventually, lb, streaming_gated, within,
    zmq_engine::ZmqEngine,
};

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().expect("a list").iter().filter_map(Value::as_str).collect()
}

/// Takes the worker of this id out of the file, or puts it back.
fn without_worker(lb: &Lb, id: &str) -> Yaml {
    let mut taken = None;
    lb.edit_with(|config| {
        let workers = config.get_mut("workers").and_then(Yaml::as_sequence_mut).expect("workers");
        let at = workers.iter().position(|worker| worker["id"] == id).expect("it is there");
        taken = Some(workers.remove(at));
    });
    taken.expect("found")
}

#[tokio::test]
async fn what_is_hot_changes_at_once_and_is_named() {
    let lb = lb().worker(echo()).worker(echo()).start().await;
    let told = lb.reload("policy: round-robin\nlimits: {body_bytes_max: 2048}").await;
    assert_eq!(strings(&told["changed"]), ["policy", "limits.body_bytes_max"]);
    assert_eq!(told["needs_upgrade"], json!([]));
    let answer = lb.ask(&Ask::chat("hello")).await;
    assert_eq!((answer.status, answer.header("x-router-reason")), (200, "round-robin"));
    let answer = lb.ask(&Ask::post("/v1/chat/completions", chat_body_of(4000))).await;
    assert_eq!(answer.status, 413);
    let told = lb.reload("limits: {body_bytes_max: 65536}").await;
    assert_eq!(strings(&told["changed"]), ["limits.body_bytes_max"]);
    let answer = lb.ask(&Ask::post("/v1/chat/completions", chat_body_of(4000))).await;
    assert_eq!(answer.status, 200);
    let metrics = lb.metrics().await;
    assert_eq!(metrics.sum("warmroute_reloads_total", &[("result", "ok")]), 2);
    assert_eq!(metrics.sum("warmroute_reload_ok", &[]), 1);
}

#[tokio::test]
async fn a_request_goes_by_one_configuration_from_its_start_to_its_end() {
    let lb = lb().worker(echo()).start().await;
    let body = chat_body_of(4000);
    let mut slow = lb.raw().await;
    slow.send(format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    ))
    .await;
    slow.send(&body[..100]).await;
    eventually("the request has begun", async || {
        lb.metrics().await.sum("warmroute_buffered_bytes", &[]) > 0
    })
    .await;
    lb.reload("limits: {body_bytes_max: 1024}\npolicy: random").await;
    slow.send(&body[100..]).await;
    let answer = slow.answer().await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_ne!(answer.header("x-router-reason"), Some("random"), "{answer:?}");
    let answer = lb.ask(&Ask::post("/v1/chat/completions", body)).await;
    assert_eq!(answer.status, 413);
}

#[tokio::test]
async fn removed_workers_finish_and_others_keep_what_is_known_of_them() {
    let lb = lb()
        .worker(streaming_gated(10).yaml("models: [m]"))
        .worker(echo().yaml("models: [other]"))
        .start()
        .await;
    let prompt = "word ".repeat(100);
    let kept = Ask::chat_with("other", &prompt);
    lb.ask(&kept).await;
    lb.workers[0].let_go(1);
    let stream = Ask::post(
        "/v1/chat/completions",
        json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": "hi"}]})
            .to_string(),
    );
    let mut open = lb.open(&stream).await;
    assert!(open.event().await.expect("a stream").is_some());
    let w0 = without_worker(&lb, "w0");
    lb.reload("log: {access: true}").await;
    let ids: Vec<Value> = ids_of(&lb).await;
    assert_eq!(ids, ["w1"]);
    assert_eq!(lb.ask(&stream).await.status, 404, "nobody serves `m` any more");
    lb.workers[0].let_go(100);
    let (events, end) = open.rest().await;
    assert_eq!((events.len(), end), (10, Ok(())), "the open stream ran to its end");
    let answer = lb.ask(&kept).await;
    assert_eq!(answer.header("x-router-reason"), "prefix", "{answer:?}");
    lb.edit_with(|config| {
        config.get_mut("workers").and_then(Yaml::as_sequence_mut).expect("workers").push(w0);
    });
    assert_eq!(lb.admin_post("/reload").await.status, 200);
    lb.health_is(1, "healthy").await;
    assert_eq!(ids_of(&lb).await, ["w1", "w0"]);
}

async fn ids_of(lb: &Lb) -> Vec<Value> {
    let fleet = lb.admin("/workers").await.json();
    fleet["workers"].as_array().expect("a list").iter().map(|w| w["id"].clone()).collect()
}

#[tokio::test]
async fn settings_of_a_worker_change_and_its_index_stays() {
    let lb = lb().worker(echo()).start().await;
    let ask = Ask::chat(&"word ".repeat(100));
    lb.ask(&ask).await;
    lb.edit_with(|config| {
        let workers = config.get_mut("workers").and_then(Yaml::as_sequence_mut).expect("workers");
        let worker = workers[0].as_mapping_mut().expect("a mapping");
        worker.insert("weight".into(), 3.into());
        worker.insert("inflight_max".into(), 7.into());
    });
    let answer = lb.admin_post("/reload").await;
    assert_eq!(strings(&answer.json()["changed"]), ["workers"]);
    let worker = lb.status(0).await;
    assert_eq!((worker["weight"].as_f64(), worker["inflight_max"].as_u64()), (Some(3.0), Some(7)));
    assert_eq!(lb.ask(&ask).await.header("x-router-reason"), "prefix");
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_says_why() {
    let lb = lb().worker(echo()).start().await;
    let good = std::fs::read_to_string(lb.conf()).expect("reads");
    for (bad, why) in [
        (format!("{good}\npolcy: random\n"), "did you mean `policy`?"),
        (good.replace("workers:", "workers: 3\nx:"), "workers"),
        ("\u{0}\u{1}".to_owned(), "YAML"),
        (String::new(), "holds no configuration"),
        (format!("{good}\nupstream_tls: {{ca: /nowhere/ca.pem}}\n"), "upstream_tls.ca"),
        (format!("{good}\nmodels: {{m: {{tokenizer: /nowhere}}}}\n"), "models.m.tokenizer"),
    ] {
        std::fs::write(lb.conf(), &bad).expect("writes");
        let answer = lb.admin_post("/reload").await;
        assert_eq!(answer.status, 422, "{answer:?}");
        let json = answer.json();
        let message = json["error"]["message"].as_str().expect("a message");
        assert!(message.contains(why) && !message.contains('\n'), "{message}");
        assert_eq!(lb.metrics().await.sum("warmroute_reload_ok", &[]), 0);
        assert!(lb.stderr().contains("configuration not reloaded"));
        assert_eq!(lb.ask(&Ask::chat("hello")).await.status, 200);
    }
    std::fs::write(lb.conf(), &good).expect("writes");
    lb.signal("HUP");
    eventually("a good file is taken", async || {
        lb.metrics().await.sum("warmroute_reload_ok", &[]) == 1
    })
    .await;
    let metrics = lb.metrics().await;
    assert_eq!(metrics.sum("warmroute_reloads_total", &[("result", "refused")]), 6);
}

#[tokio::test]
async fn what_needs_a_new_process_is_named_and_the_rest_is_taken() {
    let mut lb = lb().worker(echo()).start().await;
    let told = lb.reload("threads: 3\nindex: {block_bytes: 64}\npolicy: random").await;
    assert_eq!(told["needs_upgrade"], json!(["threads", "index.block_bytes"]));
    assert_eq!(lb.ask(&Ask::chat("hello")).await.header("x-router-reason"), "random");
    let prompt = Ask::chat(&"word ".repeat(100));
    let blocks = |matched: &str| matched.rsplit('/').next().map(str::to_owned);
    let before = blocks(lb.ask(&prompt).await.header("x-router-matched"));
    lb.upgrade().await;
    let after = blocks(lb.ask(&prompt).await.header("x-router-matched"));
    assert_ne!(before, after, "blocks are half as large now");
}

/// The certificate a new connection is shown.
async fn shown(lb: &Lb) -> Vec<u8> {
    let mut builder = SslConnector::builder(SslMethod::tls()).expect("builder");
    builder.set_verify(SslVerifyMode::NONE);
    let ssl = builder.build().configure().expect("TLS").into_ssl("localhost").expect("TLS");
    let stream = TcpStream::connect(lb.tls_addr()).await.expect("connects");
    let mut stream = SslStream::new(ssl, stream).expect("TLS");
    Pin::new(&mut stream).connect().await.expect("a handshake");
    stream.ssl().peer_certificate().expect("one").to_der().expect("DER")
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_to_new_connections() {
    let scene = lb().worker(echo());
    let authority = Authority::new("some authority");
    let old = authority.issue();
    let (cert, key) = old.write(scene.folder());
    let tls = format!("tls: {{cert: {}, key: {}}}", cert.display(), key.display());
    let lb = scene.config(&tls).start().await;
    let first = shown(&lb).await;
    let (mut kept, ..) = Conn::open_tls(lb.tls_addr(), authority.cert(), b"\x08http/1.1").await;
    // Under the same names: in the configuration nothing has changed.
    authority.issue().write(lb.folder());
    let answer = lb.admin_post("/reload").await;
    assert_eq!((answer.status, &answer.json()["changed"]), (200, &json!([])));
    let second = shown(&lb).await;
    assert_ne!(first, second);
    assert_eq!(kept.ask(&Ask::chat("on a kept connection")).await.status, 200);
    std::fs::write(&cert, "garbage").expect("writes");
    assert_eq!(lb.admin_post("/reload").await.status, 422);
    assert_eq!(shown(&lb).await, second);
}

#[tokio::test]
async fn tokens_change() {
    let lb = lb().worker(echo()).config("reports: {token: one}").start().await;
    let send = async |token: &str| {
        let beat = json!({"worker_id": "w0", "worker_url": lb.workers[0].url(), "current_load": 0});
        let ask = Ask::post("/v1/heartbeat", beat.to_string());
        lb.report_as(&ask.header("authorization", &format!("Bearer {token}"))).await.status
    };
    assert_eq!((send("one").await, send("two").await), (200, 401));
    lb.reload("reports: {token: two}").await;
    assert_eq!((send("one").await, send("two").await), (401, 200));
}

#[tokio::test]
async fn the_log_level_changes() {
    let lb = lb().worker(echo()).config("log: {level: error}").start().await;
    assert!(!lb.stderr().contains("INFO"), "{}", lb.stderr());
    lb.reload("log: {level: info}").await;
    eventually("it says so", async || lb.stderr().contains("configuration reloaded")).await;
    let lines = lb.stdout().lines().count();
    lb.reload("log: {access: false}").await;
    lb.ask(&Ask::chat("not logged")).await;
    lb.reload("log: {access: true}").await;
    let logged = lb.ask(&Ask::chat("logged")).await;
    let id = logged.header("x-request-id").to_owned();
    eventually("the access log is back", async || lb.stdout().contains(&id)).await;
    assert_eq!(lb.stdout().lines().count(), lines + 1);
}

#[tokio::test]
async fn the_command_line_reloads() {
    let lb = lb().worker(echo()).start().await;
    let reload = async || {
        let conf = lb.conf();
        let run = tokio::task::spawn_blocking(move || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_warmroute"));
            command.args(["reload", "--conf"]).arg(conf).output().expect("runs")
        });
        let output = within("the command", run).await.expect("no panic");
        let text = [&*output.stdout, &*output.stderr].concat();
        (output.status.code(), String::from_utf8(text).expect("UTF-8"))
    };
    lb.edit("policy: random");
    assert_eq!(reload().await, (Some(0), "reloaded: policy\n".to_owned()));
    lb.edit("threads: 1");
    let said = "reloaded: threads\nwarmroute upgrade is due for: threads\n";
    assert_eq!(reload().await, (Some(0), said.to_owned()));
    lb.edit("nonsense: 1");
    let (code, text) = reload().await;
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("nonsense: 1: unknown key"), "{text}");
}

#[tokio::test]
async fn what_follows_from_a_workers_settings_changes_with_them() {
    let engine = ZmqEngine::start().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let worker = echo().yaml("models: [m]").side("/alive", move |_| {
        counted.fetch_add(1, Relaxed);
        (200, "{}".to_owned())
    });
    let lb = lb().worker(worker).start().await;
    assert_eq!((asked.load(Relaxed), engine.subscribers()), (0, 0));
    lb.edit_with(|config| {
        let workers = config.get_mut("workers").and_then(Yaml::as_sequence_mut).expect("workers");
        let worker = workers[0].as_mapping_mut().expect("a mapping");
        worker.insert("health_path".into(), "/alive".into());
        let source = serde_yaml_ng::from_str(&format!("endpoint: '{}'", engine.events_at()));
        worker.insert("kv_events".into(), source.expect("YAML"));
    });
    assert_eq!(lb.admin_post("/reload").await.status, 200);
    eventually("its health is asked for there", async || asked.load(Relaxed) > 2).await;
    engine.subscribed().await;
    assert_eq!(lb.status(0).await["health"], "healthy");
}

#[tokio::test]
async fn sources_of_workers_come_and_go() {
    let lb = lb().worker(echo()).start().await;
    let found = echo().start("found".to_owned()).await;
    let file = lb.folder().join("workers.yaml");
    let text = format!("- {{id: found, url: '{}'}}\n", found.url());
    std::fs::write(&file, text).expect("writes");
    let told = lb.reload(&format!("discovery: {{file: {}}}", file.display())).await;
    assert_eq!(told["needs_upgrade"], json!([]));
    eventually("it is found", async || ids_of(&lb).await == ["w0", "found"]).await;
    lb.edit_with(|config| {
        config.remove("discovery");
    });
    assert_eq!(lb.admin_post("/reload").await.status, 200);
    eventually("nobody names it any more", async || ids_of(&lb).await == ["w0"]).await;
}
