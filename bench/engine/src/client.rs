//! A small HTTP/1.1 client: one kept-alive connection to one server.

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST, HeaderValue};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Why there was no response.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL is not of the form `http://host:port`.
    #[error("{0:?} is not an http://host:port URL")]
    Url(String),
    /// No connection.
    #[error("cannot connect to {authority}")]
    Connect {
        /// Host and port.
        authority: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("connection broke")]
    Broken(#[from] hyper::Error),
    /// The request cannot be written down.
    #[error("bad request")]
    Request(#[from] hyper::http::Error),
}

/// One server's address and, between requests, an idle connection to it.
#[derive(Debug)]
pub struct Connection {
    authority: String,
    /// Path in front of every request's own.
    base_path: String,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Connection {
    /// Reads the URL; connects at the first request.
    ///
    /// # Errors
    /// It is no `http://host:port`.
    pub fn new(url: &str) -> Result<Self, ClientError> {
        let bad_url = || ClientError::Url(url.to_owned());
        let rest = url.strip_prefix("http://").ok_or_else(bad_url)?;
        let (authority, base_path) = rest.split_once('/').unwrap_or((rest, ""));
        if authority.is_empty() {
            return Err(bad_url());
        }
        let base_path = match base_path.trim_end_matches('/') {
            "" => String::new(),
            path => format!("/{path}"),
        };
        let has_port = authority.rsplit(':').next().is_some_and(|port| port.parse::<u16>().is_ok());
        let authority = if has_port { authority.to_owned() } else { format!("{authority}:80") };
        Ok(Self { authority, base_path, sender: None })
    }

    /// Sends a request and gives the head of its response; JSON if there is a body. That must be read
    /// to its end, or the connection closed, before the next one is sent.
    ///
    /// # Errors
    /// There is no response.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(String, String)],
        body: Bytes,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base_path))
            .header(HOST, &self.authority)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body))?;
        // An idle connection may have been closed by the server; only a request that provably was
        // not sent is sent again.
        let request = match self.sender.take() {
            None => request,
            Some(mut idle) => match idle.try_send_request(request).await {
                Ok(response) => {
                    self.sender = Some(idle);
                    return Ok(response);
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) => unsent,
                    None => return Err(error.into_error().into()),
                },
            },
        };
        let mut fresh = self.connect().await?;
        let response = fresh.send_request(request).await?;
        self.sender = Some(fresh);
        Ok(response)
    }

    /// Drops the connection, as after a response that was not read to its end.
    pub fn close(&mut self) {
        self.sender = None;
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let failed = |source| ClientError::Connect { authority: self.authority.clone(), source };
        let stream = TcpStream::connect(&self.authority).await.map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}
