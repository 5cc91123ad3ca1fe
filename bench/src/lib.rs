//! Shared parts of the benches: a fast worker, a bare Pingora proxy, a load client, processes.
//!
//! Proxies run as processes of their own, so that the CPU time of each can be read from /proc.

pub mod bare;
pub mod callgrind;
pub mod idle;
pub mod load;
pub mod lockstep;
pub mod process;
pub mod replay;
pub mod report;
pub mod routers;
pub mod scrape;
pub mod simulate;
pub mod stats;
pub mod trace;
pub mod truth;
pub mod upgrade;
pub mod worker;

use std::io::Write;

/// One line on stdout; benches speak to people.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
