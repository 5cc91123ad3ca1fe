//! The load: chats of some applications, the same in every run.

use std::fmt::Write;

use warmroute_engine::load::{self, LoadOptions, RequestRecord, Session, Trace, Turn};

use super::Any;

/// Applications, each with a system prompt of its own.
const APPS: u64 = 6;
const TURNS: u64 = 8;
const SYSTEM_BYTES: usize = 1_500;
const USER_BYTES: (u64, u64) = (600, 2_400);
const ANSWER_TOKENS: (u64, u64) = (16, 48);
const THINK_MS: (u64, u64) = (100, 900);

/// How much is played.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Sessions of one application.
    pub sessions: u64,
    /// Those of them that are open at once.
    pub open: usize,
}

/// Plays all chats, each request at the next of `urls`.
///
/// # Errors
/// When a URL is none; what goes wrong later is in the records.
pub async fn play(urls: Vec<String>, size: Size, seed: u64) -> Result<Vec<RequestRecord>, Any> {
    let mut players = tokio::task::JoinSet::new();
    for app in 0..APPS {
        // Else each application would begin at the same router.
        let mut urls = urls.clone();
        let first = app as usize % urls.len();
        urls.rotate_left(first);
        let options =
            LoadOptions { urls, sessions_max: size.open, ..LoadOptions::new(String::new()) };
        players.spawn(async move { load::run(&trace(app, size, seed), &options, |_| {}).await });
    }
    let mut records = Vec::new();
    while let Some(result) = players.join_next().await {
        records.extend(result??.records);
    }
    Ok(records)
}

fn trace(app: u64, size: Size, seed: u64) -> Trace {
    let draw = |parts: [u64; 4]| parts.iter().fold(seed, |sum, part| mixed(sum ^ mixed(*part)));
    let session = |number: u64| Session {
        id: format!("a{app}s{number}"),
        start_ms: 0,
        turns: (0..TURNS)
            .map(|turn| {
                let draw = |what| draw([app + 1, number, turn, what]);
                Turn {
                    think_ms: between(THINK_MS, draw(1)),
                    user: words(draw(2), between(USER_BYTES, draw(3)) as usize),
                    max_tokens: between(ANSWER_TOKENS, draw(4)),
                }
            })
            .collect(),
    };
    Trace {
        system: words(draw([app + 1, 0, 0, 0]), SYSTEM_BYTES),
        sessions: (0..size.sessions).map(session).collect(),
    }
}

fn between((low, high): (u64, u64), draw: u64) -> u64 {
    low + draw % (high - low + 1)
}

/// SplitMix64.
fn mixed(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Made-up words.
fn words(seed: u64, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 24);
    let mut at = seed;
    while text.len() < bytes {
        at = mixed(at);
        let _ = write!(text, "{:x} ", at >> (8 + at % 40));
    }
    text
}
