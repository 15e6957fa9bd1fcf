//! What `kubectl describe` shows of the past.

use std::collections::BTreeSet;

use anyhow::Result;
use hawkeye_crds::v1alpha1::HawkeyeDeployment;
use k8s_openapi::api::{core::v1::Node, events::v1::Event};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;

use crate::{
    scenarios::{create, namespace, nodes},
    server::{Cluster, wait},
};

pub async fn each_text_is_an_event(cluster: &'static Cluster) -> Result<()> {
    let known: Api<Node> = Api::all(cluster.client.clone());
    if known.get_opt("graviton2").await?.is_none() {
        nodes(cluster, &["graviton2"]).await?;
    }
    namespace(cluster, "told").await?;
    create(
        cluster,
        "told",
        "demo",
        "{replicas: 1, classes: [graviton], model: {image: {reference: example.com/bundle}}}",
        false,
    )
    .await?;
    let events: Api<Event> = Api::namespaced(cluster.client.clone(), "told");
    let said = async |reason: &str, note: &str| {
        wait(note, async || {
            let all = events.list(&ListParams::default()).await?.items;
            let found = all
                .into_iter()
                .filter(|event| event.reason.as_deref() == Some(reason))
                .filter_map(|event| event.note)
                .collect::<BTreeSet<_>>();
            Ok(found.iter().any(|found| found.starts_with(note)).then_some(found))
        })
        .await
    };
    said("Placed", "Replicas: 1 on graviton").await?;
    let api: Api<HawkeyeDeployment> = Api::namespaced(cluster.client.clone(), "told");
    let mut notes = BTreeSet::new();
    for replicas in 2..=3 {
        let scale = json!({"spec": {"replicas": replicas}});
        api.patch_scale("demo", &PatchParams::default(), &Patch::Merge(scale))
            .await?;
        notes = said("Scaled", &format!("From {} to {replicas}", replicas - 1)).await?;
    }
    anyhow::ensure!(notes.len() == 2, "{notes:?}");
    // It asks for what no class in the list has: nothing is placed, and nobody scaled to zero.
    let device = json!({"spec": {"device": "Cuda", "fallback": "Deny"}});
    api.patch("demo", &PatchParams::default(), &Patch::Merge(device))
        .await?;
    said("NoNodes", "3 of 3 replicas have no place").await?;
    let zero = events.list(&ListParams::default()).await?.items;
    let zero = zero
        .iter()
        .filter(|event| event.reason.as_deref() == Some("ScaledToZero"));
    anyhow::ensure!(zero.count() == 0, "ScaledToZero");
    Ok(())
}
