//! Runs programs and keeps what they said for the error message.

use std::{
    env,
    ffi::OsStr,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::error::{Error, IoContext, Result};

/// Runs a program to its end and returns its standard output.
///
/// # Errors
/// When it cannot be started or ends with an error; the message carries its output.
pub fn run(command: &mut Command) -> Result<String> {
    finish(command, Stdio::null(), "")
}

/// As [`run`], with `input` on standard input.
///
/// # Errors
/// As [`run`].
pub fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    finish(command, Stdio::piped(), input)
}

/// As [`run`], with a file on standard input.
///
/// # Errors
/// As [`run`].
pub fn run_with_file(command: &mut Command, input: File) -> Result<String> {
    finish(command, input.into(), "")
}

fn finish(command: &mut Command, stdin: Stdio, input: &str) -> Result<String> {
    let text = describe(command);
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context(|| text.clone())?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends before it has read everything says why itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().context(|| text.clone())?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let output_text = stdout + &String::from_utf8_lossy(&output.stderr);
    Err(Error::Command {
        command: text,
        status: output.status,
        output: output_text,
    })
}

/// cargo as the user would call it.
pub fn cargo() -> Command {
    cargo_at("cargo")
}

/// The cargo `program` as the user would call it. In a test this process carries cargo's own variables; build scripts would see them and run
/// again.
pub fn cargo_at(program: &str) -> Command {
    const KEPT: [&str; 6] = [
        "CARGO_HOME",
        "CARGO_TARGET_DIR",
        "CARGO_INCREMENTAL",
        "CARGO_BUILD_BUILD_DIR",
        "CARGO_BUILD_JOBS",
        "CARGO_TERM_COLOR",
    ];
    const SETTINGS: [&str; 6] = [
        "CARGO_NET_",
        "CARGO_HTTP_",
        "CARGO_PROFILE_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
        "CARGO_SOURCE_",
    ];
    let mut cargo = Command::new(program);
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let kept = KEPT.contains(&&*name) || SETTINGS.iter().any(|settings| name.starts_with(settings));
        if name.starts_with("CARGO") && !kept {
            cargo.env_remove(&*name);
        }
    }
    cargo
}

/// A command line to show to people.
pub fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let mut text = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    if text.len() > 300 {
        let end = (0..=300).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Whether there is a container engine that can be used.
pub fn engine_answers() -> bool {
    let mut docker = Command::new("docker");
    docker
        .arg("info")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    docker.status().is_ok_and(|status| status.success())
}

/// Finds a program in `$PATH` or in the system folders, which an ordinary user's path lacks.
pub fn find(program: impl AsRef<OsStr>) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    let mut candidates = env::split_paths(&path)
        .chain(system)
        .map(|folder| folder.join(program.as_ref()));
    candidates.find(|candidate| candidate.is_file())
}

/// `kubectl` for one cluster, never for the user's own.
#[derive(Debug, Clone)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    /// `program` is the kubectl to call.
    pub fn new(program: impl Into<PathBuf>, kubeconfig: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            kubeconfig: kubeconfig.into(),
        }
    }

    /// The kubeconfig that every call uses.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A command to add arguments to and run in one's own way.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        // The cluster is on this machine: never by way of a proxy.
        command.arg("--kubeconfig").arg(&self.kubeconfig).env("NO_PROXY", "*");
        // What it learns of the API goes with the cluster.
        if let Some(folder) = self.kubeconfig.parent() {
            command.env("KUBECACHEDIR", folder.join("kubectl"));
        }
        command
    }

    /// Runs `kubectl ARGS` and returns its standard output.
    ///
    /// # Errors
    /// When kubectl cannot be started or fails.
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<String> {
        run(self.command().args(args))
    }

    /// As [`Kubectl::run`] for questions that are asked again and again: gives up after 3 seconds.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub fn ask<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Result<String> {
        run(self.command().arg("--request-timeout=3s").args(args))
    }

    /// `kubectl apply` of a manifest.
    ///
    /// # Errors
    /// When kubectl cannot be started or fails.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        run_with_input(self.command().args(["apply", "-f", "-"]), manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_carries_command_and_output() {
        let error = run(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        for part in ["sh -c", "exit status: 3", "out", "err"] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn input_reaches_the_program() {
        assert_eq!(run_with_input(&mut Command::new("cat"), "hello").unwrap(), "hello");
    }

    #[test]
    fn long_command_lines_are_cut_at_a_character() {
        let text = describe(Command::new("echo").arg("ä".repeat(400)));
        assert!(text.len() < 320 && text.ends_with('…'));
    }
}
