//! Connections to the router, with TLS and without.

use std::{net::SocketAddr, path::Path, pin::Pin, sync::Arc};

use openssl::{
    asn1::Asn1Time,
    bn::{BigNum, MsbOption},
    ec::{EcGroup, EcKey},
    error::ErrorStack,
    hash::MessageDigest,
    nid::Nid,
    pkey::PKey,
    ssl::{SslConnector, SslMethod},
    x509::{
        X509, X509NameBuilder,
        extension::{BasicConstraints, SubjectAlternativeName},
    },
};
use rustix::{io::Errno, net::RecvFlags};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_openssl::SslStream;

use super::{
    Any,
    record::{Cause, Failure},
};

/// A socket, bare or in TLS.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {
    /// The socket.
    fn tcp(&self) -> &TcpStream;
}

impl Io for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Io for SslStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref()
    }
}

/// Asks the system itself, as what tokio knows of a socket may be late: nothing unread and no end.
pub fn is_quiet(socket: &TcpStream) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    rustix::net::recv(socket, &mut [0_u8; 1][..], flags).is_err_and(|error| error == Errno::AGAIN)
}

/// Where the router listens, and whom to trust.
#[derive(Clone)]
pub struct Target {
    /// Without TLS.
    pub plain: SocketAddr,
    /// With TLS.
    pub tls: SocketAddr,
    h1: Arc<SslConnector>,
    h2: Arc<SslConnector>,
}

impl Target {
    /// Trusts this certificate alone.
    ///
    /// # Errors
    /// It is none.
    pub fn new(plain: SocketAddr, tls: SocketAddr, cert: &X509) -> Result<Self, Any> {
        let connector = |offer: &[u8]| -> Result<_, ErrorStack> {
            let mut builder = SslConnector::builder(SslMethod::tls())?;
            builder.cert_store_mut().add_cert(cert.clone())?;
            builder.set_alpn_protos(offer)?;
            Ok(Arc::new(builder.build()))
        };
        Ok(Self { plain, tls, h1: connector(b"\x08http/1.1")?, h2: connector(b"\x02h2")? })
    }

    /// A new connection.
    ///
    /// # Errors
    /// There is none, or no handshake.
    pub async fn connect(&self, tls: bool, is_h2: bool) -> Result<Box<dyn Io>, Failure> {
        let addr = if tls { self.tls } else { self.plain };
        let socket = TcpStream::connect(addr).await;
        let socket = socket.map_err(|error| Failure::new(Cause::Connect, error.to_string()))?;
        let _ = socket.set_nodelay(true);
        if !tls {
            return Ok(Box::new(socket));
        }
        let failed = |text: String| Failure::new(Cause::Handshake, text);
        let connector = if is_h2 { &self.h2 } else { &self.h1 };
        let ssl = connector.configure().and_then(|ssl| ssl.into_ssl("localhost"));
        let stream = ssl.and_then(|ssl| SslStream::new(ssl, socket));
        let mut stream = stream.map_err(|error| failed(error.to_string()))?;
        Pin::new(&mut stream).connect().await.map_err(|error| failed(error.to_string()))?;
        let chosen = stream.ssl().selected_alpn_protocol() == Some(b"h2");
        if chosen != is_h2 {
            return Err(failed("ALPN chose another protocol".to_owned()));
        }
        Ok(Box::new(stream))
    }
}

/// Makes a certificate for localhost that signs itself and writes it with its key as PEM.
///
/// # Errors
/// The files cannot be written.
pub fn write_certificate(cert_path: &Path, key_path: &Path) -> Result<X509, Any> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
    let key = PKey::from_ec_key(EcKey::generate(&group)?)?;
    let mut name = X509NameBuilder::new()?;
    name.append_entry_by_nid(Nid::COMMONNAME, "localhost")?;
    let name = name.build();
    let mut serial = BigNum::new()?;
    serial.rand(159, MsbOption::MAYBE_ZERO, false)?;
    let mut cert = X509::builder()?;
    cert.set_version(2)?;
    cert.set_serial_number(serial.to_asn1_integer()?.as_ref())?;
    cert.set_subject_name(&name)?;
    cert.set_issuer_name(&name)?;
    cert.set_pubkey(&key)?;
    cert.set_not_before(Asn1Time::days_from_now(0)?.as_ref())?;
    cert.set_not_after(Asn1Time::days_from_now(2)?.as_ref())?;
    cert.append_extension(BasicConstraints::new().critical().ca().build()?)?;
    let mut names = SubjectAlternativeName::new();
    names.dns("localhost").ip("127.0.0.1");
    let names = names.build(&cert.x509v3_context(None, None))?;
    cert.append_extension(names)?;
    cert.sign(&key, MessageDigest::sha256())?;
    let cert = cert.build();
    std::fs::write(cert_path, cert.to_pem()?)?;
    std::fs::write(key_path, key.private_key_to_pem_pkcs8()?)?;
    Ok(cert)
}
