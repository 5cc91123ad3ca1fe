//! What can be set on a simulated engine.

use std::time::Duration;

/// Bytes of canonical text that make one simulated token.
pub(crate) const TOKEN_BYTES: usize = 4;

/// How a simulated engine behaves. [`Default`] is a small GPU server.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// TCP port on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// The only model name the engine serves.
    pub model: String,
    /// Tokens in a KV block; a token is four bytes of canonical text.
    pub block_tokens: usize,
    /// KV blocks of the whole cache, running requests included.
    pub kv_blocks: usize,
    /// Token budget of one step, decodes first, then prefill chunks.
    pub max_batched_tokens: usize,
    /// Requests that may run at once; the others wait.
    pub max_num_seqs: usize,
    /// Longest prompt with its answer, in tokens.
    pub max_model_len: usize,
    /// Prefill speed.
    pub prefill_tokens_per_s: f64,
    /// Fixed cost of a step: what an engine pays to read its weights once.
    pub decode_step_ms: f64,
    /// What each decoding sequence adds to a step, in microseconds.
    pub decode_sequence_us: f64,
    /// Attention: nanoseconds per prefilled token and token of context before it. 0 leaves
    /// prefill linear in the prompt.
    pub attention_ns: f64,
    /// Divides every step's time; infinity makes the engine answer at once.
    pub speed: f64,
    /// Length of an answer nobody limits, in tokens. `ignore_eos` answers up to `max_tokens`.
    pub answer_tokens: usize,
    /// Where to report what the cache holds; `None` keeps quiet.
    pub reports: Option<ReportTo>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            port: 0,
            model: "sim-model".to_owned(),
            block_tokens: 16,
            kv_blocks: 4096,
            max_batched_tokens: 2048,
            max_num_seqs: 64,
            max_model_len: 32_768,
            prefill_tokens_per_s: 8000.0,
            decode_step_ms: 8.0,
            decode_sequence_us: 100.0,
            attention_ns: 0.0,
            speed: 1.0,
            answer_tokens: 64,
            reports: None,
        }
    }
}

impl EngineOptions {
    /// The defaults with no waiting at all, for tests of everything but time.
    pub fn instant() -> Self {
        Self { speed: f64::INFINITY, ..Self::default() }
    }

    /// One of the four engines of the demo: a GPU small enough for prefill to matter, with room
    /// for a bit more than its share of the demo's conversations, far from all of them.
    pub fn demo() -> Self {
        Self {
            kv_blocks: 900,
            prefill_tokens_per_s: 2500.0,
            max_batched_tokens: 512,
            ..Self::default()
        }
    }

    /// Bytes of canonical text in one KV block.
    pub(crate) fn block_bytes(&self) -> usize {
        self.block_tokens * TOKEN_BYTES
    }
}

/// A router's report listener (or those of several), and the name this engine has there.
#[derive(Debug, Clone)]
pub struct ReportTo {
    /// Base URL such as `http://127.0.0.1:9000`.
    pub url: String,
    /// Further routers, each of which is told all and kept in step by itself.
    pub also: Vec<String>,
    /// The worker's id in the router.
    pub worker_id: String,
    /// Sent as `Authorization: Bearer` when set.
    pub token: Option<String>,
    /// How often stored and evicted blocks are sent, if there are any.
    pub interval: Duration,
    /// Whether heartbeats ask for membership: with a lease, under the engine's own URL.
    pub join: bool,
    /// Whether a router that missed something is synced with. Off, it gets a new epoch that states
    /// everything, and heartbeats do not say how many batches there were.
    pub sync: bool,
    /// No answer for this long counts as none.
    pub answer_within: Duration,
}

impl ReportTo {
    /// Reports every 100 ms, no token, no membership asked for.
    pub fn new(url: impl Into<String>, worker_id: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            also: Vec::new(),
            worker_id: worker_id.into(),
            token: None,
            interval: Duration::from_millis(100),
            join: false,
            sync: true,
            answer_within: Duration::from_secs(2),
        }
    }
}
