//! Keeps one task for each worker that publishes.

use std::{collections::HashMap, sync::Arc};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use super::{
    Mode, Settings, Sink, Worker, Workers,
    worker::{Follow, Task},
};

/// The service.
pub struct KvEventService<S, W> {
    sink: Arc<S>,
    workers: Arc<W>,
    settings: Settings,
}

struct Followed {
    worker: Worker,
    flaps: watch::Sender<u64>,
    task: Task,
}

impl<S: Sink, W: Workers> KvEventService<S, W> {
    /// Tells `sink` what the sources of `workers` publish.
    pub fn new(workers: Arc<W>, sink: Arc<S>, settings: Settings) -> Self {
        Self { sink, workers, settings }
    }

    /// Runs until `stop` is ready; then all tasks have been told to end. Of a worker that left
    /// nothing more is said.
    pub async fn run(&self, stop: impl Future<Output = ()>) {
        let mut followed = HashMap::new();
        let mut look = interval(self.settings.look_every);
        look.set_missed_tick_behavior(MissedTickBehavior::Skip);
        tokio::pin!(stop);
        loop {
            tokio::select! {
                _ = look.tick() => self.follow_workers(&mut followed),
                () = &mut stop => return,
            }
        }
    }

    /// Starts tasks for workers that have none, ends those of workers that left or are others now.
    fn follow_workers(&self, followed: &mut HashMap<Arc<str>, Followed>) {
        let mut workers = self.workers.workers();
        workers.retain(|worker| *worker.mode != Mode::Off);
        followed.retain(|id, known| {
            workers.iter().any(|worker| {
                worker.id == *id
                    && worker.life == known.worker.life
                    && worker.host == known.worker.host
                    && worker.mode == known.worker.mode
                    && !known.task.has_ended()
            })
        });
        for worker in workers {
            if let Some(known) = followed.get(&worker.id) {
                known.flaps.send_if_modified(|flaps| {
                    std::mem::replace(flaps, worker.flaps) != worker.flaps
                });
                continue;
            }
            let (flaps, changes) = watch::channel(worker.flaps);
            let follow = Follow::new(
                worker.clone(),
                changes,
                self.workers.clone(),
                self.sink.clone(),
                self.settings.clone(),
            );
            let task = Task::start(follow.run());
            followed.insert(worker.id.clone(), Followed { worker, flaps, task });
        }
    }
}
