//! An HTTP/1.1 and HTTP/2 client over which a test has full control.

use std::{convert::Infallible, net::SocketAddr, pin::Pin};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response};
use http_body_util::{BodyExt, combinators::BoxBody};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use openssl::ssl::{SslConnector, SslMethod};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::AbortHandle,
};

use super::{Ask, within};

/// HTTP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proto {
    /// HTTP/1.1.
    H1,
    /// HTTP/2 with prior knowledge.
    H2,
}

type SentBody = BoxBody<Bytes, Infallible>;

enum Sender {
    H1(http1::SendRequest<SentBody>),
    H2(http2::SendRequest<SentBody>),
}

/// One connection; closed at once when dropped.
pub(crate) struct Conn {
    sender: Sender,
    authority: String,
    scheme: &'static str,
    task: AbortHandle,
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Conn {
    /// Over plain TCP.
    pub(crate) async fn open(addr: SocketAddr, proto: Proto) -> std::io::Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        Self::over(stream, addr, proto, "http").await.map_err(std::io::Error::other)
    }

    /// Over TLS; gives the protocol that ALPN chose from `offer`.
    pub(crate) async fn open_tls(
        addr: SocketAddr,
        ca: &openssl::x509::X509,
        offer: &[u8],
    ) -> (Self, Proto, Option<Vec<u8>>) {
        let mut builder = SslConnector::builder(SslMethod::tls()).expect("builder");
        builder.cert_store_mut().add_cert(ca.clone()).expect("adds");
        if !offer.is_empty() {
            builder.set_alpn_protos(offer).expect("ALPN");
        }
        let ssl = builder.build().configure().expect("TLS").into_ssl("localhost").expect("TLS");
        let stream = TcpStream::connect(addr).await.expect("connects");
        let mut stream = tokio_openssl::SslStream::new(ssl, stream).expect("TLS");
        Pin::new(&mut stream).connect().await.expect("TLS handshake");
        let chosen = stream.ssl().selected_alpn_protocol().map(<[u8]>::to_vec);
        let proto = if chosen.as_deref() == Some(b"h2") { Proto::H2 } else { Proto::H1 };
        let conn = Self::over(stream, addr, proto, "https").await.expect("HTTP handshake");
        (conn, proto, chosen)
    }

    async fn over<S>(
        stream: S,
        addr: SocketAddr,
        proto: Proto,
        scheme: &'static str,
    ) -> Result<Self, hyper::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(stream);
        let (sender, task) = match proto {
            Proto::H1 => {
                let (sender, conn) = http1::handshake(io).await?;
                (Sender::H1(sender), tokio::spawn(async { drop(conn.await) }))
            }
            Proto::H2 => {
                let (sender, conn) = http2::handshake(TokioExecutor::new(), io).await?;
                (Sender::H2(sender), tokio::spawn(async { drop(conn.await) }))
            }
        };
        Ok(Self { sender, authority: addr.to_string(), scheme, task: task.abort_handle() })
    }

    /// Sends; the answer when its header is there.
    pub(crate) async fn send(&mut self, ask: &Ask) -> Result<Response<Incoming>, hyper::Error> {
        self.send_with(ask, ask.sent_body()).await
    }

    /// Sends with this body instead of the ask's own.
    pub(crate) async fn send_with(
        &mut self,
        ask: &Ask,
        body: SentBody,
    ) -> Result<Response<Incoming>, hyper::Error> {
        match &mut self.sender {
            Sender::H1(sender) => {
                let ask = ask.clone().over(Proto::H1);
                sender.ready().await?;
                sender.send_request(ask.to_request(&self.authority, self.scheme, body)).await
            }
            Sender::H2(sender) => {
                let ask = ask.clone().over(Proto::H2);
                sender.ready().await?;
                sender.send_request(ask.to_request(&self.authority, self.scheme, body)).await
            }
        }
    }

    /// Sends and reads the whole answer; panics when there is none before the deadline.
    pub(crate) async fn ask(&mut self, ask: &Ask) -> Answer {
        within(&format!("{} {}", ask.method, ask.path), async {
            let response = self.send(ask).await.expect("an answer");
            Answer::read(response).await
        })
        .await
    }

    /// Whether a further request could be sent.
    pub(crate) async fn is_open(&mut self) -> bool {
        match &mut self.sender {
            Sender::H1(sender) => sender.ready().await.is_ok(),
            Sender::H2(sender) => sender.ready().await.is_ok(),
        }
    }
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Why the body did not end cleanly.
    pub(crate) broken: Option<String>,
}

/// What an echoing worker says of a request.
#[derive(Debug, Deserialize)]
pub(crate) struct Echo {
    pub(crate) worker: String,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body_bytes: usize,
    pub(crate) sha256: String,
}

impl Echo {
    /// Values of a request header at the worker.
    pub(crate) fn header(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(known, _)| known == name);
        named.map(|(_, value)| value.as_str()).collect()
    }
}

impl Answer {
    async fn read(response: Response<Incoming>) -> Self {
        let (parts, mut body) = response.into_parts();
        let mut bytes = BytesMut::new();
        let mut broken = None;
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        bytes.extend_from_slice(&data);
                    }
                }
                Err(error) => {
                    broken = Some(format!("{error:?}"));
                    break;
                }
            }
        }
        let (status, headers) = (parts.status.as_u16(), parts.headers);
        Self { status, headers, body: bytes.freeze(), broken }
    }

    /// The one value of a header; panics when there is none or more than one.
    pub(crate) fn header(&self, name: &str) -> &str {
        the_header(&self.headers, name)
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    /// What the worker says of the request; panics when the answer is not a worker's echo.
    pub(crate) fn echo(&self) -> Echo {
        assert_eq!(self.status, 200, "{self:?}");
        assert_eq!(self.broken, None, "{self:?}");
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not an echo: {self:?}"))
    }

    /// Holds it to the contract of every answer: the router's headers, each once.
    pub(crate) fn assert_stamped(&self) {
        assert_stamped(&self.headers);
    }

    /// Holds it to the contract of our own errors.
    pub(crate) fn assert_error(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{self:?}");
        self.assert_stamped();
        assert_eq!(self.header("content-type"), "application/json");
        assert_eq!(error_of(&self.json()), code, "{self:?}");
        assert_eq!(self.broken, None, "{self:?}");
    }
}

/// The code of an error in OpenAI's shape; panics when it has another.
pub(crate) fn error_of(json: &Value) -> String {
    let error = &json["error"];
    assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{json}");
    assert!(error["type"].as_str().is_some_and(|text| text.ends_with("_error")), "{json}");
    assert!(error.get("param").is_some(), "{json}");
    error["code"].as_str().expect("a code").to_owned()
}

fn the_header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    let values: Vec<_> = headers.get_all(name).iter().collect();
    assert_eq!(values.len(), 1, "{name} in {headers:?}");
    values[0].to_str().expect("text")
}

fn assert_stamped(headers: &HeaderMap) {
    for name in ["x-router-backend", "x-router-reason", "x-request-id"] {
        assert!(!the_header(headers, name).is_empty(), "{name} in {headers:?}");
    }
    let matched = the_header(headers, "x-router-matched");
    let parts = matched.split_once('/').expect("n/m");
    let matched: usize = parts.0.parse().expect("a number");
    let total: usize = parts.1.parse().expect("a number");
    assert!(matched <= total, "{headers:?}");
}

/// An answer of which the header is there.
pub(crate) struct Open {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    body: Incoming,
    unread: BytesMut,
    conn: Conn,
}

impl Open {
    pub(super) fn new(response: Response<Incoming>, conn: Conn) -> Self {
        let (parts, body) = response.into_parts();
        Self {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
            unread: BytesMut::new(),
            conn,
        }
    }

    /// The one value of a header.
    pub(crate) fn header(&self, name: &str) -> &str {
        the_header(&self.headers, name)
    }

    /// Holds it to the contract of every answer.
    pub(crate) fn assert_stamped(&self) {
        assert_stamped(&self.headers);
    }

    /// The data of the next server-sent event; `None` at a clean end.
    ///
    /// # Errors
    /// The stream ended uncleanly.
    pub(crate) async fn event(&mut self) -> Result<Option<String>, String> {
        within("the next event", async {
            loop {
                if let Some(at) = self.unread.windows(2).position(|two| two == b"\n\n") {
                    let event = self.unread.split_to(at + 2);
                    let text = String::from_utf8_lossy(&event[..at]).into_owned();
                    let data = text.strip_prefix("data: ").expect("a data line");
                    return Ok(Some(data.to_owned()));
                }
                match self.body.frame().await {
                    None => {
                        assert!(self.unread.is_empty(), "half an event: {:?}", self.unread);
                        return Ok(None);
                    }
                    Some(Ok(frame)) => {
                        if let Ok(data) = frame.into_data() {
                            self.unread.extend_from_slice(&data);
                        }
                    }
                    Some(Err(error)) => return Err(format!("{error:?}")),
                }
            }
        })
        .await
    }

    /// All events until the end, and how it ended.
    pub(crate) async fn rest(&mut self) -> (Vec<String>, Result<(), String>) {
        let mut events = Vec::new();
        loop {
            match self.event().await {
                Ok(Some(event)) => events.push(event),
                Ok(None) => return (events, Ok(())),
                Err(error) => return (events, Err(error)),
            }
        }
    }

    /// Drops the answer but keeps the connection: over HTTP/2 a reset of this stream only.
    pub(crate) fn reset(self) -> Conn {
        self.conn
    }
}
