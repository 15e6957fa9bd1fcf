//! What the files of users are read into.

use std::{collections::HashSet, sync::Arc};

use hawkeye_crds::v1alpha1::{HardwareClass, HawkeyeDeployment};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    error::Error,
    read::{Kind, ParseError, objects},
    schema::Schema,
    trim::Unused,
};
use crate::{
    controller::observe::{Node, NodeSpec, NodeStatus, Pod, PodSpec, PodStatus},
    hardware::NodeFacts,
};

/// A node in a file: as the operator sees it, with its kind.
#[derive(Debug, Deserialize)]
pub struct NodeFile {
    #[serde(default)]
    kind: String,
    metadata: ObjectMeta,
    #[serde(default)]
    spec: NodeSpec,
    #[serde(default)]
    status: NodeStatus,
}

impl Kind for NodeFile {
    const KIND: &'static str = "Node";
    const HOW: &'static str = "kubectl get nodes -o json";
    const UNUSED: Unused = &[
        ("metadata", &["annotations", "managedFields"]),
        (
            "status",
            &[
                "images",
                "addresses",
                "volumesInUse",
                "volumesAttached",
                "features",
                "runtimeHandlers",
            ],
        ),
    ];

    fn kind(&self) -> &str {
        &self.kind
    }
}

/// A pod in a file.
#[derive(Debug, Deserialize)]
pub struct PodFile {
    #[serde(default)]
    kind: String,
    metadata: ObjectMeta,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

impl Kind for PodFile {
    const KIND: &'static str = "Pod";
    const HOW: &'static str = "kubectl get pods -A -o json";
    const UNUSED: Unused = &[
        ("metadata", &["annotations", "managedFields"]),
        ("spec", &["volumes", "tolerations", "affinity", "securityContext"]),
        ("status", &["podIPs", "hostIPs"]),
    ];

    fn kind(&self) -> &str {
        &self.kind
    }
}

/// A HawkeyeDeployment or a HardwareClass as the user wrote it.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct Written<const CLASS: bool>(Value);

impl<const CLASS: bool> Kind for Written<CLASS> {
    const KIND: &'static str = if CLASS { "HardwareClass" } else { "HawkeyeDeployment" };
    const HOW: &'static str = if CLASS {
        "kubectl get hwc -o yaml"
    } else {
        "kubectl get hkd -o yaml"
    };
    const UNUSED: Unused = &[("metadata", &["managedFields"])];

    fn kind(&self) -> &str {
        self.0.get("kind").and_then(Value::as_str).unwrap_or_default()
    }
}

/// Objects that a cluster cannot hold twice. Which of the two is right nobody can tell, and counted twice they would offer
/// or hold twice as much.
fn once<'a, K: Kind>(meta: impl Iterator<Item = &'a ObjectMeta>) -> Result<(), Error> {
    let mut seen = HashSet::new();
    for meta in meta {
        let name = meta.name.as_deref().unwrap_or_default();
        if !seen.insert((meta.namespace.as_deref(), name)) {
            let name = meta
                .namespace
                .as_ref()
                .map_or(name.to_owned(), |namespace| format!("{namespace}/{name}"));
            return Err(Error::Usage(format!(
                "{} {name} is given twice; leave one of the two out",
                K::KIND
            )));
        }
    }
    Ok(())
}

/// The nodes of files.
///
/// # Errors
/// When a file cannot be read or holds something else, or a node is given twice.
pub fn nodes(files: &[std::path::PathBuf]) -> Result<Vec<NodeFacts>, Error> {
    let nodes: Vec<NodeFile> = objects(files)?;
    once::<NodeFile>(nodes.iter().map(|node| &node.metadata))?;
    let facts = nodes.into_iter().map(|node| {
        let node = Node {
            metadata: node.metadata,
            spec: node.spec,
            status: node.status,
        };
        node.facts()
    });
    Ok(facts.collect())
}

/// The pods of files that placement has to know of.
///
/// # Errors
/// When a file cannot be read or holds something else, or a pod is given twice.
pub fn pods(files: &[std::path::PathBuf]) -> Result<Vec<Arc<Pod>>, Error> {
    let pods: Vec<PodFile> = objects(files)?;
    once::<PodFile>(pods.iter().map(|pod| &pod.metadata))?;
    let pods = pods.into_iter().map(|pod| Pod {
        metadata: pod.metadata,
        spec: pod.spec,
        status: pod.status,
    });
    Ok(pods.filter(Pod::relevant).map(Arc::new).collect())
}

/// The HawkeyeDeployments of files, as the API server would store them.
///
/// # Errors
/// When a file cannot be read or the API server would refuse what it holds.
pub fn deployments(files: &[std::path::PathBuf]) -> Result<Vec<HawkeyeDeployment>, Error> {
    let found: Vec<HawkeyeDeployment> = admitted::<_, false>(files)?;
    if found.is_empty() && !files.is_empty() {
        let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
        return Err(Error::Usage(format!("no HawkeyeDeployment in {}", names.join(", "))));
    }
    Ok(found)
}

/// The HardwareClasses of files, as the API server would store them.
///
/// # Errors
/// When a file cannot be read or the API server would refuse what it holds.
pub fn classes(files: &[std::path::PathBuf]) -> Result<Vec<HardwareClass>, Error> {
    admitted::<_, true>(files)
}

fn admitted<T: DeserializeOwned, const CLASS: bool>(files: &[std::path::PathBuf]) -> Result<Vec<T>, Error> {
    let written: Vec<Written<CLASS>> = objects(files)?;
    let schema = Schema::of(Written::<CLASS>::KIND)?;
    let mut good = Vec::new();
    let mut bad = Vec::new();
    for Written(object) in written {
        let name = object
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .unwrap_or("without a name");
        let name = format!("{} {name}", Written::<CLASS>::KIND);
        match schema.admit(object) {
            Ok(object) => good.push(serde_json::from_value(object).map_err(|error| Error::Parse {
                file: name,
                how: Written::<CLASS>::HOW,
                source: ParseError::Json(error),
            })?),
            Err(violations) => bad.push((name, violations)),
        }
    }
    if bad.is_empty() {
        Ok(good)
    } else {
        Err(Error::Invalid(bad))
    }
}
