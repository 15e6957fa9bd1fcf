//! A GPU that Kubernetes has allocated and that the container does not see: the real node advertises one that it lacks, and
//! real pods of the CPU image ask for it.

use anyhow::{Context as _, Result, bail, ensure};
use hawkeye_crds::v1alpha1::{ConditionStatus, HardwareClass, HawkeyeDeployment};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Node, Pod, Service},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::support::{Scope, Suite, condition, expect, within};

/// A class of GPUs for nodes that are not fake, before every other.
const CLASS: &str = "real-gpu";
const RESOURCE: &str = "nvidia.com/gpu";
/// What the CPU image lacks.
const CAUSE: &str = "libtorch_cuda.so cannot be opened";

pub async fn a_gpu_that_the_pod_does_not_see_is_denied_or_degrades(suite: &Suite) -> Result<()> {
    let outcome = seen(suite).await;
    // Also after a failure: the real node is every other scenario's, too.
    let cleaned = clean(suite).await;
    outcome.and(cleaned)
}

async fn seen(suite: &Suite) -> Result<()> {
    let node = real_node(suite).await?;
    offer(suite, &node, Some("1")).await?;
    make_class(suite).await?;
    let scope = suite.namespace("devices").await?;
    let spec = |fallback: &str, image: &str| json!({"device": "Cuda", "fallback": fallback, "classes": [CLASS], "image": image, "profile": "Speed"});
    let image = cpu_image(suite).await?;
    denied(&scope, spec("Deny", &image)).await?;
    // A kubelet may have taken the resource back meanwhile.
    offer(suite, &node, Some("1")).await?;
    degraded(&scope, spec("Degrade", &image)).await?;
    scope.delete("truth").await
}

async fn denied(scope: &Scope<'_>, spec: Value) -> Result<()> {
    scope.apply("truth", spec).await?;
    let denied = |object: &HawkeyeDeployment| {
        condition(object, "Available").is_some_and(|found| found.reason == "DeviceMismatch")
    };
    let object = scope.until("truth", "denied", 180, denied).await?;
    let available = condition(&object, "Available").context("no condition Available")?;
    expect("Available", &available.status, &ConditionStatus::False)?;
    ensure!(available.message.contains(CAUSE), "Available: {}", available.message);
    let verified = condition(&object, "DeviceVerified").context("no condition DeviceVerified")?;
    expect("DeviceVerified", &verified.status, &ConditionStatus::False)?;
    let pod = only_pod(scope).await?;
    let address = pod
        .status
        .as_ref()
        .and_then(|s| s.pod_ip.clone())
        .context("no address")?;
    let report: Value = reqwest::get(format!("http://{address}:9989/device"))
        .await?
        .json()
        .await?;
    expect("state", &report["state"], &json!("denied"))?;
    let unready = reqwest::get(format!("http://{address}:9989/readyz")).await?;
    expect("/readyz", &unready.status().as_u16(), &503)?;
    ensure!(unready.text().await?.contains(CAUSE), "/readyz does not say why");

    // No request reaches it, and nothing starts it again in vain.
    tokio::time::sleep(std::time::Duration::from_secs(20)).await;
    let pod = only_pod(scope).await?;
    let containers = pod.status.and_then(|s| s.container_statuses).unwrap_or_default();
    expect("restarts", &containers.first().map(|c| c.restart_count), &Some(0))?;
    expect("ready", &containers.first().map(|c| c.ready), &Some(false))?;
    let url = service(scope).await?;
    ensure!(
        reqwest::get(format!("{url}/health")).await.is_err(),
        "the Service has an endpoint"
    );
    Ok(())
}

async fn degraded(scope: &Scope<'_>, spec: Value) -> Result<()> {
    scope.apply("truth", spec).await?;
    let serves = |object: &HawkeyeDeployment| {
        object.status.as_ref().is_some_and(|status| status.ready_replicas == 1)
            && condition(object, "DeviceVerified").is_some_and(|found| found.status == ConditionStatus::False)
            && condition(object, "Degraded").is_some_and(|found| found.status == ConditionStatus::True)
    };
    let object = scope.until("truth", "serving on the CPU", 300, serves).await?;
    for type_ in ["DeviceVerified", "Degraded"] {
        let found = condition(&object, type_).with_context(|| format!("no condition {type_}"))?;
        expect(type_, &found.reason.as_str(), &"DeviceMismatch")?;
        ensure!(
            found.message.contains("runs on cpu") && found.message.contains(CAUSE),
            "{type_}: {}",
            found.message
        );
    }
    let pool = object
        .status
        .as_ref()
        .and_then(|s| s.pools.first())
        .context("no pool")?;
    expect("pods that count as GPU", &(pool.ready, pool.verified), &(1, 0))?;
    let listed = scope
        .suite
        .tool("kubectl", &["-n", &scope.name, "get", "hkd", "truth"])?;
    ensure!(listed.contains("Degraded") && listed.contains("False"), "{listed}");

    let url = service(scope).await?;
    let health: Value = reqwest::get(format!("{url}/health")).await?.json().await?;
    expect("/health device", &health["device"], &json!("cpu"))?;
    ensure!(
        health["device_mismatch"]
            .as_str()
            .is_some_and(|text| text.contains(CAUSE)),
        "/health: {health}"
    );
    let report: Value = reqwest::get(format!("{url}/device")).await?.json().await?;
    // The number format is the captioner's, and the demo's bundle has none.
    expect("dtype", &report["dtype"], &Value::Null)?;
    ensure!(
        report["warm_up_ms"].as_f64().is_some_and(|ms| ms > 1.0),
        "/device: {report}"
    );
    let metrics = reqwest::get(format!("{url}/metrics")).await?.text().await?;
    ensure!(
        metrics.contains("hawkeye_device_mismatch 1"),
        "the metric does not say so"
    );
    Ok(())
}

async fn only_pod(scope: &Scope<'_>) -> Result<Pod> {
    let mut pods = scope.pods("truth").await?;
    pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
    match pods.pop() {
        Some(pod) if pods.is_empty() => Ok(pod),
        _ => bail!("not one pod"),
    }
}

async fn service(scope: &Scope<'_>) -> Result<String> {
    let service = scope.api::<Service>().get("truth").await?;
    let address = service
        .spec
        .and_then(|s| s.cluster_ip)
        .context("the Service has no address")?;
    Ok(format!("http://{address}:9989"))
}

/// The image of the release under test for CPUs, as the operator knows it.
async fn cpu_image(suite: &Suite) -> Result<String> {
    let api: Api<Deployment> = Api::namespaced(suite.client.clone(), "hawkeye-system");
    let spec = api
        .get("hawkeye-operator")
        .await?
        .spec
        .template
        .spec
        .context("no pod spec")?;
    let env = spec.containers.into_iter().flat_map(|c| c.env.unwrap_or_default());
    env.into_iter()
        .find(|variable| variable.name == "HAWKEYE_IMAGE_CPU")
        .and_then(|variable| variable.value)
        .context("the operator knows no image for CPUs")
}

async fn real_node(suite: &Suite) -> Result<String> {
    let nodes = suite.nodes().await?;
    let real = nodes
        .iter()
        .find(|node| node.labels().get("type").is_none_or(|kind| kind != "kwok"));
    Ok(real.context("no real node")?.name_any())
}

/// The node's status says that it has so many GPUs, or none.
async fn offer(suite: &Suite, node: &str, units: Option<&str>) -> Result<()> {
    let nodes: Api<Node> = Api::all(suite.client.clone());
    let status = json!({"status": {"capacity": {RESOURCE: units}, "allocatable": {RESOURCE: units}}});
    nodes
        .patch_status(node, &PatchParams::default(), &Patch::Merge(status))
        .await?;
    Ok(())
}

async fn make_class(suite: &Suite) -> Result<()> {
    let arch = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let class: HardwareClass = serde_json::from_value(json!({
        "metadata": {"name": CLASS},
        "spec": {
            "priority": 2000, "arch": arch, "device": "Cuda", "imageVariant": "cuda", "dtype": "Float16",
            "resource": RESOURCE,
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "type", "operator": "NotIn", "values": ["kwok"]}]}],
            "batchSize": {"speed": 64, "balanced": 128, "quality": 128},
            "memory": {"limit": "4Gi"}, "cpu": {"request": "500m"},
        },
    }))?;
    let api: Api<HardwareClass> = Api::all(suite.client.clone());
    api.create(&PostParams::default(), &class).await?;
    Ok(())
}

async fn clean(suite: &Suite) -> Result<()> {
    suite.clear().await?;
    let classes: Api<HardwareClass> = Api::all(suite.client.clone());
    if classes.get_opt(CLASS).await?.is_some() {
        classes.delete(CLASS, &DeleteParams::default()).await?;
    }
    let node = real_node(suite).await?;
    offer(suite, &node, None).await?;
    let nodes: Api<Node> = Api::all(suite.client.clone());
    let gone = within(30, async || {
        let status = nodes.get(&node).await?.status.unwrap_or_default();
        let units = status.allocatable.unwrap_or_default().remove(RESOURCE);
        Ok(units.is_none_or(|units| units.0 == "0").then_some(()))
    })
    .await?;
    gone.context("the node still offers a GPU")
}
