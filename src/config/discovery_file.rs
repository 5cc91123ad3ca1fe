//! The section `discovery` of the file, key by key. See `file.rs`.

use std::path::PathBuf;

use serde::Deserialize;

use super::file::{KvEvents, section};
use crate::routing::InflightMax;

section! {
    /// Where workers are found that this file does not name.
    Discovery {
        /// A list of workers, as `workers`; read again when it changes.
        file: Option<PathBuf> = None,
        /// Pause between two looks at it, seconds.
        file_interval_s: u64 = 1,
        /// Names to resolve.
        dns: Vec<DnsName> = Vec::new(),
        /// Shortest time between two questions for the same, whatever the TTL, seconds.
        dns_interval_min_s: u64 = 1,
        /// Longest, seconds.
        dns_interval_max_s: u64 = 60,
        /// How long answers must be empty before they are believed, seconds.
        dns_empty_grace_s: u64 = 30,
        /// Name servers, `ADDRESS:PORT`; default: those of /etc/resolv.conf.
        nameservers: Option<Vec<String>> = None,
    }
}

/// A name of workers.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DnsName {
    /// Host name, or the name of a service: `_http._tcp.vllm.internal`.
    pub name: String,
    /// `a` or `srv`; default: `srv` if the name begins with `_`.
    #[serde(default)]
    pub kind: Option<String>,
    /// Port of the workers, for kind `a`.
    #[serde(default)]
    pub port: Option<u16>,
    /// `any`, `ipv4` or `ipv6`: which addresses are workers.
    #[serde(default = "any")]
    pub family: String,
    /// `http` or `https`.
    #[serde(default = "http")]
    pub scheme: String,
    /// What ids begin with; default: the first label of the name.
    #[serde(default)]
    pub id_prefix: Option<String>,
    /// As for a worker; the others too.
    #[serde(default)]
    pub models: Option<Vec<String>>,
    /// Share of traffic relative to other workers; the weight of SRV records divides it.
    #[serde(default = "one")]
    pub weight: f64,
    /// Overrides `limits.inflight_max`.
    #[serde(default)]
    pub inflight_max: Option<InflightMax>,
    /// Overrides `index.cache_tokens`.
    #[serde(default)]
    pub cache_tokens: Option<u64>,
    /// Overrides `health.path`.
    #[serde(default)]
    pub health_path: Option<String>,
    /// Overrides the top-level `slow_start_s`.
    #[serde(default)]
    pub slow_start_s: Option<u64>,
    /// Name certificates are checked against; default: the name, or the target of the SRV record.
    #[serde(default)]
    pub tls_name: Option<String>,
    /// Overrides the top-level `kv_events`; in sources `{address}` stands for the worker's.
    #[serde(default)]
    pub kv_events: Option<KvEvents>,
}

fn any() -> String {
    "any".to_owned()
}

fn http() -> String {
    "http".to_owned()
}

fn one() -> f64 {
    1.0
}
