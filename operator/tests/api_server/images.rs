//! Image truth, end to end: the operator asks a registry on loopback.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hawkeye_crds::v1alpha1::{Condition, ConditionStatus, HawkeyeDeploymentStatus};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Node, Pod, Secret, Service, ServiceAccount},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    fake_registry::{OCI_INDEX, index},
    scenarios::{create, deployments, make_ready, names, namespace, parsers, until_status},
    server::{self, Cluster, wait},
};

/// Not an image, so that only the parser's own is in question.
const MODEL: &str = "model: {persistentVolumeClaim: {claimName: bundle}}";
const ORDER: &str = "classes: [cpu-arm64, cpu-amd64]";

/// The namespace and the Secret that the operator of these tests may read.
pub const GRANTED: (&str, &str) = ("images", "granted");

pub async fn plain_node(cluster: &Cluster, name: &str, arch: &str) -> Result<()> {
    let api: Api<Node> = Api::all(cluster.client.clone());
    let node: Node = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux", "kubernetes.io/arch": arch}},
    }))?;
    api.create(&PostParams::default(), &node).await?;
    make_ready(&api, name, json!({})).await
}

fn verified(status: &HawkeyeDeploymentStatus) -> Option<&Condition> {
    status
        .conditions
        .iter()
        .find(|condition| condition.type_ == "ImageVerified")
}

async fn until_verified(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    wanted: ConditionStatus,
    reason: &str,
) -> Result<HawkeyeDeploymentStatus> {
    until_status(
        cluster,
        namespace,
        name,
        &format!("ImageVerified {wanted:?} {reason}"),
        |status| verified(status).is_some_and(|it| it.status == wanted && it.reason == reason),
    )
    .await
}

pub async fn drop_parser(cluster: &Cluster, namespace: &str, name: &str) -> Result<()> {
    parsers(cluster, namespace)
        .delete(name, &DeleteParams::default())
        .await?;
    // There is no garbage collector here.
    let api = deployments(cluster, namespace);
    for made in names(cluster, namespace).await? {
        api.delete(&made, &DeleteParams::default()).await?;
    }
    let services: Api<Service> = Api::namespaced(cluster.client.clone(), namespace);
    services.delete(name, &DeleteParams::default()).await?;
    Ok(())
}

async fn scale_of(api: &Api<Deployment>, name: &str) -> Result<Option<i32>> {
    Ok(api.get_opt(name).await?.and_then(|found| found.spec.replicas))
}

/// A class is passed over while its image is missing there, also by an operator that starts while the registry is away,
/// and used once the image is there.
pub async fn passed_over(cluster: &'static Cluster) -> Result<()> {
    plain_node(cluster, "images-arm", "arm64").await?;
    plain_node(cluster, "images-amd", "amd64").await?;
    namespace(cluster, "images").await?;
    let registry = &cluster.registry;
    registry.put("narrow", "v1", OCI_INDEX, &index(&["linux/amd64"]));
    let image = registry.name("narrow:v1");
    let spec = format!("{{image: '{image}', {ORDER}, {MODEL}}}");
    create(cluster, "images", "demo", &spec, false).await?;
    let status = until_verified(
        cluster,
        "images",
        "demo",
        ConditionStatus::False,
        "ImageArchitectureMissing",
    )
    .await?;
    let message = &verified(&status).context("the condition")?.message;
    for words in [image.as_str(), "linux/arm64", "only for linux/amd64", "images-arm"] {
        ensure!(message.contains(words), "{words} is not in: {message}");
    }
    ensure!(
        status.pool_summary.as_deref() == Some("cpu-amd64 0/1"),
        "{:?}",
        status.pool_summary
    );
    let arm = status
        .pools
        .iter()
        .find(|pool| pool.class == "cpu-arm64")
        .context("the pool")?;
    ensure!(arm.reason == "ImageArchitectureMissing" && arm.replicas == 0, "{arm:?}");
    ensure!(names(cluster, "images").await? == ["demo-cpu-amd64"]);

    // Nobody knows any more, and what runs stays where it is.
    registry.remove("narrow");
    let api = deployments(cluster, "images");
    let before = api.get("demo-cpu-amd64").await?;
    cluster.kill_operator();
    cluster.start_operator().await?;
    sleep(Duration::from_secs(6)).await;
    let after = api.get("demo-cpu-amd64").await?;
    ensure!(
        before.metadata.generation == after.metadata.generation,
        "it was changed"
    );
    ensure!(
        names(cluster, "images").await? == ["demo-cpu-amd64"],
        "pods were moved on no knowledge"
    );
    let asked = registry.requests().len();
    ensure!(asked <= 6, "{asked} requests for one image");
    until_verified(
        cluster,
        "images",
        "demo",
        ConditionStatus::False,
        "ImageArchitectureMissing",
    )
    .await?;

    registry.put("narrow", "v1", OCI_INDEX, &index(&["linux/amd64", "linux/arm64"]));
    // It would be asked again within half a minute.
    cluster.kill_operator();
    cluster.start_operator().await?;
    let status = until_verified(cluster, "images", "demo", ConditionStatus::True, "ImageVerified").await?;
    ensure!(
        status.pool_summary.as_deref() == Some("cpu-arm64 0/1"),
        "{:?}",
        status.pool_summary
    );
    wait("the pool of the right architecture alone", async || {
        let good =
            scale_of(&api, "demo-cpu-arm64").await? == Some(1) && scale_of(&api, "demo-cpu-amd64").await?.is_none();
        Ok(good.then_some(()))
    })
    .await?;
    drop_parser(cluster, "images", "demo").await
}

/// With nowhere else to go replicas stay unplaced; what is not known, not allowed or slow blocks nothing.
pub async fn known_and_unknown(cluster: &'static Cluster) -> Result<()> {
    let registry = &cluster.registry;
    registry.put("single", "v1", OCI_INDEX, &index(&["linux/amd64"]));
    let spec = |image: &str, classes: &str| format!("{{image: '{image}', classes: [{classes}], {MODEL}}}");
    let only = spec(&registry.name("single:v1"), "cpu-arm64");
    create(cluster, "images", "only", &only, false).await?;
    let status = until_status(cluster, "images", "only", "no place", |status| {
        status.summary.as_deref() == Some("ImageArchitectureMissing")
    })
    .await?;
    ensure!(
        status.message.as_deref().is_some_and(|it| it.contains("linux/arm64")),
        "{:?}",
        status.message
    );
    ensure!(names(cluster, "images").await?.is_empty());
    drop_parser(cluster, "images", "only").await?;

    for (image, reason, words) in [
        (registry.name("nothing:v1"), "ImageUnreadable", "has no such image"),
        ("example.net/app:v1".to_owned(), "RegistryNotAllowed", "example.net"),
    ] {
        create(cluster, "images", "unknown", &spec(&image, "cpu-arm64"), false).await?;
        let status = until_verified(cluster, "images", "unknown", ConditionStatus::Unknown, reason).await?;
        let message = &verified(&status).context("the condition")?.message;
        ensure!(message.contains(words) && message.contains(&image), "{message}");
        ensure!(
            status.summary.as_deref() == Some("NotReady"),
            "it is no trouble: {:?}",
            status.summary
        );
        wait("its pool", async || {
            Ok((names(cluster, "images").await?.len() == 1).then_some(()))
        })
        .await?;
        drop_parser(cluster, "images", "unknown").await?;
    }

    let start = Instant::now();
    create(
        cluster,
        "images",
        "slow",
        &spec(&registry.name("slow:v1"), "cpu-arm64"),
        false,
    )
    .await?;
    wait("the pool of an image whose registry is slow", async || {
        Ok((names(cluster, "images").await?.len() == 1).then_some(()))
    })
    .await?;
    let took = start.elapsed();
    ensure!(
        took > Duration::from_millis(2500) && took < Duration::from_secs(12),
        "after {took:?}"
    );
    drop_parser(cluster, "images", "slow").await
}

/// A private image is asked for with the Secret that the values grant, where they grant it.
pub async fn private(cluster: &'static Cluster) -> Result<()> {
    let registry = &cluster.registry;
    registry.put("private", "v1", OCI_INDEX, &index(&["linux/amd64"]));
    namespace(cluster, "images-other").await?;
    let config =
        json!({"auths": {registry.address.to_string(): {"username": "team", "password": "secret"}}}).to_string();
    let (granted_in, granted) = GRANTED;
    for place in [granted_in, "images-other"] {
        let secret: Secret = serde_json::from_value(json!({
            "metadata": {"name": granted}, "type": "kubernetes.io/dockerconfigjson",
            "stringData": {".dockerconfigjson": config},
        }))?;
        let api: Api<Secret> = Api::namespaced(cluster.client.clone(), place);
        api.create(&PostParams::default(), &secret).await?;
    }
    // As the chart makes them.
    let rbac = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{granted_in}");
    server::create(
        &cluster.client,
        &format!("{rbac}/roles"),
        &json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "pull-secrets"},
            "rules": [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": [granted], "verbs": ["get"]}],
        }),
    )
    .await?;
    server::create(
        &cluster.client,
        &format!("{rbac}/rolebindings"),
        &json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "pull-secrets"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "pull-secrets"},
            "subjects": [{"kind": "User", "name": "operator", "apiGroup": "rbac.authorization.k8s.io"}],
        }),
    )
    .await?;
    let image = registry.name("private:v1");
    let spec = format!("{{image: '{image}', {ORDER}, {MODEL}, imagePullSecrets: [{{name: {granted}}}]}}");
    create(cluster, granted_in, "demo", &spec, false).await?;
    create(cluster, "images-other", "demo", &spec, false).await?;
    until_verified(
        cluster,
        granted_in,
        "demo",
        ConditionStatus::False,
        "ImageArchitectureMissing",
    )
    .await?;
    let pods = deployments(cluster, granted_in)
        .get("demo-cpu-amd64")
        .await?
        .spec
        .template
        .spec;
    let secrets = pods.and_then(|pod| pod.image_pull_secrets).unwrap_or_default();
    ensure!(
        secrets.iter().map(|secret| secret.name.as_str()).eq([granted]),
        "{secrets:?}"
    );

    let status = until_verified(
        cluster,
        "images-other",
        "demo",
        ConditionStatus::Unknown,
        "ImageUnreadable",
    )
    .await?;
    let message = &verified(&status).context("the condition")?.message;
    ensure!(
        message.contains("refuses access") && !message.contains("linux/amd64"),
        "{message}"
    );
    ensure!(
        status.pool_summary.as_deref() == Some("cpu-arm64 0/1"),
        "{:?}",
        status.pool_summary
    );
    ensure!(
        !serde_json::to_string(&status)?.contains("secret"),
        "a password is in the status"
    );
    ensure!(
        !cluster.operator_log().contains("team:secret"),
        "a password is in the log"
    );
    drop_parser(cluster, "images-other", "demo").await?;
    drop_parser(cluster, granted_in, "demo").await
}

/// What a pod's own failure says ends in the same condition.
pub async fn pods_own_words(cluster: &'static Cluster) -> Result<()> {
    let registry = &cluster.registry;
    registry.put("lying", "v1", OCI_INDEX, &index(&["linux/amd64", "linux/arm64"]));
    let image = registry.name("lying:v1");
    create(
        cluster,
        "images",
        "demo",
        &format!("{{image: '{image}', {ORDER}, {MODEL}}}"),
        false,
    )
    .await?;
    until_verified(cluster, "images", "demo", ConditionStatus::True, "ImageVerified").await?;
    let template = deployments(cluster, "images")
        .get("demo-cpu-arm64")
        .await?
        .spec
        .template;
    ensure!(
        template.spec.as_ref().is_some_and(
            |spec| spec.containers[0].termination_message_policy.as_deref() == Some("FallbackToLogsOnError")
        ),
        "what the kernel says of a program is in no other place than its log"
    );
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), "images");
    let account = serde_json::from_value(json!({"metadata": {"name": "default"}}))?;
    accounts.create(&PostParams::default(), &account).await?;
    let mut pod: Value =
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": template.metadata, "spec": template.spec});
    pod["metadata"]["name"] = json!("demo-cpu-arm64-1-1");
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "demo-cpu-arm64-1", "uid": "rs", "controller": true,
    }]);
    pod["spec"]["nodeName"] = json!("images-arm");
    pod["spec"]["serviceAccountName"] = json!("default");
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), "images");
    let pod = api
        .create(&PostParams::default(), &serde_json::from_value(pod)?)
        .await?;
    let said = "exec /usr/local/bin/hawkeye-inference: exec format error";
    let state = json!({"status": {"phase": "Running", "containerStatuses": [{
        "name": "inference", "image": image, "imageID": "", "ready": false, "restartCount": 1,
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}},
        "lastState": {"terminated": {"exitCode": 255, "reason": "Error", "message": said}},
    }]}});
    api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(state))
        .await?;
    let status = until_verified(
        cluster,
        "images",
        "demo",
        ConditionStatus::False,
        "ImageArchitectureMissing",
    )
    .await?;
    let message = &verified(&status).context("the condition")?.message;
    for words in [image.as_str(), "linux/arm64", "node images-arm", said] {
        ensure!(message.contains(words), "{words} is not in: {message}");
    }
    ensure!(
        status.summary.as_deref() == Some("ImageArchitectureMissing"),
        "{:?}",
        status.summary
    );
    let now = DeleteParams {
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    };
    api.delete(&pod.name_any(), &now).await?;
    drop_parser(cluster, "images", "demo").await?;
    // The scenarios that follow have nodes of their own.
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    for name in ["images-arm", "images-amd"] {
        nodes.delete(name, &DeleteParams::default()).await?;
    }
    Ok(())
}
