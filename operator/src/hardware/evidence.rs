//! Why a node is what it is: each fact with where it is known from, and for each class that does not have the node the
//! reason. For people to read; nothing is decided here, that is the part of `classify`.

use std::fmt;

use hawkeye_crds::v1alpha1::{Device, HardwareClassSpec, NodeSelectorRequirement, NodeSelectorTerm, SelectorOperator};
use serde::{Serialize, Serializer, ser::SerializeMap};

use super::{
    ClassIndex, ClassNodes, NodeFacts, Unclassified,
    classify::{CLOCK, class_of, gpu_evidence, is_gpu_resource, requirement_holds, term_holds},
    inventory, labels,
};

/// Values of a list that a sentence shows; the table of Graviton instance types alone has hundreds.
const SHOWN: usize = 3;

/// What a fact is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum What {
    /// Operating system.
    OperatingSystem,
    /// Architecture.
    Architecture,
    /// Machine type of a cloud.
    InstanceType,
    /// Make of the CPU.
    CpuModel,
    /// Design of its cores.
    CpuCore,
    /// Instruction sets that the models' kernels care about.
    CpuFeatures,
    /// CPUs that pods can ask for.
    Cpu,
    /// Memory that pods can ask for.
    Memory,
    /// That there is a GPU or none.
    Gpu,
    /// Model of the GPU.
    GpuProduct,
    /// GPUs in the machine.
    GpuCount,
    /// Memory of one GPU.
    GpuMemory,
    /// Memory that CPU and GPU share.
    UnifiedMemory,
    /// Compute capability of the GPU.
    ComputeCapability,
    /// How one GPU is shared by several pods.
    GpuSharing,
    /// How GPUs are partitioned.
    Mig,
    /// Version of the NVIDIA driver.
    Driver,
    /// Highest CUDA version that the driver supports.
    Cuda,
    /// Units of a GPU resource that pods can ask for.
    GpuUnits,
    /// Units of another resource that pods can ask for.
    Resource,
    /// A label that is none of the above.
    Label,
    /// What labels told that are gone.
    Remembered,
}

impl What {
    /// For people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OperatingSystem => "operating system",
            Self::Architecture => "architecture",
            Self::InstanceType => "instance type",
            Self::CpuModel => "CPU",
            Self::CpuCore => "CPU core",
            Self::CpuFeatures => "CPU features",
            Self::Cpu => "CPUs",
            Self::Memory => "memory",
            Self::Gpu => "GPU",
            Self::GpuProduct => "GPU product",
            Self::GpuCount => "GPU count",
            Self::GpuMemory => "GPU memory",
            Self::UnifiedMemory => "unified memory",
            Self::ComputeCapability => "compute capability",
            Self::GpuSharing => "GPU sharing",
            Self::Mig => "MIG",
            Self::Driver => "NVIDIA driver",
            Self::Cuda => "CUDA up to",
            Self::GpuUnits => "GPU units",
            Self::Resource => "resource",
            Self::Label => "label",
            Self::Remembered => "remembered",
        }
    }

    fn of_label(key: &str) -> Self {
        match key {
            labels::OS => Self::OperatingSystem,
            labels::ARCH => Self::Architecture,
            labels::INSTANCE_TYPE => Self::InstanceType,
            labels::GRAVITON => Self::CpuModel,
            _ if key == labels::CPU_MODEL[1] => Self::CpuCore,
            _ if labels::GPU_MODELS.contains(&key) => Self::GpuProduct,
            _ if labels::GPU_COMPUTE.contains(&key) => Self::ComputeCapability,
            _ => Self::Label,
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing that is known about a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// What it is about.
    pub what: What,
    /// What is so.
    pub value: String,
    /// Where this is known from, e.g. `label nvidia.com/gpu.product` or `allocatable nvidia.com/gpu`.
    pub source: String,
}

impl Fact {
    pub(super) fn new(what: What, value: impl Into<String>, source: impl Into<String>) -> Self {
        Self {
            what,
            value: value.into(),
            source: source.into(),
        }
    }
}

/// "GPU product NVIDIA-GB10 (label nvidia.com/gpu.product)".
impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.what, self.value, self.source)
    }
}

/// A class that does not have the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rejection {
    /// Name of the class.
    pub class: String,
    /// Why, in a sentence without a full stop.
    pub message: String,
}

/// What a node is, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    /// Name of the node.
    pub node: String,
    /// Name of its class, or why it has none. In JSON: `class`, or `reason` and `message`.
    #[serde(flatten, serialize_with = "outcome")]
    pub class: Result<String, Unclassified>,
    /// What tells the class: the facts that the class asks for. Empty without a class.
    pub why: Vec<Fact>,
    /// Everything that is known about the node.
    pub facts: Vec<Fact>,
    /// What its publishers say that cannot all be true, each in a sentence without a full stop.
    pub conflicts: Vec<String>,
    /// The other classes, in the order of the index, each with the reason.
    pub rejected: Vec<Rejection>,
}

impl NodeReport {
    /// The first fact about this.
    pub fn fact(&self, what: What) -> Option<&Fact> {
        self.facts.iter().find(|fact| fact.what == what)
    }

    /// Why it has its class, or none, in one line.
    pub fn because(&self) -> String {
        match &self.class {
            Ok(_) => {
                let facts: Vec<String> = self.why.iter().map(ToString::to_string).collect();
                facts.join("; ")
            }
            Err(unclassified) => unclassified.message.clone(),
        }
    }
}

fn outcome<S: Serializer>(class: &Result<String, Unclassified>, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    match class {
        Ok(class) => map.serialize_entry("class", class)?,
        Err(Unclassified { reason, message, .. }) => {
            map.serialize_entry("reason", reason.as_str())?;
            map.serialize_entry("message", message)?;
        }
    }
    map.end()
}

/// What the node is among the classes of the index, and why. Of the index's nodes only those matter that keep a class whose
/// labels they have lost.
pub fn describe(index: &ClassIndex, node: &NodeFacts) -> NodeReport {
    let kept = index.kept_on(&node.name);
    let position = match kept {
        Some((at, _)) => Ok(at),
        None => class_of(&index.classes, node),
    };
    let has = position.as_ref().ok().map(|at| &index.classes[*at]);
    NodeReport {
        node: node.name.clone(),
        why: match (has, kept) {
            (Some(class), Some((_, kept))) => vec![Fact::new(
                What::Remembered,
                &class.name,
                format!(
                    "labels that were there until {}, kept until {}",
                    kept.lost.strftime(CLOCK),
                    kept.until.strftime(CLOCK)
                ),
            )],
            (Some(class), None) => why(&class.spec, node),
            (None, _) => Vec::new(),
        },
        facts: inventory::facts(node),
        conflicts: inventory::conflicts(node),
        rejected: index
            .classes
            .iter()
            .filter(|class| has.is_none_or(|has| has.name != class.name))
            .map(|class| Rejection {
                class: class.name.clone(),
                message: rejection(class, node, has),
            })
            .collect(),
        class: match position {
            Ok(at) => Ok(index.classes[at].name.clone()),
            Err((reason, message)) => Err(Unclassified {
                node: node.name.clone(),
                reason,
                message,
            }),
        },
    }
}

/// What the class asks for and the node has.
fn why(class: &HardwareClassSpec, node: &NodeFacts) -> Vec<Fact> {
    let mut facts = Vec::new();
    for key in [labels::OS, labels::ARCH] {
        if let Some(value) = node.label(key) {
            facts.push(Fact::new(What::of_label(key), value, format!("label {key}")));
        }
    }
    let term = class
        .node_selector_terms
        .iter()
        .find(|term| term_holds(term, &node.labels));
    for requirement in term.iter().flat_map(|term| &term.match_expressions) {
        let key = requirement.key.as_str();
        // An absent label only says what the node is not.
        let Some(value) = node.label(key).filter(|_| ![labels::OS, labels::ARCH].contains(&key)) else {
            continue;
        };
        let source = match requirement.operator {
            SelectorOperator::NotIn => format!("label {key}, none of {}", list(&requirement.values)),
            _ => format!("label {key}"),
        };
        facts.push(Fact::new(What::of_label(key), value, source));
    }
    match &class.resource {
        Some(resource) => {
            let units = node.allocatable.get(resource).copied().unwrap_or(0);
            let what = if is_gpu_resource(resource) {
                What::GpuUnits
            } else {
                What::Resource
            };
            facts.push(Fact::new(
                what,
                format!("{units} {resource}"),
                format!("allocatable {resource}"),
            ));
        }
        None if class.device == Device::Cpu => {
            let source = "no label and no allocatable resource shows one";
            facts.push(Fact::new(What::Gpu, "none", source));
        }
        None => {}
    }
    facts
}

/// Why the class does not have the node.
fn rejection(class: &ClassNodes, node: &NodeFacts, has: Option<&ClassNodes>) -> String {
    let spec = &class.spec;
    match node.label(labels::OS) {
        Some("linux") => {}
        Some(other) => return format!("its operating system is {other}, not linux"),
        None => return format!("it has no label {}", labels::OS),
    }
    match node.label(labels::ARCH) {
        Some(arch) if arch == spec.arch.as_str() => {}
        Some(arch) => return format!("it is {arch}, the class {}", spec.arch.as_str()),
        None => return format!("it has no label {}", labels::ARCH),
    }
    if !spec
        .node_selector_terms
        .iter()
        .any(|term| term_holds(term, &node.labels))
    {
        return nearest(spec, node);
    }
    match &spec.resource {
        Some(resource) => match node.allocatable.get(resource) {
            None => return format!("it offers no {resource}"),
            Some(0) => return format!("it has 0 {resource} allocatable"),
            Some(_) => {}
        },
        None => {
            if let Some(evidence) = gpu_evidence(node).filter(|_| spec.device == Device::Cpu) {
                return format!("it shows a GPU ({evidence}), and this is a class for CPUs");
            }
        }
    }
    match has {
        Some(has) if has.spec.priority > spec.priority => format!(
            "it admits the node, but {} has the higher priority ({} over {})",
            has.name, has.spec.priority, spec.priority
        ),
        Some(has) => format!(
            "it admits the node, but {} of the same priority comes first by name",
            has.name
        ),
        None => "it admits the node".to_owned(),
    }
}

/// The first expression that fails, of the term that has the fewest of them.
fn nearest(spec: &HardwareClassSpec, node: &NodeFacts) -> String {
    let failing = |term: &NodeSelectorTerm| {
        let of = term.match_expressions.iter();
        of.filter(|one| !requirement_holds(one, &node.labels)).count()
    };
    let requirement = spec
        .node_selector_terms
        .iter()
        .min_by_key(|term| failing(term))
        .and_then(|term| {
            let mut of = term.match_expressions.iter();
            of.find(|one| !requirement_holds(one, &node.labels))
        });
    match requirement {
        Some(requirement) => unmet(requirement, node.label(&requirement.key)),
        None => "it has a term without expressions, which matches nothing".to_owned(),
    }
}

fn unmet(requirement: &NodeSelectorRequirement, value: Option<&str>) -> String {
    let key = &requirement.key;
    match (requirement.operator, value) {
        (SelectorOperator::In, None) => format!("the node has no label {key} (wanted: {})", list(&requirement.values)),
        (SelectorOperator::In, Some(value)) => {
            format!("label {key}={value} is none of {}", list(&requirement.values))
        }
        (SelectorOperator::Exists, _) => format!("the node has no label {key}"),
        (SelectorOperator::NotIn | SelectorOperator::DoesNotExist, value) => {
            format!("label {key}={} rules it out", value.unwrap_or_default())
        }
    }
}

/// "a, b, c and 400 more".
fn list(values: &[String]) -> String {
    let shown = values
        .iter()
        .take(SHOWN)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(", ");
    match values.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{shown} and {more} more"),
        _ => shown,
    }
}
