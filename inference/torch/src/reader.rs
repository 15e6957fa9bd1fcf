//! The text reader: PP-OCR's detector and recogniser in TorchScript.

use crate::{
    LoadError,
    device::Device,
    module::{Inference, LoadedModule, backend, pictures, single, values},
    runner::{Runner, Work},
};
use hawkeye_pipeline::{
    batches::Batches,
    bundle::{Bundle, RecognizerOutput},
    device::DeviceKind,
    geometry::Quad,
    model::{ModelError, TextLine, TextReader},
    ocr::{
        batch::{MIN_WIDTH, by_bucket, by_width},
        crop::cut_line,
        ctc::{Alphabet, Emission, emissions},
        db::{DbOptions, ProbabilityMap, find_lines},
        prepare::Plan,
    },
    resize::resize_exact,
};
use image::RgbImage;
use rayon::prelude::*;
use std::{borrow::Cow, time::Instant};
use tch::{Kind, TchError, Tensor};

/// Widths of batches on a GPU, in pixels, each half as wide again as the one before: few shapes, so that each can be recorded, and
/// few calls. Wider lines have a shape of their own.
const GPU_WIDTHS: [u32; 7] = [MIN_WIDTH, 480, 720, 1080, 1616, 2424, 3640];
/// Lines of a batch on a GPU: it is padded to one of these.
const GPU_LINES: [usize; 4] = [4, 16, 32, 64];
/// The most pixels in the widths of a batch on a GPU, together. What the recogniser gives for them takes half a gigabyte in
/// `float32`.
const GPU_PIXELS: usize = 32 * 1616;
/// Lines whose probabilities are computed together on a GPU. They take as much memory as what they are computed from.
const GPU_SOFTMAX_LINES: i64 = 16;

/// Finds and reads lines of text with the bundle's two OCR models.
#[derive(Debug)]
pub struct TorchReader {
    finder: Runner,
    recogniser: Runner,
    alphabet: Alphabet,
    line_height: u32,
    /// The most lines in a call: on a GPU of each width, and of wider ones; on a processor all are the last one's.
    sizes: [Batches; GPU_WIDTHS.len() + 1],
    /// Whether batches have few shapes, and characters are chosen without asking the host.
    on_gpu: bool,
}

/// What the recogniser read in one picture of a line.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reading {
    /// The text; may be empty.
    pub text: String,
    /// Mean character probability, 0–1; 0 without characters.
    pub score: f32,
}

impl TorchReader {
    pub(crate) fn new(
        bundle: &Bundle,
        finder: LoadedModule,
        recogniser: LoadedModule,
        batch_size: usize,
        device: &Device,
    ) -> Result<Self, LoadError> {
        let model = recogniser.model();
        let missing = |what| LoadError::Incomplete {
            name: model.name.clone(),
            what,
        };
        let line_height = model
            .image_height
            .filter(|height| *height > 0)
            .ok_or_else(|| missing("imageHeight"))?;
        let characters = model.characters.as_ref().ok_or_else(|| missing("characters"))?;
        let text = String::from_utf8(bundle.read(&characters.path, &characters.sha256)?)
            .map_err(|_| missing("characters in UTF-8"))?;
        let alphabet = Alphabet::from_lines(&text);
        let on_gpu = device.kind() == DeviceKind::Cuda;
        let (characters, most): (Work, _) = if on_gpu {
            (winners, GPU_LINES[GPU_LINES.len() - 1])
        } else {
            (best_classes, batch_size)
        };
        Ok(Self {
            finder: Runner::new(finder, device, LoadedModule::of_pictures),
            recogniser: Runner::new(recogniser, device, characters),
            alphabet,
            line_height,
            sizes: [Batches::new(most); GPU_WIDTHS.len() + 1],
            on_gpu,
        })
    }

    /// Checks that the recogniser fits its alphabet, and records the graphs of all shapes that lines are padded to, if there are
    /// graphs.
    pub(crate) fn prepare(&mut self) -> Result<(), ModelError> {
        self.check()
            .and_then(|()| self.record())
            .map_err(backend("text reader"))
    }

    fn record(&mut self) -> Result<(), TchError> {
        if !self.on_gpu {
            return Ok(());
        }
        // The largest first: what it leaves free of the shared memory serves the smaller ones.
        for width in GPU_WIDTHS.into_iter().rev() {
            for lines in lines_up_to(most_lines(width)).rev() {
                let blank = self.page(lines, width).tensors()?;
                self.recogniser.prepare(&blank)?;
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TchError> {
        let _inference = Inference::begin()?;
        let recogniser = self.recogniser.module();
        let (_, device) = recogniser.options();
        let [bytes, owns] = self.page(1, MIN_WIDTH).tensors()?;
        let (_, _, classes) = outputs(recogniser, &[bytes.f_to_device(device)?, owns.f_to_device(device)?])?.size3()?;
        let known = self.alphabet.classes();
        if classes as usize == known {
            return Ok(());
        }
        Err(TchError::Shape(format!(
            "the recogniser has {classes} classes, its alphabet {known}"
        )))
    }

    /// Quads in pixels of the picture that lines are cropped from, and that picture.
    fn find<'a>(&mut self, screenshot: &'a RgbImage, plan: &Plan) -> Result<(Cow<'a, RgbImage>, Vec<Quad>), TchError> {
        let mut picture = if plan.scaled == screenshot.dimensions() {
            Cow::Borrowed(screenshot)
        } else {
            Cow::Owned(resize_exact(screenshot, plan.scaled.0, plan.scaled.1))
        };
        if plan.bars > 0 {
            let mut padded = RgbImage::new(plan.padded().0, plan.padded().1);
            image::imageops::replace(&mut padded, picture.as_ref(), 0, plan.bars.into());
            picture = Cow::Owned(padded);
        }
        let started = Instant::now();
        let input = pictures(&[resize_exact(&picture, plan.input.0, plan.input.1)])?;
        let scaled = started.elapsed();
        let map: Vec<f32> = values(single(&self.finder.run(&[input])?)?)?;
        let mapped = started.elapsed().saturating_sub(scaled);
        let map = ProbabilityMap {
            values: &map,
            width: plan.input.0,
            height: plan.input.1,
        };
        let quads = find_lines(&map, plan.padded(), &DbOptions::default());
        tracing::debug!(?scaled, ?mapped, outlined = ?started.elapsed().saturating_sub(scaled + mapped), "text found");
        Ok((picture, quads))
    }

    /// Reads pictures of single lines, of any size, in their order. A batch that the device's memory does not hold is halved, and
    /// batches of that width stay that small.
    ///
    /// # Errors
    /// [`ModelError`] when libtorch fails; out of memory only with a single line.
    pub fn recognise(&mut self, lines: &[RgbImage]) -> Result<Vec<Reading>, ModelError> {
        let failed = backend("text reader");
        let widths: Vec<u32> = lines.iter().map(|line| self.scaled_width(line)).collect();
        let most = |width| self.sizes[self.slot(width)].size();
        let batches = if self.on_gpu {
            by_bucket(&widths, &GPU_WIDTHS, |width| most_lines(width).min(most(width)))
        } else {
            by_width(&widths, most(0))
        };
        let mut readings = vec![Reading::default(); lines.len()];
        let mut prepared: Option<(&[usize], [Tensor; 2])> = None;
        for (at, batch) in batches.iter().enumerate() {
            let whole = batch.lines.len();
            let slot = self.slot(batch.width);
            let mut size = self.sizes[slot];
            let found = size.run(&batch.lines, |part| {
                let input = match prepared.take() {
                    Some((lines, input)) if lines == part => input,
                    _ => {
                        // What was halved for want of memory is not padded again.
                        let padded = if part.len() == whole {
                            self.padded(whole, batch.width)
                        } else {
                            part.len()
                        };
                        self.input(part, padded, batch.width, lines, &widths).map_err(&failed)?
                    }
                };
                let outcome = self.recogniser.run(&input).map_err(&failed)?;
                // While a GPU is at this batch; unless it was halved, which changes the next one, too.
                if part.len() == whole
                    && let Some(next) = batches.get(at + 1)
                {
                    let padded = self.padded(next.lines.len(), next.width);
                    let input = self.input(&next.lines, padded, next.width, lines, &widths);
                    prepared = Some((&next.lines, input.map_err(&failed)?));
                }
                self.readings(&outcome, part.len()).map_err(&failed)
            });
            // Also when it fails: later ones begin with what is known by now.
            self.sizes[slot] = size;
            for (&line, reading) in batch.lines.iter().zip(found?) {
                readings[line] = reading;
            }
        }
        Ok(readings)
    }

    /// The place in `sizes` of batches of this width.
    fn slot(&self, width: u32) -> usize {
        let bucket = GPU_WIDTHS.iter().position(|&bucket| self.on_gpu && bucket == width);
        bucket.unwrap_or(GPU_WIDTHS.len())
    }

    /// Lines of a batch of this width, with those that pad it.
    fn padded(&self, lines: usize, width: u32) -> usize {
        let bucket = lines_up_to(usize::MAX).find(|&bucket| self.on_gpu && bucket >= lines);
        let most = self.sizes[self.slot(width)].size();
        bucket.map_or(lines, |bucket| bucket.min(most).max(lines))
    }

    /// Width in pixels of a line scaled to the recogniser's height.
    fn scaled_width(&self, line: &RgbImage) -> u32 {
        let (width, height) = (f64::from(line.width().max(1)), f64::from(line.height().max(1)));
        ((f64::from(self.line_height) * width / height).ceil() as u32).max(1)
    }

    /// An empty page for `lines` lines.
    fn page(&self, lines: usize, width: u32) -> Page {
        let row = 3 * width as usize;
        Page {
            size: [lines as i64, self.line_height.into(), width.into(), 3],
            bytes: vec![0; lines * self.line_height as usize * row],
            owns: vec![0; lines],
            row,
        }
    }

    /// The lines of a batch on a page of `padded` lines of that width, each scaled to its own.
    fn input(
        &self,
        batch: &[usize],
        padded: usize,
        width: u32,
        lines: &[RgbImage],
        widths: &[u32],
    ) -> Result<[Tensor; 2], TchError> {
        let mut page = self.page(padded, width);
        // Without `self`: models are not shared between threads.
        let height = self.line_height;
        let scaled = |&line: &usize| resize_exact(&lines[line], widths[line].min(width), height);
        let scaled: Vec<RgbImage> = batch.par_iter().map(scaled).collect();
        for (place, line) in scaled.iter().enumerate() {
            page.put(place, line);
        }
        page.tensors()
    }

    /// What the recogniser's outcome says about the first `lines` of a batch; what is behind them is padding.
    fn readings(&self, outcome: &[Tensor], lines: usize) -> Result<Vec<Reading>, TchError> {
        let (classes, probabilities) = if self.on_gpu {
            on_host(single(outcome)?, lines as i64)?
        } else {
            let kind = self.recogniser.module().model().output;
            on_processor(outcome, lines as i64, kind)?
        };
        let mut probabilities = probabilities.into_iter();
        let readings = classes.iter().map(|emissions| {
            let own: Vec<f32> = probabilities.by_ref().take(emissions.len()).collect();
            let text = emissions
                .iter()
                .map(|emission| self.alphabet.character(emission.class))
                .collect();
            let score = if own.is_empty() {
                0.0
            } else {
                own.iter().sum::<f32>() / own.len() as f32
            };
            Reading { text, score }
        });
        Ok(readings.collect())
    }
}

/// A batch on its way to the device.
struct Page {
    /// Lines, line height, width, 3.
    size: [i64; 4],
    bytes: Vec<u8>,
    /// Each line's own width in pixels; right of it is nothing.
    owns: Vec<i64>,
    /// Bytes of a row of pixels.
    row: usize,
}

impl Page {
    /// Puts a picture, no wider than the page and as high as a line, at the left of a line.
    fn put(&mut self, line: usize, picture: &RgbImage) {
        self.owns[line] = picture.width().into();
        let rows = self
            .bytes
            .chunks_exact_mut(self.row)
            .skip(line * picture.height() as usize);
        for (to, from) in rows.zip(picture.chunks_exact(3 * picture.width() as usize)) {
            to[..from.len()].copy_from_slice(from);
        }
    }

    /// What [`outputs`] takes, on the host.
    fn tensors(&self) -> Result<[Tensor; 2], TchError> {
        let bytes = Tensor::f_from_data_size(&self.bytes, &self.size, Kind::Uint8)?;
        Ok([bytes, Tensor::f_from_slice(&self.owns)?])
    }
}

/// The lines of batches on a GPU, up to `most`.
fn lines_up_to(most: usize) -> impl DoubleEndedIterator<Item = usize> {
    GPU_LINES.into_iter().filter(move |&lines| lines <= most)
}

/// Most lines of a batch of this width on a GPU.
fn most_lines(width: u32) -> usize {
    let fit = lines_up_to(GPU_PIXELS / width.max(1) as usize).next_back();
    fit.unwrap_or(GPU_LINES[0])
}

/// (B, line height, W, 3) bytes and each line's own width in pixels → what the recogniser gives, (B, T, classes).
fn outputs(recogniser: &LoadedModule, inputs: &[Tensor]) -> Result<Tensor, TchError> {
    let [bytes, owns] = inputs else {
        return Err(TchError::Shape(format!("{} inputs instead of two", inputs.len())));
    };
    let input = recogniser.normalised(bytes)?;
    let (kind, device) = recogniser.options();
    let width = input.size().last().copied().unwrap_or_default();
    let columns = Tensor::f_arange(width, (Kind::Int64, device))?;
    // Zeros, which is the middle between black and white, right of each line.
    let inside = columns.f_lt_tensor(&owns.f_reshape([-1, 1, 1, 1])?)?.f_to_kind(kind)?;
    recogniser.call(&[&input.f_mul(&inside)?])
}

/// What the recogniser gives, and for each step the best class's value and number.
fn best_classes(recogniser: &LoadedModule, inputs: &[Tensor]) -> Result<Vec<Tensor>, TchError> {
    let output = outputs(recogniser, inputs)?;
    let (best, class) = output.f_max_dim(2, false)?;
    Ok(vec![output, best, class])
}

/// For each step the best class's number and probability, (2, B, T) `float32`, which is small enough to be fetched at once.
fn winners(recogniser: &LoadedModule, inputs: &[Tensor]) -> Result<Vec<Tensor>, TchError> {
    let output = outputs(recogniser, inputs)?;
    Ok(vec![winners_of(&output, recogniser.model().output)?])
}

fn winners_of(output: &Tensor, kind: RecognizerOutput) -> Result<Tensor, TchError> {
    let mut parts = Vec::new();
    for lines in output.f_split(GPU_SOFTMAX_LINES, 0)? {
        let (best, class) = lines.f_max_dim(2, false)?;
        let probability = match kind {
            RecognizerOutput::Probabilities => best.f_to_kind(Kind::Float)?,
            RecognizerOutput::Logits => lines.f_softmax(2, Kind::Float)?.f_amax([2_i64].as_slice(), false)?,
        };
        // float32 has every whole number up to 2^24.
        parts.push(Tensor::f_stack(&[class.f_to_kind(Kind::Float)?, probability], 0)?);
    }
    Tensor::f_cat(&parts, 1)
}

/// The emissions of each line, and the probabilities of all of them, one line after another.
type Characters = (Vec<Vec<Emission>>, Vec<f32>);

/// Of the first `lines` of [`winners`].
fn on_host(winners: &Tensor, lines: i64) -> Result<Characters, TchError> {
    let winners: Vec<f32> = values(&winners.f_narrow(1, 0, lines)?)?;
    let (class, probability) = winners.split_at(winners.len() / 2);
    let class: Vec<i64> = class.iter().map(|&class| class as i64).collect();
    let steps = (class.len() / lines.max(1) as usize).max(1);
    let emitted: Vec<Vec<Emission>> = class.chunks_exact(steps).map(emissions).collect();
    let lines = emitted.iter().zip(probability.chunks_exact(steps));
    let probabilities = lines.flat_map(|(line, own)| line.iter().map(|emission| own[emission.step]));
    let probabilities = probabilities.collect();
    Ok((emitted, probabilities))
}

/// Of the first `lines` of [`best_classes`].
fn on_processor(outcome: &[Tensor], lines: i64, kind: RecognizerOutput) -> Result<Characters, TchError> {
    let [output, best, class] = outcome else {
        return Err(TchError::Shape(format!("{} tensors instead of three", outcome.len())));
    };
    let (_, steps, classes) = output.size3()?;
    let class: Vec<i64> = values(&class.f_narrow(0, 0, lines)?)?;
    let emitted: Vec<Vec<Emission>> = class.chunks_exact(steps.max(1) as usize).map(emissions).collect();
    let places: Vec<i64> = emitted
        .iter()
        .zip(0_i64..)
        .flat_map(|(line, at)| line.iter().map(move |emission| at * steps + emission.step as i64))
        .collect();
    if places.is_empty() {
        return Ok((emitted, Vec::new()));
    }
    let places = Tensor::f_from_slice(&places)?.f_to_device(output.device())?;
    let chosen = |tensor: &Tensor| tensor.f_index_select(0, &places)?.f_to_kind(Kind::Float);
    let best = chosen(&best.f_reshape([-1])?)?;
    let probabilities = match kind {
        RecognizerOutput::Probabilities => best,
        // The softmax at the steps that emit a character only.
        RecognizerOutput::Logits => {
            let rows = chosen(&output.f_reshape([-1, classes])?)?;
            best.f_sub(&rows.f_logsumexp([1_i64].as_slice(), false)?)?.f_exp()?
        }
    };
    Ok((emitted, values(&probabilities)?))
}

impl TextReader for TorchReader {
    fn read(&mut self, screenshot: &RgbImage, min_score: f32) -> Result<Vec<TextLine>, ModelError> {
        let started = Instant::now();
        let plan = Plan::new(screenshot.width(), screenshot.height());
        let (picture, quads) = self.find(screenshot, &plan).map_err(backend("text reader"))?;
        let found = started.elapsed();
        let crops: Vec<RgbImage> = quads.par_iter().map(|quad| cut_line(&picture, quad)).collect();
        let cut = started.elapsed().saturating_sub(found);
        let readings = self.recognise(&crops)?;
        tracing::debug!(lines = quads.len(), ?found, ?cut, read = ?started.elapsed().saturating_sub(found + cut), "text");
        let lines = quads
            .iter()
            .zip(readings)
            .filter(|(_, reading)| reading.score >= min_score && !reading.text.trim().is_empty());
        Ok(lines
            .map(|(quad, reading)| TextLine {
                quad: quad.map(|corner| plan.to_source(corner)),
                text: reading.text,
                score: reading.score,
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawkeye_pipeline::device::DeviceChoice;
    use image::Rgb;
    use tch::CModule;

    #[test]
    fn few_shapes_and_none_that_is_too_large() {
        let shapes = GPU_WIDTHS.map(|width| (width, lines_up_to(most_lines(width)).count()));
        assert!(
            shapes
                .windows(2)
                .all(|pair| pair[0].0 < pair[1].0 && pair[1].0 <= pair[0].0 * 3 / 2 + 8)
        );
        assert!(shapes.iter().map(|(_, lines)| lines).sum::<usize>() <= 24, "{shapes:?}");
        assert_eq!([320, 1080, 1616, 2424, 9999].map(most_lines), [64, 32, 32, 16, 4]);
        let pixels = |width: u32| width as usize * most_lines(width);
        assert!(GPU_WIDTHS.into_iter().all(|width| pixels(width) <= GPU_PIXELS));
    }

    /// A recogniser's output for lines with characters, repeats, blanks and steps without a clear winner.
    fn drawn(lines: i64, kind: Kind) -> Tensor {
        let (steps, classes) = (9, 7);
        let numbers: Vec<f32> = (0..lines * steps * classes)
            .map(|n| ((n * 7919 % 1009) as f32 / 101.0) - 5.0)
            .collect();
        let flat = Tensor::f_from_slice(&numbers).unwrap();
        flat.f_reshape([lines, steps, classes])
            .unwrap()
            .f_to_kind(kind)
            .unwrap()
    }

    #[test]
    fn what_is_chosen_on_a_gpu_is_what_is_chosen_on_a_processor() {
        // More lines than one softmax takes, and padding behind them.
        let (padded, lines) = (GPU_SOFTMAX_LINES + 5, GPU_SOFTMAX_LINES + 2);
        for kind in [RecognizerOutput::Logits, RecognizerOutput::Probabilities] {
            for number in [Kind::Float, Kind::Half] {
                let output = drawn(padded, number);
                let (best, class) = output.f_max_dim(2, false).unwrap();
                let (expected, scores) = on_processor(&[output.shallow_clone(), best, class], lines, kind).unwrap();
                let (found, found_scores) = on_host(&winners_of(&output, kind).unwrap(), lines).unwrap();
                assert_eq!(found, expected);
                assert_eq!((found.len(), found_scores.len()), (lines as usize, scores.len()));
                assert!(scores.len() > 50, "{scores:?}");
                for (found, expected) in found_scores.iter().zip(&scores) {
                    assert!(
                        (found - expected).abs() < 1e-5,
                        "{kind:?}, {number:?}: {found}, {expected}"
                    );
                }
            }
        }
    }

    /// Lines that a device of the test below holds.
    const MOST_HELD: i64 = 3;

    fn check_memory(inputs: &[Tensor]) -> Result<(), TchError> {
        if inputs[0].size()[0] > MOST_HELD {
            let message = "CUDA out of memory. Tried to allocate 2.00 GiB.";
            return Err(TchError::Torch(message.to_owned()));
        }
        Ok(())
    }

    fn short_of_memory(recogniser: &LoadedModule, inputs: &[Tensor]) -> Result<Vec<Tensor>, TchError> {
        check_memory(inputs)?;
        best_classes(recogniser, inputs)
    }

    fn gpu_short_of_memory(recogniser: &LoadedModule, inputs: &[Tensor]) -> Result<Vec<Tensor>, TchError> {
        check_memory(inputs)?;
        winners(recogniser, inputs)
    }

    /// Its recogniser says `a` for a bright line, `b` for a middling one and `c` for a dark one.
    fn reader(work: Work, on_gpu: bool) -> TorchReader {
        // Made before the tracing, which does not see what is copied into a tensor.
        let classes = Tensor::from_slice(&[-9.0_f32, 1.0, 0.5, 0.0]);
        let mut shades = |inputs: &[Tensor]| {
            let shade = inputs[0]
                .mean_dim([1, 2].as_slice(), false, Kind::Float)
                .slice(1, 0, 320, 40);
            vec![-(shade.unsqueeze(-1) - &classes).square()]
        };
        let example = [Tensor::zeros([2, 3, 48, 320], (Kind::Float, tch::Device::Cpu))];
        let model =
            r#"{"role": "ocr-recognizer", "name": "shades", "architecture": "ctc", "licence": "MIT", "files": []}"#;
        let device = Device::open(DeviceChoice::Only(DeviceKind::Cpu)).unwrap();
        let mut module = || {
            let traced = CModule::create_by_tracing("shades", "forward", &example, &mut shades);
            LoadedModule::of_test(traced.unwrap(), model)
        };
        TorchReader {
            finder: Runner::new(module(), &device, LoadedModule::of_pictures),
            recogniser: Runner::new(module(), &device, work),
            alphabet: Alphabet::from_lines("a\nb\nc"),
            line_height: 48,
            sizes: [Batches::new(16); GPU_WIDTHS.len() + 1],
            on_gpu,
        }
    }

    #[test]
    fn a_batch_of_lines_that_memory_does_not_hold_is_halved_and_stays_small() {
        let lines: Vec<RgbImage> = (0..9_u8)
            .map(|at| RgbImage::from_pixel(320, 48, Rgb([[250; 3], [128; 3], [3; 3]][usize::from(at % 3)])))
            .collect();
        let read = |reader: &mut TorchReader| -> String {
            let readings = reader.recognise(&lines).unwrap();
            readings.iter().map(|reading| reading.text.as_str()).collect()
        };
        assert_eq!(read(&mut reader(best_classes, false)), "abcabcabc");
        let mut short = reader(short_of_memory, false);
        assert_eq!(read(&mut short), "abcabcabc");
        // 9, 4, 2.
        assert_eq!(short.sizes[short.slot(320)].size(), 2);
        assert_eq!(read(&mut short), "abcabcabc");
        assert_eq!([1, 2].map(|lines| short.padded(lines, 320)), [1, 2]);
    }

    #[test]
    fn on_a_gpu_each_width_has_batches_of_its_own_size() {
        let mut gpu = reader(winners, true);
        assert_eq!([1, 5, 9].map(|lines| gpu.padded(lines, 480)), [4, 16, 16]);
        // Two batches of one width, and one that is wider.
        let lines: Vec<RgbImage> = [320; 20]
            .into_iter()
            .chain([470; 3])
            .map(|width| RgbImage::from_pixel(width, 48, Rgb([250; 3])))
            .collect();
        let all_read = |reader: &mut TorchReader| {
            reader
                .recognise(&lines)
                .unwrap()
                .iter()
                .filter(|line| line.text == "a")
                .count()
        };
        assert_eq!(all_read(&mut gpu), lines.len());
        let mut short = reader(gpu_short_of_memory, true);
        assert_eq!(all_read(&mut short), lines.len());
        let sizes = |reader: &TorchReader| [320, 480, 720].map(|width| reader.sizes[reader.slot(width)].size());
        // 16, 8, 4, 2; and three lines, padded to four, 1.
        assert_eq!(sizes(&short), [2, 1, 16]);
        assert_eq!(all_read(&mut short), lines.len());
        assert_eq!(sizes(&short), [2, 1, 16], "they stay so");
        assert_eq!(
            [1, 2].map(|lines| short.padded(lines, 320)),
            [2, 2],
            "what pads a batch shrinks with it"
        );
        assert_eq!(short.padded(1, 720), 4);
    }

    #[test]
    fn a_single_line_that_memory_does_not_hold_is_an_error() {
        let never = |_: &LoadedModule, _: &[Tensor]| Err(TchError::Torch("CUDA out of memory.".to_owned()));
        let mut reader = reader(never, false);
        let error = reader
            .recognise(&[RgbImage::new(320, 48), RgbImage::new(320, 48)])
            .unwrap_err();
        assert!(matches!(error, ModelError::OutOfMemory { .. }), "{error}");
        assert_eq!(reader.sizes[reader.slot(320)].size(), 1);
    }

    #[test]
    fn a_line_lies_at_the_left_of_its_place_and_nothing_elsewhere() {
        let mut page = Page {
            size: [3, 2, 4, 3],
            bytes: vec![0; 3 * 2 * 12],
            owns: vec![0; 3],
            row: 12,
        };
        page.put(1, &RgbImage::from_fn(2, 2, |x, y| Rgb([1, x as u8, y as u8])));
        let line = [
            1_u8, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0,
        ];
        assert_eq!(page.bytes, [&[0_u8; 24][..], &line, &[0; 24]].concat());
        assert_eq!(page.owns, [0, 2, 0]);
        let [bytes, owns] = page.tensors().unwrap();
        assert_eq!((bytes.size(), owns.size()), (vec![3, 2, 4, 3], vec![3]));
    }
}
