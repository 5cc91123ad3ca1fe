//! Watches a streamed answer go by: when does its first content come?
//!
//! vLLM sends a role-only event before any prefill, so the first byte says nothing about the time
//! to first token. Events are looked at until one carries content; after that nothing is parsed.

/// Bytes of an unfinished line kept while looking; a longer one is taken for content.
const LINE_BYTES_MAX: usize = 64 << 10;

/// Looks for the first event with content in a stream of chunks cut anywhere.
#[derive(Debug, Default)]
pub struct FirstContent {
    line: Vec<u8>,
    seen: bool,
}

impl FirstContent {
    /// Whether content has come.
    pub fn seen(&self) -> bool {
        self.seen
    }

    /// Takes the next chunk; true exactly once, for the chunk that completes the first content.
    pub fn feed(&mut self, mut chunk: &[u8]) -> bool {
        if self.seen {
            return false;
        }
        while let Some(end) = memchr::memchr(b'\n', chunk) {
            let found = if self.line.is_empty() {
                line_has_content(&chunk[..end])
            } else {
                self.line.extend_from_slice(&chunk[..end]);
                let found = line_has_content(&self.line);
                self.line.clear();
                found
            };
            if found {
                return self.found();
            }
            chunk = &chunk[end + 1..];
        }
        if self.line.len() + chunk.len() > LINE_BYTES_MAX {
            return self.found();
        }
        self.line.extend_from_slice(chunk);
        false
    }

    fn found(&mut self) -> bool {
        self.seen = true;
        self.line = Vec::new();
        true
    }
}

fn line_has_content(line: &[u8]) -> bool {
    let Some(payload) = line.strip_prefix(b"data:") else { return false };
    let payload = payload.trim_ascii();
    if payload.first() != Some(&b'{') {
        return false;
    }
    // Responses and Anthropic events say what they are.
    if let Some(kind) = value_of(payload, b"\"type\"").and_then(string) {
        if kind.starts_with(b"response.") {
            return kind.ends_with(b".delta");
        }
        if kind == b"content_block_delta" {
            return true;
        }
        if [&b"message_start"[..], b"content_block_start", b"ping"].contains(&kind) {
            return false;
        }
    }
    CONTENT_KEYS.iter().any(|key| has_filled(payload, key))
}

/// Keys whose filled value means that the model has begun to answer: chat (`content`,
/// `reasoning_content`, `reasoning`, `refusal`, `tool_calls`), completions (`text`), llama.cpp.
const CONTENT_KEYS: [&[u8]; 7] = [
    b"\"content\"",
    b"\"text\"",
    b"\"reasoning_content\"",
    b"\"reasoning\"",
    b"\"tool_calls\"",
    b"\"function_call\"",
    b"\"refusal\"",
];

/// Whether `key` occurs with a string, list or object that is not empty.
fn has_filled(payload: &[u8], key: &[u8]) -> bool {
    let mut rest = payload;
    while let Some(value) = value_of(rest, key) {
        match value.first() {
            Some(b'"') if value.get(1) != Some(&b'"') => return true,
            Some(b'[') if value[1..].trim_ascii_start().first() != Some(&b']') => return true,
            Some(b'{') if value[1..].trim_ascii_start().first() != Some(&b'}') => return true,
            _ => rest = value,
        }
    }
    false
}

/// What follows the first `key` and its colon.
fn value_of<'a>(payload: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let mut from = 0;
    while let Some(at) = memchr::memmem::find(&payload[from..], key) {
        from += at + key.len();
        if let Some(value) = payload[from..].trim_ascii_start().strip_prefix(b":") {
            return Some(value.trim_ascii_start());
        }
    }
    None
}

fn string(value: &[u8]) -> Option<&[u8]> {
    let inner = value.strip_prefix(b"\"")?;
    memchr::memchr(b'"', inner).map(|end| &inner[..end])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VLLM: &str = concat!(
        r#"data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
        "\n\n",
        r#"data: {"id":"c","choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}"#,
        "\n\ndata: [DONE]\n\n"
    );

    /// Bytes fed when content was first seen.
    fn first_content_at(stream: &[u8], cut: usize) -> Option<usize> {
        let mut watch = FirstContent::default();
        let mut fed = 0;
        for chunk in stream.chunks(cut.max(1)) {
            fed += chunk.len();
            if watch.feed(chunk) {
                return Some(fed);
            }
        }
        None
    }

    #[test]
    fn a_role_only_event_is_no_content() {
        let role_event = VLLM.find("\n\n").expect("two events") + 2;
        assert_eq!(first_content_at(&VLLM.as_bytes()[..role_event], 7), None);
        let content_end = VLLM.find("data: [DONE]").expect("ends so") - 1;
        assert_eq!(first_content_at(VLLM.as_bytes(), 1), Some(content_end));
    }

    #[test]
    fn knows_the_other_forms() {
        let content = |line: &str| line_has_content(line.as_bytes());
        assert!(content(r#"data: {"choices":[{"text":" a","index":0}]}"#));
        assert!(!content(r#"data: {"choices":[{"text":"","index":0}]}"#));
        assert!(content(r#"data: {"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#));
        assert!(!content(r#"data: {"choices":[{"delta":{"tool_calls": [ ]}}]}"#));
        assert!(content(r#"data: {"choices":[{"delta":{"reasoning_content":"x"}}]}"#));
        assert!(!content(r#"data: {"type":"response.created","response":{"text":"x"}}"#));
        assert!(content(r#"data: {"type":"response.output_text.delta","delta":"x"}"#));
        assert!(!content(r#"data: {"type": "message_start","message":{"content":["x"]}}"#));
        assert!(content(r#"data: {"type":"content_block_delta","delta":{"text":"x"}}"#));
        assert!(content(r#"data: {"content":"What","stop":false}"#));
        assert!(!content(": comment") && !content("event: x") && !content("data: [DONE]"));
    }

    proptest! {
        #[test]
        fn the_cut_does_not_matter(cut in 1usize..400) {
            let seen = first_content_at(VLLM.as_bytes(), cut).expect("has content");
            let exact = first_content_at(VLLM.as_bytes(), 1).expect("has content");
            prop_assert!(seen >= exact && seen < exact + cut);
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..2000), cut in 1usize..99) {
            let _ = first_content_at(&bytes, cut);
        }
    }
}
