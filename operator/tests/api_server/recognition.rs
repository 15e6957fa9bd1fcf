//! What nodes and classes tell: labels that vanish, and classes that share nodes.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hawkeye_crds::v1alpha1::{HardwareClass, HawkeyeDeploymentStatus};
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    scenarios::{MODEL, create, deployments, namespace, nodes, parsers, until_status},
    server::{Cluster, wait},
};

const SPARK: &str = "publishers/gfd-gb10-oem";

fn placed(status: &HawkeyeDeploymentStatus) -> String {
    let placed = status.conditions.iter().find(|condition| condition.type_ == "Placed");
    placed.map(|condition| condition.message.clone()).unwrap_or_default()
}

/// The label publishers of a node restart, then the operator, then the labels stay away. No kubelet runs here, so the pod is
/// one in name only; it is bound, which is what counts.
pub async fn grace(cluster: &'static Cluster) -> Result<()> {
    nodes(cluster, &[SPARK]).await?;
    namespace(cluster, "grace").await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), "grace");
    let account = serde_json::from_value(json!({"metadata": {"name": "default"}}))?;
    accounts.create(&PostParams::default(), &account).await?;
    create(
        cluster,
        "grace",
        "demo",
        &format!("{{replicas: 2, model: {MODEL}}}"),
        false,
    )
    .await?;
    until_status(cluster, "grace", "demo", "one of two replicas", |status| {
        status.pool_summary.as_deref() == Some("dgx-spark 0/1")
            && status.summary.as_deref() == Some("NotEnoughCapacity")
    })
    .await?;
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "grace");
    pods.create(&PostParams::default(), &bound_pod()?).await?;
    until_status(cluster, "grace", "demo", "its pod", |status| status.replicas == 1).await?;

    // No pod is rolled or moved in all that follows: the Deployment stays as it was made.
    let untouched = async || {
        let made = deployments(cluster, "grace").get("demo-dgx-spark").await?;
        ensure!(
            made.metadata.generation == Some(1),
            "the pool was changed: {:?}",
            made.spec
        );
        anyhow::Ok(())
    };
    let all: Api<Node> = Api::all(cluster.client.clone());
    let name = "gfd-gb10-oem";
    let labels = all.get(name).await?.metadata.labels.unwrap_or_default();
    let gone: serde_json::Map<String, Value> = labels
        .into_keys()
        .filter(|key| key.starts_with("nvidia.com/"))
        .map(|key| (key, Value::Null))
        .collect();
    ensure!(gone.len() > 10, "the fixture has few labels: {gone:?}");
    let patch = Patch::Merge(json!({"metadata": {"labels": gone}}));
    all.patch(name, &PatchParams::default(), &patch).await?;
    let lost = "gfd-gb10-oem lost the labels that told this class";
    let keeps = |status: &HawkeyeDeploymentStatus| {
        status.pool_summary.as_deref() == Some("dgx-spark 0/1") && placed(status).contains(lost)
    };
    let before = until_status(cluster, "grace", "demo", "what it makes of lost labels", keeps).await?;
    // The node counts as one of its class, which is written with a delay. Then nothing is, while nothing changes.
    let classes: Api<HardwareClass> = Api::all(cluster.client.clone());
    wait("the class to have its node", async || {
        let status = classes.get("dgx-spark").await?.status;
        Ok(status.filter(|status| status.nodes == 1))
    })
    .await?;
    sleep(Duration::from_secs(2)).await;
    let writes = cluster.writes().await?;
    sleep(Duration::from_secs(3)).await;
    ensure!(cluster.writes().await? == writes, "it writes during the grace");
    untouched().await?;

    // A new operator knows it from the pod.
    cluster.kill_operator();
    cluster.start_operator().await?;
    until_status(cluster, "grace", "demo", "the same after a restart", |status| {
        keeps(status) && placed(status) != placed(&before)
    })
    .await?;

    // When the time is over it goes on by itself: the node is an ordinary GPU node now. The pod keeps its place.
    until_status(cluster, "grace", "demo", "the end of the grace", |status| {
        status.pool_summary.as_deref() == Some("dgx-spark 0/1, cuda-arm64 0/1") && !placed(status).contains(lost)
    })
    .await?;
    untouched().await?;

    parsers(cluster, "grace")
        .delete("demo", &DeleteParams::default())
        .await?;
    let now = DeleteParams::default().grace_period(0);
    pods.delete("demo-pod", &now).await?;
    all.delete(name, &now).await?;
    Ok(())
}

fn bound_pod() -> Result<Pod> {
    let restricted = json!({
        "allowPrivilegeEscalation": false, "runAsNonRoot": true, "runAsUser": 65532,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
    });
    Ok(serde_json::from_value(json!({
        "metadata": {
            "name": "demo-pod",
            "labels": {
                "app.kubernetes.io/managed-by": "hawkeye-operator",
                "app.kubernetes.io/instance": "demo",
                "hawkeye.bytebot.ai/class": "dgx-spark",
            },
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "demo-dgx-spark-7c9f", "uid": "rs",
                "controller": true,
            }],
        },
        "spec": {
            "nodeName": "gfd-gb10-oem",
            "containers": [{
                "name": "parser", "image": "example.com/test:cuda", "securityContext": restricted,
                "resources": {"limits": {"nvidia.com/gpu": "1"}},
            }],
        },
    }))?)
}

/// A class that admits the nodes of another one is told so, and both are when it is gone again.
pub async fn overlaps(cluster: &'static Cluster) -> Result<()> {
    let api: Api<HardwareClass> = Api::all(cluster.client.clone());
    let twin = HardwareClass::new("z-twin", api.get("cuda-amd64").await?.spec);
    nodes(cluster, &["publishers/gke-l4"]).await?;
    let reason = async |name: &str, expected: &str| {
        wait(&format!("{name} to be {expected}"), async || {
            let status = api.get(name).await?.status.unwrap_or_default();
            let condition = status
                .conditions
                .into_iter()
                .find(|condition| condition.type_ == "Overlaps");
            Ok(condition
                .filter(|condition| condition.reason == expected)
                .map(|condition| (status.nodes, condition)))
        })
        .await
    };
    let (nodes, _) = reason("cuda-amd64", "Disjoint").await?;
    api.create(&PostParams::default(), &twin).await?;
    let (still, condition) = reason("cuda-amd64", "EqualPriority").await?;
    ensure!(condition.message.contains("z-twin") && still >= nodes, "{condition:?}");
    let (none, _) = reason("z-twin", "EqualPriority").await?;
    ensure!(none == 0, "the class that comes later by name has {none} nodes");
    let priority = json!({"spec": {"priority": twin.spec.priority - 1}});
    api.patch("z-twin", &PatchParams::default(), &Patch::Merge(priority))
        .await?;
    let (_, condition) = reason("z-twin", "HigherPriorityHas").await?;
    ensure!(condition.observed_generation == Some(2), "{condition:?}");
    reason("cuda-amd64", "LowerPriorityMatches").await?;
    api.delete("z-twin", &DeleteParams::default()).await?;
    reason("cuda-amd64", "Disjoint").await?;
    let all: Api<Node> = Api::all(cluster.client.clone());
    all.delete("gke-l4", &DeleteParams::default().grace_period(0))
        .await
        .context("the node")?;
    Ok(())
}
