//! Plan → objects. Pure, and cannot fail: whatever could be wrong was said in the plan.

pub mod deployment;
pub mod disruption_budget;
pub mod model;
pub mod network_policy;
pub mod service;

use std::collections::BTreeMap;

use hawkeye_crds::v1alpha1::{HawkeyeDeploymentSpec, ModelSource};
use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Service, networking::v1::NetworkPolicy, policy::v1::PodDisruptionBudget},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};

pub use model::Model;

use super::plan::Plan;
use crate::hardware::Images;

/// Port on which the parser listens, as the original service did.
pub const PORT: i32 = 9989;
/// Name of the parser's container.
pub const CONTAINER: &str = "inference";
/// Variables that say what a pod is meant to compute on; a pod's answer is compared with them.
pub const DEVICE_ENV: [&str; 3] = ["OMNIPARSER_DEVICE", "OMNIPARSER_MODEL_DTYPE", "OMNIPARSER_BATCH_SIZE"];
/// Label that names the hardware class of a pool's pods.
pub const CLASS_LABEL: &str = "hawkeye.bytebot.ai/class";
/// Label that names the HawkeyeDeployment.
pub const INSTANCE_LABEL: &str = "app.kubernetes.io/instance";
/// Field manager of everything that the operator writes, and the value of `app.kubernetes.io/managed-by`.
pub const MANAGER: &str = "hawkeye-operator";

/// The HawkeyeDeployment that objects are built for.
#[derive(Clone, Debug)]
pub struct Owner<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its UID.
    pub uid: &'a str,
    /// Its spec.
    pub spec: &'a HawkeyeDeploymentSpec,
}

/// Every object that one HawkeyeDeployment should have.
#[derive(Clone, Debug, PartialEq)]
pub struct Objects {
    /// One for each pool with replicas.
    pub deployments: Vec<Deployment>,
    /// The one endpoint.
    pub service: Service,
    /// None for fewer than two pods, or when the spec turns it off.
    pub disruption_budget: Option<PodDisruptionBudget>,
    /// None unless the spec asks for it.
    pub network_policy: Option<NetworkPolicy>,
}

/// Builds every object of a plan. `model` is the bundle's source, which an accepted plan always has; `operator` is the
/// namespace that the operator runs in, if it runs in one.
pub fn build(owner: &Owner<'_>, plan: &Plan, images: &Images, model: &ModelSource, operator: Option<&str>) -> Objects {
    Objects {
        deployments: plan
            .pools
            .iter()
            .filter(|pool| pool.replicas > 0)
            .map(|pool| deployment::build(owner, pool, images, model))
            .collect(),
        service: service::build(owner),
        disruption_budget: disruption_budget::build(owner, plan),
        network_policy: network_policy::build(owner, model, operator),
    }
}

/// Name of a pool's Deployment.
pub fn pool_name(owner: &str, class: &str) -> String {
    format!("{owner}-{class}")
}

/// Labels of everything that belongs to a HawkeyeDeployment; as a selector they match exactly its pods.
pub fn labels(owner: &str) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/name", "hawkeye-inference"),
        (INSTANCE_LABEL, owner),
        ("app.kubernetes.io/managed-by", MANAGER),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

/// The selector of all pods in the form that the scale subresource wants.
pub fn selector(owner: &str) -> String {
    labels(owner)
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect::<Vec<_>>()
        .join(",")
}

fn metadata(owner: &Owner<'_>, name: String, labels: BTreeMap<String, String>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(owner.namespace.to_owned()),
        labels: Some(labels),
        owner_references: Some(vec![OwnerReference {
            api_version: "hawkeye.bytebot.ai/v1alpha1".to_owned(),
            kind: "HawkeyeDeployment".to_owned(),
            name: owner.name.to_owned(),
            uid: owner.uid.to_owned(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]),
        ..ObjectMeta::default()
    }
}
