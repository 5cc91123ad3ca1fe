//! Cache events as JSON.
//!
//! Unknown fields are ignored and events of an unknown type skipped, so that an older router reads
//! a newer reporter.

use serde::{Deserialize, Deserializer, de};
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    event::{BlockId, Content, Event, Stored, Tier},
    report::{FIELD, Malformed, UNSUPPORTED, parse},
};

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

#[derive(Deserialize)]
#[serde(untagged)]
enum TextForm {
    Joined(String),
    Blocks(Vec<String>),
}

/// All fields any event, or a block in a sync, may have. (One form for all: serde's `flatten` would
/// copy every token id once more.)
#[derive(Deserialize)]
pub(super) struct BlocksForm {
    #[serde(default)]
    block_hashes: Option<Vec<BlockId>>,
    #[serde(default)]
    pub(super) block_hash: Option<BlockId>,
    #[serde(default)]
    pub(super) copies: Option<u32>,
    #[serde(default)]
    parent_block_hash: Option<BlockId>,
    #[serde(default)]
    text: Option<TextForm>,
    #[serde(default)]
    token_ids: Option<Vec<u32>>,
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
    #[serde(default)]
    medium: Option<String>,
    #[serde(default)]
    extra_keys: Option<Vec<Option<Vec<serde_json::Value>>>>,
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
    if kind == "cleared" {
        return Ok(Event::Cleared);
    }
    let mut form: BlocksForm = parse(raw.as_bytes())?;
    let ids = form.block_hashes.take();
    let ids = ids.ok_or_else(|| Malformed::new("block_hashes", "is required"))?;
    if kind == "removed" {
        return Ok(Event::Removed { ids, tier: tier(form.medium.as_deref()) });
    }
    stored(ids, form).map(Event::Stored)
}

/// Blocks `ids` as `form` describes them.
pub(super) fn stored(ids: Vec<BlockId>, form: BlocksForm) -> Result<Stored, Malformed> {
    let tier = tier(form.medium.as_deref());
    let (salt, extra) = extras(
        form.extra_keys.unwrap_or_default(),
        form.lora_name.as_deref().unwrap_or(""),
        form.parent_block_hash.is_none(),
    );
    let content = match (form.text, form.token_ids) {
        (Some(TextForm::Blocks(text)), _) if text.len() == ids.len() => Content::Text(text),
        (Some(TextForm::Blocks(text)), _) => {
            let problem = format!("{} texts for {} block hashes", text.len(), ids.len());
            return Err(Malformed::new("text", problem));
        }
        (Some(TextForm::Joined(text)), _) => {
            let block_bytes = cut("text", text.len(), "bytes", ids.len(), form.block_size)?;
            Content::Joined { text, block_bytes }
        }
        (None, Some(tokens)) if tokens.is_empty() => Content::Bare,
        (None, Some(tokens)) => {
            let size = cut("token_ids", tokens.len(), "tokens", ids.len(), form.block_size)?;
            Content::Tokens { tokens, block_tokens: size, extra }
        }
        // Other tiers name what the first has told; without one, `block_hash` may be configured.
        (None, None) if tier != Tier::Gpu => Content::Bare,
        (None, None) => return Err(Malformed::new("text", "is required, or `token_ids`")),
    };
    Ok(Stored {
        ids,
        parent: form.parent_block_hash,
        content,
        model: form.model,
        lora_name: form.lora_name.filter(|name| !name.is_empty()),
        cache_salt: form.cache_salt.or(salt),
        tenant: form.tenant,
        tier,
    })
}

fn cut(
    field: &str,
    len: usize,
    unit: &str,
    count: usize,
    size: Option<usize>,
) -> Result<usize, Malformed> {
    let size =
        size.ok_or_else(|| Malformed::new("block_size", format!("is required with `{field}`")))?;
    if size == 0 {
        return Err(Malformed::new("block_size", "is 0"));
    }
    if count.checked_mul(size) != Some(len) {
        let problem = format!("{len} {unit} for {count} blocks of {size} {unit}");
        return Err(Malformed::new(field, problem));
    }
    Ok(size)
}

/// The tier an engine's `medium` stands for; what we do not know is taken for slow.
pub fn tier(medium: Option<&str>) -> Tier {
    match medium {
        None | Some("" | "GPU" | "gpu") => Tier::Gpu,
        Some(medium) if medium.get(..3).is_some_and(|cpu| cpu.eq_ignore_ascii_case("cpu")) => {
            Tier::Cpu
        }
        Some(_) => Tier::Storage,
    }
}

/// vLLM's untagged extra keys, per block: the salt (a string in a prompt's first block that is not
/// the adapter's name), and a hash of whatever else a block depends on.
fn extras(
    keys: Vec<Option<Vec<serde_json::Value>>>,
    lora: &str,
    starts: bool,
) -> (Option<String>, Vec<(usize, u64)>) {
    let (mut salt, mut extra) = (None, Vec::new());
    for (block, keys) in keys.into_iter().enumerate() {
        let mut rest = Vec::new();
        let mut lora = Some(lora).filter(|lora| !lora.is_empty());
        for key in keys.into_iter().flatten() {
            match key {
                serde_json::Value::String(text) if lora == Some(&*text) => lora = None,
                serde_json::Value::String(text) if starts && block == 0 && salt.is_none() => {
                    salt = Some(text);
                }
                other => rest.push(other.to_string()),
            }
        }
        if !rest.is_empty() {
            extra.push((block, xxh3_64(rest.join("\u{1}").as_bytes())));
        }
    }
    (salt, extra)
}
