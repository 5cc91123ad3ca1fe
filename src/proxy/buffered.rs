//! The bound on request bytes held in memory by all requests together.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use crate::telemetry::metrics;

/// Shared by all requests.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicUsize,
    max: usize,
}

impl Budget {
    /// A budget of `max` bytes.
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), max })
    }
}

/// One request's share; given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Share {
    /// A share of nothing yet.
    pub(super) fn new(budget: &Arc<Budget>) -> Self {
        Self { budget: budget.clone(), bytes: 0 }
    }

    /// Takes `bytes` more; false when the budget does not allow it (nothing is taken then).
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let before = self.budget.used.fetch_add(bytes, Relaxed);
        if before + bytes > self.budget.max {
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
        let budget = Budget::new(10);
        let mut first = Share::new(&budget);
        assert!(first.grow(7) && !first.grow(4) && first.grow(3));
        let mut second = Share::new(&budget);
        assert!(!second.grow(1));
        drop(first);
        assert!(second.grow(10));
    }
}
