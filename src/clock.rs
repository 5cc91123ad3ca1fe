//! The one read of the clock.

use std::time::Instant;

/// Now. Everything else takes the time as an argument.
#[expect(clippy::disallowed_methods, reason = "this is the place the lint points to")]
pub fn now() -> Instant {
    Instant::now()
}
