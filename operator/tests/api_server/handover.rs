//! Hand-over against a real API server. There are no controllers and no scheduler, so their part is written by hand.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawkeye_crds::v1alpha1::{HandOver, HardwareClass, HawkeyeDeploymentStatus};
use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Node, Pod, ServiceAccount},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    scenarios::{MODEL, create, deployments, namespace, parsers, until_status},
    server::{Cluster, wait},
};

/// Namespace of the scenarios, and the class with the resource, of the least priority, since older HawkeyeDeployments are
/// served first. The next class is the built-in one.
const NAME: &str = "hand-over";
const RESOURCE: &str = "example.com/gpu";
/// A node of the class `cpu-amd64`.
const CPU_NODE: &str = "hand-over-cpu";

/// The account that pods need, and that every namespace has where controllers run.
pub async fn account(cluster: &Cluster, namespace: &str) -> Result<()> {
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), namespace);
    let account = serde_json::from_value(json!({"metadata": {"name": "default"}}))?;
    accounts.create(&PostParams::default(), &account).await?;
    Ok(())
}

/// A class with one node, and a node for what it hands over.
async fn set_up(cluster: &Cluster) -> Result<()> {
    namespace(cluster, NAME).await?;
    account(cluster, NAME).await?;
    let classes: Api<HardwareClass> = Api::all(cluster.client.clone());
    let class = json!({
        "apiVersion": "hawkeye.bytebot.ai/v1alpha1", "kind": "HardwareClass", "metadata": {"name": NAME},
        "spec": {
            "priority": 0, "arch": "amd64", "device": "Cuda", "imageVariant": "cuda", "dtype": "Float32",
            "resource": RESOURCE, "batchSize": {"speed": 1, "balanced": 1, "quality": 1},
            "memory": {"limit": "4Gi"}, "cpu": {"request": "1"},
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "example.com/hand-over", "operator": "Exists"}]}],
        },
    });
    classes
        .patch(NAME, &PatchParams::apply("test"), &Patch::Apply(class))
        .await?;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    for (name, gpus) in [(NAME, 1), (CPU_NODE, 0)] {
        let mut labels = json!({"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"});
        if gpus > 0 {
            labels["example.com/hand-over"] = json!("true");
            // Keeps the CPU classes off it.
            labels["nvidia.com/gpu.present"] = json!("true");
        }
        let node = serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}}))?;
        nodes.create(&PostParams::default(), &node).await?;
        units(cluster, name, gpus).await?;
        let params = PatchParams::default();
        nodes
            .patch(name, &params, &Patch::Merge(json!({"spec": {"taints": null}})))
            .await?;
    }
    Ok(())
}

/// What a node offers, as its kubelet would say.
async fn units(cluster: &Cluster, node: &str, units: i32) -> Result<()> {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let status = json!({"status": {
        "allocatable": {"cpu": "8", "memory": "32Gi", RESOURCE: units.to_string()},
        "conditions": [{"type": "Ready", "status": "True", "reason": "Test", "message": "",
            "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    }});
    nodes
        .patch_status(node, &PatchParams::default(), &Patch::Merge(status))
        .await?;
    Ok(())
}

/// What the Deployment's controller would say once it has made one pod.
pub async fn rolled_out(cluster: &Cluster, namespace: &str, deployment: &str) -> Result<Deployment> {
    let api = deployments(cluster, namespace);
    let found = wait(&format!("Deployment {deployment}"), async || {
        Ok(api.get_opt(deployment).await?)
    })
    .await?;
    let status = json!({"status": {
        "observedGeneration": found.metadata.generation, "replicas": 1, "updatedReplicas": 1,
    }});
    Ok(api
        .patch_status(deployment, &PatchParams::default(), &Patch::Merge(status))
        .await?)
}

/// A pod of a Deployment, since then bound to a node or unschedulable.
pub async fn pod(
    cluster: &Cluster,
    deployment: &Deployment,
    name: &str,
    node: Option<&str>,
    since: Timestamp,
) -> Result<()> {
    let namespace = deployment.namespace().context("a Deployment without a namespace")?;
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &namespace);
    let template = deployment.spec.template.clone();
    let mut pod = Pod {
        metadata: template.metadata.unwrap_or_default(),
        spec: template.spec,
        status: None,
    };
    pod.metadata.name = Some(name.to_owned());
    pod.metadata.owner_references = serde_json::from_value(json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true, "uid": "test",
        "name": format!("{}-1a2b", deployment.name_any()),
    }]))?;
    let spec = pod.spec.as_mut().context("no pod spec")?;
    spec.node_name = node.map(str::to_owned);
    api.create(&PostParams::default(), &pod).await?;
    let since = since.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = |type_: &str, status: &str, reason: &str| {
        json!({"type": type_, "status": status, "reason": reason, "message": "0/2 nodes are available",
            "lastTransitionTime": since})
    };
    let conditions = match node {
        Some(_) => vec![condition("PodScheduled", "True", ""), condition("Ready", "True", "")],
        None => vec![condition("PodScheduled", "False", "Unschedulable")],
    };
    let status = json!({"status": {"conditions": conditions}});
    api.patch_status(name, &PatchParams::default(), &Patch::Strategic(status))
        .await?;
    Ok(())
}

pub async fn gone(cluster: &Cluster, namespace: &str, name: &str) -> Result<()> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let params = DeleteParams::default().grace_period(0);
    api.delete(name, &params).await?;
    Ok(())
}

fn record(status: &HawkeyeDeploymentStatus) -> Option<HandOver> {
    status.pools.iter().find(|pool| pool.class == NAME)?.hand_over.clone()
}

async fn restart(cluster: &Cluster) -> Result<()> {
    cluster.kill_operator();
    cluster.start_operator().await
}

pub async fn there_and_back(cluster: &'static Cluster) -> Result<()> {
    set_up(cluster).await?;
    let spec = format!("{{classes: [hand-over, cpu-amd64], handOverAfter: 10s, model: {MODEL}}}");
    create(cluster, NAME, "demo", &spec, false).await?;
    let deployment = rolled_out(cluster, NAME, "demo-hand-over").await?;
    pod(cluster, &deployment, "first", None, Timestamp::now()).await?;
    let waits = until_status(cluster, NAME, "demo", "the wait for a node", |status| {
        status.summary.as_deref() == Some("Unschedulable") && record(status).is_some()
    })
    .await?;
    let since = record(&waits).and_then(|record| record.since).context("no since")?;
    // The wait goes on where it was.
    restart(cluster).await?;
    let handed = until_status(cluster, NAME, "demo", "the hand-over", |status| {
        status.pool_summary.as_deref() == Some("cpu-amd64 0/1")
    })
    .await?;
    let of = record(&handed).context("no record")?;
    ensure!(of.since.as_deref() == Some(&since), "the wait began anew: {of:?}");
    ensure!((of.attempts, of.keeps, of.units) == (1, Some(0), Some(1)), "{of:?}");
    ensure!(handed.pools[0].reason == "HandedOver", "{:?}", handed.pools[0]);
    let degraded = handed.conditions.iter().find(|condition| condition.type_ == "Degraded");
    ensure!(
        degraded.is_some_and(|condition| condition.message.contains("found no node for 10s")),
        "{degraded:?}"
    );
    let api = deployments(cluster, NAME);
    wait("the empty pool to go", async || {
        Ok(api.get_opt("demo-hand-over").await?.is_none().then_some(()))
    })
    .await?;
    gone(cluster, NAME, "first").await?;
    // Neither a restart nor time brings it back while nothing has changed.
    restart(cluster).await?;
    sleep(Duration::from_secs(12)).await;
    ensure!(
        api.get_opt("demo-hand-over").await?.is_none(),
        "it was tried although nothing changed"
    );

    // A second unit: it is tried beside the replica on the CPU, which stays until the new pod is ready.
    units(cluster, NAME, 2).await?;
    let deployment = rolled_out(cluster, NAME, "demo-hand-over").await?;
    until_status(cluster, NAME, "demo", "the try", |status| {
        record(status).is_some_and(|record| record.trying)
    })
    .await?;
    ensure!(api.get("demo-cpu-amd64").await?.spec.replicas == Some(1));
    pod(cluster, &deployment, "second", Some(NAME), Timestamp::now()).await?;
    let back = until_status(cluster, NAME, "demo", "the return", |status| {
        status.pool_summary.as_deref() == Some("hand-over 1/1")
    })
    .await?;
    ensure!(record(&back).is_none(), "{:?}", back.pools);
    wait("the pool on the CPU to go", async || {
        Ok(api.get_opt("demo-cpu-amd64").await?.is_none().then_some(()))
    })
    .await
}

/// Goes on with what the scenario before has left: one pod on a node with two units.
pub async fn nothing_to_write(cluster: &'static Cluster) -> Result<()> {
    let api = deployments(cluster, NAME);
    let strategy = api.get("demo-hand-over").await?.spec.strategy;
    sleep(Duration::from_secs(2)).await;
    let before = cluster.writes().await?;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let labels: Value = json!({"metadata": {"labels": {"example.com/rack": "7"}}});
    nodes
        .patch(NAME, &PatchParams::default(), &Patch::Merge(labels))
        .await?;
    // Room for one more pod comes and goes, which would be another strategy for the next rollout.
    for count in [1, 3, 1] {
        units(cluster, NAME, count).await?;
        sleep(Duration::from_secs(2)).await;
    }
    let writes = cluster.writes().await? - before;
    ensure!(writes == 0, "{writes} writes");
    ensure!(api.get("demo-hand-over").await?.spec.strategy == strategy);
    gone(cluster, NAME, "second").await?;
    parsers(cluster, NAME).delete("demo", &DeleteParams::default()).await?;
    api.delete("demo-hand-over", &DeleteParams::default()).await?;
    for node in [NAME, CPU_NODE] {
        nodes.delete(node, &DeleteParams::default()).await?;
    }
    Api::<HardwareClass>::all(cluster.client.clone())
        .delete(NAME, &DeleteParams::default())
        .await?;
    Ok(())
}
