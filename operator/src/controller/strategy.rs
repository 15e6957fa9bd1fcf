//! How a Deployment rolls is decided when its pods change, and not written again whenever the room for one more pod comes
//! or goes.

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use serde_json::Value;

use super::{apply::covers, build::Objects};

/// Keeps the strategy of each Deployment that exists, unless its pods are to change now. A rollout that is under way may
/// still be told to end old pods first: its new ones found no node.
///
/// # Errors
/// When an object does not serialise.
pub fn keep(objects: &mut Objects, observed: &[Deployment]) -> Result<(), serde_json::Error> {
    for desired in &mut objects.deployments {
        let Some(observed) = observed
            .iter()
            .find(|observed| observed.name_any() == desired.name_any())
        else {
            continue;
        };
        let template = |deployment: &Deployment| serde_json::to_value(&deployment.spec.template);
        let same: bool = covers(&template(desired)?, &template(observed)?, false);
        if same && known(observed) && (surges(desired) || !rolls(observed)) {
            desired.spec.strategy.clone_from(&observed.spec.strategy);
        }
    }
    Ok(())
}

/// Pods of an older template are left.
fn rolls(deployment: &Deployment) -> bool {
    let status = deployment.status.as_ref();
    let count = |of: fn(&k8s_openapi::api::apps::v1::DeploymentStatus) -> Option<i32>| status.and_then(of).unwrap_or(0);
    count(|status| status.replicas) > count(|status| status.updated_replicas)
}

fn surge_of(deployment: &Deployment) -> Option<Value> {
    let rolling = deployment.spec.strategy.as_ref()?.rolling_update.as_ref()?;
    serde_json::to_value((&rolling.max_surge, &rolling.max_unavailable)).ok()
}

fn surges(deployment: &Deployment) -> bool {
    surge_of(deployment) == Some(serde_json::json!([1, 0]))
}

/// One of the two strategies that we write; anything else is someone else's and is put right.
fn known(deployment: &Deployment) -> bool {
    surges(deployment) || surge_of(deployment) == Some(serde_json::json!([0, 1]))
}
