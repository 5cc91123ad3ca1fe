//! The report listener: workers say what they store and evict, and how loaded they are.
//!
//! A service of its own with its own runtime, so that a flood of reports cannot take the proxy's
//! threads. Bodies and the queue behind them are bounded; when the queue is full the reporter is
//! told to come again.

mod listener;
mod queue;
mod tap;

use std::time::Instant;

pub use listener::ReportListener;
pub use queue::Queue;
pub use tap::{Forwarded, Tap};

use crate::{
    fleet::Fleet,
    wire::{
        report::{self, Batch, Heartbeat},
        sync,
    },
};

/// Applies a report that another process took and answered.
pub fn apply(fleet: &Fleet, path: &str, body: &[u8], now: Instant) {
    // What came of it the reporter has been told, or will be at its next report.
    match path {
        "/v1/heartbeat" => {
            let _ = report::parse::<Heartbeat>(body).map(|beat| fleet.heartbeat(&beat, now));
        }
        "/v1/events" => {
            let _ = report::parse::<Batch>(body).map(|batch| fleet.apply(&batch, now));
        }
        "/v1/sync" => {
            let _ = sync::parse(body).map(|sync| fleet.sync(&sync, now));
        }
        _ => {}
    }
}
