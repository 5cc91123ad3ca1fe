//! Workloads drawn from a seed, each a pattern that routing must bear.
//!
//! Text is drawn from a list of everyday words, so that tokens of four bytes are about right. Block
//! ids are those of the text, so a simulator can play the same workload without it.

use std::{collections::HashMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{
    BlockNames, Content, Message, Request, TEXT_BLOCK_BYTES, TOKEN_BYTES, Trace,
    draws::{Draws, Zipf},
    rendered,
    text::words,
};

/// Documents of `rag`.
const DOCUMENTS: usize = 60;
const DOCUMENT_BYTES: usize = 4_000;
/// Kinds of agents of `tools`, each with a prompt of its own.
const AGENTS: u64 = 4;
/// How many siblings may continue one history.
const SIBLINGS_MAX: u64 = 3;
/// Of the requests of `hotspot`, the share that has the hot prefix.
const HOT_SHARE: f64 = 0.6;
/// Requests of a burst of it.
const BURST: (u64, u64) = (5, 20);
/// Seconds between two requests of a burst, on average.
const BURST_GAP_S: f64 = 0.01;
/// How long an answer is assumed to take where the next turn's arrival depends on it.
const ANSWER_S: f64 = 1.0;

/// A pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Chats with one common system prompt
    Chat,
    /// Agents whose turns branch: several siblings continue one history
    Tools,
    /// One question each about documents of which some are popular (Zipf)
    Rag,
    /// One hot prefix that comes in bursts, among requests that share nothing
    Hotspot,
    /// Nothing is shared: affinity can only do harm
    SingleTurn,
}

/// How much of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Size {
    /// Conversations; requests where these have one turn only.
    pub conversations: usize,
    /// Requests of a conversation, at least 1.
    pub turns: u32,
    /// Bytes of the common prompt.
    pub system_bytes: usize,
    /// Requests a second on average, above 0.
    pub rate: f64,
}

/// Draws a workload.
pub fn draw(workload: Workload, size: &Size, seed: u64) -> Trace {
    let mut drawing =
        Drawing { draws: Draws::new(seed, workload as u64 + 1), size: *size, requests: Vec::new() };
    let name = match workload {
        Workload::Chat => {
            drawing.chat();
            "chat"
        }
        Workload::Tools => {
            drawing.tools();
            "tools"
        }
        Workload::Rag => {
            drawing.rag();
            "rag"
        }
        Workload::Hotspot => {
            drawing.hotspot();
            "hotspot"
        }
        Workload::SingleTurn => {
            drawing.single_turn();
            "single-turn"
        }
    };
    drawing.into_trace(name)
}

/// A request before its blocks are named.
struct Drawn {
    t: f64,
    session: Option<Arc<str>>,
    parent: Option<usize>,
    think: f64,
    max_tokens: u32,
    messages: Vec<Message>,
}

struct Drawing {
    draws: Draws,
    size: Size,
    /// A parent always stands before its children.
    requests: Vec<Drawn>,
}

impl Drawing {
    fn words(&mut self, low: u64, high: u64) -> String {
        let bytes = self.draws.between(low, high) as usize;
        words(&mut self.draws, bytes)
    }

    fn system(&mut self) -> Message {
        Message::new("system", &words(&mut self.draws, self.size.system_bytes))
    }

    /// Something of the length of an answer; a closed loop puts the real one in its place.
    fn answer(&mut self, tokens: u32) -> Message {
        let text = words(&mut self.draws, TOKEN_BYTES * tokens as usize);
        Message::new("assistant", &text)
    }

    /// Starts of conversations that bring the rate asked for.
    fn next_start(&mut self, t: f64, turns: u32) -> f64 {
        t + self.draws.gap(f64::from(turns) / self.size.rate)
    }

    fn chat(&mut self) {
        let system = self.system();
        let mut start = 0.0;
        for conversation in 0..self.size.conversations {
            let mut messages = vec![system.clone()];
            let (mut t, mut parent) = (start, None);
            for turn in 0..self.size.turns {
                let user = self.words(200, 800);
                messages.push(Message::new("user", &user));
                let think = if turn == 0 { 0.0 } else { self.draws.around(0.8, 0.6) };
                t += think + if turn == 0 { 0.0 } else { ANSWER_S };
                let max_tokens = self.draws.between(24, 48) as u32;
                let place = self.requests.len();
                self.requests.push(Drawn {
                    t,
                    session: Some(format!("chat-{conversation}").into()),
                    parent,
                    think,
                    max_tokens,
                    messages: messages.clone(),
                });
                parent = Some(place);
                let answer = self.answer(max_tokens);
                messages.push(answer);
            }
            start = self.next_start(start, self.size.turns);
        }
    }

    /// Levels of one to three siblings; the first of a level to be drawn is the one that goes on.
    fn tools(&mut self) {
        let agents: Vec<Message> = (0..AGENTS).map(|_| self.system()).collect();
        let mut start = 0.0;
        for conversation in 0..self.size.conversations {
            let agent = agents[self.draws.below(AGENTS) as usize].clone();
            let task = self.words(300, 1_500);
            let mut messages = vec![agent, Message::new("user", &task)];
            let (mut t, mut parent, mut turn) = (start, None, 0);
            while turn < self.size.turns {
                let left = u64::from(self.size.turns - turn);
                let siblings =
                    if turn == 0 { 1 } else { self.draws.between(1, SIBLINGS_MAX).min(left) };
                let base = messages.clone();
                let mut chosen = None;
                for sibling in 0..siblings {
                    let mut mine = base.clone();
                    if turn > 0 {
                        let result = self.words(400, 2_400);
                        mine.push(Message::new("user", &format!("Result of the tool: {result}")));
                    }
                    let think = if turn == 0 { 0.0 } else { self.draws.around(0.15, 0.5) };
                    let max_tokens = self.draws.between(16, 40) as u32;
                    let place = self.requests.len();
                    self.requests.push(Drawn {
                        t: t + think,
                        session: Some(format!("agent-{conversation}").into()),
                        parent,
                        think,
                        max_tokens,
                        messages: mine.clone(),
                    });
                    turn += 1;
                    if sibling == 0 {
                        let answer = self.answer(max_tokens);
                        mine.push(answer);
                        chosen = Some((place, mine, t + think));
                    }
                }
                if let Some((place, history, sent)) = chosen {
                    parent = Some(place);
                    messages = history;
                    t = sent + ANSWER_S;
                }
            }
            start = self.next_start(start, self.size.turns);
        }
    }

    fn single(&mut self, t: f64, messages: Vec<Message>, tokens: (u64, u64)) {
        let max_tokens = self.draws.between(tokens.0, tokens.1) as u32;
        self.requests.push(Drawn {
            t,
            session: None,
            parent: None,
            think: 0.0,
            max_tokens,
            messages,
        });
    }

    fn rag(&mut self) {
        let system = Message::new("system", "Answer from the document given with the question.");
        let documents: Vec<String> =
            (0..DOCUMENTS).map(|_| words(&mut self.draws, DOCUMENT_BYTES)).collect();
        let popular = Zipf::new(DOCUMENTS);
        let mut t = 0.0;
        for _ in 0..self.size.conversations {
            let document = &documents[popular.draw(&mut self.draws)];
            let question = self.words(60, 300);
            let text = format!("Document:\n{document}\n\nQuestion: {question}");
            self.single(t, vec![system.clone(), Message::new("user", &text)], (16, 48));
            t = self.next_start(t, 1);
        }
    }

    fn hotspot(&mut self) {
        let hot = self.system();
        let mean_burst = (BURST.0 + BURST.1) as f64 / 2.0;
        // Bursts and single requests so that `HOT_SHARE` of all requests are hot.
        let burst_share = HOT_SHARE / mean_burst / (HOT_SHARE / mean_burst + 1.0 - HOT_SHARE);
        let per_event = burst_share * mean_burst + 1.0 - burst_share;
        let mut t = 0.0;
        while self.requests.len() < self.size.conversations {
            if self.draws.share() < burst_share {
                let left = (self.size.conversations - self.requests.len()) as u64;
                let mut at = t;
                for _ in 0..self.draws.between(BURST.0, BURST.1).min(left) {
                    let question = self.words(60, 400);
                    self.single(at, vec![hot.clone(), Message::new("user", &question)], (16, 48));
                    at += self.draws.gap(BURST_GAP_S);
                }
            } else {
                let text = self.words(1_000, 8_000);
                self.single(t, vec![Message::new("user", &text)], (16, 48));
            }
            t += self.draws.gap(per_event / self.size.rate);
        }
    }

    fn single_turn(&mut self) {
        let mut t = 0.0;
        for _ in 0..self.size.conversations {
            // Lognormal, as prompts are: most are short and some very long.
            let bytes = self.draws.around(2_500.0, 0.8).clamp(200.0, 20_000.0) as usize;
            let text = words(&mut self.draws, bytes);
            // A name of its own from the first block on.
            let text = format!("{:016x} {text}", self.draws.any());
            self.single(t, vec![Message::new("user", &text)], (16, 64));
            t = self.next_start(t, 1);
        }
    }

    fn into_trace(self, name: &str) -> Trace {
        let mut order: Vec<usize> = (0..self.requests.len()).collect();
        order.sort_by(|a, b| self.requests[*a].t.total_cmp(&self.requests[*b].t).then(a.cmp(b)));
        let mut places = vec![0; order.len()];
        for (place, drawn) in order.iter().enumerate() {
            places[*drawn] = place;
        }
        let mut names = BlockNames::default();
        let mut turns: HashMap<Arc<str>, u32> = HashMap::new();
        let request = |at: &usize| {
            let drawn = &self.requests[*at];
            let text = rendered(&drawn.messages);
            // Turns are numbered by arrival, which siblings are not drawn in.
            let turn = drawn.session.clone().map_or(0, |session| {
                let next = turns.entry(session).or_default();
                *next += 1;
                *next - 1
            });
            Request {
                t: (drawn.t * 1e3).round() / 1e3,
                session: drawn.session.clone(),
                turn,
                parent: drawn.parent.map(|parent| places[parent]),
                think: drawn.session.is_some().then_some((drawn.think * 1e3).round() / 1e3),
                max_tokens: drawn.max_tokens,
                tenant: None,
                prompt_tokens: text.len().div_ceil(TOKEN_BYTES) as u32,
                block_tokens: (TEXT_BLOCK_BYTES / TOKEN_BYTES) as u32,
                blocks: names.of(text.as_bytes()),
                content: Content::Messages(drawn.messages.clone()),
            }
        };
        Trace { name: name.to_owned(), requests: order.iter().map(request).collect() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Workload; 5] =
        [Workload::Chat, Workload::Tools, Workload::Rag, Workload::Hotspot, Workload::SingleTurn];
    const SIZE: Size = Size { conversations: 120, turns: 6, system_bytes: 6 << 10, rate: 10.0 };

    #[test]
    fn patterns_share_what_they_say() {
        let bound = |workload| draw(workload, &SIZE, 1).hit_bound();
        assert!(bound(Workload::Chat) > 0.85, "{}", bound(Workload::Chat));
        assert!(bound(Workload::Tools) > 0.8, "{}", bound(Workload::Tools));
        assert!((0.4..0.9).contains(&bound(Workload::Rag)), "{}", bound(Workload::Rag));
        assert!((0.4..0.8).contains(&bound(Workload::Hotspot)), "{}", bound(Workload::Hotspot));
        assert!(bound(Workload::SingleTurn).abs() < f64::EPSILON);
    }

    #[test]
    fn the_rate_is_the_rate() {
        for workload in ALL {
            let size = Size { conversations: 1_000, turns: 4, system_bytes: 64, rate: 20.0 };
            let trace = draw(workload, &size, 5);
            let last = trace.requests.last().expect("some").t;
            let rate = trace.requests.len() as f64 / last;
            assert!((16.0..24.0).contains(&rate), "{workload:?}: {rate}");
        }
    }

    #[test]
    fn the_bundled_trace_is_drawn_by_this() {
        let size = Size { conversations: 40, turns: 6, system_bytes: 4_096, rate: 12.0 };
        let drawn = draw(Workload::Tools, &size, 1).shaped();
        assert_eq!(drawn.to_jsonl().expect("JSON"), crate::trace::BUNDLED);
        assert!(crate::trace::BUNDLED.len() < 60_000);
        let bundled = Trace::bundled();
        assert_eq!(Trace { name: bundled.name.clone(), ..drawn }, bundled);
    }

    #[test]
    fn turns_of_agents_branch() {
        let trace = draw(Workload::Tools, &SIZE, 1);
        let mut children = vec![0; trace.requests.len()];
        for request in &trace.requests {
            if let Some(parent) = request.parent {
                children[parent] += 1;
            }
        }
        assert!(children.iter().any(|count| *count > 1));
        assert_eq!(trace.session_count(), SIZE.conversations);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn whatever_is_drawn_can_be_read_back(
            seed: u64, which in 0_usize..5, conversations in 1_usize..12, turns in 1_u32..7,
        ) {
            let size = Size { conversations, turns, system_bytes: 500, rate: 5.0 };
            let trace = draw(ALL[which], &size, seed);
            prop_assert_eq!(&draw(ALL[which], &size, seed), &trace);
            let text = trace.to_jsonl().expect("JSON");
            let read = crate::trace::file::parse(&trace.name, text.as_bytes());
            prop_assert_eq!(read.map_err(|error| error.to_string()), Ok(trace));
        }
    }
}
