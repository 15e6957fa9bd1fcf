//! One life of two HawkeyeDeployments: made with policy and budget, handed over from a GPU, scaled, changed to a GPU, one of
//! them deleted. What is left has to be the same whatever went wrong meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hawkeye_crds::v1alpha1::{HardwareClass, HawkeyeDeployment};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::{sync::OnceCell, time::sleep};

use crate::{
    handover::{account, gone, pod, rolled_out},
    operator::Operator,
    scenarios::{MODEL, create, deployments, make_ready, namespace, parsers},
    server::{Cluster, POD},
    snapshot::{Snapshot, collect_garbage, differences, snapshot},
};

/// The class of the life's GPU, and its resource.
const GPU: &str = "life-gpu";
const RESOURCE: &str = "example.com/life-gpu";

/// Three nodes for the classes that the life uses, one of them with a GPU of a class of its own.
pub async fn nodes(cluster: &Cluster) -> Result<()> {
    let classes: Api<HardwareClass> = Api::all(cluster.client.clone());
    let class = json!({
        "apiVersion": "hawkeye.bytebot.ai/v1alpha1", "kind": "HardwareClass", "metadata": {"name": GPU},
        "spec": {
            "priority": 0, "arch": "amd64", "device": "Cuda", "imageVariant": "cuda", "dtype": "Float16",
            "resource": RESOURCE, "batchSize": {"speed": 1, "balanced": 1, "quality": 1},
            "memory": {"limit": "4Gi"}, "cpu": {"request": "1"},
            "nodeSelectorTerms": [{"matchExpressions": [{"key": RESOURCE, "operator": "Exists"}]}],
        },
    });
    classes
        .patch(GPU, &PatchParams::apply("test"), &Patch::Apply(class))
        .await?;
    let api: Api<Node> = Api::all(cluster.client.clone());
    for (name, arch) in [("life-amd64", "amd64"), ("life-arm64", "arm64"), (GPU, "amd64")] {
        if api.get_opt(name).await?.is_some() {
            continue;
        }
        let mut labels = json!({
            "kubernetes.io/os": "linux", "kubernetes.io/arch": arch, "kubernetes.io/hostname": name,
        });
        let mut has = json!({"cpu": "16", "memory": "64Gi", "pods": "110"});
        if name == GPU {
            // The second one keeps the CPU classes off it.
            labels[RESOURCE] = json!("");
            labels["nvidia.com/gpu.present"] = json!("true");
            has[RESOURCE] = json!("1");
        }
        let node = serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}}))?;
        api.create(&PostParams::default(), &node).await?;
        make_ready(&api, name, json!({"allocatable": has, "capacity": has})).await?;
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
        self.alone().await?;
        namespace(self.cluster, self.namespace).await?;
        account(self.cluster, self.namespace).await?;
        let kept = format!("{{replicas: 2, classes: [cpu-amd64, cpu-arm64], networkPolicy: {{}}, model: {MODEL}}}");
        self.make("kept", &kept).await?;
        let gone = format!("{{classes: [{GPU}, cpu-arm64], handOverAfter: 10s, model: {MODEL}}}");
        self.make("gone", &gone).await?;
        self.settled(&["kept", "gone"]).await?;
        self.handed_over("gone").await?;
        self.change("kept", json!({"replicas": 0})).await?;
        self.settled(&["kept"]).await?;
        before_change().await?;
        let change = json!({
            "replicas": 3, "classes": [GPU, "cpu-arm64"], "profile": "Speed", "overrides": {"cpu-arm64": {"batchSize": 8}},
        });
        self.change("kept", change).await?;
        parsers(self.cluster, self.namespace)
            .delete("gone", &DeleteParams::background())
            .await?;
        self.settled(&["kept"]).await
    }

    /// Nobody else wants the GPU: what lives before this one have left goes.
    async fn alone(&self) -> Result<()> {
        let all: Api<HawkeyeDeployment> = Api::all(self.cluster.client.clone());
        for object in all.list(&ListParams::default()).await? {
            let namespace = object.namespace().unwrap_or_default();
            parsers(self.cluster, &namespace)
                .delete(&object.name_any(), &DeleteParams::background())
                .await?;
        }
        Ok(())
    }

    /// Its pod finds no node with a GPU, and the next class takes the replica. There are no controllers and no scheduler, so
    /// their part is done here, also for a pool that is made anew.
    async fn handed_over(&self, name: &str) -> Result<()> {
        let pool = format!("{name}-{GPU}");
        let deployment = rolled_out(self.cluster, self.namespace, &pool).await?;
        pod(self.cluster, &deployment, "waits", None, Timestamp::now()).await?;
        let start = Instant::now();
        loop {
            let object = parsers(self.cluster, self.namespace).get(name).await?;
            let status = object.status.unwrap_or_default();
            match deployments(self.cluster, self.namespace).get_opt(&pool).await? {
                Some(left)
                    if left.status.as_ref().and_then(|it| it.observed_generation) != left.metadata.generation =>
                {
                    rolled_out(self.cluster, self.namespace, &pool).await?;
                }
                None if status.pool_summary.as_deref() == Some("cpu-arm64 0/1") => {
                    let record = status.pools.first().and_then(|pool| pool.hand_over.as_ref());
                    ensure!(
                        record.is_some_and(|it| it.attempts == 1 && it.keeps == Some(0)),
                        "{record:?}"
                    );
                    break;
                }
                _ => {}
            }
            ensure!(
                start.elapsed() < self.patience,
                "{name} was not handed over: {status:?}"
            );
            sleep(Duration::from_millis(50)).await;
        }
        gone(self.cluster, self.namespace, "waits").await
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
            Box::pin(life.live(async || Ok(())))
                .await
                .with_context(|| operator.log())?;
            // Whatever is still to come.
            sleep(Duration::from_secs(2)).await;
            collect_garbage(cluster, life.namespace).await?;
            let end = snapshot(cluster, life.namespace).await?;
            for needed in [
                "HawkeyeDeployment/kept",
                "Deployment/kept-life-gpu",
                "Deployment/kept-cpu-arm64",
                "Service/kept",
                "NetworkPolicy/kept",
                "PodDisruptionBudget/kept",
            ] {
                ensure!(end.contains_key(needed), "{needed} is missing: {:?}", end.keys());
            }
            operator.proxy.no_hot_loop(Duration::from_secs(1))?;
            let writes = operator
                .proxy
                .seen()
                .iter()
                .filter(|seen| seen.counts() && seen.within(life.namespace))
                .count();
            ensure!(end.keys().all(|name| !name.ends_with("/gone")), "{:?}", end.keys());
            Ok((end, writes))
        })
        .await
}
