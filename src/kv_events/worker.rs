//! One worker: finds its sources and keeps a task for each.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    Mode, Place, Settings, Sink, SourceKey, Worker, Workers, backoff::Backoff, discover,
    source::Source,
};

/// Wait after the first question that failed: the engine may just be starting.
const ASK_AGAIN_FIRST: Duration = Duration::from_millis(500);
/// Least time between two questions.
const ASK_APART: Duration = Duration::from_millis(250);

/// A task that ends with its owner.
pub(super) struct Task(JoinHandle<()>);

impl Task {
    /// Starts a task.
    pub(super) fn start(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(task))
    }

    /// Whether it ended by itself, which only a panic makes it.
    pub(super) fn has_ended(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A worker's task.
pub(super) struct Follow<S, W> {
    worker: Worker,
    flaps: watch::Receiver<u64>,
    workers: Arc<W>,
    sink: Arc<S>,
    settings: Settings,
    /// Told by sources that lost their connection.
    lost: Arc<Notify>,
    sources: BTreeMap<u32, (Place, Task)>,
    /// What was said last of the worker's answer.
    said: Option<Result<usize, String>>,
}

impl<S: Sink, W: Workers> Follow<S, W> {
    /// Of a worker as it is now; `flaps` goes on to tell of its health.
    pub(super) fn new(
        worker: Worker,
        flaps: watch::Receiver<u64>,
        workers: Arc<W>,
        sink: Arc<S>,
        settings: Settings,
    ) -> Self {
        Self {
            worker,
            flaps,
            workers,
            sink,
            settings,
            lost: Arc::default(),
            sources: BTreeMap::new(),
            said: None,
        }
    }

    /// Follows the worker for as long as it is polled.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(ASK_AGAIN_FIRST, self.settings.ask_every);
        loop {
            let wait = match self.places().await {
                Ok(places) => {
                    backoff.reset();
                    self.say(Ok(places.len()));
                    self.follow(places);
                    self.settings.ask_every
                }
                // What is being followed goes on: the question failed, not the sources.
                Err(why) => {
                    self.say(Err(why));
                    backoff.next()
                }
            };
            sleep(ASK_APART.min(wait)).await;
            tokio::select! {
                () = sleep(wait) => {}
                () = self.lost.notified() => {}
                // The sender lives as long as this task.
                Ok(()) = self.flaps.changed() => backoff.reset(),
            }
        }
    }

    async fn places(&self) -> Result<Vec<(u32, Place)>, String> {
        match &*self.worker.mode {
            Mode::Off => Ok(Vec::new()),
            Mode::Explicit(places) => Ok((0..).zip(places.iter().cloned()).collect()),
            Mode::Auto => {
                let asked = self.workers.get(&self.worker, discover::PATH);
                let answer = timeout(self.settings.ask_within, asked).await;
                let answer = answer.map_err(|_| "no answer in time".to_owned())??;
                discover::parse(&answer, &self.worker.host).map_err(|bad| bad.to_string())
            }
        }
    }

    fn say(&mut self, answer: Result<usize, String>) {
        if self.said.as_ref() != Some(&answer) {
            let said = answer.as_ref().map(|count| *count).map_err(String::as_str);
            self.sink.discovered(&self.worker.id, said);
            self.said = Some(answer);
        }
    }

    fn follow(&mut self, places: Vec<(u32, Place)>) {
        let (worker, life) = (&self.worker.id, self.worker.life);
        self.sources.retain(|rank, _| {
            let stays = places.iter().any(|(named, _)| named == rank);
            if !stays {
                let key = SourceKey { worker: worker.clone(), life, rank: *rank };
                self.sink.disconnected(&key, "the worker names no such source any more");
            }
            stays
        });
        for (rank, place) in places {
            let known = self.sources.get(&rank);
            if known.is_some_and(|(same, task)| *same == place && !task.has_ended()) {
                continue;
            }
            let key = SourceKey { worker: worker.clone(), life, rank };
            if known.is_some() {
                // Endpoints are given at start-up, so this is another process.
                self.sink.restarted(&key);
            }
            let source = Source::new(
                key,
                place.clone(),
                self.sink.clone(),
                self.settings.clone(),
                self.lost.clone(),
            );
            self.sources.insert(rank, (place, Task::start(source.run())));
        }
    }
}
