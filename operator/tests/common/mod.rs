//! Nodes as their publishers label them, shared with the end-to-end tests.

#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::panic)]

use std::{fs, path::Path, sync::LazyLock};

use hawkeye_crds::{
    classes,
    v1alpha1::{HardwareClass, HardwareClassSpec, HawkeyeDeploymentSpec, ModelHttp, ModelImage, ModelSource},
};
use hawkeye_operator::{
    controller::{
        build::deployment::node_terms,
        observe::Node,
        plan::{Plan, Request, plan_all},
    },
    hardware::{ClassIndex, Images, ModelDefaults, NodeFacts},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1 as core;

/// A fixture as YAML, by the name of its file.
pub fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../e2e/fixtures/nodes")
        .join(format!("{name}.yaml"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The node of a fixture, ready and without the taint that keeps ordinary pods off fake nodes.
pub fn node(name: &str) -> NodeFacts {
    let node: Node = serde_saphyr::from_str(&fixture(name)).unwrap();
    let mut facts = node.facts();
    facts.ready = true;
    facts.taints.retain(|taint| taint.key != "kwok.x-k8s.io/node");
    facts
}

/// A plain node: `arch`, then `labels` as `key=value`.
pub fn bare(name: &str, arch: &str, labels: &[&str]) -> NodeFacts {
    let mut facts = NodeFacts {
        name: name.to_owned(),
        ready: true,
        ..NodeFacts::default()
    };
    facts.labels.insert("kubernetes.io/os".into(), "linux".into());
    facts.labels.insert("kubernetes.io/arch".into(), arch.into());
    for label in labels {
        let (key, value) = label.split_once('=').unwrap();
        facts.labels.insert(key.into(), value.into());
    }
    facts
}

/// A node that offers units of a resource.
pub fn offering(mut node: NodeFacts, resource: &str, units: u64) -> NodeFacts {
    node.allocatable.insert(resource.into(), units);
    node
}

/// The built-in classes, read once: property tests ask for them thousands of times.
pub fn built_in() -> Vec<HardwareClass> {
    static CLASSES: LazyLock<Vec<HardwareClass>> = LazyLock::new(|| classes::built_in().unwrap());
    CLASSES.clone()
}

pub fn index(nodes: &[NodeFacts]) -> ClassIndex {
    ClassIndex::new(&built_in(), nodes, |_, _| 0)
}

pub fn images() -> Images {
    Images {
        cpu: "example.com/hawkeye-inference:test-cpu".into(),
        cuda: "example.com/hawkeye-inference:test-cuda".into(),
        pull_policy: hawkeye_crds::v1alpha1::PullPolicy::IfNotPresent,
    }
}

pub fn model() -> ModelSource {
    ModelSource {
        image: Some(ModelImage {
            reference: "example.com/bundle:test".into(),
            pull_policy: None,
        }),
        ..ModelSource::default()
    }
}

/// A bundle on a web server.
pub fn http_model() -> ModelSource {
    ModelSource {
        http: Some(ModelHttp {
            url: "https://example.com/bundle.tar.gz?sign=$(HOME)".into(),
            sha256: "5f".repeat(32),
            max_size: "1536Mi".into(),
        }),
        ..ModelSource::default()
    }
}

pub fn models() -> ModelDefaults {
    ModelDefaults { model: Some(model()) }
}

/// A spec from YAML, with the defaults that the API server fills in.
pub fn spec(yaml: &str) -> HawkeyeDeploymentSpec {
    serde_saphyr::from_str(yaml).unwrap()
}

/// The plan of a single HawkeyeDeployment.
pub fn plan(yaml: &str, index: &ClassIndex) -> Plan {
    let spec = spec(yaml);
    plan_at(Request::new("u", "2026-01-01T00:00:00Z", &spec), index, now())
}

/// The plan of a request at a time.
pub fn plan_at(request: Request<'_>, index: &ClassIndex, now: Timestamp) -> Plan {
    let uid = request.uid.to_owned();
    plan_all(&[request], index, &models(), now).remove(&uid).unwrap()
}

/// Noon of some day.
pub fn now() -> Timestamp {
    "2026-01-01T12:00:00Z".parse().unwrap()
}

/// Noon and so many seconds.
pub fn at(seconds: i64) -> Timestamp {
    now() + SignedDuration::from_secs(seconds)
}

/// Replicas by class, without the pools that have none.
pub fn shares(plan: &Plan) -> Vec<(&str, u32)> {
    plan.pools
        .iter()
        .filter(|pool| pool.replicas > 0)
        .map(|pool| (pool.class.as_str(), pool.replicas))
        .collect()
}

/// What the scheduler makes of a pool's pods: node affinity as built, and the resource that they ask for. Written against
/// the Kubernetes types, so that it checks the building, too.
pub fn pods_fit(class: &HardwareClassSpec, node: &NodeFacts) -> bool {
    let holds = |requirement: &core::NodeSelectorRequirement| {
        let value = node.label(&requirement.key);
        let values = requirement.values.as_deref().unwrap_or_default();
        match requirement.operator.as_str() {
            "In" => value.is_some_and(|value| values.iter().any(|one| one == value)),
            "NotIn" => value.is_none_or(|value| values.iter().all(|one| one != value)),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            other => panic!("operator {other}"),
        }
    };
    let affinity = node_terms(class)
        .iter()
        .any(|term| term.match_expressions.as_ref().is_some_and(|all| all.iter().all(holds)));
    let room = class
        .resource
        .as_ref()
        .is_none_or(|resource| node.allocatable.get(resource).is_some_and(|n| *n > 0));
    affinity && room
}
