//! The saturation valve: the last fence, under every policy.
//!
//! A worker at its `inflight_max` is not picked while any other has room, and when none has, the
//! request is shed. The bound is absolute and coarse on purpose: the fine decision, whether waiting
//! for a match costs more than recomputing it elsewhere, is priced in `policy/priced.rs`, as a
//! fixed threshold that is right at one load and prompt size is wrong at the next.

use super::load::Load;

/// The room a worker has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headroom {
    left: u32,
    inflight_max: u32,
}

impl Headroom {
    /// Room of a worker with `load` that takes at most `inflight_max` requests at a time. A bound
    /// of 0 leaves no room.
    pub fn new(load: &Load, inflight_max: u32) -> Self {
        Self { left: inflight_max.saturating_sub(load.requests), inflight_max }
    }

    /// Requests that the worker can still take.
    pub fn left(self) -> u32 {
        self.left
    }

    /// The used share of `inflight_max`, 0 (idle) to 1 (saturated).
    pub fn used_share(self) -> f64 {
        if self.inflight_max == 0 {
            return 1.0;
        }
        1.0 - f64::from(self.left) / f64::from(self.inflight_max)
    }

    /// Whether there is no room.
    pub fn is_saturated(self) -> bool {
        self.left == 0
    }
}

/// Whether a worker with `load` is at or past `inflight_max`.
pub fn is_saturated(load: &Load, inflight_max: u32) -> bool {
    Headroom::new(load, inflight_max).is_saturated()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valve_follows_its_table() {
        // requests, inflight_max -> left, saturated
        for (requests, inflight_max, left, saturated) in [
            (0, 4, 4, false),
            (3, 4, 1, false),
            (4, 4, 0, true),
            (5, 4, 0, true),
            (0, 0, 0, true),
            (u32::MAX, 4, 0, true),
            (7, u32::MAX, u32::MAX - 7, false),
        ] {
            let load = Load { requests, ..Load::default() };
            let headroom = Headroom::new(&load, inflight_max);
            assert_eq!((headroom.left(), headroom.is_saturated()), (left, saturated), "{load:?}");
            assert_eq!(is_saturated(&load, inflight_max), saturated);
        }
    }

    #[test]
    fn used_share_runs_from_idle_to_saturated() {
        let used =
            |requests, max| Headroom::new(&Load { requests, ..Load::default() }, max).used_share();
        assert!(used(0, 4).abs() < 1e-9);
        assert!((used(1, 4) - 0.25).abs() < 1e-9);
        assert!((used(9, 4) - 1.0).abs() < 1e-9);
        assert!((used(0, 0) - 1.0).abs() < 1e-9);
    }
}
