//! The steps from what is in the cluster to what should be, one file for each.

pub mod apply;
pub mod build;
pub mod class_status;
pub mod device;
mod election;
pub mod images;
pub mod nodes;
pub mod observe;
pub mod plan;
pub mod planner;
pub mod pool;
pub mod reconcile;
pub mod run;
pub mod scope;
pub mod starting;
pub mod status;
pub mod strategy;
pub mod verify;
pub mod waiting;
