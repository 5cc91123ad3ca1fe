//! A worker that costs next to nothing: reads the body, answers 200 bytes or a stream of events.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::mpsc};

/// Time between two events of a streamed answer, as engines take it for a token.
const EVENT_EVERY: Duration = Duration::from_millis(10);

/// Serves on all `listeners` until the process ends; `delay` before each answer.
///
/// # Errors
/// When a listener cannot be used.
pub async fn serve(listeners: Vec<std::net::TcpListener>, delay: Duration) -> std::io::Result<()> {
    let mut tasks = Vec::new();
    for listener in listeners {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        tasks.push(tokio::spawn(accept(listener, delay)));
    }
    for task in tasks {
        let _ = task.await;
    }
    Ok(())
}

async fn accept(listener: TcpListener, delay: Duration) {
    while let Ok((socket, _)) = listener.accept().await {
        let _ = socket.set_nodelay(true);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, delay));
            let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

type Body = BoxBody<Bytes, Infallible>;

async fn answer(request: Request<Incoming>, delay: Duration) -> Result<Response<Body>, Infallible> {
    if request.uri().path() == "/v1/models" {
        return Ok(json(r#"{"object":"list","data":[{"id":"m","object":"model"}]}"#));
    }
    let events =
        request.headers().get("x-stream").and_then(|value| value.to_str().ok()?.parse().ok());
    let _ = request.into_body().collect().await;
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    Ok(events.map_or_else(|| json(ANSWER), stream))
}

const ANSWER: &str = r#"{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Paris."},"finish_reason":"stop"}],"usage":{"prompt_tokens":9}}"#;
const EVENT: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"finish_reason\":null}]}\n\n";

fn json(text: &'static str) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())).boxed());
    let kind = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

/// Events one by one, at a pace at which no two are read together.
fn stream(events: usize) -> Response<Body> {
    let (sender, receiver) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(EVENT_EVERY);
        for _ in 0..events {
            ticks.tick().await;
            if sender.send(Ok(Frame::data(Bytes::from_static(EVENT.as_bytes())))).await.is_err() {
                return;
            }
        }
    });
    event_stream(receiver)
}

/// An answer of server-sent events, each as it comes out of the channel.
pub(crate) fn event_stream(
    events: mpsc::Receiver<Result<Frame<Bytes>, Infallible>>,
) -> Response<Body> {
    let frames = Frames(events);
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    let kind = http::HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

struct Frames(mpsc::Receiver<Result<Frame<Bytes>, Infallible>>);

impl futures_core::Stream for Frames {
    type Item = Result<Frame<Bytes>, Infallible>;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}
