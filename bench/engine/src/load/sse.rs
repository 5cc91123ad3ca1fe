//! Server-sent events of a streamed chat, out of bytes cut anywhere.

use serde::Deserialize;

/// What one event says, as far as a load generator cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SseEvent {
    /// Content that is not empty.
    Content(String),
    Usage {
        prompt_tokens: u64,
        cached_tokens: u64,
        completion_tokens: u64,
    },
    Error(String),
    Done,
}

/// Holds the bytes of an event until it is whole.
#[derive(Debug, Default)]
pub(super) struct SseReader {
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
    delta: Delta,
}

#[derive(Debug, Default, Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
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
    pub(super) fn push(&mut self, data: &[u8]) -> Vec<SseEvent> {
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
    let contents = chunk.choices.into_iter().filter_map(|choice| choice.delta.content);
    events.extend(contents.filter(|text| !text.is_empty()).map(SseEvent::Content));
    if let Some(usage) = chunk.usage {
        events.push(SseEvent::Usage {
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage
                .prompt_tokens_details
                .and_then(|details| details.cached_tokens)
                .unwrap_or(0),
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
            SseEvent::Usage { prompt_tokens: 3, cached_tokens: 0, completion_tokens: 1 },
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
}
