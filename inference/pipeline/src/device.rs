//! The kinds of device, in the words of the configuration and the REST API.

use std::{fmt, str::FromStr};

/// What models run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// An NVIDIA GPU.
    Cuda,
    /// An Apple GPU.
    Mps,
    /// The processor.
    Cpu,
}

impl DeviceKind {
    /// `cuda`, `mps` or `cpu`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Mps => "mps",
            Self::Cpu => "cpu",
        }
    }

    /// OmniParser's `device_type`: `gpu` or `cpu`.
    pub const fn category(self) -> &'static str {
        match self {
            Self::Cuda | Self::Mps => "gpu",
            Self::Cpu => "cpu",
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// The device that the configuration asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DeviceChoice {
    /// The first that is there of CUDA, MPS, CPU.
    #[default]
    Auto,
    /// Exactly this one; it is an error when it is missing.
    Only(DeviceKind),
}

impl DeviceChoice {
    /// The device, if one is named.
    pub const fn named(self) -> Option<DeviceKind> {
        match self {
            Self::Auto => None,
            Self::Only(kind) => Some(kind),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => formatter.write_str("auto"),
            Self::Only(kind) => kind.fmt(formatter),
        }
    }
}

/// A device name that is none of `auto`, `cuda`, `mps`, `cpu`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown device {0:?}: expected auto, cuda, mps or cpu")]
pub struct UnknownDevice(pub String);

impl FromStr for DeviceChoice {
    type Err = UnknownDevice;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "cuda" => Ok(Self::Only(DeviceKind::Cuda)),
            "mps" => Ok(Self::Only(DeviceKind::Mps)),
            "cpu" => Ok(Self::Only(DeviceKind::Cpu)),
            _ => Err(UnknownDevice(name.to_owned())),
        }
    }
}

/// A device name that is none of `cuda`, `mps`, `cpu`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown device {0:?}: expected cuda, mps or cpu")]
pub struct UnknownDeviceKind(pub String);

impl FromStr for DeviceKind {
    type Err = UnknownDeviceKind;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let choice: Option<DeviceChoice> = name.parse().ok();
        choice
            .and_then(DeviceChoice::named)
            .ok_or_else(|| UnknownDeviceKind(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for name in ["auto", "cuda", "mps", "cpu"] {
            assert_eq!(
                name.parse::<DeviceChoice>().map(|choice| choice.to_string()),
                Ok(name.to_owned())
            );
        }
        assert_eq!("CUDA".parse(), Ok(DeviceChoice::Only(DeviceKind::Cuda)));
        assert_eq!("tpu".parse::<DeviceChoice>(), Err(UnknownDevice("tpu".into())));
        assert_eq!("Cuda".parse(), Ok(DeviceKind::Cuda));
        assert_eq!("auto".parse::<DeviceKind>(), Err(UnknownDeviceKind("auto".into())));
    }
}
