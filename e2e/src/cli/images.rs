//! `hawkeye-e2e images …`

use std::{env, path::Path, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Subcommand, ValueEnum};
use hawkeye_e2e::{
    Cache, Progress,
    images::{self, Image, Variant},
};

/// Build the container images.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Bring the archives of the images up to date and print their paths
    Build {
        /// Only these; default: all three
        #[arg(long, value_enum)]
        only: Vec<Only>,
        /// Of the inference image
        #[arg(long, value_enum, default_value_t)]
        variant: Variant,
    },
    /// Bring the demo's model bundle up to date and print its folder
    Bundle,
}

#[derive(Clone, Copy, ValueEnum)]
enum Only {
    Operator,
    Inference,
    Bundle,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (cache, progress) = (Cache::from_env()?, Progress::new());
    let repository = env::current_dir().context("the current folder")?;
    anyhow::ensure!(
        Path::new("images/rootfs.sh").is_file(),
        "run this in the repository's root folder"
    );
    match &args.action {
        Action::Build { only, variant } => {
            let all = [Only::Operator, Only::Inference, Only::Bundle];
            let chosen = if only.is_empty() { &all[..] } else { only };
            let image = |only: &Only| match only {
                Only::Operator => Image::Operator,
                Only::Inference => Image::Inference(*variant),
                Only::Bundle => Image::Bundle,
            };
            let chosen: Vec<_> = chosen.iter().map(image).collect();
            for archive in images::build(&cache, &repository, &chosen, progress)? {
                super::say(archive.display());
            }
        }
        Action::Bundle => super::say(images::bundle(&cache, &repository, progress)?.display()),
    }
    Ok(ExitCode::SUCCESS)
}
