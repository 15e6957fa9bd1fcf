//! One module for each subcommand: its arguments and a `run`.

pub(crate) mod bench;
pub(crate) mod cluster;
pub(crate) mod demo;
pub(crate) mod images;
pub(crate) mod tools;

use std::io::Write;

/// Prints a result on standard output.
pub(crate) fn say(text: impl std::fmt::Display) {
    // A closed pipe (`| head`) is no error of ours.
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints why the command failed.
pub(crate) fn complain(error: &anyhow::Error) {
    let _ = writeln!(std::io::stderr(), "error: {error:#}");
}
