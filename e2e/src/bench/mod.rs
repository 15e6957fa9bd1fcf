//! What the operator costs in clusters of thousands of nodes: `make bench-operator`.
//!
//! The API server, the controllers and the scheduler are real; nodes and pods are kwok's. The operator runs as a process
//! of its own with the chart's service account, so that its rights and its writes are those of an installation.

mod fleet;
mod process;
mod table;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use futures::TryStreamExt;
use kube::{
    Api, Client, ResourceExt,
    core::DynamicObject,
    runtime::{WatchStreamExt, watcher},
};
use serde::Serialize;
use serde_json::Value;

use self::process::Operator;
use crate::{
    cluster::{Cluster, ProviderChoice, UpOptions},
    command,
    images::{self, BUNDLE_REFERENCE},
    install::OPERATOR_NAMESPACE,
    paths::Cache,
    progress::Progress,
};

/// Longest wait for a size to settle.
const SETTLE: Duration = Duration::from_mins(30);
/// Without a request for this long the operator has settled.
const QUIET: Duration = Duration::from_secs(5);
/// Nodes in a cluster for each HawkeyeDeployment, as in the largest size: 5,000 to 1,000.
const NODES_PER_DEPLOYMENT: usize = 5;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Nodes of each cluster; each has a fifth as many HawkeyeDeployments
    #[arg(long, value_delimiter = ',', default_value = "500", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(7..=10_000))]
    pub sizes: Vec<usize>,
    /// Seconds for which the idle operator is watched
    #[arg(long, default_value_t = 60)]
    pub idle_seconds: u64,
    /// Name of the cluster
    #[arg(long, default_value = "bench")]
    pub name: String,
    /// Where the figures are written
    #[arg(long, default_value = "out/bench/operator.json")]
    pub out: PathBuf,
    /// Leave the cluster of the last size up
    #[arg(long)]
    pub keep: bool,
    /// The operator's program; left out: compiled for release
    #[arg(long)]
    pub program: Option<PathBuf>,
    /// A further argument for the operator, e.g. --operator-arg=--concurrency=16
    #[arg(long, allow_hyphen_values = true)]
    pub operator_arg: Vec<String>,
}

/// What one size came to.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// Fake nodes.
    pub nodes: usize,
    /// HawkeyeDeployments.
    pub deployments: usize,
    /// Seconds from the first apply until every one says Placed.
    pub seconds_to_placed: f64,
    /// Seconds from the first apply until every pod is ready, which is the scheduler's and kwok's time, too.
    pub seconds_to_ready: f64,
    /// The operator's requests by verb, from its start until it settled.
    pub requests: BTreeMap<String, u64>,
    /// The same for each HawkeyeDeployment.
    pub requests_per_deployment: f64,
    /// CPU time from the operator's start until it settled.
    pub cpu_seconds: f64,
    /// Largest resident memory, the restart included.
    pub peak_rss_mib: f64,
    /// Seconds from a cold start in the settled cluster until the operator has looked at everything.
    pub restart_seconds: f64,
    /// Writes after that restart, other than of its Lease.
    pub restart_writes: usize,
    /// Writes while idle, other than of its Lease.
    pub idle_writes: usize,
    /// Writes of its Lease while idle.
    pub idle_lease_writes: usize,
    /// Seconds for which it was idle.
    pub idle_seconds: u64,
}

/// Measures every size in a cluster of its own and prints a table.
///
/// # Errors
/// The first step that fails.
pub async fn run(options: &Options, repository: &Path) -> Result<()> {
    let progress = Progress::new();
    let cache = Cache::from_env()?;
    let program = match &options.program {
        Some(program) => program.clone(),
        None => images::operator_program(&cache, repository, progress)?,
    };
    let mut all = Vec::new();
    for (position, &nodes) in options.sizes.iter().enumerate() {
        let cluster = Cluster::new(&options.name, ProviderChoice::Auto, progress)?;
        cluster.up(UpOptions::default())?;
        let measured = measure(options, &cluster, repository, &program, nodes, progress).await;
        if !(options.keep && position + 1 == options.sizes.len()) {
            cluster.down()?;
        }
        all.push(measured.with_context(|| format!("with {nodes} nodes"))?);
        // After each size, so that a run that is cut short keeps what it has.
        write(&options.out, &all)?;
    }
    table::print(&all)?;
    progress.step(format!("figures: {}", options.out.display()));
    Ok(())
}

fn write(path: &Path, all: &[Figures]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, serde_json::to_vec_pretty(all)?).with_context(|| path.display().to_string())
}

async fn measure(
    options: &Options,
    cluster: &Cluster,
    repository: &Path,
    program: &Path,
    nodes: usize,
    progress: Progress,
) -> Result<Figures> {
    let deployments = (nodes / NODES_PER_DEPLOYMENT).max(1);
    cluster.start_fleet()?;
    let client = cluster.client().await?;
    progress.step(format!("{nodes} fake nodes"));
    fleet::add_addresses(&client).await?;
    fleet::add_nodes(&client, nodes).await?;
    install(cluster, repository)?;
    let kubeconfig = account(cluster)?;

    progress.step("the operator");
    let mut operator = Operator::start(program, kubeconfig.path(), &options.operator_arg)?;
    operator.until_ready(Duration::from_mins(2)).await?;

    progress.step(format!("{deployments} HawkeyeDeployments"));
    let started = Instant::now();
    let (placed, ready) = tokio::try_join!(
        until_all(&client, deployments, started),
        fleet::add_deployments(&client, deployments)
    )?
    .0;
    progress.step(format!(
        "all placed after {:.1} s, all ready after {:.1} s; waiting until the operator is quiet",
        placed.as_secs_f64(),
        ready.as_secs_f64()
    ));
    operator.until_quiet(QUIET, SETTLE).await?;
    let requests = operator.requests().await?;
    let cpu_seconds = operator.cpu_seconds()?;

    progress.step(format!("idle for {} s", options.idle_seconds));
    let before = writes(cluster)?;
    tokio::time::sleep(Duration::from_secs(options.idle_seconds)).await;
    let idle = writes(cluster)?.since(&before);

    progress.step("a cold restart");
    let first_peak = operator.peak_rss_mib()?;
    operator.kill()?;
    let before = writes(cluster)?;
    let mut operator = Operator::start(program, kubeconfig.path(), &options.operator_arg)?;
    let restart = operator.until_reconciled(deployments, QUIET, SETTLE).await?;
    let restarted = writes(cluster)?.since(&before);
    let peak_rss_mib = first_peak.max(operator.peak_rss_mib()?);
    operator.kill()?;

    let total: u64 = requests.values().sum();
    Ok(Figures {
        nodes,
        deployments,
        seconds_to_placed: rounded(placed.as_secs_f64()),
        seconds_to_ready: rounded(ready.as_secs_f64()),
        requests,
        requests_per_deployment: rounded(total as f64 / deployments as f64),
        cpu_seconds: rounded(cpu_seconds),
        peak_rss_mib: rounded(peak_rss_mib),
        restart_seconds: rounded(restart.as_secs_f64()),
        restart_writes: restarted.other,
        idle_writes: idle.other,
        idle_lease_writes: idle.leases,
        idle_seconds: options.idle_seconds,
    })
}

fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Both charts, without the operator's own Deployment: the process under test takes its place.
fn install(cluster: &Cluster, repository: &Path) -> Result<()> {
    for release in ["hawkeye-crds", "hawkeye"] {
        let mut helm = cluster.helm();
        helm.args(["upgrade", "--install", release])
            .arg(repository.join("charts").join(release))
            .args(["--namespace", OPERATOR_NAMESPACE, "--create-namespace"]);
        if release == "hawkeye" {
            helm.args(["--set-json", fleet::TOLERATIONS]);
        }
        command::run(&mut helm)?;
    }
    cluster.kubectl().run([
        "--namespace",
        OPERATOR_NAMESPACE,
        "delete",
        "deployment",
        "--selector=app.kubernetes.io/name=hawkeye-operator",
        "--wait=true",
    ])?;
    Ok(())
}

/// A kubeconfig with the service account of the chart.
fn account(cluster: &Cluster) -> Result<tempfile::NamedTempFile> {
    let token = cluster.kubectl().run([
        "--namespace",
        OPERATOR_NAMESPACE,
        "create",
        "token",
        "hawkeye-operator",
        "--duration=6h",
    ])?;
    let text = fs::read_to_string(cluster.kubeconfig_path())?;
    let mut config: Value = serde_saphyr::from_str(&text).context("the cluster's kubeconfig")?;
    let user = config
        .pointer_mut("/users/0/user")
        .context("a kubeconfig without a user")?;
    *user = serde_json::json!({"token": token.trim()});
    let file = tempfile::NamedTempFile::new()?;
    // JSON is YAML.
    fs::write(file.path(), serde_json::to_vec(&config)?)?;
    Ok(file)
}

/// Times until every HawkeyeDeployment says that it is placed, and until all have their pods.
async fn until_all(client: &Client, count: usize, started: Instant) -> Result<(Duration, Duration)> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &fleet::resource());
    let mut stream = std::pin::pin!(
        watcher(api, watcher::Config::default())
            .default_backoff()
            .applied_objects()
    );
    let mut seen: HashMap<String, (bool, bool)> = HashMap::new();
    let mut placed = None;
    let watching = async {
        while let Some(object) = stream.try_next().await? {
            let state = (is_placed(&object.data), is_ready(&object.data));
            seen.insert(object.uid().unwrap_or_default(), state);
            let all = |what: fn(&(bool, bool)) -> bool| seen.len() == count && seen.values().all(what);
            if placed.is_none() && all(|state| state.0) {
                placed = Some(started.elapsed());
            }
            if let Some(placed) = placed.filter(|_| all(|state| state.1)) {
                return Ok((placed, started.elapsed()));
            }
        }
        bail!("the watch ended")
    };
    let ended = tokio::time::timeout(SETTLE, watching).await;
    if let Ok(result) = ended {
        return result;
    }
    let (done, ready) = (
        seen.values().filter(|state| state.0).count(),
        seen.values().filter(|state| state.1).count(),
    );
    bail!(
        "after {} s {done} of {count} are placed and {ready} ready",
        SETTLE.as_secs()
    )
}

fn is_placed(object: &Value) -> bool {
    object["status"]["conditions"]
        .as_array()
        .is_some_and(|all| all.iter().any(|one| one["type"] == "Placed" && one["status"] == "True"))
}

fn is_ready(object: &Value) -> bool {
    object["status"]["readyReplicas"] == object["spec"]["replicas"]
}

/// The operator's writes so far, as the API server's audit log has them.
#[derive(Debug, Clone, Copy, Default)]
struct Writes {
    leases: usize,
    other: usize,
}

impl Writes {
    fn since(self, before: &Self) -> Self {
        Self {
            leases: self.leases - before.leases,
            other: self.other - before.other,
        }
    }
}

fn writes(cluster: &Cluster) -> Result<Writes> {
    let user = format!("system:serviceaccount:{OPERATOR_NAMESPACE}:hawkeye-operator");
    let mut found = Writes::default();
    let mut logs = 0;
    for entry in fs::read_dir(cluster.logs())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // A full log is kept beside its successor under a name with a date.
        if !name.starts_with("audit") {
            continue;
        }
        logs += 1;
        for line in fs::read_to_string(&path)?.lines().filter(|line| line.contains(&user)) {
            let Ok(entry) = serde_json::from_str::<Value>(line) else {
                continue;
            };
            if entry["user"]["username"] == user.as_str() && entry["stage"] == "ResponseComplete" {
                if entry["objectRef"]["resource"] == "leases" {
                    found.leases += 1;
                } else {
                    found.other += 1;
                }
            }
        }
    }
    ensure!(logs > 0, "the API server keeps no audit log");
    Ok(found)
}

/// The models of every HawkeyeDeployment; no pod starts, so it need not be there.
fn default_model() -> String {
    serde_json::json!({"image": {"reference": BUNDLE_REFERENCE, "pullPolicy": "Never"}}).to_string()
}
