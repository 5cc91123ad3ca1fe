//! What a configuration makes of the fleet: swapped whole at a reload, so that who took it sees one
//! configuration to the end.

use std::sync::Arc;

use super::AlignedModels;
use crate::{
    config::{Config, ConfigError},
    routing::{Policy, block::Secret},
    wire::prompt::Hashing,
};

/// A configuration in force.
#[derive(Debug)]
pub struct Live {
    /// As written.
    pub config: Arc<Config>,
    /// Models in aligned mode.
    pub aligned: AlignedModels,
    /// How prompts are hashed.
    pub hashing: Hashing,
}

impl Live {
    /// Reads what `config` names; `secret` keys all block hashes. Models that `before` had as they
    /// are now are taken over from it with all they remember.
    ///
    /// # Errors
    /// When a tokenizer cannot be used; names its key.
    pub fn new(
        config: Arc<Config>,
        secret: Secret,
        before: Option<&Self>,
    ) -> Result<Self, ConfigError> {
        let aligned = AlignedModels::load(&config, before.map(|live| &live.aligned))?;
        let hashing = Hashing {
            secret,
            block_bytes: config.index.block_bytes,
            aliases: aligned.aliases(),
            prefixes: config.policies.may_use(Policy::PrefixAffinity),
        };
        Ok(Self { config, aligned, hashing })
    }
}
