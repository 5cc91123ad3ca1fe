//! The certificate of the TLS listener, read anew at every reload.

use std::{path::Path, sync::Arc};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora::{
    listeners::TlsAccept,
    protocols::tls::TlsRef,
    tls::{
        ext,
        pkey::{PKey, Private},
        x509::X509,
    },
};

use crate::config::{ConfigError, TlsConfig};

/// A certificate chain, leaf first, and its key.
pub struct CertKey {
    leaf: X509,
    intermediates: Vec<X509>,
    key: PKey<Private>,
}

impl CertKey {
    /// Reads the files that `tls` names.
    ///
    /// # Errors
    /// When one has gone or changed since the configuration was checked.
    pub fn load(tls: &TlsConfig) -> Result<Self, ConfigError> {
        let bad = |key: &str, path: &Path, problem: String| {
            let value = format!("`{}`", path.display());
            ConfigError::new(key, value, problem, "give a PEM chain and its key")
        };
        let read = |key: &str, path: &Path| {
            std::fs::read(path).map_err(|error| bad(key, path, error.to_string()))
        };
        let chain = X509::stack_from_pem(&read("tls.cert", &tls.cert)?)
            .map_err(|error| bad("tls.cert", &tls.cert, error.to_string()))?;
        let key = PKey::private_key_from_pem(&read("tls.key", &tls.key)?)
            .map_err(|error| bad("tls.key", &tls.key, error.to_string()))?;
        let mut chain = chain.into_iter();
        let Some(leaf) = chain.next() else {
            return Err(bad("tls.cert", &tls.cert, "holds no certificate".to_owned()));
        };
        if !leaf.public_key().is_ok_and(|public| public.public_eq(&key)) {
            return Err(bad("tls.key", &tls.key, "does not fit tls.cert".to_owned()));
        }
        Ok(Self { leaf, intermediates: chain.collect(), key })
    }
}

/// What is shown to clients in every handshake; swapped at a reload.
pub type Certificates = Arc<ArcSwap<CertKey>>;

/// Shows it.
pub struct Presenter(pub Certificates);

#[async_trait]
impl TlsAccept for Presenter {
    async fn certificate_callback(&self, ssl: &mut TlsRef) {
        let shown = self.0.load_full();
        let outcome = ext::ssl_use_certificate(ssl, &shown.leaf)
            .and_then(|()| ext::ssl_use_private_key(ssl, &shown.key))
            .and_then(|()| {
                let mut chain = shown.intermediates.iter();
                chain.try_for_each(|cert| ext::ssl_add_chain_cert(ssl, cert))
            });
        if let Err(error) = outcome {
            tracing::error!(%error, "the certificate cannot be shown");
        }
    }
}
