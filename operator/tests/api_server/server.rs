//! One etcd, one kube-apiserver, one operator; ended together.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use hawkeye_crds::{classes, crd, v1alpha1::HardwareClass};
use hawkeye_operator::rules::RULES;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::{fake_registry::FakeRegistry, images::GRANTED};

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Name of the operator's pod. One that is killed and starts again holds what it held before.
pub const POD: &str = "operator";

pub struct Cluster {
    pub folder: TempDir,
    processes: Mutex<Vec<Child>>,
    operator: Mutex<Option<Child>>,
    listen: u16,
    pub client: Client,
    /// The registry that the operator may ask.
    pub registry: FakeRegistry,
}

/// Ends what it holds, so that a start that fails half-way leaves nothing behind.
struct Guard(Vec<Child>);

impl Drop for Guard {
    fn drop(&mut self) {
        for process in &mut self.0 {
            end(process);
        }
    }
}

pub fn end(process: &mut Child) {
    // An error means that it has ended by itself.
    let _ended = process.kill();
    let _status = process.wait();
}

fn tools() -> PathBuf {
    let cache = std::env::var_os("HAWKEYE_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/hawkeye"),
        PathBuf::from,
    );
    cache.join("tools/bin")
}

/// A port that was free a moment ago.
pub fn port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

pub fn spawn(folder: &Path, program: &Path, arguments: &[String], environment: &[(&str, String)]) -> Result<Child> {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let log = File::create(folder.join(format!("{name}.log")))?;
    Command::new(program)
        .args(arguments)
        .envs(environment.iter().map(|(key, value)| (key, value)))
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}; `make tools` builds it", program.display()))
}

impl Cluster {
    pub async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    /// With further flags for the API server.
    pub async fn start_with(flags: &[&str]) -> Result<Self> {
        let folder = TempDir::with_prefix("hawkeye-api-server-")?;
        let at = folder.path();
        let (etcd, peer, api, listen) = (port()?, port()?, port()?, port()?);
        fs::write(
            at.join("tokens.csv"),
            "admin,admin,admin,system:masters\noperator,operator,operator\nscoped,scoped,scoped\n",
        )?;
        fs::write(at.join("audit.json"), audit_policy())?;
        key(at)?;
        let mut guard = Guard(Vec::new());
        let flag = |name: &str, value: &str| format!("--{name}={value}");
        guard.0.push(spawn(
            at,
            &tools().join("etcd"),
            &[
                flag("data-dir", "etcd"),
                flag("listen-client-urls", &format!("http://127.0.0.1:{etcd}")),
                flag("advertise-client-urls", &format!("http://127.0.0.1:{etcd}")),
                flag("listen-peer-urls", &format!("http://127.0.0.1:{peer}")),
                flag("initial-advertise-peer-urls", &format!("http://127.0.0.1:{peer}")),
                flag("initial-cluster", &format!("default=http://127.0.0.1:{peer}")),
                // Nothing here has to survive a power cut, and a busy disk makes several of these time out.
                "--unsafe-no-fsync".to_owned(),
            ],
            &[],
        )?);
        let mut arguments = vec![
            flag("etcd-servers", &format!("http://127.0.0.1:{etcd}")),
            flag("bind-address", "127.0.0.1"),
            flag("secure-port", &api.to_string()),
            flag("cert-dir", "certs"),
            flag("endpoint-reconciler-type", "none"),
            flag("advertise-address", "192.0.2.1"),
            flag("service-account-key-file", "sa.key"),
            flag("service-account-signing-key-file", "sa.key"),
            flag("service-account-issuer", "https://kubernetes.default.svc"),
            flag("service-cluster-ip-range", "198.18.0.0/16"),
            flag("authorization-mode", "RBAC"),
            flag("token-auth-file", "tokens.csv"),
            flag("audit-policy-file", "audit.json"),
            flag("audit-log-path", "audit.log"),
        ];
        arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
        guard
            .0
            .push(spawn(at, &tools().join("kube-apiserver"), &arguments, &[])?);
        for user in ["admin", "operator", "scoped"] {
            fs::write(at.join(user), kubeconfig(&format!("https://127.0.0.1:{api}"), user))?;
        }
        let client = client(&at.join("admin")).await?;
        wait("the API server to be ready", async || {
            let request = http::Request::get("/readyz").body(Vec::new())?;
            Ok(client.request_text(request).await.is_ok().then_some(()))
        })
        .await?;
        install(&client).await?;
        let cluster = Self {
            operator: Mutex::new(None),
            processes: Mutex::new(std::mem::take(&mut guard.0)),
            listen,
            client,
            registry: FakeRegistry::start().await,
            folder,
        };
        if let Err(error) = cluster.start_operator().await {
            cluster.stop();
            return Err(error);
        }
        Ok(cluster)
    }

    pub async fn start_operator(&self) -> Result<()> {
        self.start_operator_as("operator", "").await
    }

    /// Starts it as this user, for these namespaces.
    pub async fn start_operator_as(&self, user: &str, namespaces: &str) -> Result<()> {
        let operator = spawn(
            self.folder.path(),
            Path::new(env!("CARGO_BIN_EXE_hawkeye-operator")),
            &["run".to_owned()],
            &[
                ("KUBECONFIG", self.folder.path().join(user).display().to_string()),
                ("HAWKEYE_WATCH_NAMESPACES", namespaces.to_owned()),
                ("POD_NAMESPACE", "hawkeye-system".to_owned()),
                ("HAWKEYE_LISTEN", format!("127.0.0.1:{}", self.listen)),
                ("HAWKEYE_LOG_FORMAT", "text".to_owned()),
                // Long enough for a restart, short enough to wait for.
                ("HAWKEYE_LABEL_GRACE", "30s".to_owned()),
                ("POD_NAME", POD.to_owned()),
                ("HAWKEYE_LEASE_NAMESPACE", "default".to_owned()),
                ("HAWKEYE_IMAGE_CPU", "example.com/test:cpu".to_owned()),
                ("HAWKEYE_IMAGE_CUDA", "example.com/test:cuda".to_owned()),
                ("HAWKEYE_VERIFY_REGISTRIES", self.registry.address.to_string()),
                ("HAWKEYE_VERIFY_INSECURE_REGISTRIES", self.registry.address.to_string()),
                ("HAWKEYE_VERIFY_PULL_SECRETS", format!("{}/{}", GRANTED.0, GRANTED.1)),
            ],
        )?;
        *lock(&self.operator) = Some(operator);
        wait("the operator to be ready", async || {
            Ok(self.http("/readyz").await.is_ok().then_some(()))
        })
        .await
    }

    /// A kubeconfig of the user `admin` or `operator`.
    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        self.folder.path().join(user)
    }

    /// As `kill -9` does.
    pub fn kill_operator(&self) {
        if let Some(mut operator) = lock(&self.operator).take() {
            end(&mut operator);
        }
    }

    pub fn operator_log(&self) -> String {
        fs::read_to_string(self.folder.path().join("hawkeye-operator.log")).unwrap_or_default()
    }

    /// What the operator asked of the API server so far: `verb group resource`, and the code that it was answered with.
    pub fn requests(&self) -> Result<BTreeSet<(String, u64)>> {
        let text = fs::read_to_string(self.folder.path().join("audit.log"))?;
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        // The last line may be half written.
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(lines
            .filter(|line| line["user"]["username"] == "operator")
            .flat_map(|line| {
                let object = &line["objectRef"];
                let resource = match object["subresource"].as_str() {
                    Some(subresource) => format!("{}/{subresource}", word(&object["resource"])),
                    None => word(&object["resource"]),
                };
                let code = line["responseStatus"]["code"].as_u64().unwrap_or_default();
                let verb = word(&line["verb"]);
                // Server-side apply of a new object needs the right to create it as well.
                let create = (verb == "patch" && code == 201).then(|| "create".to_owned());
                let rest = format!("{} {resource}", word(&object["apiGroup"]));
                let verbs = std::iter::once(verb).chain(create);
                verbs.map(|verb| (format!("{verb} {rest}"), code)).collect::<Vec<_>>()
            })
            .collect())
    }

    /// Waits until the operator has written nothing for longer than it pauses between two looks at the classes.
    pub async fn settled(&self) -> Result<()> {
        let mut before = self.writes().await?;
        for _ in 0..10 {
            sleep(Duration::from_secs(7)).await;
            let now = self.writes().await?;
            if now == before {
                return Ok(());
            }
            before = now;
        }
        bail!("the operator does not stop writing")
    }

    /// Requests of the operator that write, by its own count.
    pub async fn writes(&self) -> Result<u64> {
        let text = self.http("/metrics").await?;
        let of = |verb: &str| {
            let name = format!("hawkeye_operator_api_requests_total{{verb=\"{verb}\"}} ");
            text.lines()
                .find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok())
                .unwrap_or(0)
        };
        if of("Watch") == 0 {
            bail!("the operator counts no watches, so its counters cannot be trusted: {text}");
        }
        Ok(of("Create") + of("Patch") + of("Delete") + of("Other"))
    }

    async fn http(&self, path: &str) -> Result<String> {
        get(self.listen, path).await
    }

    pub fn stop(&self) {
        self.kill_operator();
        // The API server before its etcd.
        for mut process in lock(&self.processes).drain(..).rev() {
            end(&mut process);
        }
        // The value is leaked to the tests, so nothing else removes it.
        let _gone = fs::remove_dir_all(self.folder.path());
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an operator serves.
pub async fn get(port: u16, path: &str) -> Result<String> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    stream
        .write_all(format!("GET {path} HTTP/1.0\r\nHost: test\r\n\r\n").as_bytes())
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.to_owned()),
        _ => bail!("{path}: {answer}"),
    }
}

/// Tries until there is something, or patience ends.
pub async fn wait<T>(what: &str, mut probe: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = probe().await? {
            return Ok(found);
        }
        if start.elapsed() > PATIENCE {
            bail!("waited {} s in vain for {what}", PATIENCE.as_secs());
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// The API server signs service account tokens, which nothing here uses, but it does not start without a key.
fn key(at: &Path) -> Result<()> {
    let made = Command::new("openssl")
        .args(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"])
        .arg(at.join("sa.key"))
        .stderr(Stdio::null())
        .status()
        .context("openssl is needed to make a key")?;
    if !made.success() {
        bail!("openssl made no key: {made}");
    }
    Ok(())
}

pub fn kubeconfig(server: &str, token: &str) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{
            "name": "test",
            "cluster": {"server": server, "insecure-skip-tls-verify": true},
        }],
        "users": [{"name": "test", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    })
    .to_string()
}

pub async fn client(path: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(path)?;
    Ok(Client::try_from(
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?,
    )?)
}

fn audit_policy() -> String {
    json!({
        "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata", "users": ["operator"]}, {"level": "None"}],
    })
    .to_string()
}

/// Definitions, classes, and the rights that the operator's documentation lists.
async fn install(client: &Client) -> Result<()> {
    let params = PatchParams::apply("test");
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for (_, definition) in crd::definitions()? {
        let name = definition.metadata.name.clone().unwrap_or_default();
        definitions
            .patch(&name, &params, &Patch::Apply(&definition))
            .await
            .with_context(|| name.clone())?;
        wait("a definition to be established", async || {
            let found = definitions.get(&name).await?;
            let conditions = found.status.and_then(|status| status.conditions).unwrap_or_default();
            let value = serde_json::to_value(conditions)?;
            let established = value
                .as_array()
                .into_iter()
                .flatten()
                .any(|condition| condition["type"] == "Established" && condition["status"] == "True");
            Ok(established.then_some(()))
        })
        .await?;
    }
    let hardware: Api<HardwareClass> = Api::all(client.clone());
    for class in classes::built_in()? {
        let name = class.metadata.name.clone().unwrap_or_default();
        hardware
            .patch(&name, &params, &Patch::Apply(&class))
            .await
            .with_context(|| name)?;
    }
    let rules: Vec<Value> = RULES
        .iter()
        .map(|rule| json!({"apiGroups": [rule.group], "resources": [rule.resource], "verbs": rule.verbs}))
        .collect();
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    create(
        client,
        &format!("{rbac}/clusterroles"),
        &json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": "operator"}, "rules": rules,
        }),
    )
    .await?;
    create(
        client,
        &format!("{rbac}/clusterrolebindings"),
        &json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": "operator"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "operator"},
            "subjects": [{"kind": "User", "name": "operator", "apiGroup": "rbac.authorization.k8s.io"}],
        }),
    )
    .await?;
    // As the chart has it: its own Lease, in its own namespace.
    let subjects = ["operator", "scoped"]
        .map(|name| json!({"kind": "User", "name": name, "apiGroup": "rbac.authorization.k8s.io"}));
    let names = json!(["hawkeye-operator", "replicas"]);
    create(
        client,
        &format!("{rbac}/namespaces/default/roles"),
        &json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "operator"},
            "rules": [
                {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
                {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": names,
                 "verbs": ["get", "update"]},
            ],
        }),
    )
    .await?;
    create(
        client,
        &format!("{rbac}/namespaces/default/rolebindings"),
        &json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "operator"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator"},
            "subjects": subjects,
        }),
    )
    .await?;
    Ok(())
}

/// Posts an object.
pub async fn create(client: &Client, path: &str, object: &Value) -> Result<Value> {
    let request = kube::core::Request::new(path).create(&PostParams::default(), serde_json::to_vec(object)?)?;
    Ok(client.request(request).await?)
}
