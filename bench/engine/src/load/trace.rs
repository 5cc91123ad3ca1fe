//! Chat sessions to be played: one JSON object a line, the common system prompt first.

use serde::{Deserialize, Serialize};

/// The bundled trace, written by `examples/make_trace.rs`.
const DEMO_CHAT: &str = include_str!("../../traces/demo-chat.jsonl");

/// Sessions that share a system prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// The system prompt of all sessions.
    pub system: String,
    /// In order of their start.
    pub sessions: Vec<Session>,
}

/// One user's conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// Its name in results.
    pub id: String,
    /// When it begins, after the start of the run.
    pub start_ms: u64,
    /// What the user says, in order.
    pub turns: Vec<Turn>,
}

/// One message of the user and the length of its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// How long the user thinks before sending it.
    pub think_ms: u64,
    /// The message.
    pub user: String,
    /// Length of the answer asked for.
    pub max_tokens: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    system: String,
}

/// A trace that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("trace line {line} cannot be read")]
pub struct TraceError {
    line: usize,
    source: Option<serde_json::Error>,
}

impl Trace {
    /// The bundled trace of chat sessions: original text, made for this demo.
    pub fn demo_chat() -> Self {
        Self::parse(DEMO_CHAT).expect("a test reads the bundled trace")
    }

    /// Reads a trace from its file's text.
    ///
    /// # Errors
    /// A line is not what it should be.
    pub fn parse(text: &str) -> Result<Self, TraceError> {
        let bad = |line: usize, source| TraceError { line: line + 1, source: Some(source) };
        let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let (_, first) = lines.next().ok_or(TraceError { line: 1, source: None })?;
        let header: Header = serde_json::from_str(first).map_err(|error| bad(0, error))?;
        let sessions = lines
            .map(|(number, line)| serde_json::from_str(line).map_err(|error| bad(number, error)))
            .collect::<Result<_, _>>()?;
        Ok(Self { system: header.system, sessions })
    }

    /// Writes the file that `parse` reads.
    pub fn to_jsonl(&self) -> String {
        let header = Header { system: self.system.clone() };
        let line = |value| serde_json::Value::to_string(&value) + "\n";
        let mut text = line(serde_json::to_value(header).unwrap_or_default());
        for session in &self.sessions {
            text += &line(serde_json::to_value(session).unwrap_or_default());
        }
        text
    }

    /// Requests in all sessions.
    pub fn request_count(&self) -> usize {
        self.sessions.iter().map(|session| session.turns.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_trace_reads_and_is_small() {
        let trace = Trace::demo_chat();
        assert!(DEMO_CHAT.len() < 500_000);
        assert!((24..=32).contains(&trace.sessions.len()));
        assert!((5_000..8_000).contains(&trace.system.len()), "{}", trace.system.len());
        for turn in trace.sessions.iter().flat_map(|session| &session.turns) {
            assert!((200..=800).contains(&turn.user.len()), "{}", turn.user.len());
            assert!((24..=48).contains(&turn.max_tokens));
        }
        assert_eq!(Trace::parse(&trace.to_jsonl()).expect("it is a trace"), trace);
    }

    #[test]
    fn an_error_names_its_line() {
        let error = Trace::parse("{\"system\":\"s\"}\n\n{\"id\":1}\n").expect_err("bad session");
        assert_eq!(error.to_string(), "trace line 3 cannot be read");
    }
}
