//! A model bundle that each pod downloads, from a web server in the cluster.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use hawkeye_e2e::{archive::Image, paths::Cache};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::PostParams;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{REAL_CLASS, Suite, expect, within};

pub async fn a_bundle_from_a_web_server_is_served(suite: &Suite) -> Result<()> {
    let scope = suite.namespace("downloads").await?;
    let folder = tempfile::tempdir()?;
    let archive = folder.path().join("bundle.tar.gz");
    let packed = Command::new("tar")
        .args(["--create", "--gzip", "--file"])
        .arg(&archive)
        .arg("--directory")
        .arg(Cache::from_env()?.root().join("bundles"))
        .arg("demo")
        .status()?;
    ensure!(packed.success(), "tar: {packed}");
    let sha256 = format!("{:x}", Sha256::digest(fs::read(&archive)?));
    let image = folder.path().join("files.tar");
    Image {
        reference: "localhost/files:e2e".into(),
        entrypoint: vec!["/busybox".into()],
        user: "65532:65532".into(),
        files: vec![
            ("busybox".into(), "/bin/busybox".into(), 0o755),
            ("www/bundle.tar.gz".into(), archive, 0o644),
        ],
    }
    .write(&image)?;
    suite.cluster.load_image(&image)?;
    let server: Pod = serde_json::from_value(json!({
        "metadata": {"name": "files", "labels": {"app": "files"}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "files", "image": "localhost/files:e2e", "imagePullPolicy": "Never",
                "args": ["httpd", "-f", "-p", "8080", "-h", "/www"],
                "securityContext": {
                    "runAsNonRoot": true, "allowPrivilegeEscalation": false,
                    "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
                },
            }],
        },
    }))?;
    scope.api::<Pod>().create(&PostParams::default(), &server).await?;
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": "files"},
        "spec": {"selector": {"app": "files"}, "ports": [{"port": 8080}]},
    }))?;
    scope.api::<Service>().create(&PostParams::default(), &service).await?;

    let model =
        |sha256: &str| json!({"http": {"url": "http://files.downloads.svc:8080/bundle.tar.gz", "sha256": sha256}});
    let spec = |sha256: &str| json!({"classes": [REAL_CLASS], "model": model(sha256)});
    // The sum of something else: said with both sums, and no pod ever serves it.
    let wrong = "0".repeat(64);
    scope.apply("parser", spec(&wrong)).await?;
    let object = scope
        .until("parser", "ModelFetchFailed", 90, |object| {
            let status = object.status.as_ref();
            status.and_then(|status| status.summary.as_deref()) == Some("ModelFetchFailed")
        })
        .await?;
    let message = object.status.and_then(|status| status.message).unwrap_or_default();
    ensure!(message.contains(&sha256) && message.contains(&wrong), "{message}");

    scope.apply("parser", spec(&sha256)).await?;
    scope.until_ready("parser", 1, 300).await?;
    let service = scope.api::<Service>().get("parser").await?;
    let address = service.spec.and_then(|spec| spec.cluster_ip).context("no address")?;
    let screenshot = suite.path("inference/export/testdata/screens/demo.png");
    let part = reqwest::multipart::Part::bytes(fs::read(screenshot)?).file_name("demo.png");
    let answer = reqwest::Client::new()
        .post(format!("http://{address}:9989/parse/upload"))
        .multipart(reqwest::multipart::Form::new().part("file", part))
        .send()
        .await?
        .error_for_status()?;
    let answer: Value = answer.json().await?;
    let elements = answer["elements"].as_array().context("no elements")?;
    ensure!(elements.len() > 10, "only {} elements", elements.len());

    // The same address and sum under a new revision: other pods.
    let before = scope.pods("parser").await?.pop().and_then(|pod| pod.metadata.uid);
    let mut revised = spec(&sha256);
    revised["model"]["revision"] = json!("2");
    scope.apply("parser", revised).await?;
    let replaced = within(300, async || {
        let mut pods = scope.pods("parser").await?;
        let pod = pods.pop().filter(|pod| pods.is_empty() && pod.metadata.uid != before);
        Ok(pod)
    });
    let pod = replaced.await?.context("the pods were not replaced")?;
    let revision = pod
        .metadata
        .annotations
        .and_then(|all| all.get("hawkeye.bytebot.ai/model-revision").cloned());
    expect("the annotation", &revision.as_deref(), &Some("2"))?;
    scope.delete("parser").await
}
