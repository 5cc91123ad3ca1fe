//! How far what was learned is still to be relied on.

use std::time::Instant;

/// How sure observations make: more with each, less with the time since.
///
/// A worker observed every 100 s or oftener is wholly sure; one that was, and gets nothing,
/// stays so for ten, and is at a quarter after thirty.
#[derive(Debug, Clone, Copy)]
pub struct Evidence {
    level: f64,
    at: Instant,
}

/// Half of [`Evidence`] is gone after so long, s. Where a worker really is slower, long prompts are
/// tried there each time it wears off: the mean time to first token of recorded conversations is 1.10
/// times the ideal where it never does, 1.16 at 600 s, 1.35 at 60 (docs/adr/0016).
const EVIDENCE_HALF_LIFE_S: f64 = 600.0;
/// An observation makes up for this part of what is missing.
const EVIDENCE_GAIN: f64 = 0.125;
/// From this level on it is whole.
const EVIDENCE_ENOUGH: f64 = 0.5;

impl Evidence {
    /// None.
    pub fn none(now: Instant) -> Self {
        Self { level: 0.0, at: now }
    }

    /// All there can be.
    pub fn whole(now: Instant) -> Self {
        Self { level: 1.0, at: now }
    }

    /// There was an observation.
    pub fn renew(&mut self, now: Instant) {
        let level = self.level_at(now);
        *self = Self { level: level + EVIDENCE_GAIN * (1.0 - level), at: now };
    }

    /// From 0 to 1.
    pub fn sure(&self, now: Instant) -> f64 {
        (self.level_at(now) / EVIDENCE_ENOUGH).min(1.0)
    }

    fn level_at(&self, now: Instant) -> f64 {
        let s = now.saturating_duration_since(self.at).as_secs_f64();
        self.level * (-s / EVIDENCE_HALF_LIFE_S).exp2()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn evidence_comes_with_observations_and_goes_with_time() {
        let start = crate::clock::now();
        let at = |s: f64| start + Duration::from_secs_f64(s);
        let mut evidence = Evidence::none(start);
        assert!(evidence.sure(at(90.0)) <= 0.0);
        let mut before = 0.0;
        for s in 0..6 {
            evidence.renew(at(f64::from(s)));
            assert!(evidence.sure(at(f64::from(s))) > before);
            before = evidence.sure(at(f64::from(s)));
        }
        assert!(before >= 1.0, "six in a row: {before}");
        let rests = |period: f64| {
            let mut evidence = Evidence::none(start);
            (0..99).for_each(|turn| evidence.renew(at(f64::from(turn) * period)));
            evidence.sure(at(99.0 * period))
        };
        assert!(rests(1.0) >= 1.0 && rests(100.0) >= 1.0, "{}", rests(100.0));
        assert!(rests(600.0) < 0.5, "{}", rests(600.0));
        let whole = Evidence::whole(start);
        assert!(whole.sure(at(599.0)) >= 1.0 && whole.sure(at(1_801.0)) < 0.25);
        assert!(whole.sure(start) >= 1.0);
    }
}
