//! Nodes that lose their labels: how long they keep their class, and what the plan makes of it.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::{bare, built_in, node, offering, plan_at, shares, spec};
use hawkeye_crds::v1alpha1::{Arch, HardwareClass, SelectorOperator};
use hawkeye_operator::{
    controller::plan::{Held, Plan, Request},
    hardware::{ClassIndex, Grace, NodeFacts, classify::by_priority, describe, grace::GRACE},
};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use rstest::rstest;

const GPU: &str = "nvidia.com/gpu";

/// Seconds after the first look.
fn at(seconds: i64) -> Timestamp {
    "2026-01-01T12:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds)
}

fn look<'a>(grace: &mut Grace, nodes: impl IntoIterator<Item = &'a NodeFacts>, now: Timestamp) -> ClassIndex {
    look_with(grace, &built_in(), nodes, &[], now)
}

fn look_with<'a>(
    grace: &mut Grace,
    classes: &[HardwareClass],
    nodes: impl IntoIterator<Item = &'a NodeFacts>,
    hosted: &[(&str, &str)],
    now: Timestamp,
) -> ClassIndex {
    let classes = by_priority(classes);
    let nodes: Vec<NodeFacts> = nodes.into_iter().cloned().collect();
    let assigned = grace.assign(&classes, &nodes, hosted.iter().copied(), now);
    ClassIndex::assigned(classes, &nodes, assigned, |_, _| 0)
}

fn class_of<'a>(index: &'a ClassIndex, node: &NodeFacts) -> Option<&'a str> {
    let class = describe(index, node).class.ok()?;
    Some(index.get(&class).unwrap().name.as_str())
}

/// As after the restart of every label publisher: what the kubelet sets is all that is left.
fn stripped(node: &NodeFacts) -> NodeFacts {
    let mut left = node.clone();
    left.labels
        .retain(|key, _| key.starts_with("kubernetes.io/") || key.starts_with("node.kubernetes.io/"));
    left
}

fn plan(yaml: &str, index: &ClassIndex, held: &[(&str, u32)]) -> Plan {
    let spec = spec(yaml);
    let request = Request {
        held: held
            .iter()
            .map(|(class, pods)| ((*class).to_owned(), *pods))
            .collect::<Held>(),
        ..Request::new("u", "2026-01-01T00:00:00Z", &spec)
    };
    plan_at(request, index, at(0))
}

#[test]
fn a_spark_without_labels_stays_a_spark_for_five_minutes() {
    assert_eq!(GRACE.as_secs(), 300);
    let spark = node("dgx-spark");
    let bald = stripped(&spark);
    let mut grace = Grace::new(GRACE);
    assert_eq!(class_of(&look(&mut grace, [&spark], at(0)), &spark), Some("dgx-spark"));

    for seconds in [10, 100, 309] {
        let index = look(&mut grace, [&bald], at(seconds));
        let class = index.get("dgx-spark").unwrap();
        assert_eq!(class_of(&index, &bald), Some("dgx-spark"), "{seconds}");
        // It is one of the class, and neither room for new pods nor a node of another class.
        assert_eq!(
            (class.nodes, class.intended, class.schedulable, class.free),
            (1, 1, 0, 0)
        );
        assert_eq!(index.get("cuda-arm64").unwrap().nodes, 0);
        assert_eq!(index.next_end_of_grace(), Some(at(310)));
        assert!(!index.offers("dgx-spark", "dgx-spark"));
        assert_eq!(
            class.grace().unwrap(),
            "dgx-spark lost the labels that told this class at 2026-01-01T12:00:10Z; it keeps the class until \
             2026-01-01T12:05:10Z, but takes no new pods."
        );
    }
    let why = describe(&look(&mut grace, [&bald], at(309)), &bald).because();
    assert!(
        why.contains("remembered dgx-spark (labels that were there until 2026-01-01T12:00:10Z"),
        "{why}"
    );

    let index = look(&mut grace, [&bald], at(310));
    assert_eq!(class_of(&index, &bald), Some("cuda-arm64"));
    assert_eq!(
        (index.get("dgx-spark").unwrap().nodes, index.next_end_of_grace()),
        (0, None)
    );
    // That is what it is now: the grace does not begin again.
    assert_eq!(class_of(&look(&mut grace, [&bald], at(311)), &bald), Some("cuda-arm64"));
    // And the labels count as soon as they are back.
    assert_eq!(
        class_of(&look(&mut grace, [&spark], at(312)), &spark),
        Some("dgx-spark")
    );
}

#[test]
fn labels_that_come_back_end_it_and_a_second_loss_begins_anew() {
    let spark = node("dgx-spark");
    let bald = stripped(&spark);
    let mut grace = Grace::new(GRACE);
    look(&mut grace, [&spark], at(0));
    look(&mut grace, [&bald], at(10));
    assert_eq!(look(&mut grace, [&spark], at(200)).next_end_of_grace(), None);
    let index = look(&mut grace, [&bald], at(250));
    assert_eq!(index.next_end_of_grace(), Some(at(550)));
}

/// NFD#1802: the plan, and so the pods, are the same before, while and after a label publisher restarts.
#[rstest]
#[case("{replicas: 1}", &["dgx-spark"], &[("dgx-spark", 1)])]
#[case("{replicas: 2}", &["dgx-spark", "gh200"], &[("dgx-spark", 1), ("cuda-arm64", 1)])]
#[case("{replicas: 3, device: Cuda, fallback: Deny}", &["dgx-spark", "x86-rtx"], &[("dgx-spark", 1), ("cuda-amd64", 1)])]
#[case("{replicas: 3}", &["nfd-graviton3"], &[("graviton", 3)])]
#[case("{replicas: 4}", &["dgx-spark", "nfd-graviton3", "cpu-arm64"], &[("dgx-spark", 1), ("graviton", 3)])]
fn a_restart_of_every_label_publisher_moves_no_replica(
    #[case] yaml: &str,
    #[case] names: &[&str],
    #[case] expected: &[(&str, u32)],
) {
    let nodes: Vec<NodeFacts> = names
        .iter()
        .map(|name| {
            node(&if name.contains('-') && name.starts_with("nfd") {
                format!("publishers/{name}")
            } else {
                (*name).to_owned()
            })
        })
        .collect();
    let bald: Vec<NodeFacts> = nodes.iter().map(stripped).collect();
    let mut grace = Grace::new(GRACE);
    let before = plan(yaml, &look(&mut grace, &nodes, at(0)), &[]);
    assert_eq!(shares(&before), expected);
    let index = look(&mut grace, &bald, at(10));
    // Pods of GPU classes are held: their nodes take no new ones. Those whose labels did not matter still offer room.
    let held: Vec<(&str, u32)> = expected
        .iter()
        .copied()
        .filter(|(class, _)| index.get(class).unwrap().schedulable == 0)
        .collect();
    let during = plan(yaml, &index, &held);
    assert_eq!(shares(&during), expected);
    assert_eq!((during.unplaced, during.placed.0), (before.unplaced, before.placed.0));
    let kept = during.pools.iter().find(|pool| pool.class == expected[0].0).unwrap();
    assert!(
        kept.message.contains("lost the labels that told this class"),
        "{}",
        kept.message
    );
    assert_eq!(plan(yaml, &look(&mut grace, &nodes, at(60)), &[]), before);
}

#[test]
fn only_labels_that_vanish_have_a_grace() {
    let spark = node("dgx-spark");
    let seen = || {
        let mut grace = Grace::new(GRACE);
        look(&mut grace, [&spark], at(0));
        grace
    };
    // Another value is a statement.
    let mut other = spark.clone();
    other
        .labels
        .insert("nvidia.com/gpu.product".into(), "NVIDIA-GH200-480GB".into());
    other.labels.insert("nvidia.com/gpu.compute.major".into(), "9".into());
    other.labels.insert("nvidia.com/gpu.compute.minor".into(), "0".into());
    assert_eq!(
        class_of(&look(&mut seen(), [&other], at(1)), &other),
        Some("cuda-arm64")
    );
    // So is an edited class …
    let bald = stripped(&spark);
    let mut edited = built_in();
    for class in &mut edited {
        for requirement in class
            .spec
            .node_selector_terms
            .iter_mut()
            .flat_map(|term| &mut term.match_expressions)
        {
            if requirement.operator == SelectorOperator::In {
                requirement.values = vec!["something-else".into()];
            }
        }
    }
    let index = look_with(&mut seen(), &edited, [&bald], &[], at(1));
    assert_ne!(class_of(&index, &bald), Some("dgx-spark"));
    // … and a new one of higher priority.
    let mut own = built_in()
        .into_iter()
        .find(|class| class.spec.arch == Arch::Arm64 && class.spec.priority == 90)
        .unwrap();
    own.metadata.name = Some("own".into());
    own.spec.priority = 900;
    own.spec.node_selector_terms.truncate(1);
    own.spec.node_selector_terms[0].match_expressions[0].operator = SelectorOperator::Exists;
    own.spec.node_selector_terms[0].match_expressions[0].key = "kubernetes.io/os".into();
    own.spec.node_selector_terms[0].match_expressions[0].values = Vec::new();
    own.spec.node_selector_terms[0].match_expressions.truncate(1);
    let mut classes = built_in();
    classes.push(own);
    let index = look_with(&mut seen(), &classes, [&bald], &[], at(1));
    assert_eq!(class_of(&index, &bald), Some("own"));
    // A labelled node whose GPU is no longer offered has no class at once: what it lacks is not a label.
    let unplugged = offering(spark.clone(), GPU, 0);
    let index = look(&mut seen(), [&unplugged], at(1));
    assert_eq!((class_of(&index, &unplugged), index.unclassified.len()), (None, 1));
    // Zero turns it off.
    let mut off = Grace::new(Duration::ZERO);
    look(&mut off, [&spark], at(0));
    assert_eq!(class_of(&look(&mut off, [&bald], at(1)), &bald), Some("cuda-arm64"));
}

/// A bare device plugin has no label to lose: without its resource the node would look like one for CPUs.
#[test]
fn a_bare_gpu_node_is_no_cpu_node_while_its_plugin_is_away() {
    let there = offering(bare("bare", "amd64", &[]), GPU, 1);
    let gone = bare("bare", "amd64", &[]);
    let mut grace = Grace::new(GRACE);
    look(&mut grace, [&there], at(0));
    assert_eq!(class_of(&look(&mut grace, [&gone], at(5)), &gone), Some("cuda-amd64"));
    assert_eq!(class_of(&look(&mut grace, [&gone], at(305)), &gone), Some("cpu-amd64"));
}

#[test]
fn after_a_restart_the_pods_of_a_node_tell_what_it_was() {
    let spark = node("dgx-spark");
    let bald = stripped(&spark);
    let both = [("dgx-spark", "dgx-spark")];
    let mut grace = Grace::new(GRACE);
    let index = look_with(&mut grace, &built_in(), [&bald], &both, at(0));
    assert_eq!(class_of(&index, &bald), Some("dgx-spark"));
    assert_eq!(index.next_end_of_grace(), Some(at(300)));
    // Once only: pods that stay do not keep the class for ever.
    let index = look_with(&mut grace, &built_in(), [&bald], &both, at(300));
    assert_eq!(class_of(&index, &bald), Some("cuda-arm64"));
    let index = look_with(&mut grace, &built_in(), [&bald], &both, at(301));
    assert_eq!(class_of(&index, &bald), Some("cuda-arm64"));

    // Without pods there is nothing to go by.
    let index = look(&mut Grace::new(GRACE), [&bald], at(0));
    assert_eq!(class_of(&index, &bald), Some("cuda-arm64"));
    // The pod of a class that would not take the node with any label more says nothing, e.g. a CPU pod on a GPU node.
    let gpu = offering(bare("bare", "amd64", &[]), GPU, 1);
    let hosted = [
        ("bare", "cpu-amd64"),
        ("bare", "graviton"),
        ("bare", "no-such-class"),
        ("elsewhere", "dgx-spark"),
    ];
    let index = look_with(&mut Grace::new(GRACE), &built_in(), [&gpu], &hosted, at(0));
    assert_eq!(
        (class_of(&index, &gpu), index.next_end_of_grace()),
        (Some("cuda-amd64"), None)
    );
    // Nor does one on a node that says something else by now.
    let hopper = node("gh200");
    let hosted = [("gh200", "dgx-spark")];
    let index = look_with(&mut Grace::new(GRACE), &built_in(), [&hopper], &hosted, at(0));
    assert_eq!(class_of(&index, &hopper), Some("cuda-arm64"));
}

#[test]
fn many_nodes_are_one_steady_sentence() {
    let nodes: Vec<NodeFacts> = (0..5)
        .map(|n| NodeFacts {
            name: format!("spark-{n}"),
            ..node("dgx-spark")
        })
        .collect();
    let mut grace = Grace::new(GRACE);
    look(&mut grace, &nodes, at(0));
    let mut said = Vec::new();
    for lost in 2..=5 {
        let mixed: Vec<NodeFacts> = nodes
            .iter()
            .enumerate()
            .map(|(n, node)| if n < lost { stripped(node) } else { node.clone() })
            .collect();
        let index = look(&mut grace, &mixed, at(lost as i64));
        let class = index.get("dgx-spark").unwrap();
        assert_eq!((class.kept.len(), class.nodes), (lost, 5));
        assert_eq!(index.next_end_of_grace(), Some(at(302)));
        said.push(class.grace().unwrap());
    }
    said.dedup();
    assert_eq!(said.len(), 1, "{said:?}");
    // Nodes that are gone are forgotten.
    assert_eq!(look(&mut grace, [], at(9)).next_end_of_grace(), None);
    let index = look(&mut grace, [&stripped(&nodes[0])], at(10));
    assert_eq!(index.get("dgx-spark").unwrap().nodes, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// Whatever labels come and go: each node is counted once, nobody keeps a class longer than the grace, and a node with the
    /// labels of its class never waits for it.
    #[test]
    fn every_node_has_one_class_at_every_moment(
        steps in prop::collection::vec((0_usize..5, any::<u8>(), 1_i64..200), 1..30),
        hosted in prop::collection::vec((0_usize..5, 0_usize..6), 0..4),
    ) {
        let whole: Vec<NodeFacts> = ["dgx-spark", "gh200", "x86-rtx", "graviton3", "cpu-amd64"].map(node).into();
        let classes = built_in();
        let hosted: Vec<(String, String)> = hosted
            .into_iter()
            .map(|(n, c)| (whole[n].name.clone(), classes[c].metadata.name.clone().unwrap()))
            .collect();
        let hosted: Vec<(&str, &str)> = hosted.iter().map(|(n, c)| (n.as_str(), c.as_str())).collect();
        let mut nodes = whole.clone();
        let mut grace = Grace::new(GRACE);
        let mut now = 0;
        for (which, what, seconds) in steps {
            now += seconds;
            nodes[which] = match what % 4 {
                0 => whole[which].clone(),
                1 => stripped(&whole[which]),
                2 => { let mut n = stripped(&whole[which]); n.allocatable.clear(); n }
                _ => { let mut n = whole[which].clone(); n.allocatable.insert(GPU.into(), 0); n }
            };
            let index = look_with(&mut grace, &classes, &nodes, &hosted, at(now));
            let counted: u32 = index.classes.iter().map(|class| class.nodes).sum();
            prop_assert_eq!(counted as usize + index.unclassified.len(), nodes.len());
            for kept in index.classes.iter().flat_map(|class| &class.kept) {
                prop_assert!(kept.lost <= at(now) && at(now) < kept.until);
                prop_assert_eq!(kept.until.duration_since(kept.lost), SignedDuration::from_secs(300));
            }
            let plain = ClassIndex::new(&classes, &nodes, |_, _| 0);
            for node in &nodes {
                let is = class_of(&plain, node);
                if let Some((at, _)) = index.kept_on(&node.name) {
                    prop_assert_ne!(is, Some(index.classes[at].name.as_str()));
                } else {
                    prop_assert_eq!(class_of(&index, node), is);
                }
            }
        }
    }
}
