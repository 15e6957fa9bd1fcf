//! Where models come from: what the API server makes of it.

use anyhow::{Result, ensure};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::{
    scenarios::{create, deployments, namespace, nodes, parsers, until_status},
    server::{Cluster, wait},
};

/// An API server that behaves as Kubernetes 1.34, where image volumes were off: it drops them without a word.
pub async fn without_image_volumes(_: &'static Cluster) -> Result<()> {
    let old = Cluster::start_with(&["--emulated-version=1.34"]).await?;
    let result = dropped(&old).await;
    if result.is_err() {
        eprintln!("the operator's log at the older API server:\n{}", old.operator_log());
    }
    old.stop();
    result
}

async fn dropped(cluster: &Cluster) -> Result<()> {
    nodes(cluster, &["cpu-amd64"]).await?;
    namespace(cluster, "models").await?;
    let spec = "{model: {image: {reference: 'example.com/bundle:test'}}}";
    create(cluster, "models", "demo", spec, false).await?;
    let status = until_status(cluster, "models", "demo", "ModelVolumeUnsupported", |status| {
        status.summary.as_deref() == Some("ModelVolumeUnsupported")
    })
    .await?;
    let message = status.message.unwrap_or_default();
    ensure!(message.contains("model.persistentVolumeClaim"), "{message}");
    let pod = deployments(cluster, "models")
        .get("demo-cpu-amd64")
        .await?
        .spec
        .template
        .spec
        .unwrap_or_default();
    ensure!(
        pod.volumes.iter().flatten().all(|volume| volume.name != "models"),
        "the volume was not dropped, so this shows nothing"
    );
    // What comes back is never as it was sent, which must not lead to endless writes.
    cluster.settled().await?;
    let before = cluster.writes().await?;
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    let after = cluster.writes().await?;
    ensure!(before == after, "{} writes in four seconds", after - before);
    let claim = json!({"spec": {"model": {"image": null, "persistentVolumeClaim": {"claimName": "bundle"}}}});
    parsers(cluster, "models")
        .patch("demo", &PatchParams::default(), &Patch::Merge(claim))
        .await?;
    until_status(cluster, "models", "demo", "the claim to be taken", |status| {
        status.summary.as_deref() == Some("NotReady")
    })
    .await?;
    Ok(())
}

/// Source, sum and revision each change the template, and the template passes the API server as it was built.
pub async fn changes(cluster: &'static Cluster) -> Result<()> {
    namespace(cluster, "downloads").await?;
    let spec = format!(
        "{{classes: [cpu-amd64], model: {{http: {{url: 'https://example.com/b.tar.gz?a=$(b)', sha256: '{}'}}}}}}",
        "a".repeat(64)
    );
    let made = create(cluster, "downloads", "demo", &spec, false).await?;
    let size = &made.data["spec"]["model"]["http"]["maxSize"];
    ensure!(*size == json!("4Gi"), "the default of maxSize: {size}");
    let generation = async |at_least: i64| {
        wait("the template to change", async || {
            let found = deployments(cluster, "downloads").get_opt("demo-cpu-amd64").await?;
            Ok(found.filter(|found| found.metadata.generation.unwrap_or_default() >= at_least))
        })
        .await
    };
    let first = generation(1).await?;
    let template = serde_json::to_value(&first.spec.template)?;
    let fetcher = &template["spec"]["initContainers"][0];
    ensure!(
        fetcher["name"] == "fetch-model" && template["spec"]["volumes"][0]["emptyDir"]["sizeLimit"] == "8256Mi",
        "{template}"
    );
    let steps = [
        json!({"revision": "2"}),
        json!({"http": {"sha256": "b".repeat(64)}}),
        json!({"http": null, "image": {"reference": "example.com/bundle:test"}}),
    ];
    for (n, model) in (2..).zip(steps) {
        let patch = json!({"spec": {"model": model}});
        parsers(cluster, "downloads")
            .patch("demo", &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        generation(n).await?;
    }
    let last: Value = serde_json::to_value(generation(4).await?.spec.template)?;
    ensure!(
        last["metadata"]["annotations"]["hawkeye.bytebot.ai/model-revision"] == "2",
        "{last}"
    );
    // Applied by the same manager, what is no longer built goes.
    ensure!(last["spec"].get("initContainers").is_none(), "{last}");
    parsers(cluster, "downloads")
        .delete("demo", &kube::api::DeleteParams::default())
        .await?;
    Ok(())
}
