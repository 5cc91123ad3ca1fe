//! Finds where a JSON document ends while it arrives.
//!
//! Needed for one case only: a chunked HTTP/1.1 body over 64 KiB, whose end Pingora 0.9.1 must be
//! left to read itself (see `body.rs`). Counts brackets outside strings; it does not validate.

use memchr::memchr2;

/// Scanner state.
#[derive(Debug, Default)]
pub(super) struct JsonEnd {
    depth: usize,
    in_string: bool,
    escaped: bool,
    state: State,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Before,
    Inside,
    After,
    NotJson,
}

impl JsonEnd {
    /// Takes the next bytes.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            at += 1;
            match self.state {
                State::After | State::NotJson => return,
                State::Before => match byte {
                    b' ' | b'\t' | b'\r' | b'\n' => {}
                    b'{' | b'[' => {
                        self.state = State::Inside;
                        self.depth = 1;
                    }
                    _ => self.state = State::NotJson,
                },
                State::Inside if self.escaped => self.escaped = false,
                State::Inside if self.in_string => {
                    // Most of a body is one long string.
                    match memchr2(b'"', b'\\', &bytes[at - 1..]) {
                        None => return,
                        Some(run) => at += run,
                    }
                    if bytes[at - 1] == b'"' {
                        self.in_string = false;
                    } else {
                        self.escaped = true;
                    }
                }
                State::Inside => self.inside(*byte),
            }
        }
    }

    /// Outside of strings.
    fn inside(&mut self, byte: u8) {
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth -= 1;
                if self.depth == 0 {
                    self.state = State::After;
                }
            }
            _ => {}
        }
    }

    /// Whether nothing more is needed to route: the document has ended, or it is none.
    pub(super) fn is_settled(&self) -> bool {
        matches!(self.state, State::After | State::NotJson)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settled_after(text: &str) -> Option<usize> {
        let mut end = JsonEnd::default();
        for (at, byte) in text.bytes().enumerate() {
            end.feed(&[byte]);
            if end.is_settled() {
                return Some(at + 1);
            }
        }
        None
    }

    #[test]
    fn brackets_in_strings_do_not_count() {
        let text = r#" {"a":"}]\"{","b":[1,{"c":"\\"}]}"#;
        assert_eq!(settled_after(text), Some(text.len()));
        assert_eq!(settled_after(r#"{"a": "never ends"#), None);
        assert_eq!(settled_after("--boundary"), Some(1));
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same(
            bytes in prop::collection::vec(prop::sample::select(&b"{}[]\"\\a "[..]), 0..60),
            at in any::<prop::sample::Index>(),
        ) {
            let (mut whole, mut cut) = (JsonEnd::default(), JsonEnd::default());
            whole.feed(&bytes);
            let (head, tail) = bytes.split_at(at.index(bytes.len() + 1));
            cut.feed(head);
            cut.feed(tail);
            let text = String::from_utf8_lossy(&bytes);
            prop_assert_eq!(whole.is_settled(), cut.is_settled());
            prop_assert_eq!(whole.is_settled(), settled_after(&text).is_some());
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            JsonEnd::default().feed(&bytes);
        }
    }
}
