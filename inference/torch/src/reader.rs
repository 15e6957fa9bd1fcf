//! The text reader: PP-OCR's detector and recogniser in TorchScript.

use crate::{
    LoadError,
    device::Device,
    module::{LoadedModule, backend, pictures, single, values},
    runner::Runner,
};
use hawkeye_pipeline::{
    bundle::{Bundle, RecognizerOutput},
    geometry::Quad,
    model::{ModelError, TextLine, TextReader},
    ocr::{
        batch::{Batch, MIN_WIDTH, by_width},
        crop::cut_line,
        ctc::{Alphabet, Emission, emissions},
        db::{DbOptions, ProbabilityMap, find_lines},
        prepare::Plan,
    },
    resize::resize_exact,
};
use image::RgbImage;
use tch::{Kind, TchError, Tensor};

/// Widths of batches on a GPU, in pixels, each a quarter more than the one before: few shapes, so that each can be recorded. Wider
/// lines have a shape of their own.
const GPU_WIDTHS: [u32; 9] = [MIN_WIDTH, 400, 504, 632, 792, 992, 1240, 1552, 1944];
/// Lines of a batch on a GPU; the last one only up to [`GPU_WIDE`].
const GPU_LINES: [usize; 3] = [4, 16, 64];
/// From this width on in pixels, the classes of 64 lines would take a gigabyte.
const GPU_WIDE: u32 = 640;

/// Finds and reads lines of text with the bundle's two OCR models.
#[derive(Debug)]
pub struct TorchReader {
    finder: Runner,
    recogniser: Runner,
    alphabet: Alphabet,
    line_height: u32,
    batch_size: usize,
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
        Ok(Self {
            finder: Runner::new(finder, device, LoadedModule::of_pictures),
            recogniser: Runner::new(recogniser, device, best_classes),
            alphabet,
            line_height,
            batch_size: batch_size.max(1),
        })
    }

    /// Records the graphs of all shapes that lines are padded to. Without CUDA graphs nothing happens.
    pub(crate) fn prepare(&mut self) -> Result<(), ModelError> {
        if !self.recogniser.has_graphs() {
            return Ok(());
        }
        for width in GPU_WIDTHS {
            for lines in GPU_LINES.into_iter().filter(|&lines| lines <= most_lines(width)) {
                let line = RgbImage::new(width, self.line_height);
                self.recognise(&vec![line; lines])?;
            }
        }
        Ok(())
    }

    /// Quads in pixels of the picture that lines are cropped from, and that picture.
    fn find(&mut self, screenshot: &RgbImage, plan: &Plan) -> Result<(RgbImage, Vec<Quad>), TchError> {
        let mut picture = resize_exact(screenshot, plan.scaled.0, plan.scaled.1);
        if plan.bars > 0 {
            let mut padded = RgbImage::new(plan.padded().0, plan.padded().1);
            image::imageops::replace(&mut padded, &picture, 0, plan.bars.into());
            picture = padded;
        }
        let input = pictures(&[resize_exact(&picture, plan.input.0, plan.input.1)])?;
        let map: Vec<f32> = values(single(&self.finder.run(&[input])?)?)?;
        let map = ProbabilityMap {
            values: &map,
            width: plan.input.0,
            height: plan.input.1,
        };
        let quads = find_lines(&map, plan.padded(), &DbOptions::default());
        Ok((picture, quads))
    }

    /// Reads pictures of single lines, of any size, in their order.
    ///
    /// # Errors
    /// [`ModelError`] when libtorch fails.
    pub fn recognise(&mut self, lines: &[RgbImage]) -> Result<Vec<Reading>, ModelError> {
        self.read_lines(lines).map_err(backend("text reader"))
    }

    fn read_lines(&mut self, lines: &[RgbImage]) -> Result<Vec<Reading>, TchError> {
        let widths: Vec<u32> = lines.iter().map(|line| self.scaled_width(line)).collect();
        let mut readings = vec![Reading::default(); lines.len()];
        for batch in by_width(&widths, self.batch_size) {
            let width = self.padded_width(batch.width);
            for chunk in batch.lines.chunks(self.most_lines(width)) {
                let batch = Batch {
                    lines: chunk.to_vec(),
                    width,
                };
                let input = self.input(&batch, lines, &widths)?;
                for (&line, reading) in chunk.iter().zip(self.read_batch(&input, chunk.len())?) {
                    readings[line] = reading;
                }
            }
        }
        Ok(readings)
    }

    /// Width in pixels of a line scaled to the recogniser's height.
    fn scaled_width(&self, line: &RgbImage) -> u32 {
        let (width, height) = (f64::from(line.width().max(1)), f64::from(line.height().max(1)));
        ((f64::from(self.line_height) * width / height).ceil() as u32).max(1)
    }

    fn padded_width(&self, width: u32) -> u32 {
        let recorded = self.recogniser.has_graphs();
        let wider = recorded.then(|| GPU_WIDTHS.into_iter().find(|&wider| wider >= width));
        wider.flatten().unwrap_or(width)
    }

    fn most_lines(&self, width: u32) -> usize {
        if self.recogniser.has_graphs() {
            most_lines(width)
        } else {
            self.batch_size
        }
    }

    /// What [`best_classes`] takes: the lines on pictures of the batch's width, each scaled to its own, and those own widths.
    fn input(&self, batch: &Batch, lines: &[RgbImage], widths: &[u32]) -> Result<[Tensor; 2], TchError> {
        let count = batch.lines.len();
        let padded = if self.recogniser.has_graphs() {
            GPU_LINES.into_iter().find(|&lines| lines >= count).unwrap_or(count)
        } else {
            count
        };
        let mut page = Vec::with_capacity(padded);
        let mut owns = Vec::with_capacity(padded);
        for &line in &batch.lines {
            let own = widths[line].min(batch.width);
            let mut row = RgbImage::new(batch.width, self.line_height);
            image::imageops::replace(&mut row, &resize_exact(&lines[line], own, self.line_height), 0, 0);
            page.push(row);
            owns.push(i64::from(own));
        }
        page.resize(padded, RgbImage::new(batch.width, self.line_height));
        owns.resize(padded, 0);
        Ok([pictures(&page)?, Tensor::f_from_slice(&owns)?])
    }

    /// The first `lines` of a batch; what is behind them is padding.
    fn read_batch(&mut self, input: &[Tensor], lines: usize) -> Result<Vec<Reading>, TchError> {
        let outcome = self.recogniser.run(input)?;
        let [output, best, class] = outcome.as_slice() else {
            return Err(TchError::Shape(format!("{} tensors instead of three", outcome.len())));
        };
        let (_, steps, classes) = output.size3()?;
        if classes as usize != self.alphabet.classes() {
            let known = self.alphabet.classes();
            return Err(TchError::Shape(format!(
                "the recogniser has {classes} classes, its alphabet {known}"
            )));
        }
        let class: Vec<i64> = values(&class.f_narrow(0, 0, lines as i64)?)?;
        let emitted: Vec<Vec<Emission>> = class.chunks_exact(steps.max(1) as usize).map(emissions).collect();
        let places: Vec<i64> = emitted
            .iter()
            .zip(0_i64..)
            .flat_map(|(line, at)| line.iter().map(move |emission| at * steps + emission.step as i64))
            .collect();
        if places.is_empty() {
            return Ok(vec![Reading::default(); lines]);
        }
        let places = Tensor::f_from_slice(&places)?.f_to_device(output.device())?;
        let chosen = |tensor: &Tensor| tensor.f_index_select(0, &places)?.f_to_kind(Kind::Float);
        let best = chosen(&best.f_reshape([-1])?)?;
        let probabilities = match self.recogniser.module().model().output {
            RecognizerOutput::Probabilities => best,
            // The softmax at the steps that emit a character only.
            RecognizerOutput::Logits => {
                let rows = chosen(&output.f_reshape([-1, classes])?)?;
                best.f_sub(&rows.f_logsumexp([1_i64].as_slice(), false)?)?.f_exp()?
            }
        };
        let probabilities: Vec<f32> = values(&probabilities)?;
        let mut rest = probabilities.as_slice();
        let readings = emitted.iter().map(|line| {
            let (own, others) = rest.split_at(line.len().min(rest.len()));
            rest = others;
            let text = line
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

const fn most_lines(width: u32) -> usize {
    GPU_LINES[if width < GPU_WIDE { 2 } else { 1 }]
}

/// (B, line height, W, 3) bytes and each line's own width in pixels → what the recogniser gives, (B, T, classes), and for each
/// step the best class's value and number.
fn best_classes(recogniser: &LoadedModule, inputs: &[Tensor]) -> Result<Vec<Tensor>, TchError> {
    let [bytes, owns] = inputs else {
        return Err(TchError::Shape(format!("{} inputs instead of two", inputs.len())));
    };
    let input = recogniser.normalised(bytes)?;
    let (kind, device) = recogniser.options();
    let width = input.size().last().copied().unwrap_or_default();
    let columns = Tensor::f_arange(width, (Kind::Int64, device))?;
    // Zeros, which is the middle between black and white, right of each line.
    let inside = columns.f_lt_tensor(&owns.f_reshape([-1, 1, 1, 1])?)?.f_to_kind(kind)?;
    let output = recogniser.call(&[&input.f_mul(&inside)?])?;
    let (best, class) = output.f_max_dim(2, false)?;
    Ok(vec![output, best, class])
}

impl TextReader for TorchReader {
    fn read(&mut self, screenshot: &RgbImage, min_score: f32) -> Result<Vec<TextLine>, ModelError> {
        let plan = Plan::new(screenshot.width(), screenshot.height());
        let (picture, quads) = self.find(screenshot, &plan).map_err(backend("text reader"))?;
        let crops: Vec<RgbImage> = quads.iter().map(|quad| cut_line(&picture, quad)).collect();
        let readings = self.recognise(&crops)?;
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

    #[test]
    fn few_shapes_and_none_that_is_too_large() {
        assert!(
            GPU_WIDTHS
                .windows(2)
                .all(|pair| pair[0] < pair[1] && pair[1] <= pair[0] * 5 / 4 + 8)
        );
        assert!(
            GPU_WIDTHS
                .iter()
                .all(|&width| width as usize * most_lines(width) <= 64 * 640)
        );
    }
}
