//! Nodes that exist only in the API: kwok plays their kubelets, for nodes labelled `type=kwok` and no others.

use crate::{command::Kubectl, error::Result, tools};

const KWOK: &str = include_str!("kwok.yaml");

/// The platforms of `e2e/fixtures/nodes`, labelled as their publishers label them.
pub(crate) const FIXTURES: [(&str, &str); 7] = [
    ("dgx-spark", include_str!("../fixtures/nodes/dgx-spark.yaml")),
    ("gh200", include_str!("../fixtures/nodes/gh200.yaml")),
    ("x86-rtx", include_str!("../fixtures/nodes/x86-rtx.yaml")),
    ("graviton2", include_str!("../fixtures/nodes/graviton2.yaml")),
    ("graviton3", include_str!("../fixtures/nodes/graviton3.yaml")),
    ("cpu-arm64", include_str!("../fixtures/nodes/cpu-arm64.yaml")),
    ("cpu-amd64", include_str!("../fixtures/nodes/cpu-amd64.yaml")),
];

/// What kwok is given to play its nodes with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kwok {
    /// Duration of a node's Lease; kwok renews it four times as often.
    pub(crate) lease_seconds: u32,
    /// kwok's memory limit.
    pub(crate) memory: &'static str,
}

impl Kwok {
    /// For a handful of nodes.
    pub(crate) const FEW: Self = Self {
        lease_seconds: 40,
        memory: "300Mi",
    };
    /// For thousands: a renewal every 40 s. The controllers of the local cluster miss a node after five minutes, kind's after 50 s.
    pub(crate) const FLEET: Self = Self {
        lease_seconds: 160,
        memory: "2Gi",
    };
}

/// Starts kwok in the cluster.
pub(crate) fn start(kubectl: &Kubectl, kwok: Kwok) -> Result<()> {
    let manifest = KWOK
        .replace("$IMAGE", &tools::KWOK.image_reference())
        .replace("$LEASE_SECONDS", &kwok.lease_seconds.to_string())
        .replace("$MEMORY", kwok.memory);
    kubectl.apply(&manifest)?;
    kubectl.run([
        "-n",
        "kube-system",
        "rollout",
        "status",
        "deployment/kwok",
        "--timeout=60s",
    ])?;
    Ok(())
}

/// Starts kwok, adds the fixtures, waits until all are Ready; returns their number.
pub(crate) fn add(kubectl: &Kubectl) -> Result<usize> {
    start(kubectl, Kwok::FEW)?;
    let nodes: Vec<_> = FIXTURES.iter().map(|(_, manifest)| *manifest).collect();
    // Client-side apply creates by POST, which keeps the status that the fixtures carry.
    kubectl.apply(&nodes.join("\n---\n"))?;
    kubectl.run([
        "wait",
        "--for=condition=Ready",
        "nodes",
        "--selector=type=kwok",
        "--timeout=90s",
    ])?;
    Ok(FIXTURES.len())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn fixture(name: &str) -> Value {
        let (_, text) = FIXTURES.iter().find(|(fixture, _)| *fixture == name).unwrap();
        serde_saphyr::from_str(text).unwrap()
    }

    #[test]
    fn every_fixture_is_a_fake_node_that_nothing_lands_on_by_accident() {
        for (name, _) in FIXTURES {
            let node = fixture(name);
            assert_eq!(node["kind"], "Node");
            assert_eq!(node["metadata"]["name"], name);
            let labels = &node["metadata"]["labels"];
            assert_eq!(labels["type"], "kwok", "{name}");
            assert_eq!(
                labels["kubernetes.io/arch"], node["status"]["nodeInfo"]["architecture"],
                "{name}"
            );
            assert_eq!(labels["kubernetes.io/hostname"], name);
            let taint = &node["spec"]["taints"][0];
            assert_eq!(
                (&taint["key"], &taint["effect"]),
                (&"kwok.x-k8s.io/node".into(), &"NoSchedule".into()),
                "{name}"
            );
            assert_eq!(node["status"]["allocatable"]["pods"], "110", "{name}");
        }
    }

    #[test]
    fn the_spark_is_labelled_as_sparks_are() {
        let node = fixture("dgx-spark");
        let labels = node["metadata"]["labels"].as_object().unwrap();
        assert_eq!(labels["nvidia.com/gpu.product"], "NVIDIA-GB10");
        assert!(
            !labels.contains_key("nvidia.com/gpu.memory"),
            "unified memory: GFD publishes none"
        );
        assert_eq!(node["status"]["capacity"]["memory"], "125506464Ki");
        assert_eq!(node["status"]["allocatable"]["nvidia.com/gpu"], "1");
    }
}
