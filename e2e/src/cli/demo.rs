//! `hawkeye-e2e demo`

use std::{path::Path, process::ExitCode};

use anyhow::{Context, Result};
use clap::Subcommand;
use hawkeye_e2e::{
    Cluster, Progress,
    demo::{self, Options},
};

/// From nothing to a parsed screenshot in a real cluster.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Clone, Copy, Subcommand)]
enum Action {
    /// Run the demo and leave the cluster up (the default)
    Up,
    /// Remove the demo's cluster and every trace of it
    Down,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match args.action.unwrap_or(Action::Up) {
        Action::Up => {
            let repository = Path::new(env!("CARGO_MANIFEST_DIR"))
                .parent()
                .context("this crate lies in no repository")?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(demo::run(&args.options, repository))?;
        }
        Action::Down => Cluster::new(&args.options.name, args.options.provider, Progress::new())?.down()?,
    }
    Ok(ExitCode::SUCCESS)
}
