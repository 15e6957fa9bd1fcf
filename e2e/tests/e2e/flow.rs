//! The flow of the demo: a HawkeyeDeployment on the real node parses a real screenshot through its Service.

use std::{collections::BTreeSet, fs};

use anyhow::{Context as _, Result, ensure};
use hawkeye_crds::v1alpha1::ConditionStatus;
use hawkeye_e2e::{archive::Image, paths::Cache};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Service};
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use serde_json::{Value, json};

use crate::support::{REAL_CLASS, Suite, condition, expect, within};

/// Words of three and more letters, lower case: what an agent would look for.
fn words(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|w| w.len() > 2)
        .map(str::to_lowercase)
        .collect()
}

pub async fn a_screenshot_is_parsed_through_the_service(suite: &Suite) -> Result<()> {
    let scope = suite.namespace("flow").await?;
    scope
        .apply("parser", json!({"profile": "Quality", "classes": [REAL_CLASS]}))
        .await?;
    let object = scope.until_ready("parser", 1, 300).await?;
    for type_ in ["Accepted", "Placed", "Available"] {
        let found = condition(&object, type_).with_context(|| format!("no condition {type_}"))?;
        expect(
            &format!("{type_}: {}", found.message),
            &found.status,
            &ConditionStatus::True,
        )?;
    }
    let endpoint = object.status.as_ref().and_then(|s| s.endpoint.clone());
    expect("endpoint", &endpoint.as_deref(), &Some("http://parser.flow.svc:9989"))?;

    let service = scope.api::<Service>().get("parser").await?;
    let address = service
        .spec
        .and_then(|s| s.cluster_ip)
        .context("the Service has no address")?;
    let url = format!("http://{address}:9989");
    let http = reqwest::Client::new();
    let health: Value = http.get(format!("{url}/health")).send().await?.json().await?;
    expect("/health", &health["status"], &json!("healthy"))?;
    expect("/health device", &health["device"], &json!("cpu"))?;

    let screenshot = suite.path("inference/export/testdata/screens/demo.png");
    let reference: Value = serde_json::from_slice(&fs::read(screenshot.with_file_name("demo.reference.json"))?)?;
    let form = reqwest::multipart::Form::new().part(
        "file",
        reqwest::multipart::Part::bytes(fs::read(&screenshot)?).file_name("demo.png"),
    );
    let answer = http.post(format!("{url}/parse/upload")).multipart(form).send().await?;
    ensure!(
        answer.status().is_success(),
        "/parse/upload: {} {}",
        answer.status(),
        answer.text().await?
    );
    let answer: Value = answer.json().await?;
    let elements = answer["elements"].as_array().context("no elements")?;
    expect("count", &answer["count"], &json!(elements.len()))?;
    let found = words(
        &elements
            .iter()
            .filter_map(|e| e["content"].as_str())
            .collect::<Vec<_>>()
            .join(" "),
    );
    let lines = reference["text"].as_array().context("the reference has no text")?;
    let wanted = words(
        &lines
            .iter()
            .filter_map(|l| l["text"].as_str())
            .collect::<Vec<_>>()
            .join(" "),
    );
    let missing: Vec<_> = wanted.difference(&found).collect();
    ensure!(
        missing.len() * 50 <= wanted.len(),
        "{} of {} words are missing: {missing:?}",
        missing.len(),
        wanted.len()
    );
    ensure!(elements.iter().any(|e| e["type"] == "icon"), "no icon was found");
    ensure!(
        answer["som_image"].as_str().is_some_and(|s| s.len() > 1000),
        "no overlay"
    );
    scope.delete("parser").await
}

pub async fn a_bundle_on_a_persistent_volume_claim_is_served(suite: &Suite) -> Result<()> {
    let scope = suite.namespace("claims").await?;
    // The node shares this machine's files, so an administrator's volume can show it the exporter's own folder.
    let folder = Cache::from_env()?.root().join("bundles/demo");
    let volume: PersistentVolume = serde_json::from_value(json!({
        "metadata": {"name": "hawkeye-bundle"},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadOnlyMany"], "storageClassName": "",
            "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": folder, "type": "Directory"},
            "claimRef": {"namespace": "claims", "name": "bundle"},
        },
    }))?;
    let volumes: Api<PersistentVolume> = Api::all(suite.client.clone());
    volumes.create(&PostParams::default(), &volume).await?;
    let claim: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": {"name": "bundle"},
        "spec": {
            "accessModes": ["ReadOnlyMany"], "storageClassName": "", "volumeName": "hawkeye-bundle",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }))?;
    scope
        .api::<PersistentVolumeClaim>()
        .create(&PostParams::default(), &claim)
        .await?;
    let model = json!({"persistentVolumeClaim": {"claimName": "bundle"}});
    scope
        .apply("claimed", json!({"classes": [REAL_CLASS], "model": model}))
        .await?;
    scope.until_ready("claimed", 1, 300).await?;
    scope.delete("claimed").await?;
    scope
        .api::<PersistentVolumeClaim>()
        .delete("bundle", &DeleteParams::default())
        .await?;
    volumes.delete("hawkeye-bundle", &DeleteParams::default()).await?;
    Ok(())
}

/// The service's own image has no shell, so the client is a busybox of this machine in an image of its own.
pub async fn an_in_cluster_client_finds_it_by_name(suite: &Suite) -> Result<()> {
    let scope = suite.namespace("dns").await?;
    scope
        .apply("named", json!({"profile": "Speed", "classes": [REAL_CLASS]}))
        .await?;
    scope.until_ready("named", 1, 300).await?;
    let pod = scope.pods("named").await?.pop().context("no pod")?;
    let name = pod.metadata.name.context("a pod without a name")?;
    let logs = suite.tool("kubectl", &["-n", "dns", "logs", &name])?;
    ensure!(!logs.is_empty(), "the pod logs nothing");
    let version = suite.tool(
        "kubectl",
        &["-n", "dns", "exec", &name, "--", "hawkeye-inference", "--version"],
    )?;
    ensure!(version.starts_with("hawkeye-inference"), "exec printed {version}");

    let folder = tempfile::tempdir()?;
    let archive = folder.path().join("busybox.tar");
    Image {
        reference: "localhost/busybox:e2e".into(),
        entrypoint: vec!["/busybox".into()],
        user: "65532:65532".into(),
        files: vec![("busybox".into(), "/bin/busybox".into(), 0o755)],
    }
    .write(&archive)?;
    suite.cluster.load_image(&archive)?;
    let client: Pod = serde_json::from_value(json!({
        "metadata": {"name": "client"},
        "spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": "client", "image": "localhost/busybox:e2e", "imagePullPolicy": "Never",
                "args": ["wget", "-q", "-O", "-", "http://named.dns.svc:9989/health"],
                "securityContext": {
                    "runAsNonRoot": true, "allowPrivilegeEscalation": false,
                    "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
                },
            }],
        },
    }))?;
    let pods = scope.api::<Pod>();
    pods.create(&PostParams::default(), &client).await?;
    let phase = within(60, async || {
        let phase = pods
            .get("client")
            .await?
            .status
            .and_then(|s| s.phase)
            .unwrap_or_default();
        Ok(["Succeeded", "Failed"].contains(&phase.as_str()).then_some(phase))
    })
    .await?;
    let said = suite.tool("kubectl", &["-n", "dns", "logs", "client"])?;
    expect(
        &format!("the client, which said {said:?}"),
        &phase.as_deref(),
        &Some("Succeeded"),
    )?;
    ensure!(said.contains("healthy"), "the client got {said}");
    scope.delete("named").await
}
