//! Cache events as vLLM and SGLang publish them: MessagePack, a batch a message.
//!
//! Lenient by event: one that is malformed, of a kind we do not know, or of a KV cache group that
//! says nothing about whole prefixes is counted and left out, and the batch goes on. Only a batch
//! that cannot be walked is refused. Both layouts are read, events as maps (now) and as arrays
//! (older vLLM). Sizes are bounded by the payload's, which is bounded itself.

use rmp::Marker;

use super::{
    event::{Content, Event},
    kv_event_fields::{Fields, Malformed},
    msgpack::{Reader, Trouble},
};

/// Largest payload read. A step of an engine makes some tens of kilobytes; a million tokens told
/// at once would be 6 MiB. In memory a batch is at most some ten times its payload.
pub const PAYLOAD_BYTES_MAX: usize = 16 << 20;
/// Events in one batch. SGLang makes one a page, and a page may be one token.
pub const EVENTS_MAX: usize = 1 << 18;

/// One batch of events.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DecodedBatch {
    /// When it was made, unix seconds by the engine's clock.
    pub ts: f64,
    /// In order; blocks that were told one by one in a row are joined.
    pub events: Vec<Event>,
    /// Data-parallel rank, if said.
    pub rank: Option<u32>,
    /// What was left out.
    pub skipped: Skipped,
}

/// What was left out of a batch, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Fields we do not know.
    pub fields: u32,
    /// Events of a kind we do not know (each is an `Event::Unknown` too).
    pub kinds: u32,
    /// Events that contradict themselves or lack a field.
    pub malformed: u32,
    /// Events of KV cache groups other than full attention.
    pub groups: u32,
}

/// Why a batch was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Longer than `PAYLOAD_BYTES_MAX`.
    #[error("a batch of {0} bytes is over {PAYLOAD_BYTES_MAX}")]
    TooLong(usize),
    /// More than `EVENTS_MAX` events.
    #[error("a batch of {0} events is over {EVENTS_MAX}")]
    TooMany(usize),
    /// It ends inside a value.
    #[error("the batch ends early")]
    Cut,
    /// Something is not what every batch has there.
    #[error("{field}: expected {wanted}")]
    Malformed {
        /// Where.
        field: &'static str,
        /// What belongs there.
        wanted: &'static str,
    },
}

/// Decodes the batches of one engine process, one after another.
///
/// It remembers which KV cache groups are full attention, as removals name their group by number
/// only. An engine that restarted gets a new one.
#[derive(Debug, Clone, Default)]
pub struct Decoder {
    /// One bit a group: whether its kind is known, and whether it is full attention.
    groups_known: u64,
    groups_full: u64,
}

impl Decoder {
    /// Decodes one payload.
    ///
    /// # Errors
    /// See [`DecodeError`]; the decoder can go on with the next payload.
    pub fn decode(&mut self, payload: &[u8]) -> Result<DecodedBatch, DecodeError> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(DecodeError::TooLong(payload.len()));
        }
        let mut reader = Reader::new(payload);
        let mut batch = DecodedBatch::default();
        match in_field(reader.peek(), "batch")? {
            Marker::FixMap(_) | Marker::Map16 | Marker::Map32 => {
                for _ in 0..in_field(reader.map(), "batch")? {
                    match in_field(reader.text(), "batch key")? {
                        "ts" => batch.ts = in_field(reader.number(), "ts")?,
                        "events" => self.events(&mut reader, &mut batch)?,
                        "data_parallel_rank" | "attn_dp_rank" => rank(&mut reader, &mut batch)?,
                        _ => other(&mut reader, &mut batch)?,
                    }
                }
            }
            _ => {
                let count = in_field(reader.array(), "batch")?;
                if count < 2 {
                    return Err(DecodeError::Malformed { field: "batch", wanted: "[ts, events]" });
                }
                batch.ts = in_field(reader.number(), "ts")?;
                self.events(&mut reader, &mut batch)?;
                if count > 2 {
                    rank(&mut reader, &mut batch)?;
                }
                for _ in 3..count {
                    other(&mut reader, &mut batch)?;
                }
            }
        }
        Ok(batch)
    }

    fn events(
        &mut self,
        reader: &mut Reader<'_>,
        batch: &mut DecodedBatch,
    ) -> Result<(), DecodeError> {
        let count = in_field(reader.array(), "events")?;
        if count > EVENTS_MAX {
            return Err(DecodeError::TooMany(count));
        }
        for _ in 0..count {
            let mut fields = Fields::default();
            in_field(fields.read(reader), "events")?;
            batch.skipped.fields += fields.unknown;
            match self.event(fields) {
                Ok(event) => push(&mut batch.events, event),
                Err(Left::Kind) => {
                    batch.skipped.kinds += 1;
                    batch.events.push(Event::Unknown);
                }
                Err(Left::Malformed) => batch.skipped.malformed += 1,
                Err(Left::Group) => batch.skipped.groups += 1,
            }
        }
        Ok(())
    }

    fn event(&mut self, fields: Fields<'_>) -> Result<Event, Left> {
        match fields.kind {
            Some("BlockStored" | "BlockRemoved") if !self.takes_group(&fields) => Err(Left::Group),
            Some("BlockStored") => fields.stored().map_err(|Malformed| Left::Malformed),
            Some("BlockRemoved") => fields.removed().map_err(|Malformed| Left::Malformed),
            Some("AllBlocksCleared") => Ok(Event::Cleared),
            None => Err(Left::Malformed),
            Some(_) => Err(Left::Kind),
        }
    }

    /// Whether a group holds whole prefixes: a model that mixes kinds of attention publishes one
    /// group a kind, under the same hashes, and a block in a sliding window is no longer there
    /// when the prompt goes on.
    fn takes_group(&mut self, fields: &Fields<'_>) -> bool {
        let bit = |group: u32| 1u64.checked_shl(group);
        match (fields.spec_kind, fields.group.map(bit)) {
            (Some(kind), group) => {
                let full =
                    matches!(kind, "full_attention" | "mla_attention" | "sink_full_attention");
                if let Some(Some(bit)) = group {
                    self.groups_known |= bit;
                    self.groups_full = self.groups_full & !bit | if full { bit } else { 0 };
                }
                // A removal of a group we cannot remember would be left out.
                full && group != Some(None)
            }
            (None, Some(Some(bit))) if self.groups_known & bit != 0 => self.groups_full & bit != 0,
            (None, _) => matches!(fields.group, None | Some(0)),
        }
    }
}

fn in_field<T>(read: Result<T, Trouble>, field: &'static str) -> Result<T, DecodeError> {
    read.map_err(|trouble| match trouble {
        Trouble::Cut => DecodeError::Cut,
        Trouble::Other(wanted) => DecodeError::Malformed { field, wanted },
    })
}

fn rank(reader: &mut Reader<'_>, batch: &mut DecodedBatch) -> Result<(), DecodeError> {
    batch.rank = in_field(reader.typed(Reader::small), "rank")?.ok();
    Ok(())
}

fn other(reader: &mut Reader<'_>, batch: &mut DecodedBatch) -> Result<(), DecodeError> {
    in_field(reader.skip(), "batch")?;
    batch.skipped.fields += 1;
    Ok(())
}

/// Why an event was left out.
enum Left {
    Kind,
    Malformed,
    Group,
}

/// Adds an event; stored blocks that go on where the last event ended are joined to it (SGLang
/// tells every page by itself).
fn push(events: &mut Vec<Event>, event: Event) {
    if let (Some(Event::Stored(last)), Event::Stored(next)) = (events.last_mut(), &event)
        && next.parent.is_some()
        && next.parent == last.ids.last().copied()
        && next.tier == last.tier
        && next.lora_name == last.lora_name
        && (next.cache_salt.is_none() || next.cache_salt == last.cache_salt)
        && let Content::Tokens { tokens, block_tokens, extra } = &mut last.content
        && let Content::Tokens { tokens: more, block_tokens: size, extra: more_extra } =
            &next.content
        && block_tokens == size
    {
        let before = last.ids.len();
        last.ids.extend_from_slice(&next.ids);
        tokens.extend_from_slice(more);
        extra.extend(more_extra.iter().map(|(at, hash)| (before + at, *hash)));
        return;
    }
    events.push(event);
}

#[cfg(test)]
#[path = "kv_events_tests.rs"]
mod tests;
