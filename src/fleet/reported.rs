//! What a worker has said of itself: where its reports stand, and its load.

use std::time::Instant;

use serde::Serialize;

/// State of one worker's reports.
#[derive(Debug, Default, Clone)]
pub struct Reported {
    /// Life of the engine process, as last seen.
    pub epoch: Option<String>,
    /// Number of the next batch; `None` before the first of the epoch.
    pub next_seq: Option<u64>,
    /// Last heartbeat or batch.
    pub at: Option<Instant>,
    /// Gaps seen in this epoch.
    pub gaps: u64,
    /// The last heartbeat's figures.
    pub said: Said,
    /// Requests the worker had beyond ours, at its last two heartbeats.
    pub excess: [u32; 2],
}

/// Figures of a heartbeat.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Said {
    /// Requests in hand, by the worker's count (those of other routers too).
    pub current_load: u32,
    /// KV cache, blocks.
    pub kv_blocks_total: Option<u64>,
    /// KV cache in use, blocks.
    pub kv_blocks_used: Option<u64>,
    /// The model it named.
    pub model: Option<String>,
}

/// What the number of a batch says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sequence {
    /// The next one.
    Next,
    /// Seen before: to be ignored.
    Repeat,
    /// Some are missing before it.
    Gap {
        /// The number that was due.
        expected: u64,
    },
}

impl Reported {
    /// Requests in the worker's hands that are not ours. The smaller of two heartbeats': a request
    /// that ends between the worker's count and ours is no stranger's.
    pub fn foreign(&mut self, current_load: u32, ours: u32) -> u32 {
        self.excess = [self.excess[1], current_load.saturating_sub(ours)];
        self.excess[0].min(self.excess[1])
    }

    /// Enters `epoch`; true when it is a new life of a worker we knew.
    pub fn enter_epoch(&mut self, epoch: &str) -> bool {
        if self.epoch.as_deref() == Some(epoch) {
            return false;
        }
        let restarted = self.epoch.replace(epoch.to_owned()).is_some();
        self.next_seq = None;
        self.gaps = 0;
        restarted
    }

    /// Takes the number of a batch of the present epoch. The first batch we ever see must be
    /// number 0 or 1; a later one means that we missed the beginning.
    pub fn take_seq(&mut self, seq: u64) -> Sequence {
        let verdict = match self.next_seq {
            None if seq <= 1 => Sequence::Next,
            None => Sequence::Gap { expected: 1 },
            Some(next) if seq < next => return Sequence::Repeat,
            Some(next) if seq == next => Sequence::Next,
            Some(expected) => Sequence::Gap { expected },
        };
        self.next_seq = Some(seq.saturating_add(1));
        if matches!(verdict, Sequence::Gap { .. }) {
            self.gaps += 1;
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_tell_repeats_and_gaps() {
        let mut reported = Reported::default();
        assert!(!reported.enter_epoch("a"));
        assert_eq!(reported.take_seq(1), Sequence::Next);
        assert_eq!(reported.take_seq(1), Sequence::Repeat);
        assert_eq!(reported.take_seq(2), Sequence::Next);
        assert_eq!(reported.take_seq(5), Sequence::Gap { expected: 3 });
        assert_eq!(reported.take_seq(4), Sequence::Repeat);
        assert_eq!(reported.take_seq(6), Sequence::Next);
        assert!(!reported.enter_epoch("a"));
        assert!(reported.enter_epoch("b"));
        assert_eq!(reported.take_seq(0), Sequence::Next);
        assert_eq!(reported.take_seq(1), Sequence::Next);
    }

    #[test]
    fn only_lasting_excess_is_foreign() {
        let mut reported = Reported::default();
        assert_eq!(reported.foreign(5, 2), 0);
        assert_eq!(reported.foreign(4, 2), 2);
        assert_eq!(reported.foreign(1, 2), 0);
    }

    #[test]
    fn joining_in_the_middle_is_a_gap() {
        let mut reported = Reported::default();
        reported.enter_epoch("a");
        assert_eq!(reported.take_seq(57), Sequence::Gap { expected: 1 });
        assert_eq!(reported.take_seq(u64::MAX), Sequence::Gap { expected: 58 });
    }
}
