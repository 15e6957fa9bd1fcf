//! Where the time of one parse went: in the answer, in the header `Server-Timing` and in the metrics, under one name each.

use crate::metrics::{Metrics, Stage};
use hawkeye_pipeline::parser::StageTimes;
use serde::Serialize;
use std::fmt::Write as _;
use std::time::Duration;
use utoipa::ToSchema;

/// Wall-clock time of each step; zero for a step that did not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Steps {
    /// Waiting for a place among the decoded pictures, and then for the device.
    pub queue: Duration,
    /// JSON, base64 and the image's own compression.
    pub decode: Duration,
    /// The models' part.
    pub models: StageTimes,
    /// Drawing the marks and encoding the picture.
    pub encode: Duration,
}

/// Milliseconds of each step, two decimals; null for a step that did not run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct TimingsMs {
    /// Waiting for the device.
    #[schema(required)]
    pub queue: Option<f64>,
    /// JSON, base64 and image decoding.
    #[schema(required)]
    pub decode: Option<f64>,
    /// Icon detector.
    #[schema(required)]
    pub detect: Option<f64>,
    /// Text recognition.
    #[schema(required)]
    pub ocr: Option<f64>,
    /// Captioner.
    #[schema(required)]
    pub caption: Option<f64>,
    /// Merging icons and texts.
    #[schema(required)]
    pub merge: Option<f64>,
    /// Drawing and encoding the annotated picture.
    #[schema(required)]
    pub encode: Option<f64>,
}

impl Steps {
    const fn all(&self) -> [(Stage, &'static str, Duration); 7] {
        [
            (Stage::Queue, "queue", self.queue),
            (Stage::Decode, "decode", self.decode),
            (Stage::Detect, "detect", self.models.detect),
            (Stage::Ocr, "ocr", self.models.ocr),
            (Stage::Merge, "merge", self.models.merge),
            (Stage::Caption, "caption", self.models.caption),
            (Stage::Encode, "encode", self.encode),
        ]
    }

    /// The value of `Server-Timing`: the steps that ran, in milliseconds, as browsers and proxies read them.
    pub fn header(&self) -> String {
        let mut text = String::new();
        for (_, name, took) in self.all().into_iter().filter(|(_, _, took)| !took.is_zero()) {
            let separator = if text.is_empty() { "" } else { ", " };
            // Writing to a string cannot fail.
            write!(text, "{separator}{name};dur={:.2}", took.as_secs_f64() * 1e3).unwrap_or_default();
        }
        text
    }

    /// The steps as the answer has them.
    pub fn document(&self) -> TimingsMs {
        TimingsMs {
            queue: milliseconds(self.queue),
            decode: milliseconds(self.decode),
            detect: milliseconds(self.models.detect),
            ocr: milliseconds(self.models.ocr),
            caption: milliseconds(self.models.caption),
            merge: milliseconds(self.models.merge),
            encode: milliseconds(self.encode),
        }
    }

    /// Records the steps that ran.
    pub fn record(&self, metrics: &Metrics) {
        for (stage, _, took) in self.all().into_iter().filter(|(_, _, took)| !took.is_zero()) {
            metrics.stage(stage, took);
        }
    }
}

fn milliseconds(took: Duration) -> Option<f64> {
    (!took.is_zero()).then(|| (took.as_secs_f64() * 1e5).round() / 1e2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_and_answer_say_the_same_of_the_steps_that_ran() {
        let steps = Steps {
            queue: Duration::from_micros(1_500),
            models: StageTimes {
                detect: Duration::from_millis(40),
                ..StageTimes::default()
            },
            ..Steps::default()
        };
        assert_eq!(steps.header(), "queue;dur=1.50, detect;dur=40.00");
        let document = steps.document();
        assert_eq!(
            (document.queue, document.detect, document.ocr),
            (Some(1.5), Some(40.0), None)
        );
    }
}
