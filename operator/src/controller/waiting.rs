//! Which pods find no node, and whether they only wait for their predecessors: what hand-over is decided from.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};

use super::{
    build::pool_name,
    observe::Pod,
    plan::handover::{PoolPods, Rollout},
    pool::PoolDeployment,
};

/// A pod that was told to end is gone this long after its time at the latest, unless its node is lost. Then its place is
/// lost as well, and nobody should wait for it.
const SLACK: SignedDuration = SignedDuration::from_secs(30);

/// By namespace and name of the HawkeyeDeployment, then by class: its pods as far as hand-over asks. `deployment` finds the
/// Deployment of a pool by namespace and name.
pub fn waiting<'a>(
    pods: impl IntoIterator<Item = &'a Arc<Pod>>,
    deployment: impl Fn(&str, &str) -> Option<Arc<PoolDeployment>>,
) -> HashMap<(String, String), BTreeMap<String, PoolPods>> {
    let mut all: HashMap<(String, String), BTreeMap<String, PoolPods>> = HashMap::new();
    for pod in pods {
        let (Some(class), Some((namespace, name)), false) = (pod.class(), pod.instance(), pod.terminal()) else {
            continue;
        };
        let pools = all.entry((namespace.to_owned(), name.to_owned())).or_default();
        let pool = pools.entry(class.to_owned()).or_default();
        count(pool, pod);
    }
    for ((namespace, name), pools) in &mut all {
        for (class, pool) in pools.iter_mut().filter(|(_, pool)| !pool.waiting.is_empty()) {
            pool.rollout = deployment(namespace, &pool_name(name, class))
                .map_or(Rollout::Unknown, |deployment| rollout(&deployment));
        }
    }
    all
}

fn count(pool: &mut PoolPods, pod: &Pod) {
    let bound = pod.spec.node_name.is_some();
    if let Some(end) = &pod.metadata.deletion_timestamp {
        if bound {
            let end = end.0.saturating_add(SLACK).unwrap_or(Timestamp::MAX);
            pool.leaving = pool.leaving.max(Some(end));
        }
        return;
    }
    pool.active += 1;
    pool.bound += u32::from(bound);
    pool.ready += u32::from(pod.ready());
    if !bound && let Some(since) = unschedulable_since(pod) {
        pool.waiting.push(since);
    }
}

/// Since when the scheduler has found no node for a pod, for a reason that another class could help with. A claim that is
/// not there fits no node of any.
fn unschedulable_since(pod: &Pod) -> Option<Timestamp> {
    let condition = pod.status.conditions.iter().find(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.reason == "Unschedulable"
            && !lacks_claim(&condition.message)
    })?;
    let since = condition.last_transition_time.as_ref();
    since.or(pod.metadata.creation_timestamp.as_ref()).map(|time| time.0)
}

/// In the words of kube-scheduler's VolumeBinding: `persistentvolumeclaim "models" not found`.
fn lacks_claim(message: &str) -> bool {
    message.contains("persistentvolumeclaim \"") && message.contains("\" not found")
}

/// A rollout ends when no pod of an older template is left, or when its Deployment's controller gives it up.
fn rollout(deployment: &PoolDeployment) -> Rollout {
    let Some(status) = deployment
        .status
        .as_ref()
        .filter(|status| status.observed_generation >= deployment.metadata.generation)
    else {
        return Rollout::Unknown;
    };
    let given_up = status.conditions.iter().flatten().any(|condition| {
        condition.type_.as_deref() == Some("Progressing")
            && condition.reason.as_deref() == Some("ProgressDeadlineExceeded")
    });
    if given_up || status.replicas.unwrap_or(0) <= status.updated_replicas.unwrap_or(0) {
        Rollout::Done
    } else {
        Rollout::Running
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case("0/3 nodes are available: 3 Insufficient cpu.", 1)]
    // No class of nodes has it; a hand-over would only hide that.
    #[case("0/3 nodes are available: persistentvolumeclaim \"models\" not found. not found", 0)]
    fn a_pod_waits_for_a_node_unless_its_claim_is_missing(#[case] message: &str, #[case] waits: usize) {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "demo", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": {"phase": "Pending", "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message},
            ]},
        }))
        .unwrap();
        let mut pool = PoolPods::default();
        count(&mut pool, &pod);
        assert_eq!((pool.active, pool.waiting.len()), (1, waits));
    }
}
