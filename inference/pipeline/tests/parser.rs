//! The parser with fake models.

use hawkeye_pipeline::{
    geometry::Rect,
    model::{CaptionPrompt, Captioner, Detection, Detector, ModelError, TextLine, TextReader},
    overlay::draw_marks,
    parser::{CAPTION_CROP, ElementKind, ParseError, ParseOptions, Parser, Source},
    profile::Profile,
};
use image::{Rgb, RgbImage};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Answers with what it was given, as far as the score reaches.
struct Icons(Vec<Detection>);

impl Detector for Icons {
    fn detect(&mut self, _: &RgbImage, min_score: f32) -> Result<Vec<Detection>, ModelError> {
        Ok(self.0.iter().copied().filter(|icon| icon.score >= min_score).collect())
    }
}

struct Lines(Vec<TextLine>);

impl TextReader for Lines {
    fn read(&mut self, _: &RgbImage, min_score: f32) -> Result<Vec<TextLine>, ModelError> {
        Ok(self.0.iter().filter(|line| line.score >= min_score).cloned().collect())
    }
}

/// Names the prompt and the crop's first pixel; answers `drop` captions too few.
struct Words {
    drop: usize,
}

impl Captioner for Words {
    fn caption(&mut self, crops: &[RgbImage], prompt: CaptionPrompt) -> Result<Vec<String>, ModelError> {
        assert!(
            crops
                .iter()
                .all(|crop| crop.dimensions() == (CAPTION_CROP, CAPTION_CROP))
        );
        let say = |crop: &RgbImage| format!("{prompt:?} {:?}", crop.get_pixel(0, 0).0);
        Ok(crops.iter().skip(self.drop).map(say).collect())
    }
}

/// Runs out of memory with more crops than it holds, and notes how many it was given.
struct Small {
    holds: usize,
    calls: Arc<Mutex<Vec<usize>>>,
}

impl Captioner for Small {
    fn caption(&mut self, crops: &[RgbImage], _: CaptionPrompt) -> Result<Vec<String>, ModelError> {
        self.calls.lock().expect("not poisoned").push(crops.len());
        if crops.len() > self.holds {
            return Err(ModelError::OutOfMemory {
                model: "captioner",
                message: "CUDA out of memory".into(),
            });
        }
        Ok(crops.iter().map(|crop| crop.get_pixel(0, 0).0[0].to_string()).collect())
    }

    fn prepare(&mut self, batch_size: usize, prompt: CaptionPrompt) -> Result<(), ModelError> {
        self.caption(&vec![RgbImage::new(1, 1); batch_size], prompt).map(drop)
    }
}

struct Broken;

impl Detector for Broken {
    fn detect(&mut self, _: &RgbImage, _: f32) -> Result<Vec<Detection>, ModelError> {
        Err(ModelError::Backend {
            model: "detector",
            message: "out of memory".into(),
        })
    }
}

fn icon(x: f32, y: f32, width: f32, height: f32, score: f32) -> Detection {
    Detection {
        rect: Rect::new(x, y, x + width, y + height),
        score,
    }
}

fn line(x: f32, y: f32, width: f32, height: f32, text: &str) -> TextLine {
    let quad = [[x, y], [x + width, y], [x + width, y + height], [x, y + height]];
    TextLine {
        quad,
        text: text.into(),
        score: 0.9,
    }
}

fn screen() -> RgbImage {
    RgbImage::from_pixel(400, 300, Rgb([7, 7, 7]))
}

fn parser(icons: Vec<Detection>, lines: Vec<TextLine>, captioner: bool) -> Parser {
    let captioner = captioner.then(|| Box::new(Words { drop: 0 }) as Box<dyn Captioner + Send>);
    Parser::new(Box::new(Icons(icons)), Some(Box::new(Lines(lines))), captioner)
}

#[test]
fn text_icons_and_icons_with_text() {
    let icons = vec![
        icon(10.0, 10.0, 40.0, 40.0, 0.4),
        icon(100.0, 10.0, 120.0, 40.0, 0.9),
        icon(390.0, 290.0, 50.0, 50.0, 0.3),
    ];
    let lines = vec![
        line(110.0, 12.0, 100.0, 15.0, "Save"),
        line(110.0, 30.0, 100.0, 15.0, "as"),
        line(20.0, 200.0, 90.5, 20.0, "Title"),
    ];
    let parsed = parser(icons, lines, false)
        .parse(&screen(), &ParseOptions::default())
        .unwrap();
    let seen: Vec<_> = parsed
        .elements
        .iter()
        .map(|e| {
            (
                e.element_id,
                e.kind,
                e.source,
                e.bbox,
                e.caption.as_deref(),
                e.interactable,
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            (
                0,
                ElementKind::Text,
                Source::OcrText,
                [20, 200, 90, 20],
                Some("Title"),
                false
            ),
            (
                1,
                ElementKind::Icon,
                Source::IconWithText,
                [100, 10, 120, 40],
                Some("Save as"),
                true
            ),
            (2, ElementKind::Icon, Source::Icon, [10, 10, 40, 40], None, true),
            (3, ElementKind::Icon, Source::Icon, [390, 290, 10, 10], None, true),
        ]
    );
    assert!(
        parsed
            .elements
            .iter()
            .all(|e| (e.confidence - 1.0).abs() < f32::EPSILON && e.content == e.caption)
    );
    assert!((parsed.elements[1].score - 0.9).abs() < f32::EPSILON);
    assert_eq!(parsed.elements[0].center, [65, 210]);
    assert_eq!(
        (
            parsed.ocr_detected,
            parsed.icon_detected,
            parsed.text_detected,
            parsed.interactable_count
        ),
        (3, 3, 1, 3)
    );
}

#[test]
fn serialises_with_the_names_of_the_rest_api() {
    let icons = vec![icon(10.0, 10.0, 40.0, 40.0, 0.5)];
    let parsed = parser(icons, vec![], false)
        .parse(&screen(), &ParseOptions::default())
        .unwrap();
    let expected = serde_json::json!({
        "bbox": [10, 10, 40, 40], "center": [30, 30], "confidence": 1.0, "score": 0.5, "type": "icon", "caption": null,
        "interactable": true, "content": null, "source": "box_yolo_content_yolo", "element_id": 0,
    });
    assert_eq!(serde_json::to_value(&parsed.elements[0]).unwrap(), expected);
}

#[test]
fn an_icon_in_a_line_goes_and_no_text_is_lost() {
    // The icon lies in the long line and holds the short one: upstream loses the short one here.
    let icons = vec![icon(50.0, 100.0, 40.0, 20.0, 0.9)];
    let lines = vec![
        line(52.0, 102.0, 30.0, 14.0, "x"),
        line(40.0, 95.0, 200.0, 30.0, "long"),
    ];
    let parsed = parser(icons, lines, false)
        .parse(&screen(), &ParseOptions::default())
        .unwrap();
    let words: Vec<_> = parsed.elements.iter().filter_map(|e| e.content.as_deref()).collect();
    assert_eq!((words, parsed.icon_detected), (vec!["x", "long"], 0));
}

#[test]
fn the_smaller_of_two_overlapping_icons_stays() {
    let icons = vec![icon(0.0, 0.0, 200.0, 200.0, 0.9), icon(20.0, 20.0, 30.0, 30.0, 0.2)];
    let parsed = parser(icons, vec![], false)
        .parse(&screen(), &ParseOptions::default())
        .unwrap();
    assert_eq!(
        parsed.elements.iter().map(|e| e.bbox).collect::<Vec<_>>(),
        [[20, 20, 30, 30]]
    );
    let wide = ParseOptions {
        iou_threshold: 1.0,
        ..ParseOptions::default()
    };
    let icons = vec![icon(0.0, 0.0, 200.0, 200.0, 0.9), icon(20.0, 20.0, 30.0, 30.0, 0.2)];
    assert_eq!(
        parser(icons, vec![], false)
            .parse(&screen(), &wide)
            .unwrap()
            .elements
            .len(),
        2
    );
}

#[test]
fn no_text_and_nothing_at_all_are_fine() {
    let parsed = parser(vec![], vec![], true)
        .parse(&screen(), &ParseOptions::default())
        .unwrap();
    assert_eq!(
        (parsed.elements.len(), parsed.ocr_detected, parsed.total_detected()),
        (0, 0, 0)
    );
    let mut without = Parser::new(Box::new(Icons(vec![icon(1.0, 1.0, 9.0, 9.0, 0.9)])), None, None);
    assert_eq!(
        without
            .parse(&screen(), &ParseOptions::default())
            .unwrap()
            .elements
            .len(),
        1
    );
}

#[test]
fn the_profile_cuts_text_first_and_marks_stay_whole() {
    let icons = (0..12_u8)
        .map(|at| icon(f32::from(at) * 30.0, 10.0, 20.0, 20.0, 0.5))
        .collect();
    let lines = (0..10_u8)
        .map(|at| line(5.0, 60.0 + f32::from(at) * 20.0, 60.0, 12.0, "t"))
        .collect();
    let options = ParseOptions {
        profile: hawkeye_pipeline::profile::ProfileSettings {
            ocr: true,
            ..Profile::Speed.settings()
        },
        ..ParseOptions::default()
    };
    let parsed = parser(icons, lines, false).parse(&screen(), &options).unwrap();
    assert_eq!(
        (parsed.elements.len(), parsed.total_detected(), parsed.ocr_detected),
        (15, 22, 10)
    );
    assert!(
        parsed.elements[..12].iter().all(|e| e.interactable) && parsed.elements[12..].iter().all(|e| !e.interactable)
    );
    for element in &parsed.elements {
        let mark = parsed.marks[element.element_id];
        assert_eq!(element.bbox, [mark.x, mark.y, mark.width, mark.height]);
    }
}

#[test]
fn ocr_runs_only_when_request_and_profile_want_it() {
    for (include_ocr, profile, found) in [
        (true, Profile::Balanced, 1),
        (false, Profile::Balanced, 0),
        (true, Profile::Speed, 0),
    ] {
        let options = ParseOptions {
            include_ocr,
            profile: profile.settings(),
            ..ParseOptions::default()
        };
        let parsed = parser(vec![], vec![line(1.0, 1.0, 50.0, 10.0, "a")], false)
            .parse(&screen(), &options)
            .unwrap();
        assert_eq!(parsed.ocr_detected, found, "{include_ocr} {profile}");
        assert_eq!(parsed.times.ocr.is_zero(), found == 0);
    }
}

#[test]
fn the_basic_mode_reports_icons_with_their_scores() {
    let lines = vec![line(10.0, 10.0, 30.0, 10.0, "text")];
    for options in [
        ParseOptions {
            include_captions: false,
            ..ParseOptions::default()
        },
        ParseOptions {
            use_full_pipeline: false,
            ..ParseOptions::default()
        },
    ] {
        let icons = vec![icon(10.0, 10.0, 40.0, 40.0, 0.25)];
        let parsed = parser(icons, lines.clone(), true).parse(&screen(), &options).unwrap();
        assert_eq!((parsed.full, parsed.ocr_detected, parsed.elements.len()), (false, 0, 1));
        let only = &parsed.elements[0];
        assert_eq!(
            (only.kind, only.confidence.to_bits(), &only.content),
            (ElementKind::InteractiveElement, 0.25_f32.to_bits(), &None)
        );
        assert_eq!(only.caption.is_some(), options.include_captions);
    }
}

#[test]
fn only_icons_without_words_are_captioned() {
    let icons = vec![icon(10.0, 10.0, 40.0, 40.0, 0.9), icon(100.0, 10.0, 60.0, 30.0, 0.9)];
    let lines = vec![line(105.0, 12.0, 50.0, 20.0, "OK")];
    let parsed = parser(icons, lines, true)
        .parse(&screen(), &ParseOptions::default())
        .unwrap();
    let captions: Vec<_> = parsed.elements.iter().filter_map(|e| e.caption.as_deref()).collect();
    assert_eq!(captions, ["OK", "DetailedCaption [7, 7, 7]"]);
}

#[test]
fn failing_models_fail_the_parse() {
    let mut broken = Parser::new(Box::new(Broken), None, None);
    let error = broken.parse(&screen(), &ParseOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "detector: out of memory");
    let icons = Box::new(Icons(vec![icon(1.0, 1.0, 9.0, 9.0, 0.9)]));
    let mut short = Parser::new(icons, None, Some(Box::new(Words { drop: 1 })));
    let error = short.parse(&screen(), &ParseOptions::default()).unwrap_err();
    assert!(
        matches!(error, ParseError::CaptionCount { asked: 1, answered: 0 }),
        "{error}"
    );
}

#[test]
fn a_batch_that_memory_does_not_hold_is_halved_and_stays_small() {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let small = Small {
        holds: 3,
        calls: Arc::clone(&calls),
    };
    let mut parser = Parser::new(Box::new(Icons(vec![])), None, Some(Box::new(small))).with_batch_size(16);
    let crops: Vec<RgbImage> = (0..20).map(|at| RgbImage::from_pixel(64, 64, Rgb([at; 3]))).collect();
    let wanted: Vec<String> = (0..20).map(|at| at.to_string()).collect();
    assert_eq!(parser.describe(&crops, CaptionPrompt::Caption).unwrap(), wanted);
    assert_eq!(parser.batch_size(), 2);
    assert_eq!(
        calls.lock().unwrap()[..4],
        [16, 8, 4, 2],
        "each crop that fitted is captioned once"
    );
    assert_eq!(calls.lock().unwrap().len(), 3 + 10);
    calls.lock().unwrap().clear();
    parser.describe(&crops, CaptionPrompt::Caption).unwrap();
    assert_eq!(*calls.lock().unwrap(), [2; 10]);
}

#[test]
fn a_captioner_is_made_ready_for_the_largest_batch_that_memory_holds() {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let small = |holds| Small {
        holds,
        calls: Arc::clone(&calls),
    };
    let parser = |captioner| Parser::new(Box::new(Icons(vec![])), None, Some(Box::new(captioner))).with_batch_size(16);
    let mut ready = parser(small(5));
    ready.prepare(CaptionPrompt::Caption).unwrap();
    assert_eq!(ready.batch_size(), 4);
    ready
        .describe(&vec![RgbImage::new(64, 64); 6], CaptionPrompt::Caption)
        .unwrap();
    assert_eq!(
        *calls.lock().unwrap(),
        [16, 8, 4, 4, 2],
        "no request meets a batch that is too large"
    );
    let error = parser(small(0)).prepare(CaptionPrompt::Caption).unwrap_err();
    assert!(matches!(error, ModelError::OutOfMemory { .. }), "{error}");
    let mut without = Parser::new(Box::new(Icons(vec![])), None, None);
    without.prepare(CaptionPrompt::Caption).unwrap();
}

#[test]
fn one_crop_that_memory_does_not_hold_fails_the_call() {
    let small = Small {
        holds: 0,
        calls: Arc::default(),
    };
    let mut parser = Parser::new(Box::new(Icons(vec![])), None, Some(Box::new(small))).with_batch_size(4);
    let crops = vec![RgbImage::new(64, 64); 4];
    let error = parser.describe(&crops, CaptionPrompt::Caption).unwrap_err();
    assert_eq!(error.to_string(), "captioner: CUDA out of memory");
}

#[test]
fn stages_that_run_apart_come_to_the_same() {
    let icons = || vec![icon(10.0, 10.0, 40.0, 40.0, 0.9), icon(100.0, 10.0, 60.0, 30.0, 0.9)];
    let lines = || vec![line(105.0, 12.0, 50.0, 20.0, "OK")];
    let options = ParseOptions::default();
    let mut whole = parser(icons(), lines(), true).parse(&screen(), &options).unwrap();
    let mut parser = parser(icons(), lines(), true);
    let found = parser.find(&screen(), &options).unwrap();
    let crops = found.crops(&screen());
    assert_eq!((found.wanted(), crops.len()), (1, 1));
    let short = found.clone().described(Vec::<String>::new(), Duration::ZERO);
    assert!(matches!(short, Err(ParseError::CaptionCount { asked: 1, answered: 0 })));
    // The crops of several screenshots share a call.
    let both = [crops.clone(), crops].concat();
    let captions = parser.describe(&both, found.prompt()).unwrap();
    assert_eq!(captions.len(), 2);
    let mut parts = found
        .described(vec![captions[1].clone()], Duration::from_millis(3))
        .unwrap();
    assert_eq!(parts.times.caption, Duration::from_millis(3));
    (whole.times, parts.times) = Default::default();
    assert_eq!(parts, whole);
}

#[test]
fn marks_are_drawn_in_bounds_and_leave_the_rest_alone() {
    let icons = vec![
        icon(0.0, 0.0, 30.0, 30.0, 0.9),
        icon(380.0, 280.0, 20.0, 20.0, 0.8),
        icon(100.0, 100.0, 50.0, 20.0, 0.7),
    ];
    let parsed = parser(icons, vec![], false)
        .parse(&screen(), &ParseOptions::default())
        .unwrap();
    let picture = draw_marks(screen(), &parsed.marks);
    assert_eq!(picture.dimensions(), (400, 300));
    for mark in &parsed.marks {
        assert_ne!(
            picture.get_pixel(mark.x, mark.bottom() - 1),
            &Rgb([7, 7, 7]),
            "{mark:?}"
        );
    }
    // Inside of the third frame and far from any.
    assert_eq!(
        (picture.get_pixel(125, 110), picture.get_pixel(250, 50)),
        (&Rgb([7, 7, 7]), &Rgb([7, 7, 7]))
    );
    // Its label stands above its left edge.
    assert_eq!(picture.get_pixel(100, 99), picture.get_pixel(100, 100));
}
