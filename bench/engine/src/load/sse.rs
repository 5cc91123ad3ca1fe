//! What an answer says: server-sent events out of bytes cut anywhere, or one whole body.

use serde::Deserialize;

/// What one event says, as far as a load generator cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SseEvent {
    /// Content that is not empty.
    Content(String),
    /// Something generated that is no text of the answer: a tool call, reasoning.
    Other,
    /// The counts at the end.
    Usage {
        /// Tokens of the prompt.
        prompt_tokens: u64,
        /// Those of them that were cached; `None` if the server does not say.
        cached_tokens: Option<u64>,
        /// Tokens generated.
        completion_tokens: u64,
    },
    /// The server gave up, or what it sent cannot be read.
    Error(String),
    /// The end of a stream.
    Done,
}

/// Holds the bytes of an event until it is whole.
#[derive(Debug, Default)]
pub struct SseReader {
    rest: Vec<u8>,
}

#[derive(Debug, Default, Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Option<Delta>,
    /// In the place of `delta` where the answer is whole.
    #[serde(default)]
    message: Option<Delta>,
    /// Of `/v1/completions`.
    #[serde(default)]
    text: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    reasoning_content: Option<String>,
    /// The name that newer servers give it; some send both.
    #[serde(default)]
    reasoning: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<serde::de::IgnoredAny>>,
}

#[derive(Debug, Deserialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    #[serde(default)]
    prompt_tokens_details: Option<Details>,
}

#[derive(Debug, Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

impl SseReader {
    /// Takes in bytes and gives the events that are whole now.
    pub fn push(&mut self, data: &[u8]) -> Vec<SseEvent> {
        self.rest.extend_from_slice(data);
        let mut events = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            if let Some(data) = line.strip_prefix(b"data:") {
                read_data(data.trim_ascii(), &mut events);
            }
        }
        events
    }
}

/// What an answer says that was not streamed.
pub fn read_whole(body: &[u8]) -> Vec<SseEvent> {
    let mut events = Vec::new();
    read_data(body, &mut events);
    events
}

fn read_data(data: &[u8], events: &mut Vec<SseEvent>) {
    if data == b"[DONE]" {
        events.push(SseEvent::Done);
        return;
    }
    let chunk: Chunk = match serde_json::from_slice(data) {
        Ok(chunk) => chunk,
        Err(error) => {
            events.push(SseEvent::Error(format!("unreadable event: {error}")));
            return;
        }
    };
    if let Some(error) = chunk.error {
        events.push(SseEvent::Error(error.to_string()));
    }
    for choice in chunk.choices {
        let said = choice.delta.or(choice.message).unwrap_or_default();
        let is_filled = |text: &String| !text.is_empty();
        if let Some(text) = said.content.or(choice.text).filter(is_filled) {
            events.push(SseEvent::Content(text));
        } else if said.reasoning.or(said.reasoning_content).is_some_and(|text| is_filled(&text))
            || said.tool_calls.is_some_and(|calls| !calls.is_empty())
        {
            events.push(SseEvent::Other);
        }
    }
    if let Some(usage) = chunk.usage {
        events.push(SseEvent::Usage {
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.prompt_tokens_details.and_then(|details| details.cached_tokens),
            completion_tokens: usage.completion_tokens,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_out_the_same_however_the_bytes_are_cut() {
        let stream =
            b"data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
            data: {\"choices\":[{\"delta\":{\"content\":\"\xc3\xa9\"}}]}\n\n: ping\n\n\
            data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1,\
            \"prompt_tokens_details\":null}}\r\n\r\ndata: [DONE]\n\n";
        let expected = vec![
            SseEvent::Content("é".to_owned()),
            SseEvent::Usage { prompt_tokens: 3, cached_tokens: None, completion_tokens: 1 },
            SseEvent::Done,
        ];
        for size in 1..stream.len() {
            let mut reader = SseReader::default();
            let events: Vec<_> = stream.chunks(size).flat_map(|cut| reader.push(cut)).collect();
            assert_eq!(events, expected, "cut every {size} bytes");
        }
    }

    #[test]
    fn an_error_event_is_an_error() {
        let events = SseReader::default().push(b"data: {\"error\":{\"message\":\"gone\"}}\n\n");
        assert!(matches!(&events[..], [SseEvent::Error(text)] if text.contains("gone")));
    }

    #[test]
    fn reads_completions_calls_and_whole_answers() {
        let read = |text: &str| read_whole(text.as_bytes());
        let content = |text: &str| vec![SseEvent::Content(text.to_owned())];
        assert_eq!(read(r#"{"choices":[{"text":"a"}]}"#), content("a"));
        assert_eq!(read(r#"{"choices":[{"message":{"content":"b"}}]}"#), content("b"));
        let call = r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#;
        assert_eq!(read(call), [SseEvent::Other]);
        assert_eq!(read(r#"{"choices":[{"delta":{"reasoning":"c"}}]}"#), [SseEvent::Other]);
        assert_eq!(read(r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#), []);
        let usage = r#"{"usage":{"prompt_tokens":9,"completion_tokens":2,
            "prompt_tokens_details":{"cached_tokens":4}}}"#;
        let (prompt_tokens, cached_tokens, completion_tokens) = (9, Some(4), 2);
        let usage_event = SseEvent::Usage { prompt_tokens, cached_tokens, completion_tokens };
        assert_eq!(read(usage), [usage_event]);
        assert!(matches!(&read("no JSON")[..], [SseEvent::Error(_)]));
    }
}
