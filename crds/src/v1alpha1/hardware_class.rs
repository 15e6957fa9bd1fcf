//! HardwareClass: a kind of node, and how the parser runs on it.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Condition, EnvVar, Quantity, rules};

/// A kind of node: which labels tell it, what a pod there asks for, and which batch size, number format and memory fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "hawkeye.bytebot.ai",
    version = "v1alpha1",
    kind = "HardwareClass",
    plural = "hardwareclasses",
    shortname = "hwc",
    category = "hawkeye",
    derive = "PartialEq",
    status = "HardwareClassStatus",
    doc = "A kind of node, and how the screen parser runs on it. A node belongs to the class of highest priority that admits it: operating system linux, the class's architecture, one of its nodeSelectorTerms, and its resource allocatable on the node.",
    validation = Rule::new("self.metadata.name.size() <= 20 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name must be at most 20 characters: lower case letters, digits and '-', starting with a letter"),
    printcolumn(name = "Device", type_ = "string", json_path = ".spec.device"),
    printcolumn(name = "Arch", type_ = "string", json_path = ".spec.arch"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes"),
    printcolumn(name = "Priority", type_ = "integer", json_path = ".spec.priority"),
    printcolumn(name = "Resource", type_ = "string", json_path = ".spec.resource"),
    printcolumn(name = "Variant", type_ = "string", json_path = ".spec.imageVariant"),
    printcolumn(name = "Batch", type_ = "integer", json_path = ".spec.batchSize.balanced"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".spec.memory.limit"),
    printcolumn(name = "Dtype", type_ = "string", json_path = ".spec.dtype", priority = 1)
)]
#[x_kube(validation = Rule::new("self.device != 'Cuda' || has(self.resource)").message("resource must be set when device is Cuda: without it every pod would see every GPU of its node").field_path(".resource"))]
#[x_kube(validation = Rule::new("self.device != 'Cuda' || self.imageVariant == 'cuda'").message("imageVariant must be cuda when device is Cuda").field_path(".imageVariant"))]
#[x_kube(validation = Rule::new("self.device != 'Cpu' || self.dtype != 'Float16'").message("dtype must be Float32, BFloat16 or Int8 when device is Cpu: CPUs have no Float16 kernels for these models").field_path(".dtype"))]
#[x_kube(validation = Rule::new("self.device != 'Cuda' || self.dtype != 'Int8'").message("dtype must be Float16, BFloat16 or Float32 when device is Cuda: GPUs have no Int8 kernels for these models").field_path(".dtype"))]
#[serde(rename_all = "camelCase")]
pub struct HardwareClassSpec {
    /// Classes of higher priority are tried first, both to tell what a node is and to place replicas.
    #[schemars(range(min = 0, max = 10000))]
    pub priority: i32,

    /// Architecture of the nodes, as in their label kubernetes.io/arch: amd64 or arm64.
    pub arch: Arch,

    /// Labels that tell the class. One of the terms must hold; within a term every expression must. NotIn also holds on nodes without the label.
    #[schemars(length(min = 1, max = 16))]
    pub node_selector_terms: Vec<NodeSelectorTerm>,

    /// Extended resource that a node must have allocatable and that each pod asks for once, e.g. nvidia.com/gpu. Left out for classes that compute on the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 3, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")
    )]
    #[x_kube(validation = Rule::new("!self.startsWith('requests.') && !self.split('/')[0].endsWith('kubernetes.io') && self.split('/')[1].size() <= 63").message("resource must be an extended resource as nodes offer it: not of the domain kubernetes.io, not beginning with requests., and with at most 63 characters after the /"))]
    pub resource: Option<String>,

    /// What the pods compute on: Cuda or Cpu.
    pub device: Device,

    /// Which image of the operator's release the pods run: cpu or cuda.
    pub image_variant: ImageVariant,

    /// Number format of the models unless the HawkeyeDeployment says otherwise: Float16, BFloat16, Float32 or Int8.
    pub dtype: Dtype,

    /// Image crops that share one batch, for each profile.
    pub batch_size: BatchSize,

    /// Memory of each pod.
    pub memory: MemorySpec,

    /// CPU of each pod.
    pub cpu: CpuSpec,

    /// True when a node autoscaler adds nodes of this class on demand: its capacity is then not capped by the nodes that exist now.
    #[serde(default)]
    pub autoscaled: bool,

    /// RuntimeClass of the pods, e.g. nvidia on k3s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = rules::NAME)
    )]
    pub runtime_class_name: Option<String>,

    /// Taints that the pods tolerate. Nodes with other taints do not count as capacity.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub tolerations: Vec<Toleration>,

    /// Environment variables for the pods of this class.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 32))]
    pub env: Vec<EnvVar>,
}

/// What the operator observed of a HardwareClass. Written only by the operator, and only when it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HardwareClassStatus {
    /// The metadata.generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Nodes of this class, ready or not.
    #[serde(default)]
    pub nodes: i32,

    /// Overlaps: whether another class admits some of the same nodes.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<Condition>,
}

/// Architecture of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Arch {
    Amd64,
    Arm64,
}

impl Arch {
    /// The value of the label `kubernetes.io/arch`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

/// What a pod computes on, the preferred first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum Device {
    Cuda,
    Cpu,
}

impl Device {
    /// As in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cuda => "Cuda",
            Self::Cpu => "Cpu",
        }
    }
}

/// Number format of the models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum Dtype {
    Float16,
    BFloat16,
    Float32,
    Int8,
}

impl Dtype {
    /// As in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Float16 => "Float16",
            Self::BFloat16 => "BFloat16",
            Self::Float32 => "Float32",
            Self::Int8 => "Int8",
        }
    }
}

/// Which image of the operator's release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum ImageVariant {
    Cpu,
    Cuda,
}

/// Batch size for each profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct BatchSize {
    /// For profile Speed.
    #[schemars(range(min = 1, max = 1024))]
    pub speed: i32,
    /// For profile Balanced.
    #[schemars(range(min = 1, max = 1024))]
    pub balanced: i32,
    /// For profile Quality.
    #[schemars(range(min = 1, max = 1024))]
    pub quality: i32,
}

/// Memory of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct MemorySpec {
    /// Memory limit, which is also requested, e.g. 8Gi; 256Mi to 16Ti.
    #[x_kube(validation = rules::quantity("limit", "256Mi", "16Ti"))]
    pub limit: Quantity,
    /// True when GPU and CPU share one memory, so that the GPU's use counts against the limit.
    #[serde(default)]
    pub unified: bool,
}

/// CPU of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct CpuSpec {
    /// CPU request, e.g. 2 or 500m; 10m to 1024. Also the number of threads, rounded up.
    #[x_kube(validation = rules::quantity("request", "10m", "1024"))]
    pub request: Quantity,
}

/// Expressions over a node's labels that must all hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeSelectorTerm {
    /// The expressions.
    #[schemars(length(min = 1, max = 32))]
    pub match_expressions: Vec<NodeSelectorRequirement>,
}

/// One expression over a node's labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = rules::values())]
pub struct NodeSelectorRequirement {
    /// Label key, e.g. nvidia.com/gpu.product.
    #[schemars(
        length(min = 1, max = 317),
        regex(pattern = rules::LABEL_KEY)
    )]
    pub key: String,
    /// In, NotIn (also holds without the label), Exists or DoesNotExist.
    pub operator: SelectorOperator,
    /// Values for In and NotIn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 1024),
        inner(length(max = 63), regex(pattern = rules::LABEL_VALUE))
    )]
    pub values: Vec<String>,
}

/// Operator of an expression over labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum SelectorOperator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl SelectorOperator {
    /// As in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::In => "In",
            Self::NotIn => "NotIn",
            Self::Exists => "Exists",
            Self::DoesNotExist => "DoesNotExist",
        }
    }
}

/// A taint that pods tolerate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("!has(self.operator) || self.operator != 'Exists' || !has(self.value)").message("value must not be set when operator is Exists").field_path(".value"))]
#[x_kube(validation = Rule::new("has(self.key) || (has(self.operator) && self.operator == 'Exists')").message("key must be set unless operator is Exists").field_path(".key"))]
pub struct Toleration {
    /// Taint key; left out with operator Exists: every taint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 317),
        regex(pattern = rules::LABEL_KEY)
    )]
    pub key: Option<String>,
    /// Equal (the default) or Exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator: Option<TolerationOperator>,
    /// Taint value for operator Equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = rules::LABEL_VALUE))]
    pub value: Option<String>,
    /// Taint effect; left out: every effect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<TaintEffect>,
}

/// Operator of a toleration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum TolerationOperator {
    Equal,
    Exists,
}

/// Effect of a taint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum TaintEffect {
    NoSchedule,
    PreferNoSchedule,
    NoExecute,
}
