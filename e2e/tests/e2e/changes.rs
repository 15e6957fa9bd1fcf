//! What a change of the spec does, and what it leaves alone.

use anyhow::{Context as _, Result, ensure};
use hawkeye_crds::v1alpha1::{ConditionStatus, HawkeyeDeployment};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Service},
};
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::support::{REAL_CLASS, Suite, condition, env, expect, within};

/// Classes of fake nodes only, so that no real pod has to load models for these scenarios.
const TWO_POOLS: [&str; 2] = ["dgx-spark", "graviton"];

pub async fn only_the_pool_that_changed_rolls(suite: &Suite) -> Result<()> {
    let scope = suite.namespace("rolls").await?;
    let spec = |graviton: serde_json::Value, profile: &str| {
        json!({"replicas": 2, "profile": profile, "classes": TWO_POOLS,
               "overrides": {"dgx-spark": {"replicas": 1}, "graviton": graviton}})
    };
    scope.apply("two", spec(json!({"replicas": 1}), "Balanced")).await?;
    scope.until_ready("two", 2, 60).await?;
    let spark = scope.deployment("two-dgx-spark").await?;
    let graviton = scope.deployment("two-graviton").await?;
    let service = scope.api::<Service>().get("two").await?;

    scope
        .apply("two", spec(json!({"replicas": 1, "batchSize": 8}), "Balanced"))
        .await?;
    let rolled = within(30, async || {
        let now = scope.deployment("two-graviton").await?;
        Ok((env(&now, "OMNIPARSER_BATCH_SIZE").as_deref() == Some("8")).then_some(now))
    })
    .await?
    .context("the override did not reach the pool")?;
    expect("same Deployment", &rolled.uid(), &graviton.uid())?;
    scope.until_ready("two", 2, 60).await?;
    let same = scope.deployment("two-dgx-spark").await?;
    expect(
        "generation of the pool that did not change",
        &same.metadata.generation,
        &spark.metadata.generation,
    )?;

    scope
        .apply("two", spec(json!({"replicas": 1, "batchSize": 8}), "Speed"))
        .await?;
    let speed = within(30, async || {
        let now = scope.deployment("two-dgx-spark").await?;
        Ok((env(&now, "OMNIPARSER_BATCH_SIZE").as_deref() == Some("64")).then_some(now))
    })
    .await?
    .context("the profile did not reach the pool")?;
    expect("same Deployment", &speed.uid(), &spark.uid())?;
    expect(
        "profile",
        &env(&speed, "OMNIPARSER_PERFORMANCE_PROFILE").as_deref(),
        &Some("SPEED"),
    )?;
    let after = scope.api::<Service>().get("two").await?;
    expect(
        "the Service was not written",
        &after.resource_version(),
        &service.resource_version(),
    )?;
    scope.delete("two").await
}

pub async fn it_scales_by_the_scale_subresource(suite: &Suite) -> Result<()> {
    let scope = suite.namespace("scales").await?;
    scope.apply("scaled", json!({"classes": ["graviton"]})).await?;
    scope.until_ready("scaled", 1, 60).await?;
    for replicas in [3, 0, 2] {
        let count = format!("--replicas={replicas}");
        suite.tool("kubectl", &["-n", "scales", "scale", "hkd/scaled", &count])?;
        let object = scope.until_ready("scaled", replicas, 60).await?;
        let pods = scope.pods("scaled").await?;
        expect("pods", &pods.len(), &(replicas as usize))?;
        let selector = object
            .status
            .as_ref()
            .and_then(|s| s.selector.clone())
            .context("no selector")?;
        let selected = scope.api::<k8s_openapi::api::core::v1::Pod>();
        let selected = selected.list(&ListParams::default().labels(&selector)).await?;
        expect("pods that status.selector matches", &selected.items.len(), &pods.len())?;
    }
    scope.delete("scaled").await
}

pub async fn deletion_leaves_nothing(suite: &Suite) -> Result<()> {
    let scope = suite.namespace("gone").await?;
    scope
        .apply("gone", json!({"replicas": 2, "classes": TWO_POOLS}))
        .await?;
    scope.until_ready("gone", 2, 60).await?;
    scope.delete("gone").await?;
    let deployments = scope.api::<Deployment>().list(&ListParams::default()).await?;
    ensure!(deployments.items.is_empty(), "Deployments are left");
    let services = scope.api::<Service>().list(&ListParams::default()).await?;
    ensure!(services.items.is_empty(), "Services are left");
    let maps = scope.api::<ConfigMap>().list(&ListParams::default()).await?;
    ensure!(
        maps.items.iter().all(|m| m.name_any() == "kube-root-ca.crt"),
        "ConfigMaps are left"
    );
    Ok(())
}

pub async fn a_foreign_object_of_the_same_name_is_left_alone(suite: &Suite) -> Result<()> {
    let scope = suite.namespace("foreign").await?;
    let theirs: Service = serde_json::from_value(json!({
        "metadata": {"name": "taken"}, "spec": {"ports": [{"port": 80}], "selector": {"app": "theirs"}},
    }))?;
    let theirs = scope.api::<Service>().create(&PostParams::default(), &theirs).await?;
    scope.apply("taken", json!({"classes": ["graviton"]})).await?;
    let conflict = |object: &HawkeyeDeployment| {
        object
            .status
            .as_ref()
            .is_some_and(|s| s.conditions.iter().any(|c| c.reason == "NameConflict"))
    };
    let object = scope.until("taken", "in conflict", 60, conflict).await?;
    let reported = object
        .status
        .as_ref()
        .and_then(|s| s.conditions.iter().find(|c| c.reason == "NameConflict"));
    let message = reported.map(|c| c.message.clone()).unwrap_or_default();
    ensure!(
        message.contains("taken"),
        "the message does not name the object: {message}"
    );
    let now = scope.api::<Service>().get("taken").await?;
    expect(
        "the foreign Service",
        &now.resource_version(),
        &theirs.resource_version(),
    )?;

    // Once the name is free, the operator goes on by itself.
    scope.api::<Service>().delete("taken", &DeleteParams::default()).await?;
    scope.until_ready("taken", 1, 90).await?;
    scope.delete("taken").await
}

pub async fn what_others_change_is_put_right(suite: &Suite) -> Result<()> {
    let scope = suite.namespace("drift").await?;
    scope.apply("kept", json!({"classes": ["graviton"]})).await?;
    scope.until_ready("kept", 1, 60).await?;
    let api = scope.api::<Deployment>();
    api.patch(
        "kept-graviton",
        &PatchParams::default(),
        &Patch::Merge(json!({"spec": {"replicas": 4}})),
    )
    .await?;
    within(30, async || {
        Ok((scope.deployment("kept-graviton").await?.spec.replicas == Some(1)).then_some(()))
    })
    .await?
    .context("replicas set by someone else stay")?;
    api.delete("kept-graviton", &DeleteParams::default()).await?;
    scope.until_ready("kept", 1, 60).await?;
    scope.delete("kept").await
}

pub async fn a_missing_model_is_explained(suite: &Suite) -> Result<()> {
    let scope = suite.namespace("model").await?;
    let claim = json!({"persistentVolumeClaim": {"claimName": "no-such-claim"}});
    scope
        .apply("claim", json!({"classes": [REAL_CLASS], "model": claim}))
        .await?;
    let unready = |object: &HawkeyeDeployment| {
        condition(object, "Available").is_some_and(|c| c.message.contains("no-such-claim"))
    };
    let object = scope.until("claim", "explained", 60, unready).await?;
    let available = condition(&object, "Available").context("no condition Available")?;
    expect("Available", &available.status, &ConditionStatus::False)?;
    scope.delete("claim").await
}
