//! Command line entry point: `hawkeye-e2e demo | cluster | images | tools | bench …`.

mod cli;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "hawkeye-e2e",
    version,
    about = "Brings up a cluster, loads images, runs the end-to-end suites"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install Hawkeye in a cluster of its own and parse a screenshot
    Demo(cli::demo::Args),
    /// Build the cluster's programs from pinned sources; returns at once when they are there
    Tools(cli::tools::Args),
    /// Start, look at or remove a cluster
    Cluster(cli::cluster::Args),
    /// Build the container images and the demo's model bundle
    Images(cli::images::Args),
    /// Measure what the operator costs in clusters of thousands of fake nodes
    Bench(cli::bench::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(args) => cli::demo::run(&args),
        Command::Tools(args) => cli::tools::run(&args),
        Command::Cluster(args) => cli::cluster::run(args),
        Command::Images(args) => cli::images::run(&args),
        Command::Bench(args) => cli::bench::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            cli::complain(&error);
            ExitCode::FAILURE
        }
    }
}
