//! Updates, drains and autoscalers: what the rest of a cluster does to a HawkeyeDeployment, and what its clients notice.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use futures::future::join_all;
use k8s_openapi::api::{
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{Pod, ResourceQuota, Service},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, EvictParams, PostParams},
};
use serde_json::json;

use crate::support::{REAL_CLASS, Suite, expect, within};

/// Answers and failures of one client.
#[derive(Default)]
struct Tally {
    answers: u32,
    failures: Vec<String>,
}

/// Asks again and again, each time over a connection of its own, until told to stop.
async fn ask(
    stop: Arc<AtomicBool>,
    pause: Duration,
    request: impl Fn(&reqwest::Client) -> reqwest::RequestBuilder,
) -> Result<Tally> {
    let client = reqwest::Client::builder()
        .pool_max_idle_per_host(0)
        .timeout(Duration::from_mins(1))
        .build()?;
    let mut tally = Tally::default();
    while !stop.load(Ordering::Relaxed) {
        match request(&client)
            .send()
            .await
            .and_then(reqwest::Response::error_for_status)
        {
            Ok(answer) => match answer.bytes().await {
                Ok(_) => tally.answers += 1,
                Err(error) => tally.failures.push(format!("{error:?}")),
            },
            Err(error) => tally.failures.push(format!("{error:?}")),
        }
        tokio::time::sleep(pause).await;
    }
    Ok(tally)
}

pub async fn an_update_interrupts_no_request(suite: &Suite) -> Result<()> {
    let scope = suite.namespace("update").await?;
    let spec = |profile: &str| json!({"profile": profile, "classes": [REAL_CLASS]});
    scope.apply("parser", spec("Speed")).await?;
    scope.until_ready("parser", 1, 300).await?;
    let before = scope.pods("parser").await?.pop().context("no pod")?;
    let service = scope.api::<Service>().get("parser").await?;
    let address = service
        .spec
        .and_then(|s| s.cluster_ip)
        .context("the Service has no address")?;
    let screenshot = fs::read(suite.path("inference/export/testdata/screens/demo.png"))?;
    let stop = Arc::new(AtomicBool::new(false));
    let health = ask(Arc::clone(&stop), Duration::from_millis(50), |client| {
        client.get(format!("http://{address}:9989/health"))
    });
    // A parse takes seconds here, so one is under way when its pod is told to end.
    let parse = ask(Arc::clone(&stop), Duration::from_millis(10), |client| {
        let part = reqwest::multipart::Part::bytes(screenshot.clone()).file_name("demo.png");
        let form = reqwest::multipart::Form::new().part("file", part);
        client
            .post(format!("http://{address}:9989/parse/upload"))
            .multipart(form)
    });
    let update = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        scope.apply("parser", spec("Balanced")).await?;
        let ready = scope.until_ready("parser", 1, 300).await;
        let uid = before.uid();
        let gone = within(90, async || {
            let pods = scope.pods("parser").await?;
            Ok((pods.len() == 1 && pods[0].uid() != uid).then_some(()))
        })
        .await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        stop.store(true, Ordering::Relaxed);
        ready?;
        gone?.context("the pod of the old profile stays")
    };
    let (health, parse, update) = tokio::join!(health, parse, update);
    update?;
    for (what, tally) in [("/health", health?), ("/parse/upload", parse?)] {
        ensure!(tally.answers >= 5, "{what}: only {} answers", tally.answers);
        ensure!(
            tally.failures.is_empty(),
            "{what}: {} of {} failed: {:?}",
            tally.failures.len(),
            tally.answers as usize + tally.failures.len(),
            tally.failures
        );
    }
    scope.delete("parser").await
}

pub async fn an_autoscaler_is_let_do_its_work(suite: &Suite) -> Result<()> {
    let scope = suite.namespace("autoscaler").await?;
    let spec = |profile: &str| json!({"profile": profile, "classes": ["graviton"]});
    scope.apply("scaled", spec("Speed")).await?;
    scope.until_ready("scaled", 1, 60).await?;
    // Below its minimum an autoscaler acts without any metric, of which this cluster has none.
    let target = json!({"apiVersion": "hawkeye.bytebot.ai/v1alpha1", "kind": "HawkeyeDeployment", "name": "scaled"});
    let autoscaler: HorizontalPodAutoscaler = serde_json::from_value(json!({
        "metadata": {"name": "scaled"},
        "spec": {"scaleTargetRef": target, "minReplicas": 3, "maxReplicas": 4},
    }))?;
    let autoscalers = scope.api::<HorizontalPodAutoscaler>();
    autoscalers.create(&PostParams::default(), &autoscaler).await?;
    scope.until_ready("scaled", 3, 120).await?;
    // As from a repository that leaves replicas out.
    scope.apply("scaled", spec("Balanced")).await?;
    let object = scope.until_ready("scaled", 3, 60).await?;
    expect("spec.replicas", &object.spec.replicas, &3)?;
    // It looks every 15 seconds.
    within(60, async || {
        let found = autoscalers.get("scaled").await?.status.context("no status")?;
        Ok((found.current_replicas == Some(3)).then_some(()))
    })
    .await?
    .context("the autoscaler does not see the replicas")?;
    autoscalers.delete("scaled", &DeleteParams::default()).await?;
    scope.delete("scaled").await
}

pub async fn a_drain_takes_one_pod_at_a_time(suite: &Suite) -> Result<()> {
    let scope = suite.namespace("drain").await?;
    let spec = |replicas: i32| json!({"replicas": replicas, "classes": ["graviton"]});
    scope.apply("kept", spec(3)).await?;
    scope.until_ready("kept", 3, 60).await?;
    let budgets = scope.api::<PodDisruptionBudget>();
    within(60, async || {
        let budget = budgets.get("kept").await?;
        let allowed = budget.status.and_then(|status| status.disruptions_allowed);
        Ok((allowed == Some(1)).then_some(()))
    })
    .await?
    .context("the budget does not allow one disruption")?;
    // Fake pods are ready at once, so that there would always be one to spare: without room for another, a pod that is taken
    // is missed.
    let quota: ResourceQuota =
        serde_json::from_value(json!({"metadata": {"name": "two"}, "spec": {"hard": {"pods": "2"}}}))?;
    let quotas = scope.api::<ResourceQuota>();
    quotas.create(&PostParams::default(), &quota).await?;
    // An eviction that is refused would be tried again until it is not.
    let mut config = suite.cluster.config().await?;
    config.default_retry = false;
    let pods = Api::namespaced(Client::try_from(config)?, &scope.name);
    let evict = async |pods: &Api<Pod>, name: String| pods.evict(&name, &EvictParams::default()).await;
    let names = scope
        .pods("kept")
        .await?
        .iter()
        .map(ResourceExt::name_any)
        .collect::<Vec<_>>();
    let answers = join_all(names.into_iter().map(|name| evict(&pods, name))).await;
    let refused = answers
        .iter()
        .filter(|answer| matches!(answer, Err(kube::Error::Api(status)) if status.code == 429))
        .count();
    let taken = answers.iter().filter(|answer| answer.is_ok()).count();
    ensure!((taken, refused) == (1, 2), "{answers:?}");
    quotas.delete("two", &DeleteParams::default()).await?;
    scope.until_ready("kept", 3, 60).await?;

    // The last pod can always be taken: there is no budget that would hold it.
    scope.apply("kept", spec(1)).await?;
    scope.until_ready("kept", 1, 60).await?;
    ensure!(budgets.get_opt("kept").await?.is_none(), "a budget for a single pod");
    let last = scope.pods("kept").await?.pop().context("no pod")?.name_any();
    evict(&pods, last).await.context("the last pod cannot be evicted")?;
    scope.until_ready("kept", 1, 60).await?;
    scope.delete("kept").await
}
