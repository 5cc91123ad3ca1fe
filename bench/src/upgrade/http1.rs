//! An HTTP/1.1 client that knows what it has seen of a connection.
//!
//! Written out rather than taken from a crate, as what counts here is the moment at which a server
//! closed: before the client sent (a client with eyes takes another connection) or after (a loss).

use std::{io::ErrorKind, net::SocketAddr};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    answer::Head,
    io::{Io, Target, is_quiet},
    record::{Cause, Failure},
};

/// Longest head of an answer.
const HEAD_BYTES_MAX: usize = 32 << 10;
const HEADERS_MAX: usize = 64;

/// What is left of the answer being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    Nothing,
    Length(usize),
    Chunks,
    Chunk(usize),
    UntilClose,
}

/// One connection.
pub struct Conn {
    io: Box<dyn Io>,
    unread: BytesMut,
    rest: Rest,
    /// Requests sent on it.
    pub uses: usize,
    is_kept: bool,
}

impl Conn {
    /// A new one.
    ///
    /// # Errors
    /// The router does not take it.
    pub async fn open(target: &Target, tls: bool) -> Result<Self, Failure> {
        Ok(Self::over(target.connect(tls, false).await?))
    }

    /// A new one to anybody.
    ///
    /// # Errors
    /// Nobody takes it.
    pub async fn to(addr: SocketAddr) -> Result<Self, Failure> {
        let socket = TcpStream::connect(addr).await;
        let socket = socket.map_err(|error| Failure::new(Cause::Connect, error.to_string()))?;
        Ok(Self::over(Box::new(socket)))
    }

    fn over(io: Box<dyn Io>) -> Self {
        Self { io, unread: BytesMut::new(), rest: Rest::Nothing, uses: 0, is_kept: true }
    }

    /// Whether a further request may be sent on it, as far as a client can see.
    pub fn is_open(&self) -> bool {
        self.is_kept
            && self.rest == Rest::Nothing
            && self.unread.is_empty()
            && is_quiet(self.io.tcp())
    }

    /// Sends a request of JSON and reads the head of its answer.
    ///
    /// # Errors
    /// There is none.
    pub async fn ask(&mut self, method: &str, path: &str, body: &[u8]) -> Result<Head, Failure> {
        let mut request = Vec::with_capacity(body.len() + 160);
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        request.extend_from_slice(head.as_bytes());
        request.extend_from_slice(body);
        self.uses += 1;
        let sent = self.io.write_all(&request).await;
        // What could not be sent in full may have been answered all the same.
        let head = loop {
            match self.head(method)? {
                Some(head) => break head,
                None => self.fill().await.map_err(|end| {
                    let cause = match (self.uses, self.unread.is_empty()) {
                        (1, true) => Cause::NoAnswer,
                        (_, true) => Cause::KeptClosed,
                        (_, false) => Cause::Truncated,
                    };
                    let unsent = sent.as_ref().err().map_or(String::new(), |e| format!(", {e}"));
                    Failure::new(cause, format!("use {}: {end}{unsent}", self.uses))
                })?,
            }
        };
        Ok(head)
    }

    /// The next part of the answer; `None` at its end.
    ///
    /// # Errors
    /// The connection ended before that, or what came is no chunk.
    pub async fn data(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if self.rest == Rest::Chunks && self.chunk()? {
                continue;
            }
            match self.rest {
                Rest::Nothing => return Ok(None),
                Rest::Length(left) | Rest::Chunk(left) if !self.unread.is_empty() && left > 0 => {
                    let data = self.unread.split_to(left.min(self.unread.len())).freeze();
                    let left = left - data.len();
                    self.rest = match self.rest {
                        Rest::Length(_) if left == 0 => Rest::Nothing,
                        Rest::Length(_) => Rest::Length(left),
                        _ => Rest::Chunk(left),
                    };
                    return Ok(Some(data));
                }
                Rest::Length(0) => {
                    self.rest = Rest::Nothing;
                    continue;
                }
                Rest::Chunk(0) if self.unread.len() >= 2 => {
                    self.unread.advance(2);
                    self.rest = Rest::Chunks;
                    continue;
                }
                Rest::UntilClose if !self.unread.is_empty() => {
                    return Ok(Some(self.unread.split().freeze()));
                }
                _ => {}
            }
            if let Err(end) = self.fill().await {
                self.is_kept = false;
                if self.rest == Rest::UntilClose && end == END {
                    self.rest = Rest::Nothing;
                    return Ok(None);
                }
                return Err(Failure::new(Cause::Truncated, format!("in a body: {end}")));
            }
        }
    }

    /// Reads the size of the next chunk, if it is there.
    fn chunk(&mut self) -> Result<bool, Failure> {
        match httparse::parse_chunk_size(&self.unread) {
            Ok(httparse::Status::Partial) => Ok(false),
            // The empty line behind the last chunk; nobody here sends trailers.
            Ok(httparse::Status::Complete((at, 0))) if self.unread.len() < at + 2 => Ok(false),
            Ok(httparse::Status::Complete((at, 0))) => {
                self.unread.advance(at + 2);
                self.rest = Rest::Nothing;
                Ok(true)
            }
            Ok(httparse::Status::Complete((at, size))) => {
                self.unread.advance(at);
                self.rest = Rest::Chunk(size as usize);
                Ok(true)
            }
            Err(_) => Err(Failure::new(Cause::Truncated, "no chunk where one should begin")),
        }
    }

    /// The head of the final answer, if it is there.
    fn head(&mut self, method: &str) -> Result<Option<Head>, Failure> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
            let mut parsed = httparse::Response::new(&mut headers);
            let bad = |text: String| Failure::new(Cause::Wrong, text);
            let length = match parsed.parse(&self.unread).map_err(|error| bad(error.to_string()))? {
                httparse::Status::Complete(length) => length,
                httparse::Status::Partial if self.unread.len() > HEAD_BYTES_MAX => {
                    return Err(bad("a head without end".to_owned()));
                }
                httparse::Status::Partial => return Ok(None),
            };
            let status = parsed.code.unwrap_or_default();
            if (100..200).contains(&status) {
                self.unread.advance(length);
                continue;
            }
            let value = |name: &str| {
                let found =
                    parsed.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
                found.and_then(|header| std::str::from_utf8(header.value).ok())
            };
            let head = Head::new(status, value);
            let is_chunked = value("transfer-encoding").is_some();
            let declared = value("content-length").and_then(|text| text.trim().parse().ok());
            let closes = value("connection").is_some_and(|text| text.eq_ignore_ascii_case("close"));
            self.is_kept = !closes;
            self.rest = match declared {
                _ if method == "HEAD" || status == 204 || status == 304 => Rest::Nothing,
                _ if is_chunked => Rest::Chunks,
                Some(bytes) => Rest::Length(bytes),
                None => Rest::UntilClose,
            };
            self.unread.advance(length);
            return Ok(Some(head));
        }
    }

    async fn fill(&mut self) -> Result<(), String> {
        match self.io.read_buf(&mut self.unread).await {
            Ok(0) => Err(END.to_owned()),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Err("reset".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Says that the other side closed.
const END: &str = "closed";

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A client whose server sends these bytes and closes.
    async fn answered(bytes: &'static [u8]) -> (Result<Head, Failure>, Conn) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let serving = async {
            let (mut socket, _) = listener.accept().await.expect("a client");
            let mut request = [0; 1024];
            let count = socket.read(&mut request).await.expect("a request");
            assert!(request[..count].starts_with(b"POST /p HTTP/1.1\r\n"));
            socket.write_all(bytes).await.expect("sends");
        };
        let asking = async {
            let mut conn = Conn::to(addr).await.expect("connects");
            (conn.ask("POST", "/p", b"{}").await, conn)
        };
        let ((), asked) = tokio::join!(serving, asking);
        asked
    }

    async fn body(bytes: &'static [u8]) -> Result<Vec<u8>, Cause> {
        let (head, mut conn) = answered(bytes).await;
        assert_eq!(head.map_err(|failure| failure.cause)?.status, 200);
        let mut body = Vec::new();
        while let Some(data) = conn.data().await.map_err(|failure| failure.cause)? {
            body.extend_from_slice(&data);
        }
        Ok(body)
    }

    #[tokio::test]
    async fn reads_every_framing_to_its_end() {
        let whole = Ok(b"abcdef".to_vec());
        assert_eq!(body(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nabcdef").await, whole);
        let chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n2\r\nef\r\n0\r\n\r\n";
        assert_eq!(body(chunks).await, whole);
        assert_eq!(body(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabcdef").await, whole);
        let hundred = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(body(hundred).await, Ok(Vec::new()));
    }

    #[tokio::test]
    async fn tells_a_cut_answer_from_a_whole_one() {
        let cut = Err(Cause::Truncated);
        assert_eq!(body(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nabcdef").await, cut);
        let chunks = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nabcd\r\n";
        assert_eq!(body(chunks).await, cut);
        assert_eq!(body(b"HTTP/1.1 200 OK\r\nconten").await, cut);
        assert_eq!(body(b"").await, Err(Cause::NoAnswer));
    }

    #[tokio::test]
    async fn sees_that_a_connection_was_closed() {
        let (head, mut conn) = answered(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        assert!(head.is_ok());
        assert_eq!(conn.data().await.expect("no body").map(|data| data.len()), None);
        // The server has closed before `answered` came back.
        assert!(!conn.is_open());
        let failure = conn.ask("POST", "/p", b"{}").await.expect_err("closed");
        assert_eq!(failure.cause, Cause::KeptClosed);
    }
}
