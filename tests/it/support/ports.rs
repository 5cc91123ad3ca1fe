//! Ports that nobody uses.
//!
//! They lie below Linux's ephemeral range (from 32768), where a port that was just found free could
//! be given to any outgoing connection of a test that runs beside.

use std::{
    net::TcpListener,
    sync::atomic::{AtomicU16, Ordering::Relaxed},
};

const FIRST: u16 = 10_000;
const COUNT: u16 = 22_000;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A port that was free a moment ago and is not handed out again for a long time.
pub(crate) fn free_port() -> u16 {
    // Test binaries that run beside each other begin at different places.
    let start = (std::process::id().wrapping_mul(97) % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let offset = NEXT.fetch_add(1, Relaxed);
        let port = FIRST + (start + offset % COUNT) % COUNT;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port");
}
