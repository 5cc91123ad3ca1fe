//! What is replayed or simulated: requests in the order of their arrival, as plain data.
//!
//! A trace comes from a file (`file`) or is drawn from a seed (`synth`). Each request has its
//! shape (tokens, chained block ids); some also have their text. Nothing here knows sockets or
//! clocks.

pub mod arrivals;
pub mod draws;
pub mod file;
pub mod synth;
pub mod text;

use std::{collections::HashMap, sync::Arc};

/// The bundled trace: 40 agents whose turns branch, 240 requests, as shape only. Written by
/// `warmroute-bench trace --workload tools --conversations 40 --turns 6 --system-bytes 4096 --rate 12
/// --shape`.
pub const BUNDLED: &str = include_str!("../../traces/small.jsonl");

/// Bytes of rendered text that make a block where a trace has text.
pub const TEXT_BLOCK_BYTES: usize = 256;
/// Bytes of text counted as a token where a trace has text.
pub const TOKEN_BYTES: usize = 4;

/// Requests in the order of their arrival.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// What results call it.
    pub name: String,
    /// In order of `t`.
    pub requests: Vec<Request>,
}

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Arrival, seconds from the start of the trace.
    pub t: f64,
    /// The conversation it belongs to.
    pub session: Option<Arc<str>>,
    /// Its place in that, from 0.
    pub turn: u32,
    /// Index, in the trace, of the request whose answer it waits for.
    pub parent: Option<usize>,
    /// Seconds between the end of that answer and this request.
    pub think: Option<f64>,
    /// Length of its answer in tokens.
    pub max_tokens: u32,
    /// The source's own grouping.
    pub tenant: Option<Arc<str>>,
    /// Length of its prompt in tokens.
    pub prompt_tokens: u32,
    /// Tokens of a full block.
    pub block_tokens: u32,
    /// Chained ids: equal ids stand for equal blocks with equal blocks before them.
    pub blocks: Arc<[u64]>,
    /// Its text, where there is one.
    pub content: Content,
}

/// What a request says.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Only the shape is known; see [`text`].
    Shape,
    /// A bare prompt.
    Prompt(Arc<str>),
    /// A chat.
    Messages(Vec<Message>),
}

/// One message of a chat, as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub role: Arc<str>,
    /// The whole object.
    pub json: Arc<str>,
}

impl Message {
    /// A message of plain text.
    pub fn new(role: &str, content: &str) -> Self {
        let json = serde_json::json!({"role": role, "content": content}).to_string();
        Self { role: role.into(), json: json.into() }
    }

    /// Its content, if that is a string.
    pub fn text(&self) -> Option<String> {
        let value: serde_json::Value = serde_json::from_str(&self.json).ok()?;
        Some(value.get("content")?.as_str()?.to_owned())
    }
}

impl Trace {
    /// The bundled one.
    pub fn bundled() -> Self {
        file::parse("small", BUNDLED.as_bytes()).expect("a test reads the bundled trace")
    }

    /// Without its text: much smaller, and as good for whoever only needs the shape.
    #[must_use]
    pub fn shaped(mut self) -> Self {
        for request in &mut self.requests {
            request.content = Content::Shape;
        }
        self
    }

    /// The first so many requests.
    #[must_use]
    pub fn limited(mut self, requests: usize) -> Self {
        self.requests.truncate(requests);
        self
    }

    /// About this share of the sessions, whole, at the times they have: a thinner load of the same
    /// kind. Requests without a session are drawn one by one.
    #[must_use]
    pub fn sampled(self, share: f64, seed: u64) -> Self {
        let mut draws = draws::Draws::new(seed, 0x5a);
        let mut kept: HashMap<Arc<str>, bool> = HashMap::new();
        let mut places = vec![None; self.requests.len()];
        let mut requests: Vec<Request> = Vec::new();
        for (at, mut request) in self.requests.into_iter().enumerate() {
            let keeps = match &request.session {
                Some(session) => {
                    *kept.entry(session.clone()).or_insert_with(|| draws.share() < share)
                }
                None => draws.share() < share,
            };
            if keeps {
                request.parent = request.parent.and_then(|parent: usize| places[parent]);
                places[at] = Some(requests.len());
                requests.push(request);
            }
        }
        Self { name: self.name, requests }
    }

    /// Conversations, requests without one counted each.
    pub fn session_count(&self) -> usize {
        self.requests.iter().filter(|request| request.parent.is_none()).count()
    }

    /// Of all prompt tokens, the share that an endless cache common to all workers would hold.
    pub fn hit_bound(&self) -> f64 {
        let mut seen = std::collections::HashSet::new();
        let (mut hit, mut all) = (0_u64, 0_u64);
        for request in &self.requests {
            let known = request.blocks.iter().take_while(|id| seen.contains(*id)).count() as u64;
            let tokens = u64::from(request.prompt_tokens);
            hit += (known * u64::from(request.block_tokens)).min(tokens);
            all += tokens;
            seen.extend(request.blocks.iter().copied());
        }
        hit as f64 / all.max(1) as f64
    }
}

/// The text that a chat becomes on its way into an engine, up to the answer (ChatML).
pub fn rendered(messages: &[Message]) -> String {
    let mut text = String::new();
    for message in messages {
        let content = message.text().unwrap_or_else(|| message.json.to_string());
        for part in ["<|im_start|>", &message.role, "\n", &content, "<|im_end|>\n"] {
            text.push_str(part);
        }
    }
    text.push_str("<|im_start|>assistant\n");
    text
}

/// Gives text its chained block ids, dense and in the order of their appearance.
#[derive(Debug, Default)]
pub struct BlockNames {
    ids: HashMap<(u64, Box<[u8]>), u64>,
}

impl BlockNames {
    /// The blocks of a text, the last one perhaps not full.
    pub fn of(&mut self, text: &[u8]) -> Arc<[u64]> {
        let mut before = u64::MAX;
        let named = text.chunks(TEXT_BLOCK_BYTES).map(|block| {
            let next = self.ids.len() as u64;
            before = *self.ids.entry((before, block.into())).or_insert(next);
            before
        });
        named.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_ids_stand_for_equal_prefixes() {
        let mut names = BlockNames::default();
        let text = |parts: &[(u8, usize)]| -> Vec<u8> {
            parts.iter().flat_map(|(byte, count)| vec![*byte; *count]).collect()
        };
        let first = names.of(&text(&[(b'a', 256), (b'b', 256), (b'c', 10)]));
        let second = names.of(&text(&[(b'a', 256), (b'b', 256), (b'd', 300)]));
        let third = names.of(&text(&[(b'x', 256), (b'b', 256)]));
        assert_eq!(first[..2], second[..2]);
        assert_ne!(first[2], second[2]);
        assert_ne!(first[1], third[1], "the same block behind another");
        assert_eq!((first.len(), second.len()), (3, 4));
    }

    #[test]
    fn a_sample_keeps_whole_sessions() {
        let whole = Trace::bundled();
        let part = whole.clone().sampled(0.5, 3);
        assert!(part.requests.len() < whole.requests.len() && !part.requests.is_empty());
        for request in &part.requests {
            let Some(parent) = request.parent else { continue };
            assert_eq!(part.requests[parent].session, request.session);
        }
        let turns = |trace: &Trace, session: &Arc<str>| {
            trace
                .requests
                .iter()
                .filter(|request| request.session.as_ref() == Some(session))
                .count()
        };
        let session = part.requests[0].session.clone().expect("sessions");
        assert_eq!(turns(&part, &session), turns(&whole, &session));
    }
}
