//! A worker's reports, as an engine plugin would send them.

use serde_json::{Value, json};

use super::Lb;

/// Reports of one worker in one epoch, numbered from 1.
pub(crate) struct Reporter<'a> {
    lb: &'a Lb,
    worker: String,
    pub(crate) epoch: String,
    pub(crate) seq: u64,
}

/// A `stored` event whose text is one string, cut every `size` bytes.
pub(crate) fn stored(
    ids: impl IntoIterator<Item = u64>,
    parent: Option<u64>,
    text: &str,
    size: usize,
) -> Value {
    let ids: Vec<u64> = ids.into_iter().collect();
    json!({"type": "stored", "block_hashes": ids, "parent_block_hash": parent, "text": text,
        "block_size": size})
}

/// A `stored` event with a text a block.
pub(crate) fn stored_list(
    ids: impl IntoIterator<Item = u64>,
    parent: Option<u64>,
    texts: &[&str],
) -> Value {
    let ids: Vec<u64> = ids.into_iter().collect();
    json!({"type": "stored", "block_hashes": ids, "parent_block_hash": parent, "text": texts})
}

impl<'a> Reporter<'a> {
    /// Nothing said yet.
    pub(crate) fn new(lb: &'a Lb, worker: &str) -> Self {
        Self { lb, worker: worker.to_owned(), epoch: "a".to_owned(), seq: 1 }
    }

    /// The batch that is due.
    pub(crate) fn batch(&self, events: &[Value]) -> Value {
        json!({"worker_id": self.worker, "epoch": self.epoch, "seq": self.seq, "events": events})
    }

    /// Sends the batch that is due; what became of it. Panics when it is refused.
    pub(crate) async fn send(&mut self, events: &[Value]) -> Value {
        let answer = self.lb.report("/v1/events", &self.batch(events)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        self.seq += 1;
        answer.json()
    }

    /// As `send`; all must be taken: nothing rejected, unknown, skipped or missed.
    pub(crate) async fn send_well(&mut self, events: &[Value]) {
        let applied = self.send(events).await;
        assert_eq!(applied["repeat"], false, "{applied}");
        assert_eq!(applied["resync"], false, "{applied}");
        for count in ["rejected", "unknown", "skipped"] {
            assert_eq!(applied[count], 0, "{applied}");
        }
    }
}
