//! Between the reporters and the router: an HTTP relay that does to reports what networks do.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, client, server, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, sleep},
};

use super::Any;

/// What happens to reports. Shares are of event batches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// Nothing.
    Pass,
    /// The connection is closed: half of the time before the router got the batch, else after.
    Drop(f64),
    /// The batch is gone, and its sender is told that it arrived.
    Lose(f64),
    /// The batch arrives twice at once, and once more a second later.
    Duplicate(f64),
    /// The batch is answered at once and arrives after later ones.
    Reorder(f64),
    /// Batches and heartbeats are answered at once and arrive, in order, so much later.
    Delay(Duration),
    /// No connection lives.
    Partition,
}

/// How much later a reordered batch arrives.
const OVERTAKEN_AFTER: Duration = Duration::from_millis(300);
/// How much later a duplicate arrives.
const DUPLICATE_AFTER: Duration = Duration::from_secs(1);
/// Messages of one worker that may be under way with a delay.
const LATE_MAX: usize = 4096;

/// A relay that serves while it lives.
pub struct Relay {
    addr: SocketAddr,
    state: Arc<State>,
}

struct State {
    router: SocketAddr,
    fault: Mutex<Fault>,
    faults: AtomicU64,
    draws: AtomicU64,
    seen: Mutex<HashMap<String, Seen>>,
    late: Mutex<HashMap<String, Late>>,
}

/// Where a reporter stands, by what passed here.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Its epoch.
    pub epoch: String,
    /// Its last batch.
    pub seq: u64,
}

#[derive(Clone)]
struct Late {
    queue: mpsc::Sender<(Instant, String, Bytes)>,
    pending: Arc<AtomicUsize>,
}

#[derive(serde::Deserialize)]
struct Envelope {
    worker_id: String,
    #[serde(default)]
    epoch: String,
    #[serde(default)]
    seq: i64,
}

/// Closes the connection without an answer.
#[derive(Debug)]
struct HangUp;

impl std::fmt::Display for HangUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the relay hangs up")
    }
}

impl std::error::Error for HangUp {}

impl Relay {
    /// Relays to the report listener at `router`.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start(router: SocketAddr) -> Result<Self, Any> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let state = Arc::new(State {
            router,
            fault: Mutex::new(Fault::Pass),
            faults: AtomicU64::new(0),
            draws: AtomicU64::new(0),
            seen: Mutex::default(),
            late: Mutex::default(),
        });
        let serving = Arc::downgrade(&state);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let Some(state) = serving.upgrade() else { return };
                tokio::spawn(async move {
                    let service = service_fn(|request| relay(state.clone(), request));
                    let socket = TokioIo::new(socket);
                    // A hang-up is what this is for.
                    let _ =
                        server::conn::http1::Builder::new().serve_connection(socket, service).await;
                });
            }
        });
        Ok(Self { addr, state })
    }

    /// Where reporters send to.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// From now on this happens.
    pub fn set(&self, fault: Fault) {
        *lock(&self.state.fault) = fault;
    }

    /// Messages something was done to.
    pub fn faults(&self) -> u64 {
        self.state.faults.load(Relaxed)
    }

    /// Where a worker's reporter stands.
    pub fn seen(&self, worker_id: &str) -> Seen {
        lock(&self.state.seen).get(worker_id).cloned().unwrap_or_default()
    }
}

impl State {
    fn chance(&self, share: f64) -> bool {
        let hit = self.draw() < share;
        self.faults.fetch_add(u64::from(hit), Relaxed);
        hit
    }

    /// From 0 up to 1.
    fn draw(&self) -> f64 {
        mixed(self.draws.fetch_add(1, Relaxed)) as f64 / 2_f64.powi(64)
    }

    fn late(self: &Arc<Self>, worker_id: &str) -> Late {
        let mut all = lock(&self.late);
        let late = all.entry(worker_id.to_owned()).or_insert_with(|| {
            let (queue, waiting) = mpsc::channel(LATE_MAX);
            let pending = Arc::new(AtomicUsize::new(0));
            tokio::spawn(deliver(Arc::downgrade(self), waiting, pending.clone()));
            Late { queue, pending }
        });
        late.clone()
    }

    fn is_delaying(&self) -> bool {
        matches!(*lock(&self.fault), Fault::Delay(_))
    }
}

/// One reporter's delayed messages, in order; at once when the delay has ended.
async fn deliver(
    state: std::sync::Weak<State>,
    mut waiting: mpsc::Receiver<(Instant, String, Bytes)>,
    pending: Arc<AtomicUsize>,
) {
    while let Some((due, path, body)) = waiting.recv().await {
        let router = loop {
            let Some(state) = state.upgrade() else { return };
            if Instant::now() >= due || !state.is_delaying() {
                break state.router;
            }
            sleep(Duration::from_millis(5)).await;
        };
        let _ = forward(router, &path, body).await;
        pending.fetch_sub(1, Relaxed);
    }
}

async fn relay(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, HangUp> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.map_err(|_| HangUp)?.to_bytes();
    let envelope: Envelope = serde_json::from_slice(&body).map_err(|_| HangUp)?;
    let is_batch = path == "/v1/events";
    if is_batch {
        let seen = Seen { epoch: envelope.epoch, seq: envelope.seq.max(0) as u64 };
        lock(&state.seen).insert(envelope.worker_id.clone(), seen);
    }
    let fault = *lock(&state.fault);
    let router = state.router;
    match fault {
        Fault::Partition => {
            state.faults.fetch_add(1, Relaxed);
            Err(HangUp)
        }
        Fault::Drop(share) if is_batch && state.chance(share) => {
            if state.draw() < 0.5 {
                let _ = forward(router, &path, body).await;
            }
            Err(HangUp)
        }
        Fault::Lose(share) if is_batch && state.chance(share) => Ok(accepted()),
        Fault::Duplicate(share) if is_batch && state.chance(share) => {
            let first = forward(router, &path, body.clone()).await;
            let _ = forward(router, &path, body.clone()).await;
            tokio::spawn(later(DUPLICATE_AFTER, router, path, body));
            first.map_err(|_| HangUp)
        }
        Fault::Reorder(share) if is_batch && state.chance(share) => {
            tokio::spawn(later(OVERTAKEN_AFTER, router, path, body));
            Ok(accepted())
        }
        Fault::Delay(delay) if path != "/v1/sync" => {
            state.faults.fetch_add(1, Relaxed);
            let late = state.late(&envelope.worker_id);
            late.pending.fetch_add(1, Relaxed);
            if late.queue.try_send((Instant::now() + delay, path, body)).is_err() {
                late.pending.fetch_sub(1, Relaxed);
                return Err(HangUp);
            }
            Ok(accepted())
        }
        fault => {
            if let Fault::Delay(delay) = fault {
                sleep(delay).await;
            }
            // Nothing overtakes what is late.
            let late = lock(&state.late).get(&envelope.worker_id).cloned();
            while late.as_ref().is_some_and(|late| late.pending.load(Relaxed) > 0) {
                sleep(Duration::from_millis(2)).await;
            }
            forward(router, &path, body).await.map_err(|_| HangUp)
        }
    }
}

async fn later(after: Duration, router: SocketAddr, path: String, body: Bytes) {
    sleep(after).await;
    let _ = forward(router, &path, body).await;
}

/// What a router says when all is well.
fn accepted() -> Response<Full<Bytes>> {
    Response::new(Full::new(Bytes::from_static(b"{\"ok\":true,\"joined\":false,\"resync\":false}")))
}

/// Posts to the report listener on a connection of its own.
///
/// # Errors
/// There was no whole answer.
pub async fn forward(
    router: SocketAddr,
    path: &str,
    body: Bytes,
) -> Result<Response<Full<Bytes>>, Any> {
    let socket = TcpStream::connect(router).await?;
    socket.set_nodelay(true)?;
    let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(socket)).await?;
    tokio::spawn(connection);
    let request = Request::post(path).header("host", "relay").body(Full::new(body))?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = head.status;
    Ok(answer)
}

/// The finalizer of splitmix64: a number drawn by a count.
pub fn mixed(count: u64) -> u64 {
    let z = count.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// No panic leaves anything half done here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
