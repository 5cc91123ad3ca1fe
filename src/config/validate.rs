//! The file's values -> a `Config` that can run. The only way to make one.

use std::{
    collections::HashMap, net::SocketAddr, num::NonZeroUsize, path::Path, str::FromStr,
    time::Duration,
};

use super::{
    AdminConfig, Config, ConfigError, HeadersConfig, HealthConfig, IndexConfig, LogConfig,
    Policies, ReportsConfig, StateConfig, Timeouts, TlsConfig,
    discovery::discovery,
    file,
    limits::limits,
    peers,
    truth::{aligned_models, aligned_params, kv_events_mode},
    workers::{WorkerDefaults, path, workers},
};
use crate::routing::{
    OutOfRange,
    breaker::{BreakerParams, BreakerSettings},
    policy::{Policy, PolicyParams, PolicySettings},
};

pub(super) type Checked<T> = Result<T, ConfigError>;

pub(super) fn validate(file: file::File) -> Checked<Config> {
    let listen = listen_addresses(&file)?;
    let tls = file.tls.as_ref().map(tls).transpose()?;
    if listen.is_empty() && tls.is_none() {
        let remedy = "write `listen: 127.0.0.1:8080`";
        return Err(ConfigError::new("listen", "absent", "no address to serve on", remedy));
    }
    let admin = admin(&file.admin)?;
    let metrics = optional_address("metrics.listen", file.metrics.listen.as_deref())?;
    let reports = file.reports.as_ref().map(reports).transpose()?;
    let peers = file.peers.as_ref().map(peers::peers).transpose()?;
    let health = health(&file.health)?;
    let index = index(&file.index)?;
    let auto_limit = limits(&file.limits)?;
    let kv_events = kv_events_mode("kv_events", &file.kv_events)?;
    let defaults = WorkerDefaults::new(&file, &health, &index, &kv_events);
    let config = Config {
        threads: threads(file.threads)?,
        slow_start: slow_start("slow_start_s", file.slow_start_s)?,
        workers: workers("workers", &file.workers, &defaults)?,
        discovery: file.discovery.as_ref().map(|d| discovery(d, defaults)).transpose()?,
        policies: policies(&file)?,
        headers: HeadersConfig {
            session: header_name("session_header", &file.session_header)?,
            tenant: file
                .tenant_header
                .as_deref()
                .map(|name| header_name("tenant_header", name))
                .transpose()?,
            trust_request_id: file.trust_request_id,
        },
        timeouts: timeouts(&file.timeouts)?,
        breaker: breaker(&file.breaker)?,
        log: log(&file.log)?,
        aligned_models: aligned_models(&file.models)?,
        aligned: aligned_params(&file.aligned)?,
        include_usage: file.feedback.include_usage,
        kv_events,
        limits: file.limits,
        auto_limit,
        state: state(file.state)?,
        upstream_tls: upstream_tls(file.upstream_tls)?,
        listen,
        tls,
        admin,
        metrics,
        reports,
        peers,
        health,
        index,
    };
    no_shared_address(&config)?;
    let join = config.reports.as_ref().is_some_and(|reports| reports.join);
    if config.workers.is_empty() && config.discovery.is_none() && !join {
        let remedy = "name a worker, or a source of `discovery`, or let workers join with \
                      `reports: {listen: .., join: true}`";
        return Err(ConfigError::new("workers", "[]", "the fleet is empty", remedy));
    }
    Ok(config)
}

pub(super) fn address(key: &str, text: &str) -> Checked<SocketAddr> {
    let remedy = "write `ADDRESS:PORT`, for example 127.0.0.1:8080 or [::]:8080";
    let addr = SocketAddr::from_str(text)
        .map_err(|_| ConfigError::new(key, format!("`{text}`"), "not an address", remedy))?;
    if addr.port() == 0 {
        return Err(ConfigError::new(key, format!("`{text}`"), "port 0", "name a fixed port"));
    }
    Ok(addr)
}

fn optional_address(key: &str, text: Option<&str>) -> Checked<Option<SocketAddr>> {
    text.map(|text| address(key, text)).transpose()
}

fn listen_addresses(file: &file::File) -> Checked<Vec<SocketAddr>> {
    let texts = file.listen.clone().map(file::OneOrMany::into_vec).unwrap_or_default();
    texts.iter().map(|text| address("listen", text)).collect()
}

fn threads(threads: usize) -> Checked<usize> {
    if threads > 1024 {
        let remedy = "0 means one per core";
        return Err(ConfigError::new("threads", threads, "more than 1024", remedy));
    }
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    Ok(if threads == 0 { cores } else { threads })
}

fn tls(tls: &file::Tls) -> Checked<TlsConfig> {
    use pingora::tls::{pkey::PKey, x509::X509};
    let cert_pem = readable("tls.cert", &tls.cert)?;
    let key_pem = readable("tls.key", &tls.key)?;
    let bad = |key: &str, path: &Path, problem: &str, remedy: &str| {
        ConfigError::new(key, format!("`{}`", path.display()), problem, remedy)
    };
    let chain = X509::stack_from_pem(&cert_pem).unwrap_or_default();
    let Some(leaf) = chain.first() else {
        return Err(bad("tls.cert", &tls.cert, "holds no certificate", "give a PEM chain"));
    };
    let key = PKey::private_key_from_pem(&key_pem)
        .map_err(|_| bad("tls.key", &tls.key, "holds no private key", "give a PEM key"))?;
    if !leaf.public_key().is_ok_and(|public| public.public_eq(&key)) {
        let remedy = "give the key this certificate was made for";
        return Err(bad("tls.key", &tls.key, "does not fit tls.cert", remedy));
    }
    Ok(TlsConfig {
        listen: address("tls.listen", &tls.listen)?,
        cert: tls.cert.clone(),
        key: tls.key.clone(),
    })
}

pub(super) fn readable(key: &str, path: &Path) -> Checked<Vec<u8>> {
    std::fs::read(path).map_err(|error| {
        let value = format!("`{}`", path.display());
        ConfigError::new(key, value, error.to_string(), "name a file this user can read")
    })
}

fn admin(admin: &file::Admin) -> Checked<Option<AdminConfig>> {
    not_empty("admin.token", admin.token.as_deref())?;
    if !admin.token.iter().all(|token| token.bytes().all(|b| b.is_ascii_graphic())) {
        let (problem, remedy) = ("cannot be sent in a header", "write ASCII without spaces");
        return Err(ConfigError::new("admin.token", "(not shown)", problem, remedy));
    }
    let listen = optional_address("admin.listen", admin.listen.as_deref())?;
    Ok(listen.map(|listen| AdminConfig { listen, token: admin.token.clone() }))
}

fn not_empty(key: &str, token: Option<&str>) -> Checked<()> {
    if token == Some("") {
        let remedy = "write a token or remove the key";
        return Err(ConfigError::new(key, "``", "empty", remedy));
    }
    Ok(())
}

/// The time a slow start takes.
pub(super) fn slow_start(key: &str, seconds: u64) -> Checked<Duration> {
    if seconds > 3600 {
        let remedy = "write 0 (off) to 3600";
        return Err(ConfigError::new(key, seconds, "too long", remedy));
    }
    Ok(Duration::from_secs(seconds))
}

fn reports(reports: &file::Reports) -> Checked<ReportsConfig> {
    let Some(listen) = optional_address("reports.listen", reports.listen.as_deref())? else {
        let remedy = "give it an address, or remove `reports`";
        return Err(ConfigError::new("reports.listen", "absent", "nobody can report", remedy));
    };
    not_empty("reports.token", reports.token.as_deref())?;
    at_least("reports.body_bytes_max", reports.body_bytes_max as u64, 1024)?;
    at_least("reports.queue_batches_max", reports.queue_batches_max as u64, 1)?;
    at_least("reports.lease_s", reports.lease_s, 1)?;
    Ok(ReportsConfig {
        listen,
        token: reports.token.clone(),
        body_bytes_max: reports.body_bytes_max,
        queue_batches_max: reports.queue_batches_max,
        join: reports.join,
        joined_workers_max: reports.joined_workers_max,
        lease: Duration::from_secs(reports.lease_s),
    })
}

pub(super) fn at_least(key: &str, value: u64, least: u64) -> Checked<()> {
    if value < least {
        let remedy = format!("write {least} or more");
        return Err(ConfigError::new(key, value, "too small", remedy));
    }
    Ok(())
}

fn policies(file: &file::File) -> Checked<Policies> {
    let policy = |key: &str, name: &str| {
        Policy::from_str(name).map_err(|_| {
            let remedy = format!("one of {}", Policy::NAMES.join(", "));
            ConfigError::new(key, format!("`{name}`"), "unknown policy", remedy)
        })
    };
    let top = policy("policy", &file.policy)?;
    let top_params = policy_params("policy_params", &file.policy_params, PolicyParams::default())?;
    let mut models = HashMap::new();
    for (name, model) in &file.models {
        let key = format!("models.{name}");
        let chosen = match &model.policy {
            Some(named) => policy(&format!("{key}.policy"), named)?,
            None => top,
        };
        let params = match &model.policy_params {
            Some(params) => policy_params(&format!("{key}.policy_params"), params, top_params)?,
            None => top_params,
        };
        models.insert(name.clone(), (chosen, params));
    }
    let shadow = |shadow: &file::Shadow| {
        let named = policy("shadow.policy", &shadow.policy)?;
        let params = policy_params("shadow.policy_params", &shadow.policy_params, top_params)?;
        Ok((named, params))
    };
    let shadow = file.shadow.as_ref().map(shadow).transpose()?;
    let override_allowed = file.policy_override;
    Ok(Policies { default: (top, top_params), models, override_allowed, shadow })
}

fn policy_params(
    key: &str,
    file: &file::PolicyParams,
    base: PolicyParams,
) -> Checked<PolicyParams> {
    let base = base.settings();
    let settings = PolicySettings {
        decode_tokens: file.decode_tokens.unwrap_or(base.decode_tokens),
        bounded_load: file.bounded_load.unwrap_or(base.bounded_load),
        hit_weight: file.hit_weight.unwrap_or(base.hit_weight),
        load_weight: file.load_weight.unwrap_or(base.load_weight),
    };
    PolicyParams::try_new(settings).map_err(|error| out_of_range(key, &error))
}

fn out_of_range(key: &str, error: &OutOfRange) -> ConfigError {
    let key = format!("{key}.{}", error.name);
    ConfigError::new(key, &error.value, "out of range", format!("write {}", error.must_be))
}

pub(super) fn between(key: &str, value: f64, least: f64, most: f64) -> Checked<f64> {
    if value.is_finite() && value >= least && value <= most {
        return Ok(value);
    }
    let remedy = format!("write a number from {least} to {most}");
    Err(ConfigError::new(key, value, "out of range", remedy))
}

fn header_name(key: &str, text: &str) -> Checked<http::HeaderName> {
    http::HeaderName::from_str(text).map_err(|_| {
        let remedy = "write a name such as x-session-id";
        ConfigError::new(key, format!("`{text}`"), "not a header name", remedy)
    })
}

fn timeouts(t: &file::Timeouts) -> Checked<Timeouts> {
    for (key, value) in [
        ("timeouts.connect_ms", t.connect_ms),
        ("timeouts.silence_s", t.silence_s),
        ("timeouts.pool_idle_ms", t.pool_idle_ms),
        ("timeouts.body_silence_s", t.body_silence_s),
        ("timeouts.body_total_s", t.body_total_s),
        ("timeouts.client_write_s", t.client_write_s),
        ("timeouts.upgrade_s", t.upgrade_s),
    ] {
        at_least(key, value, 1)?;
    }
    Ok(Timeouts {
        connect: Duration::from_millis(t.connect_ms),
        silence: Duration::from_secs(t.silence_s),
        pool_idle: Duration::from_millis(t.pool_idle_ms),
        body_silence: Duration::from_secs(t.body_silence_s),
        body_total: Duration::from_secs(t.body_total_s),
        client_write: Duration::from_secs(t.client_write_s),
        drain: Duration::from_secs(t.drain_s),
        upgrade: Duration::from_secs(t.upgrade_s),
    })
}

fn health(health: &file::Health) -> Checked<HealthConfig> {
    at_least("health.interval_ms", health.interval_ms, 10)?;
    at_least("health.timeout_ms", health.timeout_ms, 10)?;
    at_least("health.models_interval_ms", health.models_interval_ms, 100)?;
    at_least("health.healthy_after", health.healthy_after as u64, 1)?;
    at_least("health.unhealthy_after", health.unhealthy_after as u64, 1)?;
    let tcp = match health.kind.as_str() {
        "http" => false,
        "tcp" => true,
        other => {
            let value = format!("`{other}`");
            return Err(ConfigError::new("health.kind", value, "unknown kind", "http or tcp"));
        }
    };
    Ok(HealthConfig {
        tcp,
        interval: Duration::from_millis(health.interval_ms),
        timeout: Duration::from_millis(health.timeout_ms),
        healthy_after: health.healthy_after,
        unhealthy_after: health.unhealthy_after,
        path: path("health.path", &health.path)?,
        models_interval: Duration::from_millis(health.models_interval_ms),
    })
}

fn breaker(b: &file::Breaker) -> Checked<BreakerParams> {
    BreakerParams::try_new(BreakerSettings {
        failures_in_row_max: b.failures_in_row_max,
        success_share_min: b.success_share_min,
        window: Duration::from_millis(b.window_ms),
        outcomes_min: b.outcomes_min,
        cool_down_first: Duration::from_millis(b.cool_down_first_ms),
        cool_down_max: Duration::from_millis(b.cool_down_max_ms),
        ..BreakerSettings::default()
    })
    .map_err(|error| {
        let clock = ["window", "cool_down_first", "cool_down_max"].contains(&error.name);
        let key = format!("breaker.{}{}", error.name, if clock { "_ms" } else { "" });
        ConfigError::new(key, &error.value, "out of range", format!("write {}", error.must_be))
    })
}

fn index(index: &file::Index) -> Checked<IndexConfig> {
    let block_bytes = NonZeroUsize::new(index.block_bytes)
        .filter(|bytes| (16..=65_536).contains(&bytes.get()))
        .ok_or_else(|| {
            let remedy = "write 16 to 65536";
            ConfigError::new("index.block_bytes", index.block_bytes, "out of range", remedy)
        })?;
    at_least("index.bytes_max", index.bytes_max as u64, 64 << 10)?;
    at_least("index.cache_tokens", index.cache_tokens, 1)?;
    at_least("index.presumed_ttl_s", index.presumed_ttl_s, 1)?;
    Ok(IndexConfig {
        block_bytes,
        bytes_max: index.bytes_max,
        cache_tokens: index.cache_tokens,
        presumed_ttl: Duration::from_secs(index.presumed_ttl_s),
        credits: [
            between("index.cpu_credit", index.cpu_credit, 0.0, 1.0)?,
            between("index.storage_credit", index.storage_credit, 0.0, 1.0)?,
        ],
    })
}

fn upstream_tls(tls: file::UpstreamTls) -> Checked<file::UpstreamTls> {
    if let Some(ca) = &tls.ca {
        let pem = readable("upstream_tls.ca", ca)?;
        if pingora::tls::x509::X509::stack_from_pem(&pem).unwrap_or_default().is_empty() {
            let value = format!("`{}`", ca.display());
            let remedy = "give a PEM file";
            return Err(ConfigError::new("upstream_tls.ca", value, "no certificate", remedy));
        }
    }
    Ok(tls)
}

fn state(state: file::State) -> Checked<StateConfig> {
    at_least("state.bytes_max", state.bytes_max, 1 << 20)?;
    if let Some(dir) = state.dir.as_ref().filter(|dir| !dir.is_absolute()) {
        let value = format!("`{}`", dir.display());
        let remedy = "write a path from the root, such as /var/lib/warmroute";
        return Err(ConfigError::new("state.dir", value, "not an absolute path", remedy));
    }
    Ok(StateConfig {
        dir: state.dir,
        interval: (state.interval_s > 0).then(|| Duration::from_secs(state.interval_s)),
        age_max: Duration::from_secs(state.age_max_s),
        bytes_max: state.bytes_max,
    })
}

fn log(log: &file::Log) -> Checked<LogConfig> {
    let json = match log.format.as_str() {
        "text" => false,
        "json" => true,
        other => {
            let value = format!("`{other}`");
            return Err(ConfigError::new("log.format", value, "unknown format", "text or json"));
        }
    };
    let level = tracing::Level::from_str(&log.level).map_err(|_| {
        let remedy = "error, warn, info, debug or trace";
        ConfigError::new("log.level", format!("`{}`", log.level), "unknown level", remedy)
    })?;
    Ok(LogConfig { json, level, access: log.access })
}

fn no_shared_address(config: &Config) -> Checked<()> {
    let mut taken: Vec<(SocketAddr, &str)> = Vec::new();
    for (addr, key) in config.addresses() {
        if let Some((_, other)) = taken.iter().find(|(other, _)| clashes(*other, addr)) {
            let problem = format!("the address of `{other}` too");
            return Err(ConfigError::new(key, addr, problem, "give each listener its own port"));
        }
        taken.push((addr, key));
    }
    Ok(())
}

fn clashes(a: SocketAddr, b: SocketAddr) -> bool {
    let same_family = a.is_ipv4() == b.is_ipv4();
    a.port() == b.port()
        && (a.ip() == b.ip()
            || (same_family && (a.ip().is_unspecified() || b.ip().is_unspecified())))
}

impl Config {
    /// Every address the process binds, with the key that names it.
    pub fn addresses(&self) -> Vec<(SocketAddr, &'static str)> {
        let mut all: Vec<_> = self.listen.iter().map(|addr| (*addr, "listen")).collect();
        all.extend(self.tls.iter().map(|tls| (tls.listen, "tls.listen")));
        all.extend(self.admin.iter().map(|admin| (admin.listen, "admin.listen")));
        all.extend(self.metrics.map(|addr| (addr, "metrics.listen")));
        all.extend(self.reports.iter().map(|reports| (reports.listen, "reports.listen")));
        all
    }
}
