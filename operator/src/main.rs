//! `hawkeye-operator run` and `hawkeye-operator crd`.
//!
//! The rights that `run` needs are listed in `rules.rs`.

use std::io::Write;

use anyhow::Context;
use clap::Parser;
use hawkeye_crds::{classes, crd};
use hawkeye_operator::{
    args::{Cli, Command},
    controller, telemetry,
};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Run(args) => {
            let telemetry = telemetry::init(args.log_format)?;
            let result = Box::pin(controller::run::run(*args)).await;
            telemetry.end().await;
            result
        }
        Command::Crd { classes } => print(classes),
    }
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
