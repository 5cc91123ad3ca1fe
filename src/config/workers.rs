//! The `workers` of the file, and the URL of a worker wherever it comes from.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    str::FromStr,
};

use super::{
    ConfigError, HealthConfig, IndexConfig, KvEvents, ModelsDeclared, WorkerConfig, WorkerUrl,
    file,
    limits::inflight_max,
    truth::kv_events,
    validate::{Checked, at_least, between, slow_start},
};
use crate::routing::{InflightMax, worker::WorkerId};

/// What a worker gets that says nothing of it.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerDefaults {
    /// Saturation bound.
    pub inflight_max: InflightMax,
    /// KV cache, tokens.
    pub cache_tokens: u64,
    /// Health path.
    pub health_path: String,
    /// KV events.
    pub kv_events: KvEvents,
    /// Slow start, seconds.
    pub slow_start_s: u64,
    /// Whether certificates are checked.
    pub verify_tls: bool,
}

impl WorkerDefaults {
    pub(super) fn new(
        file: &file::File,
        health: &HealthConfig,
        index: &IndexConfig,
        events: &KvEvents,
    ) -> Self {
        Self {
            inflight_max: file.limits.inflight_max,
            cache_tokens: index.cache_tokens,
            health_path: health.path.clone(),
            kv_events: events.clone(),
            slow_start_s: file.slow_start_s,
            verify_tls: file.upstream_tls.verify,
        }
    }
}

/// The workers of a list that stands at `list` (empty: at the root of a file of its own).
pub(super) fn workers(
    list: &str,
    entries: &[file::Worker],
    defaults: &WorkerDefaults,
) -> Checked<Vec<WorkerConfig>> {
    let mut ids = HashSet::new();
    let mut urls: HashMap<SocketAddr, &str> = HashMap::new();
    let mut workers = Vec::with_capacity(entries.len());
    for (at, entry) in entries.iter().enumerate() {
        let key = |field: &str| format!("{list}[{at}].{field}");
        let worker = worker(&key, entry, defaults)?;
        if !ids.insert(&entry.id) {
            let remedy = "give every worker its own id";
            let value = format!("`{}`", entry.id);
            return Err(ConfigError::new(key("id"), value, "duplicate worker id", remedy));
        }
        if let Some(other) = urls.insert(worker.url.addr, &entry.id) {
            let problem = format!("same address as worker `{other}`");
            let value = format!("`{}`", entry.url);
            return Err(ConfigError::new(key("url"), value, problem, "name each worker once"));
        }
        workers.push(worker);
    }
    Ok(workers)
}

/// One worker; `key` gives the place of a field of it.
pub(super) fn worker(
    key: &impl Fn(&str) -> String,
    worker: &file::Worker,
    defaults: &WorkerDefaults,
) -> Checked<WorkerConfig> {
    let id = WorkerId::try_new(&worker.id).map_err(|error| {
        let remedy = "use 1 to 128 letters, digits, `.`, `_`, `:` or `-`";
        ConfigError::new(key("id"), format!("`{}`", worker.id), error.to_string(), remedy)
    })?;
    let mut url = worker_url(&key("url"), &worker.url)?;
    url.tls_name = worker_tls_name(key, worker, &url, defaults.verify_tls)?;
    let inflight_max =
        inflight_max(&key("inflight_max"), worker.inflight_max.unwrap_or(defaults.inflight_max))?;
    let cache_tokens = worker.cache_tokens.unwrap_or(defaults.cache_tokens);
    at_least(&key("cache_tokens"), cache_tokens, 1)?;
    let health_path = worker.health_path.as_deref().unwrap_or(&defaults.health_path);
    Ok(WorkerConfig {
        id,
        url,
        models: models(&key("models"), worker.models.as_deref())?,
        weight: between(&key("weight"), worker.weight, 0.001, 1000.0)?,
        inflight_max,
        cache_tokens,
        health_path: path(&key("health_path"), health_path)?,
        kv_events: kv_events(&key("kv_events"), worker.kv_events.as_ref(), &defaults.kv_events)?,
        slow_start: slow_start(
            &key("slow_start_s"),
            worker.slow_start_s.unwrap_or(defaults.slow_start_s),
        )?,
    })
}

fn worker_tls_name(
    key: &impl Fn(&str) -> String,
    worker: &file::Worker,
    url: &WorkerUrl,
    verify: bool,
) -> Checked<String> {
    if let Some(name) = &worker.tls_name {
        if name.is_empty() || !url.https {
            let remedy = "write the certificate's name, for an https worker only";
            let value = format!("`{name}`");
            return Err(ConfigError::new(key("tls_name"), value, "cannot be used", remedy));
        }
        return Ok(name.clone());
    }
    if verify && !url.can_be_verified() {
        let problem = "a certificate cannot be checked against an address";
        let remedy = "write the host's name, or set `tls_name` to the certificate's";
        return Err(ConfigError::new(key("url"), format!("`{}`", worker.url), problem, remedy));
    }
    Ok(url.host.clone())
}

fn models(key: &str, models: Option<&[String]>) -> Checked<ModelsDeclared> {
    match models {
        None => Ok(ModelsDeclared::Learn),
        Some([]) => {
            let remedy = "name a model, write [\"*\"] for any, or remove the key to learn them";
            Err(ConfigError::new(key, "[]", "no model", remedy))
        }
        Some(models) if models.iter().any(|model| model == "*") => Ok(ModelsDeclared::Any),
        Some(models) => Ok(ModelsDeclared::Listed(models.to_vec())),
    }
}

/// Parses `http://host:port` and resolves the host.
///
/// # Errors
/// When the scheme is another, a path or query is given, or the host does not resolve.
pub fn worker_url(key: &str, text: &str) -> Checked<WorkerUrl> {
    let bad = |problem: &str, remedy: &str| {
        ConfigError::new(key, format!("`{text}`"), problem.to_owned(), remedy)
    };
    let form = "write http://HOST:PORT or https://HOST:PORT";
    let url = url::Url::parse(text).map_err(|error| bad(&format!("not a URL ({error})"), form))?;
    let https = match url.scheme() {
        "http" => false,
        "https" => true,
        _ => return Err(bad("the scheme is neither http nor https", form)),
    };
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(bad("a worker's URL has no path", form));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("a worker's URL has no user name", form));
    }
    let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
        return Err(bad("no host", form));
    };
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let addr =
        (name, port).to_socket_addrs().ok().and_then(|mut addrs| addrs.next()).ok_or_else(
            || bad("the host does not resolve", "check the name, or write its address"),
        )?;
    Ok(WorkerUrl {
        text: text.trim_end_matches('/').into(),
        https,
        host: name.to_owned(),
        tls_name: name.to_owned(),
        addr,
    })
}

pub(super) fn path(key: &str, text: &str) -> Checked<String> {
    let fine = text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic());
    if !fine || http::uri::PathAndQuery::from_str(text).is_err() {
        let remedy = "write a path such as /health";
        return Err(ConfigError::new(key, format!("`{text}`"), "not a path", remedy));
    }
    Ok(text.to_owned())
}

impl WorkerUrl {
    /// Whether a certificate can be checked against its name: OpenSSL, as Pingora calls it, compares
    /// names only, not addresses.
    pub fn can_be_verified(&self) -> bool {
        !self.https || self.tls_name.parse::<IpAddr>().is_err()
    }
}
