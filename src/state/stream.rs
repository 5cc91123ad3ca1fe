//! The frames of a state, in their order.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    StateHeader, WorkerState,
    frame::{FrameError, exactly, read_frame, write_frame},
    packed::{self, Malformed, Sections, section},
};
use crate::routing::{block::Secret, prefix::holdings::TierImage};

const MAGIC: [u8; 8] = *b"WARMSTAT";

/// Raised where older readers would misread; they refuse.
const MAJOR: u16 = 1;
/// Raised where something is added that older readers may pass over.
const MINOR: u16 = 1;

const KIND_HEADER: u8 = 1;
const KIND_WORKER: u8 = 2;
const KIND_END: u8 = 3;

/// The named fields, in both kinds.
const NAMED: u8 = 1;

const HEADER_SECRET: u8 = 2;

const WORKER_CACHE: u8 = 2;
const WORKER_PRESUMED: u8 = 3;
const WORKER_YOUNG: u8 = 4;
const WORKER_OLD: u8 = 5;
const WORKER_UNCONFIRMED: u8 = 6;
const WORKER_CAPACITY: u8 = 7;
/// Written up to format 1.0.
const WORKER_RATE: u8 = 8;
const WORKER_PREFILL: u8 = 9;

/// Why a state could not be read.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It does not begin as one.
    #[error("this is no state of warmroute")]
    NotState,
    /// Another version's.
    #[error(
        "this state has format {0}, and this version reads format {MAJOR} only: it was written by \
         another version of warmroute"
    )]
    Version(u16),
    /// It ends before its end.
    #[error("the state ends early: its writer did not finish")]
    Truncated,
    /// A frame is longer than the reader takes.
    #[error("a frame claims {bytes} bytes, where at most {bytes_max} are taken")]
    TooLong {
        /// What it claims.
        bytes: u64,
        /// What the reader takes.
        bytes_max: u64,
    },
    /// Its bytes are not those that were written.
    #[error("the state is damaged: a checksum does not match")]
    Damaged,
    /// Its bytes are as they were written, and make no sense.
    #[error("the state makes no sense: {0}")]
    Malformed(String),
    /// The stream failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<FrameError> for StateError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Truncated => Self::Truncated,
            FrameError::TooLong { bytes, bytes_max } => Self::TooLong { bytes, bytes_max },
            FrameError::Damaged => Self::Damaged,
            FrameError::Io(error) => Self::Io(error),
        }
    }
}

impl From<Malformed> for StateError {
    fn from(Malformed(what): Malformed) -> Self {
        Self::Malformed(what.to_owned())
    }
}

/// The named fields of a header.
#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct HeaderNamed {
    product: String,
    made_at_unix_ms: u64,
    hashing: String,
}

/// The end: how many workers there were.
#[derive(Serialize, Deserialize)]
struct EndNamed {
    workers: u64,
}

fn named(payload: &mut Vec<u8>, fields: &impl Serialize) -> io::Result<()> {
    section(payload, NAMED, |out| serde_json::to_writer(out, fields)).map_err(io::Error::from)
}

fn fields<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, StateError> {
    serde_json::from_slice(body).map_err(|error| StateError::Malformed(error.to_string()))
}

/// Where a state begins: what it is, its version, and a checksum of both.
fn preamble() -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..10].copy_from_slice(&MAJOR.to_le_bytes());
    bytes[10..12].copy_from_slice(&MINOR.to_le_bytes());
    let checksum = xxh3_64(&bytes[..12]) as u32;
    bytes[12..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Writes a state, a worker at a time.
#[derive(Debug)]
pub struct Writer<W> {
    to: W,
    workers: u64,
    /// Kept from worker to worker, so that it need not grow each time.
    payload: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Begins one.
    ///
    /// # Errors
    /// What `to` gives.
    pub fn new(mut to: W, header: &StateHeader) -> io::Result<Self> {
        to.write_all(&preamble())?;
        let mut payload = Vec::new();
        let StateHeader { product, made_at_unix_ms, hashing, secret } = header.clone();
        named(&mut payload, &HeaderNamed { product, made_at_unix_ms, hashing })?;
        section(&mut payload, HEADER_SECRET, |out| out.extend_from_slice(&secret.to_bytes()));
        write_frame(&mut to, KIND_HEADER, &payload)?;
        Ok(Self { to, workers: 0, payload })
    }

    /// Writes one worker.
    ///
    /// # Errors
    /// What the stream gives.
    pub fn worker(&mut self, worker: &WorkerState) -> io::Result<()> {
        let out = &mut self.payload;
        out.clear();
        named(out, worker)?;
        for TierImage { rank, tier, cache } in &worker.holdings.caches {
            section(out, WORKER_CACHE, |out| packed::cache(out, *rank, *tier, cache));
        }
        let holdings = &worker.holdings;
        section(out, WORKER_PRESUMED, |out| {
            packed::presumed(out, holdings.young_for, holdings.confirming);
        });
        for (tag, index) in [
            (WORKER_YOUNG, &holdings.young),
            (WORKER_OLD, &holdings.old),
            (WORKER_UNCONFIRMED, &worker.unconfirmed),
        ] {
            section(out, tag, |out| packed::index(out, index));
        }
        section(out, WORKER_CAPACITY, |out| packed::capacity(out, &worker.truth.capacity));
        section(out, WORKER_PREFILL, |out| packed::prefill(out, &worker.prefill));
        write_frame(&mut self.to, KIND_WORKER, &self.payload)?;
        self.workers += 1;
        Ok(())
    }

    /// Writes the end, without which a reader takes it for cut off, and flushes.
    ///
    /// # Errors
    /// What the stream gives.
    pub fn end(mut self) -> io::Result<W> {
        let end = serde_json::to_vec(&EndNamed { workers: self.workers })?;
        write_frame(&mut self.to, KIND_END, &end)?;
        self.to.flush()?;
        Ok(self.to)
    }
}

/// Reads a state, a worker at a time.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    frame_bytes_max: u64,
    header: StateHeader,
    workers: u64,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the header. No frame may be longer than `frame_bytes_max`; a worker takes about 9
    /// bytes a block, 20 a record and some hundred.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn new(mut from: R, frame_bytes_max: u64) -> Result<Self, StateError> {
        let start: [u8; 16] = exactly(&mut from)?;
        if start[..8] != MAGIC {
            return Err(StateError::NotState);
        }
        let major = u16::from_le_bytes([start[8], start[9]]);
        if major != MAJOR {
            return Err(StateError::Version(major));
        }
        if (xxh3_64(&start[..12]) as u32).to_le_bytes() != start[12..] {
            return Err(StateError::Damaged);
        }
        loop {
            match read_frame(&mut from, frame_bytes_max)?.ok_or(StateError::Truncated)? {
                (KIND_HEADER, payload) => {
                    let header = read_header(&payload)?;
                    return Ok(Self { from, frame_bytes_max, header, workers: 0, ended: false });
                }
                (KIND_WORKER | KIND_END, _) => Err(Malformed("a worker before the header"))?,
                // A later version's.
                _ => {}
            }
        }
    }

    /// What precedes the workers.
    pub const fn header(&self) -> &StateHeader {
        &self.header
    }

    /// The next worker; `None` at the end. What follows the end in the stream is not touched.
    ///
    /// # Errors
    /// [`StateError`]; nothing more can be read after one.
    pub fn next_worker(&mut self) -> Result<Option<WorkerState>, StateError> {
        while !self.ended {
            let frame = read_frame(&mut self.from, self.frame_bytes_max)?;
            match frame.ok_or(StateError::Truncated)? {
                (KIND_WORKER, payload) => {
                    self.workers += 1;
                    return read_worker(&payload).map(Some);
                }
                (KIND_END, payload) => {
                    let EndNamed { workers } = fields(&payload)?;
                    if workers != self.workers {
                        Err(Malformed("not all workers are there"))?;
                    }
                    self.ended = true;
                }
                (KIND_HEADER, _) => Err(Malformed("a second header"))?,
                // A later version's.
                _ => {}
            }
        }
        Ok(None)
    }

    /// The stream, for what follows.
    pub fn into_inner(self) -> R {
        self.from
    }
}

fn read_header(payload: &[u8]) -> Result<StateHeader, StateError> {
    let (mut told, mut secret) = (None, None);
    for section in Sections::of(payload) {
        match section? {
            (NAMED, body) => told = Some(fields::<HeaderNamed>(body)?),
            (HEADER_SECRET, body) => secret = body.try_into().ok().map(Secret::from_bytes),
            _ => {}
        }
    }
    let told = told.ok_or(Malformed("a header without its fields"))?;
    let secret = secret.ok_or(Malformed("a header without its key"))?;
    let HeaderNamed { product, made_at_unix_ms, hashing } = told;
    Ok(StateHeader { product, made_at_unix_ms, hashing, secret })
}

fn read_worker(payload: &[u8]) -> Result<WorkerState, StateError> {
    let (mut told, mut worker) = (None, WorkerState::default());
    let holdings = &mut worker.holdings;
    for section in Sections::of(payload) {
        let (tag, body) = section?;
        match tag {
            NAMED => told = Some(fields::<WorkerState>(body)?),
            WORKER_CACHE => holdings.caches.extend(packed::read_cache(body)?),
            WORKER_PRESUMED => {
                (holdings.young_for, holdings.confirming) = packed::read_presumed(body)?;
            }
            WORKER_YOUNG => holdings.young = packed::read_index(body)?,
            WORKER_OLD => holdings.old = packed::read_index(body)?,
            WORKER_UNCONFIRMED => worker.unconfirmed = packed::read_index(body)?,
            WORKER_CAPACITY => worker.truth.capacity = packed::read_capacity(body)?,
            WORKER_RATE => worker.prefill = packed::read_rate(body)?,
            WORKER_PREFILL => worker.prefill = packed::read_prefill(body)?,
            // A later version's.
            _ => {}
        }
    }
    let mut told = told.ok_or(Malformed("a worker without its fields"))?;
    told.truth.capacity = worker.truth.capacity;
    Ok(WorkerState {
        holdings: worker.holdings,
        unconfirmed: worker.unconfirmed,
        prefill: worker.prefill,
        ..told
    })
}
