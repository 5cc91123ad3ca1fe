//! A request as a test describes it.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::Frame;
use serde_json::json;

use super::Proto;

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) proto: Proto,
    /// Without a declared length the body goes in pieces of this size.
    pub(crate) piece_bytes: Option<usize>,
}

/// The JSON of a chat with one message.
pub(crate) fn chat_body(content: &str) -> Vec<u8> {
    let message = json!({"role": "user", "content": content});
    json!({"model": "m", "messages": [message]}).to_string().into_bytes()
}

/// The JSON of a chat, exactly so many bytes long.
pub(crate) fn chat_body_of(bytes: usize) -> Vec<u8> {
    let frame = chat_body("").len();
    assert!(bytes >= frame, "a chat has at least {frame} bytes");
    let content = String::from_utf8(noise(bytes - frame)).expect("ASCII");
    chat_body(&content)
}

/// So many letters, of which no part looks like another.
pub(crate) fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64 ^ bytes as u64;
    let letter = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        b'a' + (state >> 33) as u8 % 26
    };
    std::iter::repeat_with(letter).take(bytes).collect()
}

/// SHA-256 in hexadecimal.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&openssl::sha::sha256(bytes))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Ask {
    /// Any request.
    pub(crate) fn new(method: Method, path: &str, body: impl Into<Bytes>) -> Self {
        Self {
            method,
            path: path.to_owned(),
            headers: HeaderMap::new(),
            body: body.into(),
            proto: Proto::H1,
            piece_bytes: None,
        }
    }

    /// A POST of JSON.
    pub(crate) fn post(path: &str, body: impl Into<Bytes>) -> Self {
        Self::new(Method::POST, path, body).header("content-type", "application/json")
    }

    /// A GET.
    pub(crate) fn get(path: &str) -> Self {
        Self::new(Method::GET, path, Bytes::new())
    }

    /// A chat with one message.
    pub(crate) fn chat(content: &str) -> Self {
        Self::post("/v1/chat/completions", chat_body(content))
    }

    /// A chat with one message, for this model.
    pub(crate) fn chat_with(model: &str, content: &str) -> Self {
        let message = json!({"role": "user", "content": content});
        let body = json!({"model": model, "messages": [message]}).to_string();
        Self::post("/v1/chat/completions", body)
    }

    /// A chat that asks for a stream.
    pub(crate) fn stream(content: &str) -> Self {
        let message = json!({"role": "user", "content": content});
        let body = json!({"model": "m", "stream": true, "messages": [message]}).to_string();
        Self::post("/v1/chat/completions", body)
    }

    /// With this header too.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a header name");
        self.headers.append(name, HeaderValue::from_str(value).expect("a header value"));
        self
    }

    /// Over HTTP/2 with prior knowledge.
    pub(crate) fn h2(self) -> Self {
        self.over(Proto::H2)
    }

    /// Over this protocol.
    pub(crate) fn over(mut self, proto: Proto) -> Self {
        self.proto = proto;
        self
    }

    /// Without a declared length, in pieces.
    pub(crate) fn in_pieces(mut self, piece_bytes: usize) -> Self {
        self.piece_bytes = Some(piece_bytes);
        self
    }

    /// The body's SHA-256 in hexadecimal.
    pub(crate) fn sha256(&self) -> String {
        sha256_hex(&self.body)
    }

    /// The body as hyper takes it.
    pub(crate) fn sent_body(&self) -> BoxBody<Bytes, Infallible> {
        let Some(piece_bytes) = self.piece_bytes else {
            return Full::new(self.body.clone()).boxed();
        };
        let body = self.body.clone();
        let pieces: Vec<_> = (0..body.len())
            .step_by(piece_bytes)
            .map(|at| Ok(Frame::data(body.slice(at..body.len().min(at + piece_bytes)))))
            .collect();
        BodyExt::boxed(StreamBody::new(stream::iter(pieces)))
    }

    /// As hyper takes it.
    pub(crate) fn to_request<B>(&self, authority: &str, scheme: &str, body: B) -> Request<B> {
        let uri = match self.proto {
            Proto::H1 => self.path.clone(),
            Proto::H2 => format!("{scheme}://{authority}{}", self.path),
        };
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = uri.parse().expect("a URI");
        *request.headers_mut() = self.headers.clone();
        if self.proto == Proto::H1 {
            let host = HeaderValue::from_str(authority).expect("a host");
            request.headers_mut().insert(http::header::HOST, host);
        }
        request
    }
}
