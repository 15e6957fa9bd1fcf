//! `hawkeye-operator run` and `hawkeye-operator crd`.
//!
//! Rules that `run` needs; the chart grants exactly these:
//!
//! | API group | resources | verbs | scope |
//! |---|---|---|---|
//! | core | nodes | get, list, watch | cluster |
//! | core | pods | list, watch | cluster |
//! | core | services | get, list, watch, create, patch, delete | cluster |
//! | apps | deployments | get, list, watch, create, patch, delete | cluster |
//! | hawkeye.bytebot.ai | hardwareclasses | get, list, watch | cluster |
//! | hawkeye.bytebot.ai | hardwareclasses/status | patch | cluster |
//! | hawkeye.bytebot.ai | hawkeyedeployments | get, list, watch | cluster |
//! | hawkeye.bytebot.ai | hawkeyedeployments/status | patch | cluster |
//! | hawkeye.bytebot.ai | hawkeyedeployments/finalizers | update | cluster |
//! | events.k8s.io | events | create, patch | cluster |
//!
//! `finalizers` is for clusters that check `blockOwnerDeletion` (OpenShift). No secrets, no wildcard.

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
            telemetry::init(args.log_format);
            controller::run::run(*args).await
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
