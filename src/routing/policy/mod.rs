//! Picks the worker for a request.
//!
//! [`pick`] shows every outcome on one screen; the helpers only compute. Three rules hold for all
//! policies: a saturated worker is never chosen while another has room, candidates that are equal
//! are drawn at random (a deterministic tie sends the whole fleet's traffic to the first of the
//! list), and nothing is normalised over the candidates at hand (min-max scores turn a difference
//! of one request into all or nothing).
//!
//! No policy allocates. Most go through the candidates two or three times, which takes a few
//! hundred nanoseconds for eight workers and up to some 40 microseconds for a thousand.

mod affinity;
mod balance;
mod params;
mod priced;
mod reason;
#[cfg(test)]
mod simulation;
#[cfg(test)]
pub(super) mod tests;

use std::fmt;
use std::str::FromStr;

use rand::Rng;

use super::worker::Candidate;

pub use params::{PolicyParams, PolicySettings};
pub use priced::estimated_seconds;
pub use reason::Reason;

/// How to pick.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Policy {
    /// Least estimated time to first token: work queued at the worker plus what it does not hold
    /// of the prompt, at its rate.
    #[default]
    PrefixAware,
    /// Each in turn, in proportion to weight.
    RoundRobin,
    /// At random, in proportion to weight.
    Random,
    /// Fewest requests for its weight.
    LeastLoaded,
    /// Fewer requests for its weight of two drawn at random (Mitzenmacher 2001).
    PowerOfTwo,
    /// The worker that the session hashes to.
    SessionAffinity,
    /// The worker that the system prompt hashes to, with bounded loads.
    PrefixAffinity,
    /// Least loaded of those that hold the longest match.
    StickyLeastLoaded,
    /// A weighted sum of hit and idleness.
    Weighted,
}

impl Policy {
    /// Every policy, the default first.
    pub const ALL: [Self; 9] = [
        Self::PrefixAware,
        Self::RoundRobin,
        Self::Random,
        Self::LeastLoaded,
        Self::PowerOfTwo,
        Self::SessionAffinity,
        Self::PrefixAffinity,
        Self::StickyLeastLoaded,
        Self::Weighted,
    ];

    /// The names by which configuration knows them, in the order of [`Policy::ALL`].
    pub const NAMES: [&'static str; 9] = [
        "prefix-aware",
        "round-robin",
        "random",
        "least-loaded",
        "power-of-two",
        "session-affinity",
        "prefix-affinity",
        "sticky-least-loaded",
        "weighted",
    ];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        // The declaration, `ALL` and `NAMES` keep one order; a test holds them to it.
        Self::NAMES[self as usize]
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// No policy has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no policy {name:?}: use one of {}", Policy::NAMES.join(", "))]
pub struct UnknownPolicy {
    /// The name asked for.
    pub name: String,
}

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        let found = Self::ALL.into_iter().find(|policy| policy.as_str() == name);
        found.ok_or_else(|| UnknownPolicy { name: name.to_owned() })
    }
}

/// What is known of the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PromptKind {
    /// It was read: `blocks` and the candidates' matches mean something.
    #[default]
    Prompt,
    /// The request has none.
    NoPrompt,
    /// The body could not be read.
    Unreadable,
}

/// All that a decision may know of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ask {
    /// Whether there is a prompt to match. If not, matches count as 0.
    pub kind: PromptKind,
    /// Blocks of the prompt.
    pub blocks: u32,
    /// Estimated tokens of the prompt; for one that could not be read, from the body's length.
    pub tokens: u64,
    /// Hash of what names the session, if the request does.
    pub session: Option<u64>,
    /// Hash of the system prompt, if there is one.
    pub prefix: Option<u64>,
    /// The caller's count of picks, for `round-robin`; it may wrap.
    pub turn: u64,
    /// Whether an attempt at another worker has failed before.
    pub retry: bool,
}

impl Ask {
    /// Leading blocks of this prompt that `candidate` holds: never more than the prompt has.
    pub(super) fn matched(&self, candidate: &Candidate) -> u32 {
        match self.kind {
            PromptKind::Prompt => candidate.matched_blocks.min(self.blocks),
            PromptKind::NoPrompt | PromptKind::Unreadable => 0,
        }
    }

    /// Share of this prompt that `candidate` holds, 0 to 1.
    fn matched_share(&self, candidate: &Candidate) -> f64 {
        if self.blocks == 0 {
            return 0.0;
        }
        f64::from(self.matched(candidate)) / f64::from(self.blocks)
    }
}

/// The result of a pick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// [`Candidate::slot`] of the chosen worker.
    pub slot: usize,
    /// Why this one.
    pub reason: Reason,
    /// Leading blocks of the prompt that the chosen worker holds.
    pub matched_blocks: u32,
    /// The most that any candidate holds, saturated ones too.
    pub best_matched_blocks: u32,
}

/// Why nobody was picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Shed {
    /// There are candidates and all are saturated.
    #[error("every worker is saturated")]
    Saturated,
    /// There is no candidate.
    #[error("no worker is available")]
    NoCandidate,
}

impl Shed {
    /// The reason to answer with.
    pub fn reason(self) -> Reason {
        match self {
            Self::Saturated => Reason::Shed,
            Self::NoCandidate => Reason::NoWorker,
        }
    }
}

/// What a policy chooses from: a request and candidates of which at least one has room.
struct Choice<'a> {
    ask: &'a Ask,
    /// All, saturated ones too.
    candidates: &'a [Candidate],
    /// The most blocks that any of `candidates` holds.
    best_matched: u32,
}

impl<'a> Choice<'a> {
    fn new(ask: &'a Ask, candidates: &'a [Candidate]) -> Self {
        let best_matched = candidates.iter().map(|c| ask.matched(c)).max().unwrap_or(0);
        Self { ask, candidates, best_matched }
    }

    /// The candidates with room: never none.
    fn open(&self) -> impl Iterator<Item = &'a Candidate> + Clone + use<'a> {
        self.candidates.iter().filter(|candidate| !candidate.is_saturated())
    }
}

/// Picks one of `candidates` for `ask`. The same arguments and random numbers give the same
/// decision.
///
/// # Errors
/// [`Shed::NoCandidate`] without candidates, [`Shed::Saturated`] when all are saturated.
pub fn pick(
    policy: Policy,
    params: &PolicyParams,
    ask: &Ask,
    candidates: &[Candidate],
    rng: &mut (impl Rng + ?Sized),
) -> Result<Decision, Shed> {
    if candidates.is_empty() {
        return Err(Shed::NoCandidate);
    }
    if candidates.iter().all(Candidate::is_saturated) {
        return Err(Shed::Saturated);
    }
    let choice = Choice::new(ask, candidates);
    let (chosen, reason) = match policy {
        Policy::PrefixAware => priced::prefix_aware(params, &choice, rng),
        Policy::RoundRobin => (balance::in_turn(&choice), Reason::RoundRobin),
        Policy::Random => (balance::by_weight(choice.open(), rng), Reason::Random),
        Policy::LeastLoaded => (balance::least_loaded(choice.open(), rng), Reason::LeastLoaded),
        Policy::PowerOfTwo => (balance::power_of_two(&choice, rng), Reason::PowerOfTwo),
        Policy::SessionAffinity => affinity::session(&choice, rng),
        Policy::PrefixAffinity => affinity::prefix_hash(params, &choice, rng),
        Policy::StickyLeastLoaded => affinity::sticky(&choice, rng),
        Policy::Weighted => (affinity::weighted(params, &choice, rng), Reason::Weighted),
    };
    Ok(Decision {
        slot: chosen.slot,
        reason: if ask.retry { Reason::Retry } else { reason },
        matched_blocks: ask.matched(chosen),
        best_matched_blocks: choice.best_matched,
    })
}
