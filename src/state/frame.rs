//! Messages on a stream of bytes: a kind, a length, the payload, a checksum.
//!
//! ```text
//! kind: 1 byte | payload's length: 8 | payload | XXH3-64 of the payload, seeded with both: 8
//! ```
//!
//! Numbers are little endian. The checksum finds what a disk or a cut file did; it proves nothing
//! against somebody who may write there.

use std::io::{self, ErrorKind, Read, Write};

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Allocated at once at most; beyond it a payload gets memory as it comes in.
const ALLOCATED_BYTES_MAX: u64 = 1 << 20;

/// Why no frame could be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// It ends early.
    #[error("ends in the middle of a frame")]
    Truncated,
    /// It claims to be longer than the reader takes.
    #[error("a frame claims {bytes} bytes, where at most {bytes_max} are taken")]
    TooLong {
        /// What it claims.
        bytes: u64,
        /// What the reader takes.
        bytes_max: u64,
    },
    /// Its bytes are not those that were written.
    #[error("a frame is damaged: its checksum does not match")]
    Damaged,
    /// The stream failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn checksum(kind: u8, payload: &[u8]) -> u64 {
    xxh3_64_with_seed(payload, u64::from(kind) << 56 ^ payload.len() as u64)
}

/// Writes one frame.
///
/// # Errors
/// What `to` gives.
pub fn write_frame(to: &mut impl Write, kind: u8, payload: &[u8]) -> io::Result<()> {
    to.write_all(&[kind])?;
    to.write_all(&(payload.len() as u64).to_le_bytes())?;
    to.write_all(payload)?;
    to.write_all(&checksum(kind, payload).to_le_bytes())
}

/// Reads one frame; `None` where the stream ends before it. A payload over `bytes_max` is refused
/// unread.
///
/// # Errors
/// [`FrameError`]; what follows in the stream cannot be read after one.
pub fn read_frame(
    from: &mut impl Read,
    bytes_max: u64,
) -> Result<Option<(u8, Vec<u8>)>, FrameError> {
    let Some(kind) = first_byte(from)? else { return Ok(None) };
    let bytes = u64::from_le_bytes(exactly(from)?);
    if bytes > bytes_max {
        return Err(FrameError::TooLong { bytes, bytes_max });
    }
    let mut payload = Vec::with_capacity(bytes.min(ALLOCATED_BYTES_MAX) as usize);
    from.by_ref().take(bytes).read_to_end(&mut payload)?;
    if payload.len() as u64 != bytes {
        return Err(FrameError::Truncated);
    }
    if u64::from_le_bytes(exactly(from)?) != checksum(kind, &payload) {
        return Err(FrameError::Damaged);
    }
    Ok(Some((kind, payload)))
}

fn first_byte(from: &mut impl Read) -> io::Result<Option<u8>> {
    let mut byte = [0];
    loop {
        match from.read(&mut byte) {
            Ok(0) => return Ok(None),
            Ok(_) => return Ok(Some(byte[0])),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The next `N` bytes.
pub(super) fn exactly<const N: usize>(from: &mut impl Read) -> Result<[u8; N], FrameError> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => FrameError::Truncated,
        _ => FrameError::Io(error),
    })?;
    Ok(bytes)
}
