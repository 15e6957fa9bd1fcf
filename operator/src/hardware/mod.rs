//! What the cluster's hardware is and what fits on it. Pure: no client, no clock.

pub mod classify;
pub mod evidence;
pub mod grace;
pub mod images;
pub mod inventory;
pub mod labels;
pub mod memory;
pub mod node;

pub use classify::{ClassIndex, ClassNodes, Unclassified};
pub use evidence::{NodeReport, describe};
pub use grace::{Grace, Kept};
pub use images::{Images, ModelDefaults};
pub use node::{Labels, NodeFacts, Taint};
