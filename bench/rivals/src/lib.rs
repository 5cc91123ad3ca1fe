//! Prefix indexes of other routers and ours behind one trait, and what to feed them.
//!
//! `shared` is the index proposed in docs/adr/0017. It lives here, with its tests, until the product
//! uses it.

pub mod dynamo;
pub mod index;
#[cfg(not(test))]
pub mod mix;
#[cfg(not(test))]
pub mod ours;
#[cfg(not(test))] // Its own tests belong to the product.
#[path = "../../../src/routing/mod.rs"]
pub mod routing;
pub mod shared;
pub mod smg;
pub mod workload;
