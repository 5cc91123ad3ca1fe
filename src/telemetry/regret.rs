//! What decisions leave of the fleet's caches unused, and what a shadow policy would have done.
//!
//! Always on, so it has to be cheap: some additions a request, and no label but those of closed sets.

use std::sync::{LazyLock, OnceLock};

use prometheus::{
    Counter, CounterVec, IntCounter, IntCounterVec, register_counter_vec, register_int_counter_vec,
};

use crate::routing::{Comparison, Policy, Regret, SpillCause};

macro_rules! metrics {
    ($($(#[$doc:meta])* $name:ident : $ty:ty = $make:expr;)*) => {
        $($(#[$doc])* static $name: LazyLock<$ty> =
            LazyLock::new(|| $make.expect("metric names are unique and valid"));)*

        /// Makes every metric exist.
        pub(super) fn register() {
            $(LazyLock::force(&$name);)*
            LazyLock::force(&BELIEVED);
            LazyLock::force(&ANSWERED);
            LazyLock::force(&SPILLED);
        }
    };
}

metrics! {
    /// Prompt tokens.
    PROMPT_TOKENS: IntCounterVec = register_int_counter_vec!(
        "warmroute_regret_prompt_tokens_total",
        "Prompt tokens of requests sent to workers, as estimated (believed) or as answers say",
        &["basis"]);
    /// Held by the chosen.
    CHOSEN_TOKENS: IntCounterVec = register_int_counter_vec!(
        "warmroute_regret_chosen_tokens_total",
        "Those of them that the chosen worker was believed to hold, or said it held", &["basis"]);
    /// Held by the best.
    BEST_TOKENS: IntCounterVec = register_int_counter_vec!(
        "warmroute_regret_best_tokens_total",
        "Those of them that the eligible worker with the longest match was believed to hold",
        &["basis"]);
    /// Spills.
    SPILLS: IntCounterVec = register_int_counter_vec!(
        "warmroute_spills_total",
        "Requests sent past a longer match, by whether saturation or the policy was the cause",
        &["cause"]);
    /// Their price.
    SPILL_TOKENS: IntCounterVec = register_int_counter_vec!(
        "warmroute_spill_recomputed_tokens_total",
        "Prompt tokens prefilled again because of these", &["cause"]);
    /// Choices of the shadow.
    SHADOW_DECISIONS: IntCounterVec = register_int_counter_vec!(
        "warmroute_shadow_decisions_total",
        "Choices of the shadow policy: its reason, and whether it was the live choice too",
        &["policy", "reason", "choice"]);
    /// Prompt tokens it saw.
    SHADOW_PROMPT_TOKENS: IntCounterVec = register_int_counter_vec!(
        "warmroute_shadow_prompt_tokens_total",
        "Prompt tokens of the requests that the shadow policy chose for too", &["policy"]);
    /// Held where.
    SHADOW_CACHED_TOKENS: IntCounterVec = register_int_counter_vec!(
        "warmroute_shadow_cached_tokens_total",
        "Those of them that the live choice and the shadow's are believed to hold",
        &["policy", "by"]);
    /// Estimated times.
    SHADOW_SECONDS: CounterVec = register_counter_vec!(
        "warmroute_shadow_first_token_seconds_total",
        "Estimated time to the first token with the live choice and with the shadow's",
        &["policy", "by"]);
}

/// One basis: prompt, chosen, best.
type Tokens = [IntCounter; 3];

static BELIEVED: LazyLock<Tokens> = LazyLock::new(|| tokens("believed"));
static ANSWERED: LazyLock<Tokens> = LazyLock::new(|| tokens("answered"));

fn tokens(basis: &str) -> Tokens {
    [&PROMPT_TOKENS, &CHOSEN_TOKENS, &BEST_TOKENS].map(|vec| vec.with_label_values(&[basis]))
}

/// Count and tokens of the spills of a cause, by its place in `SpillCause::ALL`.
static SPILLED: LazyLock<[(IntCounter, IntCounter); 2]> = LazyLock::new(|| {
    SpillCause::ALL.map(|cause| {
        let label = &[cause.as_str()];
        (SPILLS.with_label_values(label), SPILL_TOKENS.with_label_values(label))
    })
});

fn count(counters: &Tokens, regret: &Regret) {
    let figures = [regret.prompt_tokens, regret.chosen_tokens, regret.best_tokens];
    for (counter, tokens) in counters.iter().zip(figures) {
        counter.inc_by(tokens);
    }
}

/// A request was sent as decided.
pub fn sent(regret: &Regret) {
    count(&BELIEVED, regret);
    if let Some(cause) = regret.spill {
        let (spills, tokens) = &SPILLED[cause as usize];
        spills.inc();
        tokens.inc_by(regret.recomputed_tokens());
    }
}

/// Its answer said what was cached.
pub fn answered(regret: &Regret) {
    count(&ANSWERED, regret);
}

/// The series of one shadow policy.
#[derive(Debug)]
struct ShadowSeries {
    prompt_tokens: IntCounter,
    /// Live, shadow.
    cached_tokens: [IntCounter; 2],
    /// Live, shadow.
    seconds: [Counter; 2],
}

impl ShadowSeries {
    fn of(policy: Policy) -> Self {
        let policy = policy.as_str();
        Self {
            prompt_tokens: SHADOW_PROMPT_TOKENS.with_label_values(&[policy]),
            cached_tokens: BY.map(|by| SHADOW_CACHED_TOKENS.with_label_values(&[policy, by])),
            seconds: BY.map(|by| SHADOW_SECONDS.with_label_values(&[policy, by])),
        }
    }
}

/// Values of the label `by`.
const BY: [&str; 2] = ["live", "shadow"];

/// By place in `Policy::ALL`; only of those that have been a shadow.
static SHADOWS: [OnceLock<ShadowSeries>; Policy::ALL.len()] =
    [const { OnceLock::new() }; Policy::ALL.len()];

/// A request was sent where the live policy chose, and the shadow `policy` had chosen too.
pub fn compared(policy: Policy, prompt_tokens: u64, comparison: &Comparison) {
    let Comparison { live, shadow } = comparison;
    let choice = if comparison.agrees() { "same" } else { "other" };
    let labels = &[policy.as_str(), shadow.reason.as_str(), choice];
    SHADOW_DECISIONS.with_label_values(labels).inc();
    let series = SHADOWS[policy as usize].get_or_init(|| ShadowSeries::of(policy));
    series.prompt_tokens.inc_by(prompt_tokens);
    for (at, estimate) in [live, shadow].into_iter().enumerate() {
        series.cached_tokens[at].inc_by(estimate.cached_tokens);
        series.seconds[at].inc_by(estimate.first_token_s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_and_policies_stand_at_their_places() {
        for (at, cause) in SpillCause::ALL.into_iter().enumerate() {
            assert_eq!(cause as usize, at);
        }
        for (at, policy) in Policy::ALL.into_iter().enumerate() {
            assert_eq!(policy as usize, at);
        }
    }
}
