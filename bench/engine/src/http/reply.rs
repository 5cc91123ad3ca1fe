//! Bodies of the responses, field by field in vLLM's order.

use std::fmt::Write;

use serde::Serialize;
use serde_json::json;

use super::desk::{Arrival, Ticket};
use super::job::{Form, Job};
use crate::answer::Answer;
use crate::engine::unix_time;
use crate::options::EngineOptions;

const FINGERPRINT: &str = concat!("warmroute-sim-", env!("CARGO_PKG_VERSION"));

/// Token counts of one request, summed over its choices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "the names of the API")]
pub(super) struct Usage {
    pub(super) prompt_tokens: usize,
    pub(super) completion_tokens: usize,
    pub(super) cached_tokens: usize,
}

impl Usage {
    /// What a job has used once it knows how much was cached.
    pub(super) fn new(job: &Job) -> Self {
        Self { prompt_tokens: job.prompt_tokens(), completion_tokens: 0, cached_tokens: 0 }
    }

    /// Counts a token. What was cached counts once for each prompt, by its first choice.
    pub(super) fn add(&mut self, arrival: Arrival, choices_per_prompt: usize) {
        self.completion_tokens += 1;
        if arrival.index == 0 && arrival.choice.is_multiple_of(choices_per_prompt) {
            self.cached_tokens += arrival.cached_tokens;
        }
    }

    /// The JSON of the `usage` object.
    pub(super) fn to_json(self) -> String {
        let Self { prompt_tokens, completion_tokens, cached_tokens } = self;
        format!(
            "{{\"prompt_tokens\":{prompt_tokens},\"total_tokens\":{},\
             \"completion_tokens\":{completion_tokens},\"prompt_tokens_details\":\
             {{\"cached_tokens\":{cached_tokens},\"created_cache_tokens\":0}}}}",
            prompt_tokens + completion_tokens
        )
    }
}

/// Why an answer ended.
pub(super) fn finish_reason(answer: &Answer) -> &'static str {
    match answer {
        Answer { cut: true, .. } => "length",
        Answer { tool_call: Some(_), .. } => "tool_calls",
        Answer { .. } => "stop",
    }
}

/// What every body of one response begins with; the brace stays open.
pub(super) fn head(job: &Job, object: &str) -> String {
    format!(
        "{{\"id\":{},\"object\":\"{object}\",\"created\":{},\"model\":{},",
        quoted(&job.id),
        job.created,
        quoted(&job.model)
    )
}

/// The tail of a body that carries the usage.
pub(super) fn fingerprint() -> String {
    format!("\"system_fingerprint\":\"{FINGERPRINT}\"")
}

pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Waits for all tokens of a job and gives the body of its response.
pub(super) async fn whole(job: Job, mut ticket: Ticket) -> String {
    let mut usage = Usage::new(&job);
    let mut left = job.sequences.len();
    while left > 0 {
        let Some(arrival) = ticket.tokens.recv().await else { break };
        usage.add(arrival, job.choices_per_prompt);
        left -= usize::from(arrival.last);
    }
    let object = if job.form == Form::Chat { "chat.completion" } else { "text_completion" };
    let mut body = head(&job, object);
    body.push_str("\"choices\":[");
    for (index, sequence) in job.sequences.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let answer = &sequence.answer;
        let content = match job.form {
            Form::Completion => format!("\"text\":{}", quoted(&answer.text())),
            Form::Chat => format!("\"message\":{}", message(answer)),
        };
        write!(
            body,
            "{comma}{{\"index\":{index},{content},\"logprobs\":null,\"finish_reason\":\"{}\",\
             \"stop_reason\":null,\"token_ids\":null}}",
            finish_reason(answer)
        )
        .expect("a String takes all that is written to it");
    }
    let (usage, fingerprint) = (usage.to_json(), fingerprint());
    body + "],\"service_tier\":null," + &fingerprint + ",\"usage\":" + &usage + "}"
}

fn message(answer: &Answer) -> String {
    let (content, calls) = match &answer.tool_call {
        None => (quoted(&answer.text()), String::new()),
        Some(call) => ("null".to_owned(), format!(",\"tool_calls\":[{}]", call.to_json())),
    };
    format!("{{\"role\":\"assistant\",\"content\":{content},\"refusal\":null{calls}}}")
}

/// The body of `/v1/models`.
pub(super) fn models(options: &EngineOptions) -> String {
    #[derive(Serialize)]
    struct Model<'a> {
        id: &'a str,
        object: &'a str,
        created: u64,
        owned_by: &'a str,
        root: &'a str,
        parent: Option<&'a str>,
        max_model_len: usize,
    }
    let model = Model {
        id: &options.model,
        object: "model",
        created: unix_time().as_secs(),
        owned_by: "warmroute-sim",
        root: &options.model,
        parent: None,
        max_model_len: options.max_model_len,
    };
    json!({"object": "list", "data": [model]}).to_string()
}
