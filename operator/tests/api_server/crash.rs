//! kill -9 of the operator after each of its writes, before it hears of the answer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    life::{Life, undisturbed},
    operator::Operator,
    proxy::Fate,
    server::{Cluster, POD},
};

pub async fn after_every_write(cluster: &'static Cluster) -> Result<()> {
    cluster.kill_operator();
    let (expected, writes) = undisturbed(cluster).await?;
    ensure!(*writes >= 8, "only {writes} writes: the life is too short to tell");
    let mut killed = 0;
    // A restart may need a write more than the undisturbed run, so the count says when it is over.
    for n in 1.. {
        ensure!(n <= writes * 3, "the life takes more and more writes");
        if !after_write(cluster, n, expected).await? {
            break;
        }
        killed = n;
    }
    ensure!(killed + 1 >= *writes, "killed after {killed} of {writes} writes");
    cluster.start_operator().await
}

/// False when there was no such write.
async fn after_write(cluster: &'static Cluster, n: usize, expected: &crate::snapshot::Snapshot) -> Result<bool> {
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
        patience: Duration::from_secs(30),
    };
    let lived = async {
        life.live(async || Ok(())).await?;
        life.converges(expected).await?;
        // A write again and again would not be an object too much.
        operator.proxy.no_hot_loop(Duration::from_secs(1))
    };
    lived
        .await
        .with_context(|| format!("killed after write {n}\n{}", operator.log()))?;
    Ok(count.load(Ordering::SeqCst) >= n)
}
