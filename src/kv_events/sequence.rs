//! Which batch of a publisher comes next.
//!
//! A publisher numbers its batches from 0 in each life of the engine; ZMQ keeps their order on one
//! connection but may drop some. What can be told apart from the numbers, and from the content of
//! the last batch, is decided here; asking for what is missing is the source's work.

use xxhash_rust::xxh3::xxh3_64;

/// Recognises a batch when it comes again. Batches begin with the time, so no two are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Print(u64);

impl Print {
    /// Of a batch's payload.
    pub fn of(payload: &[u8]) -> Self {
        Self(xxh3_64(payload))
    }

    /// As a number, to be kept.
    pub fn to_u64(self) -> u64 {
        self.0
    }

    /// From a number that was kept.
    pub fn from_u64(kept: u64) -> Self {
        Self(kept)
    }
}

/// How far a publisher has been followed: what another process goes on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The batch that comes next.
    pub next: u64,
    /// What the batch before it was, if we saw it.
    pub last: Option<Print>,
    /// Whether every batch of this life of the engine was seen.
    pub complete: bool,
}

/// What a batch is to those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The next one.
    Next,
    /// One we have.
    Repeat,
    /// Some before it are missing.
    Gap {
        /// The first of them.
        expected: u64,
    },
    /// The engine counts anew: it restarted.
    Restart,
}

/// How far one publisher has been followed.
#[derive(Debug, Clone, Default)]
pub struct Sequence {
    /// The batch that comes next, once one is known.
    next: Option<u64>,
    /// What the batch before `next` was, if we saw it.
    last: Option<Print>,
    /// The last batch published on this connection.
    heard: Option<(u64, Print)>,
    /// Whether batches were replayed since this connection began: then older ones may still be
    /// in flight on it.
    replayed: bool,
}

impl Sequence {
    /// Goes on from where another process, or another task of this one, stopped.
    pub fn resume(position: &Position) -> Self {
        Self { next: Some(position.next), last: position.last, ..Self::default() }
    }

    /// The batch that comes next; `None` before anything is known.
    pub fn next(&self) -> Option<u64> {
        self.next
    }

    /// The last batch we have and what it was like.
    pub fn last(&self) -> Option<(u64, Print)> {
        Some((self.next?.checked_sub(1)?, self.last?))
    }

    /// Judges a batch that was published; changes nothing but what was heard.
    pub fn published(&mut self, seq: u64, print: Print) -> Step {
        let heard = self.heard.replace((seq, print));
        if heard == Some((seq, print)) {
            return Step::Repeat;
        }
        let expected = self.next.unwrap_or(0);
        if heard.is_some_and(|(before, _)| seq <= before) {
            // In order on one connection, so nothing else can make them fall.
            return Step::Restart;
        }
        match seq.cmp(&expected) {
            std::cmp::Ordering::Equal => Step::Next,
            std::cmp::Ordering::Greater => Step::Gap { expected },
            std::cmp::Ordering::Less if self.last() == Some((seq, print)) => Step::Repeat,
            std::cmp::Ordering::Less if self.replayed => Step::Repeat,
            // Only new batches are published, and an engine that lives has none below ours.
            std::cmp::Ordering::Less => Step::Restart,
        }
    }

    /// A batch was taken, published or replayed.
    pub fn took(&mut self, seq: u64, print: Print) {
        self.next = Some(seq.saturating_add(1));
        self.last = Some(print);
    }

    /// Nothing was published yet.
    pub fn starts(&mut self) {
        self.next = self.next.or(Some(0));
    }

    /// The batches from here on were asked for again.
    pub fn replays(&mut self) {
        self.replayed = true;
    }

    /// Another connection to, as far as is known, the same engine.
    pub fn reconnected(&mut self) {
        self.heard = None;
        self.replayed = false;
    }

    /// The engine restarted: it counts from 0, on this connection.
    pub fn restarted(&mut self) {
        let heard = self.heard;
        *self = Self { heard, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn print(life: u64, seq: u64) -> Print {
        Print::of(&[life.to_be_bytes(), seq.to_be_bytes()].concat())
    }

    #[test]
    fn a_new_connection_to_the_same_engine_goes_on() {
        let mut sequence = Sequence::default();
        for seq in 0..3 {
            assert_eq!(sequence.published(seq, print(1, seq)), Step::Next);
            sequence.took(seq, print(1, seq));
        }
        sequence.reconnected();
        assert_eq!(sequence.last(), Some((2, print(1, 2))));
        assert_eq!(sequence.published(3, print(1, 3)), Step::Next);
    }

    #[test]
    fn what_was_replayed_is_not_a_restart_when_it_arrives_again() {
        let mut sequence = Sequence::default();
        sequence.replays();
        for seq in 0..5 {
            sequence.took(seq, print(1, seq));
        }
        assert_eq!(sequence.published(3, print(1, 3)), Step::Repeat);
        assert_eq!(sequence.published(4, print(1, 4)), Step::Repeat);
        assert_eq!(sequence.published(5, print(1, 5)), Step::Next);
    }

    #[test]
    fn numbers_that_fall_mean_a_restart() {
        let mut sequence = Sequence::default();
        for seq in 0..5 {
            sequence.published(seq, print(1, seq));
            sequence.took(seq, print(1, seq));
        }
        assert_eq!(sequence.published(4, print(1, 4)), Step::Repeat);
        assert_eq!(sequence.published(4, print(2, 4)), Step::Restart);
        assert_eq!(sequence.published(0, print(2, 0)), Step::Restart);
        sequence.restarted();
        assert_eq!(sequence.next(), None);
        // The batch that showed it is judged again by the caller, as the first of a new life.
        assert_eq!(sequence.published(1, print(2, 1)), Step::Gap { expected: 0 });
    }

    #[test]
    fn a_first_batch_in_the_middle_is_a_gap_from_0() {
        assert_eq!(Sequence::default().published(7, print(1, 7)), Step::Gap { expected: 0 });
    }

    #[test]
    fn a_lower_number_on_a_fresh_connection_is_a_restart_unless_replayed() {
        let mut sequence = Sequence::default();
        sequence.took(10, print(1, 10));
        sequence.reconnected();
        assert_eq!(sequence.published(3, print(2, 3)), Step::Restart);
    }

    proptest! {
        /// A publisher with drops, repeats after replays, reconnections and restarts, against
        /// what really happened.
        #[test]
        fn follows_any_publisher(script in proptest::collection::vec(0..10_u8, 1..200)) {
            let mut sequence = Sequence::default();
            let (mut life, mut at) = (0_u64, 0_u64);
            for act in script {
                match act {
                    // Batches are dropped.
                    0 => at += 3,
                    // The engine restarts. Nothing tells it from a loss before it falls behind
                    // what we have, so let it be found at its first batch.
                    1 => {
                        let had = sequence.next().unwrap_or(0);
                        (life, at) = (life + 1, 0);
                        sequence.reconnected();
                        let step = sequence.published(0, print(life, 0));
                        if had == 0 {
                            prop_assert_eq!(step, Step::Next);
                        } else {
                            prop_assert_eq!(step, Step::Restart);
                            sequence.restarted();
                        }
                        sequence.took(0, print(life, 0));
                        at += 1;
                    }
                    2 => sequence.reconnected(),
                    // A replay runs ahead of what is in flight.
                    3 => {
                        sequence.reconnected();
                        sequence.replays();
                        for seq in sequence.next().unwrap_or(0)..at + 4 {
                            sequence.took(seq, print(life, seq));
                        }
                        for seq in at..at + 4 {
                            prop_assert_eq!(sequence.published(seq, print(life, seq)), Step::Repeat);
                        }
                        at += 4;
                    }
                    _ => {
                        let expected = sequence.next().unwrap_or(0);
                        let step = sequence.published(at, print(life, at));
                        let wanted =
                            if at == expected { Step::Next } else { Step::Gap { expected } };
                        prop_assert_eq!(step, wanted);
                        sequence.took(at, print(life, at));
                        at += 1;
                    }
                }
            }
        }
    }
}
