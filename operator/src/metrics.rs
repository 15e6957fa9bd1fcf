//! Metrics of the operator. Labels come from enum variants only, so that their number is bounded.

use std::{
    sync::{Arc, atomic::AtomicU64},
    task::{Context, Poll},
};

use http::{Method, Request};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tower::{Layer, Service};

use crate::error::ErrorKind;

/// Upper bounds of the duration buckets, in seconds: from "nothing to do" to the time limit of a reconcile.
const SECONDS: [f64; 8] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 30.0];

/// Verb of a request to the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs)]
pub enum Verb {
    Read,
    Watch,
    Create,
    Patch,
    Delete,
    Other,
    /// Writes of the Lease, which an idle operator goes on with.
    Lease,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByVerb {
    verb: Verb,
}

/// What came of asking a pod for its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs)]
pub enum DeviceCheck {
    Verified,
    Differs,
    Loading,
    NoAnswer,
    Unreadable,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    outcome: DeviceCheck,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKind {
    kind: ErrorKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByLookup {
    outcome: Lookup,
}

/// How a question to an image registry ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(missing_docs)]
pub enum Lookup {
    Answered,
    Failed,
}

/// Every metric, and the registry that they are read from.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    reconciles: Counter,
    reconcile_seconds: Histogram,
    errors: Family<ByKind, Counter>,
    watch_errors: Counter,
    requests: Family<ByVerb, Counter>,
    plan_seconds: Histogram,
    deployments: Gauge,
    nodes: Gauge,
    unclassified: Gauge<i64, std::sync::atomic::AtomicI64>,
    events: Counter<u64, AtomicU64>,
    checks: Family<ByOutcome, Counter>,
    image_lookups: Family<ByLookup, Counter>,
    leader: Gauge,
    lease_transitions: Gauge,
    renewals_failed: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("hawkeye_operator");
        let metrics = Self {
            registry: Arc::new(Registry::default()),
            reconciles: Counter::default(),
            reconcile_seconds: Histogram::new(SECONDS),
            errors: Family::default(),
            watch_errors: Counter::default(),
            requests: Family::default(),
            plan_seconds: Histogram::new(SECONDS),
            deployments: Gauge::default(),
            nodes: Gauge::default(),
            unclassified: Gauge::default(),
            events: Counter::default(),
            checks: Family::default(),
            image_lookups: Family::default(),
            leader: Gauge::default(),
            lease_transitions: Gauge::default(),
            renewals_failed: Counter::default(),
        };
        registry.register("reconciles", "Reconciles that were started", metrics.reconciles.clone());
        registry.register(
            "reconcile_duration_seconds",
            "Time that a reconcile took",
            metrics.reconcile_seconds.clone(),
        );
        registry.register(
            "reconcile_errors",
            "Reconciles that failed, by kind of error",
            metrics.errors.clone(),
        );
        registry.register(
            "watch_errors",
            "Watches that failed and were started again",
            metrics.watch_errors.clone(),
        );
        registry.register(
            "api_requests",
            "Requests to the API server, by verb",
            metrics.requests.clone(),
        );
        registry.register(
            "plan_duration_seconds",
            "Time that planning took",
            metrics.plan_seconds.clone(),
        );
        registry.register(
            "hawkeye_deployments",
            "HawkeyeDeployments in the cluster",
            metrics.deployments.clone(),
        );
        registry.register("nodes", "Nodes in the cluster", metrics.nodes.clone());
        registry.register(
            "unclassified_nodes",
            "Nodes that no class admits",
            metrics.unclassified.clone(),
        );
        registry.register(
            "device_checks",
            "Pods that were asked what they compute on, by what came of it",
            metrics.checks.clone(),
        );
        registry.register("notices", "Events that were published", metrics.events.clone());
        registry.register(
            "image_lookups",
            "Images that registries were asked about, by outcome",
            metrics.image_lookups.clone(),
        );
        registry.register("leader", "1 while this replica leads, else 0", metrics.leader.clone());
        registry.register(
            "lease_transitions",
            "Times that the Lease went from one replica to another, as far as this one knows",
            metrics.lease_transitions.clone(),
        );
        registry.register(
            "lease_renewals_failed",
            "Renewals of the Lease that failed",
            metrics.renewals_failed.clone(),
        );
        Self {
            registry: Arc::new(registry),
            ..metrics
        }
    }
}

impl Metrics {
    /// One reconcile took this long.
    pub fn reconciled(&self, seconds: f64) {
        self.reconciles.inc();
        self.reconcile_seconds.observe(seconds);
    }

    /// One reconcile failed.
    pub fn failed(&self, kind: ErrorKind) {
        self.errors.get_or_create(&ByKind { kind }).inc();
    }

    /// One watch failed.
    pub fn watch_failed(&self) {
        self.watch_errors.inc();
    }

    /// A pod was asked what it computes on.
    pub fn checked(&self, outcome: DeviceCheck) {
        self.checks.get_or_create(&ByOutcome { outcome }).inc();
    }

    /// Events were published.
    pub fn noticed(&self, count: usize) {
        self.events.inc_by(count as u64);
    }

    /// One pass over the cluster took this long and saw this many objects.
    pub fn planned(&self, seconds: f64, deployments: usize, nodes: usize, unclassified: usize) {
        self.plan_seconds.observe(seconds);
        self.deployments.set(deployments as i64);
        self.nodes.set(nodes as i64);
        self.unclassified.set(unclassified as i64);
    }

    /// A registry was asked about an image.
    pub fn looked_up(&self, answered: bool) {
        let outcome = if answered { Lookup::Answered } else { Lookup::Failed };
        self.image_lookups.get_or_create(&ByLookup { outcome }).inc();
    }

    /// This replica leads, or no longer does.
    pub fn leading(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// The Lease went from one replica to another this often.
    pub fn lease_transitions(&self, count: i32) {
        self.lease_transitions.set(count.into());
    }

    /// One renewal of the Lease failed.
    pub fn renewal_failed(&self) {
        self.renewals_failed.inc();
    }

    /// The text that Prometheus reads.
    ///
    /// # Errors
    /// When the formatter fails.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// A layer for the client that counts requests.
    pub fn layer(&self) -> CountRequests {
        CountRequests(self.requests.clone())
    }
}

/// Counts the requests of a client by verb.
#[derive(Clone, Debug)]
pub struct CountRequests(Family<ByVerb, Counter>);

impl<S> Layer<S> for CountRequests {
    type Service = CountedService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CountedService {
            inner,
            requests: self.0.clone(),
        }
    }
}

/// A client's service whose requests are counted.
#[derive(Clone, Debug)]
pub struct CountedService<S> {
    inner: S,
    requests: Family<ByVerb, Counter>,
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for CountedService<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let watches = request
            .uri()
            .query()
            .is_some_and(|query| query.split('&').any(|part| part == "watch=true"));
        let lease = request.uri().path().starts_with("/apis/coordination.k8s.io/");
        let verb = match *request.method() {
            Method::POST | Method::PUT | Method::PATCH if lease => Verb::Lease,
            Method::GET if watches => Verb::Watch,
            Method::GET => Verb::Read,
            Method::POST => Verb::Create,
            Method::PATCH => Verb::Patch,
            Method::DELETE => Verb::Delete,
            _ => Verb::Other,
        };
        self.requests.get_or_create(&ByVerb { verb }).inc();
        self.inner.call(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_every_metric() {
        let metrics = Metrics::default();
        metrics.reconciled(0.01);
        metrics.failed(ErrorKind::Timeout);
        metrics.requests.get_or_create(&ByVerb { verb: Verb::Patch }).inc();
        let text = metrics.text().unwrap();
        assert!(text.contains("hawkeye_operator_reconciles_total 1"), "{text}");
        assert!(
            text.contains("hawkeye_operator_reconcile_errors_total{kind=\"Timeout\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("hawkeye_operator_api_requests_total{verb=\"Patch\"} 1"),
            "{text}"
        );
    }
}
