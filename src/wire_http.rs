//! The little HTTP that our own listeners need: read a bounded body, answer JSON.

use std::time::Duration;

use bytes::BytesMut;
use http::{Response, StatusCode, header};
use pingora::{http::RequestHeader, protocols::http::ServerSession};
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use tokio::time::timeout;

/// How long a small request body may take to arrive.
const BODY_TIME_MAX: Duration = Duration::from_secs(10);

/// Why a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyError {
    /// Over the bound.
    TooLarge,
    /// Not in time, or the connection broke.
    Lost,
}

/// Reads at most `bytes_max` bytes of body.
///
/// # Errors
/// `BodyError`.
pub(crate) async fn read_body(
    session: &mut ServerSession,
    bytes_max: usize,
) -> Result<BytesMut, BodyError> {
    let read = async {
        let mut body = BytesMut::new();
        while let Some(piece) = session.read_request_body().await.map_err(|_| BodyError::Lost)? {
            if body.len() + piece.len() > bytes_max {
                return Err(BodyError::TooLarge);
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    };
    timeout(BODY_TIME_MAX, read).await.unwrap_or(Err(BodyError::Lost))
}

/// Whether a request bears this token.
pub(crate) fn bears(request: &RequestHeader, token: &str) -> bool {
    let given = request.headers.get(header::AUTHORIZATION).and_then(|value| {
        // The scheme's case does not matter (RFC 9110, 11.1).
        let (scheme, given) = value.as_bytes().split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(given)
    });
    // Compares in the same time wherever two tokens of a length differ.
    given.is_some_and(|given| given.ct_eq(token.as_bytes()).into())
}

/// A JSON answer.
pub(crate) fn json_response(status: StatusCode, body: &Value) -> Response<Vec<u8>> {
    let body = body.to_string().into_bytes();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let length = response.body().len();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    headers.insert(header::CONTENT_LENGTH, length.into());
    response
}

/// An error of a listener, in the shape of the proxy's own.
pub(crate) fn error_response(status: StatusCode, code: &str, message: &str) -> Response<Vec<u8>> {
    json_response(status, &json!({"error": {"code": code, "message": message}}))
}
