//! What a node is, from its labels and allocatable resources.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::LazyLock;

use common::{bare, built_in, index, node, offering, pods_fit};
use hawkeye_crds::v1alpha1::{HardwareClass, Reason};
use hawkeye_operator::hardware::{
    ClassIndex, NodeFacts,
    classify::{GPU_LABELS, admits, class_of},
};
use proptest::prelude::*;
use rstest::rstest;

const GPU: &str = "nvidia.com/gpu";

fn class_name(node: &NodeFacts) -> Result<String, Reason> {
    static INDEX: LazyLock<ClassIndex> = LazyLock::new(|| index(&[]));
    class_of(&INDEX.classes, node)
        .map(|at| INDEX.classes[at].name.clone())
        .map_err(|(reason, _)| reason)
}

#[rstest]
#[case("dgx-spark", "dgx-spark")]
#[case("gh200", "cuda-arm64")]
#[case("x86-rtx", "cuda-amd64")]
#[case("graviton2", "graviton")]
#[case("graviton3", "graviton")]
#[case("cpu-arm64", "cpu-arm64")]
#[case("cpu-amd64", "cpu-amd64")]
fn fixtures_fall_into_their_class(#[case] fixture: &str, #[case] class: &str) {
    assert_eq!(class_name(&node(fixture)), Ok(class.to_owned()));
}

#[rstest]
// GFD adds a suffix when the GPU is shared without a renamed resource.
#[case(offering(bare("n", "arm64", &["nvidia.com/gpu.product=NVIDIA-GB10-SHARED"]), GPU, 4), "dgx-spark")]
// Another maker's GB10, known by its compute capability only.
#[case(offering(bare("n", "arm64", &["nvidia.com/gpu.compute.major=12", "nvidia.com/gpu.compute.minor=1"]), GPU, 1), "dgx-spark")]
// gpu.family says blackwell for compute capability 10 as well: GB200.
#[case(offering(bare("n", "arm64", &["nvidia.com/gpu.product=NVIDIA-GB200", "nvidia.com/gpu.family=blackwell", "nvidia.com/gpu.compute.major=10", "nvidia.com/gpu.compute.minor=0"]), GPU, 4), "cuda-arm64")]
// The bare device plugin publishes no label at all.
#[case(offering(bare("n", "arm64", &[]), GPU, 1), "cuda-arm64")]
#[case(offering(bare("n", "amd64", &[]), GPU, 1), "cuda-amd64")]
// Graviton2 with a T4G.
#[case(offering(bare("n", "arm64", &["node.kubernetes.io/instance-type=g5g.xlarge"]), GPU, 1), "cuda-arm64")]
#[case(offering(bare("n", "arm64", &["node.kubernetes.io/instance-type=g5g.xlarge", "karpenter.k8s.aws/instance-cpu-manufacturer=aws", "karpenter.k8s.aws/instance-gpu-name=t4g"]), GPU, 1), "cuda-arm64")]
// A Graviton that the table does not know, told by Karpenter or EKS.
#[case(bare("n", "arm64", &["node.kubernetes.io/instance-type=m99g.large", "karpenter.k8s.aws/instance-cpu-manufacturer=aws"]), "graviton")]
#[case(bare("n", "arm64", &["eks.amazonaws.com/instance-cpu-manufacturer=aws"]), "graviton")]
#[case(bare("n", "arm64", &["node.kubernetes.io/instance-type=m99g.large"]), "cpu-arm64")]
#[case(bare("n", "arm64", &["node.kubernetes.io/instance-type=k3s"]), "cpu-arm64")]
// The GPU is gone and its publisher says so.
#[case(offering(bare("n", "amd64", &["nvidia.com/gpu.present=false"]), GPU, 0), "cpu-amd64")]
// Instance types with a g that are not Graviton.
#[case(offering(bare("n", "amd64", &["node.kubernetes.io/instance-type=g6e.xlarge"]), GPU, 1), "cuda-amd64")]
// A GPU of GKE.
#[case(offering(bare("n", "amd64", &["cloud.google.com/gke-accelerator=nvidia-l4"]), GPU, 1), "cuda-amd64")]
fn labels_of_many_publishers(#[case] node: NodeFacts, #[case] class: &str) {
    assert_eq!(class_name(&node), Ok(class.to_owned()));
}

#[rstest]
// A product label, but the device plugin offers nothing.
#[case(bare("n", "amd64", &["nvidia.com/gpu.product=NVIDIA-A100"]))]
#[case(offering(bare("n", "amd64", &["nvidia.com/gpu.product=NVIDIA-A100"]), GPU, 0))]
// MIG mixed and renamed sharing, labelled or not.
#[case(offering(bare("n", "amd64", &["nvidia.com/mig.strategy=mixed", "nvidia.com/gpu.product=NVIDIA-A100"]), "nvidia.com/mig-1g.10gb", 7))]
#[case(offering(bare("n", "amd64", &[]), "nvidia.com/mig-1g.10gb", 7))]
#[case(offering(bare("n", "arm64", &[]), "nvidia.com/gpu.shared", 4))]
// DRA leaves the resource at 0.
#[case(offering(bare("n", "amd64", &[]), GPU, 0))]
#[case(bare("n", "arm64", &["node.kubernetes.io/instance-type=g5g.metal"]))]
fn a_gpu_that_is_not_offered_is_never_a_cpu_node(#[case] node: NodeFacts) {
    assert_eq!(class_name(&node), Err(Reason::UnsupportedGpuResource));
}

#[test]
fn each_gpu_label_keeps_a_node_from_the_cpu_classes() {
    for (key, value) in GPU_LABELS {
        for arch in ["arm64", "amd64"] {
            let node = bare("n", arch, &[&format!("{key}={}", value.unwrap_or("x"))]);
            assert_eq!(class_name(&node), Err(Reason::UnsupportedGpuResource), "{key}");
            // The pods' affinity has to say the same by itself.
            for class in built_in().iter().filter(|class| class.spec.resource.is_none()) {
                assert!(!pods_fit(&class.spec, &node), "{key} and {:?}", class.metadata.name);
            }
        }
    }
}

#[test]
fn other_systems_have_no_class() {
    let mut windows = bare("n", "amd64", &[]);
    windows.labels.insert("kubernetes.io/os".into(), "windows".into());
    assert_eq!(class_name(&windows), Err(Reason::NoClassMatches));
    assert_eq!(class_name(&bare("n", "riscv64", &[])), Err(Reason::NoClassMatches));
    assert_eq!(class_name(&NodeFacts::default()), Err(Reason::NoClassMatches));
}

#[test]
fn a_class_of_ones_own_takes_what_it_names() {
    let mut own: HardwareClass = built_in()
        .into_iter()
        .find(|class| class.spec.resource.is_some())
        .unwrap();
    own.metadata.name = Some("mig".into());
    own.spec.priority = 500;
    own.spec.arch = hawkeye_crds::v1alpha1::Arch::Amd64;
    own.spec.resource = Some("nvidia.com/mig-1g.10gb".into());
    own.spec.node_selector_terms = built_in()[2].spec.node_selector_terms.clone();
    let mig = offering(
        bare("n", "amd64", &["nvidia.com/gpu.product=NVIDIA-A100"]),
        "nvidia.com/mig-1g.10gb",
        7,
    );
    let mut classes = built_in();
    classes.push(own);
    let index = ClassIndex::new(&classes, &[mig], |_, _| 3);
    let class = index.get("mig").unwrap();
    assert_eq!((class.nodes, class.free, class.taken), (1, 4, 3));
    assert!(index.unclassified.is_empty());
}

#[test]
fn only_ready_schedulable_and_tolerated_nodes_are_capacity() {
    let gpu = |name: &str| offering(bare(name, "amd64", &[]), GPU, 2);
    let mut cordoned = gpu("cordoned");
    cordoned.unschedulable = true;
    let mut unready = gpu("unready");
    unready.ready = false;
    let mut tainted = gpu("tainted");
    tainted.taints.push(hawkeye_operator::hardware::Taint {
        key: "dedicated".into(),
        value: "x".into(),
        effect: hawkeye_crds::v1alpha1::TaintEffect::NoSchedule,
    });
    let index = index(&[gpu("good"), cordoned, unready, tainted]);
    let class = index.get("cuda-amd64").unwrap();
    assert_eq!(
        (class.nodes, class.intended, class.schedulable, class.free),
        (4, 3, 1, 2)
    );
}

#[test]
fn the_largest_node_that_pods_may_use_bounds_them() {
    let mut reserved = node("gh200");
    reserved.name = "reserved".into();
    reserved.memory = Some(u64::MAX);
    reserved.taints.push(hawkeye_operator::hardware::Taint {
        key: "dedicated".into(),
        value: "x".into(),
        effect: hawkeye_crds::v1alpha1::TaintEffect::NoSchedule,
    });
    let mut unready = node("gh200");
    unready.ready = false;
    let mut silent = offering(bare("silent", "arm64", &[]), GPU, 1);
    silent.memory = None;
    let index = index(&[node("dgx-spark"), reserved, unready, silent]);
    // Allocatable, not capacity.
    let spark = index.get("dgx-spark").unwrap();
    assert_eq!(
        (spark.largest_memory, spark.largest_cpu_milli),
        (Some(125_404_064 << 10), Some(20_000))
    );
    let hopper = index.get("cuda-arm64").unwrap();
    assert_eq!(
        (hopper.largest_memory, hopper.largest_cpu_milli),
        (Some(501_654_748 << 10), Some(72_000))
    );
    assert_eq!(index.get("cpu-amd64").unwrap().largest_memory, None);
}

#[test]
fn the_known_exception_a_gpu_node_without_labels_may_get_cpu_pods() {
    let node = offering(bare("n", "amd64", &[]), GPU, 1);
    assert_eq!(class_name(&node), Ok("cuda-amd64".to_owned()));
    let cpu = built_in()
        .into_iter()
        .find(|class| class.metadata.name.as_deref() == Some("cpu-amd64"))
        .unwrap();
    assert!(
        pods_fit(&cpu.spec, &node),
        "the affinity alone cannot tell; NVIDIA_VISIBLE_DEVICES=void covers it"
    );
}

/// A GPU as its publishers label it; at least one of them does.
fn gpu_labels() -> impl Strategy<Value = Vec<String>> {
    let product = prop::sample::select(vec![
        ("NVIDIA-GB10", "12", "1"),
        ("NVIDIA-GB10-SHARED", "12", "1"),
        ("NVIDIA-GH200-480GB", "9", "0"),
        ("NVIDIA-GB200", "10", "0"),
        ("NVIDIA-GeForce-RTX-5090", "12", "0"),
        ("NVIDIA-A100-SXM4-80GB-MIG-1g.10gb", "8", "0"),
        ("NVIDIA-T4G", "7", "5"),
    ]);
    (product, 1_u8..64, prop::bool::ANY).prop_map(|((product, major, minor), publishers, gone)| {
        let mut labels = Vec::new();
        if publishers & 1 != 0 {
            labels.push(format!("nvidia.com/gpu.product={product}"));
            labels.push(format!("nvidia.com/gpu.compute.major={major}"));
            labels.push(format!("nvidia.com/gpu.compute.minor={minor}"));
        }
        if publishers & 2 != 0 {
            labels.push("nvidia.com/gpu.present=true".to_owned());
        } else if gone && publishers & 1 != 0 {
            labels.push("nvidia.com/gpu.present=false".to_owned());
        }
        if publishers & 4 != 0 {
            labels.push("feature.node.kubernetes.io/pci-10de.present=true".to_owned());
        }
        for (bit, key) in [
            (8, "cloud.google.com/gke-accelerator"),
            (16, "karpenter.k8s.aws/instance-gpu-name"),
            (32, "eks.amazonaws.com/instance-gpu-name"),
        ] {
            if publishers & bit != 0 {
                labels.push(format!("{key}=some-gpu"));
            }
        }
        labels
    })
}

/// Any node with labels: of a cloud or not, with or without a GPU, offered in any form or not at all.
fn labelled_node() -> impl Strategy<Value = NodeFacts> {
    let arch = prop::sample::select(vec!["amd64", "arm64"]);
    let instance = prop::sample::select(vec![
        "",
        "k3s",
        "m7g.large",
        "c6gn.16xlarge",
        "t4g.nano",
        "r8g.metal-48xl",
        "g5g.xlarge",
        "g6e.xlarge",
        "m99g.large",
        "Standard_D4ps_v6",
    ]);
    let maker = prop::sample::select(vec![
        "",
        "karpenter.k8s.aws/instance-cpu-manufacturer=aws",
        "eks.amazonaws.com/instance-cpu-manufacturer=aws",
        "karpenter.k8s.aws/instance-cpu-manufacturer=intel",
    ]);
    let offer = prop::sample::select(vec![
        Some((GPU, 1)),
        Some((GPU, 8)),
        Some((GPU, 0)),
        Some(("nvidia.com/mig-1g.10gb", 7)),
        Some(("nvidia.com/gpu.shared", 4)),
        None,
    ]);
    (arch, instance, maker, prop::option::of((gpu_labels(), offer))).prop_map(|(arch, instance, maker, gpu)| {
        let mut labels: Vec<String> = Vec::new();
        if !instance.is_empty() {
            labels.push(format!("node.kubernetes.io/instance-type={instance}"));
        }
        if !maker.is_empty() {
            labels.push(maker.to_owned());
        }
        let (gpu_labels, offer) = gpu.unwrap_or_default();
        labels.extend(gpu_labels);
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        let node = bare("n", arch, &labels);
        match offer {
            Some((resource, units)) => offering(node, resource, units),
            None => node,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    /// The heart of it: where the scheduler may put a pool's pods is exactly where the class is.
    #[test]
    fn pods_fit_exactly_the_nodes_of_their_class(node in labelled_node()) {
        let of = class_name(&node);
        for class in built_in() {
            let name = class.metadata.name.clone().unwrap();
            prop_assert_eq!(pods_fit(&class.spec, &node), of.as_deref() == Ok(name.as_str()), "{} on {:?}", name, node);
        }
    }

    #[test]
    fn at_most_one_built_in_class_admits_a_labelled_node(node in labelled_node()) {
        let admitting = built_in().iter().filter(|class| admits(&class.spec, &node)).count();
        prop_assert!(admitting <= 1);
        prop_assert_eq!(admitting == 1, class_name(&node).is_ok());
    }

    #[test]
    fn every_node_is_counted_once(nodes in prop::collection::vec(labelled_node(), 0..20)) {
        let index = index(&nodes);
        let counted: u32 = index.classes.iter().map(|class| class.nodes).sum();
        prop_assert_eq!(counted as usize + index.unclassified.len(), nodes.len());
    }

    /// Labels and resources that nobody ever publishes must not crash it.
    #[test]
    fn any_labels_at_all(
        labels in prop::collection::btree_map(".{0,20}", ".{0,20}", 0..6),
        allocatable in prop::collection::btree_map(".{0,20}", any::<u64>(), 0..4),
    ) {
        let labels = labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        let _class = class_name(&NodeFacts { labels, allocatable, ..NodeFacts::default() });
    }
}
