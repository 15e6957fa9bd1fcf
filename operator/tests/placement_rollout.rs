//! Placement, the last sentence of 4 in the design: "CUDA pools roll with maxSurge 0 unless there is free capacity"; taints
//! and spreading; and what of pods and Deployments hand-over is decided from.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::needless_pass_by_value)]

mod common;

use std::{collections::BTreeMap, sync::Arc};

use common::{at, bare, images, index, model, node, offering, plan, shares, spec};
use hawkeye_crds::v1alpha1::TaintEffect;
use hawkeye_operator::{
    controller::{
        build::{self, Objects, Owner},
        observe::Pod,
        plan::{
            Plan,
            handover::{PoolPods, Rollout},
        },
        pool::PoolDeployment,
        strategy,
        waiting::waiting,
    },
    hardware::{ClassIndex, NodeFacts, Taint},
};
use k8s_openapi::{api::apps::v1::Deployment, apimachinery::pkg::util::intstr::IntOrString};
use serde_json::{Value, json};

const GPU: &str = "nvidia.com/gpu";

fn gpus(units: u64) -> ClassIndex {
    index(&[offering(
        bare("gpu", "amd64", &["nvidia.com/gpu.present=true"]),
        GPU,
        units,
    )])
}

fn objects(yaml: &str, plan: &Plan) -> Objects {
    let spec = spec(yaml);
    let owner = Owner {
        namespace: "screens",
        name: "demo",
        uid: "u",
        spec: &spec,
    };
    build::build(&owner, plan, &images(), &model(), None)
}

fn built(yaml: &str, index: &ClassIndex) -> Objects {
    objects(yaml, &plan(yaml, index))
}

/// maxSurge and maxUnavailable.
fn strategy_of(deployment: &Deployment) -> (i32, i32) {
    let rolling = deployment.spec.strategy.clone().unwrap().rolling_update.unwrap();
    match (rolling.max_surge, rolling.max_unavailable) {
        (Some(IntOrString::Int(surge)), Some(IntOrString::Int(unavailable))) => (surge, unavailable),
        other => panic!("{other:?}"),
    }
}

fn with_status(mut deployment: Deployment, status: Value) -> Deployment {
    deployment.metadata.generation = Some(1);
    deployment.status = serde_json::from_value(status).unwrap();
    deployment
}

fn settled(deployment: &Deployment) -> Deployment {
    with_status(
        deployment.clone(),
        json!({"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1}),
    )
}

#[test]
fn cuda_pools_roll_with_max_surge_0_unless_there_is_free_capacity() {
    let of = |units| strategy_of(&built("{}", &gpus(units)).deployments[0]);
    assert_eq!(of(1), (0, 1), "the successor needs the GPU of its predecessor");
    assert_eq!(of(2), (1, 0));
    assert_eq!(
        strategy_of(&built("{}", &index(&[node("cpu-amd64")])).deployments[0]),
        (1, 0)
    );
}

#[test]
fn free_is_what_is_left_when_every_deployment_is_served() {
    let (first, second) = (spec("{replicas: 1}"), spec("{replicas: 1}"));
    let requests = [
        hawkeye_operator::controller::plan::Request::new("a", "1", &first),
        hawkeye_operator::controller::plan::Request::new("b", "2", &second),
    ];
    let plans = hawkeye_operator::controller::plan::plan_all(&requests, &gpus(2), &common::models(), common::now());
    assert!(
        plans.values().all(|plan| !plan.pools[0].surge),
        "the second has the GPU that seemed free"
    );
}

#[test]
fn room_that_comes_or_goes_without_a_rollout_is_not_written() {
    let yaml = "{}";
    let existing = settled(&built(yaml, &gpus(2)).deployments[0]);
    let mut now = built(yaml, &gpus(1));
    assert_ne!(now.deployments[0].spec.strategy, existing.spec.strategy);
    strategy::keep(&mut now, std::slice::from_ref(&existing)).unwrap();
    assert_eq!(now.deployments[0].spec, existing.spec);
}

#[test]
fn a_change_of_the_pods_decides_the_strategy_anew() {
    let existing = settled(&built("{}", &gpus(2)).deployments[0]);
    let mut changed = built("{profile: Speed}", &gpus(1));
    strategy::keep(&mut changed, &[existing]).unwrap();
    assert_eq!(strategy_of(&changed.deployments[0]), (0, 1));
}

#[test]
fn a_rollout_under_way_is_only_ever_told_to_end_old_pods_first() {
    let rolling = |deployment: &Deployment| {
        let status = json!({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 1});
        with_status(deployment.clone(), status)
    };
    let (surges, ends_first) = (built("{}", &gpus(2)), built("{}", &gpus(1)));
    let mut lowered = ends_first.clone();
    strategy::keep(&mut lowered, &[rolling(&surges.deployments[0])]).unwrap();
    assert_eq!(strategy_of(&lowered.deployments[0]), (0, 1));
    let mut kept = surges.clone();
    strategy::keep(&mut kept, &[rolling(&ends_first.deployments[0])]).unwrap();
    assert_eq!(strategy_of(&kept.deployments[0]), (0, 1));
}

#[test]
fn a_strategy_of_someone_else_is_put_right() {
    let mut existing = settled(&built("{}", &gpus(1)).deployments[0]);
    let rolling = existing
        .spec
        .strategy
        .as_mut()
        .unwrap()
        .rolling_update
        .as_mut()
        .unwrap();
    rolling.max_unavailable = Some(IntOrString::String("50%".into()));
    let mut now = built("{}", &gpus(1));
    strategy::keep(&mut now, &[existing]).unwrap();
    assert_eq!(strategy_of(&now.deployments[0]), (0, 1));
}

#[test]
fn a_change_of_nodes_that_does_not_change_the_plan_changes_no_object() {
    let yaml = "{replicas: 3}";
    let other = bare("other", "amd64", &[]);
    let nodes = || vec![node("dgx-spark"), node("gh200"), node("cpu-amd64"), other.clone()];
    let before = plan(yaml, &index(&nodes()));
    let mut others = nodes();
    others[0].labels.insert("example.com/rack".into(), "7".into());
    others[1].allocatable.insert("example.com/nic".into(), 2);
    others[2].ready = false;
    others.reverse();
    let after = plan(yaml, &index(&others));
    assert_eq!(before, after);
    assert_eq!(objects(yaml, &before), objects(yaml, &after));
}

#[test]
fn taints_of_gke_and_of_gpu_nodes_are_tolerated_as_the_class_says() {
    let taint = |key: &str, value: &str| Taint {
        key: key.into(),
        value: value.into(),
        effect: TaintEffect::NoSchedule,
    };
    let arm = || taint("kubernetes.io/arch", "arm64");
    let gpu = || taint(GPU, "present");
    for (fixture, class, taints) in [
        ("dgx-spark", "dgx-spark", vec![arm(), gpu()]),
        ("gh200", "cuda-arm64", vec![arm(), gpu()]),
        ("x86-rtx", "cuda-amd64", vec![gpu()]),
        ("graviton3", "graviton", vec![arm()]),
        ("cpu-arm64", "cpu-arm64", vec![arm()]),
    ] {
        let mut tainted = node(fixture);
        tainted.taints = taints.clone();
        let index = index(&[tainted]);
        assert_eq!(shares(&plan("{}", &index)), [(class, 1)], "its nodes are capacity");
        let pod = built("{}", &index).deployments[0].spec.template.spec.clone().unwrap();
        let tolerations = pod.tolerations.unwrap_or_default();
        for taint in taints {
            let fits = tolerations.iter().any(|t| t.key.as_deref() == Some(&taint.key));
            assert!(fits, "pods of {class} do not tolerate {}", taint.key);
        }
    }
    // A reservation that the class does not know is none of its capacity, whatever its GPUs.
    let mut reserved = node("x86-rtx");
    reserved.taints.push(taint("team", "vision"));
    assert_eq!(plan("{classes: [cuda-amd64]}", &index(&[reserved])).unplaced, 1);
}

#[test]
fn cordoned_and_unready_nodes_are_no_capacity_for_new_pods() {
    let cordon = |node: &mut NodeFacts| node.unschedulable = true;
    let unready = |node: &mut NodeFacts| node.ready = false;
    for change in [cordon as fn(&mut NodeFacts), unready] {
        let mut nodes = [node("x86-rtx"), node("cpu-amd64")];
        change(&mut nodes[0]);
        assert_eq!(shares(&plan("{}", &index(&nodes))), [("cpu-amd64", 1)]);
    }
}

#[test]
fn pods_are_spread_over_nodes_and_zones_where_that_is_possible() {
    let objects = built("{}", &index(&[node("cpu-amd64")]));
    let deployment = &objects.deployments[0];
    let pod = deployment.spec.template.spec.clone().unwrap();
    let constraints = pod.topology_spread_constraints.unwrap();
    let keys: Vec<&str> = constraints.iter().map(|one| one.topology_key.as_str()).collect();
    assert_eq!(keys, ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]);
    for one in constraints {
        assert_eq!((one.max_skew, one.when_unsatisfiable.as_str()), (1, "ScheduleAnyway"));
        assert_eq!(
            one.label_selector.unwrap().match_labels,
            deployment.spec.selector.match_labels
        );
        assert_eq!(one.match_label_keys.unwrap(), ["pod-template-hash"]);
    }
}

fn pod(node: Option<&str>, more: Value) -> Arc<Pod> {
    let mut pod = json!({
        "metadata": {
            "name": "p", "namespace": "screens", "creationTimestamp": "2026-01-01T11:00:00Z",
            "labels": {
                "app.kubernetes.io/managed-by": "hawkeye-operator", "app.kubernetes.io/instance": "demo",
                "hawkeye.bytebot.ai/class": "cuda-amd64",
            },
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "demo-cuda-amd64-7c9f", "uid": "rs",
                "controller": true,
            }],
        },
        "spec": {"nodeName": node},
        "status": {"phase": "Pending"},
    });
    for (pointer, value) in more.as_object().unwrap() {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        pod.pointer_mut(parent).unwrap()[key] = value.clone();
    }
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn unschedulable() -> Arc<Pod> {
    pod(
        None,
        json!({"/status/conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes",
            "lastTransitionTime": "2026-01-01T12:00:00Z",
        }]}),
    )
}

fn seen(pods: &[Arc<Pod>], status: Option<Value>) -> PoolPods {
    let deployment = status.map(|status| {
        let built = built("{}", &gpus(1)).deployments[0].clone();
        Arc::new(PoolDeployment::try_from(with_status(built, status)).unwrap())
    });
    let mut all = waiting(pods, |namespace, name| {
        assert_eq!((namespace, name), ("screens", "demo-cuda-amd64"));
        deployment.clone()
    });
    let mut pools: BTreeMap<String, PoolPods> = all.remove(&("screens".into(), "demo".into())).unwrap();
    pools.remove("cuda-amd64").unwrap()
}

#[test]
fn what_pods_say_is_counted() {
    let ready = pod(
        Some("gpu"),
        json!({"/status/conditions": [{"type": "Ready", "status": "True"}]}),
    );
    let starting = pod(Some("gpu"), json!({}));
    let new = pod(None, json!({}));
    let gated = pod(
        None,
        json!({"/status/conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
    );
    let ended = pod(Some("gpu"), json!({"/status/phase": "Failed"}));
    let leaving = pod(
        Some("gpu"),
        json!({"/metadata/deletionTimestamp": "2026-01-01T12:01:00Z"}),
    );
    let unbound = pod(None, json!({"/metadata/deletionTimestamp": "2026-01-01T12:09:00Z"}));
    let stranger = pod(None, json!({"/metadata/ownerReferences": []}));
    let all = [
        ready,
        starting,
        new,
        gated,
        ended,
        leaving,
        unbound,
        stranger,
        unschedulable(),
    ];
    let done = json!({"observedGeneration": 1, "replicas": 3, "updatedReplicas": 3});
    assert_eq!(
        seen(&all, Some(done)),
        PoolPods {
            active: 5,
            bound: 2,
            ready: 1,
            waiting: vec![at(0)],
            rollout: Rollout::Done,
            leaving: Some(at(90)),
        }
    );
}

#[test]
fn a_rollout_is_over_when_no_old_pod_is_left_or_it_is_given_up() {
    for (status, expected) in [
        (
            json!({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 1}),
            Rollout::Running,
        ),
        (
            json!({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2}),
            Rollout::Done,
        ),
        (
            json!({"observedGeneration": 0, "replicas": 2, "updatedReplicas": 2}),
            Rollout::Unknown,
        ),
        (json!({}), Rollout::Unknown),
        (
            json!({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 1, "conditions": [
                {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]}),
            Rollout::Done,
        ),
    ] {
        assert_eq!(
            seen(&[unschedulable()], Some(status.clone())).rollout,
            expected,
            "{status}"
        );
    }
    assert_eq!(seen(&[unschedulable()], None).rollout, Rollout::Unknown);
}
