//! Plan, applied objects and pods → status. Pure; `now` is a parameter, and whoever calls it writes only what changed.

use std::{collections::BTreeMap, sync::Arc};

use hawkeye_crds::v1alpha1::{
    Condition, ConditionStatus, ConditionType, Device, HawkeyeDeploymentStatus, PoolStatus, Reason,
};
use k8s_openapi::api::{
    apps::v1::{Deployment, DeploymentStatus},
    core::v1::Service,
};

use super::{
    apply::{Applied, title},
    build::{self, Owner, model::mounted_image, pool_name, service::endpoint},
    device::{self, Tally, Verdict},
    images::condition::{condition as image_condition, failure as image_failure},
    observe::{ContainerStatus, Pod},
    plan::{Plan, PoolPlan, distribution, handover::HandOver},
    starting::{fetch_issue, last_words, stages},
};

/// Longest message of a condition or a pool, in characters; the schema allows four times as many bytes.
const MESSAGE: usize = 1000;
/// Most pools that the schema takes.
const POOLS: usize = 64;
/// Starts after which a container that is not ready counts as one that ends again and again.
const CRASHES: i32 = 2;

/// Everything that a status is made from.
pub struct Facts<'a> {
    /// The HawkeyeDeployment.
    pub owner: &'a Owner<'a>,
    /// Its generation.
    pub generation: Option<i64>,
    /// What was planned.
    pub plan: &'a Plan,
    /// What was applied; `None` when the plan was refused.
    pub applied: Option<&'a Applied>,
    /// Its active pods.
    pub pods: &'a [Arc<Pod>],
    /// What each pod was found to compute on.
    pub verdict: &'a (dyn Fn(&Pod) -> Verdict + Sync),
    /// Its model is an image volume.
    pub image_volume: bool,
    /// What of the cluster the operator does not see, in a sentence.
    pub blind_spot: Option<&'a str>,
    /// RFC 3339.
    pub now: &'a str,
}

/// The status that belongs to the facts. `old` gives the times at which conditions last changed.
pub fn status(facts: &Facts<'_>, old: Option<&HawkeyeDeploymentStatus>) -> HawkeyeDeploymentStatus {
    let by_class = pods_by_class(facts.pods);
    let mut pools: Vec<PoolStatus> = match facts.applied {
        Some(applied) => facts
            .plan
            .pools
            .iter()
            .map(|pool| pool_status(facts, applied, pool, &by_class, old))
            .collect(),
        // Nothing was done: the pools are as they were, but for the pods that are ready now.
        None => old
            .map(|old| old.pools.clone())
            .unwrap_or_default()
            .into_iter()
            .map(|pool| {
                let pods = by_class.get(pool.class.as_str());
                let tally = Tally::new(pods.into_iter().flatten().copied(), facts.verdict);
                PoolStatus {
                    ready: ready(pods),
                    verified: tally.verified(pool.verified),
                    on_cpu: on_cpu(pool.device, &tally, pool.on_cpu),
                    ..pool
                }
            })
            .collect(),
    };
    if pools.len() > POOLS {
        pools.retain(|pool| pool.replicas > 0 || pool.ready > 0);
        pools.truncate(POOLS);
    }
    let ready_replicas = facts.pods.iter().filter(|pod| pod.ready()).count() as i32;
    let service = match facts.applied {
        Some(applied) => applied.service,
        None => old.is_some_and(|old| old.endpoint.is_some()),
    };
    let mut conditions = conditions(facts, &pools, ready_replicas, old);
    conditions.push(image_condition(facts, &pools, old));
    let (summary, message) = summary(&conditions, &pools);
    HawkeyeDeploymentStatus {
        observed_generation: facts.generation,
        replicas: facts.pods.len() as i32,
        ready_replicas,
        selector: Some(build::selector(facts.owner.name)),
        endpoint: service.then(|| endpoint(facts.owner.namespace, facts.owner.name)),
        summary: Some(summary),
        message: Some(message),
        pool_summary: Some(pool_summary(&pools)),
        pools,
        conditions,
    }
}

type ByClass<'a> = BTreeMap<&'a str, Vec<&'a Arc<Pod>>>;

fn pods_by_class(pods: &[Arc<Pod>]) -> ByClass<'_> {
    let mut by_class = ByClass::new();
    for pod in pods {
        by_class.entry(pod.class().unwrap_or_default()).or_default().push(pod);
    }
    by_class
}

fn ready(pods: Option<&Vec<&Arc<Pod>>>) -> i32 {
    pods.map_or(0, |pods| pods.iter().filter(|pod| pod.ready()).count() as i32)
}

fn on_cpu(device: Device, tally: &Tally<'_>, before: i32) -> i32 {
    if device == Device::Cpu {
        0
    } else {
        tally.elsewhere(before)
    }
}

fn pool_status(
    facts: &Facts<'_>,
    applied: &Applied,
    pool: &PoolPlan,
    by_class: &ByClass<'_>,
    old: Option<&HawkeyeDeploymentStatus>,
) -> PoolStatus {
    let pods = by_class.get(pool.class.as_str());
    let (reason, message) = if pool.replicas == 0 {
        (pool.reason, pool.message.clone())
    } else {
        running(facts, applied, pool, pods.map_or(&[], Vec::as_slice))
    };
    let (mut reason, mut message) = (reason.as_str(), shorten(&message));
    let before = old
        .iter()
        .flat_map(|old| &old.pools)
        .find(|old| old.class == pool.class);
    let tally = Tally::new(pods.into_iter().flatten().copied(), facts.verdict);
    if let Some(before) = before.filter(|before| tally.asking() && device::is_difference(&before.reason)) {
        (reason, message) = (&before.reason, before.message.clone());
    }
    PoolStatus {
        class: pool.class.clone(),
        device: pool.device(),
        dtype: pool.dtype,
        batch_size: pool.batch_size,
        memory: pool.memory.clone(),
        nodes: pool.nodes as i32,
        replicas: pool.replicas as i32,
        ready: ready(pods),
        verified: tally.verified(before.map_or(0, |before| before.verified)),
        on_cpu: on_cpu(pool.device(), &tally, before.map_or(0, |before| before.on_cpu)),
        reason: reason.to_owned(),
        message,
        hand_over: pool.hand_over.as_ref().map(HandOver::to_status),
    }
}

/// Why a pool with replicas is as it is: the first thing that someone would have to mend.
fn running(facts: &Facts<'_>, applied: &Applied, pool: &PoolPlan, pods: &[&Arc<Pod>]) -> (Reason, String) {
    let name = pool_name(facts.owner.name, &pool.class);
    let title = title::<Deployment>(&name);
    if let Some(message) = applied.conflicts.get(&title) {
        return (Reason::NameConflict, format!("{message}."));
    }
    if let Some(message) = applied.refusals.get(&title) {
        return (
            Reason::ApplyFailed,
            format!("The API server refused {title}: {message}"),
        );
    }
    let deployment = applied.deployments.get(&pool.class);
    if facts.image_volume && deployment.is_some_and(|deployment| mounted_image(deployment).is_none()) {
        return (
            Reason::ModelVolumeUnsupported,
            "The cluster dropped the model's volume: it has no image volumes (Kubernetes 1.35 or later has them). Use \
             model.persistentVolumeClaim or model.http instead."
                .to_owned(),
        );
    }
    if let Some(message) = deployment.and_then(refused_pods) {
        return (
            Reason::PodsRefused,
            format!("The cluster refuses to create the pods: {message}"),
        );
    }
    if let Some((reason, message)) = pods
        .iter()
        .filter_map(|pod| issue(facts, &name, pod))
        .min_by_key(|(r, _)| rank(*r))
    {
        return (reason, message);
    }
    let ready = pods.iter().filter(|pod| pod.ready()).count();
    let planned = pool.replicas as usize;
    let updated = deployment.map_or(0, updated_replicas);
    if ready >= planned && updated >= planned as i32 && pods.len() == planned {
        if let Some((reason, text)) = Tally::new(pods.iter().copied(), facts.verdict).difference() {
            return (reason, format!("{text}."));
        }
        return (Reason::AllReady, pool.message.clone());
    }
    if ready >= planned || deployment.is_some_and(has_old_pods) {
        return (
            Reason::RollingOut,
            format!("{updated} of {planned} pods are of the current spec."),
        );
    }
    let reason = if ready > 0 {
        Reason::PartlyReady
    } else {
        Reason::NotReady
    };
    (
        reason,
        format!("{ready} of {planned} pods are ready; the others start{}.", stages(pods)),
    )
}

fn refused_pods(deployment: &Deployment) -> Option<String> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    let failed = conditions.iter().find(|condition| {
        condition.type_.as_deref() == Some("ReplicaFailure") && condition.status.as_deref() == Some("True")
    })?;
    failed.message.clone()
}

/// What the Deployment's controller reports, once it has seen the current spec; before, it is about an older one.
fn current(deployment: &Deployment) -> Option<&DeploymentStatus> {
    deployment
        .status
        .as_ref()
        .filter(|status| status.observed_generation >= deployment.metadata.generation)
}

fn updated_replicas(deployment: &Deployment) -> i32 {
    current(deployment)
        .and_then(|status| status.updated_replicas)
        .unwrap_or(0)
}

fn has_old_pods(deployment: &Deployment) -> bool {
    let replicas = current(deployment).and_then(|status| status.replicas).unwrap_or(0);
    replicas > updated_replicas(deployment)
}

fn rank(reason: Reason) -> u8 {
    match reason {
        Reason::ImageArchitectureMissing => 0,
        Reason::CrashLoop => 1,
        Reason::ImagePullFailed | Reason::ModelFetchFailed => 2,
        Reason::DeviceMismatch => 3,
        _ => 4,
    }
}

fn issue(facts: &Facts<'_>, name: &str, pod: &Pod) -> Option<(Reason, String)> {
    if pod.ready() {
        return None;
    }
    if let Some(message) = image_failure(facts, pod) {
        return Some((Reason::ImageArchitectureMissing, message));
    }
    if let Some(issue) = fetch_issue(pod) {
        return Some(issue);
    }
    let ended_well =
        |container: &&ContainerStatus| container.state.terminated.as_ref().is_some_and(|e| e.exit_code == 0);
    let first = pod
        .status
        .init_container_statuses
        .iter()
        .filter(|init| !ended_well(init));
    for container in first.chain(&pod.status.container_statuses) {
        if let Some(ended) = &container.last_state.terminated
            && container.restart_count >= CRASHES
        {
            let logs = || format!("`kubectl logs -n {} deploy/{name} --previous`", facts.owner.namespace);
            let cause = match last_words(ended) {
                _ if ended.reason == "OOMKilled" => {
                    "it needs more memory than its limit; raise overrides.<class>.memory or lower batchSize".to_owned()
                }
                Some(words) => format!("{words}. More: {}", logs()),
                None => format!("see {}", logs()),
            };
            return Some((
                Reason::CrashLoop,
                format!(
                    "The container ends again and again (exit code {}): {cause}.",
                    ended.exit_code
                ),
            ));
        }
        if let Some(waiting) = &container.state.waiting
            && (waiting.reason.contains("Image") || waiting.reason.contains("CreateContainer"))
        {
            return Some((
                Reason::ImagePullFailed,
                format!(
                    "An image of the pods cannot be had ({}): {}",
                    waiting.reason, waiting.message
                ),
            ));
        }
    }
    if let Verdict::Differs(difference) = (facts.verdict)(pod) {
        return Some((difference.reason, format!("Pod {} {}.", pod.name(), difference.text)));
    }
    let unschedulable = pod.status.conditions.iter().find(|condition| {
        condition.type_ == "PodScheduled" && condition.status == "False" && condition.reason == "Unschedulable"
    })?;
    Some((
        Reason::Unschedulable,
        format!("The scheduler finds no node for some pods: {}", unschedulable.message),
    ))
}

fn conditions(
    facts: &Facts<'_>,
    pools: &[PoolStatus],
    ready: i32,
    old: Option<&HawkeyeDeploymentStatus>,
) -> Vec<Condition> {
    let condition = |type_: ConditionType, (status, reason, message): (ConditionStatus, &str, String)| {
        let before = old
            .iter()
            .flat_map(|old| &old.conditions)
            .find(|condition| condition.type_ == type_.as_str());
        Condition {
            type_: type_.as_str().to_owned(),
            status,
            observed_generation: facts.generation,
            last_transition_time: before
                .filter(|before| before.status == status)
                .map_or_else(|| facts.now.to_owned(), |before| before.last_transition_time.clone()),
            reason: reason.to_owned(),
            message: shorten(&message),
        }
    };
    let told = |type_, (status, reason, message): Told| condition(type_, (status.into(), reason.as_str(), message));
    let tally = Tally::new(facts.pods, facts.verdict);
    vec![
        told(ConditionType::Accepted, accepted(facts.plan)),
        told(ConditionType::Placed, placed(facts)),
        told(ConditionType::Available, available(facts, pools, ready)),
        condition(ConditionType::DeviceVerified, device_verified(&tally, old)),
        degraded_still(facts, &tally, old)
            .unwrap_or_else(|| told(ConditionType::Degraded, degraded(facts.plan, tally.serves_elsewhere()))),
    ]
}

/// What pods on a lesser device were told to be, while they are being asked again.
fn degraded_still(facts: &Facts<'_>, tally: &Tally<'_>, old: Option<&HawkeyeDeploymentStatus>) -> Option<Condition> {
    let conditions = &old.filter(|_| tally.asking())?.conditions;
    let of = |type_: ConditionType| conditions.iter().find(|condition| condition.type_ == type_.as_str());
    let differed = of(ConditionType::DeviceVerified).is_some_and(|it| it.reason == Reason::DeviceMismatch.as_str());
    let before = of(ConditionType::Degraded).filter(|_| differed)?;
    Some(Condition {
        observed_generation: facts.generation,
        ..before.clone()
    })
}

/// While pods are being asked it stays as it was, so that neither a restart of the operator nor a new pod makes it flap.
fn device_verified<'a>(
    tally: &Tally<'_>,
    old: Option<&'a HawkeyeDeploymentStatus>,
) -> (ConditionStatus, &'a str, String) {
    if let Some((status, reason, message)) = tally.condition() {
        return (status, reason.as_str(), message);
    }
    let is_it = |condition: &&Condition| condition.type_ == ConditionType::DeviceVerified.as_str();
    match old.and_then(|old| old.conditions.iter().find(is_it)) {
        Some(before) => (before.status, &before.reason, before.message.clone()),
        None => (
            ConditionStatus::Unknown,
            Reason::NotVerified.as_str(),
            "The pods are being asked.".to_owned(),
        ),
    }
}

type Told = (bool, Reason, String);

/// The conditions that a plan alone decides, before anything is applied: type, whether it is True, reason and message.
pub fn of_plan(plan: &Plan) -> [(ConditionType, bool, Reason, String); 3] {
    let placed = (is_placed(plan), plan.placed.0, plan.placed.1.clone());
    [
        (ConditionType::Accepted, accepted(plan)),
        (ConditionType::Placed, placed),
        (ConditionType::Degraded, degraded(plan, None)),
    ]
    .map(|(type_, (holds, reason, message))| (type_, holds, reason, message))
}

fn is_placed(plan: &Plan) -> bool {
    plan.refused.is_none() && plan.unplaced == 0 && plan.stuck == 0
}

fn accepted(plan: &Plan) -> Told {
    match &plan.refused {
        Some((reason, message)) => (false, *reason, format!("{message} What runs already is left as it is.")),
        None => (true, Reason::Accepted, "The spec is valid and complete.".to_owned()),
    }
}

fn placed(facts: &Facts<'_>) -> Told {
    if let Some(applied) = facts.applied {
        if !applied.conflicts.is_empty() {
            let messages: Vec<&str> = applied.conflicts.values().map(String::as_str).collect();
            return (false, Reason::NameConflict, format!("{}.", messages.join("; ")));
        }
        if !applied.refusals.is_empty() {
            let refusals: Vec<String> = applied
                .refusals
                .iter()
                .map(|(name, message)| format!("{name}: {message}"))
                .collect();
            return (
                false,
                Reason::ApplyFailed,
                format!("The API server refused {}", refusals.join("; ")),
            );
        }
    }
    let (reason, mut message) = facts.plan.placed.clone();
    let on_gpus = |pool: &PoolPlan| pool.replicas > 0 && pool.spec.resource.is_some();
    if let Some(blind_spot) = facts.blind_spot
        && facts.plan.pools.iter().any(on_gpus)
    {
        message.extend([" ", blind_spot]);
    }
    (is_placed(facts.plan), reason, message)
}

fn available(facts: &Facts<'_>, pools: &[PoolStatus], ready: i32) -> Told {
    let planned: i32 = pools.iter().map(|pool| pool.replicas).sum();
    let service_conflict = facts
        .applied
        .and_then(|applied| applied.conflicts.get(&title::<Service>(facts.owner.name)));
    if let Some(message) = service_conflict {
        return (false, Reason::NameConflict, format!("There is no endpoint: {message}."));
    }
    if ready > 0 {
        let url = endpoint(facts.owner.namespace, facts.owner.name);
        if ready >= planned {
            return (
                true,
                Reason::AllReady,
                format!("{ready} of {planned} pods answer at {url}."),
            );
        }
        return (
            true,
            Reason::PartlyReady,
            format!("{ready} of {planned} pods answer at {url}.{}", troubles(pools)),
        );
    }
    if facts.plan.refused.is_some() {
        let reason = facts.plan.placed.0;
        return (false, reason, "No pod runs, since the spec is not accepted.".to_owned());
    }
    if facts.owner.spec.replicas <= 0 {
        return (
            false,
            Reason::ScaledToZero,
            "replicas is 0, so nothing runs.".to_owned(),
        );
    }
    if planned == 0 {
        return (
            false,
            facts.plan.placed.0,
            "No replica has a place; see the condition Placed.".to_owned(),
        );
    }
    let reason = pools
        .iter()
        .filter(|pool| pool.replicas > 0)
        .find_map(|pool| {
            Reason::ALL
                .iter()
                .copied()
                .find(|reason| reason.as_str() == pool.reason)
        })
        .filter(|reason| !matches!(reason, Reason::AllReady | Reason::PartlyReady | Reason::Placed))
        .unwrap_or(Reason::NotReady);
    (
        false,
        reason,
        format!("None of {planned} pods is ready.{}", troubles(pools)),
    )
}

fn troubles(pools: &[PoolStatus]) -> String {
    let mut text = String::new();
    for pool in pools
        .iter()
        .filter(|pool| pool.replicas > 0 && pool.reason != Reason::AllReady.as_str())
    {
        text.extend([" ", &pool.class, ": ", &pool.message]);
    }
    text
}

/// `elsewhere` says which pods were found to compute on another device.
fn degraded(plan: &Plan, elsewhere: Option<String>) -> Told {
    match (&plan.degraded, elsewhere) {
        (Some(message), None) => (true, Reason::DeviceUnavailable, message.clone()),
        (Some(message), Some(text)) => (true, Reason::DeviceUnavailable, format!("{message} {text}.")),
        (None, Some(text)) => (true, Reason::DeviceMismatch, format!("{text}.")),
        (None, None) if plan.refused.is_some() => (false, plan.placed.0, "Nothing was planned.".to_owned()),
        (None, None) => {
            let runs = distribution(&plan.pools);
            let runs = if runs.is_empty() {
                "No replica runs on a lesser device.".to_owned()
            } else {
                format!("{runs}.")
            };
            (false, Reason::AsAsked, runs)
        }
    }
}

/// The word and the sentence for `kubectl get`: the first thing that is not as it should be.
fn summary(conditions: &[Condition], pools: &[PoolStatus]) -> (String, String) {
    use hawkeye_crds::v1alpha1::ConditionStatus::{False, True};
    let find = |type_: ConditionType| conditions.iter().find(|condition| condition.type_ == type_.as_str());
    for type_ in [ConditionType::Accepted, ConditionType::Placed, ConditionType::Available] {
        if let Some(bad) = find(type_).filter(|condition| condition.status == False) {
            return (bad.reason.clone(), bad.message.clone());
        }
    }
    let Some(available) = find(ConditionType::Available) else {
        return (String::new(), String::new());
    };
    if let Some(degraded) = find(ConditionType::Degraded).filter(|condition| condition.status == True) {
        return ("Degraded".to_owned(), degraded.message.clone());
    }
    // It serves, so what keeps the other pods is said after that.
    if available.reason == Reason::PartlyReady.as_str() {
        return (available.reason.clone(), available.message.clone());
    }
    let planned = pools.iter().filter(|pool| pool.replicas > 0);
    if let Some(pool) = planned
        .into_iter()
        .find(|pool| pool.reason != Reason::AllReady.as_str())
    {
        return (pool.reason.clone(), format!("{}: {}", pool.class, pool.message));
    }
    ("Ready".to_owned(), available.message.clone())
}

/// "1/2", or "2/2 (1 on CPU)" where pods of a GPU pool came up without their GPU.
pub fn ready_of(pool: &PoolStatus) -> String {
    let ready = format!("{}/{}", pool.ready, pool.replicas);
    if pool.on_cpu > 0 {
        return format!("{ready} ({} on CPU)", pool.on_cpu);
    }
    ready
}

/// "dgx-spark 1/1, cpu-arm64 1/2".
fn pool_summary(pools: &[PoolStatus]) -> String {
    pools
        .iter()
        .filter(|pool| pool.replicas > 0 || pool.ready > 0)
        .map(|pool| format!("{} {}", pool.class, ready_of(pool)))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Messages from elsewhere may be long and may hold control characters; a status line holds neither.
pub fn shorten(message: &str) -> String {
    let clean: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if clean.chars().count() <= MESSAGE {
        return clean;
    }
    let mut short: String = clean.chars().take(MESSAGE - 1).collect();
    short.push('…');
    short
}
