//! A load generator: chat sessions over real sockets, as clients of a chat product make them.
//!
//! The loop is closed: a session sends its next turn, with the answer it really got in the
//! history, after it has read the turn before. What is measured is what a user sees: the time to
//! the first piece of *content*. The role-only event that engines send before any prefill is not
//! one.

mod sse;
mod summary;
mod trace;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Method, Response, StatusCode};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use crate::client::{ClientError, Connection};
pub use sse::{SseEvent, SseReader, read_whole};
pub use summary::{Percentiles, Summary};
pub use trace::{Session, Trace, TraceError, Turn};

/// Balancing without a router, to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// Each request takes the next URL.
    Requests,
    /// Each session takes the next URL and stays there.
    Sessions,
}

/// How the sessions of a trace are played.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where to send. One URL is a router; `spread` says how several are used.
    pub urls: Vec<String>,
    /// How requests are spread over several URLs.
    pub spread: Spread,
    /// The model asked for.
    pub model: String,
    /// Sessions open at once.
    pub sessions_max: usize,
    /// Further headers of every request.
    pub headers: Vec<(String, String)>,
    /// A request that takes longer is an error.
    pub request_timeout: Duration,
    /// The place of a session that failed stays empty for so long.
    pub pause_after_error: Duration,
}

impl LoadOptions {
    /// All sessions of the bundled trace at once, against one URL.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            urls: vec![url.into()],
            spread: Spread::Requests,
            model: "sim-model".to_owned(),
            sessions_max: 64,
            headers: Vec::new(),
            request_timeout: Duration::from_mins(1),
            pause_after_error: Duration::ZERO,
        }
    }
}

/// What became of one request.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestRecord {
    /// The session's id in the trace.
    pub session: String,
    /// Which of its turns, from 0.
    pub turn: usize,
    /// From sending to the first event with content.
    pub first_token: Option<Duration>,
    /// From sending to the end of the response.
    pub total: Duration,
    /// From the response's usage.
    pub prompt_tokens: u64,
    /// From the response's usage.
    pub cached_tokens: u64,
    /// From the response's usage.
    pub completion_tokens: u64,
    /// What went wrong, if anything did.
    pub error: Option<String>,
}

/// Everything a run measured.
#[derive(Debug, Clone, Default)]
pub struct LoadResult {
    /// One for each request sent, in the order they ended.
    pub records: Vec<RequestRecord>,
    /// From the first request to the last response.
    pub elapsed: Duration,
}

impl LoadResult {
    /// The figures people compare.
    pub fn summary(&self) -> Summary {
        Summary::of(self)
    }
}

/// Plays all sessions of a trace; `on_done` hears of every request as it ends.
///
/// # Errors
/// A URL is none; what goes wrong later is in the records.
pub async fn run(
    trace: &Trace,
    options: &LoadOptions,
    mut on_done: impl FnMut(&RequestRecord),
) -> Result<LoadResult, ClientError> {
    for url in &options.urls {
        Connection::new(url)?;
    }
    let player = Arc::new(Player {
        system: trace.system.clone(),
        options: options.clone(),
        start: Instant::now(),
        next_url: AtomicUsize::new(0),
    });
    let (sender, mut records) = mpsc::unbounded_channel();
    let mut queue: VecDeque<Session> = trace.sessions.iter().cloned().collect();
    let mut sessions = JoinSet::new();
    let mut result = LoadResult::default();
    loop {
        while sessions.len() < options.sessions_max.max(1) {
            let Some(session) = queue.pop_front() else { break };
            sessions.spawn(Arc::clone(&player).play(session, sender.clone()));
        }
        tokio::select! {
            biased;
            Some(record) = records.recv() => {
                on_done(&record);
                result.records.push(record);
            }
            ended = sessions.join_next() => if ended.is_none() { break },
        }
    }
    result.elapsed = player.start.elapsed();
    Ok(result)
}

/// What all sessions of a run share.
struct Player {
    system: String,
    options: LoadOptions,
    start: Instant,
    next_url: AtomicUsize,
}

#[derive(Debug, Clone, Serialize)]
struct Message {
    role: &'static str,
    content: String,
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    messages: &'a [Message],
    max_tokens: u64,
    stream: bool,
    stream_options: StreamOptions,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

impl Player {
    async fn play(self: Arc<Self>, session: Session, done: mpsc::UnboundedSender<RequestRecord>) {
        let urls = self.options.urls.iter();
        let mut connections: Vec<Connection> =
            urls.filter_map(|url| Connection::new(url).ok()).collect();
        let mut place = self.next_place();
        tokio::time::sleep_until(self.start + Duration::from_millis(session.start_ms)).await;
        let mut messages = vec![Message { role: "system", content: self.system.clone() }];
        for (index, turn) in session.turns.into_iter().enumerate() {
            tokio::time::sleep(Duration::from_millis(turn.think_ms)).await;
            messages.push(Message { role: "user", content: turn.user });
            if self.options.spread == Spread::Requests {
                place = self.next_place();
            }
            let connection = &mut connections[place];
            let mut record = RequestRecord {
                session: session.id.clone(),
                turn: index,
                first_token: None,
                total: Duration::ZERO,
                prompt_tokens: 0,
                cached_tokens: 0,
                completion_tokens: 0,
                error: None,
            };
            let sent = Instant::now();
            let asked = self.ask(connection, &messages, turn.max_tokens, sent, &mut record);
            let answer = match tokio::time::timeout(self.options.request_timeout, asked).await {
                Ok(answer) => answer,
                Err(_) => Err("no answer in time".to_owned()),
            };
            record.total = sent.elapsed();
            let failed = match answer {
                Ok(content) => {
                    messages.push(Message { role: "assistant", content });
                    false
                }
                Err(error) => {
                    // What is left of this response must not be taken for the next one.
                    connection.close();
                    record.error = Some(error);
                    true
                }
            };
            // The run may have been dropped.
            let is_heard = done.send(record).is_ok();
            if failed {
                tokio::time::sleep(self.options.pause_after_error).await;
            }
            if failed || !is_heard {
                // Without this answer the rest of the session would be another conversation.
                return;
            }
        }
    }

    fn next_place(&self) -> usize {
        self.next_url.fetch_add(1, Ordering::Relaxed) % self.options.urls.len()
    }

    /// Sends one turn and reads its answer.
    async fn ask(
        &self,
        connection: &mut Connection,
        messages: &[Message],
        max_tokens: u64,
        sent: Instant,
        record: &mut RequestRecord,
    ) -> Result<String, String> {
        let stream_options = StreamOptions { include_usage: true };
        let model = &self.options.model;
        let body = Body { model, messages, max_tokens, stream: true, stream_options };
        let body = Bytes::from(serde_json::to_vec(&body).map_err(|error| error.to_string())?);
        let path = "/v1/chat/completions";
        let response = connection.send(Method::POST, path, &self.options.headers, body);
        let response = response.await.map_err(|error| with_cause(&error))?;
        read_answer(response, sent, record).await
    }
}

/// Sends a GET and gives status and body; for readiness and the like.
///
/// # Errors
/// There is no whole response.
pub async fn fetch(url: &str, path: &str) -> Result<(u16, String), ClientError> {
    let mut connection = Connection::new(url)?;
    let response = connection.send(Method::GET, path, &[], Bytes::new()).await?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

async fn read_answer(
    response: Response<hyper::body::Incoming>,
    sent: Instant,
    record: &mut RequestRecord,
) -> Result<String, String> {
    let status = response.status();
    let mut body = response.into_body();
    if status != StatusCode::OK {
        let body =
            body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        return Err(format!("{status}: {}", String::from_utf8_lossy(&body).trim_end()));
    }
    let mut reader = SseReader::default();
    let mut answer = String::new();
    let mut is_done = false;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| with_cause(&error))?;
        let Ok(data) = frame.into_data() else { continue };
        for event in reader.push(&data) {
            match event {
                SseEvent::Content(text) => {
                    record.first_token.get_or_insert_with(|| sent.elapsed());
                    answer.push_str(&text);
                }
                SseEvent::Usage { prompt_tokens, cached_tokens, completion_tokens } => {
                    record.prompt_tokens = prompt_tokens;
                    record.cached_tokens = cached_tokens.unwrap_or(0);
                    record.completion_tokens = completion_tokens;
                }
                SseEvent::Other => {
                    record.first_token.get_or_insert_with(|| sent.elapsed());
                }
                SseEvent::Error(text) => return Err(text),
                SseEvent::Done => is_done = true,
            }
        }
    }
    if is_done { Ok(answer) } else { Err("the stream ended without [DONE]".to_owned()) }
}

fn with_cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}
