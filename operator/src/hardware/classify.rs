//! Node to class: which hardware class a node belongs to, and why when it belongs to none.
//!
//! Uses labels and allocatable resources only.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hawkeye_crds::v1alpha1::{
    Arch, Device, HardwareClass, HardwareClassSpec, NodeSelectorRequirement, NodeSelectorTerm, Reason, SelectorOperator,
};
use jiff::Timestamp;

use super::{Kept, Labels, NodeFacts, inventory, labels};

/// Labels that show an NVIDIA GPU when they have this value (`None`: any). The CPU classes keep off the same labels; a
/// test holds the two together. `nvidia.com/gpu.present` is set to `false` when the GPU is gone, so its value counts.
pub const GPU_LABELS: [(&str, Option<&str>); 11] = [
    (labels::GPU_PRESENT, Some("true")),
    (labels::GPU_PRODUCT, None),
    ("nvidia.com/gpu.compute.major", None),
    ("feature.node.kubernetes.io/pci-10de.present", Some("true")),
    ("feature.node.kubernetes.io/pci-0300_10de.present", Some("true")),
    ("feature.node.kubernetes.io/pci-0302_10de.present", Some("true")),
    ("cloud.google.com/gke-accelerator", None),
    ("eks.amazonaws.com/instance-gpu-name", None),
    ("karpenter.k8s.aws/instance-gpu-name", None),
    ("karpenter.azure.com/sku-gpu-name", None),
    ("kubernetes.azure.com/accelerator", Some("nvidia")),
];

/// Instance family with a GPU that is told by its name alone: Graviton2 with a T4G.
const GPU_INSTANCE_FAMILY: &str = "g5g.";

/// Most obstacles of a class that are kept, for a status has to stay short.
const OBSTACLES: usize = 4;

/// Times in sentences, in UTC.
pub const CLOCK: &str = "%Y-%m-%dT%H:%M:%SZ";

/// A class in the index, with the nodes that belong to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassNodes {
    /// Name of the class.
    pub name: String,
    /// Its spec, which every plan of a pool shares: label lists of clouds are long.
    pub spec: Arc<HardwareClassSpec>,
    /// Nodes that belong to it, ready or not.
    pub nodes: u32,
    /// Of these, nodes whose taints its pods tolerate, ready or not.
    pub intended: u32,
    /// Of these, nodes that are ready, not cordoned and without a taint that its pods do not tolerate.
    pub schedulable: u32,
    /// What keeps new pods off the others now: `cordoned`, `not ready`, `taint KEY=VALUE:EFFECT`. The first few of them.
    pub obstacles: BTreeSet<String>,
    /// Units of its resource that are free of pods that are not ours, on ready and schedulable nodes. 0 without a resource.
    pub free: u64,
    /// Units of its resource that pods of others hold there.
    pub taken: u64,
    /// Most memory that pods can ask for on one of the intended nodes, ready or not, in bytes; `None` when none says.
    /// A node that restarts does not shrink anybody's batch.
    pub largest_memory: Option<u64>,
    /// Most CPU that pods can ask for on one of them, in thousandths; not always the same node.
    pub largest_cpu_milli: Option<u64>,
    /// Its nodes that have lost the labels that told it, and keep it for a while; by name. They take no new pods.
    pub kept: Vec<Kept>,
    /// Classes that admit some of the same nodes, in the order of the index.
    pub overlaps: Vec<Overlap>,
}

/// Nodes that a class shares with another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// Name of the other class.
    pub class: String,
    /// Its priority.
    pub priority: i32,
    /// The other class has these nodes, for it is tried first. Otherwise this one has.
    pub other_first: bool,
    /// How many nodes both admit, as far as one of the two has them.
    pub nodes: u32,
    /// The first of them by name.
    pub example: String,
}

/// What is known of a node's class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Position of its class, or why it has none.
    pub class: Result<usize, (Reason, String)>,
    /// Set when its labels no longer tell the class.
    pub kept: Option<Kept>,
}

impl Assignment {
    /// As labels and resources tell it.
    pub fn plain(class: Result<usize, (Reason, String)>) -> Self {
        Self { class, kept: None }
    }
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
        nodes: &[impl Borrow<NodeFacts>],
        taken: impl Fn(&str, &str) -> u64,
    ) -> Self {
        let classes = by_priority(classes);
        let assigned = nodes
            .iter()
            .map(|node| Assignment::plain(class_of(&classes, node.borrow())))
            .collect();
        Self::assigned(classes, nodes, assigned, taken)
    }

    /// The same with each node's class given, in the order of `nodes`. `classes` come from [`by_priority`].
    pub fn assigned(
        mut classes: Vec<ClassNodes>,
        nodes: &[impl Borrow<NodeFacts>],
        assigned: Vec<Assignment>,
        taken: impl Fn(&str, &str) -> u64,
    ) -> Self {
        let mut unclassified = Vec::new();
        let mut offering = BTreeMap::new();
        let mut shared = BTreeMap::new();
        for (node, assignment) in nodes.iter().map(Borrow::borrow).zip(assigned) {
            match assignment.class {
                Ok(position) => {
                    // What it would be without its memory is no overlap.
                    if assignment.kept.is_none() {
                        share(&classes, position, node, &mut shared);
                    }
                    if classes[position].count(node, assignment.kept, &taken) {
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
        for class in &mut classes {
            class.kept.sort_by(|a, b| a.node.cmp(&b.node));
        }
        note_overlaps(&mut classes, shared);
        Self {
            classes,
            unclassified,
            offering,
        }
    }

    /// The class that a node keeps without the labels that told it.
    pub fn kept_on(&self, node: &str) -> Option<(usize, &Kept)> {
        let mut classes = self.classes.iter().enumerate();
        classes.find_map(|(at, class)| Some((at, class.kept.iter().find(|kept| kept.node == node)?)))
    }

    /// When the next node loses the class that it keeps.
    pub fn next_end_of_grace(&self) -> Option<Timestamp> {
        let kept = self.classes.iter().flat_map(|class| &class.kept);
        kept.map(|kept| kept.until).min()
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        let classified: u32 = self.classes.iter().map(|class| class.nodes).sum();
        classified as usize + self.unclassified.len()
    }

    /// True when the node belongs to the class and takes new pods of it now.
    pub fn offers(&self, node: &str, class: &str) -> bool {
        self.offering
            .get(node)
            .is_some_and(|position| self.classes[*position].name == class)
    }

    /// The nodes that take new pods of a class now, by name.
    pub fn nodes_of(&self, class: &str) -> impl Iterator<Item = &str> {
        let wanted = self.classes.iter().position(|other| other.name == class);
        self.offering
            .iter()
            .filter(move |(_, position)| Some(**position) == wanted)
            .map(|(node, _)| node.as_str())
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

    /// Says which nodes keep the class without the labels that told it, if any do. Short and without a count: when a label
    /// publisher restarts, thousands of nodes come and go within seconds, and each change of the text is a write.
    pub fn grace(&self) -> Option<String> {
        match self.kept.as_slice() {
            [] => None,
            [one] => Some(format!(
                "{} lost the labels that told this class at {}; it keeps the class until {}, but takes no new pods.",
                one.node,
                one.lost.strftime(CLOCK),
                one.until.strftime(CLOCK)
            )),
            _ => Some(
                "Several of its nodes have lost the labels that told this class; they keep it for a while, but take no new \
                 pods."
                    .to_owned(),
            ),
        }
    }

    /// What keeps new pods off its nodes now, e.g. "cordoned, taint dedicated=ci:NoSchedule".
    pub fn kept_off(&self) -> String {
        let words: Vec<&str> = self.obstacles.iter().map(String::as_str).collect();
        words.join(", ")
    }

    /// Counts a node of this class; true when it takes new pods now.
    fn count(&mut self, node: &NodeFacts, kept: Option<Kept>, taken: &impl Fn(&str, &str) -> u64) -> bool {
        self.nodes += 1;
        if node.intended(&self.spec.tolerations) {
            self.intended += 1;
            self.largest_memory = self.largest_memory.max(node.memory);
            self.largest_cpu_milli = self.largest_cpu_milli.max(node.cpu_milli);
        }
        if let Some(kept) = kept {
            self.kept.push(kept);
            return false;
        }
        if !node.schedulable(&self.spec.tolerations) {
            self.obstacles.extend(node.obstacles(&self.spec.tolerations));
            while self.obstacles.len() > OBSTACLES {
                self.obstacles.pop_last();
            }
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

/// The classes without nodes, in the order in which they are tried: the highest priority first, then by name.
pub fn by_priority<'a>(classes: impl IntoIterator<Item = &'a HardwareClass>) -> Vec<ClassNodes> {
    let mut classes: Vec<ClassNodes> = classes
        .into_iter()
        .map(|class| ClassNodes {
            name: class.metadata.name.clone().unwrap_or_default(),
            spec: Arc::new(class.spec.clone()),
            nodes: 0,
            intended: 0,
            schedulable: 0,
            obstacles: BTreeSet::new(),
            free: 0,
            taken: 0,
            largest_memory: None,
            largest_cpu_milli: None,
            kept: Vec::new(),
            overlaps: Vec::new(),
        })
        .collect();
    classes.sort_by(|a, b| b.spec.priority.cmp(&a.spec.priority).then_with(|| a.name.cmp(&b.name)));
    classes
}

/// By positions of the class that has the nodes and of another that admits them: how many, and the first by name.
type Shared = BTreeMap<(usize, usize), (u32, String)>;

fn share(classes: &[ClassNodes], has: usize, node: &NodeFacts, shared: &mut Shared) {
    for (other, class) in classes.iter().enumerate() {
        if other == has || !admits(&class.spec, node) {
            continue;
        }
        let (nodes, example) = shared.entry((has, other)).or_insert_with(|| (0, node.name.clone()));
        *nodes += 1;
        if node.name < *example {
            example.clone_from(&node.name);
        }
    }
}

fn note_overlaps(classes: &mut [ClassNodes], shared: Shared) {
    for ((has, other), (nodes, example)) in shared {
        for (one, two) in [(has, other), (other, has)] {
            let overlap = Overlap {
                class: classes[two].name.clone(),
                priority: classes[two].spec.priority,
                other_first: two == has,
                nodes,
                example: example.clone(),
            };
            classes[one].overlaps.push(overlap);
        }
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
    let linux = node.label(labels::OS) == Some("linux");
    if let Some(evidence) = gpu_evidence(node).filter(|_| linux) {
        return Err((Reason::UnsupportedGpuResource, unsupported(node, &evidence)));
    }
    let label = |key: &str| node.label(key).unwrap_or("unknown");
    Err((
        Reason::NoClassMatches,
        format!(
            "no HardwareClass admits operating system {} on {} with its labels",
            label(labels::OS),
            label(labels::ARCH)
        ),
    ))
}

/// Why a node with a GPU has no class, and what to do.
fn unsupported(node: &NodeFacts, evidence: &str) -> String {
    let offered: Vec<String> = node
        .allocatable
        .iter()
        .filter(|(name, units)| is_gpu_resource(name) && **units > 0)
        .map(|(name, units)| format!("{units} {name}"))
        .collect();
    let mut message = if offered.is_empty() {
        format!(
            "it shows a GPU ({evidence}), but offers none: check the device plugin; GPUs given out by DRA cannot be used yet"
        )
    } else {
        let nvidia = node
            .allocatable
            .iter()
            .any(|(name, units)| is_nvidia_resource(name) && *units > 0);
        let advice = if nvidia {
            "offer it as nvidia.com/gpu, or add a HardwareClass that names the resource"
        } else {
            "the images of this release do not compute on it; to use the node's CPU, add a HardwareClass with device Cpu \
             that names the resource"
        };
        format!(
            "it offers its GPU as {}, which no class takes on such a node: {advice}",
            offered.join(" and ")
        )
    };
    for conflict in inventory::conflicts(node) {
        message.extend(["; ", &conflict]);
    }
    message
}

/// True when the class takes the node: operating system, architecture, one of the terms, and the resource allocatable. A
/// class for CPUs never takes a node that shows a GPU, unless the class names a resource of its own.
pub fn admits(class: &HardwareClassSpec, node: &NodeFacts) -> bool {
    node.label(labels::OS) == Some("linux")
        && node.label(labels::ARCH) == Some(class.arch.as_str())
        && class
            .node_selector_terms
            .iter()
            .any(|term| term_holds(term, &node.labels))
        && match &class.resource {
            Some(resource) => node.allocatable.get(resource).is_some_and(|units| *units > 0),
            None => class.device != Device::Cpu || gpu_evidence(node).is_none(),
        }
}

/// What shows that the node has a GPU, if anything does. Labels are looked for of NVIDIA's only.
pub fn gpu_evidence(node: &NodeFacts) -> Option<String> {
    let offered = |positive: bool| {
        node.allocatable
            .iter()
            .find(|(name, units)| is_gpu_resource(name) && (**units > 0) == positive)
            .map(|(name, units)| format!("allocatable {name}: {units}"))
    };
    let by_label = || {
        GPU_LABELS.iter().find_map(|(key, wanted)| {
            let value = node.label(key)?;
            wanted
                .is_none_or(|wanted| wanted == value)
                .then(|| format!("label {key}={value}"))
        })
    };
    let by_instance_type = || {
        let value = node.label(labels::INSTANCE_TYPE)?;
        let arm = node.label(labels::ARCH) == Some(Arch::Arm64.as_str());
        (arm && value.starts_with(GPU_INSTANCE_FAMILY)).then(|| format!("instance type {value}"))
    };
    // A resource that fell to 0 still shows a GPU (broken plugin, DRA), unless its publisher says that it is gone.
    let zero = || {
        let gone = node.label(labels::GPU_PRESENT) == Some("false");
        (!gone).then(|| offered(false)).flatten()
    };
    offered(true).or_else(by_label).or_else(by_instance_type).or_else(zero)
}

/// A GPU of any maker whose device plugin is known.
pub(super) fn is_gpu_resource(name: &str) -> bool {
    is_nvidia_resource(name) || is_foreign_gpu_resource(name)
}

/// `nvidia.com/gpu`, `nvidia.com/gpu.shared`, `nvidia.com/mig-1g.10gb` and the like.
pub(super) fn is_nvidia_resource(name: &str) -> bool {
    name.strip_prefix("nvidia.com/")
        .is_some_and(|rest| rest.starts_with("gpu") || rest.starts_with("mig-"))
}

/// `amd.com/gpu`, its partitions such as `amd.com/cpx_nps4`, and `gpu.intel.com/i915` or `xe`.
fn is_foreign_gpu_resource(name: &str) -> bool {
    name.starts_with("gpu.intel.com/")
        || name
            .strip_prefix("amd.com/")
            .is_some_and(|rest| rest.starts_with("gpu") || rest.contains("_nps"))
}

pub(super) fn term_holds(term: &NodeSelectorTerm, labels: &Labels) -> bool {
    // A term without expressions matches nothing, as in Kubernetes.
    !term.match_expressions.is_empty() && term.match_expressions.iter().all(|one| requirement_holds(one, labels))
}

/// An expression over labels, as the scheduler reads it: `NotIn` also holds without the label.
pub fn requirement_holds(requirement: &NodeSelectorRequirement, labels: &Labels) -> bool {
    let value = labels.get(requirement.key.as_str());
    let listed = || value.is_some_and(|value| requirement.values.iter().any(|one| **one == **value));
    match requirement.operator {
        SelectorOperator::In => listed(),
        SelectorOperator::NotIn => !listed(),
        SelectorOperator::Exists => value.is_some(),
        SelectorOperator::DoesNotExist => value.is_none(),
    }
}
