//! Slow start: a worker that comes to others that serve gets its share bit by bit.
//!
//! It is cold (an empty cache, pages not yet in memory, kernels not yet compiled) and idle, which
//! makes it everybody's choice at once. So its weight grows in a line from a tenth to the whole. A
//! weight means something to every policy, where a bound on new requests would have to be
//! reconciled with each.

use std::time::{Duration, Instant};

/// Share of its weight that a worker begins with.
pub const RAMP_FIRST_SHARE: f64 = 0.1;

/// Share of its weight that a worker has at `now` whose start took place at `since` and takes
/// `over`: from [`RAMP_FIRST_SHARE`] to 1. A time before the start counts as the start.
pub fn ramp_share(since: Instant, over: Duration, now: Instant) -> f64 {
    let elapsed = now.saturating_duration_since(since);
    if elapsed >= over {
        return 1.0;
    }
    RAMP_FIRST_SHARE + (1.0 - RAMP_FIRST_SHARE) * elapsed.as_secs_f64() / over.as_secs_f64()
}

/// Whether a worker that begins to serve at `now` should start slowly: only when others have
/// served since `others_since`, and for longer than `together`. Who begins within that time of
/// each other begins together, and everybody at full weight.
pub fn starts_slowly(others_since: Option<Instant>, together: Duration, now: Instant) -> bool {
    others_since.is_some_and(|since| now.saturating_duration_since(since) > together)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OVER: Duration = Duration::from_secs(10);

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn grows_in_a_line_from_a_tenth_to_the_whole() {
        let start = Instant::now();
        for (after_ms, share) in [(0, 0.1), (2500, 0.325), (5000, 0.55), (10_000, 1.0)] {
            let now = start + Duration::from_millis(after_ms);
            assert!((ramp_share(start, OVER, now) - share).abs() < 1e-9, "after {after_ms} ms");
        }
        assert!((ramp_share(start + OVER, OVER, start) - 0.1).abs() < 1e-9, "time went backwards");
        assert!((ramp_share(start, Duration::ZERO, start) - 1.0).abs() < 1e-9, "switched off");
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn only_who_comes_to_others_starts_slowly() {
        let (first, together) = (Instant::now(), Duration::from_secs(4));
        assert!(!starts_slowly(None, together, first));
        assert!(!starts_slowly(Some(first), together, first));
        assert!(!starts_slowly(Some(first), together, first + together));
        assert!(starts_slowly(Some(first), together, first + together + Duration::from_millis(1)));
    }

    proptest! {
        #[test]
        #[expect(clippy::disallowed_methods, reason = "any instant will do")]
        fn a_share_is_a_share_and_never_falls(over_ms in 0_u64..4_000_000, a in 0_u64..8_000_000, b in 0_u64..8_000_000) {
            let (start, over) = (Instant::now(), Duration::from_millis(over_ms));
            let share = |ms| ramp_share(start, over, start + Duration::from_millis(ms));
            prop_assert!((RAMP_FIRST_SHARE..=1.0).contains(&share(a)));
            prop_assert!(share(a.min(b)) <= share(a.max(b)));
        }
    }
}
