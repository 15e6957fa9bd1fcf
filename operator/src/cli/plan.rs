//! `kubectl hawkeye plan` and `kubectl hawkeye classes`: gathers what the report is made from.

use std::collections::BTreeMap;

use hawkeye_crds::{
    classes,
    v1alpha1::{HardwareClass, HawkeyeDeployment, PullPolicy},
};
use jiff::Timestamp;
use kube::ResourceExt;

use super::{
    args::{ClassesArgs, PlanArgs},
    error::Error,
    live::{Cluster, OperatorSettings},
    objects,
    report::{self, Candidate, ClassesReport, Input, PlanReport},
};
use crate::{
    args::{IMAGE_CPU, IMAGE_CUDA, parse_model},
    controller::observe::Node,
    hardware::{Images, ModelDefaults, grace::GRACE},
};

/// Gathers and plans.
///
/// # Errors
/// When a file or the cluster does not give what is needed, or the API server would refuse a HawkeyeDeployment.
pub async fn plan(args: &PlanArgs) -> Result<PlanReport, Error> {
    let stdin = [&args.filename, &args.nodes, &args.pods, &args.classes]
        .into_iter()
        .flatten()
        .filter(|file| file.as_os_str() == "-")
        .count();
    if stdin > 1 {
        return Err(Error::Usage(
            "standard input can be read only once: give - to one option".to_owned(),
        ));
    }
    let given = objects::deployments(&args.filename)?;
    let mut input = if args.nodes.is_empty() {
        from_cluster(args, given).await?
    } else {
        from_files(args, given)?
    };
    if let Some(model) = &args.default_model {
        input.models.model = Some(model.clone());
    }
    if let Some(image) = &args.image_cpu {
        input.images.cpu.clone_from(image);
    }
    if let Some(image) = &args.image_cuda {
        input.images.cuda.clone_from(image);
    }
    Ok(report::plan(input))
}

/// Gathers and sorts nodes into classes.
///
/// # Errors
/// When a file or the cluster does not give what is needed.
pub async fn classes(args: &ClassesArgs) -> Result<ClassesReport, Error> {
    let mut input = Input {
        classes: classes_of_files(&args.classes)?,
        nodes: objects::nodes(&args.nodes)?,
        pods: Vec::new(),
        deployments: Vec::new(),
        images: release(),
        models: ModelDefaults::default(),
        label_grace: GRACE,
        now: Timestamp::now(),
        notes: Vec::new(),
    };
    if args.nodes.is_empty() {
        let cluster = Cluster::of(&args.cluster).await?;
        input.nodes = cluster.nodes().await?.iter().map(Node::facts).collect();
        input.pods = pods(&cluster, &mut input.notes).await?;
        if args.classes.is_empty() {
            input.classes = classes_of(&cluster, &mut input.notes).await?;
        }
    }
    Ok(report::classes(input))
}

fn from_files(args: &PlanArgs, given: Vec<HawkeyeDeployment>) -> Result<Input, Error> {
    let namespace = args.namespace.as_deref().unwrap_or("default");
    Ok(Input {
        classes: classes_of_files(&args.classes)?,
        nodes: objects::nodes(&args.nodes)?,
        pods: objects::pods(&args.pods)?,
        deployments: candidates(Vec::new(), given, namespace)?,
        images: release(),
        models: ModelDefaults::default(),
        label_grace: GRACE,
        now: Timestamp::now(),
        notes: if args.pods.is_empty() {
            vec!["no --pods were given, so every GPU of the nodes counts as free".to_owned()]
        } else {
            Vec::new()
        },
    })
}

async fn from_cluster(args: &PlanArgs, given: Vec<HawkeyeDeployment>) -> Result<Input, Error> {
    let cluster = Cluster::of(&args.cluster).await?;
    let mut notes = Vec::new();
    let namespace = args.namespace.clone().unwrap_or_else(|| cluster.namespace.clone());
    let existing = match cluster.deployments(None).await {
        Ok((existing, bad)) => {
            notes.extend(
                bad.iter()
                    .map(|bad| format!("HawkeyeDeployment {bad}; it takes no part in this plan")),
            );
            existing
        }
        // Before the definitions are installed, a plan from files still makes sense.
        Err(error) if !given.is_empty() && !args.classes.is_empty() => {
            notes.push(format!("{error}; so this plan is as if there were none"));
            Vec::new()
        }
        Err(error) => return Err(error),
    };
    let classes = if args.classes.is_empty() {
        classes_of(&cluster, &mut notes).await?
    } else {
        objects::classes(&args.classes)?
    };
    let settings = match cluster.operator().await {
        Ok(Some(settings)) => settings,
        Ok(None) => {
            notes.push(
                "the chart's operator is not in this cluster: images are this release's, and there is no default model"
                    .to_owned(),
            );
            OperatorSettings::default()
        }
        Err(error) => {
            notes.push(format!(
                "{error}; images are this release's, and there is no default model"
            ));
            OperatorSettings::default()
        }
    };
    let mut models = ModelDefaults::default();
    match parse_model(settings.default_model.as_deref().unwrap_or_default()) {
        Ok(model) => models.model = model.0,
        Err(error) => notes.push(format!("the operator's default model is not one: {error}")),
    }
    let mut images = release();
    images.cpu = settings.image_cpu.unwrap_or(images.cpu);
    images.cuda = settings.image_cuda.unwrap_or(images.cuda);
    Ok(Input {
        classes,
        nodes: cluster.nodes().await?.iter().map(Node::facts).collect(),
        pods: pods(&cluster, &mut notes).await?,
        deployments: candidates(existing, given, &namespace)?,
        images,
        models,
        label_grace: settings.label_grace.unwrap_or(GRACE),
        now: Timestamp::now(),
        notes,
    })
}

/// The images of this release; what is pulled when makes no difference to a plan.
fn release() -> Images {
    Images {
        cpu: IMAGE_CPU.to_owned(),
        cuda: IMAGE_CUDA.to_owned(),
        pull_policy: PullPolicy::IfNotPresent,
    }
}

fn classes_of_files(files: &[std::path::PathBuf]) -> Result<Vec<HardwareClass>, Error> {
    if files.is_empty() {
        classes::built_in().map_err(|error| Error::BuiltIn(error.to_string()))
    } else {
        objects::classes(files)
    }
}

async fn classes_of(cluster: &Cluster, notes: &mut Vec<String>) -> Result<Vec<HardwareClass>, Error> {
    let (classes, bad) = cluster.classes().await?;
    notes.extend(
        bad.iter()
            .map(|bad| format!("HardwareClass {bad}; it is left out, as the operator does")),
    );
    Ok(classes)
}

/// Whoever may not list the pods of other namespaces can still plan, but has to know what is missing.
async fn pods(
    cluster: &Cluster,
    notes: &mut Vec<String>,
) -> Result<Vec<std::sync::Arc<crate::controller::observe::Pod>>, Error> {
    match cluster.pods().await {
        Err(Error::Api { source, .. }) if matches!(&*source, kube::Error::Api(status) if status.code == 403) => {
            notes.push(
                "this account may not list the pods of all namespaces, so GPUs that other pods hold count as free"
                    .to_owned(),
            );
            Ok(Vec::new())
        }
        other => other,
    }
}

/// Everything that takes part: what exists, with what was given in its place or after it. Without anything given, all that
/// exists is shown.
fn candidates(
    existing: Vec<HawkeyeDeployment>,
    given: Vec<HawkeyeDeployment>,
    namespace: &str,
) -> Result<Vec<Candidate>, Error> {
    let key = |object: &HawkeyeDeployment| (object.namespace().unwrap_or_default(), object.name_any());
    let all = given.is_empty();
    let mut candidates: Vec<Candidate> = existing
        .into_iter()
        .filter(|object| object.metadata.deletion_timestamp.is_none())
        .map(|object| Candidate { object, shown: all })
        .collect();
    let mut places: BTreeMap<(String, String), usize> = candidates
        .iter()
        .enumerate()
        .map(|(at, one)| (key(&one.object), at))
        .collect();
    for mut object in given {
        object.metadata.namespace.get_or_insert_with(|| namespace.to_owned());
        let place = key(&object);
        match places.get(&place).and_then(|at| candidates.get_mut(*at)) {
            Some(one) if one.shown => {
                return Err(Error::Usage(format!(
                    "HawkeyeDeployment {}/{} is given twice",
                    place.0, place.1
                )));
            }
            Some(one) => {
                // It keeps its place in the order.
                object.metadata.uid = one.object.metadata.uid.take();
                object.metadata.creation_timestamp = one.object.metadata.creation_timestamp.take();
                *one = Candidate { object, shown: true };
            }
            None => {
                places.insert(place, candidates.len());
                candidates.push(Candidate { object, shown: true });
            }
        }
    }
    Ok(candidates)
}
