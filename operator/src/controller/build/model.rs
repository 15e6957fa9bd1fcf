//! How a pod comes to its model bundle: the volume, the container that downloads into it, and what makes a change roll.

use std::collections::BTreeMap;

use hawkeye_crds::v1alpha1::{ModelHttp, ModelSource, PullPolicy};
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{
            Container, EmptyDirVolumeSource, EnvVar, ImageVolumeSource, PersistentVolumeClaimVolumeSource,
            ResourceRequirements, Volume, VolumeMount,
        },
    },
    apimachinery::pkg::api::resource::Quantity,
};

/// Name of the volume.
pub const VOLUME: &str = "models";
/// Name of the init container that downloads a bundle.
pub const FETCH: &str = "fetch-model";
/// Annotation of pods with `model.revision`.
pub const REVISION: &str = "hawkeye.bytebot.ai/model-revision";
/// Where the volume is mounted.
const MOUNT: &str = "/models";
/// Where a downloaded bundle lies: a folder in the volume, so that it can appear whole or not at all.
const FETCHED: &str = "/models/bundle";
/// What the volume of a download may take beside archive and bundle, bytes.
const SPARE: u64 = 64 << 20;

/// Where the bundle comes from, and what is there now.
#[derive(Clone, Copy, Debug)]
pub struct Model<'a> {
    /// As in the spec or the chart's default.
    pub source: &'a ModelSource,
    /// Digest of the image behind a tag, as a registry last said. A change rolls the pods, and so does `None` after
    /// `Some`: who resolves digests keeps the last one while the registry is away.
    pub digest: Option<&'a str>,
}

/// The image that the pods of a Deployment mount as their model, with its digest where the volume names one.
pub fn mounted_image(deployment: &Deployment) -> Option<&str> {
    let volumes = deployment.spec.template.spec.as_ref()?.volumes.as_ref()?;
    let volume = volumes.iter().find(|volume| volume.name == VOLUME)?;
    volume.image.as_ref()?.reference.as_deref()
}

/// The digest in what is mounted, if that is the image of this name.
pub fn digest_of<'a>(mounted: &'a str, reference: &str) -> Option<&'a str> {
    mounted.strip_prefix(reference)?.strip_prefix('@')
}

/// The volume that holds the bundle. With its digest in the name a node that has an older image under the same tag takes
/// the new one whatever the pull policy, and all pods of a revision have the same content.
pub fn volume(model: Model<'_>) -> Volume {
    let Model { source: model, digest } = model;
    Volume {
        name: VOLUME.to_owned(),
        image: model.image.as_ref().map(|image| ImageVolumeSource {
            reference: Some(match digest {
                Some(digest) => format!("{}@{digest}", image.reference),
                None => image.reference.clone(),
            }),
            pull_policy: image.pull_policy.map(PullPolicy::as_str).map(str::to_owned),
        }),
        persistent_volume_claim: model.persistent_volume_claim.as_ref().map(|claim| {
            PersistentVolumeClaimVolumeSource {
                claim_name: claim.claim_name.clone(),
                read_only: Some(true),
            }
        }),
        empty_dir: model.http.as_ref().map(|http| EmptyDirVolumeSource {
            size_limit: Some(Quantity(format!("{}Mi", room(http).div_ceil(1 << 20)))),
            ..EmptyDirVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// Most bytes of the archive, and of the bundle in it. The schema has refused what is no quantity.
fn most(http: &ModelHttp) -> u64 {
    http.max_size.units().unwrap_or(4 << 30)
}

/// The archive and the bundle in it are there at the same time.
fn room(http: &ModelHttp) -> u64 {
    most(http).saturating_mul(2).saturating_add(SPARE)
}

/// The mount of the container that reads the bundle.
pub fn mount() -> VolumeMount {
    VolumeMount {
        name: VOLUME.to_owned(),
        mount_path: MOUNT.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    }
}

/// The folder that holds `bundle.json`.
pub fn folder(model: &ModelSource) -> &'static str {
    if model.http.is_some() { FETCHED } else { MOUNT }
}

/// The container that downloads the bundle before the parser starts. It runs the parser's image and asks for what the
/// parser asks for, without the GPU: containers of which one runs after the other do not add up.
pub fn fetcher(model: &ModelSource, parser: &Container, env: Vec<EnvVar>) -> Option<Container> {
    let http = model.http.as_ref()?;
    let shared = |resources: &Option<BTreeMap<String, Quantity>>| {
        let mut resources = resources.clone()?;
        resources.retain(|name, _| matches!(name.as_str(), "cpu" | "memory"));
        Some(resources)
    };
    let arguments = [
        "fetch",
        "--url",
        &literal(&http.url),
        "--sha256",
        &http.sha256,
        "--out",
        FETCHED,
        "--max-bytes",
        &most(http).to_string(),
        "--message-file",
        "/dev/termination-log",
    ]
    .map(str::to_owned);
    Some(Container {
        name: FETCH.to_owned(),
        image: parser.image.clone(),
        image_pull_policy: parser.image_pull_policy.clone(),
        args: Some(arguments.into()),
        env: Some(env),
        resources: parser.resources.as_ref().map(|resources| ResourceRequirements {
            limits: shared(&resources.limits),
            requests: shared(&resources.requests),
            ..ResourceRequirements::default()
        }),
        security_context: parser.security_context.clone(),
        termination_message_policy: parser.termination_message_policy.clone(),
        volume_mounts: Some(vec![VolumeMount {
            read_only: None,
            ..mount()
        }]),
        ..Container::default()
    })
}

/// The annotation of the pods that changes with the model's revision, and so rolls them.
pub fn annotation(model: &ModelSource) -> Option<(String, String)> {
    Some((REVISION.to_owned(), model.revision.clone()?))
}

/// In arguments and variables `$(NAME)` stands for another variable and `$$` for a single `$`; users' text means itself.
pub fn literal(text: &str) -> String {
    text.replace('$', "$$")
}
