//! The prompt of a request: its root, its canonical text and its chained block hashes.
//!
//! The text follows docs/text-mode.md and is written here a second time on purpose: where the
//! router and this engine disagree, one of them has misread the contract.

mod canonical;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::answer::Answer;
use crate::options::TOKEN_BYTES;

pub(crate) use canonical::{Message, canonical_chat};

/// What two prompts must agree in before they may share a block.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) model: String,
    pub(crate) lora_name: Option<String>,
    pub(crate) cache_salt: Option<String>,
    /// `chat_template` and `chat_template_kwargs` as sent.
    pub(crate) template: Option<String>,
    pub(crate) token_ids: bool,
}

impl Root {
    /// Where a chain of block hashes starts.
    pub(crate) fn hash(&self) -> u64 {
        let mut bytes = Vec::new();
        let fields = [
            Some(self.model.as_str()),
            self.lora_name.as_deref(),
            self.cache_salt.as_deref(),
            self.template.as_deref(),
            self.token_ids.then_some("token ids"),
        ];
        for field in fields {
            // A length no text has keeps an absent field apart from an empty one.
            let length = field.map_or(u64::MAX, |text| text.len() as u64);
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(field.unwrap_or_default().as_bytes());
        }
        xxh3_64(&bytes)
    }

    /// Whether a `stored` event can say what such a prompt is: it has no words for a template of
    /// the request's own, nor for token ids.
    pub(crate) fn can_be_reported(&self) -> bool {
        self.template.is_none() && !self.token_ids
    }
}

/// Names the full blocks of `bytes`, each one standing for all bytes before it too.
pub(crate) fn block_hashes(root: &Root, bytes: &[u8], block_bytes: usize) -> Vec<u64> {
    let mut parent = root.hash();
    bytes
        .chunks_exact(block_bytes)
        .map(|block| {
            parent = xxh3_64_with_seed(block, parent);
            parent
        })
        .collect()
}

/// One prompt with the answer it will get, as the batch runs it.
#[derive(Debug, Clone)]
pub(crate) struct Sequence {
    pub(crate) root: Arc<Root>,
    /// Canonical text of the prompt, then of the answer.
    pub(crate) bytes: Arc<[u8]>,
    pub(crate) prompt_bytes: usize,
    pub(crate) answer: Arc<Answer>,
    /// Hashes of all full blocks of `bytes`; the answer is known before it is generated.
    pub(crate) hashes: Arc<[u64]>,
    pub(crate) block_bytes: usize,
}

impl Sequence {
    /// Joins a prompt and its answer.
    pub(crate) fn new(root: &Arc<Root>, prompt: &[u8], answer: Answer, block_bytes: usize) -> Self {
        let mut bytes = prompt.to_vec();
        bytes.extend_from_slice(&answer.kv_bytes);
        let hashes = block_hashes(root, &bytes, block_bytes);
        Self {
            root: Arc::clone(root),
            bytes: bytes.into(),
            prompt_bytes: prompt.len(),
            answer: Arc::new(answer),
            hashes: hashes.into(),
            block_bytes,
        }
    }

    /// Tokens of the prompt; a last odd byte is a token too.
    pub(crate) fn prompt_tokens(&self) -> usize {
        self.prompt_bytes.div_ceil(TOKEN_BYTES)
    }

    /// Blocks the whole sequence takes, its last partial one included.
    pub(crate) fn block_count(&self) -> usize {
        self.bytes.len().div_ceil(self.block_bytes)
    }

    /// Blocks a cache hit may cover: never the whole prompt, as its last token must be computed.
    pub(crate) fn hit_blocks_max(&self) -> usize {
        let block_tokens = self.block_bytes / TOKEN_BYTES;
        self.prompt_tokens().saturating_sub(1) / block_tokens
    }
}
