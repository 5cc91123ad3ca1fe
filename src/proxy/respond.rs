//! Answers of our own, and the headers on every answer. The only place that writes an error.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, header, response::Parts};
use pingora::{Result as PingoraResult, http::ResponseHeader, prelude::Session};
use smallvec::SmallVec;

use super::context::RequestContext;
use crate::{routing::Reason, wire::error_body::OwnError};

/// Worker that answered, or `none`.
pub(super) const BACKEND: HeaderName = HeaderName::from_static("x-router-backend");
/// Why it was picked.
pub(super) const REASON: HeaderName = HeaderName::from_static("x-router-reason");
/// Matched blocks / blocks of the prompt.
pub(super) const MATCHED: HeaderName = HeaderName::from_static("x-router-matched");
/// Names the request in all logs.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Chooses a policy, where the configuration allows it.
pub(super) const POLICY: HeaderName = HeaderName::from_static("x-router-policy");

/// Names that mean something only when we say them.
pub(super) const OURS: [HeaderName; 5] = [BACKEND, REASON, MATCHED, REQUEST_ID, POLICY];

/// Puts the router's headers on an answer, in the place of any that came from elsewhere.
///
/// # Errors
/// None in practice: the values are checked where they are made.
pub(super) fn stamp(response: &mut ResponseHeader, ctx: &RequestContext) -> PingoraResult<()> {
    let none = HeaderValue::from_static("none");
    let matched = HeaderValue::from_bytes(&share_of(ctx.matched)).unwrap_or(none.clone());
    let worker = ctx.worker.as_ref().map_or(none, |worker| worker.header().clone());
    let reason = HeaderValue::from_static(ctx.reason.map_or("none", Reason::as_str));
    put(response, [worker, reason, matched, ctx.request_id.clone()])
}

/// Sets the four headers that every answer has.
///
/// The names of all come out in one spelling, whatever the worker's was (RFC 9110, 5.1). Pingora keeps
/// that in a second map, and setting a header costs twice as much there, besides a parse of its name.
fn put(response: &mut ResponseHeader, values: [HeaderValue; 4]) -> PingoraResult<()> {
    let phrase = response.get_reason_phrase();
    let own_phrase = phrase.filter(|phrase| Some(*phrase) != response.status.canonical_reason());
    let own_phrase = own_phrase.map(str::to_owned);
    let empty = ResponseHeader::from(http::Response::new(()).into_parts().0);
    let mut parts = Parts::from(std::mem::replace(response, empty));
    parts.headers.remove(&POLICY);
    // With room for these and for what Pingora adds the map grows once.
    parts.headers.reserve(values.len() + 1);
    for (name, value) in [BACKEND, REASON, MATCHED, REQUEST_ID].into_iter().zip(values) {
        parts.headers.insert(name, value);
    }
    *response = ResponseHeader::from(parts);
    match own_phrase {
        Some(phrase) => response.set_reason_phrase(Some(&phrase)),
        None => Ok(()),
    }
}

/// Matched blocks / blocks of the prompt.
fn share_of((matched, total): (usize, usize)) -> SmallVec<[u8; 24]> {
    let (mut digits, mut text) = (itoa::Buffer::new(), SmallVec::new());
    text.extend_from_slice(digits.format(matched).as_bytes());
    text.push(b'/');
    text.extend_from_slice(digits.format(total).as_bytes());
    text
}

/// Sends an answer of our own; the connection stays open only if `keep` is set.
///
/// # Errors
/// The client is gone.
pub(super) async fn send(
    session: &mut Session,
    ctx: &mut RequestContext,
    status: u16,
    body: Vec<u8>,
    retry_after_s: Option<u32>,
    keep: bool,
) -> PingoraResult<()> {
    ctx.own_status = Some(status);
    let mut response = ResponseHeader::build(status, Some(8))?;
    response.insert_header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))?;
    response.insert_header(header::CONTENT_LENGTH, body.len())?;
    if let Some(seconds) = retry_after_s {
        response.insert_header(header::RETRY_AFTER, seconds)?;
    }
    stamp(&mut response, ctx)?;
    if !keep {
        session.set_keepalive(None);
    }
    let head_only = session.req_header().method == http::Method::HEAD || body.is_empty();
    session.write_response_header(Box::new(response), head_only).await?;
    if !head_only {
        ctx.stream.bytes_out += body.len() as u64;
        session.write_response_body(Some(Bytes::from(body)), true).await?;
    }
    Ok(())
}

/// Sends one of our own errors.
///
/// # Errors
/// The client is gone.
pub(super) async fn send_error(
    session: &mut Session,
    ctx: &mut RequestContext,
    error: &OwnError,
    keep: bool,
) -> PingoraResult<()> {
    let reason = error.reason();
    if reason != Reason::WorkerFailed {
        // A worker that failed keeps its name on the answer; here none was involved.
        ctx.worker = None;
        ctx.matched = (0, ctx.matched.1);
    }
    ctx.reason = Some(reason);
    ctx.failure = Some(error.clone());
    crate::telemetry::events::decided(reason);
    send(session, ctx, error.status(), error.body(), error.retry_after_s(), keep).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_take_the_place_of_others_and_all_else_stays() {
        let mut response = ResponseHeader::build(200, None).expect("a status");
        response.set_reason_phrase(Some("Fine")).expect("a phrase");
        for (name, value) in [
            ("Set-Cookie", "a"),
            ("X-Own", "1"),
            ("X-Router-Backend", "evil"),
            ("x-router-backend", "worse"),
            ("X-Router-Policy", "evil"),
            ("Set-Cookie", "b"),
        ] {
            response.append_header(name, value).expect("a header");
        }
        let values = ["w0", "prefix", "1/2", "id"].map(HeaderValue::from_static);
        put(&mut response, values).expect("all fits");
        let mut wire = Vec::new();
        response.header_to_h1_wire(&mut wire);
        let wire = String::from_utf8(wire).expect("ASCII");
        let mut lines: Vec<_> = wire.lines().collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                "Set-Cookie: a",
                "Set-Cookie: b",
                "x-own: 1",
                "x-request-id: id",
                "x-router-backend: w0",
                "x-router-matched: 1/2",
                "x-router-reason: prefix",
            ]
        );
        assert_eq!(response.get_reason_phrase(), Some("Fine"));
        response.set_status(404).expect("a status");
        response.set_reason_phrase(None).expect("none");
        put(&mut response, [const { HeaderValue::from_static("none") }; 4]).expect("all fits");
        assert_eq!(
            (response.status.as_u16(), response.get_reason_phrase()),
            (404, Some("Not Found"))
        );
    }

    #[test]
    fn a_share_is_two_numbers() {
        assert_eq!(share_of((0, 0)).as_slice(), b"0/0");
        assert_eq!(share_of((46, 51)).as_slice(), b"46/51");
        let most = share_of((usize::MAX, usize::MAX));
        assert_eq!(most.as_slice(), format!("{0}/{0}", usize::MAX).as_bytes());
    }
}
