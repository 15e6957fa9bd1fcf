//! Where replicas go, sentence by sentence of docs/src/concepts/placement.md.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{bare, built_in, index, models, node, now, offering, plan, plan_at, shares, spec};
use hawkeye_crds::v1alpha1::{Dtype, Reason};
use hawkeye_operator::{
    controller::plan::{Held, Plan, Request, plan_all},
    hardware::{ClassIndex, ModelDefaults, NodeFacts},
};
use proptest::prelude::*;

const GPU: &str = "nvidia.com/gpu";

fn all_platforms() -> Vec<NodeFacts> {
    [
        "dgx-spark",
        "gh200",
        "x86-rtx",
        "graviton2",
        "graviton3",
        "cpu-arm64",
        "cpu-amd64",
    ]
    .map(node)
    .to_vec()
}

fn gpus(units: u64) -> Vec<NodeFacts> {
    vec![
        offering(bare("gpu", "amd64", &["nvidia.com/gpu.present=true"]), GPU, units),
        bare("cpu", "amd64", &[]),
    ]
}

#[test]
fn classes_are_filled_in_the_order_of_their_priority() {
    let index = index(&all_platforms());
    assert_eq!(shares(&plan("{replicas: 1}", &index)), [("dgx-spark", 1)]);
    let plan = plan("{replicas: 5}", &index);
    assert_eq!(
        shares(&plan),
        [("dgx-spark", 1), ("cuda-arm64", 1), ("cuda-amd64", 1), ("graviton", 2)]
    );
    assert_eq!(plan.placed.0, Reason::Placed);
    assert_eq!(plan.unplaced, 0);
}

#[test]
fn spec_classes_allows_and_orders() {
    let index = index(&all_platforms());
    let listed = plan("{replicas: 3, classes: [cuda-amd64, cpu-arm64]}", &index);
    assert_eq!(shares(&listed), [("cuda-amd64", 1), ("cpu-arm64", 2)]);
    let cpu_first = plan("{replicas: 3, classes: [cpu-amd64, dgx-spark]}", &index);
    assert_eq!(shares(&cpu_first), [("cpu-amd64", 3)]);
    assert_eq!(cpu_first.degraded, None, "the user put it first");
}

#[test]
fn device_narrows() {
    let index = index(&all_platforms());
    assert_eq!(shares(&plan("{replicas: 4, device: Cpu}", &index)), [("graviton", 4)]);
    let cuda = plan(
        "{replicas: 2, device: Cuda, classes: [cpu-amd64, dgx-spark, cuda-amd64]}",
        &index,
    );
    assert_eq!(shares(&cuda), [("dgx-spark", 1), ("cuda-amd64", 1)]);
}

#[test]
fn degrade_goes_on_to_the_next_device_and_says_so() {
    let plan = plan("{replicas: 3, device: Cuda}", &index(&gpus(1)));
    assert_eq!(shares(&plan), [("cuda-amd64", 1), ("cpu-amd64", 2)]);
    let message = plan.degraded.unwrap();
    assert!(message.contains("2 on cpu-amd64 instead of Cuda"), "{message}");
    assert!(message.contains("cuda-amd64 has room for 1"), "{message}");
}

#[test]
fn auto_is_degraded_only_where_something_better_exists() {
    assert!(plan("{replicas: 2}", &index(&gpus(1))).degraded.is_some());
    assert_eq!(plan("{replicas: 2}", &index(&[node("cpu-amd64")])).degraded, None);
    assert!(
        plan("{replicas: 2, device: Cuda}", &index(&[node("cpu-amd64")]))
            .degraded
            .is_some()
    );
}

#[test]
fn deny_leaves_the_rest_without_a_place_and_says_how_many_and_why() {
    let plan = plan("{replicas: 3, device: Cuda, fallback: Deny}", &index(&gpus(1)));
    assert_eq!(shares(&plan), [("cuda-amd64", 1)]);
    assert_eq!((plan.unplaced, plan.degraded), (2, None));
    let (reason, message) = plan.placed;
    assert_eq!(reason, Reason::FallbackDenied);
    assert!(message.contains("2 of 3 replicas"), "{message}");
    assert!(message.contains("offers 1 nvidia.com/gpu"), "{message}");
    assert!(message.contains("fallback: Degrade to use cpu-amd64"), "{message}");
}

#[test]
fn auto_with_deny_stays_on_the_best_device_of_the_cluster() {
    assert_eq!(
        shares(&plan("{replicas: 3, fallback: Deny}", &index(&gpus(2)))),
        [("cuda-amd64", 2)]
    );
    assert_eq!(
        shares(&plan("{replicas: 3, fallback: Deny}", &index(&[node("cpu-amd64")]))),
        [("cpu-amd64", 3)]
    );
}

#[test]
fn gpus_that_others_hold_are_not_free() {
    let nodes = gpus(4);
    let index = ClassIndex::new(&built_in(), &nodes, |node, _| u64::from(node == "gpu") * 3);
    let plan = plan("{replicas: 2}", &index);
    assert_eq!(shares(&plan), [("cuda-amd64", 1), ("cpu-amd64", 1)]);
}

#[test]
fn a_class_with_an_autoscaler_is_not_capped() {
    let mut classes = built_in();
    classes
        .iter_mut()
        .find(|class| class.metadata.name.as_deref() == Some("cuda-amd64"))
        .unwrap()
        .spec
        .autoscaled = true;
    let index = ClassIndex::new(&classes, &[] as &[NodeFacts], |_, _| 0);
    assert_eq!(shares(&plan("{replicas: 7}", &index)), [("cuda-amd64", 7)]);
}

fn plan_many(specs: &[(&str, &str, &str)], index: &ClassIndex) -> Vec<(String, Plan)> {
    let decoded: Vec<_> = specs.iter().map(|(_, _, yaml)| spec(yaml)).collect();
    let requests: Vec<Request<'_>> = specs
        .iter()
        .zip(&decoded)
        .map(|((uid, created, _), spec)| Request::new(uid, created, spec))
        .collect();
    plan_all(&requests, index, &models(), now()).into_iter().collect()
}

#[test]
fn the_older_is_served_first_and_what_it_gets_is_taken() {
    let index = index(&gpus(3));
    let plans = plan_many(
        &[
            ("new", "2026-02-01T00:00:00Z", "{replicas: 2}"),
            ("old", "2026-01-01T00:00:00Z", "{replicas: 2}"),
        ],
        &index,
    );
    let get = |uid: &str| shares(&plans.iter().find(|(other, _)| other == uid).unwrap().1);
    assert_eq!(get("old"), [("cuda-amd64", 2)]);
    assert_eq!(get("new"), [("cuda-amd64", 1), ("cpu-amd64", 1)]);
    let strict = "{replicas: 2, fallback: Deny}";
    let plans = plan_many(
        &[
            ("new", "2026-02-01T00:00:00Z", strict),
            ("old", "2026-01-01T00:00:00Z", strict),
        ],
        &index,
    );
    let new = &plans.iter().find(|(uid, _)| uid == "new").unwrap().1;
    assert!(
        new.placed.1.contains("other HawkeyeDeployments have 2"),
        "{}",
        new.placed.1
    );
    let tie = plan_many(
        &[
            ("b", "2026-01-01T00:00:00Z", "{replicas: 3}"),
            ("a", "2026-01-01T00:00:00Z", "{replicas: 3}"),
        ],
        &index,
    );
    assert_eq!(
        shares(&tie[0].1),
        [("cuda-amd64", 3)],
        "of the same second, the lower UID"
    );
}

#[test]
fn pins_are_within_the_total_and_trimmed_in_class_order() {
    let index = index(&all_platforms());
    let pinned = plan(
        "{replicas: 4, overrides: {cpu-amd64: {replicas: 2}, dgx-spark: {replicas: 1}}}",
        &index,
    );
    assert_eq!(shares(&pinned), [("dgx-spark", 1), ("cuda-arm64", 1), ("cpu-amd64", 2)]);
    let trimmed = plan(
        "{replicas: 3, overrides: {graviton: {replicas: 2}, cpu-amd64: {replicas: 5}}}",
        &index,
    );
    assert_eq!(shares(&trimmed), [("graviton", 2), ("cpu-amd64", 1)]);
    let told = |plan: &Plan, class: &str| {
        let pool = plan.pools.iter().find(|pool| pool.class == class).unwrap();
        pool.message.clone()
    };
    let text = told(&trimmed, "cpu-amd64");
    assert!(text.starts_with("5 pinned by overrides, 1 of them are left:"), "{text}");
    let gone = plan(
        "{replicas: 2, overrides: {graviton: {replicas: 2}, cpu-amd64: {replicas: 5}}}",
        &index,
    );
    let text = told(&gone, "cpu-amd64");
    assert!(text.starts_with("5 pinned by overrides, 0 of them are left:"), "{text}");
    let left_out = plan("{replicas: 1, overrides: {dgx-spark: {replicas: 0}}}", &index);
    assert_eq!(shares(&left_out), [("cuda-arm64", 1)]);
}

#[test]
fn pins_below_the_total_leave_replicas_without_a_place() {
    let plan = plan(
        "{replicas: 3, classes: [cpu-amd64], overrides: {cpu-amd64: {replicas: 1}}}",
        &index(&gpus(1)),
    );
    assert_eq!(shares(&plan), [("cpu-amd64", 1)]);
    assert_eq!((plan.unplaced, plan.placed.0), (2, Reason::PinnedBelowTotal));
}

#[test]
fn a_pin_beyond_the_capacity_flows_on() {
    let plan = plan(
        "{replicas: 3, overrides: {cuda-amd64: {replicas: 3}}}",
        &index(&gpus(1)),
    );
    assert_eq!(shares(&plan), [("cuda-amd64", 1), ("cpu-amd64", 2)]);
}

#[test]
fn without_any_node_it_says_which_nodes_have_no_class_and_why() {
    let nodes = [offering(
        bare("mig", "amd64", &["nvidia.com/gpu.product=A100"]),
        "nvidia.com/mig-1g.10gb",
        7,
    )];
    let (reason, message) = plan("{replicas: 2}", &index(&nodes)).placed;
    assert_eq!(reason, Reason::NoNodes);
    assert!(message.contains("mig (UnsupportedGpuResource"), "{message}");
}

#[test]
fn capacity_that_is_all_taken_is_named() {
    let index = ClassIndex::new(&built_in(), &gpus(2)[..1], |_, _| 2);
    let (reason, message) = plan("{replicas: 2}", &index).placed;
    assert_eq!(reason, Reason::NotEnoughCapacity);
    assert!(message.contains("pods of others hold 2"), "{message}");
}

#[test]
fn nodes_that_no_pod_may_use_are_named() {
    let mut tainted = bare("n", "amd64", &[]);
    tainted.taints.push(hawkeye_operator::hardware::Taint {
        key: "dedicated".into(),
        value: "ci".into(),
        effect: hawkeye_crds::v1alpha1::TaintEffect::NoSchedule,
    });
    let plan = plan("{classes: [cpu-amd64, graviton]}", &index(&[tainted]));
    assert_eq!(plan.placed.0, Reason::NoNodes);
    assert_eq!(
        plan.placed.1,
        "1 of 1 replicas have no place: every node of cpu-amd64 (taint dedicated=ci:NoSchedule) has a taint that its class \
         does not tolerate; no node belongs to graviton."
    );
    assert_eq!(plan.pools[0].reason, Reason::NoNodes);
    let message = &plan.pools[0].message;
    assert!(message.contains("(taint dedicated=ci:NoSchedule)"), "{message}");
}

#[test]
fn nodes_that_take_no_pods_now_are_not_said_to_be_missing() {
    let off = |change: fn(&mut NodeFacts)| {
        let mut gpu = gpus(1).remove(0);
        change(&mut gpu);
        let plan = plan("{device: Cuda, fallback: Deny}", &index(&[gpu]));
        (plan.placed.0, plan.placed.1, plan.pools[0].message.clone())
    };
    for (change, words) in [
        ((|node| node.unschedulable = true) as fn(&mut NodeFacts), "(cordoned)"),
        (|node| node.ready = false, "(not ready)"),
    ] {
        let (reason, message, pool) = off(change);
        assert_eq!(reason, Reason::NotEnoughCapacity, "{message}");
        assert!(message.contains(words) && pool.contains(words), "{message} {pool}");
    }
}

#[test]
fn a_spec_that_leaves_no_class_says_which_fields_do() {
    let index = index(&all_platforms());
    for (yaml, words) in [
        (
            "{device: Cpu, classes: [dgx-spark]}",
            "device is Cpu, and no class that spec.classes names is for that device",
        ),
        (
            "{device: Cuda, fallback: Deny, classes: [cpu-amd64]}",
            "device is Cuda and fallback is Deny, and no class that spec.classes names is for that device",
        ),
    ] {
        let (reason, message) = plan(yaml, &index).placed;
        assert_eq!(reason, Reason::NoNodes);
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn a_class_that_pins_leave_without_replicas_says_so() {
    let plan = plan("{overrides: {cpu-amd64: {replicas: 1}}}", &index(&all_platforms()));
    assert_eq!(shares(&plan), [("cpu-amd64", 1)]);
    let spark = plan.pools.iter().find(|pool| pool.class == "dgx-spark").unwrap();
    assert_eq!(
        spark.message,
        "Not needed: other classes take every replica, those pinned by overrides first."
    );
    let degraded = plan.degraded.unwrap();
    assert!(!degraded.contains("classes before it"), "{degraded}");
}

#[test]
fn a_cpu_node_that_is_not_ready_keeps_its_pool() {
    let mut node = bare("n", "amd64", &[]);
    node.ready = false;
    assert_eq!(shares(&plan("{}", &index(&[node]))), [("cpu-amd64", 1)]);
}

#[test]
fn pods_that_run_keep_their_place_while_their_node_takes_no_new_ones() {
    let mut cordoned = gpus(2);
    cordoned[0].unschedulable = true;
    let mut gone = gpus(2);
    gone[0].allocatable.clear();
    let mut unlabelled = vec![node("dgx-spark"), bare("cpu", "amd64", &[])];
    unlabelled[0].labels.retain(|key, _| key.starts_with("kubernetes.io/"));
    for (nodes, class) in [
        (cordoned, "cuda-amd64"),
        (gone, "cuda-amd64"),
        (unlabelled, "dgx-spark"),
    ] {
        let index = index(&nodes);
        let spec = spec("{replicas: 1}");
        let request = |held: &[(&str, u32)]| Request {
            held: held.iter().map(|(class, pods)| ((*class).to_owned(), *pods)).collect(),
            ..Request::new("u", "t", &spec)
        };
        let running = plan_at(request(&[(class, 1)]), &index, now());
        assert_eq!(shares(&running), [(class, 1)]);
        assert_eq!(running.degraded, None);
        let fresh = plan_at(request(&[]), &index, now());
        assert_ne!(shares(&fresh), [(class, 1)], "a new pod would find no room there");
    }
}

#[test]
fn what_is_held_is_no_room_for_more_than_runs_there() {
    let mut nodes = gpus(4);
    nodes[0].unschedulable = true;
    let spec = spec("{replicas: 3}");
    let held = Held::from([("cuda-amd64".to_owned(), 1)]);
    let request = Request {
        held,
        ..Request::new("u", "t", &spec)
    };
    let plan = plan_at(request, &index(&nodes), now());
    assert_eq!(shares(&plan), [("cuda-amd64", 1), ("cpu-amd64", 2)]);
}

#[test]
fn refusals_leave_everything_alone() {
    let index = index(&all_platforms());
    let spec_ = spec("{}");
    let request = Request::new("u", "t", &spec_);
    let refused = plan_all(&[request], &index, &ModelDefaults::default(), now())
        .remove("u")
        .unwrap();
    assert_eq!(refused.refused.unwrap().0, Reason::ModelMissing);
    assert!(refused.pools.is_empty());
    let (reason, message) = plan("{classes: [dgx-spark, dgx-sparc]}", &index).refused.unwrap();
    assert_eq!(reason, Reason::UnknownClass);
    assert!(
        message.contains("spec.classes names dgx-sparc") && message.contains("graviton"),
        "{message}"
    );
    assert_eq!(
        plan("{overrides: {x: {}}}", &index).refused.unwrap().0,
        Reason::UnknownClass
    );
    assert_eq!(
        plan("{}", &ClassIndex::default()).refused.unwrap().0,
        Reason::NoHardwareClasses
    );
    assert_eq!(plan("{replicas: 0}", &index).placed.0, Reason::ScaledToZero);
}

#[test]
fn batch_dtype_memory_and_cpu_come_from_profile_and_class() {
    let index = index(&all_platforms());
    let pool = |yaml: &str| {
        plan(yaml, &index)
            .pools
            .into_iter()
            .find(|pool| pool.replicas > 0)
            .unwrap()
    };
    let spark = pool("{}");
    assert_eq!(
        (spark.batch_size, spark.dtype, spark.memory.0.as_str()),
        (128, Dtype::BFloat16, "8Gi")
    );
    assert_eq!(pool("{profile: Speed}").batch_size, 64);
    assert_eq!(pool("{dtype: Float32}").dtype, Dtype::Float32);
    let changed = pool("{dtype: Float32, overrides: {dgx-spark: {batchSize: 32, memory: 16Gi, cpu: 4, dtype: Auto}}}");
    assert_eq!((changed.batch_size, changed.dtype), (32, Dtype::BFloat16));
    assert_eq!((changed.memory.0.as_str(), changed.cpu.0.as_str()), ("16Gi", "4"));
    let cpu = pool("{dtype: Float16, classes: [cpu-amd64]}");
    assert_eq!(cpu.dtype, Dtype::Float32);
    assert!(cpu.message.contains("Float16"), "{}", cpu.message);
}

#[test]
fn int8_is_for_cpus() {
    let index = index(&all_platforms());
    let plan = plan("{replicas: 5, dtype: Int8}", &index);
    let formats: Vec<_> = plan
        .pools
        .iter()
        .map(|pool| (pool.class.as_str(), pool.dtype))
        .collect();
    assert_eq!(
        formats[..4],
        [
            ("dgx-spark", Dtype::BFloat16),
            ("cuda-arm64", Dtype::Float16),
            ("cuda-amd64", Dtype::Float16),
            ("graviton", Dtype::Int8),
        ]
    );
    let spark = &plan.pools[0].message;
    assert!(
        spark.contains("GPUs have no Int8 kernels for these models, so BFloat16 is used."),
        "{spark}"
    );
    let graviton = &plan.pools[3].message;
    assert!(!graviton.contains("Int8 kernels"), "{graviton}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is asked for: no more than asked is placed, no GPU is given twice, and the same input gives the same plan.
    #[test]
    fn no_gpu_is_given_twice(
        units in 0_u64..6,
        taken in 0_u64..6,
        asked in prop::collection::vec((0_i32..8, 0_usize..3, prop::bool::ANY, prop::option::of(0_i32..5)), 1..6),
    ) {
        let index = ClassIndex::new(&built_in(), &gpus(units), |node, _| if node == "gpu" { taken } else { 0 });
        let specs: Vec<_> = asked
            .iter()
            .map(|(replicas, device, deny, pin)| {
                let device = ["Auto", "Cuda", "Cpu"][*device];
                let fallback = if *deny { "Deny" } else { "Degrade" };
                let pin = pin.map_or(String::new(), |pin| format!("overrides: {{cuda-amd64: {{replicas: {pin}}}}}"));
                spec(&format!("{{replicas: {replicas}, device: {device}, fallback: {fallback}, {pin}}}"))
            })
            .collect();
        let uids: Vec<String> = (0..specs.len()).map(|n| n.to_string()).collect();
        let requests: Vec<Request<'_>> =
            specs.iter().zip(&uids).map(|(spec, uid)| Request::new(uid, "t", spec)).collect();
        let plans = plan_all(&requests, &index, &models(), now());
        let on_gpu: u64 = plans
            .values()
            .flat_map(|plan| &plan.pools)
            .filter(|pool| pool.class == "cuda-amd64")
            .map(|pool| u64::from(pool.replicas))
            .sum();
        prop_assert!(on_gpu <= units.saturating_sub(taken));
        for (uid, spec) in uids.iter().zip(&specs) {
            let plan = &plans[uid];
            let placed: u32 = plan.pools.iter().map(|pool| pool.replicas).sum();
            prop_assert_eq!(placed + plan.unplaced, spec.replicas as u32);
            prop_assert_eq!(plan.unplaced == 0, matches!(plan.placed.0, Reason::Placed | Reason::ScaledToZero));
        }
        let mut reversed = requests.clone();
        reversed.reverse();
        prop_assert_eq!(plan_all(&reversed, &index, &models(), now()), plans);
    }
}
