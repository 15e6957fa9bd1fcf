//! Clients of the API server, and whether this replica may write.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hasher},
    time::Duration,
};

use anyhow::Context as _;
use kube::{Api, Client, Config, client::ClientBuilder, runtime::events::Recorder};
use tokio::time::timeout;
use tower::timeout::TimeoutLayer;

use crate::{
    args::RunArgs,
    lease::{Claim, Elector, Gate, Identity, Lost, Terms},
    metrics::Metrics,
};

/// Longest time until an answer begins, as the API server itself has it. The client would wait for one without end, and a
/// watch whose list is not answered keeps every plan waiting.
const ANSWER: Duration = Duration::from_mins(1);
/// Longest time that an event about the leader may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The election that this replica takes part in, if there is one.
pub(super) struct Election {
    /// Counts its requests, never retries by itself (retries are ours, with a limit for each object), and writes only while
    /// this replica leads.
    pub(super) client: Client,
    elector: Option<Elector>,
}

impl Election {
    pub(super) async fn new(run: &RunArgs, metrics: &Metrics) -> anyhow::Result<Self> {
        let args = &run.lease;
        let mut config = Config::infer()
            .await
            .context("no cluster: neither a service account nor a kubeconfig")?;
        config.default_retry = false;
        let claim = if args.leader_election {
            Claim::none()
        } else {
            Claim::for_ever()
        };
        let builder = |config| ClientBuilder::try_from(config).context("the cluster's settings are not usable");
        let client = builder(config.clone())?
            .with_layer(&Gate::new(claim.clone()))
            .with_layer(&metrics.layer())
            .with_layer(&TimeoutLayer::new(ANSWER))
            .build();
        if !args.leader_election {
            tracing::warn!("there is no leader election: a second operator would undo what this one does");
            metrics.leading(true);
            return Ok(Self { client, elector: None });
        }
        let terms = Terms::new(args.lease_duration, args.renew_deadline, args.retry_period)?;
        let namespace = args.lease_namespace.as_ref().or(run.pod_namespace.as_ref());
        let namespace = namespace.unwrap_or(&config.default_namespace).clone();
        let leases = builder(config)?.with_layer(&metrics.layer()).build();
        let identity = Identity {
            lease: args.lease_name.clone(),
            me: run.pod_name.clone().unwrap_or_else(unique),
        };
        let api = Api::namespaced(leases, &namespace);
        let elector = Elector::new(api, identity, terms, claim, metrics.clone());
        Ok(Self {
            client,
            elector: Some(elector),
        })
    }

    /// Waits until this replica leads.
    pub(super) async fn won(&mut self) {
        if let Some(elector) = &mut self.elector {
            elector.acquire().await;
        }
    }

    /// Waits until this replica leads no more.
    pub(super) async fn lost(&mut self) -> Lost {
        match &mut self.elector {
            Some(elector) => elector.keep().await,
            None => std::future::pending().await,
        }
    }

    /// Lets another replica lead.
    pub(super) async fn free(&mut self) {
        if let Some(elector) = &mut self.elector {
            elector.release().await;
        }
    }

    /// Says who leads, if that has changed.
    pub(super) fn announce(&self, recorder: Recorder) -> impl Future<Output = ()> + Send + use<> {
        let announcement = self.elector.as_ref().and_then(Elector::announcement);
        async move {
            let Some((event, lease)) = announcement else { return };
            match timeout(PATIENCE, recorder.publish(&event, &lease)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the event about the leader could not be written"),
                Err(_) => tracing::warn!("the event about the leader could not be written in time"),
            }
        }
    }
}

/// A name that no other process has, for an operator outside a pod.
fn unique() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{host}-{:016x}", RandomState::new().build_hasher().finish())
}
