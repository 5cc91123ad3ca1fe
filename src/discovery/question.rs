//! One question to the DNS: which records are believed, and when to ask again.
//!
//! Pure: answers, the time and jitter are arguments. An answer with records is believed at once. None
//! is believed less: no answer (a time-out, SERVFAIL) never takes records away, and an empty one
//! (NXDOMAIN, no records) only when it was repeated for a while. Patience costs nothing, as health
//! checks take dead workers out of the traffic; a name server that starts empty would cost the fleet.

use std::time::{Duration, Instant};

/// Empty answers in a row before one is believed, however long they took.
pub const EMPTY_ANSWERS_MIN: u32 = 3;
/// Most records kept of one answer.
pub const RECORDS_MAX: usize = 1024;
/// Share of a wait that jitter may add, so that a group of routers does not ask in step.
const JITTER_SHARE: f64 = 0.1;

/// How often to ask, and how long an empty answer is doubted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Shortest wait, whatever the TTL; over 0.
    pub interval_min: Duration,
    /// Longest wait (jitter aside).
    pub interval_max: Duration,
    /// Empty answers must go on for this long before they are believed.
    pub empty_grace: Duration,
}

/// What came of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply<T> {
    /// Records, in any order and perhaps repeated, and for how long they hold.
    Records(Vec<T>, Duration),
    /// There is no such name, or it has no such record; the negative TTL where it was said.
    Empty(Option<Duration>),
    /// No answer, or one that says nothing of the name; why, in short.
    Failed(String),
}

/// What a reply changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// The records believed are others than before.
    pub changed: bool,
    /// When to ask again, from now.
    pub wait: Duration,
    /// Records left out, as an answer had more than [`RECORDS_MAX`].
    pub left_out: usize,
}

/// The state of a question.
#[derive(Debug, Clone)]
pub struct Question<T> {
    known: Vec<T>,
    replied: bool,
    /// Replies in a row that said nothing for how long they hold.
    lost_in_row: u32,
    /// Since when answers are empty, and how many were.
    empty: Option<(Instant, u32)>,
    good_at: Option<Instant>,
}

impl<T> Default for Question<T> {
    fn default() -> Self {
        Self { known: Vec::new(), replied: false, lost_in_row: 0, empty: None, good_at: None }
    }
}

impl<T: Ord + Clone> Question<T> {
    /// The records believed, sorted, each once.
    pub fn known(&self) -> &[T] {
        &self.known
    }

    /// Whether there was any reply, good or bad.
    pub fn replied(&self) -> bool {
        self.replied
    }

    /// When the last reply came that was believed.
    pub fn good_at(&self) -> Option<Instant> {
        self.good_at
    }

    /// Takes in a reply. `jitter` is random in 0..1.
    pub fn on_reply(&mut self, reply: Reply<T>, now: Instant, jitter: f64, pace: &Pace) -> Step {
        self.replied = true;
        let (changed, left_out, wait) = match reply {
            Reply::Records(records, ttl) if !records.is_empty() => {
                self.lost_in_row = 0;
                self.empty = None;
                self.good_at = Some(now);
                let (changed, left_out) = self.believe(records);
                (changed, left_out, ttl)
            }
            Reply::Records(_, ttl) => {
                let (changed, wait) = self.on_empty(Some(ttl), now, pace);
                (changed, 0, wait)
            }
            Reply::Empty(ttl) => {
                let (changed, wait) = self.on_empty(ttl, now, pace);
                (changed, 0, wait)
            }
            Reply::Failed(_) => (false, 0, self.back_off(pace)),
        };
        let wait = wait.clamp(pace.interval_min, pace.interval_max.max(pace.interval_min));
        Step { changed, left_out, wait: wait.mul_f64(1.0 + JITTER_SHARE * jitter.clamp(0.0, 1.0)) }
    }

    fn believe(&mut self, mut records: Vec<T>) -> (bool, usize) {
        records.sort_unstable();
        records.dedup();
        let left_out = records.len().saturating_sub(RECORDS_MAX);
        if left_out > 0 {
            // Those we know first: which ones are left out must not change with every answer.
            records.sort_by_key(|record| self.known.binary_search(record).is_err());
            records.truncate(RECORDS_MAX);
            records.sort_unstable();
        }
        let changed = records != self.known;
        self.known = records;
        (changed, left_out)
    }

    fn on_empty(&mut self, ttl: Option<Duration>, now: Instant, pace: &Pace) -> (bool, Duration) {
        if self.known.is_empty() {
            self.good_at = Some(now);
            return (false, ttl.unwrap_or_else(|| self.back_off(pace)));
        }
        let (since, before) = self.empty.unwrap_or((now, 0));
        let count = before.saturating_add(1);
        let elapsed = now.saturating_duration_since(since);
        if count < EMPTY_ANSWERS_MIN || elapsed < pace.empty_grace {
            self.empty = Some((since, count));
            return (false, pace.empty_grace / EMPTY_ANSWERS_MIN);
        }
        self.empty = None;
        self.lost_in_row = 0;
        self.good_at = Some(now);
        self.known.clear();
        (true, ttl.unwrap_or(pace.interval_min))
    }

    /// Doubles from the shortest wait on.
    fn back_off(&mut self, pace: &Pace) -> Duration {
        let wait = pace.interval_min.saturating_mul(1 << self.lost_in_row.min(16));
        self.lost_in_row = self.lost_in_row.saturating_add(1);
        wait
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PACE: Pace = Pace {
        interval_min: Duration::from_secs(1),
        interval_max: Duration::from_mins(1),
        empty_grace: Duration::from_secs(30),
    };

    fn t0() -> Instant {
        crate::clock::now()
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn records(records: &[u32], ttl: u64) -> Reply<u32> {
        Reply::Records(records.to_vec(), s(ttl))
    }

    fn lost() -> Reply<u32> {
        Reply::Failed("SERVFAIL".to_owned())
    }

    #[test]
    fn asks_again_when_the_ttl_has_passed_within_the_bounds() {
        for (ttl, wait) in [(0, 1), (1, 1), (7, 7), (60, 60), (86_400, 60)] {
            let mut question = Question::default();
            let step = question.on_reply(records(&[1], ttl), t0(), 0.0, &PACE);
            assert_eq!(step.wait, s(wait), "{ttl}");
            let step = question.on_reply(records(&[1], ttl), t0(), 1.0, &PACE);
            assert_eq!(step.wait, s(wait).mul_f64(1.1), "{ttl}");
        }
    }

    #[test]
    fn order_and_repeats_do_not_matter() {
        let mut question = Question::default();
        assert!(question.on_reply(records(&[3, 1, 3, 2], 5), t0(), 0.0, &PACE).changed);
        assert!(!question.on_reply(records(&[2, 3, 1, 1], 5), t0(), 0.0, &PACE).changed);
        assert_eq!(question.known(), [1, 2, 3]);
        assert!(question.on_reply(records(&[2, 1], 5), t0(), 0.0, &PACE).changed);
        assert_eq!(question.known(), [1, 2]);
    }

    #[test]
    fn failures_keep_what_is_known_and_back_off() {
        let mut question = Question::default();
        question.on_reply(records(&[1], 5), t0(), 0.0, &PACE);
        let good = question.good_at();
        let waits: Vec<_> =
            (0..8).map(|_| question.on_reply(lost(), t0() + s(9), 0.0, &PACE).wait).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60].map(s));
        assert_eq!((question.known(), question.good_at()), (&[1][..], good));
        question.on_reply(records(&[1], 5), t0(), 0.0, &PACE);
        assert_eq!(question.on_reply(lost(), t0(), 0.0, &PACE).wait, s(1));
    }

    #[test]
    fn empty_answers_are_believed_only_after_the_grace_and_three_in_a_row() {
        let now = t0();
        let mut question = Question::default();
        question.on_reply(records(&[1], 5), now, 0.0, &PACE);
        let mut at = now + s(5);
        let mut empties = 0;
        loop {
            let step = question.on_reply(Reply::Empty(Some(s(300))), at, 0.0, &PACE);
            empties += 1;
            if step.changed {
                break;
            }
            assert_eq!(question.known(), [1]);
            assert_eq!(step.wait, s(10), "a third of the grace, not the negative TTL");
            at += step.wait;
        }
        assert_eq!((empties, at - now), (4, s(35)));
        assert!(question.known().is_empty());

        // Much later, but only two of them.
        question.on_reply(records(&[1], 5), at, 0.0, &PACE);
        question.on_reply(Reply::Empty(None), at, 0.0, &PACE);
        assert!(!question.on_reply(Reply::Empty(None), at + s(900), 0.0, &PACE).changed);
        assert!(question.on_reply(Reply::Records(vec![], s(1)), at + s(901), 0.0, &PACE).changed);
    }

    #[test]
    fn records_end_the_doubt_and_failures_do_not_add_to_it() {
        let now = t0();
        let mut question = Question::default();
        question.on_reply(records(&[1], 5), now, 0.0, &PACE);
        for nth in 0..50 {
            question.on_reply(Reply::Empty(None), now + s(nth), 0.0, &PACE);
            question.on_reply(records(&[1], 5), now + s(nth), 0.0, &PACE);
        }
        question.on_reply(Reply::Empty(None), now + s(100), 0.0, &PACE);
        for nth in 0..50 {
            question.on_reply(lost(), now + s(200 + nth), 0.0, &PACE);
        }
        assert_eq!(question.known(), [1], "one empty answer is not three");
    }

    #[test]
    fn a_name_that_is_not_there_yet_is_asked_for_again() {
        let mut question = Question::<u32>::default();
        assert!(!question.replied());
        let wait = |question: &mut Question<u32>, ttl: Option<u64>| {
            question.on_reply(Reply::Empty(ttl.map(s)), t0(), 0.0, &PACE).wait
        };
        assert_eq!(wait(&mut question, None), s(1));
        assert_eq!(wait(&mut question, None), s(2));
        assert_eq!(wait(&mut question, Some(20)), s(20));
        assert_eq!(wait(&mut question, Some(900)), s(60));
        assert!(question.replied());
    }

    #[test]
    fn a_huge_answer_is_cut_and_the_cut_is_stable() {
        let max = RECORDS_MAX as u32;
        let mut question = Question::default();
        let all: Vec<_> = (max..3 * max).collect();
        let step = question.on_reply(records(&all, 5), t0(), 0.0, &PACE);
        assert_eq!((step.left_out, question.known().len()), (RECORDS_MAX, RECORDS_MAX));
        let more: Vec<_> = (0..3 * max).rev().collect();
        assert!(!question.on_reply(records(&more, 5), t0(), 0.0, &PACE).changed);
    }

    fn any_reply() -> impl Strategy<Value = Reply<u32>> {
        prop_oneof![
            (prop::collection::vec(0_u32..6, 0..8), 0_u64..200)
                .prop_map(|(records, ttl)| Reply::Records(records, s(ttl))),
            prop::option::of(0_u64..1000).prop_map(|ttl| Reply::Empty(ttl.map(s))),
            Just(lost()),
        ]
    }

    proptest! {
        /// Against a model that knows all replies: what is known is the last answer with records,
        /// or nothing once empty ones went on for long enough after it.
        #[test]
        fn known_is_the_last_answer_unless_empty_ones_went_on(
            replies in prop::collection::vec((any_reply(), 0_u64..40, 0.0_f64..1.0), 1..60),
        ) {
            let mut question = Question::default();
            let mut now = t0();
            let (mut model, mut empties): (Vec<u32>, Vec<Instant>) = (Vec::new(), Vec::new());
            for (reply, gap, jitter) in replies {
                now += s(gap);
                let before = question.known().to_vec();
                match &reply {
                    Reply::Records(records, _) if !records.is_empty() => {
                        model.clone_from(records);
                        model.sort_unstable();
                        model.dedup();
                        empties.clear();
                    }
                    Reply::Failed(_) => {}
                    _ => {
                        empties.push(now);
                        if model.is_empty() {
                            empties.clear();
                        } else if empties.len() >= 3 && now - empties[0] >= PACE.empty_grace {
                            model.clear();
                            empties.clear();
                        }
                    }
                }
                let step = question.on_reply(reply, now, jitter, &PACE);
                prop_assert_eq!(question.known(), &model[..]);
                prop_assert_eq!(step.changed, before != model);
                prop_assert!(step.wait >= PACE.interval_min);
                prop_assert!(step.wait <= PACE.interval_max.mul_f64(1.1));
            }
        }
    }
}
