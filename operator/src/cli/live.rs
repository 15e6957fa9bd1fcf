//! What the cluster of a kubeconfig holds.

use std::{
    fmt::{self, Debug},
    sync::Arc,
    time::Duration,
};

use hawkeye_crds::v1alpha1::{HardwareClass, HawkeyeDeployment};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{
    Api, Client, Config, Resource,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
    core::DeserializeGuard,
};
use serde::de::DeserializeOwned;

use super::{args::ClusterArgs, error::Error};
use crate::{
    args::parse_duration,
    controller::observe::{Node, Pod},
};

/// Objects for each answer: pods of large clusters come in parts.
const PAGE: u32 = 1000;
/// Labels of the operator's Deployment, as the chart sets them.
const OPERATOR: &str = "app.kubernetes.io/name=hawkeye-operator";

/// A cluster.
pub struct Cluster {
    client: Client,
    /// The context's namespace.
    pub namespace: String,
}

/// A stored object that does not decode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undecodable {
    /// Its namespace, if its kind has one.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// Why.
    pub error: String,
}

impl fmt::Display for Undecodable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        write!(f, "{}: {}", self.name, self.error)
    }
}

/// How the operator of the cluster was set up, as far as plans depend on it.
#[derive(Debug, Default)]
pub struct OperatorSettings {
    /// Image for CPUs.
    pub image_cpu: Option<String>,
    /// Image for CUDA.
    pub image_cuda: Option<String>,
    /// The chart's `defaultModel`, as JSON.
    pub default_model: Option<String>,
    /// How long a node whose labels vanished keeps its class.
    pub label_grace: Option<Duration>,
}

impl Cluster {
    /// The cluster that the options and the environment name.
    ///
    /// # Errors
    /// When they name none.
    pub async fn of(args: &ClusterArgs) -> Result<Self, Error> {
        let no_cluster = |error: &dyn std::error::Error| Error::NoCluster(error.to_string());
        let options = KubeConfigOptions {
            context: args.context.clone(),
            ..KubeConfigOptions::default()
        };
        let config = match &args.kubeconfig {
            Some(file) => {
                let kubeconfig = Kubeconfig::read_from(file).map_err(|error| no_cluster(&error))?;
                Config::from_custom_kubeconfig(kubeconfig, &options)
                    .await
                    .map_err(|error| no_cluster(&error))?
            }
            None if args.context.is_some() => Config::from_kubeconfig(&options)
                .await
                .map_err(|error| no_cluster(&error))?,
            None => Config::infer().await.map_err(|error| no_cluster(&error))?,
        };
        let namespace = config.default_namespace.clone();
        let client = Client::try_from(config).map_err(|error| no_cluster(&error))?;
        Ok(Self { client, namespace })
    }

    /// Every node.
    ///
    /// # Errors
    /// When the API server does not say.
    pub async fn nodes(&self) -> Result<Vec<Node>, Error> {
        list(&Api::all(self.client.clone()), "nodes", &ListParams::default(), |_| {
            true
        })
        .await
    }

    /// Pods of ours, and pods that hold an extended resource.
    ///
    /// # Errors
    /// When the API server does not say.
    pub async fn pods(&self) -> Result<Vec<Arc<Pod>>, Error> {
        let api = Api::all(self.client.clone());
        let pods: Vec<Pod> = list(&api, "pods of all namespaces", &ListParams::default(), Pod::relevant).await?;
        Ok(pods.into_iter().map(Arc::new).collect())
    }

    /// Pods of a namespace, or of all, that carry the operator's label.
    ///
    /// # Errors
    /// When the API server does not say.
    pub async fn own_pods(&self, namespace: Option<&str>, selector: &str) -> Result<Vec<Pod>, Error> {
        list(
            &self.api(namespace),
            "pods",
            &ListParams::default().labels(selector),
            |_| true,
        )
        .await
    }

    /// Every HardwareClass that decodes, and those that do not.
    ///
    /// # Errors
    /// When the API server does not say.
    pub async fn classes(&self) -> Result<(Vec<HardwareClass>, Vec<Undecodable>), Error> {
        let api: Api<DeserializeGuard<HardwareClass>> = Api::all(self.client.clone());
        let guarded = list(&api, "HardwareClasses", &ListParams::default(), |_| true).await?;
        Ok(split(guarded))
    }

    /// The HawkeyeDeployments of a namespace, or of all, that decode, and those that do not.
    ///
    /// # Errors
    /// When the API server does not say.
    pub async fn deployments(
        &self,
        namespace: Option<&str>,
    ) -> Result<(Vec<HawkeyeDeployment>, Vec<Undecodable>), Error> {
        let api: Api<DeserializeGuard<HawkeyeDeployment>> = match namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        };
        let guarded = list(&api, "HawkeyeDeployments", &ListParams::default(), |_| true).await?;
        Ok(split(guarded))
    }

    /// How the operator was set up; `None` when there is none that the chart has installed.
    ///
    /// # Errors
    /// When the API server does not say.
    pub async fn operator(&self) -> Result<Option<OperatorSettings>, Error> {
        let api: Api<Deployment> = Api::all(self.client.clone());
        let found = list(
            &api,
            "the operator's Deployment",
            &ListParams::default().labels(OPERATOR),
            |_| true,
        )
        .await?;
        Ok(found.first().and_then(settings))
    }

    fn api<K>(&self, namespace: Option<&str>) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        match namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }
}

/// Lists in parts, and keeps of each part what is of use.
async fn list<K>(api: &Api<K>, what: &str, params: &ListParams, keep: impl Fn(&K) -> bool) -> Result<Vec<K>, Error>
where
    K: Clone + Debug + DeserializeOwned,
{
    let mut params = params.clone().limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = api.list(&params).await.map_err(|source| Error::Api {
            action: format!("cannot list {what}"),
            hint: hint(&source),
            source: Box::new(source),
        })?;
        all.extend(page.items.into_iter().filter(&keep));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}

fn hint(error: &kube::Error) -> &'static str {
    match error {
        kube::Error::Api(status) if status.code == 404 => {
            "\n  is Hawkeye installed in this cluster? helm install hawkeye-crds charts/hawkeye-crds"
        }
        kube::Error::Api(status) if status.code == 403 => {
            "\n  this account may not read it; ask for the right, or plan from files: --nodes FILE"
        }
        kube::Error::Api(status) if status.code == 401 => {
            "\n  the credentials of this context are not valid (any more)"
        }
        kube::Error::Api(_) => "",
        _ => "\n  is this the right context? kubectl config current-context",
    }
}

fn split<K>(guarded: Vec<DeserializeGuard<K>>) -> (Vec<K>, Vec<Undecodable>) {
    let mut good = Vec::new();
    let mut bad = Vec::new();
    for one in guarded {
        match one.0 {
            Ok(object) => good.push(object),
            Err(invalid) => bad.push(Undecodable {
                namespace: invalid.metadata.namespace,
                name: invalid.metadata.name.unwrap_or_default(),
                error: invalid.error,
            }),
        }
    }
    (good, bad)
}

fn settings(deployment: &Deployment) -> Option<OperatorSettings> {
    let pod = deployment.spec.template.spec.as_ref()?;
    let container = pod
        .containers
        .iter()
        .find(|container| container.name == "operator")
        .or(pod.containers.first())?;
    let arguments = container.args.as_deref().unwrap_or_default();
    let setting = |flag: &str, variable: &str| {
        let mut after = arguments.iter().skip_while(|argument| *argument != flag).skip(1);
        let joined = arguments
            .iter()
            .find_map(|argument| argument.strip_prefix(flag)?.strip_prefix('='));
        joined
            .or(after.next().map(String::as_str))
            .map(str::to_owned)
            .or_else(|| {
                let variables = container.env.as_deref().unwrap_or_default();
                variables
                    .iter()
                    .find(|one| one.name == variable)
                    .and_then(|one| one.value.clone())
            })
    };
    Some(OperatorSettings {
        image_cpu: setting("--image-cpu", "HAWKEYE_IMAGE_CPU"),
        image_cuda: setting("--image-cuda", "HAWKEYE_IMAGE_CUDA"),
        default_model: setting("--default-model", "HAWKEYE_DEFAULT_MODEL"),
        label_grace: setting("--label-grace", "HAWKEYE_LABEL_GRACE").and_then(|text| parse_duration(&text).ok()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_from_flags_and_environment() {
        let deployment: Deployment = serde_json::from_value(serde_json::json!({
            "metadata": {}, "spec": {"selector": {}, "template": {"spec": {"containers": [
                {"name": "sidecar"},
                {"name": "operator", "args": ["run", "--image-cpu", "a", "--default-model=b"],
                 "env": [{"name": "HAWKEYE_IMAGE_CPU", "value": "less"}, {"name": "HAWKEYE_IMAGE_CUDA", "value": "c"}]},
            ]}}},
        }))
        .unwrap();
        let settings = settings(&deployment).unwrap();
        assert_eq!(settings.image_cpu.as_deref(), Some("a"));
        assert_eq!(settings.image_cuda.as_deref(), Some("c"));
        assert_eq!(settings.default_model.as_deref(), Some("b"));
    }
}
