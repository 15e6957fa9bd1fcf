//! Nodes whose labels vanish keep their class for a while: label publishers remove labels when they restart, and add them
//! again (NFD#1802 saw it on 4,000 nodes). Without this a DGX Spark would be some other GPU node for that minute, or none.
//!
//! What is remembered of a node is what told its class: the labels of the term that held. A node has lost its labels when it
//! would have its class again if those that are absent now were put back. So a label with another value, an edited class or a
//! new class of higher priority take effect at once.
//!
//! A node in its grace counts as one of its class and takes no new pods, for the scheduler goes by the labels that there are.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use hawkeye_crds::v1alpha1::{HardwareClassSpec, NodeSelectorRequirement, NodeSelectorTerm, SelectorOperator};
use jiff::{SignedDuration, Timestamp};

use super::{
    ClassNodes, NodeFacts,
    classify::{Assignment, class_of, term_holds},
};

/// How long a node keeps its class unless the operator is told otherwise. Restarts of label publishers take seconds to
/// minutes; Kubernetes waits as long for a node that went away.
pub const GRACE: Duration = Duration::from_mins(5);

/// A node that keeps a class that its labels no longer tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Name of the node.
    pub node: String,
    /// When the labels were first seen to be gone.
    pub lost: Timestamp,
    /// When it loses the class, unless they come back.
    pub until: Timestamp,
}

/// Memory of what told each node's class.
#[derive(Debug)]
pub struct Grace {
    length: SignedDuration,
    nodes: HashMap<String, Seen>,
    recovered: bool,
}

/// Key and value.
type Label = (Arc<str>, Arc<str>);

/// What a node was when it was last seen with its labels.
#[derive(Debug)]
struct Seen {
    class: String,
    told_by: Vec<Label>,
    resource: Option<String>,
    lost: Option<Timestamp>,
}

impl Grace {
    /// Nothing is remembered yet. A length of zero turns it off.
    pub fn new(length: Duration) -> Self {
        Self {
            length: SignedDuration::try_from(length).unwrap_or(SignedDuration::MAX),
            nodes: HashMap::new(),
            recovered: false,
        }
    }

    /// Assigns each node its class, in the order of `nodes`. `classes` are sorted by priority. `hosted` are the classes whose
    /// pods a node has: after a restart of the operator they tell what its nodes were.
    pub fn assign<'a>(
        &mut self,
        classes: &[ClassNodes],
        nodes: &[impl Borrow<NodeFacts>],
        hosted: impl IntoIterator<Item = (&'a str, &'a str)>,
        now: Timestamp,
    ) -> Vec<Assignment> {
        if !self.recovered {
            self.recovered = true;
            self.recover(classes, nodes, hosted);
        }
        let nodes = || nodes.iter().map(Borrow::borrow);
        let there: HashSet<&str> = nodes().map(|node| node.name.as_str()).collect();
        self.nodes.retain(|name, _| there.contains(name.as_str()));
        nodes().map(|node| self.assign_one(classes, node, now)).collect()
    }

    fn assign_one(&mut self, classes: &[ClassNodes], node: &NodeFacts, now: Timestamp) -> Assignment {
        let class = class_of(classes, node);
        let is = class.as_ref().ok().map(|at| &classes[*at]);
        if let Some(seen) = self.nodes.get_mut(&node.name) {
            if is.is_some_and(|is| is.name == seen.class) {
                seen.lost = None;
                if !seen.current(node) {
                    self.see(node, is);
                }
                return Assignment::plain(class);
            }
            if let Some(at) = seen.again(classes, node, is.is_some()) {
                let lost = *seen.lost.get_or_insert(now);
                let until = lost.saturating_add(self.length).unwrap_or(Timestamp::MAX);
                if now < until {
                    return Assignment {
                        class: Ok(at),
                        kept: Some(Kept {
                            node: node.name.clone(),
                            lost,
                            until,
                        }),
                    };
                }
            }
        }
        self.see(node, is);
        Assignment::plain(class)
    }

    fn see(&mut self, node: &NodeFacts, class: Option<&ClassNodes>) {
        let Some(class) = class else {
            self.nodes.remove(&node.name);
            return;
        };
        let mut terms = class.spec.node_selector_terms.iter();
        let seen = Seen {
            class: class.name.clone(),
            told_by: terms
                .find(|term| term_holds(term, &node.labels))
                .map(|term| positive(term).filter_map(|one| pair(one, node)).collect())
                .unwrap_or_default(),
            resource: class.spec.resource.clone(),
            lost: None,
        };
        self.nodes.insert(node.name.clone(), seen);
    }

    /// What nodes were before the operator started, from the pods that they host.
    fn recover<'a>(
        &mut self,
        classes: &[ClassNodes],
        nodes: &[impl Borrow<NodeFacts>],
        hosted: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) {
        let mut by_node: BTreeMap<&str, HashSet<&str>> = BTreeMap::new();
        for (node, class) in hosted {
            by_node.entry(node).or_default().insert(class);
        }
        for node in nodes.iter().map(Borrow::borrow) {
            let Some(hosts) = by_node.get(node.name.as_str()) else {
                continue;
            };
            let is = class_of(classes, node).ok();
            let mut hosting = classes.iter().filter(|class| hosts.contains(class.name.as_str()));
            let seen = hosting.find_map(|class| {
                let seen = Seen {
                    class: class.name.clone(),
                    told_by: missing(&class.spec, node)?,
                    resource: class.spec.resource.clone(),
                    lost: None,
                };
                seen.again(classes, node, is.is_some()).map(|_| seen)
            });
            if let Some(seen) = seen {
                self.nodes.insert(node.name.clone(), seen);
            }
        }
    }
}

impl Seen {
    /// True when the node still has what told its class.
    fn current(&self, node: &NodeFacts) -> bool {
        self.told_by
            .iter()
            .all(|(key, value)| node.label(key) == Some(&**value))
    }

    /// Position of the class that was seen, if the node would have it again with what is absent put back. A resource alone
    /// counts only for a node that has a class without it: a bare GPU node would be a CPU node. Otherwise its labels still
    /// show the GPU, and saying that it is not offered helps more.
    fn again(&self, classes: &[ClassNodes], node: &NodeFacts, has_class: bool) -> Option<usize> {
        let mut restored = node.clone();
        let mut labels = false;
        for (key, value) in &self.told_by {
            if !restored.labels.contains_key(key) {
                restored.labels.insert(Arc::clone(key), Arc::clone(value));
                labels = true;
            }
        }
        if let Some(resource) = &self.resource {
            let units = restored.allocatable.entry(resource.clone()).or_insert(0);
            *units = (*units).max(1);
        }
        let at = class_of(classes, &restored).ok()?;
        (classes[at].name == self.class && (labels || has_class)).then_some(at)
    }
}

/// Expressions that a label has to be there for.
fn positive(term: &NodeSelectorTerm) -> impl Iterator<Item = &NodeSelectorRequirement> {
    let there = [SelectorOperator::In, SelectorOperator::Exists];
    term.match_expressions
        .iter()
        .filter(move |one| there.contains(&one.operator))
}

fn pair(requirement: &NodeSelectorRequirement, node: &NodeFacts) -> Option<Label> {
    let (key, value) = node.labels.get_key_value(requirement.key.as_str())?;
    Some((Arc::clone(key), Arc::clone(value)))
}

/// Labels that would make the class admit the node, if only absent ones keep it from that.
fn missing(class: &HardwareClassSpec, node: &NodeFacts) -> Option<Vec<Label>> {
    class.node_selector_terms.iter().find_map(|term| {
        let mut labels = node.labels.clone();
        let mut told_by = Vec::new();
        for requirement in positive(term) {
            let key: Arc<str> = requirement.key.as_str().into();
            let value = labels.entry(Arc::clone(&key)).or_insert_with(|| {
                // Exists takes any value.
                requirement
                    .values
                    .first()
                    .map_or_else(Arc::default, |value| value.as_str().into())
            });
            told_by.push((key, Arc::clone(value)));
        }
        term_holds(term, &labels).then_some(told_by)
    })
}
