//! Requests the router answers itself: its health and the fleet's models.

use pingora::{Result as PingoraResult, prelude::Session};
use serde_json::json;

use super::{context::RequestContext, respond};
use crate::{
    fleet::Fleet,
    routing::Reason,
    telemetry::events,
    wire::{
        endpoint::Endpoint,
        error_body::{OwnError, shorten},
        models,
    },
};

/// Answers, if the endpoint is one of ours; true when it did.
///
/// # Errors
/// The client is gone.
pub(super) async fn answer(
    session: &mut Session,
    ctx: &mut RequestContext,
    fleet: &Fleet,
    draining: bool,
) -> PingoraResult<bool> {
    let (status, body) = match ctx.endpoint {
        Endpoint::Health => health(fleet, draining),
        Endpoint::Models => {
            let entries: Vec<_> = fleet.models().into_iter().map(|(_, json)| json).collect();
            (200, models::list(&entries))
        }
        Endpoint::Model => {
            let path = session.req_header().uri.path();
            let id = path.strip_prefix("/v1/models/").unwrap_or("");
            let id = percent_decode(id);
            let found = fleet.models().into_iter().find(|(known, _)| *known == id);
            let Some((_, json)) = found else {
                let error = unknown_model(fleet, &id);
                respond::send_error(session, ctx, &error, !draining).await?;
                return Ok(true);
            };
            (200, json.to_string().into_bytes())
        }
        Endpoint::Prompt(_) | Endpoint::Other => return Ok(false),
    };
    ctx.reason = Some(Reason::Local);
    events::decided(Reason::Local);
    let retry_after = (status == 503).then_some(2);
    respond::send(session, ctx, status, body, retry_after, !draining).await?;
    Ok(true)
}

/// Model ids contain slashes, which some clients escape.
fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match hex {
            Some(byte) if bytes[at] == b'%' => {
                out.push(byte);
                at += 3;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn health(fleet: &Fleet, draining: bool) -> (u16, Vec<u8>) {
    let ready = fleet.is_ready() && !draining;
    let status = if draining {
        "draining"
    } else if ready {
        "ok"
    } else {
        "no worker takes traffic"
    };
    (if ready { 200 } else { 503 }, json!({"status": status}).to_string().into_bytes())
}

/// The error for a model nobody serves.
pub(super) fn unknown_model(fleet: &Fleet, model: &str) -> OwnError {
    let names: Vec<_> = fleet.models().into_iter().map(|(id, _)| id).take(50).collect();
    let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    OwnError::UnknownModel { model: shorten(model), known }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_undone_and_garbage_is_kept() {
        assert_eq!(percent_decode("Qwen%2FQwen3"), "Qwen/Qwen3");
        assert_eq!(percent_decode("a%zz%2"), "a%zz%2");
        assert_eq!(percent_decode("é%"), "é%");
    }
}
