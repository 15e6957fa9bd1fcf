//! What is in the cluster: watched once, decoded down to the fields in use, kept in stores that every step reads.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use hawkeye_crds::v1alpha1::{HardwareClass, HawkeyeDeployment, Quantity, TaintEffect};
use k8s_openapi::{
    api::{core::v1::Service, networking::v1::NetworkPolicy, policy::v1::PodDisruptionBudget},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time},
};
use kube::{
    Resource,
    core::DeserializeGuard,
    runtime::reflector::{Store, store::WriterDropped},
};
use serde::{Deserialize, Deserializer};

use super::{
    apply::{APPLIED, Observed, owned_by},
    build::{CLASS_LABEL, CONTAINER, DEVICE_ENV, INSTANCE_LABEL, MANAGER, Owner},
    device::Asked,
    nodes::Nodes,
    pool::PoolDeployment,
};
use crate::{
    hardware::{ClassIndex, NodeFacts, Taint},
    texts::Texts,
};

/// A HawkeyeDeployment, or why the stored object does not decode.
pub type GuardedDeployment = DeserializeGuard<HawkeyeDeployment>;
/// A HardwareClass, or why the stored object does not decode.
pub type GuardedClass = DeserializeGuard<HardwareClass>;

/// The stores of everything that is watched.
#[derive(Clone)]
pub struct World {
    /// Every HawkeyeDeployment.
    pub hawkeye_deployments: Store<GuardedDeployment>,
    /// Every HardwareClass.
    pub classes: Store<GuardedClass>,
    /// Every node.
    pub nodes: Nodes,
    /// Pods of ours, and pods that hold an extended resource.
    pub pods: Store<Pod>,
    /// Deployments that carry our label.
    pub deployments: Store<PoolDeployment>,
    /// Services that carry our label.
    pub services: Store<Service>,
    /// PodDisruptionBudgets that carry our label.
    pub disruption_budgets: Store<PodDisruptionBudget>,
    /// NetworkPolicies that carry our label.
    pub network_policies: Store<NetworkPolicy>,
}

impl World {
    /// Waits until every store has been filled.
    ///
    /// # Errors
    /// When a watch has ended.
    pub async fn wait_until_ready(&self) -> Result<(), WriterDropped> {
        self.hawkeye_deployments.wait_until_ready().await?;
        self.classes.wait_until_ready().await?;
        self.nodes.wait_until_ready().await;
        self.pods.wait_until_ready().await?;
        self.deployments.wait_until_ready().await?;
        self.services.wait_until_ready().await?;
        self.disruption_budgets.wait_until_ready().await?;
        self.network_policies.wait_until_ready().await
    }

    /// What exists of an owner's objects.
    ///
    /// # Errors
    /// When a Deployment cannot be put together again.
    pub fn observed(&self, owner: &Owner<'_>) -> Result<Observed, serde_json::Error> {
        let deployments = owned(&self.deployments, owner);
        Ok(Observed {
            deployments: deployments
                .iter()
                .map(PoolDeployment::whole)
                .collect::<Result<_, _>>()?,
            services: owned(&self.services, owner),
            disruption_budgets: owned(&self.disruption_budgets, owner),
            network_policies: owned(&self.network_policies, owner),
        })
    }

    /// UIDs of every object that we made and that still exists.
    pub fn made(&self) -> HashSet<String> {
        let mut all = uids(&self.deployments);
        all.extend(uids(&self.services));
        all.extend(uids(&self.disruption_budgets));
        all.extend(uids(&self.network_policies));
        all
    }
}

/// Takes away metadata that nobody reads, in thousands of copies.
pub fn strip(object: &mut impl Resource) {
    let meta = object.meta_mut();
    meta.managed_fields = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.retain(|key, _| key == APPLIED);
    }
    meta.annotations.take_if(|annotations| annotations.is_empty());
}

fn owned<K>(store: &Store<K>, owner: &Owner<'_>) -> Vec<K>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let found = store.state_filter(|object| {
        object.meta().namespace.as_deref() == Some(owner.namespace) && owned_by(object, owner.uid)
    });
    found.into_iter().map(Arc::unwrap_or_clone).collect()
}

fn uids<K>(store: &Store<K>) -> HashSet<String>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store
        .state()
        .iter()
        .filter_map(|object| object.meta().uid.clone())
        .collect()
}

/// A node, decoded to the fields in use.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "k8s_openapi::api::core::v1::Node")]
pub struct Node {
    /// Name and labels.
    #[serde(deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
    /// Taints, and whether it is cordoned.
    #[serde(default)]
    pub spec: NodeSpec,
    /// Allocatable resources and conditions.
    #[serde(default)]
    pub status: NodeStatus,
}

/// Part of a node's spec.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeSpec {
    /// Cordoned.
    pub unschedulable: bool,
    /// Taints of every effect.
    pub taints: Vec<RawTaint>,
}

/// A taint as it stands in the API.
#[derive(Clone, Debug, Deserialize)]
pub struct RawTaint {
    /// Its key.
    pub key: String,
    /// Its value.
    #[serde(default)]
    pub value: String,
    /// Its effect; text, so that an effect that is not known yet does not end the watch.
    pub effect: String,
}

/// Part of a node's status.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeStatus {
    /// Resources that pods can ask for.
    pub allocatable: BTreeMap<String, Quantity>,
    /// What the machine has.
    pub capacity: Capacity,
    /// Conditions.
    pub conditions: Vec<RawCondition>,
}

/// Part of what a machine has.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Capacity {
    /// Memory.
    pub memory: Option<Quantity>,
}

/// A condition, of which only type, status, text and time are used.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RawCondition {
    /// Its type.
    #[serde(rename = "type")]
    pub type_: String,
    /// Its status.
    pub status: String,
    /// Its reason.
    pub reason: String,
    /// Its message.
    pub message: String,
    /// When its status last changed.
    pub last_transition_time: Option<Time>,
}

impl Node {
    /// The facts that placement uses.
    pub fn facts(&self) -> NodeFacts {
        self.facts_with(&mut Texts::default())
    }

    /// The same, with labels that other nodes may have in common.
    pub fn facts_with(&self, texts: &mut Texts) -> NodeFacts {
        let labels = self.metadata.labels.iter().flatten();
        NodeFacts {
            name: self.metadata.name.clone().unwrap_or_default(),
            labels: labels
                .map(|(key, value)| (texts.share(key), texts.share(value)))
                .collect(),
            allocatable: self
                .status
                .allocatable
                .iter()
                .filter(|(name, _)| is_extended(name))
                .map(|(name, quantity)| (name.clone(), quantity.units().unwrap_or(0)))
                .collect(),
            memory: self.status.allocatable.get("memory").and_then(Quantity::units),
            memory_capacity: self.status.capacity.memory.as_ref().and_then(Quantity::units),
            cpu_milli: self.status.allocatable.get("cpu").and_then(Quantity::milli),
            ready: condition_is(&self.status.conditions, "Ready", "True"),
            unschedulable: self.spec.unschedulable,
            taints: self
                .spec
                .taints
                .iter()
                .filter(|taint| taint.effect != "PreferNoSchedule")
                .map(|taint| Taint {
                    key: taint.key.clone(),
                    value: taint.value.clone(),
                    effect: if taint.effect == "NoExecute" {
                        TaintEffect::NoExecute
                    } else {
                        TaintEffect::NoSchedule
                    },
                })
                .collect(),
        }
    }
}

/// A pod, decoded to the fields in use.
#[derive(Clone, Debug, Deserialize, Resource)]
#[resource(inherit = "k8s_openapi::api::core::v1::Pod")]
pub struct Pod {
    /// Name, labels and owners.
    #[serde(deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
    /// Its node and what it asks for.
    #[serde(default)]
    pub spec: PodSpec,
    /// How it is.
    #[serde(default)]
    pub status: PodStatus,
}

/// Part of a pod's spec.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// The node that it is bound to.
    pub node_name: Option<String>,
    /// Containers.
    pub containers: Vec<PodContainer>,
    /// Init containers; those that always restart run beside the containers.
    pub init_containers: Vec<PodContainer>,
}

/// Part of a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodContainer {
    /// Its name.
    pub name: String,
    /// Its image.
    pub image: Option<String>,
    /// What it is meant to compute on, out of its environment; `None` where that says nothing, as in other people's pods.
    #[serde(rename = "env", deserialize_with = "asked")]
    pub asked: Option<Asked>,
    /// What it asks for.
    pub resources: PodResources,
    /// `Always` for an init container that runs beside the containers.
    pub restart_policy: Option<String>,
}

/// What a container asks for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodResources {
    /// Requests. For extended resources they equal the limits.
    pub requests: BTreeMap<String, Quantity>,
}

/// Part of a pod's status.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// Pending, Running, Succeeded, Failed or Unknown.
    pub phase: String,
    /// Its address.
    #[serde(rename = "podIP")]
    pub pod_ip: Option<String>,
    /// Conditions.
    pub conditions: Vec<RawCondition>,
    /// Containers.
    pub container_statuses: Vec<ContainerStatus>,
    /// Init containers.
    pub init_container_statuses: Vec<ContainerStatus>,
}

/// Part of a container's status.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    /// Its name.
    pub name: String,
    /// The runtime's name for this start of it.
    #[serde(rename = "containerID")]
    pub container_id: Option<String>,
    /// Times that it was started again.
    pub restart_count: i32,
    /// How it is now.
    pub state: ContainerState,
    /// How it was before its last restart.
    pub last_state: ContainerState,
}

/// Part of a container's state.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    /// Set while it waits.
    pub waiting: Option<Waiting>,
    /// Set while it runs.
    pub running: Option<Running>,
    /// Set when it ended.
    pub terminated: Option<Terminated>,
}

/// Why a container waits.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Waiting {
    /// In one word.
    pub reason: String,
    /// In a sentence.
    pub message: String,
}

/// Since when a container runs, which nobody asks for.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Running {}

/// How a container ended.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Terminated {
    /// Its exit code.
    pub exit_code: i32,
    /// In one word, e.g. OOMKilled.
    pub reason: String,
    /// What the container left to be read.
    pub message: String,
}

impl Pod {
    /// Not ended and not being deleted.
    pub fn active(&self) -> bool {
        self.metadata.deletion_timestamp.is_none() && !self.terminal()
    }

    /// Ended: it holds nothing any more.
    pub fn terminal(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// What its template asks it to compute on.
    pub fn asked(&self) -> Option<Asked> {
        let own = self
            .spec
            .containers
            .iter()
            .find(|container| container.name == CONTAINER)?;
        own.asked.clone()
    }

    /// Which start of the parser's container this is, while it runs.
    pub fn start(&self) -> Option<String> {
        let statuses = &self.status.container_statuses;
        let own = statuses.iter().find(|status| status.name == CONTAINER)?;
        own.state.running.as_ref()?;
        let id = own.container_id.as_deref().unwrap_or_default();
        Some(format!("{id}/{}", own.restart_count))
    }

    /// Its condition Ready is True.
    pub fn ready(&self) -> bool {
        condition_is(&self.status.conditions, "Ready", "True")
    }

    /// Worth keeping: made by us, or holding an extended resource.
    pub fn relevant(&self) -> bool {
        self.instance().is_some() || self.extended().next().is_some()
    }

    /// Namespace and name of the HawkeyeDeployment that it says it belongs to. Anyone can set labels, so the owner has to
    /// be the ReplicaSet of a pool's Deployment, too.
    pub fn instance(&self) -> Option<(&str, &str)> {
        let label = |key: &str| self.metadata.labels.as_ref()?.get(key).map(String::as_str);
        if label("app.kubernetes.io/managed-by") != Some(MANAGER) {
            return None;
        }
        let (instance, class) = (label(INSTANCE_LABEL)?, label(CLASS_LABEL)?);
        let prefix = format!("{instance}-{class}-");
        let owned = self.metadata.owner_references.iter().flatten().any(|owner| {
            owner.controller == Some(true) && owner.kind == "ReplicaSet" && owner.name.starts_with(&prefix)
        });
        owned.then_some(())?;
        Some((self.metadata.namespace.as_deref()?, instance))
    }

    /// The class of the pool that it says it belongs to.
    pub fn class(&self) -> Option<&str> {
        self.metadata.labels.as_ref()?.get(CLASS_LABEL).map(String::as_str)
    }

    /// Units of a resource that it holds: what its containers ask for together, or what its largest init container does.
    pub fn units(&self, resource: &str) -> u64 {
        let of = |container: &PodContainer| {
            container
                .resources
                .requests
                .get(resource)
                .and_then(Quantity::units)
                .unwrap_or(0)
        };
        let beside = |container: &&PodContainer| container.restart_policy.as_deref() == Some("Always");
        let sidecars: u64 = self.spec.init_containers.iter().filter(beside).map(of).sum();
        let together: u64 = self.spec.containers.iter().map(of).sum();
        let first = self
            .spec
            .init_containers
            .iter()
            .filter(|c| !beside(c))
            .map(of)
            .max()
            .unwrap_or(0);
        (together + sidecars).max(first + sidecars)
    }

    fn extended(&self) -> impl Iterator<Item = &str> {
        self.spec
            .containers
            .iter()
            .chain(&self.spec.init_containers)
            .flat_map(|container| container.resources.requests.keys())
            .map(String::as_str)
            .filter(|name| is_extended(name))
    }
}

/// Reads the metadata in use. Managed fields are often larger than the rest of an object, and a page of a list is decoded
/// whole before any of it could be taken away.
fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct InUse {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        // The watch goes on from it.
        resource_version: Option<String>,
        creation_timestamp: Option<Time>,
        deletion_timestamp: Option<Time>,
        labels: Option<BTreeMap<String, String>>,
        owner_references: Option<Vec<OwnerReference>>,
    }
    let read = InUse::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: read.name,
        namespace: read.namespace,
        uid: read.uid,
        resource_version: read.resource_version,
        creation_timestamp: read.creation_timestamp,
        deletion_timestamp: read.deletion_timestamp,
        labels: read.labels,
        owner_references: read.owner_references,
        ..ObjectMeta::default()
    })
}

/// Reads an environment, keeping only what says what to compute on: there are many pods.
fn asked<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Asked>, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Variable {
        name: String,
        value: String,
    }
    let variables: Option<Vec<Variable>> = Option::deserialize(deserializer)?;
    let variables = variables.unwrap_or_default();
    let [device, dtype, batch_size] = DEVICE_ENV.map(|name| {
        let found = variables.iter().find(|variable| variable.name == name)?;
        Some(found.value.as_str())
    });
    Ok(device.map(|device| Asked {
        device: device.to_owned(),
        dtype: dtype.map(str::to_owned),
        batch_size: batch_size.and_then(|size| size.parse().ok()),
    }))
}

/// Units of a resource on each node that bound, non-terminal pods hold which `ours` does not claim.
pub fn taken<'a>(
    pods: impl IntoIterator<Item = &'a Arc<Pod>>,
    ours: impl Fn(&str, &str) -> bool,
) -> BTreeMap<(String, String), u64> {
    let mut taken = BTreeMap::new();
    for pod in pods {
        let Some(node) = &pod.spec.node_name else { continue };
        if pod.terminal() || pod.instance().is_some_and(|(namespace, name)| ours(namespace, name)) {
            continue;
        }
        let mut names: Vec<&str> = pod.extended().collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            *taken.entry((node.clone(), name.to_owned())).or_insert(0) += pod.units(name);
        }
    }
    taken
}

/// By namespace and name of the HawkeyeDeployment: its active, bound pods by class, on nodes that take no new pods of that
/// class now.
pub fn held<'a>(
    pods: impl IntoIterator<Item = &'a Arc<Pod>>,
    index: &ClassIndex,
) -> BTreeMap<(String, String), BTreeMap<String, u32>> {
    let mut held: BTreeMap<(String, String), BTreeMap<String, u32>> = BTreeMap::new();
    for pod in pods {
        let (Some(node), Some(class), Some((namespace, name))) = (&pod.spec.node_name, pod.class(), pod.instance())
        else {
            continue;
        };
        if pod.active() && !index.offers(node, class) {
            let of = held.entry((namespace.to_owned(), name.to_owned())).or_default();
            *of.entry(class.to_owned()).or_insert(0) += 1;
        }
    }
    held
}

/// Node and class of each active, bound pod of a pool.
pub fn hosted<'a>(pods: impl IntoIterator<Item = &'a Arc<Pod>>) -> impl Iterator<Item = (&'a str, &'a str)> {
    pods.into_iter().filter_map(|pod| {
        pod.instance().filter(|_| pod.active())?;
        Some((pod.spec.node_name.as_deref()?, pod.class()?))
    })
}

/// The active pods of a HawkeyeDeployment.
pub fn pods_of(pods: &Store<Pod>, namespace: &str, name: &str) -> Vec<Arc<Pod>> {
    pods.state_filter(|pod| pod.active() && pod.instance() == Some((namespace, name)))
}

/// Looks for a condition by type and status.
pub fn condition_is(conditions: &[RawCondition], type_: &str, status: &str) -> bool {
    conditions
        .iter()
        .any(|condition| condition.type_ == type_ && condition.status == status)
}

/// Extended resources have a domain of their own: `nvidia.com/gpu`, not `cpu` or `hugepages-2Mi`.
fn is_extended(name: &str) -> bool {
    name.split_once('/')
        .is_some_and(|(domain, _)| domain != "kubernetes.io" && !domain.ends_with(".kubernetes.io"))
}
