//! What the service manager is told. Does nothing where there is none.

use std::time::Duration;

use sd_notify::NotifyState;

/// We serve; `pid` is the main process from now on.
pub fn serving(pid: u32, status: &str) {
    tell(&[NotifyState::MainPid(pid), NotifyState::Ready, NotifyState::Status(status)]);
}

/// The configuration is being read again.
pub fn reloading() {
    // systemd 253 and later want the time; earlier ones ignore it.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// It was, or was not; `systemctl status` shows the sentence.
pub fn reloaded(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// One sentence for `systemctl status`.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// We stop.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// We live.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// How often the manager wants to hear that we live, if it does: half of what it waits.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|longest| longest / 2)
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd could not be notified");
    }
}
