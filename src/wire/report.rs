//! Reports of workers: heartbeats and cache events, as JSON.
//!
//! Unknown fields are ignored, so that an older router reads a newer reporter. What is malformed
//! names its field. The events themselves are read by `report_event`.

use serde::{Deserialize, Deserializer, de};

use super::event::Event;

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
    /// Number of the last batch sent in this epoch, when there was one.
    #[serde(default)]
    pub seq: Option<u64>,
    /// Data-parallel rank that `seq` and the blocks are of.
    #[serde(default)]
    pub rank: u32,
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
    /// Data-parallel rank whose cache this is about; each rank counts its own batches.
    #[serde(default)]
    pub rank: u32,
    /// In order.
    pub events: Vec<Event>,
    /// When the batch was made, unix seconds.
    #[serde(default)]
    pub ts: Option<f64>,
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

pub(super) fn epoch<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Epoch::deserialize(from).map(|epoch| epoch.0)
}

fn epoch_opt<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<Epoch>::deserialize(from)?.map(|epoch| epoch.0))
}

/// Marks inside serde error texts, taken out again by `parse`.
pub(super) const UNSUPPORTED: &str = "\u{1}unsupported ";
pub(super) const FIELD: &str = "\u{1}field ";

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
