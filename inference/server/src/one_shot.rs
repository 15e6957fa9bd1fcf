//! `parse`: one screenshot, without a server.

use crate::api::ParseResponse;
use crate::config::ParseArgs;
use crate::engine::{LoadError, ModelInfo};
use crate::input::Options;
use crate::steps::Steps;
use crate::table;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hawkeye_pipeline::decode::{DecodeError, DecodeLimits, decode};
use hawkeye_pipeline::overlay::{EncodeError, draw_marks, encode_png};
use hawkeye_pipeline::parser::{ParseError, Parsed, Parser};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Largest file that is read, bytes. `--max-pixels` is the limit that counts; this one keeps a wrong path from filling memory.
const MAX_FILE: u64 = 1 << 30;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum OneShotError {
    /// The screenshot cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// `standard input` or a path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// What was read is no screenshot that we take.
    #[error("{path}: {source}")]
    Image {
        /// `standard input` or a path.
        path: String,
        /// Why.
        source: DecodeError,
    },
    /// The models cannot be loaded.
    #[error("cannot load the models")]
    Load(#[source] LoadError),
    /// The models failed.
    #[error("cannot parse the screenshot")]
    Parse(#[from] ParseError),
    /// The annotated picture cannot be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The document cannot be written as JSON.
    #[error("cannot write the document")]
    Json(#[from] serde_json::Error),
    /// The annotated picture or the result cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// `standard output` or a path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl OneShotError {
    /// The process's exit code: 3 for what is wrong with the screenshot, else 1. (2 is a wrong command line.)
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Read { .. } | Self::Image { .. } => 3,
            _ => 1,
        }
    }
}

/// Reads the screenshot, loads the models, parses, and writes the result to `out` and the annotated picture to its file.
///
/// # Errors
/// [`OneShotError`]; the screenshot is looked at before the models are loaded.
pub fn run<L>(args: &ParseArgs, load: L, out: &mut impl Write) -> Result<(), OneShotError>
where
    L: FnOnce() -> Result<(Parser, ModelInfo), LoadError>,
{
    let (name, bytes) = read(&args.image)?;
    let limits = DecodeLimits {
        max_bytes: MAX_FILE as usize,
        max_pixels: args.max_pixels,
        ..DecodeLimits::default()
    };
    let decoding = Instant::now();
    let screenshot = decode(&bytes, &limits).map_err(|source| OneShotError::Image {
        path: name.clone(),
        source,
    })?;
    let decoded = decoding.elapsed();
    drop(bytes);

    let (mut parser, info) = load().map_err(OneShotError::Load)?;
    let started = Instant::now();
    let options = Options {
        include_ocr: !args.no_ocr,
        iou_threshold: args.iou_threshold,
        ..Options::default()
    };
    let parsed = parser.parse(&screenshot, &options.for_pipeline(args.model.settings()))?;

    let wants_som = args.json && !args.no_som;
    let drawing = Instant::now();
    let picture = if wants_som || args.output.is_some() {
        Some(encode_png(&draw_marks(screenshot, &parsed.marks))?)
    } else {
        None
    };
    let encoded = if picture.is_some() {
        drawing.elapsed()
    } else {
        Duration::ZERO
    };
    if let (Some(path), Some(png)) = (&args.output, &picture) {
        std::fs::write(path, png).map_err(|source| OneShotError::Write {
            path: path.clone(),
            source,
        })?;
    }
    let took = started.elapsed() + decoded;
    let text = if args.json {
        let steps = Steps {
            decode: decoded,
            models: parsed.times,
            encode: encoded,
            ..Steps::default()
        };
        let som_image = picture.filter(|_| wants_som).map(|png| STANDARD.encode(png));
        let mut text = serde_json::to_string_pretty(&ParseResponse::new(parsed, &info, som_image, &steps, took))?;
        text.push('\n');
        text
    } else {
        let summary = summary(&name, &parsed, &info, took.as_secs_f64());
        format!("{}\n{summary}\n", table::render(&parsed.elements))
    };
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match written {
        // `… | head` is no failure.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(source) => Err(OneShotError::Write {
            path: "standard output".into(),
            source,
        }),
        Ok(()) => Ok(()),
    }
}

fn summary(name: &str, parsed: &Parsed, info: &ModelInfo, seconds: f64) -> String {
    let (width, height) = parsed.image_size;
    let shown = parsed.elements.len();
    let found = parsed.total_detected();
    let cut = if found > shown {
        format!(" of {found} found (the profile's limit)")
    } else {
        String::new()
    };
    let plural = if shown == 1 { "" } else { "s" };
    format!(
        "{name}: {width}x{height}, {shown} element{plural}{cut}, {} interactable; {seconds:.2} s on {}",
        parsed.interactable_count, info.device_name
    )
}

fn read(path: &Path) -> Result<(String, Vec<u8>), OneShotError> {
    let mut bytes = Vec::new();
    let (name, read) = if path == Path::new("-") {
        (
            "standard input".to_owned(),
            io::stdin().lock().take(MAX_FILE + 1).read_to_end(&mut bytes),
        )
    } else {
        let read = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
        (path.display().to_string(), read)
    };
    match read {
        Ok(_) => Ok((name, bytes)),
        Err(source) => Err(OneShotError::Read { path: name, source }),
    }
}
