//! Certificates made on the spot.

use std::path::{Path, PathBuf};

use openssl::{
    asn1::Asn1Time,
    bn::{BigNum, MsbOption},
    ec::{EcGroup, EcKey},
    hash::MessageDigest,
    nid::Nid,
    pkey::{PKey, Private},
    x509::{
        X509, X509NameBuilder,
        extension::{BasicConstraints, KeyUsage, SubjectAlternativeName},
    },
};

/// A certificate authority.
pub(crate) struct Authority {
    cert: X509,
    key: PKey<Private>,
}

/// A certificate with its key.
#[derive(Clone)]
pub(crate) struct Identity {
    /// Certificate.
    pub(crate) cert: X509,
    /// Key.
    pub(crate) key: PKey<Private>,
}

fn new_key() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("curve");
    PKey::from_ec_key(EcKey::generate(&group).expect("key")).expect("key")
}

fn new_cert(name: &str, key: &PKey<Private>, issuer: Option<&Authority>) -> X509 {
    let mut subject = X509NameBuilder::new().expect("name");
    subject.append_entry_by_nid(Nid::COMMONNAME, name).expect("name");
    let subject = subject.build();
    let mut serial = BigNum::new().expect("number");
    serial.rand(159, MsbOption::MAYBE_ZERO, false).expect("number");
    let mut cert = X509::builder().expect("builder");
    cert.set_version(2).expect("version");
    cert.set_serial_number(&serial.to_asn1_integer().expect("serial")).expect("serial");
    cert.set_subject_name(&subject).expect("subject");
    cert.set_issuer_name(issuer.map_or(&subject, |ca| ca.cert.subject_name())).expect("issuer");
    cert.set_pubkey(key).expect("key");
    cert.set_not_before(&Asn1Time::days_from_now(0).expect("time")).expect("time");
    cert.set_not_after(&Asn1Time::days_from_now(2).expect("time")).expect("time");
    if issuer.is_none() {
        let constraints = BasicConstraints::new().critical().ca().build().expect("constraints");
        cert.append_extension(constraints).expect("constraints");
        let usage = KeyUsage::new().critical().key_cert_sign().crl_sign().build().expect("usage");
        cert.append_extension(usage).expect("usage");
    } else {
        let mut names = SubjectAlternativeName::new();
        names.dns(name);
        if name == "localhost" {
            names.ip("127.0.0.1");
        }
        let names =
            names.build(&cert.x509v3_context(issuer.map(|ca| &*ca.cert), None)).expect("names");
        cert.append_extension(names).expect("names");
    }
    cert.sign(issuer.map_or(key, |ca| &ca.key), MessageDigest::sha256()).expect("signature");
    cert.build()
}

impl Authority {
    /// A new one.
    pub(crate) fn new(name: &str) -> Self {
        let key = new_key();
        Self { cert: new_cert(name, &key, None), key }
    }

    /// Issues an identity for localhost and 127.0.0.1.
    pub(crate) fn issue(&self) -> Identity {
        self.issue_for("localhost")
    }

    /// Issues an identity for this name.
    pub(crate) fn issue_for(&self, name: &str) -> Identity {
        let key = new_key();
        Identity { cert: new_cert(name, &key, Some(self)), key }
    }

    /// The authority's certificate.
    pub(crate) fn cert(&self) -> &X509 {
        &self.cert
    }

    /// Writes the certificate as PEM.
    pub(crate) fn write(&self, folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, self.cert.to_pem().expect("PEM")).expect("writes");
        path
    }
}

impl Identity {
    /// Writes certificate and key as PEM.
    pub(crate) fn write(&self, folder: &Path) -> (PathBuf, PathBuf) {
        let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
        std::fs::write(&cert, self.cert.to_pem().expect("PEM")).expect("writes");
        std::fs::write(&key, self.key.private_key_to_pem_pkcs8().expect("PEM")).expect("writes");
        (cert, key)
    }
}
