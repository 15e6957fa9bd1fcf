//! What the status says about a plan, its objects and its pods; and which events that leads to.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::needless_pass_by_value)]

mod common;

use std::{collections::BTreeMap, sync::Arc};

use common::{images, index, model, node, plan, spec};
use hawkeye_crds::v1alpha1::{ConditionStatus, ConditionType, HawkeyeDeploymentStatus, Reason};
use hawkeye_operator::{
    controller::{
        apply::Applied,
        build::{self, Owner},
        device::Verdict,
        observe::{Pod, held, taken},
        status::{Facts, status},
    },
    events::notices,
    hardware::NodeFacts,
};
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::{Value, json};

const THEN: &str = "2026-01-01T00:00:00Z";
const LATER: &str = "2026-01-02T00:00:00Z";

/// A pod of a pool, with a status.
fn pod(class: &str, status: Value) -> Arc<Pod> {
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {
                "name": "p", "namespace": "screens",
                "labels": {
                    "app.kubernetes.io/managed-by": "hawkeye-operator",
                    "app.kubernetes.io/instance": "demo",
                    "hawkeye.bytebot.ai/class": class,
                },
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("demo-{class}-7c9f"), "uid": "rs",
                    "controller": true,
                }],
            },
            "spec": {
                "nodeName": "gpu",
                "containers": [{"resources": {"requests": {"nvidia.com/gpu": "1", "cpu": "1"}}}],
            },
            "status": status,
        }))
        .unwrap(),
    )
}

fn ready(class: &str) -> Arc<Pod> {
    pod(
        class,
        json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}),
    )
}

fn waiting(class: &str, container: Value) -> Arc<Pod> {
    pod(class, json!({"phase": "Pending", "containerStatuses": [container]}))
}

struct Case {
    nodes: Vec<NodeFacts>,
    spec: &'static str,
    pods: Vec<Arc<Pod>>,
    verdict: fn(&Pod) -> Verdict,
    change: fn(&mut Applied),
    now: &'static str,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            nodes: vec![node("cpu-amd64")],
            spec: "{}",
            pods: Vec::new(),
            verdict: |_| Verdict::Verified,
            change: |_| {},
            now: THEN,
        }
    }
}

impl Case {
    fn status(&self, old: Option<&HawkeyeDeploymentStatus>) -> HawkeyeDeploymentStatus {
        let plan = plan(self.spec, &index(&self.nodes));
        let spec = spec(self.spec);
        let owner = Owner {
            namespace: "screens",
            name: "demo",
            uid: "u",
            spec: &spec,
        };
        let objects = build::build(&owner, &plan, &images(), &model(), None);
        let mut applied = Applied {
            service: true,
            ..Applied::default()
        };
        for deployment in objects.deployments {
            let class = deployment.metadata.labels.as_ref().unwrap()["hawkeye.bytebot.ai/class"].clone();
            applied.deployments.insert(class, rolled_out(deployment));
        }
        (self.change)(&mut applied);
        let facts = Facts {
            owner: &owner,
            generation: Some(3),
            plan: &plan,
            applied: plan.refused.is_none().then_some(&applied),
            pods: &self.pods,
            verdict: &self.verdict,
            image_volume: true,
            blind_spot: None,
            now: self.now,
        };
        status(&facts, old)
    }
}

fn rolled_out(deployment: Deployment) -> Deployment {
    let replicas = deployment.spec.replicas;
    with_status(
        deployment,
        json!({"observedGeneration": 1, "replicas": replicas, "updatedReplicas": replicas}),
    )
}

fn with_status(mut deployment: Deployment, status: Value) -> Deployment {
    deployment.metadata.generation = Some(1);
    deployment.status = Some(serde_json::from_value(status).unwrap());
    deployment
}

fn condition(status: &HawkeyeDeploymentStatus, type_: ConditionType) -> (ConditionStatus, String, String) {
    let found = status
        .conditions
        .iter()
        .find(|condition| condition.type_ == type_.as_str())
        .unwrap();
    (found.status, found.reason.clone(), found.message.clone())
}

#[test]
fn all_ready() {
    let status = Case {
        pods: vec![ready("cpu-amd64")],
        ..Case::default()
    }
    .status(None);
    assert_eq!(status.summary.as_deref(), Some("Ready"));
    assert_eq!(status.pool_summary.as_deref(), Some("cpu-amd64 1/1"));
    assert_eq!(
        (status.replicas, status.ready_replicas, status.observed_generation),
        (1, 1, Some(3))
    );
    assert_eq!(status.endpoint.as_deref(), Some("http://demo.screens.svc:9989"));
    let (available, reason, message) = condition(&status, ConditionType::Available);
    assert_eq!((available, reason.as_str()), (ConditionStatus::True, "AllReady"));
    assert!(message.contains("http://demo.screens.svc:9989"));
    assert_eq!(condition(&status, ConditionType::Degraded).1, "AsAsked");
}

#[test]
fn conditions_keep_the_time_of_their_last_change() {
    let first = Case::default().status(None);
    let second = Case {
        pods: vec![ready("cpu-amd64")],
        now: LATER,
        ..Case::default()
    }
    .status(Some(&first));
    let time = |status: &HawkeyeDeploymentStatus, type_: ConditionType| {
        status
            .conditions
            .iter()
            .find(|c| c.type_ == type_.as_str())
            .unwrap()
            .last_transition_time
            .clone()
    };
    assert_eq!(time(&second, ConditionType::Placed), THEN);
    assert_eq!(time(&second, ConditionType::Available), LATER);
    let third = Case {
        pods: vec![ready("cpu-amd64")],
        now: "2026-01-03T00:00:00Z",
        ..Case::default()
    };
    assert_eq!(
        third.status(Some(&second)),
        second,
        "nothing changed, so nothing is written"
    );
}

#[test]
fn what_runs_is_kept_when_the_spec_is_refused() {
    let before = Case {
        pods: vec![ready("cpu-amd64")],
        ..Case::default()
    }
    .status(None);
    let after = Case {
        spec: "{classes: [nope]}",
        ..Case::default()
    }
    .status(Some(&before));
    assert_eq!(after.summary.as_deref(), Some("UnknownClass"));
    assert_eq!(after.pools.len(), before.pools.len());
    assert_eq!(after.pools[0].ready, 0);
    assert_eq!(after.endpoint, before.endpoint);
}

#[test]
fn degraded_shows_in_the_summary_only_when_it_serves() {
    let case = |pods| Case {
        spec: "{device: Cuda}",
        pods,
        ..Case::default()
    };
    assert_eq!(case(Vec::new()).status(None).summary.as_deref(), Some("NotReady"));
    let status = case(vec![ready("cpu-amd64")]).status(None);
    assert_eq!(status.summary.as_deref(), Some("Degraded"));
    let (degraded, reason, _) = condition(&status, ConditionType::Degraded);
    assert_eq!(
        (degraded, reason.as_str()),
        (ConditionStatus::True, "DeviceUnavailable")
    );
}

#[test]
fn troubles_of_pods_are_named_worst_first() {
    let crash = waiting(
        "cpu-amd64",
        json!({
            "restartCount": 4,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
        }),
    );
    let pull = waiting(
        "cpu-amd64",
        json!({"state": {"waiting": {"reason": "ImagePullBackOff", "message": "example.com/own:1 not found"}}}),
    );
    let unschedulable = pod(
        "cpu-amd64",
        json!({"phase": "Pending", "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: cpu"},
        ]}),
    );
    let damaged = waiting(
        "cpu-amd64",
        json!({
            "restartCount": 2,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "message": "{\"error\":\"m.pt is damaged\"}\n"}},
        }),
    );
    let reason = |pods: Vec<Arc<Pod>>| {
        let status = Case {
            spec: "{replicas: 3}",
            pods,
            ..Case::default()
        }
        .status(None);
        let pool = status.pools.into_iter().find(|pool| pool.replicas > 0).unwrap();
        assert_eq!(status.summary.as_deref(), Some(pool.reason.as_str()));
        (pool.reason, pool.message)
    };
    let (word, message) = reason(vec![unschedulable.clone()]);
    assert_eq!(word, "Unschedulable");
    assert!(message.contains("0/3 nodes: cpu"), "{message}");
    let (word, message) = reason(vec![unschedulable.clone(), pull.clone()]);
    assert_eq!(word, "ImagePullFailed");
    assert!(message.contains("example.com/own:1 not found"), "{message}");
    let (word, message) = reason(vec![unschedulable, pull, crash]);
    assert_eq!(word, "CrashLoop");
    assert!(message.contains("needs more memory"), "{message}");
    let (word, message) = reason(vec![damaged]);
    assert_eq!(word, "CrashLoop");
    let words = "(exit code 1): m.pt is damaged. More: `kubectl logs -n ";
    assert!(message.contains(words), "{message}");
}

fn fetching(state: Value, last: Value) -> Arc<Pod> {
    pod(
        "cpu-amd64",
        json!({
            "phase": "Pending",
            "initContainerStatuses": [
                {"name": "injected", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}},
                {"name": "fetch-model", "restartCount": 3, "state": state, "lastState": last},
            ],
            "containerStatuses": [{"name": "inference", "state": {"waiting": {"reason": "PodInitializing"}}}],
        }),
    )
}

#[test]
fn a_model_that_cannot_be_downloaded_is_named_until_a_try_succeeds() {
    let failed = |message: &str| json!({"terminated": {"exitCode": 3, "reason": "Error", "message": message}});
    let status = |state: Value, last: Value| {
        Case {
            pods: vec![fetching(state, last)],
            ..Case::default()
        }
        .status(None)
    };
    let words = "https://example.com/b: the archive has sha256 1, expected is 2";
    for status in [
        status(failed(words), json!({})),
        status(json!({"waiting": {"reason": "CrashLoopBackOff"}}), failed(words)),
        status(json!({"running": {"startedAt": THEN}}), failed(words)),
    ] {
        assert_eq!(status.summary.as_deref(), Some("ModelFetchFailed"));
        assert!(status.message.unwrap().contains(words));
    }
    let old = status(json!({"terminated": {"exitCode": 2, "reason": "Error"}}), json!({}));
    assert!(old.message.unwrap().contains("does not know `fetch`"));
    let killed = status(
        json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}),
        json!({}),
    );
    assert!(killed.message.unwrap().contains("more memory"));
    let done = status(
        json!({"terminated": {"exitCode": 0, "reason": "Completed"}}),
        failed(words),
    );
    assert_eq!(done.summary.as_deref(), Some("NotReady"));
}

#[test]
fn an_image_of_an_init_container_counts_as_well() {
    let waiting = json!({"waiting": {"reason": "ImagePullBackOff", "message": "example.com/own:1 not found"}});
    let status = Case {
        pods: vec![fetching(waiting, json!({}))],
        ..Case::default()
    }
    .status(None);
    assert_eq!(status.summary.as_deref(), Some("ImagePullFailed"));
    assert!(status.message.unwrap().contains("example.com/own:1 not found"));
}

#[test]
fn pods_on_their_way_say_how_far_they_are() {
    let unbound = {
        let mut pod = (*pod("cpu-amd64", json!({"phase": "Pending"}))).clone();
        pod.spec.node_name = None;
        Arc::new(pod)
    };
    let mounting = pod(
        "cpu-amd64",
        json!({"phase": "Pending", "conditions": [{"type": "PodReadyToStartContainers", "status": "False"}]}),
    );
    let status = Case {
        spec: "{replicas: 4}",
        pods: vec![
            unbound,
            mounting,
            fetching(json!({"running": {"startedAt": THEN}}), json!({})),
            pod("cpu-amd64", json!({"phase": "Running"})),
        ],
        ..Case::default()
    }
    .status(None);
    let message = status.pools[0].message.clone();
    assert_eq!(status.pools[0].reason, "NotReady");
    for part in [
        "1 not yet on a node",
        "1 downloading the model",
        "1 waiting for the node to set up volumes",
    ] {
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn a_container_that_crashed_stays_a_crash_loop_while_it_runs_again() {
    let between = waiting(
        "cpu-amd64",
        json!({"restartCount": 3, "state": {"running": {}}, "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}}}),
    );
    let status = Case {
        pods: vec![between],
        ..Case::default()
    }
    .status(None);
    assert_eq!(status.summary.as_deref(), Some("CrashLoop"));
    assert!(status.message.unwrap().contains("deploy/demo-cpu-amd64 --previous"));
}

#[test]
fn a_rollout_is_told_from_a_start() {
    fn half(applied: &mut Applied) {
        for deployment in applied.deployments.values_mut() {
            *deployment = with_status(
                deployment.clone(),
                json!({"observedGeneration": 1, "replicas": 3, "updatedReplicas": 1}),
            );
        }
    }
    let pods = vec![ready("cpu-amd64"), ready("cpu-amd64"), ready("cpu-amd64")];
    let status = Case {
        spec: "{replicas: 2}",
        pods,
        change: half,
        ..Case::default()
    }
    .status(None);
    assert_eq!(status.summary.as_deref(), Some("RollingOut"));
    assert!(status.message.unwrap().contains("1 of 2 pods"));
}

#[test]
fn a_controller_that_has_not_looked_yet_is_no_rollout() {
    fn stale(applied: &mut Applied) {
        for deployment in applied.deployments.values_mut() {
            *deployment = with_status(
                deployment.clone(),
                json!({"observedGeneration": 0, "replicas": 2, "updatedReplicas": 2}),
            );
        }
    }
    let case = Case {
        spec: "{replicas: 2}",
        pods: vec![ready("cpu-amd64")],
        change: stale,
        ..Case::default()
    };
    let pool = case.status(None).pools.remove(0);
    assert_eq!((pool.reason.as_str(), pool.ready), ("PartlyReady", 1));
}

#[test]
fn refused_pods_and_a_dropped_volume_are_named() {
    fn quota(applied: &mut Applied) {
        for deployment in applied.deployments.values_mut() {
            *deployment = with_status(
                deployment.clone(),
                json!({"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}]}),
            );
        }
    }
    fn dropped(applied: &mut Applied) {
        for deployment in applied.deployments.values_mut() {
            deployment
                .spec
                .template
                .spec
                .as_mut()
                .unwrap()
                .volumes
                .as_mut()
                .unwrap()[0]
                .image = None;
        }
    }
    let status = Case {
        change: quota,
        ..Case::default()
    }
    .status(None);
    assert_eq!(status.summary.as_deref(), Some("PodsRefused"));
    assert!(status.message.unwrap().contains("exceeded quota"));
    let status = Case {
        change: dropped,
        ..Case::default()
    }
    .status(None);
    assert_eq!(status.summary.as_deref(), Some("ModelVolumeUnsupported"));
}

#[test]
fn a_service_of_someone_else_means_no_endpoint() {
    fn conflict(applied: &mut Applied) {
        applied.service = false;
        applied.conflicts = BTreeMap::from([("Service demo".to_owned(), "Service screens/demo exists".to_owned())]);
    }
    let status = Case {
        pods: vec![ready("cpu-amd64")],
        change: conflict,
        ..Case::default()
    }
    .status(None);
    assert_eq!(status.endpoint, None);
    assert_eq!(status.summary.as_deref(), Some("NameConflict"));
    assert_eq!(condition(&status, ConditionType::Available).0, ConditionStatus::False);
}

#[test]
fn a_refusal_of_the_api_server_is_quoted() {
    fn refused(applied: &mut Applied) {
        applied.deployments.clear();
        applied.refusals = BTreeMap::from([("Deployment demo-cpu-amd64".to_owned(), "denied by policy\nx".to_owned())]);
    }
    let status = Case {
        change: refused,
        ..Case::default()
    }
    .status(None);
    assert_eq!(status.summary.as_deref(), Some("ApplyFailed"));
    assert!(
        status.message.unwrap().contains("denied by policy x"),
        "control characters are gone"
    );
}

#[test]
fn long_messages_are_cut() {
    fn long(applied: &mut Applied) {
        applied.refusals = BTreeMap::from([("Deployment demo-cpu-amd64".to_owned(), "ä".repeat(5000))]);
    }
    let status = Case {
        change: long,
        ..Case::default()
    }
    .status(None);
    assert!(
        status
            .conditions
            .iter()
            .all(|condition| condition.message.len() <= 4096)
    );
    assert!(status.pools.iter().all(|pool| pool.message.len() <= 4096));
}

#[test]
fn events_are_said_once() {
    let words = |old: Option<&HawkeyeDeploymentStatus>, new: &HawkeyeDeploymentStatus| {
        notices(old, new)
            .into_iter()
            .map(|notice| notice.reason)
            .collect::<Vec<_>>()
    };
    let gpu_and_cpu = || vec![node("x86-rtx"), node("cpu-amd64")];
    let case = |spec, pods| Case {
        nodes: gpu_and_cpu(),
        spec,
        pods,
        ..Case::default()
    };
    let placed = case("{replicas: 1}", Vec::new()).status(None);
    assert_eq!(words(None, &placed), ["Placed"]);
    assert!(words(Some(&placed), &placed).is_empty());
    let serving = case("{replicas: 1}", vec![ready("cuda-amd64")]).status(Some(&placed));
    assert_eq!(words(Some(&placed), &serving), ["Available"]);
    let scaled = case("{replicas: 2}", vec![ready("cuda-amd64")]).status(Some(&serving));
    assert_eq!(words(Some(&serving), &scaled), ["Scaled", "Degraded"]);
    let back = case("{replicas: 1}", vec![ready("cuda-amd64")]).status(Some(&scaled));
    assert_eq!(words(Some(&scaled), &back), ["Scaled", "Recovered"]);
    let down = case("{replicas: 1}", Vec::new()).status(Some(&back));
    assert_eq!(words(Some(&back), &down), ["Unavailable"]);
    let zero = case("{replicas: 0}", Vec::new()).status(Some(&back));
    assert_eq!(words(Some(&back), &zero), ["ScaledToZero"]);
    let refused = case("{classes: [nope]}", Vec::new()).status(None);
    assert_eq!(words(None, &refused), ["UnknownClass"]);
    let denied = case("{replicas: 2, device: Cuda, fallback: Deny}", Vec::new()).status(None);
    assert_eq!(words(None, &denied), ["Placed", "FallbackDenied"]);
    let mut unbuilt = serving.clone();
    for condition in &mut unbuilt.conditions {
        if condition.type_ == ConditionType::ImageVerified.as_str() {
            condition.status = ConditionStatus::False;
            condition.reason = Reason::ImageArchitectureMissing.as_str().to_owned();
        }
    }
    assert_eq!(words(Some(&serving), &unbuilt), ["ImageArchitectureMissing"]);
    assert!(words(Some(&unbuilt), &unbuilt).is_empty());
}

#[test]
fn only_bound_pods_of_others_take_gpus() {
    let ours = ready("cuda-amd64");
    let mut ended = (*ours).clone();
    ended.metadata.labels = None;
    let mut theirs = ended.clone();
    ended.status.phase = "Succeeded".into();
    let mut unbound = theirs.clone();
    unbound.spec.node_name = None;
    theirs.metadata.name = Some("theirs".into());
    let mut pretender = (*ours).clone();
    pretender.metadata.owner_references = None;
    let pods: Vec<Arc<Pod>> = vec![
        ours,
        Arc::new(ended),
        Arc::new(theirs),
        Arc::new(unbound),
        Arc::new(pretender),
    ];
    let held = taken(&pods, |namespace, name| (namespace, name) == ("screens", "demo"));
    assert_eq!(
        held,
        BTreeMap::from([(("gpu".to_owned(), "nvidia.com/gpu".to_owned()), 2)]),
        "theirs and the pretender"
    );
    let orphaned = taken(&pods, |_, _| false);
    assert_eq!(
        orphaned.values().sum::<u64>(),
        3,
        "pods whose HawkeyeDeployment is gone count, too"
    );
}

#[test]
fn pods_are_held_where_their_class_takes_no_new_ones() {
    let offering = |unschedulable| {
        let mut node = common::offering(common::bare("gpu", "amd64", &[]), "nvidia.com/gpu", 1);
        node.unschedulable = unschedulable;
        index(&[node])
    };
    let key = ("screens".to_owned(), "demo".to_owned());
    let pods = vec![ready("cuda-amd64")];
    assert_eq!(held(&pods, &offering(false)), BTreeMap::new());
    assert_eq!(
        held(&pods, &offering(true))[&key],
        BTreeMap::from([("cuda-amd64".to_owned(), 1)])
    );
    assert_eq!(
        held(&[ready("dgx-spark")], &offering(false))[&key],
        BTreeMap::from([("dgx-spark".to_owned(), 1)])
    );
    let mut leaving = (*pods[0]).clone();
    leaving.metadata.deletion_timestamp = serde_json::from_value(json!(THEN)).unwrap();
    assert_eq!(
        held(&[Arc::new(leaving)], &offering(true)),
        BTreeMap::new(),
        "an evicted pod gives up its place"
    );
}

#[test]
fn init_containers_count_as_the_scheduler_counts_them() {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "p"},
        "spec": {
            "containers": [{"resources": {"requests": {"nvidia.com/gpu": "1"}}}],
            "initContainers": [
                {"resources": {"requests": {"nvidia.com/gpu": 3}}},
                {"resources": {"requests": {"nvidia.com/gpu": "1"}}, "restartPolicy": "Always"},
            ],
        },
    }))
    .unwrap();
    assert_eq!(pod.units("nvidia.com/gpu"), 4);
    assert_eq!(pod.units("example.com/other"), 0);
    assert!(pod.relevant());
}

#[test]
fn every_reason_has_an_entry_in_the_troubleshooting_page() {
    let page = include_str!("../../docs/src/troubleshooting.md");
    let mut entries: Vec<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .flat_map(|line| line.split(", "))
        .collect();
    for reason in Reason::ALL {
        let count = entries.iter().filter(|entry| **entry == reason.as_str()).count();
        assert_eq!(count, 1, "entries for {reason} in docs/src/troubleshooting.md");
    }
    entries.retain(|entry| Reason::ALL.iter().all(|reason| reason.as_str() != *entry));
    assert!(entries.is_empty(), "no such reason: {entries:?}");
    for type_ in ConditionType::ALL {
        assert!(
            page.contains(&format!("| `{type_}` |")),
            "docs/src/troubleshooting.md has no row for {type_}"
        );
    }
}
