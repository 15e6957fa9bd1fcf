//! Pods that say what they compute on, played by a small server on loopback addresses.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use axum::{Json, Router, routing::get};
use hawkeye_crds::v1alpha1::{Condition, ConditionStatus, HardwareClass, HawkeyeDeploymentStatus};
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    scenarios::{MODEL, create, deployments, make_ready, namespace, parsers, until_status},
    server::{Cluster, wait},
};

const NAMESPACE: &str = "devices";
const CLASS: &str = "test-gpu";
const CAUSE: &str = "the device cuda is not there: libtorch_cuda.so cannot be opened";

/// What a pod's `/device` answers now, and how often it was asked.
#[derive(Clone, Default)]
struct Talker {
    report: Arc<Mutex<Value>>,
    asked: Arc<AtomicUsize>,
}

impl Talker {
    fn says(&self, report: Value) {
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = report;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    async fn listen(&self, address: Ipv4Addr) -> Result<()> {
        let talker = self.clone();
        let answer = move || async move {
            talker.asked.fetch_add(1, Ordering::SeqCst);
            Json(talker.report.lock().unwrap_or_else(PoisonError::into_inner).clone())
        };
        let listener = tokio::net::TcpListener::bind((address, 9989)).await?;
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/device", get(answer))).await });
        Ok(())
    }
}

/// An address of this process's own, so that tests of two checkouts do not meet.
fn address(host: u8) -> Ipv4Addr {
    let [_, _, high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, high.max(1), low, host)
}

/// A class and a node that nothing else has anything to do with.
async fn hardware(cluster: &Cluster) -> Result<()> {
    let class: HardwareClass = serde_json::from_value(json!({
        "metadata": {"name": CLASS},
        "spec": {
            "priority": 3000, "arch": "amd64", "device": "Cuda", "imageVariant": "cuda", "dtype": "Float16",
            "resource": "nvidia.com/gpu", "batchSize": {"speed": 64, "balanced": 128, "quality": 128},
            "memory": {"limit": "1Gi"}, "cpu": {"request": "1"},
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "test/gpu", "operator": "Exists"}]}],
        },
    }))?;
    Api::all(cluster.client.clone())
        .create(&PostParams::default(), &class)
        .await?;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let labels = json!({"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64", "test/gpu": "yes"});
    let node: Node = serde_json::from_value(json!({"metadata": {"name": CLASS, "labels": labels}}))?;
    nodes.create(&PostParams::default(), &node).await?;
    let status = json!({"capacity": {"nvidia.com/gpu": "4"}, "allocatable": {"nvidia.com/gpu": "4"}});
    make_ready(&nodes, CLASS, status).await?;
    let account: ServiceAccount = serde_json::from_value(json!({"metadata": {"name": "default"}}))?;
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), NAMESPACE);
    accounts.create(&PostParams::default(), &account).await?;
    Ok(())
}

fn pods(cluster: &Cluster) -> Api<Pod> {
    Api::namespaced(cluster.client.clone(), NAMESPACE)
}

/// A pod of the pool's Deployment as its ReplicaSet would make it.
async fn pod(cluster: &Cluster, name: &str) -> Result<()> {
    let template = deployments(cluster, NAMESPACE)
        .get(&format!("demo-{CLASS}"))
        .await?
        .spec
        .template;
    let mut pod = Pod {
        metadata: template.metadata.unwrap_or_default(),
        spec: template.spec,
        status: None,
    };
    pod.metadata.name = Some(name.to_owned());
    pod.metadata.owner_references = Some(serde_json::from_value(json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("demo-{CLASS}-7c9f"), "uid": "rs", "controller": true,
    }]))?);
    let spec = pod.spec.as_mut().context("a template without a spec")?;
    spec.service_account_name = Some("default".to_owned());
    spec.node_name = Some(CLASS.to_owned());
    pods(cluster).create(&PostParams::default(), &pod).await?;
    Ok(())
}

/// What the kubelet would report of it.
async fn runs(cluster: &Cluster, name: &str, address: Ipv4Addr, ready: bool, starts: i32) -> Result<()> {
    let status = json!({"status": {
        "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
        "containerStatuses": [{
            "name": "inference", "image": "i", "imageID": "i", "ready": ready, "started": true, "restartCount": starts,
            "containerID": format!("containerd://{starts}"), "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        }],
    }});
    pods(cluster)
        .patch_status(name, &PatchParams::default(), &Patch::Strategic(status))
        .await
        .with_context(|| format!("the status of {name} at {address}"))?;
    Ok(())
}

fn condition<'a>(status: &'a HawkeyeDeploymentStatus, type_: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.type_ == type_)
}

fn is(status: &HawkeyeDeploymentStatus, type_: &str, wanted: ConditionStatus, reason: &str) -> bool {
    condition(status, type_).is_some_and(|found| found.status == wanted && found.reason == reason)
}

/// The line of `kubectl get hkd`, as text.
async fn line(cluster: &Cluster) -> Result<String> {
    let path = format!("/apis/hawkeye.bytebot.ai/v1alpha1/namespaces/{NAMESPACE}/hawkeyedeployments/demo");
    let request = http::Request::get(path)
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(Vec::new())?;
    let table: Value = cluster.client.request(request).await?;
    let columns = table["columnDefinitions"].as_array().context("no columns")?;
    let cells = table["rows"][0]["cells"].as_array().context("no row")?;
    let shown = columns.iter().zip(cells).filter(|(column, _)| column["priority"] == 0);
    Ok(shown
        .map(|(column, cell)| format!("{}={} ", column["name"], cell).replace('"', ""))
        .collect())
}

pub async fn verified(cluster: &'static Cluster) -> Result<()> {
    use ConditionStatus::{False, True, Unknown};
    namespace(cluster, NAMESPACE).await?;
    hardware(cluster).await?;
    let talker = Talker::default();
    talker.listen(address(2)).await?;
    let spec = format!("{{classes: [{CLASS}], device: Cuda, model: {MODEL}}}");
    create(cluster, NAMESPACE, "demo", &spec, false).await?;
    let api = deployments(cluster, NAMESPACE);
    let pool = format!("demo-{CLASS}");
    if let Err(error) = wait("the pool", async || Ok(api.get_opt(&pool).await?)).await {
        let status = parsers(cluster, NAMESPACE).get("demo").await?.status;
        return Err(error.context(format!("{status:?}")));
    }

    // It came up on the processor: it serves, and everything says what it is.
    let on_cpu = json!({
        "state": "ready", "device": "cpu", "device_name": "CPU (x86_64)", "dtype": "float32", "batch_size": 16, "cause": CAUSE,
    });
    talker.says(on_cpu);
    pod(cluster, "one").await?;
    runs(cluster, "one", address(2), true, 0).await?;
    let status = until_status(cluster, NAMESPACE, "demo", "DeviceMismatch", |status| {
        is(status, "DeviceVerified", False, "DeviceMismatch")
    })
    .await?;
    ensure!(is(&status, "Degraded", True, "DeviceMismatch"), "{status:?}");
    ensure!(is(&status, "Available", True, "AllReady"), "{status:?}");
    ensure!(
        (status.pools[0].ready, status.pools[0].verified) == (1, 0),
        "{status:?}"
    );
    ensure!(
        status.message.as_deref().is_some_and(|message| message.contains(CAUSE)),
        "{status:?}"
    );
    let shown = line(cluster).await?;
    ensure!(
        shown.contains("Verified=False") && shown.contains("Status=Degraded"),
        "{shown}"
    );

    // Its container starts again, with its GPU. It is asked once for each start.
    talker.says(json!({"state": "ready", "device": "cuda", "dtype": "float16", "batch_size": 128}));
    runs(cluster, "one", address(2), true, 1).await?;
    let status = until_status(cluster, NAMESPACE, "demo", "Verified", |status| {
        is(status, "DeviceVerified", True, "Verified")
    })
    .await?;
    ensure!(is(&status, "Degraded", False, "AsAsked"), "{status:?}");
    ensure!(status.pools[0].verified == 1, "{status:?}");
    sleep(Duration::from_secs(3)).await;
    ensure!(talker.asked() == 2, "asked {} times for two starts", talker.asked());

    // After a restart the operator asks again, and writes nothing when the answer is the same.
    let version = async || anyhow::Ok(parsers(cluster, NAMESPACE).get("demo").await?.resource_version());
    let before = version().await?;
    cluster.kill_operator();
    cluster.start_operator().await?;
    wait("the operator to ask again", async || {
        Ok((talker.asked() == 3).then_some(()))
    })
    .await?;
    sleep(Duration::from_secs(3)).await;
    ensure!(version().await? == before, "a restart changed the status");

    // A pod that nobody can reach is unknown. It is tried again, and nothing is written about that.
    pod(cluster, "two").await?;
    runs(cluster, "two", address(3), true, 0).await?;
    let status = until_status(cluster, NAMESPACE, "demo", "NotVerified", |status| {
        is(status, "DeviceVerified", Unknown, "NotVerified")
    })
    .await?;
    let message = condition(&status, "DeviceVerified").map(|found| found.message.clone());
    ensure!(
        message
            .as_deref()
            .is_some_and(|text| text.contains("1 of 2") && text.contains("two: no answer")),
        "{message:?}"
    );
    ensure!(
        (status.pools[0].ready, status.pools[0].verified) == (2, 1),
        "{status:?}"
    );
    let before = version().await?;
    sleep(Duration::from_secs(6)).await;
    ensure!(
        version().await? == before,
        "an unanswered question is written about again"
    );
    pods(cluster)
        .delete("two", &DeleteParams::default().grace_period(0))
        .await?;

    // Under Deny it serves nothing, and the status has the pod's own words.
    let deny = Patch::Merge(json!({"spec": {"fallback": "Deny"}}));
    parsers(cluster, NAMESPACE)
        .patch("demo", &PatchParams::default(), &deny)
        .await?;
    wait("the pool's pods to be told", async || {
        let template = serde_json::to_value(api.get(&pool).await?.spec.template)?;
        let env = template
            .pointer("/spec/containers/0/env")
            .and_then(Value::as_array)
            .cloned();
        let told = json!({"name": "HAWKEYE_ON_MISMATCH", "value": "deny"});
        Ok(env.is_some_and(|env| env.contains(&told)).then_some(()))
    })
    .await?;
    talker.says(json!({"state": "denied", "cause": CAUSE}));
    runs(cluster, "one", address(2), false, 2).await?;
    let status = until_status(cluster, NAMESPACE, "demo", "the denial", |status| {
        is(status, "Available", False, "DeviceMismatch")
    })
    .await?;
    ensure!(is(&status, "DeviceVerified", False, "DeviceMismatch"), "{status:?}");
    ensure!(is(&status, "Degraded", False, "AsAsked"), "{status:?}");
    ensure!(
        status.message.as_deref().is_some_and(|text| text.contains(CAUSE)),
        "{status:?}"
    );
    let shown = line(cluster).await?;
    ensure!(
        shown.contains("Status=DeviceMismatch") && shown.contains("Ready=0"),
        "{shown}"
    );

    // Nothing of this is left for the others.
    parsers(cluster, NAMESPACE)
        .delete("demo", &DeleteParams::default())
        .await?;
    api.delete(&pool, &DeleteParams::default()).await?;
    pods(cluster)
        .delete("one", &DeleteParams::default().grace_period(0))
        .await?;
    Api::<Node>::all(cluster.client.clone())
        .delete(CLASS, &DeleteParams::default())
        .await?;
    Api::<HardwareClass>::all(cluster.client.clone())
        .delete(CLASS, &DeleteParams::default())
        .await?;
    Ok(())
}
