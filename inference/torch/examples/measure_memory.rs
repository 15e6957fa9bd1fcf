//! What a pod's memory is made of, by number format and batch: `measure_memory BUNDLE DEVICE SCREENSHOT DTYPES BATCHES`, the last
//! two as lists with commas. Prints a table in Markdown. The GPU must have nothing else to do.
//!
//! Each row is a process of its own, which loads the bundle and captions one full batch; then, unless the row is the profile Speed,
//! it reads the screenshot's text. Every row detects icons.
#![allow(clippy::print_stdout)]

use hawkeye_pipeline::{
    bundle::Bundle,
    decode::{DecodeLimits, decode},
    device::DeviceChoice,
    model::{CaptionPrompt, Captioner, Detector, TextReader},
    parser::CAPTION_CROP,
};
use hawkeye_torch::{LoadOptions, device_memory, device_memory_used, load};
use image::RgbImage;
use std::{env, error::Error, fs, process::Command};

const MIB: u64 = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.as_slice() {
        [bundle, device, screenshot, dtypes, batches] => {
            println!(
                "| format | batch | text | process, MiB | GPU in all, MiB | libtorch holds | in tensors | at rest |"
            );
            println!("|---|---|---|---|---|---|---|---|");
            for dtype in dtypes.split(',') {
                for batch in batches.split(',') {
                    for text in ["no", "yes"] {
                        let row = [bundle, device, screenshot, dtype, batch, text];
                        let status = Command::new(env::current_exe()?).args(row).status()?;
                        if !status.success() {
                            println!("| {dtype} | {batch} | {text} | does not run | | | | |");
                        }
                    }
                }
            }
            Ok(())
        }
        [bundle, device, screenshot, dtype, batch, text] => {
            row(bundle, device, screenshot, dtype, batch, text == "yes")
        }
        _ => Err("usage: measure_memory BUNDLE DEVICE SCREENSHOT DTYPES BATCHES".into()),
    }
}

fn row(
    bundle: &str,
    device: &str,
    screenshot: &str,
    dtype: &str,
    batch: &str,
    text: bool,
) -> Result<(), Box<dyn Error>> {
    let picture = decode(&fs::read(screenshot)?, &DecodeLimits::default())?;
    let batch_size: usize = batch.parse()?;
    let options = LoadOptions {
        device: device.parse::<DeviceChoice>()?,
        dtype: dtype.parse()?,
        batch_size,
        ..LoadOptions::default()
    };
    let mut loaded = load(&Bundle::open(bundle)?, &options)?;
    if let Some(captioner) = &mut loaded.captioner {
        captioner.prepare(batch_size, CaptionPrompt::DetailedCaption)?;
    }
    let rest = device_memory().unwrap_or_default().in_use / MIB;
    for _ in 0..2 {
        loaded.detector.detect(&picture, 0.05)?;
        if let (true, Some(reader)) = (text, &mut loaded.reader) {
            reader.read(&picture, 0.5)?;
        }
        if let Some(captioner) = &mut loaded.captioner {
            let crops = vec![RgbImage::new(CAPTION_CROP, CAPTION_CROP); batch_size];
            captioner.tokens(&crops, CaptionPrompt::DetailedCaption)?;
        }
    }
    let memory = device_memory().unwrap_or_default();
    println!(
        "| {dtype} | {batch} | {} | {} | {} | {} | {} | {rest} |",
        if text { "yes" } else { "no" },
        peak_of_process()? / MIB,
        device_memory_used().unwrap_or(0) / MIB,
        memory.most_held / MIB,
        memory.most_in_use / MIB,
    );
    Ok(())
}

/// The most bytes of the machine's memory that this process had.
fn peak_of_process() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .ok_or("no VmHWM in /proc/self/status")?
        .trim()
        .parse()?;
    Ok(kib * 1024)
}
