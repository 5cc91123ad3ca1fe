//! From a request to the very token ids the engine will use.
//!
//! Engines report what they cache in token ids. For a model whose tokenizer files we are given, a
//! request is rendered with the model's chat template and tokenized, as vLLM does it, so that
//! prompts and reports are named in the same terms (docs/adr/0006-token-aligned-blocks.md). A
//! request for which that cannot be done exactly is `Unaligned`, with the reason; a guess would
//! only look like a match.
//!
//! Nothing here knows the rest of the router, does I/O after `load`, or waits. It does compute: up
//! to tens of milliseconds for a megabyte of text never seen before.

mod chat;
mod content;
mod content_format;
mod conversation;
mod convert;
pub mod engine_hash;
mod files;
mod probe;
mod python;
mod segments;
mod template;
mod tokenizer;

use std::path::Path;

use minijinja::Value;

pub use self::files::LoadError;
use self::{
    conversation::Conversation,
    files::Files,
    template::Template,
    tokenizer::{Build, Tokenizer},
};

/// How a model is loaded, and what requests may cost.
#[derive(Debug, Clone)]
pub struct Options {
    /// Larger bodies are not looked at.
    pub bytes_max: usize,
    /// Memory for token ids of text seen before.
    pub segment_cache_bytes: usize,
    /// Whether the fast tokenizer may be used where it agrees with the reference.
    pub fast_tokenizer: bool,
    /// Keys the memory of text, so that nobody can aim a collision; random in production.
    pub seed: u64,
}

impl Options {
    /// The defaults, with a seed.
    pub fn new(seed: u64) -> Self {
        Self { bytes_max: 4 << 20, segment_cache_bytes: 64 << 20, fast_tokenizer: true, seed }
    }
}

/// Why a request has no token ids of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unaligned {
    /// It holds images, audio or video, or embeddings.
    #[error("the prompt holds media")]
    Media,
    /// The model has no chat template.
    #[error("the model has no chat template")]
    NoTemplate,
    /// The template refuses the request, or cannot be followed exactly.
    #[error("chat template: {0}")]
    Template(String),
    /// A body that cannot be read, or a field that is not followed; which.
    #[error("not followed: {0}")]
    Shape(&'static str),
    /// The body, the rendered prompt, or the work to render it.
    #[error("too long")]
    TooLong,
    /// The tokenizer failed on it.
    #[error("the tokenizer failed")]
    Tokenizer,
}

impl Unaligned {
    /// All labels, for a metric.
    pub const LABELS: [&'static str; 6] =
        ["media", "no_template", "template", "shape", "too_long", "tokenizer"];

    /// A label for a metric.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Media => "media",
            Self::NoTemplate => "no_template",
            Self::Template(_) => "template",
            Self::Shape(_) => "shape",
            Self::TooLong => "too_long",
            Self::Tokenizer => "tokenizer",
        }
    }
}

/// A model's tokenizer and chat template.
pub struct AlignedModel {
    tokenizer: Tokenizer,
    template: Option<Template>,
    /// For requests with tools, where that is another.
    tool_template: Option<Template>,
    special_tokens: Vec<(String, Value)>,
    bytes_max: usize,
}

impl std::fmt::Debug for AlignedModel {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("AlignedModel")
            .field("engine", &self.engine())
            .finish_non_exhaustive()
    }
}

impl AlignedModel {
    /// Loads the files in `dir`: tokenizer.json, tokenizer_config.json, and the chat template in
    /// the latter or in chat_template.jinja or chat_template.json. Takes about a second.
    ///
    /// # Errors
    /// When a file is missing or unusable.
    pub fn load(dir: &Path, options: &Options) -> Result<Self, LoadError> {
        let files = Files::read(dir)?;
        let compile = |source: Option<String>| {
            source.map(|source| Template::compile(&source)).transpose().map_err(|problem| {
                let problem = format!("chat template: {problem}");
                LoadError::new(
                    dir,
                    &problem,
                    "use text mode for this model, and report the template",
                )
            })
        };
        let build = Build {
            cache_bytes_max: options.segment_cache_bytes,
            seed: options.seed,
            fast: options.fast_tokenizer,
        };
        let tokenizer = Tokenizer::build(files.tokenizer, &build).map_err(|problem| {
            let path = dir.join("tokenizer.json");
            LoadError::new(&path, &problem, "use text mode for this model")
        })?;
        Ok(Self {
            tokenizer,
            template: compile(files.template)?,
            tool_template: compile(files.tool_template)?,
            special_tokens: files.special_tokens,
            bytes_max: options.bytes_max,
        })
    }

    /// Token ids of the prompt of a `/v1/chat/completions` body.
    ///
    /// # Errors
    /// When they cannot be known exactly, or the engine will refuse the request.
    pub fn chat(&self, body: &[u8]) -> Result<Vec<u32>, Unaligned> {
        self.check_length(body.len())?;
        self.tokens(chat::parse(body)?)
    }

    /// The text the chat template makes of a `/v1/chat/completions` body.
    ///
    /// # Errors
    /// As `chat`.
    pub fn render_chat(&self, body: &[u8]) -> Result<String, Unaligned> {
        self.check_length(body.len())?;
        self.render(chat::parse(body)?)
    }

    /// Token ids of each prompt of a `/v1/completions` body.
    ///
    /// # Errors
    /// As `chat`.
    pub fn completion(&self, body: &[u8]) -> Result<Vec<Vec<u32>>, Unaligned> {
        self.check_length(body.len())?;
        convert::completion(body, |text, special| self.tokenizer.encode(text, special))
    }

    /// Token ids of the prompt of a `/v1/responses` body of plain text.
    ///
    /// # Errors
    /// As `chat`.
    pub fn responses(&self, body: &[u8]) -> Result<Vec<u32>, Unaligned> {
        self.check_length(body.len())?;
        self.tokens(convert::responses(body)?)
    }

    /// Token ids of the prompt of an Anthropic `/v1/messages` body of plain text.
    ///
    /// # Errors
    /// As `chat`.
    pub fn messages(&self, body: &[u8]) -> Result<Vec<u32>, Unaligned> {
        self.check_length(body.len())?;
        let mut templates = [&self.template, &self.tool_template].into_iter().flatten();
        self.tokens(convert::messages(body, templates.any(|template| template.system_first))?)
    }

    /// Token ids of a text; with `special`, those the tokenizer puts around one as well.
    ///
    /// # Errors
    /// When the text is too long, or the tokenizer fails on it.
    pub fn tokenize_text(&self, text: &str, special: bool) -> Result<Vec<u32>, Unaligned> {
        self.check_length(text.len())?;
        self.tokenizer.encode(text, special)
    }

    /// As `tokenize_text`, past the memory of text seen before.
    ///
    /// # Errors
    /// As `tokenize_text`.
    pub fn tokenize_whole(&self, text: &str, special: bool) -> Result<Vec<u32>, Unaligned> {
        self.check_length(text.len())?;
        self.tokenizer.whole(text, special)
    }

    /// The tokenizer in use: "fastokens", or "tokenizers", the reference.
    pub fn engine(&self) -> &'static str {
        self.tokenizer.engine()
    }

    /// Why the reference is in use, when it is.
    pub fn engine_note(&self) -> Option<&str> {
        self.tokenizer.engine_note()
    }

    /// Whether text between added tokens is remembered; for some tokenizers that would not be exact.
    pub fn is_segmented(&self) -> bool {
        self.tokenizer.is_segmented()
    }

    /// Bytes of the memory of text seen before, at most `segment_cache_bytes`.
    pub fn segment_cache_bytes(&self) -> usize {
        self.tokenizer.cache_bytes()
    }

    fn check_length(&self, bytes: usize) -> Result<(), Unaligned> {
        if bytes > self.bytes_max { Err(Unaligned::TooLong) } else { Ok(()) }
    }

    fn render(&self, conversation: Conversation) -> Result<String, Unaligned> {
        let for_tools = self.tool_template.as_ref().filter(|_| conversation.tools.is_some());
        let Some(template) = for_tools.or(self.template.as_ref()) else {
            return Err(Unaligned::NoTemplate);
        };
        // Templates add little to what they are given, tools printed with white space at most.
        let bytes_max = self.bytes_max.saturating_mul(2).saturating_add(64 << 10);
        conversation.render(template, &self.special_tokens, bytes_max)
    }

    fn tokens(&self, conversation: Conversation) -> Result<Vec<u32>, Unaligned> {
        let special = conversation.special;
        self.tokenizer.encode(&self.render(conversation)?, special)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
