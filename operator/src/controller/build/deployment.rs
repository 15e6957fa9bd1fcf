//! The Deployment of one pool.

use std::collections::BTreeMap;

use hawkeye_crds::v1alpha1::{
    Device, Dtype, EnvVar, Fallback, HardwareClassSpec, ModelSource, NodeSelectorRequirement, PullSecret, TaintEffect,
    Toleration, TolerationOperator,
};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::{
            self as core, Affinity, Capabilities, Container, ContainerPort, EmptyDirVolumeSource, HTTPGetAction,
            Lifecycle, LifecycleHandler, NodeAffinity, NodeSelector, NodeSelectorTerm, PodSecurityContext, PodSpec,
            PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile, SecurityContext, SleepAction,
            TopologySpreadConstraint, Volume, VolumeMount,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};

use super::{
    CLASS_LABEL, CONTAINER, Model, Owner, PORT, labels, metadata,
    model::{self, literal},
    pool_name,
};
use crate::{
    controller::plan::PoolPlan,
    hardware::{Images, memory},
};

/// User and group of the inference image.
const USER: i64 = 65532;
/// Seconds between two start-up probes, and how many may fail: ten minutes, since reading models over a slow network
/// and warming up a GPU took about one minute where others measured it.
const STARTUP: (i32, i32) = (5, 120);
/// Seconds that a pod goes on serving after it was told to end, so that every proxy has stopped sending it requests.
const DRAIN_SECONDS: i64 = 5;
/// Seconds from the order to end until the kill; longer than the slowest parse on a CPU.
const GRACE_SECONDS: i64 = 60;
/// Revisions kept for `kubectl rollout undo` of a pool.
const REVISIONS: i32 = 2;
/// What pods are spread over: nodes, and zones where the cluster has them.
const SPREAD: [&str; 2] = ["kubernetes.io/hostname", "topology.kubernetes.io/zone"];

/// Builds the Deployment of a pool.
pub fn build(owner: &Owner<'_>, pool: &PoolPlan, images: &Images, model: &ModelSource) -> Deployment {
    let model = Model {
        source: model,
        digest: pool.model_digest.as_deref(),
    };
    let mut labels = labels(owner.name);
    labels.insert(CLASS_LABEL.to_owned(), pool.class.clone());
    Deployment {
        metadata: metadata(owner, pool_name(owner.name, &pool.class), labels.clone()),
        spec: DeploymentSpec {
            replicas: i32::try_from(pool.replicas).ok(),
            revision_history_limit: Some(REVISIONS),
            selector: LabelSelector {
                match_labels: Some(labels.clone()),
                ..LabelSelector::default()
            },
            strategy: Some(strategy(pool.surge)),
            template: PodTemplateSpec {
                metadata: Some(pod_metadata(owner, model, &labels)),
                spec: Some(pod(owner, pool, images, model, &labels)),
            },
            ..DeploymentSpec::default()
        },
        status: None,
    }
}

/// With room for one more pod the new one starts first, so that nothing is interrupted. Without, it would wait for ever for
/// the GPU that its predecessor holds, so the old one ends first.
fn strategy(surge: bool) -> DeploymentStrategy {
    let (surge, unavailable) = if surge { (1, 0) } else { (0, 1) };
    DeploymentStrategy {
        type_: Some("RollingUpdate".to_owned()),
        rolling_update: Some(RollingUpdateDeployment {
            max_surge: Some(IntOrString::Int(surge)),
            max_unavailable: Some(IntOrString::Int(unavailable)),
        }),
    }
}

/// What the user says about every pod, and the operator's own, which the schema keeps apart; were a reserved label to get
/// past it, the operator's would win.
fn pod_metadata(owner: &Owner<'_>, model: Model<'_>, own: &BTreeMap<String, String>) -> ObjectMeta {
    let said = owner.spec.pod_metadata.clone().unwrap_or_default();
    let mut labels = said.labels;
    labels.extend(own.clone());
    let container = (
        "kubectl.kubernetes.io/default-container".to_owned(),
        CONTAINER.to_owned(),
    );
    let mut annotations = BTreeMap::from([container]);
    annotations.extend(said.annotations);
    annotations.extend(model::annotation(model.source));
    ObjectMeta {
        labels: Some(labels),
        annotations: Some(annotations),
        ..ObjectMeta::default()
    }
}

fn pull_secrets(owner: &Owner<'_>) -> Option<Vec<core::LocalObjectReference>> {
    let secrets = &owner.spec.image_pull_secrets;
    let reference = |secret: &PullSecret| core::LocalObjectReference {
        name: secret.name.clone(),
    };
    (!secrets.is_empty()).then(|| secrets.iter().map(reference).collect())
}

fn pod(
    owner: &Owner<'_>,
    pool: &PoolPlan,
    images: &Images,
    model: Model<'_>,
    labels: &BTreeMap<String, String>,
) -> PodSpec {
    let container = container(owner, pool, images, model);
    let fetcher = model::fetcher(model.source, &container, fetcher_env(owner, pool));
    PodSpec {
        affinity: Some(Affinity {
            node_affinity: Some(NodeAffinity {
                required_during_scheduling_ignored_during_execution: Some(NodeSelector {
                    node_selector_terms: node_terms(&pool.spec),
                }),
                ..NodeAffinity::default()
            }),
            ..Affinity::default()
        }),
        // The pods never talk to the API server; every namespace has the account `default`.
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        init_containers: fetcher.map(|fetcher| vec![fetcher]),
        containers: vec![container],
        image_pull_secrets: pull_secrets(owner),
        priority_class_name: owner.spec.priority_class_name.clone(),
        runtime_class_name: pool.spec.runtime_class_name.clone(),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                ..SeccompProfile::default()
            }),
            ..PodSecurityContext::default()
        }),
        termination_grace_period_seconds: Some(GRACE_SECONDS),
        tolerations: (!pool.spec.tolerations.is_empty())
            .then(|| pool.spec.tolerations.iter().map(toleration).collect()),
        topology_spread_constraints: Some(SPREAD.map(|key| spread(key, labels)).into()),
        volumes: Some(vec![
            model::volume(model),
            Volume {
                name: "tmp".to_owned(),
                empty_dir: Some(EmptyDirVolumeSource {
                    size_limit: Some(Quantity("1Gi".to_owned())),
                    ..EmptyDirVolumeSource::default()
                }),
                ..Volume::default()
            },
        ]),
        ..PodSpec::default()
    }
}

/// Spreads the pods of a pool where it can. Only those of one revision are counted: during a rollout the new pods would
/// otherwise keep away from the nodes that the old ones are about to leave.
fn spread(key: &str, labels: &BTreeMap<String, String>) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        max_skew: 1,
        topology_key: key.to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(LabelSelector {
            match_labels: Some(labels.clone()),
            ..LabelSelector::default()
        }),
        match_label_keys: Some(vec!["pod-template-hash".to_owned()]),
        ..TopologySpreadConstraint::default()
    }
}

fn container(owner: &Owner<'_>, pool: &PoolPlan, images: &Images, model: Model<'_>) -> Container {
    let change = owner
        .spec
        .overrides
        .as_ref()
        .and_then(|overrides| overrides.get(&pool.class));
    let quantity = |value: &hawkeye_crds::v1alpha1::Quantity| Quantity(value.0.clone());
    let mut requests = BTreeMap::from([
        ("cpu".to_owned(), quantity(&pool.cpu)),
        ("memory".to_owned(), quantity(&pool.memory)),
    ]);
    let mut limits = BTreeMap::from([("memory".to_owned(), quantity(&pool.memory))]);
    if let Some(resource) = &pool.spec.resource {
        requests.insert(resource.clone(), Quantity("1".to_owned()));
        limits.insert(resource.clone(), Quantity("1".to_owned()));
    }
    let tmp = VolumeMount {
        name: "tmp".to_owned(),
        mount_path: "/tmp".to_owned(),
        ..VolumeMount::default()
    };
    Container {
        name: CONTAINER.to_owned(),
        image: Some(images.of(pool.variant(), owner.spec, change)),
        image_pull_policy: Some(images.pull_policy.as_str().to_owned()),
        env: Some(env(owner, pool, model)),
        ports: Some(vec![ContainerPort {
            name: Some("http".to_owned()),
            container_port: PORT,
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        startup_probe: Some(probe("/startupz", STARTUP.0, 5, STARTUP.1)),
        readiness_probe: Some(probe("/readyz", 5, 5, 3)),
        liveness_probe: Some(probe("/livez", 10, 5, 6)),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction { seconds: DRAIN_SECONDS }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        resources: Some(ResourceRequirements {
            limits: Some(limits),
            requests: Some(requests),
            ..ResourceRequirements::default()
        }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                ..Capabilities::default()
            }),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            ..SecurityContext::default()
        }),
        // The last words of a program that could not even start are its log; without this nobody reads them in the status.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(vec![model::mount(), tmp]),
        ..Container::default()
    }
}

/// What the user and the class say first, then what the operator says: a name that both use has the operator's value.
fn env(owner: &Owner<'_>, pool: &PoolPlan, model: Model<'_>) -> Vec<core::EnvVar> {
    let device = match pool.device() {
        Device::Cuda => "cuda",
        Device::Cpu => "cpu",
    };
    let dtype = match pool.dtype {
        Dtype::Float16 => "float16",
        Dtype::BFloat16 => "bfloat16",
        Dtype::Float32 => "float32",
        Dtype::Int8 => "int8",
    };
    let mut own = vec![
        ("HAWKEYE_BUNDLE", model::folder(model.source).to_owned()),
        ("OMNIPARSER_HOST", "0.0.0.0".to_owned()),
        ("OMNIPARSER_PORT", PORT.to_string()),
        ("OMNIPARSER_DEVICE", device.to_owned()),
        ("HAWKEYE_EXPECT_DEVICE", device.to_owned()),
        (
            "OMNIPARSER_PERFORMANCE_PROFILE",
            owner.spec.profile.as_str().to_uppercase(),
        ),
        ("OMNIPARSER_BATCH_SIZE", pool.batch_size.to_string()),
        ("OMNIPARSER_MODEL_DTYPE", dtype.to_owned()),
        ("OMP_NUM_THREADS", memory::threads(&pool.cpu).to_string()),
    ];
    if pool.device() == Device::Cuda {
        // What a pod does whose GPU is allocated but not to be seen in its container. A CPU is always there; without the
        // variable a change of fallback leaves the CPU pools alone.
        let on_mismatch = match owner.spec.fallback {
            Fallback::Deny => "deny",
            Fallback::Degrade => "degrade",
        };
        own.push(("HAWKEYE_ON_MISMATCH", on_mismatch.to_owned()));
    }
    if pool.device() == Device::Cpu {
        // On a GPU node without labels, where a CPU pod may land, the NVIDIA runtime would show every GPU to every pod.
        own.push(("NVIDIA_VISIBLE_DEVICES", "void".to_owned()));
    }
    merged(owner, pool, own)
}

/// For the container that downloads a model: proxies and log settings of the user's are for it, too.
fn fetcher_env(owner: &Owner<'_>, pool: &PoolPlan) -> Vec<core::EnvVar> {
    merged(owner, pool, vec![("NVIDIA_VISIBLE_DEVICES", "void".to_owned())])
}

fn merged(owner: &Owner<'_>, pool: &PoolPlan, own: Vec<(&str, String)>) -> Vec<core::EnvVar> {
    let mut all: Vec<(String, String)> = vec![("HAWKEYE_LOG_FORMAT".to_owned(), "json".to_owned())];
    let change = owner
        .spec
        .overrides
        .as_ref()
        .and_then(|overrides| overrides.get(&pool.class));
    let said: &[EnvVar] = change.map_or(&[], |change| &change.env);
    let said = pool
        .spec
        .env
        .iter()
        .chain(said)
        .map(|var| (var.name.clone(), literal(&var.value)));
    for (name, value) in said.chain(own.into_iter().map(|(name, value)| (name.to_owned(), value))) {
        match all.iter_mut().find(|(other, _)| *other == name) {
            Some(entry) => entry.1 = value,
            None => all.push((name, value)),
        }
    }
    all.into_iter()
        .map(|(name, value)| core::EnvVar {
            name,
            value: Some(value),
            ..core::EnvVar::default()
        })
        .collect()
}

fn probe(path: &str, period: i32, timeout: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("http".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(timeout),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

/// The class's terms, each with operating system and architecture in it. Terms are alternatives, so that a term of their
/// own for the architecture would let pods onto nodes of any class.
pub fn node_terms(class: &HardwareClassSpec) -> Vec<NodeSelectorTerm> {
    class
        .node_selector_terms
        .iter()
        .map(|term| {
            let mut expressions = vec![
                expression("kubernetes.io/os", "In", &["linux".to_owned()]),
                expression("kubernetes.io/arch", "In", &[class.arch.as_str().to_owned()]),
            ];
            expressions.extend(term.match_expressions.iter().map(requirement));
            NodeSelectorTerm {
                match_expressions: Some(expressions),
                match_fields: None,
            }
        })
        .collect()
}

fn requirement(requirement: &NodeSelectorRequirement) -> core::NodeSelectorRequirement {
    expression(&requirement.key, requirement.operator.as_str(), &requirement.values)
}

fn expression(key: &str, operator: &str, values: &[String]) -> core::NodeSelectorRequirement {
    core::NodeSelectorRequirement {
        key: key.to_owned(),
        operator: operator.to_owned(),
        values: (!values.is_empty()).then(|| values.to_vec()),
    }
}

fn toleration(toleration: &Toleration) -> core::Toleration {
    core::Toleration {
        key: toleration.key.clone(),
        operator: toleration.operator.map(|operator| {
            match operator {
                TolerationOperator::Equal => "Equal",
                TolerationOperator::Exists => "Exists",
            }
            .to_owned()
        }),
        value: toleration.value.clone(),
        effect: toleration.effect.map(|effect| {
            match effect {
                TaintEffect::NoSchedule => "NoSchedule",
                TaintEffect::PreferNoSchedule => "PreferNoSchedule",
                TaintEffect::NoExecute => "NoExecute",
            }
            .to_owned()
        }),
        toleration_seconds: None,
    }
}
