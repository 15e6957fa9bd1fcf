//! Thousands of nodes and the HawkeyeDeployments for them.

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::{
    core::v1::{Namespace, Node},
    networking::v1::ServiceCIDR,
};
use kube::{
    Api, Client,
    api::{ApiResource, ListParams, PostParams},
    core::{DynamicObject, GroupVersionKind},
};
use serde_json::{Value, json};

use crate::fake_nodes::FIXTURES;

/// Pods of the bench may land on fake nodes.
pub(super) const TOLERATIONS: &str =
    r#"hardwareClassDefaults.tolerations=[{"key":"kwok.x-k8s.io/node","operator":"Exists"}]"#;
/// Requests at a time; more would only queue in the API server.
const AT_A_TIME: usize = 16;
/// HawkeyeDeployments are spread over this many namespaces.
const NAMESPACES: usize = 20;

/// Addresses for the Services of thousands of HawkeyeDeployments, besides the cluster's own 254. Nothing is sent to them
/// (198.18.0.0/15 is for benchmarks by RFC 2544; kwok's pods have addresses at its beginning).
const SERVICES: &str = "198.19.0.0/20";

/// Makes room for thousands of Services.
pub(super) async fn add_addresses(client: &Client) -> Result<()> {
    let api: Api<ServiceCIDR> = Api::all(client.clone());
    let more = serde_json::from_value(json!({"metadata": {"name": "bench"}, "spec": {"cidrs": [SERVICES]}}))?;
    api.create(&PostParams::default(), &more).await?;
    Ok(())
}

/// The resource of HawkeyeDeployments.
pub(super) fn resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(
        "hawkeye.bytebot.ai",
        "v1alpha1",
        "HawkeyeDeployment",
    ))
}

/// Adds `count` nodes, the fixtures in turn under names of their own, and waits until all are ready.
pub(super) async fn add_nodes(client: &Client, count: usize) -> Result<()> {
    let fixtures: Vec<Value> = FIXTURES
        .iter()
        .map(|(name, text)| serde_saphyr::from_str(text).with_context(|| format!("fixture {name}")))
        .collect::<Result<_>>()?;
    let api: Api<Node> = Api::all(client.clone());
    let nodes = (0..count).map(|number| node(&fixtures[number % fixtures.len()], number));
    stream::iter(nodes)
        .map(|node| {
            let api = api.clone();
            async move {
                api.create(&PostParams::default(), &node?).await?;
                anyhow::Ok(())
            }
        })
        .buffer_unordered(AT_A_TIME)
        .try_collect::<()>()
        .await?;
    let fake = ListParams::default().labels("type=kwok");
    // A list of thousands of nodes costs the API server seconds, which kwok could use to make them ready.
    for _ in 0..60 {
        let ready = api.list(&fake).await?.iter().filter(|node| is_ready(node)).count();
        if ready == count {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_secs(15)).await;
    }
    ensure!(false, "the fake nodes do not become ready");
    Ok(())
}

fn node(fixture: &Value, number: usize) -> Result<Node> {
    let mut node = fixture.clone();
    let kind = fixture["metadata"]["name"]
        .as_str()
        .context("a fixture without a name")?;
    let name = format!("{kind}-{number}");
    node["metadata"]["labels"]["kubernetes.io/hostname"] = json!(name);
    node["metadata"]["labels"]["topology.kubernetes.io/zone"] = json!(format!("zone-{}", number % 3));
    node["metadata"]["name"] = json!(name);
    Ok(serde_json::from_value(node)?)
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Adds `count` HawkeyeDeployments of two replicas: half on whatever is best, the others for CPUs or for classes by name.
pub(super) async fn add_deployments(client: &Client, count: usize) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    for number in 0..NAMESPACES.min(count) {
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": namespace(number)}}))?;
        namespaces.create(&PostParams::default(), &namespace).await?;
    }
    stream::iter(0..count)
        .map(|number| async move {
            let spec = match number % 4 {
                0 | 1 => json!({"replicas": 2}),
                2 => json!({"replicas": 2, "device": "Cpu", "profile": "Speed"}),
                _ => json!({"replicas": 2, "classes": ["graviton", "cpu-arm64"],
                    "overrides": {"cpu-arm64": {"replicas": 1, "batchSize": 8}}}),
            };
            let resource = resource();
            let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace(number), &resource);
            let object = DynamicObject::new(&format!("parser-{number}"), &resource).data(json!({"spec": spec}));
            api.create(&PostParams::default(), &object).await?;
            anyhow::Ok(())
        })
        .buffer_unordered(AT_A_TIME)
        .try_collect()
        .await
}

fn namespace(number: usize) -> String {
    format!("team-{}", number % NAMESPACES)
}
