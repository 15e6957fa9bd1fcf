//! Where the model bundle of a HawkeyeDeployment comes from.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Quantity, rules};

/// Where the model bundle comes from: exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new("[has(self.image), has(self.persistentVolumeClaim), has(self.http)].filter(set, set).size() == 1").message("model must have exactly one of image, persistentVolumeClaim and http"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelSource {
    /// An image or OCI artifact whose root is the bundle, mounted read-only as an image volume (Kubernetes 1.35 or later, containerd 2.1 or later).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ModelImage>,
    /// A PersistentVolumeClaim in the same namespace whose root is the bundle, mounted read-only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<ModelClaim>,
    /// An archive of the bundle, downloaded by each pod before it starts and checked against its sha256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<ModelHttp>,
    /// A word of your choice. A change replaces the pods, so that they load what is behind the same image tag or claim now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub revision: Option<String>,
}

impl ModelSource {
    /// True when exactly one source is given, as the schema asks for.
    pub fn is_one(&self) -> bool {
        [
            self.image.is_some(),
            self.persistent_volume_claim.is_some(),
            self.http.is_some(),
        ]
        .into_iter()
        .filter(|set| *set)
        .count()
            == 1
    }
}

/// A model bundle in an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelImage {
    /// Image reference, e.g. registry.example.com/models/omniparser:v2.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = rules::image("reference"))]
    pub reference: String,
    /// When to pull it: Always, IfNotPresent or Never. Left out: Always for the tag latest, otherwise IfNotPresent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<PullPolicy>,
}

/// When an image is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs)]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

impl PullPolicy {
    /// As in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// A model bundle in a PersistentVolumeClaim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelClaim {
    /// Name of the claim. With pods on more than one node its access mode must allow that.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = rules::NAME)
    )]
    pub claim_name: String,
}

/// An archive of a model bundle on an HTTP server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelHttp {
    /// Where the archive is: a .tar, .tar.gz or .tar.zst of the bundle's folder, over http or https (public certificate authorities). Without user name and password; a signed query is allowed, and is seen by whoever may read the pods.
    #[schemars(
        length(min = 10, max = 2048),
        regex(pattern = r"^https?://[^\s/?#@]+([/?][^\s#]*)?$")
    )]
    pub url: String,
    /// sha256 of the archive, as 64 lower case hexadecimal digits. Anything else that the server sends is refused.
    #[schemars(length(min = 64, max = 64), regex(pattern = "^[0-9a-f]{64}$"))]
    pub sha256: String,
    /// Most bytes that the archive may have, and the bundle in it; 1Mi to 1Ti. The pod's node keeps both for a moment, so each pod may take twice as much of its disk.
    #[serde(default = "largest")]
    #[x_kube(validation = rules::quantity("maxSize", "1Mi", "1Ti"))]
    pub max_size: Quantity,
}

fn largest() -> Quantity {
    Quantity::from("4Gi")
}
