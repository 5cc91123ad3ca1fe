//! `make bench-upgrade`: what reloads, upgrades and crashes of the router cost its clients.
//!
//! The real router, started from a copy that can be replaced, stands in front of simulated engines.
//! Chats of many turns arrive by schedule, whatever becomes of those before, over every way a client
//! can come; beside them hundreds of streams are open all the time. Every answer is read to its end
//! and checked. `script` does things to the router, `measure` says what came of them.

pub mod answer;
pub mod asks;
pub mod bed;
pub mod http1;
pub mod http2;
pub mod io;
pub mod load;
pub mod measure;
pub mod plot;
pub mod process;
pub mod record;
pub mod reloads;
pub mod router;
pub mod script;
pub mod sizing;
pub mod streams;
pub mod table;

pub use crate::truth::Any;
