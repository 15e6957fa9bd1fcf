//! Which container image and which model bundle a pool runs.

use hawkeye_crds::v1alpha1::{HawkeyeDeploymentSpec, ImageVariant, ModelSource, PoolOverride, PullPolicy};

/// The inference images of this release, one for each variant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// For CPUs.
    pub cpu: String,
    /// With the CUDA libraries.
    pub cuda: String,
    /// When they are pulled.
    pub pull_policy: PullPolicy,
}

impl Images {
    /// The image of a pool: the override's, else the spec's, else this release's for the variant.
    pub fn of(&self, variant: ImageVariant, spec: &HawkeyeDeploymentSpec, change: Option<&PoolOverride>) -> String {
        change
            .and_then(|change| change.image.as_ref())
            .or(spec.image.as_ref())
            .cloned()
            .unwrap_or_else(|| match variant {
                ImageVariant::Cpu => self.cpu.clone(),
                ImageVariant::Cuda => self.cuda.clone(),
            })
    }
}

/// What a HawkeyeDeployment without `spec.model` uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelDefaults {
    /// The chart's `defaultModel`.
    pub model: Option<ModelSource>,
}

impl ModelDefaults {
    /// The bundle's source, if there is one.
    pub fn of<'a>(&'a self, spec: &'a HawkeyeDeploymentSpec) -> Option<&'a ModelSource> {
        spec.model.as_ref().or(self.model.as_ref())
    }
}
