//! The condition ImageVerified, and what a pod's own failure says about its image. Pure.

use hawkeye_crds::v1alpha1::{
    Arch, Condition, ConditionStatus, ConditionType, HawkeyeDeploymentStatus, PoolStatus, Reason,
};

use super::{Checks, Verdict};
use crate::controller::{
    build::model::mounted_image,
    observe::{ContainerStatus, Pod},
    plan::{Plan, PoolPlan},
    status::{Facts, shorten},
};

/// What container runtimes say when an index has no entry for the node: containerd, CRI-O, Docker.
const NO_PLATFORM: [&str; 4] = [
    "no match for platform in manifest",
    "no image found in manifest list for architecture",
    "no image found in image index for architecture",
    "no matching manifest for",
];
/// What the kernel says of a program for another architecture; runc and crun pass it on, in their own case.
const NO_PROGRAM: &str = "exec format error";

/// What a pod that cannot run its image on its node says about it: a sentence that names image, architecture and node.
pub fn failure(facts: &Facts<'_>, pod: &Pod) -> Option<String> {
    let class = pod.class()?;
    let pool = facts.plan.pools.iter().find(|pool| pool.class == class)?;
    let deployment = facts.applied.and_then(|applied| applied.deployments.get(class));
    describe(pod, pool.spec.arch, deployment.and_then(mounted_image))
}

/// The same from what it needs: the architecture of the pod's class, and the image of its model.
fn describe(pod: &Pod, arch: Arch, model: Option<&str>) -> Option<String> {
    let (container, fault) = pod
        .status
        .init_container_statuses
        .iter()
        .chain(&pod.status.container_statuses)
        .find_map(|container| Some((container, fault(container)?)))?;
    let image = pod
        .spec
        .init_containers
        .iter()
        .chain(&pod.spec.containers)
        .find(|spec| spec.name == container.name)
        .and_then(|spec| spec.image.as_deref())
        .unwrap_or("its image");
    let arch = arch.as_str();
    let node = pod.spec.node_name.as_deref().unwrap_or("its node");
    Some(match fault {
        Fault::Pull(said) => {
            // The kubelet pulls a model's image for the same container, and names the one that it means; the runtime leaves
            // the tag out where there is a digest.
            let names = |model: &&str| {
                let digest = model.split_once('@').map(|(_, digest)| digest);
                said.contains(*model) || digest.is_some_and(|digest| said.contains(digest))
            };
            let model = model.filter(names).filter(|_| !said.contains(image));
            format!(
                "{} was not built for linux/{arch}: node {node} found nothing for its platform in it ({said}).",
                model.unwrap_or(image)
            )
        }
        Fault::Exec(said) => {
            format!("{image} was not built for linux/{arch}: node {node} cannot execute its program ({said}).")
        }
    })
}

enum Fault<'a> {
    Pull(&'a str),
    Exec(&'a str),
}

fn fault(container: &ContainerStatus) -> Option<Fault<'_>> {
    let waiting = container.state.waiting.as_ref().map(|waiting| waiting.message.as_str());
    let ended = [&container.state, &container.last_state]
        .into_iter()
        .filter_map(|state| Some(state.terminated.as_ref()?.message.as_str()));
    waiting.into_iter().chain(ended).find_map(|message| {
        let message = message.trim();
        if message.to_ascii_lowercase().contains(NO_PROGRAM) {
            return Some(Fault::Exec(message));
        }
        NO_PLATFORM
            .iter()
            .any(|words| message.contains(words))
            .then_some(Fault::Pull(message))
    })
}

/// The condition ImageVerified. `old` gives the time at which it last changed.
pub fn condition(facts: &Facts<'_>, pools: &[PoolStatus], old: Option<&HawkeyeDeploymentStatus>) -> Condition {
    let type_ = ConditionType::ImageVerified.as_str();
    let (status, reason, message) = image_verified(facts.plan, pools);
    let before = old
        .iter()
        .flat_map(|old| &old.conditions)
        .find(|before| before.type_ == type_ && before.status == status);
    Condition {
        type_: type_.to_owned(),
        status,
        observed_generation: facts.generation,
        last_transition_time: before
            .map_or(facts.now, |before| &before.last_transition_time)
            .to_owned(),
        reason: reason.as_str().to_owned(),
        message: shorten(&message),
    }
}

/// What pods say of their images first, then what registries say.
fn image_verified(plan: &Plan, pools: &[PoolStatus]) -> (ConditionStatus, Reason, String) {
    let reason = Reason::ImageArchitectureMissing;
    let failing: Vec<String> = pools
        .iter()
        .filter(|pool| pool.replicas > 0 && pool.reason == reason.as_str())
        .map(|pool| format!("{}: {}", pool.class, pool.message))
        .collect();
    if !failing.is_empty() {
        return (ConditionStatus::False, reason, failing.join(" "));
    }
    let Some(checks) = &plan.images else {
        let message = "Images are not looked up: imageVerification is off in the chart's values.";
        return (
            ConditionStatus::Unknown,
            Reason::VerificationDisabled,
            message.to_owned(),
        );
    };
    if plan.refused.is_some() {
        return (
            ConditionStatus::Unknown,
            plan.placed.0,
            "Nothing was planned.".to_owned(),
        );
    }
    let used: Vec<&PoolPlan> = plan.pools.iter().filter(|pool| pool.replicas > 0).collect();
    let kept = used.iter().filter_map(|pool| match &checks.get(&pool.class)?.verdict {
        Verdict::Kept(message) => Some((pool.class.as_str(), message.as_str())),
        Verdict::Has | Verdict::Missing(_) | Verdict::Unknown(..) => None,
    });
    let missing: Vec<String> = passed_over(plan, checks)
        .into_iter()
        .chain(kept)
        .map(|(class, message)| format!("{class}: {message}"))
        .collect();
    if !missing.is_empty() {
        return (ConditionStatus::False, reason, missing.join(" "));
    }
    let unknown: Vec<(Reason, &str)> = used
        .iter()
        .filter_map(|pool| match &checks.get(&pool.class)?.verdict {
            Verdict::Unknown(reason, message) => Some((*reason, message.as_str())),
            Verdict::Has | Verdict::Kept(_) | Verdict::Missing(_) => None,
        })
        .collect();
    if let Some((reason, _)) = unknown.first() {
        let mut messages: Vec<&str> = unknown.iter().map(|(_, message)| *message).collect();
        messages.dedup();
        return (ConditionStatus::Unknown, *reason, messages.join(" "));
    }
    let known: Vec<String> = used
        .iter()
        .filter_map(|pool| {
            let check = checks.get(&pool.class)?;
            Some(format!("{} for linux/{}", check.image, pool.spec.arch.as_str()))
        })
        .collect();
    if known.is_empty() {
        return (
            ConditionStatus::Unknown,
            plan.placed.0,
            "No image is in use.".to_owned(),
        );
    }
    (
        ConditionStatus::True,
        Reason::ImageVerified,
        format!("There is {}.", known.join(", ")),
    )
}

/// The classes that would have been given replicas but for their image. One after those that took every replica is
/// nobody's trouble.
fn passed_over<'a>(plan: &'a Plan, checks: &'a Checks) -> Vec<(&'a str, &'a str)> {
    plan.pools
        .iter()
        .enumerate()
        .filter(|(position, pool)| {
            let later = plan.pools.iter().skip(position + 1).any(|later| later.replicas > 0);
            pool.reason == Reason::ImageArchitectureMissing && (later || plan.unplaced > 0)
        })
        .filter_map(|(_, pool)| match &checks.get(&pool.class)?.verdict {
            Verdict::Missing(message) => Some((pool.class.as_str(), message.as_str())),
            Verdict::Has | Verdict::Kept(_) | Verdict::Unknown(..) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use hawkeye_crds::classes;
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::{super::Check, *};
    use crate::{
        controller::{
            images::barred,
            plan::{Request, plan_all},
        },
        hardware::{ClassIndex, ModelDefaults, NodeFacts},
    };

    fn pod(status: &Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "spec": {"nodeName": "spark-1", "containers": [
                {"name": "side", "image": "example.com/side:1"}, {"name": "inference", "image": "example.com/parser:1"},
            ]},
            "status": {"phase": "Running", "containerStatuses": [{"name": "side"}, status]},
        }))
        .unwrap()
    }

    #[rstest]
    #[case::containerd_pull(json!({"waiting": {"reason": "ErrImagePull", "message":
        "rpc error: code = NotFound desc = failed to pull and unpack image \"example.com/parser:1\": no match for platform \
         in manifest: not found"}}), "example.com/parser:1 was not built for linux/arm64: node spark-1 found nothing")]
    #[case::kubelet_backoff(json!({"waiting": {"reason": "ImagePullBackOff", "message":
        "Back-off pulling image \"example.com/parser:1\": ErrImagePull: no match for platform in manifest sha256:12: not found"
        }}), "example.com/parser:1 was not built for linux/arm64: node spark-1 found nothing")]
    #[case::the_models_image(json!({"waiting": {"reason": "ErrImagePull", "message":
        "failed to pull and unpack image \"example.com/bundle:1\": no match for platform in manifest: not found"}}),
        "example.com/bundle:1 was not built for linux/arm64")]
    #[case::the_models_image_by_digest(json!({"waiting": {"reason": "ErrImagePull", "message":
        "failed to pull and unpack image \"example.com/bundle@sha256:12\": no match for platform in manifest: not found"}}),
        "example.com/bundle:1@sha256:12 was not built for linux/arm64")]
    #[case::cri_o_pull(json!({"waiting": {"reason": "ErrImagePull", "message":
        "choosing image instance: no image found in image index for architecture \"arm64\", variant \"v8\", OS \"linux\""}}),
        "example.com/parser:1 was not built for linux/arm64: node spark-1 found nothing")]
    #[case::runc_runs_it(json!({"terminated": {"exitCode": 255, "reason": "Error", "message":
        "exec /usr/local/bin/hawkeye-inference: exec format error\n"}}),
        "example.com/parser:1 was not built for linux/arm64: node spark-1 cannot execute its program (exec /usr/local")]
    #[case::older_runc(json!({"terminated": {"exitCode": 1, "reason": "Error", "message":
        "standard_init_linux.go:228: exec user process caused: exec format error"}}), "cannot execute its program")]
    #[case::crun_creates_it(json!({"waiting": {"reason": "CreateContainerError", "message":
        "exec container process `/usr/local/bin/hawkeye-inference`: Exec format error"}}), "cannot execute its program")]
    fn failures_of_a_pod_name_image_architecture_and_node(#[case] state: Value, #[case] words: &str) {
        let now = pod(&json!({"name": "inference", "state": state}));
        let model = if words.contains('@') {
            "example.com/bundle:1@sha256:12"
        } else {
            "example.com/bundle:1"
        };
        let said = describe(&now, Arch::Arm64, Some(model)).unwrap();
        assert!(said.contains(words), "{said}");
        if state.get("terminated").is_some() {
            let waits = json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting"}});
            let before = pod(&json!({"name": "inference", "state": waits, "lastState": state}));
            assert_eq!(describe(&before, Arch::Arm64, None), Some(said));
        }
    }

    #[rstest]
    #[case(json!({"waiting": {"reason": "ErrImagePull", "message": "unauthorized"}}))]
    #[case(json!({"terminated": {"exitCode": 255, "message": "bundle.json: checksum does not match"}}))]
    #[case(json!({"running": {}}))]
    fn other_failures_are_not_about_the_architecture(#[case] state: Value) {
        let pod = pod(&json!({"name": "inference", "state": state}));
        assert_eq!(describe(&pod, Arch::Arm64, None), None);
    }

    fn node(name: &str, arch: &str) -> NodeFacts {
        NodeFacts {
            name: name.to_owned(),
            ready: true,
            labels: [("kubernetes.io/os", "linux"), ("kubernetes.io/arch", arch)]
                .map(|(key, value)| (key.into(), value.into()))
                .into(),
            ..NodeFacts::default()
        }
    }

    /// The plan for one replica on two CPU nodes, `cpu-arm64` first, with these verdicts.
    fn planned(spec: &str, verdicts: &[(&str, Verdict)]) -> Plan {
        let index = ClassIndex::new(
            &classes::built_in().unwrap(),
            &[node("arm", "arm64"), node("amd", "amd64")],
            |_, _| 0,
        );
        let spec = serde_saphyr::from_str(spec).unwrap();
        let checks: Checks = verdicts
            .iter()
            .map(|(class, verdict)| {
                let check = Check {
                    image: "example.com/parser:1".to_owned(),
                    verdict: verdict.clone(),
                };
                ((*class).to_owned(), check)
            })
            .collect();
        let request = Request {
            barred: barred(&checks),
            ..Request::new("u", "t", &spec)
        };
        let models = ModelDefaults {
            model: serde_json::from_value(json!({"image": {"reference": "example.com/bundle:1"}})).unwrap(),
        };
        let mut plan = plan_all(&[request], &index, &models, jiff::Timestamp::UNIX_EPOCH)
            .remove("u")
            .unwrap();
        plan.images = Some(checks);
        plan
    }

    fn missing() -> Verdict {
        Verdict::Missing("example.com/parser:1 was not built for linux/arm64, only for linux/amd64.".to_owned())
    }

    fn unknown() -> Verdict {
        Verdict::Unknown(Reason::ImageUnreadable, "Not known.".to_owned())
    }

    fn shares(plan: &Plan) -> Vec<(&str, u32)> {
        plan.pools
            .iter()
            .filter(|pool| pool.replicas > 0)
            .map(|pool| (pool.class.as_str(), pool.replicas))
            .collect()
    }

    #[test]
    fn a_tag_that_moves_to_what_cannot_run_is_said_and_moves_nothing() {
        let said = "example.com/bundle:1 was not built for linux/arm64. Its pods keep the content that they run.";
        let plan = planned(
            ORDER,
            &[
                ("cpu-arm64", Verdict::Kept(said.to_owned())),
                ("cpu-amd64", Verdict::Has),
            ],
        );
        assert_eq!(shares(&plan), [("cpu-arm64", 1)]);
        let (status, reason, message) = image_verified(&plan, &[]);
        assert_eq!(
            (status, reason),
            (ConditionStatus::False, Reason::ImageArchitectureMissing)
        );
        assert_eq!(message, format!("cpu-arm64: {said}"));
    }

    const ORDER: &str = "{classes: [cpu-arm64, cpu-amd64]}";

    #[test]
    fn a_class_whose_image_is_missing_is_passed_over_and_the_condition_says_why() {
        let plan = planned(ORDER, &[("cpu-arm64", missing()), ("cpu-amd64", Verdict::Has)]);
        assert_eq!(shares(&plan), [("cpu-amd64", 1)]);
        assert_eq!(plan.pools[0].reason, Reason::ImageArchitectureMissing);
        let (status, reason, message) = image_verified(&plan, &[]);
        assert_eq!(
            (status, reason),
            (ConditionStatus::False, Reason::ImageArchitectureMissing)
        );
        assert!(
            message.starts_with("cpu-arm64: example.com/parser:1 was not built for linux/arm64"),
            "{message}"
        );
    }

    #[test]
    fn without_another_class_the_replicas_stay_without_a_place() {
        let plan = planned("{classes: [cpu-arm64], replicas: 2}", &[("cpu-arm64", missing())]);
        assert_eq!((shares(&plan), plan.unplaced), (vec![], 2));
        assert_eq!(plan.placed.0, Reason::ImageArchitectureMissing);
        assert!(
            plan.placed.1.contains("2 of 2 replicas have no place"),
            "{}",
            plan.placed.1
        );
        assert!(plan.placed.1.contains("example.com/parser:1"), "{}", plan.placed.1);
        assert_eq!(image_verified(&plan, &[]).0, ConditionStatus::False);
    }

    #[test]
    fn unknown_blocks_nothing() {
        let plan = planned(ORDER, &[("cpu-arm64", unknown()), ("cpu-amd64", Verdict::Has)]);
        assert_eq!(shares(&plan), [("cpu-arm64", 1)]);
        let (status, reason, message) = image_verified(&plan, &[]);
        assert_eq!((status, reason), (ConditionStatus::Unknown, Reason::ImageUnreadable));
        assert_eq!(message, "Not known.");
    }

    #[test]
    fn a_class_that_is_not_needed_is_nobodys_trouble() {
        let plan = planned(
            "{classes: [cpu-amd64, cpu-arm64]}",
            &[("cpu-amd64", Verdict::Has), ("cpu-arm64", missing())],
        );
        assert_eq!(shares(&plan), [("cpu-amd64", 1)]);
        let (status, reason, message) = image_verified(&plan, &[]);
        assert_eq!((status, reason), (ConditionStatus::True, Reason::ImageVerified));
        assert_eq!(message, "There is example.com/parser:1 for linux/amd64.");
    }

    #[test]
    fn off_refused_and_unused_are_unknown() {
        let mut plan = planned("{replicas: 0}", &[("cpu-amd64", Verdict::Has)]);
        assert_eq!(image_verified(&plan, &[]).1, Reason::ScaledToZero);
        plan.images = None;
        let (status, reason, _) = image_verified(&plan, &[]);
        assert_eq!(
            (status, reason),
            (ConditionStatus::Unknown, Reason::VerificationDisabled)
        );
        let refused = planned("{classes: [nothing]}", &[]);
        assert_eq!(image_verified(&refused, &[]).1, Reason::UnknownClass);
    }
}
