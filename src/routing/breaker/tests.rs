//! The breaker by example, and against a model that keeps every outcome in a list.

#![expect(clippy::disallowed_methods, reason = "a test needs an instant to start from")]

use proptest::prelude::*;

use super::*;

fn settings() -> BreakerSettings {
    BreakerSettings::default()
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn start() -> (Breaker, Instant) {
    let t0 = Instant::now();
    (Breaker::new(BreakerParams::default(), t0), t0)
}

/// Sends and ends a request at `now`.
fn report(breaker: &mut Breaker, outcome: Outcome, now: Instant) -> Option<Transition> {
    breaker.on_outcome(outcome, now, now, true)
}

fn trip(breaker: &mut Breaker, now: Instant) {
    for _ in 0..3 {
        report(breaker, Outcome::Failure, now);
    }
    assert_eq!(breaker.state(now), BreakerState::Open);
}

const TRIPPED: Transition =
    Transition { from: BreakerState::Closed, to: BreakerState::Open, cause: Cause::FailuresInRow };

#[test]
fn trips_after_third_failure_in_a_row() {
    let (mut breaker, t0) = start();
    assert_eq!(report(&mut breaker, Outcome::Failure, t0), None);
    assert_eq!(report(&mut breaker, Outcome::Failure, t0), None);
    assert_eq!(report(&mut breaker, Outcome::Failure, t0), Some(TRIPPED));
    assert_eq!(breaker.admits(t0), Admission::Refuse);
    assert_eq!(breaker.refuses_for(t0), secs(1));
}

#[test]
fn success_ends_a_row_of_failures_and_neutral_does_not() {
    let (mut breaker, t0) = start();
    for outcome in [Outcome::Failure, Outcome::Failure, Outcome::Success, Outcome::Failure] {
        assert_eq!(report(&mut breaker, outcome, t0), None);
    }
    for _ in 0..100 {
        assert_eq!(report(&mut breaker, Outcome::Neutral, t0), None);
    }
    assert_eq!(report(&mut breaker, Outcome::Failure, t0), None);
    assert_eq!(report(&mut breaker, Outcome::Failure, t0), Some(TRIPPED));
}

#[test]
fn trips_when_under_half_of_ten_outcomes_are_successes() {
    let (mut breaker, t0) = start();
    // Two failures then a success, over and over: never three in a row.
    let mut outcomes = (0..).map(|i| if i % 3 == 2 { Outcome::Success } else { Outcome::Failure });
    for i in 0..9 {
        assert_eq!(report(&mut breaker, outcomes.next().unwrap(), t0), None, "outcome {i}");
    }
    let tripped = report(&mut breaker, outcomes.next().unwrap(), t0).unwrap();
    assert_eq!((tripped.to, tripped.cause), (BreakerState::Open, Cause::SuccessShare));
}

#[test]
fn share_forgets_what_is_older_than_the_window() {
    let (mut breaker, t0) = start();
    for i in 0..8 {
        let outcome = if i % 3 == 2 { Outcome::Success } else { Outcome::Failure };
        report(&mut breaker, outcome, t0);
    }
    report(&mut breaker, Outcome::Success, t0);
    assert_eq!(report(&mut breaker, Outcome::Failure, t0 + secs(10)), None);
}

#[test]
fn exactly_half_successes_is_no_reason_to_trip() {
    let (mut breaker, t0) = start();
    for i in 0..40 {
        let outcome = if i % 2 == 0 { Outcome::Success } else { Outcome::Failure };
        assert_eq!(report(&mut breaker, outcome, t0), None);
    }
}

#[test]
fn lets_one_probe_through_after_the_cool_down() {
    let (mut breaker, t0) = start();
    trip(&mut breaker, t0);
    let t1 = t0 + secs(1);
    assert!(!breaker.try_probe(t1.checked_sub(Duration::from_nanos(1)).unwrap()));
    assert_eq!(breaker.admits(t1), Admission::AdmitProbe);
    assert_eq!(breaker.state(t1), BreakerState::HalfOpen);
    assert!(breaker.try_probe(t1));
    assert_eq!(breaker.admits(t1), Admission::Refuse);
    assert!(!breaker.try_probe(t1));
    let readmitted = report(&mut breaker, Outcome::Success, t1).unwrap();
    assert_eq!((readmitted.to, readmitted.cause), (BreakerState::Closed, Cause::ProbeSucceeded));
    assert_eq!(breaker.admits(t1), Admission::Admit);
}

#[test]
fn cool_down_doubles_to_its_maximum() {
    let (mut breaker, mut now) = start();
    trip(&mut breaker, now);
    for want in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
        assert_eq!(breaker.refuses_for(now), secs(want));
        now += secs(want);
        assert!(breaker.try_probe(now));
        let reopened = report(&mut breaker, Outcome::Failure, now).unwrap();
        assert_eq!((reopened.from, reopened.cause), (BreakerState::HalfOpen, Cause::ProbeFailed));
    }
}

#[test]
fn cool_down_starts_over_only_after_sustained_success() {
    for (good_for, want) in [(29, 2), (30, 1)] {
        let (mut breaker, t0) = start();
        trip(&mut breaker, t0);
        let back = t0 + secs(1);
        assert!(breaker.try_probe(back));
        report(&mut breaker, Outcome::Success, back);
        report(&mut breaker, Outcome::Success, back + secs(good_for));
        trip(&mut breaker, back + secs(good_for));
        assert_eq!(breaker.refuses_for(back + secs(good_for)), secs(want), "{good_for} s");
    }
}

#[test]
fn lost_probe_frees_its_place_when_it_expires() {
    let (mut breaker, t0) = start();
    trip(&mut breaker, t0);
    let t1 = t0 + secs(1);
    assert!(breaker.try_probe(t1));
    assert!(!breaker.try_probe(t1 + secs(59)));
    assert!(breaker.try_probe(t1 + secs(60)));
    // The first one reports after all: it no longer decides.
    assert_eq!(breaker.on_outcome(Outcome::Failure, t1, t1 + secs(61), true), None);
    breaker.probe_abandoned(t1);
    assert_eq!(breaker.admits(t1 + secs(61)), Admission::Refuse, "the second is still out");
}

#[test]
fn neutral_or_abandoned_probe_frees_its_place_and_decides_nothing() {
    let (mut breaker, t0) = start();
    trip(&mut breaker, t0);
    let t1 = t0 + secs(1);
    assert!(breaker.try_probe(t1));
    assert_eq!(report(&mut breaker, Outcome::Neutral, t1), None);
    assert_eq!(breaker.state(t1), BreakerState::HalfOpen);
    assert!(breaker.try_probe(t1));
    breaker.probe_abandoned(t1);
    assert_eq!(breaker.state(t1), BreakerState::HalfOpen);
    assert!(breaker.try_probe(t1));
}

#[test]
fn requests_from_before_the_ejection_neither_prolong_nor_end_it() {
    let (mut breaker, t0) = start();
    let old = t0;
    trip(&mut breaker, t0 + secs(5));
    assert_eq!(breaker.on_outcome(Outcome::Failure, old, t0 + secs(5), true), None);
    assert_eq!(breaker.refuses_for(t0 + secs(5)), secs(1));
    assert!(breaker.try_probe(t0 + secs(6)));
    for outcome in [Outcome::Failure, Outcome::Success, Outcome::Neutral] {
        assert_eq!(breaker.on_outcome(outcome, old, t0 + secs(7), true), None);
        assert_eq!(breaker.admits(t0 + secs(7)), Admission::Refuse);
    }
    breaker.on_outcome(Outcome::Success, t0 + secs(6), t0 + secs(8), true);
    for _ in 0..20 {
        assert_eq!(breaker.on_outcome(Outcome::Failure, old, t0 + secs(9), true), None);
    }
    assert_eq!(breaker.admits(t0 + secs(9)), Admission::Admit);
}

#[test]
fn held_breaker_counts_on_and_trips_once_it_may() {
    let (mut breaker, t0) = start();
    for _ in 0..5 {
        assert_eq!(breaker.on_outcome(Outcome::Failure, t0, t0, false), None);
    }
    assert_eq!(breaker.admits(t0), Admission::Admit);
    assert_eq!(breaker.on_outcome(Outcome::Failure, t0, t0, true), Some(TRIPPED));
}

#[test]
fn may_eject_follows_its_table() {
    for (total, share_max, allowed) in [
        (0, 0.5, 0),
        (1, 0.5, 0),
        (1, 1.0, 0),
        (2, 0.5, 1),
        (2, 0.0, 1),
        (3, 0.5, 1),
        (4, 0.5, 2),
        (8, 0.5, 4),
        (8, 1.0, 7),
        (100, 0.1, 10),
        (8, f64::NAN, 1),
    ] {
        let ejected = (0..=total).take_while(|&out| may_eject(total, out, share_max)).count();
        assert_eq!(ejected, allowed, "{total} workers, share {share_max}");
    }
    assert!(!may_eject(usize::MAX, usize::MAX, 1.0));
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    fn with(change: impl FnOnce(&mut BreakerSettings)) -> BreakerSettings {
        let mut changed = settings();
        change(&mut changed);
        changed
    }
    assert!(BreakerParams::try_new(settings()).is_ok());
    for (settings, name) in [
        (with(|s| s.failures_in_row_max = 0), "failures_in_row_max"),
        (with(|s| s.success_share_min = 1.1), "success_share_min"),
        (with(|s| s.success_share_min = f64::NAN), "success_share_min"),
        (with(|s| s.outcomes_min = 0), "outcomes_min"),
        (with(|s| s.window = Duration::ZERO), "window"),
        (with(|s| s.cool_down_first = Duration::ZERO), "cool_down_first"),
        (with(|s| s.cool_down_max = Duration::from_millis(999)), "cool_down_max"),
        (with(|s| s.cool_down_max = Duration::MAX), "cool_down_max"),
        (with(|s| s.probe_expires_after = Duration::ZERO), "probe_expires_after"),
        (with(|s| s.steady_after = Duration::MAX), "steady_after"),
    ] {
        assert_eq!(BreakerParams::try_new(settings).unwrap_err().name, name);
    }
    let error = BreakerParams::try_new(with(|s| s.outcomes_min = 0)).unwrap_err();
    assert_eq!(error.to_string(), "outcomes_min is 0: it must be at least 1");
}

/// What a breaker must do, told from lists instead of counters. Times are milliseconds.
struct Model {
    state: ModelState,
    /// Outcomes that counted since the breaker last closed: (window step, is success).
    counted: Vec<(i64, bool)>,
    newest_step: i64,
    cool_down: i64,
    steady_since: i64,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum ModelState {
    Closed(i64),
    Open(i64),
    HalfOpen(Option<i64>),
}

impl Model {
    fn admits(&self, now: i64) -> Admission {
        match self.state {
            ModelState::Closed(_) => Admission::Admit,
            ModelState::Open(until) if now < until => Admission::Refuse,
            ModelState::HalfOpen(Some(sent)) if now - sent < 60_000 => Admission::Refuse,
            _ => Admission::AdmitProbe,
        }
    }

    fn eject(&mut self, now: i64) {
        self.state = ModelState::Open(now + self.cool_down);
        self.cool_down = (self.cool_down * 2).min(60_000);
    }

    fn on_outcome(&mut self, outcome: Outcome, sent: i64, now: i64, may_trip: bool) {
        match self.state {
            ModelState::Closed(since) if sent >= since && outcome != Outcome::Neutral => {
                let success = outcome == Outcome::Success;
                self.newest_step = self.newest_step.max(now / 1_000);
                self.counted.push((self.newest_step, success));
                if success {
                    if now - self.steady_since >= 30_000 {
                        self.cool_down = 1_000;
                    }
                    return;
                }
                self.steady_since = now;
                let in_row = self.counted.iter().rev().take_while(|c| !c.1).count();
                let recent = self.counted.iter().filter(|c| self.newest_step - c.0 < 10);
                let (all, good) =
                    recent.fold((0, 0), |(all, good), c| (all + 1, good + i32::from(c.1)));
                if may_trip && (in_row >= 3 || all >= 10 && good * 2 < all) {
                    self.eject(now);
                }
            }
            ModelState::HalfOpen(Some(probe)) if sent >= probe => match outcome {
                Outcome::Neutral => self.state = ModelState::HalfOpen(None),
                Outcome::Failure => self.eject(now),
                Outcome::Success => {
                    self.state = ModelState::Closed(now);
                    self.counted.clear();
                    self.steady_since = now;
                }
            },
            _ => {}
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Moves the clock, backwards too.
    Wait(i64),
    /// Sends a request if admitted, as a probe if need be.
    Send,
    /// Ends the request at this place of those in flight.
    End(usize, Outcome, bool),
    /// The client of the request at this place leaves.
    Leave(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![
        3 => Just(Outcome::Failure),
        3 => Just(Outcome::Success),
        1 => Just(Outcome::Neutral),
    ];
    prop_oneof![
        2 => (0_i64..1_500).prop_map(Step::Wait),
        1 => (-5_000_i64..70_000).prop_map(Step::Wait),
        5 => Just(Step::Send),
        5 => (any::<usize>(), outcome, prop::bool::weighted(0.9))
            .prop_map(|(i, outcome, may_trip)| Step::End(i, outcome, may_trip)),
        1 => any::<usize>().prop_map(Step::Leave),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// Told and gone on with after some time, it does as it would have done, but for a probe in
    /// flight: that one reports to whoever sent it.
    #[test]
    fn goes_on_where_it_stood(
        before in prop::collection::vec(step(), 0..60),
        away_ms in 0..30_000_u64,
        after in prop::collection::vec(step(), 1..60),
    ) {
        let mut now = Instant::now();
        let mut breaker = Breaker::new(BreakerParams::default(), now);
        let play = |breaker: &mut Breaker, step: &Step, now: Instant| match *step {
            Step::Send => (breaker.try_probe(now), None),
            Step::End(_, outcome, may_trip) => {
                (false, breaker.on_outcome(outcome, now, now, may_trip))
            }
            Step::Wait(_) | Step::Leave(_) => (false, None),
        };
        let wait = |step: &Step| match step {
            Step::Wait(ms) => Duration::from_millis(ms.unsigned_abs()),
            _ => Duration::ZERO,
        };
        for step in &before {
            now += wait(step);
            play(&mut breaker, step, now);
        }
        let image = breaker.image(now);
        if let Inner::HalfOpen { probe_sent: Some(sent) } = breaker.inner {
            breaker.probe_abandoned(sent);
        }
        let away = Duration::from_millis(away_ms);
        now += away;
        let mut restored = Breaker::restore(BreakerParams::default(), &image, away, now);
        for step in &after {
            now += wait(step);
            prop_assert_eq!(restored.state(now), breaker.state(now));
            prop_assert_eq!(restored.refuses_for(now), breaker.refuses_for(now));
            prop_assert_eq!(restored.window.tally(now), breaker.window.tally(now));
            prop_assert_eq!(play(&mut restored, step, now), play(&mut breaker, step, now));
        }
    }

    /// Any image, under any window: no panic, and every ejection ends in time.
    #[test]
    fn any_image_can_be_gone_on_with(
        ejected in any::<bool>(),
        times in prop::array::uniform7(prop_oneof![
            (0..100_u64).prop_map(Duration::from_secs), Just(Duration::MAX)
        ]),
        failures_in_row in any::<u32>(),
        counts in prop::collection::vec(any::<(u32, u32)>(), 0..20),
        window_ms in 100..100_000_u64,
    ) {
        let [probe_in, closed_for, steady_for, cool_down, step, phase, away] = times;
        let window = super::super::window::WindowImage { step, phase, counts };
        let image = BreakerImage {
            ejected, probe_in, closed_for, failures_in_row, steady_for, cool_down, window,
        };
        let window = Duration::from_millis(window_ms);
        let params = BreakerParams::try_new(BreakerSettings { window, ..settings() });
        let now = Instant::now();
        let mut breaker = Breaker::restore(params.expect("in range"), &image, away, now);
        prop_assert!(breaker.refuses_for(now) <= secs(60));
        for ms in [0, 1, 1_000, 100_000] {
            let now = now + Duration::from_millis(ms);
            breaker.try_probe(now);
            report(&mut breaker, Outcome::Failure, now);
            prop_assert!(breaker.refuses_for(now) <= secs(60));
        }
    }

    /// Same admissions as the model after every step; at most one unexpired probe in flight; an
    /// ejection ends by itself once the longest cool-down and the longest probe are over.
    #[test]
    fn agrees_with_the_model(steps in prop::collection::vec(step(), 1..150)) {
        let t0 = Instant::now();
        let at = |ms: i64| t0 + Duration::from_millis(ms as u64);
        let mut breaker = Breaker::new(BreakerParams::default(), t0);
        let mut model = Model {
            state: ModelState::Closed(0),
            counted: Vec::new(),
            newest_step: 0,
            cool_down: 1_000,
            steady_since: 0,
        };
        let mut now = 0_i64;
        // The one-probe rule is exact only while time goes forward: once it has gone back, a lost
        // probe looks young again.
        let mut went_back = false;
        let mut inflight: Vec<(i64, bool)> = Vec::new();
        for step in steps {
            match step {
                Step::Wait(ms) => {
                    now = (now + ms).max(0);
                    went_back |= ms < 0;
                }
                Step::Send => {
                    let probe = breaker.try_probe(at(now));
                    prop_assert_eq!(probe, model.admits(now) == Admission::AdmitProbe);
                    if probe {
                        let rivals =
                            inflight.iter().filter(|r| r.1 && now - r.0 < 60_000).count();
                        prop_assert!(rivals == 0 || went_back, "a second probe in flight");
                        model.state = ModelState::HalfOpen(Some(now));
                    }
                    if probe || breaker.admits(at(now)) == Admission::Admit {
                        inflight.push((now, probe));
                    }
                }
                Step::End(i, outcome, may_trip) if !inflight.is_empty() => {
                    let (sent, _) = inflight.swap_remove(i % inflight.len());
                    let before = breaker.state(at(now));
                    let transition = breaker.on_outcome(outcome, at(sent), at(now), may_trip);
                    model.on_outcome(outcome, sent, now, may_trip);
                    if let Some(transition) = transition {
                        prop_assert_eq!(transition.from, before);
                        prop_assert_eq!(transition.to, breaker.state(at(now)));
                        prop_assert!(may_trip || before != BreakerState::Closed);
                    }
                }
                Step::Leave(i) if !inflight.is_empty() => {
                    let (sent, probe) = inflight.swap_remove(i % inflight.len());
                    if probe {
                        breaker.probe_abandoned(at(sent));
                        if model.state == ModelState::HalfOpen(Some(sent)) {
                            model.state = ModelState::HalfOpen(None);
                        }
                    }
                }
                Step::End(..) | Step::Leave(_) => {}
            }
            prop_assert_eq!(breaker.admits(at(now)), model.admits(now));
            prop_assert_eq!(
                breaker.refuses_for(at(now)).is_zero(),
                breaker.admits(at(now)) != Admission::Refuse
            );
            // Time may have gone back by what it once was ahead: the ejection ends all the same.
            let later = at(now) + breaker.refuses_for(at(now));
            prop_assert!(breaker.admits(later) != Admission::Refuse);
            prop_assert!(breaker.refuses_for(at(now)) <= secs(60) + secs(5 * 150));
        }
    }
}

#[test]
fn other_parameters_hold_from_the_next_outcome_on() {
    let (mut breaker, t0) = start();
    report(&mut breaker, Outcome::Failure, t0);
    let once = BreakerSettings {
        failures_in_row_max: 2,
        cool_down_first: secs(5),
        cool_down_max: secs(9),
        ..settings()
    };
    breaker.set_params(BreakerParams::try_new(once).unwrap(), t0);
    assert_eq!(report(&mut breaker, Outcome::Failure, t0), Some(TRIPPED), "the first still counts");
    assert_eq!(breaker.refuses_for(t0), secs(5));
    // A probe that fails doubles as far as the new bound.
    assert!(breaker.try_probe(t0 + secs(5)));
    report(&mut breaker, Outcome::Failure, t0 + secs(5));
    assert_eq!(breaker.refuses_for(t0 + secs(5)), secs(9));
    // What it lengthened meets the new bounds, and its state stays.
    let short = BreakerSettings { cool_down_max: secs(2), ..settings() };
    breaker.set_params(BreakerParams::try_new(short).unwrap(), t0 + secs(5));
    assert_eq!(breaker.state(t0 + secs(6)), BreakerState::Open);
    assert!(breaker.try_probe(t0 + secs(14)));
    report(&mut breaker, Outcome::Failure, t0 + secs(14));
    assert_eq!(breaker.refuses_for(t0 + secs(14)), secs(2));
}
