//! warmroute: a load balancer that sends each LLM request to the worker that already holds the
//! longest prefix of its prompt.
//!
//! Decisions are pure; the shell around them is thin. An arrow says who may import whom:
//!
//! ```text
//! main -> cli -> server -> lifecycle -> { proxy, reports }
//!                server -> { publishers, peers, health, parity, discovery, admin }
//!                all of these -> fleet -> routing
//! ```
//!
//! The shell also uses `wire` (bytes to values), `state` (what is known, as bytes), `kv_events`
//! (ZMQ), `aligned` (chat templates and tokenizers), `config`, `telemetry` and `clock`. `routing`
//! knows none of them: no I/O, clock, locks, random source, logs or metrics. `tests/tidy.rs` holds the
//! sources to this. The library exists for the binary, its tests and its benches; it promises no
//! stable API.

pub mod admin;
pub mod aligned;
pub mod cli;
pub mod clock;
pub mod config;
#[cfg(feature = "demo")]
pub mod demo;
pub mod discovery;
pub mod drain;
pub mod fleet;
pub mod health;
pub mod kv_events;
pub mod lifecycle;
pub mod parity;
pub mod peers;
pub mod proxy;
pub mod publishers;
pub mod reports;
pub mod routing;
pub mod server;
pub mod state;
pub mod telemetry;
pub mod wire;
mod wire_http;
pub mod worker_http;
