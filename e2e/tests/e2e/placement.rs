//! Placement against a real scheduler: what is free on paper and out of reach.

use anyhow::{Context as _, Result, ensure};
use hawkeye_crds::v1alpha1::{ConditionStatus, HandOver, HawkeyeDeployment};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::support::{Suite, condition, expect, pretty};

const CLASS: &str = "dgx-spark";

fn record(object: &HawkeyeDeployment) -> Option<HandOver> {
    let pools = &object.status.as_ref()?.pools;
    pools.iter().find(|pool| pool.class == CLASS)?.hand_over.clone()
}

fn replicas(object: &HawkeyeDeployment, class: &str) -> i32 {
    let pools = object.status.iter().flat_map(|status| &status.pools);
    pools.filter(|pool| pool.class == class).map(|pool| pool.replicas).sum()
}

pub async fn a_pod_that_finds_no_node_is_handed_over_and_comes_back(suite: &Suite) -> Result<()> {
    let scope = suite.namespace("hand-over").await?;
    // Its GPU is free, but somebody has nearly all of its CPUs.
    let pods: Api<Pod> = Api::namespaced(suite.client.clone(), "default");
    let hog = serde_json::from_value(json!({
        "metadata": {"name": "hog"},
        "spec": {
            "nodeName": CLASS,
            "containers": [{"name": "hog", "image": "example.com/hog", "resources": {"requests": {"cpu": "19"}}}],
            "tolerations": [{"operator": "Exists"}],
        },
    }))?;
    pods.create(&PostParams::default(), &hog).await?;
    let spec = json!({"classes": [CLASS, "graviton"], "handOverAfter": "10s"});
    scope.apply("screens", spec).await?;
    let waits = scope
        .until("screens", "waiting for a node", 30, |o| record(o).is_some())
        .await?;
    expect("replicas that wait", &replicas(&waits, CLASS), &1)?;
    let handed = scope.until_ready("screens", 1, 60).await?;
    expect("replicas on the next class", &replicas(&handed, "graviton"), &1)?;
    let degraded = condition(&handed, "Degraded").context("no condition Degraded")?;
    ensure!(
        degraded.status == ConditionStatus::True && degraded.message.contains("found no node for 10s"),
        "Degraded: {}",
        pretty(degraded)
    );

    // There is room now, which nobody can see, until the node itself changes.
    pods.delete("hog", &DeleteParams::default().grace_period(0)).await?;
    let nodes: Api<Node> = Api::all(suite.client.clone());
    let cordon = async |on: bool| {
        let patch = Patch::Merge(json!({"spec": {"unschedulable": on}}));
        nodes.patch(CLASS, &PatchParams::default(), &patch).await
    };
    cordon(true).await?;
    let noted = scope
        .until("screens", "aware of the cordoned node", 30, |o| {
            record(o).is_some_and(|record| record.nodes == Some(0))
        })
        .await;
    cordon(false).await?;
    noted?;
    let back = scope
        .until("screens", "back", 60, |o| {
            replicas(o, CLASS) == 1 && replicas(o, "graviton") == 0
        })
        .await?;
    ensure!(record(&back).is_none(), "{}", pretty(&record(&back)));
    scope.until_ready("screens", 1, 60).await?;
    scope.delete("screens").await
}
