//! Version `v1alpha1` of the API.

pub mod conditions;
pub mod deployment;
pub mod hardware_class;
pub mod quantity;
pub mod status;

pub use conditions::{ClassConditionType, Condition, ConditionStatus, ConditionType, Reason};
pub use deployment::{
    DeviceChoice, DtypeChoice, EnvVar, Fallback, HawkeyeDeployment, HawkeyeDeploymentSpec, ModelClaim, ModelImage,
    ModelSource, PoolOverride, Profile, PullPolicy,
};
pub use hardware_class::{
    Arch, BatchSize, CpuSpec, Device, Dtype, HardwareClass, HardwareClassSpec, HardwareClassStatus, ImageVariant,
    MemorySpec, NodeSelectorRequirement, NodeSelectorTerm, SelectorOperator, TaintEffect, Toleration,
    TolerationOperator,
};
pub use quantity::Quantity;
pub use status::{HawkeyeDeploymentStatus, PoolStatus};
