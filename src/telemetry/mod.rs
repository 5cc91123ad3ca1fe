//! What the process tells about itself: metrics, logs, the access log.

pub mod access_log;
pub mod events;
pub mod logging;
pub mod metrics;
