//! One life of two HawkeyeDeployments: made, scaled, changed, one of them deleted. What is left has to be the same whatever
//! went wrong meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::{sync::OnceCell, time::sleep};

use crate::{
    operator::Operator,
    scenarios::{MODEL, create, make_ready, namespace, parsers},
    server::{Cluster, POD},
    snapshot::{Snapshot, collect_garbage, differences, snapshot},
};

/// Two nodes that no other scenario changes, for the classes that the life uses.
pub async fn nodes(cluster: &Cluster) -> Result<()> {
    let api: Api<Node> = Api::all(cluster.client.clone());
    for (name, arch) in [("life-amd64", "amd64"), ("life-arm64", "arm64")] {
        if api.get_opt(name).await?.is_some() {
            continue;
        }
        let node = serde_json::from_value(json!({"metadata": {
            "name": name,
            "labels": {"kubernetes.io/os": "linux", "kubernetes.io/arch": arch, "kubernetes.io/hostname": name},
        }}))?;
        api.create(&PostParams::default(), &node).await?;
        let status = json!({
            "allocatable": {"cpu": "16", "memory": "64Gi", "pods": "110"},
            "capacity": {"cpu": "16", "memory": "64Gi", "pods": "110"},
        });
        make_ready(&api, name, status).await?;
    }
    Ok(())
}

/// Where the life takes place, and how patient to be with each step.
pub struct Life<'a> {
    pub cluster: &'a Cluster,
    pub namespace: &'a str,
    pub patience: Duration,
}

impl Life<'_> {
    /// Lives it, with a pause for whatever is to go wrong before the change.
    pub async fn live(&self, before_change: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
        nodes(self.cluster).await?;
        namespace(self.cluster, self.namespace).await?;
        let made = format!("{{replicas: 2, classes: [cpu-amd64, cpu-arm64], model: {MODEL}}}");
        self.make("kept", &made).await?;
        self.make("gone", &format!("{{classes: [cpu-arm64], model: {MODEL}}}"))
            .await?;
        self.settled(&["kept", "gone"]).await?;
        self.change("kept", json!({"replicas": 0})).await?;
        self.settled(&["kept"]).await?;
        before_change().await?;
        let change = json!({
            "replicas": 3, "classes": ["cpu-arm64"], "profile": "Speed", "overrides": {"cpu-arm64": {"batchSize": 8}},
        });
        self.change("kept", change).await?;
        parsers(self.cluster, self.namespace)
            .delete("gone", &DeleteParams::background())
            .await?;
        self.settled(&["kept"]).await
    }

    async fn make(&self, name: &str, spec: &str) -> Result<()> {
        create(self.cluster, self.namespace, name, spec, false).await.map(drop)
    }

    async fn change(&self, name: &str, spec: Value) -> Result<()> {
        let patch = Patch::Merge(json!({"spec": spec}));
        parsers(self.cluster, self.namespace)
            .patch(name, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    /// Waits until each status is about the current spec.
    async fn settled(&self, names: &[&str]) -> Result<()> {
        let api = parsers(self.cluster, self.namespace);
        let start = Instant::now();
        for name in names {
            loop {
                let object = api.get(name).await?;
                let status = object.status.unwrap_or_default();
                if status.observed_generation == object.metadata.generation && status.summary.is_some() {
                    break;
                }
                if start.elapsed() > self.patience {
                    bail!("{name} did not settle: {status:?}");
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// Waits until everything is as expected, and looks whether it stays so.
    pub async fn converges(&self, expected: &Snapshot) -> Result<()> {
        let start = Instant::now();
        let mut good = 0;
        loop {
            collect_garbage(self.cluster, self.namespace).await?;
            let found = differences(expected, &snapshot(self.cluster, self.namespace).await?);
            good = if found.is_empty() { good + 1 } else { 0 };
            if good == 2 {
                return Ok(());
            }
            if start.elapsed() > self.patience {
                bail!("in {} it ends otherwise: {found:#?}", self.namespace);
            }
            sleep(Duration::from_millis(300)).await;
        }
    }
}

/// What is left of the life when nothing goes wrong, and how many writes it takes.
pub async fn undisturbed(cluster: &'static Cluster) -> Result<&'static (Snapshot, usize)> {
    static RESULT: OnceCell<(Snapshot, usize)> = OnceCell::const_new();
    RESULT
        .get_or_try_init(async || {
            let operator = Operator::start(cluster, POD, &[]).await?;
            let life = Life {
                cluster,
                namespace: "life-undisturbed",
                patience: Duration::from_mins(1),
            };
            life.live(async || Ok(())).await.with_context(|| operator.log())?;
            // Whatever is still to come.
            sleep(Duration::from_secs(2)).await;
            collect_garbage(cluster, life.namespace).await?;
            let end = snapshot(cluster, life.namespace).await?;
            for needed in ["HawkeyeDeployment/kept", "Deployment/kept-cpu-arm64", "Service/kept"] {
                anyhow::ensure!(end.contains_key(needed), "{needed} is missing: {:?}", end.keys());
            }
            operator.proxy.no_hot_loop(Duration::from_secs(1))?;
            let writes = operator
                .proxy
                .seen()
                .iter()
                .filter(|seen| seen.counts() && seen.within(life.namespace))
                .count();
            anyhow::ensure!(end.keys().all(|name| !name.ends_with("/gone")), "{:?}", end.keys());
            Ok((end, writes))
        })
        .await
}
