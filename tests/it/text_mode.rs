//! docs/text-mode.md from end to end: what an engine reports is what a request is matched with.
//!
//! The simulated engine writes the canonical text independently of the router. Where a prompt goes
//! to the engine directly, the router knows of it from the engine's reports alone, so a match can
//! only come from both having written the same.

use serde_json::{Value, json};
use warmroute_engine::{Engine, EngineHandle, EngineOptions, ReportTo};

use crate::support::{Answer, Ask, Conn, Lb, Proto, eventually, lb, noise};

/// The engine's blocks: 16 tokens of 4 bytes.
const ENGINE_BLOCK_BYTES: usize = 64;

/// A router with one engine, which has joined by heartbeat.
async fn scene(block_bytes: usize) -> (Lb, EngineHandle) {
    let lb = lb()
        .config("reports: {join: true, token: t}")
        .config(&format!("index: {{block_bytes: {block_bytes}}}"))
        .start()
        .await;
    let engine = joined(&lb, "e0").await;
    (lb, engine)
}

async fn joined(lb: &Lb, id: &str) -> EngineHandle {
    let report_to = ReportTo {
        token: Some("t".to_owned()),
        interval: std::time::Duration::from_millis(10),
        join: true,
        ..ReportTo::new(format!("http://{}", lb.reports_addr()), id)
    };
    let engine =
        Engine::start(EngineOptions { reports: Some(report_to), ..EngineOptions::instant() })
            .expect("an engine");
    eventually("the engine takes traffic", async || {
        let all = lb.admin("/workers").await.json();
        let all = all["workers"].as_array().expect("a list").clone();
        all.iter().any(|worker| worker["id"] == id && worker["takes_traffic"] == true)
    })
    .await;
    engine
}

/// Waits until the router has heard of every block that the engine holds.
async fn settled(lb: &Lb, engine: &EngineHandle) {
    eventually("all blocks are reported", async || {
        let stored = lb.metrics().await.sum("warmroute_stores_applied_total", &[("worker", "e0")]);
        stored == engine.stats().kv_blocks_cached as i64
    })
    .await;
}

fn letters(bytes: usize) -> String {
    String::from_utf8(noise(bytes)).expect("ASCII")
}

fn matched_of(answer: &Answer) -> (usize, usize) {
    let (matched, total) = answer.header("x-router-matched").split_once('/').expect("n/m");
    (matched.parse().expect("a number"), total.parse().expect("a number"))
}

/// Bytes of its prompt that the engine found in its cache.
fn cached_bytes(answer: &Answer) -> usize {
    assert_eq!(answer.status, 200, "{answer:?}");
    let usage = &answer.json()["usage"];
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
    cached.unwrap_or_else(|| panic!("no usage: {answer:?}")) as usize * 4
}

/// Holds the router's match to what the engine found: they agree within one block.
#[track_caller]
fn assert_agree(what: &str, answer: &Answer, block_bytes: usize) {
    let (matched, _) = matched_of(answer);
    let (ours, theirs) = (matched * block_bytes, cached_bytes(answer));
    let apart = ours.abs_diff(theirs);
    let block = block_bytes.max(ENGINE_BLOCK_BYTES);
    assert!(apart <= block, "{what}: we believed in {ours} bytes, the engine found {theirs}");
}

#[tokio::test]
async fn the_match_of_a_conversation_grows_and_is_what_the_engine_finds() {
    for block_bytes in [128, 48, 64] {
        let (lb, engine) = scene(block_bytes).await;
        let mut messages = vec![json!({"role": "system", "content": letters(700)})];
        let mut last = 0;
        for turn in 0..6 {
            let content = format!("turn {turn}: {}", letters(200 + 37 * turn));
            messages.push(json!({"role": "user", "content": content}));
            let body = json!({"model": "sim-model", "messages": messages, "max_tokens": 40});
            let answer = lb.ask(&Ask::post("/v1/chat/completions", body.to_string())).await;
            assert_agree(&format!("turn {turn}"), &answer, block_bytes);
            let (matched, total) = matched_of(&answer);
            if turn == 0 {
                assert_eq!(matched, 0);
            } else {
                assert!(matched > last, "turn {turn}: {matched} after {last}");
                // All but the new question, and the block it begins in.
                let new = (content.len() + 100) / block_bytes + 1;
                assert!(total - matched <= new, "turn {turn}: {matched}/{total}");
            }
            last = matched;
            messages.push(answer.json()["choices"][0]["message"].clone());
            // The answer's own blocks are known from reports only.
            settled(&lb, &engine).await;
        }

        engine.clear_cache();
        eventually("the router has heard of it", async || {
            lb.status(0).await["index"]["blocks"] == 0
        })
        .await;
        let body = json!({"model": "sim-model", "messages": messages[..3]}).to_string();
        let answer = lb.ask(&Ask::post("/v1/chat/completions", body)).await;
        assert_eq!((matched_of(&answer).0, cached_bytes(&answer)), (0, 0));
        assert_eq!(answer.header("x-router-reason"), "no-match");
    }
}

/// Bodies as clients write them; `TAIL` is where a long text stands.
const BODIES: &[(&str, &str, &str)] = &[
    ("a chat", "/v1/chat/completions", r#"{"messages": [{"role": "user", "content": "TAIL"}]}"#),
    (
        "system and developer first",
        "/v1/chat/completions",
        r#"{"messages": [{"role": "system", "content": "Be brief."}, {"role": "developer", "content":
        "Be kind."}, {"role": "user", "content": "TAIL"}]}"#,
    ),
    (
        "a late system message",
        "/v1/chat/completions",
        r#"{"tools": [{"type": "function", "function": {"name": "f"}}], "messages": [{"role": "user",
        "content": "hello"}, {"role": "system", "content": "Be brief."}, {"role": "user", "content":
        "TAIL"}]}"#,
    ),
    (
        "a list of parts",
        "/v1/chat/completions",
        r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type":
        "text", "text": "two"}]}, {"role": "user", "content": "TAIL"}]}"#,
    ),
    (
        "an image",
        "/v1/chat/completions",
        r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "what is it?"}, {"type":
        "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"}}]},
        {"role": "user", "content": "TAIL"}]}"#,
    ),
    (
        "audio and a file",
        "/v1/chat/completions",
        r#"{"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data":
        "AAAA", "format": "wav"}}, {"type": "file", "file": {"file_id": "f-1"}}]}, {"role": "user",
        "content": "TAIL"}]}"#,
    ),
    (
        "tools as they were written",
        "/v1/chat/completions",
        r#"{"tools": [ {"type":"function",  "function": {"name": "get\u0020weather", "parameters":
        {"type": "object"}}} ], "messages": [{"role": "system", "content": "S"}, {"role": "user",
        "content": "TAIL"}]}"#,
    ),
    (
        "no tools",
        "/v1/chat/completions",
        r#"{"tools": [], "messages": [{"role": "user", "content": "TAIL"}]}"#,
    ),
    (
        "a tool call and its result",
        "/v1/chat/completions",
        r#"{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": null,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments":
        "{\"a\":  1}"}}]}, {"role": "tool", "tool_call_id": "c1", "content": "42"}, {"role": "user",
        "content": "TAIL"}]}"#,
    ),
    (
        "an assistant without content",
        "/v1/chat/completions",
        r#"{"messages": [{"role": "assistant"}, {"role": "assistant", "content": null, "tool_calls":
        []}, {"role": "user", "content": "TAIL"}]}"#,
    ),
    (
        "escapes",
        "/v1/chat/completions",
        r#"{"messages": [{"role": "user", "content": "tab\tquote\"slash\/ umlaut \u00e4 face \ud83d\ude00"},
        {"role": "user", "content": "TAIL"}]}"#,
    ),
    (
        "a part of a kind of its own",
        "/v1/chat/completions",
        r#"{"messages": [{"role": "user", "content": [{"type": "thought",  "n": 1}]}, {"role": "user",
        "content": "TAIL"}]}"#,
    ),
    (
        "a salt",
        "/v1/chat/completions",
        r#"{"cache_salt": "pepper", "messages": [{"role": "user", "content": "TAIL"}]}"#,
    ),
    (
        "an adapter",
        "/v1/chat/completions",
        r#"{"lora_name": "sql", "messages": [{"role": "user", "content": "TAIL"}]}"#,
    ),
    (
        "an adapter by its path",
        "/v1/chat/completions",
        r#"{"lora_path": "/sql", "messages": [{"role": "user", "content": "TAIL"}]}"#,
    ),
    ("a completion", "/v1/completions", r#"{"prompt": "TAIL"}"#),
    ("a list of completions", "/v1/completions", r#"{"prompt": ["TAIL", "x TAIL"]}"#),
];

#[tokio::test]
async fn both_write_the_same_text() {
    for block_bytes in [128, 32] {
        let (lb, engine) = scene(block_bytes).await;
        let addr = std::net::SocketAddr::from(([127, 0, 0, 1], engine.port()));
        for (nth, (what, path, body)) in BODIES.iter().enumerate() {
            let tail = format!("{nth} {}", letters(1500 + nth));
            let body = body.replace("TAIL", &tail);
            // The model last, as it may stand anywhere.
            let body =
                format!("{}, \"model\": \"sim-model\"}}", body.strip_suffix('}').expect("}"));
            assert!(serde_json::from_str::<Value>(&body).is_ok(), "{what}: {body}");
            let ask = Ask::post(path, body);
            let mut direct = Conn::open(addr, Proto::H1).await.expect("connects");
            let first = direct.ask(&ask).await;
            assert_eq!(first.status, 200, "{what}: {first:?}");
            settled(&lb, &engine).await;
            let answer = lb.ask(&ask).await;
            let (matched, total) = matched_of(&answer);
            let prompts = if what.contains("list of completions") { 2 } else { 1 };
            let tail_blocks = tail.len() / block_bytes - 1;
            assert!(matched >= prompts * tail_blocks, "{what}: {matched}/{total} is too little");
            let block = block_bytes.max(ENGINE_BLOCK_BYTES) * prompts;
            let (ours, theirs) = (matched * block_bytes, cached_bytes(&answer));
            assert!(ours.abs_diff(theirs) <= block, "{what}: ours {ours}, theirs {theirs}");
        }
    }
}

/// Characters of several bytes: a block that ends inside one cannot be reported yet.
#[tokio::test]
async fn text_of_any_language_is_matched() {
    let (lb, engine) = scene(128).await;
    let addr = std::net::SocketAddr::from(([127, 0, 0, 1], engine.port()));
    for (nth, word) in ["schöne Grüße ", "你好世界 ", "😀 ", "€", "مرحبا "].iter().enumerate()
    {
        let content = format!("{nth} {}", word.repeat(1200 / word.len()));
        let body =
            json!({"model": "sim-model", "messages": [{"role": "user", "content": content}]});
        let ask = Ask::post("/v1/chat/completions", body.to_string());
        let before = lb.status(0).await["index"]["blocks"].as_u64().expect("a number");
        let mut direct = Conn::open(addr, Proto::H1).await.expect("connects");
        assert_eq!(direct.ask(&ask).await.status, 200);
        eventually("most of it is reported", async || {
            let blocks = lb.status(0).await["index"]["blocks"].as_u64().expect("a number");
            blocks >= before + 1200 / 128 - 1
        })
        .await;
        let answer = lb.ask(&ask).await;
        let (matched, theirs) = (matched_of(&answer).0, cached_bytes(&answer));
        assert!((matched * 128).abs_diff(theirs) <= 4 * 128, "{word}: {matched} blocks, {theirs}");
    }
}

/// What cannot be told in text is never matched by mistake.
#[tokio::test]
async fn token_ids_and_templates_are_names_of_their_own() {
    let (lb, engine) = scene(32).await;
    let text = letters(640);
    let ask = |body: Value| {
        let path =
            if body["prompt"].is_null() { "/v1/chat/completions" } else { "/v1/completions" };
        Ask::post(path, body.to_string())
    };
    let messages = json!([{"role": "user", "content": text}]);
    let ids: Vec<u32> = text
        .as_bytes()
        .chunks(4)
        .map(|four| u32::from_le_bytes(four.try_into().expect("four bytes")))
        .collect();
    let all = [
        json!({"model": "sim-model", "prompt": text}),
        json!({"model": "sim-model", "prompt": ids}),
        json!({"model": "sim-model", "messages": messages}),
        json!({"model": "sim-model", "messages": messages, "cache_salt": "a"}),
        json!({"model": "sim-model", "messages": messages, "lora_name": "a"}),
        json!({"model": "sim-model", "messages": messages, "chat_template": "a"}),
        json!({"model": "sim-model", "messages": messages, "chat_template_kwargs": {"a": 1}}),
    ];
    for body in &all {
        let answer = lb.ask(&ask(body.clone())).await;
        assert_eq!((matched_of(&answer).0, cached_bytes(&answer)), (0, 0), "{body}");
    }
    for body in &all {
        let answer = lb.ask(&ask(body.clone())).await;
        // Blocks of 32 bytes, but of 16 token ids.
        let bytes = if body["prompt"].is_array() { 64 } else { 32 };
        assert_agree(&body.to_string(), &answer, bytes);
        assert!(matched_of(&answer).0 * bytes > 500, "{body}");
    }
    assert!(engine.stats().resyncs == 0, "{:?}", engine.stats());
}

/// An engine that cannot hold what it was asked for evicts, and says so.
#[tokio::test]
async fn evictions_are_followed() {
    let lb = lb()
        .config("reports: {join: true, token: t}")
        .config("index: {block_bytes: 64}")
        .start()
        .await;
    let report_to = ReportTo {
        token: Some("t".to_owned()),
        interval: std::time::Duration::from_millis(10),
        join: true,
        ..ReportTo::new(format!("http://{}", lb.reports_addr()), "e0")
    };
    // Room for some three of the prompts below.
    let options =
        EngineOptions { kv_blocks: 100, reports: Some(report_to), ..EngineOptions::instant() };
    let engine = Engine::start(options).expect("an engine");
    eventually("the engine takes traffic", async || lb.status(0).await["takes_traffic"] == true)
        .await;
    let prompt = |nth: usize| {
        let text = format!("{nth} {}", letters(30 * 64));
        let body = json!({"model": "sim-model", "prompt": text, "max_tokens": 1}).to_string();
        Ask::post("/v1/completions", body)
    };
    for nth in 0..12 {
        let _ = lb.ask(&prompt(nth)).await;
    }
    let evicted = engine.stats().evicted_blocks;
    assert!(evicted > 100, "{:?}", engine.stats());
    eventually("all evictions are applied", async || {
        let metrics = lb.metrics().await;
        metrics.sum("warmroute_evictions_applied_total", &[("worker", "e0")]) == evicted as i64
    })
    .await;
    let last = lb.ask(&prompt(11)).await;
    assert_agree("the last", &last, 64);
    assert!(matched_of(&last).0 > 20);
    let first = lb.ask(&prompt(0)).await;
    assert_eq!((matched_of(&first).0, cached_bytes(&first)), (0, 0));
}

/// A new life of the engine under the same name: nothing is believed of the old one.
#[tokio::test]
async fn an_engine_that_restarts_is_believed_empty() {
    let (lb, engine) = scene(64).await;
    let body = json!({"model": "sim-model", "prompt": letters(1000)}).to_string();
    let ask = Ask::post("/v1/completions", body);
    assert_eq!(matched_of(&lb.ask(&ask).await).0, 0);
    assert!(matched_of(&lb.ask(&ask).await).0 > 10);
    engine.kill();
    let again = joined(&lb, "e0").await;
    eventually("it is there under its new address", async || {
        lb.status(0).await["url"] == again.url() && lb.status(0).await["takes_traffic"] == true
    })
    .await;
    let answer = lb.ask(&ask).await;
    assert_eq!((matched_of(&answer).0, cached_bytes(&answer)), (0, 0), "{answer:?}");
}
