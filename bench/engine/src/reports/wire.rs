//! What goes to the router, field by field (docs/reports.md).

use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

use crate::prompt::Root;

/// Buckets of a digest.
pub(super) const BUCKETS: usize = 256;

#[derive(Debug, Serialize)]
pub(super) struct Heartbeat<'a> {
    pub(super) worker_id: &'a str,
    pub(super) worker_url: &'a str,
    pub(super) current_load: usize,
    pub(super) model: &'a str,
    pub(super) kv_blocks_total: usize,
    pub(super) kv_blocks_used: usize,
    pub(super) kv_block_tokens: usize,
    pub(super) epoch: &'a str,
    /// The last batch the router answered. Left out while one waits to be sent again, which
    /// tells more than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lease_s: Option<u64>,
}

#[derive(Debug, Serialize)]
pub(super) struct EventBatch<'a> {
    pub(super) worker_id: &'a str,
    pub(super) epoch: &'a str,
    pub(super) seq: u64,
    pub(super) events: &'a [Event],
}

/// An event as it stands in the body of `POST /v1/events`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Event {
    /// Blocks of one chain, parents first.
    Stored {
        block_hashes: Vec<u64>,
        parent_block_hash: Option<u64>,
        text: Text,
        block_size: usize,
        #[serde(skip_serializing_if = "Option::is_none")]
        model: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        cache_salt: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        lora_name: Option<String>,
    },
    Removed {
        block_hashes: Vec<u64>,
    },
    Cleared,
}

/// All bytes of some blocks; one string for each block where characters lie across their ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum Text {
    Joined(String),
    Blocks(#[serde(serialize_with = "texts")] Vec<Arc<str>>),
}

impl Event {
    /// Blocks of one chain; `root` with its first.
    pub(super) fn stored(
        block_hashes: Vec<u64>,
        parent_block_hash: Option<u64>,
        texts: Vec<Arc<str>>,
        block_size: usize,
        root: Option<&Root>,
    ) -> Self {
        let text = if texts.iter().all(|text| text.len() == block_size) {
            Text::Joined(texts.concat())
        } else {
            Text::Blocks(texts)
        };
        Self::Stored {
            block_hashes,
            parent_block_hash,
            text,
            block_size,
            model: root.map(|root| root.model.clone()),
            cache_salt: root.and_then(|root| root.cache_salt.clone()),
            lora_name: root.and_then(|root| root.lora_name.clone()),
        }
    }

    pub(super) fn block_count(&self) -> usize {
        match self {
            Self::Stored { block_hashes, .. } | Self::Removed { block_hashes } => {
                block_hashes.len()
            }
            Self::Cleared => 1,
        }
    }
}

#[cfg(test)]
impl Text {
    pub(super) fn joined(&self) -> String {
        match self {
            Self::Joined(text) => text.clone(),
            Self::Blocks(texts) => texts.concat(),
        }
    }
}

/// One block of the state.
#[derive(Debug, Clone)]
pub(crate) struct StateBlock {
    pub(crate) hash: u64,
    pub(crate) parent: Option<u64>,
    pub(crate) text: Arc<str>,
    /// At the start of a prompt only.
    pub(crate) root: Option<Arc<Root>>,
}

/// The body of `POST /v1/sync`: the state after batch `seq`.
#[derive(Debug, Serialize)]
pub(super) struct SyncBody<'a> {
    pub(super) worker_id: &'a str,
    pub(super) epoch: &'a str,
    /// -1 before the first batch.
    pub(super) seq: i64,
    #[serde(flatten)]
    pub(super) step: Step,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Step {
    Digest { buckets: usize, blocks: usize, sums: Vec<u64> },
    Buckets { of: usize, list: Vec<usize>, blocks: Vec<SyncBlock> },
    Snapshot { part: usize, last: bool, blocks: Vec<SyncBlock> },
}

#[derive(Debug, Serialize)]
pub(super) struct SyncBlock {
    block_hash: u64,
    parent_block_hash: Option<u64>,
    /// The cache here never holds two copies of a block.
    copies: u32,
    #[serde(serialize_with = "texts")]
    text: [Arc<str>; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_salt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lora_name: Option<String>,
}

impl From<&StateBlock> for SyncBlock {
    fn from(block: &StateBlock) -> Self {
        let root = block.root.as_ref();
        Self {
            block_hash: block.hash,
            parent_block_hash: block.parent,
            copies: 1,
            text: [Arc::clone(&block.text)],
            model: root.map(|root| root.model.clone()),
            cache_salt: root.and_then(|root| root.cache_salt.clone()),
            lora_name: root.and_then(|root| root.lora_name.clone()),
        }
    }
}

fn texts<S: Serializer>(texts: &[Arc<str>], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(texts.iter().map(AsRef::as_ref))
}

/// What any answer may say.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Answer {
    #[serde(default)]
    pub(super) resync: bool,
    #[serde(default)]
    pub(super) want: Want,
    #[serde(default)]
    pub(super) differ: Vec<usize>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Want {
    #[default]
    Nothing,
    Buckets,
    Snapshot,
}
