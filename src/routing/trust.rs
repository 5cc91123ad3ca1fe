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

use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::OutOfRange;

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

/// Bounds of the state machine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrustParams {
    /// Right predictions in a row that heal a degraded worker.
    pub heal_after: u32,
    /// How many of them must have been hits: that nothing is where nothing is thought proves little.
    pub heal_hits_min: u32,
    /// Certain hits in a row that were no hit at all, after which the cache is thought gone.
    pub cold_after: u32,
    /// Predictions looked back on for drift; at most 64.
    pub drift_window: u32,
    /// How many of them may be stale before an exact worker is degraded.
    pub drift_max: u32,
    /// How long a lost source may be away before its worker is only presumed.
    pub presumed_after: Duration,
}

impl Default for TrustParams {
    fn default() -> Self {
        Self {
            heal_after: 64,
            heal_hits_min: 16,
            cold_after: 2,
            drift_window: 16,
            drift_max: 3,
            presumed_after: Duration::from_mins(1),
        }
    }
}

impl TrustParams {
    /// Checks the bounds against each other.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] for the first that is outside.
    pub fn check(self) -> Result<Self, OutOfRange> {
        let Self { heal_after, heal_hits_min, cold_after, drift_window, drift_max, .. } = self;
        OutOfRange::unless(heal_after > 0, "heal_after", heal_after, "at least 1")?;
        let hits_ok = (1..=heal_after).contains(&heal_hits_min);
        OutOfRange::unless(hits_ok, "heal_hits_min", heal_hits_min, "1 to heal_after")?;
        OutOfRange::unless(cold_after > 0, "cold_after", cold_after, "at least 1")?;
        let window_ok = (1..=64).contains(&drift_window);
        OutOfRange::unless(window_ok, "drift_window", drift_window, "1 to 64")?;
        let max_ok = drift_max < drift_window;
        OutOfRange::unless(max_ok, "drift_max", drift_max, "less than drift_window")?;
        Ok(self)
    }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const BLOCK: u64 = 16;
    const COMPLETE: SourceEvent = SourceEvent::Connected { complete: true };
    const JOINED: SourceEvent = SourceEvent::Connected { complete: false };
    const REFUSED: WorkerEvent = WorkerEvent::HealthLost { refused: true };
    const TIMED_OUT: WorkerEvent = WorkerEvent::HealthLost { refused: false };

    /// A state with a clock that ticks at each event.
    struct Scene {
        state: TrustState,
        now: Instant,
    }

    impl Scene {
        #[expect(clippy::disallowed_methods, reason = "some instant to count from")]
        fn new() -> Self {
            let params = TrustParams::default().check().expect("defaults are in range");
            Self { state: TrustState::new(params), now: Instant::now() }
        }

        fn with(events: &[SourceEvent]) -> Self {
            let mut scene = Self::new();
            for &event in events {
                let _ = scene.source(event);
            }
            scene
        }

        fn trust(&self) -> Trust {
            self.state.trust(self.now)
        }

        fn source(&mut self, event: SourceEvent) -> Action {
            self.rank(0, event)
        }

        fn rank(&mut self, rank: u32, event: SourceEvent) -> Action {
            self.now += Duration::from_millis(1);
            self.state.on_source(Rank(rank), event, self.now)
        }

        fn worker(&mut self, event: WorkerEvent) -> Action {
            self.now += Duration::from_millis(1);
            self.state.on_worker(event, self.now)
        }

        fn feedback(&mut self, predicted_tokens: u64, actual_tokens: u64) -> Action {
            self.now += Duration::from_millis(1);
            self.worker(WorkerEvent::Feedback(Feedback {
                predicted_at: self.now,
                predicted_tokens,
                actual_tokens,
                block_tokens: BLOCK,
                sure: true,
            }))
        }
    }

    #[test]
    fn whole_histories_are_exact_and_others_degraded() {
        assert_eq!(Scene::new().trust(), Trust::Presumed);
        assert_eq!(Scene::with(&[COMPLETE]).trust(), Trust::Exact);
        let mut scene = Scene::new();
        assert_eq!(scene.source(JOINED), Action::AskResync);
        assert_eq!(scene.trust(), Trust::Degraded);
        assert_eq!(scene.source(SourceEvent::Resynced), Action::None);
        assert_eq!(scene.trust(), Trust::Exact);
        assert_eq!(scene.source(SourceEvent::Gap), Action::AskResync);
        assert_eq!(scene.trust(), Trust::Degraded);
        assert_eq!(scene.source(SourceEvent::Restarted { complete: false }), Action::DropAll);
        assert_eq!(scene.trust(), Trust::Degraded);
        assert_eq!(scene.source(SourceEvent::Restarted { complete: true }), Action::DropAll);
        assert_eq!(scene.trust(), Trust::Exact);
        let _ = scene.source(SourceEvent::Gap);
        assert_eq!(scene.source(SourceEvent::Cleared), Action::DropAll);
        assert_eq!(scene.trust(), Trust::Exact);
    }

    #[test]
    fn a_lost_source_is_degraded_then_presumed() {
        for lose in [
            |scene: &mut Scene| scene.source(SourceEvent::Lost),
            |scene: &mut Scene| scene.worker(WorkerEvent::LeaseLost),
        ] {
            let mut scene = Scene::with(&[COMPLETE]);
            assert_eq!(lose(&mut scene), Action::None);
            assert_eq!(scene.trust(), Trust::Degraded);
            scene.now += Duration::from_secs(59);
            let _ = scene.source(SourceEvent::Lost);
            assert_eq!(scene.trust(), Trust::Degraded);
            scene.now += Duration::from_secs(1);
            assert_eq!(scene.trust(), Trust::Presumed);
            assert!(scene.state.wants_proof() && scene.state.unhealed().count() == 0);
            let _ = scene.source(SourceEvent::Continued);
            assert_eq!(scene.trust(), Trust::Exact);
            assert!(!scene.state.wants_proof());
        }
    }

    #[test]
    fn a_worker_is_as_good_as_its_worst_rank() {
        let mut scene = Scene::with(&[COMPLETE]);
        let _ = scene.rank(1, JOINED);
        assert_eq!(scene.trust(), Trust::Degraded);
        let _ = scene.rank(1, SourceEvent::Resynced);
        assert_eq!(scene.trust(), Trust::Exact);
        let restarted = SourceEvent::Restarted { complete: true };
        assert_eq!(scene.rank(1, restarted), Action::DropSource(Rank(1)));
        assert_eq!(scene.trust(), Trust::Exact);
        scene.state.dropped_all(Some(Rank(1)), scene.now);
        assert_eq!(scene.trust(), Trust::Degraded);
        let _ = scene.rank(0, SourceEvent::Resynced);
        assert_eq!(scene.trust(), Trust::Exact);
        let _ = scene.rank(1, SourceEvent::Lost);
        scene.now += Duration::from_mins(1);
        assert_eq!(scene.trust(), Trust::Presumed);
        scene.state.forget_source(Rank(1));
        assert_eq!(scene.trust(), Trust::Exact);
    }

    #[test]
    fn a_long_run_of_right_predictions_heals() {
        let mut scene = Scene::with(&[COMPLETE, SourceEvent::Gap]);
        for _ in 0..48 {
            assert_eq!(scene.feedback(0, BLOCK), Action::None);
        }
        for nth in 0..16 {
            assert_eq!(scene.trust(), Trust::Degraded, "after {nth}");
            let _ = scene.feedback(100, 100 - BLOCK);
        }
        assert_eq!(scene.trust(), Trust::Exact);

        let mut scene = Scene::with(&[COMPLETE, SourceEvent::Gap]);
        for nth in 0..200 {
            // Now and then more is cached than was known: something is missing still.
            let _ = scene.feedback(100, if nth % 60 == 0 { 100 + BLOCK + 1 } else { 100 });
        }
        assert_eq!(scene.trust(), Trust::Degraded);
        let mut scene = Scene::with(&[COMPLETE, SourceEvent::Gap]);
        for _ in 0..200 {
            let _ = scene.feedback(0, 0);
        }
        assert_eq!(scene.trust(), Trust::Degraded, "no hits");
        let mut scene = Scene::with(&[COMPLETE, SourceEvent::Lost]);
        for _ in 0..200 {
            let _ = scene.feedback(100, 100);
        }
        assert_eq!(scene.trust(), Trust::Degraded, "not connected");
        let mut scene = Scene::new();
        for _ in 0..200 {
            let _ = scene.feedback(100, 100);
        }
        assert_eq!(scene.trust(), Trust::Presumed, "no source");
    }

    #[test]
    fn two_certain_hits_that_were_none_drop_all() {
        let mut scene = Scene::with(&[COMPLETE]);
        assert_eq!(scene.feedback(2 * BLOCK, 0), Action::None);
        assert_eq!(scene.feedback(2 * BLOCK, BLOCK), Action::None);
        assert_eq!(scene.feedback(2 * BLOCK, 0), Action::None);
        assert_eq!(scene.feedback(BLOCK, 0), Action::None);
        let sent_before = scene.now;
        assert_eq!(scene.feedback(2 * BLOCK, 0), Action::DropAll);
        assert_eq!(scene.trust(), Trust::Degraded);
        assert_eq!(scene.state.unhealed().collect::<Vec<_>>(), [Rank(0)]);
        for _ in 0..10 {
            let late = Feedback {
                predicted_at: sent_before,
                predicted_tokens: 500,
                actual_tokens: 0,
                block_tokens: BLOCK,
                sure: true,
            };
            assert_eq!(scene.worker(WorkerEvent::Feedback(late)), Action::None);
        }
        let unsure = |predicted_at| Feedback {
            predicted_at,
            predicted_tokens: 500,
            actual_tokens: 0,
            block_tokens: BLOCK,
            sure: false,
        };
        for _ in 0..10 {
            let feedback = unsure(scene.now + Duration::from_nanos(1));
            assert_eq!(scene.worker(WorkerEvent::Feedback(feedback)), Action::None);
        }
    }

    #[test]
    fn drift_degrades_and_asks() {
        let mut scene = Scene::with(&[COMPLETE]);
        for round in 0..5 {
            for _ in 0..3 {
                assert_eq!(scene.feedback(100, 100 - BLOCK - 1), Action::None, "{round}");
            }
            for _ in 0..13 {
                assert_eq!(scene.feedback(100, 100), Action::None);
            }
        }
        let actions: Vec<_> = (0..4).map(|_| scene.feedback(100, 50)).collect();
        assert_eq!(actions, [Action::None, Action::None, Action::None, Action::AskResync]);
        assert_eq!(scene.trust(), Trust::Degraded);
    }

    #[test]
    fn a_closed_port_drops_all_unless_the_source_goes_on() {
        let mut scene = Scene::new();
        assert_eq!(scene.worker(REFUSED), Action::None);
        assert_eq!(scene.worker(WorkerEvent::HealthBack), Action::DropAll);
        assert_eq!(scene.worker(WorkerEvent::HealthBack), Action::None);

        let mut scene = Scene::with(&[COMPLETE]);
        let _ = scene.worker(TIMED_OUT);
        assert!(!scene.state.wants_proof());
        assert_eq!(scene.worker(WorkerEvent::HealthBack), Action::None);
        assert_eq!(scene.trust(), Trust::Exact);
        let _ = scene.worker(TIMED_OUT);
        let _ = scene.worker(REFUSED);
        let _ = scene.worker(TIMED_OUT);
        assert!(scene.state.wants_proof());
        assert_eq!(scene.worker(WorkerEvent::HealthBack), Action::DropAll);
        assert_eq!(scene.trust(), Trust::Degraded);

        for proof in [SourceEvent::Continued, SourceEvent::Resynced, COMPLETE] {
            let mut scene = Scene::with(&[COMPLETE]);
            let _ = scene.worker(REFUSED);
            let _ = scene.source(proof);
            assert_eq!(scene.worker(WorkerEvent::HealthBack), Action::None);
            assert_eq!(scene.trust(), Trust::Exact);
        }
        let mut scene = Scene::with(&[COMPLETE]);
        let _ = scene.rank(1, COMPLETE);
        let _ = scene.worker(REFUSED);
        let _ = scene.source(SourceEvent::Continued);
        assert_eq!(scene.worker(WorkerEvent::HealthBack), Action::DropAll, "one of two");

        let mut scene = Scene::with(&[COMPLETE]);
        let _ = scene.worker(REFUSED);
        assert_eq!(scene.source(SourceEvent::Restarted { complete: true }), Action::DropAll);
        assert_eq!(scene.worker(WorkerEvent::HealthBack), Action::None, "dropped already");
        assert_eq!(scene.trust(), Trust::Exact);
    }

    #[test]
    fn more_sources_than_are_told_apart_are_never_exact() {
        let mut scene = Scene::new();
        for rank in 0..=SOURCES_MAX as u32 {
            assert_ne!(scene.trust(), Trust::Degraded);
            let _ = scene.rank(rank, COMPLETE);
        }
        assert_eq!(scene.trust(), Trust::Degraded);
    }

    #[test]
    fn labels_and_gauge_values_are_fixed() {
        let all = [Trust::Presumed, Trust::Degraded, Trust::Exact];
        let told = all.map(|trust| (trust.as_str(), trust.as_gauge()));
        assert_eq!(told, [("presumed", 0), ("degraded", 1), ("exact", 2)]);
    }

    #[test]
    fn parameters_are_checked() {
        let default = TrustParams::default();
        for wrong in [
            TrustParams { heal_after: 0, ..default },
            TrustParams { heal_hits_min: 0, ..default },
            TrustParams { heal_hits_min: 65, ..default },
            TrustParams { cold_after: 0, ..default },
            TrustParams { drift_window: 65, ..default },
            TrustParams { drift_max: 16, ..default },
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Source(u32, SourceEvent),
        Worker(WorkerEvent),
        Predicted(u64, u64, u64),
        Wait(u64),
        DroppedAll,
        Forget(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        let event = prop_oneof![
            any::<bool>().prop_map(|complete| SourceEvent::Connected { complete }),
            Just(SourceEvent::Lost),
            Just(SourceEvent::Continued),
            Just(SourceEvent::Gap),
            Just(SourceEvent::Resynced),
            any::<bool>().prop_map(|complete| SourceEvent::Restarted { complete }),
            Just(SourceEvent::Cleared),
        ];
        let tokens = || prop_oneof![Just(0), Just(100), Just(116), any::<u64>()];
        prop_oneof![
            4 => (0..3_u32, event).prop_map(|(rank, event)| Step::Source(rank, event)),
            1 => any::<bool>().prop_map(|refused| Step::Worker(WorkerEvent::HealthLost { refused })),
            1 => Just(Step::Worker(WorkerEvent::HealthBack)),
            1 => Just(Step::Worker(WorkerEvent::LeaseLost)),
            3 => (tokens(), tokens(), prop_oneof![Just(BLOCK), any::<u64>()])
                .prop_map(|(predicted, actual, block)| Step::Predicted(predicted, actual, block)),
            1 => (0..100_000_u64).prop_map(Step::Wait),
            1 => Just(Step::DroppedAll),
            1 => (0..3_u32).prop_map(Step::Forget),
        ]
    }

    fn lose_all(ranks: &mut BTreeMap<u32, (bool, bool)>) {
        for (_, connected) in ranks.values_mut() {
            *connected = false;
        }
    }

    fn wound_all(ranks: &mut BTreeMap<u32, (bool, bool)>) {
        for (whole, _) in ranks.values_mut() {
            *whole = false;
        }
    }

    proptest! {
        /// No history panics. After each step the worker is exact if and only if all its sources
        /// are connected and each had its last wound healed by one of the events that heal (the run
        /// of right predictions that heals is longer than these histories); and a restart drops.
        #[test]
        fn exact_is_only_what_was_healed(steps in prop::collection::vec(step(), 0..60)) {
            let mut scene = Scene::new();
            // By rank: whole, connected.
            let mut ranks = BTreeMap::<u32, (bool, bool)>::new();
            for step in steps {
                let action = match step {
                    Step::Source(rank, event) => {
                        let action = scene.rank(rank, event);
                        if event == SourceEvent::Lost {
                            if let Some(known) = ranks.get_mut(&rank) {
                                known.1 = false;
                            }
                        } else {
                            let known = ranks.entry(rank).or_insert((false, true));
                            known.1 = true;
                            match event {
                                SourceEvent::Resynced | SourceEvent::Cleared => known.0 = true,
                                SourceEvent::Connected { complete }
                                | SourceEvent::Restarted { complete } => known.0 = complete,
                                SourceEvent::Gap => known.0 = false,
                                SourceEvent::Continued | SourceEvent::Lost => {}
                            }
                        }
                        if matches!(event, SourceEvent::Restarted { .. } | SourceEvent::Cleared) {
                            let expected = if ranks.len() > 1 {
                                Action::DropSource(Rank(rank))
                            } else {
                                Action::DropAll
                            };
                            prop_assert_eq!(action, expected);
                        }
                        action
                    }
                    Step::Worker(event) => {
                        if event == WorkerEvent::LeaseLost {
                            lose_all(&mut ranks);
                        }
                        scene.worker(event)
                    }
                    Step::Predicted(predicted, actual, block_tokens) => {
                        let predicted_at = scene.now;
                        scene.worker(WorkerEvent::Feedback(Feedback {
                            predicted_at,
                            predicted_tokens: predicted,
                            actual_tokens: actual,
                            block_tokens,
                            sure: true,
                        }))
                    }
                    Step::Wait(ms) => {
                        scene.now += Duration::from_millis(ms);
                        Action::None
                    }
                    Step::DroppedAll => {
                        scene.state.dropped_all(None, scene.now);
                        wound_all(&mut ranks);
                        Action::None
                    }
                    Step::Forget(rank) => {
                        scene.state.forget_source(Rank(rank));
                        ranks.remove(&rank);
                        Action::None
                    }
                };
                let drifted = matches!((step, action), (Step::Predicted(..), Action::AskResync));
                let dropped = !matches!(step, Step::Source(..)) && action == Action::DropAll;
                if drifted || dropped {
                    wound_all(&mut ranks);
                }
                let exact = !ranks.is_empty() && ranks.values().all(|&(whole, up)| whole && up);
                prop_assert_eq!(scene.trust() == Trust::Exact, exact, "{:?}", step);
                prop_assert_eq!(scene.trust() == Trust::Presumed && scene.state.sources.is_empty(), ranks.is_empty());
            }
        }
    }
}
