//! Version `v1alpha1` of the API.

pub mod conditions;
pub mod deployment;
pub mod hand_over;
pub mod hardware_class;
pub mod model;
pub mod pod_options;
pub mod quantity;
mod rules;
pub mod status;

pub use conditions::{ClassConditionType, Condition, ConditionStatus, ConditionType, Reason};
pub use deployment::{
    DeviceChoice, DtypeChoice, EnvVar, Fallback, HawkeyeDeployment, HawkeyeDeploymentSpec, PoolOverride, Profile,
};
pub use hand_over::{HandOver, HandOverAfter};
pub use hardware_class::{
    Arch, BatchSize, CpuSpec, Device, Dtype, HardwareClass, HardwareClassSpec, HardwareClassStatus, ImageVariant,
    MemorySpec, NodeSelectorRequirement, NodeSelectorTerm, SelectorOperator, TaintEffect, Toleration,
    TolerationOperator,
};
pub use model::{ModelClaim, ModelHttp, ModelImage, ModelSource, PullPolicy};
pub use pod_options::{
    DisruptionBudgetOptions, EgressPort, EgressRule, IpBlock, LabelExpression, LabelSelector, NetworkPeer,
    NetworkPolicyOptions, PodMetadata, Protocol, PullSecret,
};
pub use quantity::Quantity;
pub use status::{HawkeyeDeploymentStatus, PoolStatus};
