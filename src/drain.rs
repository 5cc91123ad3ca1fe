//! Whether we are draining, and what is still open.

use std::{
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{AcqRel, Acquire, Release},
        },
    },
    time::Duration,
};

/// How often the connections are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Shared by all who serve and by the one who stops the process.
#[derive(Debug, Default)]
pub struct DrainState {
    draining: AtomicBool,
    /// Whether another process serves, so that idle connections can be given time.
    handed_over: AtomicBool,
    /// Whether idle connections have been let go.
    let_go: AtomicBool,
    /// Whether the process before this one still finishes requests.
    followed: AtomicBool,
    open: AtomicUsize,
    connections: AtomicUsize,
}

impl DrainState {
    /// From now on clients are let go.
    pub fn begin(&self) {
        self.draining.store(true, Release);
    }

    /// As [`begin`](Self::begin); new connections go to another process.
    pub fn begin_handed_over(&self) {
        self.handed_over.store(true, Release);
        self.begin();
    }

    /// Whether clients are let go.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Acquire)
    }

    /// Requests between their header and the end of their answer, whatever they wait for.
    pub fn open_requests(&self) -> usize {
        self.open.load(Acquire)
    }

    /// Whether nothing is left to wait for.
    pub fn is_empty(&self) -> bool {
        let idle_gone = self.connections.load(Acquire) == 0 || self.let_go.load(Acquire);
        self.open_requests() == 0
            && !self.followed.load(Acquire)
            && (idle_gone || !self.handed_over.load(Acquire))
    }

    /// Whether another process serves.
    pub fn is_handed_over(&self) -> bool {
        self.handed_over.load(Acquire)
    }

    /// Whether the process before this one still finishes requests: were we to leave, the service
    /// manager would end it too.
    pub fn set_followed(&self, followed: bool) {
        self.followed.store(followed, Release);
    }

    /// A request arrived; it is open until the guard is dropped.
    pub fn enter(self: &Arc<Self>) -> OpenRequest {
        self.open.fetch_add(1, AcqRel);
        OpenRequest(self.clone())
    }

    /// A client connected; it is counted until the guard is dropped.
    pub fn connected(self: &Arc<Self>) -> OpenConnection {
        self.connections.fetch_add(1, AcqRel);
        OpenConnection(self.clone())
    }

    /// Waits, after a hand-over, until every client has sent a request and was told to close, or has
    /// closed by itself, but no longer than `longest` after the last request ended. An idle HTTP/1.1
    /// connection cannot be told anything: whoever closes it loses the request that is on its way at
    /// that moment. A stream that began before the hand-over told its client nothing either.
    pub async fn wait_for_idle_clients(&self, longest: Duration) {
        let mut busy_at = tokio::time::Instant::now();
        while self.handed_over.load(Acquire) && self.connections.load(Acquire) > 0 {
            if self.open_requests() > 0 {
                busy_at = tokio::time::Instant::now();
            } else if busy_at.elapsed() >= longest {
                break;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.let_go.store(true, Release);
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

/// One client's connection.
#[derive(Debug)]
pub struct OpenConnection(Arc<DrainState>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, AcqRel);
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
        assert!(!state.is_empty());
        drop(open);
        assert_eq!(state.open_requests(), 0);
        assert!(state.is_empty());
        state.set_followed(true);
        assert!(!state.is_empty());
    }

    #[tokio::test]
    async fn only_after_a_hand_over_idle_connections_are_waited_for() {
        let state = Arc::new(DrainState::default());
        let connection = state.connected();
        state.begin();
        assert!(state.is_empty());
        state.begin_handed_over();
        assert!(!state.is_empty());
        let waiting = state.wait_for_idle_clients(Duration::from_mins(1));
        let ((), ()) = tokio::join!(waiting, async { drop(connection) });
        assert!(state.is_empty());
        let _stays = state.connected();
        state.wait_for_idle_clients(Duration::from_millis(1)).await;
        assert!(state.is_empty());
    }

    #[tokio::test]
    async fn idle_clients_are_not_let_go_while_a_request_is_open() {
        let state = Arc::new(DrainState::default());
        let (_stays, open) = (state.connected(), state.enter());
        state.begin_handed_over();
        let waiting = state.wait_for_idle_clients(Duration::ZERO);
        let ((), ()) = tokio::join!(waiting, async {
            tokio::time::sleep(LOOK_EVERY * 3).await;
            assert!(!state.let_go.load(Acquire), "its client was told nothing yet");
            drop(open);
        });
        assert!(state.is_empty());
    }
}
