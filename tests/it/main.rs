//! Integration tests: the real binary, real sockets, fake workers.
//!
//! One binary, so that it links once. `support` holds the harness; every other module is a topic.

mod support;

mod accounting;
mod admin;
mod aligned;
mod bodies;
mod breaker;
mod cli_workers;
mod config;
#[cfg(feature = "demo")]
mod demo;
mod discovery;
mod drain;
mod errors;
mod feedback;
mod fixtures;
mod headers;
mod health;
mod index;
mod joins;
mod kv_events;
mod kv_sources;
mod limits;
mod membership;
mod metrics;
mod models;
#[cfg(feature = "demo")]
mod openai_python;
mod pace;
mod peers;
mod policies;
mod regret;
mod reload;
mod reports;
mod retries;
#[cfg(feature = "demo")]
mod saturation;
mod shadow;
mod streams;
mod sync;
mod systemd;
#[cfg(feature = "demo")]
mod text_mode;
mod tls;
mod trust;
mod under_load;
mod upgrade;
