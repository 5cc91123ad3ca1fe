//! What is asked: chats whose prefixes grow, and prompts of long streams.

use std::fmt::Write;

use bytes::Bytes;

use super::answer::{Expect, TOKEN_BYTES};
use crate::truth::relay::mixed;

/// Model of the engines that hold chats.
pub const CHAT_MODEL: &str = "sim-model";
/// Model of the slow engines.
pub const STREAM_MODEL: &str = "stream-model";
/// Where both are asked.
pub const PATH: &str = "/v1/chat/completions";

/// Applications, each with a system prompt of its own.
const APPS: u64 = 8;
const SYSTEM_BYTES: usize = 1_200;
const USER_BYTES: (u64, u64) = (200, 500);
const ANSWER_TOKENS: (u64, u64) = (5, 10);
const TURNS: (u64, u64) = (4, 10);
/// Prompts of long streams.
pub const STREAM_PROMPTS: u64 = 64;
/// Tokens that a chat's prompt has on the average, about.
pub const PROMPT_TOKENS: f64 = 800.0;

/// One conversation.
#[derive(Debug)]
pub struct Chat {
    seed: u64,
    turn: u64,
    turns: u64,
    /// JSON of all messages, without the closing bracket.
    messages: String,
}

impl Chat {
    /// The chat of this number; one that is `under_way` has some turns behind it.
    pub fn begin(number: u64, under_way: bool) -> Self {
        let seed = mixed(number);
        let turns = between(TURNS, mixed(seed ^ 1));
        let system = words(mixed(seed % APPS), SYSTEM_BYTES);
        let messages = format!("[{{\"role\":\"system\",\"content\":\"{system}\"}}");
        let mut chat = Self { seed, turn: 0, turns, messages };
        chat.user();
        for past in 0..if under_way { mixed(seed ^ 2) % turns } else { 0 } {
            let tokens = between(ANSWER_TOKENS, mixed(seed ^ past));
            chat.go_on(&words(seed ^ past, tokens as usize * TOKEN_BYTES));
        }
        chat
    }

    /// The body of the next request.
    pub fn body(&self) -> Bytes {
        let Expect { tokens, is_streamed, .. } = self.expect();
        let options = if is_streamed {
            "\"stream\":true,\"stream_options\":{\"include_usage\":true},"
        } else {
            ""
        };
        let messages = &self.messages;
        Bytes::from(format!(
            "{{\"model\":\"{CHAT_MODEL}\",{options}\"ignore_eos\":true,\"max_tokens\":{tokens},\
             \"messages\":{messages}]}}"
        ))
    }

    /// What must be answered.
    pub fn expect(&self) -> Expect<'static> {
        let draw = mixed(self.seed ^ self.turn << 8);
        let tokens = between(ANSWER_TOKENS, draw) as usize;
        Expect { tokens, is_streamed: draw >> 40 & 1 == 0, text: "" }
    }

    /// Takes the answer in and says what comes next; false when nothing does.
    pub fn go_on(&mut self, answer: &str) -> bool {
        let _ = write!(self.messages, ",{{\"role\":\"assistant\",\"content\":\"{answer}\"}}");
        self.turn += 1;
        self.user();
        self.turn < self.turns
    }

    /// A number that stands for this turn.
    pub fn draw(&self) -> u64 {
        mixed(self.seed.wrapping_add(self.turn))
    }

    fn user(&mut self) {
        let draw = self.draw();
        let text = words(draw, between(USER_BYTES, mixed(draw)) as usize);
        let comma = if self.messages.len() > 1 { "," } else { "" };
        let _ = write!(self.messages, "{comma}{{\"role\":\"user\",\"content\":\"{text}\"}}");
    }
}

/// The body of a long stream, or, for the reference, of one whole answer.
pub fn stream_body(prompt: u64, tokens: usize, is_streamed: bool) -> Bytes {
    let text = words(mixed(!prompt), 300);
    let options = if is_streamed {
        "\"stream\":true,\"stream_options\":{\"include_usage\":true},"
    } else {
        ""
    };
    Bytes::from(format!(
        "{{\"model\":\"{STREAM_MODEL}\",{options}\"ignore_eos\":true,\"max_tokens\":{tokens},\
         \"messages\":[{{\"role\":\"user\",\"content\":\"{text}\"}}]}}"
    ))
}

/// A draw from a range, both ends included.
pub fn between((low, high): (u64, u64), draw: u64) -> u64 {
    low + draw % (high - low + 1)
}

/// Made-up words, exactly so many bytes; nothing in them needs escaping.
fn words(seed: u64, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 24);
    let mut at = seed;
    while text.len() < bytes {
        at = mixed(at);
        let _ = write!(text, "{:x} ", at >> (8 + at % 40));
    }
    text.truncate(bytes);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(chat: &Chat) -> Vec<serde_json::Value> {
        let body: serde_json::Value = serde_json::from_slice(&chat.body()).expect("JSON");
        body["messages"].as_array().expect("a list").clone()
    }

    #[test]
    fn a_chat_grows_by_its_answers() {
        let mut chat = Chat::begin(3, false);
        let first = messages(&chat);
        assert_eq!(first.len(), 2);
        let mut turns = 1;
        while chat.go_on("cat sat ") {
            turns += 1;
        }
        let last = messages(&chat);
        assert_eq!(last[..2], first);
        assert_eq!(last[2]["content"], "cat sat ");
        assert!((TURNS.0..=TURNS.1).contains(&turns), "{turns}");
    }

    #[test]
    fn the_reference_asks_the_same_prompt() {
        let prompt = |is_streamed| -> serde_json::Value {
            serde_json::from_slice(&stream_body(5, 9, is_streamed)).expect("JSON")
        };
        assert_eq!(prompt(true)["messages"], prompt(false)["messages"]);
        assert_eq!(prompt(true)["stream"], true);
    }
}
