//! `bench`: how fast a running service is, or the models alone.

use crate::config::BenchArgs;
use crate::engine::{LoadError, ModelInfo};
use crate::http::{Connection, Http, HttpError};
use crate::input::Options;
use crate::steps::Steps;
use crate::table;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hawkeye_pipeline::decode::{DecodeError, DecodeLimits, decode};
use hawkeye_pipeline::overlay::{EncodeError, draw_marks, encode_png};
use hawkeye_pipeline::parser::{ParseError, ParseOptions, Parser};
use http_body_util::BodyExt as _;
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, StatusCode};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use url::Url;

/// Longest time for one answer; a service has a limit of its own.
const ANSWER: Duration = Duration::from_mins(10);
/// Rest after an answer that says that too many requests are held.
const REST: Duration = Duration::from_millis(20);
/// The steps in their order, as `Server-Timing` names them.
const STEPS: [&str; 7] = ["queue", "decode", "detect", "ocr", "merge", "caption", "encode"];

/// Why there is no measurement.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A screenshot cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A screenshot is none that we take.
    #[error(transparent)]
    Image(#[from] DecodeError),
    /// The runtime, or standard output.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// No connection to the service.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The service does not answer as it should.
    #[error("the service answers {status}: {text}")]
    Service {
        /// Its status.
        status: StatusCode,
        /// The beginning of its answer.
        text: String,
    },
    /// TLS cannot be set up, which only a defect can cause.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    /// The models cannot be loaded.
    #[error("cannot load the models")]
    Load(#[source] LoadError),
    /// The models failed.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// The annotated picture cannot be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// Nothing was answered in the time.
    #[error("no parse was answered in {seconds} s ({refused} refused, {failed} failed)")]
    Nothing {
        /// How long it took.
        seconds: f64,
        /// Answers 429.
        refused: usize,
        /// Other answers that are no parse.
        failed: usize,
    },
    /// The result cannot be written as JSON, which is a defect.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Of the scenario.
    pub name: String,
    /// The service's address, or `models`.
    pub target: String,
    /// The device's own name.
    pub device: String,
    /// Number format of the captioner; null without one.
    pub dtype: Option<String>,
    /// Requests at a time.
    pub concurrency: u32,
    /// How long it took.
    pub seconds: f64,
    /// Parses that were answered.
    pub parses: usize,
    /// Answers that too many requests are held (429); each was tried again.
    pub refused: usize,
    /// Other answers that are no parse.
    pub failed: usize,
    /// Half of the parses took no longer, milliseconds.
    pub median_ms: f64,
    /// 99 of 100 took no longer, milliseconds.
    pub p99_ms: f64,
    /// Parses in a second.
    pub throughput_per_s: f64,
    /// The median of each step, milliseconds; a step that did not run is left out.
    pub stages_ms: BTreeMap<String, f64>,
}

/// Times of what was answered.
#[derive(Debug, Default)]
struct Samples {
    parses: Vec<f64>,
    steps: BTreeMap<String, Vec<f64>>,
    refused: usize,
    failed: usize,
}

impl Samples {
    /// `timing` is a header `Server-Timing`.
    fn parsed(&mut self, took: Duration, timing: &str) {
        self.parses.push(took.as_secs_f64() * 1e3);
        for (step, milliseconds) in steps(timing) {
            self.steps.entry(step.to_owned()).or_default().push(milliseconds);
        }
    }

    fn add(&mut self, other: Self) {
        self.parses.extend(other.parses);
        for (step, times) in other.steps {
            self.steps.entry(step).or_default().extend(times);
        }
        self.refused += other.refused;
        self.failed += other.failed;
    }
}

/// `detect;dur=4.20, ocr;dur=1.00` → names and milliseconds.
fn steps(timing: &str) -> impl Iterator<Item = (&str, f64)> {
    timing.split(',').filter_map(|entry| {
        let (name, time) = entry.trim().split_once(";dur=")?;
        Some((name, time.parse().ok()?))
    })
}

/// The smallest of the values that `share` of them do not exceed; 0 of none.
fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() as f64 * share).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

impl Report {
    fn new(args: &BenchArgs, about: About, samples: Samples, took: Duration) -> Result<Self, BenchError> {
        let Samples {
            mut parses,
            steps,
            refused,
            failed,
        } = samples;
        let seconds = took.as_secs_f64();
        if parses.is_empty() {
            return Err(BenchError::Nothing {
                seconds: rounded(seconds),
                refused,
                failed,
            });
        }
        let median = |(step, mut times): (String, Vec<f64>)| (step, rounded(quantile(&mut times, 0.5)));
        Ok(Self {
            name: args.name.clone(),
            target: about.target,
            device: about.device,
            dtype: about.dtype,
            concurrency: args.concurrency,
            seconds: rounded(seconds),
            parses: parses.len(),
            refused,
            failed,
            median_ms: rounded(quantile(&mut parses, 0.5)),
            p99_ms: rounded(quantile(&mut parses, 0.99)),
            throughput_per_s: rounded(parses.len() as f64 / seconds),
            stages_ms: steps.into_iter().map(median).collect(),
        })
    }

    /// For people.
    pub fn table(&self) -> String {
        let dtype = self.dtype.as_deref().unwrap_or("no captioner");
        let row = |name: &str, value: String| [name.to_owned(), value];
        let mut rows = vec![
            row("parses", self.parses.to_string()),
            row("refused (429)", self.refused.to_string()),
            row("failed", self.failed.to_string()),
            row("median ms", format!("{:.2}", self.median_ms)),
            row("p99 ms", format!("{:.2}", self.p99_ms)),
            row("parses per second", format!("{:.2}", self.throughput_per_s)),
        ];
        let known = STEPS.iter().filter_map(|step| Some((step, self.stages_ms.get(*step)?)));
        rows.extend(known.map(|(step, median)| row(&format!("  {step}, median ms"), format!("{median:.2}"))));
        let heading = format!(
            "{}: {} on {} ({dtype}), {} at a time, {:.1} s",
            self.name, self.target, self.device, self.concurrency, self.seconds
        );
        format!("{heading}\n\n{}", table::columns(["", "VALUE"], [false, true], &rows))
    }
}

/// What is measured.
#[derive(Debug)]
struct About {
    target: String,
    device: String,
    dtype: Option<String>,
}

/// Measures, and writes a table or one JSON object to `out`. `load` loads the models where no service is given.
///
/// # Errors
/// [`BenchError`].
pub fn run<L>(args: &BenchArgs, load: L, out: &mut impl Write) -> Result<(), BenchError>
where
    L: FnOnce() -> Result<(Parser, ModelInfo), LoadError>,
{
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|source| BenchError::Read {
            path: path.clone(),
            source,
        })
    };
    let files: Vec<Vec<u8>> = args.images.iter().map(read).collect::<Result<_, _>>()?;
    let report = if let Some(url) = &args.url {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(service(args, url, &files))?
    } else {
        models(args, load, &files)?
    };
    let text = if args.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        report.table()
    };
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Measures the models in this process.
fn models<L>(args: &BenchArgs, load: L, files: &[Vec<u8>]) -> Result<Report, BenchError>
where
    L: FnOnce() -> Result<(Parser, ModelInfo), LoadError>,
{
    let (mut parser, info) = load().map_err(BenchError::Load)?;
    let options = Options {
        include_ocr: !args.no_ocr,
        ..Options::default()
    };
    let options = options.for_pipeline(args.model.settings());
    parser.prepare(options.profile.prompt).map_err(ParseError::from)?;
    let mut files = files.iter().cycle();
    let mut next = || files.next().map_or(&[][..], Vec::as_slice);
    for _ in 0..args.warm_up {
        one(&mut parser, next(), &options, !args.no_som)?;
    }
    let mut samples = Samples::default();
    let started = Instant::now();
    while started.elapsed() < args.duration {
        let begun = Instant::now();
        let steps = one(&mut parser, next(), &options, !args.no_som)?;
        samples.parsed(begun.elapsed(), &steps.header());
    }
    let about = About {
        target: "models".to_owned(),
        device: info.device_name,
        dtype: info.captioner.map(|captioner| captioner.dtype.to_string()),
    };
    Report::new(args, about, samples, started.elapsed())
}

/// From the file to the overlay in base64.
fn one(parser: &mut Parser, file: &[u8], options: &ParseOptions, draw: bool) -> Result<Steps, BenchError> {
    let decoding = Instant::now();
    let screenshot = decode(file, &DecodeLimits::default())?;
    let mut steps = Steps {
        decode: decoding.elapsed(),
        ..Steps::default()
    };
    let parsed = parser.parse(&screenshot, options)?;
    steps.models = parsed.times;
    if draw {
        let encoding = Instant::now();
        std::hint::black_box(STANDARD.encode(encode_png(&draw_marks(screenshot, &parsed.marks))?));
        steps.encode = encoding.elapsed();
    }
    Ok(steps)
}

/// A service, and what it is sent.
struct Requests {
    http: Http,
    url: Url,
    bodies: Vec<Bytes>,
}

impl Requests {
    /// One parse on a connection that is kept, or on a new one: its status, how long it took, and its `Server-Timing`.
    async fn one(
        &self,
        connection: &mut Option<Connection>,
        number: usize,
    ) -> Result<(StatusCode, Duration, String, Bytes), HttpError> {
        let body = self.bodies[number % self.bodies.len()].clone();
        let headers = [(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        let begun = Instant::now();
        let mut line = match connection.take() {
            Some(line) => line,
            None => self.http.open(&self.url).await?,
        };
        let (parts, body) = line
            .send(Method::POST, &self.url, &headers, body, ANSWER)
            .await?
            .into_parts();
        let answer = body.collect().await?.to_bytes();
        let took = begun.elapsed();
        *connection = Some(line);
        let timing = parts.headers.get("server-timing");
        let timing = timing.and_then(|value| value.to_str().ok()).unwrap_or_default();
        Ok((parts.status, took, timing.to_owned(), answer))
    }

    /// One request after another until then.
    async fn repeat(self: Arc<Self>, until: Instant, first: usize) -> Samples {
        let mut samples = Samples::default();
        let mut connection = None;
        let mut number = first;
        while Instant::now() < until {
            match self.one(&mut connection, number).await {
                Ok((StatusCode::OK, took, timing, _)) => {
                    samples.parsed(took, &timing);
                    number += 1;
                }
                Ok((StatusCode::TOO_MANY_REQUESTS, ..)) => {
                    samples.refused += 1;
                    tokio::time::sleep(REST).await;
                }
                Ok((status, _, _, answer)) => {
                    tracing::warn!(%status, answer = beginning(&answer), "no parse");
                    samples.failed += 1;
                    number += 1;
                }
                Err(error) => {
                    tracing::warn!(%error, "no answer");
                    samples.failed += 1;
                    tokio::time::sleep(REST).await;
                }
            }
        }
        samples
    }
}

/// Measures a running service.
async fn service(args: &BenchArgs, url: &Url, files: &[Vec<u8>]) -> Result<Report, BenchError> {
    let at = |path: &str| {
        let mut url = url.clone();
        url.set_path(&format!("{}/{path}", url.path().trim_end_matches('/')));
        url
    };
    let body = |file: &Vec<u8>| {
        json!({
            "image": STANDARD.encode(file),
            "include_som": !args.no_som,
            "include_ocr": !args.no_ocr,
        })
        .to_string()
        .into()
    };
    let requests = Arc::new(Requests {
        http: Http::new().map_err(|error| BenchError::Tls(error.to_string()))?,
        url: at("parse"),
        bodies: files.iter().map(body).collect(),
    });
    let report = requests.http.get(&at("device"), &[]).await?;
    let report = report.into_body().collect().await.map_err(HttpError::from)?.to_bytes();
    let report: Value = serde_json::from_slice(&report).unwrap_or_default();
    let word = |name: &str| report[name].as_str().map(str::to_owned);
    let about = About {
        target: url.to_string(),
        device: word("device_name").unwrap_or_else(|| "a device that is not told".to_owned()),
        dtype: word("dtype"),
    };
    let mut connection = None;
    for number in 0..args.warm_up as usize {
        let (status, _, _, answer) = requests.one(&mut connection, number).await?;
        if status != StatusCode::OK {
            let text = beginning(&answer);
            return Err(BenchError::Service { status, text });
        }
    }
    drop(connection);
    let started = Instant::now();
    let until = started + args.duration;
    let clients = (0..args.concurrency as usize).map(|first| tokio::spawn(Arc::clone(&requests).repeat(until, first)));
    let clients: Vec<_> = clients.collect();
    let mut samples = Samples::default();
    for client in clients {
        samples.add(client.await.map_err(io::Error::other)?);
    }
    Report::new(args, about, samples, started.elapsed())
}

fn beginning(answer: &Bytes) -> String {
    String::from_utf8_lossy(answer).chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        let mut hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let mut ranks = [0.5, 0.99, 1.0].map(|share| quantile(&mut hundred, share) as u32);
        ranks.sort_unstable();
        assert_eq!(ranks, [50, 99, 100]);
        assert_eq!(quantile(&mut [7.0, 3.0], 0.99).to_bits(), 7.0_f64.to_bits());
        assert_eq!(quantile(&mut [], 0.5).to_bits(), 0.0_f64.to_bits());
    }

    #[test]
    fn steps_are_read_from_the_header_that_the_service_sends() {
        let sent = Steps {
            decode: Duration::from_micros(1500),
            encode: Duration::from_millis(20),
            ..Steps::default()
        };
        let header = sent.header();
        assert_eq!(steps(&header).collect::<Vec<_>>(), [("decode", 1.5), ("encode", 20.0)]);
        assert_eq!(steps("cache;desc=\"hit\", nonsense").count(), 0);
    }
}
