//! Label publishers that restart: nodes lose their labels for a while, and the pods on them must not notice.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use hawkeye_crds::v1alpha1::HawkeyeDeployment;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::time::{Duration, sleep};

use crate::support::{Scope, Suite, condition, expect};

const NODE: &str = "dgx-spark";
const LOST: &str = "dgx-spark lost the labels that told this class";

pub async fn a_label_publisher_that_restarts_moves_no_pod(suite: &Suite) -> Result<()> {
    let scope = suite.namespace("labels").await?;
    let classes = ["dgx-spark", "cuda-arm64", "graviton"];
    scope.apply("calm", json!({"replicas": 3, "classes": classes})).await?;
    scope.until_ready("calm", 3, 60).await?;
    let before = state(&scope).await?;

    let nodes: Api<Node> = Api::all(suite.client.clone());
    let mut labels: BTreeMap<String, Option<String>> = BTreeMap::new();
    for (key, value) in nodes.get(NODE).await?.labels() {
        if key.starts_with("nvidia.com/") || key.starts_with("feature.node.kubernetes.io/") {
            labels.insert(key.clone(), Some(value.clone()));
        }
    }
    let gone: BTreeMap<&String, Option<String>> = labels.keys().map(|key| (key, None)).collect();
    let set = async |labels: serde_json::Value| {
        let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
        nodes.patch(NODE, &PatchParams::default(), &patch).await
    };
    set(json!(gone)).await?;
    let seen = without_labels(&scope, &before).await;
    // The other scenarios need them, whatever came of this one.
    set(json!(labels)).await?;
    seen?;

    let back = |object: &HawkeyeDeployment| !placed(object).contains(LOST);
    scope.until("calm", "as before", 30, back).await?;
    expect("pods and Deployments", &state(&scope).await?, &before)?;
    scope.delete("calm").await
}

async fn without_labels(scope: &Scope<'_>, before: &BTreeMap<String, String>) -> Result<()> {
    let lost = |object: &HawkeyeDeployment| placed(object).contains(LOST);
    let object = scope.until("calm", "told that labels are gone", 30, lost).await?;
    let status = object.status.context("no status")?;
    ensure!(
        status.ready_replicas == 3,
        "{} of 3 pods are ready",
        status.ready_replicas
    );
    sleep(Duration::from_secs(10)).await;
    expect("pods and Deployments", &state(scope).await?, before)
}

fn placed(object: &HawkeyeDeployment) -> &str {
    condition(object, "Placed").map_or("", |condition| &condition.message)
}

/// Each pod with its node, each Deployment with its generation.
async fn state(scope: &Scope<'_>) -> Result<BTreeMap<String, String>> {
    let mut state = BTreeMap::new();
    for pod in scope.pods("calm").await? {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        state.insert(pod.uid().context("no UID")?, node.unwrap_or_default());
    }
    for class in ["dgx-spark", "cuda-arm64", "graviton"] {
        let name = format!("calm-{class}");
        let generation = scope.deployment(&name).await?.metadata.generation;
        state.insert(name, format!("{generation:?}"));
    }
    Ok(state)
}
