//! Follows one DNS name of the configuration.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use rand::Rng;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use super::{
    Sink, Source,
    names::{Answer, Ask, Family, Found, Heard, Kind, Name},
    question::{Pace, Reply},
    resolver::Resolve,
};
use crate::{
    clock,
    config::{DnsSource, WorkerConfig},
    telemetry::discovery::{LookupResult, SourceMetrics},
};

/// How often the age of the last good answer is told.
pub(super) const TELL_AGE_EVERY: Duration = Duration::from_secs(1);

/// One name's task.
pub(super) struct DnsWatch {
    source: DnsSource,
    name: Name,
    sink: Arc<dyn Sink>,
    metrics: SourceMetrics,
    /// What the fleet has of us; `None` = what another watch of this name left behind.
    published: Option<Vec<Found>>,
    /// What was last said to be wrong, by question.
    problems: BTreeMap<Ask, String>,
}

impl DnsWatch {
    /// A watch of `source`. With `replaces` the fleet has workers of it, which stay until the first
    /// answers are all there and name workers.
    pub(super) fn new(source: DnsSource, pace: Pace, sink: Arc<dyn Sink>, replaces: bool) -> Self {
        let kind = source.port.map_or(Kind::Services, Kind::Addresses);
        let family = match (source.ipv4, source.ipv6) {
            (true, false) => Family::Ipv4,
            (false, true) => Family::Ipv6,
            _ => Family::Any,
        };
        let name = Name::new(&source.name, kind, family, pace, clock::now());
        let metrics = SourceMetrics::of(&Source::Dns(source.key.clone()).label());
        let published = (!replaces).then(Vec::new);
        Self { source, name, sink, metrics, published, problems: BTreeMap::new() }
    }

    /// Asks for ever.
    pub(super) async fn run<R: Resolve>(mut self, resolver: Arc<R>) {
        let mut under_way = FuturesUnordered::new();
        let mut tell_age = interval(TELL_AGE_EVERY);
        tell_age.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            for ask in self.name.take_due(clock::now()) {
                let resolver = resolver.clone();
                under_way.push(async move { (resolver.resolve(&ask).await, ask) });
            }
            // All questions are under way: the tick wakes us often enough.
            let due = self.name.next_due().unwrap_or_else(|| clock::now() + TELL_AGE_EVERY);
            tokio::select! {
                Some((answer, ask)) = under_way.next() => {
                    self.on_answer(&ask, answer, clock::now(), rand::rng().random());
                }
                () = sleep_until(due.into()) => {}
                _ = tell_age.tick() => self.metrics.tell_age(self.name.good_at(), clock::now()),
            }
        }
    }

    pub(super) fn on_answer(&mut self, ask: &Ask, answer: Answer, now: Instant, jitter: f64) {
        let failure = failure(&answer);
        let told = self.name.on_reply(ask, answer, now, jitter);
        let (result, why) = match told.heard {
            Heard::Records => (LookupResult::Answered, None),
            Heard::Nothing => (LookupResult::Empty, Some("no such name or record".to_owned())),
            Heard::Failure => (LookupResult::Failed, failure),
        };
        self.metrics.looked(result);
        // No IPv6 address beside some of IPv4 is nothing to talk about.
        let missed = told.heard == Heard::Failure || told.known || self.nothing_found();
        if self.name.asks(ask) {
            self.tell_problem(ask, why.filter(|_| missed));
        }
        if told.left_out > 0 {
            self.metrics.left_out(ask.name(), told.left_out);
        }
        if told.changed {
            self.problems.retain(|ask, _| self.name.asks(ask));
        }
        if told.changed || self.published.is_none() {
            self.publish();
        }
        self.metrics.tell_age(self.name.good_at(), now);
    }

    fn nothing_found(&self) -> bool {
        self.name.found().is_none_or(|found| found.is_empty())
    }

    fn publish(&mut self) {
        let Some(found) = self.name.found() else { return };
        match &self.published {
            Some(published) if *published == found => return,
            None if found.is_empty() || !self.name.has_all_replies() => return,
            _ => {}
        }
        let workers = self.workers(&found);
        self.metrics.published(workers.len());
        self.sink.set_workers(&Source::Dns(self.source.key.clone()), workers);
        self.published = Some(found);
    }

    fn workers(&self, found: &[Found]) -> Vec<WorkerConfig> {
        let worker = |found: &Found| {
            let target = found.target.as_deref();
            let worker = self.source.worker(found.addr, target, found.share);
            worker.map_err(|error| self.metrics.refused(&error.to_string())).ok()
        };
        found.iter().filter_map(worker).collect()
    }

    fn tell_problem(&mut self, ask: &Ask, why: Option<String>) {
        if self.problems.get(ask) == why.as_ref() {
            return;
        }
        self.metrics.problem(ask.kind(), ask.name(), why.as_deref());
        match why {
            Some(why) => self.problems.insert(ask.clone(), why),
            None => self.problems.remove(ask),
        };
    }
}

fn failure(answer: &Answer) -> Option<String> {
    match answer {
        Answer::Addresses(Reply::Failed(why)) | Answer::Services(Reply::Failed(why)) => {
            Some(why.clone())
        }
        _ => None,
    }
}
