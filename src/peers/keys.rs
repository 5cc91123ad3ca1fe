//! What the shared secret is used for besides block hashes: who may speak, and who is understood.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Length of a message's authentication code.
pub(super) const MAC_BYTES: usize = 32;

/// Changes when prompts are hashed in another way, so that routers of two versions do not take each
/// other's block names for their own.
const SCHEME: u64 = 1;

/// Keys of one fleet's routers. They cannot be told from what is sent with them.
#[derive(Clone)]
pub(super) struct Keys {
    mac: Hmac<Sha256>,
    fingerprint: u64,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({:016x})", self.fingerprint)
    }
}

impl Keys {
    /// The keys of routers that share `secret` and cut text into blocks of `block_bytes`.
    pub(super) fn new(secret: &str, block_bytes: usize) -> Self {
        let derived = |label: &str, more: &[u64]| {
            let mut mac = keyed(secret.as_bytes());
            mac.update(label.as_bytes());
            for value in more {
                mac.update(&value.to_le_bytes());
            }
            mac.finalize().into_bytes()
        };
        let fingerprint = derived("warmroute peers fingerprint", &[SCHEME, block_bytes as u64]);
        let (head, _) = fingerprint.split_first_chunk().expect("32 bytes");
        Self {
            mac: keyed(&derived("warmroute peers mac", &[])),
            fingerprint: u64::from_le_bytes(*head),
        }
    }

    /// Equal only where secret and configuration are.
    pub(super) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The code that nobody can make without the secret.
    pub(super) fn code(&self, message: &[u8]) -> [u8; MAC_BYTES] {
        self.mac.clone().chain_update(message).finalize().into_bytes().into()
    }

    /// Whether `code` is that of `message`. Takes as long whatever differs.
    pub(super) fn accepts(&self, message: &[u8], code: &[u8]) -> bool {
        self.mac.clone().chain_update(message).verify_slice(code).is_ok()
    }
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_of_one_message_and_one_secret() {
        let keys = Keys::new("sixteen letters!", 128);
        let code = keys.code(b"message");
        assert!(keys.accepts(b"message", &code));
        assert!(!keys.accepts(b"massage", &code));
        assert!(!keys.accepts(b"message", &code[..31]));
        assert!(!Keys::new("sixteen letters?", 128).accepts(b"message", &code));
    }

    #[test]
    fn fingerprints_differ_where_blocks_would() {
        let of = |secret, block_bytes| Keys::new(secret, block_bytes).fingerprint();
        assert_eq!(of("sixteen letters!", 128), of("sixteen letters!", 128));
        assert_ne!(of("sixteen letters!", 128), of("sixteen letters!", 64));
        assert_ne!(of("sixteen letters!", 128), of("sixteen letters?", 128));
        let shown = format!("{:?}", Keys::new("sixteen letters!", 128));
        assert!(!shown.contains("letters"));
    }
}
