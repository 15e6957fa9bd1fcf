//! What is in a node, each thing with where it is known from, and what contradicts what.

use hawkeye_crds::classes::graviton_generation;

use super::{
    NodeFacts,
    classify::{is_gpu_resource, is_nvidia_resource},
    evidence::{Fact, What},
    labels,
};

/// Compute capability of GB10, and of no other chip.
const GB10_COMPUTE: (&str, &str) = ("12", "1");
/// CPU features that the models' kernels care about, as Node Feature Discovery names them: ARM64, then x86-64.
const CPU_FEATURES: [&str; 19] = [
    "ASIMDHP",
    "FPHP",
    "ASIMDDP",
    "I8MM",
    "BF16",
    "SVE",
    "SVE2",
    "SVEBF16",
    "SVEI8MM",
    "SME",
    "AVX2",
    "AVXVNNI",
    "AVX512F",
    "AVX512VNNI",
    "AVX512BF16",
    "AVX512FP16",
    "AMXTILE",
    "AMXINT8",
    "AMXBF16",
];
/// Part numbers of Arm's own cores (bits 4 to 15 of MIDR), from Linux' `arch/arm64/include/asm/cputype.h`.
const ARM_PARTS: [(u32, &str); 9] = [
    (0xd08, "Cortex-A72"),
    (0xd0c, "Neoverse N1"),
    (0xd40, "Neoverse V1"),
    (0xd49, "Neoverse N2"),
    (0xd4f, "Neoverse V2"),
    (0xd84, "Neoverse V3"),
    (0xd85, "Cortex-X925"),
    (0xd87, "Cortex-A725"),
    (0xd8e, "Neoverse N3"),
];

/// Memory that GPU kernels can use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuMemory {
    /// In bytes, of one GPU.
    pub bytes: u64,
    /// CPU and GPU share it, so that the pod's memory limit has to hold what the GPU uses.
    pub unified: bool,
    /// Where this is known from.
    pub source: String,
}

/// A product name without what sharing and partitioning add to it: `NVIDIA-GB10-SHARED` is an `NVIDIA-GB10`.
pub fn gpu_model(product: &str) -> &str {
    let whole = product.split_once("-MIG-").map_or(product, |(model, _)| model);
    whole.strip_suffix("-SHARED").unwrap_or(whole)
}

/// Memory of one of the node's GPUs, if anything tells it.
pub fn gpu_memory(node: &NodeFacts) -> Option<GpuMemory> {
    if let Some(chip) = gb10(node) {
        return Some(GpuMemory {
            bytes: node.memory_capacity?,
            unified: true,
            source: format!("capacity memory, which CPU and GPU share on GB10 ({chip})"),
        });
    }
    let (key, mebibytes) = labels::GPU_MEMORIES
        .iter()
        .find_map(|key| Some((key, node.label(key)?.parse::<u64>().ok()?)))?;
    Some(GpuMemory {
        bytes: mebibytes.saturating_mul(1 << 20),
        unified: false,
        source: format!("label {key}"),
    })
}

/// Everything that is known about the node.
pub fn facts(node: &NodeFacts) -> Vec<Fact> {
    let mut facts = Vec::new();
    for (what, key) in [
        (What::OperatingSystem, labels::OS),
        (What::Architecture, labels::ARCH),
        (What::InstanceType, labels::INSTANCE_TYPE),
    ] {
        facts.extend(label(node, what, key));
    }
    facts.extend(cpu(node));
    let milli = node.cpu_milli.map(|milli| milli as f64 / 1000.0);
    facts.extend(milli.map(|cpus| Fact::new(What::Cpu, cpus.to_string(), "allocatable cpu")));
    facts.extend(
        node.memory
            .map(|bytes| Fact::new(What::Memory, gibibytes(bytes), "allocatable memory")),
    );
    facts.extend(gpu(node));
    facts
}

fn gpu(node: &NodeFacts) -> Vec<Fact> {
    let mut facts = Vec::new();
    if let Some((key, product)) = first(node, &labels::GPU_MODELS) {
        facts.push(Fact::new(What::GpuProduct, gpu_model(product), format!("label {key}")));
    } else if let Some(family) = gpu_instance(node) {
        facts.push(Fact::new(
            What::GpuProduct,
            "NVIDIA-T4G",
            format!("instance family {family}"),
        ));
    }
    if let Some((key, count)) = first(node, &labels::GPU_COUNTS) {
        facts.push(Fact::new(What::GpuCount, count, format!("label {key}")));
    }
    if let Some(memory) = gpu_memory(node) {
        let what = if memory.unified {
            What::UnifiedMemory
        } else {
            What::GpuMemory
        };
        facts.push(Fact::new(what, gibibytes(memory.bytes), memory.source));
    }
    if let Some((major, minor)) = compute(node) {
        let source = "labels nvidia.com/gpu.compute.*";
        facts.push(Fact::new(What::ComputeCapability, format!("{major}.{minor}"), source));
    }
    facts.extend(sharing(node));
    facts.extend(version(node, What::Driver, &labels::DRIVER));
    facts.extend(version(node, What::Cuda, &labels::CUDA));
    for (resource, units) in node.allocatable.iter().filter(|(name, _)| is_gpu_resource(name)) {
        let value = format!("{units} {resource}");
        facts.push(Fact::new(What::GpuUnits, value, format!("allocatable {resource}")));
    }
    facts
}

fn sharing(node: &NodeFacts) -> Vec<Fact> {
    let mut facts = Vec::new();
    let product = node.label(labels::GPU_PRODUCT).unwrap_or_default();
    match node.label(labels::GPU_SHARING) {
        Some("none") | None if product.ends_with("-SHARED") => {
            let source = format!("suffix of label {}", labels::GPU_PRODUCT);
            facts.push(Fact::new(What::GpuSharing, "shared", source));
        }
        Some("none") | None => {}
        Some(strategy) => {
            let value = match node.label(labels::GPU_REPLICAS) {
                Some(replicas) => format!("{strategy}, each GPU as {replicas} units"),
                None => strategy.to_owned(),
            };
            facts.push(Fact::new(
                What::GpuSharing,
                value,
                format!("label {}", labels::GPU_SHARING),
            ));
        }
    }
    if let Some((_, profile)) = product.split_once("-MIG-") {
        let source = format!("suffix of label {}", labels::GPU_PRODUCT);
        facts.push(Fact::new(What::Mig, profile.trim_end_matches("-SHARED"), source));
    } else {
        facts.extend(label(node, What::Mig, labels::MIG_STRATEGY));
    }
    facts
}

fn cpu(node: &NodeFacts) -> Vec<Fact> {
    let mut facts = Vec::new();
    let graviton = |generation: &str| format!("Graviton{generation}");
    let by_type = node
        .label(labels::INSTANCE_TYPE)
        .and_then(|name| Some((graviton_generation(name)?, name)));
    if let Some((generation, name)) = by_type {
        facts.push(Fact::new(
            What::CpuModel,
            graviton(generation),
            format!("instance type {name}"),
        ));
    } else if let Some(generation) = node.label(labels::GRAVITON) {
        facts.push(Fact::new(
            What::CpuModel,
            graviton(generation),
            format!("label {}", labels::GRAVITON),
        ));
    }
    if let Some((part, name)) = arm_core(node) {
        let source = format!("label {}, part {part:#x}", labels::CPU_MODEL[1]);
        facts.push(Fact::new(What::CpuCore, name, source));
    }
    let features: Vec<&str> = CPU_FEATURES
        .into_iter()
        .filter(|name| {
            node.label(&format!("{}{name}", labels::CPU_FEATURE))
                .is_some_and(|value| value == "true")
        })
        .collect();
    if !features.is_empty() {
        let source = format!("labels {}*", labels::CPU_FEATURE);
        facts.push(Fact::new(What::CpuFeatures, features.join(", "), source));
    }
    facts
}

/// Part number and name of an Arm core. The label has the revision in its lowest four bits.
fn arm_core(node: &NodeFacts) -> Option<(u32, &'static str)> {
    let [vendor, id] = labels::CPU_MODEL.map(|key| node.label(key));
    let part = id?.parse::<u32>().ok()? >> 4;
    let known = ARM_PARTS.iter().find(|(number, _)| *number == part);
    (vendor? == "ARM").then_some(*known?)
}

/// What says that the chip is a GB10.
fn gb10(node: &NodeFacts) -> Option<String> {
    let product = node.label(labels::GPU_PRODUCT);
    if let Some(product) = product.filter(|product| is_gb10(product)) {
        return Some(format!("label {}={product}", labels::GPU_PRODUCT));
    }
    (compute(node)? == GB10_COMPUTE).then(|| "compute capability 12.1".to_owned())
}

fn is_gb10(product: &str) -> bool {
    matches!(gpu_model(product), "NVIDIA-GB10" | "GB10")
}

fn compute(node: &NodeFacts) -> Option<(&str, &str)> {
    let [major, minor] = labels::GPU_COMPUTE.map(|key| node.label(key));
    Some((major?, minor?))
}

/// A family of instances that has a GPU without a label that says so.
fn gpu_instance(node: &NodeFacts) -> Option<&str> {
    let (family, _) = node.label(labels::INSTANCE_TYPE)?.split_once('.')?;
    (family == "g5g").then_some(family)
}

fn version(node: &NodeFacts, what: What, keys: &[&str]) -> Option<Fact> {
    let (full, parts) = keys.split_first()?;
    if let Some(fact) = label(node, what, full) {
        return Some(fact);
    }
    let parts: Vec<&str> = parts.iter().map_while(|key| node.label(key)).collect();
    (!parts.is_empty()).then(|| Fact::new(what, parts.join("."), format!("labels {}, …", keys[1])))
}

fn label(node: &NodeFacts, what: What, key: &str) -> Option<Fact> {
    Some(Fact::new(what, node.label(key)?, format!("label {key}")))
}

fn first<'a>(node: &'a NodeFacts, keys: &[&'static str]) -> Option<(&'static str, &'a str)> {
    keys.iter().find_map(|key| Some((*key, node.label(key)?)))
}

fn gibibytes(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

/// What the node's publishers say that cannot all be true, each in a sentence. The class follows the rules all the same; this
/// is for whoever has to mend the labels.
pub fn conflicts(node: &NodeFacts) -> Vec<String> {
    let get = |key: &str| node.label(key);
    let mut found = Vec::new();
    if get(labels::GPU_PRESENT) == Some("false") {
        if let Some(product) = get(labels::GPU_PRODUCT) {
            found.push(format!(
                "{}=false, but {}={product} is still there",
                labels::GPU_PRESENT,
                labels::GPU_PRODUCT
            ));
        }
        let offered = node
            .allocatable
            .iter()
            .find(|(name, units)| is_nvidia_resource(name) && **units > 0);
        if let Some((resource, units)) = offered {
            found.push(format!(
                "{}=false, but {units} {resource} can be had",
                labels::GPU_PRESENT
            ));
        }
    }
    if let (Some(arch), Some(old)) = (get(labels::ARCH), get(labels::OLD_ARCH))
        && arch != old
    {
        found.push(format!("{}={arch}, but {}={old}", labels::ARCH, labels::OLD_ARCH));
    }
    if let (Some(chip), Some(arch)) = (gb10(node), get(labels::ARCH))
        && arch != "arm64"
    {
        found.push(format!("GB10 is an ARM64 chip ({chip}), but {}={arch}", labels::ARCH));
    }
    if let (Some(product), Some(compute)) = (get(labels::GPU_PRODUCT), compute(node))
        && is_gb10(product) != (compute == GB10_COMPUTE)
    {
        found.push(format!(
            "{}={product}, but its compute capability is {}.{} (GB10 has 12.1, and nothing else has)",
            labels::GPU_PRODUCT,
            compute.0,
            compute.1
        ));
    }
    let models: Vec<(&str, &str)> = labels::GPU_MODELS
        .into_iter()
        .filter_map(|key| Some((key, get(key)?)))
        .collect();
    if let Some((one, rest)) = models.split_first() {
        for other in rest.iter().filter(|other| !same_model(one.1, other.1)) {
            found.push(format!("{}={}, but {}={}", one.0, one.1, other.0, other.1));
        }
    }
    found.extend(missing_units(node));
    found
}

/// GPUs that are there and not offered. Partitioned and renamed ones are counted by other names.
fn missing_units(node: &NodeFacts) -> Option<String> {
    let number = |key: &str| node.label(key)?.parse::<u64>().ok();
    let there = number(labels::GPU_COUNT)?.saturating_mul(number(labels::GPU_REPLICAS).unwrap_or(1).max(1));
    let offered = *node.allocatable.get("nvidia.com/gpu")?;
    let otherwise = node
        .allocatable
        .iter()
        .any(|(name, units)| is_nvidia_resource(name) && name != "nvidia.com/gpu" && *units > 0);
    (offered < there && !otherwise && !node.labels.contains_key(labels::MIG_STRATEGY)).then(|| {
        format!(
            "the machine has {there} units of GPU ({}), but {offered} nvidia.com/gpu can be had",
            labels::GPU_COUNT
        )
    })
}

/// Publishers write one model in many ways (`NVIDIA-A100-SXM4-40GB`, `nvidia-tesla-a100`, `a100`). They mean the same when a
/// part of the name with a digit, other than a memory size, is in both, or when neither has such a part to compare.
fn same_model(a: &str, b: &str) -> bool {
    let parts = |name: &str| -> Vec<String> {
        gpu_model(name)
            .to_ascii_lowercase()
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|part| part.contains(|c: char| c.is_ascii_digit()) && !part.ends_with("gb"))
            .map(str::to_owned)
            .collect()
    };
    let (a, b) = (parts(a), parts(b));
    a.is_empty() || b.is_empty() || a.iter().any(|part| b.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_model_in_many_spellings() {
        for (a, b) in [
            ("NVIDIA-A100-SXM4-40GB", "a100"),
            ("NVIDIA-A100-SXM4-80GB", "nvidia-a100-80gb"),
            ("Tesla-T4", "nvidia-tesla-t4"),
            ("NVIDIA-H100-80GB-HBM3", "nvidia-h100-mega-80gb"),
            ("NVIDIA-A10G-SHARED", "a10g"),
            ("some-gpu", "a10g"),
        ] {
            assert!(same_model(a, b), "{a} {b}");
        }
        for (a, b) in [
            ("NVIDIA-L4", "nvidia-l40s"),
            ("NVIDIA-A100-SXM4-80GB", "nvidia-h100-80gb"),
            ("Tesla-T4", "t4g"),
        ] {
            assert!(!same_model(a, b), "{a} {b}");
        }
    }

    #[test]
    fn a_model_is_the_product_without_suffixes() {
        for (product, model) in [
            ("NVIDIA-GB10", "NVIDIA-GB10"),
            ("NVIDIA-GB10-SHARED", "NVIDIA-GB10"),
            ("NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", "NVIDIA-A100-SXM4-80GB"),
            ("NVIDIA-A100-SXM4-80GB-MIG-1g.10gb-SHARED", "NVIDIA-A100-SXM4-80GB"),
        ] {
            assert_eq!(gpu_model(product), model);
        }
    }
}
