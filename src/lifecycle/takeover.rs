//! Takes over from a predecessor.
//!
//! Everything here may fail; we go on with what we have then. It is the predecessor who decides
//! that we have failed: it kills us and goes on.

use std::{
    io::{self, BufReader, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    process::Command,
    sync::Arc,
    time::Duration,
};

use tokio::sync::watch;

use super::{
    Sockets,
    protocol::{
        ADDRESSES, AGAIN, ENV, FRAME_BYTES_MAX, GIVE, HELLO, Hello, LAUNCHED, LAUNCHED_ENV, LOADS,
        PROTOCOL, REPORT, SAID, SERVING, STATE, WorkerLoad, read_report, read_said,
        receive_sockets,
    },
};
use crate::{
    clock,
    drain::DrainState,
    fleet::{Cause, Fleet},
    reports,
    routing::WorkerId,
    state::{
        Reader, StateHeader, WorkerState,
        frame::{read_frame, write_frame},
    },
    telemetry::lifecycle,
};

/// How long the predecessor's loads count after it told them.
const LOADS_COUNT_FOR: Duration = Duration::from_millis(500);
/// How long publishers may take until we are subscribed to them.
const SUBSCRIBE_MAX: Duration = Duration::from_secs(2);
/// How often things are looked at that cannot be waited for.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long the listeners may take to start.
const LISTEN_MAX: Duration = Duration::from_secs(10);
/// Under this name the predecessor's loads are counted.
const PREDECESSOR: &str = "predecessor";

/// The process before us.
pub struct Predecessor {
    out: UnixStream,
    from: BufReader<UnixStream>,
}

/// What a predecessor gave.
#[derive(Clone)]
pub struct Given {
    /// Who it is, and what it names blocks by.
    pub header: StateHeader,
    /// Its workers.
    pub workers: Vec<WorkerState>,
}

/// Starts the successor proper when this process was started as one, and tells the predecessor its
/// id; then this process is to leave (true). So the successor is nobody's child but the service
/// manager's: systemd does not wait for a main process that is not its own child (it kills the whole
/// service where that should drain), nor does it notice its end.
///
/// # Errors
/// When it cannot be started.
pub fn launch() -> io::Result<bool> {
    if std::env::var_os(ENV).is_none() || std::env::var_os(LAUNCHED_ENV).is_some() {
        return Ok(false);
    }
    let mut stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let successor = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(LAUNCHED_ENV, "1")
        .spawn()?;
    say_at_once(&mut stream, LAUNCHED, &successor.id().to_le_bytes())?;
    Ok(true)
}

/// In one write: launcher and successor may speak at the same time.
fn say_at_once(stream: &mut UnixStream, kind: u8, payload: &[u8]) -> io::Result<()> {
    let mut frame = Vec::new();
    write_frame(&mut frame, kind, payload)?;
    stream.write_all(&frame)
}

impl Predecessor {
    /// The predecessor that started us, and its sockets, if one did.
    ///
    /// # Errors
    /// When it speaks another protocol or has left.
    pub fn find() -> io::Result<Option<(Self, Sockets)>> {
        let Some(protocol) = std::env::var_os(ENV) else { return Ok(None) };
        if protocol != PROTOCOL {
            return Err(io::Error::other("the process before this one speaks another protocol"));
        }
        let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let fds = receive_sockets(&stream)?;
        let mut from = BufReader::new(stream.try_clone()?);
        let addresses = match read_frame(&mut from, FRAME_BYTES_MAX) {
            Ok(Some((ADDRESSES, payload))) => serde_json::from_slice(&payload).unwrap_or_default(),
            _ => return Err(io::Error::other("no addresses came with the sockets")),
        };
        Ok(Some((Self { out: stream, from }, Sockets::inherited(addresses, fds))))
    }

    /// Asks for all that is known of the workers. None when it does not come, or not in a form we
    /// can read; what comes in part is taken so far.
    pub fn state(&mut self) -> Option<Given> {
        let hello =
            Hello { version: env!("CARGO_PKG_VERSION").to_owned(), pid: std::process::id() };
        let hello = serde_json::to_vec(&hello).unwrap_or_default();
        let asked = say_at_once(&mut self.out, HELLO, &hello).and_then(|()| self.say(GIVE));
        if let Err(error) = asked {
            tracing::warn!(%error, "the process before this one gives no state");
            return None;
        }
        loop {
            match read_frame(&mut self.from, FRAME_BYTES_MAX) {
                Ok(Some((STATE, _))) => break,
                Ok(Some(_)) => {}
                _ => return None,
            }
        }
        self.read_state()
    }

    fn read_state(&mut self) -> Option<Given> {
        let mut reader = match Reader::new(&mut self.from, FRAME_BYTES_MAX) {
            Ok(reader) => reader,
            Err(error) => {
                tracing::warn!(%error, "the state cannot be read: starting cold");
                return None;
            }
        };
        let header = reader.header().clone();
        let mut workers = Vec::new();
        loop {
            match reader.next_worker() {
                Ok(Some(worker)) => workers.push(worker),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, workers = workers.len(), "the state ends early");
                    break;
                }
            }
        }
        Some(Given { header, workers })
    }

    fn say(&mut self, kind: u8) -> io::Result<()> {
        say_at_once(&mut self.out, kind, &[])
    }

    /// Finishes the hand-over from a thread of its own, and follows the predecessor to its end.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn follow(self, finish: Finish) -> io::Result<()> {
        std::thread::Builder::new()
            .name("take-over".to_owned())
            .spawn(move || finish.run(self))
            .map(drop)
    }
}

/// What is left to do once all services run.
pub struct Finish {
    /// The fleet.
    pub fleet: Arc<Fleet>,
    /// Opened when we may take things in.
    pub gate: watch::Sender<bool>,
    /// Listening services have begun when these say so.
    pub sockets: Sockets,
    /// Not empty while the predecessor is there.
    pub drain: Arc<DrainState>,
}

impl Finish {
    fn run(self, mut predecessor: Predecessor) {
        self.drain.set_followed(true);
        wait(SUBSCRIBE_MAX, || self.fleet.publishers_wait());
        let asked = predecessor.say(AGAIN).is_ok();
        let mut told = asked;
        while told {
            match read_frame(&mut predecessor.from, FRAME_BYTES_MAX) {
                Ok(Some((STATE, _))) => {
                    if let Some(given) = predecessor.read_state() {
                        let now = clock::now();
                        for worker in &given.workers {
                            self.fleet.restore(worker, Cause::HandOver, now);
                        }
                    }
                    break;
                }
                Ok(Some((kind, payload))) => self.take(kind, &payload),
                _ => told = false,
            }
        }
        self.gate.send_replace(true);
        wait(LISTEN_MAX, || self.sockets.all_listen());
        if predecessor.say(SERVING).is_err() {
            tracing::warn!("the process before this one left before we served");
        }
        lifecycle::took_over();
        while let Ok(Some((kind, payload))) = read_frame(&mut predecessor.from, FRAME_BYTES_MAX) {
            self.take(kind, &payload);
        }
        self.fleet.hear_loads(PREDECESSOR, &[], clock::now(), clock::now());
        self.drain.set_followed(false);
        tracing::info!("the process before this one has left");
    }

    /// One piece of news.
    fn take(&self, kind: u8, payload: &[u8]) {
        let now = clock::now();
        match kind {
            SAID => {
                if let Some(said) = read_said(payload) {
                    self.fleet.hear(&said, now);
                }
            }
            REPORT => {
                if let Some((path, body)) = read_report(payload) {
                    reports::apply(&self.fleet, &path, body, now);
                }
            }
            // Routers that share their loads hear the predecessor's like any other's.
            LOADS if self.fleet.live().config.peers.is_none() => {
                let loads: Vec<WorkerLoad> = serde_json::from_slice(payload).unwrap_or_default();
                let loads: Vec<(WorkerId, _)> =
                    loads.into_iter().filter_map(WorkerLoad::into_load).collect();
                self.fleet.hear_loads(PREDECESSOR, &loads, now + LOADS_COUNT_FOR, now);
            }
            _ => {}
        }
    }
}

fn wait(longest: Duration, done: impl Fn() -> bool) {
    let until = clock::now() + longest;
    while !done() && clock::now() < until {
        std::thread::sleep(LOOK_EVERY);
    }
}
