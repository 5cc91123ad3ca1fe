//! Rules, tables and hostile histories of the automatic bound.

#![expect(clippy::disallowed_methods, reason = "any instant will do")]

use proptest::prelude::*;

use super::*;

fn params(queue_s: u64) -> LimitParams {
    LimitParams::try_new(Duration::from_secs(queue_s), 1024).unwrap()
}

fn started(waiting_ahead: u32, tokens: u64, waited_ms: u64) -> Started {
    let waited = Duration::from_millis(waited_ms);
    Started { waiting_ahead, tokens, waited, running: 64 }
}

fn standing(requests: u32, waiting: u32) -> Standing {
    Standing { requests, waiting, queued_tokens: 0 }
}

/// A worker that begins four streams a second, and has learned it.
fn slow_starter() -> Limit {
    let (mut limit, now) = (Limit::new(), Instant::now());
    for s in 0..100 {
        limit.on_start(&started(39, 1, 10_000), &params(30), now + Duration::from_secs(s));
    }
    limit
}

fn waiting_max(limit: &Limit) -> u32 {
    limit.bounds(&params(30)).waiting_max
}

#[test]
fn settings_have_their_ranges() {
    let try_new = |s, most| LimitParams::try_new(Duration::from_secs(s), most).is_ok();
    for (queue_s, inflight_max, fine) in
        [(0, 1024, false), (1, 8, true), (3600, 1024, true), (3601, 1024, false), (30, 7, false)]
    {
        assert_eq!(try_new(queue_s, inflight_max), fine, "{queue_s} s, {inflight_max}");
    }
}

#[test]
fn nothing_learned_is_the_highest_bound() {
    let bounds = Limit::new().bounds(&params(30));
    for (requests, waiting) in [(0, 0), (1023, 0), (1023, 1023), (5000, 5000)] {
        assert_eq!(bounds.inflight_max(&standing(requests, waiting)), 1024);
    }
    // Nor does a short queue make it known.
    assert_eq!(Limit::new().bounds(&params(1)).inflight_max(&standing(0, 0)), 1024);
}

#[test]
fn as_many_may_wait_as_begin_within_the_time() {
    let limit = slow_starter();
    assert!((118..=126).contains(&waiting_max(&limit)), "{}", waiting_max(&limit));
    let bounds = limit.bounds(&params(30));
    // 64 ran while others waited.
    let at = |requests, waiting| bounds.inflight_max(&standing(requests, waiting));
    assert_eq!(at(0, 0), 64 + bounds.waiting_max);
    assert_eq!(at(300, 100), 200 + bounds.waiting_max, "more run now");
    assert!(limit.bounds(&params(60)).waiting_max > 230);
    assert_eq!(limit.bounds(&params(1)).waiting_max, WAITING_MIN);
}

#[test]
fn what_tokens_explain_is_no_wait_for_a_place() {
    let (mut limit, now) = (Limit::new(), Instant::now());
    // 8,000 tokens a second, alone and behind others.
    for tokens in [8_000, 800, 80_000, 8_000, 40_000, 2_000] {
        limit.on_start(&started(0, tokens, tokens / 8), &params(30), now);
    }
    for s in 1..20 {
        let now = now + Duration::from_secs(s);
        limit.on_start(&started(20, 160_000, 20_000), &params(30), now);
    }
    assert!(waiting_max(&limit) > 1024, "{}", waiting_max(&limit));
    let bounds = limit.bounds(&params(30));
    assert!((230_000..250_000).contains(&bounds.queued_tokens_max), "{bounds:?}");
    // Enough is queued, if more than a few wait.
    let full = |waiting| Standing { requests: 100, waiting, queued_tokens: 300_000 };
    assert_eq!(bounds.inflight_max(&full(WAITING_MIN)), 100);
    assert_eq!(bounds.inflight_max(&full(WAITING_MIN - 1)), 1024);
}

#[test]
fn one_stall_is_forgotten_within_some_requests() {
    let (mut limit, now) = (Limit::new(), Instant::now());
    for ahead in 0..20 {
        let now = now + Duration::from_secs(ahead.into());
        limit.on_start(&started(ahead, 1, 60_000), &params(30), now);
    }
    assert!(waiting_max(&limit) < 200, "{}", waiting_max(&limit));
    for _ in 0..12 {
        limit.on_start(&started(0, 1, 20), &params(30), now);
    }
    assert!(waiting_max(&limit) > 512, "{}", waiting_max(&limit));
}

#[test]
fn a_slow_worker_without_a_queue_is_not_bounded() {
    let (mut limit, now) = (Limit::new(), Instant::now());
    for seconds in [1, 5, 60, 600, 3600, 100_000] {
        limit.on_start(&started(0, 1, seconds * 1000), &params(30), now);
        limit.on_start(&started(3, 1, 900), &params(30), now);
    }
    assert_eq!(limit.bounds(&params(30)).inflight_max(&standing(0, 0)), 1024);
}

#[test]
fn silence_bounds_who_waits_until_somebody_begins() {
    let (mut limit, t0) = (Limit::new(), Instant::now());
    let at = |s| t0 + Duration::from_secs(s);
    for _ in 0..4 {
        limit.on_start(&started(0, 8_000, 1_000), &params(30), t0);
    }
    limit.on_tick(&standing(0, 0), &params(30), t0);
    let waits = Standing { requests: 20, waiting: 20, queued_tokens: 80_000 };
    limit.on_tick(&waits, &params(30), at(100));
    // Ten seconds of prefill, thirty of patience.
    limit.on_tick(&waits, &params(30), at(139));
    assert!(waiting_max(&limit) > 1024);
    limit.on_tick(&waits, &params(30), at(141));
    assert_eq!(waiting_max(&limit), WAITING_MIN);
    assert_eq!(limit.bounds(&params(30)).inflight_max(&standing(20, 20)), WAITING_MIN);
    limit.on_start(&started(1, 8_000, 41_000), &params(30), at(141));
    assert!(waiting_max(&limit) > WAITING_MIN);
    // An idle hour is no silence.
    limit.on_tick(&standing(5, 0), &params(30), at(142));
    limit.on_tick(&waits, &params(30), at(4000));
    assert!(waiting_max(&limit) > WAITING_MIN);
}

#[test]
fn who_refuses_is_asked_less_for_a_while() {
    let (mut limit, t0) = (Limit::new(), Instant::now());
    let at = |ms| t0 + Duration::from_millis(ms);
    let preferred = |limit: &Limit| limit.bounds(&params(30)).preferred_max(&standing(50, 0), 1.0);
    limit.on_refused(50, at(0), at(10));
    assert_eq!(preferred(&limit), 45);
    limit.on_refused(60, at(5), at(12));
    assert_eq!(preferred(&limit), 45, "sent before the first refusal came");
    limit.on_refused(40, at(11), at(20));
    assert_eq!(preferred(&limit), 36);
    assert_eq!(limit.bounds(&params(30)).inflight_max(&standing(50, 0)), 1024, "for nobody's sake");
    for _ in 0..80 {
        limit.on_accepted(&params(30));
    }
    assert_eq!(preferred(&limit), 46);
    limit.on_refused(1, at(30), at(40));
    assert_eq!(preferred(&limit), INFLIGHT_MIN);
    for _ in 0..8 * 1024 {
        limit.on_accepted(&params(30));
    }
    assert_eq!(limit.bounds(&params(30)).refused_max, None);
}

#[test]
fn who_begins_slowly_is_given_less_where_others_have_room() {
    let bounds = Limit::new().bounds(&params(30));
    for (share, preferred) in [(1.0, 1024), (0.1, 102), (0.001, INFLIGHT_MIN)] {
        assert_eq!(bounds.preferred_max(&standing(0, 0), share), preferred);
    }
}

#[test]
fn time_alone_changes_nothing() {
    let (limit, t0) = (slow_starter(), Instant::now());
    let mut later = limit.clone();
    for hours in 0..1000 {
        later.on_tick(&standing(0, 0), &params(30), t0 + Duration::from_hours(hours));
    }
    assert_eq!(later.bounds(&params(30)), limit.bounds(&params(30)));
}

#[test]
fn nonsense_is_not_restored() {
    let none = Limit::restore(&LimitImage::default());
    assert_eq!(none, Limit::new());
    let image = LimitImage {
        starts_per_million_s: u64::MAX,
        running_milli: u64::MAX,
        prefill_per_thousand_s: u64::MAX,
        best_per_thousand_s: 1,
        best_samples: 9,
    };
    let limit = Limit::restore(&image);
    assert_eq!(limit.bounds(&params(30)).inflight_max(&standing(0, 0)), 1024);
    assert_eq!(limit.image().best_samples, 0);
}

#[derive(Debug, Clone)]
enum Step {
    Start(Started),
    Tick(Standing),
    Refused(u32),
    Accepted,
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let number = || prop_oneof![0u32..40, any::<u32>()];
    let tokens = || prop_oneof![0u64..100_000, any::<u64>()];
    let millis = prop_oneof![0u64..60_000, any::<u64>()];
    let start = (number(), tokens(), millis, number()).prop_map(|(ahead, tokens, ms, running)| {
        Step::Start(Started { running, ..started(ahead, tokens, ms) })
    });
    let tick = (number(), number(), tokens()).prop_map(|(requests, waiting, queued_tokens)| {
        Step::Tick(Standing { requests, waiting, queued_tokens })
    });
    prop_oneof![
        6 => start,
        2 => tick,
        1 => number().prop_map(Step::Refused),
        1 => Just(Step::Accepted),
        1 => (0u64..100_000).prop_map(Step::Wait),
    ]
}

fn play(limit: &mut Limit, steps: &[Step], params: &LimitParams) {
    let (t0, mut ms) = (Instant::now(), 0);
    for step in steps {
        let now = t0 + Duration::from_millis(ms);
        match step {
            Step::Start(started) => limit.on_start(started, params, now),
            Step::Tick(standing) => limit.on_tick(standing, params, now),
            Step::Refused(requests) => limit.on_refused(*requests, now, now),
            Step::Accepted => limit.on_accepted(params),
            Step::Wait(more) => ms += more,
        }
    }
}

proptest! {
    /// Whatever is heard, the bound stays within its own and can be said in numbers.
    #[test]
    fn every_history_gives_a_bound(
        steps in prop::collection::vec(step(), 0..60),
        queue_s in 1u64..3600,
        requests in any::<u32>(),
        waiting in any::<u32>(),
        queued_tokens in any::<u64>(),
        share in 0.0..=1.0,
    ) {
        let (mut limit, params) = (Limit::new(), params(queue_s));
        play(&mut limit, &steps, &params);
        prop_assert!(STARTS_RANGE.contains(&limit.starts.per_s), "{limit:?}");
        prop_assert!(limit.running.is_finite() && limit.best_rate.is_finite());
        let standing = Standing { requests, waiting, queued_tokens };
        let bounds = limit.bounds(&params);
        let most = bounds.inflight_max(&standing);
        let preferred = bounds.preferred_max(&standing, share);
        prop_assert!((INFLIGHT_MIN..=1024).contains(&most));
        prop_assert!((INFLIGHT_MIN..=most).contains(&preferred));
        // A few may always wait.
        if waiting < WAITING_MIN && requests < 1024 {
            prop_assert!(requests < most);
        }
        prop_assert!(bounds.waiting_max >= WAITING_MIN);
        for enough in [most, preferred] {
            let gate = bounds.gate(&standing, enough);
            prop_assert_eq!(requests >= gate, requests >= enough);
            prop_assert!(gate <= 1024 && (gate == 1024 || requests >= enough));
        }
    }

    /// An image brings back what it was taken of.
    #[test]
    fn what_was_learned_is_taken_up_again(steps in prop::collection::vec(step(), 0..60)) {
        let mut limit = Limit::new();
        play(&mut limit, &steps, &params(30));
        let image = limit.image();
        let restored = Limit::restore(&image);
        prop_assert_eq!(&restored.image(), &image);
        limit.on_tick(&Standing::default(), &params(30), Instant::now());
        let (was, is) = (limit.bounds(&params(30)), restored.bounds(&params(30)));
        prop_assert!(was.waiting_max.min(2000).abs_diff(is.waiting_max.min(2000)) <= 1);
        prop_assert!(was.running.abs_diff(is.running) <= 1);
        prop_assert_eq!(was.queued_tokens_max == u64::MAX, is.queued_tokens_max == u64::MAX);
    }

    /// From any past, requests that are served at once open it again.
    #[test]
    fn every_history_is_lived_down(steps in prop::collection::vec(step(), 0..60)) {
        let mut limit = Limit::new();
        play(&mut limit, &steps, &params(30));
        for _ in 0..40 {
            limit.on_start(&started(0, 1, 20), &params(30), Instant::now());
        }
        prop_assert_eq!(limit.bounds(&params(30)).inflight_max(&standing(900, 0)), 1024);
    }
}
