//! The scan against one that passes over nothing.

use proptest::prelude::*;

use super::{DEPTH_MAX, Field, KEY_BYTES_MAX, Key, NO_KEY, Numbers, Scan};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Between,
    String,
    /// After a backslash in a string.
    Escape,
    Number,
}

/// Looks at every byte, and passes over nothing.
#[derive(Clone, Debug)]
struct Model {
    at: At,
    /// Lists and objects entered and not left.
    depth: usize,
    /// Left more than were entered.
    broken: bool,
    /// The key whose value comes or is being read, of each level down to the deepest of interest.
    /// A list has none, which is why nothing inside one is ever read.
    path: [Key; DEPTH_MAX],
    /// The string read last, as far as it may be a key.
    text: [u8; KEY_BYTES_MAX],
    /// Its length.
    text_len: usize,
    field: Option<Field>,
    number: u64,
    /// Whether an object of usage or timings was entered.
    has_usage: bool,
    numbers: Numbers,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            at: At::Between,
            depth: 0,
            broken: false,
            path: [Key::Other; DEPTH_MAX],
            text: [0; KEY_BYTES_MAX],
            text_len: NO_KEY,
            field: None,
            number: 0,
            has_usage: false,
            numbers: Numbers::default(),
        }
    }
}

impl Model {
    fn is_whole(&self) -> bool {
        self.depth == 0 && self.at == At::Between && !self.broken
    }

    fn feed(&mut self, mut bytes: &[u8]) {
        while let Some((&byte, rest)) = bytes.split_first() {
            match self.at {
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
                    self.keep(&bytes[..end.unwrap_or(bytes.len())]);
                    let Some(end) = end else { return };
                    self.at = if bytes[end] == b'"' { At::Between } else { At::Escape };
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
        let text_len = std::mem::replace(&mut self.text_len, NO_KEY);
        match byte {
            b'"' => {
                self.at = At::String;
                self.set_key(Key::Other);
                self.text_len = if self.depth > DEPTH_MAX { NO_KEY } else { 0 };
            }
            b':' => self.set_key(self.text.get(..text_len).map_or(Key::Other, Key::of)),
            b'{' | b'[' => {
                let usage = matches!(self.path(), [Key::Usage | Key::Timings]);
                self.has_usage |= usage && byte == b'{';
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

    fn keep(&mut self, piece: &[u8]) {
        if self.text_len == NO_KEY || piece.is_empty() {
            return;
        }
        match self.text.get_mut(self.text_len..self.text_len + piece.len()) {
            Some(room) => {
                room.copy_from_slice(piece);
                self.text_len += piece.len();
            }
            None => self.text_len = KEY_BYTES_MAX + 1,
        }
    }
}

fn model(bytes: &[u8]) -> Option<[Option<u64>; Field::COUNT]> {
    let mut model = Model::default();
    model.feed(bytes);
    (model.is_whole() && model.has_usage).then_some(model.numbers.0)
}

fn scanned<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Option<[Option<u64>; Field::COUNT]> {
    let mut scan = Scan::default();
    pieces.for_each(|piece| scan.feed(piece));
    scan.finish().map(|numbers| numbers.0)
}

/// A JSON value whose keys are ours or others, nested at random.
fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        any::<u32>().prop_map(|number| number.to_string()),
        Just("-1.5e3".to_owned()),
        Just("null".to_owned()),
        any::<u8>().prop_map(|cached| {
            format!(r#"{{"prompt_tokens":9,"prompt_tokens_details":{{"cached_tokens":{cached}}}}}"#)
        }),
        "[a-z{}\\[\\],: ]{0,9}".prop_map(|text| format!("\"{text}\"")),
        Just(r#""\"usage\":{""#.to_owned()),
        Just(r#""\\""#.to_owned()),
    ];
    let key = prop::sample::select(vec![
        "usage",
        "timings",
        "response",
        "message",
        "prompt_tokens",
        "input_tokens",
        "prompt_tokens_details",
        "cached_tokens",
        "cache_read_input_tokens",
        "cache_creation_input_tokens",
        "cache_n",
        "prompt_n",
        "tokens_evaluated",
        "choices",
        "",
        "a key that is longer than any of ours",
    ]);
    leaf.prop_recursive(6, 64, 5, move |inner| {
        let member =
            (key.clone(), inner.clone()).prop_map(|(key, value)| format!("\"{key}\": {value}"));
        prop_oneof![
            3 => prop::collection::vec(member, 0..5)
                .prop_map(|members| format!("{{{}}}", members.join(", "))),
            1 => prop::collection::vec(inner, 0..4)
                .prop_map(|values| format!("[{}]", values.join(","))),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_is_passed_over_does_not_count(json in value(), cut in 1usize..40) {
        let expected = model(json.as_bytes());
        prop_assert_eq!(scanned(std::iter::once(json.as_bytes())), expected);
        prop_assert_eq!(scanned(json.as_bytes().chunks(cut)), expected);
    }

    #[test]
    fn nor_does_it_in_bytes_that_are_no_json(
        words in prop::collection::vec(prop::sample::select(vec![
            "{", "}", "[", "]", ":", ",", "\"", "\\", "\"usage\"", "\"timings\"", "\"response\"",
            "\"prompt_tokens\"", "\"cached_tokens\"", "\"prompt_tokens_details\"", "\"choices\"",
            "\"cache_n\"", "7", "-", "1e3", "null", " ", "\n", "\"usage\":{", "\"prompt_tokens\":3",
        ]), 0..60),
        cut in 1usize..20,
    ) {
        let bytes = words.concat().into_bytes();
        let expected = model(&bytes);
        prop_assert_eq!(scanned(std::iter::once(&bytes[..])), expected);
        prop_assert_eq!(scanned(bytes.chunks(cut)), expected);
    }
}
