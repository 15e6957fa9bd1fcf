//! One screenshot → its elements, in stages that can be run apart: detector, OCR and merge ([`Parser::find`]), crops of
//! what has no words ([`Found::crops`]), captions ([`Parser::describe`]), and both together ([`Found::described`]).

use crate::{
    batches::Batches,
    geometry::{PixelRect, Rect},
    merge::{Merged, merge},
    model::{CaptionPrompt, Captioner, Detector, DeviceMemory, ModelError, TextReader},
    nms::{DETECTOR_IOU, MAX_DETECTIONS, suppress},
    profile::{Profile, ProfileSettings},
    resize::Cropper,
};
use image::RgbImage;
use rayon::prelude::*;
use serde::Serialize;
use std::time::{Duration, Instant};

/// Sides of the square that every icon is resized to for the captioner, in pixels, on every device.
pub const CAPTION_CROP: u32 = 64;
/// The most elements that the basic mode returns unless something else is set (OmniParser's `MAX_DETECTIONS`).
pub const BASIC_MAX_ELEMENTS: usize = 100;

/// What one request asks for; the defaults are OmniParser's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParseOptions {
    /// `false` falls through to the basic, icon-only mode, as in OmniParser.
    pub include_captions: bool,
    /// Whether text is read; the profile can only switch it off.
    pub include_ocr: bool,
    /// `false` asks for the basic mode: icons only, captioned one kind after another, with real confidences.
    pub use_full_pipeline: bool,
    /// Least detector score, 0–1.
    pub min_confidence: f32,
    /// Overlap above which the merge drops the larger icon, 0–1. The detector's own suppression is fixed at 0.1.
    pub iou_threshold: f32,
    /// Least mean character probability of a line of text, 0–1.
    pub min_text_score: f32,
    /// OCR switch, element cut and prompt.
    pub profile: ProfileSettings,
    /// The most elements that the basic mode returns.
    pub max_detections: usize,
}

impl Default for ParseOptions {
    fn default() -> Self {
        Self {
            include_captions: true,
            include_ocr: true,
            use_full_pipeline: true,
            min_confidence: 0.05,
            iou_threshold: 0.1,
            min_text_score: 0.5,
            profile: Profile::Balanced.settings(),
            max_detections: BASIC_MAX_ELEMENTS,
        }
    }
}

impl ParseOptions {
    /// Whether this asks for the full pipeline; otherwise the basic mode answers.
    pub const fn is_full(&self) -> bool {
        self.include_captions && self.use_full_pipeline
    }
}

/// What an element is, in the words of the REST API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ElementKind {
    /// A line of text.
    Text,
    /// An icon, button or other control.
    Icon,
    /// What the basic mode calls an icon.
    InteractiveElement,
}

/// Which model found an element and which gave it its words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Source {
    /// Text that stands alone.
    #[serde(rename = "box_ocr_content_ocr")]
    OcrText,
    /// An icon without text in it.
    #[serde(rename = "box_yolo_content_yolo")]
    Icon,
    /// An icon that holds text.
    #[serde(rename = "box_yolo_content_ocr")]
    IconWithText,
}

/// One element, serialised as the REST API shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Element {
    /// `[x, y, width, height]` in whole pixels.
    pub bbox: [u32; 4],
    /// `[x, y]` of the middle, in whole pixels.
    pub center: [u32; 2],
    /// 1.0 in the full pipeline, because clients drop less than 0.6; the detector's score in the basic mode.
    pub confidence: f32,
    /// The detector's score for icons, the mean character probability for text.
    pub score: f32,
    /// Text or icon.
    #[serde(rename = "type")]
    pub kind: ElementKind,
    /// What it says or shows: the text, or the captioner's words; `None` for an icon that nobody described.
    #[cfg_attr(feature = "schema", schema(required))]
    pub caption: Option<String>,
    /// Whether it can be clicked: icons yes, text no.
    pub interactable: bool,
    /// Same as `caption` in the full pipeline; `None` in the basic mode.
    #[cfg_attr(feature = "schema", schema(required))]
    pub content: Option<String>,
    /// Where the box and the words come from.
    pub source: Source,
    /// Number on the set-of-marks picture; given before elements are cut to the profile's limit.
    pub element_id: usize,
}

/// Wall-clock time of each stage; zero for a stage that did not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StageTimes {
    /// Detector with its suppression.
    pub detect: Duration,
    /// Text detection and recognition.
    pub ocr: Duration,
    /// Merge and element building.
    pub merge: Duration,
    /// Crops and captioner.
    pub caption: Duration,
}

impl StageTimes {
    /// The sum of all stages.
    pub fn total(&self) -> Duration {
        self.detect + self.ocr + self.merge + self.caption
    }
}

/// The outcome of one parse.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The returned elements: at most the profile's limit; when cut, interactable ones first, then those with words.
    pub elements: Vec<Element>,
    /// Boxes of all elements, before the cut, by `element_id`: what [`crate::overlay::draw_marks`] takes.
    pub marks: Vec<PixelRect>,
    /// Width and height of the screenshot in pixels.
    pub image_size: (u32, u32),
    /// Whether the full pipeline ran (`false`: basic mode). The basic mode of OmniParser reports none of the counts below.
    pub full: bool,
    /// Lines of text that OCR found, before the merge.
    pub ocr_detected: usize,
    /// Returned icons.
    pub icon_detected: usize,
    /// Returned text elements.
    pub text_detected: usize,
    /// Returned elements that can be clicked.
    pub interactable_count: usize,
    /// Where the time went.
    pub times: StageTimes,
}

impl Parsed {
    /// Elements found, before the cut to the profile's limit.
    pub fn total_detected(&self) -> usize {
        self.marks.len()
    }

    /// Icons that the captioner described.
    pub fn captioned(&self) -> usize {
        // Only the captioner gives words to an icon of this source.
        let described = |element: &&Element| element.source == Source::Icon && element.caption.is_some();
        self.elements.iter().filter(described).count()
    }
}

/// A parse that failed.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// A model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The captioner's answer does not fit the question.
    #[error("the captioner answered {answered} of {asked} crops")]
    CaptionCount {
        /// Crops given.
        asked: usize,
        /// Captions received.
        answered: usize,
    },
}

/// A screenshot whose elements are found, and which icons the captioner is to be asked about. No model is needed any more.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    parsed: Parsed,
    /// Elements to be described, by their place in `parsed.elements`. Only what is returned is described, so a caption never
    /// changes the cut.
    silent: Vec<usize>,
    prompt: CaptionPrompt,
}

impl Found {
    /// Icons to be described; zero where the request or the lack of a captioner says so.
    pub fn wanted(&self) -> usize {
        self.silent.len()
    }

    /// What the captioner is to be asked.
    pub const fn prompt(&self) -> CaptionPrompt {
        self.prompt
    }

    /// The captioner's input: a square of [`CAPTION_CROP`] pixels for each of the [`wanted`](Self::wanted) icons, in order.
    /// `screenshot` is the one that they were found on.
    pub fn crops(&self, screenshot: &RgbImage) -> Vec<RgbImage> {
        let crop = |cropper: &mut Cropper, &at: &usize| {
            let place = place_of(&self.parsed.elements[at]);
            cropper.crop(screenshot, &place, CAPTION_CROP, CAPTION_CROP)
        };
        self.silent.par_iter().map_init(Cropper::default, crop).collect()
    }

    /// Boxes of all elements, as [`Parsed::marks`] will have them: they are known before anything is described.
    pub fn marks(&self) -> &[PixelRect] {
        &self.parsed.marks
    }

    /// The outcome, with one caption for each of the [`crops`](Self::crops), which took `took` in all.
    ///
    /// # Errors
    /// [`ParseError::CaptionCount`] when there are more or fewer.
    pub fn described<S: Into<String>>(self, captions: Vec<S>, took: Duration) -> Result<Parsed, ParseError> {
        let Self { mut parsed, silent, .. } = self;
        check_count(silent.len(), captions.len())?;
        parsed.times.caption = took;
        for (at, caption) in silent.into_iter().zip(captions) {
            let caption = caption.into();
            let element = &mut parsed.elements[at];
            element.content = parsed.full.then(|| caption.clone());
            element.caption = Some(caption);
        }
        Ok(parsed)
    }
}

fn check_count(asked: usize, answered: usize) -> Result<(), ParseError> {
    if asked == answered {
        Ok(())
    } else {
        Err(ParseError::CaptionCount { asked, answered })
    }
}

/// The models, bound together. Not shared between threads: the thread that owns the device owns this.
pub struct Parser {
    detector: Box<dyn Detector + Send>,
    reader: Option<Box<dyn TextReader + Send>>,
    captioner: Option<Box<dyn Captioner + Send>>,
    batches: Batches,
}

impl std::fmt::Debug for Parser {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Parser")
            .field("reader", &self.reader.is_some())
            .field("captioner", &self.captioner.is_some())
            .field("batches", &self.batches)
            .finish_non_exhaustive()
    }
}

impl Parser {
    /// A parser from its models. Without a reader no text is found; without a captioner icons without text have no caption.
    pub fn new(
        detector: Box<dyn Detector + Send>,
        reader: Option<Box<dyn TextReader + Send>>,
        captioner: Option<Box<dyn Captioner + Send>>,
    ) -> Self {
        Self {
            detector,
            reader,
            captioner,
            batches: Batches::new(usize::MAX),
        }
    }

    /// The same with at most `size` crops, at least one, in a call of the captioner. Without it there is no bound.
    #[must_use]
    pub fn with_batch_size(self, size: usize) -> Self {
        Self {
            batches: Batches::new(size),
            ..self
        }
    }

    /// Makes the captioner ready for batches of that size, which shrinks when the device's memory does not hold them.
    ///
    /// # Errors
    /// [`ModelError`] when the captioner fails.
    pub fn prepare(&mut self, prompt: CaptionPrompt) -> Result<(), ModelError> {
        let Some(captioner) = &mut self.captioner else {
            return Ok(());
        };
        self.batches.prepare(captioner.as_mut(), prompt)
    }

    /// Whether a text reader is loaded.
    pub const fn has_reader(&self) -> bool {
        self.reader.is_some()
    }

    /// Whether a captioner is loaded.
    pub const fn has_captioner(&self) -> bool {
        self.captioner.is_some()
    }

    /// The most crops that share one call of the captioner; less than asked for once the device's memory did not hold them.
    pub const fn batch_size(&self) -> usize {
        self.batches.size()
    }

    /// Memory of the device that the models run on, if it has its own and tells.
    pub fn device_memory(&self) -> Option<DeviceMemory> {
        self.detector.device_memory()
    }

    /// All stages for one screenshot, one after the other.
    ///
    /// # Errors
    /// [`ParseError`] when a model fails.
    pub fn parse(&mut self, screenshot: &RgbImage, options: &ParseOptions) -> Result<Parsed, ParseError> {
        let found = self.find(screenshot, options)?;
        if found.wanted() == 0 {
            return Ok(found.parsed);
        }
        let started = Instant::now();
        let captions = self.describe(&found.crops(screenshot), found.prompt())?;
        found.described(captions, started.elapsed())
    }

    /// Finds the elements of one screenshot.
    ///
    /// # Errors
    /// [`ParseError`] when a model fails.
    pub fn find(&mut self, screenshot: &RgbImage, options: &ParseOptions) -> Result<Found, ParseError> {
        let mut times = StageTimes::default();
        let started = Instant::now();
        let candidates = self.detector.detect(screenshot, options.min_confidence)?;
        let (width, height) = screenshot.dimensions();
        let mut icons = suppress(candidates, DETECTOR_IOU, MAX_DETECTIONS);
        for icon in &mut icons {
            icon.rect = icon.rect.clipped(width as f32, height as f32);
        }
        times.detect = started.elapsed();

        let full = options.is_full();
        let started = Instant::now();
        let lines = match &mut self.reader {
            Some(reader) if full && options.include_ocr && options.profile.ocr => {
                let lines = reader.read(screenshot, options.min_text_score)?;
                times.ocr = started.elapsed();
                lines
            }
            _ => Vec::new(),
        };

        let started = Instant::now();
        let mut elements: Vec<Element> = if full {
            let merged = merge(&icons, &lines, options.iou_threshold);
            let placed = merged
                .into_iter()
                .filter_map(|entry| Some((pixels(&entry.rect(), width, height)?, entry)));
            placed
                .enumerate()
                .map(|(id, (place, entry))| full_element(id, place, entry))
                .collect()
        } else {
            let placed = icons
                .iter()
                .filter_map(|icon| Some((pixels(&icon.rect, width, height)?, icon.score)));
            placed
                .take(options.max_detections)
                .enumerate()
                .map(|(id, (place, score))| basic_element(id, place, score))
                .collect()
        };
        let marks = elements.iter().map(place_of).collect();
        if full && elements.len() > options.profile.max_elements {
            elements.sort_by_key(|element| (!element.interactable, element.content.is_none()));
            elements.truncate(options.profile.max_elements);
        }
        let silent = if options.include_captions && self.has_captioner() {
            let without_words = |(at, element): (usize, &Element)| element.caption.is_none().then_some(at);
            elements.iter().enumerate().filter_map(without_words).collect()
        } else {
            Vec::new()
        };
        times.merge = started.elapsed();

        let count = |wanted: ElementKind| elements.iter().filter(|element| element.kind == wanted).count();
        let parsed = Parsed {
            marks,
            image_size: (width, height),
            full,
            ocr_detected: lines.len(),
            icon_detected: count(ElementKind::Icon) + count(ElementKind::InteractiveElement),
            text_detected: count(ElementKind::Text),
            interactable_count: elements.iter().filter(|element| element.interactable).count(),
            elements,
            times,
        };
        Ok(Found {
            parsed,
            silent,
            prompt: options.profile.prompt,
        })
    }

    /// One caption per crop, in order; crops may be those of several screenshots. Empty without a captioner.
    ///
    /// # Errors
    /// [`ParseError`] when the captioner fails.
    pub fn describe(&mut self, crops: &[RgbImage], prompt: CaptionPrompt) -> Result<Vec<String>, ParseError> {
        let Some(captioner) = &mut self.captioner else {
            return Ok(Vec::new());
        };
        let captions = self.batches.describe(captioner.as_mut(), crops, prompt)?;
        check_count(crops.len(), captions.len())?;
        Ok(captions)
    }
}

fn pixels(rect: &Rect, width: u32, height: u32) -> Option<PixelRect> {
    PixelRect::from_rect(rect, width, height)
}

fn place_of(element: &Element) -> PixelRect {
    let [x, y, width, height] = element.bbox;
    PixelRect { x, y, width, height }
}

fn element(id: usize, place: PixelRect, kind: ElementKind, score: f32, source: Source) -> Element {
    Element {
        bbox: [place.x, place.y, place.width, place.height],
        center: [
            u32::midpoint(place.x, place.right()),
            u32::midpoint(place.y, place.bottom()),
        ],
        confidence: 1.0,
        score,
        kind,
        caption: None,
        interactable: kind != ElementKind::Text,
        content: None,
        source,
        element_id: id,
    }
}

fn full_element(id: usize, place: PixelRect, entry: Merged) -> Element {
    let (kind, score, source, content) = match entry {
        Merged::Text { content, score, .. } => (ElementKind::Text, score, Source::OcrText, Some(content)),
        Merged::Icon {
            content: Some(content),
            score,
            ..
        } => (ElementKind::Icon, score, Source::IconWithText, Some(content)),
        Merged::Icon {
            content: None, score, ..
        } => (ElementKind::Icon, score, Source::Icon, None),
    };
    Element {
        caption: content.clone(),
        content,
        ..element(id, place, kind, score, source)
    }
}

fn basic_element(id: usize, place: PixelRect, score: f32) -> Element {
    Element {
        confidence: score,
        ..element(id, place, ElementKind::InteractiveElement, score, Source::Icon)
    }
}
