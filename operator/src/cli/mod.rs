//! `kubectl hawkeye`: what the operator would do and why, what runs where, and what each node is.
//!
//! It runs the operator's own steps (classify and plan), on files or on what a cluster holds, and writes nothing to it.

pub mod args;
pub mod error;
pub mod live;
pub mod objects;
pub mod plan;
pub mod read;
pub mod render;
pub mod report;
pub mod schema;
pub mod status;
pub mod table;
pub mod trim;

use std::io::{ErrorKind, Write};

use args::{Cli, Command, Output};
use error::Error;
use serde::Serialize;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is well: exit code 0.
    Good,
    /// Something is not placed, or not as it should be: exit code 2.
    NotAsItShouldBe,
}

impl From<bool> for Outcome {
    fn from(good: bool) -> Self {
        if good { Self::Good } else { Self::NotAsItShouldBe }
    }
}

/// Runs a command and writes what it has to say.
///
/// # Errors
/// When it could not do its work.
pub async fn run(cli: Cli, out: &mut impl Write) -> Result<Outcome, Error> {
    let width = table::width();
    let (text, outcome) = match cli.command {
        Command::Plan(args) => {
            let report = plan::plan(&args).await?;
            let table = || render::plan(&report, width, args.all_nodes);
            (format(args.output, &report, table)?, report.placed.into())
        }
        Command::Status(args) => {
            let report = status::status(&args).await?;
            let table = || status::render(&report, width);
            (format(args.output, &report, table)?, report.good.into())
        }
        Command::Classes(args) => {
            let report = plan::classes(&args).await?;
            let table = || render::classes(&report, width);
            (format(args.output, &report, table)?, Outcome::Good)
        }
    };
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // `| head` has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(outcome),
        other => other.map(|()| outcome).map_err(Error::Output),
    }
}

fn format<T: Serialize>(output: Output, report: &T, table: impl FnOnce() -> String) -> Result<String, Error> {
    let failed = |error: &dyn std::error::Error| Error::Serialise(error.to_string());
    match output {
        Output::Table => Ok(table()),
        Output::Json => serde_json::to_string_pretty(report)
            .map(|text| text + "\n")
            .map_err(|error| failed(&error)),
        Output::Yaml => serde_saphyr::to_string(report).map_err(|error| failed(&error)),
    }
}
