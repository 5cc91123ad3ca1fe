//! The product's index, compiled in as it stands.

#![allow(dead_code, missing_docs, reason = "the product uses more of it than the bench does")]

#[path = "../../../../src/routing/block.rs"]
pub mod block;
#[path = "../../../../src/routing/index/mod.rs"]
pub mod index;
