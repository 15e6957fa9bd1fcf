//! What a HawkeyeDeployment says about its pods beyond what they compute: who they are for the cluster, who may talk to
//! them, and how many may be taken away at once.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{SelectorOperator, rules};

/// A secret that images are pulled with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(deny_unknown_fields)]
pub struct PullSecret {
    /// Name of a secret of type kubernetes.io/dockerconfigjson in the same namespace.
    #[schemars(length(min = 1, max = 253), regex(pattern = rules::NAME))]
    pub name: String,
}

/// Labels and annotations for every pod, besides the operator's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(deny_unknown_fields)]
pub struct PodMetadata {
    /// Labels, for instance a cost centre or a queue. The operator's own, by which it finds its pods, cannot be set.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = json!({
        "type": "string", "maxLength": 63, "pattern": rules::LABEL_VALUE,
    })))]
    #[x_kube(validation = rules::keys("labels"))]
    #[x_kube(validation = Rule::new("self.all(key, !key.startsWith('app.kubernetes.io/') && !key.startsWith('hawkeye.bytebot.ai/') && key != 'pod-template-hash')").message("labels must not set app.kubernetes.io/*, hawkeye.bytebot.ai/* or pod-template-hash: pods are found by them"))]
    pub labels: BTreeMap<String, String>,

    /// Annotations, for instance for a service mesh or a log collector.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = json!({"type": "string", "maxLength": 4096})))]
    #[x_kube(validation = rules::keys("annotations"))]
    #[x_kube(validation = Rule::new("self.all(key, !key.startsWith('hawkeye.bytebot.ai/'))").message("annotations must not set hawkeye.bytebot.ai/*: these are the operator's"))]
    pub annotations: BTreeMap<String, String>,
}

/// How many pods a drain may take away at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DisruptionBudgetOptions {
    /// Whether there is a PodDisruptionBudget. Set it to false if you make one yourself: a pod under two budgets cannot be evicted at all.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// Pods of all pools together that may be unavailable while a node is drained.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_unavailable: i32,
}

impl Default for DisruptionBudgetOptions {
    fn default() -> Self {
        Self {
            enabled: yes(),
            max_unavailable: one(),
        }
    }
}

const fn yes() -> bool {
    true
}

const fn one() -> i32 {
    1
}

/// Who may connect to the pods, and where they may connect to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkPolicyOptions {
    /// Who may send requests to port 9989. Left out: every pod of every namespace. Empty: nobody. The operator may always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub from: Option<Vec<NetworkPeer>>,
    /// Where the pods may connect to, besides DNS and the port that model.http is downloaded from. Left out: anywhere. Empty: nowhere else. Images and image volumes are pulled by the node and need no rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub egress: Option<Vec<EgressRule>>,
}

/// Connections that the pods may open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(deny_unknown_fields)]
pub struct EgressRule {
    /// To whom; left out or empty: to anyone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub to: Vec<NetworkPeer>,
    /// On which ports; left out or empty: on all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub ports: Vec<EgressPort>,
}

/// A port that the pods may connect to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(deny_unknown_fields)]
pub struct EgressPort {
    /// TCP, UDP or SCTP.
    #[serde(default)]
    pub protocol: Protocol,
    /// Number of the port.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
}

/// Transport of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)]
pub enum Protocol {
    #[default]
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// As in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// One end of a connection, as in a NetworkPolicy: pods by their labels and their namespace's labels, or addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("has(self.ipBlock) != (has(self.namespaceSelector) || has(self.podSelector))").message("a peer must have either ipBlock or one or both of namespaceSelector and podSelector"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkPeer {
    /// Namespaces by their labels; empty: all. Left out: the HawkeyeDeployment's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Pods of those namespaces by their labels; left out or empty: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// Addresses, for what is no pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_block: Option<IpBlock>,
}

/// Labels that must be there and expressions that must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    /// Labels with their values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16, "additionalProperties" = json!({
        "type": "string", "maxLength": 63, "pattern": rules::LABEL_VALUE,
    })))]
    pub match_labels: BTreeMap<String, String>,
    /// Expressions over labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub match_expressions: Vec<LabelExpression>,
}

/// One expression over labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = rules::values())]
#[serde(deny_unknown_fields)]
pub struct LabelExpression {
    /// Label key, e.g. kubernetes.io/metadata.name.
    #[schemars(
        length(min = 1, max = 317),
        regex(pattern = rules::LABEL_KEY)
    )]
    pub key: String,
    /// In, NotIn (also holds without the label), Exists or DoesNotExist.
    pub operator: SelectorOperator,
    /// Values for In and NotIn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 32),
        inner(length(max = 63), regex(pattern = rules::LABEL_VALUE))
    )]
    pub values: Vec<String>,
}

/// A range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("isCIDR(self.cidr)").message("cidr must be a range of addresses such as 10.0.0.0/8 or fd00::/8").field_path(".cidr"))]
#[x_kube(validation = Rule::new("!has(self.except) || !isCIDR(self.cidr) || self.except.all(part, isCIDR(part) && cidr(self.cidr).containsCIDR(part))").message("except must hold ranges of addresses within cidr").field_path(".except"))]
#[serde(deny_unknown_fields)]
pub struct IpBlock {
    /// The range, e.g. 10.0.0.0/8.
    #[schemars(length(min = 1, max = 43))]
    pub cidr: String,
    /// Parts of it that are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 43)))]
    pub except: Vec<String>,
}
