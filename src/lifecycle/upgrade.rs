//! Hands over to a successor: another process of the program that lies at our path now.

use std::{
    ffi::OsString,
    io::{self, BufReader, BufWriter, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{AcqRel, Acquire, Release},
        },
    },
    time::Duration,
};

use crossbeam::channel::{Receiver, RecvTimeoutError, unbounded};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use parking_lot::Mutex;

use super::{
    Sockets, notify,
    protocol::{
        ADDRESSES, AGAIN, ENV, FRAME_BYTES_MAX, GIVE, HELLO, Hello, LAUNCHED, LAUNCHED_ENV, LOADS,
        PROTOCOL, REPORT, SAID, SERVING, STATE, WorkerLoad, report_payload, said_payload,
        send_sockets,
    },
    snapshot::Snapshots,
    write_state,
};
use crate::{
    clock,
    fleet::{Fleet, Listening, Member},
    reports::{Forwarded, Tap},
    state::frame::{read_frame, write_frame},
    telemetry::lifecycle,
};

/// How often the successor is told what has happened.
const TELL_EVERY: Duration = Duration::from_millis(50);
/// Presumptions that may wait to be told.
const SAID_WAITING_MAX: usize = 16_384;
/// A successor whose end of the connection is closed has this long to end.
const ENDS_WITHIN: Duration = Duration::from_secs(1);
/// A successor that does not read for so long has failed.
const WRITE_MAX: Duration = Duration::from_secs(5);

/// Why there is no successor.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// One is on its way.
    #[error("an upgrade is under way")]
    UnderWay,
    /// It could not be started.
    #[error("{program}: {error}")]
    Start {
        /// What was to be started.
        program: String,
        /// Why not.
        error: io::Error,
    },
    /// It ended.
    #[error("the new process ended before it served ({0}): see its last log lines")]
    Ended(String),
    /// It took too long.
    #[error("the new process does not serve after {0} s: it was killed")]
    TimedOut(u64),
    /// We could not talk to it.
    #[error("the new process cannot be talked to: {0}")]
    Talk(#[from] io::Error),
}

/// Starts successors, one at a time.
pub struct Upgrader {
    program: PathBuf,
    args: Vec<OsString>,
    fleet: Arc<Fleet>,
    sockets: Sockets,
    reports: Arc<Tap>,
    snapshots: Option<Arc<Snapshots>>,
    under_way: AtomicBool,
    /// Whether another process serves.
    handed_over: AtomicBool,
    /// Whether we are to stop, so that nobody may take over.
    stopping: AtomicBool,
    /// Held by an upgrade, and by a reload: neither sees half of the other.
    turn: Mutex<()>,
    started: Mutex<Started>,
}

impl Upgrader {
    /// Of this process, as it was started, by the path of its program.
    pub fn new(
        program: PathBuf,
        fleet: Arc<Fleet>,
        sockets: Sockets,
        reports: Arc<Tap>,
        snapshots: Option<Arc<Snapshots>>,
    ) -> Self {
        Self {
            program,
            args: std::env::args_os().skip(1).collect(),
            fleet,
            sockets,
            reports,
            snapshots,
            under_way: AtomicBool::new(false),
            handed_over: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            turn: Mutex::new(()),
            started: Mutex::default(),
        }
    }

    /// How long open requests may take when we leave.
    pub fn drain_time_max(&self) -> Duration {
        self.fleet.live().config.timeouts.drain
    }

    /// Starts a successor and gives it all; returns its process id once it serves. Blocks.
    ///
    /// # Errors
    /// `UpgradeError`; we go on as before.
    pub fn upgrade(&self) -> Result<u32, UpgradeError> {
        if self.under_way.swap(true, AcqRel) {
            return Err(UpgradeError::UnderWay);
        }
        let _turn = self.turn.lock();
        notify::status("upgrading");
        let outcome = self.hand_over().map_err(|error| match error {
            // That it cannot be talked to says less than how it ended.
            UpgradeError::Talk(_) => self.how_it_ended().unwrap_or(error),
            _ => error,
        });
        match &outcome {
            Ok(pid) => {
                self.handed_over.store(true, Release);
                if let Some(snapshots) = &self.snapshots {
                    snapshots.hand_over();
                }
                lifecycle::upgraded(*pid);
            }
            Err(error) => {
                self.reports.close();
                self.abandon();
                self.under_way.store(false, Release);
                let why = error.to_string();
                lifecycle::upgrade_failed(&why);
                notify::status(&format!("serving; the last upgrade failed: {why}"));
            }
        }
        outcome
    }

    /// Does `what` while no upgrade is under way; none where another process has taken over.
    pub fn between_upgrades<T>(&self, what: impl FnOnce() -> T) -> Option<T> {
        let _turn = self.turn.lock();
        (!self.handed_over.load(Acquire)).then(what)
    }

    /// We stop: a successor that does not serve yet is ended, and none will be.
    pub fn stop(&self) {
        self.stopping.store(true, Release);
        self.abandon();
    }

    fn abandon(&self) {
        let Started { launcher, successor } = std::mem::take(&mut *self.started.lock());
        if let Some(mut launcher) = launcher {
            let _ = launcher.kill();
            let _ = launcher.wait();
        }
        if let Some(successor) = successor {
            let _ = kill(successor, Signal::SIGKILL);
        }
    }

    fn hand_over(&self) -> Result<u32, UpgradeError> {
        let within = self.fleet.live().config.timeouts.upgrade;
        let until = clock::now() + within;
        let (ours, theirs) = UnixStream::pair()?;
        self.start(theirs)?;
        tracing::info!(program = %self.program.display(), "a new process starts");
        ours.set_write_timeout(Some(WRITE_MAX))?;
        let (addresses, fds) = self.sockets.list();
        send_sockets(&ours, &fds)?;
        let words = listen_to(&ours)?;
        let mut successor = Successor { out: BufWriter::new(ours), fleet: self.fleet.clone() };
        successor.say(ADDRESSES, &serde_json::to_vec(&addresses).unwrap_or_default())?;
        // From here on nothing that is learned is lost: it is in the state, or told after it.
        let (mut news, mut pid) = (None, 0);
        loop {
            match words.recv_timeout(until.saturating_duration_since(clock::now()).min(TELL_EVERY))
            {
                Ok((LAUNCHED, payload)) => {
                    pid = payload.first_chunk().map_or(0, |id| u32::from_le_bytes(*id));
                    self.launched(pid);
                }
                Ok((HELLO, payload)) => {
                    if let Ok(hello) = serde_json::from_slice::<Hello>(&payload) {
                        let Hello { version, pid } = hello;
                        tracing::info!(version, pid, "the new process is ready to take over");
                    }
                }
                Ok((GIVE, _)) => {
                    news = Some(self.news());
                    successor.give(|_| true)?;
                }
                Ok((AGAIN, _)) => successor.give(Member::has_publishers)?,
                Ok((SERVING, _)) => break,
                Ok(_) | Err(RecvTimeoutError::Timeout) if clock::now() >= until => {
                    return Err(UpgradeError::TimedOut(within.as_secs()));
                }
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
            }
            if self.stopping.load(Acquire) {
                return Err(UpgradeError::Ended("this process is to stop".to_owned()));
            }
            if let Some(news) = &news {
                successor.tell(news)?;
            }
        }
        // Not ours to kill any more.
        drop(std::mem::take(&mut *self.started.lock()));
        let news = news.unwrap_or_else(|| self.news());
        let telling = std::thread::Builder::new().name("hand-over".to_owned());
        let told = telling.spawn(move || {
            while successor.tell(&news).is_ok() {
                std::thread::sleep(TELL_EVERY);
            }
        });
        if let Err(error) = told {
            // It serves all the same.
            tracing::warn!(%error, "the new process is told no more");
        }
        Ok(pid)
    }

    /// By a launcher, which leaves at once: see [`super::launch`].
    fn start(&self, theirs: UnixStream) -> Result<(), UpgradeError> {
        let launcher = Command::new(&self.program)
            .args(&self.args)
            .env(ENV, PROTOCOL)
            .env_remove(LAUNCHED_ENV)
            // It names us; without it the watchdog means whoever is the main process.
            .env_remove("WATCHDOG_PID")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .map_err(|error| {
                let program = self.program.display().to_string();
                UpgradeError::Start { program, error }
            })?;
        self.started.lock().launcher = Some(launcher);
        Ok(())
    }

    /// The launcher has done its work.
    fn launched(&self, pid: u32) {
        let mut started = self.started.lock();
        if let Some(mut launcher) = started.launcher.take() {
            let _ = launcher.wait();
        }
        // Zero would be ourselves and all of our group.
        let id = i32::try_from(pid).ok().filter(|id| *id > 0);
        started.successor = id.map(Pid::from_raw);
    }

    fn news(&self) -> News {
        News { said: self.fleet.listen(SAID_WAITING_MAX), reports: self.reports.open() }
    }

    /// How the successor ended, where it did; its launcher is waited for for a moment.
    fn how_it_ended(&self) -> Option<UpgradeError> {
        let until = clock::now() + ENDS_WITHIN;
        loop {
            let mut started = self.started.lock();
            match started.launcher.as_mut().map(Child::try_wait) {
                Some(Ok(Some(status))) if !status.success() => {
                    return Some(UpgradeError::Ended(status.to_string()));
                }
                Some(Ok(None)) if clock::now() < until => {}
                Some(_) => return None,
                None => return Some(UpgradeError::Ended("it closed the connection".to_owned())),
            }
            drop(started);
            std::thread::sleep(TELL_EVERY);
        }
    }
}

/// What was started and does not serve yet.
#[derive(Debug, Default)]
struct Started {
    launcher: Option<Child>,
    successor: Option<Pid>,
}

/// What the successor must hear of.
struct News {
    said: Listening,
    reports: Receiver<Forwarded>,
}

/// The frames the successor sends, from a thread of their own: it ends with the connection.
fn listen_to(stream: &UnixStream) -> io::Result<Receiver<(u8, Vec<u8>)>> {
    let mut from = BufReader::new(stream.try_clone()?);
    let (heard, words) = unbounded();
    std::thread::Builder::new().name("successor".to_owned()).spawn(move || {
        while let Ok(Some(frame)) = read_frame(&mut from, FRAME_BYTES_MAX) {
            if heard.send(frame).is_err() {
                return;
            }
        }
    })?;
    Ok(words)
}

/// The successor, as one writes to it.
struct Successor {
    out: BufWriter<UnixStream>,
    fleet: Arc<Fleet>,
}

impl Successor {
    fn say(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        write_frame(&mut self.out, kind, payload)?;
        self.out.flush()
    }

    fn give(&mut self, wanted: impl Fn(&Member) -> bool) -> io::Result<()> {
        let began = clock::now();
        write_frame(&mut self.out, STATE, &[])?;
        let workers = write_state(&self.fleet, &mut self.out, wanted)?;
        self.out.flush()?;
        let took_ms = clock::now().saturating_duration_since(began).as_millis();
        tracing::info!(workers, took_ms, "state given to the new process");
        Ok(())
    }

    fn tell(&mut self, news: &News) -> io::Result<()> {
        for said in news.said.said.try_iter() {
            write_frame(&mut self.out, SAID, &said_payload(&said))?;
        }
        for report in news.reports.try_iter() {
            let payload = report_payload(&report.path, &report.body);
            write_frame(&mut self.out, REPORT, &payload)?;
        }
        let loads: Vec<_> = self
            .fleet
            .members()
            .iter()
            .map(|member| WorkerLoad::of(member.id(), &member.counts.load()))
            .collect();
        self.say(LOADS, &serde_json::to_vec(&loads).unwrap_or_default())
    }
}
