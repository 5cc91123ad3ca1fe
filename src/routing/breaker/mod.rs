//! Takes a failing worker out of the candidates for a while.
//!
//! A breaker knows the outcomes and the times it is handed, nothing else. It trips on failures in a
//! row (a dead worker) or on the share of successes in a window (a sick one, `window.rs`), waits
//! out a cool-down that doubles with every ejection, then lets one real request through as a probe.
//! A background health check cannot take the probe's place: engines answer `/health` while hung.
//!
//! Streams last minutes, so outcomes arrive long after what they tell of. Every outcome therefore
//! comes with the time its request was sent, and counts only if that lies in the present state: of
//! the requests that a dying worker took down with it, those that fail after the first three
//! neither prolong its ejection nor eject it again once it is back. The same time tells a probe
//! from the rest. Tickets handed out by `try_probe` would do that too, but not the former.
//!
//! A breaker returns transitions as values; who ejects at most how many of a fleet is the caller's
//! question, answered by [`may_eject`] and passed in as `may_trip`.

mod image;
mod params;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use super::window::SuccessWindow;

pub use image::BreakerImage;
pub use params::{BreakerParams, BreakerSettings};

/// How an attempt at a worker ended, seen as a sign of its health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The worker did its work.
    Success,
    /// Says nothing about health (4xx, 429, 503 with Retry-After): neither counted nor a break in
    /// a row of failures.
    Neutral,
    /// Connect failure, reset, 5xx or stall.
    Failure,
}

/// Whether a request may go to the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Yes.
    Admit,
    /// Only as the probe: after [`Breaker::try_probe`] has said yes.
    AdmitProbe,
    /// No.
    Refuse,
}

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// In use.
    Closed,
    /// Ejected, cooling down.
    Open,
    /// Ejected, cooled down: a probe decides.
    HalfOpen,
}

impl BreakerState {
    /// Its name in kebab-case, for a metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

/// Why a breaker changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Too many failures without a success between them.
    FailuresInRow,
    /// Too small a share of successes in the window.
    SuccessShare,
    /// The probe failed.
    ProbeFailed,
    /// The probe succeeded.
    ProbeSucceeded,
}

impl Cause {
    /// Its name in kebab-case, for a metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FailuresInRow => "failures-in-row",
            Self::SuccessShare => "success-share",
            Self::ProbeFailed => "probe-failed",
            Self::ProbeSucceeded => "probe-succeeded",
        }
    }
}

/// A change that outcomes brought about: an ejection (`to` is Open) or a readmission (`to` is
/// Closed).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// The state before.
    pub from: BreakerState,
    /// The state after.
    pub to: BreakerState,
    /// Why.
    pub cause: Cause,
}

#[derive(Debug, Clone, Copy)]
enum Inner {
    /// `since` the construction or the last readmission.
    Closed {
        since: Instant,
        failures_in_row: u32,
        steady_since: Instant,
    },
    Open {
        until: Instant,
    },
    /// With the time the probe in flight was sent.
    HalfOpen {
        probe_sent: Option<Instant>,
    },
}

/// One worker's breaker. Any order of times is taken without a panic: one that goes backwards only
/// makes waiting longer, by as much as it went.
#[derive(Debug, Clone)]
pub struct Breaker {
    params: BreakerParams,
    inner: Inner,
    window: SuccessWindow,
    /// How long the next ejection will last.
    cool_down: Duration,
}

impl Breaker {
    /// A closed breaker.
    pub fn new(params: BreakerParams, now: Instant) -> Self {
        let settings = params.settings();
        Self {
            params,
            inner: closed(now),
            window: SuccessWindow::new(settings.window, now),
            cool_down: settings.cool_down_first,
        }
    }

    /// Goes by other parameters from now on. Its state stays; what was counted goes only when the
    /// window is another.
    pub fn set_params(&mut self, params: BreakerParams, now: Instant) {
        let (before, settings) = (*self.params.settings(), *params.settings());
        if before.window != settings.window {
            self.window = SuccessWindow::new(settings.window, now);
        }
        // A next cool-down that no failure has lengthened is the new first one.
        self.cool_down = if self.cool_down == before.cool_down_first {
            settings.cool_down_first
        } else {
            self.cool_down.clamp(settings.cool_down_first, settings.cool_down_max)
        };
        self.params = params;
    }

    /// Whether a request may go to the worker at `now`. Changes nothing.
    pub fn admits(&self, now: Instant) -> Admission {
        match self.inner {
            Inner::Closed { .. } => Admission::Admit,
            _ if self.refuses_for(now).is_zero() => Admission::AdmitProbe,
            Inner::Open { .. } | Inner::HalfOpen { .. } => Admission::Refuse,
        }
    }

    /// Takes the one place there is for a probe; on `true` the caller sends it, with `now` as the
    /// time it was sent. The place frees when the probe reports, is abandoned, or after
    /// `probe_expires_after`.
    pub fn try_probe(&mut self, now: Instant) -> bool {
        let due = self.admits(now) == Admission::AdmitProbe;
        if due {
            self.inner = Inner::HalfOpen { probe_sent: Some(now) };
        }
        due
    }

    /// Takes in how a request ended that was sent at `sent`: ordinary ones and probes alike. What
    /// was sent before the present state began does not count.
    ///
    /// With `may_trip` false a closed breaker stays closed but goes on counting, so that it trips
    /// at the next failure that may. A probe that fails opens the breaker again in any case: the
    /// worker is ejected already.
    pub fn on_outcome(
        &mut self,
        outcome: Outcome,
        sent: Instant,
        now: Instant,
        may_trip: bool,
    ) -> Option<Transition> {
        match self.inner {
            Inner::Closed { since, .. } if sent >= since => {
                self.on_closed_outcome(outcome, now, may_trip)
            }
            Inner::HalfOpen { probe_sent: Some(probe_sent) } if sent >= probe_sent => {
                self.on_probe_outcome(outcome, now)
            }
            Inner::Closed { .. } | Inner::HalfOpen { .. } | Inner::Open { .. } => None,
        }
    }

    /// The probe sent at `sent` will not report (its client left): frees its place and says nothing
    /// about health. Does nothing when another probe has taken the place since.
    pub fn probe_abandoned(&mut self, sent: Instant) {
        match &mut self.inner {
            Inner::HalfOpen { probe_sent } if *probe_sent == Some(sent) => *probe_sent = None,
            Inner::Closed { .. } | Inner::HalfOpen { .. } | Inner::Open { .. } => {}
        }
    }

    /// Where the breaker stands at `now`. An open one whose cool-down is over counts as half-open,
    /// as a probe may go.
    pub fn state(&self, now: Instant) -> BreakerState {
        match self.inner {
            Inner::Closed { .. } => BreakerState::Closed,
            Inner::Open { until } if now < until => BreakerState::Open,
            Inner::Open { .. } | Inner::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// Time until a probe may go, zero where none is needed or one may go now. For `Retry-After`.
    pub fn refuses_for(&self, now: Instant) -> Duration {
        match self.inner {
            Inner::Open { until } => until.saturating_duration_since(now),
            Inner::HalfOpen { probe_sent: Some(sent) } => {
                self.probe_expires_at(sent).saturating_duration_since(now)
            }
            Inner::Closed { .. } | Inner::HalfOpen { probe_sent: None } => Duration::ZERO,
        }
    }

    fn on_closed_outcome(
        &mut self,
        outcome: Outcome,
        now: Instant,
        may_trip: bool,
    ) -> Option<Transition> {
        let Inner::Closed { failures_in_row, steady_since, .. } = &mut self.inner else {
            return None;
        };
        let settings = self.params.settings();
        match outcome {
            Outcome::Neutral => return None,
            Outcome::Success => {
                *failures_in_row = 0;
                if now.saturating_duration_since(*steady_since) >= settings.steady_after {
                    self.cool_down = settings.cool_down_first;
                }
                self.window.record(true, now);
                return None;
            }
            Outcome::Failure => {}
        }
        *failures_in_row = failures_in_row.saturating_add(1);
        *steady_since = now;
        let failures_in_row = *failures_in_row;
        self.window.record(false, now);
        let tally = self.window.tally(now);
        let cause = if failures_in_row >= settings.failures_in_row_max {
            Cause::FailuresInRow
        } else if tally.outcomes() >= u64::from(settings.outcomes_min)
            && tally.success_share() < settings.success_share_min
        {
            Cause::SuccessShare
        } else {
            return None;
        };
        may_trip.then(|| self.open(BreakerState::Closed, cause, now))
    }

    fn on_probe_outcome(&mut self, outcome: Outcome, now: Instant) -> Option<Transition> {
        match outcome {
            Outcome::Neutral => {
                self.inner = Inner::HalfOpen { probe_sent: None };
                None
            }
            Outcome::Failure => Some(self.open(BreakerState::HalfOpen, Cause::ProbeFailed, now)),
            Outcome::Success => {
                // What the worker did before its ejection is no longer held against it.
                self.window.clear();
                self.inner = closed(now);
                let (from, to) = (BreakerState::HalfOpen, BreakerState::Closed);
                Some(Transition { from, to, cause: Cause::ProbeSucceeded })
            }
        }
    }

    fn probe_expires_at(&self, sent: Instant) -> Instant {
        after(sent, self.params.settings().probe_expires_after)
    }

    /// Ejects for the present cool-down and doubles the next.
    fn open(&mut self, from: BreakerState, cause: Cause, now: Instant) -> Transition {
        self.inner = Inner::Open { until: after(now, self.cool_down) };
        self.cool_down = (self.cool_down * 2).min(self.params.settings().cool_down_max);
        Transition { from, to: BreakerState::Open, cause }
    }
}

/// `now + wait`. No `Instant` lies within a day of its end; if one did, the wait would be over at
/// once rather than panic.
fn after(now: Instant, wait: Duration) -> Instant {
    now.checked_add(wait).unwrap_or(now)
}

fn closed(now: Instant) -> Inner {
    Inner::Closed { since: now, failures_in_row: 0, steady_since: now }
}

/// The share of a fleet that may be ejected at a time, unless configured. Envoy's outlier detection
/// ships 10 %, meant for fleets of hundreds; half still leaves a fleet of two or four with work.
pub const EJECTED_SHARE_MAX: f64 = 0.5;

/// Whether one more worker may be ejected from a fleet of `total` of which `ejected` are out: never
/// the last; at most `share_max` (0 to 1) of the fleet, rounded down, but one in any case.
///
/// A fleet in which everything fails has a fault that ejecting cannot cure, often the router's own
/// network, and an answer from a sick worker beats none.
pub fn may_eject(total: usize, ejected: usize, share_max: f64) -> bool {
    let allowed = ((total as f64 * share_max) as usize).max(1);
    let out = ejected.saturating_add(1);
    out <= allowed && out < total
}
