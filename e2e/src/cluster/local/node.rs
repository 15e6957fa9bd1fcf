//! Starts and runs programs in the node's namespaces.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    command,
    error::{IoContext, Result},
};

/// The search path of everything that runs for a cluster.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A node whose holder runs.
pub(super) struct Node {
    holder: i32,
    cgroup: PathBuf,
    logs: PathBuf,
}

impl Node {
    pub(super) fn new(holder: i32, cgroup: PathBuf, logs: PathBuf) -> Self {
        Self { holder, cgroup, logs }
    }

    /// The first process of the namespaces, as the host numbers it.
    pub(super) fn holder(&self) -> i32 {
        self.holder
    }

    /// A command that runs what is appended to it inside.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--mount", "--pid", "--target", &self.holder.to_string(), "--"]);
        command
    }

    /// Runs a program inside to its end.
    pub(super) fn run(&self, words: &[String]) -> Result<String> {
        command::run(self.command().args(words))
    }

    /// Runs `ip` inside.
    pub(super) fn ip(&self, words: &str) -> Result<()> {
        let words: Vec<_> = std::iter::once("ip")
            .chain(words.split(' '))
            .map(str::to_owned)
            .collect();
        self.run(&words).map(drop)
    }

    /// Starts a component that stays; the first process adopts it.
    pub(super) fn start(&self, name: &str, words: &[String]) -> Result<()> {
        let path = self.logs.join(format!("{name}.log"));
        let log = fs::OpenOptions::new().create(true).append(true).open(&path);
        let log = log.context(|| format!("creating {}", path.display()))?;
        let errors = log.try_clone().context(|| format!("{}", path.display()))?;
        // The cgroup comes first: whatever happens after, the process can be found.
        let script = r#"echo 0 > "$CGROUP/cgroup.procs"; unset CGROUP; cd /; setsid "$@" & "#;
        let mut starter = self.command();
        starter.args(["sh", "-ec", script, name]).args(words);
        let tools = words
            .first()
            .and_then(|program| Path::new(program).parent())
            .unwrap_or(Path::new("/"));
        starter
            .env_clear()
            .env("PATH", format!("{}:{PATH}", tools.display()))
            .env("CGROUP", &self.cgroup);
        starter
            .env("HOME", "/root")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors);
        let status = starter.status().context(|| format!("starting {name}"))?;
        if status.success() {
            return Ok(());
        }
        let output = fs::read_to_string(&path).unwrap_or_default();
        Err(crate::Error::Command {
            command: command::describe(&starter),
            status,
            output,
        })
    }
}
