//! The seams to the models: what a backend (libtorch, a fake in tests) must provide.

use crate::geometry::{Quad, Rect};
use image::RgbImage;

/// A failed model call. The device thread answers the batch with it and goes on.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The backend's own error text.
    #[error("{model}: {message}")]
    Backend {
        /// `detector`, `text reader` or `captioner`.
        model: &'static str,
        /// What the backend said.
        message: String,
    },
    /// The device's memory does not hold this call; a smaller one may fit.
    #[error("{model}: {message}")]
    OutOfMemory {
        /// `detector`, `text reader` or `captioner`.
        model: &'static str,
        /// What the backend said.
        message: String,
    },
}

/// A candidate icon before non-maximum suppression.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Detection {
    /// Place on the screenshot, in its pixels.
    pub rect: Rect,
    /// Detector confidence, 0–1.
    pub score: f32,
}

/// One line of text.
#[derive(Debug, Clone, PartialEq)]
pub struct TextLine {
    /// Corners, clockwise from top left, in pixels of the screenshot.
    pub quad: Quad,
    /// The text as read.
    pub text: String,
    /// Mean character probability, 0–1.
    pub score: f32,
}

/// What the captioner is asked; the words are Florence-2's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaptionPrompt {
    /// `<CAPTION>`: "What does the image describe?"
    Caption,
    /// `<DETAILED_CAPTION>`: "Describe in detail what is shown in the image."
    DetailedCaption,
}

/// A prompt that is none of `CAPTION` and `DETAILED_CAPTION`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown caption prompt {0:?}: expected CAPTION or DETAILED_CAPTION")]
pub struct UnknownPrompt(pub String);

impl std::str::FromStr for CaptionPrompt {
    type Err = UnknownPrompt;

    /// In any case, with or without the angle brackets of Florence-2's task tokens.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let bare = name
            .strip_prefix('<')
            .and_then(|rest| rest.strip_suffix('>'))
            .unwrap_or(name);
        match bare.to_ascii_uppercase().as_str() {
            "CAPTION" => Ok(Self::Caption),
            "DETAILED_CAPTION" => Ok(Self::DetailedCaption),
            _ => Err(UnknownPrompt(name.to_owned())),
        }
    }
}

/// Memory of a device, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// In use, by whomever.
    pub used: u64,
    /// All of it.
    pub total: u64,
}

/// Finds icons.
pub trait Detector {
    /// All candidates of at least `min_score`, before NMS, in any order.
    ///
    /// # Errors
    /// [`ModelError`] when the backend fails.
    fn detect(&mut self, screenshot: &RgbImage, min_score: f32) -> Result<Vec<Detection>, ModelError>;

    /// Memory of the device that it runs on; `None` for one that has none of its own, or does not tell. Called by the thread
    /// that calls the rest.
    fn device_memory(&self) -> Option<DeviceMemory> {
        None
    }
}

/// Finds and reads lines of text.
pub trait TextReader {
    /// All lines of at least `min_score`, top to bottom.
    ///
    /// # Errors
    /// [`ModelError`] when the backend fails.
    fn read(&mut self, screenshot: &RgbImage, min_score: f32) -> Result<Vec<TextLine>, ModelError>;
}

/// Describes icons. Without one, icons keep `caption: null`.
pub trait Captioner {
    /// One caption per crop, in order. Crops are squares of [`crate::parser::CAPTION_CROP`] pixels.
    ///
    /// # Errors
    /// [`ModelError`] when the backend fails.
    fn caption(&mut self, crops: &[RgbImage], prompt: CaptionPrompt) -> Result<Vec<String>, ModelError>;

    /// Makes ready for calls of up to `batch_size` crops, so that none of them is slow. Need not do anything.
    ///
    /// # Errors
    /// [`ModelError`] when the backend fails; out of memory when it would for a call of that many crops.
    fn prepare(&mut self, batch_size: usize, prompt: CaptionPrompt) -> Result<(), ModelError> {
        let _ = (batch_size, prompt);
        Ok(())
    }
}
