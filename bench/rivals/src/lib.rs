//! Prefix indexes of other routers and ours behind one trait, and what to feed them.

pub mod dynamo;
pub mod index;
pub mod mix;
pub mod ours;
pub mod routing;
pub mod smg;
pub mod trees;
pub mod workload;
