//! What the service knows, for the admin page.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Instant,
};

use parking_lot::Mutex;
use serde::Serialize;

use super::roster::Roster;

/// Who we are and whom we hear; written by the service, read by the admin listener.
#[derive(Debug)]
pub struct Shared {
    /// Our name.
    pub name: String,
    /// This life of us.
    pub instance: u64,
    pub(super) connected: AtomicBool,
    pub(super) roster: Mutex<Roster>,
}

/// `GET /peers`.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are the JSON's, described in docs/peers.md")]
pub struct PeersStatus {
    pub name: String,
    pub instance: String,
    pub connected: bool,
    pub peers: Vec<PeerStatus>,
}

/// One other router.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the fields are the JSON's, described in docs/peers.md")]
pub struct PeerStatus {
    pub name: String,
    pub instance: String,
    pub heard_s: f64,
    pub messages: u64,
}

impl Shared {
    pub(super) fn new(name: String, instance: u64) -> Self {
        let (connected, roster) = (AtomicBool::new(false), Mutex::default());
        Self { name, instance, connected, roster }
    }

    /// As of now.
    pub fn status(&self, now: Instant) -> PeersStatus {
        let roster = self.roster.lock();
        let peers = roster.known().map(|peer| PeerStatus {
            name: peer.name.clone(),
            instance: format!("{:016x}", peer.instance),
            heard_s: now.saturating_duration_since(peer.heard).as_secs_f64(),
            messages: peer.messages,
        });
        PeersStatus {
            name: self.name.clone(),
            instance: format!("{:016x}", self.instance),
            connected: self.connected.load(Relaxed),
            peers: peers.collect(),
        }
    }
}
