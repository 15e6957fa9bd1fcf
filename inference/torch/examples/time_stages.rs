//! Times the stages of a parse on the processor: `time_stages BUNDLE SCREENSHOT [THREADS] [ROUNDS]`.
#![allow(clippy::print_stdout)]

use hawkeye_pipeline::{
    bundle::Bundle,
    decode::{DecodeLimits, decode},
    device::{DeviceChoice, DeviceKind},
    overlay::{draw_marks, encode_png},
    parser::ParseOptions,
    profile::Profile,
};
use hawkeye_torch::{LoadOptions, load};
use std::{env, error::Error, fs, time::Instant};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [bundle, screenshot, rest @ ..] = arguments.as_slice() else {
        return Err("usage: time_stages BUNDLE SCREENSHOT [THREADS] [ROUNDS]".into());
    };
    let threads = rest.first().map_or(Ok(2), |text| text.parse())?;
    let rounds = rest.get(1).map_or(Ok(4), |text| text.parse())?;
    let file = fs::read(screenshot)?;

    let started = Instant::now();
    let device = DeviceChoice::Only(DeviceKind::Cpu);
    let loaded = load(
        &Bundle::open(bundle)?,
        &LoadOptions {
            device,
            threads: Some(threads),
            ..LoadOptions::default()
        },
    )?;
    println!(
        "load {:?} on {}, {threads} threads",
        started.elapsed(),
        loaded.device_name
    );
    let mut parser = loaded.into_parser();
    let options = ParseOptions {
        profile: Profile::Quality.settings(),
        ..ParseOptions::default()
    };
    for round in 1..=rounds {
        let started = Instant::now();
        let picture = decode(&file, &DecodeLimits::default())?;
        let decoded = started.elapsed();
        let parsed = parser.parse(&picture, &options)?;
        let started = Instant::now();
        let drawn = encode_png(&draw_marks(picture.clone(), &parsed.marks))?;
        println!(
            "round {round}: decode {decoded:.1?}, detect {:.1?}, ocr {:.1?}, merge {:.1?}, marks {:.1?}; {} elements, {} KiB",
            parsed.times.detect,
            parsed.times.ocr,
            parsed.times.merge,
            started.elapsed(),
            parsed.total_detected(),
            drawn.len() / 1024,
        );
    }
    Ok(())
}
