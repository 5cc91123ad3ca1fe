//! Who may read the fleet, and who may change it.
//!
//! Without a token only whoever can reach a loopback address may act, and no browser, which would
//! send a page's form there just as well: only browsers send `Origin`, and with every POST to
//! another site they do.

use std::net::IpAddr;

use http::{HeaderValue, StatusCode, header};
use pingora::protocols::http::ServerSession;

use super::Answer;
use crate::{
    config::{AdminConfig, Config},
    wire_http::{bears, error_response},
};

/// What to answer a request that may not see the fleet.
pub(super) fn no_read(config: &Config, session: &ServerSession) -> Option<Answer> {
    token(config).filter(|token| !bears(session.req_header(), token)).map(|_| unauthorized())
}

/// What to answer a request that may not change anything.
pub(super) fn no_act(config: &Config, session: &ServerSession) -> Option<Answer> {
    if session.req_header().headers.contains_key(header::ORIGIN) {
        let message = "requests of browsers (with an Origin header) change nothing here";
        return Some(error_response(StatusCode::FORBIDDEN, "browser", message));
    }
    if let Some(refused) = no_read(config, session) {
        return Some(refused);
    }
    let private = config.admin.as_ref().is_none_or(|admin| is_loopback(admin.listen.ip()));
    if token(config).is_none() && !private {
        let message = "admin.listen is no loopback address: set admin.token to allow this";
        return Some(error_response(StatusCode::FORBIDDEN, "token_needed", message));
    }
    None
}

fn token(config: &Config) -> Option<&str> {
    config.admin.as_ref().and_then(|admin: &AdminConfig| admin.token.as_deref())
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

fn unauthorized() -> Answer {
    let message = "send `Authorization: Bearer` with the token of `admin.token`";
    let mut answer = error_response(StatusCode::UNAUTHORIZED, "unauthorized", message);
    answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_private_only_on_loopback() {
        for (ip, private) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("0.0.0.0", false),
            ("::", false),
            ("10.0.0.1", false),
            ("::ffff:10.0.0.1", false),
        ] {
            assert_eq!(is_loopback(ip.parse().expect("an address")), private, "{ip}");
        }
    }
}
