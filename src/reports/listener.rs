//! HTTP of the report listener.

use async_trait::async_trait;
use http::{HeaderValue, Method, Response, StatusCode, header};
use pingora::{apps::http_app::ServeHttp, protocols::http::ServerSession};
use serde_json::json;
use subtle::ConstantTimeEq;

use super::queue::Queue;
use crate::{
    config::ReportsConfig,
    fleet::{ApplyError, Beaten, HeartbeatError},
    telemetry::events,
    wire::{
        report::{self, Batch, Heartbeat, Malformed},
        sync,
    },
    wire_http::{BodyError, error_response, json_response, read_body},
};

/// `POST /v1/heartbeat`, `POST /v1/events` and `POST /v1/sync`.
pub struct ReportListener {
    config: ReportsConfig,
    queue: Queue,
}

type Answer = Response<Vec<u8>>;

impl ReportListener {
    /// A listener that feeds `queue`.
    pub fn new(config: ReportsConfig, queue: Queue) -> Self {
        Self { config, queue }
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
        if !self.is_authorized(session) {
            events::reported("unauthorized");
            let message = "send `Authorization: Bearer` with the token of `reports.token`";
            return error_response(StatusCode::UNAUTHORIZED, "unauthorized", message);
        }
        let body = match read_body(session, self.config.body_bytes_max).await {
            Ok(body) => body,
            Err(BodyError::TooLarge) => {
                events::reported("too_large");
                session.set_keepalive(None);
                let message = format!("a report has at most {} bytes", self.config.body_bytes_max);
                return error_response(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", &message);
            }
            Err(BodyError::Lost) => {
                events::reported("lost");
                session.set_keepalive(None);
                let message = "the body did not arrive";
                return error_response(StatusCode::REQUEST_TIMEOUT, "body_timeout", message);
            }
        };
        match &*path {
            "/v1/heartbeat" => self.heartbeat(&body).await,
            "/v1/events" => self.events(&body).await,
            _ => self.sync(&body).await,
        }
    }

    fn is_authorized(&self, session: &ServerSession) -> bool {
        let Some(token) = &self.config.token else { return true };
        let given = session.req_header().headers.get(header::AUTHORIZATION);
        let given = given.map(HeaderValue::as_bytes).and_then(|value| {
            // The scheme's case does not matter (RFC 9110, 11.1).
            let (scheme, given) = value.split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(given)
        });
        // Compares in the same time wherever two tokens of a length differ.
        given.is_some_and(|given| given.ct_eq(token.as_bytes()).into())
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
