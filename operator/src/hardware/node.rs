//! The facts of a node that placement uses.

use std::{collections::BTreeMap, sync::Arc};

use hawkeye_crds::v1alpha1::{TaintEffect, Toleration, TolerationOperator};

/// Labels of a node. Thousands of nodes have most of their keys and values in common, so that each is in memory once.
pub type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// A taint of a node that keeps pods away. `PreferNoSchedule` keeps nothing away and is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value; empty when it has none.
    pub value: String,
    /// `NoSchedule` or `NoExecute`.
    pub effect: TaintEffect,
}

/// Taints by which Kubernetes says once more that a node is not ready or cordoned.
const STATES: [&str; 3] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/unschedulable",
];

/// A node, reduced to what tells its class and its capacity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// Allocatable extended resources (`domain/name`), in whole units. A resource that the node has none of is there as 0.
    pub allocatable: BTreeMap<String, u64>,
    /// Memory that pods can ask for, in bytes; `None` when the node does not say.
    pub memory: Option<u64>,
    /// Memory that the machine has, in bytes; `None` when the node does not say. On machines with one memory for CPU and
    /// GPU this is the GPU's, too.
    pub memory_capacity: Option<u64>,
    /// CPU that pods can ask for, in thousandths of a CPU; `None` when the node does not say.
    pub cpu_milli: Option<u64>,
    /// Its condition Ready is True.
    pub ready: bool,
    /// It is cordoned.
    pub unschedulable: bool,
    /// Its taints.
    pub taints: Vec<Taint>,
}

impl NodeFacts {
    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(AsRef::as_ref)
    }

    /// True when new pods with these tolerations can start here now.
    pub fn schedulable(&self, tolerations: &[Toleration]) -> bool {
        self.ready && !self.unschedulable && self.taints.iter().all(|taint| tolerated(taint, tolerations))
    }

    /// What keeps new pods with these tolerations from starting here now, each in a few words; nothing when they can.
    pub fn obstacles(&self, tolerations: &[Toleration]) -> Vec<String> {
        let tainted = |key: &str| {
            let mut taints = self.taints.iter();
            taints.any(|taint| taint.key == key && !tolerated(taint, tolerations))
        };
        let [not_ready, unreachable, unschedulable] = STATES.map(tainted);
        let state = [
            (!self.ready || not_ready || unreachable, "not ready"),
            (self.unschedulable || unschedulable, "cordoned"),
        ];
        let state = state
            .into_iter()
            .filter(|(holds, _)| *holds)
            .map(|(_, word)| word.to_owned());
        let taints = self
            .taints
            .iter()
            .filter(|taint| !tolerated(taint, tolerations) && !STATES.contains(&taint.key.as_str()))
            .map(|taint| {
                let value = if taint.value.is_empty() { "" } else { "=" };
                format!("taint {}{value}{}:{:?}", taint.key, taint.value, taint.effect)
            });
        state.chain(taints).collect()
    }

    /// True when the node is meant for pods with these tolerations, be it ready at this moment or not. Taints that
    /// Kubernetes itself sets (`node.kubernetes.io/...`) say how the node is now, not whom it is for.
    pub fn intended(&self, tolerations: &[Toleration]) -> bool {
        self.taints
            .iter()
            .all(|taint| taint.key.starts_with("node.kubernetes.io/") || tolerated(taint, tolerations))
    }
}

fn tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations.iter().any(|toleration| {
        let exists = toleration.operator == Some(TolerationOperator::Exists);
        let key = match toleration.key.as_deref() {
            None | Some("") => exists,
            Some(key) => key == taint.key,
        };
        let value = exists || toleration.value.as_deref().unwrap_or_default() == taint.value;
        let effect = toleration.effect.is_none_or(|effect| effect == taint.effect);
        key && value && effect
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toleration(key: Option<&str>, operator: Option<TolerationOperator>, value: Option<&str>) -> Toleration {
        Toleration {
            key: key.map(Into::into),
            operator,
            value: value.map(Into::into),
            effect: None,
        }
    }

    #[test]
    fn tolerations_follow_kubernetes() {
        let taint = Taint {
            key: "k".into(),
            value: "v".into(),
            effect: TaintEffect::NoSchedule,
        };
        assert!(!tolerated(&taint, &[]));
        assert!(tolerated(
            &taint,
            &[toleration(None, Some(TolerationOperator::Exists), None)]
        ));
        assert!(tolerated(
            &taint,
            &[toleration(Some("k"), Some(TolerationOperator::Exists), None)]
        ));
        assert!(tolerated(&taint, &[toleration(Some("k"), None, Some("v"))]));
        assert!(!tolerated(&taint, &[toleration(Some("k"), None, Some("w"))]));
        assert!(!tolerated(
            &taint,
            &[toleration(Some("l"), Some(TolerationOperator::Exists), None)]
        ));
        let other_effect = Toleration {
            effect: Some(TaintEffect::NoExecute),
            ..toleration(Some("k"), None, Some("v"))
        };
        assert!(!tolerated(&taint, &[other_effect]));
    }

    #[test]
    fn a_node_that_is_not_ready_is_still_intended() {
        let node = NodeFacts {
            taints: vec![Taint {
                key: "node.kubernetes.io/unreachable".into(),
                value: String::new(),
                effect: TaintEffect::NoExecute,
            }],
            ..NodeFacts::default()
        };
        assert!(node.intended(&[]));
        assert!(!node.schedulable(&[]));
    }
}
