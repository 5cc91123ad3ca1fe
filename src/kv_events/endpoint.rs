//! Where a publisher is: `tcp://host:port`, and whose host that is.

use std::{fmt, net::IpAddr};

/// A ZMQ endpoint over TCP.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Name or address, without brackets; `*` where the engine binds all.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// Why an endpoint is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadEndpoint {
    /// `ipc://` and `inproc://` stay on the engine's machine.
    #[error("`{0}` cannot be reached from here; engines must publish on tcp://")]
    NotTcp(String),
    /// No host or no port.
    #[error("`{0}` is not tcp://host:port")]
    Malformed(String),
}

impl Endpoint {
    /// Reads `tcp://host:port`; IPv6 addresses stand in brackets.
    ///
    /// # Errors
    /// See [`BadEndpoint`].
    pub fn parse(text: &str) -> Result<Self, BadEndpoint> {
        let malformed = || BadEndpoint::Malformed(text.to_owned());
        let Some(place) = text.strip_prefix("tcp://") else {
            let foreign = text.contains("://");
            return Err(if foreign { BadEndpoint::NotTcp(text.to_owned()) } else { malformed() });
        };
        let (host, port) = place.rsplit_once(':').ok_or_else(malformed)?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(malformed)?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() || host.contains(['/', '[', ']', ' ']) {
            return Err(malformed());
        }
        Ok(Self { host: host.to_owned(), port })
    }

    /// The same place as seen from here: an engine that says `*`, or its own machine, means the
    /// host at which we know it.
    #[must_use]
    pub fn at_worker(&self, worker_host: &str) -> Self {
        let own = match self.host.parse::<IpAddr>() {
            Ok(address) => address.is_unspecified() || address.is_loopback(),
            Err(_) => matches!(&*self.host, "*" | "localhost"),
        };
        let host = if own { worker_host } else { &self.host };
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        Self { host: bare.to_owned(), port: self.port }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "tcp://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "tcp://{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str, worker: &str) -> String {
        Endpoint::parse(text).expect("an endpoint").at_worker(worker).to_string()
    }

    #[test]
    fn wildcards_and_loopback_become_the_worker() {
        for own in ["tcp://*:5557", "tcp://127.0.0.1:5557", "tcp://0.0.0.0:5557", "tcp://[::]:5557"]
        {
            assert_eq!(at(own, "gpu-3"), "tcp://gpu-3:5557");
            assert_eq!(at(own, "fd00::3"), "tcp://[fd00::3]:5557");
            assert_eq!(at(own, "[fd00::3]"), "tcp://[fd00::3]:5557");
        }
        assert_eq!(at("tcp://10.0.0.7:5557", "gpu-3"), "tcp://10.0.0.7:5557");
        assert_eq!(at("tcp://[fd00::5]:5557", "gpu-3"), "tcp://[fd00::5]:5557");
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, not_tcp) in [
            ("ipc:///tmp/x", true),
            ("inproc://x", true),
            ("*:5557", false),
            ("tcp://*", false),
            ("tcp://*:0", false),
            ("tcp://*:70000", false),
            ("tcp://:5557", false),
            ("tcp://a/b:5557", false),
            ("", false),
        ] {
            let error = Endpoint::parse(text).expect_err("malformed");
            assert_eq!(matches!(error, BadEndpoint::NotTcp(_)), not_tcp, "{text}");
        }
    }
}
