//! The way back: what the answer says about the worker, and how the request ends.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header;
use pingora::{Error, ErrorSource, ErrorType, http::ResponseHeader, prelude::Session};

use super::{context::RequestContext, respond};
use crate::{
    clock,
    fleet::Fleet,
    routing::{Outcome, PromptKind, WorkerId},
    telemetry::{access_log, events},
    wire::{error_body::OwnError, usage::UsageWatch},
};

/// Time for an HTTP/2 connection to send what is queued, before a stream is reset.
const H2_FLUSH: Duration = Duration::from_millis(20);

/// The worker's answer begins.
pub(super) fn on_response_header(
    fleet: &Fleet,
    response: &ResponseHeader,
    ctx: &mut RequestContext,
) {
    if response.status.is_informational() {
        return;
    }
    let now = clock::now();
    ctx.stands();
    let content_type = response.headers.get(header::CONTENT_TYPE);
    ctx.stream.is_sse =
        content_type.is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
    let outcome = outcome_of(response);
    if outcome != Outcome::Success {
        ctx.refused(now);
    } else if !ctx.stream.is_sse {
        // A stream's header comes before any prefill: there the first content is the sign.
        ctx.whole_answer(now);
    }
    if let Some(attempt) = &ctx.attempt
        && (outcome == Outcome::Success || has_enough(response))
    {
        fleet.record_taken(&attempt.picked, outcome == Outcome::Success, now);
    }
    let plain = !response.headers.contains_key(header::CONTENT_ENCODING);
    if outcome == Outcome::Success && ctx.kind == PromptKind::Prompt && plain {
        ctx.stream.usage = Some(UsageWatch::new(ctx.stream.is_sse));
    }
    if !ctx.stream.is_sse || !plain {
        ctx.stream.strip = None;
    }
    match outcome {
        Outcome::Success if ctx.stream.is_sse => {}
        Outcome::Success => ctx.goes_well(fleet, now),
        outcome => ctx.record_outcome(fleet, outcome, now),
    }
}

/// 4xx, 429 and 503 with Retry-After say that the worker works and said no.
fn outcome_of(response: &ResponseHeader) -> Outcome {
    match response.status.as_u16() {
        503 if response.headers.contains_key(header::RETRY_AFTER) => Outcome::Neutral,
        400..=499 => Outcome::Neutral,
        500.. => Outcome::Failure,
        _ => Outcome::Success,
    }
}

/// Whether the worker says that it has too much to do.
fn has_enough(response: &ResponseHeader) -> bool {
    matches!(response.status.as_u16(), 429 | 503)
}

/// A piece of the answer goes by. This runs for every event of every stream: nothing is copied here,
/// and the clock is read once.
pub(super) fn on_response_chunk(
    fleet: &Fleet,
    passing: &mut Option<Bytes>,
    end: bool,
    ctx: &mut RequestContext,
) {
    let came = passing.as_deref().unwrap_or_default();
    if let Some(usage) = &mut ctx.stream.usage {
        usage.feed(came);
    }
    if ctx.stream.is_sse {
        on_stream_chunk(fleet, came, end, ctx);
    } else if end {
        let now = clock::now();
        take_feedback(fleet, ctx, now);
        ctx.record_outcome(fleet, Outcome::Success, now);
    }
    if let Some(strip) = &mut ctx.stream.strip {
        let mut left = passing.as_ref().map(|chunk| strip.feed(chunk)).unwrap_or_default();
        if end {
            let rest = strip.finish();
            if !rest.is_empty() {
                left = [left, rest].concat().into();
            }
        }
        // An empty piece would look like the end of a chunked body.
        *passing = (!left.is_empty()).then_some(left);
    }
    ctx.stream.bytes_out += passing.as_ref().map_or(0, Bytes::len) as u64;
}

/// Bytes of a stream have come from the worker: is that its first content, and how long did it take?
fn on_stream_chunk(fleet: &Fleet, came: &[u8], end: bool, ctx: &mut RequestContext) {
    let now = clock::now();
    if !came.is_empty() {
        if ctx.stream.first.seen() {
            if let (Some(last), Some(attempt)) = (ctx.stream.last_chunk, &ctx.attempt) {
                let gap = now.saturating_duration_since(last);
                attempt.picked.member.metrics.inter_token.observe(gap.as_secs_f64());
            }
        } else if ctx.stream.first.feed(came) {
            let ttft = now.saturating_duration_since(ctx.arrived);
            ctx.stream.ttft = Some(ttft);
            ctx.first_token(now);
            if let Some(attempt) = &ctx.attempt {
                let picked = &attempt.picked;
                picked.member.metrics.ttft.observe(ttft.as_secs_f64());
                fleet.record_start(picked, now);
            }
            ctx.goes_well(fleet, now);
        }
        ctx.stream.last_chunk = Some(now);
    }
    if end {
        take_feedback(fleet, ctx, now);
        ctx.record_outcome(fleet, Outcome::Success, now);
    }
}

/// What the answer says of the cache, now that it has ended.
fn take_feedback(fleet: &Fleet, ctx: &mut RequestContext, now: Instant) {
    let (Some(watch), Some(attempt)) = (ctx.stream.usage.take(), &ctx.attempt) else { return };
    let usage = watch.finish();
    let prompts = std::mem::take(&mut ctx.facts.prompts);
    ctx.verdict = fleet.feedback(&attempt.picked, &prompts, usage.as_ref(), now);
}

/// The request failed: answers, unless the client is gone. Gives the status for the log.
pub(super) async fn on_failure(
    session: &mut Session,
    error: &Error,
    ctx: &mut RequestContext,
) -> u16 {
    let answered = session.response_written().is_some_and(|r| !r.status.is_informational());
    let stalled = !answered
        && *error.esource() == ErrorSource::Downstream
        && *error.etype() == ErrorType::ReadTimedout;
    let own = if stalled { Some(OwnError::BodyTimeout) } else { own_error_of(error) };
    let Some(failure) = ctx.failure.clone().or(own) else { return 499 };
    if answered {
        if ctx.stream.is_sse {
            // The stream is left without its end mark, so that nobody takes it for whole.
            let event = Bytes::from(failure.sse_event());
            let _ = session.as_downstream_mut().write_response_body(event, false).await;
            if session.is_http2() {
                // There the event is only queued, and the reset that follows would empty the queue.
                tokio::time::sleep(H2_FLUSH).await;
            }
        }
        return failure.status();
    }
    let sent = respond::send_error(session, ctx, &failure, false).await;
    ctx.failure = Some(failure);
    if sent.is_err() { 499 } else { ctx.own_status.unwrap_or(500) }
}

/// `None` when the client is gone and there is nobody to answer.
fn own_error_of(error: &Error) -> Option<OwnError> {
    match error.esource() {
        ErrorSource::Downstream => match error.etype() {
            ErrorType::ConnectionClosed
            | ErrorType::ReadError
            | ErrorType::WriteError
            | ErrorType::H2Error
            | ErrorType::WriteTimedout
            | ErrorType::ReadTimedout => None,
            _ => Some(OwnError::BadRequest),
        },
        ErrorSource::Upstream => match error.etype() {
            ErrorType::ReadTimedout | ErrorType::WriteTimedout => Some(OwnError::WorkerTimeout),
            ErrorType::ConnectTimedout | ErrorType::ConnectRefused => {
                Some(OwnError::WorkerUnreachable)
            }
            _ => Some(OwnError::WorkerFailed),
        },
        ErrorSource::Internal | ErrorSource::Unset => Some(OwnError::Internal),
    }
}

/// The request is over: counts and logs it. Its load falls with the context.
pub(super) fn on_end(session: &Session, error: Option<&Error>, ctx: &mut RequestContext) {
    let now = clock::now();
    let took = now.saturating_duration_since(ctx.arrived);
    let written = session.response_written().map(|response| response.status.as_u16());
    let client_left = error.is_some_and(|error| *error.esource() == ErrorSource::Downstream)
        && ctx.failure.is_none();
    let status = match (ctx.own_status, written) {
        _ if client_left => 499,
        (Some(own), _) => own,
        (None, Some(status)) if status >= 200 => status,
        _ => 499,
    };
    let worker = ctx.worker.as_ref().map(|worker| &*worker.metrics);
    events::answered(worker, status, ctx.endpoint.as_str(), took);
    if access_log::is_on() {
        let header = session.req_header();
        let prompt = ctx.regret.prompt_tokens > 0;
        access_log::write(&access_log::Line {
            ts: access_log::unix_s(),
            id: ctx.request_id(),
            method: header.method.as_str(),
            path: header.uri.path(),
            model: ctx.facts.model.as_deref().unwrap_or(""),
            status,
            worker: ctx.worker_label(),
            reason: ctx.reason.map_or("none", crate::routing::Reason::as_str),
            matched: ctx.matched.0,
            blocks: ctx.matched.1,
            chosen_tokens: prompt.then_some(ctx.regret.chosen_tokens),
            best_tokens: prompt.then_some(ctx.regret.best_tokens),
            shadow: ctx.shadow.as_ref().map(WorkerId::as_str),
            predicted_tokens: ctx.verdict.map(|verdict| verdict.predicted),
            cached_tokens: ctx.verdict.map(|verdict| verdict.actual),
            tries: ctx.tries,
            bytes_in: ctx.body_bytes as u64,
            bytes_out: ctx.stream.bytes_out,
            ttft_ms: ctx.stream.ttft.map(|ttft| ttft.as_secs_f64() * 1e3),
            duration_ms: took.as_secs_f64() * 1e3,
            error: explain(error, ctx),
        });
    }
    ctx.end_attempt();
}

fn explain(error: Option<&Error>, ctx: &RequestContext) -> Option<String> {
    let own = ctx.failure.as_ref().map(|failure| failure.code().to_owned());
    own.or_else(|| error.map(|error| error.etype().as_str().to_owned()))
}

#[cfg(test)]
mod tests {
    use crate::{
        telemetry::metrics::ENDPOINTS,
        wire::endpoint::{Endpoint, PromptForm},
    };

    #[test]
    fn every_endpoint_has_its_series() {
        let forms =
            [PromptForm::Chat, PromptForm::Completion, PromptForm::Responses, PromptForm::Messages];
        let others = [Endpoint::Health, Endpoint::Models, Endpoint::Model, Endpoint::Other];
        for endpoint in forms.map(Endpoint::Prompt).into_iter().chain(others) {
            assert!(ENDPOINTS.contains(&endpoint.as_str()), "{endpoint:?}");
        }
    }
}
