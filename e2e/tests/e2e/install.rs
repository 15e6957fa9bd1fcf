//! The charts and manifests against the cluster's own schemas, and what upgrade and removal leave.

use anyhow::{Result, ensure};
use hawkeye_crds::v1alpha1::HardwareClass;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::json;

use crate::support::Suite;

pub async fn manifests_and_samples_are_valid(suite: &Suite) -> Result<()> {
    for file in ["manifests/install.yaml", "manifests/samples"] {
        suite
            .tool(
                "kubectl",
                &["apply", "--dry-run=server", "--validate=strict", "-f", file],
            )
            .or_else(|error| {
                // A dry run cannot see the namespace that the same file makes.
                if error.to_string().contains("namespaces \"hawkeye-system\" not found") {
                    Ok(String::new())
                } else {
                    Err(error)
                }
            })?;
    }
    Ok(())
}

pub async fn built_in_classes_are_there(suite: &Suite) -> Result<()> {
    let api: Api<HardwareClass> = Api::all(suite.client.clone());
    let names: Vec<_> = api
        .list(&ListParams::default())
        .await?
        .items
        .iter()
        .map(ResourceExt::name_any)
        .collect();
    for name in [
        "dgx-spark",
        "cuda-arm64",
        "cuda-amd64",
        "graviton",
        "cpu-arm64",
        "cpu-amd64",
    ] {
        ensure!(names.iter().any(|n| n == name), "{name} is missing from {names:?}");
    }
    let table = suite.tool("kubectl", &["get", "hwc"])?;
    ensure!(
        table.contains("dgx-spark") && table.contains("nvidia.com/gpu"),
        "kubectl get hwc:\n{table}"
    );
    Ok(())
}

/// Last of all scenarios, since it takes the operator away and brings it back.
pub async fn removal_keeps_definitions_and_objects(suite: &Suite) -> Result<()> {
    let scope = suite.namespace("kept").await?;
    scope.apply("kept", json!({"classes": ["graviton"]})).await?;
    scope.until_ready("kept", 1, 60).await?;
    suite.tool("helm", &["uninstall", "hawkeye", "-n", "hawkeye-system", "--wait"])?;
    suite.tool("helm", &["uninstall", "hawkeye-crds", "-n", "hawkeye-system", "--wait"])?;
    let crds: Api<CustomResourceDefinition> = Api::all(suite.client.clone());
    crds.get("hawkeyedeployments.hawkeye.bytebot.ai").await?;
    let kept = scope.hkd().get("kept").await?;
    let pods = scope.pods("kept").await?;
    ensure!(
        kept.metadata.deletion_timestamp.is_none() && pods.len() == 1,
        "the HawkeyeDeployment did not survive"
    );
    crate::install_charts(suite)?;
    scope.until_ready("kept", 1, 60).await?;
    scope.delete("kept").await
}
