//! The load: chats of many turns in some applications, without end.

use std::{fmt::Write, time::Duration};

use tokio::time::Instant;
use warmroute_engine::load::{self, LoadOptions, Session, Trace, Turn};

use super::relay::mixed;

/// Applications, each with a system prompt of its own.
const APPS: u64 = 6;
/// Sessions of one application that are open at once.
const OPEN: usize = 12;
/// Sessions prepared for one application; enough for any scenario.
const SESSIONS: u64 = 600;
const TURNS: u64 = 7;
const SYSTEM_BYTES: usize = 2_000;
const USER_BYTES: (u64, u64) = (150, 500);
const ANSWER_TOKENS: (u64, u64) = (16, 40);
const THINK_MS: (u64, u64) = (200, 2_600);
/// So that a router that is down is not asked without end.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(500);

/// One request, in seconds since the load began.
#[derive(Debug, Clone)]
pub struct Asked {
    /// When it was sent.
    pub sent: f64,
    /// When it was over.
    pub ended: f64,
    /// What went wrong.
    pub error: Option<String>,
}

/// Plays chats against `router` until dropped; `on_done` hears of every request.
pub async fn play(router: String, since: Instant, on_done: impl Fn(Asked)) {
    let players = (0..APPS).map(|app| {
        let options = LoadOptions {
            sessions_max: OPEN,
            pause_after_error: PAUSE_AFTER_ERROR,
            ..LoadOptions::new(router.clone())
        };
        let on_done = &on_done;
        async move {
            let heard = |record: &load::RequestRecord| {
                let ended = since.elapsed().as_secs_f64();
                let sent = ended - record.total.as_secs_f64();
                on_done(Asked { sent, ended, error: record.error.clone() });
            };
            // The URL is ours; there is nothing wrong with it.
            let _ = load::run(&trace(app), &options, heard).await;
        }
    });
    let players: Vec<_> = players.map(Box::pin).collect();
    all(players).await;
}

/// Waits for all futures, in one task.
async fn all<F: Future<Output = ()> + Unpin>(mut running: Vec<F>) {
    std::future::poll_fn(|context| {
        running.retain_mut(|future| std::pin::Pin::new(future).poll(context).is_pending());
        if running.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

fn trace(app: u64) -> Trace {
    let session = |number: u64| {
        let seed = mixed(app << 32 | number);
        let turn = |turn: u64| {
            let seed = mixed(seed ^ turn);
            let bytes = between(USER_BYTES, seed) as usize;
            Turn {
                think_ms: between(THINK_MS, mixed(seed)),
                user: words(seed, bytes),
                max_tokens: between(ANSWER_TOKENS, mixed(seed ^ 1)),
            }
        };
        // Those of the first second do not end all at once.
        let turns = 1 + (seed % TURNS).max(if number < OPEN as u64 { 0 } else { TURNS / 2 });
        Session {
            id: format!("a{app}s{number}"),
            start_ms: 0,
            turns: (0..turns).map(turn).collect(),
        }
    };
    Trace {
        system: words(mixed(app), SYSTEM_BYTES),
        sessions: (0..SESSIONS).map(session).collect(),
    }
}

fn between((low, high): (u64, u64), draw: u64) -> u64 {
    low + draw % (high - low + 1)
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
