//! Where runs are sent: policies of routers of our own, or servers that somebody else runs.

use std::collections::BTreeSet;

use bytes::Bytes;
use hyper::Method;
use warmroute_engine::load::{self, Connection};

use super::{Any, options::ReplayOptions};

/// One of the things compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// In results: the policy, or the server's name.
    pub name: String,
    /// Who answers.
    pub server: Server,
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Server {
    /// Cold engines and a router of our own with the target's policy.
    Bed,
    /// Whoever listens there.
    Url {
        /// `http://host:port`.
        url: String,
        /// Asked for by X-Router-Policy.
        policy: Option<String>,
        /// Its metrics listener.
        metrics_url: Option<String>,
    },
}

/// All that is to be compared, in turn.
///
/// # Errors
/// A name occurs twice or cannot be one, or a URL is none.
pub fn all(options: &ReplayOptions, usual: &[&str]) -> Result<Vec<Target>, Any> {
    let policies = &options.policies;
    let mut targets: Vec<Target> = match &options.target {
        None => {
            let usual = || usual.iter().map(|policy| (*policy).to_owned()).collect();
            let policies = if policies.is_empty() { usual() } else { policies.clone() };
            policies.into_iter().map(|name| Target { name, server: Server::Bed }).collect()
        }
        Some(url) => {
            let server = |policy: Option<String>| Server::Url {
                url: url.clone(),
                policy,
                metrics_url: options.metrics_url.clone(),
            };
            let asked = policies.iter().map(|policy| Target {
                name: policy.clone(),
                server: server(Some(policy.clone())),
            });
            let mut asked: Vec<Target> = asked.collect();
            if asked.is_empty() {
                asked.push(Target { name: "target".to_owned(), server: server(None) });
            }
            asked
        }
    };
    for baseline in &options.baselines {
        let (name, url) = baseline
            .split_once('=')
            .ok_or_else(|| format!("--baseline-url {baseline}: give NAME=http://HOST:PORT"))?;
        let server = Server::Url { url: url.to_owned(), policy: None, metrics_url: None };
        targets.push(Target { name: name.to_owned(), server });
    }
    let mut names = BTreeSet::new();
    for target in &targets {
        // They become names of files, keys of the configuration and headers.
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if target.name.is_empty() || !target.name.chars().all(is_plain) {
            return Err(format!(
                "`{}`: a policy or name has letters, digits, - _ and .",
                target.name
            )
            .into());
        }
        if !names.insert(&target.name) {
            return Err(
                format!("`{}` is named twice: each is played once a seed", target.name).into()
            );
        }
        if let Server::Url { url, .. } = &target.server {
            Connection::new(url)?;
        }
    }
    Ok(targets)
}

/// Empties the caches of engines that allow it.
///
/// # Errors
/// One does not.
pub async fn reset(urls: &[String]) -> Result<(), Any> {
    for url in urls {
        let mut connection = Connection::new(url)?;
        let path = "/reset_prefix_cache";
        let response = connection.send(Method::POST, path, &[], Bytes::new()).await?;
        if response.status() != 200 {
            return Err(format!("--reset-url {url}: {path} says {}", response.status()).into());
        }
    }
    Ok(())
}

/// The first model that a server names.
///
/// # Errors
/// It names none.
pub async fn first_model(url: &str) -> Result<String, Any> {
    let (status, page) = load::fetch(url, "/v1/models").await?;
    let page: serde_json::Value = serde_json::from_str(&page).unwrap_or_default();
    let model = page["data"][0]["id"].as_str().map(str::to_owned);
    let none = || format!("{url}/v1/models names no model (status {status}): give --model").into();
    model.ok_or_else(none)
}
