//! What the values of flags and variables look like.

use hawkeye_pipeline::bundle::{DType, UnknownDType};
use std::str::FromStr;
use std::time::Duration;
use url::Url;

/// The number format that the settings ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DTypeChoice {
    /// What is fastest on the device.
    Auto,
    /// This one, as far as the bundle has it.
    Only(DType),
}

impl DTypeChoice {
    /// The number format, if one is named.
    pub const fn named(self) -> Option<DType> {
        match self {
            Self::Auto => None,
            Self::Only(dtype) => Some(dtype),
        }
    }
}

impl FromStr for DTypeChoice {
    type Err = UnknownDType;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if name.eq_ignore_ascii_case("auto") {
            return Ok(Self::Auto);
        }
        name.parse().map(Self::Only)
    }
}

pub(super) fn web_address(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("must begin with http:// or https://".to_owned());
    }
    // They would show in the pod's spec and in its list of processes.
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user name or password".to_owned());
    }
    Ok(url)
}

pub(super) fn sha256(text: &str) -> Result<String, String> {
    let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if text.len() == 64 && digits {
        Ok(text.to_owned())
    } else {
        Err("must be 64 lower case hexadecimal digits".to_owned())
    }
}

pub(super) fn size(text: &str) -> Result<u64, String> {
    bytes(text).map(|bytes| bytes as u64)
}

pub(super) fn fraction(text: &str) -> Result<f32, String> {
    let value: f32 = text.trim().parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=1.0).contains(&value) {
        Ok(value)
    } else {
        Err("must be between 0 and 1".to_owned())
    }
}

pub(super) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(value) => Ok(value),
        Err(_) => Err("not a whole number".to_owned()),
    }
}

/// `90`, `90s`, `500ms`, `2m`: a number without a unit is seconds.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number
        .parse()
        .map_err(|_| "not a time: write 500ms, 30s or 2m".to_owned())?;
    let seconds = match unit.trim() {
        "ms" => number / 1e3,
        "" | "s" => number,
        "m" => number * 60.0,
        other => return Err(format!("unknown unit `{other}`: use ms, s or m")),
    };
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// `33554432`, `32MiB`, `512KiB`.
pub(super) fn bytes(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: usize = number
        .parse()
        .map_err(|_| "not a size: write 33554432 or 32MiB".to_owned())?;
    let factor = match unit.trim() {
        "" => 1,
        "KiB" | "Ki" => 1 << 10,
        "MiB" | "Mi" => 1 << 20,
        "GiB" | "Gi" => 1 << 30,
        other => return Err(format!("unknown unit `{other}`: use KiB, MiB or GiB")),
    };
    number.checked_mul(factor).ok_or_else(|| "too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(bytes("512KiB"), Ok(512 * 1024));
        assert_eq!(bytes("7"), Ok(7));
        assert!(bytes("99999999999999GiB").is_err());
    }
}
