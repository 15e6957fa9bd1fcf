//! What a pod says it computes on, against what its own template asks for. Pure.
//!
//! Its own template, not the newest plan: during a rollout the old pods are right as they are.

use std::sync::Arc;

use hawkeye_crds::v1alpha1::{ConditionStatus, Reason};
use serde::Deserialize;

use super::observe::Pod;

/// Longest text of a pod that goes into a message, in characters.
const CAUSE: usize = 300;

/// What a pod's template asks for, in the words of its environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// `cuda` or `cpu`.
    pub device: String,
    /// `float16`, `bfloat16` or `float32`.
    pub dtype: Option<String>,
    /// Image crops that share one batch.
    pub batch_size: Option<u32>,
}

/// What a pod answers at `/device`, as far as it is used. Of an image of the user's any part may be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Report {
    /// `loading`, `ready`, `denied` or `failed`.
    pub state: String,
    /// `cuda`, `mps` or `cpu`.
    pub device: Option<String>,
    /// The device's own name.
    pub device_name: Option<String>,
    /// Number format.
    pub dtype: Option<String>,
    /// Image crops that share one batch.
    pub batch_size: Option<u32>,
    /// Why it is not as it was asked for.
    pub cause: Option<String>,
}

/// Why a pod that was asked gave no report. Coarse on purpose: it stands in the status, which must not change when one
/// try times out and the next is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum AskError {
    /// No connection, or nothing came in time.
    #[error("no answer on port 9989 within 2 s")]
    NoAnswer,
    /// Another status than 200.
    #[error("it answers /device with status {0}")]
    Status(u16),
    /// Not a report.
    #[error("what it answers at /device is not a report")]
    Unreadable,
    /// It is ready and says for long that it still loads.
    #[error("it says at /device that it still loads")]
    Loading,
    /// There is nothing to ask.
    #[error("it has no address, or no container that is meant to compute")]
    NoTarget,
    /// The operator was told to ask nobody.
    #[error("the operator runs with --device-checks 0")]
    Off,
}

/// How a pod differs from its template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// `DeviceMismatch` or `SettingsMismatch`.
    pub reason: Reason,
    /// What the pod does, after its name as the subject.
    pub text: String,
}

/// What is known of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// About to be known: not asked yet.
    Pending,
    /// It loads its models, or is not even started.
    Loading,
    /// It runs as its template asks.
    Verified,
    /// It does not.
    Differs(Difference),
    /// It gives no report. It is asked again.
    Unknown(AskError),
}

/// The reason says that a pod differs from its template.
pub fn is_difference(reason: &str) -> bool {
    [Reason::DeviceMismatch, Reason::SettingsMismatch]
        .iter()
        .any(|difference| difference.as_str() == reason)
}

/// Compares a report with what was asked for.
pub fn compare(asked: &Asked, report: &Report) -> Verdict {
    let cause = |default: &str| {
        let text = report.cause.as_deref().unwrap_or(default);
        text.chars().take(CAUSE).collect::<String>()
    };
    let differs = |reason: Reason, text: String| Verdict::Differs(Difference { reason, text });
    if report.state == "denied" {
        let text = format!(
            "came up without its device {} and serves nothing: {}",
            asked.device,
            cause("it gives no cause")
        );
        return differs(Reason::DeviceMismatch, text);
    }
    let Some(device) = report.device.as_deref().filter(|_| report.state == "ready") else {
        return Verdict::Loading;
    };
    if device != asked.device {
        let name: String = report
            .device_name
            .iter()
            .flat_map(|name| name.chars())
            .take(64)
            .collect();
        let text = format!(
            "runs on {device} ({name}), not on {}: {}",
            asked.device,
            cause("it gives no cause")
        );
        return differs(Reason::DeviceMismatch, text);
    }
    if let (Some(asked), Some(dtype)) = (&asked.dtype, &report.dtype)
        && asked != dtype
    {
        let text = format!("computes in {dtype}, not in {asked}: {}", cause("it gives no cause"));
        return differs(Reason::SettingsMismatch, text);
    }
    if let (Some(asked), Some(size)) = (asked.batch_size, report.batch_size)
        && asked != size
    {
        return differs(
            Reason::SettingsMismatch,
            format!("has batches of {size}, not of {asked}"),
        );
    }
    Verdict::Verified
}

/// What is known of the pods of a pool, or of all.
#[derive(Debug, Default)]
pub struct Tally<'a> {
    ready: usize,
    verified: usize,
    /// Ready, and about to be known.
    pending: usize,
    /// Not ready, and not asked yet since they, or the operator, started.
    unasked: usize,
    unknown: Vec<(&'a str, AskError)>,
    differs: Vec<(&'a Pod, Difference)>,
}

impl<'a> Tally<'a> {
    /// Counts ready pods; of the others only those that are known to be wrong matter.
    pub fn new(pods: impl IntoIterator<Item = &'a Arc<Pod>>, verdict: impl Fn(&Pod) -> Verdict) -> Self {
        let mut tally = Self::default();
        for pod in pods {
            let ready = pod.ready();
            tally.ready += usize::from(ready);
            match verdict(pod) {
                Verdict::Differs(difference) => tally.differs.push((pod, difference)),
                Verdict::Pending if !ready => tally.unasked += 1,
                _ if !ready => {}
                Verdict::Pending | Verdict::Loading => tally.pending += 1,
                Verdict::Verified => tally.verified += 1,
                Verdict::Unknown(error) => tally.unknown.push((pod.name(), error)),
            }
        }
        // Pods come in any order; what is said about them must not change with it.
        tally.unknown.sort_unstable();
        tally
            .differs
            .sort_by(|(a, x), (b, y)| (x.reason, a.name()).cmp(&(y.reason, b.name())));
        tally
    }

    /// Pods that are verified. Where some are still being asked, as after a restart of the operator, `before` of them
    /// count until the answer is there.
    pub fn verified(&self, before: i32) -> i32 {
        let known = self.verified as i32;
        known.max(before.min(known + self.pending as i32))
    }

    /// Ready pods that compute on another device than their pool's; `before` counts as for [`Self::verified`].
    pub fn elsewhere(&self, before: i32) -> i32 {
        let known = self.differs.iter().filter(|one| is_elsewhere(one)).count() as i32;
        known.max(before.min(known + self.pending as i32))
    }

    /// Nothing is known to be wrong, and more is about to be known.
    pub fn asking(&self) -> bool {
        self.differs.is_empty() && self.pending + self.unasked > 0
    }

    /// The first pod that differs from its template, as a sentence without its end.
    pub fn difference(&self) -> Option<(Reason, String)> {
        told(self.differs.iter())
    }

    /// The same of pods that serve on another device than their pool's.
    pub fn serves_elsewhere(&self) -> Option<String> {
        told(self.differs.iter().filter(|one| is_elsewhere(one))).map(|(_, text)| text)
    }

    /// The condition `DeviceVerified`; `None` while pods are being asked, when it stays as it was.
    pub fn condition(&self) -> Option<(ConditionStatus, Reason, String)> {
        if let Some((reason, text)) = self.difference() {
            return Some((ConditionStatus::False, reason, format!("{text}.")));
        }
        if self.asking() {
            return None;
        }
        if self.ready == 0 {
            let message = "No pod is ready, so there is nothing to verify.".to_owned();
            return Some((ConditionStatus::Unknown, Reason::NotVerified, message));
        }
        if let Some((name, error)) = self.unknown.first() {
            let message = format!(
                "What {} of {} ready pods compute on is not known; of {name}: {error}.",
                self.unknown.len(),
                self.ready
            );
            return Some((ConditionStatus::Unknown, Reason::NotVerified, message));
        }
        let message = format!(
            "{} of {} ready pods run on the device of their pool, with its number format and batch size.",
            self.verified, self.ready
        );
        Some((ConditionStatus::True, Reason::Verified, message))
    }
}

fn is_elsewhere((pod, difference): &(&Pod, Difference)) -> bool {
    pod.ready() && difference.reason == Reason::DeviceMismatch
}

fn told<'t, 'p: 't>(mut differs: impl Iterator<Item = &'t (&'p Pod, Difference)>) -> Option<(Reason, String)> {
    let (pod, difference) = differs.next()?;
    let more = match differs.count() {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    Some((
        difference.reason,
        format!("Pod {} {}{more}", pod.name(), difference.text),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Asked {
        Asked {
            device: "cuda".into(),
            dtype: Some("bfloat16".into()),
            batch_size: Some(128),
        }
    }

    fn report(json: &str) -> Report {
        serde_json::from_str(json).unwrap()
    }

    fn difference(json: &str) -> (Reason, String) {
        match compare(&asked(), &report(json)) {
            Verdict::Differs(difference) => (difference.reason, difference.text),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn as_asked_is_verified() {
        let right = r#"{"state": "ready", "device": "cuda", "dtype": "bfloat16", "batch_size": 128, "more": [1]}"#;
        assert_eq!(compare(&asked(), &report(right)), Verdict::Verified);
        // What a template leaves open cannot differ, nor what an image does not tell.
        let open = Asked {
            device: "cuda".into(),
            ..Asked::default()
        };
        let other = r#"{"state": "ready", "device": "cuda", "dtype": "float32", "batch_size": 1}"#;
        assert_eq!(compare(&open, &report(other)), Verdict::Verified);
        let little = r#"{"state": "ready", "device": "cuda"}"#;
        assert_eq!(compare(&asked(), &report(little)), Verdict::Verified);
    }

    #[test]
    fn a_pod_that_loads_says_nothing_yet() {
        for text in [
            "{}",
            r#"{"state": "loading"}"#,
            r#"{"state": "failed", "cause": "no bundle"}"#,
        ] {
            assert_eq!(compare(&asked(), &report(text)), Verdict::Loading, "{text}");
        }
    }

    #[test]
    fn each_difference_is_named_with_its_cause() {
        let (reason, text) = difference(
            r#"{"state": "ready", "device": "cpu", "device_name": "CPU (x86_64)", "dtype": "float32", "batch_size": 16,
                "cause": "no GPU is visible"}"#,
        );
        assert_eq!(reason, Reason::DeviceMismatch);
        assert_eq!(text, "runs on cpu (CPU (x86_64)), not on cuda: no GPU is visible");
        let (reason, text) = difference(r#"{"state": "denied", "cause": "no GPU is visible"}"#);
        assert_eq!(reason, Reason::DeviceMismatch);
        assert!(text.contains("serves nothing: no GPU is visible"), "{text}");
        let (reason, text) = difference(r#"{"state": "ready", "device": "cuda", "dtype": "float32"}"#);
        assert_eq!(reason, Reason::SettingsMismatch);
        assert!(text.starts_with("computes in float32, not in bfloat16"), "{text}");
        let (reason, text) = difference(r#"{"state": "ready", "device": "cuda", "batch_size": 16}"#);
        assert_eq!(reason, Reason::SettingsMismatch);
        assert_eq!(text, "has batches of 16, not of 128");
    }

    #[test]
    fn what_a_pod_tells_is_cut() {
        let long = "x".repeat(10_000);
        let (_, text) = difference(&format!(
            r#"{{"state": "ready", "device": "cpu", "device_name": "{long}", "cause": "{long}"}}"#
        ));
        assert!(text.len() < 500, "{}", text.len());
    }
}
