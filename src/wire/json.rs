//! Walks through a JSON text without copying it or building anything.
//!
//! What a client sends is read once, and most of it is one long string: all that is needed are the
//! places where values begin and end. The whole text is validated on the way (RFC 8259), as what is
//! no JSON is for the worker to refuse, and nothing recurses: a body of brackets is an error here,
//! not the end of the process. sonic-rs, which this replaces, recurses without a bound, and copies
//! every string that holds an escape.

use memchr::memchr2;
use wide::u8x32;

pub(super) use super::json_text::{text, write_text};

/// Containers in one another; engines' parsers stop at about as many.
const DEPTH_MAX: usize = 1024;

/// The text is no JSON, or nests too deep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// Reads a text from its beginning on.
#[derive(Debug, Clone)]
pub(super) struct Reader<'a> {
    text: &'a str,
    at: usize,
    /// Whether no control character stands anywhere, so that none has to be looked for in strings.
    plain: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let plain = text.bytes().fold(u8::MAX, u8::min) >= 0x20;
        Self { text, at: 0, plain }
    }

    /// The first byte of what comes next; it is not taken.
    ///
    /// # Errors
    /// At the end of the text.
    pub(super) fn peek(&mut self) -> Result<u8, Malformed> {
        let rest = &self.text.as_bytes()[self.at..];
        for (after, byte) in rest.iter().enumerate() {
            if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                self.at += after;
                return Ok(*byte);
            }
        }
        self.at = self.text.len();
        Err(Malformed)
    }

    /// Nothing but white space is left.
    ///
    /// # Errors
    /// Something is.
    pub(super) fn end(mut self) -> Result<(), Malformed> {
        if self.peek().is_err() { Ok(()) } else { Err(Malformed) }
    }

    /// The next value, as it is written.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn value(&mut self) -> Result<&'a str, Malformed> {
        let first = self.peek()?;
        let from = self.at;
        match first {
            b'"' => self.string()?,
            b'{' | b'[' => self.container()?,
            _ => self.scalar()?,
        }
        Ok(&self.text[from..self.at])
    }

    /// What is written between `before` and here.
    pub(super) fn since(&self, before: &Self) -> &'a str {
        &self.text[before.at..self.at]
    }

    /// Goes through an object: `member` gets each key, unescaped, and takes the value.
    ///
    /// # Errors
    /// What comes next is no object, or `member` fails.
    pub(super) fn object(
        &mut self,
        mut member: impl FnMut(&str, &mut Self) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        self.take(b'{')?;
        if self.peek()? == b'}' {
            self.at += 1;
            return Ok(());
        }
        loop {
            let key = self.key()?;
            // A key with an escape is one in a million, but it may be one we know.
            member(&text(key).ok_or(Malformed)?, self)?;
            match self.next()? {
                b',' => {}
                b'}' => return Ok(()),
                _ => return Err(Malformed),
            }
        }
    }

    /// Goes through an object whose fields have these names; `value` takes those that are known by
    /// their index.
    ///
    /// # Errors
    /// What comes next is no object, or `value` fails.
    pub(super) fn fields<const N: usize>(
        &mut self,
        names: &[&str; N],
        mut value: impl FnMut(usize, &mut Self) -> Result<&'a str, Malformed>,
    ) -> Result<Fields<'a, N>, Malformed> {
        let mut fields = Fields { values: [""; N], repeated: 0 };
        let mut seen = 0_u32;
        self.object(|key, reader| {
            let Some(at) = names.iter().position(|name| *name == key) else {
                return reader.value().map(drop);
            };
            fields.repeated |= seen & 1 << at;
            seen |= 1 << at;
            let raw = value(at, reader)?;
            fields.values[at] = if raw == "null" { "" } else { raw };
            Ok(())
        })?;
        Ok(fields)
    }

    /// Goes through a list: `item` takes each value.
    ///
    /// # Errors
    /// What comes next is no list, or `item` fails.
    pub(super) fn array(
        &mut self,
        mut item: impl FnMut(&mut Self) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        self.take(b'[')?;
        if self.peek()? == b']' {
            self.at += 1;
            return Ok(());
        }
        loop {
            item(self)?;
            match self.next()? {
                b',' => {}
                b']' => return Ok(()),
                _ => return Err(Malformed),
            }
        }
    }

    fn next(&mut self) -> Result<u8, Malformed> {
        let byte = self.peek()?;
        self.at += 1;
        Ok(byte)
    }

    fn take(&mut self, wanted: u8) -> Result<(), Malformed> {
        if self.next()? == wanted { Ok(()) } else { Err(Malformed) }
    }

    /// A key and its colon; gives the key as it is written.
    fn key(&mut self) -> Result<&'a str, Malformed> {
        if self.peek()? != b'"' {
            return Err(Malformed);
        }
        let from = self.at;
        self.string()?;
        let key = &self.text[from..self.at];
        self.take(b':')?;
        Ok(key)
    }

    /// Passes a string; its quotation mark comes next.
    fn string(&mut self) -> Result<(), Malformed> {
        let bytes = self.text.as_bytes();
        let mut at = self.at + 1;
        loop {
            let rest = bytes.get(at..).ok_or(Malformed)?;
            let run = match rest.first_chunk() {
                Some(chunk) => match marks(chunk) {
                    0 => {
                        at += LANES;
                        if self.plain {
                            // It is long, and such a search looks at more bytes at once than `wide`
                            // may on any x86-64.
                            let rest = bytes.get(at..).ok_or(Malformed)?;
                            at += memchr2(b'"', b'\\', rest).ok_or(Malformed)?;
                        }
                        continue;
                    }
                    marks => marks.trailing_zeros() as usize,
                },
                None => rest.iter().position(|byte| is_mark(*byte)).ok_or(Malformed)?,
            };
            at += run + 1;
            at += match (rest[run], rest.get(run + 1)) {
                (b'"', _) => {
                    self.at = at;
                    return Ok(());
                }
                (b'\\', Some(b'u')) if hex(rest.get(run + 2..run + 6)).is_some() => 5,
                (b'\\', Some(byte)) if simple_escape(*byte).is_some() => 1,
                _ => return Err(Malformed),
            };
        }
    }

    /// Passes `true`, `false`, `null` or a number.
    fn scalar(&mut self) -> Result<(), Malformed> {
        let rest = &self.text.as_bytes()[self.at..];
        for literal in ["true", "false", "null"] {
            if rest.starts_with(literal.as_bytes()) {
                self.at += literal.len();
                return Ok(());
            }
        }
        self.at += number(rest).ok_or(Malformed)?;
        Ok(())
    }

    /// Passes an object or a list.
    fn container(&mut self) -> Result<(), Malformed> {
        let mut open = Open::default();
        loop {
            // Here a value begins.
            let first = self.peek()?;
            match first {
                b'"' => self.string()?,
                b'{' | b'[' => {
                    self.at += 1;
                    open.push(first == b'{')?;
                    if self.peek()? != first + 2 {
                        if first == b'{' {
                            self.key()?;
                        }
                        continue;
                    }
                    self.at += 1;
                    open.pop();
                }
                _ => self.scalar()?,
            }
            // Here one has ended, and with it perhaps those around it.
            loop {
                let Some(in_object) = open.innermost() else { return Ok(()) };
                match self.next()? {
                    b',' => {
                        if in_object {
                            self.key()?;
                        }
                        break;
                    }
                    b'}' if in_object => open.pop(),
                    b']' if !in_object => open.pop(),
                    _ => return Err(Malformed),
                }
            }
        }
    }
}

/// The fields of an object whose names are known: each as it is written, "" where it is absent or
/// `null`.
#[derive(Debug, Clone)]
pub(super) struct Fields<'a, const N: usize> {
    pub(super) values: [&'a str; N],
    /// Bits of those that come more than once.
    pub(super) repeated: u32,
}

/// Reads an object; of what it says twice nobody knows which counts.
///
/// # Errors
/// It is no object, or says something we know of twice.
pub(super) fn fields<'a, const N: usize>(
    object: &'a str,
    names: &[&str; N],
) -> Result<[&'a str; N], Malformed> {
    let fields = Reader::new(object).fields(names, |_, reader| reader.value())?;
    if fields.repeated == 0 { Ok(fields.values) } else { Err(Malformed) }
}

/// Containers that have begun: for each, whether it is an object.
#[derive(Default)]
struct Open {
    objects: [u64; DEPTH_MAX / 64],
    depth: usize,
}

impl Open {
    fn push(&mut self, object: bool) -> Result<(), Malformed> {
        let word = self.objects.get_mut(self.depth / 64).ok_or(Malformed)?;
        let bit = self.depth % 64;
        *word = *word & !(1 << bit) | u64::from(object) << bit;
        self.depth += 1;
        Ok(())
    }

    fn pop(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }

    fn innermost(&self) -> Option<bool> {
        let last = self.depth.checked_sub(1)?;
        Some(self.objects[last / 64] >> (last % 64) & 1 == 1)
    }
}

/// Bytes that are looked at together.
pub(super) const LANES: usize = 32;

/// Bits of those that end a string, begin an escape, or may not stand in a string.
fn marks(bytes: &[u8; LANES]) -> u32 {
    let bytes = u8x32::from(*bytes);
    let is = |byte| bytes.simd_eq(u8x32::splat(byte));
    // SSE2 compares no unsigned bytes, but finds the lesser of two.
    let control = bytes.min(u8x32::splat(0x1f)).simd_eq(bytes);
    (is(b'"') | is(b'\\') | control).to_bitmask()
}

fn is_mark(byte: u8) -> bool {
    matches!(byte, b'"' | b'\\' | ..0x20)
}

pub(super) fn hex(digits: Option<&[u8]>) -> Option<u32> {
    digits?.iter().try_fold(0, |code, digit| Some(code << 4 | char::from(*digit).to_digit(16)?))
}

pub(super) fn simple_escape(byte: u8) -> Option<u8> {
    Some(match byte {
        b'"' | b'\\' | b'/' => byte,
        b'b' => 0x08,
        b'f' => 0x0c,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        _ => return None,
    })
}

/// Length of the number that `bytes` begin with.
fn number(bytes: &[u8]) -> Option<usize> {
    let digits = |from: usize| {
        let rest = bytes.get(from..).unwrap_or_default();
        let end = from + rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        (end > from).then_some(end)
    };
    let from = usize::from(bytes.first() == Some(&b'-'));
    let mut end = digits(from)?;
    if bytes[from] == b'0' && end > from + 1 {
        return None;
    }
    if bytes.get(end) == Some(&b'.') {
        end = digits(end + 1)?;
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        end = digits(end + 1 + sign)?;
    }
    Some(end)
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;
