//! What `plan` and `classes` say, as data: the operator's own steps, run on what was read. Pure.
//!
//! The types are the documented output of `-o json` and `-o yaml` (docs/src/reference/kubectl-plugin.md): fields are added,
//! never renamed or removed, within one `apiVersion`.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use hawkeye_crds::v1alpha1::{
    BatchSize, ConditionStatus, ConditionType, Device, Dtype, HardwareClass, HawkeyeDeployment, ImageVariant,
    ModelSource, Quantity,
};
use jiff::Timestamp;
use kube::ResourceExt;
use serde::Serialize;

use crate::{
    controller::{
        build::pool_name,
        observe::{Pod, held, hosted, taken},
        plan::{Plan, PoolPlan, Request, handover::HandOver, plan_all},
        status,
    },
    hardware::{self, ClassIndex, ClassNodes, Grace, Images, ModelDefaults, NodeFacts, classify::by_priority},
};

/// Version of the output's shape.
pub const API_VERSION: &str = "cli.hawkeye.bytebot.ai/v1alpha1";

/// What a plan is made from.
#[derive(Debug)]
pub struct Input {
    /// The classes.
    pub classes: Vec<HardwareClass>,
    /// The nodes.
    pub nodes: Vec<NodeFacts>,
    /// Pods of ours, and pods that hold an extended resource.
    pub pods: Vec<Arc<Pod>>,
    /// Every HawkeyeDeployment that takes part.
    pub deployments: Vec<Candidate>,
    /// The inference images.
    pub images: Images,
    /// What a spec without a model uses.
    pub models: ModelDefaults,
    /// How long a node whose labels vanished keeps its class.
    pub label_grace: Duration,
    /// The time.
    pub now: Timestamp,
    /// What the reader should know of how this came about.
    pub notes: Vec<String>,
}

/// A HawkeyeDeployment that takes part in a plan.
#[derive(Debug)]
pub struct Candidate {
    /// The object, with every default.
    pub object: HawkeyeDeployment,
    /// It was asked for. The others are there for what they take.
    pub shown: bool,
}

/// The output of `plan`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanReport {
    /// Always `cli.hawkeye.bytebot.ai/v1alpha1`.
    pub api_version: &'static str,
    /// Always `Plan`.
    pub kind: &'static str,
    /// Every replica of every HawkeyeDeployment below has a place.
    pub placed: bool,
    /// What each HawkeyeDeployment gets, in the order in which they are served.
    pub deployments: Vec<DeploymentReport>,
    /// The classes, the highest priority first.
    pub classes: Vec<ClassReport>,
    /// The nodes by name.
    pub nodes: Vec<NodeReport>,
    /// What the reader should know of how this came about.
    pub notes: Vec<String>,
}

/// The output of `classes`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClassesReport {
    /// Always `cli.hawkeye.bytebot.ai/v1alpha1`.
    pub api_version: &'static str,
    /// Always `Classes`.
    pub kind: &'static str,
    /// The classes, the highest priority first.
    pub classes: Vec<ClassReport>,
    /// Nodes without a class, by name.
    pub unclassified: Vec<NodeReport>,
    /// What the reader should know of how this came about.
    pub notes: Vec<String>,
}

/// A HawkeyeDeployment and what it gets.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeploymentReport {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Replicas asked for.
    pub replicas: i32,
    /// Replicas without a place.
    pub unplaced: u32,
    /// The model bundle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelSource>,
    /// Accepted, Placed and Degraded, as the operator would set them.
    pub conditions: Vec<Verdict>,
    /// Its pools in the order in which their classes are tried, also those that get nothing, with the reason.
    pub pools: Vec<PoolReport>,
}

/// A condition as it would be.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Accepted, Placed or Degraded.
    #[serde(rename = "type")]
    pub type_: &'static str,
    /// True or False.
    pub status: ConditionStatus,
    /// Why, in one word.
    pub reason: &'static str,
    /// Why, in a sentence.
    pub message: String,
}

/// The pods of a HawkeyeDeployment on one class.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolReport {
    /// The class.
    pub class: String,
    /// Name of the pool's Deployment.
    pub name: String,
    /// Pods.
    pub replicas: u32,
    /// What they compute on.
    pub device: Device,
    /// Number format of the models.
    pub dtype: Dtype,
    /// Image crops that share one batch.
    pub batch_size: i32,
    /// Memory limit and request of each pod.
    pub memory: Quantity,
    /// CPU request of each pod.
    pub cpu: Quantity,
    /// Extended resource of which each pod takes one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// Container image.
    pub image: String,
    /// Nodes of the class, ready or not.
    pub nodes: u32,
    /// Why it has as many pods as it has, in one word.
    pub reason: &'static str,
    /// Why, in a sentence.
    pub message: String,
}

/// A class and its nodes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClassReport {
    /// Its name.
    pub name: String,
    /// The higher, the earlier it is tried.
    pub priority: i32,
    /// Architecture of its nodes.
    pub arch: &'static str,
    /// What its pods compute on.
    pub device: Device,
    /// Extended resource of which each pod takes one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// A node autoscaler adds nodes of it on demand.
    pub autoscaled: bool,
    /// Image variant of its pods.
    pub image_variant: ImageVariant,
    /// Number format of the models.
    pub dtype: Dtype,
    /// Batch size for each profile.
    pub batch_size: BatchSize,
    /// Memory limit of a pod.
    pub memory: Quantity,
    /// CPU request of a pod.
    pub cpu: Quantity,
    /// Nodes of the class, ready or not.
    pub nodes: u32,
    /// Nodes of the class that take new pods now.
    pub schedulable: u32,
    /// Units of the resource that are free on those; left out without a resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free: Option<u64>,
    /// Units of it that pods of others hold there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_by_others: Option<u64>,
    /// Pods that the plan puts here, of every HawkeyeDeployment that takes part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub planned: Option<u32>,
}

/// A node, what it is and why.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    /// Its class with the facts that tell it, or why it has none; and why each other class does not have it.
    #[serde(flatten)]
    pub evidence: hardware::NodeReport,
    /// New pods of its class can start here.
    pub takes_pods: bool,
    /// Why none can, for a node that has a class.
    pub blocked_by: Vec<String>,
}

/// Runs the operator's steps on the input.
pub fn plan(input: Input) -> PlanReport {
    let key = |object: &HawkeyeDeployment| (object.namespace().unwrap_or_default(), object.name_any());
    let ours: HashSet<(String, String)> = input.deployments.iter().map(|one| key(&one.object)).collect();
    let index = index(&input, |namespace, name| {
        ours.contains(&(namespace.to_owned(), name.to_owned()))
    });
    let mut held = held(&input.pods, &index);
    let keys: Vec<(String, String)> = input
        .deployments
        .iter()
        .enumerate()
        .map(|(at, one)| identity(at, &one.object))
        .collect();
    let requests: Vec<Request<'_>> = input
        .deployments
        .iter()
        .zip(&keys)
        .map(|(one, (uid, created))| Request {
            held: held.remove(&key(&one.object)).unwrap_or_default(),
            hand_overs: hand_overs(&one.object),
            ..Request::new(uid, created, &one.object.spec)
        })
        .collect();
    let mut plans = plan_all(&requests, &index, &input.models, input.now);
    let mut planned: BTreeMap<&str, u32> = BTreeMap::new();
    for pool in plans.values().flat_map(|plan| &plan.pools) {
        if let Some(class) = index.get(&pool.class) {
            *planned.entry(&class.name).or_insert(0) += pool.replicas;
        }
    }
    let classes = index
        .classes
        .iter()
        .map(|class| class_report(class, Some(planned.get(class.name.as_str()).copied().unwrap_or(0))))
        .collect();
    let mut served: Vec<(&(String, String), &Candidate)> = keys.iter().zip(&input.deployments).collect();
    served.sort_by(|((a_uid, a), _), ((b_uid, b), _)| (a, a_uid).cmp(&(b, b_uid)));
    let deployments: Vec<DeploymentReport> = served
        .into_iter()
        .filter(|(_, one)| one.shown)
        .filter_map(|((uid, _), one)| Some(deployment_report(&one.object, plans.remove(uid)?, &input)))
        .collect();
    PlanReport {
        api_version: API_VERSION,
        kind: "Plan",
        placed: deployments.iter().all(DeploymentReport::placed),
        deployments,
        classes,
        nodes: node_reports(&index, &input.nodes),
        notes: input.notes,
    }
}

/// The classes alone.
pub fn classes(input: Input) -> ClassesReport {
    let index = index(&input, |_, _| false);
    let mut unclassified = node_reports(&index, &input.nodes);
    unclassified.retain(|node| node.evidence.class.is_err());
    ClassesReport {
        api_version: API_VERSION,
        kind: "Classes",
        classes: index.classes.iter().map(|class| class_report(class, None)).collect(),
        unclassified,
        notes: input.notes,
    }
}

/// As the operator sorts them right after its start, when it knows of the past only what pods tell.
fn index(input: &Input, ours: impl Fn(&str, &str) -> bool) -> ClassIndex {
    let taken = taken(&input.pods, ours);
    let classes = by_priority(&input.classes);
    let assigned = Grace::new(input.label_grace).assign(&classes, &input.nodes, hosted(&input.pods), input.now);
    ClassIndex::assigned(classes, &input.nodes, assigned, |node, resource| {
        taken.get(&(node.to_owned(), resource.to_owned())).copied().unwrap_or(0)
    })
}

/// UID and time of creation, as plans are ordered by. What is not in a cluster yet would be the youngest there, in the
/// order of the files.
fn identity(at: usize, object: &HawkeyeDeployment) -> (String, String) {
    let known = object.uid().unwrap_or_default();
    // With its place in the files, what was copied with its UID stays apart.
    let uid = format!("{known}/{at:08}");
    let created = object.metadata.creation_timestamp.as_ref();
    // A tilde sorts after every digit.
    (uid, created.map_or_else(|| "~".to_owned(), |time| time.0.to_string()))
}

/// What the operator has noted of replicas that it handed over.
fn hand_overs(object: &HawkeyeDeployment) -> BTreeMap<String, HandOver> {
    let pools = object.status.iter().flat_map(|status| &status.pools);
    pools
        .filter_map(|pool| Some((pool.class.clone(), HandOver::from_status(pool.hand_over.as_ref()?))))
        .collect()
}

impl DeploymentReport {
    /// Every replica has a place.
    pub fn placed(&self) -> bool {
        let is = |type_: ConditionType, status: ConditionStatus| {
            self.conditions
                .iter()
                .any(|condition| condition.type_ == type_.as_str() && condition.status == status)
        };
        is(ConditionType::Accepted, ConditionStatus::True) && is(ConditionType::Placed, ConditionStatus::True)
    }
}

fn deployment_report(object: &HawkeyeDeployment, plan: Plan, input: &Input) -> DeploymentReport {
    DeploymentReport {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
        replicas: object.spec.replicas,
        unplaced: plan.unplaced,
        model: input.models.of(&object.spec).cloned(),
        conditions: status::of_plan(&plan)
            .into_iter()
            .map(|(type_, holds, reason, message)| Verdict {
                type_: type_.as_str(),
                status: holds.into(),
                reason: reason.as_str(),
                message,
            })
            .collect(),
        pools: plan
            .pools
            .into_iter()
            .map(|pool| pool_report(object, pool, &input.images))
            .collect(),
    }
}

fn pool_report(object: &HawkeyeDeployment, pool: PoolPlan, images: &Images) -> PoolReport {
    let change = object
        .spec
        .overrides
        .as_ref()
        .and_then(|overrides| overrides.get(&pool.class));
    PoolReport {
        name: pool_name(&object.name_any(), &pool.class),
        replicas: pool.replicas,
        device: pool.device(),
        dtype: pool.dtype,
        batch_size: pool.batch_size,
        image: images.of(pool.variant(), &object.spec, change),
        memory: pool.memory,
        cpu: pool.cpu,
        resource: pool.spec.resource.clone(),
        nodes: pool.nodes,
        reason: pool.reason.as_str(),
        message: pool.message,
        class: pool.class,
    }
}

fn class_report(class: &ClassNodes, planned: Option<u32>) -> ClassReport {
    let spec = &class.spec;
    let units = |units: u64| spec.resource.is_some().then_some(units);
    ClassReport {
        name: class.name.clone(),
        priority: spec.priority,
        arch: spec.arch.as_str(),
        device: spec.device,
        resource: spec.resource.clone(),
        autoscaled: spec.autoscaled,
        image_variant: spec.image_variant,
        dtype: spec.dtype,
        batch_size: spec.batch_size,
        memory: spec.memory.limit.clone(),
        cpu: spec.cpu.request.clone(),
        nodes: class.nodes,
        schedulable: class.schedulable,
        free: units(class.free),
        held_by_others: units(class.taken),
        planned,
    }
}

fn node_reports(index: &ClassIndex, nodes: &[NodeFacts]) -> Vec<NodeReport> {
    let mut reports: Vec<NodeReport> = nodes.iter().map(|node| node_report(index, node)).collect();
    reports.sort_by(|a, b| a.evidence.node.cmp(&b.evidence.node));
    reports
}

fn node_report(index: &ClassIndex, node: &NodeFacts) -> NodeReport {
    let evidence = hardware::describe(index, node);
    let class = evidence.class.as_ref().ok().and_then(|class| index.get(class));
    let mut blocked_by = class.map_or_else(Vec::new, |class| node.obstacles(&class.spec.tolerations));
    if index.kept_on(&node.name).is_some() {
        blocked_by.push("the labels that told its class are gone".to_owned());
    }
    NodeReport {
        takes_pods: class.is_some() && blocked_by.is_empty(),
        blocked_by,
        evidence,
    }
}
