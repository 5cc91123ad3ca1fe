//! Waiting: for an event or a condition, always with a deadline, never for a time.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

/// Long enough for a slow machine, short enough to tell a hang.
pub(crate) const DEADLINE: Duration = Duration::from_secs(15);

/// Between two looks at a condition.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Polls `holds` until it is true.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !holds().await {
        assert!(Instant::now() < until, "not within {DEADLINE:?}: {what}");
        sleep(LOOK_EVERY).await;
    }
}

/// The value of `future`, which must come before the deadline.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let value = timeout(DEADLINE, future).await.ok();
    value.unwrap_or_else(|| panic!("hangs: {what}"))
}
