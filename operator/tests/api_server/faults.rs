//! An API server, or the way to it, that goes wrong: whatever it does, the end is the same, and nothing is tried all the
//! time.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::time::sleep;

use crate::{
    life::{Life, undisturbed},
    operator::Operator,
    proxy::{Fate, Seen},
    server::{Cluster, POD},
};

/// An operator that is started again when it ends, and a life before it.
struct Trial {
    cluster: &'static Cluster,
    namespace: &'static str,
    operator: Operator,
    patience: Duration,
}

impl Trial {
    async fn new(cluster: &'static Cluster, namespace: &'static str, patience: u64) -> Result<Self> {
        cluster.kill_operator();
        undisturbed(cluster).await?;
        let operator = Operator::prepare(cluster, POD, &[]).await?;
        Ok(Self {
            cluster,
            namespace,
            operator,
            patience: Duration::from_secs(patience),
        })
    }

    fn policy(&self, policy: impl Fn(&Seen, bool) -> Fate + Send + 'static) {
        let namespace = self.namespace;
        self.operator.proxy.policy(move |seen| {
            let ours = seen.counts() && seen.within(namespace);
            policy(seen, ours)
        });
    }

    async fn run(mut self, apart: u64, before_change: impl AsyncFnOnce(&Operator) -> Result<()>) -> Result<()> {
        let (expected, _) = undisturbed(self.cluster).await?;
        self.operator.keep_alive(Duration::from_secs(1));
        let life = Life {
            cluster: self.cluster,
            namespace: self.namespace,
            patience: self.patience,
        };
        let operator = &self.operator;
        let lived = async {
            Box::pin(life.live(async || before_change(operator).await)).await?;
            life.converges(expected).await?;
            operator.proxy.no_hot_loop(Duration::from_secs(apart))
        };
        lived.await.with_context(|| self.operator.log())?;
        let log = self.operator.log();
        ensure!(!log.contains("panicked"), "{log}");
        Ok(())
    }
}

/// The first try of each write goes wrong.
async fn refused(cluster: &'static Cluster, namespace: &'static str, fate: Fate, apart: u64) -> Result<()> {
    let trial = Trial::new(cluster, namespace, 150).await?;
    trial.policy(move |seen, ours| if ours && seen.before == 0 { fate } else { Fate::Pass });
    trial
        .run(apart, async |operator| {
            let hit = operator.proxy.seen().iter().filter(|seen| seen.fate == fate).count();
            ensure!(hit >= 5, "only {hit} requests went wrong");
            Ok(())
        })
        .await
}

pub async fn error_after_commit(cluster: &'static Cluster) -> Result<()> {
    refused(cluster, "fault-500", Fate::FailedAfterwards, 1).await
}

pub async fn conflict(cluster: &'static Cluster) -> Result<()> {
    refused(cluster, "fault-409", Fate::Refused(409), 1).await
}

pub async fn too_many_requests(cluster: &'static Cluster) -> Result<()> {
    refused(cluster, "fault-429", Fate::Refused(429), 2).await
}

/// One read and one write get no answer at all, the write although it was done.
pub async fn no_answer(cluster: &'static Cluster) -> Result<()> {
    let trial = Trial::new(cluster, "fault-silence", 90).await?;
    trial.policy(|seen, ours| {
        let (service, first) = (seen.path.contains("/services/"), seen.before == 0);
        match (ours, first) {
            (true, true) if service && seen.path.ends_with("/kept") => Fate::Unanswered,
            (false, true) if service && seen.path.ends_with("/gone") && !seen.writes() => Fate::Swallowed,
            _ => Fate::Pass,
        }
    });
    trial
        .run(1, async |operator| {
            let seen = operator.proxy.seen();
            for fate in [Fate::Unanswered, Fate::Swallowed] {
                ensure!(seen.iter().any(|seen| seen.fate == fate), "nothing was {fate:?}");
            }
            Ok(())
        })
        .await
}

pub async fn gone(cluster: &'static Cluster) -> Result<()> {
    let trial = Trial::new(cluster, "fault-410", 60).await?;
    trial.policy(|seen, _| match (seen.watches, seen.before) {
        (true, 0) => Fate::Refused(410),
        (true, 1) => Fate::Gone,
        _ => Fate::Pass,
    });
    trial
        .run(1, async |operator| {
            let gone = operator
                .proxy
                .seen()
                .iter()
                .filter(|seen| seen.fate == Fate::Gone)
                .count();
            ensure!(gone >= 6, "only {gone} watches began with an error");
            Ok(())
        })
        .await
}

pub async fn cut_watches(cluster: &'static Cluster) -> Result<()> {
    let trial = Trial::new(cluster, "fault-cuts", 60).await?;
    trial
        .run(1, async |operator| {
            for turn in 0..6 {
                operator.proxy.cut_watches(turn % 2 == 0);
                sleep(Duration::from_secs(1)).await;
            }
            operator.proxy.cut_watches(true);
            Ok(())
        })
        .await
}

/// Every request, renewals of the Lease too, takes five seconds more.
pub async fn latency(cluster: &'static Cluster) -> Result<()> {
    let trial = Trial::new(cluster, "fault-latency", 180).await?;
    trial.policy(|_, _| Fate::Late(Duration::from_secs(5)));
    trial
        .run(1, async |operator| {
            ensure!(operator.leads().await, "the Lease was lost: {}", operator.log());
            Ok(())
        })
        .await
}

/// Longer than the Lease: the operator ends, starts again and takes it back.
pub async fn outage(cluster: &'static Cluster) -> Result<()> {
    let trial = Trial::new(cluster, "fault-outage", 120).await?;
    trial
        .run(1, async |operator| {
            let start = Instant::now();
            operator.proxy.down(true);
            // It writes no more, by its own decision and before someone else could have the Lease.
            sleep(Duration::from_secs(20)).await;
            let log = operator.log();
            ensure!(log.contains("the Lease is lost"), "it goes on without its Lease: {log}");
            sleep(Duration::from_secs(30).saturating_sub(start.elapsed())).await;
            operator.proxy.down(false);
            Ok(())
        })
        .await
}
