//! What a pick is counted as once it stands, and the policy that picks beside the live one.
//!
//! A request is counted once, by the attempt whose worker got it: one that is repeated elsewhere is
//! struck, so that no token is seen twice.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{Fleet, Live, Member};
use crate::{
    routing::{self, Ask, Candidate, Comparison, Decision, Policy, PolicyParams, Regret, WorkerId},
    telemetry,
};

/// The state of the shadow policy: nothing of it is shared with the live one.
#[derive(Debug)]
pub(super) struct Shadow {
    /// Picks it made, for `round-robin`, and the seed of each.
    turn: AtomicU64,
    /// Makes these seeds other ones in every process.
    salt: u64,
}

impl Shadow {
    pub(super) fn new() -> Self {
        Self { turn: AtomicU64::new(0), salt: rand::rng().random() }
    }

    /// Lets `policy` pick too.
    fn compare(
        &self,
        policy: &(Policy, PolicyParams),
        question: &Ask,
        candidates: &[Candidate],
        live: &Decision,
    ) -> Option<Comparison> {
        let turn = self.turn.fetch_add(1, Relaxed);
        let mut rng = SmallRng::seed_from_u64(self.salt ^ turn);
        let question = Ask { turn, ..*question };
        routing::shadow::compare(policy, &question, candidates, live, &mut rng)
    }
}

/// What a pick is counted as.
#[derive(Debug)]
pub struct Account {
    /// What it left unused.
    pub regret: Regret,
    /// What the shadow policy would have done.
    pub shadow: Option<Shadowed>,
    /// Whether it has yet to be counted, and has not been struck.
    open: bool,
}

/// A choice of the shadow policy.
#[derive(Debug)]
pub struct Shadowed {
    /// The policy.
    pub policy: Policy,
    /// Whom it would have picked.
    pub worker: WorkerId,
    /// The figures.
    pub comparison: Comparison,
}

impl Account {
    /// The request was sent there: counted, if it has not been yet.
    pub fn count(&mut self) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        telemetry::regret::sent(&self.regret);
        if let Some(Shadowed { policy, comparison, .. }) = &self.shadow {
            telemetry::regret::compared(*policy, self.regret.prompt_tokens, comparison);
        }
    }

    /// The attempt is given up: what takes its place is counted.
    pub fn strike(&mut self) {
        self.open = false;
    }
}

impl Fleet {
    /// The account of `decision`; the shadow policy, if there is one, is asked for its choice.
    pub(super) fn account(
        &self,
        live: &Live,
        question: &Ask,
        candidates: &[Candidate],
        decision: &Decision,
        members: &[Arc<Member>],
    ) -> Account {
        let shadow = live.config.policies.shadow.as_ref().and_then(|policy| {
            let comparison = self.shadow.compare(policy, question, candidates, decision)?;
            let worker = members.get(comparison.shadow.slot)?.id().clone();
            Some(Shadowed { policy: policy.0, worker, comparison })
        });
        Account { regret: Regret::of(question, candidates, decision), shadow, open: true }
    }
}
