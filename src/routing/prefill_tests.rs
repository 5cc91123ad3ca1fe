//! What is learned from noisy times, and what never happens whatever they are.

use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

/// A 70B model on eight GPUs of some years ago, and a small model on one of today's.
const SLOW: PrefillCost = PrefillCost { request_s: 0.03, token_s: 4e-4, pair_s: 6e-9 };
const FAST: PrefillCost = PrefillCost { request_s: 0.005, token_s: 2e-5, pair_s: 4e-10 };

/// Prompts from a hundred to a hundred thousand tokens, some of it cached.
fn some_work(rng: &mut SmallRng) -> Work {
    let prompt = 10_f64.powf(rng.random_range(2.0..5.0)) as u64;
    let uncached = (prompt as f64 * rng.random_range(0.05..1.0_f64)) as u64;
    Work::of(uncached, prompt)
}

/// A model after `count` observations of `cost`, each off by up to `noise`.
fn learned(cost: PrefillCost, count: u32, noise: f64) -> PrefillModel {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut model = PrefillModel::new();
    for _ in 0..count {
        let work = some_work(&mut rng);
        let factor = 1.0 + rng.random_range(-noise..=noise);
        model.observe(&work, Duration::from_secs_f64(cost.seconds(&work) * factor));
    }
    model
}

/// The most that `cost` is off from `truth`, over prompts of all lengths.
fn worst(cost: PrefillCost, truth: PrefillCost) -> f64 {
    let mut rng = SmallRng::seed_from_u64(2);
    let off = |work: Work| (cost.seconds(&work) / truth.seconds(&work)).ln().abs();
    (0..500).map(|_| off(some_work(&mut rng))).fold(0.0, f64::max)
}

#[test]
fn work_is_of_the_uncached_tokens_and_all_they_attend_to() {
    assert_eq!(Work::of(100, 100), Work { requests: 1, tokens: 100, pairs: 5_000 });
    assert_eq!(Work::of(100, 1_000), Work { requests: 1, tokens: 100, pairs: 95_000 });
    // At least one token is computed, and a prompt is no shorter than what is not held of it.
    assert_eq!(Work::of(0, 50), Work { requests: 1, tokens: 1, pairs: 50 });
    assert_eq!(Work::of(9, 3), Work::of(9, 9));
    assert_eq!(Work::of(u64::MAX, u64::MAX), Work::of(1 << 22, 1 << 22));
    assert_eq!(Work::of_counts(3, 700), Work { requests: 3, tokens: 700, pairs: 0 });
    assert!(Work::default().is_none() && !Work::of(0, 0).is_none());
}

#[test]
fn known_costs_are_recovered_from_noisy_times() {
    for truth in [PrefillCost::default(), SLOW, FAST] {
        assert_eq!(learned(truth, 3, 0.2).learned(), None, "three tell nothing");
        // The known shape is leant on first, and the speed is right at once.
        for (count, noise, most) in [(12, 0.05, 0.6), (300, 0.05, 0.25), (300, 0.3, 0.3)] {
            let cost = learned(truth, count, noise).learned().unwrap();
            let worst = worst(cost, truth);
            assert!(worst < most, "{truth:?} after {count}: {cost:?}, off by {worst}");
            let usual = cost.tokens_per_s() / truth.tokens_per_s();
            assert!((usual.ln()).abs() < most / 3.0, "{truth:?} after {count}: {cost:?}, {usual}");
        }
    }
}

#[test]
fn a_change_of_speed_is_followed() {
    let mut model = learned(FAST, 300, 0.05);
    let mut rng = SmallRng::seed_from_u64(3);
    for _ in 0..300 {
        let work = some_work(&mut rng);
        model.observe(&work, Duration::from_secs_f64(SLOW.seconds(&work)));
    }
    let worst = worst(model.learned().unwrap(), SLOW);
    assert!(worst < 0.25, "off by {worst}");
}

#[test]
fn one_stall_moves_it_little() {
    let mut model = learned(SLOW, 100, 0.05);
    let before = model.learned().unwrap();
    let work = Work::of(2_000, 2_000);
    assert!(model.observe(&work, Duration::from_secs_f64(100.0 * SLOW.seconds(&work))));
    let moved = worst(model.learned().unwrap(), before);
    assert!(moved > 0.0 && moved < 0.2, "{moved}");
}

#[test]
fn absurd_times_do_not_count() {
    let mut model = learned(FAST, 20, 0.05);
    let before = model;
    let work = Work::of(2_000, 2_000);
    for took in [Duration::ZERO, Duration::from_micros(500), Duration::from_mins(5), Duration::MAX]
    {
        assert!(!model.observe(&work, took), "{took:?}");
    }
    assert!(!model.observe(&Work::default(), Duration::from_secs(1)));
    assert_eq!(model, before);
}

#[test]
fn what_was_learned_is_taken_up_again_and_nonsense_is_not() {
    let mut model = learned(SLOW, 50, 0.1);
    let mut restored = PrefillModel::restore(model.image());
    assert_eq!(restored, model);
    let work = Work::of(3_000, 9_000);
    for model in [&mut restored, &mut model] {
        assert!(model.observe(&work, Duration::from_secs(2)));
    }
    assert_eq!(restored, model);
    let good = model.image();
    for image in [
        PrefillImage { log_speed: f64::NAN, ..good },
        PrefillImage { log_speed: 700.0, ..good },
        PrefillImage { sums: [f64::NAN; 9], ..good },
        PrefillImage { sums: [-1.0; 9], ..good },
        PrefillImage { sums: [f64::INFINITY; 9], ..good },
    ] {
        assert_eq!(PrefillModel::restore(image), PrefillModel::new());
    }
}

#[test]
fn an_old_rate_is_the_known_shape_at_that_rate() {
    for rate in [300.0, 8_000.0, 100_000.0_f64] {
        let model = PrefillModel::restore(PrefillImage::of_log_rate(rate.ln(), 7));
        let cost = model.learned().unwrap();
        assert!((cost.tokens_per_s() / rate - 1.0).abs() < 1e-9, "{cost:?} at {rate}");
        assert!((cost.pair_s / cost.token_s / (KNOWN.pair_s / KNOWN.token_s) - 1.0).abs() < 1e-9);
    }
    let few = PrefillModel::restore(PrefillImage::of_log_rate(9.0, 3));
    assert_eq!(few.learned(), None);
    // Neither "nothing learned" nor garbage becomes a speed.
    for log_rate in [0.0, -1e30, 1e30, f64::NAN] {
        let model = PrefillModel::restore(PrefillImage::of_log_rate(log_rate, 0));
        assert_eq!(model, PrefillModel::new(), "{log_rate}");
    }
}

#[test]
fn workers_that_measure_nearly_alike_are_alike() {
    let costs = [0.9, 1.0, 1.1].map(|factor| SLOW.times(factor));
    let mean = PrefillCost::mean_of(costs);
    assert!((mean.token_s / SLOW.token_s - 1.0).abs() < 1e-9);
    for cost in costs {
        assert_eq!(cost.beside(&mean), mean);
    }
    for factor in [3.0, 0.5] {
        let other = SLOW.times(factor);
        assert_eq!(other.beside(&mean), other);
    }
    assert_eq!(PrefillCost::mean_of([]), PrefillCost::default());
    assert!((PrefillCost::default().tokens_per_s() - 7_294.0).abs() < 1.0);
}

#[test]
fn a_worker_is_believed_beside_those_of_its_pool() {
    let sure = |cost| Some(Learned { cost, sure: 1.0 });
    let learned = [
        ("large", sure(SLOW)),
        ("large", sure(SLOW.times(1.1))),
        ("large", None),
        ("small", sure(FAST)),
        ("small", sure(FAST.times(5.0))),
        ("other", None),
    ];
    let mean = SLOW.times(1.05);
    let want = [
        mean,
        mean,
        mean,
        FAST,
        FAST.times(5.0),
        PrefillCost::mean_of(learned.iter().filter_map(|l| l.1).map(|l| l.cost)),
    ];
    for (got, want) in believed(&learned).iter().zip(want) {
        assert!((got.tokens_per_s() / want.tokens_per_s() - 1.0).abs() < 1e-9, "{got:?}, {want:?}");
    }
    assert_eq!(believed(&[("none", None)]), [PrefillCost::default()]);
    assert_eq!(believed::<u8>(&[]), []);
}

#[test]
fn what_was_learned_long_ago_gives_way_to_what_others_show() {
    let believe = |sure| {
        let known = [(SLOW, 1.0), (SLOW.times(2.0), sure)];
        let known = known.map(|(cost, sure)| ((), Some(Learned { cost, sure })));
        believed(&known).iter().map(PrefillCost::tokens_per_s).collect::<Vec<_>>()
    };
    let sure = believe(1.0);
    assert!((sure[0] / sure[1] - 2.0).abs() < 1e-9, "both as measured: {sure:?}");
    let half = believe(0.5);
    assert!(half[0] / half[1] > 1.3, "nearer: {half:?}");
    let old = believe(0.2);
    assert_eq!(old[0].to_bits(), old[1].to_bits(), "alike: {old:?}");
    assert!((old[0] / sure[0] - 1.0).abs() < 0.2, "as the one that is sure: {old:?}");
    // Where nobody is, nobody has more to say.
    let known = [SLOW, SLOW.times(3.0)].map(|cost| ((), Some(Learned { cost, sure: 0.0 })));
    let (mean, believed) = (SLOW.times(2.0), believed(&known));
    assert_eq!(believed[0], believed[1]);
    assert!((believed[0].token_s / mean.token_s - 1.0).abs() < 1e-9);
}

fn any_image() -> impl Strategy<Value = PrefillImage> {
    let number = || {
        prop_oneof![
            4 => 0.0_f64..100.0,
            2 => -10.0_f64..1e7,
            1 => prop::sample::select(vec![f64::NAN, f64::INFINITY, -0.0, 1e-300, 1e300]),
        ]
    };
    (prop_oneof![-5.0_f64..6.0, number()], any::<u32>(), prop::array::uniform9(number()))
        .prop_map(|(log_speed, observations, sums)| PrefillImage { log_speed, observations, sums })
}

fn any_times() -> impl Strategy<Value = Vec<(u64, u64, u64)>> {
    let tokens = || prop_oneof![0_u64..200, 0_u64..200_000, Just(u64::MAX)];
    let micros = prop_oneof![1_u64..1_000_000, any::<u64>()];
    prop::collection::vec((tokens(), tokens(), micros), 0..150)
}

proptest! {
    /// Whatever was stored and whatever is observed: no part is negative or not a number, and
    /// any work takes some time.
    #[test]
    fn a_cost_is_always_a_cost(image in any_image(), times in any_times()) {
        let mut model = PrefillModel::restore(image);
        let usual = Work::of(2_000, 2_000);
        for (uncached, prompt, micros) in times {
            model.observe(&Work::of(uncached, prompt), Duration::from_micros(micros));
            let Some(cost) = model.learned() else { continue };
            for part in [cost.request_s, cost.token_s, cost.pair_s] {
                prop_assert!((0.0..1e12).contains(&part), "{cost:?}");
            }
            let seconds = cost.seconds(&usual);
            prop_assert!(seconds > 1e-9 && seconds.is_finite(), "{cost:?}");
        }
        prop_assert_eq!(PrefillModel::restore(model.image()).learned(), model.learned());
    }

    /// Time is additive, as queues are sums.
    #[test]
    fn work_adds_up(parts in prop::collection::vec((0_u64..1 << 23, 0_u64..1 << 23), 0..20)) {
        let parts: Vec<_> = parts.into_iter().map(|(own, all)| Work::of(own, all)).collect();
        let sum = parts.iter().fold(Work::default(), |sum, part| sum + *part);
        let seconds: f64 = parts.iter().map(|part| SLOW.seconds(part)).sum();
        prop_assert!((SLOW.seconds(&sum) - seconds).abs() <= 1e-9 * seconds);
        let none = parts.iter().fold(sum, |left, part| left - *part);
        prop_assert!(none.is_none());
    }
}
