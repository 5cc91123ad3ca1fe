//! Trust by example, and by property.

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

#[test]
fn after_a_crash_only_the_next_event_proves_the_engine() {
    let mut scene = Scene::with(&[COMPLETE]);
    let _ = scene.rank(1, COMPLETE);
    let _ = scene.rank(1, SourceEvent::Lost);
    let (params, before) = (scene.state.params, scene.now);
    let image = scene.state.image(before);
    scene.now += Duration::from_secs(50);
    let (away, now) = (Duration::from_secs(50), scene.now);
    scene.state = TrustState::restore(params, &image, true, away, now);
    assert_eq!(scene.trust(), Trust::Degraded);
    assert!(scene.state.wants_proof());
    // The one lost before has been so for longer: presumed after a minute.
    scene.now += Duration::from_secs(10);
    assert_eq!(scene.trust(), Trust::Presumed);
    for rank in 0..2 {
        assert_eq!(scene.rank(rank, SourceEvent::Continued), Action::None);
    }
    assert_eq!(scene.trust(), Trust::Exact);

    let mut dead = TrustState::restore(params, &image, true, away, now);
    let _ = dead.on_worker(REFUSED, now);
    assert_eq!(dead.on_worker(WorkerEvent::HealthBack, now), Action::DropAll);
}

#[test]
fn sources_of_an_image_are_bounded() {
    let source = |rank| SourceImage { rank, whole: true, ..SourceImage::default() };
    let sources = (0..=SOURCES_MAX as u32).chain(0..9).map(source).collect();
    let image = TrustImage { sources, ..TrustImage::default() };
    let Scene { now, state } = Scene::new();
    let crowd = TrustState::restore(state.params, &image, false, Duration::MAX, now);
    assert_eq!((crowd.sources.len(), crowd.trust(now)), (SOURCES_MAX, Trust::Degraded));
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
            // Told and gone on with, it is the very same state.
            let (away, params) = (Duration::from_secs(7), scene.state.params);
            let later = scene.now + away;
            let image = scene.state.image(scene.now);
            let restored = TrustState::restore(params, &image, false, away, later);
            prop_assert_eq!(format!("{:?}", restored), format!("{:?}", &scene.state));
            scene.state = restored;
            let exact = !ranks.is_empty() && ranks.values().all(|&(whole, up)| whole && up);
            prop_assert_eq!(scene.trust() == Trust::Exact, exact, "{:?}", step);
            prop_assert_eq!(scene.trust() == Trust::Presumed && scene.state.sources.is_empty(), ranks.is_empty());
        }
    }
}
