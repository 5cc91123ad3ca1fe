//! The section `shadow` of the file, key by key. See `file.rs`.

use serde::Deserialize;

use super::file::PolicyParams;

/// A policy that picks beside the live one, and is not obeyed.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shadow {
    /// Its name.
    pub policy: String,
    /// Its constants; absent keys keep the top-level values.
    #[serde(default)]
    pub policy_params: PolicyParams,
}
