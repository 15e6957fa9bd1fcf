//! What the operator reports about a HawkeyeDeployment.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{Condition, Device, Dtype, HandOver, Quantity};

/// What the operator observed and did. Written only by the operator, and only when it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HawkeyeDeploymentStatus {
    /// The metadata.generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Pods of all pools that exist and have not ended.
    #[serde(default)]
    pub replicas: i32,

    /// Pods of all pools that are ready.
    #[serde(default)]
    pub ready_replicas: i32,

    /// Label selector that matches exactly the pods of all pools; for `kubectl scale` and autoscalers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,

    /// Where clients in the cluster send their requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,

    /// One word for `kubectl get`: Ready, or the reason why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,

    /// The sentence that belongs to summary, shown by `kubectl get -o wide`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,

    /// The pools in one line for `kubectl get`: ready pods of planned pods for each class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_summary: Option<String>,

    /// The pools: one for each hardware class that was given replicas or was passed over for a reason.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["class".into()]))]
    #[schemars(length(max = 64))]
    pub pools: Vec<PoolStatus>,

    /// Accepted, Placed, Available, DeviceVerified, Degraded and ImageVerified, each with its reason and what to do.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
}

/// The pods of one HawkeyeDeployment on one hardware class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolStatus {
    /// The hardware class.
    #[schemars(length(max = 63))]
    pub class: String,
    /// The device that its pods compute on: Cuda or Cpu.
    pub device: Device,
    /// Number format of the model: Float16, BFloat16, Float32 or Int8.
    pub dtype: Dtype,
    /// Image crops that share one batch.
    pub batch_size: i32,
    /// Memory limit of each pod.
    pub memory: Quantity,
    /// Nodes of this class, ready or not.
    pub nodes: i32,
    /// Replicas planned for this pool.
    pub replicas: i32,
    /// Pods that are ready.
    pub ready: i32,
    /// Pods that are ready and were found to run on the pool's device, with its number format and batch size.
    #[serde(default)]
    pub verified: i32,
    /// Pods that are ready and were found to compute on the CPU, though the pool's device is a GPU.
    #[serde(default)]
    pub on_cpu: i32,
    /// Why the pool is as it is, in one word.
    pub reason: String,
    /// Why the pool is as it is, in a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    pub message: String,
    /// Set while pods of the pool find no node, or while replicas of it are handed over to other classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hand_over: Option<HandOver>,
}
