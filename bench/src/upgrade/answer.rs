//! Reads an answer to its last byte and holds it to what was asked.

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use serde::Deserialize;
use tokio::time::Instant;

use super::{
    http1, http2,
    record::{Cause, Failure},
};

/// Bytes of one simulated token.
pub const TOKEN_BYTES: usize = 4;
/// How much of a wrong answer is shown.
const SHOWN_BYTES: usize = 160;

/// Of the head of an answer, what is checked.
#[derive(Debug, Clone)]
pub struct Head {
    /// Status.
    pub status: u16,
    has_backend: bool,
    request_id: String,
}

impl Head {
    /// Looks headers up by name.
    pub fn new<'a>(status: u16, value: impl Fn(&str) -> Option<&'a str>) -> Self {
        Self {
            status,
            has_backend: value("x-router-backend").is_some_and(|text| !text.is_empty()),
            request_id: value("x-request-id").unwrap_or_default().to_owned(),
        }
    }
}

/// The rest of an answer.
pub enum Body<'a> {
    /// Over HTTP/1.1.
    H1(&'a mut http1::Conn),
    /// Over HTTP/2.
    H2(RecvStream),
}

impl Body<'_> {
    async fn data(&mut self) -> Result<Option<Bytes>, Failure> {
        match self {
            Self::H1(conn) => conn.data().await,
            Self::H2(body) => http2::data(body).await,
        }
    }

    /// All of it.
    ///
    /// # Errors
    /// It is cut.
    pub async fn whole(&mut self) -> Result<Vec<u8>, Failure> {
        let mut whole = Vec::new();
        while let Some(data) = self.data().await? {
            whole.extend_from_slice(&data);
        }
        Ok(whole)
    }
}

/// What the answer must be.
#[derive(Debug, Clone, Copy)]
pub struct Expect<'a> {
    /// Tokens of the answer.
    pub tokens: usize,
    /// Whether it is a stream.
    pub is_streamed: bool,
    /// Its text begins so; all of it, if it is as long.
    pub text: &'a str,
}

/// What it was.
#[derive(Debug, Default)]
pub struct Read {
    /// First content of a stream, head of another.
    pub first: Option<Instant>,
    /// Its text.
    pub content: String,
    /// Prompt tokens and cached ones.
    pub tokens: (u64, u64),
}

#[derive(Deserialize)]
struct Chat<'a> {
    #[serde(default)]
    id: &'a str,
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Option<Message>,
    #[serde(default)]
    message: Option<Message>,
    #[serde(default)]
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    content: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    #[serde(default)]
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

/// Reads the answer to a chat; `on_first` hears of its first content.
///
/// # Errors
/// It is not whole, or not the one that was asked for.
pub async fn chat(
    head: &Head,
    mut body: Body<'_>,
    expect: Expect<'_>,
    mut on_first: impl FnMut(),
) -> Result<Read, Failure> {
    if head.status != 200 {
        let whole = body.whole().await.unwrap_or_default();
        return Err(Failure::new(Cause::Status, format!("{}: {}", head.status, shown(&whole))));
    }
    if !head.has_backend || head.request_id.is_empty() {
        return Err(Failure::new(Cause::Wrong, "X-Router-Backend or X-Request-Id is missing"));
    }
    let mut reader = Reader { id: format!("chatcmpl-{}", head.request_id), ..Reader::default() };
    if expect.is_streamed {
        let mut unread = BytesMut::new();
        while let Some(data) = body.data().await? {
            unread.extend_from_slice(&data);
            while let Some(at) = unread.windows(2).position(|two| two == b"\n\n") {
                let event = unread.split_to(at + 2);
                let is_first = reader.read.first.is_none();
                reader.event(&event[..at])?;
                if is_first && reader.read.first.is_some() {
                    on_first();
                }
            }
        }
        if !reader.is_done || !unread.is_empty() {
            let text = format!(
                "a clean end after {} tokens of {}, without [DONE]",
                reader.tokens, expect.tokens
            );
            return Err(Failure::new(Cause::Truncated, text));
        }
    } else {
        reader.read.first = Some(Instant::now());
        let whole = body.whole().await?;
        reader.take(&whole)?;
        reader.tokens = reader.read.content.len() / TOKEN_BYTES;
    }
    reader.end(expect)
}

#[derive(Default)]
struct Reader {
    id: String,
    read: Read,
    tokens: usize,
    finish: Option<String>,
    usage: Option<Usage>,
    is_done: bool,
}

impl Reader {
    fn event(&mut self, event: &[u8]) -> Result<(), Failure> {
        let Some(data) = event.strip_prefix(b"data: ") else {
            return Err(Failure::new(Cause::Wrong, format!("no event: {}", shown(event))));
        };
        if self.is_done {
            return Err(Failure::new(Cause::Wrong, "an event behind [DONE]"));
        }
        if data == b"[DONE]" {
            self.is_done = true;
            return Ok(());
        }
        self.take(data)
    }

    fn take(&mut self, json: &[u8]) -> Result<(), Failure> {
        let chat: Chat<'_> = serde_json::from_slice(json)
            .map_err(|error| Failure::new(Cause::Wrong, format!("{error}: {}", shown(json))))?;
        if let Some(error) = chat.error {
            return Err(Failure::new(Cause::ErrorEvent, error.to_string()));
        }
        if chat.id != self.id {
            let text = format!("id {} where {} was asked", chat.id, self.id);
            return Err(Failure::new(Cause::Wrong, text));
        }
        for choice in chat.choices {
            let message = choice.delta.or(choice.message).and_then(|message| message.content);
            if let Some(text) = message.filter(|text| !text.is_empty()) {
                self.read.first.get_or_insert_with(Instant::now);
                self.read.content.push_str(&text);
                self.tokens += 1;
            }
            self.finish = choice.finish_reason.or(self.finish.take());
        }
        self.usage = chat.usage.or(self.usage.take());
        Ok(())
    }

    fn end(mut self, expect: Expect<'_>) -> Result<Read, Failure> {
        let wrong = |text: String| Err(Failure::new(Cause::Wrong, text));
        let Some(usage) = self.usage else { return wrong("no usage".to_owned()) };
        let details = usage.prompt_tokens_details;
        let cached = details.and_then(|details| details.cached_tokens).unwrap_or_default();
        self.read.tokens = (usage.prompt_tokens, cached);
        let content = &self.read.content;
        if self.tokens != expect.tokens
            || usage.completion_tokens != expect.tokens as u64
            || content.len() != expect.tokens * TOKEN_BYTES
            || self.finish.as_deref() != Some("length")
        {
            return wrong(format!("{} tokens of {}: {content}", self.tokens, expect.tokens));
        }
        let compared = content.len().min(expect.text.len());
        if content.as_bytes()[..compared] != expect.text.as_bytes()[..compared] {
            return wrong(format!("another answer: {}", shown(content.as_bytes())));
        }
        Ok(self.read)
    }
}

fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN_BYTES)]);
    text.trim_end().to_owned()
}
