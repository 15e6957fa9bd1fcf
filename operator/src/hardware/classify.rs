//! Node to class: which hardware class a node belongs to, and why when it belongs to none.
//!
//! Uses labels and allocatable resources only.

use std::collections::BTreeMap;

use hawkeye_crds::v1alpha1::{
    Arch, Device, HardwareClass, HardwareClassSpec, NodeSelectorRequirement, NodeSelectorTerm, Reason, SelectorOperator,
};

use super::NodeFacts;

/// Labels that show an NVIDIA GPU when they have this value (`None`: any). The CPU classes keep off the same labels; a
/// test holds the two together. `nvidia.com/gpu.present` is set to `false` when the GPU is gone, so its value counts.
pub const GPU_LABELS: [(&str, Option<&str>); 10] = [
    ("nvidia.com/gpu.present", Some("true")),
    ("nvidia.com/gpu.product", None),
    ("nvidia.com/gpu.compute.major", None),
    ("feature.node.kubernetes.io/pci-10de.present", Some("true")),
    ("feature.node.kubernetes.io/pci-0300_10de.present", Some("true")),
    ("feature.node.kubernetes.io/pci-0302_10de.present", Some("true")),
    ("cloud.google.com/gke-accelerator", None),
    ("eks.amazonaws.com/instance-gpu-name", None),
    ("karpenter.k8s.aws/instance-gpu-name", None),
    ("karpenter.azure.com/sku-gpu-name", None),
];

/// Instance family with a GPU that is told by its name alone: Graviton2 with a T4G.
const GPU_INSTANCE_FAMILY: &str = "g5g.";

/// A class in the index, with the nodes that belong to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassNodes {
    /// Name of the class.
    pub name: String,
    /// Its spec.
    pub spec: HardwareClassSpec,
    /// Nodes that belong to it, ready or not.
    pub nodes: u32,
    /// Of these, nodes whose taints its pods tolerate, ready or not.
    pub intended: u32,
    /// Of these, nodes that are ready, not cordoned and without a taint that its pods do not tolerate.
    pub schedulable: u32,
    /// Units of its resource that are free of pods that are not ours, on ready and schedulable nodes. 0 without a resource.
    pub free: u64,
    /// Units of its resource that pods of others hold there.
    pub taken: u64,
    /// Most memory that pods can ask for on one of the intended nodes, ready or not, in bytes; `None` when none says.
    /// A node that restarts does not shrink anybody's batch.
    pub largest_memory: Option<u64>,
    /// Most CPU that pods can ask for on one of them, in thousandths; not always the same node.
    pub largest_cpu_milli: Option<u64>,
}

/// A node without a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unclassified {
    /// Name of the node.
    pub node: String,
    /// Why.
    pub reason: Reason,
    /// Why, in a sentence without the node's name.
    pub message: String,
}

/// Every class with its nodes: one for all HawkeyeDeployments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClassIndex {
    /// Classes, the highest priority first, then by name.
    pub classes: Vec<ClassNodes>,
    /// Nodes that no class admits, by name.
    pub unclassified: Vec<Unclassified>,
    /// Position of the class of each node that takes new pods of it now.
    offering: BTreeMap<String, usize>,
}

impl ClassIndex {
    /// Sorts the nodes into the classes. `taken(node, resource)` is what bound, non-terminal pods of others hold there.
    pub fn new<'a>(
        classes: impl IntoIterator<Item = &'a HardwareClass>,
        nodes: &[NodeFacts],
        taken: impl Fn(&str, &str) -> u64,
    ) -> Self {
        let mut classes: Vec<ClassNodes> = classes
            .into_iter()
            .map(|class| ClassNodes {
                name: class.metadata.name.clone().unwrap_or_default(),
                spec: class.spec.clone(),
                nodes: 0,
                intended: 0,
                schedulable: 0,
                free: 0,
                taken: 0,
                largest_memory: None,
                largest_cpu_milli: None,
            })
            .collect();
        classes.sort_by(|a, b| b.spec.priority.cmp(&a.spec.priority).then_with(|| a.name.cmp(&b.name)));
        let mut unclassified = Vec::new();
        let mut offering = BTreeMap::new();
        for node in nodes {
            match class_of(&classes, node) {
                Ok(position) => {
                    if classes[position].count(node, &taken) {
                        offering.insert(node.name.clone(), position);
                    }
                }
                Err((reason, message)) => unclassified.push(Unclassified {
                    node: node.name.clone(),
                    reason,
                    message,
                }),
            }
        }
        unclassified.sort_by(|a, b| a.node.cmp(&b.node));
        Self {
            classes,
            unclassified,
            offering,
        }
    }

    /// True when the node belongs to the class and takes new pods of it now.
    pub fn offers(&self, node: &str, class: &str) -> bool {
        self.offering
            .get(node)
            .is_some_and(|position| self.classes[*position].name == class)
    }

    /// The class of that name.
    pub fn get(&self, name: &str) -> Option<&ClassNodes> {
        self.classes.iter().find(|class| class.name == name)
    }
}

impl ClassNodes {
    /// True when the class has nodes for its pods, or an autoscaler that adds them.
    pub fn exists(&self) -> bool {
        self.intended > 0 || self.spec.autoscaled
    }

    /// Counts a node of this class; true when it takes new pods now.
    fn count(&mut self, node: &NodeFacts, taken: &impl Fn(&str, &str) -> u64) -> bool {
        self.nodes += 1;
        if node.intended(&self.spec.tolerations) {
            self.intended += 1;
            self.largest_memory = self.largest_memory.max(node.memory);
            self.largest_cpu_milli = self.largest_cpu_milli.max(node.cpu_milli);
        }
        if !node.schedulable(&self.spec.tolerations) {
            return false;
        }
        self.schedulable += 1;
        if let Some(resource) = &self.spec.resource {
            let held = taken(&node.name, resource);
            self.taken += held;
            self.free += node
                .allocatable
                .get(resource)
                .copied()
                .unwrap_or(0)
                .saturating_sub(held);
        }
        true
    }
}

/// Position of the node's class in a list sorted by priority, or why it has none.
///
/// # Errors
/// The reason and a sentence.
pub fn class_of(classes: &[ClassNodes], node: &NodeFacts) -> Result<usize, (Reason, String)> {
    if let Some(position) = classes.iter().position(|class| admits(&class.spec, node)) {
        return Ok(position);
    }
    if let Some(evidence) = gpu_evidence(node) {
        return Err((
            Reason::UnsupportedGpuResource,
            format!(
                "it shows a GPU ({evidence}), but no class knows a resource that it has allocatable; check the device \
                 plugin, or add a HardwareClass that names the resource"
            ),
        ));
    }
    let label = |key: &str| node.labels.get(key).map_or("unknown", String::as_str);
    Err((
        Reason::NoClassMatches,
        format!(
            "no HardwareClass admits operating system {} on {} with its labels",
            label("kubernetes.io/os"),
            label("kubernetes.io/arch")
        ),
    ))
}

/// True when the class takes the node: operating system, architecture, one of the terms, and the resource allocatable. A
/// class for CPUs never takes a node that shows a GPU, unless the class names a resource of its own.
pub fn admits(class: &HardwareClassSpec, node: &NodeFacts) -> bool {
    let label = |key: &str| node.labels.get(key).map(String::as_str);
    label("kubernetes.io/os") == Some("linux")
        && label("kubernetes.io/arch") == Some(class.arch.as_str())
        && class
            .node_selector_terms
            .iter()
            .any(|term| term_holds(term, &node.labels))
        && match &class.resource {
            Some(resource) => node.allocatable.get(resource).is_some_and(|units| *units > 0),
            None => class.device != Device::Cpu || gpu_evidence(node).is_none(),
        }
}

/// What shows that the node has an NVIDIA GPU, if anything does.
pub fn gpu_evidence(node: &NodeFacts) -> Option<String> {
    let offered = |positive: bool| {
        node.allocatable
            .iter()
            .find(|(name, units)| is_gpu_resource(name) && (**units > 0) == positive)
            .map(|(name, units)| format!("allocatable {name}: {units}"))
    };
    let by_label = || {
        GPU_LABELS.iter().find_map(|(key, wanted)| {
            let value = node.labels.get(*key)?;
            wanted
                .is_none_or(|wanted| wanted == value)
                .then(|| format!("label {key}={value}"))
        })
    };
    let by_instance_type = || {
        let value = node.labels.get("node.kubernetes.io/instance-type")?;
        let arm = node
            .labels
            .get("kubernetes.io/arch")
            .is_some_and(|arch| arch == Arch::Arm64.as_str());
        (arm && value.starts_with(GPU_INSTANCE_FAMILY)).then(|| format!("instance type {value}"))
    };
    // A resource that fell to 0 still shows a GPU (broken plugin, DRA), unless its publisher says that it is gone.
    let zero = || {
        let gone = node
            .labels
            .get("nvidia.com/gpu.present")
            .is_some_and(|value| value == "false");
        (!gone).then(|| offered(false)).flatten()
    };
    offered(true).or_else(by_label).or_else(by_instance_type).or_else(zero)
}

/// `nvidia.com/gpu`, `nvidia.com/gpu.shared`, `nvidia.com/mig-1g.10gb` and the like.
fn is_gpu_resource(name: &str) -> bool {
    name.strip_prefix("nvidia.com/")
        .is_some_and(|rest| rest.starts_with("gpu") || rest.starts_with("mig-"))
}

fn term_holds(term: &NodeSelectorTerm, labels: &BTreeMap<String, String>) -> bool {
    // A term without expressions matches nothing, as in Kubernetes.
    !term.match_expressions.is_empty() && term.match_expressions.iter().all(|one| requirement_holds(one, labels))
}

/// An expression over labels, as the scheduler reads it: `NotIn` also holds without the label.
pub fn requirement_holds(requirement: &NodeSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    let value = labels.get(&requirement.key);
    let listed = || value.is_some_and(|value| requirement.values.contains(value));
    match requirement.operator {
        SelectorOperator::In => listed(),
        SelectorOperator::NotIn => !listed(),
        SelectorOperator::Exists => value.is_some(),
        SelectorOperator::DoesNotExist => value.is_none(),
    }
}
