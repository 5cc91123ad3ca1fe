//! A request body to what routing needs of it.
//!
//! Reads the JSON without copying it, writes the prompt's canonical text (docs/text-mode.md) into
//! block hashers as it goes, and keeps nothing of the text. A body of a shape we do not know gives
//! no prompt, never an error: the worker answers for itself.

use std::{borrow::Cow, num::NonZeroUsize};

use serde::Deserialize;
use sonic_rs::LazyValue;
use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

use super::{
    content::{self, Sink, is_filled, raw, text},
    endpoint::PromptForm,
};
use crate::routing::block::{BlockHash, BlockHasher, Secret};

/// Prompts of one request that are looked at; a longer list is routed by its first ones.
pub const PROMPTS_MAX: usize = 32;

/// How bodies are hashed.
#[derive(Debug, Clone)]
pub struct Hashing {
    /// Keys every chain.
    pub secret: Secret,
    /// Bytes a block.
    pub block_bytes: NonZeroUsize,
}

/// What a body says about where it should go.
#[derive(Debug, Default, Clone)]
pub struct Facts {
    /// The model asked for.
    pub model: Option<String>,
    /// Whether the answer is to be streamed.
    pub stream: bool,
    /// `user`, hashed: the session when no header names one.
    pub user: Option<u64>,
    /// The system prompt and tools, hashed.
    pub prefix: Option<u64>,
    /// Block hashes of each prompt.
    pub prompts: Vec<Vec<BlockHash>>,
    /// Canonical bytes of all prompts.
    pub prompt_bytes: u64,
    /// Whether a prompt was found.
    pub readable: bool,
}

/// Tags of the fields that make the root; part of the chain's definition.
mod tag {
    pub(super) const MODEL: u8 = 1;
    pub(super) const TENANT: u8 = 2;
    pub(super) const CACHE_SALT: u8 = 3;
    pub(super) const LORA: u8 = 4;
    pub(super) const TEMPLATE: u8 = 5;
    pub(super) const PREVIOUS: u8 = 6;
    pub(super) const TOKENS: u8 = 7;
}

/// What two prompts must agree in before their text is looked at.
#[derive(Debug, Default, Clone, Copy)]
pub struct RootFields<'a> {
    /// Model name.
    pub model: &'a str,
    /// Tenant, from a header.
    pub tenant: &'a [u8],
    /// `cache_salt`, as text.
    pub cache_salt: &'a str,
    /// LoRA adapter, as text.
    pub lora: &'a str,
    /// Whether blocks are token ids.
    pub tokens: bool,
}

impl RootFields<'_> {
    fn fields(&self) -> [(u8, &[u8]); 5] {
        [
            (tag::MODEL, self.model.as_bytes()),
            (tag::TENANT, self.tenant),
            (tag::CACHE_SALT, self.cache_salt.as_bytes()),
            (tag::LORA, self.lora.as_bytes()),
            (tag::TOKENS, if self.tokens { b"1" } else { b"" }),
        ]
    }

    /// The root of prompts that agree in these and have no template or previous response.
    pub fn root(&self, secret: &Secret) -> crate::routing::block::Root {
        secret.root(&filled(&self.fields()))
    }
}

/// Fields that say nothing are left out, so that a reporter need not know of them.
fn filled<'a>(fields: &[(u8, &'a [u8])]) -> Vec<(u8, &'a [u8])> {
    fields.iter().filter(|(_, bytes)| !bytes.is_empty()).copied().collect()
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    model: Option<LazyValue<'a>>,
    #[serde(borrow)]
    stream: Option<LazyValue<'a>>,
    #[serde(borrow)]
    user: Option<LazyValue<'a>>,
    #[serde(borrow)]
    messages: Option<LazyValue<'a>>,
    #[serde(borrow)]
    system: Option<LazyValue<'a>>,
    #[serde(borrow)]
    tools: Option<LazyValue<'a>>,
    #[serde(borrow)]
    functions: Option<LazyValue<'a>>,
    #[serde(borrow)]
    instructions: Option<LazyValue<'a>>,
    #[serde(borrow)]
    input: Option<LazyValue<'a>>,
    #[serde(borrow)]
    prompt: Option<LazyValue<'a>>,
    #[serde(borrow)]
    cache_salt: Option<LazyValue<'a>>,
    #[serde(borrow)]
    lora: Option<LazyValue<'a>>,
    #[serde(borrow)]
    lora_name: Option<LazyValue<'a>>,
    #[serde(borrow)]
    lora_path: Option<LazyValue<'a>>,
    #[serde(borrow)]
    chat_template: Option<LazyValue<'a>>,
    #[serde(borrow)]
    chat_template_kwargs: Option<LazyValue<'a>>,
    #[serde(borrow)]
    previous_response_id: Option<LazyValue<'a>>,
}

#[derive(Deserialize)]
struct OnlyModel<'a> {
    #[serde(borrow)]
    model: Option<LazyValue<'a>>,
    #[serde(borrow)]
    stream: Option<LazyValue<'a>>,
    #[serde(borrow)]
    user: Option<LazyValue<'a>>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    role: Option<LazyValue<'a>>,
    #[serde(borrow)]
    content: Option<LazyValue<'a>>,
    #[serde(borrow)]
    tool_calls: Option<LazyValue<'a>>,
    #[serde(borrow)]
    output: Option<LazyValue<'a>>,
}

/// The model and flags of a body that carries no prompt we cache; `readable` stays false.
pub fn facts_without_prompt(body: &[u8]) -> Facts {
    let Ok(OnlyModel { model, stream, user }) = sonic_rs::from_slice::<OnlyModel<'_>>(body) else {
        return Facts::default();
    };
    Facts {
        model: string(model.as_ref()).map(Cow::into_owned),
        stream: raw(stream.as_ref()) == "true",
        user: string(user.as_ref()).map(|user| session_key(user.as_bytes())),
        ..Facts::default()
    }
}

/// Hash of whatever names a session; stable across restarts so that routers agree.
pub fn session_key(name: &[u8]) -> u64 {
    xxh3_64_with_seed(name, 0x5e55)
}

/// Everything routing needs of a prompt-carrying body.
pub fn facts(form: PromptForm, body: &[u8], tenant: &[u8], hashing: &Hashing) -> Facts {
    let Ok(fields) = sonic_rs::from_slice::<Body<'_>>(body) else {
        return facts_without_prompt(body);
    };
    let mut facts = Facts {
        model: string(fields.model.as_ref()).map(Cow::into_owned),
        stream: raw(fields.stream.as_ref()) == "true",
        user: string(fields.user.as_ref()).map(|user| session_key(user.as_bytes())),
        ..Facts::default()
    };
    let hashers = Hashers { fields: &fields, model: facts.model.as_deref(), tenant, hashing };
    let mut prompts = Vec::new();
    match form {
        PromptForm::Completion => completion(&fields, &hashers, &mut prompts),
        PromptForm::Chat | PromptForm::Responses | PromptForm::Messages => {
            let mut hasher = hashers.start(false);
            if let Some(prefix) = conversation(form, &fields, &mut hasher) {
                facts.prefix = prefix;
                prompts.push(hasher);
            }
        }
    }
    facts.readable = !prompts.is_empty();
    facts.prompt_bytes = prompts.iter().map(BlockHasher::bytes).sum();
    facts.prompts = prompts.into_iter().map(BlockHasher::finish).collect();
    facts
}

fn string<'a>(value: Option<&'a LazyValue<'_>>) -> Option<Cow<'a, str>> {
    text(raw(value)).filter(|text| !text.is_empty())
}

struct Hashers<'a> {
    fields: &'a Body<'a>,
    model: Option<&'a str>,
    tenant: &'a [u8],
    hashing: &'a Hashing,
}

impl Hashers<'_> {
    fn start(&self, tokens: bool) -> BlockHasher {
        let loras = [&self.fields.lora_name, &self.fields.lora_path, &self.fields.lora];
        let lora = loras.into_iter().flatten().next().map_or("", LazyValue::as_raw_str);
        let lora = text(lora).unwrap_or(Cow::Borrowed(nothing_if_null(lora)));
        let salt = nothing_if_null(raw(self.fields.cache_salt.as_ref()));
        let salt = text(salt).unwrap_or(Cow::Borrowed(salt));
        let common = RootFields {
            model: self.model.unwrap_or(""),
            tenant: self.tenant,
            cache_salt: &salt,
            lora: &lora,
            tokens,
        };
        let mut all = common.fields().to_vec();
        all.extend([
            (tag::TEMPLATE, nothing_if_null(raw(self.fields.chat_template.as_ref())).as_bytes()),
            (
                tag::TEMPLATE,
                nothing_if_null(raw(self.fields.chat_template_kwargs.as_ref())).as_bytes(),
            ),
            (
                tag::PREVIOUS,
                nothing_if_null(raw(self.fields.previous_response_id.as_ref())).as_bytes(),
            ),
        ]);
        let root = self.hashing.secret.root(&filled(&all));
        BlockHasher::new(root, self.hashing.block_bytes)
    }
}

fn nothing_if_null(raw: &str) -> &str {
    if raw == "null" { "" } else { raw }
}

/// `prompt`: a string, token ids, or a list of either (llama.cpp also mixes both in one prompt).
fn completion(fields: &Body<'_>, hashers: &Hashers<'_>, prompts: &mut Vec<BlockHasher>) {
    let prompt = raw(fields.prompt.as_ref());
    if let Some(text) = text(prompt) {
        prompts.push(text_prompt(&text, hashers));
        return;
    }
    if !prompt.starts_with('[') {
        return;
    }
    if let Ok(ids) = sonic_rs::from_str::<Vec<u32>>(prompt) {
        prompts.push(token_prompt(&ids, hashers));
        return;
    }
    for item in sonic_rs::to_array_iter(prompt).take(PROMPTS_MAX) {
        let Ok(item) = item else { return };
        let item = item.as_raw_str();
        if let Some(text) = text(item) {
            prompts.push(text_prompt(&text, hashers));
        } else if let Ok(ids) = sonic_rs::from_str::<Vec<u32>>(item) {
            prompts.push(token_prompt(&ids, hashers));
        } else {
            // Token ids and text mixed in one prompt: no canonical form; route by load.
            prompts.clear();
            return;
        }
    }
}

fn text_prompt(text: &str, hashers: &Hashers<'_>) -> BlockHasher {
    let mut hasher = hashers.start(false);
    hasher.push(text.as_bytes());
    hasher
}

fn token_prompt(ids: &[u32], hashers: &Hashers<'_>) -> BlockHasher {
    let mut hasher = hashers.start(true);
    for id in ids {
        hasher.push(&id.to_le_bytes());
    }
    hasher
}

/// Writes a conversation; gives the hash of its system prompt and tools (if any), or `None` when
/// there is no conversation to be read.
fn conversation(
    form: PromptForm,
    fields: &Body<'_>,
    hasher: &mut BlockHasher,
) -> Option<Option<u64>> {
    let list = match form {
        PromptForm::Responses => raw(fields.input.as_ref()),
        _ => raw(fields.messages.as_ref()),
    };
    let head = match form {
        PromptForm::Responses => raw(fields.instructions.as_ref()),
        PromptForm::Messages => raw(fields.system.as_ref()),
        _ => "",
    };
    if !list.starts_with('[') && !(form == PromptForm::Responses && list.starts_with('"')) {
        return None;
    }
    // The system prompt and tools are hashed once more, without the secret: `prefix-affinity` must
    // agree between routers and over restarts.
    let mut hasher = Tee { hasher, leading: Some(Xxh3::new()) };
    if !nothing_if_null(head).is_empty() {
        message("system", head, "", &mut hasher);
    }
    let mut items = Items::of(list);
    let leading = form != PromptForm::Messages;
    let mut next = items.next();
    while let Some(Some(item)) = &next {
        let role = item.role();
        if !leading || (role != "system" && role != "developer") {
            break;
        }
        item.write(&mut hasher);
        next = items.next();
    }
    for tools in [raw(fields.tools.as_ref()), raw(fields.functions.as_ref())] {
        if is_filled(tools) {
            framed("tools", &mut hasher, |sink| sink.push(tools.as_bytes()));
        }
    }
    let prefix =
        hasher.leading.take().map(|all| all.digest()).filter(|_| hasher.hasher.bytes() > 0);
    if list.starts_with('"') {
        message("user", list, "", &mut hasher);
    }
    while let Some(item) = next {
        // A list that holds something else than objects cannot be read.
        item?.write(&mut hasher);
        next = items.next();
    }
    hasher.push(b"<|im_start|>assistant\n");
    Some(prefix)
}

/// Hashes blocks, and the leading part as a whole.
struct Tee<'a> {
    hasher: &'a mut BlockHasher,
    leading: Option<Xxh3>,
}

impl Sink for Tee<'_> {
    fn push(&mut self, bytes: &[u8]) {
        self.hasher.push(bytes);
        if let Some(leading) = &mut self.leading {
            leading.update(bytes);
        }
    }
}

/// The messages of a raw list, one by one; `None` inside when one is no object.
struct Items<'a> {
    list: Option<sonic_rs::ArrayJsonIter<'a>>,
}

impl<'a> Items<'a> {
    fn of(list: &'a str) -> Self {
        Self { list: list.starts_with('[').then(|| sonic_rs::to_array_iter(list)) }
    }

    fn next(&mut self) -> Option<Option<Item<'a>>> {
        let item = self.list.as_mut()?.next()?;
        Some(item.ok().map(Item::of).flatten())
    }
}

struct Item<'a> {
    whole: LazyValue<'a>,
}

impl<'a> Item<'a> {
    fn of(whole: LazyValue<'a>) -> Option<Self> {
        whole.as_raw_str().starts_with('{').then_some(Self { whole })
    }

    fn fields(&self) -> Option<Message<'_>> {
        sonic_rs::from_str(self.whole.as_raw_str()).ok()
    }

    fn role(&self) -> Cow<'_, str> {
        let role = self.fields().and_then(|m| m.role);
        role.and_then(|role| text(role.as_raw_str()).map(|r| Cow::Owned(r.into_owned())))
            .unwrap_or_default()
    }

    fn write(&self, sink: &mut impl Sink) {
        let whole = self.whole.as_raw_str();
        let Some(fields) = self.fields() else { return sink.push(whole.as_bytes()) };
        let role = text(raw(fields.role.as_ref())).unwrap_or_default();
        if role.is_empty() {
            let output = raw(fields.output.as_ref());
            let content = if output.starts_with('"') { output } else { whole };
            message("tool", content, "", sink);
        } else {
            let calls = raw(fields.tool_calls.as_ref());
            message(&role, raw(fields.content.as_ref()), calls, sink);
        }
    }
}

fn message(role: &str, content: &str, tool_calls: &str, sink: &mut impl Sink) {
    framed(role, sink, |sink| {
        content::write(content, sink);
        if is_filled(tool_calls) {
            sink.push(b"\n");
            sink.push(tool_calls.as_bytes());
        }
    });
}

fn framed<S: Sink>(role: &str, sink: &mut S, body: impl FnOnce(&mut S)) {
    sink.push(b"<|im_start|>");
    sink.push(role.as_bytes());
    sink.push(b"\n");
    body(sink);
    sink.push(b"<|im_end|>\n");
}

#[cfg(test)]
#[path = "prompt_tests.rs"]
mod tests;
