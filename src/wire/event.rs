//! What a cache event says, whichever way it came: pushed as JSON or published over ZMQ.

use std::borrow::Cow;

/// An engine's name of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockId(pub u64);

impl BlockId {
    /// The name of a block that is known by a digest: its last eight bytes, big-endian, which is
    /// vLLM's own integer form of it. Shorter ones are padded with zeros in front.
    pub fn of_digest(digest: &[u8]) -> Self {
        let mut last = [0; 8];
        let tail = &digest[digest.len().saturating_sub(8)..];
        last[8 - tail.len()..].copy_from_slice(tail);
        Self(u64::from_be_bytes(last))
    }
}

/// Where a worker keeps a block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// The accelerator's own memory: ready for use.
    #[default]
    Gpu,
    /// The host's memory: has to be loaded first.
    Cpu,
    /// Disk or another machine: slower still.
    Storage,
}

/// One cache event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Blocks now in the cache.
    Stored(Stored),
    /// Blocks no longer there, one copy of each.
    Removed {
        /// Their names.
        ids: Vec<BlockId>,
        /// Where they were.
        tier: Tier,
    },
    /// Nothing is left, in any tier.
    Cleared,
    /// Of a kind we do not know.
    Unknown,
}

/// Blocks that follow each other behind `parent`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Engine's names, one a block.
    pub ids: Vec<BlockId>,
    /// The block before the first; `None` at the start of a prompt.
    pub parent: Option<BlockId>,
    /// What the blocks hold.
    pub content: Content,
    /// The model, when the worker serves several.
    pub model: Option<String>,
    /// LoRA adapter.
    pub lora_name: Option<String>,
    /// Cache salt; engines say it with a prompt's first block.
    pub cache_salt: Option<String>,
    /// Tenant, where the router separates tenants.
    pub tenant: Option<String>,
    /// Where they are kept.
    pub tier: Tier,
}

/// What stored blocks hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Text of each block.
    Text(Vec<String>),
    /// Text of all blocks, cut every so many bytes.
    Joined {
        /// The text; its length is the number of blocks times `block_bytes`.
        text: String,
        /// Bytes a block, over 0.
        block_bytes: usize,
    },
    /// Tokens of all blocks, cut every so many.
    Tokens {
        /// Token ids; as many as blocks times `block_tokens`.
        tokens: Vec<u32>,
        /// Tokens a block, over 0.
        block_tokens: usize,
        /// Blocks, by their place in `ids`, that also depend on something besides their tokens
        /// (media, prompt embeddings), with a hash of that.
        extra: Vec<(usize, u64)>,
    },
    /// Nothing but the names: the blocks are known from before, or named by the engine's own hash.
    Bare,
}

/// Bytes of one token in a block: its id, little-endian. The request side writes the same.
pub const TOKEN_BYTES: usize = 4;

impl Stored {
    /// The blocks as bytes; `None` where only their names are known.
    pub fn blocks(&self) -> Option<Blocks<'_>> {
        let (bytes, cut) = match &self.content {
            Content::Text(texts) => (Cow::Borrowed(&[][..]), Cut::Texts(texts)),
            Content::Joined { text, block_bytes } => {
                (Cow::Borrowed(text.as_bytes()), Cut::Every(*block_bytes))
            }
            Content::Tokens { tokens, block_tokens, extra } => {
                let bytes = Cow::Owned(token_bytes(tokens, *block_tokens, extra));
                (bytes, Cut::Every(block_tokens * TOKEN_BYTES))
            }
            Content::Bare => return None,
        };
        Some(Blocks { ids: &self.ids, bytes, cut })
    }

    /// Whether the blocks are named by tokens rather than text.
    pub fn is_tokens(&self) -> bool {
        matches!(self.content, Content::Tokens { .. } | Content::Bare)
    }
}

/// Token ids as bytes. A block that depends on more than its tokens gets other ids, so that no
/// prompt of text alone matches it or what follows it.
fn token_bytes(tokens: &[u32], block_tokens: usize, extra: &[(usize, u64)]) -> Vec<u8> {
    let mut bytes: Vec<u8> = tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
    for &(block, hash) in extra {
        let start = block.saturating_mul(block_tokens * TOKEN_BYTES);
        let fold = ((hash >> 32) ^ hash) as u32 | 1 << 31;
        for (at, byte) in bytes.iter_mut().skip(start).take(TOKEN_BYTES).enumerate() {
            *byte ^= fold.to_le_bytes()[at];
        }
    }
    bytes
}

/// Blocks as bytes, in order.
#[derive(Debug)]
pub struct Blocks<'a> {
    ids: &'a [BlockId],
    bytes: Cow<'a, [u8]>,
    cut: Cut<'a>,
}

#[derive(Debug)]
enum Cut<'a> {
    Every(usize),
    Texts(&'a [String]),
}

impl Blocks<'_> {
    /// Each block's name and bytes.
    pub fn iter(&self) -> impl Iterator<Item = (BlockId, &[u8])> {
        self.ids.iter().enumerate().map(|(at, id)| {
            let bytes = match self.cut {
                Cut::Every(size) => {
                    let end = ((at + 1) * size).min(self.bytes.len());
                    &self.bytes[(at * size).min(end)..end]
                }
                Cut::Texts(texts) => texts.get(at).map_or(&[][..], |text| text.as_bytes()),
            };
            (*id, bytes)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_named_by_its_last_eight_bytes() {
        assert_eq!(BlockId::of_digest(&[9, 0, 0, 0, 0, 0, 0, 1, 2]), BlockId(258));
        assert_eq!(BlockId::of_digest(&[1, 2]), BlockId(258));
        assert_eq!(BlockId::of_digest(&[]), BlockId(0));
    }

    #[test]
    fn what_a_block_depends_on_besides_its_tokens_changes_that_block_alone() {
        let stored = |extra| Stored {
            ids: vec![BlockId(1), BlockId(2)],
            parent: None,
            content: Content::Tokens { tokens: vec![7, 8, 7, 8], block_tokens: 2, extra },
            model: None,
            lora_name: None,
            cache_salt: None,
            tenant: None,
            tier: Tier::Gpu,
        };
        let (plain, media) = (stored(vec![]), stored(vec![(1, 3)]));
        let (plain, media) = (plain.blocks().expect("tokens"), media.blocks().expect("tokens"));
        let plain: Vec<_> = plain.iter().map(|(_, bytes)| bytes.to_vec()).collect();
        let media: Vec<_> = media.iter().map(|(_, bytes)| bytes.to_vec()).collect();
        assert_eq!(plain[0], [7, 0, 0, 0, 8, 0, 0, 0]);
        assert_eq!(plain[0], media[0]);
        assert_ne!(plain[1], media[1]);
        assert_eq!(plain[1][4..], media[1][4..]);
    }
}
