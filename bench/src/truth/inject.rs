//! Reports nobody should send: nonsense, lies, and far too many.

use std::{fmt::Write, net::SocketAddr, time::Duration};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::{Instant, interval, timeout};

use super::{
    WORKERS,
    relay::{Relay, forward, mixed},
    worker_id,
};

/// Bogus reports a second.
const BOGUS_A_SECOND: u64 = 25;
/// Blocks a second of a flood, and blocks of one batch.
const FLOOD_BLOCKS: u64 = 50_000;
const BATCH_BLOCKS: u64 = 1_000;

/// What the router said to what was sent.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct Injected {
    /// Answered 200.
    pub taken: u64,
    /// Answered with an error.
    pub refused: u64,
    /// Not answered.
    pub unanswered: u64,
}

impl Injected {
    async fn send(&mut self, router: SocketAddr, path: &str, body: Bytes) {
        match timeout(Duration::from_secs(5), forward(router, path, body)).await {
            Ok(Ok(answer)) if answer.status().is_success() => self.taken += 1,
            Ok(Ok(_)) => self.refused += 1,
            _ => self.unanswered += 1,
        }
    }
}

/// Sends nonsense for so long.
pub async fn bogus(relay: &Relay, router: SocketAddr, lasting: Duration) -> Injected {
    let mut injected = Injected::default();
    let mut ticks = interval(Duration::from_secs(1) / BOGUS_A_SECOND as u32);
    let end = Instant::now() + lasting;
    let mut count = 0;
    while Instant::now() < end {
        ticks.tick().await;
        let (path, body) = nonsense(relay, count);
        injected.send(router, path, body).await;
        count += 1;
    }
    injected
}

fn nonsense(relay: &Relay, count: u64) -> (&'static str, Bytes) {
    let worker = worker_id((count / 10) as usize % WORKERS);
    let seen = relay.seen(&worker);
    let other = relay.seen(&worker_id((count / 10 + 1) as usize % WORKERS));
    let events = "/v1/events";
    let batch = |epoch: &str, seq: Value, events: Value| {
        let batch = json!({"worker_id": worker, "epoch": epoch, "seq": seq, "events": events});
        Bytes::from(batch.to_string())
    };
    let random = mixed(count);
    match count % 10 {
        0 => (events, Bytes::from_static(b"{\"worker_id\": \"w0\", \"epoch\": ")),
        // A heartbeat in the life of another engine.
        1 => {
            let url = "http://127.0.0.1:9";
            let beat = json!({"worker_id": worker, "worker_url": url, "epoch": other.epoch});
            ("/v1/heartbeat", beat.to_string().into())
        }
        // Blocks nobody stored, and blocks behind blocks nobody stored.
        2 => {
            let removed = json!([{"type": "removed", "block_hashes": [random, random ^ 1]}]);
            (events, batch(&seen.epoch, json!(seen.seq), removed))
        }
        3 => {
            let orphan = json!([{"type": "stored", "block_hashes": [random], "text": ["x"],
                "parent_block_hash": random ^ 1}]);
            (events, batch(&seen.epoch, json!(seen.seq + 1), orphan))
        }
        // A batch of another engine's life.
        4 => (events, batch(&other.epoch, json!(other.seq), json!([]))),
        5 => (events, batch(&seen.epoch, json!(u64::MAX), json!([]))),
        6 => {
            let text = format!(
                "{{\"worker_id\":\"{worker}\",\"epoch\":1e400,\"seq\":99999999999999999999,\"events\":[]}}"
            );
            (events, text.into())
        }
        7 => (events, vec![b'\xff'; 1 << 20].into()),
        8 => {
            let sums = vec![random; 256];
            let sync = json!({"worker_id": worker, "epoch": seen.epoch, "seq": -5,
                "digest": {"buckets": 256, "blocks": 1, "sums": sums}});
            ("/v1/sync", sync.to_string().into())
        }
        _ => {
            let text = format!(
                "{{\"worker_id\":\"{worker}\",\"worker_url\":\"x\",\"current_load\":-1e99,\
                 \"kv_blocks_total\":1e300}}"
            );
            ("/v1/heartbeat", text.into())
        }
    }
}

/// As if the first worker's reporter had gone mad: its epoch, its numbers, and blocks without end.
pub async fn flood(relay: &Relay, router: SocketAddr, lasting: Duration) -> Injected {
    let mut injected = Injected::default();
    let mut ticks = interval(Duration::from_secs(1) / (FLOOD_BLOCKS / BATCH_BLOCKS) as u32);
    let end = Instant::now() + lasting;
    let worker = worker_id(0);
    let mut count = 0;
    while Instant::now() < end {
        ticks.tick().await;
        let seen = relay.seen(&worker);
        count += 1;
        let first = mixed(count);
        let hashes: Vec<u64> = (0..BATCH_BLOCKS).map(|at| first.wrapping_add(at)).collect();
        let mut text = String::new();
        for hash in &hashes {
            let _ = write!(text, "{hash:064x}");
        }
        let batch = json!({
            "worker_id": worker, "epoch": seen.epoch, "seq": seen.seq + count,
            "events": [{"type": "stored", "block_hashes": hashes, "parent_block_hash": null,
                "model": "sim-model", "block_size": 64, "text": text}],
        });
        injected.send(router, "/v1/events", batch.to_string().into()).await;
    }
    injected
}
