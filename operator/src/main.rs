//! `hawkeye-operator run` and `hawkeye-operator crd`.
//!
//! The rights that `run` needs are listed in `rules.rs`.

use std::{io::Write, thread};

use anyhow::Context;
use clap::Parser;
use hawkeye_crds::{classes, crd};
use hawkeye_operator::{
    args::{Cli, Command, RunArgs},
    controller, telemetry,
};
use tokio::runtime::Builder;

/// Most threads that work. The operator waits nearly always, and on a machine with a hundred cores as many threads, each with
/// a heap of its own, would take more memory than the cluster that it looks after.
const THREADS: usize = 4;

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Run(args) => {
            let cores = thread::available_parallelism().map_or(1, usize::from);
            let runtime = Builder::new_multi_thread()
                .worker_threads(cores.min(THREADS))
                .enable_all()
                .build()
                .context("no threads can be started")?;
            runtime.block_on(run(*args))
        }
        Command::Crd { classes } => print(classes),
    }
}

async fn run(args: RunArgs) -> anyhow::Result<()> {
    let telemetry = telemetry::init(args.log_format)?;
    let result = Box::pin(controller::run::run(args)).await;
    telemetry.end().await;
    result
}

fn print(with_classes: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for (_, definition) in crd::definitions()? {
        write!(out, "---\n{}", crd::to_yaml(&definition)?)?;
    }
    if with_classes {
        for (_, text) in classes::FILES {
            write!(out, "---\n{text}")?;
        }
    }
    out.flush().context("standard output was closed")
}
