//! Nodes as each publisher labels them: what they are, what is known about them and from where, and what contradicts what.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::{collections::BTreeSet, fs, path::Path};

use common::{bare, built_in, index, node, offering, pods_fit};
use hawkeye_crds::{classes, v1alpha1::Reason};
use hawkeye_operator::hardware::{
    ClassIndex, NodeFacts, NodeReport, describe,
    evidence::What,
    inventory::{GpuMemory, gpu_memory},
};
use proptest::prelude::*;
use rstest::rstest;

const UNSUPPORTED: Result<&str, Reason> = Err(Reason::UnsupportedGpuResource);
const NO_CLASS: Result<&str, Reason> = Err(Reason::NoClassMatches);

/// Every fixture of a publisher and what it is.
const PUBLISHERS: [(&str, Result<&str, Reason>); 40] = [
    ("gfd-a100-old", Ok("cuda-amd64")),
    ("gfd-gb10-oem", Ok("dgx-spark")),
    ("gfd-gb10-shared", Ok("dgx-spark")),
    ("gfd-gb200", Ok("cuda-arm64")),
    ("gfd-mig-single", Ok("cuda-amd64")),
    ("gfd-mig-mixed", UNSUPPORTED),
    ("gfd-time-slicing", Ok("cuda-amd64")),
    ("gfd-mps", Ok("cuda-amd64")),
    ("gfd-renamed-shared", UNSUPPORTED),
    ("gpu-operator-l40s", Ok("cuda-amd64")),
    ("gpu-operator-gone", UNSUPPORTED),
    ("gke-l4", Ok("cuda-amd64")),
    ("gke-axion", Ok("cpu-arm64")),
    ("eks-graviton4", Ok("graviton")),
    ("eks-g5g", Ok("cuda-arm64")),
    ("eks-auto-l4", Ok("cuda-amd64")),
    ("eks-auto-graviton", Ok("graviton")),
    ("karpenter-aws-a10g", Ok("cuda-amd64")),
    ("karpenter-aws-graviton", Ok("graviton")),
    ("aks-t4", Ok("cuda-amd64")),
    ("aks-t4-no-plugin", UNSUPPORTED),
    ("aks-cobalt", Ok("cpu-arm64")),
    ("karpenter-azure-a100", Ok("cuda-amd64")),
    ("device-plugin-amd64", Ok("cuda-amd64")),
    ("device-plugin-arm64", Ok("cuda-arm64")),
    ("nfd-graviton3", Ok("graviton")),
    ("nfd-graviton2-rule", Ok("graviton")),
    ("nfd-altra", Ok("cpu-arm64")),
    ("nfd-xeon", Ok("cpu-amd64")),
    ("nfd-gpu-no-plugin", UNSUPPORTED),
    ("windows-2022", NO_CLASS),
    ("windows-gpu", NO_CLASS),
    ("dra-h100", UNSUPPORTED),
    ("dra-bare", UNSUPPORTED),
    ("amd-mi300x", UNSUPPORTED),
    ("intel-flex", UNSUPPORTED),
    ("conflict-gb10-amd64", Ok("cuda-amd64")),
    ("conflict-compute", Ok("dgx-spark")),
    ("conflict-two-publishers", Ok("cuda-amd64")),
    ("conflict-count", Ok("cuda-amd64")),
];

fn publisher(name: &str) -> NodeFacts {
    node(&format!("publishers/{name}"))
}

fn report(name: &str) -> NodeReport {
    describe(&index(&[]), &publisher(name))
}

fn outcome(report: &NodeReport) -> Result<&str, Reason> {
    match &report.class {
        Ok(class) => Ok(class),
        Err(unclassified) => Err(unclassified.reason),
    }
}

#[test]
fn every_publisher_is_recognised() {
    for (name, expected) in PUBLISHERS {
        assert_eq!(outcome(&report(name)), expected, "{name}");
    }
}

#[test]
fn every_fixture_is_in_the_table() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/fixtures/nodes/publishers");
    let files: BTreeSet<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let table: BTreeSet<String> = PUBLISHERS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(files, table);
    for name in files {
        assert_eq!(publisher(&name).name, name);
    }
}

/// The scheduler agrees, but for GPU nodes without a label of NVIDIA's, where a CPU pool's affinity has nothing to go by.
#[test]
fn pods_fit_where_the_class_is() {
    for (name, expected) in PUBLISHERS {
        let node = publisher(name);
        let bare = [
            "device-plugin-amd64",
            "device-plugin-arm64",
            "dra-bare",
            "amd-mi300x",
            "intel-flex",
        ]
        .contains(&name);
        for class in built_in() {
            let class_name = class.metadata.name.unwrap();
            let cpu = class.spec.resource.is_none();
            if bare && cpu {
                continue;
            }
            // The operating system is part of every pool's node selector, not of the class.
            let linux = node.label("kubernetes.io/os") == Some("linux");
            let fits = linux && pods_fit(&class.spec, &node);
            assert_eq!(fits, expected == Ok(class_name.as_str()), "{class_name} on {name}");
        }
    }
}

/// Whoever wants the CPUs of such nodes says so by a class that names the resource.
#[test]
fn a_gpu_of_another_maker_is_never_silently_a_cpu_node() {
    for (name, resource) in [("amd-mi300x", "amd.com/gpu"), ("intel-flex", "gpu.intel.com/i915")] {
        let report = report(name);
        let words =
            format!("{resource}, which no class takes on such a node: the images of this release do not compute on it");
        assert!(report.because().contains(&words), "{}", report.because());
        assert_eq!(
            report.fact(What::GpuUnits).unwrap().source,
            format!("allocatable {resource}")
        );
        let mut classes = built_in();
        let mut own = classes
            .iter()
            .find(|class| class.metadata.name.as_deref() == Some("cpu-amd64"))
            .unwrap()
            .clone();
        own.metadata.name = Some("own".into());
        own.spec.resource = Some(resource.into());
        classes.push(own);
        let index = ClassIndex::new(&classes, &[publisher(name)], |_, _| 0);
        assert_eq!(index.get("own").unwrap().nodes, 1, "{name}");
    }
}

#[rstest]
#[case("gfd-gb10-oem", What::GpuProduct, "NVIDIA-GB10", "label nvidia.com/gpu.product")]
#[case(
    "gfd-gb10-oem",
    What::UnifiedMemory,
    "119.7 GiB",
    "capacity memory, which CPU and GPU share on GB10 (label nvidia.com/gpu.product=NVIDIA-GB10)"
)]
#[case("gfd-gb10-oem", What::Cuda, "13.0", "label nvidia.com/cuda.runtime-version.full")]
#[case("gfd-gb10-shared", What::GpuProduct, "NVIDIA-GB10", "label nvidia.com/gpu.product")]
#[case(
    "gfd-gb10-shared",
    What::GpuSharing,
    "time-slicing, each GPU as 4 units",
    "label nvidia.com/gpu.sharing-strategy"
)]
#[case("gfd-gb10-shared", What::GpuUnits, "4 nvidia.com/gpu", "allocatable nvidia.com/gpu")]
#[case("gfd-gb200", What::GpuMemory, "185.0 GiB", "label nvidia.com/gpu.memory")]
#[case("gfd-gb200", What::GpuCount, "4", "label nvidia.com/gpu.count")]
#[case("gfd-a100-old", What::Driver, "535.183.01", "labels nvidia.com/cuda.driver.major, …")]
#[case("gfd-a100-old", What::Cuda, "12.2", "labels nvidia.com/cuda.runtime.major, …")]
#[case(
    "gfd-mig-single",
    What::GpuProduct,
    "NVIDIA-A100-SXM4-80GB",
    "label nvidia.com/gpu.product"
)]
#[case("gfd-mig-single", What::Mig, "1g.10gb", "suffix of label nvidia.com/gpu.product")]
#[case("gfd-mig-mixed", What::Mig, "mixed", "label nvidia.com/mig.strategy")]
#[case("gke-l4", What::GpuProduct, "nvidia-l4", "label cloud.google.com/gke-accelerator")]
#[case(
    "eks-auto-l4",
    What::GpuMemory,
    "22.4 GiB",
    "label eks.amazonaws.com/instance-gpu-memory"
)]
#[case(
    "karpenter-aws-a10g",
    What::GpuMemory,
    "24.0 GiB",
    "label karpenter.k8s.aws/instance-gpu-memory"
)]
#[case(
    "karpenter-azure-a100",
    What::GpuCount,
    "1",
    "label karpenter.azure.com/sku-gpu-count"
)]
#[case("eks-g5g", What::GpuProduct, "NVIDIA-T4G", "instance family g5g")]
#[case("eks-g5g", What::CpuModel, "Graviton2", "instance type g5g.xlarge")]
#[case("eks-graviton4", What::CpuModel, "Graviton4", "instance type r8g.2xlarge")]
#[case(
    "nfd-graviton3",
    What::CpuCore,
    "Neoverse V1",
    "label feature.node.kubernetes.io/cpu-model.id, part 0xd40"
)]
#[case(
    "nfd-graviton3",
    What::CpuFeatures,
    "ASIMDHP, FPHP, ASIMDDP, I8MM, BF16, SVE, SVEBF16, SVEI8MM",
    "labels feature.node.kubernetes.io/cpu-cpuid.*"
)]
#[case(
    "nfd-graviton2-rule",
    What::CpuModel,
    "Graviton2",
    "label feature.node.kubernetes.io/hawkeye-graviton"
)]
#[case(
    "nfd-altra",
    What::CpuCore,
    "Neoverse N1",
    "label feature.node.kubernetes.io/cpu-model.id, part 0xd0c"
)]
#[case("aks-cobalt", What::Memory, "15.4 GiB", "allocatable memory")]
#[case("aks-cobalt", What::Cpu, "4", "allocatable cpu")]
#[case("windows-2022", What::OperatingSystem, "windows", "label kubernetes.io/os")]
fn each_fact_has_its_source(#[case] name: &str, #[case] what: What, #[case] value: &str, #[case] source: &str) {
    let report = report(name);
    let fact = report
        .fact(what)
        .unwrap_or_else(|| panic!("{name}: {:?}", report.facts));
    assert_eq!((fact.value.as_str(), fact.source.as_str()), (value, source));
}

#[test]
fn what_is_not_known_is_not_said() {
    // Neither N1 nor an Intel CPU has a make that its id alone tells.
    assert_eq!(report("nfd-altra").fact(What::CpuModel), None);
    assert_eq!(report("nfd-xeon").fact(What::CpuCore), None);
    assert_eq!(report("device-plugin-amd64").fact(What::GpuProduct), None);
    assert_eq!(report("device-plugin-amd64").fact(What::GpuMemory), None);
    // Unified memory without a capacity is unknown, not 0.
    let mut spark = publisher("gfd-gb10-oem");
    spark.memory_capacity = None;
    assert_eq!(gpu_memory(&spark), None);
    let l4 = gpu_memory(&publisher("gfd-mps")).unwrap();
    let GpuMemory { bytes, unified, .. } = l4;
    assert_eq!((bytes, unified), (23_034 << 20, false));
}

#[rstest]
#[case(
    "gfd-gb10-oem",
    "GPU product NVIDIA-GB10 (label nvidia.com/gpu.product); GPU units 1 nvidia.com/gpu (allocatable nvidia.com/gpu)"
)]
#[case(
    "eks-graviton4",
    "instance type r8g.2xlarge (label node.kubernetes.io/instance-type); GPU none (no label and no allocatable resource shows one)"
)]
#[case(
    "karpenter-aws-graviton",
    "label aws (label karpenter.k8s.aws/instance-cpu-manufacturer); instance type c99gn.4xlarge (label node.kubernetes.io/instance-type, none of g5g.xlarge, g5g.2xlarge, g5g.4xlarge and 3 more)"
)]
#[case("nfd-graviton3", "CPU core 54273 (label feature.node.kubernetes.io/cpu-model.id)")]
#[case(
    "device-plugin-amd64",
    "architecture amd64 (label kubernetes.io/arch); GPU units 2 nvidia.com/gpu (allocatable nvidia.com/gpu)"
)]
#[case(
    "gfd-mig-mixed",
    "it offers its GPU as 2 nvidia.com/mig-1g.10gb and 1 nvidia.com/mig-3g.40gb, which no class takes"
)]
#[case(
    "gfd-renamed-shared",
    "it offers its GPU as 4 nvidia.com/gpu.shared, which no class takes"
)]
#[case(
    "aks-t4-no-plugin",
    "it shows a GPU (label kubernetes.azure.com/accelerator=nvidia), but offers none: check the device plugin"
)]
#[case("dra-bare", "it shows a GPU (allocatable nvidia.com/gpu: 0), but offers none")]
#[case(
    "gpu-operator-gone",
    "nvidia.com/gpu.present=false, but nvidia.com/gpu.product=NVIDIA-L40S is still there"
)]
#[case("windows-2022", "operating system windows")]
fn each_node_says_why(#[case] name: &str, #[case] why: &str) {
    let because = report(name).because();
    assert!(because.contains(why), "{because}");
}

#[rstest]
#[case(
    "gfd-gb200",
    "dgx-spark",
    "label nvidia.com/gpu.product=NVIDIA-GB200 is none of NVIDIA-GB10, NVIDIA-GB10-SHARED, GB10 and 1 more"
)]
#[case(
    "gfd-gb10-oem",
    "cuda-arm64",
    "label nvidia.com/gpu.product=NVIDIA-GB10 rules it out"
)]
#[case("gfd-gb10-oem", "cuda-amd64", "it is arm64, the class amd64")]
#[case("nfd-altra", "cuda-arm64", "it offers no nvidia.com/gpu")]
#[case("dra-h100", "cuda-amd64", "it has 0 nvidia.com/gpu allocatable")]
#[case(
    "dra-bare",
    "cpu-amd64",
    "it shows a GPU (allocatable nvidia.com/gpu: 0), and this is a class for CPUs"
)]
#[case("windows-2022", "cpu-amd64", "its operating system is windows, not linux")]
#[case(
    "aks-cobalt",
    "graviton",
    "label node.kubernetes.io/instance-type=Standard_D4ps_v6 is none of t4g.nano, t4g.micro, t4g.small"
)]
#[case(
    "device-plugin-arm64",
    "dgx-spark",
    "the node has no label nvidia.com/gpu.product (wanted: NVIDIA-GB10,"
)]
fn each_class_says_why_not(#[case] name: &str, #[case] class: &str, #[case] why: &str) {
    let report = report(name);
    let rejection = report
        .rejected
        .iter()
        .find(|rejection| rejection.class == class)
        .unwrap();
    assert!(rejection.message.contains(why), "{}", rejection.message);
}

#[test]
fn classes_that_come_too_late_say_so() {
    let mut classes = built_in();
    let mut own = classes
        .iter()
        .find(|class| class.metadata.name.as_deref() == Some("cuda-amd64"))
        .unwrap()
        .clone();
    own.metadata.name = Some("a-twin".into());
    classes.push(own.clone());
    own.metadata.name = Some("own".into());
    own.spec.priority = 500;
    classes.push(own);
    let index = ClassIndex::new(&classes, &[] as &[NodeFacts], |_, _| 0);
    let report = describe(&index, &publisher("gke-l4"));
    assert_eq!(report.class.as_deref(), Ok("own"));
    let why = |name: &str| &report.rejected.iter().find(|one| one.class == name).unwrap().message;
    assert_eq!(
        why("cuda-amd64"),
        "it admits the node, but own has the higher priority (500 over 80)"
    );
    classes.pop();
    let index = ClassIndex::new(&classes, &[] as &[NodeFacts], |_, _| 0);
    let report = describe(&index, &publisher("gke-l4"));
    assert_eq!(report.class.as_deref(), Ok("a-twin"));
    let twin = report.rejected.iter().find(|one| one.class == "cuda-amd64").unwrap();
    assert_eq!(
        twin.message,
        "it admits the node, but a-twin of the same priority comes first by name"
    );
}

#[test]
fn contradictions_are_named() {
    let expected = [
        (
            "gpu-operator-gone",
            "nvidia.com/gpu.present=false, but nvidia.com/gpu.product=NVIDIA-L40S is still there",
        ),
        (
            "gpu-operator-gone",
            "1 units of GPU (nvidia.com/gpu.count), but 0 nvidia.com/gpu",
        ),
        (
            "dra-h100",
            "8 units of GPU (nvidia.com/gpu.count), but 0 nvidia.com/gpu",
        ),
        (
            "conflict-gb10-amd64",
            "GB10 is an ARM64 chip (label nvidia.com/gpu.product=NVIDIA-GB10), but kubernetes.io/arch=amd64",
        ),
        (
            "conflict-compute",
            "nvidia.com/gpu.product=NVIDIA-GB10, but its compute capability is 9.0",
        ),
        (
            "conflict-two-publishers",
            "nvidia.com/gpu.product=NVIDIA-A100-SXM4-40GB, but cloud.google.com/gke-accelerator=nvidia-l4",
        ),
        (
            "conflict-count",
            "2 units of GPU (nvidia.com/gpu.count), but 1 nvidia.com/gpu",
        ),
    ];
    for (name, _) in PUBLISHERS {
        let conflicts = report(name).conflicts;
        let wanted: Vec<&str> = expected
            .iter()
            .filter(|(of, _)| *of == name)
            .map(|(_, text)| *text)
            .collect();
        assert_eq!(conflicts.len(), wanted.len(), "{name}: {conflicts:?}");
        for (conflict, text) in conflicts.iter().zip(wanted) {
            assert!(conflict.contains(text), "{name}: {conflict}");
        }
    }
    let mut offered = publisher("gpu-operator-gone");
    offered.allocatable.insert("nvidia.com/gpu".into(), 1);
    offered.labels.insert("beta.kubernetes.io/arch".into(), "arm64".into());
    let conflicts = describe(&index(&[]), &offered).conflicts.join("; ");
    assert!(
        conflicts.contains("nvidia.com/gpu.present=false, but 1 nvidia.com/gpu can be had"),
        "{conflicts}"
    );
    assert!(
        conflicts.contains("kubernetes.io/arch=amd64, but beta.kubernetes.io/arch=arm64"),
        "{conflicts}"
    );
}

/// k8s-device-plugin#731: with two models in one node the label is now one, now the other.
#[test]
fn a_product_that_flaps_changes_no_built_in_class() {
    let mut node = publisher("gpu-operator-l40s");
    for product in ["NVIDIA-L40S", "NVIDIA-A2", "NVIDIA-L40S", ""] {
        node.labels.insert("nvidia.com/gpu.product".into(), product.into());
        assert_eq!(
            describe(&index(&[]), &node).class.as_deref(),
            Ok("cuda-amd64"),
            "{product}"
        );
    }
}

#[test]
fn the_report_is_flat_json() {
    let good = serde_json::to_value(report("device-plugin-amd64")).unwrap();
    assert_eq!(
        (&good["node"], &good["class"]),
        (&"device-plugin-amd64".into(), &"cuda-amd64".into())
    );
    assert_eq!(good["why"][2]["what"], "GpuUnits");
    assert_eq!(good["rejected"][0]["class"], "dgx-spark");
    assert!(good.get("reason").is_none());
    let bad = serde_json::to_value(report("windows-2022")).unwrap();
    assert_eq!(bad["reason"], "NoClassMatches");
    assert!(bad.get("class").is_none() && bad["message"].as_str().unwrap().contains("windows"));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// Labels of every publisher in any mixture, with any values: a report that agrees with itself, and no crash.
    #[test]
    fn any_mixture_of_labels_gives_a_report(
        arch in prop::sample::select(vec!["amd64", "arm64", "aarch64"]),
        picked in prop::collection::vec((0_usize..PUBLISHERS.len(), any::<prop::sample::Index>()), 0..12),
        units in prop::option::of(0_u64..9),
        noise in prop::collection::btree_map("[a-z.]{1,9}/[a-zA-Z.-]{1,9}", ".{0,9}", 0..4),
    ) {
        let mut mixed = bare("n", arch, &[]);
        for (at, index) in picked {
            let labels = publisher(PUBLISHERS[at].0).labels;
            let (key, value) = labels.iter().nth(index.index(labels.len())).unwrap();
            if !key.starts_with("kubernetes.io/") {
                mixed.labels.insert(key.clone(), value.clone());
            }
        }
        mixed.labels.extend(noise.into_iter().map(|(key, value)| (key.into(), value.into())));
        if let Some(units) = units {
            mixed = offering(mixed, "nvidia.com/gpu", units);
        }
        let classes = index(&[]);
        let report = describe(&classes, &mixed);
        prop_assert_eq!(report.rejected.len() + usize::from(report.class.is_ok()), classes.classes.len());
        prop_assert_eq!(report.class.is_ok(), !report.why.is_empty());
        prop_assert!(report.rejected.iter().all(|one| !one.message.is_empty()));
        // What shows a GPU is never a CPU node.
        if mixed.allocatable.contains_key("nvidia.com/gpu") && mixed.label("nvidia.com/gpu.present") != Some("false") {
            let cpu = report.class.as_deref().is_ok_and(|class| ["graviton", "cpu-arm64", "cpu-amd64"].contains(&class));
            prop_assert!(!cpu, "{:?}", mixed);
        }
    }
}

/// The rule for Node Feature Discovery says of every instance type what the table says.
#[test]
fn the_rule_for_nfd_agrees_with_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/nfd-graviton.yaml");
    let rule: serde_json::Value = serde_saphyr::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let rules: Vec<(String, regex::Regex)> = rule["spec"]["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| {
            let firmware = &rule["matchFeatures"][0];
            assert_eq!(firmware["feature"], "system.dmiid");
            assert_eq!(firmware["matchExpressions"]["sys_vendor"]["value"][0], "Amazon EC2");
            let pattern = firmware["matchExpressions"]["product_name"]["value"][0]
                .as_str()
                .unwrap();
            let generation = rule["labels"]["feature.node.kubernetes.io/hawkeye-graviton"]
                .as_str()
                .unwrap();
            (generation.to_owned(), regex::Regex::new(pattern).unwrap())
        })
        .collect();
    let told = |name: &str| {
        let mut found = rules.iter().filter(|(_, pattern)| pattern.is_match(name));
        let first = found.next().map(|(generation, _)| generation.as_str());
        assert!(found.next().is_none(), "{name}");
        first
    };
    for name in classes::instance_types("tables/graviton.csv").unwrap() {
        assert_eq!(told(&name), classes::graviton_generation(&name), "{name}");
    }
    for name in classes::instance_types("tables/graviton-gpu.csv").unwrap() {
        assert_eq!(told(&name), None, "{name} has a GPU");
    }
    for name in [
        "g4dn.xlarge",
        "g6e.xlarge",
        "m6i.large",
        "a1.large",
        "p6e-gb200.36xlarge",
        "g8g.large",
    ] {
        assert_eq!(told(name), None, "{name}");
    }
    assert_eq!(told("i7ge.large"), Some("3"));
}
