//! The prefill that one worker has been sent and has not done: what a new request waits for.
//!
//! Marked when a request is sent, taken off at its first token. What reports or polls say of a
//! queue is always of some moments ago, and those moments are what a burst consists of. The time
//! the foremost request has been served is credited: left out, a long prefill looks as long when it
//! is nearly done.
//!
//! Engines serve first come, first served, nearly: a request may overtake another, and one whose
//! answer is not streamed is *silent*: it shows no first token at all. So the time between two
//! first tokens is taken for the work of all that got theirs meanwhile, and a silent request for
//! done once those before it are and its own time is over.
//!
//! There are never more items than requests in flight: whoever sends says how each ended.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::prefill::{PrefillCost, Work};

/// First tokens that come this close come from one step of the engine, and so does their time.
const TOGETHER: Duration = Duration::from_millis(1);
/// So do those that come in less than this part of their time: a busy host sends what one step gave
/// over some milliseconds. Where the worker is just faster than believed, nothing is lost by taking
/// several for one, up to so many requests.
const QUICK_SHARE: f64 = 0.25;
const TOGETHER_MAX: u64 = 32;

/// Names a request in its worker's backlog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

#[derive(Debug, Clone, Copy)]
struct Item {
    ticket: Ticket,
    work: Work,
    /// Its first token will not be seen.
    silent: bool,
}

/// Work and the time it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed {
    /// The work.
    pub work: Work,
    /// The time, with nothing else before it.
    pub took: Duration,
}

/// One worker's unanswered prefill.
#[derive(Debug, Clone, Default)]
pub struct Backlog {
    /// In the order in which it was sent.
    items: VecDeque<Item>,
    /// Sum of `items`.
    sum: Work,
    /// Since when the foremost has been served.
    since: Option<Instant>,
    /// Work done since then: of those that have overtaken the foremost, and of silent ones.
    overtaken: Work,
    /// Whether the time since `since` is that of known work only.
    clean: bool,
    /// Whether a first token came at `since`: what comes right after is of the same step.
    in_step: bool,
    /// An observation that the next first token may still belong to.
    pending: Option<Observed>,
    /// Silent requests that were taken for done and have not ended.
    running: u32,
    next: u64,
}

impl Backlog {
    /// Nothing sent.
    pub fn new() -> Self {
        Self::default()
    }

    /// A request is sent. `silent` says that its first token will not be seen.
    pub fn sent(&mut self, work: Work, silent: bool, cost: &PrefillCost, now: Instant) -> Ticket {
        self.retire(cost, now);
        if self.items.is_empty() {
            self.begin(now, true);
            self.in_step = false;
        }
        let ticket = Ticket(self.next);
        self.next += 1;
        self.items.push_back(Item { ticket, work, silent });
        self.sum += work;
        ticket
    }

    /// The first token of a request came. Returns what that tells of the worker's speed, once no
    /// further first token can belong to it.
    pub fn first_token(
        &mut self,
        ticket: Ticket,
        cost: &PrefillCost,
        now: Instant,
    ) -> Option<Observed> {
        self.retire(cost, now);
        let Some(mut place) = self.place_of(ticket) else {
            self.running = self.running.saturating_sub(1);
            return None;
        };
        // Whoever is silent and was sent before had its turn before.
        let mut before = 0;
        while before < place {
            if self.items[before].silent {
                let work = self.remove(before);
                self.overtaken += work;
                self.running += 1;
                place -= 1;
            } else {
                before += 1;
            }
        }
        let work = self.remove(place);
        self.overtaken += work;
        if place > 0 {
            return None;
        }
        let work = std::mem::take(&mut self.overtaken);
        let took = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let (clean, in_step) = (self.clean, self.in_step);
        self.begin(now, true);
        self.in_step = true;
        let together = took <= TOGETHER;
        let quick = together || took.as_secs_f64() < QUICK_SHARE * cost.seconds(&work);
        if clean
            && in_step
            && quick
            && let Some(pending) = &mut self.pending
            && (together || pending.work.requests < TOGETHER_MAX)
        {
            pending.work += work;
            pending.took += took;
            return None;
        }
        if together {
            // Nobody answers at once: it belongs to a step that tells nothing.
            return self.pending.take();
        }
        std::mem::replace(&mut self.pending, clean.then_some(Observed { work, took }))
    }

    /// A request ends: failed, cancelled, or answered without a first token that was seen.
    pub fn gone(&mut self, ticket: Ticket, cost: &PrefillCost, now: Instant) {
        self.retire(cost, now);
        let Some(place) = self.place_of(ticket) else {
            self.running = self.running.saturating_sub(1);
            return;
        };
        self.remove(place);
        if place == 0 {
            self.begin(now, false);
        } else {
            // It may have had a part of the time.
            self.clean = false;
        }
    }

    /// A request never got to the worker. Returns its work, as far as it still stood here.
    pub fn take_back(&mut self, ticket: Ticket, now: Instant) -> Work {
        let Some(place) = self.place_of(ticket) else {
            self.running = self.running.saturating_sub(1);
            return Work::default();
        };
        if place == 0 {
            self.begin(now, false);
        }
        self.remove(place)
    }

    /// Work sent and not done, as far as answers tell.
    pub fn work(&self) -> Work {
        self.sum
    }

    /// Silent requests that are taken for prefilled, and run. Each ticket has one end: a first
    /// token, [`Self::gone`] or [`Self::take_back`].
    pub fn running(&self, cost: &PrefillCost, now: Instant) -> u32 {
        self.running.saturating_add(self.silent_done(cost, now).count() as u32)
    }

    /// Seconds until all of it is done, at `cost`.
    pub fn seconds(&self, cost: &PrefillCost, now: Instant) -> f64 {
        let mut served = self.served_s(now) - cost.seconds(&self.overtaken);
        let mut credit = 0.0;
        for item in &self.items {
            let whole = cost.seconds(&item.work);
            credit += served.clamp(0.0, whole);
            served -= whole;
            if !item.silent || served <= 0.0 {
                break;
            }
        }
        (cost.seconds(&self.sum) - credit).max(0.0)
    }

    /// Takes silent requests off that must be done by now: else a worker that has been idle since
    /// would seem to have served whoever comes next.
    fn retire(&mut self, cost: &PrefillCost, now: Instant) {
        for _ in 0..self.silent_done(cost, now).count() {
            let work = self.remove(0);
            self.running += 1;
            self.overtaken += work;
        }
    }

    /// The foremost, as far as they are silent and must be done.
    fn silent_done(&self, cost: &PrefillCost, now: Instant) -> impl Iterator<Item = &Item> {
        let (served, mut done) = (self.served_s(now), self.overtaken);
        self.items.iter().take_while(move |item| {
            done += item.work;
            item.silent && cost.seconds(&done) <= served
        })
    }

    fn served_s(&self, now: Instant) -> f64 {
        self.since.map_or(0.0, |since| now.saturating_duration_since(since).as_secs_f64())
    }

    fn begin(&mut self, now: Instant, clean: bool) {
        self.since = Some(now);
        self.overtaken = Work::default();
        self.clean = clean;
    }

    fn place_of(&self, ticket: Ticket) -> Option<usize> {
        self.items.binary_search_by_key(&ticket, |item| item.ticket).ok()
    }

    fn remove(&mut self, place: usize) -> Work {
        let work = self.items.remove(place).map(|item| item.work).unwrap_or_default();
        self.sum -= work;
        work
    }
}

#[cfg(test)]
#[path = "backlog_tests.rs"]
mod tests;
