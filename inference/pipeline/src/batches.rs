//! How many crops share one call of the captioner, and what happens when they are too many for the device's memory.

use crate::model::{CaptionPrompt, Captioner, ModelError};
use image::RgbImage;

/// The size of batches: what was asked for, until the device's memory does not hold that many; then what it held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batches {
    size: usize,
}

impl Batches {
    /// Batches of at most `size` crops, at least one.
    pub fn new(size: usize) -> Self {
        Self { size: size.max(1) }
    }

    /// The most crops in one call.
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

    /// The captions of all crops, in order. A batch that is too large for the device's memory is halved and tried again, and
    /// batches stay that small: memory that was short once will be short again.
    ///
    /// # Errors
    /// [`ModelError`] when the captioner fails; out of memory only with a single crop.
    pub fn describe(
        &mut self,
        captioner: &mut dyn Captioner,
        crops: &[RgbImage],
        prompt: CaptionPrompt,
    ) -> Result<Vec<String>, ModelError> {
        let mut captions = Vec::with_capacity(crops.len());
        let mut rest = crops;
        while !rest.is_empty() {
            let batch = &rest[..rest.len().min(self.size)];
            match captioner.caption(batch, prompt) {
                Ok(words) => {
                    captions.extend(words);
                    rest = &rest[batch.len()..];
                }
                Err(error @ ModelError::OutOfMemory { .. }) if batch.len() > 1 => {
                    self.halve(batch.len(), &error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(captions)
    }

    fn halve(&mut self, crops: usize, error: &ModelError) {
        self.size = crops / 2;
        tracing::warn!(%error, crops, batch_size = self.size, "out of memory: the batch is halved");
    }
}
