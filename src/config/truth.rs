//! What the router knows of caches by: engine events, tokenizers, block hashes.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    num::NonZeroUsize,
    path::PathBuf,
    time::Duration,
};

use super::{
    ConfigError, file,
    validate::{Checked, at_least},
};

/// Where a worker's KV events come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvEvents {
    /// Nowhere.
    Off,
    /// Ask its /kv_event_sources.
    Auto,
    /// From these, one a data-parallel rank.
    Sources(Vec<KvSource>),
}

/// One publisher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvSource {
    /// `tcp://HOST:PORT`.
    pub endpoint: String,
    /// Whether we bind it and the engine connects.
    pub bind: bool,
    /// Its replay socket.
    pub replay_endpoint: Option<String>,
    /// Topic subscribed to.
    pub topic: String,
}

/// A model in aligned mode.
#[derive(Debug, Clone)]
pub struct AlignedConfig {
    /// Its name in the configuration.
    pub name: String,
    /// Folder of its tokenizer.
    pub tokenizer: PathBuf,
    /// Other names.
    pub aliases: Vec<String>,
    /// How engines name its blocks.
    pub block_hash: Option<BlockHashConfig>,
}

/// The engines' own block hash.
#[derive(Debug, Clone)]
pub struct BlockHashConfig {
    /// SHA-256 of canonical CBOR, instead of a pickle.
    pub cbor: bool,
    /// Tokens a block.
    pub block_tokens: NonZeroUsize,
    /// PYTHONHASHSEED.
    pub seed: Option<String>,
}

/// Aligned mode, for all its models.
#[derive(Debug, Clone)]
pub struct AlignedParams {
    /// Pause between two parity checks; none = no checks.
    pub parity_interval: Option<Duration>,
    /// Memory of a model's segment cache, bytes.
    pub segment_cache_bytes: usize,
    /// Largest request aligned, bytes.
    pub body_bytes_max: usize,
}

pub(super) fn aligned_params(aligned: &file::Aligned) -> Checked<AlignedParams> {
    at_least("aligned.body_bytes_max", aligned.body_bytes_max as u64, 1024)?;
    Ok(AlignedParams {
        parity_interval: (aligned.parity_interval_s > 0)
            .then(|| Duration::from_secs(aligned.parity_interval_s)),
        segment_cache_bytes: aligned.segment_cache_bytes,
        body_bytes_max: aligned.body_bytes_max,
    })
}

pub(super) fn aligned_models(
    models: &BTreeMap<String, file::Model>,
) -> Checked<HashMap<String, AlignedConfig>> {
    let mut names: HashSet<&str> = models.keys().map(String::as_str).collect();
    let mut aligned = HashMap::new();
    for (name, model) in models {
        let key = |field: &str| format!("models.{name}.{field}");
        let Some(tokenizer) = &model.tokenizer else {
            if !model.aliases.is_empty() {
                let remedy = "give the model a `tokenizer`, or remove its aliases";
                let value = model.aliases.join(", ");
                return Err(ConfigError::new(key("aliases"), value, "without effect", remedy));
            }
            if let Some(hash) = &model.block_hash {
                let remedy = "give the model a `tokenizer`, or remove `block_hash`";
                let value = format!("`{}`", hash.algorithm);
                return Err(ConfigError::new(key("block_hash"), value, "without effect", remedy));
            }
            continue;
        };
        for alias in &model.aliases {
            if !names.insert(alias) {
                let problem = "names two models";
                let remedy = "give each name to one model";
                return Err(ConfigError::new(key("aliases"), alias, problem, remedy));
            }
        }
        let block_hash =
            model.block_hash.as_ref().map(|hash| block_hash(&key, hash)).transpose()?;
        let config = AlignedConfig {
            name: name.clone(),
            tokenizer: tokenizer.clone(),
            aliases: model.aliases.clone(),
            block_hash,
        };
        aligned.insert(name.clone(), config);
    }
    Ok(aligned)
}

fn block_hash(key: &impl Fn(&str) -> String, hash: &file::BlockHash) -> Checked<BlockHashConfig> {
    let cbor = match hash.algorithm.as_str() {
        "sha256" => false,
        "sha256_cbor" => true,
        other => {
            let value = format!("`{other}`");
            let remedy = "sha256 or sha256_cbor (vLLM: --prefix-caching-hash-algo)";
            let key = key("block_hash.algorithm");
            return Err(ConfigError::new(key, value, "unknown algorithm", remedy));
        }
    };
    let block_tokens =
        NonZeroUsize::new(hash.block_tokens).filter(|t| t.get() <= 4096).ok_or_else(|| {
            let key = key("block_hash.block_tokens");
            ConfigError::new(key, hash.block_tokens, "out of range", "write 1 to 4096")
        })?;
    Ok(BlockHashConfig { cbor, block_tokens, seed: hash.seed.clone() })
}

pub(super) fn kv_events_mode(key: &str, text: &str) -> Checked<KvEvents> {
    match text {
        "auto" => Ok(KvEvents::Auto),
        "off" => Ok(KvEvents::Off),
        other => {
            let remedy = "auto, off, or for one worker {endpoint: \"tcp://HOST:PORT\"}";
            Err(ConfigError::new(key, format!("`{other}`"), "unknown mode", remedy))
        }
    }
}

pub(super) fn kv_events(
    key: &str,
    events: Option<&file::KvEvents>,
    default: &KvEvents,
) -> Checked<KvEvents> {
    match events {
        None => Ok(default.clone()),
        Some(file::KvEvents::Mode(mode)) => kv_events_mode(key, mode),
        Some(file::KvEvents::One(source)) => Ok(KvEvents::Sources(vec![kv_source(key, source)?])),
        Some(file::KvEvents::Many(sources)) if (1..=64).contains(&sources.len()) => {
            let sources = sources.iter().map(|source| kv_source(key, source));
            Ok(KvEvents::Sources(sources.collect::<Checked<_>>()?))
        }
        Some(file::KvEvents::Many(sources)) => {
            let remedy = "name 1 to 64 sources, or write off";
            Err(ConfigError::new(key, sources.len(), "bad number of sources", remedy))
        }
    }
}

fn kv_source(key: &str, source: &file::KvSource) -> Checked<KvSource> {
    let (endpoint, bind) = match (&source.endpoint, &source.bind) {
        (Some(endpoint), None) => (endpoint, false),
        (None, Some(bind)) => (bind, true),
        (endpoint, _) => {
            let value = if endpoint.is_some() { "both" } else { "neither" };
            let problem = "exactly one of `endpoint` and `bind` is needed";
            let remedy = "write {endpoint: \"tcp://HOST:PORT\"}";
            return Err(ConfigError::new(key, value, problem, remedy));
        }
    };
    for endpoint in [Some(endpoint), source.replay_endpoint.as_ref()].into_iter().flatten() {
        let port = endpoint.strip_prefix("tcp://").and_then(|rest| rest.rsplit_once(':'));
        let fine = port.is_some_and(|(host, port)| {
            !host.is_empty() && host != "*" && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        if !fine {
            let problem = "not an endpoint";
            let remedy = "write tcp://HOST:PORT";
            return Err(ConfigError::new(key, format!("`{endpoint}`"), problem, remedy));
        }
    }
    let address = endpoint.trim_start_matches("tcp://");
    if bind && address.parse::<std::net::SocketAddr>().is_err() {
        let remedy = "write tcp://ADDRESS:PORT, for example tcp://0.0.0.0:5557";
        return Err(ConfigError::new(key, format!("`{endpoint}`"), "no address to bind", remedy));
    }
    Ok(KvSource {
        endpoint: endpoint.clone(),
        bind,
        replay_endpoint: source.replay_endpoint.clone(),
        topic: source.topic.clone(),
    })
}
