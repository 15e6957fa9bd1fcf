//! What the status of a HardwareClass says of nodes that it shares with another class.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{bare, built_in, node, offering};
use hawkeye_crds::v1alpha1::{
    ConditionStatus, HardwareClass, HardwareClassStatus, NodeSelectorRequirement, SelectorOperator,
};
use hawkeye_operator::{
    controller::class_status::{status, undecodable},
    hardware::{ClassIndex, NodeFacts},
};
use rstest::rstest;

const THEN: &str = "2026-01-01T00:00:00Z";
const LATER: &str = "2026-01-02T00:00:00Z";

/// A class for L40S beside the built-in ones.
fn l40s(name: &str, priority: i32) -> HardwareClass {
    let mut own = built_in()
        .into_iter()
        .find(|class| class.metadata.name.as_deref() == Some("cuda-amd64"))
        .unwrap();
    own.metadata.name = Some(name.into());
    own.spec.priority = priority;
    own.spec.node_selector_terms[0].match_expressions = vec![NodeSelectorRequirement {
        key: "nvidia.com/gpu.product".into(),
        operator: SelectorOperator::In,
        values: vec!["NVIDIA-L40S".into()],
    }];
    own
}

fn nodes() -> Vec<NodeFacts> {
    let gpu = |name: &str, product: &str| {
        offering(
            bare(name, "amd64", &[&format!("nvidia.com/gpu.product={product}")]),
            "nvidia.com/gpu",
            1,
        )
    };
    // Not in the order of their names.
    vec![
        gpu("gpu-2", "NVIDIA-L40S"),
        gpu("gpu-1", "NVIDIA-L40S"),
        gpu("gpu-0", "NVIDIA-A2"),
        node("cpu-amd64"),
    ]
}

fn of(index: &ClassIndex, class: &str, old: Option<&HardwareClassStatus>, now: &str) -> HardwareClassStatus {
    status(index.get(class).unwrap(), Some(3), old, now)
}

#[rstest]
// A class of one's own above the built-in one, as the documentation has it.
#[case(
    200,
    "own",
    2,
    true,
    "LowerPriorityMatches",
    "Nodes shared with cuda-amd64 (2, the first is gpu-1) match the other class, too"
)]
#[case(
    200,
    "cuda-amd64",
    1,
    true,
    "HigherPriorityHas",
    "Nodes shared with own (2, the first is gpu-1) match this class, too"
)]
// Below it: the new class gets nothing.
#[case(
    10,
    "own",
    0,
    true,
    "HigherPriorityHas",
    "Nodes shared with cuda-amd64 (2, the first is gpu-1)"
)]
#[case(10, "cuda-amd64", 3, true, "LowerPriorityMatches", "Nodes shared with own (2")]
// Beside it: the name decides, which nobody means.
#[case(80, "own", 0, true, "EqualPriority", "Give the classes unequal priorities")]
#[case(
    80,
    "cuda-amd64",
    3,
    true,
    "EqualPriority",
    "Nodes shared with own (2, the first is gpu-1)"
)]
#[case(80, "cpu-amd64", 1, false, "Disjoint", "No other class admits a node of this one.")]
#[case(80, "dgx-spark", 0, false, "Disjoint", "No other class admits a node of this one.")]
fn overlaps(
    #[case] priority: i32,
    #[case] class: &str,
    #[case] nodes_: i32,
    #[case] shared: bool,
    #[case] reason: &str,
    #[case] message: &str,
) {
    let mut classes = built_in();
    classes.push(l40s("own", priority));
    let index = ClassIndex::new(&classes, &nodes(), |_, _| 0);
    let status = of(&index, class, None, THEN);
    assert_eq!((status.nodes, status.observed_generation), (nodes_, Some(3)));
    let [condition] = status.conditions.as_slice() else {
        panic!("{status:?}")
    };
    assert_eq!(condition.type_, "Overlaps");
    assert_eq!(
        (condition.status, condition.reason.as_str()),
        (ConditionStatus::from(shared), reason)
    );
    assert!(condition.message.contains(message), "{}", condition.message);
}

#[test]
fn built_in_classes_never_overlap() {
    let fixtures = [
        "dgx-spark",
        "gh200",
        "x86-rtx",
        "graviton2",
        "graviton3",
        "cpu-arm64",
        "cpu-amd64",
    ]
    .map(node);
    let index = ClassIndex::new(&built_in(), &fixtures, |_, _| 0);
    for class in &index.classes {
        assert_eq!(
            status(class, None, None, THEN).conditions[0].status,
            ConditionStatus::False,
            "{}",
            class.name
        );
    }
}

#[test]
fn the_time_is_that_of_the_last_change_and_nothing_else_makes_a_status_new() {
    let mut classes = built_in();
    let alone = ClassIndex::new(&classes, &nodes(), |_, _| 0);
    classes.push(l40s("own", 200));
    let beside = ClassIndex::new(&classes, &nodes(), |_, _| 0);
    let first = of(&alone, "cuda-amd64", None, THEN);
    assert_eq!(of(&alone, "cuda-amd64", Some(&first), LATER), first);
    let second = of(&beside, "cuda-amd64", Some(&first), LATER);
    assert_eq!(second.conditions[0].last_transition_time, LATER);
    let mut turned = nodes();
    turned.reverse();
    let same = ClassIndex::new(&classes, &turned, |_, _| 0);
    assert_eq!(of(&same, "cuda-amd64", Some(&second), THEN), second);
}

#[test]
fn many_overlapping_classes_stay_short() {
    let mut classes = built_in();
    for n in 0..40 {
        classes.push(l40s(&format!("own-{n:02}"), 200 + n));
    }
    let index = ClassIndex::new(&classes, &nodes(), |_, _| 0);
    let message = of(&index, "own-00", None, THEN).conditions[0].message.clone();
    assert!(
        message.len() < 600 && message.contains("own-39 (2, the first is gpu-1)"),
        "{message}"
    );
    let message = of(&index, "own-39", None, THEN).conditions[0].message.clone();
    assert!(message.contains("and 37 more classes"), "{message}");
}

#[test]
fn a_class_that_does_not_decode_says_what_is_wrong_and_what_to_do() {
    let status = undecodable("unknown variant `Tpu`", Some(4), THEN);
    let condition = &status.conditions[0];
    assert_eq!(
        (status.nodes, condition.status, condition.reason.as_str()),
        (0, ConditionStatus::Unknown, "InvalidSpec")
    );
    assert!(
        condition.message.contains("unknown variant `Tpu`") && condition.message.contains("kubectl explain hwc.spec"),
        "{}",
        condition.message
    );
}
