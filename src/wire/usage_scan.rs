//! Finds the numbers of a usage in one JSON value, byte by byte and in constant memory.
//!
//! Follows the nesting and nothing else: what lies below a key that leads nowhere is passed over by
//! counting brackets, strings by search.

/// The numbers read, by [`Field`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Numbers(pub(super) [Option<u64>; Field::COUNT]);

/// A number that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    PromptTokens,
    InputTokens,
    CachedTokens,
    CacheRead,
    CacheCreation,
    CacheN,
    PromptN,
    TokensEvaluated,
}

impl Field {
    pub(super) const COUNT: usize = Self::TokensEvaluated as usize + 1;
}

/// A key on the way to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Other,
    /// What an event wraps.
    Wrapper,
    Usage,
    Timings,
    Details,
    Field(Field),
}

impl Key {
    fn of(name: &[u8]) -> Self {
        match name {
            b"response" | b"message" => Self::Wrapper,
            b"usage" => Self::Usage,
            b"timings" => Self::Timings,
            b"prompt_tokens_details" | b"input_tokens_details" => Self::Details,
            b"prompt_tokens" => Self::Field(Field::PromptTokens),
            b"input_tokens" => Self::Field(Field::InputTokens),
            b"cached_tokens" => Self::Field(Field::CachedTokens),
            b"cache_read_input_tokens" => Self::Field(Field::CacheRead),
            b"cache_creation_input_tokens" => Self::Field(Field::CacheCreation),
            b"cache_n" => Self::Field(Field::CacheN),
            b"prompt_n" => Self::Field(Field::PromptN),
            b"tokens_evaluated" => Self::Field(Field::TokensEvaluated),
            _ => Self::Other,
        }
    }
}

/// Depth of the deepest number: `response.usage.input_tokens_details.cached_tokens`.
const DEPTH_MAX: usize = 4;
/// Bytes of the longest key, `cache_creation_input_tokens`.
const KEY_BYTES_MAX: usize = 27;
/// Length of a text that is no key of ours.
const NO_KEY: usize = usize::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Between,
    String,
    /// After a backslash in a string.
    Escape,
    Number,
}

/// Follows one JSON value byte by byte, in constant memory. Of bytes that are no JSON it makes
/// something, and stops at nothing.
#[derive(Clone, Debug)]
pub(super) struct Scan {
    at: At,
    /// Lists and objects entered and not left.
    depth: usize,
    /// Left more than were entered.
    broken: bool,
    /// The key whose value comes or is being read, of each level down to the deepest of interest.
    /// A list has none, which is why nothing inside one is ever read.
    path: [Key; DEPTH_MAX],
    /// Depth at which what leads nowhere ends, if we are in such; 0 = we are not.
    skips_to: usize,
    /// What has come of a string that a chunk's end has cut, as far as it may be a key.
    text: [u8; KEY_BYTES_MAX],
    /// Its length.
    text_len: usize,
    /// The string read last.
    name: Key,
    field: Option<Field>,
    number: u64,
    /// Whether an object of usage or timings was entered.
    has_usage: bool,
    numbers: Numbers,
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            at: At::Between,
            depth: 0,
            broken: false,
            path: [Key::Other; DEPTH_MAX],
            skips_to: 0,
            text: [0; KEY_BYTES_MAX],
            text_len: NO_KEY,
            name: Key::Other,
            field: None,
            number: 0,
            has_usage: false,
            numbers: Numbers::default(),
        }
    }
}

impl Scan {
    /// The numbers of a value that came whole and had an object of usage or timings.
    pub(super) fn finish(self) -> Option<Numbers> {
        let whole = self.depth == 0 && self.at == At::Between && !self.broken;
        (whole && self.has_usage).then_some(self.numbers)
    }

    /// Takes the next bytes.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) {
        while let Some((&byte, rest)) = bytes.split_first() {
            match self.at {
                At::Between if self.skips_to > 0 => bytes = self.skip(bytes),
                At::Between => {
                    self.structure(byte);
                    bytes = rest;
                }
                At::Number => {
                    if byte.is_ascii_digit() {
                        let digit = u64::from(byte - b'0');
                        self.number = self.number.saturating_mul(10).saturating_add(digit);
                    } else if matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-') {
                        self.field = None;
                    } else {
                        self.at = At::Between;
                        self.set_key(Key::Other);
                        if let Some(field) = self.field.take() {
                            self.numbers.0[field as usize] = Some(self.number);
                        }
                        continue;
                    }
                    bytes = rest;
                }
                At::Escape => {
                    self.at = At::String;
                    self.text_len = NO_KEY;
                    bytes = rest;
                }
                At::String => {
                    let end = memchr::memchr2(b'"', b'\\', bytes);
                    let Some(end) = end else { return self.keep(bytes) };
                    if bytes[end] == b'"' {
                        self.at = At::Between;
                        self.name = match bytes.get(end + 1) {
                            // A value: nobody asks for its name.
                            Some(b',' | b'}' | b']') => Key::Other,
                            _ => self.name_of(&bytes[..end]),
                        };
                    } else {
                        self.at = At::Escape;
                    }
                    bytes = &bytes[end + 1..];
                }
            }
        }
    }

    /// A byte outside strings and numbers.
    fn structure(&mut self, byte: u8) {
        if byte.is_ascii_whitespace() {
            return;
        }
        let name = std::mem::replace(&mut self.name, Key::Other);
        match byte {
            b'"' => {
                self.at = At::String;
                self.set_key(Key::Other);
                self.text_len = if self.depth > DEPTH_MAX { NO_KEY } else { 0 };
            }
            b':' => self.set_key(name),
            b'{' | b'[' => {
                let usage = matches!(self.path(), [Key::Usage | Key::Timings]);
                self.has_usage |= usage && byte == b'{';
                if self.leads_nowhere() {
                    self.skips_to = self.depth;
                }
                self.depth += 1;
                self.set_key(Key::Other);
            }
            b'}' | b']' => {
                self.broken |= self.depth == 0;
                self.depth = self.depth.saturating_sub(1);
                self.set_key(Key::Other);
            }
            b'0'..=b'9' => {
                self.at = At::Number;
                self.number = u64::from(byte - b'0');
                self.field = self.field_here();
            }
            b'-' => {
                self.at = At::Number;
                self.field = None;
            }
            // A comma, or a word that is no value of interest.
            _ => self.set_key(Key::Other),
        }
    }

    /// Whether nothing inside an object or list that begins here can count: a key on the way to it
    /// is none of ours, and stays that until it ends.
    fn leads_nowhere(&self) -> bool {
        match self.depth.checked_sub(1).map(|level| self.path.get(level)) {
            Some(Some(key)) => matches!(key, Key::Other | Key::Field(_)),
            Some(None) => true,
            None => false,
        }
    }

    /// Passes over what leads nowhere, up to its end or to a string.
    fn skip<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        for (at, byte) in bytes.iter().enumerate() {
            match byte {
                b'"' => {
                    self.at = At::String;
                    self.text_len = NO_KEY;
                    return &bytes[at + 1..];
                }
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == self.skips_to {
                        self.skips_to = 0;
                        self.name = Key::Other;
                        self.set_key(Key::Other);
                        return &bytes[at + 1..];
                    }
                }
                _ => {}
            }
        }
        &[]
    }

    fn set_key(&mut self, key: Key) {
        if let Some(level) = self.depth.checked_sub(1).and_then(|at| self.path.get_mut(at)) {
            *level = key;
        }
    }

    /// The keys down to here, without what an event wraps; empty where it is too deep.
    fn path(&self) -> &[Key] {
        match self.path.get(..self.depth) {
            Some([Key::Wrapper, inner @ ..]) => inner,
            Some(path) => path,
            None => &[],
        }
    }

    fn field_here(&self) -> Option<Field> {
        use Field::{
            CacheCreation, CacheN, CacheRead, CachedTokens, InputTokens, PromptN, PromptTokens,
            TokensEvaluated,
        };
        let (parents, field) = match self.path() {
            [parents @ .., Key::Field(field)] => (parents, *field),
            _ => return None,
        };
        let belongs = match field {
            PromptTokens | InputTokens | CacheRead | CacheCreation => parents == [Key::Usage],
            CachedTokens => parents == [Key::Usage, Key::Details],
            CacheN | PromptN => parents == [Key::Timings],
            TokensEvaluated => parents.is_empty(),
        };
        belongs.then_some(field)
    }

    /// What the string is called that ends with `rest`.
    fn name_of(&mut self, rest: &[u8]) -> Key {
        match self.text_len {
            0 => Key::of(rest),
            NO_KEY => Key::Other,
            _ => {
                self.keep(rest);
                self.text.get(..self.text_len).map_or(Key::Other, Key::of)
            }
        }
    }

    fn keep(&mut self, piece: &[u8]) {
        if self.text_len == NO_KEY || piece.is_empty() {
            return;
        }
        let end = self.text_len.saturating_add(piece.len());
        match self.text.get_mut(self.text_len..end) {
            Some(room) => {
                room.copy_from_slice(piece);
                self.text_len = end;
            }
            None => self.text_len = NO_KEY,
        }
    }
}

#[cfg(test)]
#[path = "usage_scan_tests.rs"]
mod tests;
