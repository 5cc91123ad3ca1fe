//! The OpenAI endpoints over real sockets, in vLLM's form.

mod desk;
mod error;
mod job;
mod metrics;
mod reply;
mod stream;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::engine::Shared;

pub(crate) use desk::Desk;
use error::ApiError;
use job::Job;
use stream::SseBody;

/// Longest request body that is read.
const BODY_BYTES_MAX: usize = 64 << 20;

type Body = Either<Full<Bytes>, SseBody>;

/// Accepts connections until its future is dropped.
pub(crate) async fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: some will be free again.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        // Without this a token waits for the client's delayed acknowledgement of the one before.
        drop(stream.set_nodelay(true));
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            shared.connections.fetch_add(1, Ordering::Relaxed);
            let service = service_fn(|request| serve(Arc::clone(&shared), request));
            // A client that went away is no error here: its sequences cancel themselves.
            drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
            shared.connections.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

async fn serve(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    let allowed = match path {
        "/v1/chat/completions" | "/v1/completions" | "/reset_prefix_cache" => Method::POST,
        "/v1/models" | "/health" | "/ping" | "/version" | "/metrics" => Method::GET,
        _ => return Ok(ApiError::no_such_path(path).into_response()),
    };
    if parts.method != allowed {
        let mut response = ApiError::wrong_verb(&parts.method).into_response();
        let verb = if allowed == Method::GET { "GET" } else { "POST" };
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(verb));
        return Ok(response);
    }
    Ok(match path {
        "/health" | "/ping" if shared.is_healthy() => plain(StatusCode::OK, "", "text/plain"),
        "/health" | "/ping" => plain(StatusCode::SERVICE_UNAVAILABLE, "", "text/plain"),
        "/version" => json(format!("{{\"version\":\"{}-sim\"}}", env!("CARGO_PKG_VERSION"))),
        "/v1/models" => json(reply::models(&shared.options)),
        "/metrics" => plain(StatusCode::OK, metrics::render(&shared), "text/plain; version=0.0.4"),
        "/reset_prefix_cache" => {
            shared.desk().batch.clear_cache();
            json("{\"success\":true}".to_owned())
        }
        _ => {
            let request_id = parts.headers.get("x-request-id").and_then(|id| id.to_str().ok());
            generate(&shared, path, request_id, body).await.unwrap_or_else(ApiError::into_response)
        }
    })
}

async fn generate(
    shared: &Arc<Shared>,
    path: &str,
    request_id: Option<&str>,
    body: Incoming,
) -> Result<Response<Body>, ApiError> {
    let limited = Limited::new(body, BODY_BYTES_MAX);
    let body = limited.collect().await.map_err(|_| ApiError::unread_body())?.to_bytes();
    let mut job = if path == "/v1/chat/completions" {
        Job::from_chat(&body, &shared.options)?
    } else {
        Job::from_completion(&body, &shared.options)?
    };
    job.name_response(request_id);
    let is_stream = job.is_stream;
    let ticket = desk::submit(shared, &job);
    if !is_stream {
        return Ok(json(reply::whole(job, ticket).await));
    }
    let mut response = Response::new(Either::Right(SseBody::new(job, ticket)));
    let event_stream = HeaderValue::from_static("text/event-stream; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, event_stream);
    Ok(response)
}

fn json(text: String) -> Response<Body> {
    plain(StatusCode::OK, text, "application/json")
}

fn plain(status: StatusCode, text: impl Into<Bytes>, content_type: &'static str) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(text.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
