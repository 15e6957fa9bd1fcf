//! Times the models on a device, without HTTP, as medians: `time_device BUNDLE DEVICE DTYPE SCREENSHOT [ROUNDS]`.
//!
//! On CUDA each is timed as a CUDA graph and kernel by kernel. A bundle of the published size tells something about captions:
//! `hawkeye-export bundle --caption random-endless`.
#![allow(clippy::print_stdout)]

use hawkeye_pipeline::{
    bundle::{Bundle, Role},
    decode::{DecodeLimits, decode},
    device::DeviceChoice,
    model::{CaptionPrompt, Captioner, Detector, ModelError, TextReader},
    parser::CAPTION_CROP,
};
use hawkeye_torch::{Device, LoadOptions, TorchCaptioner, device_memory, load, reset_peak_memory};
use image::{Rgb, RgbImage};
use std::{env, error::Error, fs, time::Instant};

const BATCHES: [usize; 9] = [1, 4, 8, 16, 32, 64, 100, 128, 256];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [bundle, device, dtype, screenshot, rest @ ..] = arguments.as_slice() else {
        return Err("usage: time_device BUNDLE DEVICE DTYPE SCREENSHOT [ROUNDS]".into());
    };
    let rounds: usize = rest.first().map_or(Ok(20), |text| text.parse())?;
    let (bundle, choice, dtype) = (Bundle::open(bundle)?, device.parse::<DeviceChoice>()?, dtype.parse()?);
    let picture = decode(&fs::read(screenshot)?, &DecodeLimits::default())?;

    let opened = Device::open(choice)?;
    println!("{}, {dtype}, {rounds} rounds; milliseconds", opened.name());
    let ways: &[bool] = if opened.has_graphs() { &[true, false] } else { &[false] };
    for &cuda_graphs in ways {
        let started = Instant::now();
        let mut loaded = load(
            &bundle,
            &LoadOptions {
                device: choice,
                dtype,
                cuda_graphs,
                ..LoadOptions::default()
            },
        )?;
        println!("\ngraphs: {cuda_graphs}; loaded in {:.1?}", started.elapsed());
        let detector = &mut loaded.detector;
        report("detector", rounds, || {
            detector.detect(&picture, 0.05).map(|found| found.len())
        })?;
        if let Some(reader) = &mut loaded.reader {
            report("text", rounds, || reader.read(&picture, 0.5).map(|lines| lines.len()))?;
            // Once more, with where the time goes.
            let shown = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).finish();
            tracing::subscriber::with_default(shown, || reader.read(&picture, 0.5))?;
        }
        let Some(model) = bundle.model(Role::Captioner) else {
            continue;
        };
        let device = if cuda_graphs {
            Device::open(choice)?
        } else {
            Device::open(choice)?.without_graphs()
        };
        for size in BATCHES {
            let mut captioner = TorchCaptioner::load(&bundle, model, dtype, &device)?;
            let started = Instant::now();
            captioner.prepare(size, CaptionPrompt::Caption)?;
            let prepared = started.elapsed();
            reset_peak_memory();
            let crops = drawn(size);
            let name = format!("captions of {size}");
            report(&name, rounds, || {
                captioner
                    .tokens(&crops, CaptionPrompt::Caption)
                    .map(|all| all.concat().len())
            })?;
            let memory = device_memory().unwrap_or_default();
            println!(
                "{:>22} {:?} graphs recorded in {prepared:.1?}; {} MiB in tensors, {} MiB held",
                "",
                captioner.graphs(),
                memory.most_in_use >> 20,
                memory.most_held >> 20
            );
        }
    }
    Ok(())
}

/// Prints the median and the extremes of `rounds` calls, after two that do not count.
fn report(name: &str, rounds: usize, mut call: impl FnMut() -> Result<usize, ModelError>) -> Result<(), ModelError> {
    let mut found = 0;
    let mut times = Vec::with_capacity(rounds);
    for round in 0..rounds + 2 {
        let started = Instant::now();
        found = call()?;
        if round >= 2 {
            times.push(started.elapsed().as_secs_f64() * 1e3);
        }
    }
    times.sort_by(f64::total_cmp);
    println!(
        "{name:>22} {:9.2} ({:.2} to {:.2}); {found} found",
        times[times.len() / 2],
        times[0],
        times[times.len() - 1]
    );
    Ok(())
}

/// Crops that differ, so that their captions do.
fn drawn(count: usize) -> Vec<RgbImage> {
    let side = CAPTION_CROP;
    let shade = |at: usize, x: u32, y: u32| {
        let value = (at as u32)
            .wrapping_mul(97)
            .wrapping_add(x * 3)
            .wrapping_add(y * (at as u32 % 7));
        Rgb([value as u8, (value >> 1) as u8, (255 - value % 256) as u8])
    };
    (0..count)
        .map(|at| RgbImage::from_fn(side, side, |x, y| shade(at, x, y)))
        .collect()
}
