//! The bound on request bytes held in memory by all requests together.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use crate::telemetry::metrics;

/// Shared by all requests.
#[derive(Debug, Default)]
pub(super) struct Budget {
    used: AtomicUsize,
}

/// One request's share; given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    /// Bytes that all shares together may take, for all this one's request knows.
    max: usize,
    bytes: usize,
}

impl Share {
    /// A share of nothing yet, of a budget of `max` bytes.
    pub(super) fn new(budget: &Arc<Budget>, max: usize) -> Self {
        Self { budget: budget.clone(), max, bytes: 0 }
    }

    /// Takes `bytes` more; false when the budget does not allow it (nothing is taken then).
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let before = self.budget.used.fetch_add(bytes, Relaxed);
        if before + bytes > self.max {
            self.budget.used.fetch_sub(bytes, Relaxed);
            return false;
        }
        self.bytes += bytes;
        metrics::BUFFERED_BYTES.add(bytes as i64);
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Relaxed);
        metrics::BUFFERED_BYTES.sub(self.bytes as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_budget_refuses_and_gives_back() {
        let budget = Arc::default();
        let mut first = Share::new(&budget, 10);
        assert!(first.grow(7) && !first.grow(4) && first.grow(3));
        let mut second = Share::new(&budget, 10);
        assert!(!second.grow(1));
        drop(first);
        assert!(second.grow(10));
    }
}
