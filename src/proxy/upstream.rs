//! A worker to a Pingora peer, and what an upstream error means.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderValue, request::Parts};
use pingora::{
    Error, ErrorSource, ErrorType, Result as PingoraResult, http::RequestHeader, prelude::HttpPeer,
    tls::x509::X509,
};

use super::{context::Attempt, respond::REQUEST_ID};
use crate::{
    config::{Config, ConfigError, Timeouts, WorkerUrl},
    wire::error_body::OwnError,
};

/// How soon after a reused connection stood its loss still means that it was stale: the worker
/// had closed it before it saw the request. Later, it may have accepted the request.
const STALE_WITHIN: Duration = Duration::from_millis(100);

/// Makes peers.
#[derive(Debug, Clone)]
pub struct Peers {
    timeouts: Timeouts,
    verify: bool,
    ca: Option<Arc<Box<[X509]>>>,
    /// What `ca` was read from.
    pem: Vec<u8>,
}

impl PartialEq for Peers {
    fn eq(&self, other: &Self) -> bool {
        (self.timeouts, self.verify, &self.pem) == (other.timeouts, other.verify, &other.pem)
    }
}

impl Peers {
    /// Reads the extra certificate authorities, if any.
    ///
    /// # Errors
    /// When the file has gone since the configuration was checked.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        let mut pem = Vec::new();
        let ca = match &config.upstream_tls.ca {
            None => None,
            Some(path) => {
                let bad = |problem: String| {
                    let value = format!("`{}`", path.display());
                    ConfigError::new("upstream_tls.ca", value, problem, "give a PEM file")
                };
                pem = std::fs::read(path).map_err(|error| bad(error.to_string()))?;
                let chain = X509::stack_from_pem(&pem).map_err(|error| bad(error.to_string()))?;
                Some(Arc::new(chain.into_boxed_slice()))
            }
        };
        Ok(Self { timeouts: config.timeouts, verify: config.upstream_tls.verify, ca, pem })
    }

    /// The peer of a worker.
    pub fn of(&self, url: &WorkerUrl) -> HttpPeer {
        let mut peer = HttpPeer::new(url.addr, url.https, url.tls_name.clone());
        let options = &mut peer.options;
        options.connection_timeout = Some(self.timeouts.connect);
        options.total_connection_timeout = Some(self.timeouts.connect);
        options.read_timeout = Some(self.timeouts.silence);
        options.write_timeout = Some(self.timeouts.silence);
        // Below the engine's keep-alive (uvicorn: 5 s), or the pool hands out dying connections.
        options.idle_timeout = Some(self.timeouts.pool_idle);
        options.verify_cert = self.verify;
        options.verify_hostname = self.verify;
        options.ca.clone_from(&self.ca);
        peer
    }
}

/// Puts `X-Request-Id` on what the worker gets, and its headers' names in one spelling, as on an
/// answer ([`respond::stamp`](super::respond::stamp)).
///
/// # Errors
/// None in practice.
pub(super) fn name_request(request: &mut RequestHeader, id: HeaderValue) -> PingoraResult<()> {
    let target = request.uri.path_and_query().map(|target| target.as_str().as_bytes());
    if target != Some(request.raw_path()) {
        // It names a host, or is no UTF-8: only Pingora's own type can hold it.
        return request.insert_header(REQUEST_ID, id);
    }
    let empty = RequestHeader::from(http::Request::new(()).into_parts().0);
    let mut parts = Parts::from(std::mem::replace(request, empty));
    parts.headers.insert(REQUEST_ID, id);
    *request = RequestHeader::from(parts);
    Ok(())
}

/// What an error after the connection stood means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// The client left or misbehaved: says nothing of the worker.
    Client,
    /// The pooled connection was stale: the worker never saw the request.
    Stale,
    /// The worker was silent for too long.
    Timeout,
    /// The worker broke off.
    Broken,
}

impl Loss {
    /// Reads `error`, which came before or after the answer began.
    pub(super) fn of(
        error: &Error,
        attempt: &Attempt,
        reused: bool,
        answered: bool,
        now: Instant,
    ) -> Self {
        if *error.esource() != ErrorSource::Upstream {
            return Loss::Client;
        }
        if matches!(error.etype(), ErrorType::ReadTimedout | ErrorType::WriteTimedout) {
            return Loss::Timeout;
        }
        let lost = matches!(
            error.etype(),
            ErrorType::ConnectionClosed
                | ErrorType::ReadError
                | ErrorType::WriteError
                | ErrorType::H1Error
        );
        let fresh = attempt
            .connected_at
            .is_some_and(|at| now.saturating_duration_since(at) <= STALE_WITHIN);
        if reused && !answered && lost && fresh { Loss::Stale } else { Loss::Broken }
    }

    /// What the client is told.
    pub(super) fn own_error(self) -> Option<OwnError> {
        match self {
            Loss::Client => None,
            Loss::Timeout => Some(OwnError::WorkerTimeout),
            Loss::Stale | Loss::Broken => Some(OwnError::WorkerFailed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_is_kept_byte_by_byte() {
        let targets: [&[u8]; 5] = [b"/v1/x?a=%20&b", b"/", b"*", b"http://host/v1/x", b"/\xff/x"];
        for target in targets {
            let mut request = RequestHeader::build("POST", target, None).expect("a target");
            for (name, value) in [("Host", "h"), ("X-Own", "1"), ("X-Request-Id", "evil")] {
                request.append_header(name, value).expect("a header");
            }
            let before = request.raw_path().to_vec();
            name_request(&mut request, HeaderValue::from_static("id")).expect("all fits");
            assert_eq!(request.raw_path(), before);
            assert_eq!(request.method, http::Method::POST);
            let mut wire = Vec::new();
            request.header_to_h1_wire(&mut wire);
            let wire = String::from_utf8(wire).expect("ASCII").to_lowercase();
            let mut lines: Vec<_> = wire.lines().collect();
            lines.sort_unstable();
            assert_eq!(lines, ["host: h", "x-own: 1", "x-request-id: id"]);
        }
    }
}
