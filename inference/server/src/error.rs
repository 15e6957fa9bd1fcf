//! Failed requests, in FastAPI's form: `{"detail": …}`.

use crate::metrics::Outcome;
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};
use std::time::Duration;
use utoipa::ToSchema;

/// One entry of a 422's `detail`, as pydantic words it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct FieldError {
    /// Kind of error, e.g. `missing`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Where: `body` or `query`, then the field's name, or the column of what is no JSON.
    pub loc: Vec<Value>,
    /// For people.
    pub msg: String,
    /// What was given, if it is short; else null.
    pub input: Value,
    /// Figures of the rule that was broken.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub ctx: Option<Box<Value>>,
}

impl FieldError {
    /// An error at `place` (`body`, `query`) and, unless it is empty, `field`.
    pub fn new(kind: &'static str, place: &str, field: &str, msg: impl Into<String>) -> Self {
        let mut loc = vec![Value::from(place)];
        if !field.is_empty() {
            loc.push(Value::from(field));
        }
        Self {
            kind,
            loc,
            msg: msg.into(),
            input: Value::Null,
            ctx: None,
        }
    }

    /// Adds the value that was given; a long string is left out.
    #[must_use]
    pub fn with_input(mut self, input: &Value) -> Self {
        let short = match input {
            Value::String(text) => text.len() <= 200,
            Value::Array(_) | Value::Object(_) => false,
            _ => true,
        };
        if short {
            self.input = input.clone();
        }
        self
    }

    /// Adds the figures of the rule.
    #[must_use]
    pub fn with_ctx(mut self, ctx: Value) -> Self {
        self.ctx = Some(Box::new(ctx));
        self
    }
}

/// Why a request got no result.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ApiError {
    /// 400: what was sent is no image that we read.
    #[error("Invalid image: {0}")]
    BadImage(String),
    /// 400: the body could not be read, or is not the form that it says it is.
    #[error("There was an error parsing the body: {0}")]
    BadBody(String),
    /// 422: the request breaks the schema.
    #[error("invalid request")]
    Schema(Vec<FieldError>),
    /// 404: the Open Inference Protocol's requests name their model.
    #[error("There is no model {0:?}; there is \"omniparser\"")]
    NoModel(String),
    /// 408: the body did not come in time.
    #[error("The request body was not received within {} s", .0.as_secs_f32())]
    SlowBody(Duration),
    /// 413: body or picture over a limit.
    #[error("{0}")]
    TooLarge(String),
    /// 429: the queue is full.
    #[error("Too many requests: {held} are held already")]
    Busy {
        /// Requests held.
        held: usize,
        /// When a place may be free.
        retry_after: Duration,
    },
    /// 503: the models are not loaded, or the process is stopping.
    #[error("{reason}")]
    Unready {
        /// Why.
        reason: String,
        /// When to try again.
        retry_after: Duration,
    },
    /// 504: over the time limit.
    #[error("Not finished within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// 500: the models or the service failed.
    #[error("Error parsing screenshot: {0}")]
    Internal(String),
}

impl ApiError {
    /// HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::BadImage(_) | Self::BadBody(_) => StatusCode::BAD_REQUEST,
            Self::Schema(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::NoModel(_) => StatusCode::NOT_FOUND,
            Self::SlowBody(_) => StatusCode::REQUEST_TIMEOUT,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Busy { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Unready { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::TimedOut(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The metric's label.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::BadImage(_) | Self::BadBody(_) | Self::Schema(_) | Self::NoModel(_) => Outcome::Invalid,
            Self::SlowBody(_) => Outcome::SlowClient,
            Self::TooLarge(_) => Outcome::TooLarge,
            Self::Busy { .. } => Outcome::Busy,
            Self::Unready { .. } => Outcome::Unready,
            Self::TimedOut(_) => Outcome::TimedOut,
            Self::Internal(_) => Outcome::Failed,
        }
    }
}

impl From<FieldError> for ApiError {
    fn from(error: FieldError) -> Self {
        Self::Schema(vec![error])
    }
}

impl ApiError {
    /// An answer with this status and body, and with the headers that the error asks for.
    pub fn respond(self, status: StatusCode, body: Value) -> Response {
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        match &self {
            Self::Busy { retry_after, .. } | Self::Unready { retry_after, .. } => {
                // Whole seconds only; 0 would invite a storm.
                let seconds = retry_after.as_secs_f64().ceil().max(1.0) as u64;
                headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            }
            // The rest of the body may still come; there is no next request to be found in it.
            Self::SlowBody(_) => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        // The middleware logs the reason and counts the outcome.
        response.extensions_mut().insert(self);
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let detail = match &self {
            Self::Schema(errors) => json!(errors),
            other => Value::from(other.to_string()),
        };
        let status = self.status();
        self.respond(status, json!({ "detail": detail }))
    }
}
