//! A SIMULATED inference engine: no model, no GPU, but the cache and the clock of a real one.
//!
//! It answers the OpenAI endpoints over real sockets in vLLM's form, keeps a real block-wise
//! prefix cache with LRU eviction, batches continuously with chunked prefill, and takes as long
//! as the token rates in [`EngineOptions`] say. What it writes is nonsense drawn from the
//! prompt's hash. Tests and the demo of warmroute run against it, so whatever a number of theirs
//! says about *routing* is real, and whatever it says about *speed* is what the options say.
//!
//! The way of a request: `http` reads it, `prompt` turns it into sequences of canonical text with
//! chained block hashes, `batch` (pure: no clock, no sockets) admits, steps and cancels it over the
//! `cache`, and the loop in `engine` sleeps for as long as a step takes. `reports` tells a router
//! what the cache took in and evicted. `load` is the other side: chat sessions over real sockets.
//!
//! Simplifications, all on purpose: one token is four bytes of canonical text; a request reserves
//! the blocks of its whole answer on admission, so there is no preemption; two copies of one block
//! computed at the same time are merged into one.

mod answer;
mod batch;
mod cache;
mod client;
mod engine;
mod http;
pub mod load;
mod options;
pub mod process;
mod prompt;
mod reports;

pub use engine::{Engine, EngineHandle, EngineStats};
pub use options::{EngineOptions, ReportTo};
