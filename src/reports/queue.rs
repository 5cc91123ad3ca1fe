//! The bounded queue between the listener and the fleet, and the one thread that applies.
//!
//! One thread keeps the batches of a worker in order without further locks. A reporter's answer
//! waits for its batch to be applied, so that an eviction acknowledged is an eviction in force.

use std::{sync::Arc, time::Instant};

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use tokio::sync::oneshot;

use crate::{
    clock,
    fleet::{Applied, ApplyError, Beaten, Fleet, HeartbeatError, Synced},
    telemetry::access_log::unix_s,
    wire::{
        report::{Batch, Heartbeat},
        sync::Sync,
    },
};

/// Something to apply, and where its result goes.
#[derive(Debug)]
enum Job {
    Batch(Box<Batch>, Instant, oneshot::Sender<Result<Applied, ApplyError>>),
    Heartbeat(Box<Heartbeat>, oneshot::Sender<Result<Beaten, HeartbeatError>>),
    Sync(Box<Sync>, oneshot::Sender<Result<Synced, ApplyError>>),
}

/// The queue is full, or the process is ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

/// Takes reports in.
#[derive(Debug, Clone)]
pub struct Queue {
    jobs: Sender<Job>,
}

impl Queue {
    /// A queue of at most `batches_max` reports, and the thread that empties it into `fleet`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(batches_max: usize, fleet: Arc<Fleet>) -> std::io::Result<Self> {
        let (jobs, waiting) = bounded(batches_max);
        std::thread::Builder::new()
            .name("reports-apply".to_owned())
            .spawn(move || apply_all(&waiting, &fleet))?;
        Ok(Self { jobs })
    }

    /// Applies a batch in its turn.
    ///
    /// # Errors
    /// `Full`: the batch was not taken.
    pub async fn batch(&self, batch: Batch) -> Result<Result<Applied, ApplyError>, Full> {
        let (reply, result) = oneshot::channel();
        self.send(Job::Batch(Box::new(batch), clock::now(), reply))?;
        result.await.map_err(|_| Full)
    }

    /// Takes a step of a sync in its turn.
    ///
    /// # Errors
    /// `Full`: the step was not taken.
    pub async fn sync(&self, sync: Sync) -> Result<Result<Synced, ApplyError>, Full> {
        let (reply, result) = oneshot::channel();
        self.send(Job::Sync(Box::new(sync), reply))?;
        result.await.map_err(|_| Full)
    }

    /// Applies a heartbeat in its turn.
    ///
    /// # Errors
    /// `Full`: the heartbeat was not taken.
    pub async fn heartbeat(&self, beat: Heartbeat) -> Result<Result<Beaten, HeartbeatError>, Full> {
        let (reply, result) = oneshot::channel();
        self.send(Job::Heartbeat(Box::new(beat), reply))?;
        result.await.map_err(|_| Full)
    }

    fn send(&self, job: Job) -> Result<(), Full> {
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) | TrySendError::Disconnected(_) => Full,
        })
    }
}

fn apply_all(waiting: &Receiver<Job>, fleet: &Fleet) {
    for job in waiting {
        match job {
            Job::Batch(batch, received, reply) => {
                let result = fleet.apply(&batch, clock::now());
                let lag = match batch.ts {
                    Some(ts) => (unix_s() - ts).max(0.0),
                    None => clock::now().saturating_duration_since(received).as_secs_f64(),
                };
                if let Some(member) = fleet.member(&batch.worker_id) {
                    member.metrics.report_lag.observe(lag);
                }
                // The reporter may have hung up; its batch counts all the same.
                let _ = reply.send(result);
            }
            Job::Heartbeat(beat, reply) => {
                let _ = reply.send(fleet.heartbeat(&beat, clock::now()));
            }
            Job::Sync(sync, reply) => {
                let _ = reply.send(fleet.sync(&sync, clock::now()));
            }
        }
    }
}
