//! The digest behind a model's tag, end to end: the operator asks a registry on loopback.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    fake_registry::{OCI_INDEX, index},
    images::{drop_parser, plain_node},
    scenarios::{create, deployments, namespace, parsers},
    server::{Cluster, wait},
};

const NAMESPACE: &str = "digests";

/// Generation and the reference of the model's volume.
async fn mounted(cluster: &Cluster) -> Result<Option<(i64, String)>> {
    let found = deployments(cluster, NAMESPACE).get_opt("demo-cpu-arm64").await?;
    Ok(found.and_then(|found| {
        let volume = found
            .spec
            .template
            .spec?
            .volumes?
            .into_iter()
            .find(|v| v.name == "models")?;
        Some((found.metadata.generation?, volume.image?.reference?))
    }))
}

async fn until_mounted(cluster: &Cluster, reference: &str) -> Result<i64> {
    wait(&format!("pods that mount {reference}"), async || {
        let found = mounted(cluster).await?;
        Ok(found
            .filter(|(_, mounted)| mounted == reference)
            .map(|(generation, _)| generation))
    })
    .await
}

async fn change(cluster: &Cluster, image: Value) -> Result<()> {
    let patch = json!({"spec": {"model": {"image": image}}});
    parsers(cluster, NAMESPACE)
        .patch("demo", &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}

/// Pods mount the digest behind the tag of their model; it stays while the registry is away, also across a restart, and
/// follows when the tag has moved.
pub async fn followed(cluster: &'static Cluster) -> Result<()> {
    plain_node(cluster, "digests-arm", "arm64").await?;
    namespace(cluster, NAMESPACE).await?;
    let registry = &cluster.registry;
    let first = registry.put("bundle", "v1", OCI_INDEX, &index(&["linux/arm64"]));
    let tag = registry.name("bundle:v1");
    let spec = format!("{{classes: [cpu-arm64], model: {{image: {{reference: '{tag}'}}}}}}");
    create(cluster, NAMESPACE, "demo", &spec, false).await?;
    let generation = until_mounted(cluster, &format!("{tag}@{first}")).await?;
    ensure!(generation == 1, "pods were made before the registry had answered");

    registry.remove("bundle");
    cluster.kill_operator();
    cluster.start_operator().await?;
    sleep(Duration::from_secs(6)).await;
    let after = mounted(cluster).await?;
    ensure!(
        after == Some((1, format!("{tag}@{first}"))),
        "on no knowledge: {after:?}"
    );

    let second = registry.put("bundle", "v1", OCI_INDEX, &index(&["linux/arm64", "linux/amd64"]));
    ensure!(first != second);
    // It would be asked again within half an hour; a new revision asks at once.
    let patch = json!({"spec": {"model": {"revision": "2"}}});
    parsers(cluster, NAMESPACE)
        .patch("demo", &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    let generation = until_mounted(cluster, &format!("{tag}@{second}")).await?;
    ensure!(generation == 2, "one rollout, not {}", generation - 1);

    // What is a digest already, and what is never pulled, is mounted as it was named.
    let digest = format!("{}@{first}", registry.name("bundle"));
    change(cluster, json!({"reference": digest})).await?;
    until_mounted(cluster, &digest).await?;
    change(cluster, json!({"reference": tag, "pullPolicy": "Never"})).await?;
    until_mounted(cluster, &tag).await?;

    drop_parser(cluster, NAMESPACE, "demo").await?;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    nodes.delete("digests-arm", &DeleteParams::default()).await?;
    Ok(())
}
