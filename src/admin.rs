//! The admin listener: liveness, readiness, the fleet as JSON.

use std::sync::Arc;

use async_trait::async_trait;
use http::{Method, Response, StatusCode};
use pingora::{apps::http_app::ServeHttp, protocols::http::ServerSession};
use serde_json::json;

use crate::{
    clock,
    drain::DrainState,
    fleet::Fleet,
    wire_http::{error_response, json_response},
};

/// `GET /livez`, `/readyz`, `/workers`.
pub struct Admin {
    fleet: Arc<Fleet>,
    drain: Arc<DrainState>,
}

impl Admin {
    /// The admin pages of `fleet`.
    pub fn new(fleet: Arc<Fleet>, drain: Arc<DrainState>) -> Self {
        Self { fleet, drain }
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Vec<u8>> {
        if method != Method::GET && method != Method::HEAD {
            let message = "the admin listener only answers GET";
            return error_response(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message);
        }
        match path {
            "/livez" => json_response(StatusCode::OK, &json!({"status": "alive"})),
            "/readyz" => self.readiness(),
            "/workers" => {
                let workers = self.fleet.status(clock::now());
                json_response(StatusCode::OK, &json!({"workers": workers}))
            }
            _ => {
                let message = "known: /livez, /readyz, /workers";
                error_response(StatusCode::NOT_FOUND, "not_found", message)
            }
        }
    }

    fn readiness(&self) -> Response<Vec<u8>> {
        let (status, text) = if self.drain.is_draining() {
            (StatusCode::SERVICE_UNAVAILABLE, "draining")
        } else if self.fleet.is_ready() {
            (StatusCode::OK, "ready")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "no worker takes traffic")
        };
        json_response(status, &json!({"status": text}))
    }
}

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Response<Vec<u8>> {
        let request = session.req_header();
        self.answer(&request.method, request.uri.path())
    }
}
