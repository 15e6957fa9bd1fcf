//! `kubectl hawkeye`: plan, status and classes, as a plugin of kubectl.

use std::process::ExitCode;

use clap::Parser;
use hawkeye_operator::cli::{self, Outcome, args::Cli};

#[tokio::main]
#[allow(clippy::print_stderr, reason = "errors of a command line go there")]
async fn main() -> ExitCode {
    let arguments = match Cli::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nobody is left to tell when this fails. clap's own code for misuse is 2, which means something else here.
            let _printed = error.print();
            return if error.use_stderr() {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match cli::run(arguments, &mut std::io::stdout().lock()).await {
        Ok(Outcome::Good) => ExitCode::SUCCESS,
        Ok(Outcome::NotAsItShouldBe) => ExitCode::from(2),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
