//! What an engine knows and says of its cache: token ids, blocks, events.

use std::{
    collections::BTreeMap,
    fmt::Write,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use super::{Ask, Lb, eventually};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The folder of a tokenizer with which the recorded chats give the recorded ids.
pub(crate) fn tokenizer() -> String {
    fixtures().join("tokenizer-qwen3-subset").display().to_string()
}

/// A recorded chat: its name, the request, and the token ids vLLM used.
pub(crate) struct ChatVector {
    pub(crate) name: String,
    /// As it was sent, as the order of keys counts.
    request: String,
    /// The text the engine made of it.
    pub(crate) rendered: String,
    pub(crate) tokens: Vec<u32>,
}

impl ChatVector {
    /// The chat, for this model, with these fields besides.
    pub(crate) fn ask(&self, model: &str, more: &Value) -> Ask {
        let mut body = format!("{{\"model\": {}", json!(model));
        for (key, value) in more.as_object().expect("an object") {
            let _ = write!(body, ", {}: {value}", json!(key));
        }
        body += ",";
        body += self.request.trim_start().strip_prefix('{').expect("an object");
        Ask::post("/v1/chat/completions", body)
    }

    /// Blocks of 16 tokens.
    pub(crate) fn blocks(&self) -> usize {
        self.tokens.len() / 16
    }

    /// Its tokens, as far as they fill blocks of this size.
    pub(crate) fn in_blocks_of(&self, size: usize) -> &[u32] {
        &self.tokens[..self.tokens.len() / size * size]
    }
}

#[derive(Deserialize)]
struct Recorded {
    request: Box<RawValue>,
    rendered_text: String,
    token_ids: Vec<u32>,
}

/// The recorded chats that fill a block of 16 tokens at least.
pub(crate) fn chat_vectors() -> Vec<ChatVector> {
    let path = fixtures().join("vllm-0.32.0-vectors/chat_token_ids_qwen3.json");
    let file = std::fs::read(path).expect("vectors");
    let all: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(&file).expect("JSON");
    let chat = |(name, vector): (String, Box<RawValue>)| {
        let recorded: Recorded = serde_json::from_str(vector.get()).ok()?;
        let Recorded { request, rendered_text: rendered, token_ids: tokens } = recorded;
        let request = request.get().to_owned();
        (tokens.len() >= 16).then_some(ChatVector { name, request, rendered, tokens })
    };
    let found: Vec<_> = all.into_iter().filter_map(chat).collect();
    assert!(found.len() >= 4, "the vectors have another form");
    found
}

/// So many token ids that part from every other seed's at the start.
pub(crate) fn tokens(seed: u32, count: u32) -> Vec<u32> {
    (0..count).map(|at| seed * 10_000 + at).collect()
}

/// A completion of a prompt of token ids.
pub(crate) fn ids_prompt(model: &str, ids: &[u32]) -> Ask {
    Ask::post("/v1/completions", json!({"model": model, "prompt": ids}).to_string())
}

/// A pushed `stored` event.
pub(crate) fn stored_ids(ids: &[u64], parent: Option<u64>, tokens: &[u32], size: usize) -> Value {
    json!({"type": "stored", "block_hashes": ids, "parent_block_hash": parent, "token_ids": tokens,
        "block_size": size})
}

/// A published one, as vLLM 0.32 writes it.
pub(crate) fn block_stored(ids: &[u64], parent: Option<u64>, tokens: &[u32], size: usize) -> Value {
    json!({"type": "BlockStored", "block_hashes": ids, "parent_block_hash": parent,
        "token_ids": tokens, "block_size": size, "lora_id": null, "medium": "GPU",
        "lora_name": null, "extra_keys": null, "group_idx": 0,
        "kv_cache_spec_kind": "full_attention", "kv_cache_spec_sliding_window": null})
}

/// A batch of published events; no two are alike.
pub(crate) fn kv_batch(events: &[Value]) -> Vec<u8> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let ts = 1.7e9 + NEXT.fetch_add(1, Relaxed) as f64;
    let batch = json!([ts, events, 0]);
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, &packed(&batch)).expect("a vector takes all");
    bytes
}

/// JSON as MessagePack; `{"bin": "6162"}` stands for bytes.
fn packed(json: &Value) -> rmpv::Value {
    match json {
        Value::Null => rmpv::Value::Nil,
        Value::Bool(bool) => (*bool).into(),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => number.into(),
            (None, Some(number)) => number.into(),
            (None, None) => number.as_f64().expect("a number").into(),
        },
        Value::String(text) => text.as_str().into(),
        Value::Array(list) => list.iter().map(packed).collect::<Vec<_>>().into(),
        Value::Object(map) => {
            if let Some(hex) = map.get("bin").and_then(Value::as_str) {
                let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
                return rmpv::Value::Binary((0..hex.len()).step_by(2).map(byte).collect());
            }
            let pair = |(key, value): (&String, &Value)| (key.as_str().into(), packed(value));
            rmpv::Value::Map(map.iter().map(pair).collect())
        }
    }
}

/// Matched and all blocks of a request that must be answered. An answer is there before its request
/// is no longer its worker's load, which is worth more than a block or two: waits for that first.
pub(crate) async fn matched(lb: &Lb, ask: &Ask) -> (usize, usize) {
    eventually("nothing is in flight", async || {
        let all = lb.admin("/workers").await.json();
        all["workers"].as_array().expect("a list").iter().all(|worker| worker["inflight"] == 0)
    })
    .await;
    let answer = lb.ask(ask).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let (matched, total) = answer.header("x-router-matched").split_once('/').expect("n/m");
    (matched.parse().expect("a number"), total.parse().expect("a number"))
}

/// Blocks confirmed in GPU, CPU and storage.
pub(crate) async fn confirmed(lb: &Lb, worker: usize) -> [u64; 3] {
    let status = lb.status(worker).await;
    let blocks = status["index"]["confirmed_blocks"].clone();
    serde_json::from_value(blocks).unwrap_or_else(|_| panic!("{status}"))
}

/// Blocks presumed.
pub(crate) async fn presumed(lb: &Lb, worker: usize) -> u64 {
    let status = lb.status(worker).await;
    status["index"]["presumed_blocks"].as_u64().unwrap_or_else(|| panic!("{status}"))
}

/// Waits until the worker is trusted so.
pub(crate) async fn trust_is(lb: &Lb, worker: usize, trust: &str) {
    let what = format!("worker {worker} is trusted: {trust}");
    eventually(&what, async || lb.status(worker).await["trust"] == trust).await;
    let gauge = match trust {
        "exact" => 2,
        "degraded" => 1,
        _ => 0,
    };
    let id = lb.status(worker).await["id"].as_str().expect("an id").to_owned();
    let shown = lb.metrics().await.sum("warmroute_trust_state", &[("worker", &id)]);
    assert_eq!(shown, gauge, "{what}");
}

/// Waits until the gauge of held blocks of a worker shows this.
pub(crate) async fn holds(lb: &Lb, worker: &str, kind: &str, blocks: i64) {
    eventually(&format!("{worker} holds {blocks} in {kind}"), async || {
        let labels = [("worker", worker), ("kind", kind)];
        lb.metrics().await.sum("warmroute_holdings_blocks", &labels) == blocks
    })
    .await;
}

/// How often all that was believed of a worker was dropped.
pub(crate) async fn drops(lb: &Lb, worker: &str) -> i64 {
    lb.metrics().await.sum("warmroute_holdings_dropped_total", &[("worker", worker)])
}
