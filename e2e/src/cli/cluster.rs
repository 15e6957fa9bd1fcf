//! `hawkeye-e2e cluster …`

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use hawkeye_e2e::{Cluster, NodeChoice, Progress, ProviderChoice, UpOptions};

/// Start, look at or remove a cluster.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which cluster: `demo` and `test` can run side by side
    #[arg(long, global = true, default_value = "demo")]
    name: String,
    /// kind needs a container engine, local needs Linux and root
    #[arg(long, global = true, value_enum, default_value = "auto")]
    provider: ProviderChoice,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Start the cluster afresh and wait until it is ready
    Up {
        /// Add nodes that exist only in the API: DGX Spark, GH200, Graviton and others
        #[arg(long)]
        fake_nodes: bool,
        /// Keep a cluster of that name that already answers
        #[arg(long)]
        keep: bool,
        /// Add a second real node, for arm64 pods: emulated by qemu where this machine is x86-64
        #[arg(long)]
        arm64: bool,
    },
    /// Remove every trace of the cluster
    Down,
    /// Say what runs and where
    Status,
    /// Make the images of an archive (OCI or docker) known to the node
    LoadImage {
        /// A tar file
        archive: PathBuf,
        /// To which node
        #[arg(long, value_enum, default_value_t)]
        node: NodeChoice,
    },
    /// Add the nodes that exist only in the API to a running cluster
    FakeNodes,
    /// Print the path of the kubeconfig
    Kubeconfig,
    /// Print the end of a component's log, or list the logs
    Logs {
        /// E.g. `kubelet`
        component: Option<String>,
        /// How many lines
        #[arg(long, default_value_t = 100)]
        tail: usize,
    },
    /// Run a command in a node's namespaces, e.g. `-- iptables-save`
    Exec {
        /// In which node
        #[arg(long, value_enum, default_value_t)]
        node: NodeChoice,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let cluster = Cluster::new(&args.name, args.provider, Progress::new())?;
    match args.action {
        Action::Up {
            fake_nodes,
            keep,
            arm64,
        } => {
            cluster.up(UpOptions {
                fake_nodes,
                keep,
                arm64,
            })?;
            super::say(format_args!(
                "export KUBECONFIG={}",
                cluster.kubeconfig_path().display()
            ));
        }
        Action::Down => cluster.down()?,
        Action::Status => {
            for (label, value) in cluster.facts()? {
                super::say(format_args!("{label:<13} {value}"));
            }
        }
        Action::LoadImage { archive, node } => cluster.load_image_on(node, &archive)?,
        Action::FakeNodes => cluster.add_fake_nodes()?,
        Action::Kubeconfig => {
            cluster.facts()?;
            super::say(cluster.kubeconfig_path().display());
        }
        Action::Logs { component, tail } => logs(&cluster, component.as_deref(), tail)?,
        Action::Exec { command, node } => {
            return Ok(if cluster.exec(node, &command)? {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn logs(cluster: &Cluster, component: Option<&str>, tail: usize) -> Result<()> {
    let folder = cluster.logs();
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let Some(component) = component else {
        super::say(names.join("\n"));
        return Ok(());
    };
    let Some(name) = names
        .iter()
        .find(|name| *name == component || **name == format!("{component}.log"))
    else {
        bail!("no log of `{component}`; there are: {}", names.join(", "));
    };
    let text = std::fs::read_to_string(folder.join(name)).with_context(|| format!("reading {name}"))?;
    let lines: Vec<_> = text.lines().collect();
    super::say(lines[lines.len().saturating_sub(tail)..].join("\n"));
    Ok(())
}
