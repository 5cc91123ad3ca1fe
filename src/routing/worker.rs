//! A worker's name, and all that a decision may know of it.

use std::fmt;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use super::load::Load;
use super::pace::Forecast;

/// Longest name of a worker, in characters (all of them ASCII, so in bytes too). Generous for
/// `host:port` and pod names, small enough for a metric label.
pub const WORKER_ID_CHARS_MAX: usize = 128;

/// The name of a worker: 1 to 128 characters of `[A-Za-z0-9._:-]`.
///
/// It is sent as a header value and used as a metric label, so that neither needs escaping.
/// Cloning shares the text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(Arc<str>);

impl WorkerId {
    /// Checks and takes `id`.
    ///
    /// # Errors
    /// [`InvalidWorkerId`] when `id` is empty, too long or holds another character.
    pub fn try_new(id: &str) -> Result<Self, InvalidWorkerId> {
        if id.is_empty() {
            return Err(InvalidWorkerId::Empty);
        }
        // Before the length, so that a name in another script is told what is wrong with it.
        if let Some(found) = id.chars().find(|&c| !is_allowed(c)) {
            return Err(InvalidWorkerId::Character { found });
        }
        if id.len() > WORKER_ID_CHARS_MAX {
            return Err(InvalidWorkerId::TooLong { chars: id.len() });
        }
        Ok(Self(id.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The worker's place in every hash order: xxh3 of the name, without a secret, so that it is
    /// the same after a restart and in every router of a group.
    pub fn key(&self) -> u64 {
        xxh3_64(self.0.as_bytes())
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '-')
}

/// Why a text is no worker's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidWorkerId {
    /// Nothing there.
    #[error("a worker's id must not be empty")]
    Empty,
    /// Longer than [`WORKER_ID_CHARS_MAX`].
    #[error("a worker's id has {chars} characters: at most {WORKER_ID_CHARS_MAX} are allowed")]
    TooLong {
        /// Its length.
        chars: usize,
    },
    /// A character that would need escaping somewhere.
    #[error("a worker's id holds {found:?}: allowed are letters, digits and any of . _ : -")]
    Character {
        /// The first such character.
        found: char,
    },
}

/// All that a decision may know of a worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// The caller's index of the worker; comes back in the decision and means nothing here.
    pub slot: usize,
    /// [`WorkerId::key`], for the policies that hash.
    pub key: u64,
    /// How much of the work it should get, relative to the others; over 0. Anything else counts
    /// as 1.
    pub weight: f64,
    /// Leading blocks of the prompt that it holds, as far as we believe.
    pub matched_blocks: u32,
    /// What it has been given and has not finished.
    pub load: Load,
    /// Requests at which it is saturated.
    pub inflight_max: u32,
    /// Its work: what is before it, how fast it goes, what it gets.
    pub forecast: Forecast,
}

impl Candidate {
    /// The weight, made safe to divide by: one bad number must not blind every comparison.
    pub(crate) fn safe_weight(&self) -> f64 {
        positive_or(self.weight, 1.0)
    }

    /// Whether the valve is shut: see [`super::saturation`].
    pub(crate) fn is_saturated(&self) -> bool {
        super::saturation::is_saturated(&self.load, self.inflight_max)
    }
}

fn positive_or(value: f64, otherwise: f64) -> f64 {
    if value.is_normal() && value > 0.0 { value } else { otherwise }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_hosts_ports_and_pod_names() {
        for id in ["a", "10.0.0.1:8000", "vllm-0.vllm_svc", &"x".repeat(WORKER_ID_CHARS_MAX)] {
            assert_eq!(WorkerId::try_new(id).unwrap().as_str(), id);
        }
    }

    #[test]
    fn refuses_what_a_header_or_a_label_would_have_to_escape() {
        assert_eq!(WorkerId::try_new(""), Err(InvalidWorkerId::Empty));
        let long = "x".repeat(WORKER_ID_CHARS_MAX + 1);
        assert_eq!(WorkerId::try_new(&long), Err(InvalidWorkerId::TooLong { chars: 129 }));
        for (id, found) in [
            ("a b", ' '),
            ("a\n", '\n'),
            ("a/b", '/'),
            ("\"", '"'),
            ("wörker", 'ö'),
            ("[::1]", '['),
        ] {
            assert_eq!(WorkerId::try_new(id), Err(InvalidWorkerId::Character { found }), "{id:?}");
        }
    }

    #[test]
    fn key_is_the_published_hash_of_the_name() {
        let key = |id| WorkerId::try_new(id).unwrap().key();
        assert_eq!(key("worker-0"), xxh3_64(b"worker-0"));
        assert_ne!(key("worker-0"), key("worker-1"));
    }

    #[test]
    fn bad_numbers_count_as_the_neutral_ones() {
        let mut candidate = Candidate {
            slot: 0,
            key: 0,
            weight: 2.0,
            matched_blocks: 0,
            load: Load::default(),
            inflight_max: 1,
            forecast: Forecast::default(),
        };
        assert!((candidate.safe_weight() - 2.0).abs() < 1e-9);
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            candidate.weight = bad;
            assert!((candidate.safe_weight() - 1.0).abs() < 1e-9, "{bad}");
        }
    }
}
