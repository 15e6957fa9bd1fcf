//! What number formats do to captions: `compare_captions BUNDLE DTYPES CROPS BATCH ROUNDS`, the formats as a list with commas, on the
//! processor. Prints a table in Markdown: time for all crops, in turns, as the median of the rounds, and how many captions and
//! steps are those of the first format.
#![allow(clippy::print_stdout)]

use hawkeye_pipeline::{
    bundle::{Bundle, DType, Role},
    device::{DeviceChoice, DeviceKind},
    model::CaptionPrompt,
    parser::CAPTION_CROP,
};
use hawkeye_torch::{Device, TorchCaptioner};
use image::{Rgb, RgbImage};
use std::{
    env,
    error::Error,
    time::{Duration, Instant},
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [bundle, dtypes, crops, batch, rounds] = arguments.as_slice() else {
        return Err("usage: compare_captions BUNDLE DTYPES CROPS BATCH ROUNDS".into());
    };
    let (crops, batch, rounds): (usize, usize, usize) = (crops.parse()?, batch.parse()?, rounds.parse()?);
    if rounds == 0 {
        return Err("at least one round is needed: the first one only warms up".into());
    }
    let bundle = Bundle::open(bundle)?;
    let model = bundle.require(Role::Captioner)?;
    let device = Device::open(DeviceChoice::Only(DeviceKind::Cpu))?;
    let crops = drawn(crops);
    let mut captioners = Vec::new();
    for name in dtypes.split(',') {
        let dtype: DType = name.parse()?;
        captioners.push((dtype, TorchCaptioner::load(&bundle, model, dtype, &device)?));
    }
    let mut found = vec![(Vec::new(), Vec::new()); captioners.len()];
    // The first round warms up.
    for _ in 0..=rounds {
        for ((_, captioner), (times, tokens)) in captioners.iter_mut().zip(&mut found) {
            let started = Instant::now();
            tokens.clear();
            for batch in crops.chunks(batch) {
                tokens.extend(captioner.tokens(batch, CaptionPrompt::Caption)?);
            }
            times.push(started.elapsed());
        }
    }
    println!(
        "| format | {} crops, batches of {batch} | of the first | captions the same | steps the same |",
        crops.len()
    );
    println!("|---|---|---|---|---|");
    let (first_time, expected) = (median(&found[0].0[1..]), found[0].1.clone());
    for ((dtype, _), (times, tokens)) in captioners.iter().zip(&found) {
        let time = median(&times[1..]);
        let same = tokens
            .iter()
            .zip(&expected)
            .filter(|(ours, theirs)| ours == theirs)
            .count();
        println!(
            "| {dtype} | {:.0} ms | {:.2} | {same} of {} | {:.1} % |",
            time.as_secs_f64() * 1e3,
            time.as_secs_f64() / first_time.as_secs_f64(),
            crops.len(),
            same_steps(tokens, &expected) * 100.0
        );
    }
    let steps: usize = expected.iter().map(|tokens| tokens.len() - 1).sum();
    println!("\n{steps} steps in {}", captioners[0].0);
    Ok(())
}

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// Of the steps up to the first difference of each caption, those with the same token. What comes after it has another history.
fn same_steps(found: &[Vec<i64>], expected: &[Vec<i64>]) -> f64 {
    let (mut same, mut other) = (0, 0);
    for (ours, theirs) in found.iter().zip(expected) {
        // The first token is forced.
        same += ours.iter().zip(theirs).take_while(|(a, b)| a == b).count() - 1;
        other += usize::from(ours != theirs);
    }
    f64::from(same as u32) / f64::from((same + other) as u32)
}

/// Crops of a plain ground, each with a few bars of its own.
fn drawn(count: usize) -> Vec<RgbImage> {
    // Knuth's MMIX generator.
    let mut state = 7_u64;
    let mut below = |limit: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % limit) as u32
    };
    let mut crops = Vec::with_capacity(count);
    for _ in 0..count {
        let mut colour = || Rgb([0; 3].map(|_: u8| below(256) as u8));
        let mut crop = RgbImage::from_pixel(CAPTION_CROP, CAPTION_CROP, colour());
        for _ in 0..=below(7) {
            let colour = Rgb([0; 3].map(|_: u8| below(256) as u8));
            let (left, top) = (below(60), below(60));
            let (right, bottom) = (left + 3 + below(61), top + 3 + below(61));
            for y in top..bottom.min(CAPTION_CROP) {
                for x in left..right.min(CAPTION_CROP) {
                    crop.put_pixel(x, y, colour);
                }
            }
        }
        crops.push(crop);
    }
    crops
}
