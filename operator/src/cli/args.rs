//! The command line of the plugin.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use hawkeye_crds::v1alpha1::ModelSource;

/// What the screen parser runs on, and why
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-hawkeye",
    bin_name = "kubectl hawkeye",
    version,
    about,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 all is well, 1 it could not be found out, 2 something is not placed or not as it should be."
)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say what the operator would do with a HawkeyeDeployment, and why, without doing it
    Plan(Box<PlanArgs>),
    /// Show what runs where, and what is not as it should be
    Status(StatusArgs),
    /// List the hardware classes and the nodes that belong to each
    Classes(ClassesArgs),
}

/// How to reach the cluster, as kubectl takes it.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// Path of the kubeconfig file; left out: $KUBECONFIG, else ~/.kube/config, else the service account of this pod
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Context of the kubeconfig; left out: its current one
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people, as wide as the terminal
    #[default]
    Table,
    /// For programs; the shape is documented and stays
    Json,
    /// The same as YAML
    Yaml,
}

/// `plan`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  # Before it is applied: against the cluster of the current context
  kubectl hawkeye plan -f parser.yaml

  # Without a cluster: against nodes that someone saved (JSON is read faster than YAML)
  kubectl get nodes -o json > nodes.json
  kubectl hawkeye plan -f parser.yaml --nodes nodes.json

  # Also count the GPUs that other pods hold, and use classes of your own
  kubectl hawkeye plan -f parser.yaml --nodes nodes.json --pods pods.json --classes classes.yaml

  # Only what each node is
  kubectl hawkeye plan --nodes nodes.json --all-nodes

  # In a script: 2 says that something has no place
  kubectl hawkeye plan -f parser.yaml -o json | jq '.deployments[].pools'

Exit codes: 0 every replica has a place, 1 an error, 2 something has no place.")]
pub struct PlanArgs {
    /// File with HawkeyeDeployments, YAML or JSON, several documents or a List; `-` reads standard input. May be given
    /// several times. Left out: those of the cluster
    #[arg(short, long, value_name = "FILE")]
    pub filename: Vec<PathBuf>,

    /// File with nodes, as `kubectl get nodes -o json` or `-o yaml` writes it: then no cluster is asked
    #[arg(long, value_name = "FILE")]
    pub nodes: Vec<PathBuf>,

    /// File with pods, as `kubectl get pods -A -o json` writes it: what they hold is not free. Only with --nodes
    #[arg(long, value_name = "FILE", requires = "nodes")]
    pub pods: Vec<PathBuf>,

    /// File with HardwareClasses to use instead of the cluster's. Left out with --nodes: the built-in ones
    #[arg(long, value_name = "FILE")]
    pub classes: Vec<PathBuf>,

    /// Model of HawkeyeDeployments that name none: an image reference, or JSON of their field `model`. Left out: that of
    /// the cluster's operator; with --nodes none
    #[arg(long, value_name = "MODEL", value_parser = parse_model)]
    pub default_model: Option<ModelSource>,

    /// Image of pods that compute on CPUs. Left out: that of the cluster's operator; with --nodes this release's
    #[arg(long, value_name = "IMAGE")]
    pub image_cpu: Option<String>,

    /// Image of pods that compute on NVIDIA GPUs. Left out: as above
    #[arg(long, value_name = "IMAGE")]
    pub image_cuda: Option<String>,

    /// Namespace of HawkeyeDeployments whose file names none. Left out: that of the context
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,

    /// In the table, list each node instead of one line for all that are alike
    #[arg(long)]
    pub all_nodes: bool,

    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,

    /// How to reach the cluster
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// `status`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl hawkeye status                  # of the context's namespace
  kubectl hawkeye status parser -n prod
  kubectl hawkeye status -A -o json

Exit codes: 0 all is as it should be, 1 an error, 2 something is not.")]
pub struct StatusArgs {
    /// Names of HawkeyeDeployments. Left out: all
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,

    /// Namespace. Left out: that of the context
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,

    /// Every namespace
    #[arg(short = 'A', long, conflicts_with_all = ["namespace", "names"])]
    pub all_namespaces: bool,

    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,

    /// How to reach the cluster
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// `classes`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  kubectl hawkeye classes
  kubectl hawkeye classes --nodes nodes.json                 # no cluster; the built-in classes
  kubectl hawkeye classes --nodes nodes.json --classes mine.yaml -o yaml")]
pub struct ClassesArgs {
    /// File with nodes, as `kubectl get nodes -o json` or `-o yaml` writes it: then no cluster is asked
    #[arg(long, value_name = "FILE")]
    pub nodes: Vec<PathBuf>,

    /// File with HardwareClasses to use instead of the cluster's. Left out with --nodes: the built-in ones
    #[arg(long, value_name = "FILE")]
    pub classes: Vec<PathBuf>,

    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,

    /// How to reach the cluster
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

fn parse_model(text: &str) -> Result<ModelSource, String> {
    let json = if text.trim_start().starts_with('{') {
        text.to_owned()
    } else {
        serde_json::json!({"image": {"reference": text}}).to_string()
    };
    match crate::args::parse_model(&json)?.0 {
        Some(model) => Ok(model),
        None => Err("it names no model".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_default_model_is_a_reference_or_json() {
        let reference = |text: &str| parse_model(text).unwrap().image.unwrap().reference;
        assert_eq!(reference("example.com/bundle:v2"), "example.com/bundle:v2");
        assert_eq!(reference(r#"{"image": {"reference": "a/b"}}"#), "a/b");
        for bad in ["{}", r#"{"claim": "x"}"#, "{"] {
            assert!(parse_model(bad).is_err(), "{bad}");
        }
    }
}
