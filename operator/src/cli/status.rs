//! `kubectl hawkeye status`: what runs where, and what is not as it should be, on one screen.

use hawkeye_crds::v1alpha1::{Condition, ConditionStatus, ConditionType, HawkeyeDeployment, PoolStatus};
use kube::ResourceExt;
use serde::Serialize;

use super::{
    args::StatusArgs,
    error::Error,
    live::Cluster,
    report::API_VERSION,
    table::{Table, hanging, paragraph},
};
use crate::controller::{build::MANAGER, observe::Pod, status::ready_of};

/// The output of `status`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusReport {
    /// Always `cli.hawkeye.bytebot.ai/v1alpha1`.
    pub api_version: &'static str,
    /// Always `Status`.
    pub kind: &'static str,
    /// Everything below is as it should be.
    pub good: bool,
    /// The HawkeyeDeployments by namespace and name.
    pub deployments: Vec<DeploymentStatus>,
    /// What the reader should know of how this came about.
    pub notes: Vec<String>,
}

/// How a HawkeyeDeployment is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeploymentStatus {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// All is as it should be, and the operator has seen the current spec.
    pub good: bool,
    /// One word: Ready, or the reason why not.
    pub summary: String,
    /// Replicas asked for.
    pub replicas: i32,
    /// Pods that are ready.
    pub ready: i32,
    /// Where clients in the cluster send their requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The status is about the current spec.
    pub current: bool,
    /// Its conditions, as in the API.
    pub conditions: Vec<Condition>,
    /// Its pools, as in the API.
    pub pools: Vec<PoolStatus>,
    /// Its pods.
    pub pods: Vec<PodReport>,
}

/// A pod of a pool.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodReport {
    /// Its name.
    pub name: String,
    /// The class of its pool.
    pub class: String,
    /// The node that it is bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// It answers requests.
    pub ready: bool,
    /// How it is, in a few words.
    pub state: String,
    /// Times that its containers were started again.
    pub restarts: i32,
}

/// Asks the cluster.
///
/// # Errors
/// When it does not answer, or one of the names does not exist.
pub async fn status(args: &StatusArgs) -> Result<StatusReport, Error> {
    let cluster = Cluster::of(&args.cluster).await?;
    let own = args.namespace.as_ref().unwrap_or(&cluster.namespace);
    let namespace = (!args.all_namespaces).then_some(own.as_str());
    let (mut objects, mut bad) = cluster.deployments(namespace).await?;
    if !args.names.is_empty() {
        objects.retain(|object| args.names.contains(&object.name_any()));
        bad.retain(|object| args.names.contains(&object.name));
        for name in &args.names {
            let is_good = objects.iter().any(|object| object.name_any() == *name);
            if !is_good && !bad.iter().any(|object| object.name == *name) {
                return Err(Error::Usage(format!(
                    "there is no HawkeyeDeployment {name} in namespace {own}; kubectl hawkeye status -A lists all"
                )));
            }
        }
    }
    let selector = format!("app.kubernetes.io/managed-by={MANAGER}");
    let pods = cluster.own_pods(namespace, &selector).await?;
    let mut notes: Vec<String> = bad.iter().map(|bad| format!("HawkeyeDeployment {bad}")).collect();
    if objects.is_empty() && notes.is_empty() {
        let place = namespace.map_or("in any namespace".to_owned(), |name| format!("in namespace {name}"));
        notes.push(format!("there is no HawkeyeDeployment {place}"));
    }
    Ok(report(&objects, &pods, bad.is_empty(), notes))
}

/// Objects and pods → report. Pure.
pub fn report(objects: &[HawkeyeDeployment], pods: &[Pod], all_decode: bool, notes: Vec<String>) -> StatusReport {
    let mut deployments: Vec<DeploymentStatus> = objects.iter().map(|object| one(object, pods)).collect();
    deployments.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    StatusReport {
        api_version: API_VERSION,
        kind: "Status",
        good: all_decode && deployments.iter().all(|one| one.good),
        deployments,
        notes,
    }
}

fn one(object: &HawkeyeDeployment, pods: &[Pod]) -> DeploymentStatus {
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let status = object.status.clone().unwrap_or_default();
    let current = status.observed_generation.is_some() && status.observed_generation >= object.metadata.generation;
    let mut pods: Vec<PodReport> = pods
        .iter()
        .filter(|pod| pod.instance() == Some((namespace.as_str(), name.as_str())) && !pod.terminal())
        .map(pod_report)
        .collect();
    pods.sort_by(|a, b| a.name.cmp(&b.name));
    DeploymentStatus {
        good: current && !status.conditions.iter().any(bad),
        summary: status.summary.unwrap_or_else(|| "Unknown".to_owned()),
        replicas: object.spec.replicas,
        ready: status.ready_replicas,
        endpoint: status.endpoint,
        current,
        conditions: status.conditions,
        pools: status.pools,
        pods,
        namespace,
        name,
    }
}

/// The status that a condition should have; `None` for a type that this version does not know.
fn wanted(condition: &Condition) -> Option<ConditionStatus> {
    let known = ConditionType::ALL
        .iter()
        .find(|type_| type_.as_str() == condition.type_);
    known.map(|type_| type_.good())
}

/// The opposite of what it should be. Unknown is not bad: what could not be checked may be in order.
fn bad(condition: &Condition) -> bool {
    wanted(condition).is_some_and(|wanted| condition.status != wanted && condition.status != ConditionStatus::Unknown)
}

fn pod_report(pod: &Pod) -> PodReport {
    let statuses = &pod.status.container_statuses;
    PodReport {
        name: pod.name_any(),
        class: pod.class().unwrap_or_default().to_owned(),
        node: pod.spec.node_name.clone(),
        ready: pod.ready(),
        state: state(pod),
        restarts: statuses.iter().map(|status| status.restart_count).sum(),
    }
}

fn state(pod: &Pod) -> String {
    if pod.metadata.deletion_timestamp.is_some() {
        return "ending".to_owned();
    }
    if pod.ready() {
        return "ready".to_owned();
    }
    let waiting = pod
        .status
        .container_statuses
        .iter()
        .find_map(|status| status.state.waiting.as_ref());
    if let Some(waiting) = waiting.filter(|waiting| !waiting.reason.is_empty()) {
        return waiting.reason.clone();
    }
    let unscheduled = pod
        .status
        .conditions
        .iter()
        .find(|one| one.type_ == "PodScheduled" && one.status == "False");
    if let Some(condition) = unscheduled {
        return condition.reason.clone();
    }
    match pod.status.phase.as_str() {
        "Running" => "starts".to_owned(),
        "" => "Unknown".to_owned(),
        phase => phase.to_owned(),
    }
}

/// The report for people.
pub fn render(report: &StatusReport, width: usize) -> String {
    let mut out = String::new();
    for (at, deployment) in report.deployments.iter().enumerate() {
        if at > 0 {
            out.push('\n');
        }
        render_one(&mut out, deployment, width);
    }
    for note in &report.notes {
        hanging(&mut out, &format!("note: {note}"), width, 0, 6);
    }
    out
}

fn render_one(out: &mut String, deployment: &DeploymentStatus, width: usize) {
    let head = format!(
        "{}/{}: {}, {} of {} ready{}",
        deployment.namespace,
        deployment.name,
        deployment.summary,
        deployment.ready,
        deployment.replicas,
        deployment
            .endpoint
            .as_ref()
            .map_or(String::new(), |endpoint| format!(", {endpoint}"))
    );
    hanging(out, &head, width, 0, 2);
    if !deployment.current {
        let text = "! The operator has not looked at the current spec yet. Does it run? kubectl get deploy -A -l \
                    app.kubernetes.io/name=hawkeye-operator";
        hanging(out, text, width, 2, 2);
    }
    for condition in &deployment.conditions {
        if wanted(condition).is_some_and(|wanted| condition.status != wanted) {
            let mark = if bad(condition) { "!" } else { "?" };
            let text = format!(
                "{mark} {}={:?} {}: {}",
                condition.type_, condition.status, condition.reason, condition.message
            );
            hanging(out, &text, width, 2, 2);
        }
    }
    let mut pools = Table::new(&["CLASS", "READY", "NODES", "DEVICE", "DTYPE", "BATCH", "MEMORY", "WHY"]);
    for pool in &deployment.pools {
        let used = pool.replicas > 0 || pool.ready > 0;
        let when = |text: String| if used { text } else { "-".to_owned() };
        pools.row([
            pool.class.clone(),
            ready_of(pool),
            pool.nodes.to_string(),
            when(pool.device.as_str().to_owned()),
            when(pool.dtype.as_str().to_owned()),
            when(pool.batch_size.to_string()),
            when(pool.memory.to_string()),
            format!("{}: {}", pool.reason, pool.message),
        ]);
    }
    if !pools.is_empty() {
        pools.write(out, width, 2);
    }
    if deployment.pods.is_empty() {
        paragraph(out, "no pods", width, 2);
        return;
    }
    let mut table = Table::new(&["POD", "NODE", "RESTARTS", "STATE"]);
    for pod in &deployment.pods {
        table.row([
            pod.name.clone(),
            pod.node.clone().unwrap_or_else(|| "-".to_owned()),
            pod.restarts.to_string(),
            pod.state.clone(),
        ]);
    }
    table.write(out, width, 2);
}
