//! Placement, sentence 3 of the design: "A pod's memory limit is what model + dtype + batch need, at least the class's
//! limit. If the largest node of the class cannot hold it, the batch shrinks in halves until it fits; if none fits, the
//! pool is empty with a reason."

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{bare, built_in, index, node, now, plan, plan_at, shares, spec};
use hawkeye_crds::v1alpha1::{HardwareClassSpec, Reason};
use hawkeye_operator::{
    controller::plan::{PoolPlan, Request},
    hardware::{ClassIndex, NodeFacts, memory},
};
use proptest::prelude::*;

const GIB: u64 = 1 << 30;

fn with_memory(mut node: NodeFacts, bytes: u64) -> NodeFacts {
    node.memory = Some(bytes);
    node
}

/// The pool of the one class that is used, on a node of so many bytes.
fn pool(node_: NodeFacts, yaml: &str) -> PoolPlan {
    let plan = plan(yaml, &index(&[node_]));
    plan.pools.into_iter().find(|pool| pool.replicas > 0).unwrap()
}

#[test]
fn a_pods_memory_limit_is_what_model_dtype_and_batch_need() {
    let spark = |yaml: &str| pool(node("dgx-spark"), yaml).memory.0;
    // The guide's figures for DGX Spark: 8 GB for batches of 128, 14 GB for 256.
    assert_eq!(spark("{overrides: {dgx-spark: {batchSize: 128}}}"), "8Gi");
    assert_eq!(spark("{overrides: {dgx-spark: {batchSize: 256}}}"), "14Gi");
    assert_eq!(spark("{dtype: BFloat16}"), "8Gi", "what the class has by default");
    assert_eq!(spark("{dtype: Float32}"), "14848Mi", "numbers of twice the size");
    let message = pool(node("dgx-spark"), "{dtype: Float32}").message;
    assert!(
        message.contains(
            "Memory is 14.5Gi instead of the class's 8Gi: that is what batches of 128 crops in Float32 need."
        ),
        "{message}"
    );
    let message = pool(node("dgx-spark"), "{}").message;
    assert!(!message.contains("instead of the class's"), "{message}");
    let cpu = |yaml: &str| pool(with_memory(bare("n", "amd64", &[]), 64 * GIB), yaml).memory.0;
    assert_eq!(cpu("{}"), "4Gi");
    assert_eq!(cpu("{overrides: {cpu-amd64: {batchSize: 32}}}"), "6Gi");
    // Half of the weights' bytes; the crops of a batch are as large.
    assert_eq!(cpu("{dtype: Int8, overrides: {cpu-amd64: {batchSize: 32}}}"), "5632Mi");
}

#[test]
fn it_is_at_least_the_classs_limit() {
    assert_eq!(pool(node("dgx-spark"), "{profile: Speed}").memory.0, "8Gi");
    let small = pool(
        with_memory(bare("n", "amd64", &[]), 64 * GIB),
        "{dtype: BFloat16, overrides: {cpu-amd64: {batchSize: 1}}}",
    );
    assert_eq!(small.memory.0, "4Gi");
    for (fixture, batch, memory) in [
        ("dgx-spark", 128, "8Gi"),
        ("gh200", 128, "4Gi"),
        ("x86-rtx", 128, "4Gi"),
        ("graviton2", 16, "4Gi"),
        ("graviton3", 16, "4Gi"),
        ("cpu-arm64", 16, "4Gi"),
        ("cpu-amd64", 16, "4Gi"),
    ] {
        let pool = pool(node(fixture), "{}");
        assert_eq!((pool.batch_size, pool.memory.0.as_str()), (batch, memory), "{fixture}");
    }
}

#[test]
fn the_batch_shrinks_in_halves_until_it_fits_the_largest_node() {
    let cpu = |bytes: u64| pool(with_memory(bare("n", "amd64", &[]), bytes), "{}");
    let smaller = cpu(4 * GIB - 1);
    assert_eq!((smaller.batch_size, smaller.memory.0.as_str()), (8, "3Gi"));
    assert!(
        smaller.message.contains("Batches of 8: batches of 16 crops need 4Gi"),
        "{}",
        smaller.message
    );
    assert!(smaller.message.contains("has 3.9Gi"), "{}", smaller.message);
    assert_eq!(cpu(5 * GIB / 2).batch_size, 4);
    // The largest counts, not the first, and a node that is not ready counts: it comes back.
    let mut large = with_memory(bare("large", "amd64", &[]), 8 * GIB);
    large.ready = false;
    let index = index(&[with_memory(bare("small", "amd64", &[]), 3 * GIB), large]);
    assert_eq!(plan("{}", &index).pools[0].batch_size, 16);
}

#[test]
fn a_batch_of_an_override_shrinks_as_well_and_the_message_says_so() {
    let spark = pool(
        with_memory(node("dgx-spark"), 10 * GIB),
        "{overrides: {dgx-spark: {batchSize: 512}}}",
    );
    assert_eq!((spark.batch_size, spark.memory.0.as_str()), (128, "8Gi"));
    assert!(
        spark.message.contains("overrides ask for batches of 512"),
        "{}",
        spark.message
    );
}

#[test]
fn memory_of_an_override_is_taken_as_it_is_and_the_batch_fits_into_it() {
    let spark = |change: &str| {
        pool(
            node("dgx-spark"),
            &format!("{{overrides: {{dgx-spark: {{{change}}}}}}}"),
        )
    };
    let tight = spark("memory: 4Gi");
    assert_eq!((tight.batch_size, tight.memory.0.as_str()), (32, "4Gi"));
    assert!(
        tight.message.contains("Batches of 32 instead of 128"),
        "{}",
        tight.message
    );
    let less = spark("memory: 1Gi");
    assert_eq!(
        (less.batch_size, less.memory.0.as_str()),
        (128, "1Gi"),
        "no batch would help"
    );
    assert!(less.message.contains("about 8Gi were expected"), "{}", less.message);
    let wide = spark("memory: 16Gi");
    assert_eq!((wide.batch_size, wide.memory.0.as_str()), (128, "16Gi"));
    // Whoever gives both knows better than a table.
    let both = spark("memory: 1Gi, batchSize: 200");
    assert_eq!((both.batch_size, both.memory.0.as_str()), (200, "1Gi"));
}

#[test]
fn if_no_batch_fits_the_pool_is_empty_with_a_reason() {
    let nodes = [
        with_memory(node("dgx-spark"), GIB),
        with_memory(bare("n", "amd64", &[]), 8 * GIB),
    ];
    let degraded = plan("{}", &index(&nodes));
    assert_eq!(shares(&degraded), [("cpu-amd64", 1)]);
    let spark = degraded.pools.iter().find(|pool| pool.class == "dgx-spark").unwrap();
    assert_eq!((spark.replicas, spark.reason), (0, Reason::MemoryDoesNotFit));
    assert!(
        spark.message.contains("the largest node of the class has 1Gi"),
        "{}",
        spark.message
    );
    assert!(degraded.degraded.unwrap().contains("No pod fits"));

    let denied = plan("{fallback: Deny}", &index(&nodes));
    assert_eq!((denied.unplaced, denied.placed.0), (1, Reason::FallbackDenied));
    assert!(
        denied.placed.1.contains("dgx-spark: No pod fits"),
        "{}",
        denied.placed.1
    );

    let alone = plan("{classes: [dgx-spark]}", &index(&nodes));
    assert_eq!((alone.unplaced, alone.placed.0), (1, Reason::MemoryDoesNotFit));
    let asked = plan("{overrides: {cpu-amd64: {memory: 9Gi}}}", &index(&nodes[1..]));
    assert_eq!(asked.placed.0, Reason::MemoryDoesNotFit);
    assert!(
        asked.placed.1.contains("overrides give each pod 9Gi"),
        "{}",
        asked.placed.1
    );
}

#[test]
fn nodes_that_an_autoscaler_would_add_may_be_larger() {
    let mut classes = built_in();
    for class in &mut classes {
        class.spec.autoscaled = true;
    }
    let index = ClassIndex::new(&classes, &[with_memory(node("dgx-spark"), GIB)], |_, _| 0);
    let plan = plan("{}", &index);
    assert_eq!(shares(&plan), [("dgx-spark", 1)]);
    assert_eq!(plan.pools[0].batch_size, 128);
}

#[test]
fn a_class_that_is_barred_from_outside_is_passed_over_with_that_reason() {
    let spec = spec("{replicas: 2}");
    let request = Request {
        barred: [(
            "dgx-spark".to_owned(),
            (Reason::NoClassMatches, "Not with this image.".to_owned()),
        )]
        .into(),
        ..Request::new("u", "t", &spec)
    };
    let plan = plan_at(request, &index(&[node("dgx-spark"), node("cpu-amd64")]), now());
    assert_eq!(shares(&plan), [("cpu-amd64", 2)]);
    assert_eq!(plan.pools[0].reason, Reason::NoClassMatches);
    assert!(plan.degraded.unwrap().contains("Not with this image"));
}

fn class(name: &str) -> HardwareClassSpec {
    let found = built_in()
        .into_iter()
        .find(|class| class.metadata.name.as_deref() == Some(name));
    found.unwrap().spec
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the class and the node: what is given fits the node, a smaller node never gets a larger batch, and only
    /// halves of what was asked for are used.
    #[test]
    fn what_is_given_fits(
        name in prop::sample::select(vec!["dgx-spark", "cuda-arm64", "cuda-amd64", "graviton", "cpu-arm64", "cpu-amd64"]),
        batch in 1_i32..1025,
        largest in (1_u64 << 28)..(64 * GIB),
        less in 0_u64..(64 * GIB),
        float32 in prop::bool::ANY,
    ) {
        use hawkeye_crds::v1alpha1::Dtype;
        let class = class(name);
        let dtype = if float32 { Dtype::Float32 } else { Dtype::BFloat16 };
        let fit = |bytes: u64| memory::fit(&class, dtype, batch, None, Some(bytes)).ok();
        if let Some(fit) = fit(largest) {
            prop_assert!(fit.memory.units().unwrap() <= largest);
            prop_assert!((0..11).any(|shift| batch >> shift == fit.batch_size));
            let note = fit.note.unwrap_or_default();
            prop_assert_eq!(note.contains("Batches of"), fit.batch_size < batch);
            let more = fit.memory.units() > class.memory.limit.units();
            prop_assert_eq!(note.contains("instead of the class's"), more);
        }
        let (small, large) = (fit(largest.min(less)), fit(largest.max(less)));
        prop_assert!(small.map_or(0, |fit| fit.batch_size) <= large.map_or(0, |fit| fit.batch_size));
        let unbound = memory::fit(&class, dtype, batch, None, None).unwrap();
        prop_assert_eq!(unbound.batch_size, batch);
        prop_assert!(unbound.memory.units() >= class.memory.limit.units());
    }
}

#[test]
fn a_cpu_request_that_no_node_holds_leaves_the_pool_empty() {
    let cpus = |milli| NodeFacts {
        cpu_milli: Some(milli),
        ..bare("n", "amd64", &[])
    };
    let asks = |cpu: &str| format!("{{overrides: {{cpu-amd64: {{cpu: {cpu}}}}}}}");
    let placed = |milli, cpu: &str| plan(&asks(cpu), &index(&[cpus(milli)]));
    assert_eq!(shares(&placed(3920, "3920m")), [("cpu-amd64", 1)]);
    let refused = placed(3920, "4");
    assert_eq!((refused.unplaced, refused.placed.0), (1, Reason::CpuDoesNotFit));
    let words = "overrides give each pod 4 CPUs, and the largest node of the class has 3.92 for pods";
    assert!(refused.placed.1.contains(words), "{}", refused.placed.1);
    assert_eq!(refused.pools[0].reason, Reason::CpuDoesNotFit);
    // The class's own request, too; and another class takes the replica.
    let nodes = [
        NodeFacts {
            cpu_milli: Some(1500),
            ..node("dgx-spark")
        },
        cpus(4000),
    ];
    let degraded = plan("{}", &index(&nodes));
    assert_eq!(shares(&degraded), [("cpu-amd64", 1)]);
    let why = degraded.degraded.unwrap();
    assert!(why.contains("each pod asks for 2 CPUs"), "{why}");
    // Nodes that come on demand may be larger, and a node that does not say may have any number.
    let mut classes = built_in();
    let class = classes
        .iter_mut()
        .find(|class| class.metadata.name.as_deref() == Some("cpu-amd64"));
    class.unwrap().spec.autoscaled = true;
    let autoscaled = ClassIndex::new(&classes, &[cpus(1000)], |_, _| 0);
    assert_eq!(shares(&plan(&asks("4"), &autoscaled)), [("cpu-amd64", 1)]);
    assert_eq!(
        shares(&plan(&asks("4"), &index(&[bare("n", "amd64", &[])]))),
        [("cpu-amd64", 1)]
    );
}
