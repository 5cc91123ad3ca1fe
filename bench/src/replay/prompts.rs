//! Requests of a trace as JSON bodies.

use std::{fmt::Write, sync::Arc};

use bytes::Bytes;
use serde_json::Value;

use super::client::Ask;
use crate::trace::{Content, Message, Request, TOKEN_BYTES, Trace, text};

/// The history of a conversation as it was really sent, answers included.
pub type History = Arc<Vec<Message>>;

/// How bodies are written.
#[derive(Debug, Clone)]
pub struct Writing {
    /// The model asked for.
    pub model: String,
    /// Whether answers are streamed.
    pub streams: bool,
    /// Ask for answers of exactly `max_tokens`.
    pub ignores_eos: bool,
    /// Multiplies `max_tokens`.
    pub answer_scale: f64,
    /// Bytes of a full block where only the shape is known.
    pub block_bytes: usize,
    /// Of the text of such blocks.
    pub seed: u64,
    /// Sent as `cache_salt`.
    pub salt: Option<String>,
}

/// Bytes of a full block of this trace unless told otherwise: four a token, at most 256, so that one
/// machine can play a trace of long prompts at its own rate.
pub fn default_block_bytes(trace: &Trace) -> usize {
    let tokens = trace.requests.iter().map(|request| request.block_tokens).max().unwrap_or(1);
    (tokens as usize * TOKEN_BYTES).clamp(16, 256)
}

impl Writing {
    /// The body of a request, and its messages if it is a chat. `history` is what its parent sent
    /// and was told, with the parent's own messages in the trace: it replaces these where the
    /// request goes on from them.
    pub fn ask(
        &self,
        request: &Request,
        history: Option<(&[Message], &History)>,
    ) -> (Ask, Option<Vec<Message>>) {
        let tokens = (f64::from(request.max_tokens) * self.answer_scale).round().max(1.0) as u64;
        let model = Value::from(self.model.as_str());
        let mut body = format!("{{\"model\":{model},\"max_tokens\":{tokens}");
        if self.streams {
            body += ",\"stream\":true,\"stream_options\":{\"include_usage\":true}";
        }
        if self.ignores_eos {
            body += ",\"ignore_eos\":true";
        }
        if let Some(salt) = &self.salt {
            let _ = write!(body, ",\"cache_salt\":{}", Value::from(salt.as_str()));
        }
        let (path, sent) = match &request.content {
            Content::Messages(messages) => {
                let messages = continued(messages, history);
                body += ",\"messages\":[";
                for (at, message) in messages.iter().enumerate() {
                    body += if at == 0 { "" } else { "," };
                    body += &message.json;
                }
                body += "]}";
                ("/v1/chat/completions", Some(messages))
            }
            Content::Prompt(prompt) => {
                let _ = write!(body, ",\"prompt\":{}}}", Value::from(&**prompt));
                ("/v1/completions", None)
            }
            Content::Shape => {
                let prompt = self.shape_text(request);
                let _ = write!(body, ",\"prompt\":{}}}", Value::from(prompt));
                ("/v1/completions", None)
            }
        };
        let session = request.session.as_deref().map(str::to_owned);
        (Ask { path, body: Bytes::from(body), streams: self.streams, session }, sent)
    }

    fn shape_text(&self, request: &Request) -> String {
        text::prompt_text(
            &request.blocks,
            request.block_tokens,
            request.prompt_tokens,
            self.block_bytes,
            self.seed,
        )
    }

    /// Tokens of four bytes that a request with its answer takes in a simulated engine.
    pub fn engine_tokens(&self, request: &Request) -> usize {
        let bytes = match &request.content {
            Content::Messages(messages) => {
                messages.iter().map(|message| message.json.len() + 24).sum::<usize>()
            }
            Content::Prompt(prompt) => prompt.len(),
            Content::Shape => {
                self.block_bytes * request.prompt_tokens as usize / request.block_tokens as usize
                    + self.block_bytes
            }
        };
        let answer = (f64::from(request.max_tokens) * self.answer_scale).ceil() as usize;
        bytes.div_ceil(TOKEN_BYTES) + answer.max(1)
    }
}

/// The messages of a request, with the real history in the place of the trace's where the request is
/// the parent's messages, an answer, and more.
fn continued(messages: &[Message], history: Option<(&[Message], &History)>) -> Vec<Message> {
    let Some((before, history)) = history else { return messages.to_vec() };
    let goes_on = messages.len() > before.len()
        && messages[..before.len()] == *before
        && &*messages[before.len()].role == "assistant";
    if !goes_on {
        return messages.to_vec();
    }
    history.iter().chain(&messages[before.len() + 1..]).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::synth::{Size, Workload, draw};

    fn writing() -> Writing {
        Writing {
            model: "m".to_owned(),
            streams: true,
            ignores_eos: true,
            answer_scale: 0.5,
            block_bytes: 128,
            seed: 1,
            salt: Some("s".to_owned()),
        }
    }

    #[test]
    fn a_shape_becomes_a_completion_of_its_text() {
        let trace = Trace::bundled();
        let request = &trace.requests[0];
        let (ask, sent) = writing().ask(request, None);
        assert_eq!((ask.path, sent), ("/v1/completions", None));
        let body: Value = serde_json::from_slice(&ask.body).expect("JSON");
        let prompt = body["prompt"].as_str().expect("text");
        assert_eq!(prompt.len().div_ceil(128), request.blocks.len());
        assert_eq!(body["max_tokens"], (f64::from(request.max_tokens) / 2.0).round() as u64);
        assert_eq!((&body["stream"], &body["cache_salt"]), (&Value::from(true), &Value::from("s")));
        let estimate = writing().engine_tokens(request);
        let tokens = prompt.len() / TOKEN_BYTES + request.max_tokens as usize / 2;
        assert!(estimate >= tokens && estimate < tokens + 100, "{estimate} for {tokens}");
    }

    #[test]
    fn what_was_really_said_replaces_what_the_trace_says() {
        let size = Size { conversations: 1, turns: 2, system_bytes: 50, rate: 1.0 };
        let trace = draw(Workload::Chat, &size, 1);
        let [first, second] = &trace.requests[..] else { panic!("two turns") };
        let Content::Messages(before) = &first.content else { panic!("a chat") };
        let mut real = before.clone();
        real.push(Message::new("assistant", "really"));
        let (_, sent) = writing().ask(second, Some((before, &Arc::new(real.clone()))));
        let sent = sent.expect("messages");
        assert_eq!(sent[..real.len()], real[..]);
        assert_eq!(sent.len(), real.len() + 1);
        // One that does not go on from its parent is sent as it stands.
        let other = [Message::new("user", "something else")];
        let (_, sent) = writing().ask(second, Some((&other, &Arc::new(real))));
        assert_eq!(Content::Messages(sent.expect("messages")), second.content);
    }
}
