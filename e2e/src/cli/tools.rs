//! `hawkeye-e2e tools`

use std::process::ExitCode;

use anyhow::{Result, bail};
use hawkeye_e2e::{
    Cache, Progress,
    tools::{self, Group},
};

/// Which tools to build.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these groups; default: all but kubelet-arm64
    groups: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let groups = if args.groups.is_empty() {
        tools::ALL.to_vec()
    } else {
        named(&args.groups)?
    };
    let (cache, progress) = (Cache::from_env()?, Progress::new());
    tools::ensure(&cache, &groups, &progress)?;
    super::say(cache.tools().join("bin").display());
    Ok(ExitCode::SUCCESS)
}

fn named(names: &[String]) -> Result<Vec<Group>> {
    let all: Vec<Group> = tools::ALL.into_iter().chain([tools::KUBELET_ARM64]).collect();
    let find = |name: &String| {
        let Some(group) = all.iter().copied().find(|group| group.name == name) else {
            let names: Vec<_> = all.iter().map(|group| group.name).collect();
            bail!("no tool group `{name}`; there are: {}", names.join(", "));
        };
        Ok(group)
    };
    names.iter().map(find).collect()
}
