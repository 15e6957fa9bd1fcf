//! Two replicas: one leads, the other is ready to.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kube::api::{Patch, PatchParams};
use rustix::process::Signal;
use serde_json::json;
use tokio::time::sleep;

use crate::{
    life::nodes,
    operator::Operator,
    scenarios::{MODEL, create, namespace, parsers},
    server::{Cluster, wait},
};

const NAMESPACE: &str = "replicas";
/// A Lease of their own, and short.
const SHORT: [(&str, &str); 4] = [
    ("HAWKEYE_LEASE_NAME", "replicas"),
    ("HAWKEYE_LEASE_DURATION", "4s"),
    ("HAWKEYE_LEASE_RENEW_DEADLINE", "3s"),
    ("HAWKEYE_LEASE_RETRY_PERIOD", "500ms"),
];

async fn leads(operator: &Operator) -> Result<Duration> {
    let start = Instant::now();
    wait("a replica to lead", async || Ok(operator.leads().await.then_some(())))
        .await
        .with_context(|| operator.log())?;
    Ok(start.elapsed())
}

/// Writes of the operator, its Lease left out.
fn writes(operator: &Operator) -> usize {
    operator
        .proxy
        .seen()
        .iter()
        .filter(|seen| seen.writes() && !seen.path.contains("/leases"))
        .count()
}

/// Changes the object and waits until somebody did something about it.
async fn scale(cluster: &Cluster, replicas: u32) -> Result<()> {
    let api = parsers(cluster, NAMESPACE);
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    let generation = api
        .patch("demo", &PatchParams::default(), &patch)
        .await?
        .metadata
        .generation;
    wait("the change to be seen", async || {
        let status = api.get("demo").await?.status.unwrap_or_default();
        Ok((status.observed_generation == generation).then_some(()))
    })
    .await
}

pub async fn take_turns(cluster: &'static Cluster) -> Result<()> {
    cluster.kill_operator();
    nodes(cluster).await?;
    namespace(cluster, NAMESPACE).await?;
    let first = Operator::start(cluster, "first", &SHORT).await?;
    leads(&first).await?;
    let second = Operator::start(cluster, "second", &SHORT).await?;
    let spec = format!("{{classes: [cpu-amd64], model: {MODEL}}}");
    create(cluster, NAMESPACE, "demo", &spec, false).await?;
    scale(cluster, 2).await?;
    ensure!(
        writes(&first) > 0 && writes(&second) == 0,
        "the replica that stands by wrote"
    );
    ensure!(!second.leads().await, "both lead");

    // Told to end, it frees the Lease.
    first.signal(Signal::TERM);
    let took = leads(&second).await?;
    ensure!(
        took < Duration::from_secs(3),
        "took over after {took:?}, as if the Lease had to run out"
    );
    wait("the first replica to end", async || Ok(first.ended())).await?;
    ensure!(
        first.ended().is_some_and(|status| status.success()),
        "{:?}\n{}",
        first.ended(),
        first.log()
    );
    let before = writes(&second);
    scale(cluster, 3).await?;
    ensure!(writes(&second) > before, "the new leader did nothing");

    // Killed, its Lease runs out.
    let third = Operator::start(cluster, "third", &SHORT).await?;
    second.signal(Signal::KILL);
    leads(&third).await?;
    scale(cluster, 4).await?;

    // Stopped for longer than its Lease, it wakes up with a change to act on, and writes nothing any more.
    let fourth = Operator::start(cluster, "fourth", &SHORT).await?;
    third.signal(Signal::STOP);
    leads(&fourth).await?;
    let before = writes(&third);
    scale(cluster, 5).await?;
    third.signal(Signal::CONT);
    wait("the leader of before to end", async || Ok(third.ended()))
        .await
        .with_context(|| third.log())?;
    ensure!(
        third.ended().is_some_and(|status| !status.success()),
        "{:?}",
        third.ended()
    );
    ensure!(third.log().contains("the Lease is lost"), "{}", third.log());
    ensure!(writes(&third) == before, "it wrote without the Lease: {}", third.log());
    ensure!(fourth.leads().await, "nobody leads: {}", fourth.log());
    sleep(Duration::from_millis(100)).await;
    drop((first, second, third, fourth));
    cluster.start_operator().await
}
