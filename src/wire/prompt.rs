//! A request body to what routing needs of it.
//!
//! Reads the JSON without copying it, writes the prompt's canonical text (docs/text-mode.md) into
//! block hashers as it goes, and keeps nothing of the text. A body of a shape we do not know gives
//! no prompt, never an error: the worker answers for itself.

use std::{borrow::Cow, collections::HashMap, num::NonZeroUsize, sync::Arc};

use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::event::TOKEN_BYTES;
use super::{
    conversation::{self, Frame, List, Message},
    endpoint::PromptForm,
    json::{Fields, Malformed, Reader, text},
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
    /// Whether anybody asks for [`Facts::prefix`].
    pub prefixes: bool,
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
    /// The system prompt and tools, hashed, where [`Hashing::prefixes`] asks for it.
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

/// The fields we know; those that say who asks for what come first.
const FIELDS: [&str; 17] = [
    "model",
    "stream",
    "user",
    "messages",
    "system",
    "tools",
    "functions",
    "instructions",
    "input",
    "prompt",
    "cache_salt",
    "lora_name",
    "lora_path",
    "lora",
    "chat_template",
    "chat_template_kwargs",
    "previous_response_id",
];
/// Bits of `model`, `stream` and `user`.
const IDENTITY: u32 = 0b111;
/// Index of `messages`.
const MESSAGES: usize = 3;

/// A body: its fields as they are written.
struct Body<'a> {
    fields: Fields<'a, { FIELDS.len() }>,
    /// `messages`, where that is a list of messages that all have a role.
    messages: Option<SmallVec<[Message<'a>; 8]>>,
}

impl<'a> Body<'a> {
    /// Reads all of it in one pass.
    fn read(body: &'a [u8]) -> Option<Self> {
        let text = simdutf8::basic::from_utf8(body).ok()?;
        let mut reader = Reader::new(text);
        let mut messages = None;
        let fields = reader.fields(&FIELDS, |at, reader| {
            if at == MESSAGES && reader.peek()? == b'[' {
                let before = reader.clone();
                let mut list = SmallVec::new();
                let read = reader.array(|items| {
                    list.push(Message::read(items)?);
                    Ok(())
                });
                if read.is_ok() {
                    messages = Some(list).filter(|list| list.iter().all(Message::has_role));
                    return Ok(reader.since(&before));
                }
                *reader = before;
            }
            reader.value()
        });
        let fields = fields.ok()?;
        reader.end().ok()?;
        Some(Self { fields, messages })
    }

    /// What it says of itself.
    fn identity(&self) -> Facts {
        if self.fields.repeated & IDENTITY != 0 {
            return Facts::default();
        }
        let [model, stream, user, ..] = self.fields.values;
        Facts {
            model: string(model).map(Cow::into_owned),
            stream: stream == "true",
            user: string(user).map(|user| session_key(user.as_bytes())),
            ..Facts::default()
        }
    }
}

/// The model and flags of a body that carries no prompt we cache; `readable` stays false.
pub fn facts_without_prompt(body: &[u8]) -> Facts {
    Body::read(body).map(|body| body.identity()).unwrap_or_default()
}

/// Hash of whatever names a session; stable across restarts so that routers agree.
pub fn session_key(name: &[u8]) -> u64 {
    xxh3_64_with_seed(name, 0x5e55)
}

/// Everything routing needs of a prompt-carrying body.
pub fn facts(form: PromptForm, body: &[u8], tenant: &[u8], hashing: &Hashing) -> Facts {
    facts_if(form, body, tenant, hashing, |_| true)
}

/// As [`facts`]; the prompt's blocks are left out, and `prompt_bytes` with them, where `names_text`
/// says of the model that its prompts are named otherwise.
pub fn facts_if(
    form: PromptForm,
    body: &[u8],
    tenant: &[u8],
    hashing: &Hashing,
    names_text: impl FnOnce(&str) -> bool,
) -> Facts {
    let Some(read) = Body::read(body) else { return Facts::default() };
    let facts = read.identity();
    let names_text = names_text(facts.model.as_deref().unwrap_or(""));
    if read.fields.repeated != 0 {
        // Nobody knows which of the two counts.
        return facts;
    }
    let asked = Asked { tenant, hashing, body_bytes: if names_text { body.len() } else { 0 } };
    read_prompts(form, &read, facts, asked, names_text)
}

fn read_prompts(
    form: PromptForm,
    body: &Body<'_>,
    mut facts: Facts,
    asked: Asked<'_>,
    names_text: bool,
) -> Facts {
    let [_, _, _, messages, system, tools, functions, instructions, input, ..] = body.fields.values;
    let hashers = Hashers::new(&body.fields.values, &facts, asked);
    let mut prefix = None;
    let prompts = match form {
        PromptForm::Completion if names_text => completion(&hashers),
        PromptForm::Completion => Prompts::default(),
        PromptForm::Chat | PromptForm::Responses | PromptForm::Messages => {
            let mut hasher = hashers.start();
            let head = match form {
                PromptForm::Responses => instructions,
                PromptForm::Messages => system,
                _ => "",
            };
            let frame = Frame {
                head,
                tools: [tools, functions],
                leads: form != PromptForm::Messages,
                takes_string: form == PromptForm::Responses,
                only_leading: !names_text,
                hash_leading: asked.hashing.prefixes,
            };
            let list = match &body.messages {
                _ if form == PromptForm::Responses => List::Raw(input),
                Some(read) => List::Read(read),
                None => List::Raw(messages),
            };
            let mut prompts = Prompts::default();
            if let Some(hash) = conversation::write(&frame, list, &mut hasher) {
                prefix = hash;
                if names_text {
                    prompts.bytes = hasher.bytes();
                    prompts.blocks.push(hasher.finish());
                }
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

fn string(raw: &str) -> Option<Cow<'_, str>> {
    text(raw).filter(|text| !text.is_empty())
}

/// What comes with a body.
#[derive(Clone, Copy)]
struct Asked<'a> {
    tenant: &'a [u8],
    hashing: &'a Hashing,
    /// Room to make for blocks.
    body_bytes: usize,
}

struct Hashers<'a> {
    prompt: &'a str,
    /// What else engines key on, as it is written.
    keyed_on: [(u8, &'a str); 3],
    model: &'a str,
    salt: Cow<'a, str>,
    lora: Cow<'a, str>,
    asked: Asked<'a>,
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
    fn text(&mut self, text: &str, hashers: &Hashers<'_>) {
        let mut hasher = hashers.start();
        hasher.push(text.as_bytes());
        self.bytes += hasher.bytes();
        self.tokens = None;
        self.blocks.push(hasher.finish());
    }

    fn tokens(&mut self, tokens: &[u32], hashers: &Hashers<'_>) {
        let before = if self.blocks.is_empty() { Some(0) } else { self.tokens };
        self.tokens = before.map(|before| before + tokens.len() as u64);
        self.bytes += (tokens.len() * TOKEN_BYTES) as u64;
        self.blocks.push(hashers.asked.hashing.token_blocks(hashers.token_root(), tokens));
    }
}

impl<'a> Hashers<'a> {
    fn new(fields: &[&'a str; FIELDS.len()], facts: &'a Facts, asked: Asked<'a>) -> Self {
        let [.., prompt, salt, lora_name, lora_path, lora, template, kwargs, previous] = *fields;
        let loras = [lora_name, lora_path, lora];
        let lora = loras.into_iter().find(|lora| !lora.is_empty()).unwrap_or_default();
        Self {
            prompt,
            keyed_on: [
                (tag::TEMPLATE, template),
                (tag::TEMPLATE, kwargs),
                (tag::PREVIOUS, previous),
            ],
            model: facts.model.as_deref().unwrap_or(""),
            salt: text(salt).unwrap_or(Cow::Borrowed(salt)),
            lora: text(lora).unwrap_or(Cow::Borrowed(lora)),
            asked,
        }
    }

    fn start(&self) -> BlockHasher {
        let Asked { tenant, hashing, body_bytes } = self.asked;
        let common = RootFields {
            model: self.model,
            tenant,
            cache_salt: &self.salt,
            lora: &self.lora,
            tokens: false,
        };
        let mut all: SmallVec<[(u8, &[u8]); 8]> = SmallVec::from_slice(&common.fields());
        all.extend(self.keyed_on.iter().map(|(tag, raw)| (*tag, raw.as_bytes())));
        let root = hashing.secret.root(&filled(&all));
        // The text is hardly longer than the body it was written in.
        BlockHasher::with_capacity(root, hashing.block_bytes, body_bytes)
    }

    fn token_root(&self) -> Root {
        let model = if self.lora.is_empty() { self.model } else { &*self.lora };
        self.asked.hashing.token_root(model, self.asked.tenant, &self.salt)
    }
}

/// `prompt`: a string, token ids, or a list of either (llama.cpp also mixes both in one prompt).
fn completion(hashers: &Hashers<'_>) -> Prompts {
    let mut prompts = Prompts::default();
    let prompt = hashers.prompt;
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
    // Token ids and text mixed in one prompt have no canonical form: routed by load.
    let mut items = Reader::new(prompt);
    let read = items.array(|items| {
        let item = items.value()?;
        if prompts.blocks.len() == PROMPTS_MAX {
        } else if let Some(text) = text(item) {
            prompts.text(&text, hashers);
        } else {
            let ids = sonic_rs::from_str::<Vec<u32>>(item).map_err(|_| Malformed)?;
            prompts.tokens(&ids, hashers);
        }
        Ok(())
    });
    if read.is_ok() { prompts } else { Prompts::default() }
}

#[cfg(test)]
#[path = "prompt_tests.rs"]
mod tests;
