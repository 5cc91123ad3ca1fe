//! When trust falls, and when it heals.

use std::time::Duration;

use super::super::OutOfRange;

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
