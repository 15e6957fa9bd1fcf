//! The Deployments of pools as they are kept: every one of them is compared with what is wanted on each reconcile, and
//! decoded they take ten times the memory of their text. Most of that is the affinity, which all pools of a class share.

use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentStatus},
        core::v1::Affinity,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::Resource;
use serde::Deserialize;

use super::{build::model::mounted_image, observe::strip};
use crate::texts::Texts;

/// A Deployment that takes little memory. Nothing of its spec and status is lost.
#[derive(Clone, Debug, Deserialize, Resource)]
#[serde(try_from = "Deployment")]
#[resource(inherit = "Deployment")]
pub struct PoolDeployment {
    /// What is used of its metadata.
    pub metadata: ObjectMeta,
    /// Its status.
    pub status: Option<DeploymentStatus>,
    /// The image that its pods mount as their model.
    pub model: Option<String>,
    /// Its spec as JSON, without the affinity of the pods.
    spec: Box<str>,
    /// That as JSON.
    affinity: Option<Arc<str>>,
}

impl TryFrom<Deployment> for PoolDeployment {
    type Error = serde_json::Error;

    fn try_from(mut deployment: Deployment) -> Result<Self, Self::Error> {
        strip(&mut deployment);
        let model = mounted_image(&deployment).map(str::to_owned);
        let pod = deployment.spec.template.spec.as_mut();
        let affinity = pod.and_then(|pod| pod.affinity.take());
        Ok(Self {
            metadata: deployment.metadata,
            status: deployment.status,
            model,
            spec: serde_json::to_string(&deployment.spec)?.into(),
            affinity: affinity.as_ref().map(shared).transpose()?,
        })
    }
}

impl PoolDeployment {
    /// The Deployment as it came.
    ///
    /// # Errors
    /// None that could be met: what is decoded here was encoded above.
    pub fn whole(&self) -> Result<Deployment, serde_json::Error> {
        let mut deployment = Deployment {
            metadata: self.metadata.clone(),
            spec: serde_json::from_str(&self.spec)?,
            status: self.status.clone(),
        };
        if let (Some(pod), Some(affinity)) = (&mut deployment.spec.template.spec, &self.affinity) {
            pod.affinity = Some(serde_json::from_str(affinity)?);
        }
        Ok(deployment)
    }
}

fn shared(affinity: &Affinity) -> Result<Arc<str>, serde_json::Error> {
    static KNOWN: LazyLock<Mutex<Texts>> = LazyLock::new(Mutex::default);
    let text = serde_json::to_string(affinity)?;
    Ok(KNOWN.lock().unwrap_or_else(PoisonError::into_inner).share(&text))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(name: &str) -> Deployment {
        let terms = json!([{"matchExpressions": [{"key": "a", "operator": "In", "values": ["b", "c"]}]}]);
        serde_json::from_value(json!({
            "metadata": {
                "name": name, "uid": "u", "generation": 3,
                "annotations": {"hawkeye.bytebot.ai/applied": "1", "other": "2"},
                "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}}],
            },
            "spec": {
                "selector": {"matchLabels": {"a": "b"}},
                "replicas": 2,
                "template": {"spec": {
                    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                        {"nodeSelectorTerms": terms}}},
                    "containers": [{"name": "c", "resources": {"limits": {"memory": "1Gi"}}}],
                    "volumes": [{"name": "models", "image": {"reference": "example.com/bundle:1@sha256:12"}}],
                }},
            },
            "status": {"observedGeneration": 3, "replicas": 2},
        }))
        .unwrap()
    }

    #[test]
    fn it_comes_back_whole_but_for_metadata_that_nobody_reads() {
        let mut expected = deployment("a");
        let kept = PoolDeployment::try_from(expected.clone()).unwrap();
        strip(&mut expected);
        assert!(expected.metadata.managed_fields.is_none());
        assert_eq!(kept.whole().unwrap(), expected);
        assert_eq!(kept.model.as_deref(), Some("example.com/bundle:1@sha256:12"));
        assert!(!kept.spec.contains("nodeAffinity"), "{}", kept.spec);
    }

    #[test]
    fn pools_of_a_class_share_their_affinity() {
        let [one, two] = ["a", "b"].map(|name| PoolDeployment::try_from(deployment(name)).unwrap());
        assert!(Arc::ptr_eq(&one.affinity.unwrap(), &two.affinity.unwrap()));
    }

    #[test]
    fn a_deployment_without_pods_of_ours_is_kept_as_well() {
        let bare: PoolDeployment =
            serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": {"selector": {}, "template": {}}}))
                .unwrap();
        assert_eq!(bare.whole().unwrap().metadata.name.as_deref(), Some("a"));
        assert_eq!((bare.model, bare.affinity), (None, None));
    }
}
