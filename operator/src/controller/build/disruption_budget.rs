//! The PodDisruptionBudget of a HawkeyeDeployment: how many pods of all pools together a drain may take away at once.

use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::{Owner, labels, metadata};
use crate::controller::plan::Plan;

/// Builds the budget, or none: a single pod has nothing to share a drain with, and a budget that always allows one to go
/// would protect nothing.
///
/// It says `maxUnavailable`, never `minAvailable`, which would block a drain for ever once the replicas are scaled down
/// to it. Pods that are not ready may always be evicted, so that one that never becomes ready holds no node.
pub fn build(owner: &Owner<'_>, plan: &Plan) -> Option<PodDisruptionBudget> {
    let options = owner.spec.disruption_budget.clone().unwrap_or_default();
    let pods: u32 = plan.pools.iter().map(|pool| pool.replicas).sum();
    (options.enabled && pods > 1).then(|| PodDisruptionBudget {
        metadata: metadata(owner, owner.name.to_owned(), labels(owner.name)),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(options.max_unavailable)),
            selector: Some(LabelSelector {
                match_labels: Some(labels(owner.name)),
                ..LabelSelector::default()
            }),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    })
}
