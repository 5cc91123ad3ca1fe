//! Text to token ids, exactly as the engine's tokenizer has it.
//!
//! HuggingFace's `tokenizers` is the reference: engines use it. `fastokens` gives the same ids some
//! thirty times as fast, but is young; it is used only where it agrees with the reference on a
//! probe of the model's own tokenizer, made at load. Then the reference is let go: it is big.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::Value;

use super::{
    Unaligned, probe,
    segments::{SegmentCache, Splitter},
};

/// Bytes of text the reference may be given at once: it takes about half a second for these.
const REFERENCE_BYTES_MAX: usize = 512 << 10;

enum Engine {
    Fast(Box<fastokens::Tokenizer>),
    Reference(Box<tokenizers::Tokenizer>),
}

impl Engine {
    fn encode(&self, text: &str, special: bool) -> Option<Vec<u32>> {
        // A panic in there must not take the request with it.
        catch_unwind(AssertUnwindSafe(|| match self {
            Self::Fast(fast) => fast.encode_with_special_tokens(text, special).ok(),
            Self::Reference(reference) => {
                Some(reference.encode_fast(text, special).ok()?.get_ids().to_vec())
            }
        }))
        .ok()?
    }
}

/// A model's tokenizer.
pub(super) struct Tokenizer {
    engine: Engine,
    note: Option<String>,
    splitter: Option<Splitter>,
    cache: SegmentCache,
    /// What the post-processor puts before and after any text, when it does just that.
    frame: Option<(Vec<u32>, Vec<u32>)>,
}

/// How a tokenizer is built.
pub(super) struct Build {
    pub(super) cache_bytes_max: usize,
    pub(super) seed: u64,
    pub(super) fast: bool,
}

impl Tokenizer {
    /// From the content of tokenizer.json; the error says what is wrong with it.
    pub(super) fn build(json: Value, build: &Build) -> Result<Self, String> {
        if json["model"]["dropout"].as_f64().unwrap_or(0.0) > 0.0 {
            return Err("its model drops merges at random".to_owned());
        }
        let bytes = serde_json::to_vec(&json).map_err(|error| error.to_string())?;
        let reference = catch_unwind(|| tokenizers::Tokenizer::from_bytes(&bytes));
        drop(bytes);
        let mut reference = reference
            .map_err(|_| "the tokenizer library panicked on it".to_owned())?
            .map_err(|error| error.to_string())?;
        reference.with_padding(None);
        reference.with_truncation(None).map_err(|error| error.to_string())?;
        let declared = json["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
        for token in declared {
            let content = token["content"].as_str().unwrap_or("");
            if !content.is_empty() && reference.token_to_id(content) != id(token) {
                return Err(format!("added token {content:?} gets another id than it says"));
            }
        }
        let added: Vec<_> = reference.get_added_tokens_decoder().into_iter().collect();
        let splitter = Splitter::new(&json, added.iter().map(|(id, token)| (*id, token)));
        let contents: Vec<&str> = added.iter().map(|(_, token)| token.content.as_str()).collect();
        let texts = probe::texts(&contents);

        let reference = Engine::Reference(Box::new(reference));
        let (fast, note) = match build.fast.then(|| fast(json)) {
            None => (None, Some("asked for by configuration".to_owned())),
            Some(Err(error)) => (None, Some(format!("fastokens cannot read it: {error}"))),
            Some(Ok(fast)) => match first_difference(&fast, &reference, &texts) {
                None => (Some(fast), None),
                Some(at) => (None, Some(format!("fastokens differs on probe text {at}"))),
            },
        };
        let frame = frame(&reference, &texts);
        let engine = fast.unwrap_or(reference);
        let cache = SegmentCache::new(build.cache_bytes_max, build.seed);
        Ok(Self { engine, note, splitter, cache, frame })
    }

    /// "fastokens", or "tokenizers" for the reference.
    pub(super) fn engine(&self) -> &'static str {
        match self.engine {
            Engine::Fast(_) => "fastokens",
            Engine::Reference(_) => "tokenizers",
        }
    }

    /// Why the reference is used, when it is.
    pub(super) fn engine_note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Whether text is cut at added tokens and remembered piece by piece.
    pub(super) fn is_segmented(&self) -> bool {
        self.splitter.is_some()
    }

    /// Bytes of remembered pieces.
    pub(super) fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// The ids of `text`; with `special`, those the post-processor adds as well.
    pub(super) fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, Unaligned> {
        let is_reference = matches!(self.engine, Engine::Reference(_));
        if is_reference && text.len() > REFERENCE_BYTES_MAX {
            return Err(Unaligned::TooLong);
        }
        let nothing = (Vec::new(), Vec::new());
        let frame = if special { self.frame.as_ref() } else { Some(&nothing) };
        let (Some(splitter), Some((before, after))) = (&self.splitter, frame) else {
            return self.whole(text, special);
        };
        let mut ids = Vec::with_capacity(text.len() / 3 + 8);
        ids.extend_from_slice(before);
        for (piece, token) in splitter.pieces(text) {
            if !piece.is_empty() {
                self.cache.extend(piece, &mut ids, |piece| self.whole(piece, false))?;
            }
            ids.extend(token);
        }
        ids.extend_from_slice(after);
        Ok(ids)
    }

    /// Past the pieces and their memory.
    pub(super) fn whole(&self, text: &str, special: bool) -> Result<Vec<u32>, Unaligned> {
        self.engine.encode(text, special).ok_or(Unaligned::Tokenizer)
    }
}

fn id(token: &Value) -> Option<u32> {
    token["id"].as_u64().and_then(|id| u32::try_from(id).ok())
}

fn fast(json: Value) -> Result<Engine, String> {
    let fast = catch_unwind(AssertUnwindSafe(|| fastokens::Tokenizer::from_json(json)));
    let mut fast = fast.map_err(|_| "panic".to_owned())?.map_err(|error| error.to_string())?;
    fast.set_padding(None);
    fast.set_truncation(None);
    Ok(Engine::Fast(Box::new(fast)))
}

fn first_difference(fast: &Engine, reference: &Engine, texts: &[String]) -> Option<usize> {
    texts.iter().position(|text| {
        [false, true].iter().any(|special| {
            let (ours, theirs) = (fast.encode(text, *special), reference.encode(text, *special));
            ours.is_none() || ours != theirs
        })
    })
}

/// What `special` adds around a text, if that is the same for all of them.
fn frame(reference: &Engine, texts: &[String]) -> Option<(Vec<u32>, Vec<u32>)> {
    let framed = reference.encode("", true)?;
    let around = |text: &str| {
        let plain = reference.encode(text, false)?;
        let special = reference.encode(text, true)?;
        let before = (0..=special.len().checked_sub(plain.len())?)
            .find(|at| special[*at..].starts_with(&plain))?;
        Some((special[..before].to_vec(), special[before + plain.len()..].to_vec()))
    };
    let found = around(texts.first()?)?;
    let is_steady = texts.iter().all(|text| {
        let plain = reference.encode(text, false);
        let whole = plain.map(|plain| [found.0.as_slice(), &plain, &found.1].concat());
        whole.is_some() && whole == reference.encode(text, true)
    });
    (is_steady && framed == [found.0.as_slice(), &found.1].concat()).then_some(found)
}
