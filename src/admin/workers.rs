//! The workers: shown, drained, removed.

use std::time::Instant;

use http::StatusCode;
use serde_json::json;

use super::Answer;
use crate::{
    fleet::{Fleet, RemoveError, UnknownWorker},
    wire_http::{error_response, json_response},
};

pub(super) fn all(fleet: &Fleet, now: Instant) -> Answer {
    let removed: Vec<_> = fleet.removed().iter().map(ToString::to_string).collect();
    json_response(StatusCode::OK, &json!({"workers": fleet.status(now), "removed": removed}))
}

pub(super) fn one(fleet: &Fleet, id: &str, now: Instant) -> Answer {
    match fleet.status_of(id, now) {
        Some(status) => json_response(StatusCode::OK, &json!(status)),
        None => unknown(&UnknownWorker::new(id)),
    }
}

pub(super) fn drain(fleet: &Fleet, id: &str, now: Instant) -> Answer {
    match fleet.drain(id, now) {
        Ok(member) => {
            let inflight = member.counts.load().requests;
            let body = json!({"id": id, "drained": true, "inflight": inflight});
            json_response(StatusCode::OK, &body)
        }
        Err(error) => unknown(&error),
    }
}

pub(super) fn undrain(fleet: &Fleet, id: &str, now: Instant) -> Answer {
    match fleet.undrain(id, now) {
        Ok(member) => {
            // One that was removed and lives by heartbeats comes with the next of them.
            let body = json!({"id": id, "drained": false, "in_fleet": member.is_some()});
            json_response(StatusCode::OK, &body)
        }
        Err(error) => unknown(&error),
    }
}

pub(super) fn remove(fleet: &Fleet, id: &str, now: Instant) -> Answer {
    match fleet.remove(id, now) {
        Ok(member) => {
            let inflight = member.map_or(0, |member| member.counts.load().requests);
            let body = json!({"id": id, "removed": true, "inflight": inflight});
            json_response(StatusCode::OK, &body)
        }
        Err(RemoveError::Unknown(error)) => unknown(&error),
        Err(error @ RemoveError::Full) => {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            error_response(status, "too_many_removed", &error.to_string())
        }
    }
}

fn unknown(error: &UnknownWorker) -> Answer {
    error_response(StatusCode::NOT_FOUND, "unknown_worker", &error.to_string())
}
