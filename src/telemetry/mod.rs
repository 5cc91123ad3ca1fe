//! What the process tells about itself: metrics, logs, the access log.

pub mod access_log;
pub mod discovery;
pub mod events;
pub mod lifecycle;
pub mod logging;
pub mod metrics;
pub mod regret;
pub mod worker_metrics;
