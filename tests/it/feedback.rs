//! Passive feedback: what answers say was cached, held against what was predicted.

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::support::{
    Act, Ask, How, Lb, Proto, Reporter, Seen, confirmed, deliver, drops, echo, eventually,
    ids_prompt, lb, matched, noise, presumed, stored_ids, tokens, trust_is,
};

/// A way to ask, and to be told what was cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Chat,
    Completions,
    Responses,
    Messages,
    /// llama.cpp's own.
    Timings,
    /// Chat of llama.cpp, which tells by `timings` what it does not by `usage`.
    ChatTimings,
}

const FORMS: [Form; 6] = [
    Form::Chat,
    Form::Completions,
    Form::Responses,
    Form::Messages,
    Form::Timings,
    Form::ChatTimings,
];

impl Form {
    /// A prompt of ten blocks of 32 bytes of canonical text.
    fn ask(self, stream: bool, seed: usize) -> Ask {
        let letters = |bytes: usize| {
            let text = format!("{seed:04}{}", String::from_utf8(noise(bytes)).expect("ASCII"));
            text[..bytes].to_owned()
        };
        // `<|im_start|>user\n`, `<|im_end|>\n` and `<|im_start|>assistant\n` have 50 bytes.
        let messages = json!([{"role": "user", "content": letters(270)}]);
        let (path, mut body) = match self {
            Form::Chat | Form::ChatTimings => {
                ("/v1/chat/completions", json!({"messages": messages}))
            }
            Form::Completions => ("/v1/completions", json!({"prompt": letters(320)})),
            Form::Timings => ("/completion", json!({"prompt": letters(320)})),
            Form::Responses => ("/v1/responses", json!({"input": letters(270)})),
            Form::Messages => ("/v1/messages", json!({"max_tokens": 5, "messages": messages})),
        };
        body["model"] = json!("m");
        if stream {
            body["stream"] = json!(true);
        }
        Ask::post(path, body.to_string())
    }

    /// An answer to a prompt of 100 tokens, of which so many were cached.
    fn answer(self, stream: bool, cached: u64) -> Act {
        let rest = 100 - cached;
        let details = json!({"cached_tokens": cached});
        let usage = json!({"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105,
            "prompt_tokens_details": details});
        let timings = json!({"cache_n": cached, "prompt_n": rest, "predicted_n": 5});
        let input = json!({"input_tokens": 100, "input_tokens_details": details,
            "output_tokens": 5});
        let anthropic = json!({"input_tokens": rest, "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached, "output_tokens": 1});
        let delta = |text: &str| json!({"choices": [{"index": 0, "delta": {"content": text}}]});
        let whole = match self {
            Form::Chat | Form::Completions => json!({"choices": [], "usage": usage}),
            Form::Responses => json!({"object": "response", "usage": input}),
            Form::Messages => json!({"type": "message", "content": [], "usage": anthropic}),
            Form::Timings => json!({"content": "x", "tokens_cached": 104, "tokens_evaluated": 100,
                "timings": timings}),
            Form::ChatTimings => json!({"choices": [], "timings": timings}),
        };
        if !stream {
            return Act::json(&whole);
        }
        let events = match self {
            Form::Chat => vec![delta("a"), delta("b"), whole],
            Form::Completions => vec![json!({"choices": [{"index": 0, "text": "a"}]}), whole],
            Form::Responses => vec![
                json!({"type": "response.created", "response": {"usage": null}}),
                json!({"type": "response.output_text.delta", "delta": "\"usage\":{"}),
                json!({"type": "response.completed", "response": whole}),
            ],
            Form::Messages => vec![
                json!({"type": "message_start", "message": whole}),
                json!({"type": "content_block_delta", "index": 0, "delta": {"text": "a"}}),
                json!({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 5}}),
            ],
            Form::Timings => vec![json!({"content": "a", "stop": false}), whole],
            Form::ChatTimings => vec![delta("a"), whole],
        };
        let mut pieces: Vec<_> = events.iter().map(|event| format!("data: {event}\n\n")).collect();
        if matches!(self, Form::Chat | Form::Completions | Form::ChatTimings) {
            pieces.push("data: [DONE]\n\n".to_owned());
        }
        Act::Pieces(pieces)
    }
}

/// What came of predictions for `w0`: predicted, actual, stale, missed tokens.
async fn counted(lb: &Lb) -> [i64; 4] {
    let metrics = lb.metrics().await;
    ["predicted_cached", "actual_cached", "stale", "missed"]
        .map(|kind| metrics.sum(&format!("warmroute_{kind}_tokens_total"), &[("worker", "w0")]))
}

async fn outcomes(lb: &Lb) -> [i64; 4] {
    let metrics = lb.metrics().await;
    ["right", "stale", "missed", "absent"]
        .map(|outcome| metrics.sum("warmroute_feedback_total", &[("outcome", outcome)]))
}

/// The line of the access log of this request.
async fn line(lb: &Lb, id: &str) -> Value {
    let mut found = Value::Null;
    eventually("the request is in the access log", async || {
        let log = lb.stdout();
        let line = log.lines().find(|line| line.contains(id));
        found = line.and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
        !found.is_null()
    })
    .await;
    found
}

#[tokio::test]
async fn answers_of_every_form_are_held_against_the_prediction() {
    let lb = lb()
        .worker(echo().yaml("models: [m]"))
        .config("index: {block_bytes: 32}\nlog: {format: json}")
        .start()
        .await;
    let mut wanted = [0; 4];
    for (nth, form) in FORMS.into_iter().enumerate() {
        for stream in [false, true] {
            let seed = 10 * nth + usize::from(stream);
            let (first, other) = (form.ask(stream, seed), form.ask(stream, 1000 + seed));
            // Of a prompt held whole all but the last token should be cached; a block has ten.
            for (ask, matches, predicted, cached) in [
                (&first, "0/10", 0, 0),
                (&first, "10/10", 99, 90),
                (&first, "10/10", 99, 40),
                (&other, "0/10", 0, 50),
            ] {
                lb.workers[0].set_act(form.answer(stream, cached));
                let answer = lb.ask(ask).await;
                let case = format!("{form:?}, stream {stream}, {cached} cached");
                assert_eq!((answer.status, &answer.broken), (200, &None), "{case}");
                assert_eq!(answer.header("x-router-matched"), matches, "{case}");
                let line = line(&lb, answer.header("x-request-id")).await;
                let said = (line["predicted_tokens"].as_u64(), line["cached_tokens"].as_u64());
                assert_eq!(said, (Some(predicted), Some(cached)), "{case}: {line}");
            }
            for (total, more) in wanted.iter_mut().zip([198, 180, 68, 50]) {
                *total += more;
            }
            assert_eq!(counted(&lb).await, wanted, "{form:?}, stream {stream}");
        }
    }
    let rounds = 2 * FORMS.len() as i64;
    assert_eq!(outcomes(&lb).await, [2 * rounds, rounds, rounds, 0]);
    let shown = lb.status(0).await["predictions"].clone();
    let said = ["predicted_tokens", "actual_tokens", "stale_tokens", "missed_tokens"]
        .map(|key| shown[key].as_i64().expect("a number"));
    assert_eq!(said, wanted);
}

#[tokio::test]
async fn answers_that_do_not_say_are_counted_as_absent() {
    let lb = lb().worker(echo().yaml("models: [m]")).config("log: {format: json}").start().await;
    let usage = |details: Value| {
        json!({"choices": [], "usage": {"prompt_tokens": 100,
        "completion_tokens": 5, "prompt_tokens_details": details}})
    };
    let silent = [
        Act::json(&json!({"choices": []})),
        Act::json(&usage(Value::Null)),
        Act::json(&usage(json!({}))),
        Act::json(
            &json!({"choices": [{"message": {"content": "\"usage\":{\"prompt_tokens\":9}"}}],
            "usage": {"prompt_tokens": 100}}),
        ),
        Act::Stream { events: 3, gated: false },
        Act::Pieces(vec!["data: {\"usage\":{\"prompt_tokens\":100,\"prompt_tok".to_owned()]),
    ];
    for (nth, act) in (1..).zip(silent) {
        lb.workers[0].set_act(act);
        let answer = lb.ask(&Ask::chat_with("m", &format!("{nth} hello").repeat(30))).await;
        assert_eq!(answer.status, 200);
        assert_eq!(outcomes(&lb).await, [0, 0, 0, nth]);
        let line = line(&lb, answer.header("x-request-id")).await;
        assert!(line.get("predicted_tokens").is_none(), "{line}");
        assert!(line.get("cached_tokens").is_none(), "{line}");
    }
    // What is no answer to a prompt says nothing of the cache, and is not expected to.
    let before = outcomes(&lb).await;
    lb.workers[0].set_act(Act::answer(400));
    assert_eq!(lb.ask(&Ask::chat_with("m", "refused")).await.status, 400);
    lb.workers[0].set_act(Form::Chat.answer(false, 50));
    let embed = json!({"model": "m", "input": "hello"}).to_string();
    assert_eq!(lb.ask(&Ask::post("/v1/embeddings", embed)).await.status, 200);
    assert_eq!(lb.ask(&Ask::post("/v1/chat/completions", "no JSON")).await.status, 200);
    assert_eq!(outcomes(&lb).await, before);
    assert_eq!(counted(&lb).await, [0; 4]);
}

/// An answer to a prompt of so many tokens.
fn said(prompt: usize, cached: usize) -> Act {
    Act::json(&json!({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": cached}}}))
}

/// A worker of the model `m` that reports.
async fn reporting(config: &str) -> Lb {
    let lb = lb().worker(echo().yaml("models: [m]")).config("reports: {}");
    lb.config(config).start().await
}

#[tokio::test]
async fn of_an_exact_worker_the_engine_s_own_arithmetic_is_predicted() {
    let lb = reporting("").await;
    let mut reporter = Reporter::new(&lb, "w0");
    let all = tokens(1, 200);
    reporter.send_well(&[stored_ids(&[1, 2, 3], None, &all[..96], 32)]).await;
    // Whole blocks of 32, short of the last token.
    let mut wanted = 0;
    for (prompt, predicted) in [(20, 0), (32, 0), (33, 32), (64, 32), (95, 64), (96, 64), (97, 96)]
    {
        lb.workers[0].set_act(said(prompt, predicted));
        matched(&lb, &ids_prompt("m", &all[..prompt])).await;
        wanted += predicted as i64;
        assert_eq!(counted(&lb).await, [wanted, wanted, 0, 0], "a prompt of {prompt}");
    }
    assert_eq!(outcomes(&lb).await, [7, 0, 0, 0]);
    assert_eq!(lb.status(0).await["trust"], "exact");
}

#[tokio::test]
async fn two_sure_predictions_answered_with_nothing_drop_what_was_believed() {
    let lb = reporting("").await;
    let mut reporter = Reporter::new(&lb, "w0");
    let all = tokens(1, 100);
    let event = stored_ids(&[1, 2, 3, 4, 5, 6], None, &all[..96], 16);
    reporter.send_well(std::slice::from_ref(&event)).await;
    let ask = ids_prompt("m", &all);
    let answered = async |cached: usize| {
        lb.workers[0].set_act(said(100, cached));
        assert_eq!(matched(&lb, &ask).await, (6, 6));
    };
    answered(0).await;
    answered(96).await;
    answered(0).await;
    assert_eq!(confirmed(&lb, 0).await, [6, 0, 0], "one is no proof");
    assert_eq!(drops(&lb, "w0").await, 0);
    answered(0).await;
    assert_eq!(confirmed(&lb, 0).await, [0; 3]);
    assert_eq!(drops(&lb, "w0").await, 1);
    trust_is(&lb, 0, "degraded").await;
    let log = lb.stderr();
    let dropped = log.lines().find(|line| line.contains("is dropped"));
    assert!(dropped.is_some_and(|line| line.contains("w0") && line.contains("WARN")), "{log}");
    // The reporter is asked for the truth.
    let beat =
        json!({"worker_id": "w0", "worker_url": lb.workers[0].url(), "epoch": "a", "seq": 1});
    assert_eq!(lb.report("/v1/heartbeat", &beat).await.json()["resync"], true);
    assert_eq!(counted(&lb).await, [4 * 96, 96, 3 * 96, 0]);
    // And can tell it.
    let blocks: Vec<_> = (0..6)
        .map(|at| {
            json!({"block_hash": at + 1, "parent_block_hash": (at > 0).then_some(at),
                "token_ids": all[16 * at..][..16], "block_size": 16})
        })
        .collect();
    let snapshot = json!({"worker_id": "w0", "epoch": "a", "seq": 1,
        "snapshot": {"part": 0, "last": true, "blocks": blocks}});
    assert_eq!(lb.report("/v1/sync", &snapshot).await.json()["want"], "nothing");
    trust_is(&lb, 0, "exact").await;
    answered(96).await;
}

#[tokio::test]
async fn what_was_only_presumed_is_no_sure_prediction() {
    let lb = lb().worker(echo().yaml("models: [m]")).start().await;
    let ask = ids_prompt("m", &tokens(1, 100));
    lb.workers[0].set_act(said(100, 0));
    matched(&lb, &ask).await;
    for _ in 0..4 {
        assert_eq!(matched(&lb, &ask).await, (6, 6), "it was prefilled there just now");
    }
    assert_eq!(drops(&lb, "w0").await, 0);
    // Whole blocks of ours, as those of the engine are not known.
    assert_eq!(counted(&lb).await, [4 * 96, 0, 4 * 96, 0]);
}

/// An engine that says usage in a stream only when it is asked to.
fn says_when_asked(cut: usize) -> Act {
    Act::script(move |seen: &Seen| {
        let body: Value = serde_json::from_slice(&seen.body).expect("JSON");
        let asked = body["stream_options"]["include_usage"] == true;
        let text = events(asked);
        let cuts = text
            .as_bytes()
            .chunks(cut)
            .map(|piece| String::from_utf8(piece.to_vec()).expect("ASCII"));
        Act::Pieces(cuts.collect())
    })
}

fn events(with_usage: bool) -> String {
    let choice = |text: &str| {
        format!(
            "data: {{\"id\":\"x\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n"
        )
    };
    let usage = "data: {\"id\":\"x\",\"choices\":[],\"usage\":{\"prompt_tokens\":100,\
        \"completion_tokens\":3,\"prompt_tokens_details\":{\"cached_tokens\":60}}}\n\n";
    let mut text = format!(": a comment\n\n{}{}{}", choice("a"), choice("usage"), choice("c"));
    if with_usage {
        text += usage;
    }
    text + "data: [DONE]\n\n"
}

fn streamed(path: &str, more: &Value) -> Ask {
    let mut body = json!({"model": "m", "stream": true});
    if path.ends_with("chat/completions") {
        body["messages"] = json!([{"role": "user", "content": "hello ".repeat(50)}]);
    } else {
        body["prompt"] = json!("hello ".repeat(50));
    }
    for (key, value) in more.as_object().expect("an object") {
        body[key] = value.clone();
    }
    Ask::post(path, body.to_string())
}

#[tokio::test]
async fn usage_is_asked_for_and_kept_from_a_client_that_did_not() {
    let lb = lb()
        .worker(echo().yaml("models: [m]"))
        .config("feedback: {include_usage: true}\nlog: {format: json}")
        .start()
        .await;
    let mut answers = 0;
    for cut in [1 << 20, 7, 1] {
        lb.workers[0].set_act(says_when_asked(cut));
        for path in ["/v1/chat/completions", "/v1/completions"] {
            for more in [
                json!({}),
                json!({"stream_options": null}),
                json!({"stream_options": {"include_usage": false}}),
                json!({"stream_options": {"other": 1}}),
            ] {
                let ask = streamed(path, &more);
                for ask in [ask.clone(), ask.clone().in_pieces(10), ask.clone().h2()] {
                    let answer = lb.ask(&ask).await;
                    let case = format!("{path} {more} {:?}, cut every {cut}", ask.proto);
                    assert_eq!(answer.broken, None, "{case}");
                    let body = String::from_utf8_lossy(&answer.body).into_owned();
                    assert_eq!(body, events(false), "{case}");
                    let seen = lb.workers[0].requests().pop().expect("a request");
                    let arrived: Value = serde_json::from_slice(&seen.body).expect("JSON");
                    let mut sent: Value = serde_json::from_slice(&ask.body).expect("JSON");
                    if !sent["stream_options"].is_object() {
                        sent["stream_options"] = json!({});
                    }
                    sent["stream_options"]["include_usage"] = json!(true);
                    assert_eq!(arrived, sent, "{case}");
                    if let Some(length) = seen.headers.get("content-length") {
                        assert_eq!(length, &seen.body_bytes.to_string(), "{case}");
                    }
                    answers += 1;
                    let line = line(&lb, answer.header("x-request-id")).await;
                    assert_eq!(line["cached_tokens"], 60, "{case}: {line}");
                    assert_eq!(line["bytes_out"], events(false).len(), "{case}: {line}");
                }
            }
        }
    }
    assert_eq!(outcomes(&lb).await.iter().sum::<i64>(), answers);
    assert_eq!(outcomes(&lb).await[3], 0, "none of them said nothing");
}

#[tokio::test]
async fn a_client_that_asked_for_usage_gets_it_and_other_requests_stay_as_they_are() {
    let lb = lb()
        .worker(echo().yaml("models: [m]"))
        .config("feedback: {include_usage: true}")
        .start()
        .await;
    lb.workers[0].set_act(says_when_asked(7));
    let asked = json!({"stream_options": {"include_usage": true}});
    for path in ["/v1/chat/completions", "/v1/completions"] {
        let ask = streamed(path, &asked);
        let answer = lb.ask(&ask).await;
        assert_eq!(String::from_utf8_lossy(&answer.body), events(true), "{path}");
        assert_eq!(lb.workers[0].requests().pop().expect("a request").sha256, ask.sha256());
    }
    lb.workers[0].set_act(Act::Echo);
    let body = |more: Value| {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "x"}]});
        for (key, value) in more.as_object().expect("an object") {
            body[key] = value.clone();
        }
        body.to_string()
    };
    for ask in [
        Ask::chat_with("m", "no stream"),
        Ask::post("/v1/chat/completions", body(json!({"stream": false}))),
        Ask::post("/v1/chat/completions", body(json!({"stream": true, "stream_options": 7}))),
        Ask::post("/v1/messages", body(json!({"stream": true}))),
        Ask::post("/v1/responses", json!({"model": "m", "stream": true, "input": "x"}).to_string()),
        Ask::post("/v1/audio", body(json!({"stream": true}))),
        Ask::post("/v1/chat/completions", "{\"stream\": true, \"broken\""),
    ] {
        for how in How::ALL {
            let delivered = deliver(&lb, how, &ask).await;
            assert_eq!(delivered.json["sha256"], ask.sha256(), "{how:?} {ask:?}");
        }
    }
}

/// The longer body is sent whole again to the next worker.
#[tokio::test]
async fn a_request_that_asks_for_usage_can_be_tried_again() {
    let lb = lb()
        .worker(echo().yaml("models: [m]"))
        .worker(echo().yaml("models: [m]"))
        .config("feedback: {include_usage: true}\npolicy: round-robin")
        .config("health: {interval_ms: 600000}\nbreaker: {failures_in_row_max: 1000}")
        .start()
        .await;
    lb.workers[1].set_act(says_when_asked(1000));
    lb.workers[0].kill().await;
    let mut tried = 0;
    for ask in
        [streamed("/v1/chat/completions", &json!({})), streamed("/v1/completions", &json!({}))]
    {
        for _ in 0..2 {
            let answer = lb.ask(&ask).await;
            assert_eq!(String::from_utf8_lossy(&answer.body), events(false));
            tried += i64::from(answer.header("x-router-reason") == "retry");
        }
    }
    assert!(tried > 0, "the first takes its turns");
    assert_eq!(lb.metrics().await.sum("warmroute_retries_total", &[("cause", "connect")]), tried);
}

/// Without it nothing is asked for.
#[tokio::test]
async fn usage_is_not_asked_for_unless_that_is_configured() {
    let lb = lb().worker(echo().yaml("models: [m]")).start().await;
    lb.workers[0].set_act(says_when_asked(1000));
    let ask = streamed("/v1/chat/completions", &json!({}));
    let answer = lb.ask(&ask).await;
    assert_eq!(String::from_utf8_lossy(&answer.body), events(false));
    assert_eq!(lb.workers[0].requests().pop().expect("a request").sha256, ask.sha256());
    assert_eq!(outcomes(&lb).await, [0, 0, 0, 1]);
}

/// A cache of so many blocks of 16 tokens that drops the least recently used, a prompt's end first.
struct Lru {
    blocks_max: usize,
    recency: Vec<Vec<u32>>,
}

impl Lru {
    /// Tokens cached of a prompt, which is then.
    fn prefill(&mut self, prompt: &[u32]) -> usize {
        // Prompts share nothing but prefixes, so a block is known by its own tokens.
        let blocks: Vec<_> = prompt.chunks_exact(16).map(<[u32]>::to_vec).collect();
        let cached = blocks.iter().take_while(|block| self.recency.contains(block)).count();
        self.recency.retain(|block| !blocks.contains(block));
        self.recency.extend(blocks.into_iter().rev());
        let over = self.recency.len().saturating_sub(self.blocks_max);
        self.recency.drain(..over);
        16 * cached
    }
}

#[tokio::test]
async fn the_size_of_a_cache_is_learned_from_answers() {
    const BLOCKS: usize = 160;
    for (cache_tokens, configured) in [(BLOCKS * 16 * 4, "large"), (BLOCKS * 16 / 4, "small")] {
        // A block is 64 bytes, taken for 16 tokens.
        let config = format!("index: {{block_bytes: 64, cache_tokens: {cache_tokens}}}");
        let lb = lb().worker(echo().yaml("models: [m]")).config(&config).start().await;
        let budget = async || {
            let status = lb.status(0).await;
            status["index"]["budget_blocks"].as_u64().expect("a number") as usize
        };
        assert_eq!(budget().await, cache_tokens / 16);
        let engine = Arc::new(Mutex::new(Lru { blocks_max: BLOCKS, recency: Vec::new() }));
        lb.workers[0].set_act(Act::script(move |seen: &Seen| {
            let body: Value = serde_json::from_slice(&seen.body).expect("JSON");
            let prompt: Vec<u32> = serde_json::from_value(body["prompt"].clone()).expect("ids");
            said(prompt.len(), engine.lock().prefill(&prompt))
        }));
        let mut conn = lb.conn(Proto::H1).await;
        let (mut state, mut sent) = (1_u64, 0);
        let close = |budget: usize| (BLOCKS * 3 / 4..=BLOCKS * 4 / 3).contains(&budget);
        while sent < 1500 && !(sent > 100 && sent % 50 == 0 && close(budget().await)) {
            // Forty conversations, of which some are much more common, of up to 15 blocks.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (a, b) = ((state >> 33) % 40, (state >> 45) % 40);
            let length = 16 * (4 + (state >> 55) % 12) as u32 + 1;
            let answer = conn.ask(&ids_prompt("m", &tokens(1 + a.min(b) as u32, length))).await;
            assert_eq!(answer.status, 200);
            sent += 1;
        }
        let learned = budget().await;
        assert!(close(learned), "{configured}: {learned} after {sent} answers, not {BLOCKS}");
        // What is presumed is held to it.
        assert!(presumed(&lb, 0).await <= learned as u64);
    }
}
