//! Brings up a cluster, loads images, runs the end-to-end suites.
//!
//! A development aid: nothing that is deployed refers to it. Calls block; only [`Cluster::client`] is async.

pub mod archive;
pub mod bench;
pub mod cluster;
pub mod command;
pub mod demo;
mod error;
mod fake_nodes;
pub mod images;
pub mod install;
pub mod paths;
pub mod progress;
pub mod tools;

pub use cluster::{Cluster, NodeChoice, ProviderChoice, UpOptions};
pub use error::{Error, Result};
pub use paths::Cache;
pub use progress::Progress;
