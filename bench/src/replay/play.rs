//! The load: open loop, where a request comes when the trace says so, and closed loop, where it comes
//! when the one before it was answered.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use super::{
    client::Client,
    prompts::{History, Writing},
    row::Row,
};
use crate::trace::{Content, Message, Trace};

/// A request is written down so long before it is due, so that its text costs it no time.
const PREPARE: Duration = Duration::from_millis(20);
/// First sessions of a closed loop begin spread over this time.
const START_S: f64 = 1.0;

/// Who sets the pace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The trace: requests come at its times, whatever becomes of those before
    Open,
    /// The answers: sessions send their next turn some time after the last was answered
    Closed,
}

/// Everything that plays one run.
#[derive(Debug)]
pub struct Play {
    /// What is played.
    pub trace: Arc<Trace>,
    /// How requests are written.
    pub writing: Writing,
    /// Where they go.
    pub client: Client,
    /// Who sets the pace.
    pub mode: Mode,
    /// Multiplies all times of the trace: 0.5 plays it twice as fast.
    pub time_scale: f64,
    /// Sessions open at once, in a closed loop.
    pub sessions: usize,
    /// Requests in flight at once; one that would be one more is not sent.
    pub inflight_max: usize,
    /// When the run began.
    pub since: Instant,
}

impl Play {
    /// Plays all of it; `on_row` hears of every request as it ends. There is a row for each request
    /// of the trace, in the order of the trace.
    pub async fn run(self, mut on_row: impl FnMut(&Row)) -> Vec<Row> {
        let (sender, mut heard) = mpsc::unbounded_channel();
        let play = Arc::new(self);
        let playing = match play.mode {
            Mode::Open => tokio::spawn(open(play, sender)),
            Mode::Closed => tokio::spawn(closed(play, sender)),
        };
        // A run that is dropped leaves no client behind.
        let _guard = AbortOnDrop(playing.abort_handle());
        let mut rows = Vec::new();
        while let Some(row) = heard.recv().await {
            on_row(&row);
            rows.push(row);
        }
        rows.sort_by_key(|row| row.request);
        rows
    }

    fn is_chat(&self, place: usize) -> Option<&[Message]> {
        match &self.trace.requests[place].content {
            Content::Messages(messages) => Some(messages),
            _ => None,
        }
    }
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn open(play: Arc<Play>, rows: mpsc::UnboundedSender<Row>) {
    let inflight = Arc::new(AtomicUsize::new(0));
    let mut asking = JoinSet::new();
    for (place, request) in play.trace.requests.iter().enumerate() {
        let due_s = request.t * play.time_scale;
        let due = play.since + Duration::from_secs_f64(due_s);
        sleep_until(due.checked_sub(PREPARE).unwrap_or(due)).await;
        let (play, rows, inflight) = (play.clone(), rows.clone(), inflight.clone());
        asking.spawn(async move {
            let request = &play.trace.requests[place];
            let mut row = Row::new(place, request, due_s);
            let (ask, _) = play.writing.ask(request, None);
            sleep_until(due).await;
            if inflight.fetch_add(1, Ordering::Relaxed) < play.inflight_max {
                play.client.ask(ask, play.since, &mut row).await;
            } else {
                row.error = Some(format!("not sent: {} requests in flight", play.inflight_max));
            }
            inflight.fetch_sub(1, Ordering::Relaxed);
            // Nobody listens any more when the run was dropped.
            let _ = rows.send(row);
        });
        while asking.try_join_next().is_some() {}
    }
    while asking.join_next().await.is_some() {}
}

async fn closed(play: Arc<Play>, rows: mpsc::UnboundedSender<Row>) {
    let mut children = vec![Vec::new(); play.trace.requests.len()];
    let mut roots = VecDeque::new();
    for (place, request) in play.trace.requests.iter().enumerate() {
        match request.parent {
            Some(parent) => children[parent].push(place),
            None => roots.push_back(place),
        }
    }
    let children = Arc::new(children);
    let mut sessions = JoinSet::new();
    let open_at_once = play.sessions.max(1);
    for at in 0..open_at_once {
        let Some(root) = roots.pop_front() else { break };
        let wait = START_S * play.time_scale.min(1.0) * at as f64 / open_at_once as f64;
        sessions.spawn(session(play.clone(), root, wait, children.clone(), rows.clone()));
    }
    while sessions.join_next().await.is_some() {
        let Some(root) = roots.pop_front() else { continue };
        // A user who comes thinks too, or a session would begin the moment another one ends.
        let think = play.trace.requests[root].think.unwrap_or(0.0) * play.time_scale;
        sessions.spawn(session(play.clone(), root, think, children.clone(), rows.clone()));
    }
}

/// What a request passes on to those that continue it.
type Said = Option<History>;

/// Plays a session; requests that continue the same one run side by side.
async fn session(
    play: Arc<Play>,
    root: usize,
    wait_s: f64,
    children: Arc<Vec<Vec<usize>>>,
    rows: mpsc::UnboundedSender<Row>,
) {
    let mut running = JoinSet::new();
    running.spawn(turn(play.clone(), root, wait_s, None));
    while let Some(ended) = running.join_next().await {
        let Ok((row, said)) = ended else { continue };
        let place = row.request;
        let failed = row.error.is_some();
        if rows.send(row).is_err() {
            return;
        }
        if failed {
            // Without that answer the rest would be another conversation.
            let mut left = children[place].clone();
            while let Some(place) = left.pop() {
                left.extend(&children[place]);
                let due_s = play.since.elapsed().as_secs_f64();
                let mut row = Row::new(place, &play.trace.requests[place], due_s);
                row.error = Some("not sent: a turn before it failed".to_owned());
                let _ = rows.send(row);
            }
            continue;
        }
        for child in &children[place] {
            running.spawn(turn(play.clone(), *child, think_s(&play, *child), said.clone()));
        }
    }
}

/// How long a session waits before this request: as long as the trace says, or the time that lay
/// between the two requests in it.
fn think_s(play: &Play, place: usize) -> f64 {
    let request = &play.trace.requests[place];
    let before = request.parent.map_or(0.0, |parent| play.trace.requests[parent].t);
    request.think.unwrap_or(request.t - before).max(0.0) * play.time_scale
}

async fn turn(play: Arc<Play>, place: usize, wait_s: f64, said: Said) -> (Row, Said) {
    sleep(Duration::from_secs_f64(wait_s)).await;
    let request = &play.trace.requests[place];
    let before = request.parent.and_then(|parent| play.is_chat(parent));
    let history = before.zip(said.as_ref());
    let (ask, sent) = play.writing.ask(request, history);
    let mut row = Row::new(place, request, play.since.elapsed().as_secs_f64());
    let answer = play.client.ask(ask, play.since, &mut row).await;
    let history = answer.zip(sent).map(|(answer, mut messages)| {
        messages.push(Message::new("assistant", &answer));
        Arc::new(messages)
    });
    (row, history)
}
