//! Reports of workers: heartbeats and cache events, as JSON.
//!
//! Unknown fields are ignored and unknown event types are skipped and counted, so that an older
//! router reads a newer reporter. What is malformed names its field.

use serde::{Deserialize, Deserializer, de};
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_64;

/// Blocks in one batch; the body bound usually bites first.
pub const BLOCKS_MAX: usize = 1 << 20;

/// Why a report is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Malformed {
    /// Path of the field, such as `events[2].block_hashes`.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
    /// Whether the report is well formed but of a kind we cannot take (422 instead of 400).
    pub unsupported: bool,
}

impl Malformed {
    /// A malformed field.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into(), unsupported: false }
    }
}

/// `POST /v1/heartbeat`.
#[derive(Debug, Clone, Deserialize)]
pub struct Heartbeat {
    /// Who.
    pub worker_id: String,
    /// Where.
    pub worker_url: String,
    /// Requests the worker has in hand, by its own count.
    #[serde(default)]
    pub current_load: u32,
    /// The model it serves.
    #[serde(default)]
    pub model: Option<String>,
    /// KV cache size, blocks.
    #[serde(default)]
    pub kv_blocks_total: Option<u64>,
    /// KV cache in use, blocks.
    #[serde(default)]
    pub kv_blocks_used: Option<u64>,
    /// Tokens a KV block.
    #[serde(default)]
    pub kv_block_tokens: Option<u64>,
    /// Life of the engine process.
    #[serde(default, deserialize_with = "epoch_opt")]
    pub epoch: Option<String>,
    /// How long a worker unknown to the configuration stays without another heartbeat, seconds.
    #[serde(default)]
    pub lease_s: Option<u64>,
}

/// `POST /v1/events`.
#[derive(Debug, Clone, Deserialize)]
pub struct Batch {
    /// Who.
    pub worker_id: String,
    /// Life of the engine process; another one means another cache.
    #[serde(deserialize_with = "epoch")]
    pub epoch: String,
    /// Number of this batch in its epoch, counted up by one.
    pub seq: u64,
    /// In order.
    pub events: Vec<Event>,
    /// When the batch was made, unix seconds.
    #[serde(default)]
    pub ts: Option<f64>,
}

/// One cache event.
#[derive(Debug, Clone)]
pub enum Event {
    /// Blocks now in the cache.
    Stored(Stored),
    /// Blocks no longer there.
    Removed(Vec<BlockId>),
    /// Nothing is left.
    Cleared,
    /// Of a type we do not know.
    Unknown,
}

/// Blocks that follow each other behind `parent`.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Engine's names, one a block.
    pub block_hashes: Vec<BlockId>,
    /// The block before the first; `None` at the start of a prompt.
    pub parent: Option<BlockId>,
    /// Text of each block.
    pub text: Vec<String>,
    /// The same text as one string, cut every so many bytes (used when `text` is empty).
    pub joined: Option<(String, usize)>,
    /// The model, when the worker serves several.
    pub model: Option<String>,
    /// LoRA adapter.
    pub lora_name: Option<String>,
    /// Cache salt.
    pub cache_salt: Option<String>,
    /// Tenant, where the router separates tenants.
    pub tenant: Option<String>,
}

impl Stored {
    /// Each block's name and text, in order.
    pub fn blocks(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.block_hashes.iter().enumerate().map(|(at, id)| {
            let text = match &self.joined {
                Some((text, size)) => {
                    let end = ((at + 1) * size).min(text.len());
                    &text.as_bytes()[(at * size).min(end)..end]
                }
                None => self.text[at].as_bytes(),
            };
            (id.0, text)
        })
    }
}

/// An engine's name of a block: an integer of either sign, or any string (hashed).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockId(pub u64);

impl<'de> Deserialize<'de> for BlockId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = BlockId;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a block hash: a 64-bit integer or a string")
            }
            fn visit_u64<E>(self, value: u64) -> Result<BlockId, E> {
                Ok(BlockId(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<BlockId, E> {
                Ok(BlockId(value.cast_unsigned()))
            }
            fn visit_str<E>(self, value: &str) -> Result<BlockId, E> {
                Ok(BlockId(xxh3_64(value.as_bytes())))
            }
        }
        from.deserialize_any(Visitor)
    }
}

/// Longest epoch kept, bytes.
const EPOCH_BYTES_MAX: usize = 128;

/// An epoch is a string or an integer; both are kept as text.
struct Epoch(String);

impl<'de> Deserialize<'de> for Epoch {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Epoch;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string or an integer")
            }
            fn visit_u64<E>(self, value: u64) -> Result<Epoch, E> {
                Ok(Epoch(value.to_string()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Epoch, E> {
                Ok(Epoch(value.to_string()))
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<Epoch, E> {
                if value.len() > EPOCH_BYTES_MAX {
                    return Err(E::custom(format_args!("longer than {EPOCH_BYTES_MAX} bytes")));
                }
                Ok(Epoch(value.to_owned()))
            }
        }
        from.deserialize_any(Visitor)
    }
}

fn epoch<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Epoch::deserialize(from).map(|epoch| epoch.0)
}

fn epoch_opt<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<Epoch>::deserialize(from)?.map(|epoch| epoch.0))
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TextForm {
    Joined(String),
    Blocks(Vec<String>),
}

/// All fields any event may have; which are needed depends on `type`.
#[derive(Deserialize)]
struct EventForm {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    block_hashes: Option<Vec<BlockId>>,
    #[serde(default)]
    parent_block_hash: Option<BlockId>,
    #[serde(default)]
    text: Option<TextForm>,
    #[serde(default)]
    token_ids: Option<de::IgnoredAny>,
    #[serde(default)]
    block_size: Option<usize>,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    lora_name: Option<String>,
    #[serde(default)]
    cache_salt: Option<String>,
    #[serde(default)]
    tenant: Option<String>,
}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        // Raw first: an event of a later version may hold anything under the names we know.
        let raw = <&RawValue>::deserialize(from)?;
        read_event(raw.get()).map_err(|malformed| {
            let mark = if malformed.unsupported { UNSUPPORTED } else { "" };
            de::Error::custom(format_args!(
                "{mark}{FIELD}{}: {}",
                malformed.field, malformed.problem
            ))
        })
    }
}

/// Marks inside serde error texts, taken out again by `parse`.
const UNSUPPORTED: &str = "\u{1}unsupported ";
const FIELD: &str = "\u{1}field ";

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "type")]
    kind: String,
}

fn read_event(raw: &str) -> Result<Event, Malformed> {
    if !raw.starts_with('{') {
        // Derived readers take a list for an object.
        return Err(Malformed::new("", "expected an object"));
    }
    let kind = parse::<Kind>(raw.as_bytes())?.kind;
    if !matches!(&*kind, "stored" | "removed" | "cleared") {
        return Ok(Event::Unknown);
    }
    event(parse(raw.as_bytes())?)
}

fn event(form: EventForm) -> Result<Event, Malformed> {
    let hashes = form.block_hashes.ok_or_else(|| Malformed::new("block_hashes", "is required"));
    match form.kind.as_str() {
        "removed" => Ok(Event::Removed(hashes?)),
        "cleared" => Ok(Event::Cleared),
        "stored" => {
            let block_hashes = hashes?;
            let count = block_hashes.len();
            let (text, joined) = match (form.text, form.token_ids) {
                (Some(TextForm::Blocks(text)), _) if text.len() == count => (text, None),
                (Some(TextForm::Blocks(text)), _) => {
                    let problem = format!("{} texts for {count} block hashes", text.len());
                    return Err(Malformed::new("text", problem));
                }
                (Some(TextForm::Joined(text)), _) => {
                    (Vec::new(), Some(cut(text, count, form.block_size)?))
                }
                (None, Some(_)) => {
                    let problem = "token ids are not supported in text mode; report `text`";
                    let mut malformed = Malformed::new("token_ids", problem);
                    malformed.unsupported = true;
                    return Err(malformed);
                }
                (None, None) => return Err(Malformed::new("text", "is required")),
            };
            Ok(Event::Stored(Stored {
                block_hashes,
                parent: form.parent_block_hash,
                text,
                joined,
                model: form.model,
                lora_name: form.lora_name,
                cache_salt: form.cache_salt,
                tenant: form.tenant,
            }))
        }
        _ => Ok(Event::Unknown),
    }
}

fn cut(text: String, count: usize, size: Option<usize>) -> Result<(String, usize), Malformed> {
    let size = size.ok_or_else(|| Malformed::new("block_size", "is required with one string"))?;
    if size == 0 {
        return Err(Malformed::new("block_size", "is 0"));
    }
    if count.checked_mul(size) != Some(text.len()) {
        let problem = format!("{} bytes for {count} blocks of {size} bytes", text.len());
        return Err(Malformed::new("text", problem));
    }
    Ok((text, size))
}

/// Reads a report body.
///
/// # Errors
/// `Malformed` naming the field.
pub fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Malformed> {
    if body.trim_ascii_start().first().is_some_and(|first| *first == b'[') {
        return Err(Malformed::new("body", "expected an object"));
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        malformed(&path, &error.inner().to_string())
    })?;
    json.end().map_err(|error| Malformed::new("body", error.to_string()))?;
    Ok(value)
}

fn malformed(path: &str, text: &str) -> Malformed {
    let unsupported = text.starts_with(UNSUPPORTED);
    let text = text.strip_prefix(UNSUPPORTED).unwrap_or(text);
    let path = if path == "." { "" } else { path };
    let join = |field: &str| match (path, field) {
        ("", field) => field.to_owned(),
        (path, "" | "body") => path.to_owned(),
        (path, field) => format!("{path}.{field}"),
    };
    if let Some((field, problem)) = text.strip_prefix(FIELD).and_then(|t| t.split_once(": ")) {
        // The path may already end in the field that failed.
        let problem = problem.split(" at line ").next().unwrap_or(problem);
        return Malformed { field: join(field), problem: problem.to_owned(), unsupported };
    }
    let missing = text.strip_prefix("missing field `").and_then(|t| t.split('`').next());
    let field = match missing {
        Some(name) => join(name),
        None if path.is_empty() => "body".to_owned(),
        None => path.to_owned(),
    };
    Malformed { field, problem: text.to_owned(), unsupported: false }
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
