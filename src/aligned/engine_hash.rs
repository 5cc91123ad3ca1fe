//! Names of vLLM's cache blocks, computed as vLLM does.
//!
//! Engines that report bare hashes, without token ids, can only be followed by someone who can
//! compute the same hash from the tokens. vLLM hashes `(parent, tokens, extra keys)` with SHA-256,
//! over Python's pickle (protocol 5) or over canonical CBOR; both are written out by hand here, for
//! just these values. The xxhash variants are left out: they start from a random value in each
//! process unless PYTHONHASHSEED is set, and need a Python package that is not there by default.

use std::num::NonZeroUsize;

use sha2::{Digest, Sha256};

/// `--prefix-caching-hash-algo` of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HashAlgorithm {
    /// SHA-256 over pickle protocol 5; vLLM's default.
    Sha256,
    /// SHA-256 over canonical CBOR.
    Sha256Cbor,
}

/// A LoRA adapter, as the engine knows it.
#[derive(Debug, Clone, Copy)]
pub struct Lora<'a> {
    /// The adapter's name.
    pub name: &'a str,
    /// Where the engine loaded it from.
    pub path: &'a str,
}

/// What a block's name commits to besides its tokens.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExtraKeys<'a> {
    /// In the key of every block.
    pub lora: Option<Lora<'a>>,
    /// `cache_salt`, in the key of the first block.
    pub salt: Option<&'a str>,
}

/// The whole digest of a block.
pub type BlockDigest = [u8; 32];

/// Seed text when PYTHONHASHSEED is not set.
const DEFAULT_SEED: &str = "vllm-none-hash";

/// The parent of first blocks; `seed` is the engine's PYTHONHASHSEED.
pub fn none_hash(algorithm: HashAlgorithm, seed: Option<&str>) -> BlockDigest {
    let mut bytes = Vec::new();
    match algorithm {
        HashAlgorithm::Sha256 => {
            let mut body = Vec::new();
            pickle::text(seed.unwrap_or(DEFAULT_SEED), &mut body);
            pickle::close(&body, &mut bytes);
        }
        HashAlgorithm::Sha256Cbor => cbor::text(seed.unwrap_or(DEFAULT_SEED), &mut bytes),
    }
    Sha256::digest(&bytes).into()
}

/// The hashes engines report (low 64 bits) of the full blocks of `tokens`.
pub fn block_hashes(
    tokens: &[u32],
    block_tokens: NonZeroUsize,
    algorithm: HashAlgorithm,
    none_hash: &BlockDigest,
    extra: &ExtraKeys<'_>,
) -> Vec<u64> {
    block_digests(tokens, block_tokens, algorithm, none_hash, extra).map(|d| low_64(&d)).collect()
}

/// The digests of the full blocks of `tokens`, in order.
pub fn block_digests<'a>(
    tokens: &'a [u32],
    block_tokens: NonZeroUsize,
    algorithm: HashAlgorithm,
    none_hash: &BlockDigest,
    extra: &'a ExtraKeys<'a>,
) -> impl Iterator<Item = BlockDigest> + 'a {
    let mut parent = *none_hash;
    let (mut bytes, mut body) = (Vec::new(), Vec::new());
    tokens.chunks_exact(block_tokens.get()).enumerate().map(move |(index, block)| {
        let salt = extra.salt.filter(|_| index == 0);
        bytes.clear();
        body.clear();
        match algorithm {
            HashAlgorithm::Sha256 => {
                pickle::block(&parent, block, extra.lora, salt, &mut body);
                pickle::close(&body, &mut bytes);
            }
            HashAlgorithm::Sha256Cbor => cbor::block(&parent, block, extra.lora, salt, &mut bytes),
        }
        parent = Sha256::digest(&bytes).into();
        parent
    })
}

/// What an engine puts into its events by default: the last eight bytes, big-endian.
pub fn low_64(digest: &BlockDigest) -> u64 {
    digest[24..].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// Python's pickle, protocol 5, as its C pickler writes it: everything but numbers is memoized.
///
/// One frame holds the block: the pickler starts another only past 64 KiB, some 13,000 tokens.
mod pickle {
    use super::Lora;

    const MEMOIZE: u8 = 0x94;

    pub(super) fn block(
        parent: &[u8],
        tokens: &[u32],
        lora: Option<Lora<'_>>,
        salt: Option<&str>,
        out: &mut Vec<u8>,
    ) {
        bytes(parent, out);
        tuple(tokens, out, |token, out| int(*token, out));
        let keys = [lora.map(Key::Lora), salt.map(Key::Salt)];
        let keys: Vec<Key<'_>> = keys.into_iter().flatten().collect();
        if keys.is_empty() {
            out.push(b'N');
        } else {
            tuple(&keys, out, |key, out| {
                let texts: &[&str] = match key {
                    Key::Lora(lora) => &["lora", lora.name, lora.path],
                    Key::Salt(salt) => &["cache_salt", salt],
                };
                tuple(texts, out, |item, out| text(item, out));
            });
        }
        out.extend([0x87, MEMOIZE]);
    }

    enum Key<'a> {
        Lora(Lora<'a>),
        Salt(&'a str),
    }

    /// Protocol, frame, `body`, stop.
    pub(super) fn close(body: &[u8], out: &mut Vec<u8>) {
        out.extend([0x80, 5, 0x95]);
        out.extend((body.len() as u64 + 1).to_le_bytes());
        out.extend(body);
        out.push(b'.');
    }

    fn tuple<T>(items: &[T], out: &mut Vec<u8>, write: impl Fn(&T, &mut Vec<u8>)) {
        if items.len() > 3 {
            out.push(b'(');
        }
        for item in items {
            write(item, out);
        }
        match items.len() {
            0 => return out.push(b')'),
            1 => out.push(0x85),
            2 => out.push(0x86),
            3 => out.push(0x87),
            _ => out.push(b't'),
        }
        out.push(MEMOIZE);
    }

    fn int(value: u32, out: &mut Vec<u8>) {
        let bytes = value.to_le_bytes();
        match value {
            0..0x100 => out.extend([b'K', bytes[0]]),
            0x100..0x1_0000 => out.extend([b'M', bytes[0], bytes[1]]),
            0x1_0000..0x8000_0000 => {
                out.push(b'J');
                out.extend(bytes);
            }
            _ => {
                out.extend([0x8a, 5]);
                out.extend(bytes);
                out.push(0);
            }
        }
    }

    fn bytes(value: &[u8], out: &mut Vec<u8>) {
        out.extend([b'C', value.len() as u8]);
        out.extend(value);
        out.push(MEMOIZE);
    }

    pub(super) fn text(value: &str, out: &mut Vec<u8>) {
        if let Ok(length) = u8::try_from(value.len()) {
            out.extend([0x8c, length]);
        } else {
            out.push(b'X');
            out.extend((value.len() as u32).to_le_bytes());
        }
        out.extend(value.as_bytes());
        out.push(MEMOIZE);
    }
}

/// Canonical CBOR of `[parent, [tokens], null | [[key ..] ..]]`.
mod cbor {
    use super::Lora;

    const BYTES: u8 = 2 << 5;
    const TEXT: u8 = 3 << 5;
    const ARRAY: u8 = 4 << 5;

    pub(super) fn block(
        parent: &[u8],
        tokens: &[u32],
        lora: Option<Lora<'_>>,
        salt: Option<&str>,
        out: &mut Vec<u8>,
    ) {
        head(ARRAY, 3, out);
        head(BYTES, parent.len() as u64, out);
        out.extend(parent);
        head(ARRAY, tokens.len() as u64, out);
        for token in tokens {
            head(0, u64::from(*token), out);
        }
        match u64::from(lora.is_some()) + u64::from(salt.is_some()) {
            0 => out.push(0xf6),
            count => head(ARRAY, count, out),
        }
        if let Some(lora) = lora {
            texts(&["lora", lora.name, lora.path], out);
        }
        if let Some(salt) = salt {
            texts(&["cache_salt", salt], out);
        }
    }

    fn texts(items: &[&str], out: &mut Vec<u8>) {
        head(ARRAY, items.len() as u64, out);
        for item in items {
            text(item, out);
        }
    }

    pub(super) fn text(value: &str, out: &mut Vec<u8>) {
        head(TEXT, value.len() as u64, out);
        out.extend(value.as_bytes());
    }

    fn head(kind: u8, value: u64, out: &mut Vec<u8>) {
        match value {
            0..24 => out.push(kind | value as u8),
            24..0x100 => out.extend([kind | 0x18, value as u8]),
            0x100..0x1_0000 => {
                out.push(kind | 0x19);
                out.extend((value as u16).to_be_bytes());
            }
            0x1_0000..0x1_0000_0000 => {
                out.push(kind | 0x1a);
                out.extend((value as u32).to_be_bytes());
            }
            _ => {
                out.push(kind | 0x1b);
                out.extend(value.to_be_bytes());
            }
        }
    }
}

#[cfg(test)]
#[path = "engine_hash_tests.rs"]
mod tests;
