//! kill -9 of the operator after each of its writes, before it hears of the answer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use futures::future::{join_all, try_join_all};

use crate::{
    life::{Life, undisturbed},
    operator::Operator,
    proxy::Fate,
    server::{Cluster, POD},
    snapshot::Snapshot,
};

/// Lives at the same time, each on a cluster of its own: most of a life is waiting.
const AT_ONCE: usize = 4;

pub async fn after_every_write(cluster: &'static Cluster) -> Result<()> {
    cluster.kill_operator();
    let (expected, writes) = undisturbed(cluster).await?;
    ensure!(*writes >= 20, "only {writes} writes: the life is too short to tell");
    let more = try_join_all((1..AT_ONCE).map(|_| Cluster::start())).await?;
    let clusters = [cluster].into_iter().chain(&more);
    let ends = join_all(
        clusters
            .enumerate()
            .map(|(at, cluster)| every_nth_write(cluster, at + 1, expected, *writes)),
    );
    let ends = ends.await;
    for cluster in &more {
        cluster.stop();
    }
    let killed: Vec<usize> = ends.into_iter().collect::<Result<_>>()?;
    let killed = killed.into_iter().max().unwrap_or_default();
    ensure!(killed + 1 >= *writes, "killed after {killed} of {writes} writes");
    Ok(())
}

/// Kills after the write `first` and every [`AT_ONCE`]th that follows it, until there is no such write. Returns the last one
/// that there was.
async fn every_nth_write(cluster: &Cluster, first: usize, expected: &Snapshot, writes: usize) -> Result<usize> {
    cluster.kill_operator();
    let mut killed = 0;
    // A restart may need a write more than the undisturbed run, so the count says when it is over.
    for n in (first..).step_by(AT_ONCE) {
        ensure!(n <= writes * 3, "the life takes more and more writes");
        if !after_write(cluster, n, expected).await? {
            break;
        }
        killed = n;
    }
    Ok(killed)
}

/// False when there was no such write.
async fn after_write(cluster: &Cluster, n: usize, expected: &Snapshot) -> Result<bool> {
    let namespace = format!("crash-after-{n}");
    let mut operator = Operator::prepare(cluster, POD, &[]).await?;
    let count = Arc::new(AtomicUsize::new(0));
    let (counter, within) = (Arc::clone(&count), namespace.clone());
    operator.proxy.policy(move |seen| {
        if seen.counts() && seen.within(&within) && counter.fetch_add(1, Ordering::SeqCst) + 1 == n {
            return Fate::Kills;
        }
        Fate::Pass
    });
    operator.keep_alive(Duration::ZERO);
    let life = Life {
        cluster,
        namespace: &namespace,
        patience: Duration::from_mins(1),
    };
    let lived = async {
        Box::pin(life.live(async || Ok(()))).await?;
        life.converges(expected).await?;
        // A write again and again would not be an object too much.
        operator.proxy.no_hot_loop(Duration::from_secs(1))
    };
    lived
        .await
        .with_context(|| format!("killed after write {n}\n{}", operator.log()))?;
    Ok(count.load(Ordering::SeqCst) >= n)
}
