//! `make bench-truth`: what wrong, late and missing reports do to what the router believes, and how
//! soon that is over.
//!
//! The real router stands in front of simulated engines whose caches are too small, so that they
//! evict all the time. Their reports pass a relay that does to them what networks and bad reporters
//! do. `sample` reads the router's counters four times a second, `measure` turns them into figures.

pub mod bed;
pub mod chat;
pub mod inject;
pub mod measure;
pub mod plot;
pub mod relay;
pub mod sample;
pub mod scenario;
pub mod table;

/// Engines behind the router.
pub const WORKERS: usize = 4;

/// Whatever goes wrong outside a measurement.
pub type Any = Box<dyn std::error::Error + Send + Sync>;

/// The id of a worker in the router.
pub fn worker_id(at: usize) -> String {
    format!("w{at}")
}
