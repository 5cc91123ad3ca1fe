//! The decisions, kept pure: no I/O, async, locks, atomics, clock, random source, logs or metrics.
//!
//! Everything here is a function of its arguments. Time arrives as an `Instant`, randomness as an
//! `Rng`, and what happened goes back as a value (`Decision`, `Transition`) that the shell turns
//! into headers, metrics and log lines. That is what lets the tests replay any history in virtual
//! time; the alternative, decisions that read shared state themselves, can be tested only by
//! running the proxy.
//!
//! * [`block`] cuts a prompt into blocks, [`prefix`] remembers which worker should hold which.
//! * [`worker`] and [`load`] are what a decision may know of a worker.
//! * [`policy`] picks one; [`saturation`] is its last fence, which [`limit`] places; [`consistent`] its
//!   hash order.
//! * [`breaker`] (with [`window`]) takes failing workers out of the candidates for a while.
//! * [`ramp`] lets a worker that comes to others that serve begin with a part of its share.
//! * [`pace`] keeps what a worker has to prefill ([`backlog`]), learns what that costs
//!   ([`prefill`], relied on as there is [`evidence`]) and what it has been getting ([`traffic`]);
//!   [`capacity`] learns how much its cache holds.
//! * [`regret`] says what a decision left unused, [`shadow`] what another policy would have done.
//! * [`trust`] says how far to believe what we know of a worker's cache.
//!
//! What is learned can be told as an *image* (content, with ages in place of instants) and gone on
//! with by another process: see [`prefix::image`].

pub mod backlog;
pub mod block;
pub mod breaker;
pub mod capacity;
pub mod consistent;
pub mod evidence;
pub mod index;
pub mod limit;
pub mod load;
pub mod pace;
pub mod policy;
pub mod prefill;
pub mod prefix;
pub mod ramp;
pub mod regret;
pub mod saturation;
pub mod shadow;
pub mod traffic;
pub mod trust;
pub mod window;
pub mod worker;

pub use breaker::{
    Admission, Breaker, BreakerParams, BreakerSettings, BreakerState, Cause, Outcome, Transition,
    may_eject,
};
pub use limit::{InflightMax, Limit, LimitParams};
pub use load::Load;
pub use pace::{Forecast, Pace};
pub use policy::{
    Ask, Decision, Policy, PolicyParams, PolicySettings, PromptKind, Reason, Shed, pick,
};
pub use prefill::{PrefillCost, Work};
pub use prefix::{Holdings, HoldingsParams, HoldingsStats, Matched, Tier};
pub use ramp::{ramp_share, starts_slowly};
pub use regret::{Regret, SpillCause};
pub use saturation::Headroom;
pub use shadow::{Comparison, Estimate};
pub use worker::{Candidate, InvalidWorkerId, WorkerId};

/// `now - ago`, or `now` where no instant lies so far back.
fn before(now: std::time::Instant, ago: std::time::Duration) -> std::time::Instant {
    now.checked_sub(ago).unwrap_or(now)
}

/// A setting lies outside its range. The text names the setting, its value and the range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{name} is {value}: it must be {must_be}")]
pub struct OutOfRange {
    /// The setting, by the name of its field.
    pub name: &'static str,
    /// The refused value, as text: settings differ in type.
    pub value: String,
    /// What would be accepted.
    pub must_be: &'static str,
}

impl OutOfRange {
    /// `Ok` where `ok`, else the error for the setting `name`.
    pub(crate) fn unless(
        ok: bool,
        name: &'static str,
        value: impl std::fmt::Debug,
        must_be: &'static str,
    ) -> Result<(), Self> {
        if ok { Ok(()) } else { Err(Self { name, value: format!("{value:?}"), must_be }) }
    }
}
