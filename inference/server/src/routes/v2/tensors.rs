//! Requests and answers of `infer`: tensors as JSON.

use super::super::work::Screenshot;
use crate::api::ParseResponse;
use crate::error::{ApiError, FieldError};
use crate::input::Options;
use hawkeye_pipeline::decode::DecodeLimits;
use image::RgbImage;
use serde::de::{DeserializeSeed, Deserializer, Error as _, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;
use utoipa::ToSchema;

/// Name, type and shape of a tensor; -1 stands for any length.
#[derive(Debug)]
pub(super) struct Tensor {
    name: &'static str,
    datatype: &'static str,
    shape: &'static [i64],
}

/// The picture. What is announced is the form that everybody can send; see [`read`] for the other.
pub(super) const INPUT: Tensor = Tensor {
    name: "image",
    datatype: "BYTES",
    shape: &[1],
};

/// The document that `/parse` answers, then what programs need of it: `[x, y, width, height]` in pixels, scores 0–1.
pub(super) const OUTPUTS: [Tensor; 3] = [
    Tensor {
        name: "response",
        datatype: "BYTES",
        shape: &[1],
    },
    Tensor {
        name: "boxes",
        datatype: "INT32",
        shape: &[-1, 4],
    },
    Tensor {
        name: "scores",
        datatype: "FP32",
        shape: &[-1],
    },
];

/// A tensor's name, type and shape.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TensorMetadata {
    name: &'static str,
    datatype: &'static str,
    /// -1 stands for any length.
    shape: Vec<i64>,
}

impl Tensor {
    pub(super) fn metadata(&self) -> TensorMetadata {
        TensorMetadata {
            name: self.name,
            datatype: self.datatype,
            shape: self.shape.to_vec(),
        }
    }
}

/// An inference request.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(example = json!({ "inputs": [
    { "name": "image", "datatype": "BYTES", "shape": [1], "data": [crate::openapi::EXAMPLE_IMAGE] }
] }))]
pub(super) struct InferRequest {
    /// Comes back in the answer.
    #[serde(default)]
    id: Option<String>,
    /// Options of `/parse`, by their names.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    parameters: Option<Map<String, Value>>,
    /// One: `image`.
    #[schema(min_items = 1, max_items = 1)]
    inputs: Vec<InputTensor>,
    /// The outputs that are wanted, if not all.
    #[serde(default)]
    outputs: Option<Vec<RequestedOutput>>,
}

/// An input.
#[derive(Debug, Deserialize, ToSchema)]
struct InputTensor {
    /// `image`
    name: String,
    /// `[1]` of BYTES, `[height, width, 3]` of UINT8.
    shape: Vec<u64>,
    /// `BYTES` or `UINT8`
    datatype: String,
    /// The file in base64, or the pixels in RGB, nested or in one row.
    #[schema(value_type = Vec<Value>)]
    data: Data,
}

/// An output that is wanted.
#[derive(Debug, Deserialize, ToSchema)]
struct RequestedOutput {
    /// `response`, `boxes` or `scores`
    name: String,
}

/// An answer.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct InferResponse {
    pub model_name: &'static str,
    /// Name of the detector.
    pub model_version: String,
    /// The request's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// In the order in which they were asked for.
    pub outputs: Vec<OutputTensor>,
}

/// An output.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OutputTensor {
    name: &'static str,
    datatype: &'static str,
    shape: Vec<usize>,
    #[schema(value_type = Vec<Value>)]
    data: OutputData,
}

/// Elements of an output. Numbers keep their type: as a double, the single 0.9 would be written 0.8999999761581421.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum OutputData {
    Integers(Vec<u32>),
    Singles(Vec<f32>),
    Text([String; 1]),
}

/// Elements of a tensor in row-major order, however they were nested. One byte each: a list of JSON values would take
/// some thirty times the picture.
#[derive(Debug, Default)]
struct Data {
    texts: Vec<String>,
    bytes: Vec<u8>,
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut data = Self::default();
        Filling(&mut data).deserialize(deserializer)?;
        Ok(data)
    }
}

/// Reads a value, or a list of them at any depth, into a tensor.
struct Filling<'a>(&'a mut Data);

impl<'de> DeserializeSeed<'de> for Filling<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Filling<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("strings, or whole numbers from 0 to 255")
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<(), E> {
        let byte = u8::try_from(number).map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))?;
        self.0.bytes.push(byte);
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        self.0.texts.push(text.to_owned());
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Filling(&mut *self.0))?.is_some() {
            if !self.0.texts.is_empty() && !self.0.bytes.is_empty() {
                return Err(A::Error::custom("strings and numbers in one tensor"));
            }
        }
        Ok(())
    }
}

/// What a request asks for.
#[derive(Debug)]
pub(super) struct Asked {
    pub id: Option<String>,
    pub screenshot: Screenshot,
    pub options: Options,
    /// Names out of [`OUTPUTS`].
    pub wanted: Vec<&'static str>,
}

fn invalid(field: &str, reason: impl Into<String>) -> ApiError {
    FieldError::new("value_error", "body", field, reason).into()
}

/// Reads the body of `infer`: one tensor `image`, either BYTES of the shape `[1]` with a file in base64, or UINT8 of the shape
/// `[height, width, 3]` with RGB pixels, both also with a leading batch dimension of 1.
///
/// # Errors
/// [`ApiError::Schema`] for what is no such request, [`ApiError::TooLarge`] for pixels over the limits.
pub(super) fn read(body: &[u8], limits: &DecodeLimits) -> Result<Asked, ApiError> {
    let request: InferRequest = serde_json::from_slice(body).map_err(|error| invalid("body", error.to_string()))?;
    let options = Options::default().read("parameters", &request.parameters.unwrap_or_default())?;
    let wanted = match request.outputs.filter(|outputs| !outputs.is_empty()) {
        None => OUTPUTS.iter().map(|tensor| tensor.name).collect(),
        Some(outputs) => outputs.iter().map(known).collect::<Result<_, _>>()?,
    };
    let count = request.inputs.len();
    let Ok([input]) = <[InputTensor; 1]>::try_from(request.inputs) else {
        return Err(invalid("inputs", format!("One tensor is expected, {count} came")));
    };
    if input.name != INPUT.name {
        return Err(invalid(
            "inputs",
            format!("There is no input {:?}; there is \"image\"", input.name),
        ));
    }
    Ok(Asked {
        id: request.id,
        screenshot: screenshot(input, limits)?,
        options,
        wanted,
    })
}

fn known(output: &RequestedOutput) -> Result<&'static str, ApiError> {
    let found = OUTPUTS.iter().find(|tensor| tensor.name == output.name);
    found.map(|tensor| tensor.name).ok_or_else(|| {
        let reason = format!(
            "There is no output {:?}; there are \"response\", \"boxes\" and \"scores\"",
            output.name
        );
        invalid("outputs", reason)
    })
}

fn screenshot(input: InputTensor, limits: &DecodeLimits) -> Result<Screenshot, ApiError> {
    let InputTensor {
        shape, datatype, data, ..
    } = input;
    let mismatch = |expected: &str| {
        invalid(
            "inputs",
            format!("{datatype} of the shape {shape:?}: expected {expected}"),
        )
    };
    match (datatype.as_str(), shape.as_slice()) {
        ("BYTES", [1] | [1, 1]) => match <[String; 1]>::try_from(data.texts) {
            Ok([text]) if data.bytes.is_empty() => Ok(Screenshot::Base64(text)),
            _ => Err(mismatch("one string in base64")),
        },
        ("UINT8", &([height, width, 3] | [1, height, width, 3])) => {
            let DecodeLimits {
                max_pixels, max_side, ..
            } = *limits;
            if height.saturating_mul(width) > max_pixels || height.max(width) > u64::from(max_side) {
                return Err(ApiError::TooLarge(format!(
                    "Image too large: {width}×{height} pixels, at most {max_pixels} in all and {max_side} a side are accepted"
                )));
            }
            let size = (u32::try_from(width), u32::try_from(height));
            let (Ok(columns @ 1..), Ok(rows @ 1..)) = size else {
                return Err(mismatch("a picture with pixels"));
            };
            let expected = height * width * 3;
            if data.bytes.len() as u64 != expected {
                return Err(mismatch(&format!("{expected} numbers")));
            }
            RgbImage::from_raw(columns, rows, data.bytes)
                .map(Screenshot::Pixels)
                .ok_or_else(|| mismatch("one number for each colour of each pixel"))
        }
        ("BYTES", _) => Err(mismatch("the shape [1]")),
        ("UINT8", _) => Err(mismatch("the shape [height, width, 3]")),
        _ => Err(mismatch("BYTES or UINT8")),
    }
}

/// The outputs that are wanted, in that order.
///
/// # Errors
/// When the document cannot be written as JSON, which is a defect.
pub(super) fn outputs(document: &ParseResponse, wanted: &[&'static str]) -> Result<Vec<OutputTensor>, ApiError> {
    wanted.iter().map(|name| output(document, name)).collect()
}

fn output(document: &ParseResponse, name: &'static str) -> Result<OutputTensor, ApiError> {
    let elements = &document.elements;
    let (datatype, shape, data) = match name {
        "boxes" => {
            let numbers = elements.iter().flat_map(|element| element.bbox).collect();
            ("INT32", vec![elements.len(), 4], OutputData::Integers(numbers))
        }
        "scores" => {
            let scores = elements.iter().map(|element| element.score).collect();
            ("FP32", vec![elements.len()], OutputData::Singles(scores))
        }
        _ => {
            let text = serde_json::to_string(document).map_err(|error| ApiError::Internal(error.to_string()))?;
            ("BYTES", vec![1], OutputData::Text([text]))
        }
    };
    Ok(OutputTensor {
        name,
        datatype,
        shape,
        data,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const LIMITS: DecodeLimits = DecodeLimits {
        max_bytes: 1 << 20,
        max_pixels: 1000,
        max_side: 500,
    };

    fn reason(body: &Value) -> String {
        match read(body.to_string().as_bytes(), &LIMITS).expect_err("is refused") {
            ApiError::Schema(errors) => errors[0].msg.clone(),
            other => other.to_string(),
        }
    }

    fn input(datatype: &str, shape: &Value, data: &Value) -> Value {
        json!({ "inputs": [{ "name": "image", "datatype": datatype, "shape": shape, "data": data }] })
    }

    #[test]
    fn pixels_come_nested_or_in_one_row() {
        let flat = json!([1, 2, 3, 4, 5, 6]);
        let nested = json!([[[1, 2, 3], [4, 5, 6]]]);
        for (shape, data) in [(json!([1, 2, 3]), &flat), (json!([1, 1, 2, 3]), &nested)] {
            let asked = read(input("UINT8", &shape, data).to_string().as_bytes(), &LIMITS).expect("a picture");
            let Screenshot::Pixels(picture) = asked.screenshot else {
                unreachable!("pixels were sent");
            };
            assert_eq!(picture.dimensions(), (2, 1));
            assert_eq!(picture.into_raw(), [1, 2, 3, 4, 5, 6]);
        }
    }

    #[test]
    fn options_outputs_and_id_are_read() {
        let mut body = input("BYTES", &json!([1]), &json!(["aGVsbG8="]));
        body["id"] = json!("seven");
        body["parameters"] = json!({ "include_som": false, "min_confidence": 0.5 });
        body["outputs"] = json!([{ "name": "scores" }, { "name": "boxes" }]);
        let asked = read(body.to_string().as_bytes(), &LIMITS).expect("a request");
        assert!(matches!(asked.screenshot, Screenshot::Base64(text) if text == "aGVsbG8="));
        assert_eq!(asked.options.min_confidence, Some(0.5));
        assert!(!asked.options.include_som);
        assert_eq!(
            (asked.id.as_deref(), asked.wanted),
            (Some("seven"), vec!["scores", "boxes"])
        );
    }

    #[test]
    fn what_is_no_picture_is_refused_by_its_reason() {
        for (body, wanted) in [
            (json!({}), "missing field `inputs`"),
            (json!({ "inputs": [] }), "One tensor is expected, 0 came"),
            (
                input("UINT8", &json!([1, 2, 3]), &json!([1, 2, 300])),
                "invalid value: integer `300`",
            ),
            (
                input("UINT8", &json!([1, 2, 3]), &json!([1, -2])),
                "invalid type: integer `-2`",
            ),
            (
                input("UINT8", &json!([1, 2, 3]), &json!([1, "2"])),
                "strings and numbers",
            ),
            (input("UINT8", &json!([1, 2, 3]), &json!([1, 2])), "expected 6 numbers"),
            (input("UINT8", &json!([0, 2, 3]), &json!([])), "a picture with pixels"),
            (
                input("UINT8", &json!([2, 3]), &json!([])),
                "the shape [height, width, 3]",
            ),
            (input("UINT8", &json!([100, 100, 3]), &json!([])), "at most 1000 in all"),
            (input("UINT8", &json!([1, 600, 3]), &json!([])), "500 a side"),
            (input("BYTES", &json!([2]), &json!(["a", "b"])), "the shape [1]"),
            (input("BYTES", &json!([1]), &json!([1])), "one string in base64"),
            (input("FP32", &json!([1]), &json!([1])), "BYTES or UINT8"),
        ] {
            let reason = reason(&body);
            assert!(reason.contains(wanted), "{body}: {reason}");
        }
        let mut other = input("BYTES", &json!([1]), &json!(["aGVsbG8="]));
        other["outputs"] = json!([{ "name": "masks" }]);
        assert!(reason(&other).contains("There is no output \"masks\""));
    }
}
