//! Hand-over: how long a pod may find no node before another hardware class gets its replica, and what became of it.

use std::{borrow::Cow, fmt, str::FromStr};

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// How long a pod may stay unschedulable, as the user wrote it: `90s`, `2m`, `1h30m`, or `Never`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HandOverAfter {
    text: String,
    seconds: Option<u32>,
}

/// Why a text is no [`HandOverAfter`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoDuration(String);

impl fmt::Display for NoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is neither Never nor a duration from 10s to 24h, such as 90s, 2m or 1h30m",
            self.0
        )
    }
}

impl std::error::Error for NoDuration {}

impl HandOverAfter {
    /// Shortest and longest, in seconds. The schema's rule says the same.
    const RANGE: std::ops::RangeInclusive<u32> = 10..=86_400;

    /// In seconds; `None` for `Never`.
    pub const fn seconds(&self) -> Option<u32> {
        self.seconds
    }

    /// As the user wrote it.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Default for HandOverAfter {
    fn default() -> Self {
        Self {
            text: "2m".to_owned(),
            seconds: Some(120),
        }
    }
}

impl FromStr for HandOverAfter {
    type Err = NoDuration;

    fn from_str(text: &str) -> Result<Self, NoDuration> {
        let wrong = || NoDuration(text.to_owned());
        let seconds = if text == "Never" {
            None
        } else {
            Some(parse(text).filter(|s| Self::RANGE.contains(s)).ok_or_else(wrong)?)
        };
        Ok(Self {
            text: text.to_owned(),
            seconds,
        })
    }
}

/// Hours, minutes and seconds, each at most once and in this order.
fn parse(text: &str) -> Option<u32> {
    let mut rest = text;
    let mut total: u32 = 0;
    for (unit, seconds) in [('h', 3600), ('m', 60), ('s', 1)] {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        if let Some(after) = after.strip_prefix(unit).filter(|_| (1..=5).contains(&digits)) {
            total = total.checked_add(number.parse::<u32>().ok()?.checked_mul(seconds)?)?;
            rest = after;
        }
    }
    (rest.is_empty() && !text.is_empty()).then_some(total)
}

impl TryFrom<String> for HandOverAfter {
    type Error = NoDuration;

    fn try_from(text: String) -> Result<Self, NoDuration> {
        text.parse()
    }
}

impl From<HandOverAfter> for String {
    fn from(value: HandOverAfter) -> Self {
        value.text
    }
}

impl JsonSchema for HandOverAfter {
    fn schema_name() -> Cow<'static, str> {
        "HandOverAfter".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^(Never|([0-9]{1,5}h)?([0-9]{1,5}m)?([0-9]{1,5}s)?)$",
            "minLength": 2,
            "maxLength": 18,
        })
    }
}

/// A hand-over of a pool: since when its pods find no node, what went to other classes, and when the class is tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HandOver {
    /// Since when pods of the pool have found no node outside a rollout, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub since: Option<String>,
    /// Times in a row that the class was tried and pods found no node; each makes the wait for the next try longer.
    #[serde(default)]
    pub attempts: i32,
    /// The class is not tried again before this time, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub retry_after: Option<String>,
    /// Replicas that stay with the class while the others are handed over. Left out while none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeps: Option<i32>,
    /// True while pods beyond spec.replicas try whether the class has room again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub trying: bool,
    /// Free units of the class's resource at the hand-over. The class is tried again once there are more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub units: Option<i64>,
    /// Schedulable nodes of the class at the hand-over. The class is tried again once there are more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<i32>,
    /// What each pod asked for. When it changes, the class is tried as if for the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub asks: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::HandOverAfter;

    #[test]
    fn reads_durations_and_never() {
        for (text, seconds) in [
            ("2m", Some(120)),
            ("90s", Some(90)),
            ("1h30m", Some(5400)),
            ("1h0m10s", Some(3610)),
            ("24h", Some(86_400)),
            ("Never", None),
        ] {
            let read: HandOverAfter = text.parse().expect(text);
            assert_eq!(read.seconds(), seconds, "{text}");
            assert_eq!(read.as_str(), text);
        }
        assert_eq!(HandOverAfter::default(), "2m".parse().expect("2m"));
    }

    #[test]
    fn refuses_what_is_no_duration_or_out_of_range() {
        for text in [
            "", "2", "m", "never", "9s", "25h", "10s2m", "1m1m", "-2m", "1.5m", "2 m", "999999h",
        ] {
            let error = text.parse::<HandOverAfter>().expect_err(text).to_string();
            assert!(error.contains("10s to 24h"), "{error}");
        }
    }
}
