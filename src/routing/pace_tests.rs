//! What a worker that serves one after the other is forecast to do.

use super::*;

const WINDOW: Duration = Duration::from_secs(10);

/// Sends a prompt of `tokens` to an idle worker that answers as `truth` says; gives the seconds it
/// was forecast to take, and when the first token came.
fn round(pace: &mut Pace, tokens: u64, truth: &PrefillCost, now: Instant) -> (f64, Instant) {
    let work = Work::of(tokens, tokens);
    let ticket = pace.sent(work, 0, false, WINDOW, now);
    let forecast = pace.forecast(now).backlog_s;
    let answered = now + Duration::from_secs_f64(truth.seconds(&work));
    pace.first_token(ticket, answered);
    (forecast, answered)
}

#[test]
fn forecasts_come_true_once_the_pace_is_learned_and_believed() {
    let truth = PrefillCost::default().times(3.0);
    let mut now = crate::clock::now();
    let mut pace = Pace::new(now);
    for nth in 0..60_u64 {
        let tokens = 500 + 997 * nth % 9_000;
        let (forecast, answered) = round(&mut pace, tokens, &truth, now);
        let took = answered.duration_since(now).as_secs_f64();
        if nth == 0 {
            assert!((took / forecast - 3.0).abs() < 1e-3, "nothing is known: {forecast}");
        } else if nth > 20 {
            assert!((took / forecast - 1.0).abs() < 0.1, "{forecast} s became {took} s");
        }
        assert!(pace.forecast(answered).backlog_s < 1e-9);
        pace.set_cost(pace.learned().unwrap_or_default());
        now = answered + Duration::from_millis(700);
    }
    let rates = pace.forecast(now).traffic;
    assert!(rates.requests_per_s > 0.1 && rates.computed_tokens_per_s > 500.0, "{rates:?}");
}

#[test]
fn what_ends_without_a_first_token_leaves_nothing_and_teaches_nothing() {
    let t0 = crate::clock::now();
    let at = |ms| t0 + Duration::from_millis(ms);
    let mut pace = Pace::new(t0);
    let cancelled = pace.sent(Work::of(9_000, 9_000), 0, false, WINDOW, t0);
    let silent = pace.sent(Work::of(800, 800), 200, true, WINDOW, t0);
    let unsent = pace.sent(Work::of(800, 800), 200, false, WINDOW, t0);
    let before = pace.forecast(at(10));
    pace.take_back(unsent, 200, at(10), at(10));
    let after = pace.forecast(at(10));
    assert!(after.backlog_s < before.backlog_s);
    assert!(after.traffic.requests_per_s < before.traffic.requests_per_s);
    pace.gone(cancelled, at(20));
    assert_eq!(pace.work(), Work::of(800, 800));
    pace.gone(silent, at(30));
    assert!(pace.work().is_none() && pace.running(at(30)) == 0);
    assert!(pace.forecast(at(30)).backlog_s <= 0.0);
    assert_eq!(pace.image(), PrefillImage::default());
}

#[test]
fn a_restored_pace_is_believed_at_once() {
    let truth = PrefillCost::default().times(5.0);
    let mut now = crate::clock::now();
    let mut pace = Pace::new(now);
    for _ in 0..9 {
        now = round(&mut pace, 4_000, &truth, now).1 + Duration::from_millis(50);
    }
    let mut restored = Pace::new(now);
    restored.restore(pace.image(), now);
    assert_eq!(Some(restored.cost()), pace.learned());
    assert!(
        (restored.cost().tokens_per_s() * 5.0 / PrefillCost::default().tokens_per_s() - 1.0).abs()
            < 0.05
    );
    assert!(restored.known(now).is_some_and(|known| known.sure >= 1.0));
    restored.restore(PrefillImage { log_speed: f64::NAN, ..pace.image() }, now);
    assert_eq!(restored.learned(), None);
}
