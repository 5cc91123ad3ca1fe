//! What a client sees.

mod support;

use std::io::{BufRead, BufReader, Read};

use serde_json::{Value, json};
use support::{eventually, post, request, send, stream};
use warmroute_engine::{Engine, EngineHandle, EngineOptions};

const CHAT: &str = "/v1/chat/completions";
const COMPLETION: &str = "/v1/completions";

fn engine() -> EngineHandle {
    Engine::start(EngineOptions::instant()).expect("a free port")
}

fn chat(text: &str) -> Value {
    json!({"model": "sim-model", "max_tokens": 5, "messages": [{"role": "user", "content": text}]})
}

fn with(mut body: Value, more: &Value) -> Value {
    let more = more.as_object().expect("an object").clone();
    body.as_object_mut().expect("an object").extend(more);
    body
}

#[test]
fn a_streamed_chat_has_the_form_of_vllm() {
    let engine = engine();
    let body =
        with(chat("hi"), &json!({"stream": true, "stream_options": {"include_usage": true}}));
    let events = stream(&engine.url(), CHAT, &body);
    let shown = |event: &str| {
        let (head, rest) = event.split_once(",\"created\":").expect("created");
        let (_, rest) = rest.split_once(",\"model\"").expect("model");
        format!("{head}..\"model\"{rest}")
    };
    let head = r#"{"id":"chatcmpl-me","object":"chat.completion.chunk".."model":"sim-model","#;
    assert_eq!(
        shown(&events[0]),
        head.to_owned()
            + r#""choices":[{"index":0,"delta":{"role":"assistant","content":""},"#
            + r#""logprobs":null,"finish_reason":null}],"prompt_token_ids":null,"prompt_text":null}"#
    );
    assert_eq!(events.len(), 1 + 5 + 1 + 1);
    let (first, last) = (shown(&events[1]), shown(&events[5]));
    let tail = r#""},"logprobs":null,"finish_reason":null,"token_ids":null}]}"#;
    assert!(
        first.starts_with(&(head.to_owned() + r#""choices":[{"index":0,"delta":{"content":""#))
    );
    assert!(first.ends_with(tail), "{first}");
    let tail = r#""finish_reason":"length","stop_reason":null,"token_ids":null}]}"#;
    assert!(last.ends_with(tail), "{last}");
    // "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n" has 52 bytes.
    assert!(
        shown(&events[6]).starts_with(
            &(head.to_owned()
                + r#""choices":[],"usage":{"prompt_tokens":13,"total_tokens":18,"#
                + r#""completion_tokens":5,"prompt_tokens_details":{"cached_tokens":0,"#)
        ),
        "{}",
        events[6]
    );
    assert_eq!(events[7], "[DONE]");
}

#[test]
fn the_role_comes_before_the_prefill_and_a_hang_shows_nothing_but_health() {
    let engine = engine();
    engine.pause();
    let body = with(chat("hi"), &json!({"stream": true}));
    let mut lines = BufReader::new(send(&engine.url(), "POST", CHAT, &body.to_string())).lines();
    let role = lines.find_map(|line| line.ok().filter(|line| line.starts_with("data:")));
    assert!(role.expect("an event").contains(r#""role":"assistant""#));
    assert_eq!(engine.stats().output_tokens, 0);
    assert_eq!(request(&engine.url(), "GET", "/health", "").0, 200);
    engine.resume();
    assert!(lines.any(|line| line.is_ok_and(|line| line == "data: [DONE]")));
}

#[test]
fn a_repeat_is_answered_alike_and_from_the_cache() {
    let engine = engine();
    let body = chat(&"tell me about ferries ".repeat(40));
    let (status, first) = post(&engine.url(), CHAT, &body);
    let (_, second) = post(&engine.url(), CHAT, &body);
    assert_eq!(status, 200);
    assert_eq!(first["choices"][0]["message"], second["choices"][0]["message"]);
    assert_eq!(first["choices"][0]["finish_reason"], "length");
    let cached = |reply: &Value| reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64();
    let prompt_tokens = second["usage"]["prompt_tokens"].as_u64().expect("a count");
    assert_eq!(cached(&first), Some(0));
    assert_eq!(cached(&second), Some((prompt_tokens - 1) / 16 * 16));
    let salted = with(body, &json!({"cache_salt": "other"}));
    assert_eq!(cached(&post(&engine.url(), CHAT, &salted).1), Some(0));
    engine.clear_cache();
    assert_eq!(engine.stats().kv_blocks_cached, 0);
}

#[test]
fn the_next_turn_finds_the_answer_of_the_last_one() {
    let engine = engine();
    let mut body = with(chat(&"x".repeat(400)), &json!({"max_tokens": 200, "ignore_eos": true}));
    let (_, reply) = post(&engine.url(), CHAT, &body);
    let messages = body["messages"].as_array_mut().expect("a list");
    messages.push(reply["choices"][0]["message"].clone());
    messages.push(json!({"role": "user", "content": "go on"}));
    let (_, reply) = post(&engine.url(), CHAT, &body);
    // 400 + 52 - 2 bytes of prompt and 199 * 4 of answer are 19 full blocks of 64.
    assert_eq!(reply["usage"]["prompt_tokens_details"]["cached_tokens"], 19 * 16);
}

#[test]
fn completions_take_all_four_forms_of_prompt() {
    let engine = engine();
    let ask = |prompt: Value| {
        let body = json!({"prompt": prompt, "max_tokens": 3, "n": 2});
        let (status, reply) = post(&engine.url(), COMPLETION, &body);
        assert_eq!(status, 200, "{reply}");
        let count = reply["choices"].as_array().expect("a list").len();
        (count, reply["usage"]["prompt_tokens"].as_u64().expect("a count"))
    };
    assert_eq!(ask(json!("12345678")), (2, 2));
    assert_eq!(ask(json!(["12345678", "123"])), (4, 3));
    assert_eq!(ask(json!([1, 2, 3])), (2, 3));
    assert_eq!(ask(json!([[1, 2, 3], [4]])), (4, 4));
    let body = json!({"prompt": "hey", "stream": true, "max_tokens": 2});
    let events = stream(&engine.url(), COMPLETION, &body);
    let first: Value = serde_json::from_str(&events[0]).expect("JSON");
    assert_eq!(first["object"], "text_completion");
    assert_eq!(first["choices"][0]["text"].as_str().map(str::len), Some(4));
    assert_eq!(events.len(), 3);
}

#[test]
fn a_tool_is_called_when_asked_for() {
    let engine = engine();
    let tools = json!({"tools": [{"type": "function", "function": {"name": "look_up"}}],
        "max_tokens": 100});
    let required = with(with(chat("hi"), &tools), &json!({"tool_choice": "required"}));
    let (_, reply) = post(&engine.url(), CHAT, &required);
    let choice = &reply["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], Value::Null);
    let call = &choice["message"]["tool_calls"][0]["function"];
    assert_eq!(call["name"], "look_up");

    let events = stream(&engine.url(), CHAT, &with(required, &json!({"stream": true})));
    let mut streamed = String::new();
    for event in &events[1..events.len() - 1] {
        let event: Value = serde_json::from_str(event).expect("JSON");
        let delta = &event["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"];
        streamed.push_str(delta.as_str().unwrap_or_default());
    }
    assert_eq!(Some(streamed.as_str()), call["arguments"].as_str());

    let auto = with(chat("please call the tool now"), &tools);
    let reason =
        |body: &Value| post(&engine.url(), CHAT, body).1["choices"][0]["finish_reason"].clone();
    assert_eq!(reason(&auto), "tool_calls");
    assert_eq!(reason(&with(chat("no need"), &tools)), "stop");
}

#[test]
fn errors_have_the_openai_shape() {
    let engine = engine();
    let long = "x".repeat(4 * 40_000);
    let cases = [
        ("POST", CHAT, "{\"model\": ".to_owned(), 400),
        ("POST", CHAT, json!({"model": "sim-model"}).to_string(), 400),
        ("POST", CHAT, json!({"messages": []}).to_string(), 400),
        ("POST", CHAT, json!({"messages": [{"role": "user", "content": 3}]}).to_string(), 400),
        ("POST", CHAT, with(chat("hi"), &json!({"model": "nope"})).to_string(), 404),
        ("POST", CHAT, with(chat("hi"), &json!({"max_tokens": 0})).to_string(), 400),
        ("POST", CHAT, chat(&long).to_string(), 400),
        ("POST", COMPLETION, json!({"prompt": []}).to_string(), 400),
        ("POST", "/v1/embeddings", json!({"input": "x"}).to_string(), 404),
        ("GET", CHAT, String::new(), 405),
    ];
    for (method, path, body, expected) in cases {
        let (status, reply) = request(&engine.url(), method, path, &body);
        let reply: Value = serde_json::from_str(&reply).expect("JSON");
        assert_eq!(status, expected, "{method} {path}: {reply}");
        assert_eq!(reply["error"]["code"], expected);
        assert!(reply["error"]["message"].is_string() && reply["error"]["type"].is_string());
    }
}

#[test]
fn a_client_that_leaves_frees_its_blocks() {
    let engine = engine();
    engine.pause();
    let streamed = with(chat("hi"), &json!({"stream": true})).to_string();
    let mut clients = vec![
        send(&engine.url(), "POST", CHAT, &streamed),
        send(&engine.url(), "POST", CHAT, &chat("hello").to_string()),
    ];
    eventually("both arrived", || engine.stats().requests == 2);
    let mut byte = [0];
    clients[0].read_exact(&mut byte).expect("the stream has begun");
    clients.clear();
    eventually("both cancelled", || engine.stats().cancelled == 2);
    engine.resume();
    let stats = engine.stats();
    assert_eq!((stats.running, stats.waiting, stats.kv_blocks_used), (0, 0, 0));
    assert_eq!(post(&engine.url(), CHAT, &chat("still there?")).0, 200);
}

#[test]
fn leaving_in_the_middle_of_an_answer_stops_it() {
    let options = EngineOptions { decode_step_ms: 5.0, ..EngineOptions::default() };
    let engine = Engine::start(options).expect("a free port");
    let more = json!({"stream": true, "max_tokens": 8000, "ignore_eos": true});
    let client = send(&engine.url(), "POST", CHAT, &with(chat("hi"), &more).to_string());
    eventually("tokens flow", || engine.stats().output_tokens > 3);
    drop(client);
    eventually("cancelled", || engine.stats().cancelled == 1);
    assert!(engine.stats().output_tokens < 200, "{:?}", engine.stats());
}

#[test]
fn metrics_count_what_happened() {
    let engine = engine();
    let body = chat(&"x".repeat(300));
    for _ in 0..2 {
        post(&engine.url(), CHAT, &body);
    }
    let (_, page) = request(&engine.url(), "GET", "/metrics", "");
    let labels = r#"{engine="0",model_name="sim-model"}"#;
    // 350 bytes are 88 tokens, 87 of them 5 blocks and a bit.
    for (name, value) in [
        ("prefix_cache_queries_total", 176),
        ("prefix_cache_hits_total", 80),
        ("generation_tokens_total", 10),
        ("num_requests_running", 0),
        ("kv_cache_usage_perc", 0),
        ("time_to_first_token_seconds_count", 2),
    ] {
        let line = format!("vllm:{name}{labels} {value}");
        assert!(page.lines().any(|found| found == line), "no {line} in\n{page}");
    }
    assert!(page.contains(
        r#"time_to_first_token_seconds_bucket{engine="0",model_name="sim-model",le="0.001"}"#
    ));
}

#[test]
fn says_who_and_how_it_is() {
    let engine = engine();
    let (_, models) = request(&engine.url(), "GET", "/v1/models", "");
    let models: Value = serde_json::from_str(&models).expect("JSON");
    assert_eq!(models["data"][0]["id"], "sim-model");
    assert!(request(&engine.url(), "GET", "/version", "").1.contains("sim"));
    engine.set_healthy(false);
    assert_eq!(request(&engine.url(), "GET", "/health", "").0, 503);
}

#[test]
fn a_killed_engine_cuts_its_streams_and_frees_its_port() {
    let engine = engine();
    let port = engine.port();
    engine.pause();
    let body = with(chat("hi"), &json!({"stream": true})).to_string();
    let mut client = send(&engine.url(), "POST", CHAT, &body);
    eventually("it arrived", || engine.stats().requests == 1);
    engine.kill();
    let mut rest = String::new();
    // A reset is as good as an early end.
    drop(client.read_to_string(&mut rest));
    assert!(!rest.contains("[DONE]") && !rest.contains("\r\n0\r\n\r\n"), "{rest}");
    let again = EngineOptions { port, ..EngineOptions::instant() };
    let engine = Engine::start(again).expect("the port is free");
    assert_eq!(post(&engine.url(), CHAT, &chat("hi")).0, 200);
}

#[test]
fn a_stopped_engine_finishes_what_runs() {
    let options = EngineOptions { decode_step_ms: 2.0, ..EngineOptions::default() };
    let engine = Engine::start(options).expect("a free port");
    let more = json!({"stream": true, "max_tokens": 60});
    let mut client = send(&engine.url(), "POST", CHAT, &with(chat("hi"), &more).to_string());
    eventually("tokens flow", || engine.stats().output_tokens > 0);
    engine.stop();
    let mut rest = String::new();
    client.read_to_string(&mut rest).expect("it ends well");
    assert!(rest.contains("[DONE]"));
}
