//! Places the screen parser on whatever hardware a cluster has.
//!
//! The steps, one file for each under [`controller`]: observe → (classify, in [`hardware`]) → plan → build → apply →
//! status. Classify, plan, build and status are pure.

pub mod args;
pub mod cli;
pub mod context;
pub mod controller;
pub mod error;
pub mod events;
pub mod hardware;
pub mod http;
pub mod lease;
pub mod metrics;
pub mod registry;
pub mod rules;
pub mod telemetry;
pub mod texts;
