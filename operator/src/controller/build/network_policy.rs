//! The NetworkPolicy of a HawkeyeDeployment, for those who ask for one.

use std::collections::BTreeMap;

use hawkeye_crds::v1alpha1::{EgressRule, LabelExpression, LabelSelector, ModelSource, NetworkPeer};
use k8s_openapi::{
    api::networking::v1::{
        IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
        NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{
        apis::meta::v1::{self as meta, LabelSelectorRequirement},
        util::intstr::IntOrString,
    },
};

use super::{Owner, PORT, labels, metadata};

/// Value of `app.kubernetes.io/name` of the operator's own pods, as the chart labels them.
pub const OPERATOR: &str = "hawkeye-operator";
/// Label that every namespace has its name in.
const NAMESPACE_LABEL: &str = "kubernetes.io/metadata.name";
/// Ports of DNS servers. Most network plugins see a connection after the Service's address was replaced by a pod's, and
/// OpenShift's DNS pods listen on 5353.
const DNS: [i32; 2] = [53, 5353];

/// Builds the policy, or none when the spec does not ask for one. `operator` is the operator's own namespace.
///
/// A kubelet's probes are let through by network plugins themselves, and images, image volumes with models among them,
/// are pulled by the node: neither needs a rule.
pub fn build(owner: &Owner<'_>, model: &ModelSource, operator: Option<&str>) -> Option<NetworkPolicy> {
    let options = owner.spec.network_policy.as_ref()?;
    let mut from = match &options.from {
        Some(peers) => peers.iter().map(peer).collect(),
        None => vec![every_pod()],
    };
    from.extend(operator.map(operators_pods));
    let mut types = vec!["Ingress".to_owned()];
    let egress = options.egress.as_ref().map(|rules| {
        types.push("Egress".to_owned());
        let always = std::iter::once(dns()).chain(download(model));
        always.chain(rules.iter().map(egress)).collect()
    });
    Some(NetworkPolicy {
        metadata: metadata(owner, owner.name.to_owned(), labels(owner.name)),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(meta::LabelSelector {
                match_labels: Some(labels(owner.name)),
                ..meta::LabelSelector::default()
            }),
            // A rule without peers would admit everyone; no rule at all admits no one.
            ingress: (!from.is_empty()).then(|| {
                vec![NetworkPolicyIngressRule {
                    from: Some(from),
                    ports: Some(vec![port("TCP", PORT)]),
                }]
            }),
            egress,
            policy_types: Some(types),
        }),
    })
}

fn every_pod() -> NetworkPolicyPeer {
    NetworkPolicyPeer {
        namespace_selector: Some(meta::LabelSelector::default()),
        ..NetworkPolicyPeer::default()
    }
}

/// The operator asks each pod for its device at `/device`.
fn operators_pods(namespace: &str) -> NetworkPolicyPeer {
    let label = |key: &str, value: &str| {
        Some(meta::LabelSelector {
            match_labels: Some(BTreeMap::from([(key.to_owned(), value.to_owned())])),
            ..meta::LabelSelector::default()
        })
    };
    NetworkPolicyPeer {
        namespace_selector: label(NAMESPACE_LABEL, namespace),
        pod_selector: label("app.kubernetes.io/name", OPERATOR),
        ip_block: None,
    }
}

fn dns() -> NetworkPolicyEgressRule {
    let ports = DNS
        .iter()
        .flat_map(|number| [port("UDP", *number), port("TCP", *number)]);
    NetworkPolicyEgressRule {
        to: None,
        ports: Some(ports.collect()),
    }
}

/// The port of the server that a model is downloaded from, at any address: a policy knows no names.
fn download(model: &ModelSource) -> Option<NetworkPolicyEgressRule> {
    let number = port_of(&model.http.as_ref()?.url)?;
    Some(NetworkPolicyEgressRule {
        to: None,
        ports: Some(vec![port("TCP", number)]),
    })
}

/// The port of an `http` or `https` address.
fn port_of(url: &str) -> Option<i32> {
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split(['/', '?', '#']).next()?;
    match host.rsplit_once(':') {
        // A colon within brackets is an IPv6 address's.
        Some((_, number)) if !number.ends_with(']') => number.parse().ok(),
        _ if scheme == "https" => Some(443),
        _ => Some(80),
    }
}

fn egress(rule: &EgressRule) -> NetworkPolicyEgressRule {
    let ports = rule.ports.iter().map(|to| port(to.protocol.as_str(), to.port));
    NetworkPolicyEgressRule {
        to: (!rule.to.is_empty()).then(|| rule.to.iter().map(peer).collect()),
        ports: (!rule.ports.is_empty()).then(|| ports.collect()),
    }
}

fn port(protocol: &str, number: i32) -> NetworkPolicyPort {
    NetworkPolicyPort {
        protocol: Some(protocol.to_owned()),
        port: Some(IntOrString::Int(number)),
        end_port: None,
    }
}

fn peer(peer: &NetworkPeer) -> NetworkPolicyPeer {
    NetworkPolicyPeer {
        namespace_selector: peer.namespace_selector.as_ref().map(selector),
        pod_selector: peer.pod_selector.as_ref().map(selector),
        ip_block: peer.ip_block.as_ref().map(|block| IPBlock {
            cidr: block.cidr.clone(),
            except: (!block.except.is_empty()).then(|| block.except.clone()),
        }),
    }
}

fn selector(selector: &LabelSelector) -> meta::LabelSelector {
    let expressions = selector.match_expressions.iter().map(expression);
    meta::LabelSelector {
        match_labels: (!selector.match_labels.is_empty()).then(|| selector.match_labels.clone()),
        match_expressions: (!selector.match_expressions.is_empty()).then(|| expressions.collect()),
    }
}

fn expression(expression: &LabelExpression) -> LabelSelectorRequirement {
    LabelSelectorRequirement {
        key: expression.key.clone(),
        operator: expression.operator.as_str().to_owned(),
        values: (!expression.values.is_empty()).then(|| expression.values.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::port_of;

    #[test]
    fn the_port_of_an_address() {
        for (url, port) in [
            ("https://models.example.com/a.tar", Some(443)),
            ("http://models.example.com?a:b", Some(80)),
            ("https://models.example.com:8443/a:1", Some(8443)),
            ("http://[fd00::1]/a", Some(80)),
            ("http://[fd00::1]:8080/a", Some(8080)),
            ("models.example.com", None),
        ] {
            assert_eq!(port_of(url), port, "{url}");
        }
    }
}
