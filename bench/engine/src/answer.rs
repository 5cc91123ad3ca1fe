//! What the engine says: words drawn from the prompt's hash, so that one prompt has one answer.

use std::fmt::Write;

use crate::options::TOKEN_BYTES;

/// Three letters and a space are one token; 64 of them take six bits each.
const WORDS: &str = "the cat sat out and saw two red fox run far off its own way but not one dog \
was shy she had all day for tea you can see how big our new map may get now ask any man who let \
him sit sun set low sky air sea ice oak elm ivy owl hen bee ant eel cod ash yew";

/// One answer: the bytes its tokens leave in the KV cache, and what clients read of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Canonical text of the answer, as a client sends it back in its next turn.
    pub(crate) kv_bytes: Vec<u8>,
    /// Tokens generated in all.
    pub(crate) tokens: usize,
    /// Whether `max_tokens` cut it short.
    pub(crate) cut: bool,
    /// Set when the answer is a call of a tool.
    pub(crate) tool_call: Option<ToolCall>,
}

/// A call of a tool, in the parts a stream sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ToolCall {
    pub(crate) id: String,
    pub(crate) name: String,
    /// A JSON object in a string, as the API has it.
    pub(crate) arguments: String,
}

impl Answer {
    /// Words for `tokens` tokens.
    pub(crate) fn words(seed: u64, tokens: usize, cut: bool) -> Self {
        let words: Vec<&str> = WORDS.split(' ').collect();
        let mut state = seed;
        let mut text = String::with_capacity(tokens * TOKEN_BYTES);
        for _ in 0..tokens {
            text.push_str(words[(next(&mut state) >> 32) as usize % words.len()]);
            text.push(' ');
        }
        Self { kv_bytes: text.into_bytes(), tokens, cut, tool_call: None }
    }

    /// A call of `name`, cut after `tokens_max`.
    pub(crate) fn call(seed: u64, name: &str, tokens_max: usize) -> Self {
        let mut state = seed;
        let id = format!("chatcmpl-tool-{:016x}", next(&mut state));
        let query = Self::words(seed, 4, false).text();
        let arguments = format!("{{\"query\": \"{}\"}}", query.trim_end());
        let call = ToolCall { id, name: name.to_owned(), arguments };
        let mut kv_bytes = format!("\n[{}]", call.to_json()).into_bytes();
        let whole = kv_bytes.len().div_ceil(TOKEN_BYTES);
        let tokens = whole.min(tokens_max);
        kv_bytes.truncate(tokens * TOKEN_BYTES);
        Self { kv_bytes, tokens, cut: tokens < whole, tool_call: Some(call) }
    }

    /// The text a client sees; meaningless for a tool call.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.kv_bytes).into_owned()
    }

    /// The text of token `index`: a word, or a slice of a call's arguments after its first token.
    pub(crate) fn piece(&self, index: usize) -> &str {
        let (bytes, index) = match &self.tool_call {
            None => (self.kv_bytes.as_slice(), index),
            Some(_) if index == 0 => return "",
            Some(call) => (call.arguments.as_bytes(), index - 1),
        };
        let start = (index * TOKEN_BYTES).min(bytes.len());
        let end = (start + TOKEN_BYTES).min(bytes.len());
        std::str::from_utf8(&bytes[start..end]).unwrap_or_default()
    }
}

impl ToolCall {
    /// The call as it stands in a whole message.
    pub(crate) fn to_json(&self) -> String {
        let name = serde_json::Value::from(self.name.as_str());
        let arguments = serde_json::Value::from(self.arguments.as_str());
        let mut json = String::new();
        write!(
            json,
            "{{\"id\":\"{}\",\"type\":\"function\",\"function\":{{\"name\":{name},\"arguments\":{arguments}}}}}",
            self.id
        )
        .expect("a String takes all that is written to it");
        json
    }
}

/// The next draw of a splitmix64 generator.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_one_token() {
        assert!(WORDS.split(' ').all(|word| word.len() == 3));
        let answer = Answer::words(7, 50, true);
        assert_eq!(answer.kv_bytes.len(), 50 * TOKEN_BYTES);
        let joined: String = (0..50).map(|index| answer.piece(index)).collect();
        assert_eq!(joined, answer.text());
    }

    #[test]
    fn the_pieces_of_a_call_make_up_its_arguments() {
        let answer = Answer::call(7, "look \"up\"", usize::MAX);
        let call = answer.tool_call.clone().expect("it is a call");
        let joined: String = (0..answer.tokens).map(|index| answer.piece(index)).collect();
        assert_eq!(joined, call.arguments);
        let parsed: serde_json::Value = serde_json::from_str(&call.to_json()).expect("JSON");
        assert_eq!(parsed["function"]["name"], "look \"up\"");
        assert!(serde_json::from_str::<serde_json::Value>(&call.arguments).is_ok());
    }
}
