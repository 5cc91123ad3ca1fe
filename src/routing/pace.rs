//! One worker's work as a proxy can see it: what it has before it, how fast it goes, what it gets.

use std::time::{Duration, Instant};

use super::backlog::{Backlog, Ticket};
use super::evidence::Evidence;
use super::prefill::{Learned, PrefillCost, PrefillImage, PrefillModel, Work};
use super::traffic::{Traffic, TrafficRates};

/// What a decision may know of a worker's work.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Forecast {
    /// What prefill costs there.
    pub cost: PrefillCost,
    /// Seconds of prefill before it.
    pub backlog_s: f64,
    /// What it has been getting.
    pub traffic: TrafficRates,
}

/// Keeps one worker's [`Forecast`].
#[derive(Debug, Clone)]
pub struct Pace {
    model: PrefillModel,
    evidence: Evidence,
    /// The cost that is believed: its own, or the fleet's.
    cost: PrefillCost,
    backlog: Backlog,
    traffic: Traffic,
}

impl Pace {
    /// Nothing sent, nothing learned.
    pub fn new(now: Instant) -> Self {
        Self {
            model: PrefillModel::new(),
            evidence: Evidence::none(now),
            cost: PrefillCost::default(),
            backlog: Backlog::new(),
            traffic: Traffic::new(now),
        }
    }

    /// A request is sent: `work` to do, `hit_tokens` held, averages to reach back over `window`.
    /// `silent` says that its first token will not be seen.
    pub fn sent(
        &mut self,
        work: Work,
        hit_tokens: u64,
        silent: bool,
        window: Duration,
        now: Instant,
    ) -> Ticket {
        let before_s = self.backlog_s(now);
        let ticket = self.backlog.sent(work, silent, &self.cost, now);
        let after_s = self.backlog_s(now);
        self.traffic.pass(before_s, after_s, now);
        self.traffic.sent(&work, self.cost.seconds(&work), hit_tokens, window);
        ticket
    }

    /// The first token of a request came.
    pub fn first_token(&mut self, ticket: Ticket, now: Instant) {
        let before_s = self.backlog_s(now);
        if let Some(observed) = self.backlog.first_token(ticket, &self.cost, now)
            && self.model.observe(&observed.work, observed.took)
        {
            self.evidence.renew(now);
        }
        let after_s = self.backlog_s(now);
        self.traffic.pass(before_s, after_s, now);
    }

    /// A request ends without a first token that was seen.
    pub fn gone(&mut self, ticket: Ticket, now: Instant) {
        let before_s = self.backlog_s(now);
        self.backlog.gone(ticket, &self.cost, now);
        let after_s = self.backlog_s(now);
        self.traffic.pass(before_s, after_s, now);
    }

    /// A request that was sent at `sent_at`, `hit_tokens` of it held, never got there.
    pub fn take_back(&mut self, ticket: Ticket, hit_tokens: u64, sent_at: Instant, now: Instant) {
        let before_s = self.backlog_s(now);
        let work = self.backlog.take_back(ticket, now);
        let after_s = self.backlog_s(now);
        self.traffic.pass(before_s, after_s, now);
        if !work.is_none() {
            let waited_s = now.saturating_duration_since(sent_at).as_secs_f64();
            self.traffic.take_back(&work, self.cost.seconds(&work), hit_tokens, waited_s);
        }
    }

    /// What its first tokens say that prefill costs, once enough came.
    pub fn learned(&self) -> Option<PrefillCost> {
        self.model.learned()
    }

    /// The same, with how far that is to be relied on.
    pub fn known(&self, now: Instant) -> Option<Learned> {
        self.learned().map(|cost| Learned { cost, sure: self.evidence.sure(now) })
    }

    /// What is to be believed from now on.
    pub fn set_cost(&mut self, cost: PrefillCost) {
        self.cost = cost;
    }

    /// What was learned.
    pub fn image(&self) -> PrefillImage {
        self.model.image()
    }

    /// Goes on from what was learned, which counts as new.
    pub fn restore(&mut self, image: PrefillImage, now: Instant) {
        self.evidence = Evidence::whole(now);
        self.model = PrefillModel::restore(image);
        self.cost = self.model.learned().unwrap_or(self.cost);
    }

    /// What is believed that prefill costs.
    pub fn cost(&self) -> PrefillCost {
        self.cost
    }

    /// Work sent and not done.
    pub fn work(&self) -> Work {
        self.backlog.work()
    }

    /// Requests without a first token to be seen that are taken for prefilled, and run.
    pub fn running(&self, now: Instant) -> u32 {
        self.backlog.running(&self.cost, now)
    }

    /// For a decision at `now`.
    pub fn forecast(&self, now: Instant) -> Forecast {
        let backlog_s = self.backlog_s(now);
        Forecast { cost: self.cost, backlog_s, traffic: self.traffic.rates(backlog_s, now) }
    }

    fn backlog_s(&self, now: Instant) -> f64 {
        self.backlog.seconds(&self.cost, now)
    }
}

#[cfg(test)]
#[path = "pace_tests.rs"]
mod tests;
