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
    /// Only these groups; default: all
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
    let find = |name: &String| {
        let Some(group) = tools::ALL.into_iter().find(|group| group.name == name) else {
            bail!(
                "no tool group `{name}`; there are: {}",
                tools::ALL.map(|group| group.name).join(", ")
            );
        };
        Ok(group)
    };
    names.iter().map(find).collect()
}
