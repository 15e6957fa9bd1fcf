//! A model bundle that each pod downloads, from a web server in the cluster.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use hawkeye_e2e::{archive::Image, paths::Cache};
use k8s_openapi::api::core::v1::{Pod, Service};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{REAL_CLASS, Suite, condition, expect, pretty, web_server, within};

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
    web_server(&scope, "files", vec![("bundle.tar.gz".into(), archive)]).await?;

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

/// What a container said last. It writes its log as JSON, and the kubelet keeps the end of it.
fn last_words(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
    let ended = [&status.state, &status.last_state];
    let ended = ended
        .into_iter()
        .find_map(|state| state.as_ref()?.terminated.as_ref()?.message.as_deref());
    let last = serde_json::from_str::<Value>(ended?.trim().lines().next_back()?).ok()?;
    last["error"].as_str().map(str::to_owned)
}

pub async fn a_damaged_bundle_is_told_in_the_pods_own_words(suite: &Suite) -> Result<()> {
    let scope = suite.namespace("damaged").await?;
    // The description of the demo's bundle, and other bytes for every file that it lists.
    let folder = tempfile::tempdir()?;
    let good = Cache::from_env()?.root().join("bundles/demo");
    let damaged = folder.path().join("damaged");
    fs::write(&damaged, "not what bundle.json promises")?;
    let mut files = vec![("bundle.json".to_owned(), good.join("bundle.json"), 0o644)];
    for entry in fs::read_dir(&good)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "bundle.json" {
            files.push((name, damaged.clone(), 0o644));
        }
    }
    ensure!(files.len() > 2, "{files:?}");
    let archive = folder.path().join("bundle.tar");
    Image {
        reference: "localhost/hawkeye-bundle:damaged".into(),
        files,
        ..Image::default()
    }
    .write(&archive)?;
    suite.cluster.load_image(&archive)?;
    let model = json!({"image": {"reference": "localhost/hawkeye-bundle:damaged", "pullPolicy": "Never"}});
    scope
        .apply("parser", json!({"classes": [REAL_CLASS], "model": model}))
        .await?;
    let object = scope
        .until("parser", "CrashLoop", 120, |object| {
            let status = object.status.as_ref();
            status.and_then(|status| status.summary.as_deref()) == Some("CrashLoop")
        })
        .await?;
    let pod = scope.pods("parser").await?.pop().context("no pod")?;
    let said = last_words(&pod).with_context(|| format!("it left no last words: {}", pretty(&pod.status)))?;
    ensure!(said.contains("sha256") && said.contains("bundle.json says"), "{said}");
    let found = format!("{:x}", Sha256::digest("not what bundle.json promises"));
    ensure!(said.contains(&found), "{said}");
    let available = condition(&object, "Available").context("no condition Available")?;
    expect("Available", &available.reason.as_str(), &"CrashLoop")?;
    ensure!(
        available.message.contains(&said),
        "{said:?} is not in: {}",
        available.message
    );
    scope.delete("parser").await
}
