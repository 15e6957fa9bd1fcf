//! What the operator may do, in one list: the chart grants exactly this, a test compares the two, and the tests against a
//! real API server run with exactly these rights and see each of them used.
//!
//! Beside the list stands `get` on single Secrets, by name and in their namespace, as far as the chart's
//! `imageVerification.pullSecrets` names any.

/// Where a rule applies when the operator looks after a few namespaces only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the whole cluster all the same, since the objects have no namespace.
    Cluster,
    /// In the whole cluster, and not at all: it writes what has no namespace only where nobody else does.
    Whole,
    /// In the namespaces that are looked after.
    Namespace,
    /// In the operator's own namespace.
    Own,
}

/// Verbs on one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// API group; empty for the core.
    pub group: &'static str,
    /// Resource, with its subresource.
    pub resource: &'static str,
    /// Verbs.
    pub verbs: &'static [&'static str],
    /// Where.
    pub place: Place,
}

const fn rule(group: &'static str, resource: &'static str, verbs: &'static [&'static str], place: Place) -> Rule {
    Rule {
        group,
        resource,
        verbs,
        place,
    }
}

const WATCH: &[&str] = &["list", "watch"];
/// Server-side apply is `patch`, and `create` as well where the object is new. Each write is preceded by a live read.
const OWN: &[&str] = &["get", "list", "watch", "create", "patch", "delete"];
const OURS: &str = "hawkeye.bytebot.ai";

/// What settles which replica leads: one Lease, to which all but `create` is limited by its name.
pub const LEASE: Rule = rule(
    "coordination.k8s.io",
    "leases",
    &["create", "get", "update"],
    Place::Own,
);

/// Every other right, sorted by what it is for.
pub const RULES: &[Rule] = &[
    // What there is to place on, and what takes room there.
    rule("", "nodes", WATCH, Place::Cluster),
    rule("", "pods", WATCH, Place::Namespace),
    // What is asked for, and what came of it.
    rule(OURS, "hardwareclasses", WATCH, Place::Cluster),
    rule(OURS, "hardwareclasses/status", &["patch"], Place::Whole),
    rule(OURS, "hawkeyedeployments", WATCH, Place::Namespace),
    rule(OURS, "hawkeyedeployments/status", &["patch"], Place::Namespace),
    // No request of its own: clusters that check who may block an owner's deletion (OpenShift) ask for it.
    rule(OURS, "hawkeyedeployments/finalizers", &["update"], Place::Namespace),
    // What is made. A Service stays as long as its HawkeyeDeployment and goes with it, so it is never deleted.
    rule("apps", "deployments", OWN, Place::Namespace),
    rule(
        "",
        "services",
        &["get", "list", "watch", "create", "patch"],
        Place::Namespace,
    ),
    rule("networking.k8s.io", "networkpolicies", OWN, Place::Namespace),
    rule("policy", "poddisruptionbudgets", OWN, Place::Namespace),
    // What is said.
    rule("events.k8s.io", "events", &["create", "patch"], Place::Namespace),
];
