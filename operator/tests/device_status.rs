//! What the status says about pods that were asked what they compute on.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::{collections::BTreeMap, sync::Arc};

use common::{images, index, model, node, plan, spec};
use hawkeye_crds::v1alpha1::{ConditionStatus, ConditionType, HawkeyeDeploymentStatus, Reason};
use hawkeye_operator::{
    controller::{
        apply::Applied,
        build::{self, Owner},
        device::{AskError, Difference, Verdict},
        observe::Pod,
        status::{Facts, status},
    },
    events::notices,
};
use serde_json::json;

const CAUSE: &str = "runs on cpu (CPU (x86_64)), not on cuda: no GPU is visible";

fn pod(name: &str, ready: bool) -> Arc<Pod> {
    let condition = json!({"type": "Ready", "status": if ready { "True" } else { "False" }});
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"hawkeye.bytebot.ai/class": "cuda-amd64"}},
            "status": {"phase": "Running", "conditions": [condition]},
        }))
        .unwrap(),
    )
}

fn differs(reason: Reason, text: &str) -> Verdict {
    Verdict::Differs(Difference {
        reason,
        text: text.to_owned(),
    })
}

/// The status of two replicas on x86 with NVIDIA, given the pods by name, readiness and what is known of them.
fn of(
    pods: &[(&str, bool, Verdict)],
    fallback: &str,
    old: Option<&HawkeyeDeploymentStatus>,
) -> HawkeyeDeploymentStatus {
    let yaml = format!("{{replicas: 2, device: Cuda, fallback: {fallback}}}");
    let mut gpu = node("x86-rtx");
    gpu.allocatable.insert("nvidia.com/gpu".into(), 2);
    let plan = plan(&yaml, &index(&[gpu]));
    let spec = spec(&yaml);
    let owner = Owner {
        namespace: "screens",
        name: "demo",
        uid: "u",
        spec: &spec,
    };
    let mut applied = Applied {
        service: true,
        ..Applied::default()
    };
    for mut deployment in build::build(&owner, &plan, &images(), &model(), None).deployments {
        deployment.metadata.generation = Some(1);
        let status = json!({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2});
        deployment.status = Some(serde_json::from_value(status).unwrap());
        applied.deployments.insert("cuda-amd64".into(), deployment);
    }
    let verdicts: BTreeMap<&str, Verdict> = pods.iter().map(|(name, _, verdict)| (*name, verdict.clone())).collect();
    let pods: Vec<Arc<Pod>> = pods.iter().map(|(name, ready, _)| pod(name, *ready)).collect();
    let facts = Facts {
        owner: &owner,
        generation: Some(1),
        plan: &plan,
        applied: Some(&applied),
        pods: &pods,
        verdict: &|pod: &Pod| verdicts[pod.name()].clone(),
        image_volume: true,
        blind_spot: None,
        now: "2026-01-01T00:00:00Z",
    };
    status(&facts, old)
}

fn condition(status: &HawkeyeDeploymentStatus, type_: ConditionType) -> (ConditionStatus, &str, &str) {
    let is_it = |condition: &&hawkeye_crds::v1alpha1::Condition| condition.type_ == type_.as_str();
    let found = status.conditions.iter().find(is_it).unwrap();
    (found.status, &found.reason, &found.message)
}

#[test]
fn all_verified() {
    let status = of(
        &[("a", true, Verdict::Verified), ("b", true, Verdict::Verified)],
        "Degrade",
        None,
    );
    let (verified, reason, _) = condition(&status, ConditionType::DeviceVerified);
    assert_eq!((verified, reason), (ConditionStatus::True, "Verified"));
    assert_eq!((status.pools[0].ready, status.pools[0].verified), (2, 2));
    assert_eq!(status.summary.as_deref(), Some("Ready"));
    assert_eq!(condition(&status, ConditionType::Degraded).0, ConditionStatus::False);
}

#[test]
fn a_gpu_pod_on_the_processor_serves_under_degrade_and_is_never_plain_ready() {
    let before = of(
        &[("a", true, Verdict::Verified), ("b", true, Verdict::Verified)],
        "Degrade",
        None,
    );
    let status = of(
        &[
            ("a", true, Verdict::Verified),
            ("b", true, differs(Reason::DeviceMismatch, CAUSE)),
        ],
        "Degrade",
        Some(&before),
    );
    for (type_, wanted) in [
        (ConditionType::DeviceVerified, ConditionStatus::False),
        (ConditionType::Degraded, ConditionStatus::True),
    ] {
        let (found, reason, message) = condition(&status, type_);
        assert_eq!((found, reason), (wanted, "DeviceMismatch"), "{type_}");
        assert_eq!(message, format!("Pod b {CAUSE}."), "{type_}");
    }
    assert_eq!(condition(&status, ConditionType::Available).0, ConditionStatus::True);
    let pool = &status.pools[0];
    assert_eq!(
        (pool.ready, pool.verified, pool.reason.as_str()),
        (2, 1, "DeviceMismatch")
    );
    assert!(pool.message.contains("no GPU is visible"), "{}", pool.message);
    assert_eq!(pool.on_cpu, 1);
    assert_eq!(status.pool_summary.as_deref(), Some("cuda-amd64 2/2 (1 on CPU)"));
    // An operator that starts anew and has not asked yet says the same.
    let asking = of(
        &[("a", true, Verdict::Pending), ("b", true, Verdict::Pending)],
        "Degrade",
        Some(&status),
    );
    assert_eq!(asking.pool_summary, status.pool_summary);
    assert_eq!(before.pool_summary.as_deref(), Some("cuda-amd64 2/2"));
    assert_eq!(status.summary.as_deref(), Some("Degraded"));
    // One warning, not one for each condition.
    let warnings: Vec<String> = notices(Some(&before), &status)
        .into_iter()
        .filter(|notice| notice.warning)
        .map(|notice| notice.reason)
        .collect();
    assert_eq!(warnings, ["Degraded"]);
}

#[test]
fn under_deny_it_is_not_ready_and_says_why() {
    let text = "came up without its device cuda and serves nothing: no GPU is visible";
    let denied = || differs(Reason::DeviceMismatch, text);
    let status = of(&[("a", false, denied()), ("b", false, denied())], "Deny", None);
    let (verified, reason, message) = condition(&status, ConditionType::DeviceVerified);
    assert_eq!((verified, reason), (ConditionStatus::False, "DeviceMismatch"));
    assert_eq!(message, format!("Pod a {text} (and 1 more)."));
    let (available, reason, message) = condition(&status, ConditionType::Available);
    assert_eq!((available, reason), (ConditionStatus::False, "DeviceMismatch"));
    assert!(message.contains("no GPU is visible"), "{message}");
    // Nothing serves on a lesser device.
    assert_eq!(condition(&status, ConditionType::Degraded).0, ConditionStatus::False);
    assert_eq!(status.summary.as_deref(), Some("DeviceMismatch"));
    assert_eq!(
        (status.pools[0].verified, status.pools[0].on_cpu),
        (0, 0),
        "it does not serve"
    );
    let warnings = notices(None, &status);
    assert!(
        warnings
            .iter()
            .any(|notice| notice.warning && notice.reason == "DeviceMismatch")
    );
}

#[test]
fn another_number_format_is_no_lesser_device_but_not_as_the_status_says() {
    let text = "computes in float32, not in float16: the bundle has no float16 file of it";
    let status = of(
        &[
            ("a", true, differs(Reason::SettingsMismatch, text)),
            ("b", true, Verdict::Verified),
        ],
        "Degrade",
        None,
    );
    let (verified, reason, message) = condition(&status, ConditionType::DeviceVerified);
    assert_eq!((verified, reason), (ConditionStatus::False, "SettingsMismatch"));
    assert!(message.contains("computes in float32"), "{message}");
    assert_eq!(condition(&status, ConditionType::Degraded).0, ConditionStatus::False);
    assert_eq!(status.summary.as_deref(), Some("SettingsMismatch"));
    assert_eq!(status.pools[0].verified, 1);
}

#[test]
fn silence_is_unknown_and_blocks_nothing() {
    let silent = || Verdict::Unknown(AskError::NoAnswer);
    let pods = [("b", true, silent()), ("a", true, silent())];
    let status = of(&pods, "Degrade", None);
    let (verified, reason, message) = condition(&status, ConditionType::DeviceVerified);
    assert_eq!((verified, reason), (ConditionStatus::Unknown, "NotVerified"));
    assert!(
        message.contains("2 of 2") && message.contains("of a: no answer on port 9989"),
        "{message}"
    );
    assert_eq!(status.pools[0].verified, 0);
    assert_eq!(status.pools[0].reason, "AllReady");
    assert_eq!(status.summary.as_deref(), Some("Ready"));
    // In whatever order they come.
    let [b, a] = pods;
    assert_eq!(of(&[a, b], "Degrade", Some(&status)), status);
}

#[test]
fn while_pods_are_asked_the_status_stays_as_it_was() {
    let pending = || Verdict::Pending;
    let first = of(&[("a", true, pending()), ("b", true, pending())], "Degrade", None);
    assert_eq!(
        condition(&first, ConditionType::DeviceVerified),
        (ConditionStatus::Unknown, "NotVerified", "The pods are being asked.")
    );
    let silent = || Verdict::Unknown(AskError::NoAnswer);
    for known in [
        of(
            &[("a", true, Verdict::Verified), ("b", true, Verdict::Verified)],
            "Degrade",
            None,
        ),
        of(&[("a", true, silent()), ("b", true, silent())], "Degrade", None),
        of(
            &[
                ("a", true, Verdict::Verified),
                ("b", true, differs(Reason::DeviceMismatch, CAUSE)),
            ],
            "Degrade",
            None,
        ),
    ] {
        // The operator starts again: nothing is written until it knows better.
        let restarted = of(
            &[("a", true, pending()), ("b", true, pending())],
            "Degrade",
            Some(&known),
        );
        assert_eq!(restarted, known);
    }
    let denied = || {
        differs(
            Reason::DeviceMismatch,
            "came up without its device cuda and serves nothing: no GPU",
        )
    };
    let known = of(&[("a", false, denied()), ("b", false, denied())], "Deny", None);
    let restarted = of(
        &[("a", false, pending()), ("b", false, pending())],
        "Deny",
        Some(&known),
    );
    assert_eq!(restarted, known);
    // A pod that only starts is nobody's business.
    let starting = of(
        &[
            ("a", true, Verdict::Verified),
            ("b", false, Verdict::Unknown(AskError::NoAnswer)),
        ],
        "Degrade",
        None,
    );
    assert_eq!(
        condition(&starting, ConditionType::DeviceVerified).0,
        ConditionStatus::True
    );
    assert_eq!(starting.pools[0].verified, 1);
}
