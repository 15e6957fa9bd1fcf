//! What is in a namespace in the end, in a form that two runs can be compared by.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use hawkeye_crds::v1alpha1::HawkeyeDeployment;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
    core::{DynamicObject, discovery::ApiResource},
    discovery::{Discovery, Scope, verbs},
};
use serde_json::Value;
use tokio::sync::OnceCell;

use crate::{scenarios::parsers, server::Cluster};

const OURS: &str = "app.kubernetes.io/managed-by=hawkeye-operator";

/// By kind and name, without what differs from run to run: UIDs, versions, times, the namespace.
pub type Snapshot = BTreeMap<String, Value>;

/// Every kind that lives in namespaces, can be listed and deleted: whatever the operator makes is among them.
async fn kinds(cluster: &Cluster) -> Result<&'static Vec<ApiResource>> {
    static KINDS: OnceCell<Vec<ApiResource>> = OnceCell::const_new();
    KINDS
        .get_or_try_init(async || {
            let discovery = Discovery::new(cluster.client.clone()).run().await?;
            let mut kinds = Vec::new();
            for group in discovery.groups() {
                for (resource, can) in group.recommended_resources() {
                    let left_out = ["Event", "Lease"].contains(&resource.kind.as_str());
                    let usable = can.supports_operation(verbs::LIST) && can.supports_operation(verbs::DELETE);
                    if can.scope == Scope::Namespaced && usable && !left_out {
                        kinds.push(resource);
                    }
                }
            }
            for needed in [
                "Deployment",
                "Service",
                "PodDisruptionBudget",
                "NetworkPolicy",
                "ConfigMap",
            ] {
                ensure!(
                    kinds.iter().any(|kind| kind.kind == needed),
                    "{needed} was not discovered"
                );
            }
            Ok(kinds)
        })
        .await
}

/// Objects that carry our label, with their kinds.
async fn ours(cluster: &Cluster, namespace: &str) -> Result<Vec<(&'static ApiResource, DynamicObject)>> {
    let params = ListParams::default().labels(OURS);
    let lists = kinds(cluster).await?.iter().map(async |kind| {
        let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), namespace, kind);
        let list = api.list(&params).await?;
        anyhow::Ok(list.items.into_iter().map(|object| (kind, object)).collect::<Vec<_>>())
    });
    Ok(futures::future::try_join_all(lists)
        .await?
        .into_iter()
        .flatten()
        .collect())
}

/// The HawkeyeDeployments of a namespace and everything that carries our label.
pub async fn snapshot(cluster: &Cluster, namespace: &str) -> Result<Snapshot> {
    let mut all = Snapshot::new();
    for object in parsers(cluster, namespace).list(&ListParams::default()).await? {
        all.insert(
            format!("HawkeyeDeployment/{}", object.name_any()),
            clean(&object, namespace)?,
        );
    }
    for (kind, object) in ours(cluster, namespace).await? {
        all.insert(
            format!("{}/{}", kind.kind, object.name_any()),
            clean(&object, namespace)?,
        );
    }
    Ok(all)
}

fn clean(object: &impl serde::Serialize, namespace: &str) -> Result<Value> {
    let text = serde_json::to_string(object)?.replace(namespace, "NAMESPACE");
    let mut value = serde_json::from_str(&text)?;
    scrub(&mut value);
    Ok(value)
}

fn scrub(value: &mut Value) {
    const CHANCE: [&str; 8] = [
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "managedFields",
        "generation",
        "clusterIP",
        "clusterIPs",
        // A hash of what was applied, the owner's UID and the namespace included.
        "hawkeye.bytebot.ai/applied",
    ];
    match value {
        Value::Object(fields) => {
            for name in CHANCE {
                fields.remove(name);
            }
            fields.values_mut().for_each(scrub);
        }
        Value::Array(values) => values.iter_mut().for_each(scrub),
        Value::String(text) if text.len() >= 20 && text.parse::<jiff::Timestamp>().is_ok() => "TIME".clone_into(text),
        _ => {}
    }
}

/// Says where two snapshots differ; empty when they do not.
pub fn differences(expected: &Snapshot, actual: &Snapshot) -> Vec<String> {
    let mut found = Vec::new();
    for (name, value) in expected {
        match actual.get(name) {
            Some(other) => differ(name, value, other, &mut found),
            None => found.push(format!("{name} is missing")),
        }
    }
    for name in actual.keys().filter(|name| !expected.contains_key(*name)) {
        found.push(format!("{name} is too much"));
    }
    found
}

fn differ(at: &str, expected: &Value, actual: &Value, found: &mut Vec<String>) {
    match (expected, actual) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|key| !a.contains_key(*key))) {
                let (a, b) = (a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null));
                differ(&format!("{at}.{key}"), a, b, found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                differ(&format!("{at}[{index}]"), a, b, found);
            }
        }
        _ if expected == actual => {}
        _ => found.push(format!("{at}: expected {expected}, found {actual}")),
    }
}

/// Does what the garbage collector does, which does not run here. What carries our label and has no owner would stay for
/// ever: an orphan.
pub async fn collect_garbage(cluster: &Cluster, namespace: &str) -> Result<()> {
    let owners: Vec<String> = parsers(cluster, namespace)
        .list(&ListParams::default())
        .await?
        .items
        .iter()
        .filter_map(HawkeyeDeployment::uid)
        .collect();
    for (kind, object) in ours(cluster, namespace).await? {
        let name = object.name_any();
        let Some(owner) = object
            .owner_references()
            .iter()
            .find(|owner| owner.controller == Some(true))
        else {
            bail!("{} {name} has no owner", kind.kind);
        };
        ensure!(
            owner.kind == "HawkeyeDeployment",
            "{} {name} is owned by {} {}",
            kind.kind,
            owner.kind,
            owner.name
        );
        if !owners.contains(&owner.uid) {
            let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), namespace, kind);
            match api.delete(&name, &DeleteParams::background()).await {
                Err(kube::Error::Api(status)) if status.code != 404 => bail!("{} {name}: {status}", kind.kind),
                _ => {}
            }
        }
    }
    Ok(())
}
