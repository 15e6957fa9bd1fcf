//! What a spec alone cannot show ends in a condition within 30 seconds: nothing is silently ignored.

use anyhow::{Context as _, Result, ensure};
use hawkeye_crds::v1alpha1::HardwareClass;
use k8s_openapi::api::core::v1::ResourceQuota;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::support::{REAL_CLASS, Scope, Suite};

/// Applies the spec, waits for the word in the summary, and looks for each part of the message.
async fn says(scope: &Scope<'_>, name: &str, spec: Value, word: &str, parts: &[&str]) -> Result<()> {
    scope.apply(name, spec).await?;
    let object = scope
        .until(name, word, 30, |object| {
            let status = object.status.as_ref();
            status.and_then(|status| status.summary.as_deref()) == Some(word)
        })
        .await?;
    let message = object.status.and_then(|status| status.message).context("no message")?;
    for part in parts {
        ensure!(message.contains(part), "{name}: {part} is not in: {message}");
    }
    scope.delete(name).await
}

pub async fn what_the_spec_cannot_show_is_said_within_30_seconds(suite: &Suite) -> Result<()> {
    let scope = suite.namespace("unseen").await?;
    let on_real = |more: Value| {
        let mut spec = json!({"classes": [REAL_CLASS]});
        if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
            spec.extend(more.clone());
        }
        spec
    };
    says(
        &scope,
        "class",
        json!({"classes": ["nowhere"]}),
        "UnknownClass",
        &["spec.classes names nowhere", REAL_CLASS],
    )
    .await?;
    let claim = json!({"model": {"persistentVolumeClaim": {"claimName": "nowhere"}}});
    says(
        &scope,
        "claim",
        on_real(claim),
        "Unschedulable",
        &["persistentvolumeclaim \"nowhere\" not found"],
    )
    .await?;
    let image = json!({"image": "localhost/nowhere:1"});
    says(
        &scope,
        "image",
        on_real(image),
        "ImagePullFailed",
        &["localhost/nowhere:1"],
    )
    .await?;
    let memory = json!({"overrides": {REAL_CLASS: {"memory": "15Ti"}}});
    says(&scope, "memory", on_real(memory), "MemoryDoesNotFit", &["15Ti"]).await?;
    let cpu = json!({"overrides": {REAL_CLASS: {"cpu": "1000"}}});
    says(&scope, "cpu", on_real(cpu), "CpuDoesNotFit", &["1000 CPUs"]).await?;
    let priority = json!({"priorityClassName": "nowhere"});
    says(
        &scope,
        "priority",
        on_real(priority),
        "PodsRefused",
        &["PriorityClass", "nowhere"],
    )
    .await?;
    // Nothing listens on port 9 of the pod's own loopback.
    let web = json!({"model": {"http": {"url": "http://127.0.0.1:9/bundle.tar", "sha256": "0".repeat(64)}}});
    says(
        &scope,
        "web",
        on_real(web),
        "ModelFetchFailed",
        &["http://127.0.0.1:9/bundle.tar", "refused"],
    )
    .await?;

    // A class whose RuntimeClass is not there. Its nodes come on demand, so it needs none.
    let classes: Api<HardwareClass> = Api::all(suite.client.clone());
    let mut class = classes.get(REAL_CLASS).await?;
    class.metadata = serde_json::from_value(json!({"name": "no-runtime"}))?;
    class.spec.priority = 1;
    class.spec.autoscaled = true;
    class.spec.runtime_class_name = Some("nowhere".to_owned());
    classes.create(&PostParams::default(), &class).await?;
    let runtime = json!({"classes": ["no-runtime"]});
    let said = says(&scope, "runtime", runtime, "PodsRefused", &["RuntimeClass", "nowhere"]).await;
    classes.delete("no-runtime", &DeleteParams::default()).await?;
    said?;

    let quota: ResourceQuota =
        serde_json::from_value(json!({"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}))?;
    let quotas = scope.api::<ResourceQuota>();
    let params = PatchParams::apply("hawkeye-e2e");
    quotas.patch("none", &params, &Patch::Apply(&quota)).await?;
    let said = says(
        &scope,
        "quota",
        on_real(json!({})),
        "PodsRefused",
        &["exceeded quota: none"],
    )
    .await;
    quotas.delete("none", &DeleteParams::default()).await?;
    said
}
