//! Affinity terms narrow, never widen: whatever terms a class has, its pods may go only where the class's own terms,
//! operating system and architecture hold together. (An architecture in a term of its own would be one more alternative.)

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;

use hawkeye_crds::{
    classes,
    v1alpha1::{Arch, HardwareClassSpec, NodeSelectorRequirement, NodeSelectorTerm, SelectorOperator},
};
use hawkeye_operator::controller::build::deployment::node_terms;
use k8s_openapi::api::core::v1 as core;
use proptest::prelude::*;

type Labels = BTreeMap<String, String>;

/// As the scheduler reads it: one of the terms, of which every expression holds; an empty term holds nowhere.
fn scheduler_admits(terms: &[core::NodeSelectorTerm], labels: &Labels) -> bool {
    terms.iter().any(|term| {
        let expressions = term.match_expressions.as_deref().unwrap_or_default();
        !expressions.is_empty() && expressions.iter().all(|expression| holds(expression, labels))
    })
}

fn holds(expression: &core::NodeSelectorRequirement, labels: &Labels) -> bool {
    let value = labels.get(&expression.key);
    let listed = value.is_some_and(|value| expression.values.as_ref().is_some_and(|all| all.contains(value)));
    match expression.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        other => unreachable!("{other}"),
    }
}

/// What the class's author wrote, read term by term, without looking at what was built.
fn author_meant(class: &HardwareClassSpec, labels: &Labels) -> bool {
    let one = |requirement: &NodeSelectorRequirement| {
        let value = labels.get(&requirement.key);
        match requirement.operator {
            SelectorOperator::In => value.is_some_and(|value| requirement.values.contains(value)),
            SelectorOperator::NotIn => value.is_none_or(|value| !requirement.values.contains(value)),
            SelectorOperator::Exists => value.is_some(),
            SelectorOperator::DoesNotExist => value.is_none(),
        }
    };
    let label = |key: &str| labels.get(key).map(String::as_str);
    label("kubernetes.io/os") == Some("linux")
        && label("kubernetes.io/arch") == Some(class.arch.as_str())
        && class
            .node_selector_terms
            .iter()
            .any(|term| term.match_expressions.iter().all(one))
}

const KEYS: [&str; 4] = ["kubernetes.io/os", "kubernetes.io/arch", "pool", "gpu"];
const VALUES: [&str; 6] = ["linux", "windows", "arm64", "amd64", "a", "b"];

fn requirement() -> impl Strategy<Value = NodeSelectorRequirement> {
    let values = prop::collection::btree_set(prop::sample::select(VALUES.to_vec()), 1..3);
    (prop::sample::select(KEYS.to_vec()), 0..4, values).prop_map(|(key, operator, values)| {
        let values: Vec<String> = values.into_iter().map(str::to_owned).collect();
        let (operator, values) = match operator {
            0 => (SelectorOperator::In, values),
            1 => (SelectorOperator::NotIn, values),
            2 => (SelectorOperator::Exists, Vec::new()),
            _ => (SelectorOperator::DoesNotExist, Vec::new()),
        };
        NodeSelectorRequirement {
            key: key.to_owned(),
            operator,
            values,
        }
    })
}

fn class() -> impl Strategy<Value = HardwareClassSpec> {
    let term =
        prop::collection::vec(requirement(), 1..4).prop_map(|match_expressions| NodeSelectorTerm { match_expressions });
    let base = classes::built_in().unwrap().remove(0).spec;
    (prop::collection::vec(term, 1..4), prop::bool::ANY).prop_map(move |(node_selector_terms, arm)| HardwareClassSpec {
        arch: if arm { Arch::Arm64 } else { Arch::Amd64 },
        node_selector_terms,
        ..base.clone()
    })
}

fn labels() -> impl Strategy<Value = Labels> {
    let pair = (
        prop::sample::select(KEYS.to_vec()),
        prop::sample::select(VALUES.to_vec()),
    );
    let some = prop::collection::vec(pair, 0..5);
    // Most nodes are Linux of some architecture, or nothing would ever be admitted.
    (some, prop::sample::select(vec![None, Some("arm64"), Some("amd64")])).prop_map(|(some, arch)| {
        let mut labels: Labels = some
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        if let Some(arch) = arch {
            labels.insert("kubernetes.io/os".to_owned(), "linux".to_owned());
            labels.insert("kubernetes.io/arch".to_owned(), arch.to_owned());
        }
        labels
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn built_terms_admit_exactly_what_the_class_and_its_architecture_admit(class in class(), labels in labels()) {
        prop_assert_eq!(scheduler_admits(&node_terms(&class), &labels), author_meant(&class, &labels));
    }

    #[test]
    fn a_further_expression_never_admits_more(class in class(), further in requirement(), labels in labels()) {
        let mut narrower = class.clone();
        for term in &mut narrower.node_selector_terms {
            term.match_expressions.push(further.clone());
        }
        if scheduler_admits(&node_terms(&narrower), &labels) {
            prop_assert!(scheduler_admits(&node_terms(&class), &labels));
        }
    }
}
