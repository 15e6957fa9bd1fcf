//! Every rule of the definitions, broken by a spec of its own: the API server's message names the field and says what to do.

use anyhow::{Context, Result, bail, ensure};
use hawkeye_crds::v1alpha1::{HardwareClass, HawkeyeDeployment};
use kube::{
    Api,
    api::PostParams,
    core::{DynamicObject, discovery::ApiResource},
};
use serde_json::{Value, json};

use crate::{plugin, scenarios::namespace, server::Cluster};

const DRY: PostParams = PostParams {
    dry_run: true,
    field_manager: None,
};

/// Spec, field in the message, words in the message.
const REFUSED: &[(&str, &str, &str)] = &[
    // Model.
    (
        "{model: {revision: '1'}}",
        "spec.model",
        "exactly one of image, persistentVolumeClaim and http",
    ),
    (
        "{model: {image: {reference: a}, http: {url: 'http://a/b', sha256: SUM}}}",
        "spec.model",
        "exactly one of image, persistentVolumeClaim and http",
    ),
    (
        "{model: {http: {url: 'http://a/b'}}}",
        "spec.model.http.sha256",
        "Required",
    ),
    (
        "{model: {http: {url: 'ftp://example.com/b', sha256: SUM}}}",
        "spec.model.http.url",
        "match",
    ),
    (
        "{model: {http: {url: 'http://u:p@a/b', sha256: SUM}}}",
        "spec.model.http.url",
        "match",
    ),
    (
        "{model: {http: {url: 'http://a/b c', sha256: SUM}}}",
        "spec.model.http.url",
        "match",
    ),
    (
        "{model: {http: {url: 'http://a/b', sha256: abc}}}",
        "spec.model.http.sha256",
        "64",
    ),
    (
        "{model: {http: {url: 'http://a/b', sha256: SUM, maxSize: 1k}}}",
        "maxSize",
        "at least 1Mi",
    ),
    (
        "{model: {http: {url: 'http://a/b', sha256: SUM, maxSize: 2Ti}}}",
        "maxSize",
        "at most 1Ti",
    ),
    (
        "{model: {image: {reference: a}, revision: ''}}",
        "spec.model.revision",
        "at least 1",
    ),
    (
        "{model: {image: {reference: 'https://a/b:c'}}}",
        "spec.model.image.reference",
        "must be an image reference",
    ),
    (
        "{model: {persistentVolumeClaim: {claimName: a..b}}}",
        "claimName",
        "match",
    ),
    // Images.
    (
        "{image: 'example.com/Team/name:tag'}",
        "spec.image",
        "must be an image reference",
    ),
    (
        "{image: 'example.com/name:'}",
        "spec.image",
        "must be an image reference",
    ),
    (
        "{image: 'example.com/name@sha256:abc'}",
        "spec.image",
        "must be an image reference",
    ),
    ("{image: 'a b'}", "spec.image", "must be an image reference"),
    (
        "{overrides: {a: {image: ':tag'}}}",
        "spec.overrides",
        "must be an image reference",
    ),
    // Devices and number formats.
    (
        "{device: Cpu, dtype: Float16}",
        "spec.dtype",
        "CPUs have no Float16 kernels",
    ),
    ("{device: Cuda, dtype: Int8}", "spec.dtype", "GPUs have no Int8 kernels"),
    (
        "{device: Cpu, overrides: {a: {dtype: Float16}}}",
        "spec.overrides",
        "CPUs have no Float16 kernels",
    ),
    // Pods.
    ("{priorityClassName: 'a b'}", "spec.priorityClassName", "match"),
    ("{priorityClassName: 'a..b'}", "spec.priorityClassName", "match"),
    (
        "{imagePullSecrets: [{name: 'a.-b'}]}",
        "spec.imagePullSecrets[0].name",
        "match",
    ),
    (
        "{podMetadata: {labels: {a: 'b c'}}}",
        "spec.podMetadata.labels",
        "match",
    ),
    (
        "{podMetadata: {labels: {'a b': c}}}",
        "spec.podMetadata.labels",
        "must have keys as Kubernetes has them",
    ),
    (
        "{podMetadata: {annotations: {'-a': b}}}",
        "spec.podMetadata.annotations",
        "must have keys as Kubernetes has them",
    ),
    (
        "{networkPolicy: {from: [{podSelector: {matchLabels: {a: 'b c'}}}]}}",
        "spec.networkPolicy.from[0].podSelector.matchLabels",
        "match",
    ),
    (
        "{networkPolicy: {from: [{podSelector: {matchExpressions: [{key: 'a b', operator: Exists}]}}]}}",
        "matchExpressions[0].key",
        "match",
    ),
    (
        "{networkPolicy: {from: [{}]}}",
        "spec.networkPolicy.from[0]",
        "either ipBlock",
    ),
    (
        "{networkPolicy: {egress: [{ports: [{port: 0}]}]}}",
        "ports[0].port",
        "greater than or equal to 1",
    ),
    // Overrides.
    (
        "{overrides: {A_b: {replicas: 1}}}",
        "spec.overrides",
        "names of hardware classes",
    ),
    ("{overrides: {a: {memory: 17Ti}}}", "memory", "at most 16Ti"),
    ("{overrides: {a: {cpu: 1025}}}", "cpu", "at most 1024"),
    (
        "{overrides: {a: {replicas: -1}}}",
        "spec.overrides.a.replicas",
        "greater than or equal to 0",
    ),
    (
        "{overrides: {a: {env: [{name: A, value: x}, {name: A, value: y}]}}}",
        "spec.overrides[a].env[1]",
        "Duplicate value",
    ),
];

const TAKEN: &[&str] = &[
    "{image: 'localhost:5000/a'}",
    "{image: 'registry.example.com:5000/team/a_b--c.d/name:Tag_1.2-3'}",
    "{image: 'name'}",
    "{image: 'a/b@sha256:SUM'}",
    "{image: '[fd00::1]:5000/a/b:c'}",
    "{image: 'ghcr.io/a/b:1.2.3@sha256:SUM'}",
    "{model: {http: {url: 'https://example.com:8443/a/b.tar.zst?x=1&y=$(z)', sha256: SUM, maxSize: 1Mi}, revision: 'of today'}}",
    "{device: Cuda, overrides: {cpu-amd64: {dtype: Float32}, cuda-amd64: {dtype: Float16}}}",
    // What replicas that find no GPU may have.
    "{device: Cuda, overrides: {cpu-amd64: {dtype: Int8}}}",
    "{device: Cpu, dtype: Int8}",
    // Pins may add up to more: whoever scales a HawkeyeDeployment down must not be refused. They are trimmed.
    "{replicas: 1, overrides: {a: {replicas: 2}, b: {replicas: 2}}}",
];

/// Pointer into a good HardwareClass, value, field, words.
fn bad_classes() -> Vec<(&'static str, Value, &'static str, &'static str)> {
    let term = |key: &str, operator: &str, values: Value| json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]);
    let terms = "/spec/nodeSelectorTerms";
    vec![
        (
            "/spec/resource",
            json!("example.kubernetes.io/gpu"),
            "spec.resource",
            "must be an extended resource",
        ),
        (
            "/spec/resource",
            json!("requests.nvidia.com/gpu"),
            "spec.resource",
            "must be an extended resource",
        ),
        (
            "/spec/memory",
            json!({"limit": "1Mi"}),
            "spec.memory.limit",
            "at least 256Mi",
        ),
        ("/spec/cpu", json!({"request": 0}), "spec.cpu.request", "at least 10m"),
        (
            "/spec/runtimeClassName",
            json!("Not A Name"),
            "spec.runtimeClassName",
            "match",
        ),
        (
            terms,
            term("not a label", "In", json!(["x"])),
            "matchExpressions[0].key",
            "match",
        ),
        (terms, term("a", "In", json!(["not a value"])), "values[0]", "match"),
        (terms, term("a", "In", json!([])), "values", "values must be given"),
        (
            "/spec/tolerations",
            json!([{"effect": "NoSchedule"}]),
            "spec.tolerations[0].key",
            "unless operator is Exists",
        ),
        (
            "/spec/tolerations",
            json!([{"key": "a b", "operator": "Exists"}]),
            "spec.tolerations[0].key",
            "match",
        ),
        (
            "/spec/tolerations",
            json!([{"key": "a", "operator": "Exists", "value": "x"}]),
            "spec.tolerations[0].value",
            "must not be set",
        ),
        (
            "/spec/tolerations",
            json!([{"key": "a", "value": "x y"}]),
            "spec.tolerations[0].value",
            "match",
        ),
        (
            "/spec/tolerations",
            json!([{"key": "a", "operator": "Lt", "value": "1"}]),
            "spec.tolerations[0].operator",
            "Exists",
        ),
        (
            "/spec/env",
            json!([{"name": "A", "value": ""}, {"name": "A", "value": ""}]),
            "spec.env[1]",
            "Duplicate value",
        ),
        (
            "/spec/env",
            json!([{"name": "OMP_NUM_THREADS", "value": "1"}]),
            "spec.env[0].name",
            "the operator sets",
        ),
    ]
}

pub async fn every_rule(cluster: &'static Cluster) -> Result<()> {
    namespace(cluster, "rules").await?;
    let resource = ApiResource::erase::<HawkeyeDeployment>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), "rules", &resource);
    let post = async |spec: &str| {
        let text = spec.replace("SUM", &"5f".repeat(32));
        let spec: Value = serde_saphyr::from_str(&text).with_context(|| spec.to_owned())?;
        let answer = api
            .create(&DRY, &DynamicObject::new("ok", &resource).data(json!({"spec": spec})))
            .await;
        // Without a server, the plugin says the same.
        let admitted = plugin::admit("HawkeyeDeployment", "ok", &text)?;
        ensure!(
            admitted.is_ok() == answer.is_ok(),
            "the plugin differs on {text}: {admitted:?}"
        );
        anyhow::Ok(answer)
    };
    for (spec, field, words) in REFUSED {
        let Err(error) = post(spec).await? else {
            bail!("{spec} was taken")
        };
        let message = error.to_string();
        ensure!(
            message.contains(field) && message.contains(words),
            "{spec}: not {field} and {words}: {message}"
        );
    }
    for spec in TAKEN {
        post(spec).await?.with_context(|| (*spec).to_owned())?;
    }
    let hardware = ApiResource::erase::<HardwareClass>(&());
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &hardware);
    let good = json!({"spec": {
        "priority": 1, "arch": "amd64", "device": "Cuda", "imageVariant": "cuda", "dtype": "Float16",
        "resource": "nvidia.com/gpu", "batchSize": {"speed": 1, "balanced": 1, "quality": 1},
        "memory": {"limit": "1Gi"}, "cpu": {"request": 1}, "runtimeClassName": "nvidia",
        "nodeSelectorTerms": [{"matchExpressions": [{"key": "example.com/a", "operator": "In", "values": ["x_1.y", ""]}]}],
        "tolerations": [{"operator": "Exists"}, {"key": "a", "value": ""}], "env": [],
    }});
    api.create(&DRY, &DynamicObject::new("ok", &hardware).data(good.clone()))
        .await
        .context("the good class")?;
    for (pointer, value, field, words) in bad_classes() {
        let mut object = good.clone();
        *object.pointer_mut(pointer).with_context(|| pointer.to_owned())? = value.clone();
        let admitted = plugin::admit("HardwareClass", "ok", &object["spec"].to_string())?;
        ensure!(admitted.is_err(), "the plugin takes {pointer} {value}");
        let Err(error) = api
            .create(&DRY, &DynamicObject::new("ok", &hardware).data(object))
            .await
        else {
            bail!("{pointer} {value} was taken")
        };
        let message = error.to_string();
        ensure!(
            message.contains(field) && message.contains(words),
            "{pointer} {value}: not {field} and {words}: {message}"
        );
    }
    Ok(())
}

/// Nothing is immutable: every change is one that the operator carries out.
pub async fn changes(cluster: &'static Cluster) -> Result<()> {
    let hardware: Api<HardwareClass> = Api::all(cluster.client.clone());
    let mut class = hardware.get("cpu-amd64").await?;
    class.metadata = serde_json::from_value(json!({"name": "changing"}))?;
    hardware.create(&PostParams::default(), &class).await?;
    let change =
        json!({"spec": {"arch": "arm64", "device": "Cuda", "imageVariant": "cuda", "resource": "nvidia.com/gpu"}});
    let params = kube::api::PatchParams::default();
    let changed = hardware
        .patch("changing", &params, &kube::api::Patch::Merge(change))
        .await;
    hardware.delete("changing", &kube::api::DeleteParams::default()).await?;
    changed?;
    Ok(())
}
