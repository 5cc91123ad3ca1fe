//! HTTP of the report listener.

use std::sync::Arc;

use async_trait::async_trait;
use http::{HeaderValue, Method, Response, StatusCode, header};
use pingora::{apps::http_app::ServeHttp, protocols::http::ServerSession};
use serde_json::json;

use super::{queue::Queue, tap::Tap};
use crate::{
    config::ReportsConfig,
    fleet::{ApplyError, Beaten, Fleet, HeartbeatError},
    telemetry::events,
    wire::{
        report::{self, Batch, Heartbeat, Malformed},
        sync,
    },
    wire_http::{BodyError, bears, error_response, json_response, read_body},
};

/// `POST /v1/heartbeat`, `POST /v1/events` and `POST /v1/sync`.
pub struct ReportListener {
    fleet: Arc<Fleet>,
    queue: Queue,
    tap: Arc<Tap>,
}

type Answer = Response<Vec<u8>>;

impl ReportListener {
    /// A listener that feeds `queue` and tells `tap`; `fleet` knows the configuration in force.
    pub fn new(fleet: Arc<Fleet>, queue: Queue, tap: Arc<Tap>) -> Self {
        Self { fleet, queue, tap }
    }

    async fn answer(&self, session: &mut ServerSession) -> Answer {
        let request = session.req_header();
        let (method, path) = (request.method.clone(), request.uri.path().to_owned());
        if !matches!(&*path, "/v1/heartbeat" | "/v1/events" | "/v1/sync") {
            let message = "known: POST /v1/heartbeat, POST /v1/events, POST /v1/sync";
            return error_response(StatusCode::NOT_FOUND, "not_found", message);
        }
        if method != Method::POST {
            let message = "reports are sent with POST";
            return error_response(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message);
        }
        let live = self.fleet.live();
        let Some(config) = &live.config.reports else {
            let message = "reports are off since the last reload";
            return error_response(StatusCode::SERVICE_UNAVAILABLE, "reports_off", message);
        };
        if !is_authorized(config, session) {
            events::reported("unauthorized");
            let message = "send `Authorization: Bearer` with the token of `reports.token`";
            return error_response(StatusCode::UNAUTHORIZED, "unauthorized", message);
        }
        let body = match read_body(session, config.body_bytes_max).await {
            Ok(body) => body,
            Err(BodyError::TooLarge) => {
                events::reported("too_large");
                session.set_keepalive(None);
                let message = format!("a report has at most {} bytes", config.body_bytes_max);
                return error_response(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", &message);
            }
            Err(BodyError::Lost) => {
                events::reported("lost");
                session.set_keepalive(None);
                let message = "the body did not arrive";
                return error_response(StatusCode::REQUEST_TIMEOUT, "body_timeout", message);
            }
        };
        let answer = match &*path {
            "/v1/heartbeat" => self.heartbeat(&body).await,
            "/v1/events" => self.events(&body).await,
            _ => self.sync(&body).await,
        };
        if answer.status().is_success() {
            self.tap.tell(&path, &body);
        }
        answer
    }

    async fn heartbeat(&self, body: &[u8]) -> Answer {
        let beat = match report::parse::<Heartbeat>(body) {
            Ok(beat) => beat,
            Err(malformed) => return refuse(&malformed),
        };
        match self.queue.heartbeat(beat).await {
            Err(super::queue::Full) => busy(),
            Ok(Ok(beaten)) => {
                events::reported("heartbeat");
                let Beaten { joined, resync } = beaten;
                let body = json!({"ok": true, "joined": joined, "resync": resync});
                json_response(StatusCode::OK, &body)
            }
            Ok(Err(HeartbeatError::Malformed(malformed))) => refuse(&malformed),
            Ok(Err(error @ HeartbeatError::JoinOff(_))) => {
                events::reported("unknown_worker");
                error_response(StatusCode::NOT_FOUND, "unknown_worker", &error.to_string())
            }
            Ok(Err(error @ HeartbeatError::Removed(_))) => {
                events::reported("removed");
                error_response(StatusCode::CONFLICT, "removed", &error.to_string())
            }
            Ok(Err(error @ HeartbeatError::Full(_))) => {
                events::reported("fleet_full");
                come_again("fleet_full", &error.to_string(), "15")
            }
        }
    }

    async fn events(&self, body: &[u8]) -> Answer {
        let batch = match report::parse::<Batch>(body) {
            Ok(batch) => batch,
            Err(malformed) => return refuse(&malformed),
        };
        match self.queue.batch(batch).await {
            Err(super::queue::Full) => busy(),
            Ok(Ok(applied)) => {
                events::reported(match applied {
                    _ if applied.repeat => "repeat",
                    _ if applied.gap => "gap",
                    _ => "applied",
                });
                json_response(StatusCode::OK, &json!(applied))
            }
            Ok(Err(error)) => refuse_report(&error),
        }
    }

    async fn sync(&self, body: &[u8]) -> Answer {
        let sync = match sync::parse(body) {
            Ok(sync) => sync,
            Err(malformed) => return refuse(&malformed),
        };
        match self.queue.sync(sync).await {
            Err(super::queue::Full) => busy(),
            Ok(Ok(synced)) => {
                events::reported("sync");
                json_response(StatusCode::OK, &json!(synced))
            }
            Ok(Err(error)) => refuse_report(&error),
        }
    }
}

fn is_authorized(config: &ReportsConfig, session: &ServerSession) -> bool {
    config.token.as_ref().is_none_or(|token| bears(session.req_header(), token))
}

fn refuse_report(error: &ApplyError) -> Answer {
    match error {
        ApplyError::Malformed(malformed) => refuse(malformed),
        ApplyError::UnknownWorker(_) => {
            events::reported("unknown_worker");
            error_response(StatusCode::NOT_FOUND, "unknown_worker", &error.to_string())
        }
    }
}

fn refuse(malformed: &Malformed) -> Answer {
    let (status, code) = if malformed.unsupported {
        (StatusCode::UNPROCESSABLE_ENTITY, "unsupported")
    } else {
        (StatusCode::BAD_REQUEST, "malformed")
    };
    events::reported(code);
    let body = json!({"error": {
        "code": code, "field": malformed.field, "message": malformed.to_string(),
    }});
    json_response(status, &body)
}

fn busy() -> Answer {
    events::reported("queue_full");
    come_again("queue_full", "send this report again", "1")
}

fn come_again(code: &str, message: &str, seconds: &'static str) -> Answer {
    let mut answer = error_response(StatusCode::SERVICE_UNAVAILABLE, code, message);
    answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
    answer
}

#[async_trait]
impl ServeHttp for ReportListener {
    async fn response(&self, session: &mut ServerSession) -> Answer {
        self.answer(session).await
    }
}
