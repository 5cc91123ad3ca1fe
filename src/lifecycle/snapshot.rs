//! What is known of the workers, kept in a file against a crash.
//!
//! The file is whole or not there: it is written beside its place and moved. While it is read it
//! bears another name, so that one that brings us down is read once only.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Release},
        },
    },
    time::Duration,
};

use async_trait::async_trait;
use pingora::{server::ShutdownWatch, services::background::BackgroundService};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use super::{takeover::Given, write_state};
use crate::{
    config::StateConfig,
    fleet::Fleet,
    state::Reader,
    telemetry::{access_log::unix_s, lifecycle},
};

/// The snapshot's name.
const FILE: &str = "state";
/// Its name while it is read.
const READING: &str = "state.reading";

/// Where the snapshot lies: as configured, or where systemd wants it.
pub fn folder(config: &StateConfig) -> Option<PathBuf> {
    config.dir.clone().or_else(|| {
        let given = std::env::var_os("STATE_DIRECTORY")?;
        std::env::split_paths(&given).next().filter(|path| path.is_absolute())
    })
}

/// A snapshot that was found, and how old it is.
pub struct Found {
    /// What it says.
    pub given: Given,
    /// Its age.
    pub away: Duration,
    folder: PathBuf,
}

impl Found {
    /// It was taken up without harm: the next start may use it too.
    pub fn keep(&self) {
        let moved = fs::rename(self.folder.join(READING), self.folder.join(FILE));
        if let Err(error) = moved {
            tracing::warn!(%error, "the snapshot cannot be moved back");
        }
    }
}

/// Reads the snapshot, if there is one that is young and whole; says why not otherwise.
pub fn find(config: &StateConfig) -> Option<Found> {
    let folder = folder(config)?;
    match fs::rename(folder.join(FILE), folder.join(READING)) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            tracing::info!(folder = %folder.display(), "no snapshot: starting cold");
            return None;
        }
        Err(error) => {
            tracing::warn!(folder = %folder.display(), %error, "no snapshot can be read: starting cold");
            return None;
        }
    }
    let read = read(&folder.join(READING), config);
    match read {
        Ok((given, away)) => Some(Found { given, away, folder }),
        Err(why) => {
            tracing::warn!(folder = %folder.display(), why, "snapshot not used: starting cold");
            None
        }
    }
}

fn read(path: &Path, config: &StateConfig) -> Result<(Given, Duration), String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mut reader =
        Reader::new(BufReader::new(file), config.bytes_max).map_err(|error| error.to_string())?;
    let header = reader.header().clone();
    let away = unix_s() - header.made_at_unix_ms as f64 / 1000.0;
    if away < -60.0 {
        return Err("it is from the future".to_owned());
    }
    let away = Duration::from_secs_f64(away.max(0.0));
    if away > config.age_max {
        let (age, most) = (away.as_secs(), config.age_max.as_secs());
        return Err(format!("it is {age} s old, and `state.age_max_s` is {most}"));
    }
    let mut workers = Vec::new();
    while let Some(worker) = reader.next_worker().map_err(|error| error.to_string())? {
        workers.push(worker);
    }
    Ok((Given { header, workers }, away))
}

/// Writes snapshots.
pub struct Snapshots {
    config: StateConfig,
    folder: PathBuf,
    fleet: Arc<Fleet>,
    /// Nothing is written before it is open.
    gate: watch::Receiver<bool>,
    /// Another process writes them now.
    handed_over: AtomicBool,
}

impl Snapshots {
    /// Of this fleet, if there is a place for them.
    pub fn new(
        config: &StateConfig,
        fleet: Arc<Fleet>,
        gate: watch::Receiver<bool>,
    ) -> Option<Arc<Self>> {
        let folder = folder(config)?;
        config.interval?;
        let handed_over = AtomicBool::new(false);
        Some(Arc::new(Self { config: config.clone(), folder, fleet, gate, handed_over }))
    }

    /// From now on another process writes them.
    pub fn hand_over(&self) {
        self.handed_over.store(true, Release);
    }

    /// Writes one now. Blocks.
    pub fn write(&self) {
        if self.handed_over.load(Acquire) || !*self.gate.borrow() {
            return;
        }
        match self.try_write() {
            Ok(bytes) => lifecycle::snapshot_written(bytes),
            Err(error) => {
                lifecycle::snapshot_failed(&format!("{}: {error}", self.folder.display()));
            }
        }
    }

    fn try_write(&self) -> io::Result<u64> {
        fs::create_dir_all(&self.folder)?;
        let beside = self.folder.join(format!("{FILE}.{}", std::process::id()));
        let written = self.write_to(&beside);
        if written.is_err() {
            let _ = fs::remove_file(&beside);
        }
        let bytes = written?;
        fs::rename(&beside, self.folder.join(FILE))?;
        // The move itself must outlive a loss of power too.
        File::open(&self.folder)?.sync_all()?;
        Ok(bytes)
    }

    fn write_to(&self, path: &Path) -> io::Result<u64> {
        // It holds the key that block names are made with.
        let file =
            OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)?;
        let mut out = Bounded { out: BufWriter::new(file), left: self.config.bytes_max };
        write_state(&self.fleet, &mut out, |_| true)?;
        let file = out.out.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        Ok(self.config.bytes_max - out.left)
    }
}

/// Writes so much and no more.
struct Bounded<W> {
    out: W,
    left: u64,
}

impl<W: Write> Write for Bounded<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() as u64 > self.left {
            return Err(io::Error::other("it is larger than `state.bytes_max`"));
        }
        let written = self.out.write(bytes)?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Writes them every so often.
pub struct SnapshotService(pub Arc<Snapshots>);

#[async_trait]
impl BackgroundService for SnapshotService {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let Some(every) = self.0.config.interval else { return };
        let mut due = interval(every);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first is due at once, and there is nothing to tell yet.
        due.tick().await;
        loop {
            tokio::select! {
                _ = due.tick() => {
                    let snapshots = self.0.clone();
                    let _ = tokio::task::spawn_blocking(move || snapshots.write()).await;
                }
                _ = shutdown.changed() => return,
            }
        }
    }
}
