//! How far what we believe of a worker's cache can be trusted.
//!
//! *Exact*: its events are all here, from its start on. *Degraded*: events came, but some are
//! missing, or what it answers contradicts them. *Presumed*: no events; we know only what we sent.
//! A worker may have several sources, one for each data-parallel rank, and is as good as the worst.
//!
//! A state falls on one sign and rises only on proof: by a source whose history is whole again, or
//! by a long run of predictions that all came true. Beliefs are dropped where the worker may have
//! lost its cache; a wrong drop costs some prefills, a wrong belief sends everybody to a worker
//! that holds nothing. Time-outs alone drop nothing: a busy worker times out too.
//!
//! It decides and tells ([`Action`]); clearing indexes and asking sources is the caller's.

mod image;
mod params;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use smallvec::SmallVec;

pub use image::{SourceImage, TrustImage};
pub use params::TrustParams;

/// How far beliefs about a worker can be trusted, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trust {
    /// No events: what we sent there.
    Presumed,
    /// Events, not all of them.
    Degraded,
    /// All events.
    Exact,
}

impl Trust {
    /// The label of metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Presumed => "presumed",
            Self::Degraded => "degraded",
            Self::Exact => "exact",
        }
    }

    /// The value of the gauge.
    pub const fn as_gauge(self) -> i64 {
        match self {
            Self::Presumed => 0,
            Self::Degraded => 1,
            Self::Exact => 2,
        }
    }
}

/// Number of a source among those of its worker: its data-parallel rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank(pub u32);

/// What happened to one source of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceEvent {
    /// Its events flow (again).
    Connected {
        /// Whether what we hold accounts for every event since the engine's start: read from
        /// sequence 0, or gone on exactly where we left.
        complete: bool,
    },
    /// Its connection is gone.
    Lost,
    /// Events came in sequence, from the same epoch as those before. Needs to be told only while
    /// [`TrustState::wants_proof`].
    Continued,
    /// Events are missing, and replay did not bring them.
    Gap,
    /// What we hold of it was compared or rebuilt, and is whole.
    Resynced,
    /// The engine began anew: another epoch, or its sequence went back.
    Restarted {
        /// Whether all events since that start are here.
        complete: bool,
    },
    /// The engine dropped its whole cache.
    Cleared,
}

/// What happened to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerEvent {
    /// It fails its health checks.
    HealthLost {
        /// Whether nobody listens at its port, as where its process has died.
        refused: bool,
    },
    /// It passes them again.
    HealthBack,
    /// It did not renew its registration.
    LeaseLost,
    /// It said how much of a prompt was cached.
    Feedback(Feedback),
}

/// A prediction, and what came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feedback {
    /// When it was made. One made before beliefs were dropped says nothing of those of now.
    pub predicted_at: Instant,
    /// Prompt tokens thought cached.
    pub predicted_tokens: u64,
    /// Prompt tokens that were.
    pub actual_tokens: u64,
    /// Size of the engine's blocks; predictions can be no finer.
    pub block_tokens: u64,
    /// Whether the match was confirmed by events or earlier answers, and not only presumed.
    pub sure: bool,
}

impl Feedback {
    fn slack(&self) -> u64 {
        self.block_tokens.max(1)
    }

    fn is_right(&self) -> bool {
        self.predicted_tokens.abs_diff(self.actual_tokens) <= self.slack()
    }

    fn is_stale(&self) -> bool {
        self.predicted_tokens > self.actual_tokens.saturating_add(self.slack())
    }

    fn is_hit(&self) -> bool {
        self.predicted_tokens > 0 && self.actual_tokens > 0
    }

    /// Must have been a hit, if the cache was there.
    fn is_certain(&self) -> bool {
        self.sure && self.predicted_tokens >= self.slack().saturating_mul(2)
    }
}

/// What the caller is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// Nothing.
    None,
    /// Believe nothing of this worker any more, then do as for [`AskResync`](Self::AskResync).
    DropAll,
    /// As [`DropAll`](Self::DropAll), for what this source told. Who cannot tell the sources'
    /// blocks apart drops all and says [`TrustState::dropped_all`].
    DropSource(Rank),
    /// Get the whole history of [`TrustState::unhealed`] sources: by replay, or from the reporter.
    AskResync,
}

/// Sources of one worker that are told apart; with more it is never exact.
const SOURCES_MAX: usize = 1024;

#[derive(Clone, Copy, Debug)]
struct Source {
    rank: Rank,
    /// Whether all its history is here.
    whole: bool,
    lost_at: Option<Instant>,
    /// Whether it showed, since the worker's port was found closed, that it is the same engine, or
    /// that it is another and all of that one's history is here.
    proven: bool,
}

impl Source {
    fn trust(&self, now: Instant, presumed_after: Duration) -> Trust {
        match self.lost_at {
            Some(at) if now.saturating_duration_since(at) >= presumed_after => Trust::Presumed,
            None if self.whole => Trust::Exact,
            _ => Trust::Degraded,
        }
    }
}

/// The trust in one worker.
#[derive(Clone, Debug)]
pub struct TrustState {
    params: TrustParams,
    sources: SmallVec<[Source; 1]>,
    /// Whether there were more sources than are told apart.
    crowded: bool,
    /// Whether the worker's port was found closed since it was last healthy.
    refused: bool,
    dropped_at: Option<Instant>,
    /// Right predictions in a row, and the hits among them.
    right: u32,
    right_hits: u32,
    /// Certain hits in a row that were none.
    cold: u32,
    /// The latest predictions, the newest in the lowest bit; 1 is a stale one.
    stale: u64,
}

impl TrustState {
    /// Presumed, without a source.
    pub fn new(params: TrustParams) -> Self {
        Self {
            params,
            sources: SmallVec::new(),
            crowded: false,
            refused: false,
            dropped_at: None,
            right: 0,
            right_hits: 0,
            cold: 0,
            stale: 0,
        }
    }

    /// The trust in the worker: that in its worst source.
    pub fn trust(&self, now: Instant) -> Trust {
        let sources = self.sources.iter();
        let worst = sources.map(|source| source.trust(now, self.params.presumed_after)).min();
        let worst = worst.unwrap_or(Trust::Presumed);
        if self.crowded { worst.min(Trust::Degraded) } else { worst }
    }

    /// Whether the caller should say [`SourceEvent::Continued`] when events come in sequence.
    pub fn wants_proof(&self) -> bool {
        self.refused || self.sources.iter().any(|source| source.lost_at.is_some())
    }

    /// The sources that are connected, and part of whose history is missing.
    pub fn unhealed(&self) -> impl Iterator<Item = Rank> {
        let sources = self.sources.iter();
        sources.filter(|source| source.lost_at.is_none() && !source.whole).map(|source| source.rank)
    }

    /// Something happened to the source of one rank. One not heard of before counts as connected.
    pub fn on_source(&mut self, rank: Rank, event: SourceEvent, now: Instant) -> Action {
        let Some(at) = self.source(rank, event) else { return Action::None };
        let source = &mut self.sources[at];
        if event != SourceEvent::Lost {
            source.lost_at = None;
        }
        match event {
            SourceEvent::Connected { complete } => {
                source.whole = complete;
                source.proven = complete;
                self.forget_predictions();
                if complete { Action::None } else { Action::AskResync }
            }
            SourceEvent::Lost => {
                source.lost_at = source.lost_at.or(Some(now));
                source.proven = false;
                Action::None
            }
            SourceEvent::Continued => {
                source.proven = true;
                Action::None
            }
            SourceEvent::Gap => {
                source.whole = false;
                self.forget_predictions();
                Action::AskResync
            }
            SourceEvent::Resynced => {
                source.whole = true;
                source.proven = true;
                self.forget_predictions();
                Action::None
            }
            SourceEvent::Restarted { complete } => {
                source.whole = complete;
                source.proven = true;
                self.drop_source(rank, now)
            }
            SourceEvent::Cleared => {
                // Nothing from before counts any more, missing or not.
                source.whole = true;
                source.proven = true;
                self.drop_source(rank, now)
            }
        }
    }

    /// The source of a rank will not come back, as after a change of configuration.
    pub fn forget_source(&mut self, rank: Rank) {
        self.sources.retain(|source| source.rank != rank);
    }

    /// Something happened to the worker.
    pub fn on_worker(&mut self, event: WorkerEvent, now: Instant) -> Action {
        match event {
            WorkerEvent::HealthLost { refused } => {
                if refused && !self.refused {
                    self.refused = true;
                    for source in &mut self.sources {
                        source.proven = false;
                    }
                }
                Action::None
            }
            WorkerEvent::HealthBack => {
                let refused = std::mem::take(&mut self.refused);
                let proven = |source: &Source| source.proven && source.lost_at.is_none();
                let same = !self.sources.is_empty() && self.sources.iter().all(proven);
                if refused && !same { self.drop_all(now) } else { Action::None }
            }
            WorkerEvent::LeaseLost => {
                for source in &mut self.sources {
                    source.lost_at = source.lost_at.or(Some(now));
                    source.proven = false;
                }
                Action::None
            }
            WorkerEvent::Feedback(feedback) => self.on_feedback(&feedback, now),
        }
    }

    /// The caller dropped all it believed of the worker, of its own accord or because it cannot do
    /// so for one source: `kept` is one whose history is here all the same.
    pub fn dropped_all(&mut self, kept: Option<Rank>, now: Instant) {
        for source in &mut self.sources {
            source.whole &= kept == Some(source.rank);
        }
        self.dropped_at = Some(now);
        self.forget_predictions();
    }

    fn on_feedback(&mut self, feedback: &Feedback, now: Instant) -> Action {
        if self.dropped_at.is_some_and(|dropped| feedback.predicted_at <= dropped) {
            return Action::None;
        }
        if feedback.is_certain() {
            self.cold = if feedback.actual_tokens == 0 { self.cold + 1 } else { 0 };
            if self.cold >= self.params.cold_after {
                return self.drop_all(now);
            }
        }
        self.stale = self.stale << 1 | u64::from(feedback.is_stale());
        if feedback.is_right() {
            self.right = self.right.saturating_add(1);
            self.right_hits = self.right_hits.saturating_add(u32::from(feedback.is_hit()));
        } else {
            (self.right, self.right_hits) = (0, 0);
        }
        match self.trust(now) {
            Trust::Exact if self.drifts() => {
                for source in &mut self.sources {
                    source.whole = false;
                }
                self.forget_predictions();
                Action::AskResync
            }
            Trust::Degraded if self.heals() => {
                for source in &mut self.sources {
                    source.whole = true;
                }
                self.forget_predictions();
                Action::None
            }
            _ => Action::None,
        }
    }

    fn drifts(&self) -> bool {
        let window = u64::MAX >> (64 - self.params.drift_window.clamp(1, 64));
        (self.stale & window).count_ones() > self.params.drift_max
    }

    fn heals(&self) -> bool {
        self.right >= self.params.heal_after
            && self.right_hits >= self.params.heal_hits_min
            && !self.crowded
            && self.sources.iter().all(|source| source.lost_at.is_none())
    }

    /// Index of a rank's source; that of a new one, where the event tells of one.
    fn source(&mut self, rank: Rank, event: SourceEvent) -> Option<usize> {
        let known = self.sources.iter().position(|source| source.rank == rank);
        if known.is_some() || event == SourceEvent::Lost {
            return known;
        }
        if self.sources.len() == SOURCES_MAX {
            self.crowded = true;
            return None;
        }
        self.sources.push(Source { rank, whole: false, lost_at: None, proven: !self.refused });
        Some(self.sources.len() - 1)
    }

    fn drop_source(&mut self, rank: Rank, now: Instant) -> Action {
        self.dropped_at = Some(now);
        self.forget_predictions();
        if self.sources.len() > 1 { Action::DropSource(rank) } else { Action::DropAll }
    }

    fn drop_all(&mut self, now: Instant) -> Action {
        self.dropped_all(None, now);
        Action::DropAll
    }

    fn forget_predictions(&mut self) {
        (self.right, self.right_hits, self.cold, self.stale) = (0, 0, 0, 0);
    }
}
