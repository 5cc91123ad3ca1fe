//! The report listener: workers say what they store and evict, and how loaded they are.
//!
//! A service of its own with its own runtime, so that a flood of reports cannot take the proxy's
//! threads. Bodies and the queue behind them are bounded; when the queue is full the reporter is
//! told to come again.

mod listener;
mod queue;

pub use listener::ReportListener;
pub use queue::Queue;
