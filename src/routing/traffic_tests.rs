//! Fading sums against a list of all that was sent.

use proptest::prelude::*;

use super::*;

fn work(tokens: u64) -> Work {
    Work { requests: 1, tokens, pairs: 0 }
}

fn near(got: f64, want: f64) -> bool {
    (got - want).abs() <= 1e-6 * want.abs().max(1.0)
}

/// All that was sent: when, and the time constant since.
struct List {
    sent: Vec<(f64, [f64; 4])>,
    /// From when on which window holds.
    windows: Vec<(f64, f64)>,
}

impl List {
    /// `exp` of minus the windows that have passed from `from` to `to`.
    fn kept(&self, from: f64, to: f64) -> f64 {
        let ends = self.windows.iter().skip(1).map(|window| window.0).chain([f64::INFINITY]);
        let passed = |((begin, window_s), end): (&(f64, f64), f64)| {
            (end.min(to) - begin.max(from)).max(0.0) / window_s
        };
        (-self.windows.iter().zip(ends).map(passed).sum::<f64>()).exp()
    }

    /// Weighted sums a second; the seconds are weighted alike, here one thousandth at a time.
    fn rates(&self, now: f64) -> [f64; 4] {
        let step = now / 20_000.0;
        let middles = (0..20_000).map(|nth| (f64::from(nth) + 0.5) * step);
        let observed: f64 = middles.map(|middle| self.kept(middle, now) * step).sum();
        let mut sums = [0.0; 4];
        for (at, what) in &self.sent {
            for (sum, what) in sums.iter_mut().zip(what) {
                *sum += what * self.kept(*at, now);
            }
        }
        sums.map(|sum| sum / observed.max(1.0))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn averages_are_those_of_a_list_with_fading_weights(
        sent in prop::collection::vec(
            (0.01_f64..20.0, 1_u64..10_000, 0_u64..10_000, 0.001_f64..2.0, 1.0_f64..100.0), 1..25),
        after in 0.0_f64..50.0,
    ) {
        let t0 = crate::clock::now();
        let at = |s| t0 + Duration::from_secs_f64(s);
        let mut traffic = Traffic::new(t0);
        let mut list = List { sent: Vec::new(), windows: vec![(0.0, WINDOW_RANGE_S.1)] };
        let mut now = 0.0;
        for (wait, tokens, hit, prefill_s, window_s) in sent {
            now += wait;
            traffic.pass(0.0, 0.0, at(now));
            traffic.sent(&work(tokens), prefill_s, hit, Duration::from_secs_f64(window_s));
            list.sent.push((now, [1.0, prefill_s, hit as f64, tokens as f64]));
            list.windows.push((now, window_s));
        }
        now += after;
        let rates = traffic.rates(0.0, at(now));
        let got = [
            rates.requests_per_s,
            rates.prefill_share,
            rates.hit_tokens_per_s,
            rates.computed_tokens_per_s,
        ];
        for (got, want) in got.into_iter().zip(list.rates(now)) {
            prop_assert!((got - want).abs() <= 1e-3 * want.max(1e-6), "{got} is not {want}");
        }
        // Reading changes nothing, and going by in steps is going by at once.
        traffic.pass(0.0, 0.0, at(now));
        let again = traffic.rates(0.0, at(now)).requests_per_s;
        prop_assert!(near(again, rates.requests_per_s));
    }

    #[test]
    fn whatever_comes_rates_are_no_less_than_nothing_and_finite(
        steps in prop::collection::vec((any::<u64>(), any::<u64>(), any::<u64>()), 0..50),
    ) {
        let t0 = crate::clock::now();
        let mut traffic = Traffic::new(t0);
        for (ms, tokens, hit) in steps {
            // Times go back and forth by up to an hour.
            let now = t0 + Duration::from_millis(ms % 3_600_000);
            traffic.pass(1.0, 2.0, now);
            traffic.sent(&work(tokens), 1.0, hit, Duration::from_millis(hit % 10_000));
            traffic.take_back(&work(hit), 1.5, tokens, 0.0);
            let rates = traffic.rates(3.0, now);
            for rate in [
                rates.requests_per_s,
                rates.prefill_share,
                rates.hit_tokens_per_s,
                rates.computed_tokens_per_s,
                rates.backlog_s,
            ] {
                prop_assert!(rate >= 0.0 && rate.is_finite(), "{rates:?}");
            }
        }
    }
}

#[test]
fn steady_traffic_reads_as_it_is_and_silence_fades() {
    let t0 = crate::clock::now();
    let at = |ms: u64| t0 + Duration::from_millis(ms);
    let mut traffic = Traffic::new(t0);
    let window = Duration::from_secs(20);
    for nth in 0..400 {
        // Half of the time there is a backlog, which falls from a second to nothing.
        traffic.pass(0.0, 1.0, at(nth * 500));
        traffic.sent(&work(700), 0.25, 300, window);
        traffic.pass(0.0, 0.0, at(nth * 500 + 250));
    }
    let rates = traffic.rates(0.0, at(200_000));
    for (got, want) in [
        (rates.requests_per_s, 2.0),
        (rates.prefill_share, 0.5),
        (rates.hit_tokens_per_s, 600.0),
        (rates.computed_tokens_per_s, 1_400.0),
        (rates.backlog_s, 0.25),
    ] {
        assert!((got / want - 1.0).abs() < 0.05, "{got} is not {want}");
    }
    let later = traffic.rates(0.0, at(240_000));
    let left = later.requests_per_s / rates.requests_per_s;
    assert!((left / (-2.0_f64).exp() - 1.0).abs() < 0.05, "two windows of silence: {left}");
}

#[test]
fn what_never_got_there_does_not_count() {
    let now = crate::clock::now();
    let mut traffic = Traffic::new(now);
    traffic.sent(&work(700), 0.25, 300, Duration::from_secs(9));
    assert!(traffic.rates(0.0, now).requests_per_s > 0.0);
    traffic.take_back(&work(700), 0.25, 300, 0.0);
    assert_eq!(traffic.rates(0.0, now), TrafficRates::default());
}

#[test]
fn the_window_is_counted_in_requests_within_bounds() {
    assert_eq!(window(4, 64.0), Duration::from_secs(2));
    assert_eq!(window(8, 64.0), Duration::from_secs(4));
    assert_eq!(window(1, 1e9), Duration::from_secs(1));
    assert_eq!(window(0, 0.0), Duration::from_secs(1));
    for none in [0.0, -1.0, f64::NAN] {
        assert_eq!(window(4, none), Duration::from_hours(1), "{none}");
    }
}
