//! A JSON string, as it is written, to its text.

use std::borrow::Cow;

use memchr::{memchr, memmem};
use wide::u8x32;

use super::json::{LANES, hex, simple_escape};

/// The text of a string as it is written; `None` when it is none, or holds half a surrogate pair,
/// which is JSON but no text.
pub(super) fn text(raw: &str) -> Option<Cow<'_, str>> {
    let inner = inside(raw)?;
    if memchr(b'\\', inner.as_bytes()).is_none() {
        return Some(Cow::Borrowed(inner));
    }
    let mut unescaped = Vec::with_capacity(inner.len());
    unescape(inner.as_bytes(), |piece| unescaped.extend_from_slice(piece))?;
    String::from_utf8(unescaped).ok().map(Cow::Owned)
}

fn inside(raw: &str) -> Option<&str> {
    raw.strip_prefix('"')?.strip_suffix('"')
}

/// Gives the text of a string, which a [`Reader`](super::json::Reader) has found, to `sink`, in pieces; false, and nothing
/// was given, where [`text`] is `None`.
pub(super) fn write_text(raw: &str, mut sink: impl FnMut(&[u8])) -> bool {
    let Some(inner) = inside(raw) else { return false };
    if memchr(b'\\', inner.as_bytes()).is_none() {
        sink(inner.as_bytes());
        return true;
    }
    // Only surrogates can still be wrong, and are rare.
    let inner = inner.as_bytes();
    if has_surrogates(inner) && unescape(inner, |_| ()).is_none() {
        return false;
    }
    unescape(inner, sink).is_some()
}

fn has_surrogates(inner: &[u8]) -> bool {
    let Some(at) = memmem::find(inner, b"\\u") else { return false };
    let inner = &inner[at..];
    memmem::find(inner, b"\\ud").is_some() || memmem::find(inner, b"\\uD").is_some()
}

/// Text between escapes comes in pieces of a line or less: so much of it is joined.
const JOINED_BYTES: usize = 1024;

/// `None` where an escape means no character.
fn unescape(inner: &[u8], mut sink: impl FnMut(&[u8])) -> Option<()> {
    let mut joined = [0; JOINED_BYTES + LANES];
    let (mut at, mut len) = (0, 0);
    loop {
        if len >= JOINED_BYTES {
            sink(&joined[..len]);
            len = 0;
        }
        let rest = &inner[at..];
        // A chunk is copied whole; what lies behind its first escape is written over.
        let run = if let Some(chunk) = rest.first_chunk::<LANES>() {
            joined[len..len + LANES].copy_from_slice(chunk);
            let escapes = u8x32::from(*chunk).simd_eq(u8x32::splat(b'\\')).to_bitmask();
            escapes.trailing_zeros() as usize
        } else {
            joined[len..len + rest.len()].copy_from_slice(rest);
            rest.iter().position(|byte| *byte == b'\\').unwrap_or(rest.len())
        };
        at += run;
        len += run;
        if run == LANES {
            continue;
        }
        let Some(escaped) = inner.get(at + 1..) else {
            sink(&joined[..len]);
            return Some(());
        };
        let (code, code_len) = match escaped.first()? {
            b'u' => unicode(escaped)?,
            byte => (u32::from(simple_escape(*byte)?), 1),
        };
        at += 1 + code_len;
        len += char::from_u32(code)?.encode_utf8(&mut joined[len..]).len();
    }
}

/// The code of `uXXXX`, or of two of them, and its length.
fn unicode(escaped: &[u8]) -> Option<(u32, usize)> {
    let code = hex(escaped.get(1..5))?;
    if code >> 10 != 0xd800 >> 10 {
        return Some((code, 5));
    }
    let low = escaped.get(5..).filter(|rest| rest.starts_with(b"\\u"))?;
    let low = hex(low.get(2..6)).filter(|low| low >> 10 == 0xdc00 >> 10)?;
    Some((0x10000 + ((code & 0x3ff) << 10 | low & 0x3ff), 11))
}
