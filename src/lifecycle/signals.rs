//! What the process is told to do: by signals, and by orders of the admin listener.
//!
//! SIGHUP reloads, SIGUSR2 upgrades, SIGTERM drains, SIGINT stops at once.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot, watch},
};

use super::{
    Command, Reloaded, Reloader, notify,
    snapshot::Snapshots,
    upgrade::{UpgradeError, Upgrader},
};
use crate::{clock, config::ConfigError, drain::DrainState, telemetry::access_log};

/// Between the signal to stop and the end of accepting: clients learn by `Connection: close`.
const LET_GO: Duration = Duration::from_secs(1);
/// Our listeners have heard by then that they are to stop.
const STOPS_ACCEPTING_IN: Duration = Duration::from_millis(100);
/// Looks at an empty process before it leaves: what was accepted at the last moment is no request yet.
const EMPTY_LOOKS: u32 = 4;
/// The same after a hand-over, when handshakes may still be under way.
const EMPTY_LOOKS_HANDED_OVER: u32 = 20;
/// How often a draining process looks whether it is empty.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Waits for what ends the process, and sees to the rest meanwhile.
pub struct Signals {
    /// Whether we drain.
    pub drain: Arc<DrainState>,
    /// SIGHUP.
    pub reloader: Arc<Reloader>,
    /// SIGUSR2.
    pub upgrader: Arc<Upgrader>,
    /// Where what we know is kept, if it is.
    pub snapshots: Option<Arc<Snapshots>>,
    /// Orders; taken when the watch begins.
    pub commands: Mutex<Option<mpsc::Receiver<Command>>>,
    /// Told when signals are heard; until then they end the process.
    pub hearing: watch::Sender<bool>,
}

/// Signals we hear.
struct Heard {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user2: Signal,
}

impl Heard {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }
}

type UpgradeReply = Option<oneshot::Sender<Result<u32, UpgradeError>>>;

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let heard = Heard::new();
        let (Ok(mut heard), Some(mut commands)) = (heard, self.commands.lock().take()) else {
            tracing::error!("signals cannot be watched");
            return ShutdownSignal::FastShutdown;
        };
        self.hearing.send_replace(true);
        let (over, mut handed_over) = mpsc::channel(1);
        loop {
            tokio::select! {
                _ = heard.terminate.recv() => break self.terminate().await,
                _ = heard.interrupt.recv() => break self.stop_at_once(),
                _ = heard.hangup.recv() => self.reload(None),
                _ = heard.user2.recv() => self.upgrade(None, &over),
                Some(command) = commands.recv() => match command {
                    Command::Reload(reply) => self.reload(Some(reply)),
                    Command::Upgrade(reply) => self.upgrade(Some(reply), &over),
                },
                Some(()) = handed_over.recv() => break self.leave_to_successor(),
            }
        }
    }
}

impl Signals {
    fn reload(&self, reply: Option<oneshot::Sender<Result<Reloaded, ConfigError>>>) {
        let (reloader, upgrader) = (self.reloader.clone(), self.upgrader.clone());
        tokio::task::spawn_blocking(move || {
            let outcome = upgrader.between_upgrades(|| reloader.reload()).unwrap_or_else(|| {
                tracing::warn!("not reloaded: a new process has taken over");
                let remedy = "reload that one";
                let problem = "a new process has taken over";
                Err(ConfigError::new("reload", "", problem, remedy))
            });
            if let Some(reply) = reply {
                // Who asked may have left.
                let _ = reply.send(outcome);
            }
        });
    }

    fn upgrade(&self, reply: UpgradeReply, over: &mpsc::Sender<()>) {
        let (upgrader, over) = (self.upgrader.clone(), over.clone());
        tokio::task::spawn_blocking(move || {
            let outcome = upgrader.upgrade();
            if outcome.is_ok() {
                let _ = over.blocking_send(());
                // Who is told finds the new process when it connects.
                std::thread::sleep(STOPS_ACCEPTING_IN);
            }
            if let Some(reply) = reply {
                let _ = reply.send(outcome);
            }
        });
    }

    async fn terminate(&self) -> ShutdownSignal {
        notify::stopping();
        let time_max = self.upgrader.drain_time_max();
        let open = self.drain.open_requests();
        tracing::info!(open, deadline_s = time_max.as_secs(), "SIGTERM: draining");
        self.upgrader.stop();
        self.drain.begin();
        // Still accepting: keep-alive clients are told to close with their next answer.
        tokio::time::sleep(LET_GO.min(time_max)).await;
        self.leave_when_empty(time_max);
        ShutdownSignal::GracefulTerminate
    }

    /// The successor accepts: what is open here is finished, and nothing new begins.
    fn leave_to_successor(&self) -> ShutdownSignal {
        let time_max = self.upgrader.drain_time_max();
        let open = self.drain.open_requests();
        tracing::info!(open, deadline_s = time_max.as_secs(), "draining");
        self.drain.begin_handed_over();
        self.leave_when_empty(time_max);
        ShutdownSignal::GracefulTerminate
    }

    fn stop_at_once(&self) -> ShutdownSignal {
        tracing::info!(open = self.drain.open_requests(), "SIGINT: stopping at once");
        self.upgrader.stop();
        access_log::flush();
        ShutdownSignal::FastShutdown
    }

    /// Pingora sleeps the whole grace period however empty it is; we look ourselves, from a thread,
    /// as its runtimes are on their way out.
    fn leave_when_empty(&self, time_max: Duration) {
        let (state, until) = (self.drain.clone(), clock::now() + time_max);
        let snapshots = self.snapshots.clone();
        std::thread::spawn(move || {
            let handed_over = state.is_handed_over();
            let enough = if handed_over { EMPTY_LOOKS_HANDED_OVER } else { EMPTY_LOOKS };
            let mut empty_looks = 0;
            while clock::now() < until && empty_looks < enough {
                std::thread::sleep(LOOK_EVERY);
                empty_looks = if state.is_empty() { empty_looks + 1 } else { 0 };
            }
            if let Some(snapshots) = snapshots {
                // For the next start; nothing where a successor writes them.
                snapshots.write();
            }
            tracing::info!(open = state.open_requests(), "drained");
            access_log::flush();
            std::process::exit(0);
        });
    }
}
