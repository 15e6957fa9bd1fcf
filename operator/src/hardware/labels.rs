//! Keys of node labels, by publisher. Their meaning is in the documentation, on the page of each class.

/// Operating system; the kubelet sets it.
pub const OS: &str = "kubernetes.io/os";
/// Architecture, `amd64` or `arm64`; the kubelet sets it.
pub const ARCH: &str = "kubernetes.io/arch";
/// The same under its old name, which kubelets still set.
pub const OLD_ARCH: &str = "beta.kubernetes.io/arch";
/// Machine type; the cloud's controller sets it, and k3s sets `k3s`.
pub const INSTANCE_TYPE: &str = "node.kubernetes.io/instance-type";
/// `true` or `false`; the GPU Operator sets it, and does not remove it when the GPU is gone.
pub const GPU_PRESENT: &str = "nvidia.com/gpu.present";
/// Model of the GPU, one for each node; GPU Feature Discovery sets it.
pub const GPU_PRODUCT: &str = "nvidia.com/gpu.product";
/// GPUs in the machine; GPU Feature Discovery sets it.
pub const GPU_COUNT: &str = "nvidia.com/gpu.count";
/// Units that each GPU is offered as; GPU Feature Discovery sets it.
pub const GPU_REPLICAS: &str = "nvidia.com/gpu.replicas";
/// `none`, `time-slicing` or `mps`; GPU Feature Discovery sets it.
pub const GPU_SHARING: &str = "nvidia.com/gpu.sharing-strategy";
/// Compute capability; GPU Feature Discovery sets both parts.
pub const GPU_COMPUTE: [&str; 2] = ["nvidia.com/gpu.compute.major", "nvidia.com/gpu.compute.minor"];
/// `single` or `mixed` where GPUs are partitioned; GPU Feature Discovery sets it.
pub const MIG_STRATEGY: &str = "nvidia.com/mig.strategy";
/// Driver version, then under its old names.
pub const DRIVER: [&str; 4] = [
    "nvidia.com/cuda.driver-version.full",
    "nvidia.com/cuda.driver.major",
    "nvidia.com/cuda.driver.minor",
    "nvidia.com/cuda.driver.rev",
];
/// Highest CUDA version that the driver supports, then under its old names.
pub const CUDA: [&str; 3] = [
    "nvidia.com/cuda.runtime-version.full",
    "nvidia.com/cuda.runtime.major",
    "nvidia.com/cuda.runtime.minor",
];
/// Model of the GPU, by every publisher that says it, the most trusted first.
pub const GPU_MODELS: [&str; 5] = [
    GPU_PRODUCT,
    "cloud.google.com/gke-accelerator",
    "eks.amazonaws.com/instance-gpu-name",
    "karpenter.k8s.aws/instance-gpu-name",
    "karpenter.azure.com/sku-gpu-name",
];
/// GPUs in the machine, by every publisher that says it.
pub const GPU_COUNTS: [&str; 4] = [
    GPU_COUNT,
    "eks.amazonaws.com/instance-gpu-count",
    "karpenter.k8s.aws/instance-gpu-count",
    "karpenter.azure.com/sku-gpu-count",
];
/// Memory of one GPU in MiB, by every publisher that says it.
pub const GPU_MEMORIES: [&str; 3] = [
    "nvidia.com/gpu.memory",
    "eks.amazonaws.com/instance-gpu-memory",
    "karpenter.k8s.aws/instance-gpu-memory",
];
/// Vendor and id of the CPU; Node Feature Discovery sets both. On ARM64 the id is the low half of the register MIDR.
pub const CPU_MODEL: [&str; 2] = [
    "feature.node.kubernetes.io/cpu-model.vendor_id",
    "feature.node.kubernetes.io/cpu-model.id",
];
/// Before the name of a CPU feature, which is then `true`; Node Feature Discovery sets them.
pub const CPU_FEATURE: &str = "feature.node.kubernetes.io/cpu-cpuid.";
/// Generation of a Graviton; the rule in `manifests/nfd-graviton.yaml` has Node Feature Discovery set it.
pub const GRAVITON: &str = "feature.node.kubernetes.io/hawkeye-graviton";
