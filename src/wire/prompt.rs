//! A request body to what routing needs of it.
//!
//! Reads the JSON without copying it, writes the prompt's canonical text (docs/text-mode.md) into
//! block hashers as it goes, and keeps nothing of the text. A body of a shape we do not know gives
//! no prompt, never an error: the worker answers for itself.

use std::{borrow::Cow, collections::HashMap, num::NonZeroUsize, sync::Arc};

use serde::Deserialize;
use smallvec::SmallVec;
use sonic_rs::LazyValue;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::event::TOKEN_BYTES;
use super::{
    content::{nothing_if_null, raw, text},
    conversation::{self, Frame, List, Message},
    endpoint::PromptForm,
};
use crate::routing::block::{BlockHash, BlockHasher, Root, Secret};

/// Prompts of one request that are looked at; a longer list is routed by its first ones.
pub const PROMPTS_MAX: usize = 32;

/// Tokens a block, where prompts are token ids: vLLM's default, and a divisor of all it is usually
/// set to, so that an engine block is whole blocks of ours.
pub const TOKENS_A_BLOCK: usize = 16;
/// Counts up whenever the canonical text of a prompt, its root or its cutting changes: what was known
/// of caches before does not match then.
const SCHEME: u32 = 1;

/// Bytes of such a block.
pub const TOKEN_BLOCK_BYTES: NonZeroUsize =
    NonZeroUsize::new(TOKENS_A_BLOCK * TOKEN_BYTES).expect("not zero");

/// How bodies are hashed.
#[derive(Debug, Clone)]
pub struct Hashing {
    /// Keys every chain.
    pub secret: Secret,
    /// Bytes a block of text.
    pub block_bytes: NonZeroUsize,
    /// Names of one model: each further one, and the first.
    pub aliases: Arc<HashMap<String, String>>,
}

impl Hashing {
    /// The name a model's caches are filed under.
    pub fn canonical<'a>(&'a self, model: &'a str) -> &'a str {
        self.aliases.get(model).map_or(model, String::as_str)
    }

    /// Tells apart all ways of naming blocks but for the key: two processes of one fingerprint and
    /// one secret give a prompt the same blocks.
    pub fn fingerprint(&self) -> String {
        let mut aliases: Vec<_> = self.aliases.iter().collect();
        aliases.sort();
        let text = format!("{SCHEME} {} {TOKENS_A_BLOCK} {aliases:?}", self.block_bytes);
        format!("{:016x}", xxhash_rust::xxh3::xxh3_64(text.as_bytes()))
    }

    /// The root of prompts of token ids. Engines serve an adapter as a model of its own name, so
    /// that `model` names it too.
    pub fn token_root(&self, model: &str, tenant: &[u8], cache_salt: &str) -> Root {
        let model = self.canonical(model);
        RootFields { model, tenant, cache_salt, lora: "", tokens: true }.root(&self.secret)
    }

    /// Blocks of a prompt of token ids.
    pub fn token_blocks(&self, root: Root, tokens: &[u32]) -> Vec<BlockHash> {
        let bytes = tokens.len() * TOKEN_BYTES;
        let mut hasher = BlockHasher::with_capacity(root, TOKEN_BLOCK_BYTES, bytes);
        for tokens in tokens.chunks(TOKENS_A_BLOCK) {
            let mut block = [0; TOKEN_BLOCK_BYTES.get()];
            for (at, id) in tokens.iter().enumerate() {
                block[at * TOKEN_BYTES..][..TOKEN_BYTES].copy_from_slice(&id.to_le_bytes());
            }
            hasher.push(&block[..tokens.len() * TOKEN_BYTES]);
        }
        hasher.finish()
    }
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
    /// `cache_salt`; empty = none.
    pub cache_salt: String,
    /// LoRA adapter, where the body names one; empty = none.
    pub lora: String,
    /// Tokens of all prompts, where they are known.
    pub tokens: Option<u64>,
    /// Tokens a block, where they are.
    pub block_tokens: usize,
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
fn filled<'a>(fields: &[(u8, &'a [u8])]) -> SmallVec<[(u8, &'a [u8]); 8]> {
    fields.iter().filter(|(_, bytes)| !bytes.is_empty()).copied().collect()
}

/// The fields we know. `M` is how `messages` are read: as a list of messages, in one pass over the
/// body, which fails on shapes we do not know; or raw, which takes anything.
#[derive(Deserialize)]
#[serde(bound(deserialize = "M: Deserialize<'de>"))]
struct Body<'a, M> {
    #[serde(borrow)]
    model: Option<LazyValue<'a>>,
    #[serde(borrow)]
    stream: Option<LazyValue<'a>>,
    #[serde(borrow)]
    user: Option<LazyValue<'a>>,
    #[serde(default = "none")]
    messages: Option<M>,
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

fn none<M>() -> Option<M> {
    None
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
    if matches!(form, PromptForm::Chat | PromptForm::Messages)
        && let Ok(fields) = sonic_rs::from_slice::<Body<'_, Vec<Message<'_>>>>(body)
        && let Some(messages) = &fields.messages
        && messages.iter().all(Message::has_role)
    {
        return read(form, &fields, List::Read(messages), tenant, hashing, body.len());
    }
    let Ok(fields) = sonic_rs::from_slice::<Body<'_, LazyValue<'_>>>(body) else {
        return facts_without_prompt(body);
    };
    let list = match form {
        PromptForm::Responses => List::Raw(raw(fields.input.as_ref())),
        _ => List::Raw(raw(fields.messages.as_ref())),
    };
    read(form, &fields, list, tenant, hashing, body.len())
}

fn read<M>(
    form: PromptForm,
    fields: &Body<'_, M>,
    list: List<'_>,
    tenant: &[u8],
    hashing: &Hashing,
    body_bytes: usize,
) -> Facts {
    let mut facts = Facts {
        model: string(fields.model.as_ref()).map(Cow::into_owned),
        stream: raw(fields.stream.as_ref()) == "true",
        user: string(fields.user.as_ref()).map(|user| session_key(user.as_bytes())),
        ..Facts::default()
    };
    let asked = Asked { tenant, hashing, body_bytes };
    let hashers = Hashers::new(fields, &facts, &asked);
    let mut prefix = None;
    let prompts = match form {
        PromptForm::Completion => completion(&hashers),
        PromptForm::Chat | PromptForm::Responses | PromptForm::Messages => {
            let mut hasher = hashers.start();
            let frame = Frame {
                head: nothing_if_null(match form {
                    PromptForm::Responses => raw(fields.instructions.as_ref()),
                    PromptForm::Messages => raw(fields.system.as_ref()),
                    _ => "",
                }),
                tools: [raw(fields.tools.as_ref()), raw(fields.functions.as_ref())],
                leads: form != PromptForm::Messages,
                takes_string: form == PromptForm::Responses,
            };
            let mut prompts = Prompts::default();
            if let Some(hash) = conversation::write(&frame, list, &mut hasher) {
                prefix = hash;
                prompts.bytes = hasher.bytes();
                prompts.blocks.push(hasher.finish());
            }
            prompts
        }
    };
    let (cache_salt, lora) = (hashers.salt.into_owned(), hashers.lora.into_owned());
    facts.prefix = prefix;
    facts.readable = !prompts.blocks.is_empty();
    facts.prompt_bytes = prompts.bytes;
    facts.tokens = prompts.tokens;
    facts.block_tokens = TOKENS_A_BLOCK;
    facts.prompts = prompts.blocks;
    facts.cache_salt = cache_salt;
    facts.lora = lora;
    facts
}

fn string<'a>(value: Option<&'a LazyValue<'_>>) -> Option<Cow<'a, str>> {
    text(raw(value)).filter(|text| !text.is_empty())
}

/// What comes with a body.
#[derive(Clone, Copy)]
struct Asked<'a> {
    tenant: &'a [u8],
    hashing: &'a Hashing,
    body_bytes: usize,
}

struct Hashers<'a, M> {
    fields: &'a Body<'a, M>,
    model: &'a str,
    salt: Cow<'a, str>,
    lora: Cow<'a, str>,
    tenant: &'a [u8],
    hashing: &'a Hashing,
    body_bytes: usize,
}

/// Prompts of a completion, so far.
#[derive(Default)]
struct Prompts {
    blocks: Vec<Vec<BlockHash>>,
    bytes: u64,
    /// Tokens, while all prompts are token ids.
    tokens: Option<u64>,
}

impl Prompts {
    fn text<M>(&mut self, text: &str, hashers: &Hashers<'_, M>) {
        let mut hasher = hashers.start();
        hasher.push(text.as_bytes());
        self.bytes += hasher.bytes();
        self.tokens = None;
        self.blocks.push(hasher.finish());
    }

    fn tokens<M>(&mut self, tokens: &[u32], hashers: &Hashers<'_, M>) {
        let before = if self.blocks.is_empty() { Some(0) } else { self.tokens };
        self.tokens = before.map(|before| before + tokens.len() as u64);
        self.bytes += (tokens.len() * TOKEN_BYTES) as u64;
        self.blocks.push(hashers.hashing.token_blocks(hashers.token_root(), tokens));
    }
}

impl<'a, M> Hashers<'a, M> {
    fn new(fields: &'a Body<'a, M>, facts: &'a Facts, asked: &Asked<'a>) -> Self {
        let loras = [&fields.lora_name, &fields.lora_path, &fields.lora];
        let lora = loras.into_iter().flatten().next().map_or("", LazyValue::as_raw_str);
        let lora = text(lora).unwrap_or(Cow::Borrowed(nothing_if_null(lora)));
        let salt = nothing_if_null(raw(fields.cache_salt.as_ref()));
        let salt = text(salt).unwrap_or(Cow::Borrowed(salt));
        let model = facts.model.as_deref().unwrap_or("");
        let Asked { tenant, hashing, body_bytes } = *asked;
        Self { fields, model, salt, lora, tenant, hashing, body_bytes }
    }

    fn start(&self) -> BlockHasher {
        let common = RootFields {
            model: self.model,
            tenant: self.tenant,
            cache_salt: &self.salt,
            lora: &self.lora,
            tokens: false,
        };
        let mut all: SmallVec<[(u8, &[u8]); 8]> = SmallVec::from_slice(&common.fields());
        all.push((tag::TEMPLATE, raw_bytes(self.fields.chat_template.as_ref())));
        all.push((tag::TEMPLATE, raw_bytes(self.fields.chat_template_kwargs.as_ref())));
        all.push((tag::PREVIOUS, raw_bytes(self.fields.previous_response_id.as_ref())));
        let root = self.hashing.secret.root(&filled(&all));
        // The text is hardly longer than the body it was written in.
        BlockHasher::with_capacity(root, self.hashing.block_bytes, self.body_bytes)
    }

    fn token_root(&self) -> Root {
        let model = if self.lora.is_empty() { self.model } else { &*self.lora };
        self.hashing.token_root(model, self.tenant, &self.salt)
    }
}

fn raw_bytes<'a>(value: Option<&'a LazyValue<'_>>) -> &'a [u8] {
    nothing_if_null(raw(value)).as_bytes()
}

/// `prompt`: a string, token ids, or a list of either (llama.cpp also mixes both in one prompt).
fn completion<M>(hashers: &Hashers<'_, M>) -> Prompts {
    let mut prompts = Prompts::default();
    let prompt = raw(hashers.fields.prompt.as_ref());
    if let Some(text) = text(prompt) {
        prompts.text(&text, hashers);
        return prompts;
    }
    if !prompt.starts_with('[') {
        return prompts;
    }
    if let Ok(ids) = sonic_rs::from_str::<Vec<u32>>(prompt) {
        prompts.tokens(&ids, hashers);
        return prompts;
    }
    for item in sonic_rs::to_array_iter(prompt).take(PROMPTS_MAX) {
        let Ok(item) = item else { break };
        let item = item.as_raw_str();
        if let Some(text) = text(item) {
            prompts.text(&text, hashers);
        } else if let Ok(ids) = sonic_rs::from_str::<Vec<u32>>(item) {
            prompts.tokens(&ids, hashers);
        } else {
            // Token ids and text mixed in one prompt: no canonical form; route by load.
            return Prompts::default();
        }
    }
    prompts
}

#[cfg(test)]
#[path = "prompt_tests.rs"]
mod tests;
