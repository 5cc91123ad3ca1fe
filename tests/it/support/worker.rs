//! Fake workers: real sockets, scripted behaviour, and a log of what reached them.

use std::{
    collections::HashMap,
    fmt,
    future::pending,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use openssl::{
    sha::Sha256,
    ssl::{Ssl, SslAcceptor, SslMethod},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep},
};

use super::{Identity, ask::hex, ports::free_port};

/// Between two things a worker says by itself: they leave in packets of their own.
const BREATH: Duration = Duration::from_millis(10);

/// Of longer bodies only length and digest are kept.
const BODY_KEPT_MAX: usize = 64 << 10;

/// What a worker does with a request.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// Answers what it received, as JSON.
    Echo,
    /// As `Echo`, but only once the test lets it (`Worker::let_go`).
    Hold,
    /// Answers this.
    Answer { status: u16, headers: Vec<(&'static str, String)>, body: String },
    /// Streams so many events; with `gated` each waits for the test (`Worker::let_go`).
    Stream { events: usize, gated: bool },
    /// Streams so many events, then breaks the connection.
    CutStream { events: usize },
    /// Begins a plain JSON answer and breaks the connection.
    CutPlain,
    /// Reads the request and never answers.
    Stall,
    /// Reads the request and closes without an answer.
    Die,
    /// As `Die`, after this long.
    DieAfter(Duration),
    /// From the second request of a connection on: closes at its first byte, as a worker does that
    /// gave the connection up a moment ago. Echoes the first.
    DieOnReuse,
    /// Streams these pieces of a body of server-sent events as they are, a chunk each.
    Pieces(Vec<String>),
    /// What this makes of the request.
    Script(Script),
}

/// Decides what to do when it has seen the request.
#[derive(Clone)]
pub(crate) struct Script(Arc<dyn Fn(&Seen) -> Act + Send + Sync>);

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Script")
    }
}

/// Status and JSON for the body of a question that is no request of a client.
type Side = Arc<dyn Fn(&[u8]) -> (u16, String) + Send + Sync>;

/// A worker not started yet.
pub(crate) struct WorkerSpec {
    act: Act,
    models: Option<Vec<Value>>,
    sides: HashMap<String, Side>,
    healthy: bool,
    health_gated: bool,
    idle_close: Option<Duration>,
    pub(super) yaml: Vec<String>,
    host: String,
    bind: Option<SocketAddr>,
    tls: Option<Identity>,
}

fn spec(act: Act) -> WorkerSpec {
    WorkerSpec {
        act,
        models: None,
        sides: HashMap::new(),
        healthy: true,
        health_gated: false,
        idle_close: None,
        yaml: Vec::new(),
        host: "127.0.0.1".to_owned(),
        bind: None,
        tls: None,
    }
}

/// Answers what it received.
pub(crate) fn echo() -> WorkerSpec {
    spec(Act::Echo)
}

/// Echoes when the test lets it.
pub(crate) fn holding() -> WorkerSpec {
    spec(Act::Hold)
}

/// Streams so many events and ends well.
pub(crate) fn streaming(events: usize) -> WorkerSpec {
    spec(Act::Stream { events, gated: false })
}

/// Streams so many events, each when the test lets it.
pub(crate) fn streaming_gated(events: usize) -> WorkerSpec {
    spec(Act::Stream { events, gated: true })
}

/// Never answers.
pub(crate) fn stalled() -> WorkerSpec {
    spec(Act::Stall)
}

/// Reads the request and closes without an answer.
pub(crate) fn dying() -> WorkerSpec {
    spec(Act::Die)
}

/// Streams so many events, then breaks the connection.
pub(crate) fn cutting(events: usize) -> WorkerSpec {
    spec(Act::CutStream { events })
}

/// Answers this status.
pub(crate) fn answering(status: u16) -> WorkerSpec {
    spec(Act::answer(status))
}

impl Act {
    /// Answers this status with a JSON error of the worker's own.
    pub(crate) fn answer(status: u16) -> Self {
        let body = json!({"error": {"message": "the worker's own"}}).to_string();
        Act::Answer { status, headers: vec![("content-type", "application/json".to_owned())], body }
    }

    /// Answers this JSON.
    pub(crate) fn json(body: &Value) -> Self {
        let headers = vec![("content-type", "application/json".to_owned())];
        Act::Answer { status: 200, headers, body: body.to_string() }
    }

    /// Decides when it has seen the request.
    pub(crate) fn script(script: impl Fn(&Seen) -> Act + Send + Sync + 'static) -> Self {
        Act::Script(Script(Arc::new(script)))
    }

    /// With this header too.
    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        if let Act::Answer { headers, .. } = &mut self {
            headers.push((name, value.to_owned()));
        }
        self
    }
}

impl WorkerSpec {
    /// Does this.
    pub(crate) fn act(mut self, act: Act) -> Self {
        self.act = act;
        self
    }

    /// With this line in its entry of the configuration.
    pub(crate) fn yaml(mut self, line: &str) -> Self {
        self.yaml.push(line.to_owned());
        self
    }

    /// Answers /v1/models with these names; without this it knows no such path.
    pub(crate) fn models(mut self, names: &[&str]) -> Self {
        let entry = |name: &&str| json!({"id": name, "object": "model", "owned_by": "fake"});
        self.models = Some(names.iter().map(entry).collect());
        self
    }

    /// Lists this adapter behind its other models.
    pub(crate) fn adapter(mut self, name: &str, parent: &str) -> Self {
        let entry = json!({"id": name, "object": "model", "owned_by": "fake", "parent": parent});
        self.models.get_or_insert_default().push(entry);
        self
    }

    /// Answers questions to this path so; they are not counted as requests.
    pub(crate) fn side(
        mut self,
        path: &str,
        answer: impl Fn(&[u8]) -> (u16, String) + Send + Sync + 'static,
    ) -> Self {
        self.sides.insert(path.to_owned(), Arc::new(answer));
        self
    }

    /// Whether the router should learn models from it.
    pub(super) fn teaches_models(&self) -> bool {
        self.models.is_some() && !self.yaml.iter().any(|line| line.starts_with("models"))
    }

    /// Fails its health checks until told otherwise.
    pub(crate) fn sick(mut self) -> Self {
        self.healthy = false;
        self
    }

    /// Does not answer health checks until `Worker::let_health_go`.
    pub(crate) fn with_late_health(mut self) -> Self {
        self.health_gated = true;
        self
    }

    /// Closes a connection that was idle for this long.
    pub(crate) fn closes_idle_after(mut self, idle: Duration) -> Self {
        self.idle_close = Some(idle);
        self
    }

    /// Speaks TLS.
    pub(crate) fn tls(mut self, identity: Identity) -> Self {
        self.tls = Some(identity);
        self
    }

    /// Is known to the router by this name of its address.
    pub(crate) fn host(mut self, host: &str) -> Self {
        host.clone_into(&mut self.host);
        self
    }

    /// Listens there and nowhere else.
    pub(crate) fn at(mut self, addr: SocketAddr) -> Self {
        self.bind = Some(addr);
        self.host = addr.ip().to_string();
        self
    }

    /// Starts it outside of any scene.
    pub(crate) async fn start(self, id: String) -> Worker {
        let state = Arc::new(State {
            id: id.clone(),
            act: Mutex::new(self.act),
            models: self.models,
            sides: Mutex::new(self.sides),
            healthy: AtomicBool::new(self.healthy),
            health_gate: Semaphore::new(if self.health_gated { 0 } else { Semaphore::MAX_PERMITS }),
            gate: Semaphore::new(0),
            idle_close: self.idle_close,
            tls: self.tls.as_ref().map(acceptor),
            connections: AtomicUsize::new(0),
            open_connections: AtomicUsize::new(0),
            health_checks: AtomicUsize::new(0),
            at_work: AtomicUsize::new(0),
            seen: Mutex::default(),
            cancels: Mutex::default(),
        });
        let (listener, port) = match self.bind {
            Some(addr) => (TcpListener::bind(addr).await.expect("a free address"), addr.port()),
            None => bind_somewhere().await,
        };
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}:{port}", self.host);
        let worker = Worker { id, port, url, state, task: Mutex::new(None) };
        worker.serve(listener);
        worker
    }
}

async fn bind_somewhere() -> (TcpListener, u16) {
    for _ in 0..20 {
        let port = free_port();
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)).await {
            return (listener, port);
        }
    }
    panic!("no port for a worker");
}

fn acceptor(identity: &Identity) -> SslAcceptor {
    let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).expect("TLS");
    builder.set_private_key(&identity.key).expect("key");
    builder.set_certificate(&identity.cert).expect("certificate");
    builder.build()
}

/// A request that reached a worker whole.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body_bytes: usize,
    pub(crate) sha256: String,
    /// Unless it is long.
    pub(crate) body: Bytes,
}

struct State {
    id: String,
    act: Mutex<Act>,
    models: Option<Vec<Value>>,
    sides: Mutex<HashMap<String, Side>>,
    healthy: AtomicBool,
    health_gate: Semaphore,
    gate: Semaphore,
    idle_close: Option<Duration>,
    tls: Option<SslAcceptor>,
    connections: AtomicUsize,
    open_connections: AtomicUsize,
    health_checks: AtomicUsize,
    at_work: AtomicUsize,
    seen: Mutex<Vec<Seen>>,
    cancels: Mutex<Vec<Instant>>,
}

/// A running worker; gone when dropped.
pub(crate) struct Worker {
    pub(crate) id: String,
    port: u16,
    url: String,
    state: Arc<State>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(task) = self.task.lock().take() {
            task.abort();
        }
    }
}

impl Worker {
    /// Its address.
    pub(crate) fn addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Its URL.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Requests that reached it whole, checks and model lists aside.
    pub(crate) fn requests(&self) -> Vec<Seen> {
        self.state.seen.lock().clone()
    }

    /// How many.
    pub(crate) fn request_count(&self) -> usize {
        self.state.seen.lock().len()
    }

    /// Requests it is working on.
    pub(crate) fn at_work(&self) -> usize {
        self.state.at_work.load(SeqCst)
    }

    /// When it saw a client leave before its answer was complete.
    pub(crate) fn cancels(&self) -> Vec<Instant> {
        self.state.cancels.lock().clone()
    }

    /// Connections ever made to it, health checks included.
    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(SeqCst)
    }

    /// Connections that stand.
    pub(crate) fn open_connections(&self) -> usize {
        self.state.open_connections.load(SeqCst)
    }

    /// Health checks it was asked for.
    pub(crate) fn health_checks(&self) -> usize {
        self.state.health_checks.load(SeqCst)
    }

    /// Does this from now on.
    pub(crate) fn set_act(&self, act: Act) {
        *self.state.act.lock() = act;
    }

    /// Passes or fails its health checks from now on.
    pub(crate) fn set_healthy(&self, healthy: bool) {
        self.state.healthy.store(healthy, SeqCst);
    }

    /// Lets so many gated events or held requests go.
    pub(crate) fn let_go(&self, count: usize) {
        self.state.gate.add_permits(count);
    }

    /// Answers health checks from now on.
    pub(crate) fn let_health_go(&self) {
        self.state.health_gate.add_permits(1 << 20);
    }

    /// Closes its port and all connections, as a killed process does.
    pub(crate) async fn kill(&self) {
        let task = self.task.lock().take();
        if let Some(task) = task {
            task.abort();
            let _ = task.await;
        }
    }

    /// Whether it was killed and not revived.
    pub(crate) fn is_dead(&self) -> bool {
        self.task.lock().is_none()
    }

    /// Listens again on the same port.
    pub(crate) async fn revive(&self) {
        let listener = TcpListener::bind(self.addr()).await.expect("its own port is free");
        self.serve(listener);
    }

    fn serve(&self, listener: TcpListener) {
        let state = self.state.clone();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((stream, _)) = accepted else { continue };
                        let _ = stream.set_nodelay(true);
                        state.connections.fetch_add(1, SeqCst);
                        let standing = Standing::new(&state);
                        connections.spawn(async move {
                            let state = standing.0.clone();
                            match &state.tls {
                                None => connection(stream, state.clone()).await,
                                Some(acceptor) => {
                                    let ssl = Ssl::new(acceptor.context()).expect("TLS");
                                    let stream = tokio_openssl::SslStream::new(ssl, stream);
                                    let mut stream = stream.expect("TLS");
                                    if std::pin::Pin::new(&mut stream).accept().await.is_ok() {
                                        connection(stream, state.clone()).await;
                                    }
                                }
                            }
                        });
                    }
                    _ = connections.join_next(), if !connections.is_empty() => {}
                }
            }
        });
        *self.task.lock() = Some(task);
    }
}

/// Counts a connection while it stands.
struct Standing(Arc<State>);

impl Standing {
    fn new(state: &Arc<State>) -> Self {
        state.open_connections.fetch_add(1, SeqCst);
        Self(state.clone())
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.0.open_connections.fetch_sub(1, SeqCst);
    }
}

/// One request at work; unless it is done in time its client has left.
struct AtWork {
    state: Arc<State>,
    done: bool,
}

impl AtWork {
    fn new(state: &Arc<State>) -> Self {
        state.at_work.fetch_add(1, SeqCst);
        Self { state: state.clone(), done: false }
    }

    fn done(mut self) {
        self.done = true;
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.state.at_work.fetch_sub(1, SeqCst);
        if !self.done {
            self.state.cancels.lock().push(Instant::now());
        }
    }
}

async fn connection<S>(stream: S, state: Arc<State>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let nth = Arc::new(AtomicUsize::new(0));
    let last_used = Arc::new(Mutex::new((Instant::now(), 0_usize)));
    let idle_close = state.idle_close;
    let used = last_used.clone();
    let service = service_fn(move |request| {
        let state = state.clone();
        let nth = nth.fetch_add(1, SeqCst);
        let used = used.clone();
        async move {
            used.lock().1 += 1;
            let answer = handle(&state, nth, request).await;
            *used.lock() = (Instant::now(), 0);
            answer
        }
    });
    let conn = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let mut conn = std::pin::pin!(conn);
    let Some(idle_close) = idle_close else {
        let _ = conn.await;
        return;
    };
    loop {
        tokio::select! {
            _ = conn.as_mut() => return,
            () = sleep(idle_close / 4) => {
                let (since, busy) = *last_used.lock();
                if busy == 0 && since.elapsed() >= idle_close {
                    conn.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

type SentBody = UnsyncBoxBody<Bytes, io::Error>;

fn whole(body: impl Into<Bytes>) -> SentBody {
    Full::new(body.into()).map_err(|never| match never {}).boxed_unsync()
}

fn json_answer(status: StatusCode, body: &Value) -> Response<SentBody> {
    let mut response = Response::new(whole(body.to_string()));
    *response.status_mut() = status;
    let value = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, value);
    response
}

fn broken() -> io::Error {
    io::Error::other("the script says so")
}

async fn handle(
    state: &Arc<State>,
    nth: usize,
    request: Request<Incoming>,
) -> Result<Response<SentBody>, io::Error> {
    let path = request.uri().path().to_owned();
    if path.starts_with("/health") {
        state.health_checks.fetch_add(1, SeqCst);
        state.health_gate.acquire().await.expect("never closed").forget();
        let healthy = state.healthy.load(SeqCst);
        let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        return Ok(json_answer(status, &json!({})));
    }
    if path == "/v1/models" && request.method() == Method::GET {
        return Ok(match &state.models {
            Some(models) => json_answer(StatusCode::OK, &json!({"object": "list", "data": models})),
            None => json_answer(StatusCode::NOT_FOUND, &json!({})),
        });
    }
    let side = state.sides.lock().get(&path).cloned();
    if let Some(side) = side {
        let body = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
        let (status, text) = side(&body);
        let mut response = Response::new(whole(text));
        *response.status_mut() = StatusCode::from_u16(status).expect("a status");
        return Ok(response);
    }
    let act = state.act.lock().clone();
    if matches!(act, Act::DieOnReuse) && nth > 0 {
        return Err(broken());
    }
    let at_work = AtWork::new(state);
    let (parts, body) = request.into_parts();
    let Ok((body_bytes, sha256, body)) = digest(body).await else {
        return Err(broken());
    };
    let (method, headers) = (parts.method, parts.headers);
    let seen = Seen { method, path, headers, body_bytes, sha256, body };
    state.seen.lock().push(seen.clone());
    let act = if let Act::Script(script) = act { script.0(&seen) } else { act };
    perform(state, act, at_work, &seen).await
}

async fn perform(
    state: &Arc<State>,
    act: Act,
    at_work: AtWork,
    seen: &Seen,
) -> Result<Response<SentBody>, io::Error> {
    match act {
        Act::Echo | Act::Hold | Act::DieOnReuse => {
            if matches!(act, Act::Hold) {
                state.gate.acquire().await.expect("never closed").forget();
            }
            at_work.done();
            Ok(json_answer(StatusCode::OK, &describe(&state.id, seen)))
        }
        Act::Answer { status, headers, body } => {
            at_work.done();
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            Ok(response.body(whole(body)).expect("a response"))
        }
        Act::Script(_) => panic!("a script within a script"),
        Act::Pieces(pieces) => {
            at_work.done();
            let pieces = pieces.into_iter().map(|piece| Ok(Frame::data(Bytes::from(piece))));
            let body = BodyExt::boxed_unsync(StreamBody::new(stream::iter(pieces)));
            let response = Response::builder().header("content-type", "text/event-stream");
            Ok(response.body(body).expect("a response"))
        }
        Act::Stream { events, gated } => Ok(sse(at_work, events, gated, false)),
        Act::CutStream { events } => Ok(sse(at_work, events, false, true)),
        Act::CutPlain => {
            at_work.done();
            let pieces = stream::unfold(0, |step| async move {
                if step == 0 {
                    return Some((Ok(Frame::data(Bytes::from_static(b"{\"half\":"))), 1));
                }
                sleep(BREATH).await;
                Some((Err(broken()), 2))
            });
            let response = Response::builder().header("content-type", "application/json");
            let body = BodyExt::boxed_unsync(StreamBody::new(pieces));
            Ok(response.header("content-length", "1000").body(body).expect("a response"))
        }
        Act::Stall => {
            let _at_work = at_work;
            pending().await
        }
        Act::DieAfter(while_working) => {
            sleep(while_working).await;
            at_work.done();
            Err(broken())
        }
        Act::Die => {
            at_work.done();
            Err(broken())
        }
    }
}

fn describe(worker: &str, seen: &Seen) -> Value {
    let headers: Vec<_> = seen
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes())))
        .collect();
    json!({
        "worker": worker, "method": seen.method.as_str(), "path": seen.path, "headers": headers,
        "body_bytes": seen.body_bytes, "sha256": seen.sha256,
    })
}

async fn digest(mut body: Incoming) -> Result<(usize, String, Bytes), hyper::Error> {
    let mut sha = Sha256::new();
    let mut bytes = 0;
    let mut kept = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            sha.update(&data);
            bytes += data.len();
            if bytes <= BODY_KEPT_MAX {
                kept.extend_from_slice(&data);
            }
        }
    }
    if bytes > BODY_KEPT_MAX {
        kept.clear();
    }
    Ok((bytes, hex(&sha.finish()), kept.freeze()))
}

/// The text of the nth event, from 1.
fn event(nth: usize) -> String {
    json!({"choices": [{"index": 0, "delta": {"content": format!("token {nth}")}}]}).to_string()
}

fn sse(at_work: AtWork, events: usize, gated: bool, cut: bool) -> Response<SentBody> {
    let pieces = stream::unfold((Some(at_work), 0), move |(at_work, sent)| async move {
        let at_work = at_work?;
        if sent < events && gated {
            at_work.state.gate.acquire().await.expect("never closed").forget();
        }
        if sent < events {
            let text = format!("data: {}\n\n", event(sent + 1));
            return Some((Ok(Frame::data(Bytes::from(text))), (Some(at_work), sent + 1)));
        }
        // The last event must have left before the connection breaks.
        sleep(BREATH).await;
        at_work.done();
        let last = if cut { Err(broken()) } else { Ok(Frame::data("data: [DONE]\n\n".into())) };
        Some((last, (None, sent)))
    });
    let body = BodyExt::boxed_unsync(StreamBody::new(pieces));
    let response = Response::builder().header("content-type", "text/event-stream");
    response.header("cache-control", "no-cache").body(body).expect("a response")
}
