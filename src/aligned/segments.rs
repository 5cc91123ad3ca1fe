//! Token ids of text seen before.
//!
//! In a chat most of a prompt is old. A tokenizer cuts its text at added tokens before anything
//! else, so what stands between them tokenizes on its own, and in a growing conversation only the
//! newest pieces are new. This is exact, unlike remembering ids at arbitrary offsets; a tokenizer
//! for which it would not be is not cut (`Splitter::new`).
//!
//! Two generations stand for an order of use: a full young one becomes the old one, and what is
//! found in the old one moves back. A piece untouched for a whole generation goes with it.

use std::{collections::HashMap, sync::Arc};

use aho_corasick::{AhoCorasick, MatchKind};
use parking_lot::Mutex;
use serde_json::Value;
use tokenizers::AddedToken;
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// Shares of the cache with a lock each.
const SHARDS: usize = 8;
/// Shorter text costs less to tokenize than to look up.
const BYTES_MIN: usize = 16;
/// What an entry takes besides its ids: key, pointer, counts, room in the table.
const ENTRY_BYTES: usize = 96;

/// Finds the added tokens that cut a text.
pub(super) struct Splitter {
    tokens: AhoCorasick,
    ids: Vec<u32>,
}

impl Splitter {
    /// `None` when pieces would depend on each other, or on where they stand.
    pub(super) fn new<'a>(
        tokenizer: &Value,
        added: impl Iterator<Item = (u32, &'a AddedToken)>,
    ) -> Option<Self> {
        let apart = whole_tree(&tokenizer["normalizer"], "normalizers", normalizer_is_local)
            && whole_tree(&tokenizer["pre_tokenizer"], "pretokenizers", pre_tokenizer_is_local)
            && tokenizer["model"]["type"] == "BPE"
            && tokenizer["model"]["dropout"].as_f64().unwrap_or(0.0) == 0.0;
        let mut cuts = Vec::new();
        for (id, token) in added {
            if token.single_word || token.lstrip || token.rstrip {
                return None;
            }
            // Normalized ones are found in the pieces, by the tokenizer.
            if !token.normalized {
                cuts.push((token.content.as_str(), id));
            }
        }
        if !apart || cuts.is_empty() {
            return None;
        }
        let tokens = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(cuts.iter().map(|(content, _)| content))
            .ok()?;
        Some(Self { tokens, ids: cuts.into_iter().map(|(_, id)| id).collect() })
    }

    /// `text` in order: each piece that is not empty, and the id of the token after it.
    pub(super) fn pieces<'t>(&self, text: &'t str) -> impl Iterator<Item = (&'t str, Option<u32>)> {
        let mut matches = self.tokens.find_iter(text);
        let mut at = 0;
        let mut done = false;
        std::iter::from_fn(move || {
            if done {
                return None;
            }
            if let Some(found) = matches.next() {
                let piece = &text[at..found.start()];
                at = found.end();
                return Some((piece, Some(self.ids[found.pattern().as_usize()])));
            }
            done = true;
            Some((&text[at..], None))
        })
    }
}

/// Whether `test` holds for a component, or for each of a `Sequence`.
fn whole_tree(component: &Value, list: &str, test: fn(&Value) -> bool) -> bool {
    if component.is_null() {
        return true;
    }
    if component["type"] == "Sequence" {
        let members = component[list].as_array();
        return members.is_some_and(|all| all.iter().all(|one| whole_tree(one, list, test)));
    }
    test(component)
}

fn normalizer_is_local(component: &Value) -> bool {
    let kinds = ["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Replace"];
    component["type"].as_str().is_some_and(|kind| kinds.contains(&kind))
}

fn pre_tokenizer_is_local(component: &Value) -> bool {
    match component["type"].as_str() {
        Some("Split" | "Digits") => true,
        Some("ByteLevel") => component["add_prefix_space"] == false,
        _ => false,
    }
}

type Ids = Arc<[u32]>;

#[derive(Default)]
struct Generations {
    young: HashMap<u128, Ids>,
    old: HashMap<u128, Ids>,
    /// Of `young`.
    bytes: usize,
}

/// Bounded memory of pieces and their ids.
pub(super) struct SegmentCache {
    /// Keys the hashes, so that nobody can aim a collision.
    seed: u64,
    shards: [Mutex<Generations>; SHARDS],
    /// A generation of a shard turns at this size.
    generation_bytes: usize,
}

impl SegmentCache {
    /// Holds at most `bytes_max`; nothing when that is 0.
    pub(super) fn new(bytes_max: usize, seed: u64) -> Self {
        let shards = std::array::from_fn(|_| Mutex::default());
        Self { seed, shards, generation_bytes: bytes_max / SHARDS / 2 }
    }

    /// Appends the ids of `text`, from memory or from `tokenize`.
    pub(super) fn extend<E>(
        &self,
        text: &str,
        out: &mut Vec<u32>,
        tokenize: impl FnOnce(&str) -> Result<Vec<u32>, E>,
    ) -> Result<(), E> {
        if text.len() < BYTES_MIN || self.generation_bytes == 0 {
            out.extend(tokenize(text)?);
            return Ok(());
        }
        let key = xxh3_128_with_seed(text.as_bytes(), self.seed);
        let shard = &self.shards[key as usize % SHARDS];
        let known = shard.lock().find(key, self.generation_bytes);
        if let Some(ids) = known {
            out.extend_from_slice(&ids);
            return Ok(());
        }
        let ids: Ids = tokenize(text)?.into();
        out.extend_from_slice(&ids);
        shard.lock().insert(key, ids, self.generation_bytes);
        Ok(())
    }

    /// Bytes held now.
    pub(super) fn bytes(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| {
                let shard = shard.lock();
                shard.bytes + shard.old.values().map(entry_bytes).sum::<usize>()
            })
            .sum()
    }
}

fn entry_bytes(ids: &Ids) -> usize {
    ids.len() * size_of::<u32>() + ENTRY_BYTES
}

impl Generations {
    fn find(&mut self, key: u128, generation_bytes: usize) -> Option<Ids> {
        if let Some(ids) = self.young.get(&key) {
            return Some(Arc::clone(ids));
        }
        let ids = self.old.remove(&key)?;
        self.insert(key, Arc::clone(&ids), generation_bytes);
        Some(ids)
    }

    fn insert(&mut self, key: u128, ids: Ids, generation_bytes: usize) {
        let bytes = entry_bytes(&ids);
        if bytes > generation_bytes {
            return;
        }
        if self.bytes + bytes > generation_bytes {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
        if self.young.insert(key, ids).is_none() {
            self.bytes += bytes;
        }
    }
}

#[cfg(test)]
#[path = "segments_tests.rs"]
mod tests;
