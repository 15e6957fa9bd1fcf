//! Looks images up for real: reads the Secrets that it may read, then asks the registry.

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};

use super::{
    auth::{Credentials, credentials},
    client::{Error, RegistryClient},
    lookups::{Failure, Source},
    manifest::Found,
    policy::Subject,
    reference::ImageRef,
};

/// Registries, and the Secrets for them.
#[derive(Clone)]
pub struct Registries {
    /// Asks registries.
    pub client: RegistryClient,
    /// Reads Secrets.
    pub cluster: Client,
}

impl Source for Registries {
    async fn look_up(&self, subject: &Subject) -> Result<Found, Failure> {
        let image = ImageRef::parse(&subject.image).map_err(|error| Failure::new(error.to_string()))?;
        let credentials = self.credentials(subject, &image).await;
        self.client
            .look_up(&image, credentials.as_ref())
            .await
            .map_err(|error| Failure {
                patience: matches!(error, Error::TooManyRequests(_)),
                message: error.to_string(),
            })
    }
}

impl Registries {
    /// Of the first Secret that has some for the registry. One that cannot be read is passed over, as the kubelet does.
    async fn credentials(&self, subject: &Subject, image: &ImageRef) -> Option<Credentials> {
        for (namespace, name) in &subject.secrets {
            let api: Api<Secret> = Api::namespaced(self.cluster.clone(), namespace);
            let secret = match api.get(name).await {
                Ok(secret) => secret,
                Err(error) => {
                    tracing::warn!(namespace, name, %error, "a pull secret cannot be read");
                    continue;
                }
            };
            let config = secret.data.as_ref().and_then(|data| data.get(".dockerconfigjson"));
            if let Some(found) = config.and_then(|config| credentials(&config.0, image)) {
                return Some(found);
            }
        }
        None
    }
}
