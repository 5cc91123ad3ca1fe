//! Aligned mode: requests are named by the token ids their engine will use.

use std::sync::{
    Arc, LazyLock,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use openssl::sha::sha256;
use serde_json::{Value, json};
use warmroute::aligned::{AlignedModel, Options};

use crate::support::{
    Ask, ChatVector, Lb, Reporter, WorkerSpec, block_stored, chat_vectors, confirmed, echo,
    eventually, ids_prompt, kv_batch, lb, matched, stored_ids, tokenizer, trust_is,
    zmq_engine::ZmqEngine,
};

/// Workers whose engines serve `model` with the tokenizer at hand; `more` goes below the model.
async fn fleet(workers: Vec<WorkerSpec>, model: &str, more: &str, config: &str) -> Lb {
    let mut scene = lb();
    for worker in workers {
        scene = scene.worker(worker);
    }
    scene
        .config(&format!("models: {{{model}: {{tokenizer: {}{more}}}}}", tokenizer()))
        // The price of a request outweighs a match of some tokens.
        .config("policy: sticky-least-loaded")
        .config("reports: {}\naligned: {parity_interval_s: 0}")
        .config(config)
        .start()
        .await
}

/// Two workers of the model `m`.
async fn two(more: &str, config: &str) -> Lb {
    let worker = || echo().yaml("models: [m]");
    fleet(vec![worker(), worker()], "m", more, config).await
}

/// How many requests came to this.
async fn outcomes(lb: &Lb, outcome: &str) -> i64 {
    lb.metrics().await.sum("warmroute_aligned_requests_total", &[("outcome", outcome)])
}

/// Names for the blocks of the `nth` chat.
fn names(nth: usize, blocks: usize) -> Vec<u64> {
    (0..blocks as u64).map(|at| 1000 * (nth as u64 + 1) + at).collect()
}

#[tokio::test]
async fn chats_are_matched_by_the_token_ids_that_were_pushed() {
    let lb = two("", "").await;
    let mut reporter = Reporter::new(&lb, "w1");
    let mut asked = 0;
    for (nth, vector) in chat_vectors().iter().enumerate() {
        for (round, size) in [48, 8, 16].into_iter().enumerate() {
            let (held, name) = (vector.in_blocks_of(size), &vector.name);
            if held.is_empty() {
                continue;
            }
            let ids = names(10 * nth + round, held.len() / size);
            let cleared = json!({"type": "cleared"});
            reporter.send_well(&[cleared, stored_ids(&ids, None, held, size)]).await;
            let wanted = (held.len() / 16, vector.blocks());
            assert_eq!(matched(&lb, &vector.ask("m", &json!({}))).await, wanted, "{name}, {size}");
            assert_eq!(lb.workers[0].request_count(), 0, "the other worker was picked");
            asked += 1;
        }
    }
    assert_eq!(outcomes(&lb, "aligned").await, asked);
    assert_eq!(lb.metrics().await.sum("warmroute_align_seconds_count", &[]), asked);
}

#[tokio::test]
async fn chats_are_matched_by_the_token_ids_that_were_published() {
    let engine = ZmqEngine::start().await;
    let sources = engine.sources();
    let publisher = echo()
        .yaml("models: [m]")
        .yaml("kv_events: auto")
        .side("/kv_event_sources", move |_| (200, sources.clone()));
    let lb = fleet(vec![echo().yaml("models: [m]"), publisher], "m", "", "").await;
    trust_is(&lb, 1, "exact").await;
    engine.subscribed().await;
    let vectors = chat_vectors();
    for (nth, vector) in vectors.iter().enumerate() {
        let held = vector.in_blocks_of(16);
        let event = block_stored(&names(nth, held.len() / 16), None, held, 16);
        engine.publish(&kv_batch(&[event]));
    }
    eventually("all batches are applied", async || {
        let batches = lb.metrics().await.sum("warmroute_kv_event_batches_total", &[]);
        batches == vectors.len() as i64
    })
    .await;
    for vector in &vectors {
        let wanted = (vector.blocks(), vector.blocks());
        assert_eq!(matched(&lb, &vector.ask("m", &json!({}))).await, wanted, "{}", vector.name);
    }
}

#[tokio::test]
async fn a_prompt_is_the_same_as_chat_as_text_and_as_token_ids() {
    let lb = two("", "").await;
    let mut reporter = Reporter::new(&lb, "w1");
    for (nth, vector) in chat_vectors().iter().enumerate() {
        let held = vector.in_blocks_of(16);
        let blocks = vector.blocks();
        reporter.send_well(&[stored_ids(&names(nth, blocks), None, held, 16)]).await;
        let text = json!({"model": "m", "prompt": vector.rendered});
        let text = Ask::post("/v1/completions", text.to_string());
        for ask in [ids_prompt("m", &vector.tokens), text] {
            assert_eq!(matched(&lb, &ask).await, (blocks, blocks), "{}", vector.name);
        }
    }
    // Of a list of prompts all are matched.
    let both: Vec<_> = chat_vectors().iter().map(|vector| vector.tokens.clone()).collect();
    let all: usize = chat_vectors().iter().map(ChatVector::blocks).sum();
    let list = Ask::post("/v1/completions", json!({"model": "m", "prompt": both}).to_string());
    assert_eq!(matched(&lb, &list).await, (all, all));
}

#[tokio::test]
async fn all_names_of_a_model_stand_for_the_same_blocks() {
    let worker = || echo().yaml("models: [qwen, qwen3, qwen3-32b, other]");
    let lb = fleet(vec![worker(), worker()], "qwen3-32b", ", aliases: [qwen, qwen3]", "").await;
    let mut reporter = Reporter::new(&lb, "w1");
    for (nth, vector) in chat_vectors().iter().enumerate() {
        let blocks = vector.blocks();
        // Filed under the worker's first name, or the one it says.
        let mut event = stored_ids(&names(nth, blocks), None, vector.in_blocks_of(16), 16);
        if nth % 2 == 1 {
            event["model"] = json!("qwen3");
        }
        reporter.send_well(&[event]).await;
        for name in ["qwen", "qwen3", "qwen3-32b"] {
            let ask = vector.ask(name, &json!({}));
            assert_eq!(matched(&lb, &ask).await, (blocks, blocks), "{} {name}", vector.name);
        }
        assert_eq!(matched(&lb, &vector.ask("other", &json!({}))).await.0, 0, "another model");
    }
}

#[tokio::test]
async fn an_adapter_has_the_tokenizer_of_its_base_and_blocks_of_its_own() {
    let engine = ZmqEngine::start().await;
    let sources = engine.sources();
    let worker = || echo().models(&["m"]).adapter("sql", "m").adapter("lost", "nobody");
    let publisher =
        worker().yaml("kv_events: auto").side("/kv_event_sources", move |_| (200, sources.clone()));
    let lb = fleet(vec![worker(), publisher], "m", "", "").await;
    trust_is(&lb, 1, "exact").await;
    engine.subscribed().await;
    let vectors = chat_vectors();
    let (first, second) = (&vectors[0], &vectors[1]);
    let mut of_adapter = block_stored(&names(0, first.blocks()), None, first.in_blocks_of(16), 16);
    of_adapter["lora_name"] = json!("sql");
    of_adapter["lora_id"] = json!(1);
    of_adapter["extra_keys"] = json!(vec![["sql"]; first.blocks()]);
    let of_base = block_stored(&names(1, second.blocks()), None, second.in_blocks_of(16), 16);
    engine.publish(&kv_batch(&[of_adapter, of_base]));
    eventually("the batch is applied", async || {
        lb.metrics().await.sum("warmroute_kv_event_batches_total", &[]) == 1
    })
    .await;
    let none = json!({});
    assert_eq!(matched(&lb, &first.ask("m", &none)).await.0, 0);
    assert_eq!(matched(&lb, &second.ask("sql", &none)).await.0, 0);
    let (one, two) = (first.blocks(), second.blocks());
    assert_eq!(matched(&lb, &first.ask("sql", &none)).await, (one, one));
    assert_eq!(matched(&lb, &second.ask("m", &none)).await, (two, two));
    assert_eq!(outcomes(&lb, "aligned").await, 4);
    // One whose base has no tokenizer here is matched as text.
    assert_eq!(matched(&lb, &first.ask("lost", &none)).await.0, 0);
    assert_eq!(outcomes(&lb, "aligned").await, 4);

    // The same by pushed reports of the other worker.
    let mut reporter = Reporter::new(&lb, "w0");
    let third = &vectors[2];
    let mut event = stored_ids(&names(2, third.blocks()), None, third.in_blocks_of(16), 16);
    event["lora_name"] = json!("sql");
    reporter.send_well(&[event]).await;
    assert_eq!(matched(&lb, &third.ask("m", &none)).await.0, 0);
    assert_eq!(matched(&lb, &third.ask("sql", &none)).await.0, third.blocks());
}

#[tokio::test]
async fn a_cache_salt_is_part_of_a_prompt_s_name() {
    let lb = two("", "").await;
    let mut reporter = Reporter::new(&lb, "w1");
    for (nth, vector) in chat_vectors().iter().enumerate() {
        let blocks = vector.blocks();
        let mut event = stored_ids(&names(nth, blocks), None, vector.in_blocks_of(16), 16);
        if nth % 2 == 0 {
            event["cache_salt"] = json!("tenant-a");
        } else {
            // As vLLM says it: with the first block.
            let mut keys = vec![Value::Null; blocks];
            keys[0] = json!(["tenant-a"]);
            event["extra_keys"] = json!(keys);
        }
        reporter.send_well(&[event]).await;
        let salted = |salt: &str| vector.ask("m", &json!({"cache_salt": salt}));
        assert_eq!(matched(&lb, &vector.ask("m", &json!({}))).await.0, 0, "{}", vector.name);
        assert_eq!(matched(&lb, &salted("tenant-b")).await.0, 0, "{}", vector.name);
        assert_eq!(matched(&lb, &salted("tenant-a")).await, (blocks, blocks), "{}", vector.name);
    }
}

/// Media in a block are part of what it is, in the middle of a prompt too.
#[tokio::test]
async fn what_a_block_depends_on_besides_its_tokens_keeps_it_apart() {
    let lb = two("", "").await;
    let mut reporter = Reporter::new(&lb, "w1");
    let vectors = chat_vectors();
    let vector = vectors.iter().max_by_key(|vector| vector.blocks()).expect("a vector");
    let held = vector.in_blocks_of(16);
    let blocks = vector.blocks();
    assert!(blocks > 6);
    let ids = names(0, blocks);
    let ask = vector.ask("m", &json!({}));
    for (keys, nth) in [(json!(["a9f3"]), 0), (json!([["a9f3", 0]]), 1), (json!([7]), 2)] {
        let cleared = json!({"type": "cleared"});
        let first = stored_ids(&ids[..4], None, &held[..64], 16);
        let mut second = stored_ids(&ids[4..], Some(ids[3]), &held[64..], 16);
        let mut all = vec![Value::Null; blocks - 4];
        all[0] = keys.clone();
        second["extra_keys"] = json!(all);
        reporter.send_well(&[cleared, first, second]).await;
        // Another suffix each time, as what was sent is presumed.
        let mut prompt = held[..80].to_vec();
        prompt.extend([900 + nth; 16]);
        assert_eq!(matched(&lb, &ids_prompt("m", &prompt)).await, (4, 6), "{keys}");
    }
    reporter.send_well(&[json!({"type": "cleared"})]).await;
    assert_eq!(matched(&lb, &ask).await.0, 0);
}

#[tokio::test]
async fn what_cannot_be_aligned_is_matched_as_text_and_counted() {
    let config = "index: {block_bytes: 32}\naligned: {body_bytes_max: 20000}";
    let lb = two("", config).await;
    let image = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}});
    let text = json!({"type": "text", "text": "What colour is the sky in this picture, please?"});
    let chat = |content: Value| {
        let messages = json!([{"role": "user", "content": content}]);
        let body = json!({"model": "m", "messages": messages});
        Ask::post("/v1/chat/completions", body.to_string())
    };
    let long = "The sky has a colour. ".repeat(1000);
    let items = json!([{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}]);
    let responses = json!({"model": "m", "instructions": "x".repeat(100), "input": items});
    let cases = [
        ("media", chat(json!([text, image]))),
        ("too_long", chat(json!(long))),
        ("shape", Ask::post("/v1/responses", responses.to_string())),
    ];
    for (outcome, ask) in &cases {
        let (none, total) = matched(&lb, ask).await;
        assert!(none == 0 && total > 2, "{outcome}: {none}/{total}");
        assert_eq!(matched(&lb, ask).await, (total, total), "{outcome}: again");
        assert_eq!(outcomes(&lb, outcome).await, 2, "{outcome}");
    }
    assert_eq!(outcomes(&lb, "aligned").await, 0);
    // Bodies of one text are aligned, whatever the endpoint.
    let plain = json!({"model": "m", "input": "What colour is the sky?"});
    matched(&lb, &Ask::post("/v1/responses", plain.to_string())).await;
    let messages = json!([{"role": "user", "content": "What colour is the sky?"}]);
    let plain = json!({"model": "m", "max_tokens": 9, "messages": messages});
    matched(&lb, &Ask::post("/v1/messages", plain.to_string())).await;
    assert_eq!(outcomes(&lb, "aligned").await, 2);
}

#[tokio::test]
async fn large_bodies_are_aligned_too() {
    let lb = two("", "").await;
    let content = "What colour is the sky? ".repeat(20_000);
    let ask = Ask::chat_with("m", &content);
    let (none, total) = matched(&lb, &ask).await;
    assert!(none == 0 && total > 5_000, "{none}/{total}");
    assert_eq!(matched(&lb, &ask).await, (total, total));
    assert_eq!(outcomes(&lb, "aligned").await, 2);
}

#[tokio::test]
async fn a_tenant_header_keeps_prompts_apart() {
    let lb = two("", "tenant_header: x-tenant").await;
    let vectors = chat_vectors();
    let (vector, other) = (&vectors[0], &vectors[1]);
    let of = |tenant: &str| vector.ask("m", &json!({})).header("x-tenant", tenant);
    let blocks = vector.blocks();
    assert_eq!(matched(&lb, &of("a")).await.0, 0);
    assert_eq!(matched(&lb, &of("b")).await.0, 0, "what a sent is not b's");
    assert_eq!(matched(&lb, &vector.ask("m", &json!({}))).await.0, 0, "nor everybody's");
    assert_eq!(matched(&lb, &of("a")).await, (blocks, blocks));
    assert_eq!(matched(&lb, &of("b")).await, (blocks, blocks));

    // Engines do not know tenants: what they report confirms no tenant's prompt, and what was
    // presumed of one stays though it is not confirmed.
    let mut reporter = Reporter::new(&lb, "w1");
    let held = other.in_blocks_of(16);
    reporter.send_well(&[stored_ids(&names(1, other.blocks()), None, held, 16)]).await;
    let of = |tenant: &str| other.ask("m", &json!({})).header("x-tenant", tenant);
    assert_eq!(matched(&lb, &of("a")).await.0, 0);
    assert_eq!(matched(&lb, &of("a")).await.0, other.blocks());
    assert_eq!(matched(&lb, &other.ask("m", &json!({}))).await.0, other.blocks());
}

/// A hash as vLLM's `sha256_cbor` makes it of a block: the digest of canonical CBOR.
fn cbor_hashes(tokens: &[u32], block: usize) -> Vec<u64> {
    let head = |kind: u8, value: u32| -> Vec<u8> {
        let bytes = value.to_be_bytes();
        match value {
            0..24 => vec![kind << 5 | bytes[3]],
            24..0x100 => vec![kind << 5 | 0x18, bytes[3]],
            0x100..0x1_0000 => vec![kind << 5 | 0x19, bytes[2], bytes[3]],
            _ => [&[kind << 5 | 0x1a], &bytes[..]].concat(),
        }
    };
    let mut parent = sha256(&[head(3, 14), b"vllm-none-hash".to_vec()].concat());
    let mut ids = Vec::new();
    for tokens in tokens.chunks_exact(block) {
        let mut bytes = [head(4, 3), head(2, 32), parent.to_vec()].concat();
        bytes.extend(head(4, tokens.len() as u32));
        bytes.extend(tokens.iter().flat_map(|id| head(0, *id)));
        bytes.push(0xf6);
        parent = sha256(&bytes);
        ids.push(u64::from_be_bytes(parent[24..].try_into().expect("eight bytes")));
    }
    ids
}

/// Recorded hashes: (prompt, PYTHONHASHSEED, integers, digests).
type HashVector = (Vec<u32>, Option<String>, Vec<u64>, Vec<String>);

fn hash_vectors(algorithm: &str, block: u64, extra: &str) -> Vec<HashVector> {
    let path = "tests/fixtures/vllm-0.32.0-vectors/block_hash_vectors.json";
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let all: Value = serde_json::from_slice(&std::fs::read(path).expect("reads")).expect("JSON");
    let of = |vector: &Value| {
        let fits = vector["algo"] == algorithm
            && vector["block_size"] == block
            && vector["extra"] == extra;
        let prompt = all["prompts"][vector["prompt"].as_str()?].clone();
        let seed = vector["PYTHONHASHSEED"].as_str().map(str::to_owned);
        let list = |key: &str| vector[key].clone();
        fits.then(|| {
            (
                serde_json::from_value(prompt).expect("ids"),
                seed,
                serde_json::from_value(list("hashes_u64")).expect("integers"),
                serde_json::from_value(list("hashes_hex")).expect("text"),
            )
        })
    };
    all["vectors"].as_array().expect("a list").iter().filter_map(of).collect()
}

/// Configuration of a model whose engines send bare hashes.
fn bare(algorithm: &str, block: u64, seed: Option<&str>) -> String {
    let seed = seed.map(|seed| format!(", seed: \"{seed}\"")).unwrap_or_default();
    format!(", block_hash: {{algorithm: {algorithm}, block_tokens: {block}{seed}}}")
}

fn bare_event(ids: &[u64], parent: Option<u64>) -> Value {
    json!({"type": "stored", "block_hashes": ids, "parent_block_hash": parent, "token_ids": [],
        "block_size": 16})
}

#[tokio::test]
async fn bare_hashes_are_matched_by_the_engine_s_own_hash() {
    for (algorithm, block, seed) in
        [("sha256_cbor", 16, None), ("sha256_cbor", 32, Some("42")), ("sha256", 16, Some("0"))]
    {
        let lb = two(&bare(algorithm, block, seed), "").await;
        let mut reporter = Reporter::new(&lb, "w1");
        let vectors = hash_vectors(algorithm, block, "plain");
        let vectors = vectors.iter().filter(|vector| vector.1.as_deref() == seed);
        let mut prompts = 0;
        for (tokens, _, ids, _) in vectors {
            let blocks = tokens.len() / block as usize;
            assert_eq!(ids.len(), blocks);
            // In two events, the second behind the first.
            let first = &ids[..blocks / 2 + blocks % 2];
            let mut events = vec![bare_event(first, None)];
            if first.len() < blocks {
                events.push(bare_event(&ids[first.len()..], first.last().copied()));
            }
            reporter.send_well(&events).await;
            let ask = ids_prompt("m", tokens);
            assert_eq!(matched(&lb, &ask).await, (blocks, blocks), "{algorithm} {block} {seed:?}");
            let removed = json!({"type": "removed", "block_hashes": [ids[blocks - 1]]});
            reporter.send_well(&[removed]).await;
            assert_eq!(matched(&lb, &ask).await.0, blocks - 1, "{algorithm} {block} {seed:?}");
            prompts += 1;
        }
        assert_eq!(prompts, 3);
    }
}

#[tokio::test]
async fn bare_hashes_name_chats_and_salts_too() {
    let lb = two(&bare("sha256_cbor", 16, None), "").await;
    let (tokens, _, ids, _) = hash_vectors("sha256_cbor", 16, "plain")
        .into_iter()
        .find(|vector| vector.1.is_none())
        .expect("a vector");
    assert_eq!(cbor_hashes(&tokens, 16), ids, "the test's own hash is vLLM's");
    let mut reporter = Reporter::new(&lb, "w1");
    for vector in chat_vectors() {
        let blocks = vector.blocks();
        reporter.send_well(&[bare_event(&cbor_hashes(&vector.tokens, 16), None)]).await;
        let ask = vector.ask("m", &json!({}));
        assert_eq!(matched(&lb, &ask).await, (blocks, blocks), "{}", vector.name);
        let salted = vector.ask("m", &json!({"cache_salt": "tenant-a"}));
        assert_eq!(matched(&lb, &salted).await.0, 0, "{}", vector.name);
    }
    let salted = hash_vectors("sha256_cbor", 16, "cache_salt=tenant-a");
    let salted = salted.into_iter().find(|vector| vector.1.is_none());
    let (tokens, _, ids, _) = salted.expect("a vector");
    reporter.send_well(&[bare_event(&ids, None)]).await;
    let prompt = json!({"model": "m", "prompt": tokens, "cache_salt": "tenant-a"});
    let ask = Ask::post("/v1/completions", prompt.to_string());
    assert_eq!(matched(&lb, &ask).await, (ids.len(), ids.len()));
}

#[tokio::test]
async fn bare_hashes_may_be_published_as_digests() {
    let engine = ZmqEngine::start().await;
    let sources = engine.sources();
    let publisher = echo()
        .yaml("models: [m]")
        .yaml("kv_events: auto")
        .side("/kv_event_sources", move |_| (200, sources.clone()));
    let more = bare("sha256_cbor", 16, None);
    let lb = fleet(vec![echo().yaml("models: [m]"), publisher], "m", &more, "").await;
    trust_is(&lb, 1, "exact").await;
    engine.subscribed().await;
    let (tokens, _, _, digests) = hash_vectors("sha256_cbor", 16, "plain")
        .into_iter()
        .find(|vector| vector.1.is_none())
        .expect("a vector");
    let digests: Vec<_> = digests.iter().map(|digest| json!({"bin": digest})).collect();
    let mut event = block_stored(&[], None, &[], 16);
    event["block_hashes"] = json!(digests);
    engine.publish(&kv_batch(&[event]));
    eventually("the batch is applied", async || {
        lb.metrics().await.sum("warmroute_kv_event_batches_total", &[]) == 1
    })
    .await;
    assert_eq!(confirmed(&lb, 1).await, [digests.len() as u64, 0, 0]);
    let blocks = digests.len();
    assert_eq!(matched(&lb, &ids_prompt("m", &tokens)).await, (blocks, blocks));
}

#[tokio::test]
async fn bare_hashes_in_host_memory_are_those_the_gpu_had() {
    let config = "index: {cpu_credit: 0.5}";
    let lb = two(&bare("sha256_cbor", 16, None), config).await;
    let (tokens, _, ids, _) = hash_vectors("sha256_cbor", 16, "plain")
        .into_iter()
        .find(|vector| vector.1.is_none())
        .expect("a vector");
    let mut reporter = Reporter::new(&lb, "w1");
    reporter.send_well(&[bare_event(&ids, None)]).await;
    // Whoever moves blocks names them alone, the middle ones too.
    let mut moved = bare_event(&ids[2..], None);
    moved["medium"] = json!("CPU");
    reporter.send_well(&[moved]).await;
    assert_eq!(confirmed(&lb, 1).await, [6, 4, 0]);
    let gone = json!({"type": "removed", "block_hashes": ids[2..], "medium": "GPU"});
    reporter.send_well(&[gone]).await;
    assert_eq!(confirmed(&lb, 1).await, [2, 4, 0]);
    let ask = ids_prompt("m", &tokens);
    assert_eq!(matched(&lb, &ask).await, (2 + 2, 6), "four in host memory, at a half");
}

/// The engine's tokenizer.
static ENGINE: LazyLock<AlignedModel> = LazyLock::new(|| {
    AlignedModel::load(std::path::Path::new(&tokenizer()), &Options::new(1)).expect("loads")
});

/// A `/tokenize` that gives the engine's ids, or while `lies` others.
fn tokenizes(lies: &Arc<AtomicBool>) -> impl Fn(&[u8]) -> (u16, String) + Send + Sync + 'static {
    let lies = lies.clone();
    move |body| {
        let mut tokens = ENGINE.chat(body).expect("a chat that can be rendered");
        if lies.load(SeqCst) {
            *tokens.last_mut().expect("some") += 1;
        }
        let answer = json!({"count": tokens.len(), "max_model_len": 4096, "tokens": tokens});
        (200, answer.to_string())
    }
}

async fn parity_is(lb: &Lb, worker: &str, state: i64) {
    eventually(&format!("parity of {worker} is {state}"), async || {
        let metrics = lb.metrics().await;
        metrics.has("warmroute_parity_state")
            && metrics.sum("warmroute_parity_state", &[("worker", worker)]) == state
    })
    .await;
}

#[tokio::test]
async fn a_model_is_matched_as_text_while_a_worker_tokenizes_otherwise() {
    let lies = Arc::new(AtomicBool::new(false));
    let honest = Arc::new(AtomicBool::new(false));
    let worker =
        |lies: &Arc<AtomicBool>| echo().yaml("models: [m]").side("/tokenize", tokenizes(lies));
    let lb = fleet(
        vec![worker(&honest), worker(&lies)],
        "m",
        "",
        "aligned: {parity_interval_s: 1}\nindex: {block_bytes: 16}",
    )
    .await;
    parity_is(&lb, "w0", 1).await;
    parity_is(&lb, "w1", 1).await;
    // One of which the canonical text is what the template makes of it.
    let vectors = chat_vectors();
    let vector = vectors.iter().find(|vector| vector.name == "system_user").expect("a vector");
    let ask = vector.ask("m", &json!({}));
    assert_eq!(matched(&lb, &ask).await.1, vector.blocks());
    assert_eq!(outcomes(&lb, "aligned").await, 1);

    lies.store(true, SeqCst);
    parity_is(&lb, "w1", 0).await;
    eventually("the model is matched as text", async || {
        matched(&lb, &ask).await;
        outcomes(&lb, "mismatch").await > 0
    })
    .await;
    let aligned = outcomes(&lb, "aligned").await;
    let bytes = vector.rendered.len();
    assert_eq!(matched(&lb, &ask).await.1, bytes / 16, "blocks of text");
    assert_eq!(outcomes(&lb, "aligned").await, aligned, "for all its workers");
    let log = lb.stderr();
    let error = log.lines().find(|line| line.contains("ERROR") && line.contains("tokenizes"));
    let error = error.unwrap_or_else(|| panic!("no error in the log: {log}"));
    for word in ["w1", "models.NAME.tokenizer", "chat `user`", "apart from token"] {
        assert!(error.contains(word), "{word}: {error}");
    }
    parity_is(&lb, "w0", 1).await;

    lies.store(false, SeqCst);
    parity_is(&lb, "w1", 1).await;
    eventually("the model is aligned again", async || {
        matched(&lb, &ask).await.1 == vector.blocks()
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_cannot_be_asked_is_believed_to_tokenize_alike() {
    let gone = |_: &[u8]| (404, "{}".to_owned());
    let odd = |_: &[u8]| (200, "{\"count\": 3}".to_owned());
    let lb = fleet(
        vec![
            echo().yaml("models: [m]").side("/tokenize", gone),
            echo().yaml("models: [m]").side("/tokenize", odd),
        ],
        "m",
        "",
        "aligned: {parity_interval_s: 1}",
    )
    .await;
    for worker in ["w0", "w1"] {
        parity_is(&lb, worker, -1).await;
    }
    let vector = &chat_vectors()[0];
    assert_eq!(matched(&lb, &vector.ask("m", &json!({}))).await.1, vector.blocks());
    assert_eq!(outcomes(&lb, "aligned").await, 1);
    let log = lb.stderr();
    assert!(log.contains("its /tokenize answers 404"), "{log}");
    assert!(log.contains("its /tokenize answers without tokens"), "{log}");
}

#[tokio::test]
async fn the_engine_s_tokenizer_of_these_tests_gives_the_recorded_ids() {
    for vector in chat_vectors() {
        let ask = vector.ask("m", &json!({}));
        assert_eq!(ENGINE.chat(&ask.body).as_ref(), Ok(&vector.tokens), "{}", vector.name);
    }
}
