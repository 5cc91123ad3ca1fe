//! Where workers are found that the configuration does not name: a watched file, DNS names.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use super::{
    ConfigError, KvEvents, WorkerConfig, WorkerUrl, file,
    parse::document,
    validate::{Checked, address, at_least},
    workers::{WorkerDefaults, worker, workers},
};
use crate::routing::worker::WorkerId;

/// Most names; each may stand for many workers.
const NAMES_MAX: usize = 256;
/// Most name servers: more are never asked.
const NAMESERVERS_MAX: usize = 8;
/// What stands for a worker's address in the sources of its KV events.
const ADDRESS: &str = "{address}";

/// Sources of workers; at least one.
#[derive(Debug, Clone, PartialEq)]
pub struct DiscoveryConfig {
    /// A watched file.
    pub file: Option<FileSource>,
    /// DNS names.
    pub dns: Vec<DnsSource>,
    /// Shortest time between two questions for the same.
    pub interval_min: Duration,
    /// Longest.
    pub interval_max: Duration,
    /// How long answers must be empty before they are believed.
    pub empty_grace: Duration,
    /// Name servers; `None` = those of the system.
    pub nameservers: Option<Vec<SocketAddr>>,
}

/// A file that lists workers.
#[derive(Debug, Clone, PartialEq)]
pub struct FileSource {
    /// Where it is.
    pub path: PathBuf,
    /// Pause between two looks.
    pub interval: Duration,
    /// What its workers get that say nothing of it.
    pub defaults: WorkerDefaults,
}

impl FileSource {
    /// Reads workers from the text of the file. Host names are resolved, which may take seconds.
    ///
    /// # Errors
    /// `ConfigError` for the first thing that is wrong; then none of them can be used.
    pub fn parse(&self, text: &str) -> Result<Vec<WorkerConfig>, ConfigError> {
        let (entries, _): (Vec<file::Worker>, _) = document(text, "write `[]` for no workers")?;
        workers("", &entries, &self.defaults)
    }
}

/// A DNS name of workers.
#[derive(Debug, Clone, PartialEq)]
pub struct DnsSource {
    /// What it is called in logs and metrics: the name, with the port where that is configured.
    pub key: Arc<str>,
    /// The name, without a final dot. Always taken as fully qualified.
    pub name: String,
    /// The port of kind `a`; `None` = SRV.
    pub port: Option<u16>,
    /// Whether A is asked for.
    pub ipv4: bool,
    /// Whether AAAA is asked for.
    pub ipv6: bool,
    id_prefix: String,
    /// Whether `tls_name` is to be the target's.
    tls_name_of_target: bool,
    /// A worker of this name, but for id and address.
    template: WorkerConfig,
}

impl DnsSource {
    /// The worker at this address; `target` is the host an SRV record named, `share` its weight
    /// relative to the largest.
    ///
    /// # Errors
    /// When no valid id can be made of the target's name.
    pub fn worker(
        &self,
        addr: SocketAddr,
        target: Option<&str>,
        share: f64,
    ) -> Result<WorkerConfig, ConfigError> {
        let (prefix, port, ip) = (&self.id_prefix, addr.port(), addr.ip());
        let id = match target {
            Some(target) => format!("{prefix}-{target}-{port}"),
            None => format!("{prefix}-{ip}-{port}"),
        };
        let id = WorkerId::try_new(&id).map_err(|error| {
            ConfigError::new("id", format!("`{id}`"), error.to_string(), "use a shorter id_prefix")
        })?;
        let https = self.template.url.https;
        let tls_name = match target {
            Some(target) if self.tls_name_of_target => target.to_owned(),
            _ => self.template.url.tls_name.clone(),
        };
        let text = format!("{}://{addr}", if https { "https" } else { "http" }).into();
        let url = WorkerUrl { text, https, host: ip.to_string(), tls_name, addr };
        // Three digits, as more would make a new weight of every rounding error.
        let weight = (self.template.weight * share * 1000.0).round() / 1000.0;
        Ok(WorkerConfig {
            id,
            url,
            weight: weight.clamp(0.001, 1000.0),
            kv_events: at_address(&self.template.kv_events, ip),
            ..self.template.clone()
        })
    }
}

pub(super) fn discovery(
    file: &file::Discovery,
    defaults: WorkerDefaults,
) -> Checked<DiscoveryConfig> {
    if file.file.is_none() && file.dns.is_empty() {
        let remedy = "name a `file` or a `dns` name, or remove the section";
        return Err(ConfigError::new("discovery", "{}", "finds no workers", remedy));
    }
    at_least("discovery.file_interval_s", file.file_interval_s, 1)?;
    at_least("discovery.dns_interval_min_s", file.dns_interval_min_s, 1)?;
    let (key, least) = ("discovery.dns_interval_max_s", file.dns_interval_min_s);
    at_least(key, file.dns_interval_max_s, least)?;
    // A day is more than any of them can mean, and less than what overflows.
    for (key, value) in [
        ("discovery.file_interval_s", file.file_interval_s),
        (key, file.dns_interval_max_s),
        ("discovery.dns_empty_grace_s", file.dns_empty_grace_s),
    ] {
        if value > 86_400 {
            return Err(ConfigError::new(key, value, "over a day", "write at most 86400"));
        }
    }
    Ok(DiscoveryConfig {
        dns: names(&file.dns, &defaults)?,
        file: file.file.as_ref().map(|path| FileSource {
            path: path.clone(),
            interval: Duration::from_secs(file.file_interval_s),
            defaults,
        }),
        interval_min: Duration::from_secs(file.dns_interval_min_s),
        interval_max: Duration::from_secs(file.dns_interval_max_s),
        empty_grace: Duration::from_secs(file.dns_empty_grace_s),
        nameservers: file.nameservers.as_deref().map(nameservers).transpose()?,
    })
}

fn nameservers(texts: &[String]) -> Checked<Vec<SocketAddr>> {
    let key = "discovery.nameservers";
    if !(1..=NAMESERVERS_MAX).contains(&texts.len()) {
        let remedy = "name 1 to 8, or remove the key to use those of /etc/resolv.conf";
        return Err(ConfigError::new(key, texts.len(), "bad number of name servers", remedy));
    }
    texts.iter().map(|text| address(key, text)).collect()
}

fn names(list: &[file::DnsName], defaults: &WorkerDefaults) -> Checked<Vec<DnsSource>> {
    if list.len() > NAMES_MAX {
        let remedy = "name at most 256";
        return Err(ConfigError::new("discovery.dns", list.len(), "too many names", remedy));
    }
    let mut keys = HashSet::new();
    let mut sources = Vec::with_capacity(list.len());
    for (at, name) in list.iter().enumerate() {
        let key = |field: &str| format!("discovery.dns[{at}].{field}");
        let source = dns_source(&key, name, defaults)?;
        if !keys.insert(source.key.clone()) {
            let value = format!("`{}`", name.name);
            let remedy = "name it once (or once for each port)";
            return Err(ConfigError::new(key("name"), value, "named twice", remedy));
        }
        sources.push(source);
    }
    Ok(sources)
}

fn dns_source(
    key: &impl Fn(&str) -> String,
    entry: &file::DnsName,
    defaults: &WorkerDefaults,
) -> Checked<DnsSource> {
    let name = dns_name(&key("name"), &entry.name)?;
    let is_srv = match entry.kind.as_deref() {
        None => name.starts_with('_'),
        Some("a") => false,
        Some("srv") => true,
        Some(other) => {
            let value = format!("`{other}`");
            return Err(ConfigError::new(key("kind"), value, "unknown kind", "write a or srv"));
        }
    };
    let port = match (is_srv, entry.port) {
        (false, Some(port)) if port > 0 => Some(port),
        (true, None) => None,
        (false, port) => {
            let value = port.map_or("absent".to_owned(), |port| port.to_string());
            let remedy = "write the port its workers listen on";
            return Err(ConfigError::new(key("port"), value, "no port", remedy));
        }
        (true, Some(port)) => {
            let remedy = "remove it: SRV records bring their own";
            return Err(ConfigError::new(key("port"), port, "without effect", remedy));
        }
    };
    let (ipv4, ipv6) = match entry.family.as_str() {
        "any" => (true, true),
        "ipv4" => (true, false),
        "ipv6" => (false, true),
        other => {
            let remedy = "write any, ipv4 or ipv6";
            let value = format!("`{other}`");
            return Err(ConfigError::new(key("family"), value, "unknown family", remedy));
        }
    };
    let https = match entry.scheme.as_str() {
        "http" => false,
        "https" => true,
        other => {
            let value = format!("`{other}`");
            return Err(ConfigError::new(key("scheme"), value, "unknown scheme", "http or https"));
        }
    };
    let id_prefix = match &entry.id_prefix {
        Some(prefix) => prefix.clone(),
        None => name.split('.').find(|label| !label.starts_with('_')).unwrap_or(&name).to_owned(),
    };
    let longest_id = format!("{id_prefix}-{}-65535", "0".repeat(45));
    if WorkerId::try_new(&longest_id).is_err() || id_prefix.is_empty() {
        let value = format!("`{id_prefix}`");
        let remedy = "use 1 to 76 letters, digits, `.`, `_`, `:` or `-`";
        return Err(ConfigError::new(key("id_prefix"), value, "cannot begin an id", remedy));
    }
    let sample = file::Worker {
        id: format!("{id_prefix}-sample"),
        url: format!("{}://{}:{}", entry.scheme, Ipv4Addr::LOCALHOST, port.unwrap_or(1)),
        models: entry.models.clone(),
        weight: entry.weight,
        inflight_max: entry.inflight_max,
        cache_tokens: entry.cache_tokens,
        tls_name: entry.tls_name.clone().or_else(|| https.then(|| name.clone())),
        health_path: entry.health_path.clone(),
        kv_events: entry.kv_events.clone(),
        slow_start_s: entry.slow_start_s,
    };
    let template = worker(key, &sample, defaults)?;
    sources_differ(&key("kv_events"), entry.kv_events.as_ref(), &template.kv_events)?;
    Ok(DnsSource {
        key: port.map_or_else(|| name.clone(), |port| format!("{name}:{port}")).into(),
        name,
        port,
        ipv4,
        ipv6,
        id_prefix,
        tls_name_of_target: https && entry.tls_name.is_none(),
        template,
    })
}

/// A host name in lower case, without its final dot.
fn dns_name(key: &str, text: &str) -> Checked<String> {
    let bad = |problem: &str, remedy: &str| {
        Err(ConfigError::new(key, format!("`{text}`"), problem.to_owned(), remedy))
    };
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    if name.parse::<IpAddr>().is_ok() {
        return bad("an address", "name it in `workers`");
    }
    let label_fits = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    if name.len() > 253 || !name.split('.').all(label_fits) {
        return bad("not a DNS name", "write a name such as vllm.internal or _http._tcp.vllm.lan");
    }
    Ok(name)
}

/// One source for all workers of a name would file the events of one engine under all of them.
fn sources_differ(key: &str, entry: Option<&file::KvEvents>, events: &KvEvents) -> Checked<()> {
    let (Some(_), KvEvents::Sources(sources)) = (entry, events) else { return Ok(()) };
    for source in sources {
        let texts = [Some(&source.endpoint), source.replay_endpoint.as_ref()];
        for text in texts.into_iter().flatten() {
            if source.bind || !text.contains(ADDRESS) {
                let remedy = "write endpoint: \"tcp://{address}:PORT\"";
                let problem = "the same for every worker of the name";
                return Err(ConfigError::new(key, format!("`{text}`"), problem, remedy));
            }
        }
    }
    Ok(())
}

fn at_address(events: &KvEvents, ip: IpAddr) -> KvEvents {
    let KvEvents::Sources(sources) = events else { return events.clone() };
    let host = match ip {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    };
    let mut sources = sources.clone();
    for source in &mut sources {
        source.endpoint = source.endpoint.replace(ADDRESS, &host);
        source.replay_endpoint = source.replay_endpoint.as_ref().map(|r| r.replace(ADDRESS, &host));
    }
    KvEvents::Sources(sources)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{KvSource, ModelsDeclared},
        routing::InflightMax,
    };

    fn defaults() -> WorkerDefaults {
        WorkerDefaults {
            inflight_max: InflightMax::Fixed(10),
            cache_tokens: 1000,
            health_path: "/health".to_owned(),
            kv_events: KvEvents::Auto,
            slow_start_s: 10,
            verify_tls: true,
        }
    }

    fn read(yaml: &str) -> Result<DiscoveryConfig, String> {
        let (file, _): (file::Discovery, _) =
            document(yaml, "").map_err(|error| error.to_string())?;
        discovery(&file, defaults()).map_err(|error| error.to_string())
    }

    fn only(yaml: &str) -> DnsSource {
        read(yaml).expect("valid").dns.remove(0)
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn workers_of_a_name_are_called_by_their_address() {
        let source = only("dns: [{name: VLLM.internal., port: 8000, weight: 2, models: [m]}]");
        assert_eq!((&*source.key, &*source.name), ("vllm.internal:8000", "vllm.internal"));
        let worker = source.worker(at("10.0.0.5:8000"), None, 1.0).expect("a worker");
        assert_eq!(worker.id.as_str(), "vllm-10.0.0.5-8000");
        assert_eq!(&*worker.url.text, "http://10.0.0.5:8000");
        assert_eq!((worker.weight, worker.cache_tokens), (2.0, 1000));
        assert_eq!(worker.inflight_max, InflightMax::Fixed(10));
        assert_eq!(worker.models, ModelsDeclared::Listed(vec!["m".to_owned()]));
        let worker = source.worker(at("[2001:db8::5]:8000"), None, 1.0).expect("a worker");
        assert_eq!(worker.id.as_str(), "vllm-2001:db8::5-8000");
        assert_eq!(&*worker.url.text, "http://[2001:db8::5]:8000");
        assert_eq!(worker.url.host, "2001:db8::5");
    }

    #[test]
    fn workers_of_a_service_are_called_by_their_target() {
        let source = only("dns: [{name: _http._tcp.vllm.lan, scheme: https, weight: 2}]");
        assert_eq!((&*source.key, source.port), ("_http._tcp.vllm.lan", None));
        let worker = source.worker(at("10.0.0.5:81"), Some("gpu1.lan"), 1.0 / 3.0).expect("one");
        assert_eq!((worker.id.as_str(), worker.weight), ("vllm-gpu1.lan-81", 0.667));
        assert_eq!(
            (worker.url.tls_name.as_str(), &*worker.url.text),
            ("gpu1.lan", "https://10.0.0.5:81")
        );
        let tiny = source.worker(at("10.0.0.5:81"), Some("gpu1.lan"), 1e-9).expect("one");
        assert!((tiny.weight - 0.001).abs() < 1e-9, "{}", tiny.weight);
        assert!(source.worker(at("10.0.0.5:81"), Some(&"x".repeat(200)), 1.0).is_err());
        let named = only("dns: [{name: _x._tcp.v, scheme: https, tls_name: all.lan}]");
        let worker = named.worker(at("10.0.0.5:81"), Some("gpu1.lan"), 1.0).expect("one");
        assert_eq!(worker.url.tls_name, "all.lan");
        let plain = only("dns: [{name: v.lan, port: 1, scheme: https}]");
        let worker = plain.worker(at("10.0.0.5:1"), None, 1.0).expect("one");
        assert_eq!(worker.url.tls_name, "v.lan", "a certificate is for the name");
    }

    #[test]
    fn event_sources_take_the_address_of_each_worker() {
        let source = only(
            "dns: [{name: v, port: 1, kv_events: \
             {endpoint: 'tcp://{address}:5557', replay_endpoint: 'tcp://{address}:5558'}}]",
        );
        let sources = |addr: &str| source.worker(at(addr), None, 1.0).expect("one").kv_events;
        let expected = |host: &str| {
            KvEvents::Sources(vec![KvSource {
                endpoint: format!("tcp://{host}:5557"),
                bind: false,
                replay_endpoint: Some(format!("tcp://{host}:5558")),
                topic: String::new(),
            }])
        };
        assert_eq!(sources("10.0.0.5:1"), expected("10.0.0.5"));
        assert_eq!(sources("[::5]:1"), expected("[::5]"));
    }

    #[test]
    fn what_cannot_run_is_refused_by_name() {
        for (yaml, key) in [
            ("{}", "discovery: {}"),
            ("{file: x, file_interval_s: 0}", "discovery.file_interval_s: 0"),
            ("{file: x, dns_interval_min_s: 0}", "discovery.dns_interval_min_s: 0"),
            (
                "{file: x, dns_interval_min_s: 9, dns_interval_max_s: 8}",
                "discovery.dns_interval_max_s: 8",
            ),
            ("{file: x, dns_empty_grace_s: 90000}", "discovery.dns_empty_grace_s: 90000"),
            ("{file: x, nameservers: []}", "discovery.nameservers: 0"),
            ("{file: x, nameservers: [ns1]}", "discovery.nameservers: `ns1`"),
            ("dns: [{name: v}]", "discovery.dns[0].port: absent"),
            ("dns: [{name: v, port: 0}]", "discovery.dns[0].port: 0"),
            ("dns: [{name: _x._tcp.v, port: 8000}]", "discovery.dns[0].port: 8000"),
            ("dns: [{name: v, kind: mx, port: 1}]", "discovery.dns[0].kind: `mx`"),
            ("dns: [{name: v, scheme: ftp, port: 1}]", "discovery.dns[0].scheme: `ftp`"),
            ("dns: [{name: v, family: ipv5, port: 1}]", "discovery.dns[0].family: `ipv5`"),
            ("dns: [{name: '10.0.0.1', port: 1}]", "discovery.dns[0].name: `10.0.0.1`"),
            ("dns: [{name: 'a b', port: 1}]", "discovery.dns[0].name: `a b`"),
            ("dns: [{name: 'a..b', port: 1}]", "discovery.dns[0].name: `a..b`"),
            ("dns: [{name: '', port: 1}]", "discovery.dns[0].name: ``"),
            ("dns: [{name: v, port: 1}, {name: V., port: 1}]", "discovery.dns[1].name: `V.`"),
            ("dns: [{name: v, port: 1, id_prefix: 'a/b'}]", "discovery.dns[0].id_prefix: `a/b`"),
            ("dns: [{name: v, port: 1, id_prefix: ''}]", "discovery.dns[0].id_prefix: ``"),
            ("dns: [{name: v, port: 1, weight: 0}]", "discovery.dns[0].weight: 0"),
            ("dns: [{name: v, port: 1, models: []}]", "discovery.dns[0].models: []"),
            ("dns: [{name: v, port: 1, inflight_max: 0}]", "discovery.dns[0].inflight_max: 0"),
            ("dns: [{name: v, port: 1, health_path: x}]", "discovery.dns[0].health_path: `x`"),
            ("dns: [{name: v, port: 1, tls_name: x}]", "discovery.dns[0].tls_name: `x`"),
            ("dns: [{name: v, port: 1, kv_events: on}]", "discovery.dns[0].kv_events: `on`"),
            (
                "dns: [{name: v, port: 1, kv_events: {endpoint: 'tcp://h:1'}}]",
                "discovery.dns[0].kv_events: `tcp://h:1`",
            ),
        ] {
            let error = read(yaml).expect_err(yaml);
            assert!(error.starts_with(&format!("{key}: ")), "{yaml}\n{error}");
        }
        let twice = "dns: [{name: v, port: 1}, {name: v, port: 2}, {name: v, kind: srv}]";
        assert_eq!(read(twice).expect("three sources").dns.len(), 3);
    }

    #[test]
    fn a_file_of_workers_is_as_strict_as_the_configuration() {
        let source = FileSource {
            path: "workers.yaml".into(),
            interval: Duration::from_secs(1),
            defaults: defaults(),
        };
        let workers = source.parse("- {id: a, url: 'http://127.0.0.1:1', weight: 3}").expect("one");
        assert_eq!((workers.len(), workers[0].weight), (1, 3.0));
        assert_eq!(source.parse("[]").expect("none").len(), 0);
        for (text, start) in [
            ("", "file: empty"),
            ("workers: []", "."),
            ("- {id: a}", "[0].url: absent"),
            ("- {id: a, url: 'http://127.0.0.1:1', weigth: 2}", "[0].weigth: 2: unknown key"),
            (
                "- {id: a, url: 'http://127.0.0.1:1'}\n- {id: a, url: 'http://127.0.0.1:2'}",
                "[1].id",
            ),
            (
                "- {id: a, url: 'http://127.0.0.1:1'}\n- {id: b, url: 'http://127.0.0.1:1'}",
                "[1].url",
            ),
            ("- {id: a, url: 'http://127.0.0.1", ""),
        ] {
            let error = source.parse(text).expect_err(text).to_string();
            assert!(error.starts_with(start), "{text}\n{error}");
        }
    }
}
