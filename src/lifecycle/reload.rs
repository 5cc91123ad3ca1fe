//! A new configuration for the running process.
//!
//! Everything that can fail is done first; then the new settings are put in force one after the
//! other. A request took its settings when it came and keeps them to its end.

use std::{path::PathBuf, sync::Arc};

use parking_lot::Mutex;
use serde::Serialize;
use serde_yaml_ng::Value;
use tokio::sync::watch;

use super::notify;
use crate::{
    clock,
    config::{self, ConfigError, DiscoveryConfig},
    fleet::{Fleet, Live, Origin},
    proxy::{CertKey, Certificates, Peers, Settings, SharedSettings},
    telemetry::{access_log, lifecycle, logging},
};

/// What a reload changed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Reloaded {
    /// Keys of the file that differ from before.
    pub changed: Vec<String>,
    /// Those that only a new process can take up.
    pub needs_upgrade: Vec<&'static str>,
}

/// Reads the file again, one at a time.
pub struct Reloader {
    path: PathBuf,
    fleet: Arc<Fleet>,
    settings: SharedSettings,
    certificates: Option<Certificates>,
    discovery: watch::Sender<Option<Arc<DiscoveryConfig>>>,
    /// The file in force.
    yaml: Mutex<Value>,
}

impl Reloader {
    /// Reloads the file at `path`, of which `yaml` is in force.
    pub fn new(
        path: PathBuf,
        yaml: Value,
        fleet: Arc<Fleet>,
        settings: SharedSettings,
        certificates: Option<Certificates>,
        discovery: watch::Sender<Option<Arc<DiscoveryConfig>>>,
    ) -> Self {
        Self { path, fleet, settings, certificates, discovery, yaml: Mutex::new(yaml) }
    }

    /// Puts the file in force as it is now. Blocks: it reads files and resolves names.
    ///
    /// # Errors
    /// When it cannot run; nothing was changed.
    pub fn reload(&self) -> Result<Reloaded, ConfigError> {
        let mut yaml = self.yaml.lock();
        notify::reloading();
        let outcome = self.attempt(&mut yaml);
        match &outcome {
            Ok(reloaded) => {
                lifecycle::reloaded(&reloaded.changed, &reloaded.needs_upgrade);
                notify::reloaded(&match &*reloaded.needs_upgrade {
                    [] => "serving".to_owned(),
                    keys => format!("serving; `warmroute upgrade` is due for {}", keys.join(", ")),
                });
            }
            Err(error) => {
                lifecycle::reload_refused(error);
                notify::reloaded(&format!("serving; the last reload was refused: {error}"));
            }
        }
        outcome
    }

    fn attempt(&self, yaml: &mut Value) -> Result<Reloaded, ConfigError> {
        let config::Loaded { mut config, yaml: new_yaml } = config::read(&self.path)?;
        let running = self.fleet.live();
        let needs_upgrade = config.keep_cold(&running.config);
        let certificate = match (&self.certificates, &config.tls) {
            (Some(_), Some(tls)) => Some(Arc::new(CertKey::load(tls)?)),
            _ => None,
        };
        let config = Arc::new(config);
        let live = Live::new(config.clone(), running.hashing.secret.clone(), Some(&running))?;
        let peers = Peers::new(&config)?;
        if config.log.access {
            access_log::start(config.log.json).map_err(|error| {
                let remedy = "allow this user more threads";
                ConfigError::new("log.access", true, error.to_string(), remedy)
            })?;
        } else {
            access_log::stop();
        }
        // From here on nothing fails.
        let now = clock::now();
        self.fleet.set_live(live, now);
        self.fleet.set_workers(&Origin::Static, config.workers.clone(), now);
        self.discovery.send_replace(config.discovery.clone().map(Arc::new));
        self.settings.store(Arc::new(Settings { live: self.fleet.live(), peers }));
        if let (Some(certificates), Some(certificate)) = (&self.certificates, certificate) {
            certificates.store(certificate);
        }
        logging::set_level(&config.log);
        let changed = config::changed_keys(yaml, &new_yaml);
        *yaml = new_yaml;
        Ok(Reloaded { changed, needs_upgrade })
    }
}
