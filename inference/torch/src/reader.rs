//! The text reader: PP-OCR's detector and recogniser in TorchScript.

use crate::{
    LoadError,
    device::Device,
    module::{Inference, LoadedModule, backend, pictures, values},
    runner::PictureRunner,
};
use hawkeye_pipeline::{
    bundle::{Bundle, RecognizerOutput},
    geometry::Quad,
    model::{ModelError, TextLine, TextReader},
    ocr::{
        batch::{Batch, by_width},
        crop::cut_line,
        ctc::{Alphabet, Emission, emissions},
        db::{DbOptions, ProbabilityMap, find_lines},
        prepare::Plan,
    },
    resize::resize_exact,
};
use image::RgbImage;
use tch::{Kind, TchError, Tensor};

/// Finds and reads lines of text with the bundle's two OCR models.
#[derive(Debug)]
pub struct TorchReader {
    finder: PictureRunner,
    recogniser: LoadedModule,
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
            finder: PictureRunner::new(finder, device),
            recogniser,
            alphabet,
            line_height,
            batch_size: batch_size.max(1),
        })
    }

    /// Quads in pixels of the picture that lines are cropped from, and that picture.
    fn find(&mut self, screenshot: &RgbImage, plan: &Plan) -> Result<(RgbImage, Vec<Quad>), TchError> {
        let mut picture = resize_exact(screenshot, plan.scaled.0, plan.scaled.1);
        if plan.bars > 0 {
            let mut padded = RgbImage::new(plan.padded().0, plan.padded().1);
            image::imageops::replace(&mut padded, &picture, 0, plan.bars.into());
            picture = padded;
        }
        let input = resize_exact(&picture, plan.input.0, plan.input.1);
        let map: Vec<f32> = values(&self.finder.run(&[input])?)?;
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

    fn read_lines(&self, lines: &[RgbImage]) -> Result<Vec<Reading>, TchError> {
        let _inference = Inference::begin()?;
        let widths: Vec<u32> = lines.iter().map(|line| self.scaled_width(line)).collect();
        let mut readings = vec![Reading::default(); lines.len()];
        for batch in by_width(&widths, self.batch_size) {
            let input = self.input(&batch, lines, &widths)?;
            for (&line, reading) in batch.lines.iter().zip(self.read_batch(&input)?) {
                readings[line] = reading;
            }
        }
        Ok(readings)
    }

    /// Width in pixels of a line scaled to the recogniser's height.
    fn scaled_width(&self, line: &RgbImage) -> u32 {
        let (width, height) = (f64::from(line.width().max(1)), f64::from(line.height().max(1)));
        ((f64::from(self.line_height) * width / height).ceil() as u32).max(1)
    }

    /// (B, 3, line height, batch width), normalised: each line scaled to its own width, zeros (mid grey) right of it.
    fn input(&self, batch: &Batch, lines: &[RgbImage], widths: &[u32]) -> Result<Tensor, TchError> {
        let mut page = Vec::with_capacity(batch.lines.len());
        for &line in &batch.lines {
            let own = widths[line].min(batch.width);
            let mut row = RgbImage::new(batch.width, self.line_height);
            image::imageops::replace(&mut row, &resize_exact(&lines[line], own, self.line_height), 0, 0);
            page.push(row);
        }
        let (kind, device) = self.recogniser.options();
        let input = self.recogniser.normalised(&pictures(&page)?.f_to_device(device)?)?;
        let own: Vec<i64> = batch
            .lines
            .iter()
            .map(|&line| i64::from(widths[line].min(batch.width)))
            .collect();
        let columns = Tensor::f_arange(i64::from(batch.width), (Kind::Int64, device))?;
        let own = Tensor::f_from_slice(&own)?.f_to_device(device)?.f_reshape([-1, 1])?;
        // (B, 1, 1, width): 1 on the line, 0 right of it.
        let inside = columns
            .f_lt_tensor(&own)?
            .f_to_kind(kind)?
            .f_unsqueeze(1)?
            .f_unsqueeze(1)?;
        input.f_mul(&inside)
    }

    fn read_batch(&self, input: &Tensor) -> Result<Vec<Reading>, TchError> {
        // (B, T, C)
        let output = self.recogniser.call(&[input])?.f_to_kind(Kind::Float)?;
        let (lines, steps, classes) = output.size3()?;
        if classes as usize != self.alphabet.classes() {
            let known = self.alphabet.classes();
            return Err(TchError::Shape(format!(
                "the recogniser has {classes} classes, its alphabet {known}"
            )));
        }
        let (best, class) = output.f_max_dim(2, false)?;
        let class: Vec<i64> = values(&class)?;
        let emitted: Vec<Vec<Emission>> = class.chunks_exact(steps.max(1) as usize).map(emissions).collect();
        let places: Vec<i64> = emitted
            .iter()
            .zip(0_i64..)
            .flat_map(|(line, at)| line.iter().map(move |emission| at * steps + emission.step as i64))
            .collect();
        if places.is_empty() {
            return Ok(vec![Reading::default(); lines as usize]);
        }
        let places = Tensor::f_from_slice(&places)?.f_to_device(output.device())?;
        let best = best.f_reshape([-1])?.f_index_select(0, &places)?;
        let probabilities = match self.recogniser.model().output {
            RecognizerOutput::Probabilities => best,
            // The softmax at the steps that emit a character only.
            RecognizerOutput::Logits => {
                let rows = output.f_reshape([-1, classes])?.f_index_select(0, &places)?;
                best.f_sub(&rows.f_logsumexp([1_i64].as_slice(), false)?)?.f_exp()?
            }
        };
        let probabilities: Vec<f32> = values(&probabilities.f_to_kind(Kind::Float)?)?;
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
