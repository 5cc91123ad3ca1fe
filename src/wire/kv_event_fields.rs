//! The fields of one cache event of an engine, and what they add up to.

use rmp::Marker;
use xxhash_rust::xxh3::Xxh3;

use super::{
    event::{BlockId, Content, Event, Stored, Tier},
    msgpack::{Name, Reader, Trouble},
};

/// The event lacks a field, or contradicts itself.
pub(super) struct Malformed;

/// Order of the fields in events that are arrays, behind the tag.
const STORED_ORDER: [&str; 11] = [
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
    "kv_cache_spec_sliding_window",
];
const REMOVED_ORDER: [&str; 3] = ["block_hashes", "medium", "group_idx"];

/// All fields any event may have; which are needed depends on its kind.
#[derive(Default)]
pub(super) struct Fields<'a> {
    /// The tag.
    pub(super) kind: Option<&'a str>,
    block_hashes: Option<Vec<BlockId>>,
    parent: Option<BlockId>,
    tokens: Option<Vec<u32>>,
    block_size: Option<u32>,
    lora_id: Option<BlockId>,
    lora_name: Option<&'a str>,
    medium: Option<&'a str>,
    cache_salt: Option<&'a str>,
    /// KV cache group.
    pub(super) group: Option<u32>,
    /// Kind of attention of that group.
    pub(super) spec_kind: Option<&'a str>,
    /// An array, not yet looked into: the LoRA name may come after it.
    extra_keys: Option<Reader<'a>>,
    /// Fields we do not know.
    pub(super) unknown: u32,
    /// Whether a field we know held another type.
    wrong: bool,
}

impl<'a> Fields<'a> {
    /// Reads one event.
    pub(super) fn read(&mut self, reader: &mut Reader<'a>) -> Result<(), Trouble> {
        match reader.peek()? {
            Marker::FixMap(_) | Marker::Map16 | Marker::Map32 => {
                for _ in 0..reader.map()? {
                    match reader.typed(Reader::text)? {
                        Ok(name) => self.field(name, reader)?,
                        Err(_) => self.skip(reader)?,
                    }
                }
            }
            Marker::FixArray(_) | Marker::Array16 | Marker::Array32 => {
                let count = reader.array()?;
                if count > 0 {
                    self.kind = self.keep(reader, Reader::text)?;
                }
                let order = match self.kind {
                    Some("BlockStored") => &STORED_ORDER[..],
                    Some("BlockRemoved") => &REMOVED_ORDER,
                    _ => &[],
                };
                for at in 1..count {
                    match order.get(at - 1) {
                        Some(name) => self.field(name, reader)?,
                        None => self.skip(reader)?,
                    }
                }
            }
            _ => {
                reader.skip()?;
            }
        }
        Ok(())
    }

    fn skip(&mut self, reader: &mut Reader<'a>) -> Result<(), Trouble> {
        self.unknown += 1;
        reader.skip().map(drop)
    }

    fn field(&mut self, name: &str, reader: &mut Reader<'a>) -> Result<(), Trouble> {
        match name {
            "type" => self.kind = self.keep(reader, Reader::text)?,
            "block_hashes" => self.block_hashes = self.keep(reader, |r| list(r, block_id))?,
            "parent_block_hash" => self.parent = self.keep(reader, block_id)?,
            "token_ids" => self.tokens = self.keep(reader, |r| list(r, Reader::small))?,
            "block_size" => self.block_size = self.keep(reader, Reader::small)?,
            "lora_id" => self.lora_id = self.keep(reader, block_id)?,
            "lora_name" => self.lora_name = self.keep(reader, Reader::text)?,
            "medium" => self.medium = self.keep(reader, Reader::text)?,
            "cache_salt" => self.cache_salt = self.keep(reader, Reader::text)?,
            "group_idx" => self.group = self.keep(reader, Reader::small)?,
            "kv_cache_spec_kind" => self.spec_kind = self.keep(reader, Reader::text)?,
            "extra_keys" => {
                self.extra_keys = self.keep(reader, |r| Ok(Reader::new(r.skip()?)))?;
            }
            // They say nothing about what is in a block.
            "kv_cache_spec_sliding_window" | "locality" | "ownership" | "session_id" => {
                reader.skip()?;
            }
            _ => self.skip(reader)?,
        }
        Ok(())
    }

    /// Reads a value; nil is none, and one of another type is none and noted.
    fn keep<T>(
        &mut self,
        reader: &mut Reader<'a>,
        read: impl FnOnce(&mut Reader<'a>) -> Result<T, Trouble>,
    ) -> Result<Option<T>, Trouble> {
        if reader.nil()? {
            return Ok(None);
        }
        let value = reader.typed(read)?.ok();
        self.wrong |= value.is_none();
        Ok(value)
    }

    fn tier(&self) -> Tier {
        match self.medium {
            None | Some("GPU") => Tier::Gpu,
            Some(medium) if medium.starts_with("CPU") => Tier::Cpu,
            Some(_) => Tier::Storage,
        }
    }

    /// The event as `BlockRemoved`.
    pub(super) fn removed(self) -> Result<Event, Malformed> {
        let tier = self.tier();
        let ids = self.block_hashes.filter(|_| !self.wrong).ok_or(Malformed)?;
        Ok(Event::Removed { ids, tier })
    }

    /// The event as `BlockStored`.
    pub(super) fn stored(self) -> Result<Event, Malformed> {
        if self.wrong {
            return Err(Malformed);
        }
        let tier = self.tier();
        let ids = self.block_hashes.filter(|ids| !ids.is_empty()).ok_or(Malformed)?;
        let keys = match self.extra_keys {
            Some(reader) => ExtraKeys::read(reader, ids.len(), self.lora_name, self.parent)
                .map_err(|_| Malformed)?,
            None => ExtraKeys::default(),
        };
        let tokens = self.tokens.unwrap_or_default();
        let block_tokens = self.block_size.unwrap_or(0) as usize;
        let content = if tokens.is_empty() {
            Content::Bare
        } else if block_tokens > 0 && ids.len().checked_mul(block_tokens) == Some(tokens.len()) {
            Content::Tokens { tokens, block_tokens, extra: keys.extra }
        } else {
            return Err(Malformed);
        };
        // An adapter without a name is told apart all the same.
        let lora_name = match (self.lora_name, self.lora_id) {
            (Some(name), _) => Some(name.to_owned()),
            (None, Some(id)) => Some(format!("lora_id:{}", id.0)),
            (None, None) => None,
        };
        Ok(Event::Stored(Stored {
            ids,
            parent: self.parent,
            content,
            model: None,
            lora_name,
            cache_salt: self.cache_salt.or(keys.salt).map(str::to_owned),
            tenant: None,
            tier,
        }))
    }
}

fn block_id(reader: &mut Reader<'_>) -> Result<BlockId, Trouble> {
    Ok(match reader.name()? {
        Name::Integer(id) => BlockId(id),
        Name::Bytes(digest) => BlockId::of_digest(digest),
    })
}

fn list<'a, T>(
    reader: &mut Reader<'a>,
    read: impl Fn(&mut Reader<'a>) -> Result<T, Trouble>,
) -> Result<Vec<T>, Trouble> {
    let count = reader.array()?;
    // An element takes a byte at least, and `array` looked whether there are as many.
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        values.push(read(reader)?);
    }
    Ok(values)
}

/// What blocks depend on besides their tokens. Engines say it in one list a block, untagged: the
/// LoRA name in every block, `[media id, offset]` where media are, the cache salt in the first
/// block of a prompt, a digest of prompt embeddings.
#[derive(Default)]
struct ExtraKeys<'a> {
    salt: Option<&'a str>,
    extra: Vec<(usize, u64)>,
}

impl<'a> ExtraKeys<'a> {
    fn read(
        mut reader: Reader<'a>,
        blocks: usize,
        lora_name: Option<&str>,
        parent: Option<BlockId>,
    ) -> Result<Self, Trouble> {
        let mut keys = Self::default();
        for at in 0..reader.array()?.min(blocks) {
            if reader.nil()? {
                continue;
            }
            let mut lora = lora_name;
            let mut hash = None::<Xxh3>;
            for _ in 0..reader.array()? {
                match reader.clone().text() {
                    Ok(name) if lora == Some(name) => {
                        // Only once: a salt may be called like the adapter.
                        lora = None;
                        reader.skip()?;
                    }
                    Ok(text) if at == 0 && parent.is_none() && keys.salt.is_none() => {
                        keys.salt = Some(text);
                        reader.skip()?;
                    }
                    _ => hash.get_or_insert_default().update(reader.skip()?),
                }
            }
            keys.extra.extend(hash.map(|hash| (at, hash.digest())));
        }
        Ok(keys)
    }
}
