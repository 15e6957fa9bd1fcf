//! HawkeyeDeployment: one endpoint of the screen parser on whatever hardware the cluster has.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    DisruptionBudgetOptions, Dtype, HandOverAfter, HawkeyeDeploymentStatus, ModelSource, NetworkPolicyOptions,
    PodMetadata, PullSecret, Quantity, rules,
};

/// What to run and where it may run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "hawkeye.bytebot.ai",
    version = "v1alpha1",
    kind = "HawkeyeDeployment",
    plural = "hawkeyedeployments",
    shortname = "hkd",
    category = "all",
    category = "hawkeye",
    namespaced,
    status = "HawkeyeDeploymentStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "One endpoint of the screen parser (screenshot in, labelled UI elements out), run on whatever hardware the cluster has. The operator works out what each node is, makes one Deployment for each hardware class that it uses and one Service for all, and says in the status why.",
    validation = Rule::new("self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name must be at most 40 characters: lower case letters, digits and '-', starting with a letter (it names a Service)"),
    scale(spec_replicas_path = ".spec.replicas", status_replicas_path = ".status.replicas", label_selector_path = ".status.selector"),
    printcolumn(name = "Profile", type_ = "string", json_path = ".spec.profile"),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".spec.replicas", description = "Replicas asked for"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyReplicas", description = "Pods that are ready"),
    printcolumn(name = "Pools", type_ = "string", json_path = ".status.poolSummary", description = "Ready pods of planned pods for each hardware class"),
    printcolumn(name = "Verified", type_ = "string", json_path = ".status.conditions[?(@.type=='DeviceVerified')].status", description = "Whether every ready pod was found to run on the device of its pool"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.summary", description = "Ready, or why not"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Device", type_ = "string", json_path = ".spec.device", priority = 1),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1)
)]
#[x_kube(validation = Rule::new("!has(self.classes) || !has(self.overrides) || self.overrides.all(name, name in self.classes)").message("overrides names a class that classes does not list, so it would have no effect").field_path(".overrides"))]
#[x_kube(validation = Rule::new("self.device != 'Cpu' || self.dtype != 'Float16'").message("dtype must be Auto, BFloat16, Float32 or Int8 when device is Cpu: CPUs have no Float16 kernels for these models").field_path(".dtype"))]
#[x_kube(validation = Rule::new("self.device != 'Cuda' || self.dtype != 'Int8'").message("dtype must be Auto, Float16, BFloat16 or Float32 when device is Cuda: GPUs have no Int8 kernels for these models").field_path(".dtype"))]
#[x_kube(validation = Rule::new("self.device != 'Cpu' || !has(self.overrides) || self.overrides.all(name, !has(self.overrides[name].dtype) || self.overrides[name].dtype != 'Float16')").message("overrides must not set dtype Float16 when device is Cpu: CPUs have no Float16 kernels for these models").field_path(".overrides"))]
#[serde(rename_all = "camelCase")]
pub struct HawkeyeDeploymentSpec {
    /// Parser pods over all pools together.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,

    /// How thorough a parse is. Speed: no text recognition, few captions. Balanced: text and captions for what matters. Quality: text and captions for everything.
    #[serde(default)]
    pub profile: Profile,

    /// What to compute on. Auto: the best that the cluster has, Cuda before Cpu. Cuda: GPUs. Cpu: CPUs, even when GPUs are free.
    #[serde(default)]
    pub device: DeviceChoice,

    /// Number format of the models: Float16, BFloat16, Float32, Int8 (on CPUs, for captions), or Auto for what suits each hardware class.
    #[serde(default)]
    pub dtype: DtypeChoice,

    /// What to do when the device asked for is not there or has no room. Degrade: use the next device and say so in the condition Degraded. Deny: leave those replicas without a place and say so in the condition Placed.
    #[serde(default)]
    pub fallback: Fallback,

    /// How long a pod may find no node, outside a rollout, before the next hardware class that may be used and has room gets its replica: from 10s to 24h, e.g. 90s or 1h30m, or Never. Its own class is tried again once it has more free capacity.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == 'Never' || (duration(self) >= duration('10s') && duration(self) <= duration('24h'))").message("handOverAfter must be Never or from 10s to 24h"))]
    pub hand_over_after: HandOverAfter,

    /// Container image for every pool. Left out: the image of the operator's release for the variant of each hardware class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = rules::image("image"))]
    pub image: Option<String>,

    /// Where the model bundle comes from. Left out: the operator's default (chart value defaultModel).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelSource>,

    /// Hardware classes that may be used, in this order. Left out: every class, by priority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 16),
        inner(length(min = 1, max = 20), regex(pattern = "^[a-z]([-a-z0-9]*[a-z0-9])?$"))
    )]
    #[x_kube(validation = Rule::new("self.all(a, self.exists_one(b, a == b))").message("classes must not name a class twice"))]
    pub classes: Option<Vec<String>>,

    /// Changes for single hardware classes, by the class's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 16))]
    #[x_kube(validation = Rule::new("self.all(name, name.size() <= 20 && name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$'))").message("overrides must be keyed by names of hardware classes: at most 20 characters, lower case letters, digits and '-', starting with a letter"))]
    pub overrides: Option<BTreeMap<String, PoolOverride>>,

    /// Secrets of the same namespace with which the pods' images, and a model in an image, are pulled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<PullSecret>,

    /// PriorityClass of every pod. Left out: the cluster's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = rules::NAME))]
    pub priority_class_name: Option<String>,

    /// Labels and annotations for every pod. A change replaces the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_metadata: Option<PodMetadata>,

    /// How many pods a drain may take away at once. Left out: one, as soon as there are two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disruption_budget: Option<DisruptionBudgetOptions>,

    /// Makes a NetworkPolicy for the pods. Left out: there is none, and the namespace's own policies decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_policy: Option<NetworkPolicyOptions>,
}

const fn one() -> i32 {
    1
}

/// How thorough a parse is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum Profile {
    Speed,
    #[default]
    Balanced,
    Quality,
}

impl Profile {
    /// As in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Speed => "Speed",
            Self::Balanced => "Balanced",
            Self::Quality => "Quality",
        }
    }
}

/// What to compute on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum DeviceChoice {
    #[default]
    Auto,
    Cuda,
    Cpu,
}

/// Number format of the models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum DtypeChoice {
    #[default]
    Auto,
    Float16,
    BFloat16,
    Float32,
    Int8,
}

impl DtypeChoice {
    /// The format asked for, or `None` for the class's own.
    pub const fn explicit(self) -> Option<Dtype> {
        match self {
            Self::Auto => None,
            Self::Float16 => Some(Dtype::Float16),
            Self::BFloat16 => Some(Dtype::BFloat16),
            Self::Float32 => Some(Dtype::Float32),
            Self::Int8 => Some(Dtype::Int8),
        }
    }
}

/// What to do when the device asked for is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum Fallback {
    Deny,
    #[default]
    Degrade,
}

/// Changes for one hardware class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolOverride {
    /// Exactly this many of spec.replicas go to this class, as far as it has room; 0 leaves it out. Left out: as many as the order of classes gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: Option<i32>,
    /// Image crops that share one batch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub batch_size: Option<i32>,
    /// Memory limit of each pod, which is also requested, e.g. 6Gi; 256Mi to 16Ti.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::quantity("memory", "256Mi", "16Ti"))]
    pub memory: Option<Quantity>,
    /// CPU request of each pod, e.g. 2 or 500m; 10m to 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = rules::quantity("cpu", "10m", "1024"))]
    pub cpu: Option<Quantity>,
    /// Number format of the models: Auto, Float16, BFloat16, Float32 or Int8. Left out: spec.dtype.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<DtypeChoice>,
    /// Container image. Left out: spec.image, else the operator's image for the class's variant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = rules::image("image"))]
    pub image: Option<String>,
    /// Further environment variables, e.g. OMNIPARSER_MIN_CONFIDENCE or RUST_LOG.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[schemars(length(max = 32))]
    pub env: Vec<EnvVar>,
}

/// Names that the operator sets itself. A second value would make the status untrue, so the schema refuses them.
pub const RESERVED_ENV: [&str; 11] = [
    "HAWKEYE_BUNDLE",
    "OMNIPARSER_HOST",
    "OMNIPARSER_PORT",
    "OMNIPARSER_DEVICE",
    "HAWKEYE_EXPECT_DEVICE",
    "HAWKEYE_ON_MISMATCH",
    "OMNIPARSER_PERFORMANCE_PROFILE",
    "OMNIPARSER_BATCH_SIZE",
    "OMNIPARSER_MODEL_DTYPE",
    "OMP_NUM_THREADS",
    "NVIDIA_VISIBLE_DEVICES",
];

/// An environment variable of the parser's container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("!(self.name in ['HAWKEYE_BUNDLE', 'OMNIPARSER_HOST', 'OMNIPARSER_PORT', 'OMNIPARSER_DEVICE', 'HAWKEYE_EXPECT_DEVICE', 'HAWKEYE_ON_MISMATCH', 'OMNIPARSER_PERFORMANCE_PROFILE', 'OMNIPARSER_BATCH_SIZE', 'OMNIPARSER_MODEL_DTYPE', 'OMP_NUM_THREADS', 'NVIDIA_VISIBLE_DEVICES'])").message("env must not set a variable that the operator sets: use profile, device, fallback, dtype, batchSize, cpu and model instead").field_path(".name"))]
pub struct EnvVar {
    /// Name of the variable.
    #[schemars(length(min = 1, max = 128), regex(pattern = "^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub name: String,
    /// Its value, taken literally.
    #[schemars(length(max = 4096))]
    pub value: String,
}
