//! A Kubernetes quantity: `8Gi`, `500m`, `2`.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};

/// A Kubernetes quantity as the user wrote it.
///
/// Own type instead of the core one, whose schema repeats 40 lines of prose at each use.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Quantity(pub String);

impl Quantity {
    /// The value in thousandths, rounded up as the API server does; `None` when it is not a quantity or does not fit.
    pub fn milli(&self) -> Option<u64> {
        let text = self.0.trim();
        let unit_at = text
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(unit_at);
        let thousandths: u128 = match unit {
            "m" => 1,
            "" => 1_000,
            "k" => 1_000_000,
            "M" => 1_000_000_000,
            "G" => 1_000_000_000_000,
            "T" => 1_000_000_000_000_000,
            "P" => 1_000_000_000_000_000_000,
            "Ki" => 1_000 << 10,
            "Mi" => 1_000 << 20,
            "Gi" => 1_000 << 30,
            "Ti" => 1_000 << 40,
            "Pi" => 1_000 << 50,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.len() > 9 {
            return None;
        }
        let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
        let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        u64::try_from(digits.checked_mul(thousandths)?.div_ceil(scale)).ok()
    }

    /// The value in whole units (bytes for memory), rounded up; `None` when it is not a quantity.
    pub fn units(&self) -> Option<u64> {
        self.milli().map(|milli| milli.div_ceil(1_000))
    }
}

impl From<&str> for Quantity {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl std::fmt::Display for Quantity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum IntOrString {
            Int(i64),
            String(String),
        }
        Ok(Self(match IntOrString::deserialize(deserializer)? {
            IntOrString::Int(value) => value.to_string(),
            IntOrString::String(value) => value,
        }))
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn inline_schema() -> bool {
        true
    }

    // YAML's `cpu: 2` is an integer, so both forms are taken, as the core API does.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": r"^[0-9]{1,12}(\.[0-9]{1,3})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$",
            "maxLength": 20,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Quantity;

    #[test]
    fn reads_what_kubernetes_writes() {
        for (text, milli) in [
            ("2", 2_000),
            ("500m", 500),
            ("0.5", 500),
            ("8Gi", 8 * 1024 * 1024 * 1024 * 1000),
            ("125506464Ki", 125_506_464 * 1024 * 1000),
            ("1.5k", 1_500_000),
        ] {
            assert_eq!(Quantity::from(text).milli(), Some(milli), "{text}");
        }
        for text in ["", "x", "-1", "1e3", "1Zi", ".", "99999999999999999999Ti"] {
            assert_eq!(Quantity::from(text).milli(), None, "{text}");
        }
    }

    #[test]
    fn takes_integers_and_strings() {
        let read = |json: &str| serde_json::from_str::<Quantity>(json).map(|q| q.0).ok();
        assert_eq!(read("2").as_deref(), Some("2"));
        assert_eq!(read("\"250m\"").as_deref(), Some("250m"));
        assert_eq!(read("true"), None);
    }

    proptest! {
        #[test]
        fn units_agree_with_each_other(n in 0_u64..1_000_000) {
            let gibi = Quantity(format!("{n}Gi")).units();
            prop_assert_eq!(gibi, Quantity(format!("{}Mi", n * 1024)).units());
            prop_assert_eq!(gibi, Some(n << 30));
        }
    }
}
