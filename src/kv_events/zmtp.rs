//! ZMTP 3.1 over TCP, as much of it as a subscriber needs: one connection, NULL security, the
//! socket types SUB and DEALER.
//!
//! Ours, because nothing at hand bounds what a publisher may send (docs/adr/0007-zmq.md). Memory
//! grows with what arrives, never with what is claimed. Whoever does not read is not read from:
//! there is no queue, the publisher's own is the buffer. A peer that falls silent is pinged.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use smallvec::SmallVec;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::wire::kv_events::PAYLOAD_BYTES_MAX;

/// A message of several frames.
pub(super) type Message = SmallVec<[Bytes; 4]>;

/// Bytes of a message, all frames together.
const MESSAGE_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + 4096;
/// Frames of a message; ours have three or four.
const FRAMES_MAX: usize = 8;
/// Bytes of a command.
const COMMAND_BYTES_MAX: usize = 4096;
/// Space for one read.
const READ_BYTES: usize = 64 << 10;
/// Answers to pings that wait to be sent, bytes.
const OUTPUT_BYTES_MAX: usize = 64 << 10;
/// Connection and handshake together.
pub(super) const HANDSHAKE_WITHIN: Duration = Duration::from_secs(3);
/// After this much silence the peer is pinged, and so on.
const PING_AFTER: Duration = Duration::from_secs(5);
/// Pings without any sign of life after which the peer is given up.
const PINGS_MAX: u32 = 3;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("the peer closed the connection")]
    Closed,
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("no connection within {} s", HANDSHAKE_WITHIN.as_secs())]
    Late,
    #[error("no sign of life for {} s", PING_AFTER.as_secs() * u64::from(PINGS_MAX + 1))]
    Silent,
    #[error("a message over {MESSAGE_BYTES_MAX} bytes")]
    TooLong,
    #[error("{0}")]
    Protocol(&'static str),
}

impl Broken {
    /// Whether the peer is at fault, not the network.
    pub(super) fn is_garbage(&self) -> bool {
        matches!(self, Self::TooLong | Self::Protocol(_))
    }
}

/// What we are to the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Reads what a PUB publishes.
    Sub,
    /// Asks a ROUTER.
    Dealer,
}

/// A connection on which messages flow.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    input: BytesMut,
    output: BytesMut,
    /// The frames of a message whose last has not arrived.
    frames: Message,
    /// Whether the peer speaks 3.1, which has pings and a command to subscribe.
    modern: bool,
    ping_after: Duration,
    pings: u32,
}

impl Connection {
    /// Connects and shakes hands.
    pub(super) async fn connect(host: &str, port: u16, role: Role) -> Result<Self, Broken> {
        let connect = async {
            let stream = TcpStream::connect((host, port)).await?;
            Self::handshake(stream, role).await
        };
        timeout(HANDSHAKE_WITHIN, connect).await.unwrap_or(Err(Broken::Late))
    }

    /// Shakes hands with a peer that connected to us.
    pub(super) async fn accepted(stream: TcpStream, role: Role) -> Result<Self, Broken> {
        let shake = Self::handshake(stream, role);
        timeout(HANDSHAKE_WITHIN, shake).await.unwrap_or(Err(Broken::Late))
    }

    async fn handshake(stream: TcpStream, role: Role) -> Result<Self, Broken> {
        stream.set_nodelay(true)?;
        let mut this = Self {
            stream,
            input: BytesMut::new(),
            output: BytesMut::new(),
            frames: Message::new(),
            modern: false,
            ping_after: PING_AFTER,
            pings: 0,
        };
        let mut greeting = [0; 64];
        greeting[0] = 0xff;
        greeting[9] = 0x7f;
        greeting[10..12].copy_from_slice(&[3, 1]);
        greeting[12..16].copy_from_slice(b"NULL");
        this.stream.write_all(&greeting).await?;
        this.fill(64).await?;
        let theirs = this.input.split_to(64);
        if theirs[0] != 0xff || theirs[9] & 1 == 0 || theirs[10] < 3 {
            return Err(Broken::Protocol("the peer does not speak ZMTP 3"));
        }
        if &theirs[12..32] != b"NULL\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0" {
            return Err(Broken::Protocol("the peer asks for encryption or a password"));
        }
        this.modern = theirs[10] > 3 || theirs[11] >= 1;
        let kind: &[u8] = if role == Role::Sub { b"SUB" } else { b"DEALER" };
        let mut ready = BytesMut::from(&b"\x05READY\x0bSocket-Type"[..]);
        ready.put_u32(kind.len() as u32);
        ready.put(kind);
        ready.put_slice(b"\x08Identity\0\0\0\0");
        this.put_frame(COMMAND, &ready);
        this.flush().await?;
        let ready = loop {
            if let Some((flags, body)) = this.next_frame()? {
                if flags & COMMAND == 0 {
                    return Err(Broken::Protocol("the peer sent a message before it was ready"));
                }
                break body;
            }
            this.fill(this.input.len() + 1).await?;
        };
        let kinds: &[&[u8]] =
            if role == Role::Sub { &[b"PUB", b"XPUB"] } else { &[b"ROUTER", b"DEALER", b"REP"] };
        match socket_type(&ready) {
            Some(kind) if kinds.contains(&kind) => Ok(this),
            Some(_) => Err(Broken::Protocol("the peer's socket is of a type that is none for us")),
            None => Err(Broken::Protocol("the peer is not ready")),
        }
    }

    /// Reads until `count` bytes are there.
    async fn fill(&mut self, count: usize) -> Result<(), Broken> {
        while self.input.len() < count {
            self.read().await?;
        }
        Ok(())
    }

    async fn read(&mut self) -> Result<(), Broken> {
        if self.input.capacity() - self.input.len() < READ_BYTES / 8 {
            self.input.reserve(READ_BYTES);
        }
        match self.stream.read_buf(&mut self.input).await? {
            0 => Err(Broken::Closed),
            _ => Ok(()),
        }
    }

    async fn flush(&mut self) -> Result<(), Broken> {
        while !self.output.is_empty() {
            self.stream.write_buf(&mut self.output).await?;
        }
        Ok(())
    }

    /// Asks for all topics that begin with `topic`.
    pub(super) async fn subscribe(&mut self, topic: &[u8]) -> Result<(), Broken> {
        if self.modern {
            self.put_frame(COMMAND, &[b"\x09SUBSCRIBE", topic].concat());
        } else {
            self.put_frame(0, &[b"\x01", topic].concat());
        }
        self.flush_soon().await
    }

    /// Sends a message.
    pub(super) async fn send(&mut self, frames: &[&[u8]]) -> Result<(), Broken> {
        for (at, frame) in frames.iter().enumerate() {
            self.put_frame(if at + 1 < frames.len() { MORE } else { 0 }, frame);
        }
        self.flush_soon().await
    }

    /// Flushes; a peer that does not read for as long as a silent one is given up like one.
    async fn flush_soon(&mut self) -> Result<(), Broken> {
        timeout(PING_AFTER * PINGS_MAX, self.flush()).await.unwrap_or(Err(Broken::Silent))
    }

    /// The next message. Nothing is lost when the future is dropped.
    pub(super) async fn recv(&mut self) -> Result<Message, Broken> {
        loop {
            if let Some(message) = self.next_message()? {
                return Ok(message);
            }
            if !self.output.is_empty() {
                self.flush_soon().await?;
            }
            match timeout(self.ping_after, self.read()).await {
                Ok(read) => {
                    read?;
                    self.pings = 0;
                }
                // What came before 3.1 knows no pings; there TCP alone notices.
                Err(_) if !self.modern => {}
                Err(_) if self.pings >= PINGS_MAX => return Err(Broken::Silent),
                Err(_) => {
                    self.pings += 1;
                    self.put_frame(COMMAND, b"\x04PING\0\0");
                }
            }
        }
    }

    fn next_message(&mut self) -> Result<Option<Message>, Broken> {
        while let Some((flags, body)) = self.next_frame()? {
            if flags & COMMAND != 0 {
                self.command(&body)?;
                continue;
            }
            self.frames.push(body);
            if flags & MORE == 0 {
                return Ok(Some(std::mem::take(&mut self.frames)));
            }
            if self.frames.len() >= FRAMES_MAX {
                return Err(Broken::Protocol("a message of too many frames"));
            }
        }
        Ok(None)
    }

    /// Cuts a whole frame from the input.
    fn next_frame(&mut self) -> Result<Option<(u8, Bytes)>, Broken> {
        let Some(&flags) = self.input.first() else { return Ok(None) };
        if flags & !(MORE | LONG | COMMAND) != 0 {
            return Err(Broken::Protocol("a frame with unknown flags"));
        }
        let (header, length) = match (flags & LONG != 0, &self.input[1..]) {
            (false, [length, ..]) => (2, u64::from(*length)),
            (true, rest) if rest.len() >= 8 => (9, (&rest[..8]).get_u64()),
            _ => return Ok(None),
        };
        let before: usize = self.frames.iter().map(Bytes::len).sum();
        let most =
            if flags & COMMAND == 0 { MESSAGE_BYTES_MAX - before } else { COMMAND_BYTES_MAX };
        let length =
            usize::try_from(length).ok().filter(|length| *length <= most).ok_or(Broken::TooLong)?;
        if self.input.len() - header < length {
            return Ok(None);
        }
        self.input.advance(header);
        Ok(Some((flags, self.input.split_to(length).freeze())))
    }

    fn command(&mut self, body: &[u8]) -> Result<(), Broken> {
        if let Some(ping) = body.strip_prefix(b"\x04PING") {
            // Two bytes of time to live, then a context that goes back.
            let context = ping.get(2..).filter(|context| context.len() <= 16).unwrap_or(b"");
            self.put_frame(COMMAND, &[b"\x04PONG", context].concat());
        } else if body.starts_with(b"\x05ERROR") {
            return Err(Broken::Protocol("the peer refuses us"));
        }
        if self.output.len() > OUTPUT_BYTES_MAX {
            return Err(Broken::Protocol("a flood of pings"));
        }
        Ok(())
    }

    fn put_frame(&mut self, flags: u8, body: &[u8]) {
        if let Ok(length) = u8::try_from(body.len()) {
            self.output.put_slice(&[flags, length]);
        } else {
            self.output.put_u8(flags | LONG);
            self.output.put_u64(body.len() as u64);
        }
        self.output.put_slice(body);
    }
}

/// The property `Socket-Type` of a READY command.
fn socket_type(ready: &[u8]) -> Option<&[u8]> {
    let mut rest = ready.strip_prefix(b"\x05READY")?;
    while let [length, after @ ..] = rest {
        let (name, after) = after.split_at_checked(usize::from(*length))?;
        let (length, after) = after.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (value, after) = after.split_at_checked(length)?;
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            return Some(value);
        }
        rest = after;
    }
    None
}

#[cfg(test)]
#[path = "zmtp_tests.rs"]
mod tests;
