//! The models on real screenshots, against what the Python stack (ultralytics and rapidocr) finds on them.
//!
//! Needs the demo bundle (`make bundle`), whose place `HAWKEYE_TEST_BUNDLE` can override. `HAWKEYE_TEST_DEVICE=cuda` runs it
//! on a GPU, `HAWKEYE_TEST_DTYPE` in another number format; `inference/torch/gpu.sh` carries the built test to a machine that has one.

// The lints' exemption for tests does not reach helpers of an integration test.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use hawkeye_pipeline::{
    bundle::{Bundle, DType, Role},
    decode::{DecodeLimits, decode},
    device::{DeviceChoice, DeviceKind},
    geometry::Rect,
    model::{Detector, TextLine, TextReader},
    nms::{DETECTOR_IOU, MAX_DETECTIONS, suppress},
    parser::{ParseOptions, Parser},
    profile::Profile,
};
use hawkeye_torch::{LoadOptions, Loaded, load};
use image::RgbImage;
use serde::Deserialize;
use std::{env, fs, path::PathBuf, time::Instant};

/// Boxes match from this IoU on.
const MATCH_IOU: f32 = 0.9;
/// Least F1 of boxes, over all screenshots.
const MIN_F1: f64 = 0.98;
/// Least share of equal characters, over all screenshots.
const MIN_CHARACTERS: f64 = 0.98;
/// Least F1 of boxes of text in bfloat16, which only processors compute it in: 0.93 was measured, on a GPU, before text got another
/// number format there.
const MIN_F1_BFLOAT16: f64 = 0.92;

#[derive(Debug, Deserialize)]
struct Reference {
    image: String,
    width: u32,
    height: u32,
    detector: Vec<ReferenceBox>,
    text: Vec<ReferenceLine>,
    options: ReferenceOptions,
}

#[derive(Debug, Deserialize)]
struct ReferenceBox {
    bbox: [f32; 4],
}

#[derive(Debug, Deserialize)]
struct ReferenceLine {
    quad: [[f32; 2]; 4],
    text: String,
}

#[derive(Debug, Deserialize)]
struct ReferenceOptions {
    min_confidence: f32,
}

fn bundle() -> Bundle {
    let cache = || {
        let home = || PathBuf::from(env::var_os("HOME").expect("HOME is set")).join(".cache/hawkeye");
        env::var_os("HAWKEYE_CACHE").map_or_else(home, PathBuf::from)
    };
    let path = env::var_os("HAWKEYE_TEST_BUNDLE").map_or_else(|| cache().join("bundles/demo"), PathBuf::from);
    Bundle::open(&path).unwrap_or_else(|error| panic!("{error}\nThis test needs the demo bundle: run `make bundle`."))
}

fn dtype() -> DType {
    env::var("HAWKEYE_TEST_DTYPE").map_or(DType::Float32, |name| name.parse().unwrap())
}

fn models() -> Loaded {
    // What the library has to say is shown when a test fails. Only the first test of the process sets it.
    drop(
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::INFO)
            .with_test_writer()
            .try_init(),
    );
    let device = env::var("HAWKEYE_TEST_DEVICE").unwrap_or_else(|_| DeviceKind::Cpu.to_string());
    let options = LoadOptions {
        device: device.parse::<DeviceChoice>().unwrap(),
        dtype: dtype(),
        ..LoadOptions::default()
    };
    load(&bundle(), &options).unwrap()
}

/// Every reference with its screenshot, by name.
fn screens() -> Vec<(Reference, RgbImage)> {
    let here = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../export/testdata/screens");
    let folder = env::var_os("HAWKEYE_TEST_SCREENS").map_or_else(here, PathBuf::from);
    let mut names: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.retain(|path| path.to_string_lossy().ends_with(".reference.json"));
    names.sort();
    let screens = names.into_iter().map(|path| {
        let reference: Reference = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let screenshot = decode(
            &fs::read(folder.join(&reference.image)).unwrap(),
            &DecodeLimits::default(),
        )
        .unwrap();
        assert_eq!(
            screenshot.dimensions(),
            (reference.width, reference.height),
            "{}",
            reference.image
        );
        (reference, screenshot)
    });
    screens.collect()
}

/// Matched pairs, found and expected boxes.
#[derive(Debug, Default, Clone, Copy)]
struct Score {
    matched: usize,
    found: usize,
    expected: usize,
}

impl Score {
    fn add(&mut self, other: Self) {
        self.matched += other.matched;
        self.found += other.found;
        self.expected += other.expected;
    }

    /// F1 = 2 × matched ÷ (found + expected); 1 when there is nothing to find and nothing was found.
    fn f1(self) -> f64 {
        let all = self.found + self.expected;
        if all == 0 {
            1.0
        } else {
            2.0 * self.matched as f64 / all as f64
        }
    }
}

/// Pairs (found, expected) of at least the matching IoU, best first, each box used once.
fn matches(found: &[Rect], expected: &[Rect]) -> Vec<(usize, usize)> {
    let mut pairs: Vec<(f32, usize, usize)> = Vec::new();
    for (a, found) in found.iter().enumerate() {
        pairs.extend(
            expected
                .iter()
                .enumerate()
                .map(|(b, expected)| (found.iou(expected), a, b)),
        );
    }
    pairs.retain(|(iou, ..)| *iou >= MATCH_IOU);
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut used_found, mut used_expected) = (vec![false; found.len()], vec![false; expected.len()]);
    let mut matched = Vec::new();
    for (_, a, b) in pairs {
        if !used_found[a] && !used_expected[b] {
            (used_found[a], used_expected[b]) = (true, true);
            matched.push((a, b));
        }
    }
    matched
}

fn score(found: &[Rect], expected: &[Rect]) -> Score {
    Score {
        matched: matches(found, expected).len(),
        found: found.len(),
        expected: expected.len(),
    }
}

/// Levenshtein distance in characters.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(x != *y)).min(above + 1).min(row[j] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}

/// Wrong and expected characters. Each expected line is compared with the found line that overlaps it most; a line that is
/// missing, and one that was not expected, counts in full.
fn character_errors(found: &[TextLine], expected: &[ReferenceLine]) -> (usize, usize) {
    let mut used = vec![false; found.len()];
    let mut wrong = 0;
    let mut all = 0;
    for line in expected {
        let rect = Rect::around(&line.quad);
        let best = (0..found.len())
            .filter(|&at| !used[at])
            .map(|at| (Rect::around(&found[at].quad).iou(&rect), at))
            .filter(|(iou, _)| *iou > 0.3)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        let length = line.text.chars().count();
        all += length;
        wrong += best.map_or(length, |(_, at)| {
            used[at] = true;
            edits(&found[at].text, &line.text)
        });
    }
    let extra = found
        .iter()
        .zip(&used)
        .filter(|(_, used)| !**used)
        .map(|(line, _)| line.text.chars().count());
    (wrong + extra.sum::<usize>(), all)
}

#[test]
fn boxes_and_text_equal_the_python_stack() {
    let mut models = models();
    let finder = models.models.iter().find(|model| model.role == Role::OcrDetector);
    let finder_dtype = finder.expect("the demo bundle finds text").dtype;
    let min_text_f1 = match finder_dtype {
        DType::BFloat16 => MIN_F1_BFLOAT16,
        DType::Float32 | DType::Float16 => MIN_F1,
        DType::Int8 => panic!("only captioners are made in int8"),
    };
    let mut reader = models.reader.take().expect("the demo bundle reads text");
    let (mut icons_total, mut text_total) = (Score::default(), Score::default());
    let (mut wrong_total, mut characters_total) = (0, 0);
    let screens = screens();
    assert!(screens.len() >= 6, "only {} screenshots", screens.len());
    println!("text in {finder_dtype}");
    println!("screen                    icons F1   text F1   characters   detect      OCR");
    for (reference, screenshot) in &screens {
        let started = Instant::now();
        let candidates = models
            .detector
            .detect(screenshot, reference.options.min_confidence)
            .unwrap();
        let icons: Vec<Rect> = suppress(candidates, DETECTOR_IOU, MAX_DETECTIONS)
            .iter()
            .map(|icon| icon.rect.clipped(reference.width as f32, reference.height as f32))
            .collect();
        let detect = started.elapsed();
        let started = Instant::now();
        let lines = reader.read(screenshot, 0.5).unwrap();
        let read = started.elapsed();

        let expected: Vec<Rect> = reference.detector.iter().map(|icon| corners(icon.bbox)).collect();
        let icon_score = score(&icons, &expected);
        let found: Vec<Rect> = lines.iter().map(|line| Rect::around(&line.quad)).collect();
        let expected: Vec<Rect> = reference.text.iter().map(|line| Rect::around(&line.quad)).collect();
        let text_score = score(&found, &expected);
        let (wrong, characters) = character_errors(&lines, &reference.text);
        println!(
            "{:<22} {:>10.4} {:>9.4} {:>12.4} {:>6} ms {:>5} ms   {icon_score:?} {text_score:?}",
            reference.image,
            icon_score.f1(),
            text_score.f1(),
            1.0 - wrong as f64 / characters.max(1) as f64,
            detect.as_millis(),
            read.as_millis(),
        );
        report_differences(&lines, &reference.text);
        icons_total.add(icon_score);
        text_total.add(text_score);
        wrong_total += wrong;
        characters_total += characters;
    }
    let accuracy = 1.0 - wrong_total as f64 / characters_total as f64;
    println!(
        "all                    {:>10.4} {:>9.4} {accuracy:>12.4}",
        icons_total.f1(),
        text_total.f1()
    );
    assert!(icons_total.f1() >= MIN_F1, "icons: {icons_total:?}");
    assert!(text_total.f1() >= min_text_f1, "lines of text: {text_total:?}");
    assert!(
        accuracy >= MIN_CHARACTERS,
        "{wrong_total} of {characters_total} characters differ"
    );
}

fn corners([x1, y1, x2, y2]: [f32; 4]) -> Rect {
    Rect::new(x1, y1, x2, y2)
}

/// Prints the lines whose box or text is not the reference's.
fn report_differences(found: &[TextLine], expected: &[ReferenceLine]) {
    let places: Vec<Rect> = found.iter().map(|line| Rect::around(&line.quad)).collect();
    let wanted: Vec<Rect> = expected.iter().map(|line| Rect::around(&line.quad)).collect();
    let pairs = matches(&places, &wanted);
    for (a, b) in &pairs {
        if found[*a].text != expected[*b].text {
            println!("    text: {:?}, expected {:?}", found[*a].text, expected[*b].text);
        }
    }
    for (at, line) in expected
        .iter()
        .enumerate()
        .filter(|(at, _)| !pairs.iter().any(|(_, b)| b == at))
    {
        println!("    not found: {:?} at {:?}", line.text, wanted[at]);
    }
    for (at, line) in found
        .iter()
        .enumerate()
        .filter(|(at, _)| !pairs.iter().any(|(a, _)| a == at))
    {
        println!("    not expected: {:?} at {:?}", line.text, places[at]);
    }
}

#[test]
fn a_blank_page_has_no_elements() {
    let mut parser: Parser = models().into_parser();
    let options = ParseOptions {
        profile: Profile::Quality.settings(),
        ..ParseOptions::default()
    };
    for colour in [[255, 255, 255], [0, 0, 0], [240, 240, 245]] {
        let page = RgbImage::from_pixel(1280, 800, image::Rgb(colour));
        let parsed = parser.parse(&page, &options).unwrap();
        assert_eq!(parsed.elements, [], "{colour:?}");
    }
}

#[test]
fn a_parsed_screen_names_its_text() {
    let mut parser = models().into_parser();
    let (reference, screenshot) = screens()
        .into_iter()
        .find(|(reference, _)| reference.image == "login.png")
        .expect("login.png is there");
    let options = ParseOptions {
        profile: Profile::Quality.settings(),
        ..ParseOptions::default()
    };
    let parsed = parser.parse(&screenshot, &options).unwrap();
    // A space more or less is the recogniser's noise, which the accuracy above bounds.
    let packed = |text: &str| text.split_whitespace().collect::<String>();
    let captions: Vec<String> = parsed
        .elements
        .iter()
        .filter_map(|element| Some(packed(element.caption.as_ref()?)))
        .collect();
    for line in &reference.text {
        assert!(
            captions.iter().any(|caption| caption.contains(&packed(&line.text))),
            "{:?} of {captions:?}",
            line.text
        );
    }
    assert!(parsed.elements.iter().any(|element| element.interactable));
}
