//! Why an answer came from where it came: a closed set, for a header, a metric label and the log.

use std::fmt;

/// Declares the enum, its names and its one-line explanations in one place, so that none can be
/// forgotten.
macro_rules! reasons {
    ($($variant:ident, $name:literal, $line:literal;)+) => {
        /// Why an answer came from where it came.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason {
            $(#[doc = $line] $variant,)+
        }

        impl Reason {
            /// Every reason, decisions first.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Its name in kebab-case: a header value and a metric label.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }

            /// One sentence for an operator.
            pub fn explain(self) -> &'static str {
                match self { $(Self::$variant => $line),+ }
            }
        }
    };
}

reasons! {
    Prefix, "prefix", "The worker holds the longest match there is.";
    Spill, "spill", "A longer match was passed over: too long a wait there, or saturated.";
    NoMatch, "no-match", "No worker holds any of the prompt: the one with the least work.";
    NoPrompt, "no-prompt", "The request has no prompt: the worker with the least work.";
    Unreadable, "unreadable", "The body could not be read: the worker with the least work.";
    RoundRobin, "round-robin", "The worker's turn.";
    Random, "random", "Drawn at random by weight.";
    LeastLoaded, "least-loaded", "The worker with the fewest requests for its weight.";
    PowerOfTwo, "power-of-two", "The one with fewer requests of two drawn at random.";
    Session, "session", "The session's own worker.";
    SessionSpill, "session-spill", "The session's worker is saturated: the next one.";
    PrefixHash, "prefix-hash", "The system prompt's own worker.";
    PrefixHashSpill, "prefix-hash-spill", "The system prompt's worker is full: the next in order.";
    Sticky, "sticky", "The least loaded of those that hold the longest match.";
    Weighted, "weighted", "The best sum of hit and idleness.";
    Retry, "retry", "A further attempt after a failed one.";
    Local, "local", "Answered by the router itself (health, list of models).";
    Shed, "shed", "Refused: every worker is saturated.";
    NoWorker, "no-worker", "Refused: no worker is available.";
    NoModel, "no-model", "Refused: nobody serves the model.";
    Rejected, "rejected", "Refused: a bad request, one too large, or a client too slow.";
    WorkerFailed, "worker-failed", "The worker failed and no other attempt was possible.";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_distinct_and_fit_for_labels_and_headers() {
        let names: HashSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
        for name in names {
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{name}");
        }
    }

    #[test]
    fn names_are_those_that_dashboards_use() {
        let names: Vec<_> = Reason::ALL.iter().map(ToString::to_string).collect();
        assert_eq!(
            names.join(" "),
            "prefix spill no-match no-prompt unreadable round-robin random least-loaded \
             power-of-two session session-spill prefix-hash prefix-hash-spill sticky weighted \
             retry local shed no-worker no-model rejected worker-failed"
        );
    }
}
