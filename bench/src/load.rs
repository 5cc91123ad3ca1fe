//! Closed-loop load: so many connections, each sends the next request after the last answer.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    sync::Barrier,
    time::{Instant, timeout},
};

/// What to send.
#[derive(Debug, Clone)]
pub struct Shot {
    /// Bodies, taken in turn.
    pub bodies: Arc<Vec<Bytes>>,
    /// Events of a streamed answer; none = it comes in one piece.
    pub events: Option<usize>,
}

/// What came of it.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Latency of each answered request, ascending.
    pub latencies: Vec<Duration>,
    /// Requests that failed or were not answered 200.
    pub errors: usize,
    /// Requests not sent, as there was no connection.
    pub unsent: usize,
    /// From the first request to the last answer.
    pub took: Duration,
}

impl Outcome {
    /// The latency that a share `q` of the requests did not exceed.
    pub fn quantile(&self, q: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        let at = (q * last as f64).round() as usize;
        self.latencies.get(at).copied().unwrap_or_default()
    }
}

/// Sends `requests` in all over `connections` connections to `target`.
pub async fn closed_loop(
    target: SocketAddr,
    shot: &Shot,
    connections: usize,
    requests: usize,
) -> Outcome {
    let start = Arc::new(Barrier::new(connections + 1));
    let mut tasks = Vec::new();
    for at in 0..connections {
        let share = requests / connections + usize::from(at < requests % connections);
        tasks.push(tokio::spawn(one(target, shot.clone(), at, share, start.clone())));
    }
    start.wait().await;
    let began = Instant::now();
    let mut all = Outcome::default();
    for task in tasks {
        match task.await {
            Ok(outcome) => {
                all.latencies.extend(outcome.latencies);
                all.errors += outcome.errors;
                all.unsent += outcome.unsent;
            }
            Err(_) => all.errors += 1,
        }
    }
    all.took = began.elapsed();
    all.latencies.sort_unstable();
    all
}

async fn one(
    target: SocketAddr,
    shot: Shot,
    at: usize,
    requests: usize,
    start: Arc<Barrier>,
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut sender = connect(target).await;
    start.wait().await;
    for turn in 0..requests {
        let Some(open) = sender.as_mut().filter(|sender| !sender.is_closed()) else {
            outcome.errors += usize::from(turn > 0);
            sender = connect(target).await;
            outcome.unsent += 1;
            continue;
        };
        let body = shot.bodies[(at + turn * 7) % shot.bodies.len()].clone();
        let mut request = Request::post("/v1/chat/completions")
            .header("host", "bench")
            .header("content-type", "application/json");
        if let Some(events) = shot.events {
            request = request.header("x-stream", events);
        }
        let Ok(request) = request.body(Full::new(body)) else { continue };
        let began = Instant::now();
        let answer = timeout(Duration::from_secs(30), async {
            let response = open.send_request(request).await.ok()?;
            let fine = response.status() == 200;
            response.into_body().collect().await.ok()?;
            fine.then_some(())
        });
        if let Ok(Some(())) = answer.await {
            outcome.latencies.push(began.elapsed());
        } else {
            outcome.errors += 1;
            sender = connect(target).await;
        }
    }
    outcome
}

async fn connect(target: SocketAddr) -> Option<http1::SendRequest<Full<Bytes>>> {
    let socket = TcpStream::connect(target).await.ok()?;
    let _ = socket.set_nodelay(true);
    let (sender, connection) = http1::handshake(TokioIo::new(socket)).await.ok()?;
    tokio::spawn(connection);
    Some(sender)
}

/// Chat bodies of about `bytes` bytes: a common system prompt of a third, then different text.
pub fn chat_bodies(bytes: usize, count: usize) -> Vec<Bytes> {
    let words = ["route", "warm", "cache", "token", "prefix", "block", "worker", "stream"];
    let text = |seed: usize, length: usize| {
        let mut out = String::with_capacity(length + 16);
        let mut state = seed as u64 + 1;
        while out.len() < length {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            out.push_str(words[(state >> 60) as usize % words.len()]);
            out.push(' ');
        }
        out.truncate(length);
        out
    };
    let system = text(0, bytes / 3);
    let body = |at: usize| {
        let user = text(at + 1, bytes - bytes / 3);
        let body = serde_json::json!({"model": "m", "messages": [
            {"role": "system", "content": system}, {"role": "user", "content": user}]});
        Bytes::from(body.to_string())
    };
    (0..count).map(body).collect()
}

/// The same bodies, asking for a stream.
pub fn streaming(bodies: &[Bytes]) -> Vec<Bytes> {
    let ask = |body: &Bytes| Bytes::from([b"{\"stream\":true,", &body[1..]].concat());
    bodies.iter().map(ask).collect()
}
