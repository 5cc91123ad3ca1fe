//! Tells the service manager that we serve, and that we live.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use pingora::{server::ShutdownWatch, services::background::BackgroundService};
use tokio::{
    sync::watch,
    time::{interval, timeout},
};

use super::notify;
use crate::{
    clock,
    drain::DrainState,
    fleet::{Fleet, Health},
};

/// Latest moment after the start at which systemd is told that we are ready.
const READY_AFTER: Duration = Duration::from_secs(5);

/// Says that we serve, once some worker was checked (or would have been), and from then on that we
/// live.
pub struct Ready {
    /// The fleet.
    pub fleet: Arc<Fleet>,
    /// Open when we may accept.
    pub gate: watch::Receiver<bool>,
    /// True once we hear signals: a main process may be sent one at any time.
    pub hears: watch::Receiver<bool>,
    /// Whether a successor is the main process.
    pub drain: Arc<DrainState>,
}

#[async_trait]
impl BackgroundService for Ready {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        for may in [&self.gate, &self.hears] {
            if may.clone().wait_for(|may| *may).await.is_err() {
                return;
            }
        }
        let mut verdict = self.fleet.first_verdict();
        let _ = timeout(READY_AFTER, verdict.wait_for(|known| *known)).await;
        let healthy = self.fleet.members().iter().filter(|m| m.health() == Health::Healthy).count();
        tracing::info!(healthy, "serving");
        notify::serving(std::process::id(), "serving");
        let Some(every) = notify::watchdog_interval() else { return };
        let (mut due, mut ending) = (interval(every), false);
        loop {
            tokio::select! {
                _ = due.tick() => {
                    // Takes every lock a request takes: where one is never given back, this does not
                    // come to its end, and we are restarted.
                    let fleet = self.fleet.clone();
                    let looked = tokio::task::spawn_blocking(move || fleet.status(clock::now()));
                    if looked.await.is_ok() {
                        notify::alive();
                    }
                }
                // A successor says so now. Otherwise we go on to the end: a sign of life after the
                // signal to stop winds systemd's watchdog up again, and without another it would
                // cut the drain.
                _ = shutdown.changed(), if !ending => {
                    if self.drain.is_handed_over() {
                        return;
                    }
                    ending = true;
                }
            }
        }
    }
}
