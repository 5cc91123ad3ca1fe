//! What a process and its successor say to each other.
//!
//! They share a Unix socket, which is the successor's standard input: no path, no permissions, and
//! no third party. First of all comes one byte with the listening sockets; then frames:
//!
//! ```text
//! predecessor                          successor
//! [fds] ADDRESSES            ------->
//!                            <-------  LAUNCHED          its process id, said by its launcher
//!                            <-------  HELLO             it has read its configuration
//!                            <-------  GIVE
//! STATE, all workers         ------->                    it restores, starts, subscribes, but
//! SAID, REPORT, LOADS ...    ------->                    takes nothing in and accepts nothing
//!                            <-------  AGAIN
//! STATE, workers that publish ------>                    up to the batches it now receives itself
//!                            <-------  SERVING           it accepts
//! SAID, REPORT, LOADS ...    ------->                    until the predecessor is empty
//! ```
//!
//! Whatever goes wrong before SERVING leaves the predecessor as it was.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixStream,
    },
};

use nix::{
    cmsg_space,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};
use serde::{Deserialize, Serialize};

use crate::{
    fleet::{Domain, Presumption, Said},
    routing::{Load, WorkerId, block::BlockHash},
};

/// Tells a process that it is a successor; its value is the protocol it speaks.
pub(super) const ENV: &str = "WARMROUTE_HANDOVER";
/// Tells a successor that it was launched: it is not the predecessor's child.
pub(super) const LAUNCHED_ENV: &str = "WARMROUTE_HANDOVER_LAUNCHED";
/// What we speak.
pub(super) const PROTOCOL: &str = "1";
/// Largest frame, bytes: one worker's holdings, however large its index may be.
pub(super) const FRAME_BYTES_MAX: u64 = 4 << 30;
/// Most sockets handed over in one message (`SCM_MAX_FD` of Linux).
const SOCKETS_MAX: usize = 253;

// Kinds of frames. A reader passes over those it does not know.
pub(super) const LAUNCHED: u8 = 0x40;
pub(super) const HELLO: u8 = 0x41;
pub(super) const GIVE: u8 = 0x42;
pub(super) const AGAIN: u8 = 0x43;
pub(super) const SERVING: u8 = 0x44;
pub(super) const ADDRESSES: u8 = 0x51;
/// The state itself follows, outside of frames.
pub(super) const STATE: u8 = 0x52;
pub(super) const SAID: u8 = 0x53;
pub(super) const REPORT: u8 = 0x54;
pub(super) const LOADS: u8 = 0x55;

/// Who is there.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) version: String,
    pub(super) pid: u32,
}

/// The requests of a process at one worker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WorkerLoad {
    worker: String,
    requests: u32,
    decodes: u32,
    queued_tokens: u64,
}

impl WorkerLoad {
    pub(super) fn of(worker: &WorkerId, load: &Load) -> Self {
        Self {
            worker: worker.to_string(),
            requests: load.requests,
            decodes: load.decodes,
            queued_tokens: load.queued_tokens,
        }
    }

    pub(super) fn into_load(self) -> Option<(WorkerId, Load)> {
        let Self { worker, requests, decodes, queued_tokens } = self;
        Some((WorkerId::try_new(&worker).ok()?, Load { requests, queued_tokens, decodes }))
    }
}

/// What was said, but for the blocks, which follow it.
#[derive(Debug, Serialize, Deserialize)]
struct SaidHead {
    worker: String,
    confirms: bool,
    tokens: bool,
    tenant: bool,
    /// Set when it is taken back.
    keep: Option<usize>,
}

/// A JSON head, its length before it, and raw bytes behind it.
fn with_head(head: &impl Serialize, rest: impl Iterator<Item = u8>) -> Vec<u8> {
    let head = serde_json::to_vec(head).unwrap_or_default();
    let mut payload = Vec::with_capacity(4 + head.len());
    payload.extend_from_slice(&(head.len() as u32).to_le_bytes());
    payload.extend_from_slice(&head);
    payload.extend(rest);
    payload
}

fn split_head<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Option<(T, &'a [u8])> {
    let (len, rest) = payload.split_first_chunk::<4>()?;
    let (head, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    Some((serde_json::from_slice(head).ok()?, rest))
}

/// Something presumed, as a payload.
pub(super) fn said_payload(said: &Said) -> Vec<u8> {
    let (presumption, keep) = match said {
        Said::Presumed(presumption) => (presumption, None),
        Said::TakenBack { presumption, keep } => (presumption, Some(*keep)),
    };
    let head = SaidHead {
        worker: presumption.worker.to_string(),
        confirms: presumption.confirms,
        tokens: presumption.domain == Domain::Tokens,
        tenant: presumption.tenant,
        keep,
    };
    with_head(&head, presumption.blocks.iter().flat_map(|block| block.as_u64().to_le_bytes()))
}

/// Reads it; none when it is malformed.
pub(super) fn read_said(payload: &[u8]) -> Option<Said> {
    let (head, blocks) = split_head::<SaidHead>(payload)?;
    let (blocks, rest) = blocks.as_chunks::<8>();
    if !rest.is_empty() {
        return None;
    }
    let presumption = Presumption {
        worker: WorkerId::try_new(&head.worker).ok()?,
        confirms: head.confirms,
        domain: if head.tokens { Domain::Tokens } else { Domain::Text },
        tenant: head.tenant,
        blocks: blocks.iter().map(|block| BlockHash::new(u64::from_le_bytes(*block))).collect(),
    };
    Some(match head.keep {
        None => Said::Presumed(presumption),
        Some(keep) => Said::TakenBack { presumption, keep },
    })
}

/// A report as it came, as a payload.
pub(super) fn report_payload(path: &str, body: &[u8]) -> Vec<u8> {
    with_head(&path, body.iter().copied())
}

/// Reads it; none when it is malformed.
pub(super) fn read_report(payload: &[u8]) -> Option<(String, &[u8])> {
    split_head(payload)
}

/// Sends the sockets, with one byte to carry them.
pub(super) fn send_sockets(stream: &UnixStream, fds: &[RawFd]) -> io::Result<()> {
    if fds.len() > SOCKETS_MAX {
        return Err(io::Error::other(format!("more than {SOCKETS_MAX} listening sockets")));
    }
    let rights = [ControlMessage::ScmRights(fds)];
    let byte = [IoSlice::new(b"s")];
    sendmsg::<()>(stream.as_raw_fd(), &byte, &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives them.
pub(super) fn receive_sockets(stream: &UnixStream) -> io::Result<Vec<RawFd>> {
    let mut byte = [0];
    let mut into = [IoSliceMut::new(&mut byte)];
    let mut space = cmsg_space!([RawFd; SOCKETS_MAX]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut into, Some(&mut space), flags)?;
    if message.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut sockets = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part {
            sockets.extend(fds);
        }
    }
    Ok(sockets)
}

#[cfg(test)]
mod tests {
    use std::{io::Read, net::TcpListener};

    use super::*;

    fn presumption() -> Presumption {
        Presumption {
            worker: WorkerId::try_new("w0").expect("an id"),
            confirms: true,
            domain: Domain::Tokens,
            tenant: false,
            blocks: (0..5).map(|block| BlockHash::new(block * 7 + 1)).collect(),
        }
    }

    #[test]
    fn what_is_said_comes_through() {
        for said in
            [Said::Presumed(presumption()), Said::TakenBack { presumption: presumption(), keep: 2 }]
        {
            let payload = said_payload(&said);
            assert_eq!(read_said(&payload), Some(said));
            for cut in 0..payload.len() {
                let _ = read_said(&payload[..cut]);
            }
        }
        let report = report_payload("/v1/events", b"{}");
        assert_eq!(read_report(&report), Some(("/v1/events".to_owned(), &b"{}"[..])));
        assert_eq!(read_said(b"\xff\xff\xff\xff"), None);
        assert_eq!(read_report(b""), None);
    }

    #[test]
    fn sockets_come_through_and_nothing_is_read_beyond_them() {
        let (one, mut other) = UnixStream::pair().expect("a pair");
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        send_sockets(&one, &[listener.as_raw_fd()]).expect("sends");
        (&one).write_all(b"rest").expect("writes");
        let sockets = receive_sockets(&other).expect("receives");
        assert_eq!(sockets.len(), 1);
        drop(one);
        let mut rest = Vec::new();
        other.read_to_end(&mut rest).expect("reads");
        assert_eq!(rest, b"rest");
        assert!(receive_sockets(&other).is_err(), "it has left");
        // Closed again, which only owners of a table of sockets can do without `unsafe`.
        drop(super::super::Sockets::inherited(vec!["x".to_owned()], sockets));
    }

    use std::io::Write as _;
}
