//! From what clients send to typed options, as forgiving as the Python service: its model accepts `"yes"` for a
//! boolean and `"0.3"` for a number.

use crate::error::{ApiError, FieldError};
use hawkeye_pipeline::parser::ParseOptions;
use hawkeye_pipeline::profile::ProfileSettings;
use serde_json::{Map, Value, json};

/// Options of a request, the Python service's names and defaults.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(clippy::struct_excessive_bools)] // They are the fields of the API.
pub struct Options {
    /// Caption icons; `false` means icons only, as with `use_full_pipeline=false`.
    pub include_captions: bool,
    /// Answer with the annotated picture.
    pub include_som: bool,
    /// Read text.
    pub include_ocr: bool,
    /// `false`: icons only, with the detector's score as `confidence`.
    pub use_full_pipeline: bool,
    /// Lowest detector score, 0–1; `None`: the service's setting.
    pub min_confidence: Option<f32>,
    /// Boxes that overlap more are one, 0–1.
    pub iou_threshold: f32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            include_captions: true,
            include_som: true,
            include_ocr: true,
            use_full_pipeline: true,
            min_confidence: None,
            iou_threshold: 0.1,
        }
    }
}

impl Options {
    /// Reads the options out of `fields`, which came from `place` (`body` or `query`); other keys are ignored. What
    /// is not there keeps its value.
    ///
    /// # Errors
    /// [`ApiError::Schema`] with one entry per bad field.
    pub fn read(mut self, place: &str, fields: &Map<String, Value>) -> Result<Self, ApiError> {
        let mut errors = Vec::new();
        // One OCR engine: accepted and checked, without effect.
        let mut use_paddleocr = true;
        for (name, target) in [
            ("include_captions", &mut self.include_captions),
            ("include_som", &mut self.include_som),
            ("include_ocr", &mut self.include_ocr),
            ("use_full_pipeline", &mut self.use_full_pipeline),
            ("use_paddleocr", &mut use_paddleocr),
        ] {
            match fields.get(name).map(|value| boolean(place, name, value)) {
                Some(Ok(value)) => *target = value,
                Some(Err(error)) => errors.push(error),
                None => {}
            }
        }
        match fields.get("min_confidence") {
            None => {}
            Some(Value::Null) => self.min_confidence = None,
            Some(value) => match fraction(place, "min_confidence", value) {
                // 0 was falsy in the Python service and meant "the setting".
                Ok(score) => self.min_confidence = (score > 0.0).then_some(score),
                Err(error) => errors.push(error),
            },
        }
        if let Some(value) = fields.get("iou_threshold") {
            match fraction(place, "iou_threshold", value) {
                Ok(iou) => self.iou_threshold = iou,
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() {
            Ok(self)
        } else {
            Err(ApiError::Schema(errors))
        }
    }

    /// What the pipeline is asked, with the service's settings for what the request leaves open.
    pub fn for_pipeline(&self, settings: Settings) -> ParseOptions {
        ParseOptions {
            include_captions: self.include_captions,
            include_ocr: self.include_ocr,
            use_full_pipeline: self.use_full_pipeline,
            min_confidence: self.min_confidence.unwrap_or(settings.min_confidence),
            iou_threshold: self.iou_threshold,
            profile: settings.profile,
            max_detections: settings.max_detections,
            ..ParseOptions::default()
        }
    }
}

/// The service's settings that a request may leave open.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Speed or thoroughness.
    pub profile: ProfileSettings,
    /// Lowest detector score, 0–1.
    pub min_confidence: f32,
    /// The most elements of the basic mode.
    pub max_detections: usize,
}

/// Reads a JSON body that must be an object.
///
/// # Errors
/// [`ApiError::Schema`] for anything else.
pub fn json_object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    if body.is_empty() {
        return Err(FieldError::new("missing", "body", "", "Field required").into());
    }
    let value: Value = serde_json::from_slice(body).map_err(|error| {
        let mut field = FieldError::new("json_invalid", "body", "", "JSON decode error");
        field.loc.push(Value::from(error.column()));
        field.with_ctx(json!({ "error": error.to_string() }))
    })?;
    match value {
        Value::Object(fields) => Ok(fields),
        other => Err(FieldError::new(
            "model_attributes_type",
            "body",
            "",
            "Input should be a valid dictionary or object to extract fields from",
        )
        .with_input(&other)
        .into()),
    }
}

/// Reads the JSON body of `/parse`: the image, still in base64, and the options.
///
/// # Errors
/// [`ApiError::Schema`] for what is not the schema.
pub fn parse_body(body: &[u8]) -> Result<(String, Options), ApiError> {
    let mut fields = json_object(body)?;
    let image = match fields.remove("image") {
        Some(Value::String(image)) => Ok(image),
        Some(other) => {
            Err(FieldError::new("string_type", "body", "image", "Input should be a valid string").with_input(&other))
        }
        None => Err(FieldError::new("missing", "body", "image", "Field required")),
    };
    let options = Options::default().read("body", &fields);
    match (image, options) {
        (Ok(image), Ok(options)) => Ok((image, options)),
        (Err(error), Err(ApiError::Schema(mut errors))) => {
            errors.insert(0, error);
            Err(ApiError::Schema(errors))
        }
        (Err(error), _) => Err(error.into()),
        (Ok(_), Err(error)) => Err(error),
    }
}

fn boolean(place: &str, name: &str, value: &Value) -> Result<bool, FieldError> {
    let unclear = || {
        let message = "Input should be a valid boolean, unable to interpret input";
        FieldError::new("bool_parsing", place, name, message).with_input(value)
    };
    match value {
        Value::Bool(value) => Ok(*value),
        Value::Number(number) => match number.as_f64() {
            Some(0.0) => Ok(false),
            Some(1.0) => Ok(true),
            _ => Err(unclear()),
        },
        Value::String(text) => match text.to_ascii_lowercase().as_str() {
            "1" | "on" | "t" | "true" | "y" | "yes" => Ok(true),
            "0" | "off" | "f" | "false" | "n" | "no" => Ok(false),
            _ => Err(unclear()),
        },
        _ => Err(FieldError::new("bool_type", place, name, "Input should be a valid boolean").with_input(value)),
    }
}

fn fraction(place: &str, name: &str, value: &Value) -> Result<f32, FieldError> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => Some(text.trim().parse::<f64>().map_err(|_| {
            let message = "Input should be a valid number, unable to parse string as a number";
            FieldError::new("float_parsing", place, name, message).with_input(value)
        })?),
        _ => None,
    };
    let error = |kind, message: &str| FieldError::new(kind, place, name, message).with_input(value);
    match number {
        None => Err(error("float_type", "Input should be a valid number")),
        Some(number) if !number.is_finite() => Err(error("finite_number", "Input should be a finite number")),
        Some(number) if number < 0.0 => {
            Err(error("greater_than_equal", "Input should be greater than or equal to 0").with_ctx(json!({ "ge": 0 })))
        }
        Some(number) if number > 1.0 => {
            Err(error("less_than_equal", "Input should be less than or equal to 1").with_ctx(json!({ "le": 1 })))
        }
        Some(number) => Ok(number as f32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawkeye_pipeline::profile::Profile;

    fn kinds(error: ApiError) -> Vec<(String, Value)> {
        match error {
            ApiError::Schema(errors) => errors
                .into_iter()
                .map(|error| (error.kind.to_owned(), json!(error.loc)))
                .collect(),
            other => vec![(other.to_string(), Value::Null)],
        }
    }

    #[test]
    fn defaults_hold_when_only_the_image_is_sent() {
        let (image, options) = parse_body(br#"{"image":"aGVsbG8="}"#).expect("valid");
        assert_eq!(image, "aGVsbG8=");
        assert_eq!(options, Options::default());
    }

    #[test]
    fn values_are_read_as_loosely_as_pydantic_does() {
        let body = br#"{"image":"aGVsbG8=","include_som":"off","include_ocr":0,"use_full_pipeline":"True",
            "min_confidence":"0.3","iou_threshold":0.5,"something":"else","use_paddleocr":false}"#;
        let (_, options) = parse_body(body).expect("valid");
        let wanted = Options {
            include_som: false,
            include_ocr: false,
            min_confidence: Some(0.3),
            iou_threshold: 0.5,
            ..Options::default()
        };
        assert_eq!(options, wanted);
    }

    #[test]
    fn zero_and_null_confidence_mean_the_setting() {
        for value in ["0", "null", "0.0"] {
            let body = format!(r#"{{"image":"aGVsbG8=","min_confidence":{value}}}"#);
            assert_eq!(parse_body(body.as_bytes()).expect("valid").1.min_confidence, None);
        }
    }

    #[test]
    fn every_bad_field_is_named() {
        let body = br#"{"include_som":"maybe","include_ocr":null,"min_confidence":1.5,"iou_threshold":"x"}"#;
        let error = parse_body(body).expect_err("bad");
        assert_eq!(
            kinds(error),
            [
                ("missing".to_owned(), json!(["body", "image"])),
                ("bool_parsing".to_owned(), json!(["body", "include_som"])),
                ("bool_type".to_owned(), json!(["body", "include_ocr"])),
                ("less_than_equal".to_owned(), json!(["body", "min_confidence"])),
                ("float_parsing".to_owned(), json!(["body", "iou_threshold"])),
            ]
        );
    }

    #[test]
    fn bodies_that_are_no_objects_are_refused() {
        for (body, kind) in [
            ("", "missing"),
            ("{", "json_invalid"),
            ("[1]", "model_attributes_type"),
            (r#"{"image":5}"#, "string_type"),
        ] {
            assert_eq!(
                kinds(parse_body(body.as_bytes()).expect_err("bad"))[0].0,
                kind,
                "{body}"
            );
        }
    }

    #[test]
    fn the_request_wins_over_the_setting() {
        let settings = Settings {
            profile: Profile::Speed.settings(),
            min_confidence: 0.3,
            max_detections: 7,
        };
        let open = Options::default();
        assert!((open.for_pipeline(settings).min_confidence - 0.3).abs() < f32::EPSILON);
        assert_eq!(open.for_pipeline(settings).profile, Profile::Speed.settings());
        assert_eq!(open.for_pipeline(settings).max_detections, 7);
        let given = Options {
            min_confidence: Some(0.7),
            ..open
        };
        assert!((given.for_pipeline(settings).min_confidence - 0.7).abs() < f32::EPSILON);
    }

    #[test]
    fn a_query_that_is_not_finite_is_refused() {
        let mut fields = Map::new();
        fields.insert("min_confidence".to_owned(), Value::from("nan"));
        let error = Options::default().read("query", &fields).expect_err("bad");
        assert_eq!(
            kinds(error),
            [("finite_number".to_owned(), json!(["query", "min_confidence"]))]
        );
    }
}
