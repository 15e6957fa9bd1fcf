//! The captioner against what its exporter's plain network said about the crops that lie in the bundle.
//!
//! Needs a bundle with a captioner, by default the one with seeded random weights that `inference/export/captions-test.sh`
//! makes; `HAWKEYE_TEST_CAPTION_BUNDLE` names another one, real weights for example. `HAWKEYE_TEST_DEVICE=cuda` runs it on a GPU.

// The lints' exemption for tests does not reach helpers of an integration test.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use hawkeye_pipeline::{
    batches::Batches,
    bundle::{Bundle, DType, Role},
    decode::{DecodeLimits, decode},
    device::{DeviceChoice, DeviceKind},
    model::{CaptionPrompt, Captioner, ModelError},
    parser::{CAPTION_CROP, ElementKind, ParseOptions, Source},
    profile::Profile,
};
use hawkeye_torch::{Device, LoadError, LoadOptions, TorchCaptioner, load};
use image::RgbImage;
use serde::Deserialize;
use std::{env, fs, path::PathBuf, sync::Mutex, time::Instant};

/// No divisor of the number of crops, so that the last batch is a smaller one.
const BATCH: usize = 7;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    caption: Vec<Answer>,
    detailed_caption: Vec<Answer>,
}

#[derive(Debug, Deserialize)]
struct Answer {
    tokens: Vec<usize>,
    /// Steps whose two best logits were so close that rounding may choose.
    doubtful: Vec<usize>,
}

fn bundle() -> Bundle {
    let cache = || {
        let home = || PathBuf::from(env::var_os("HOME").expect("HOME is set")).join(".cache/hawkeye");
        env::var_os("HAWKEYE_CACHE").map_or_else(home, PathBuf::from)
    };
    let path =
        env::var_os("HAWKEYE_TEST_CAPTION_BUNDLE").map_or_else(|| cache().join("bundles/captions-test"), PathBuf::from);
    Bundle::open(&path).unwrap_or_else(|error| {
        panic!("{error}\nThis test needs a bundle with a captioner: run `make bundle`, then inference/export/captions-test.sh.")
    })
}

/// The device under test, for this thread. What the library has to say is shown when a test fails.
fn device() -> Device {
    // Only the first test of the process sets it.
    drop(
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_test_writer()
            .try_init(),
    );
    let name = env::var("HAWKEYE_TEST_DEVICE").unwrap_or_else(|_| DeviceKind::Cpu.to_string());
    Device::open(name.parse().unwrap()).unwrap()
}

fn captioner_on(device: &Device, bundle: &Bundle, dtype: DType) -> TorchCaptioner {
    let model = bundle.require(Role::Captioner).unwrap();
    TorchCaptioner::load(bundle, model, dtype, device).unwrap()
}

fn captioner(bundle: &Bundle, dtype: DType) -> TorchCaptioner {
    captioner_on(&device(), bundle, dtype)
}

/// The GPU, or `None` where the tests run on another device.
fn gpu() -> Option<Device> {
    let device = device();
    if device.kind() == DeviceKind::Cuda {
        return Some(device);
    }
    println!("nothing was tested: this is for a GPU");
    None
}

/// The crops of the reference and its answers.
fn reference(bundle: &Bundle) -> (Vec<RgbImage>, Reference) {
    let files = &bundle.require(Role::Captioner).unwrap().reference;
    let bytes = |ending: &str| {
        let file = files.iter().find(|file| file.path.ends_with(ending)).unwrap();
        bundle.read(&file.path, &file.sha256).unwrap()
    };
    let column = decode(&bytes(".png"), &DecodeLimits::default()).unwrap();
    let crops = (0..column.height() / CAPTION_CROP)
        .map(|at| image::imageops::crop_imm(&column, 0, at * CAPTION_CROP, CAPTION_CROP, CAPTION_CROP).to_image())
        .collect();
    (crops, serde_json::from_slice(&bytes(".json")).unwrap())
}

/// The first place where the tokens differ, unless a doubtful step may be the cause.
fn difference(found: &[i64], expected: &Answer) -> Option<usize> {
    let expected_tokens: Vec<i64> = expected.tokens.iter().map(|&token| token as i64).collect();
    if found == expected_tokens {
        return None;
    }
    let place = (0..found.len().max(expected_tokens.len())).find(|&at| found.get(at) != expected_tokens.get(at))?;
    expected.doubtful.iter().all(|&doubt| doubt > place).then_some(place)
}

#[test]
fn tokens_equal_the_exporters() {
    let bundle = bundle();
    let (crops, reference) = reference(&bundle);
    assert!(crops.len() >= 20 && crops.len() % BATCH != 0, "{} crops", crops.len());
    let mut captioner = captioner(&bundle, DType::Float32);
    let mut lengths = Vec::new();
    for (prompt, answers) in [
        (CaptionPrompt::Caption, &reference.caption),
        (CaptionPrompt::DetailedCaption, &reference.detailed_caption),
    ] {
        let started = Instant::now();
        let found: Vec<Vec<i64>> = crops
            .chunks(BATCH)
            .flat_map(|batch| captioner.tokens(batch, prompt).unwrap())
            .collect();
        println!("{prompt:?}: {} crops in {:?}", crops.len(), started.elapsed());
        assert_eq!((found.len(), answers.len()), (crops.len(), crops.len()));
        for (crop, (tokens, answer)) in found.iter().zip(answers).enumerate() {
            assert_eq!(
                difference(tokens, answer),
                None,
                "{prompt:?}, crop {crop}: {tokens:?} is not {answer:?}"
            );
            lengths.push(tokens.len());
        }
    }
    let (shortest, longest) = (lengths.iter().min().unwrap(), lengths.iter().max().unwrap());
    assert!(
        shortest < longest,
        "rows of a batch must end at different steps: all have {longest}"
    );
}

#[test]
fn a_difference_is_noticed_unless_it_is_in_doubt() {
    let answer = |doubtful: &[usize]| Answer {
        tokens: vec![0, 5, 2],
        doubtful: doubtful.to_vec(),
    };
    assert_eq!(difference(&[0, 5, 2], &answer(&[])), None);
    assert_eq!(difference(&[0, 6, 2], &answer(&[])), Some(1));
    assert_eq!(difference(&[0, 5], &answer(&[])), Some(2));
    assert_eq!(difference(&[0, 6, 2], &answer(&[2])), Some(1));
    assert_eq!(difference(&[0, 6, 2], &answer(&[1])), None);
}

#[test]
fn captions_are_words_in_the_crops_order_whatever_the_batch() {
    let bundle = bundle();
    let (crops, _) = reference(&bundle);
    let mut captioner = captioner(&bundle, DType::Float32);
    let captions = captioner.caption(&crops, CaptionPrompt::Caption).unwrap();
    assert_eq!(captions.len(), crops.len());
    let mut again: Vec<String> = crops
        .chunks(1)
        .rev()
        .flat_map(|crop| captioner.caption(crop, CaptionPrompt::Caption).unwrap())
        .collect();
    again.reverse();
    assert_eq!(captions, again);
    for caption in &captions {
        assert_eq!(caption.trim(), caption);
        // Neither special tokens nor the letter that stands for a space.
        assert!(
            !caption.contains("<loc_") && !caption.contains("</s>") && !caption.contains('Ġ'),
            "{caption}"
        );
    }
    assert!(captions.iter().any(|caption| caption.contains(' ')), "{captions:?}");
    assert_eq!(captioner.caption(&[], CaptionPrompt::Caption).unwrap(), [""; 0]);
}

#[test]
fn other_number_formats_run() {
    let bundle = bundle();
    let (crops, reference) = reference(&bundle);
    for dtype in [DType::BFloat16, DType::Float16] {
        let found = captioner(&bundle, dtype)
            .tokens(&crops, CaptionPrompt::Caption)
            .unwrap();
        let equal = found
            .iter()
            .zip(&reference.caption)
            .filter(|(tokens, answer)| difference(tokens, answer).is_none())
            .count();
        println!("{dtype}: {equal} of {} captions are those of float32", crops.len());
        assert!(
            found
                .iter()
                .all(|tokens| tokens.first() == Some(&0) && tokens.last() == Some(&2))
        );
        if dtype == DType::Float16 && device().kind() == DeviceKind::Cpu {
            assert_eq!(equal, crops.len(), "on a processor float16 runs as float32");
        }
    }
}

/// Least share of steps that choose the same token in `int8` as in `float32`, up to the first difference of a caption. Random weights
/// put the best two words closer together than trained ones: bfloat16 reaches 0.99 here, int8 0.97.
const MIN_INT8_STEPS: f64 = 0.9;

/// libtorch has one engine for the whole process, and `int8` weights are packed for the one that is set while they load.
static ENGINE: Mutex<()> = Mutex::new(());

/// Share of steps with the same token, as [`MIN_INT8_STEPS`] counts them.
fn same_steps(found: &[Vec<i64>], expected: &[Vec<i64>]) -> f64 {
    let (mut same, mut other) = (0, 0);
    for (ours, theirs) in found.iter().zip(expected) {
        // The first token is forced.
        let equal = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count() - 1;
        same += equal;
        other += usize::from(ours != theirs);
    }
    f64::from(same as u32) / f64::from((same + other) as u32)
}

#[test]
fn int8_says_nearly_the_same_whatever_the_batch_and_the_engine() {
    if device().kind() != DeviceKind::Cpu {
        println!("nothing was tested: this is for processors");
        return;
    }
    let _engine = ENGINE.lock().unwrap();
    let bundle = bundle();
    let (crops, _) = reference(&bundle);
    let all = |captioner: &mut TorchCaptioner, batch: usize| -> Vec<Vec<i64>> {
        let batches = crops.chunks(batch);
        batches
            .flat_map(|batch| captioner.tokens(batch, CaptionPrompt::Caption).unwrap())
            .collect()
    };
    let expected = all(&mut captioner(&bundle, DType::Float32), BATCH);
    let bfloat16 = all(&mut captioner(&bundle, DType::BFloat16), BATCH);
    let mut own = captioner(&bundle, DType::Int8);
    let found = all(&mut own, BATCH);
    let alone = all(&mut own, 1);
    let before = if cfg!(target_arch = "x86_64") {
        tch::QEngine::FBGEMM
    } else {
        tch::QEngine::QNNPACK
    };
    // The engine that arm64 has, which x86-64's libtorch has too.
    tch::QEngine::QNNPACK.set().unwrap();
    let other = all(&mut captioner(&bundle, DType::Int8), BATCH);
    before.set().unwrap();
    let [bfloat16, own, qnnpack] = [&bfloat16, &found, &other].map(|tokens| same_steps(tokens, &expected));
    // A last digit that depends on the size of the batch, in a convolution for example, can become a step of 8 bits.
    let alone = same_steps(&alone, &found);
    println!("same steps as in float32: bfloat16 {bfloat16:.3}, int8 {own:.3}, int8 by QNNPACK {qnnpack:.3}");
    println!("same steps in batches of 1 and of {BATCH}: {alone:.3}");
    assert!(own > MIN_INT8_STEPS && qnnpack > MIN_INT8_STEPS && alone > MIN_INT8_STEPS);
    assert_ne!(found, expected, "this was not int8");
}

#[test]
fn int8_is_for_the_captioner_and_the_others_run_beside_it() {
    if device().kind() != DeviceKind::Cpu {
        println!("nothing was tested: this is for processors");
        return;
    }
    let _engine = ENGINE.lock().unwrap();
    let options = LoadOptions {
        device: DeviceChoice::Only(DeviceKind::Cpu),
        dtype: DType::Int8,
        beside_int8: DType::BFloat16,
        ..LoadOptions::default()
    };
    let loaded = load(&bundle(), &options).unwrap();
    let formats: Vec<DType> = loaded.models.iter().map(|model| model.dtype).collect();
    assert_eq!(
        formats,
        [DType::BFloat16, DType::BFloat16, DType::BFloat16, DType::Int8],
        "{:?}",
        loaded.models
    );
}

#[test]
fn a_bundle_without_int8_says_how_to_get_it() {
    let bundle = bundle();
    let mut model = bundle.require(Role::Captioner).unwrap().clone();
    model.files.retain(|file| file.dtype != DType::Int8);
    let error = TorchCaptioner::load(&bundle, &model, DType::Int8, &device()).unwrap_err();
    assert!(matches!(error, LoadError::NoInt8(_)), "{error:?}");
    assert!(error.to_string().contains("--caption-dtypes float32,int8"), "{error}");
}

#[test]
fn int8_is_refused_on_a_gpu() {
    let Some(device) = gpu() else { return };
    let options = LoadOptions {
        device: DeviceChoice::Only(device.kind()),
        dtype: DType::Int8,
        ..LoadOptions::default()
    };
    let error = load(&bundle(), &options).unwrap_err();
    assert_eq!(
        error.to_string(),
        "int8 is for processors; on cuda use float16 or bfloat16"
    );
}

/// A recording is padded to a size of its own; a row's sums depend on that size and on nothing else, so that single kernels at
/// the same size give the very same tokens in every number format.
#[test]
fn recorded_captions_are_those_of_single_kernels() {
    let Some(device) = gpu() else { return };
    assert!(device.has_graphs());
    let bundle = bundle();
    let (crops, _) = reference(&bundle);
    // One captioner of the device after another, each of which is recorded.
    for dtype in [DType::Float32, DType::Float16, DType::BFloat16] {
        let mut recorded = captioner_on(&device, &bundle, dtype);
        let mut single = captioner_on(&device.clone().without_graphs(), &bundle, dtype);
        recorded.prepare(8, CaptionPrompt::Caption).unwrap();
        assert_eq!(recorded.graphs(), Some(4), "1, 2, 4 and 8");
        // Large and small in turn: what one leaves in the shared memory must not reach the next. What was not recorded before is when
        // it comes again.
        let counts = [(100, 100), (3, 4), (128, 128), (1, 1), (33, 48), (8, 8)];
        for (count, padded) in counts.into_iter().chain(counts) {
            let batch: Vec<RgbImage> = crops.iter().cycle().skip(count % 5).take(padded).cloned().collect();
            for prompt in [CaptionPrompt::Caption, CaptionPrompt::DetailedCaption] {
                let mut expected = single.tokens(&batch, prompt).unwrap();
                expected.truncate(count);
                drop(recorded.tokens(&batch[..count], prompt).unwrap());
                let found = recorded.tokens(&batch[..count], prompt).unwrap();
                assert_eq!(found, expected, "{dtype}, {count} crops, {prompt:?}");
            }
        }
        assert_eq!(recorded.graphs(), Some(2 * counts.len() + 1), "the sizes and one of 2");
        assert_eq!(single.graphs(), None);
        println!("{dtype}: recorded and single kernels give the same tokens");
    }
}

#[test]
fn a_step_can_be_timed_for_batches_of_any_size_and_changes_nothing() {
    let bundle = bundle();
    let (crops, _) = reference(&bundle);
    let mut captioner = captioner(&bundle, DType::Float32);
    let before = captioner.tokens(&crops[..2], CaptionPrompt::Caption).unwrap();
    let times = [1, 8, 32].map(|size| captioner.step_time(size).unwrap());
    assert!(
        times.iter().all(|time| (1..10_000_000).contains(&time.as_micros())),
        "{times:?}"
    );
    assert_eq!(captioner.tokens(&crops[..2], CaptionPrompt::Caption).unwrap(), before);
}

#[test]
fn without_memory_for_the_batch_it_shrinks_and_every_crop_is_answered() {
    let Some(device) = gpu() else { return };
    let bundle = bundle();
    let (few, reference) = reference(&bundle);
    let crops: Vec<RgbImage> = few.iter().cycle().take(few.len() * 100).cloned().collect();
    for device in [device.clone().without_graphs(), device] {
        let mut captioner = captioner_on(&device, &bundle, DType::Float32);
        let expected = captioner.caption(&few, CaptionPrompt::Caption).unwrap();
        // Everything, in ever smaller pieces, and a little of it back.
        let mut taken = Vec::new();
        let mut piece = 1_i64 << 32;
        while piece >= 1 << 24 {
            match tch::Tensor::f_empty([piece], (tch::Kind::Uint8, tch::Device::Cuda(0))) {
                Ok(tensor) => taken.push(tensor),
                Err(_) => piece /= 2,
            }
        }
        let mut freed = 0;
        while freed < 1 << 28 {
            freed += taken.pop().unwrap().numel();
        }
        let error = captioner.caption(&crops, CaptionPrompt::Caption).unwrap_err();
        assert!(matches!(error, ModelError::OutOfMemory { .. }), "{error:?}");
        let mut batches = Batches::new(crops.len());
        // The second time meets the sizes of the first, so that they are recorded.
        for _ in 0..2 {
            let found = batches
                .describe(&mut captioner, &crops, CaptionPrompt::Caption)
                .unwrap();
            assert_eq!(found.len(), crops.len());
            let answers = expected.iter().zip(&reference.caption).cycle();
            for (found, (expected, answer)) in found.iter().zip(answers) {
                assert!(
                    found == expected || !answer.doubtful.is_empty(),
                    "{found:?}, not {expected:?}"
                );
            }
        }
        println!(
            "{} crops with {} MiB: batches of {}, graphs: {:?}",
            crops.len(),
            freed >> 20,
            batches.size(),
            captioner.graphs()
        );
        assert!(batches.size() < crops.len());
        assert_eq!(captioner.graphs().is_some(), device.has_graphs());
        assert_ne!(captioner.graphs(), Some(0), "what fits is recorded");
    }
}

#[test]
fn a_crop_of_another_size_is_an_error() {
    let bundle = bundle();
    let error = captioner(&bundle, DType::Float32)
        .tokens(&[RgbImage::new(64, 63)], CaptionPrompt::Caption)
        .unwrap_err();
    assert!(matches!(error, ModelError::Backend { .. }), "{error:?}");
    assert_eq!(error.to_string(), "captioner: a crop has 64×63 pixels, not 64×64");
}

#[test]
fn icons_of_a_screen_get_captions_and_text_keeps_its_own() {
    let screens = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../export/testdata/screens");
    let screens = env::var_os("HAWKEYE_TEST_SCREENS").map_or(screens, PathBuf::from);
    let screenshot = decode(&fs::read(screens.join("demo.png")).unwrap(), &DecodeLimits::default()).unwrap();
    let options = LoadOptions {
        device: DeviceChoice::Only(device().kind()),
        ..LoadOptions::default()
    };
    let loaded = load(&bundle(), &options).unwrap();
    let entry = loaded.models.last().unwrap();
    assert_eq!(
        (entry.role, entry.architecture.as_str()),
        (Role::Captioner, "florence-2")
    );
    let mut parser = loaded.into_parser();
    assert!(parser.has_captioner());
    let options = ParseOptions {
        profile: Profile::Quality.settings(),
        ..ParseOptions::default()
    };
    let parsed = parser.parse(&screenshot, &options).unwrap();
    let icons = parsed.elements.iter().filter(|element| element.source == Source::Icon);
    assert!(icons.count() >= 3, "{:?}", parsed.elements);
    assert!(parsed.elements.iter().any(|element| element.kind == ElementKind::Text));
    for element in &parsed.elements {
        assert!(
            element.caption.is_some() && element.caption == element.content,
            "{element:?}"
        );
    }
    assert!(!parsed.times.caption.is_zero());
    let silent = ParseOptions {
        include_captions: false,
        ..options
    };
    let parsed = parser.parse(&screenshot, &silent).unwrap();
    assert!(parsed.elements.iter().all(|element| element.caption.is_none()));
}
