//! Where requests hand in their sequences and wait for tokens.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::job::Job;
use super::metrics::Histogram;
use crate::batch::{Batch, SequenceId, Step};
use crate::engine::Shared;

/// The batch, and who waits for what comes out of it.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) batch: Batch,
    waiters: HashMap<SequenceId, Waiter>,
    pub(crate) requests: u64,
    pub(crate) reports_accepted: u64,
    pub(crate) reports_failed: u64,
    pub(crate) syncs: u64,
    pub(crate) resyncs: u64,
    pub(super) first_token_seconds: Histogram,
    pub(super) whole_seconds: Histogram,
}

#[derive(Debug)]
struct Waiter {
    /// Bounded by the length of the answers, which are bounded by the context.
    tokens: mpsc::UnboundedSender<Arrival>,
    choice: usize,
    since: Instant,
}

/// One token of one choice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    pub(super) choice: usize,
    pub(super) index: usize,
    pub(super) cached_tokens: usize,
    pub(super) last: bool,
}

/// A request's place in the batch. Dropping it cancels what is not finished, which is how a
/// client that left frees its blocks.
#[derive(Debug)]
pub(super) struct Ticket {
    shared: Arc<Shared>,
    ids: Vec<SequenceId>,
    pub(super) tokens: mpsc::UnboundedReceiver<Arrival>,
}

impl Desk {
    pub(crate) fn new(batch: Batch) -> Self {
        Self {
            batch,
            waiters: HashMap::new(),
            requests: 0,
            reports_accepted: 0,
            reports_failed: 0,
            syncs: 0,
            resyncs: 0,
            first_token_seconds: Histogram::default(),
            whole_seconds: Histogram::default(),
        }
    }

    /// Ends a step and hands out its tokens.
    pub(crate) fn end_step(&mut self, step: &Step) {
        for token in self.batch.end_step(step) {
            let Some(waiter) = self.waiters.get(&token.id) else { continue };
            let elapsed = waiter.since.elapsed().as_secs_f64();
            if token.index == 0 {
                self.first_token_seconds.observe(elapsed);
            }
            let (choice, index) = (waiter.choice, token.index);
            let arrival =
                Arrival { choice, index, cached_tokens: token.cached_tokens, last: token.last };
            // A receiver that is gone cancels its sequence itself.
            let _ = waiter.tokens.send(arrival);
            if token.last {
                self.whole_seconds.observe(elapsed);
                self.waiters.remove(&token.id);
            }
        }
    }
}

/// Hands in all sequences of a job.
pub(super) fn submit(shared: &Arc<Shared>, job: &Job) -> Ticket {
    let (sender, tokens) = mpsc::unbounded_channel();
    let since = Instant::now();
    let mut desk = shared.desk();
    desk.requests += 1;
    let mut ids = Vec::new();
    for (choice, sequence) in job.sequences.iter().enumerate() {
        let id = desk.batch.submit(sequence.clone());
        desk.waiters.insert(id, Waiter { tokens: sender.clone(), choice, since });
        ids.push(id);
    }
    drop(desk);
    shared.wake();
    Ticket { shared: Arc::clone(shared), ids, tokens }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut desk = self.shared.desk();
        for id in &self.ids {
            desk.waiters.remove(id);
            desk.batch.cancel(*id);
        }
        drop(desk);
        // Blocks may have come free for those who wait.
        self.shared.wake();
    }
}
