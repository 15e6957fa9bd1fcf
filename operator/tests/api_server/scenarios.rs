//! What is to be seen.

use std::{pin::Pin, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use hawkeye_crds::v1alpha1::{HawkeyeDeployment, HawkeyeDeploymentStatus};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Namespace, Node, Pod, Service},
    events::v1::Event,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    core::{DynamicObject, discovery::ApiResource},
};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::server::{Cluster, wait};

pub type Outcome = Pin<Box<dyn Future<Output = Result<()>>>>;

pub const MODEL: &str = r#"{"image": {"reference": "example.com/bundle:test"}}"#;

pub fn deployments(cluster: &Cluster, namespace: &str) -> Api<Deployment> {
    Api::namespaced(cluster.client.clone(), namespace)
}

pub fn parsers(cluster: &Cluster, namespace: &str) -> Api<HawkeyeDeployment> {
    Api::namespaced(cluster.client.clone(), namespace)
}

pub async fn namespace(cluster: &Cluster, name: &str) -> Result<()> {
    let namespace: Namespace = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }))?;
    Api::all(cluster.client.clone())
        .create(&PostParams::default(), &namespace)
        .await?;
    Ok(())
}

/// Creates a HawkeyeDeployment as a user would, so that the API server fills in the defaults.
pub async fn create(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    spec: &str,
    dry_run: bool,
) -> Result<DynamicObject> {
    let resource = ApiResource::erase::<HawkeyeDeployment>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), namespace, &resource);
    let spec: Value = serde_saphyr::from_str(spec).with_context(|| spec.to_owned())?;
    let object = DynamicObject::new(name, &resource).data(json!({"spec": spec}));
    Ok(api
        .create(
            &PostParams {
                dry_run,
                field_manager: None,
            },
            &object,
        )
        .await?)
}

/// Nodes from the fixtures, ready and without taints. An API server adds the taint not-ready to each new node.
pub async fn nodes(cluster: &Cluster, names: &[&str]) -> Result<()> {
    let api: Api<Node> = Api::all(cluster.client.clone());
    for name in names {
        let path = format!("{}/../e2e/fixtures/nodes/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).with_context(|| path)?;
        let mut node: Node = serde_saphyr::from_str(&text)?;
        let status = node.status.take().unwrap_or_default();
        let created = api.create(&PostParams::default(), &node).await?.name_any();
        make_ready(&api, &created, serde_json::to_value(status)?).await?;
    }
    Ok(())
}

/// Gives a new node this status, Ready besides, and takes its taints away.
pub async fn make_ready(api: &Api<Node>, name: &str, mut status: Value) -> Result<()> {
    status["conditions"] = json!([{"type": "Ready", "status": "True", "reason": "Test", "message": "",
        "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
    let params = PatchParams::default();
    api.patch_status(name, &params, &Patch::Merge(json!({"status": status})))
        .await?;
    api.patch(name, &params, &Patch::Merge(json!({"spec": {"taints": null}})))
        .await?;
    Ok(())
}

pub async fn until_status(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    what: &str,
    good: impl Fn(&HawkeyeDeploymentStatus) -> bool,
) -> Result<HawkeyeDeploymentStatus> {
    let api = parsers(cluster, namespace);
    wait(&format!("{namespace}/{name}: {what}"), async || {
        let object = api.get(name).await?;
        let current =
            object.status.as_ref().and_then(|status| status.observed_generation) == object.metadata.generation;
        Ok(object.status.filter(|status| current && good(status)))
    })
    .await
}

pub async fn names(cluster: &Cluster, namespace: &str) -> Result<Vec<String>> {
    let list = deployments(cluster, namespace).list(&ListParams::default()).await?;
    Ok(list.items.iter().map(ResourceExt::name_any).collect())
}

pub async fn validation(cluster: &'static Cluster) -> Result<()> {
    namespace(cluster, "validation").await?;
    let long = "n".repeat(41);
    for (name, spec, field, word) in [
        (
            "ok",
            "{model: {}}",
            "spec.model",
            "exactly one of image, persistentVolumeClaim and http",
        ),
        (
            "ok",
            "{model: {image: {reference: a}, persistentVolumeClaim: {claimName: b}}}",
            "spec.model",
            "exactly one",
        ),
        (long.as_str(), "{}", "metadata.name", "at most 40 characters"),
        ("1a", "{}", "metadata.name", "starting with a letter"),
        ("a.b", "{}", "metadata.name", "letters, digits and '-'"),
        ("ok", "{classes: [a, a]}", "spec.classes", "twice"),
        ("ok", "{classes: []}", "spec.classes", "at least 1"),
        ("ok", "{classes: [A]}", "spec.classes[0]", "match"),
        (
            "ok",
            "{classes: [a], overrides: {b: {replicas: 1}}}",
            "spec.overrides",
            "classes does not list",
        ),
        (
            "ok",
            "{overrides: {a-name-that-is-too-long-by-far: {}}}",
            "spec.overrides",
            "20 characters",
        ),
        (
            "ok",
            "{overrides: {a: {batchSize: 0}}}",
            "spec.overrides.a.batchSize",
            "greater than or equal to 1",
        ),
        ("ok", "{overrides: {a: {memory: 4}}}", "memory", "at least 256Mi"),
        ("ok", "{overrides: {a: {memory: lots}}}", "memory", "match"),
        ("ok", "{overrides: {a: {cpu: 1m}}}", "cpu", "at least 10m"),
        (
            "ok",
            "{overrides: {a: {env: [{name: OMNIPARSER_DEVICE, value: x}]}}}",
            "env[0].name",
            "the operator sets",
        ),
        (
            "ok",
            "{overrides: {a: {env: [{name: a-b, value: x}]}}}",
            "env[0].name",
            "match",
        ),
        ("ok", "{replicas: -1}", "spec.replicas", "greater than or equal to 0"),
        (
            "ok",
            "{profile: Fast}",
            "spec.profile",
            "\"Speed\", \"Balanced\", \"Quality\"",
        ),
        ("ok", "{device: Mps}", "spec.device", "\"Auto\", \"Cuda\", \"Cpu\""),
        ("ok", "{device: Cpu, dtype: Float16}", "spec.dtype", "device is Cpu"),
        ("ok", "{image: ''}", "spec.image", "at least 1"),
        ("ok", "{priorityClassName: 'a b'}", "spec.priorityClassName", "match"),
        (
            "ok",
            "{imagePullSecrets: [{name: a/b}]}",
            "imagePullSecrets[0].name",
            "match",
        ),
        (
            "ok",
            "{imagePullSecrets: [{name: a}, {name: a}]}",
            "spec.imagePullSecrets[1]",
            "Duplicate",
        ),
        (
            "ok",
            "{podMetadata: {labels: {app.kubernetes.io/instance: other}}}",
            "spec.podMetadata.labels",
            "must not set",
        ),
        (
            "ok",
            "{podMetadata: {labels: {pod-template-hash: x}}}",
            "spec.podMetadata.labels",
            "must not set",
        ),
        (
            "ok",
            "{podMetadata: {labels: {team: 'a b'}}}",
            "spec.podMetadata.labels",
            "match",
        ),
        (
            "ok",
            "{podMetadata: {annotations: {hawkeye.bytebot.ai/applied: x}}}",
            "spec.podMetadata.annotations",
            "must not set",
        ),
        (
            "ok",
            "{disruptionBudget: {maxUnavailable: 0}}",
            "spec.disruptionBudget.maxUnavailable",
            "greater than or equal to 1",
        ),
        (
            "ok",
            "{networkPolicy: {from: [{}]}}",
            "spec.networkPolicy.from[0]",
            "either ipBlock or",
        ),
        (
            "ok",
            "{networkPolicy: {from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}}",
            "spec.networkPolicy.from[0]",
            "either ipBlock or",
        ),
        (
            "ok",
            "{networkPolicy: {egress: [{to: [{ipBlock: {cidr: 10.0.0.0}}]}]}}",
            "egress[0].to[0].ipBlock.cidr",
            "range of addresses",
        ),
        (
            "ok",
            "{networkPolicy: {from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}}",
            "from[0].ipBlock.except",
            "within cidr",
        ),
        (
            "ok",
            "{networkPolicy: {from: [{podSelector: {matchExpressions: [{key: a, operator: In}]}}]}}",
            "matchExpressions[0].values",
            "values must be given",
        ),
        (
            "ok",
            "{networkPolicy: {egress: [{ports: [{port: 0}]}]}}",
            "egress[0].ports[0].port",
            "greater than or equal to 1",
        ),
        ("ok", "{handOverAfter: 5s}", "spec.handOverAfter", "from 10s to 24h"),
        ("ok", "{handOverAfter: 25h}", "spec.handOverAfter", "from 10s to 24h"),
        ("ok", "{handOverAfter: soon}", "spec.handOverAfter", "match"),
    ] {
        let Err(error) = create(cluster, "validation", name, spec, true).await else {
            bail!("{name} {spec} was taken");
        };
        let message = error.to_string();
        ensure!(message.contains(field) && message.contains(word), "{spec}: {message}");
        // The plugin says the same without a server.
        match crate::plugin::admit("HawkeyeDeployment", name, spec)? {
            Ok(_) => bail!("the plugin takes {name} {spec}"),
            Err(said) => ensure!(said.contains(field), "{name} {spec}: {said}"),
        }
    }
    for spec in [
        "{}",
        "{classes: null, overrides: null, model: null}",
        "{handOverAfter: Never}",
        "{handOverAfter: 1h30m}",
        "{overrides: {cpu-amd64: {cpu: 2, memory: 256Mi, env: [{name: RUST_LOG, value: debug}]}}}",
        "{classes: [cpu-amd64], overrides: {cpu-amd64: {cpu: 0.5, dtype: BFloat16}}}",
        "{device: Cuda, dtype: Float16, fallback: Deny, model: {persistentVolumeClaim: {claimName: m}}}",
        "{networkPolicy: {}, disruptionBudget: {}, podMetadata: {}, imagePullSecrets: []}",
        "{networkPolicy: {from: [], egress: [{to: [{ipBlock: {cidr: 'fd00::/8', except: ['fd00:1::/32']}}]}]}}",
        "{podMetadata: {labels: {team: vision, example.com/empty: ''}, annotations: {a.b/c: \"1\\n2\"}}}",
    ] {
        // A float is neither an integer nor a string.
        let taken = create(cluster, "validation", "ok", spec, true).await;
        let admitted = crate::plugin::admit("HawkeyeDeployment", "ok", spec)?;
        ensure!(
            admitted.is_ok() == taken.is_ok(),
            "the plugin differs on {spec}: {admitted:?}"
        );
        ensure!(taken.is_ok() != spec.contains("0.5"), "{spec}: {:?}", taken.err());
    }
    let hardware = ApiResource::erase::<hawkeye_crds::v1alpha1::HardwareClass>(&());
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &hardware);
    let good = json!({"spec": {
        "priority": 1, "arch": "amd64", "device": "Cuda", "imageVariant": "cuda", "dtype": "Float16",
        "resource": "nvidia.com/gpu", "batchSize": {"speed": 1, "balanced": 1, "quality": 1},
        "memory": {"limit": "1Gi"}, "cpu": {"request": 1},
        "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}],
    }});
    let change = |pointer: &str, value: Value| {
        let mut changed = good.clone();
        if let Some(field) = changed.pointer_mut(pointer) {
            *field = value;
        }
        changed
    };
    let terms = "/spec/nodeSelectorTerms";
    for (name, object, word) in [
        ("ok", good.clone(), ""),
        ("a-name-that-is-too-long-by-far", good.clone(), "at most 20 characters"),
        ("ok", change("/spec/resource", Value::Null), "resource must be set"),
        (
            "ok",
            change("/spec/imageVariant", json!("cpu")),
            "imageVariant must be cuda",
        ),
        (
            "ok",
            change("/spec/device", json!("Cpu")),
            "dtype must be Float32, BFloat16 or Int8",
        ),
        ("ok", change("/spec/resource", json!("gpu")), "spec.resource"),
        ("ok", change(terms, json!([])), "spec.nodeSelectorTerms"),
        (
            "ok",
            change(terms, json!([{"matchExpressions": [{"key": "a", "operator": "In"}]}])),
            "values must be given",
        ),
        (
            "ok",
            change(
                terms,
                json!([{"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}]),
            ),
            "values must be given",
        ),
    ] {
        let admitted = crate::plugin::admit("HardwareClass", name, &object["spec"].to_string())?;
        ensure!(
            admitted.is_ok() == word.is_empty(),
            "the plugin differs on {word}: {admitted:?}"
        );
        let object = DynamicObject::new(name, &hardware).data(object);
        let params = PostParams {
            dry_run: true,
            field_manager: None,
        };
        match api.create(&params, &object).await {
            Ok(_) => ensure!(word.is_empty(), "taken, but should be refused: {word}"),
            Err(error) => ensure!(!word.is_empty() && error.to_string().contains(word), "{word}: {error}"),
        }
    }
    Ok(())
}

pub async fn defaults(cluster: &'static Cluster) -> Result<()> {
    namespace(cluster, "defaults").await?;
    let made = create(cluster, "defaults", "demo", "{}", false).await?;
    let expected = json!({"replicas": 1, "profile": "Balanced", "device": "Auto", "dtype": "Auto", "fallback": "Degrade",
            "handOverAfter": "2m"});
    ensure!(made.data["spec"] == expected, "{}", made.data);
    let admitted = crate::plugin::admit("HawkeyeDeployment", "demo", "{}")?;
    ensure!(
        admitted.as_ref().is_ok_and(|object| object["spec"] == expected),
        "{admitted:?}"
    );
    let api = parsers(cluster, "defaults");
    let scale = api
        .patch_scale(
            "demo",
            &PatchParams::default(),
            &Patch::Merge(json!({"spec": {"replicas": 3}})),
        )
        .await?;
    ensure!(scale.spec.and_then(|spec| spec.replicas) == Some(3));
    ensure!(api.get("demo").await?.spec.replicas == 3);
    until_status(cluster, "defaults", "demo", "a selector for autoscalers", |status| {
        status.selector.is_some()
    })
    .await?;
    let scale = api.get_scale("demo").await?;
    let selector = scale.status.and_then(|status| status.selector).unwrap_or_default();
    ensure!(selector.contains("app.kubernetes.io/instance=demo"), "{selector}");
    api.delete("demo", &DeleteParams::default()).await?;
    Ok(())
}

pub async fn model_missing(cluster: &'static Cluster) -> Result<()> {
    namespace(cluster, "model").await?;
    create(cluster, "model", "demo", "{}", false).await?;
    let status = until_status(cluster, "model", "demo", "ModelMissing", |s| {
        s.summary.as_deref() == Some("ModelMissing")
    })
    .await?;
    let accepted = &status.conditions[0];
    ensure!(
        accepted.type_ == "Accepted" && accepted.message.contains("spec.model.image.reference"),
        "{accepted:?}"
    );
    ensure!(names(cluster, "model").await?.is_empty());
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), "model");
    wait("the event ModelMissing", async || {
        let list = events.list(&ListParams::default()).await?;
        Ok(list
            .items
            .iter()
            .any(|event| event.reason.as_deref() == Some("ModelMissing"))
            .then_some(()))
    })
    .await?;
    parsers(cluster, "model")
        .delete("demo", &DeleteParams::default())
        .await?;
    Ok(())
}

pub async fn pools(cluster: &'static Cluster) -> Result<()> {
    nodes(
        cluster,
        &[
            "dgx-spark",
            "gh200",
            "x86-rtx",
            "graviton2",
            "graviton3",
            "cpu-arm64",
            "cpu-amd64",
        ],
    )
    .await?;
    namespace(cluster, "pools").await?;
    create(
        cluster,
        "pools",
        "demo",
        &format!("{{replicas: 5, model: {MODEL}}}"),
        false,
    )
    .await?;
    until_status(cluster, "pools", "demo", "five replicas in four pools", |status| {
        status.pool_summary.as_deref() == Some("dgx-spark 0/1, cuda-arm64 0/1, cuda-amd64 0/1, graviton 0/2")
    })
    .await?;
    let mut made = names(cluster, "pools").await?;
    made.sort();
    ensure!(
        made == ["demo-cuda-amd64", "demo-cuda-arm64", "demo-dgx-spark", "demo-graviton"],
        "{made:?}"
    );
    let owner = parsers(cluster, "pools").get("demo").await?.uid().unwrap_or_default();
    let spark = deployments(cluster, "pools").get("demo-dgx-spark").await?;
    ensure!(
        spark
            .owner_references()
            .iter()
            .any(|o| o.uid == owner && o.controller == Some(true))
    );
    let service: Service = Api::namespaced(cluster.client.clone(), "pools").get("demo").await?;
    ensure!(service.owner_references().iter().any(|o| o.uid == owner));
    // A profile change reaches every pool, a change of one class only its own.
    let generation = |name: &'static str| async move {
        anyhow::Ok(
            deployments(cluster, "pools")
                .get(name)
                .await?
                .metadata
                .generation
                .unwrap_or_default(),
        )
    };
    let change = json!({"spec": {"overrides": {"graviton": {"batchSize": 8}}}});
    parsers(cluster, "pools")
        .patch("demo", &PatchParams::default(), &Patch::Merge(change))
        .await?;
    wait("the graviton pool to change", async || {
        Ok((generation("demo-graviton").await? == 2).then_some(()))
    })
    .await?;
    until_status(cluster, "pools", "demo", "its own generation", |_| true).await?;
    for name in ["demo-dgx-spark", "demo-cuda-arm64", "demo-cuda-amd64"] {
        ensure!(generation(name).await? == 1, "{name} was changed, too");
    }
    Ok(())
}

pub async fn restricted(cluster: &'static Cluster) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "pools");
    for name in ["demo-dgx-spark", "demo-graviton"] {
        let template = deployments(cluster, "pools").get(name).await?.spec.template;
        let mut pod = Pod {
            metadata: template.metadata.unwrap_or_default(),
            spec: template.spec,
            status: None,
        };
        pod.metadata.name = Some("restricted".to_owned());
        // There is no controller that makes the account that every namespace has.
        if let Some(spec) = &mut pod.spec {
            spec.service_account_name = Some("default".to_owned());
        }
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> =
            Api::namespaced(cluster.client.clone(), "pools");
        let account = serde_json::from_value(json!({"metadata": {"name": "default"}}))?;
        if accounts.get_opt("default").await?.is_none() {
            accounts.create(&PostParams::default(), &account).await?;
        }
        let params = PostParams {
            dry_run: true,
            field_manager: None,
        };
        pods.create(&params, &pod)
            .await
            .with_context(|| format!("a pod of {name}"))?;
        // The level is enforced here: the same pod with root is refused.
        if let Some(security) = pod.spec.as_mut().and_then(|spec| spec.security_context.as_mut()) {
            security.run_as_user = Some(0);
        }
        let Err(error) = pods.create(&params, &pod).await else {
            bail!("a pod with root was taken")
        };
        ensure!(error.to_string().contains("restricted"), "{error}");
    }
    Ok(())
}

pub async fn drift(cluster: &'static Cluster) -> Result<()> {
    let api = deployments(cluster, "pools");
    let params = PatchParams::default();
    api.patch(
        "demo-graviton",
        &params,
        &Patch::Merge(json!({"spec": {"replicas": 9}})),
    )
    .await?;
    wait("replicas to be put back", async || {
        Ok((api.get("demo-graviton").await?.spec.replicas == Some(2)).then_some(()))
    })
    .await?;
    let uid = api.get("demo-dgx-spark").await?.uid();
    api.delete("demo-dgx-spark", &DeleteParams::default()).await?;
    wait("a deleted Deployment to come back", async || {
        Ok(api.get_opt("demo-dgx-spark").await?.filter(|found| found.uid() != uid))
    })
    .await?;
    let label = json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": null}}});
    api.patch("demo-graviton", &params, &Patch::Merge(label)).await?;
    wait("our label to come back", async || {
        Ok(api
            .get("demo-graviton")
            .await?
            .labels()
            .get("app.kubernetes.io/managed-by")
            .map(|_| ()))
    })
    .await?;
    // A sidecar that someone else injects is neither removed nor fought over.
    let sidecar =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "side", "image": "example.com/side"}]}}}});
    api.patch("demo-graviton", &params, &Patch::Strategic(sidecar)).await?;
    cluster.settled().await?;
    let before = cluster.writes().await?;
    sleep(Duration::from_secs(4)).await;
    let after = cluster.writes().await?;
    ensure!(before == after, "{} writes in four seconds", after - before);
    let pod = api.get("demo-graviton").await?.spec.template.spec.unwrap_or_default();
    ensure!(pod.containers.iter().any(|container| container.name == "side"));
    Ok(())
}

pub async fn conflict(cluster: &'static Cluster) -> Result<()> {
    namespace(cluster, "conflict").await?;
    let foreign: Deployment = serde_json::from_value(json!({
        "metadata": {"name": "demo-cpu-amd64"},
        "spec": {
            "replicas": 0, "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
        },
    }))?;
    let api = deployments(cluster, "conflict");
    let before = api.create(&PostParams::default(), &foreign).await?;
    let spec = format!("{{classes: [cpu-amd64], model: {MODEL}}}");
    create(cluster, "conflict", "demo", &spec, false).await?;
    let status = until_status(cluster, "conflict", "demo", "NameConflict", |status| {
        status.summary.as_deref() == Some("NameConflict")
    })
    .await?;
    let message = status.message.unwrap_or_default();
    ensure!(message.contains("Deployment conflict/demo-cpu-amd64"), "{message}");
    ensure!(
        api.get("demo-cpu-amd64").await?.resource_version() == before.resource_version(),
        "it was touched"
    );
    // Once it is out of the way, the pool is made.
    api.delete("demo-cpu-amd64", &DeleteParams::default()).await?;
    until_status(cluster, "conflict", "demo", "the end of the conflict", |status| {
        status.summary.as_deref() == Some("NotReady")
    })
    .await?;
    parsers(cluster, "conflict")
        .delete("demo", &DeleteParams::default())
        .await?;
    Ok(())
}

pub async fn zero(cluster: &'static Cluster) -> Result<()> {
    let api = parsers(cluster, "pools");
    let scale = json!({"spec": {"replicas": 0}});
    api.patch_scale("demo", &PatchParams::default(), &Patch::Merge(scale))
        .await?;
    until_status(cluster, "pools", "demo", "ScaledToZero", |s| {
        s.summary.as_deref() == Some("ScaledToZero")
    })
    .await?;
    wait("the pools to go", async || {
        Ok(names(cluster, "pools").await?.is_empty().then_some(()))
    })
    .await?;
    let services: Api<Service> = Api::namespaced(cluster.client.clone(), "pools");
    services.get("demo").await?;
    let scale = json!({"spec": {"replicas": 2}});
    api.patch_scale("demo", &PatchParams::default(), &Patch::Merge(scale))
        .await?;
    wait("the pools to come back", async || {
        Ok((names(cluster, "pools").await?.len() == 2).then_some(()))
    })
    .await
}

pub async fn idle(cluster: &'static Cluster) -> Result<()> {
    cluster.settled().await?;
    let before = cluster.writes().await?;
    sleep(Duration::from_secs(10)).await;
    ensure!(cluster.writes().await? == before, "an idle operator writes");
    cluster.kill_operator();
    cluster.start_operator().await?;
    sleep(Duration::from_secs(5)).await;
    let writes = cluster.writes().await?;
    // The one object that someone else changed has to be compared by the API server, once.
    ensure!(
        writes <= 1,
        "{writes} writes after a restart that found everything in place"
    );
    Ok(())
}
