//! Bytes on a socket, for requests no client library would send.

use std::net::SocketAddr;

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::within;

/// One connection.
pub(crate) struct Raw {
    stream: TcpStream,
    unread: BytesMut,
}

/// An answer as it stood on the wire.
#[derive(Debug)]
pub(crate) struct RawAnswer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl RawAnswer {
    /// Value of a header, if it is there.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (known, value) = line.split_once(':')?;
            known.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }
}

impl Raw {
    /// Connects.
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.expect("connects");
        stream.set_nodelay(true).expect("a socket option");
        Self { stream, unread: BytesMut::new() }
    }

    /// Sends; false when the other side has closed.
    pub(crate) async fn try_send(&mut self, bytes: &[u8]) -> bool {
        within("a raw write", self.stream.write_all(bytes)).await.is_ok()
    }

    /// Sends.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        assert!(self.try_send(bytes.as_ref()).await, "the other side has closed");
    }

    /// The next header block; `None` when the connection ends instead.
    pub(crate) async fn head(&mut self) -> Option<(u16, String)> {
        within("a header", async {
            loop {
                if let Some(at) = self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                    let head = self.unread.split_to(at + 4);
                    let head = String::from_utf8_lossy(&head).into_owned();
                    let status = head.split(' ').nth(1).and_then(|text| text.parse().ok());
                    return Some((status.expect("a status line"), head));
                }
                if !self.fill().await {
                    return None;
                }
            }
        })
        .await
    }

    /// The next final answer with its body; panics when there is none before the deadline.
    pub(crate) async fn answer(&mut self) -> RawAnswer {
        self.try_answer().await.expect("an answer, not the end of the connection")
    }

    /// The next final answer with its body; `None` when the connection ends instead.
    pub(crate) async fn try_answer(&mut self) -> Option<RawAnswer> {
        let (status, head) = loop {
            let (status, head) = self.head().await?;
            if status >= 200 {
                break (status, head);
            }
        };
        let mut answer = RawAnswer { status, head, body: Vec::new() };
        if let Some(length) = answer.header("content-length") {
            let length: usize = length.parse().expect("a length");
            while self.unread.len() < length {
                assert!(within("a body", self.fill()).await, "the body is cut: {answer:?}");
            }
            answer.body = self.unread.split_to(length).to_vec();
        } else if answer.header("transfer-encoding").is_some() {
            answer.body = self.chunks().await;
        }
        Some(answer)
    }

    async fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let length = loop {
                if let Some(at) = self.unread.windows(2).position(|two| two == b"\r\n") {
                    let line = self.unread.split_to(at + 2);
                    let text = String::from_utf8_lossy(&line[..at]).into_owned();
                    break usize::from_str_radix(&text, 16).expect("a chunk size");
                }
                assert!(within("a chunk", self.fill()).await, "the body is cut");
            };
            while self.unread.len() < length + 2 {
                assert!(within("a chunk", self.fill()).await, "the body is cut");
            }
            body.extend_from_slice(&self.unread[..length]);
            self.unread.advance(length + 2);
            if length == 0 {
                return body;
            }
        }
    }

    /// Waits for the end of the connection; what came before it.
    pub(crate) async fn until_end(&mut self) -> Vec<u8> {
        while within("the end of the connection", self.fill()).await {}
        self.unread.split().to_vec()
    }

    /// Closes our writing side.
    pub(crate) async fn finish(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    async fn fill(&mut self) -> bool {
        matches!(self.stream.read_buf(&mut self.unread).await, Ok(count) if count > 0)
    }
}
