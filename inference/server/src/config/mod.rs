//! Flags and environment. Each setting is both; a flag wins over its variable.

mod values;

pub use self::values::DTypeChoice;
use self::values::{at_least_one, bytes, duration, fraction, sha256, size, web_address};
use crate::device::{Expectation, OnMismatch};
use crate::input::Settings;
use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use hawkeye_pipeline::device::{DeviceChoice, DeviceKind};
use hawkeye_pipeline::model::CaptionPrompt;
use hawkeye_pipeline::profile::{Profile, ProfileSettings};
use std::path::PathBuf;
use std::time::Duration;
use url::Url;

/// Screen parser with OmniParser's REST API.
#[derive(Debug, Parser)]
#[command(name = "hawkeye-inference", version, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Log format on stderr. What is logged: `RUST_LOG` (default `info`; for `parse`, `detect` and `bench`: `warn`).
    #[arg(
        long,
        global = true,
        env = "HAWKEYE_LOG_FORMAT",
        default_value = "text",
        ignore_case = true
    )]
    pub log_format: LogFormat,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the REST API
    Serve(Box<ServeArgs>),
    /// Parse one screenshot without a server
    Parse(Box<ParseArgs>),
    /// Download a model bundle, check it, and put it into a folder
    Fetch(Box<FetchArgs>),
    /// Print what kind of machine this is, for scripts
    Detect(DetectArgs),
    /// Measure a running service, or the models alone
    Bench(Box<BenchArgs>),
}

/// Log formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Settings of the models, the same for `serve` and `parse`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Models")]
pub struct ModelArgs {
    /// Folder of the model bundle (holds bundle.json)
    #[arg(long, env = "HAWKEYE_BUNDLE", value_name = "DIR", default_value = "/models")]
    pub bundle: PathBuf,
    /// Load a bundle that is marked testOnly, whose captions are made by random weights and mean nothing
    #[arg(long, env = "HAWKEYE_ALLOW_TEST_BUNDLE")]
    pub allow_test_bundle: bool,
    /// auto (the first that is there of CUDA, MPS, CPU), cuda, mps or cpu. One that is named and missing is an error,
    /// never a silent CPU
    #[arg(long, env = "OMNIPARSER_DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// Performance profile: SPEED (no OCR, at most 15 elements), BALANCED (25) or QUALITY (100)
    #[arg(long, env = "OMNIPARSER_PERFORMANCE_PROFILE", default_value = "BALANCED")]
    pub profile: Profile,
    /// Crops in one batch [default: by profile and device]
    #[arg(long, env = "OMNIPARSER_BATCH_SIZE", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub batch_size: Option<u32>,
    /// Number format of the weights: float32, float16, bfloat16, int8 (captions on a processor; the other models run in the fastest
    /// format), or auto (what is fastest on the device: bfloat16 on processors that multiply it). On a processor float16 becomes
    /// float32; a captioner that the bundle does not have in it runs in float32, with a warning; without int8 it is an error
    #[arg(long, env = "OMNIPARSER_MODEL_DTYPE", default_value = "float32")]
    pub dtype: DTypeChoice,
    /// On a processor, measure at the start which batch and which number of threads are fastest, unless they are set
    #[arg(long, env = "HAWKEYE_TUNE", value_name = "BOOL", default_value = "true", action = clap::ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub tune: bool,
    /// On CUDA, record the models as CUDA graphs; false launches every kernel by itself, more slowly
    #[arg(long, env = "HAWKEYE_CUDA_GRAPHS", value_name = "BOOL", default_value = "true", action = clap::ArgAction::Set, value_parser = BoolishValueParser::new())]
    pub cuda_graphs: bool,
    /// Threads that work on each GPU, each with models of its own: 2 answer more requests a second where they come side by side, and
    /// take twice the GPU's memory
    #[arg(long, env = "HAWKEYE_WORKERS_PER_GPU", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub workers_per_gpu: u8,
    /// Icons of a lower score are dropped, for requests that set no `min_confidence` of their own (0–1)
    #[arg(long, env = "OMNIPARSER_MIN_CONFIDENCE", value_name = "SCORE", default_value = "0.05", value_parser = fraction)]
    pub min_confidence: f32,
    /// Whether text is read: true or false [default: by profile]
    #[arg(long, env = "OMNIPARSER_ENABLE_OCR", value_name = "BOOL", value_parser = BoolishValueParser::new())]
    pub enable_ocr: Option<bool>,
    /// Most elements in an answer, text included, whatever the name says [default: by profile]
    #[arg(long, env = "OMNIPARSER_MAX_CAPTIONS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub max_captions: Option<u32>,
    /// What the captioner is asked about an icon: CAPTION or DETAILED_CAPTION [default: by profile]
    #[arg(long, env = "OMNIPARSER_CAPTION_PROMPT", value_name = "PROMPT")]
    pub caption_prompt: Option<CaptionPrompt>,
    /// Most elements in an answer of the basic mode
    #[arg(long, env = "OMNIPARSER_MAX_DETECTIONS", value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub max_detections: u32,
}

/// Options of `serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Settings of the models.
    #[command(flatten)]
    pub model: ModelArgs,
    /// What is expected of the device.
    #[command(flatten)]
    pub expect: ExpectArgs,
    /// Address to listen on
    #[arg(long, env = "OMNIPARSER_HOST", default_value = "0.0.0.0", help_heading = "HTTP")]
    pub host: String,
    /// Port to listen on
    #[arg(long, env = "OMNIPARSER_PORT", default_value_t = 9989, help_heading = "HTTP")]
    pub port: u16,
    /// Captions that are remembered, so that an icon that looks the same, pixel by pixel, is described once; 0 remembers none
    #[arg(
        long,
        env = "HAWKEYE_CROP_CACHE",
        value_name = "N",
        default_value_t = 8192,
        help_heading = "Models"
    )]
    pub crop_cache: usize,
    /// Limits of what is accepted.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// A client must have sent its headers within this time; also how long an idle connection is kept
    #[arg(long, env = "HAWKEYE_HEADER_TIMEOUT", value_name = "TIME", default_value = "30s", value_parser = duration, help_heading = "HTTP")]
    pub header_timeout: Duration,
    /// A client must have sent its request's body within this time; more is a 408
    #[arg(long, env = "HAWKEYE_BODY_TIMEOUT", value_name = "TIME", default_value = "30s", value_parser = duration, help_heading = "HTTP")]
    pub body_timeout: Duration,
    /// A client that takes nothing of its answer for this long is cut off
    #[arg(long, env = "HAWKEYE_WRITE_TIMEOUT", value_name = "TIME", default_value = "30s", value_parser = duration, help_heading = "HTTP")]
    pub write_timeout: Duration,
    /// How long the port still answers after SIGTERM, with /readyz saying no
    #[arg(long, env = "HAWKEYE_LAME_DUCK", value_name = "TIME", default_value = "3s", value_parser = duration, help_heading = "HTTP")]
    pub lame_duck: Duration,
    /// How long requests in flight may take to finish after that
    #[arg(long, env = "HAWKEYE_DRAIN_TIMEOUT", value_name = "TIME", default_value = "25s", value_parser = duration, help_heading = "HTTP")]
    pub drain_timeout: Duration,
}

/// What is expected of the device.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Device")]
pub struct ExpectArgs {
    /// Device that this process is meant for: cuda, mps or cpu [default: the one that --device names]
    #[arg(long, env = "HAWKEYE_EXPECT_DEVICE")]
    pub expect_device: Option<DeviceKind>,
    /// When it gets another one: exit with an error, deny (stay alive, but never be ready) or degrade (serve on the CPU
    /// and say so)
    #[arg(long, env = "HAWKEYE_ON_MISMATCH", default_value = "exit", ignore_case = true)]
    pub on_mismatch: OnMismatch,
    /// The device is taken for wedged when it works on one screenshot or batch for longer than this: the process ends with an error.
    /// After half of it, /readyz says no
    #[arg(long, env = "HAWKEYE_DEVICE_TIMEOUT", value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub device_timeout: Duration,
}

impl ModelArgs {
    /// The profile with what is set besides it, and what else a request may leave open.
    pub fn settings(&self) -> Settings {
        let profile = self.profile.settings();
        Settings {
            profile: ProfileSettings {
                ocr: self.enable_ocr.unwrap_or(profile.ocr),
                max_elements: self.max_captions.map_or(profile.max_elements, |count| count as usize),
                prompt: self.caption_prompt.unwrap_or(profile.prompt),
            },
            min_confidence: self.min_confidence,
            max_detections: self.max_detections as usize,
        }
    }

    /// What these settings ask for; without more of them a device that is named and missing is an error.
    pub fn expectation(&self, expect: Option<&ExpectArgs>) -> Expectation {
        Expectation {
            device: expect
                .and_then(|expect| expect.expect_device)
                .or_else(|| self.device.named()),
            dtype: self.dtype.named(),
            batch_size: self.batch_size.map(|size| size as usize),
            on_mismatch: expect.map_or(OnMismatch::Exit, |expect| expect.on_mismatch),
        }
    }
}

/// What a request may cost.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Largest request body (bytes, or with KiB, MiB); more is a 413
    #[arg(long, env = "HAWKEYE_MAX_BODY_BYTES", value_name = "BYTES", default_value = "32MiB", value_parser = bytes)]
    pub max_body_bytes: usize,
    /// Largest screenshot in pixels (width × height); more is a 413
    #[arg(long, env = "HAWKEYE_MAX_PIXELS", value_name = "N", default_value_t = 40_000_000)]
    pub max_pixels: u64,
    /// Requests to /parse held at once, those on the device included; more is a 429
    #[arg(long, env = "HAWKEYE_QUEUE", value_name = "N", default_value_t = 32, value_parser = at_least_one)]
    pub queue: usize,
    /// Crops held at once, those in the captioner included: icons of the requests that are held, as far as they are known, and
    /// what is expected of the others; more is a 429 [default: 50 batches for each device and worker]
    #[arg(long, env = "HAWKEYE_QUEUE_CROPS", value_name = "N", value_parser = at_least_one)]
    pub queue_crops: Option<usize>,
    /// How long a request may take, waiting included; more is a 504
    #[arg(long, env = "HAWKEYE_REQUEST_TIMEOUT", value_name = "TIME", default_value = "120s", value_parser = duration)]
    pub request_timeout: Duration,
}

/// Options of `parse`.
#[derive(Debug, Clone, Args)]
pub struct ParseArgs {
    /// Screenshot (PNG, JPEG, WebP or BMP); `-` reads stdin
    pub image: PathBuf,
    /// Write the screenshot with numbered boxes to this PNG file
    #[arg(short, long, value_name = "PNG")]
    pub output: Option<PathBuf>,
    /// Print the document that POST /parse answers, instead of a table
    #[arg(long)]
    pub json: bool,
    /// Settings of the models.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Leave `som_image` out of the JSON document
    #[arg(long, requires = "json")]
    pub no_som: bool,
    /// Do not read text
    #[arg(long)]
    pub no_ocr: bool,
    /// Boxes that overlap more than this are one (0–1)
    #[arg(long, value_name = "IOU", default_value = "0.1", value_parser = fraction)]
    pub iou_threshold: f32,
    /// Largest screenshot in pixels (width × height)
    #[arg(long, env = "HAWKEYE_MAX_PIXELS", value_name = "N", default_value_t = 40_000_000)]
    pub max_pixels: u64,
}

/// Options of `fetch`.
#[derive(Debug, Clone, Args)]
pub struct FetchArgs {
    /// Archive of the bundle's folder (.tar, .tar.gz or .tar.zst) over http or https
    #[arg(long, value_name = "URL", value_parser = web_address)]
    pub url: Url,
    /// sha256 of the archive, 64 lower case hexadecimal digits
    #[arg(long, value_name = "HEX", value_parser = sha256)]
    pub sha256: String,
    /// Folder that becomes the bundle. What is downloaded lies beside it until then, in a folder of its own
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Largest archive, and largest bundle in it (bytes, or with KiB, MiB, GiB)
    #[arg(long, value_name = "BYTES", default_value = "4GiB", value_parser = size)]
    pub max_bytes: u64,
    /// Tries in a row that bring nothing new; waits between them grow from 1 s to 30 s
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub attempts: u32,
    /// How long all of it may take
    #[arg(long, value_name = "TIME", default_value = "60m", value_parser = duration)]
    pub timeout: Duration,
    /// Also write the reason of a failure to this file (Kubernetes shows what is in /dev/termination-log)
    #[arg(long, value_name = "FILE")]
    pub message_file: Option<PathBuf>,
}

/// Options of `detect`.
#[derive(Debug, Clone, Copy, Args)]
pub struct DetectArgs {
    /// env: lines for a shell's eval; json: one object
    #[arg(long, default_value = "env", ignore_case = true)]
    pub format: DetectFormat,
}

/// Formats of `detect`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DetectFormat {
    /// `export NAME='value'` lines.
    Env,
    /// One object.
    Json,
}

/// Options of `bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// Screenshots (PNG, JPEG, WebP or BMP), used in turn
    #[arg(required = true)]
    pub images: Vec<PathBuf>,
    /// Service to measure, e.g. http://localhost:9989; without it the models are measured in this process, one screenshot after
    /// another, from the file to the encoded overlay
    #[arg(long, value_name = "URL", value_parser = web_address)]
    pub url: Option<Url>,
    /// Requests at a time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096), requires = "url")]
    pub concurrency: u32,
    /// How long to measure
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub duration: Duration,
    /// Parses before that, which do not count
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub warm_up: u32,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
    /// Name of the scenario in what is printed
    #[arg(long, value_name = "TEXT", default_value = "bench")]
    pub name: String,
    /// Ask for no annotated picture
    #[arg(long)]
    pub no_som: bool,
    /// Do not read text
    #[arg(long)]
    pub no_ocr: bool,
    /// Settings of the models, for a measurement without a service.
    #[command(flatten)]
    pub model: ModelArgs,
}

/// Variables of the Python service that are no settings here, and what takes their place.
const NOT_READ: [(&str, &str); 6] = [
    ("OMNIPARSER_WORKERS", "one process owns the device"),
    (
        "OMNIPARSER_WEIGHTS_DIR",
        "the models come from the bundle (HAWKEYE_BUNDLE)",
    ),
    (
        "OMNIPARSER_ICON_DETECT_DIR",
        "the models come from the bundle (HAWKEYE_BUNDLE)",
    ),
    (
        "OMNIPARSER_ICON_CAPTION_DIR",
        "the models come from the bundle (HAWKEYE_BUNDLE)",
    ),
    (
        "OMNIPARSER_IOU_THRESHOLD",
        "the request's iou_threshold counts, as it did there",
    ),
    ("OMNIPARSER_CACHE_MODELS", "the models always stay loaded"),
];

/// Of these names of variables, those that look like a setting of the service but are none, each with the reason.
pub fn not_read(names: impl Iterator<Item = String>) -> Vec<(String, String)> {
    use clap::CommandFactory as _;
    let cli = Cli::command();
    let known: Vec<&str> = cli
        .get_subcommands()
        .chain([&cli])
        .flat_map(clap::Command::get_arguments)
        .filter_map(|argument| argument.get_env()?.to_str())
        .collect();
    names
        .filter(|name| name.starts_with("OMNIPARSER_") && !known.contains(&name.as_str()))
        .map(|name| {
            let reason = NOT_READ.iter().find(|(known, _)| *known == name);
            let reason = reason.map_or("there is no such setting", |(_, reason)| reason);
            (name, reason.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use hawkeye_pipeline::bundle::DType;

    fn serve_args(args: &[&str]) -> Result<ServeArgs, clap::Error> {
        let cli = Cli::try_parse_from([&["hawkeye-inference", "serve"], args].concat())?;
        match cli.command {
            Command::Serve(args) => Ok(*args),
            _ => unreachable!("asked for serve"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_the_documents() {
        let args = serve_args(&[]).expect("no flag is required");
        assert_eq!((args.host.as_str(), args.port), ("0.0.0.0", 9989));
        assert_eq!(args.model.profile, Profile::Balanced);
        assert_eq!(args.model.device, DeviceChoice::Auto);
        assert!((args.model.min_confidence - 0.05).abs() < f32::EPSILON);
        assert_eq!(args.limits.max_body_bytes, 32 * 1024 * 1024);
        assert_eq!((args.limits.queue, args.limits.queue_crops), (32, None));
        assert_eq!(args.crop_cache, 8192);
    }

    #[test]
    fn values_are_accepted_in_any_case() {
        let args = serve_args(&["--device", "CUDA", "--profile", "speed", "--dtype", "BFloat16"]).expect("valid");
        assert_eq!(args.model.device, DeviceChoice::Only(DeviceKind::Cuda));
        assert_eq!(args.model.profile, Profile::Speed);
        assert_eq!(args.model.dtype, DTypeChoice::Only(DType::BFloat16));
        let auto = serve_args(&["--dtype", "Auto"]).expect("valid").model;
        assert_eq!((auto.dtype, auto.expectation(None).dtype), (DTypeChoice::Auto, None));
        assert!(serve_args(&["--dtype", "int4"]).is_err());
    }

    #[test]
    fn what_is_set_wins_over_the_profile() {
        let settings = |args: &[&str]| serve_args(args).expect("valid").model.settings();
        assert_eq!(settings(&["--profile", "speed"]).profile, Profile::Speed.settings());
        let set = settings(&[
            "--profile",
            "SPEED",
            "--enable-ocr",
            "yes",
            "--max-captions",
            "40",
            "--caption-prompt",
            "<detailed_caption>",
            "--max-detections",
            "7",
        ]);
        let wanted = ProfileSettings {
            ocr: true,
            max_elements: 40,
            prompt: CaptionPrompt::DetailedCaption,
        };
        assert_eq!((set.profile, set.max_detections), (wanted, 7));
        assert!(!settings(&["--enable-ocr", "0"]).profile.ocr);
    }

    #[test]
    fn variables_that_are_no_settings_are_named() {
        let names = ["OMNIPARSER_PORT", "OMNIPARSER_WORKERS", "OMNIPARSER_PROT", "PATH"].map(str::to_owned);
        let found = not_read(names.into_iter());
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["OMNIPARSER_WORKERS", "OMNIPARSER_PROT"]);
        assert_eq!(found[1].1, "there is no such setting");
    }

    #[test]
    fn a_device_that_is_named_is_expected() {
        let expectation = |args: &[&str]| {
            let args = serve_args(args).expect("valid");
            args.model.expectation(Some(&args.expect))
        };
        assert_eq!(expectation(&[]).device, None);
        assert_eq!(expectation(&["--device", "cuda"]).device, Some(DeviceKind::Cuda));
        let both = expectation(&["--device", "cpu", "--expect-device", "Cuda", "--on-mismatch", "DENY"]);
        assert_eq!(
            (both.device, both.on_mismatch),
            (Some(DeviceKind::Cuda), OnMismatch::Deny)
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            ["--min-confidence", "1.5"],
            ["--min-confidence", "NaN"],
            ["--queue", "0"],
            ["--queue-crops", "0"],
            ["--crop-cache", "-1"],
            ["--request-timeout", "5h"],
            ["--request-timeout", "-1s"],
            ["--max-body-bytes", "lots"],
            ["--batch-size", "0"],
            ["--device", "tpu"],
            ["--expect-device", "auto"],
            ["--on-mismatch", "shrug"],
            ["--enable-ocr", "perhaps"],
            ["--max-captions", "0"],
            ["--caption-prompt", "OCR"],
            ["--max-detections", "-1"],
            ["--body-timeout", "soon"],
        ] {
            assert!(serve_args(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn fetch_takes_web_addresses_and_sums_only() {
        let sum = "0".repeat(64);
        let parse = |url: &str, sum: &str| {
            Cli::try_parse_from(["x", "fetch", "--url", url, "--sha256", sum, "--out", "/models/bundle"]).map(|_| ())
        };
        assert!(parse("https://example.com/bundle.tar.gz?signature=a", &sum).is_ok());
        assert!(parse("http://10.0.0.1:8080/b.tar", &sum).is_ok());
        for url in [
            "file:///etc/passwd",
            "ftp://a/b",
            "bundle.tar",
            "https://user:pass@a/b",
            "https://user@a/b",
        ] {
            assert!(parse(url, &sum).is_err(), "{url}");
        }
        for sum in ["", "abc", &"A".repeat(64), &"0".repeat(63)] {
            assert!(parse("https://a/b", sum).is_err(), "{sum}");
        }
    }

    #[test]
    fn the_reference_page_has_every_flag_variable_and_default() {
        let page = include_str!("../../../../docs/src/reference/inference-settings.md");
        let commands = Cli::command();
        for command in commands.get_subcommands().chain([&commands]) {
            for argument in command.get_arguments() {
                let Some(long) = argument.get_long().filter(|long| !["help", "version"].contains(long)) else {
                    continue;
                };
                assert!(page.contains(&format!("`--{long}`")), "--{long}");
                let Some(variable) = argument.get_env().and_then(|name| name.to_str()) else {
                    continue;
                };
                let default = argument.get_default_values().iter().find_map(|value| value.to_str());
                let row = page
                    .lines()
                    .find(|line| line.contains(&format!("`--{long}` | `{variable}`")));
                let row = row.unwrap_or_else(|| panic!("no row for --{long} and {variable}"));
                assert!(
                    default.is_none_or(|value| row.contains(&format!("| `{value}` |"))),
                    "{default:?}: {row}"
                );
            }
        }
    }
}
