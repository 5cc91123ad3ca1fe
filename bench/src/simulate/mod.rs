//! A fleet in virtual time, driven by the product's own policy and index: docs/simulate.md.
//!
//! [`workload`] makes a trace ready, [`engine`] and [`cache`] are what a worker does with it,
//! [`observer`] is what the router believes, by the product's own code, and [`policies`] pick.
//! [`run`] puts them together for one run; [`plan`] says which runs are to be made, [`execute`] makes
//! them in parallel, and [`figures`], [`table`] and [`results`] say what came out.

pub mod cache;
pub mod command;
pub mod engine;
pub mod execute;
pub mod figures;
pub mod hardware;
pub mod matrix;
pub mod observer;
pub mod options;
pub mod plan;
pub mod policies;
pub mod results;
pub mod run;
pub mod table;
pub mod workload;
