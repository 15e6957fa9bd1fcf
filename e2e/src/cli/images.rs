//! `hawkeye-e2e images …`

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::{Subcommand, ValueEnum};
use hawkeye_e2e::{
    Cache, Progress,
    images::{self, Arch, Image, Variant},
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
        /// linux/amd64 or linux/arm64; default: this machine's
        #[arg(long, value_name = "OS/ARCH", default_value_t = Arch::HOST, hide_default_value = true)]
        platform: Arch,
        /// Each platform that this machine can build for, and an image index that joins them
        #[arg(long, conflicts_with = "platform")]
        all_platforms: bool,
    },
    /// Bring the demo's model bundle up to date and print its folder
    Bundle,
    /// Compile `kubectl hawkeye` for release and print its path
    Plugin {
        /// linux/amd64 or linux/arm64; default: this machine's
        #[arg(long, value_name = "OS/ARCH", default_value_t = Arch::HOST, hide_default_value = true)]
        platform: Arch,
    },
    /// Say what an archive of an image holds: platform, size, and for what each program and library in it is
    Inspect {
        /// `docker save` or OCI layout
        archive: PathBuf,
    },
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
        Action::Build {
            only,
            variant,
            platform,
            all_platforms,
        } => {
            let all = [Only::Operator, Only::Inference, Only::Bundle];
            let chosen = if only.is_empty() { &all[..] } else { only };
            let image = |only: &Only| match only {
                Only::Operator => Image::Operator,
                Only::Inference => Image::Inference(*variant),
                Only::Bundle => Image::Bundle,
            };
            let chosen: Vec<_> = chosen.iter().map(image).collect();
            let archives = if *all_platforms {
                every_platform(&cache, &repository, &chosen, progress)?
            } else {
                images::build_for(&cache, &repository, *platform, &chosen, progress)?
            };
            for archive in archives {
                super::say(archive.display());
            }
        }
        Action::Bundle => super::say(images::bundle(&cache, &repository, progress)?.display()),
        Action::Plugin { platform } => {
            super::say(images::plugin(&cache, &repository, *platform, progress)?.display());
        }
        Action::Inspect { archive } => inspect(archive)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds for this machine's architecture, for the other one if that works here, and joins them.
fn every_platform(cache: &Cache, repository: &Path, images: &[Image], progress: Progress) -> Result<Vec<PathBuf>> {
    let mut archives = images::build(cache, repository, images, progress)?;
    // The bundle is data: one archive serves all.
    let programs: Vec<Image> = images.iter().copied().filter(|image| *image != Image::Bundle).collect();
    let mut architectures = vec![Arch::HOST];
    let other = match Arch::HOST {
        Arch::Amd64 => Arch::Arm64,
        Arch::Arm64 => Arch::Amd64,
    };
    match images::can_build_for(cache, other) {
        Ok(()) => {
            archives.extend(images::build_for(cache, repository, other, &programs, progress)?);
            architectures.push(other);
        }
        Err(why) => progress.step(format!("left out: {why}")),
    }
    for image in programs {
        archives.push(images::join(cache, image, &architectures, progress)?);
    }
    Ok(archives)
}

fn inspect(archive: &Path) -> Result<()> {
    let contents = images::inspect(archive)?;
    super::say(format_args!("{}, {} bytes", contents.arch.platform(), contents.size));
    for (path, machine) in &contents.binaries {
        let name = [Arch::Amd64, Arch::Arm64]
            .into_iter()
            .find(|arch| arch.elf_machine() == *machine);
        let name = name.map_or_else(|| format!("ELF machine {machine}"), |arch| arch.name().to_owned());
        super::say(format_args!("{name:<6} {path}"));
    }
    anyhow::ensure!(
        contents.foreign().next().is_none(),
        "there are files for another architecture in it"
    );
    Ok(())
}
