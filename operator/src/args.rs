//! Command line and environment.

use std::{net::SocketAddr, time::Duration};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use hawkeye_crds::v1alpha1::{ModelSource, PullPolicy};

use crate::{
    hardware::{Images, ModelDefaults},
    registry::settings::VerifyArgs,
};

/// The release's image of pods that compute on CPUs.
pub const IMAGE_CPU: &str = concat!(
    "ghcr.io/bytebot-ai/hawkeye-inference:",
    env!("CARGO_PKG_VERSION"),
    "-cpu"
);
/// The release's image of pods that compute on NVIDIA GPUs.
pub const IMAGE_CUDA: &str = concat!(
    "ghcr.io/bytebot-ai/hawkeye-inference:",
    env!("CARGO_PKG_VERSION"),
    "-cuda"
);

/// Places the Hawkeye screen parser on whatever hardware a Kubernetes cluster has.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 120)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the operator against the cluster of the service account or kubeconfig
    Run(Box<RunArgs>),
    /// Print the CustomResourceDefinitions as YAML
    Crd {
        /// Also print the built-in HardwareClasses
        #[arg(long)]
        classes: bool,
    },
}

/// Settings of a running operator.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Image of pods that compute on CPUs
    #[arg(long, env = "HAWKEYE_IMAGE_CPU", default_value = IMAGE_CPU)]
    pub image_cpu: String,

    /// Image of pods that compute on NVIDIA GPUs
    #[arg(long, env = "HAWKEYE_IMAGE_CUDA", default_value = IMAGE_CUDA)]
    pub image_cuda: String,

    /// When pods pull their image
    #[arg(long, env = "HAWKEYE_IMAGE_PULL_POLICY", value_enum, default_value = "IfNotPresent")]
    pub image_pull_policy: PullPolicyArg,

    /// Model of HawkeyeDeployments that name none, as JSON of their field `model`; empty for none
    #[arg(long, env = "HAWKEYE_DEFAULT_MODEL", default_value = "", value_parser = parse_model)]
    pub default_model: DefaultModel,

    /// Which registries are asked about images
    #[command(flatten)]
    pub verify: VerifyArgs,

    /// Address that serves /livez, /readyz and /metrics
    #[arg(long, env = "HAWKEYE_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,

    /// Which replica leads
    #[command(flatten)]
    pub lease: LeaseArgs,

    /// Name of this pod, which events are reported by and the Lease is held under
    #[arg(long, env = "POD_NAME")]
    pub pod_name: Option<String>,

    /// Namespace of this pod, which the parsers' NetworkPolicies let in
    #[arg(long, env = "POD_NAMESPACE")]
    pub pod_namespace: Option<String>,

    /// Namespaces to look after, separated by commas; empty for all
    #[arg(long, env = "HAWKEYE_WATCH_NAMESPACES", value_delimiter = ',')]
    pub watch_namespaces: Vec<String>,

    /// Reconciles that run at the same time
    #[arg(long, env = "HAWKEYE_CONCURRENCY", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,

    /// How long a node whose labels vanished keeps its hardware class, e.g. 5m; 0s for not at all
    #[arg(long, env = "HAWKEYE_LABEL_GRACE", default_value = "5m", value_parser = parse_duration)]
    pub label_grace: Duration,
    /// Pods that are asked at the same time what they compute on; 0 asks none, and then no device is ever verified
    #[arg(long, env = "HAWKEYE_DEVICE_CHECKS", default_value_t = 16, value_parser = clap::value_parser!(u16).range(0..=256))]
    pub device_checks: u16,

    /// Form of the log on standard error; which lines it holds is set by RUST_LOG
    #[arg(long, env = "HAWKEYE_LOG_FORMAT", value_enum, default_value = "json")]
    pub log_format: LogFormat,
}

/// Settings of the leader election.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Leader election")]
pub struct LeaseArgs {
    /// Write only while holding a Lease; false is safe only when no other replica can run, not even during an upgrade
    #[arg(long, env = "HAWKEYE_LEADER_ELECTION", default_value_t = true, action = ArgAction::Set)]
    pub leader_election: bool,

    /// Name of the Lease
    #[arg(long, env = "HAWKEYE_LEASE_NAME", default_value = "hawkeye-operator")]
    pub lease_name: String,

    /// Namespace of the Lease [default: that of this pod, the service account or the kubeconfig]
    #[arg(long, env = "HAWKEYE_LEASE_NAMESPACE")]
    pub lease_namespace: Option<String>,

    /// How long others wait for a leader that no longer answers
    #[arg(long, env = "HAWKEYE_LEASE_DURATION", default_value = "20s", value_parser = parse_duration)]
    pub lease_duration: Duration,

    /// How long a leader goes on after its last successful renewal was sent; shorter than the lease duration
    #[arg(long, env = "HAWKEYE_LEASE_RENEW_DEADLINE", default_value = "15s", value_parser = parse_duration)]
    pub renew_deadline: Duration,

    /// Time between two tries to take or renew the Lease
    #[arg(long, env = "HAWKEYE_LEASE_RETRY_PERIOD", default_value = "2s", value_parser = parse_duration)]
    pub retry_period: Duration,
}

/// When images are pulled.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[allow(missing_docs)]
pub enum PullPolicyArg {
    #[value(name = "Always")]
    Always,
    #[value(name = "IfNotPresent")]
    IfNotPresent,
    #[value(name = "Never")]
    Never,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, ValueEnum)]
#[allow(missing_docs)]
pub enum LogFormat {
    Json,
    Text,
}

/// The model of HawkeyeDeployments that name none, if there is one. A type of its own, because clap takes a bare
/// `Option` for an argument that may be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DefaultModel(pub Option<ModelSource>);

impl RunArgs {
    /// The inference images.
    pub fn images(&self) -> Images {
        Images {
            cpu: self.image_cpu.clone(),
            cuda: self.image_cuda.clone(),
            pull_policy: match self.image_pull_policy {
                PullPolicyArg::Always => PullPolicy::Always,
                PullPolicyArg::IfNotPresent => PullPolicy::IfNotPresent,
                PullPolicyArg::Never => PullPolicy::Never,
            },
        }
    }

    /// What a spec without a model uses.
    pub fn models(&self) -> ModelDefaults {
        ModelDefaults {
            model: self.default_model.0.clone(),
        }
    }
}

/// A time span as settings write it: `5m`, `90s`.
///
/// # Errors
/// When it is none, or negative.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration: jiff::SignedDuration = text.trim().parse().map_err(|error: jiff::Error| error.to_string())?;
    Duration::try_from(duration).map_err(|_| "it must not be negative".to_owned())
}

/// The model that a setting names: JSON of the field `model`, or nothing.
///
/// # Errors
/// When it is neither.
pub fn parse_model(text: &str) -> Result<DefaultModel, String> {
    if matches!(text.trim(), "" | "null" | "{}") {
        return Ok(DefaultModel(None));
    }
    let model: ModelSource = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if !model.is_one() {
        return Err("it must have exactly one of image, persistentVolumeClaim and http".to_owned());
    }
    Ok(DefaultModel(Some(model)))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::hardware::grace::GRACE;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_grace_is_the_documented_one() {
        assert_eq!(parse_duration("5m"), Ok(GRACE));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
    }

    #[test]
    fn durations_are_written_as_in_kubernetes() {
        assert!(parse_duration("-5m").is_err() && parse_duration("5").is_err() && parse_duration("").is_err());
        assert_eq!(parse_duration("20s").unwrap(), Duration::from_secs(20));
        assert_eq!(parse_duration("1m30s").unwrap(), Duration::from_secs(90));
        assert_eq!(parse_duration("500ms").unwrap(), Duration::from_millis(500));
        assert!(parse_duration("-1s").is_err() && parse_duration("20").is_err());
    }

    #[test]
    fn the_default_model_is_checked_at_start() {
        assert_eq!(parse_model("").unwrap(), DefaultModel(None));
        assert_eq!(parse_model("{}").unwrap(), DefaultModel(None));
        let image = r#"{"image":{"reference":"a/b:c","pullPolicy":"Never"}}"#;
        assert_eq!(parse_model(image).unwrap().0.unwrap().image.unwrap().reference, "a/b:c");
        assert!(parse_model(r#"{"persistentVolumeClaim":{"claimName":"m"}}"#).is_ok());
        let http = r#"{"http":{"url":"https://a/b.tar","sha256":"0"},"revision":"2"}"#;
        let http = parse_model(http).unwrap().0.unwrap();
        assert_eq!(http.revision.as_deref(), Some("2"));
        assert_eq!(http.http.unwrap().max_size.0, "4Gi");
        for bad in [
            r#"{"image":{"reference":"a"},"persistentVolumeClaim":{"claimName":"m"}}"#,
            r#"{"image":{"reference":"a"},"http":{"url":"https://a/b.tar","sha256":"0"}}"#,
            r#"{"revision":"2"}"#,
            r#"{"imagE":{"reference":"a"}}"#,
            "a/b:c",
        ] {
            assert!(parse_model(bad).is_err(), "{bad}");
        }
    }
}
