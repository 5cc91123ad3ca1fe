//! Whether we are draining, and how many requests are still open.

use std::sync::{
    Arc,
    atomic::{
        AtomicBool, AtomicUsize,
        Ordering::{AcqRel, Acquire},
    },
};

/// Shared by all who serve and by the one who stops the process.
#[derive(Debug, Default)]
pub struct DrainState {
    draining: AtomicBool,
    open: AtomicUsize,
}

impl DrainState {
    /// From now on clients are let go.
    pub fn begin(&self) {
        self.draining.store(true, std::sync::atomic::Ordering::Release);
    }

    /// Whether clients are let go.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Acquire)
    }

    /// Requests between their header and the end of their answer, whatever they wait for.
    pub fn open_requests(&self) -> usize {
        self.open.load(Acquire)
    }

    /// A request arrived; it is open until the guard is dropped.
    pub fn enter(self: &Arc<Self>) -> OpenRequest {
        self.open.fetch_add(1, AcqRel);
        OpenRequest(self.clone())
    }
}

/// One open request.
#[derive(Debug)]
pub struct OpenRequest(Arc<DrainState>);

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_open_until_its_guard_is_dropped() {
        let state = Arc::new(DrainState::default());
        let open = state.enter();
        state.begin();
        assert!(state.is_draining());
        assert_eq!(state.open_requests(), 1);
        drop(open);
        assert_eq!(state.open_requests(), 0);
    }
}
