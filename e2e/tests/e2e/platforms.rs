//! Every platform of the fixtures gets the right pool, and its pods land on its nodes.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use hawkeye_crds::v1alpha1::ConditionStatus;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::support::{Scope, Suite, condition, env, expect, pretty};

/// What a class must come to, stated here by hand and not derived from the classes' own files.
struct Platform {
    class: &'static str,
    nodes: &'static [&'static str],
    arch: &'static str,
    gpu: bool,
    batch: [(&'static str, &'static str); 3],
    memory: &'static str,
    dtype: &'static str,
}

const CUDA_BATCH: [(&str, &str); 3] = [("Speed", "64"), ("Balanced", "128"), ("Quality", "128")];
const CPU_BATCH: [(&str, &str); 3] = [("Speed", "16"), ("Balanced", "16"), ("Quality", "16")];

/// Batch and memory: the seed's table (128 on CUDA, 16 on CPU; 8 GB on DGX Spark, 4 GB elsewhere).
const PLATFORMS: [Platform; 5] = [
    Platform {
        class: "dgx-spark",
        nodes: &["dgx-spark"],
        arch: "arm64",
        gpu: true,
        batch: CUDA_BATCH,
        memory: "8Gi",
        dtype: "bfloat16",
    },
    Platform {
        class: "cuda-arm64",
        nodes: &["gh200"],
        arch: "arm64",
        gpu: true,
        batch: CUDA_BATCH,
        memory: "4Gi",
        dtype: "float16",
    },
    Platform {
        class: "cuda-amd64",
        nodes: &["x86-rtx"],
        arch: "amd64",
        gpu: true,
        batch: CUDA_BATCH,
        memory: "4Gi",
        dtype: "float16",
    },
    Platform {
        class: "graviton",
        nodes: &["graviton2", "graviton3"],
        arch: "arm64",
        gpu: false,
        batch: CPU_BATCH,
        memory: "4Gi",
        dtype: "float32",
    },
    Platform {
        class: "cpu-arm64",
        nodes: &["cpu-arm64"],
        arch: "arm64",
        gpu: false,
        batch: CPU_BATCH,
        memory: "4Gi",
        dtype: "float32",
    },
];

pub async fn each_platform_gets_its_pool(suite: &Suite) -> Result<()> {
    let scope = suite.namespace("platforms").await?;
    for platform in &PLATFORMS {
        for (profile, batch) in platform.batch {
            let name = format!("on-{}", platform.class);
            scope
                .apply(&name, json!({"classes": [platform.class], "profile": profile}))
                .await?;
            scope.until_ready(&name, 1, 60).await?;
            check(&scope, platform, &name, profile, batch)
                .await
                .with_context(|| format!("{} with profile {profile}", platform.class))?;
        }
        scope.delete(&format!("on-{}", platform.class)).await?;
    }
    Ok(())
}

async fn check(scope: &Scope<'_>, platform: &Platform, name: &str, profile: &str, batch: &str) -> Result<()> {
    let deployment = scope.deployment(&format!("{name}-{}", platform.class)).await?;
    let device = if platform.gpu { "cuda" } else { "cpu" };
    let var = |n: &str| env(&deployment, n);
    expect("batch", &var("OMNIPARSER_BATCH_SIZE").as_deref(), &Some(batch))?;
    expect("device", &var("OMNIPARSER_DEVICE").as_deref(), &Some(device))?;
    expect(
        "dtype",
        &var("OMNIPARSER_MODEL_DTYPE").as_deref(),
        &Some(platform.dtype),
    )?;
    expect(
        "profile",
        &var("OMNIPARSER_PERFORMANCE_PROFILE"),
        &Some(profile.to_uppercase()),
    )?;
    let hidden = (!platform.gpu).then(|| "void".to_owned());
    expect("GPUs hidden from CPU pods", &var("NVIDIA_VISIBLE_DEVICES"), &hidden)?;

    let pod = deployment.spec.template.spec.context("no pod spec")?;
    let image = pod.containers[0].image.clone().unwrap_or_default();
    ensure!(
        image.ends_with(if platform.gpu { "-cuda" } else { "-cpu" }),
        "image {image}"
    );
    let resources = pod.containers[0].resources.clone().context("no resources")?;
    let limits = resources.limits.unwrap_or_default();
    expect(
        "memory limit",
        &limits.get("memory").map(|q| q.0.as_str()),
        &Some(platform.memory),
    )?;
    let gpus = limits.get("nvidia.com/gpu").map(|q| q.0.as_str());
    expect("GPU limit", &gpus, &platform.gpu.then_some("1"))?;

    // Every term must name the architecture: terms are ORed, so one without it would widen the placement.
    let required = pod
        .affinity
        .and_then(|a| a.node_affinity)
        .and_then(|a| a.required_during_scheduling_ignored_during_execution)
        .context("no required node affinity")?;
    ensure!(!required.node_selector_terms.is_empty(), "no term");
    for term in &required.node_selector_terms {
        let expressions = term.match_expressions.clone().unwrap_or_default();
        let arch = expressions.iter().find(|e| e.key == "kubernetes.io/arch");
        let values = arch.and_then(|e| e.values.clone()).unwrap_or_default();
        expect("architecture of each term", &values, &vec![platform.arch.to_owned()])?;
    }

    for pod in scope
        .pods(name)
        .await?
        .iter()
        .filter(|p| p.metadata.deletion_timestamp.is_none())
    {
        let node = node_of(pod);
        ensure!(
            platform.nodes.contains(&node.as_str()),
            "{} runs on {node}",
            pod.name_any()
        );
    }
    Ok(())
}

fn node_of(pod: &Pod) -> String {
    pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default()
}

pub async fn auto_prefers_gpus_and_overflows_to_cpus(suite: &Suite) -> Result<()> {
    let scope = suite.namespace("auto").await?;
    let classes = ["dgx-spark", "cuda-arm64", "cuda-amd64", "graviton", "cpu-arm64"];
    let gpus = gpus(&suite.nodes().await?);
    ensure!(gpus >= 3, "the fixtures offer {gpus} GPUs");
    let replicas = i32::try_from(gpus + 2)?;
    scope
        .apply("mixed", json!({"replicas": replicas, "classes": classes}))
        .await?;
    let object = scope.until_ready("mixed", replicas, 90).await?;
    let pools = &object.status.as_ref().context("no status")?.pools;
    let with_gpu: i32 = pools
        .iter()
        .filter(|p| p.class.contains("cuda") || p.class == "dgx-spark")
        .map(|p| p.replicas)
        .sum();
    expect("replicas on GPUs", &i64::from(with_gpu), &gpus)?;
    let overflow = pools.iter().find(|p| p.class == "graviton").map(|p| p.replicas);
    expect("replicas on the next class", &overflow, &Some(2))?;
    let nodes: BTreeSet<_> = scope.pods("mixed").await?.iter().map(node_of).collect();
    for node in ["dgx-spark", "gh200", "x86-rtx"] {
        ensure!(nodes.contains(node), "no pod on {node}, only on {nodes:?}");
    }
    scope.delete("mixed").await
}

pub async fn deny_leaves_the_rest_unplaced_and_says_so(suite: &Suite) -> Result<()> {
    let scope = suite.namespace("deny").await?;
    let spec = json!({"replicas": 3, "device": "Cuda", "fallback": "Deny", "classes": ["dgx-spark"]});
    scope.apply("strict", spec.clone()).await?;
    let unplaced = |o: &hawkeye_crds::v1alpha1::HawkeyeDeployment| {
        condition(o, "Placed").is_some_and(|c| c.status == ConditionStatus::False)
    };
    let object = scope.until("strict", "unplaced", 60, unplaced).await?;
    let message = condition(&object, "Placed")
        .map(|c| c.message.clone())
        .unwrap_or_default();
    ensure!(message.contains('2'), "the message does not say how many: {message}");
    expect(
        "pods of what has a place",
        &scope
            .until_ready("strict", 1, 60)
            .await?
            .status
            .map(|s| s.ready_replicas),
        &Some(1),
    )?;

    let mut degrade: Value = spec;
    degrade["fallback"] = json!("Degrade");
    degrade["classes"] = json!(["dgx-spark", "graviton"]);
    scope.apply("strict", degrade).await?;
    let object = scope.until_ready("strict", 3, 60).await?;
    let found = condition(&object, "Degraded").context("no condition Degraded")?;
    ensure!(found.status == ConditionStatus::True, "Degraded: {}", pretty(found));
    scope.delete("strict").await
}

fn gpus(nodes: &[Node]) -> i64 {
    let of = |node: &Node| -> Option<i64> {
        node.status
            .as_ref()?
            .allocatable
            .as_ref()?
            .get("nvidia.com/gpu")?
            .0
            .parse()
            .ok()
    };
    nodes.iter().filter_map(of).sum()
}
