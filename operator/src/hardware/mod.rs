//! What the cluster's hardware is and what fits on it. Pure: no client, no clock.

pub mod classify;
pub mod images;
pub mod memory;
pub mod node;

pub use classify::{ClassIndex, ClassNodes, Unclassified};
pub use images::{Images, ModelDefaults};
pub use node::{NodeFacts, Taint};
