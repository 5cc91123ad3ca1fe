//! What a request goes by from its start to its end.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::Peers;
use crate::{
    config::{Config, ConfigError},
    fleet::Live,
};

/// A configuration in force, as the proxy sees it.
#[derive(Debug)]
pub struct Settings {
    /// What the fleet makes of it.
    pub live: Arc<Live>,
    /// How workers are connected to.
    pub peers: Peers,
}

impl Settings {
    /// The settings of a configuration.
    ///
    /// # Errors
    /// When a certificate authority file cannot be read.
    pub fn new(live: Arc<Live>) -> Result<Self, ConfigError> {
        let peers = Peers::new(&live.config)?;
        Ok(Self { live, peers })
    }

    /// Whether workers are checked in the same way under both.
    pub fn checks_as(&self, other: &Self) -> bool {
        self.peers == other.peers && self.config().health == other.config().health
    }

    /// The configuration itself.
    pub fn config(&self) -> &Config {
        &self.live.config
    }
}

/// The settings in force, swapped whole at a reload.
pub type SharedSettings = Arc<ArcSwap<Settings>>;
