//! `make bench-routers`: what a second router in front of a fleet costs.
//!
//! The same chats are played against one router and, by a client that takes turns with every
//! request, against two, on simulated engines that are cold each time. What the engines computed,
//! by their own count, is what matters.

pub mod bed;
pub mod chats;
pub mod measure;

/// Whatever goes wrong outside a measurement.
pub type Any = Box<dyn std::error::Error + Send + Sync>;

/// Engines behind the routers.
pub const WORKERS: usize = 4;

/// How many routers there are, and what they know of each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routers {
    /// One.
    One,
    /// Two that do not know of each other.
    TwoApart,
    /// Two with a broker between them.
    TwoPeers,
}

impl Routers {
    /// All, the one that the others are compared with first.
    pub const ALL: [Self; 3] = [Self::One, Self::TwoApart, Self::TwoPeers];

    /// How many.
    pub fn count(self) -> usize {
        if self == Self::One { 1 } else { 2 }
    }

    /// In tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::One => "one router",
            Self::TwoApart => "two, no broker",
            Self::TwoPeers => "two, broker",
        }
    }
}
