//! Bytes to values and back; no sockets.
//!
//! Everything a client, a worker or a reporter says passes through here first. Nothing in this
//! folder panics on any input, and nothing is refused only because we did not understand it.

pub mod content;
mod conversation;
pub mod endpoint;
pub mod error_body;
pub mod event;
pub mod include_usage;
mod json;
mod json_text;
mod kv_event_fields;
pub mod kv_events;
pub mod models;
mod msgpack;
pub mod multipart;
pub mod prompt;
pub mod report;
pub mod report_event;
pub mod sse;
pub mod sync;
pub mod usage;
mod usage_scan;
