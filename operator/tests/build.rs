//! The objects of a plan: golden files for whole objects, single tests for what must never change.
//!
//! After a wanted change: `INSTA_UPDATE=always cargo test -p hawkeye-operator --test build`, then read the diff.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use common::{http_model, images, index, model, node, plan, spec};
use hawkeye_crds::v1alpha1::{ModelClaim, ModelSource};
use hawkeye_operator::controller::{
    build::{
        self, Objects, Owner,
        model::{digest_of, mounted_image},
    },
    plan::Plan,
};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::PodSpec};

const PLATFORMS: [&str; 7] = [
    "dgx-spark",
    "gh200",
    "x86-rtx",
    "graviton2",
    "graviton3",
    "cpu-arm64",
    "cpu-amd64",
];

fn built(yaml: &str, model: &ModelSource) -> (Plan, Objects) {
    built_of(yaml, model, None)
}

/// With the digest that a registry said to be behind the model's tag.
fn built_of(yaml: &str, model: &ModelSource, digest: Option<&str>) -> (Plan, Objects) {
    let nodes = PLATFORMS.map(node);
    let mut plan = plan(yaml, &index(&nodes));
    for pool in &mut plan.pools {
        pool.model_digest = digest.map(str::to_owned);
    }
    let spec = spec(yaml);
    let owner = Owner {
        namespace: "screens",
        name: "demo",
        uid: "0b7d-uid",
        spec: &spec,
    };
    let objects = build::build(&owner, &plan, &images(), model, Some("hawkeye-system"));
    (plan, objects)
}

fn one(class: &str, more: &str) -> Deployment {
    let (_, objects) = built(&format!("{{classes: [{class}], {more}}}"), &model());
    objects.deployments.into_iter().next().unwrap()
}

fn pod(deployment: &Deployment) -> &PodSpec {
    deployment.spec.template.spec.as_ref().unwrap()
}

fn env<'a>(deployment: &'a Deployment, name: &str) -> Option<&'a str> {
    let vars: Vec<&str> = pod(deployment).containers[0]
        .env
        .iter()
        .flatten()
        .filter(|var| var.name == name)
        .filter_map(|var| var.value.as_deref())
        .collect();
    assert!(vars.len() <= 1, "{name} is there twice");
    vars.first().copied()
}

fn golden(name: &str, value: &impl serde::Serialize) {
    // Instance types are a table with a test of its own; here they would hide everything else.
    let mut value = serde_json::to_value(value).unwrap();
    shorten_lists(&mut value);
    insta::with_settings!({snapshot_path => "golden", prepend_module_to_snapshot => false, omit_expression => true}, {
        insta::assert_yaml_snapshot!(name, value);
    });
}

fn shorten_lists(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Array(items) if items.len() > 100 => {
            let more = items.len() - 2;
            items.truncate(2);
            items.push(format!("… and {more} more").into());
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(shorten_lists),
        serde_json::Value::Object(map) => map.values_mut().for_each(shorten_lists),
        _ => {}
    }
}

#[test]
fn golden_pools() {
    for class in [
        "dgx-spark",
        "cuda-arm64",
        "cuda-amd64",
        "graviton",
        "cpu-arm64",
        "cpu-amd64",
    ] {
        golden(class, &one(class, ""));
    }
}

#[test]
fn golden_service() {
    golden("service", &built("{}", &model()).1.service);
}

#[test]
fn golden_overrides() {
    let more = "replicas: 3, profile: Speed, overrides: {cpu-amd64: {batchSize: 4, memory: 1536Mi, cpu: 1500m, \
                dtype: BFloat16, image: example.com/own:1, env: [{name: RUST_LOG, value: debug}, \
                {name: HAWKEYE_LOG_FORMAT, value: text}]}}";
    golden("overrides", &one("cpu-amd64", more));
}

#[test]
fn golden_int8() {
    golden("cpu-amd64-int8", &one("cpu-amd64", "dtype: Int8"));
}

#[test]
fn int8_never_reaches_a_gpu_pod() {
    let format = |class: &str| env(&one(class, "dtype: Int8"), "OMNIPARSER_MODEL_DTYPE").map(str::to_owned);
    for (class, expected) in [
        ("dgx-spark", "bfloat16"),
        ("cuda-amd64", "float16"),
        ("graviton", "int8"),
        ("cpu-arm64", "int8"),
    ] {
        assert_eq!(format(class).as_deref(), Some(expected), "{class}");
    }
}

#[test]
fn a_pool_for_each_class_with_replicas_and_one_service() {
    let (plan, objects) = built("{replicas: 5}", &model());
    let names: Vec<String> = objects
        .deployments
        .iter()
        .map(|deployment| deployment.metadata.name.clone().unwrap())
        .collect();
    assert_eq!(
        names,
        ["demo-dgx-spark", "demo-cuda-arm64", "demo-cuda-amd64", "demo-graviton"]
    );
    let replicas: Vec<i32> = objects
        .deployments
        .iter()
        .filter_map(|deployment| deployment.spec.replicas)
        .collect();
    assert_eq!(replicas, [1, 1, 1, 2]);
    assert!(
        plan.pools.len() > objects.deployments.len(),
        "classes without replicas have a reason, but no Deployment"
    );
    let (_, none) = built("{replicas: 0}", &model());
    assert!(none.deployments.is_empty());
}

#[test]
fn every_term_of_the_affinity_names_system_and_architecture() {
    for deployment in built("{replicas: 9}", &model()).1.deployments {
        let affinity = pod(&deployment)
            .affinity
            .as_ref()
            .unwrap()
            .node_affinity
            .as_ref()
            .unwrap();
        let required = affinity
            .required_during_scheduling_ignored_during_execution
            .as_ref()
            .unwrap();
        for term in &required.node_selector_terms {
            let expressions = term.match_expressions.as_ref().unwrap();
            for key in ["kubernetes.io/os", "kubernetes.io/arch"] {
                let found = expressions.iter().find(|expression| expression.key == key).unwrap();
                assert_eq!(
                    (found.operator.as_str(), found.values.as_ref().unwrap().len()),
                    ("In", 1)
                );
            }
        }
    }
}

#[test]
fn pods_are_restricted_and_know_nothing_of_the_api() {
    for deployment in built("{replicas: 9}", &model()).1.deployments {
        let pod = pod(&deployment);
        assert_eq!(pod.automount_service_account_token, Some(false));
        assert_eq!(pod.service_account_name, None);
        assert!(pod.host_network.is_none() && pod.host_pid.is_none() && pod.host_ipc.is_none());
        let security = pod.security_context.as_ref().unwrap();
        assert_eq!(
            (security.run_as_non_root, security.run_as_user),
            (Some(true), Some(65532))
        );
        assert_eq!(security.seccomp_profile.as_ref().unwrap().type_, "RuntimeDefault");
        let container = pod.containers[0].security_context.as_ref().unwrap();
        assert_eq!(container.allow_privilege_escalation, Some(false));
        assert_eq!(container.read_only_root_filesystem, Some(true));
        assert_eq!(
            container.capabilities.as_ref().unwrap().drop.as_deref(),
            Some(&["ALL".to_owned()][..])
        );
        assert!(pod.volumes.iter().flatten().all(|volume| volume.host_path.is_none()));
    }
}

#[test]
fn gpu_pools_ask_for_one_gpu_and_end_a_pod_before_they_start_the_next() {
    let deployment = one("dgx-spark", "");
    let resources = pod(&deployment).containers[0].resources.as_ref().unwrap();
    for side in [&resources.limits, &resources.requests] {
        assert_eq!(side.as_ref().unwrap()["nvidia.com/gpu"].0, "1");
        assert_eq!(side.as_ref().unwrap()["memory"].0, "8Gi");
    }
    assert!(
        !resources.limits.as_ref().unwrap().contains_key("cpu"),
        "a CPU limit only slows a pod down"
    );
    let rolling = deployment
        .spec
        .strategy
        .as_ref()
        .unwrap()
        .rolling_update
        .as_ref()
        .unwrap();
    assert_eq!(
        serde_json::json!(rolling),
        serde_json::json!({"maxSurge": 0, "maxUnavailable": 1})
    );
    assert_eq!(env(&deployment, "OMNIPARSER_DEVICE"), Some("cuda"));
    assert_eq!(
        env(&deployment, "NVIDIA_VISIBLE_DEVICES"),
        None,
        "the device plugin sets it"
    );
}

#[test]
fn cpu_pools_see_no_gpu() {
    let deployment = one("cpu-arm64", "");
    assert_eq!(env(&deployment, "NVIDIA_VISIBLE_DEVICES"), Some("void"));
    assert_eq!(env(&deployment, "OMNIPARSER_DEVICE"), Some("cpu"));
    let resources = pod(&deployment).containers[0].resources.as_ref().unwrap();
    assert!(resources.limits.as_ref().unwrap().keys().all(|name| name == "memory"));
}

#[test]
fn what_the_operator_sets_cannot_be_set_otherwise() {
    // The schema refuses it, but a class that was stored under an older schema may still say so.
    let deployment = one(
        "cpu-amd64",
        "overrides: {cpu-amd64: {env: [{name: OMNIPARSER_DEVICE, value: cuda}]}}",
    );
    assert_eq!(env(&deployment, "OMNIPARSER_DEVICE"), Some("cpu"));
}

#[test]
fn a_change_of_one_override_changes_one_pool() {
    let (_, before) = built("{replicas: 5}", &model());
    let (_, after) = built("{replicas: 5, overrides: {graviton: {batchSize: 8}}}", &model());
    for (before, after) in before.deployments.iter().zip(&after.deployments) {
        let same = before.spec.template == after.spec.template;
        assert_eq!(same, before.metadata.name.as_deref() != Some("demo-graviton"));
    }
}

#[test]
fn scaling_leaves_the_template_alone() {
    let (_, one) = built("{replicas: 1, classes: [cpu-amd64]}", &model());
    let (_, three) = built("{replicas: 3, classes: [cpu-amd64]}", &model());
    assert_eq!(one.deployments[0].spec.template, three.deployments[0].spec.template);
}

#[test]
fn a_claim_is_mounted_read_only() {
    let claim = ModelSource {
        persistent_volume_claim: Some(ModelClaim {
            claim_name: "bundle".into(),
        }),
        ..ModelSource::default()
    };
    let (_, objects) = built("{classes: [cpu-amd64]}", &claim);
    let pod = pod(&objects.deployments[0]);
    let volume = &pod.volumes.as_ref().unwrap()[0];
    let source = volume.persistent_volume_claim.as_ref().unwrap();
    assert_eq!((source.claim_name.as_str(), source.read_only), ("bundle", Some(true)));
    assert!(volume.image.is_none());
    let mount = &pod.containers[0].volume_mounts.as_ref().unwrap()[0];
    assert_eq!((mount.mount_path.as_str(), mount.read_only), ("/models", Some(true)));
}

#[test]
fn golden_download() {
    let env = "overrides: {cuda-amd64: {env: [{name: HTTPS_PROXY, value: 'http://proxy:3128'}]}}";
    let (_, objects) = built(&format!("{{classes: [cuda-amd64], {env}}}"), &http_model());
    golden("download", &objects.deployments[0]);
}

#[test]
fn a_download_asks_for_no_gpu_and_no_more_than_the_parser() {
    let (_, objects) = built("{classes: [cuda-amd64]}", &http_model());
    let pod = pod(&objects.deployments[0]);
    let (fetcher, parser) = (&pod.init_containers.as_ref().unwrap()[0], &pod.containers[0]);
    let (of, than) = (fetcher.resources.as_ref().unwrap(), parser.resources.as_ref().unwrap());
    for (of, than) in [(&of.limits, &than.limits), (&of.requests, &than.requests)] {
        let (of, than) = (of.as_ref().unwrap(), than.as_ref().unwrap());
        assert!(than.contains_key("nvidia.com/gpu") && !of.contains_key("nvidia.com/gpu"));
        assert!(of.iter().all(|(name, quantity)| than[name] == *quantity));
    }
    assert_eq!(fetcher.security_context, parser.security_context);
    assert_eq!(fetcher.image, parser.image);
    // Kubernetes would put a variable's value in place of `$(HOME)`.
    let arguments = fetcher.args.as_ref().unwrap();
    assert!(
        arguments.contains(&"https://example.com/bundle.tar.gz?sign=$$(HOME)".to_owned()),
        "{arguments:?}"
    );
    assert_eq!(env(&objects.deployments[0], "HAWKEYE_BUNDLE"), Some("/models/bundle"));
    assert_eq!(parser.volume_mounts.as_ref().unwrap()[0].read_only, Some(true));
}

#[test]
fn a_change_of_the_model_rolls_the_pods() {
    let template = |model: &ModelSource, digest| {
        let (_, objects) = built_of("{classes: [cpu-amd64]}", model, digest);
        serde_json::to_string(&objects.deployments[0].spec.template).unwrap()
    };
    let source = |change: fn(&mut ModelSource)| {
        let mut source = http_model();
        change(&mut source);
        source
    };
    let same = source(|_| {});
    let sum = source(|source| source.http.as_mut().unwrap().sha256 = "60".repeat(32));
    let url = source(|source| source.http.as_mut().unwrap().url = "https://example.com/other.tar".into());
    let revision = source(|source| source.revision = Some("2".into()));
    let again = source(|source| source.revision = Some("3".into()));
    let mut templates: Vec<String> = [&same, &sum, &url, &revision, &again]
        .map(|source| template(source, None))
        .into();
    templates.extend([None, Some("sha256:a"), Some("sha256:b")].map(|digest| template(&model(), digest)));
    let mut different = templates.clone();
    different.sort();
    different.dedup();
    assert_eq!(different.len(), templates.len());
    assert_eq!(template(&same, None), templates[0]);
}

/// A node takes what it has under a tag, so that the tag alone would leave a pod that was made anew with the old content.
#[test]
fn pods_mount_the_digest_behind_the_tag_and_it_is_found_again() {
    let volume = |digest| {
        let (_, mut objects) = built_of("{classes: [cpu-amd64]}", &model(), digest);
        let deployment = objects.deployments.remove(0);
        let image = pod(&deployment).volumes.as_ref().unwrap()[0].image.clone().unwrap();
        (deployment, image.reference.unwrap())
    };
    let digest = format!("sha256:{}", "a".repeat(64));
    let mounted = |deployment, name| Some(digest_of(mounted_image(deployment)?, name)?.to_owned());
    let (deployment, reference) = volume(Some(digest.as_str()));
    assert_eq!(reference, format!("example.com/bundle:test@{digest}"));
    assert_eq!(mounted(&deployment, "example.com/bundle:test"), Some(digest.clone()));
    for other in [
        "example.com/bundle:next",
        "example.com/bundle",
        "example.com/bundle:tes",
    ] {
        assert_eq!(mounted(&deployment, other), None, "{other} is another image");
    }
    let (deployment, reference) = volume(None);
    assert_eq!(reference, "example.com/bundle:test");
    assert_eq!(mounted(&deployment, &reference), None);
}

#[test]
fn values_of_variables_mean_themselves() {
    let deployment = one(
        "cpu-amd64",
        "overrides: {cpu-amd64: {env: [{name: A, value: 'a$(HOME)$$b$'}]}}",
    );
    // What a kubelet makes `a$(HOME)$$b$` of.
    assert_eq!(env(&deployment, "A"), Some("a$$(HOME)$$$$b$$"));
}

#[test]
fn selector_and_service_match_the_pods() {
    let (_, objects) = built("{replicas: 5}", &model());
    let service = objects.service.spec.unwrap().selector.unwrap();
    for deployment in objects.deployments {
        let labels = deployment.spec.template.metadata.unwrap().labels.unwrap();
        assert!(service.iter().all(|(key, value)| labels.get(key) == Some(value)));
        let own = deployment.spec.selector.match_labels.unwrap();
        assert!(own.iter().all(|(key, value)| labels.get(key) == Some(value)));
    }
    let wanted: Vec<String> = service.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(build::selector("demo"), wanted.join(","));
}

#[test]
fn the_longest_names_still_fit() {
    let name = build::pool_name(&"n".repeat(40), &"c".repeat(20));
    assert!(name.len() <= 63);
}
