//! A request body, read into the sequences to run.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::error::ApiError;
use crate::answer::Answer;
use crate::engine::unix_time;
use crate::options::{EngineOptions, TOKEN_BYTES};
use crate::prompt::{Message, Root, Sequence, canonical_chat};

/// Most sequences of one request.
const SEQUENCES_MAX: usize = 128;
/// `/v1/completions` answers this long when nobody says otherwise.
const COMPLETION_TOKENS: usize = 16;

/// Which of the two endpoints asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Chat,
    Completion,
}

/// A request that is going to run.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) form: Form,
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) model: String,
    /// One for each choice of the response.
    pub(super) sequences: Vec<Sequence>,
    /// Sequences to a prompt; a prompt counts once in the usage.
    pub(super) choices_per_prompt: usize,
    pub(super) is_stream: bool,
    pub(super) has_usage: bool,
}

/// The fields read of both kinds of body; others are accepted and ignored.
#[derive(Debug, Deserialize)]
struct Body<'a> {
    #[serde(borrow, default)]
    model: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    messages: Option<Vec<Message<'a>>>,
    #[serde(borrow, default)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tools: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tool_choice: Option<&'a RawValue>,
    #[serde(borrow, default)]
    chat_template: Option<&'a RawValue>,
    #[serde(borrow, default)]
    chat_template_kwargs: Option<&'a RawValue>,
    #[serde(default, alias = "lora", alias = "lora_path")]
    lora_name: Option<String>,
    #[serde(default)]
    cache_salt: Option<String>,
    #[serde(default)]
    max_tokens: Option<i64>,
    #[serde(default)]
    max_completion_tokens: Option<i64>,
    #[serde(default)]
    ignore_eos: Option<bool>,
    #[serde(default)]
    n: Option<usize>,
    #[serde(default)]
    temperature: Option<f64>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(default)]
    stream_options: Option<StreamOptions>,
}

#[derive(Debug, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Named<'a> {
    #[serde(borrow)]
    function: Function<'a>,
}

#[derive(Debug, Deserialize)]
struct Function<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
}

/// The four forms of a completion's prompt.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Texts(Vec<String>),
    Ids(Vec<u32>),
    ManyIds(Vec<Vec<u32>>),
}

impl Job {
    /// Reads the body of `/v1/chat/completions`.
    pub(super) fn from_chat(body: &[u8], options: &EngineOptions) -> Result<Self, ApiError> {
        let body = Body::read(body, options)?;
        let messages = body.messages.as_ref().ok_or_else(|| ApiError::missing("messages"))?;
        if messages.is_empty() {
            let message = "Cannot apply chat template to an empty conversation. Provide at least \
                           one message.";
            return Err(ApiError::invalid("messages", message));
        }
        let text = canonical_chat(messages, body.tools)
            .map_err(|error| ApiError::invalid("messages", error.to_string()))?;
        let tool = body.tool_to_call(messages);
        let limit = body.limit(options)?;
        let prompt = text.into_bytes();
        body.into_job(Form::Chat, &[prompt], false, tool.as_deref(), limit, options)
    }

    /// Reads the body of `/v1/completions`.
    pub(super) fn from_completion(body: &[u8], options: &EngineOptions) -> Result<Self, ApiError> {
        let body = Body::read(body, options)?;
        let raw = body.prompt.ok_or_else(|| ApiError::missing("prompt"))?;
        let prompt = serde_json::from_str::<Prompt>(raw.get())
            .map_err(|_| ApiError::invalid("prompt", "prompt must be text or token ids"))?;
        let to_bytes = |ids: Vec<u32>| ids.into_iter().flat_map(u32::to_le_bytes).collect();
        let (prompts, token_ids): (Vec<Vec<u8>>, bool) = match prompt {
            Prompt::Text(text) => (vec![text.into_bytes()], false),
            Prompt::Texts(texts) => (texts.into_iter().map(String::into_bytes).collect(), false),
            Prompt::Ids(ids) => (vec![to_bytes(ids)], true),
            Prompt::ManyIds(many) => (many.into_iter().map(to_bytes).collect(), true),
        };
        if prompts.is_empty() || prompts.iter().any(Vec::is_empty) {
            return Err(ApiError::invalid("prompt", "the prompt is empty"));
        }
        let limit = body.limit(options)?.or(Some(COMPLETION_TOKENS));
        body.into_job(Form::Completion, &prompts, token_ids, None, limit, options)
    }

    /// Gives the response its id: the client's own, or one of the prompt and the time.
    pub(super) fn name_response(&mut self, request_id: Option<&str>) {
        let prefix = if self.form == Form::Chat { "chatcmpl" } else { "cmpl" };
        self.id = if let Some(id) = request_id {
            format!("{prefix}-{id}")
        } else {
            let nanos = unix_time().as_nanos();
            format!("{prefix}-{:016x}", xxh3_64_with_seed(&nanos.to_le_bytes(), 0))
        };
    }

    /// Prompt tokens as the usage counts them.
    pub(super) fn prompt_tokens(&self) -> usize {
        self.sequences.iter().step_by(self.choices_per_prompt).map(Sequence::prompt_tokens).sum()
    }
}

impl<'a> Body<'a> {
    fn read(body: &'a [u8], options: &EngineOptions) -> Result<Self, ApiError> {
        let body: Self =
            serde_json::from_slice(body).map_err(|error| ApiError::bad_json(&error))?;
        match body.model.as_deref() {
            Some(model) if model != options.model => {
                Err(ApiError::no_such_model(model, &options.model))
            }
            _ if body.temperature.is_some_and(|temperature| temperature < 0.0) => {
                Err(ApiError::invalid("temperature", "temperature must be non-negative"))
            }
            _ => Ok(body),
        }
    }

    /// The most tokens the client wants.
    fn limit(&self, options: &EngineOptions) -> Result<Option<usize>, ApiError> {
        match self.max_completion_tokens.or(self.max_tokens) {
            None if self.ignore_eos == Some(true) => Ok(Some(options.max_model_len)),
            None => Ok(None),
            Some(tokens) if tokens >= 1 => Ok(Some(tokens as usize)),
            Some(tokens) => {
                let message = format!("max_tokens must be at least 1, got {tokens}.");
                Err(ApiError::invalid("max_tokens", message))
            }
        }
    }

    /// The tool to call, if the client asks for a call in one of the ways this engine obeys.
    fn tool_to_call(&self, messages: &[Message<'_>]) -> Option<String> {
        let tools: Vec<&RawValue> = serde_json::from_str(self.tools?.get()).ok()?;
        let first: Named<'_> = serde_json::from_str(tools.first()?.get()).ok()?;
        let choice = self.tool_choice.map_or("\"auto\"", RawValue::get);
        if let Ok(chosen) = serde_json::from_str::<Named<'_>>(choice) {
            return Some(chosen.function.name.into_owned());
        }
        let last_user = messages.iter().rev().find(|message| message.role == "user");
        let asked = last_user
            .and_then(|message| message.content_text().ok())
            .is_some_and(|text| text.contains("call the tool"));
        let calls = choice == "\"required\"" || (choice != "\"none\"" && asked);
        calls.then(|| first.function.name.into_owned())
    }

    fn into_job(
        self,
        form: Form,
        prompts: &[Vec<u8>],
        token_ids: bool,
        tool: Option<&str>,
        limit: Option<usize>,
        options: &EngineOptions,
    ) -> Result<Job, ApiError> {
        let choices_per_prompt = self.n.unwrap_or(1);
        if choices_per_prompt == 0 || choices_per_prompt * prompts.len() > SEQUENCES_MAX {
            let message = format!("at most {SEQUENCES_MAX} choices, at least one");
            return Err(ApiError::invalid("n", message));
        }
        let template = [self.chat_template, self.chat_template_kwargs];
        let template = template
            .iter()
            .any(Option::is_some)
            .then(|| template.map(|raw| raw.map_or("", RawValue::get)).join("\n"));
        let root = Arc::new(Root {
            model: options.model.clone(),
            lora_name: self.lora_name,
            cache_salt: self.cache_salt,
            template,
            token_ids,
        });
        let wants_all = self.ignore_eos == Some(true);
        let tokens_max = options.max_model_len.min(options.kv_blocks * options.block_tokens);
        let mut sequences = Vec::new();
        for prompt in prompts {
            let prompt_tokens = prompt.len().div_ceil(TOKEN_BYTES);
            let room = tokens_max.saturating_sub(prompt_tokens);
            if room == 0 {
                return Err(ApiError::too_long(prompt_tokens, tokens_max));
            }
            let limit = limit.unwrap_or(usize::MAX).min(room);
            for choice in 0..choices_per_prompt {
                let seed = xxh3_64_with_seed(prompt, root.hash()).wrapping_add(choice as u64);
                let answer = match tool {
                    Some(name) => Answer::call(seed, name, limit),
                    None if wants_all => Answer::words(seed, limit, true),
                    None => {
                        let tokens = limit.min(options.answer_tokens.max(1));
                        Answer::words(seed, tokens, limit <= tokens)
                    }
                };
                sequences.push(Sequence::new(&root, prompt, answer, options.block_bytes()));
            }
        }
        Ok(Job {
            form,
            id: String::new(),
            created: unix_time().as_secs(),
            model: options.model.clone(),
            sequences,
            choices_per_prompt,
            is_stream: self.stream == Some(true),
            has_usage: self.stream_options.and_then(|stream| stream.include_usage) == Some(true),
        })
    }
}
