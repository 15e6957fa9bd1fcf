//! Command line entry point.

mod backends;

use clap::Parser as _;
use hawkeye_inference::config::{
    BenchArgs, Cli, Command, DetectArgs, FetchArgs, LogFormat, ModelArgs, ParseArgs, ServeArgs,
};
use hawkeye_inference::detect::{Platform, Seen, vendor};
use hawkeye_inference::engine::with_causes;
use hawkeye_inference::processor::{Processor, Seen as SeenProcessor, Variable};
use hawkeye_inference::serve::Ended;
use hawkeye_inference::{bench, fetch, one_shot, service, telemetry};
use hawkeye_pipeline::device::DeviceChoice;
use hawkeye_torch::Device;
use std::io::{Write, stderr, stdout};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

// Pages of 16 and 64 KiB exist on ARM; this allocator takes the size at run time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let processor = Processor::new(&SeenProcessor::here());
    let model = match &cli.command {
        Command::Serve(args) => Some(&args.model),
        Command::Parse(args) => Some(&args.model),
        Command::Bench(args) => Some(&args.model),
        Command::Fetch(_) | Command::Detect(_) => None,
    };
    if cfg!(target_os = "linux")
        && let Some(model) = model
        && let Err(error) = begin_again(processor.variables(model.dtype.named()))
    {
        // It computes all the same, only more slowly.
        writeln!(stderr(), "hawkeye-inference: cannot set libtorch's variables: {error}").unwrap_or_default();
    }
    match cli.command {
        Command::Serve(args) => serve(&args, cli.log_format, processor),
        Command::Parse(args) => {
            telemetry::log(cli.log_format, "warn");
            parse(&args, processor)
        }
        Command::Fetch(args) => {
            telemetry::log(cli.log_format, "info");
            fetch(&args, cli.log_format)
        }
        Command::Detect(args) => {
            telemetry::log(cli.log_format, "warn");
            detect(args, &processor)
        }
        Command::Bench(args) => {
            telemetry::log(cli.log_format, "warn");
            bench(&args, processor)
        }
    }
}

/// Puts this program in its own place, same process, with those of `variables` that nobody has set. libtorch's libraries read
/// them when they are loaded, which was before `main`.
///
/// # Errors
/// When the program cannot be started again. Without an error it returns only if all were set.
fn begin_again(variables: Vec<Variable>) -> std::io::Result<()> {
    let missing: Vec<_> = variables
        .into_iter()
        .filter(|variable| variable.set(backends::environment).is_none())
        .filter_map(|variable| Some((variable.name, variable.value?)))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let program = std::env::current_exe()?;
    let mut arguments = std::env::args_os();
    let name = arguments.next();
    // Under a loader or an emulator that was called by name, the program is that one.
    if name.as_deref().map(Path::new).and_then(Path::file_name) != program.file_name() {
        let message = format!("this process is {}, not the program itself", program.display());
        return Err(std::io::Error::other(message));
    }
    let mut again = std::process::Command::new(program);
    if let Some(name) = name {
        again.arg0(name);
    }
    again.args(arguments);
    for (name, value) in missing {
        again.env(name, value);
    }
    Err(again.exec())
}

/// Exit codes: 0 every request was answered; 1 it could not start or go on, or requests were cut off.
fn serve(args: &ServeArgs, format: LogFormat, processor: Processor) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, 1),
    };
    let telemetry = match runtime.block_on(async { telemetry::log_and_traces(format, "info") }) {
        Ok(telemetry) => telemetry,
        Err(error) => return fail(&error, 1),
    };
    let ended = runtime.block_on(async {
        let load = backends::loader(&args.model, args.model.expectation(Some(&args.expect)), processor);
        let ended = service::run(args, load).await;
        telemetry.end().await;
        ended
    });
    // Work of clients that are gone is not waited for.
    runtime.shutdown_background();
    match ended {
        Ok(Ended::Drained) => {
            tracing::info!("stopped");
            leave(0)
        }
        Ok(Ended::Cut) => {
            tracing::warn!("stopped with requests in flight");
            leave(1)
        }
        // Who reads the log as JSON finds the reason there.
        Err(error) if format == LogFormat::Json => {
            tracing::error!(error = with_causes(&error), "ended");
            leave(1)
        }
        // The device thread may hang in libtorch, so this one does not return either.
        Err(error) => {
            fail(&error, 1);
            leave(1)
        }
    }
}

/// Ends the process without libtorch's exit handlers: the device thread may be inside of libtorch, and would crash when
/// they take its tables away.
fn leave(code: i32) -> ! {
    signal_hook::low_level::exit(code)
}

fn parse(args: &ParseArgs, processor: Processor) -> ExitCode {
    // One screenshot is no time to measure.
    let model = ModelArgs {
        tune: false,
        ..args.model.clone()
    };
    let load = backends::loader(&model, model.expectation(None), processor);
    match one_shot::run(args, || load(0), &mut stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, error.exit_code()),
    }
}

/// Exit codes: 0 the bundle is there; 1 no connection, a full disk; 3 what is served is not what was promised.
fn fetch(args: &FetchArgs, format: LogFormat) -> ExitCode {
    // As the first process of a container it would not end at a signal that nobody handles.
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        let always = Arc::new(AtomicBool::new(true));
        if let Err(error) = signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, always) {
            return fail(&error, 1);
        }
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, 1),
    };
    let Err(error) = runtime.block_on(fetch::run(args)) else {
        return ExitCode::SUCCESS;
    };
    fetch::leave_message(args, &with_causes(&error));
    if format == LogFormat::Json {
        tracing::error!(error = with_causes(&error), "ended");
        return ExitCode::from(error.exit_code());
    }
    fail(&error, error.exit_code())
}

fn detect(args: DetectArgs, processor: &Processor) -> ExitCode {
    // Always there: in the end the processor is taken.
    let device = match Device::open(DeviceChoice::Auto) {
        Ok(device) => device,
        Err(error) => return fail(&error, 1),
    };
    let platform = Platform::new(Seen {
        arch: std::env::consts::ARCH,
        os: std::env::consts::OS,
        device: device.kind(),
        device_name: device.name(),
        vendor: &vendor(),
        processor: &processor.report(device.kind(), None, hawkeye_torch::threads(), backends::environment),
    });
    let text = match platform.render(args.format) {
        Ok(text) => text,
        Err(error) => return fail(&error, 1),
    };
    match stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

fn bench(args: &BenchArgs, processor: Processor) -> ExitCode {
    let load = backends::loader(&args.model, args.model.expectation(None), processor);
    match bench::run(args, || load(0), &mut stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, 1),
    }
}

fn fail(error: &(dyn std::error::Error + 'static), code: u8) -> ExitCode {
    // Nothing can be done about a stderr that is gone.
    writeln!(stderr(), "hawkeye-inference: {}", with_causes(error)).unwrap_or_default();
    ExitCode::from(code)
}
