//! Policies by name.

use warmroute::routing::Policy;

use super::baselines::{Backlog, Cost, LeastTrueAnswer, SessionHash};
use super::chwbl::Chwbl;
use super::dualmap::DualMap;
use super::dynamo::Dynamo;
use super::llmd::LlmD;
use super::lmetric::LMetric;
use super::mooncake::Conductor;
use super::preble::Preble;
use super::prefix::{LongestMatch, Valve};
use super::smg::CacheAware;
use super::{Product, Router};
use crate::simulate::run::Sharing;

/// A policy that can be asked for by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// One of the product's.
    Product(Policy),
    /// Any other, by its place in the table of this file.
    Other(usize),
}

type Make = fn() -> Box<dyn Router>;

/// Name, caches, and the router.
const OTHERS: [(&str, Sharing, Make); 16] = [
    ("shared", Sharing::Pool, || Box::new(LeastTrueAnswer)),
    ("infinite", Sharing::Infinite, || Box::new(LeastTrueAnswer)),
    ("backlog", Sharing::Own, || Box::new(Backlog)),
    ("cost", Sharing::Own, || Box::new(Cost)),
    ("session-hash", Sharing::Own, || Box::new(SessionHash)),
    ("prefix", Sharing::Own, || Box::new(LongestMatch)),
    ("prefix-valve", Sharing::Own, || Box::new(Valve { backlog_max_s: 2.0 })),
    ("chwbl", Sharing::Own, || Box::<Chwbl>::default()),
    ("lmetric", Sharing::Own, || Box::new(LMetric)),
    ("dynamo", Sharing::Own, || Box::<Dynamo>::default()),
    ("smg", Sharing::Own, || Box::new(CacheAware::smg())),
    ("sglang", Sharing::Own, || Box::new(CacheAware::sglang())),
    ("llm-d", Sharing::Own, || Box::new(LlmD)),
    ("preble", Sharing::Own, || Box::<Preble>::default()),
    ("dualmap", Sharing::Own, || Box::<DualMap>::default()),
    ("mooncake", Sharing::Own, || Box::<Conductor>::default()),
];

/// No policy has this name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownPolicy(String);

impl std::fmt::Display for UnknownPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = Named::all().map(Named::as_str).collect();
        write!(f, "there is no policy {:?}: use some of {}", self.0, names.join(", "))
    }
}

impl std::error::Error for UnknownPolicy {}

impl Named {
    /// The upper bound that others are measured by.
    pub const SHARED: Self = Self::Other(0);
    /// Fewest requests: the product's own.
    pub const LEAST: Self = Self::Product(Policy::LeastLoaded);
    /// Least queued prefill.
    pub const BACKLOG: Self = Self::Other(2);

    /// Every one.
    pub fn all() -> impl Iterator<Item = Self> {
        let others = (0..OTHERS.len()).map(Self::Other);
        Policy::ALL.into_iter().map(Self::Product).chain(others)
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Product(policy) => policy.as_str(),
            Self::Other(at) => OTHERS[at].0,
        }
    }

    /// Whose caches it is run with.
    pub fn sharing(self) -> Sharing {
        match self {
            Self::Product(_) => Sharing::Own,
            Self::Other(at) => OTHERS[at].1,
        }
    }

    /// A router that has not seen anything.
    pub fn router(self) -> Box<dyn Router> {
        match self {
            Self::Product(policy) => Box::new(Product::new(policy)),
            Self::Other(at) => OTHERS[at].2(),
        }
    }
}

impl std::str::FromStr for Named {
    type Err = UnknownPolicy;

    /// A policy's name; `least` is short for `least-loaded`.
    fn from_str(name: &str) -> Result<Self, UnknownPolicy> {
        if name == "least" {
            return Ok(Self::LEAST);
        }
        let found = Self::all().find(|policy| policy.as_str() == name);
        found.ok_or_else(|| UnknownPolicy(name.to_owned()))
    }
}
