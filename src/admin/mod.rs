//! The admin listener: liveness, readiness, the fleet as JSON, and what operators may do to it.

mod access;
mod process;
mod route;
mod workers;

use std::sync::Arc;

use async_trait::async_trait;
use http::{HeaderValue, Method, Response, StatusCode, header};
use pingora::{apps::http_app::ServeHttp, protocols::http::ServerSession};
use serde_json::json;

use crate::{
    clock,
    drain::DrainState,
    fleet::Fleet,
    lifecycle::Control,
    peers,
    wire_http::{error_response, json_response, read_body},
};
use route::{Act, Page, Route};

/// Acts carry nothing in their bodies; so much of one is read past.
const BODY_BYTES_MAX: usize = 64 << 10;

type Answer = Response<Vec<u8>>;

/// See the table in `route.rs`.
pub struct Admin {
    fleet: Arc<Fleet>,
    drain: Arc<DrainState>,
    peers: Option<Arc<peers::Shared>>,
    control: Control,
}

impl Admin {
    /// The admin pages of `fleet`, and of its other routers if there may be any; `control` carries out
    /// orders to the process.
    pub fn new(
        fleet: Arc<Fleet>,
        drain: Arc<DrainState>,
        peers: Option<Arc<peers::Shared>>,
        control: Control,
    ) -> Self {
        Self { fleet, drain, peers, control }
    }

    async fn answer(&self, session: &mut ServerSession) -> Answer {
        let request = session.req_header();
        let (method, path) = (request.method.clone(), request.uri.path().to_owned());
        let Some(route) = Route::of(&path) else {
            return error_response(StatusCode::NOT_FOUND, "not_found", route::KNOWN);
        };
        let live = self.fleet.live();
        match route {
            Route::Page(page) => {
                if method != Method::GET && method != Method::HEAD {
                    return wrong_method("GET, HEAD");
                }
                if !page.is_open()
                    && let Some(refused) = access::no_read(&live.config, session)
                {
                    return refused;
                }
                self.show(&page)
            }
            Route::Act(act) => {
                if method != Method::POST {
                    return wrong_method("POST");
                }
                if let Some(refused) = access::no_act(&live.config, session) {
                    session.set_keepalive(None);
                    return refused;
                }
                if read_body(session, BODY_BYTES_MAX).await.is_err() {
                    session.set_keepalive(None);
                    let message = "send no body";
                    return error_response(StatusCode::BAD_REQUEST, "bad_body", message);
                }
                self.act(&act).await
            }
        }
    }

    fn show(&self, page: &Page<'_>) -> Answer {
        match page {
            Page::Livez => {
                let pid = std::process::id();
                json_response(StatusCode::OK, &json!({"status": "alive", "pid": pid}))
            }
            Page::Readyz => self.readiness(),
            Page::Workers => workers::all(&self.fleet, clock::now()),
            Page::Worker(id) => workers::one(&self.fleet, id, clock::now()),
            Page::Peers => self.other_routers(),
        }
    }

    /// Whatever is done here has been authorized.
    async fn act(&self, act: &Act<'_>) -> Answer {
        let now = clock::now();
        match act {
            Act::Drain(id) => workers::drain(&self.fleet, id, now),
            Act::Undrain(id) => workers::undrain(&self.fleet, id, now),
            Act::Remove(id) => workers::remove(&self.fleet, id, now),
            Act::Reload => process::reload(&self.control).await,
            Act::Upgrade => process::upgrade(&self.control).await,
        }
    }

    fn other_routers(&self) -> Answer {
        let Some(peers) = &self.peers else {
            let message = "the configuration has no `peers`";
            return error_response(StatusCode::NOT_FOUND, "not_found", message);
        };
        json_response(StatusCode::OK, &json!(peers.status(clock::now())))
    }

    fn readiness(&self) -> Answer {
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

fn wrong_method(allowed: &'static str) -> Answer {
    let message = format!("this path takes {allowed}");
    let mut answer = error_response(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", &message);
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    answer
}

#[async_trait]
impl ServeHttp for Admin {
    async fn response(&self, session: &mut ServerSession) -> Answer {
        self.answer(session).await
    }
}
