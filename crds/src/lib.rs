//! API types of the Hawkeye operator: HawkeyeDeployment and HardwareClass.
//!
//! This crate has no client and no clock. It holds the types, their validation rules (as CEL in the schema, so that the
//! API server refuses what cannot work), the CustomResourceDefinitions made from them and the built-in hardware classes.

pub mod classes;
pub mod crd;
pub mod reference;
pub mod v1alpha1;

/// The API group of every Hawkeye kind.
pub const GROUP: &str = "hawkeye.bytebot.ai";
