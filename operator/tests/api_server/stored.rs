//! Objects that were stored under another definition, as after a downgrade, and no longer decode.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawkeye_crds::v1alpha1::{HardwareClass, HawkeyeDeployment};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    plugin::plugin,
    scenarios::{create, namespace},
    server::{Cluster, wait},
};

/// Lets a field of a definition have other values.
async fn allow(cluster: &'static Cluster, plural: &str, field: &str, values: Value) -> Result<()> {
    let resource = ApiResource::erase::<CustomResourceDefinition>(&());
    let definitions: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
    let name = format!("{plural}.hawkeye.bytebot.ai");
    let path = format!("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/{field}/enum");
    let mut definition = definitions.get(&name).await?;
    *definition.data.pointer_mut(&path).context("no such enum")? = values;
    definitions.replace(&name, &PostParams::default(), &definition).await?;
    Ok(())
}

pub async fn deployment(cluster: &'static Cluster) -> Result<()> {
    namespace(cluster, "old").await?;
    // Written under a definition that knew a profile more.
    let profiles = async |values| allow(cluster, "hawkeyedeployments", "profile", values).await;
    profiles(json!(["Speed", "Balanced", "Quality", "Ludicrous"])).await?;
    wait("the other definition to be in force", async || {
        Ok(create(cluster, "old", "demo", "{profile: Ludicrous}", true)
            .await
            .is_ok()
            .then_some(()))
    })
    .await?;
    create(cluster, "old", "demo", "{profile: Ludicrous}", false).await?;
    let resource = ApiResource::erase::<HawkeyeDeployment>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), "old", &resource);
    wait("InvalidSpec", async || {
        Ok((api.get("demo").await?.data["status"]["summary"] == "InvalidSpec").then_some(()))
    })
    .await?;
    let shown = plugin(cluster, "status demo -n old", "").await?;
    ensure!(
        shown.code == Some(2) && shown.out.contains("old/demo: ") && shown.out.contains("Ludicrous"),
        "{} {}",
        shown.out,
        shown.err
    );
    api.delete("demo", &DeleteParams::default()).await?;
    profiles(json!(["Speed", "Balanced", "Quality"])).await
}

pub async fn class(cluster: &'static Cluster) -> Result<()> {
    let resource = ApiResource::erase::<HardwareClass>(&());
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
    let mut spec = api.get("cpu-amd64").await?.data["spec"].clone();
    spec["device"] = json!("Tpu");
    spec["priority"] = json!(7);
    let tpu = DynamicObject::new("tpu", &resource).data(json!({"spec": spec}));
    let devices = async |values| allow(cluster, "hardwareclasses", "device", values).await;
    devices(json!(["Cuda", "Cpu", "Tpu"])).await?;
    let created = wait("the other definition to be in force", async || {
        match api.create(&PostParams::default(), &tpu).await {
            Ok(created) => Ok(Some(created)),
            Err(kube::Error::Api(status)) if status.message.contains("spec.device") => Ok(None),
            Err(error) => Err(error.into()),
        }
    })
    .await?;
    ensure!(created.data["spec"]["device"] == "Tpu", "{:?}", created.data);
    let condition = wait("InvalidSpec", async || {
        let status = &api.get("tpu").await?.data["status"];
        Ok((status["conditions"][0]["reason"] == "InvalidSpec").then(|| status["conditions"][0].clone()))
    })
    .await?;
    ensure!(
        condition["status"] == "Unknown" && condition["message"].as_str().is_some_and(|text| text.contains("Tpu")),
        "{condition}"
    );
    // Once, and not with each look.
    cluster.settled().await?;
    let before = api.get("tpu").await?.metadata.resource_version;
    let annotated = json!({"metadata": {"annotations": {"example.com/seen": "yes"}}});
    api.patch("cpu-amd64", &PatchParams::default(), &Patch::Merge(annotated))
        .await?;
    sleep(Duration::from_secs(7)).await;
    ensure!(
        api.get("tpu").await?.metadata.resource_version == before,
        "written again"
    );
    api.delete("tpu", &DeleteParams::default()).await?;
    devices(json!(["Cuda", "Cpu"])).await
}
