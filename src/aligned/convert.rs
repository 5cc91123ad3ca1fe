//! The other request forms: OpenAI Responses, Anthropic Messages, completions.
//!
//! vLLM turns the first two into chat messages. That is followed for plain text, which it treats
//! alike in all of them; items and blocks of other kinds (tool results, reasoning, files), tools,
//! and prompts stored at the engine are unaligned.

use minijinja::Value;
use serde::{Deserialize, de::IgnoredAny};

use super::{
    Unaligned,
    chat::{KvTransfer, arguments, refuse_forwarded_ids},
    content::{Content, Part},
    conversation::{Conversation, Turn},
};

/// System blocks that begin so are Claude Code's, change with each request, and are dropped.
const BILLING_HEADER: &str = "x-anthropic-billing-header";

/// Prompts of one completion request; more are left to the engine.
const PROMPTS_MAX: usize = 128;

#[derive(Deserialize)]
struct ResponsesBody {
    input: Input,
    instructions: Option<String>,
    reasoning: Option<Reasoning>,
    chat_template_kwargs: Option<Value>,
    #[serde(default)]
    tools: Option<Vec<IgnoredAny>>,
    previous_response_id: Option<IgnoredAny>,
    prompt: Option<IgnoredAny>,
    truncation: Option<String>,
    kv_transfer_params: Option<KvTransfer>,
}

#[derive(Deserialize)]
struct Reasoning {
    effort: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    Text(String),
    Items(Vec<Item>),
}

#[derive(Deserialize)]
struct Item {
    #[serde(rename = "type")]
    kind: Option<String>,
    role: Option<String>,
    #[serde(default)]
    content: Content,
    status: Option<String>,
}

impl Item {
    fn turn(self) -> Result<Turn, Unaligned> {
        let is_message = self.kind.is_none_or(|kind| kind == "message");
        let Some(role) = self.role.filter(|_| is_message) else {
            return Err(Unaligned::Shape("input item"));
        };
        if self.status.is_some_and(|status| status != "completed") {
            return Err(Unaligned::Shape("unfinished input item"));
        }
        let mut content = self.content.texts()?;
        if role == "assistant" {
            // The engine takes the first part of these, and no other.
            content.truncate(1);
            if content.is_empty() {
                return Err(Unaligned::Shape("assistant item without text"));
            }
        }
        Ok(Turn { role, content, ..Turn::default() })
    }
}

/// The conversation of a Responses body.
pub(super) fn responses(body: &[u8]) -> Result<Conversation, Unaligned> {
    let body: ResponsesBody =
        serde_json::from_slice(body).map_err(|_| Unaligned::Shape("responses body"))?;
    let is_stored = body.previous_response_id.is_some() || body.prompt.is_some();
    if is_stored || body.tools.is_some_and(|tools| !tools.is_empty()) {
        return Err(Unaligned::Shape("stored prompt or tools"));
    }
    if body.truncation.is_some_and(|truncation| truncation != "disabled") {
        return Err(Unaligned::Shape("truncation"));
    }
    refuse_forwarded_ids(body.kv_transfer_params.as_ref())?;
    let mut turns = Vec::new();
    if let Some(instructions) = body.instructions.filter(|text| !text.is_empty()) {
        turns.push(turn("system", vec![instructions]));
    }
    match body.input {
        Input::Text(text) => turns.push(turn("user", vec![text])),
        Input::Items(items) => {
            for item in items {
                turns.push(item.turn()?);
            }
        }
    }
    Ok(Conversation {
        turns,
        arguments: arguments(body.chat_template_kwargs, body.reasoning.and_then(|it| it.effort))?,
        add_generation_prompt: true,
        // Unlike chat completions: vLLM leaves its default standing here.
        special: true,
        ..Conversation::default()
    })
}

fn turn(role: &str, content: Vec<String>) -> Turn {
    Turn { role: role.to_owned(), content, ..Turn::default() }
}

#[derive(Deserialize)]
struct MessagesBody {
    messages: Vec<BlockMessage>,
    #[serde(default)]
    system: Content,
    #[serde(default)]
    tools: Option<Vec<IgnoredAny>>,
    thinking: Option<Thinking>,
    output_config: Option<Reasoning>,
    chat_template_kwargs: Option<Value>,
    kv_transfer_params: Option<KvTransfer>,
}

#[derive(Deserialize)]
struct BlockMessage {
    role: String,
    content: Content,
}

#[derive(Deserialize)]
struct Thinking {
    #[serde(rename = "type")]
    kind: String,
}

/// The conversation of an Anthropic Messages body; `system_first` is the template's.
pub(super) fn messages(body: &[u8], system_first: bool) -> Result<Conversation, Unaligned> {
    let body: MessagesBody =
        serde_json::from_slice(body).map_err(|_| Unaligned::Shape("messages body"))?;
    if body.tools.is_some_and(|tools| !tools.is_empty()) {
        return Err(Unaligned::Shape("tools"));
    }
    // Which effort stands for "disabled" is an option of the engine.
    if body.thinking.is_some_and(|thinking| thinking.kind == "disabled") {
        return Err(Unaligned::Shape("thinking disabled"));
    }
    refuse_forwarded_ids(body.kv_transfer_params.as_ref())?;
    let mut system = match body.system {
        Content::Text(text) => text,
        blocks => system_text(blocks)?,
    };
    let mut turns = Vec::new();
    for message in body.messages {
        if message.role == "system" {
            let text = system_text(message.content)?;
            if system_first {
                system.push_str(&text);
            } else if !text.is_empty() {
                turns.push(turn("system", vec![text]));
            }
            continue;
        }
        let is_text = matches!(message.content, Content::Text(_));
        let mut content = message.content.texts()?;
        if !is_text {
            content.retain(|text| !text.is_empty());
        }
        if is_text || !content.is_empty() || message.role != "user" {
            turns.push(turn(&message.role, content));
        }
    }
    if !system.is_empty() {
        turns.insert(0, turn("system", vec![system]));
    }
    Ok(Conversation {
        turns,
        arguments: arguments(
            body.chat_template_kwargs,
            body.output_config.and_then(|config| config.effort),
        )?,
        add_generation_prompt: true,
        ..Conversation::default()
    })
}

/// The texts of system blocks, one after the other, without Claude Code's own line.
fn system_text(content: Content) -> Result<String, Unaligned> {
    if let Content::Parts(parts) = &content
        && parts.iter().any(|part| matches!(part, Part::Other))
    {
        return Err(Unaligned::Shape("system block"));
    }
    let texts = content.texts()?;
    Ok(texts.iter().filter(|text| !text.starts_with(BILLING_HEADER)).map(String::as_str).collect())
}

#[derive(Deserialize)]
struct CompletionBody {
    prompt: Prompt,
    suffix: Option<IgnoredAny>,
    prompt_embeds: Option<IgnoredAny>,
    add_special_tokens: Option<bool>,
    truncate_prompt_tokens: Option<IgnoredAny>,
    kv_transfer_params: Option<KvTransfer>,
}

/// `prompt` of a completion.
#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Ids(Vec<u32>),
    Texts(Vec<String>),
    IdLists(Vec<Vec<u32>>),
}

/// The prompts of a completion body, each tokenized by `encode` where it is text.
pub(super) fn completion(
    body: &[u8],
    encode: impl Fn(&str, bool) -> Result<Vec<u32>, Unaligned>,
) -> Result<Vec<Vec<u32>>, Unaligned> {
    let body: CompletionBody =
        serde_json::from_slice(body).map_err(|_| Unaligned::Shape("completion body"))?;
    if body.prompt_embeds.is_some() {
        return Err(Unaligned::Media);
    }
    if body.suffix.is_some() || body.truncate_prompt_tokens.is_some() {
        return Err(Unaligned::Shape("suffix or truncate_prompt_tokens"));
    }
    refuse_forwarded_ids(body.kv_transfer_params.as_ref())?;
    let special = body.add_special_tokens.unwrap_or(true);
    let prompts = match body.prompt {
        Prompt::Text(text) => vec![encode(&text, special)?],
        Prompt::Ids(ids) => vec![ids],
        Prompt::Texts(texts) if texts.len() > PROMPTS_MAX => return Err(Unaligned::TooLong),
        Prompt::Texts(texts) => {
            texts.iter().map(|text| encode(text, special)).collect::<Result<_, _>>()?
        }
        Prompt::IdLists(lists) if lists.len() > PROMPTS_MAX => return Err(Unaligned::TooLong),
        Prompt::IdLists(lists) => lists,
    };
    if prompts.iter().all(Vec::is_empty) {
        return Err(Unaligned::Shape("empty prompt"));
    }
    Ok(prompts)
}
