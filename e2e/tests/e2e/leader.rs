//! The chart's two replicas: the one that leads is told to end, or killed, and what users ask for goes on.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hawkeye_e2e::{NodeChoice, install::OPERATOR_NAMESPACE};
use k8s_openapi::api::{apps::v1::Deployment, coordination::v1::Lease, core::v1::Pod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use serde_json::json;

use crate::support::{Scope, Suite, expect, within};

const OPERATOR: &str = "hawkeye-operator";
/// Less than the Lease's 20 s: who waits for less was handed it.
const HANDED: Duration = Duration::from_secs(10);

/// Kills the process of a pod, as the kernel does that is out of memory. Only the container that runs the operator has its
/// pod's name in its environment.
const KILL: &str = r#"for process in /proc/[0-9]*; do
    if tr '\0' '\n' <"$process/environ" | grep -qx "POD_NAME=$0"; then kill -KILL "${process#/proc/}" && exit; fi
done 2>/dev/null
exit 1"#;

async fn holder(suite: &Suite) -> Result<Option<String>> {
    let leases: Api<Lease> = Api::namespaced(suite.client.clone(), OPERATOR_NAMESPACE);
    let spec = leases.get(OPERATOR).await?.spec.unwrap_or_default();
    Ok(spec.holder_identity.filter(|holder| !holder.is_empty()))
}

/// Scales and waits until the pool was scaled; returns how long it took.
async fn scaled(scope: &Scope<'_>, replicas: i32) -> Result<Duration> {
    let start = Instant::now();
    let spec = json!({"replicas": replicas, "classes": ["graviton"]});
    scope.apply("led", spec).await?;
    within(60, async || {
        let pool = scope.api::<Deployment>().get_opt("led-graviton").await?;
        Ok((pool.and_then(|pool| pool.spec.replicas) == Some(replicas)).then_some(()))
    })
    .await?
    .with_context(|| format!("nobody scaled to {replicas}"))?;
    Ok(start.elapsed())
}

/// Waits until both replicas are ready, and returns the names of their pods.
async fn both_ready(suite: &Suite) -> Result<Vec<String>> {
    let pods: Api<Pod> = Api::namespaced(suite.client.clone(), OPERATOR_NAMESPACE);
    let ours = ListParams::default().labels(&format!("app.kubernetes.io/name={OPERATOR}"));
    let is_ready = |pod: &Pod| {
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        let ready = |condition: &&k8s_openapi::api::core::v1::PodCondition| condition.type_ == "Ready";
        conditions
            .and_then(|all| all.iter().find(ready))
            .is_some_and(|it| it.status == "True")
    };
    within(60, async || {
        let pods = pods.list(&ours).await?.items;
        let good = pods.len() == 2 && pods.iter().all(is_ready);
        Ok(good.then(|| pods.iter().map(ResourceExt::name_any).collect()))
    })
    .await?
    .context("two replicas are not ready")
}

pub async fn the_other_replica_takes_over(suite: &Suite) -> Result<()> {
    let scope = suite.namespace("leader").await?;
    let before = both_ready(suite).await?;
    scaled(&scope, 1).await?;
    let first = holder(suite).await?.context("nobody leads")?;
    ensure!(before.contains(&first), "{first} is none of {before:?}");

    // Told to end, it frees the Lease, and a change made meanwhile is seen to at once.
    let pods: Api<Pod> = Api::namespaced(suite.client.clone(), OPERATOR_NAMESPACE);
    pods.delete(&first, &DeleteParams::default()).await?;
    let told = Instant::now();
    let took = scaled(&scope, 3).await?;
    let second = holder(suite).await?.context("nobody leads")?;
    eprintln!("    a change while the leader ends: {:.1} s", took.as_secs_f64());
    ensure!(took < HANDED, "seen to after {took:?}, as if the Lease had to run out");
    // It may have been the last act of the one that was told to end.
    let second = if second == first {
        let next = within(20, async || Ok(holder(suite).await?.filter(|holder| *holder != first)));
        next.await?.context("the Lease was not freed")?
    } else {
        second
    };
    ensure!(
        told.elapsed() < HANDED,
        "the Lease changed hands after {:?}",
        told.elapsed()
    );
    scaled(&scope, 2).await?;
    expect("the leader", &holder(suite).await?, &Some(second.clone()))?;
    // The one that stood by, or the one that was started in the place of the first: whoever asked first.
    let now = both_ready(suite).await?;
    ensure!(now.contains(&second) && !now.contains(&first), "{second} leads {now:?}");

    // Killed, it frees nothing. Its container is started again and goes on, or the Lease runs out and the other one does.
    let words = ["sh", "-c", KILL, &second].map(str::to_owned);
    ensure!(suite.cluster.exec(NodeChoice::First, &words)?, "no process of {second}");
    let took = scaled(&scope, 4).await?;
    eprintln!("    a change after the leader was killed: {:.1} s", took.as_secs_f64());
    ensure!(took < Duration::from_secs(30), "seen to after {took:?}");
    let after = both_ready(suite).await?;
    let third = holder(suite).await?.context("nobody leads")?;
    ensure!(after.contains(&third), "{third} is none of {after:?}");
    let started_again = pods
        .get(&second)
        .await?
        .status
        .and_then(|status| status.container_statuses);
    let restarts = started_again.unwrap_or_default().first().map(|it| it.restart_count);
    expect("restarts of the pod that was killed", &restarts, &Some(1))?;
    scope.until_ready("led", 4, 60).await?;
    scope.delete("led").await
}
