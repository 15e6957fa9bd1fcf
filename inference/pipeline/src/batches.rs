//! How many crops, or lines of text, share one call of a model, and what happens when they are too many for the device's memory.

use crate::model::{CaptionPrompt, Captioner, ModelError};
use image::RgbImage;

/// The size of batches: what was asked for, until the device's memory does not hold that many; then what it held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batches {
    size: usize,
}

impl Batches {
    /// Batches of at most `size` crops or lines, at least one.
    pub fn new(size: usize) -> Self {
        Self { size: size.max(1) }
    }

    /// The most in one call.
    pub const fn size(&self) -> usize {
        self.size
    }

    /// Makes the captioner ready for batches of this size, which is halved until the device's memory holds one.
    ///
    /// # Errors
    /// [`ModelError`] when the captioner fails; out of memory only with a single crop.
    pub fn prepare(&mut self, captioner: &mut dyn Captioner, prompt: CaptionPrompt) -> Result<(), ModelError> {
        loop {
            match captioner.prepare(self.size, prompt) {
                Err(error @ ModelError::OutOfMemory { .. }) if self.size > 1 => self.halve(self.size, &error),
                outcome => return outcome,
            }
        }
    }

    /// The captions of all crops, in order, as [`run`](Self::run) has it.
    ///
    /// # Errors
    /// [`ModelError`] when the captioner fails; out of memory only with a single crop.
    pub fn describe(
        &mut self,
        captioner: &mut dyn Captioner,
        crops: &[RgbImage],
        prompt: CaptionPrompt,
    ) -> Result<Vec<String>, ModelError> {
        self.run(crops, |batch| captioner.caption(batch, prompt))
    }

    /// What `call` makes of all items, in order, a batch at a time. A batch that is too large for the device's memory is halved and
    /// tried again, and batches stay that small: memory that was short once will be short again.
    ///
    /// # Errors
    /// [`ModelError`] when `call` fails; out of memory only with a single item.
    pub fn run<I, O>(
        &mut self,
        items: &[I],
        mut call: impl FnMut(&[I]) -> Result<Vec<O>, ModelError>,
    ) -> Result<Vec<O>, ModelError> {
        let mut done = Vec::with_capacity(items.len());
        let mut rest = items;
        while !rest.is_empty() {
            let batch = &rest[..rest.len().min(self.size)];
            match call(batch) {
                Ok(outcomes) => {
                    done.extend(outcomes);
                    rest = &rest[batch.len()..];
                }
                Err(error @ ModelError::OutOfMemory { .. }) if batch.len() > 1 => {
                    self.halve(batch.len(), &error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn halve(&mut self, items: usize, error: &ModelError) {
        self.size = items / 2;
        tracing::warn!(%error, items, batch_size = self.size, "out of memory: the batch is halved");
    }
}
