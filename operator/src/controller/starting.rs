//! Pods on their way to ready: how far they are, why one does not get its model, and what one that ended said. Pure.

use std::sync::Arc;

use hawkeye_crds::v1alpha1::Reason;
use serde_json::Value;

use super::{
    build::model::FETCH,
    observe::{ContainerStatus, Pod, Terminated, condition_is},
};

/// Exit code of a program that does not know the subcommand that it was given.
const USAGE: i32 = 2;

fn fetcher(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status
        .init_container_statuses
        .iter()
        .find(|container| container.name == FETCH)
}

/// Why a pod's model is not there: the last try ended with an error, and no later one with success.
pub fn fetch_issue(pod: &Pod) -> Option<(Reason, String)> {
    let container = fetcher(pod)?;
    let ended = container
        .state
        .terminated
        .as_ref()
        .or(container.last_state.terminated.as_ref())?;
    if ended.exit_code == 0 {
        return None;
    }
    let why = match (ended.message.trim(), ended.reason.as_str(), ended.exit_code) {
        (_, "OOMKilled", _) => "it needs more memory than the pods' limit; raise overrides.<class>.memory".to_owned(),
        ("", _, USAGE) => "the image does not know `fetch`: it has to be hawkeye-inference of this release".to_owned(),
        ("", _, code) => format!("exit code {code}; see `kubectl logs POD -c {FETCH}`"),
        (message, ..) => message.trim_end_matches('.').to_owned(),
    };
    Some((
        Reason::ModelFetchFailed,
        format!("The model of spec.model.http cannot be had: {why}. It is tried again."),
    ))
}

/// What a container said last: the end of its log is its termination message. Ours writes lines of JSON, of which only the
/// error is said; another image's line is said as it is.
pub fn last_words(ended: &Terminated) -> Option<String> {
    let line = ended.message.trim().lines().next_back()?;
    let told: Value = serde_json::from_str(line).unwrap_or_default();
    let words = told["error"].as_str().or(told["message"].as_str()).unwrap_or(line);
    let words = words.trim().trim_end_matches('.');
    (!words.is_empty()).then(|| words.to_owned())
}

/// How far pods are that are not ready: ": 1 downloads its model, 2 wait for …", or nothing where there is nothing to say.
pub fn stages(pods: &[&Arc<Pod>]) -> String {
    let mut counts = [0_usize; 3];
    for pod in pods.iter().filter(|pod| !pod.ready()) {
        let fetching = fetcher(pod).is_some_and(|container| container.state.running.is_some());
        // A kubelet older than this condition does not set it.
        let unprepared = condition_is(&pod.status.conditions, "PodReadyToStartContainers", "False");
        if pod.spec.node_name.is_none() {
            counts[0] += 1;
        } else if fetching {
            counts[1] += 1;
        } else if unprepared {
            counts[2] += 1;
        }
    }
    let words = [
        "not yet on a node",
        "downloading the model",
        "waiting for the node to set up volumes and network (`kubectl describe pod` says what is missing)",
    ];
    let parts: Vec<String> = counts
        .iter()
        .zip(words)
        .filter(|(count, _)| **count > 0)
        .map(|(count, word)| format!("{count} {word}"))
        .collect();
    if parts.is_empty() {
        String::new()
    } else {
        format!(": {}", parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::ours(
        "{\"level\":\"INFO\",\"message\":\"loads\"}\n{\"message\":\"ended\",\"error\":\"m.pt has sha256 1.\"}\n",
        Some("m.pt has sha256 1")
    )]
    #[case::without_an_error(
        "{\"message\":\"stopped with requests in flight\"}",
        Some("stopped with requests in flight")
    )]
    #[case::another_image("starts\nTraceback: no such file\n\n", Some("Traceback: no such file"))]
    #[case::json_of_another_image("[1]", Some("[1]"))]
    #[case::silent(" \n", None)]
    fn the_last_line_of_a_log_says_why(#[case] message: &str, #[case] words: Option<&str>) {
        let ended = Terminated {
            message: message.to_owned(),
            ..Terminated::default()
        };
        assert_eq!(last_words(&ended).as_deref(), words);
    }
}
