//! `hawkeye-e2e bench operator`

use std::{path::Path, process::ExitCode};

use anyhow::{Context, Result};
use clap::Subcommand;
use hawkeye_e2e::bench::{self, Options};

/// Measure.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Time to place, requests, CPU, memory, restart and idle writes for each size of cluster
    Operator(Options),
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let Action::Operator(options) = &args.action;
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("this crate lies in no repository")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(bench::run(options, repository))?;
    Ok(ExitCode::SUCCESS)
}
