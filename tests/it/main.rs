//! Integration tests: the real binary, real sockets, fake workers.
//!
//! One binary, so that it links once. `support` holds the harness; every other module is a topic.

mod support;

mod accounting;
mod bodies;
mod breaker;
mod drain;
mod errors;
mod headers;
mod health;
mod joins;
mod limits;
mod models;
mod policies;
mod reports;
mod retries;
mod streams;
mod tls;
