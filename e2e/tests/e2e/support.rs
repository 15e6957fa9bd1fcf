//! What every scenario needs: the cluster, a client, waiting with a reason, and a namespace of its own.

use std::{
    fmt::Debug,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use hawkeye_crds::v1alpha1::{HardwareClass, HawkeyeDeployment, Reason};
use hawkeye_e2e::{archive::Image, cluster::Cluster};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::Deployment,
        core::v1::{Namespace, Node, Pod, Service},
    },
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

/// The cluster under test with Hawkeye installed in it.
pub struct Suite {
    pub client: Client,
    pub cluster: Cluster,
    pub tools: PathBuf,
    pub repository: PathBuf,
}

/// The name under which the scenarios write; the operator's own field manager differs.
const MANAGER: &str = "hawkeye-e2e";

/// A user's own class that takes the real node away from the built-in ones, which then have fake nodes only.
pub const REAL_CLASS: &str = "real";

impl Suite {
    /// Makes [`REAL_CLASS`]: a CPU class of this machine's architecture for nodes that are not fake.
    pub async fn make_real_class(&self) -> Result<()> {
        let arch = if cfg!(target_arch = "aarch64") {
            "arm64"
        } else {
            "amd64"
        };
        let object = json!({
            "apiVersion": "hawkeye.bytebot.ai/v1alpha1", "kind": "HardwareClass", "metadata": {"name": REAL_CLASS},
            "spec": {
                "priority": 1000, "arch": arch, "device": "Cpu", "imageVariant": "cpu", "dtype": "Float32",
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "type", "operator": "NotIn", "values": ["kwok"]}]}],
                "batchSize": {"speed": 16, "balanced": 16, "quality": 16},
                "memory": {"limit": "4Gi"}, "cpu": {"request": "500m"},
            },
        });
        let api: Api<HardwareClass> = Api::all(self.client.clone());
        api.patch(REAL_CLASS, &PatchParams::apply(MANAGER).force(), &Patch::Apply(object))
            .await?;
        Ok(())
    }

    /// Deletes every HawkeyeDeployment and waits until their pods are gone: a scenario that failed must not fail the next.
    pub async fn clear(&self) -> Result<()> {
        let all: Api<HawkeyeDeployment> = Api::all(self.client.clone());
        for object in all.list(&ListParams::default()).await?.items {
            let api: Api<HawkeyeDeployment> =
                Api::namespaced(self.client.clone(), &object.namespace().unwrap_or_default());
            api.delete(&object.name_any(), &DeleteParams::default()).await?;
        }
        let pods: Api<Pod> = Api::all(self.client.clone());
        let ours = ListParams::default().labels("app.kubernetes.io/managed-by=hawkeye-operator");
        let gone = within(90, async || Ok(pods.list(&ours).await?.items.is_empty().then_some(()))).await?;
        gone.context("pods are left")
    }

    /// A namespace that enforces the `restricted` Pod Security level, so that every pod of every scenario proves it.
    pub async fn namespace(&self, name: &str) -> Result<Scope<'_>> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let object = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        });
        api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(object))
            .await?;
        Ok(Scope {
            suite: self,
            name: name.to_owned(),
        })
    }

    pub async fn nodes(&self) -> Result<Vec<Node>> {
        Ok(Api::<Node>::all(self.client.clone())
            .list(&ListParams::default())
            .await?
            .items)
    }

    /// Runs a tool of the cluster (`helm`, `kubectl`, `kubeconform`) to its end and returns what it printed.
    pub fn tool(&self, name: &str, args: &[&str]) -> Result<String> {
        let output = Command::new(self.tools.join(name))
            .args(args)
            .env("KUBECONFIG", self.cluster.kubeconfig_path())
            .current_dir(&self.repository)
            .output()
            .with_context(|| format!("cannot run {name}"))?;
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!(
                "{name} {}: {}\n{out}{}",
                args.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(out)
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.repository.join(relative)
    }
}

/// One scenario's namespace.
pub struct Scope<'a> {
    pub suite: &'a Suite,
    pub name: String,
}

impl Scope<'_> {
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.suite.client.clone(), &self.name)
    }

    pub fn hkd(&self) -> Api<HawkeyeDeployment> {
        self.api()
    }

    /// Applies a HawkeyeDeployment with this spec.
    pub async fn apply(&self, name: &str, spec: Value) -> Result<HawkeyeDeployment> {
        let object = json!({
            "apiVersion": "hawkeye.bytebot.ai/v1alpha1", "kind": "HawkeyeDeployment",
            "metadata": {"name": name}, "spec": spec,
        });
        Ok(self
            .hkd()
            .patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(object))
            .await?)
    }

    /// What the API server says to a spec that it must refuse.
    pub async fn refusal(&self, name: &str, spec: Value) -> Result<String> {
        let object: Value = json!({
            "apiVersion": "hawkeye.bytebot.ai/v1alpha1", "kind": "HawkeyeDeployment",
            "metadata": {"name": name}, "spec": spec,
        });
        let api: Api<kube::core::DynamicObject> = Api::namespaced_with(
            self.suite.client.clone(),
            &self.name,
            &kube::core::ApiResource::erase::<HawkeyeDeployment>(&()),
        );
        let parameters = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        match api.create(&parameters, &serde_json::from_value(object)?).await {
            Ok(_) => bail!("the API server took it"),
            Err(kube::Error::Api(status)) => Ok(status.message.clone()),
            Err(other) => Err(other.into()),
        }
    }

    pub async fn deployment(&self, name: &str) -> Result<Deployment> {
        self.api::<Deployment>()
            .get(name)
            .await
            .with_context(|| format!("deployment {name}"))
    }

    pub async fn pods(&self, instance: &str) -> Result<Vec<Pod>> {
        let parameters = ListParams::default().labels(&format!("app.kubernetes.io/instance={instance}"));
        Ok(self.api::<Pod>().list(&parameters).await?.items)
    }

    /// Waits until the HawkeyeDeployment's status satisfies `ready`; on time-out the error holds the whole status.
    pub async fn until(
        &self,
        name: &str,
        what: &str,
        seconds: u64,
        ready: impl Fn(&HawkeyeDeployment) -> bool,
    ) -> Result<HawkeyeDeployment> {
        let api = self.hkd();
        let mut last = None;
        let found = within(seconds, async || {
            let object = api.get(name).await?;
            let current = object
                .status
                .as_ref()
                .is_some_and(|s| s.observed_generation == object.metadata.generation);
            let done = current && ready(&object);
            last.clone_from(&object.status);
            Ok(done.then_some(object))
        })
        .await?;
        if let Some(object) = found {
            return Ok(object);
        }
        let pods = self.pods(name).await?;
        let pods: Vec<_> = pods.iter().map(|p| (p.name_any(), &p.status)).collect();
        bail!(
            "{name}: not {what} after {seconds} s\nstatus: {}\npods: {}",
            pretty(&last),
            pretty(&pods)
        )
    }

    /// Waits until this many pods are ready and all are of the current spec: ready pods of the spec before do not count.
    pub async fn until_ready(&self, name: &str, replicas: i32, seconds: u64) -> Result<HawkeyeDeployment> {
        let what = format!("ready with {replicas} replicas");
        let all_ready = Reason::AllReady.as_str();
        self.until(name, &what, seconds, |o| {
            o.status.as_ref().is_some_and(|s| {
                s.ready_replicas == replicas
                    && s.replicas == replicas
                    && s.pools.iter().all(|p| p.replicas == 0 || p.reason == all_ready)
            })
        })
        .await
    }

    /// Deletes a HawkeyeDeployment and waits until nothing that it owned is left.
    pub async fn delete(&self, name: &str) -> Result<()> {
        self.hkd().delete(name, &DeleteParams::default()).await?;
        let gone = within(90, async || {
            let of_it = ListParams::default().labels(&format!("app.kubernetes.io/instance={name}"));
            let left = self.api::<Deployment>().list(&of_it).await?.items.len()
                + self.api::<Service>().list(&of_it).await?.items.len()
                + self.api::<Pod>().list(&of_it).await?.items.len();
            Ok((left == 0 && self.hkd().get_opt(name).await?.is_none()).then_some(()))
        })
        .await?;
        gone.with_context(|| format!("{name}: something is left 90 s after its deletion"))
    }
}

/// Serves files over HTTP from a pod, at `http://NAME.NAMESPACE.svc:8080`, and waits until it answers. Its image is a busybox
/// of this machine with the files: path below the root, file here.
pub async fn web_server(scope: &Scope<'_>, name: &str, files: Vec<(String, PathBuf)>) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let archive = folder.path().join("image.tar");
    let first = files.first().context("nothing to serve")?.0.clone();
    let reference = format!("localhost/{name}:e2e");
    let mut content = vec![("busybox".to_owned(), PathBuf::from("/bin/busybox"), 0o755)];
    content.extend(
        files
            .into_iter()
            .map(|(path, file)| (format!("www/{path}"), file, 0o644)),
    );
    Image {
        reference: reference.clone(),
        entrypoint: vec!["/busybox".into()],
        user: "65532:65532".into(),
        files: content,
    }
    .write(&archive)?;
    scope.suite.cluster.load_image(&archive)?;
    let server: Pod = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": name, "image": reference, "imagePullPolicy": "Never",
                "args": ["httpd", "-f", "-p", "8080", "-h", "/www"],
                "securityContext": {
                    "runAsNonRoot": true, "allowPrivilegeEscalation": false,
                    "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
                },
            }],
        },
    }))?;
    scope.api::<Pod>().create(&PostParams::default(), &server).await?;
    let service: Service = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 8080}]},
    }))?;
    let service = scope.api::<Service>().create(&PostParams::default(), &service).await?;
    let address = service.spec.and_then(|spec| spec.cluster_ip).context("no address")?;
    let url = format!("http://{address}:8080/{first}");
    let answers = within(60, async || {
        let answer = reqwest::get(&url).await.and_then(reqwest::Response::error_for_status);
        Ok(answer.is_ok().then_some(()))
    });
    answers.await?.with_context(|| format!("{url} does not answer"))
}

/// Asks every 250 ms until there is an answer or the time is over. Errors end it at once.
pub async fn within<T>(seconds: u64, mut ask: impl AsyncFnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(answer) = ask().await? {
            return Ok(Some(answer));
        }
        if Instant::now() > end {
            return Ok(None);
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

pub fn condition<'a>(object: &'a HawkeyeDeployment, type_: &str) -> Option<&'a hawkeye_crds::v1alpha1::Condition> {
    object.status.as_ref()?.conditions.iter().find(|c| c.type_ == type_)
}

/// The environment of a Deployment's only container.
pub fn env(deployment: &Deployment, name: &str) -> Option<String> {
    let spec = deployment.spec.template.spec.as_ref()?;
    spec.containers[0]
        .env
        .as_ref()?
        .iter()
        .find(|e| e.name == name)?
        .value
        .clone()
}

pub fn pretty(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

pub fn expect<T: PartialEq + Debug>(what: &str, actual: &T, expected: &T) -> Result<()> {
    if actual != expected {
        bail!("{what}: expected {expected:?}, got {actual:?}");
    }
    Ok(())
}

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_path_buf)
        .unwrap_or_default()
}
