//! One request at a time, one event at a time: the next is sent when the last one has come.
//!
//! A proxy then reads every event by itself, however slow it is: what it does for one can be counted.

use std::{
    collections::HashSet,
    convert::Infallible,
    hash::{DefaultHasher, Hash, Hasher},
    io::Error,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Collected, Full, combinators::BoxBody};
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
    client, server,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::timeout,
};

use crate::worker;

/// How long an answer, or one event of it, may take before the run is given up.
const PATIENCE: Duration = Duration::from_mins(1);

type Body = BoxBody<Bytes, Infallible>;

/// Hashes of the bodies a worker has had.
#[derive(Debug, Default)]
struct Seen(Mutex<HashSet<u64>>);

/// What client and workers share.
#[derive(Debug)]
pub struct Lockstep {
    /// Events that may be sent.
    permits: Semaphore,
}

impl Default for Lockstep {
    fn default() -> Self {
        Self { permits: Semaphore::new(0) }
    }
}

/// Serves as a worker on `listener`. A request with `x-events: N` gets a stream of N content events,
/// between a role event and a usage event, others get some 300 bytes of JSON.
pub async fn serve(listener: TcpListener, shared: Arc<Lockstep>) {
    let seen: Arc<Seen> = Arc::default();
    while let Ok((socket, _)) = listener.accept().await {
        let _ = socket.set_nodelay(true);
        let (shared, seen) = (shared.clone(), seen.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, shared.clone(), seen.clone()));
            let http = server::conn::http1::Builder::new();
            let _ = http.serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    shared: Arc<Lockstep>,
    seen: Arc<Seen>,
) -> Result<Response<Body>, Infallible> {
    if request.uri().path() == "/v1/models" {
        return Ok(json(r#"{"object":"list","data":[{"id":"m","object":"model"}]}"#.to_owned()));
    }
    let events =
        request.headers().get("x-events").and_then(|value| value.to_str().ok()?.parse().ok());
    let body = request.into_body().collect().await.map(Collected::to_bytes).unwrap_or_default();
    let usage = usage(&body, &seen);
    Ok(match events {
        Some(events) => stream(events, &usage, shared),
        None => json(format!(
            r#"{{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{{"index":0,"message":{{"role":"assistant","content":"Paris."}},"finish_reason":"stop"}}],"usage":{usage}}}"#
        )),
    })
}

/// Says of a prompt that came before that it is cached, and a third of any other.
fn usage(body: &[u8], seen: &Seen) -> String {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    let is_new = seen.0.lock().is_ok_and(|mut seen| seen.insert(hasher.finish()));
    let tokens = body.len() / 4;
    let cached = if is_new { tokens / 3 } else { tokens.saturating_sub(1) };
    let total = tokens + 5;
    format!(
        r#"{{"prompt_tokens":{tokens},"completion_tokens":5,"total_tokens":{total},"prompt_tokens_details":{{"cached_tokens":{cached}}}}}"#
    )
}

fn json(text: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(text)).boxed());
    let kind = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

fn stream(events: usize, usage: &str, shared: Arc<Lockstep>) -> Response<Body> {
    let head = r#"data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":["#;
    let role = format!(
        "{head}{{\"index\":0,\"delta\":{{\"role\":\"assistant\",\"content\":\"\"}},\"finish_reason\":null}}]}}\n\n"
    );
    let content = format!(
        "{head}{{\"index\":0,\"delta\":{{\"content\":\" token\"}},\"finish_reason\":null}}]}}\n\n"
    );
    let last = format!("{head}],\"usage\":{usage}}}\n\ndata: [DONE]\n\n");
    let (sender, receiver) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    tokio::spawn(async move {
        let (role, content, last) = (Bytes::from(role), Bytes::from(content), Bytes::from(last));
        let all = std::iter::once(role).chain(std::iter::repeat_n(content, events));
        for event in all.chain([last]) {
            let Ok(permit) = shared.permits.acquire().await else { return };
            permit.forget();
            if sender.send(Ok(Frame::data(event))).await.is_err() {
                return;
            }
        }
    });
    worker::event_stream(receiver)
}

/// A client with one connection.
#[derive(Debug)]
pub struct Client {
    sender: client::conn::http1::SendRequest<Full<Bytes>>,
    shared: Arc<Lockstep>,
}

impl Client {
    /// Connects to a proxy.
    ///
    /// # Errors
    /// When it does not accept.
    pub async fn connect(proxy: SocketAddr, shared: Arc<Lockstep>) -> Result<Self, Error> {
        let socket = TcpStream::connect(proxy).await?;
        socket.set_nodelay(true)?;
        let (sender, connection) =
            client::conn::http1::handshake(TokioIo::new(socket)).await.map_err(Error::other)?;
        tokio::spawn(connection);
        Ok(Self { sender, shared })
    }

    /// Sends `body` and takes the answer, a stream of `events` content events if that is given.
    ///
    /// # Errors
    /// When the answer is not 200, not whole, or does not come in time.
    pub async fn ask(&mut self, body: Bytes, events: Option<usize>) -> Result<(), Error> {
        let mut request = Request::post("/v1/chat/completions")
            .header("host", "bench")
            .header("content-type", "application/json");
        if let Some(events) = events {
            request = request.header("x-events", events);
            self.shared.permits.add_permits(1);
        }
        let request = request.body(Full::new(body)).map_err(Error::other)?;
        let late = |_| Error::other("no answer in time");
        timeout(PATIENCE, self.sender.ready()).await.map_err(late)?.map_err(Error::other)?;
        let answer = timeout(PATIENCE, self.sender.send_request(request)).await.map_err(late)?;
        let answer = answer.map_err(Error::other)?;
        if answer.status() != 200 {
            return Err(Error::other(format!("answered {}", answer.status())));
        }
        let (mut body, mut came) = (answer.into_body(), 0);
        while let Some(frame) = timeout(PATIENCE, body.frame()).await.map_err(late)? {
            if frame.map_err(Error::other)?.is_data() && events.is_some() {
                came += 1;
                if came < events.unwrap_or(0) + FRAME_EVENTS {
                    self.shared.permits.add_permits(1);
                }
            }
        }
        match events {
            Some(events) if came != events + FRAME_EVENTS => {
                Err(Error::other(format!("{came} events came, not {}", events + FRAME_EVENTS)))
            }
            _ => Ok(()),
        }
    }
}

/// Events of a stream besides those of content: role before, usage behind.
const FRAME_EVENTS: usize = 2;
