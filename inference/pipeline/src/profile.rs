//! The three performance profiles of OmniParser's service.

use crate::{device::DeviceKind, model::CaptionPrompt};
use serde::{Deserialize, Serialize};

/// How much work a screenshot gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Profile {
    /// No OCR, few elements, short captions.
    Speed,
    /// OCR, more elements, detailed captions.
    #[default]
    Balanced,
    /// OCR, up to 100 elements, detailed captions.
    Quality,
}

/// A profile name that is none of `SPEED`, `BALANCED`, `QUALITY`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown performance profile {0:?}: expected SPEED, BALANCED or QUALITY")]
pub struct UnknownProfile(pub String);

impl std::str::FromStr for Profile {
    type Err = UnknownProfile;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name.to_ascii_uppercase().as_str() {
            "SPEED" => Ok(Self::Speed),
            "BALANCED" => Ok(Self::Balanced),
            "QUALITY" => Ok(Self::Quality),
            _ => Err(UnknownProfile(name.to_owned())),
        }
    }
}

impl std::fmt::Display for Profile {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Speed => "SPEED",
            Self::Balanced => "BALANCED",
            Self::Quality => "QUALITY",
        })
    }
}

/// What a profile means for one parse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProfileSettings {
    /// Whether text is read at all.
    pub ocr: bool,
    /// The most elements that are returned (OmniParser calls it `max_captions`, but it cuts text elements too).
    pub max_elements: usize,
    /// What the captioner is asked.
    pub prompt: CaptionPrompt,
}

impl Profile {
    /// OCR, element cut and prompt, from the table of OmniParser's service.
    pub const fn settings(self) -> ProfileSettings {
        match self {
            Self::Speed => ProfileSettings {
                ocr: false,
                max_elements: 15,
                prompt: CaptionPrompt::Caption,
            },
            Self::Balanced => ProfileSettings {
                ocr: true,
                max_elements: 25,
                prompt: CaptionPrompt::DetailedCaption,
            },
            Self::Quality => ProfileSettings {
                ocr: true,
                max_elements: 100,
                prompt: CaptionPrompt::DetailedCaption,
            },
        }
    }

    /// Crops per model call when nobody sets a batch size: OmniParser's table for CUDA and MPS; 16 on CPU, where larger
    /// batches only add memory.
    pub const fn batch_size(self, device: DeviceKind) -> usize {
        match (device, self) {
            (DeviceKind::Cuda, Self::Speed) => 64,
            (DeviceKind::Cuda, Self::Balanced | Self::Quality) => 128,
            (DeviceKind::Mps, Self::Balanced | Self::Quality) => 32,
            (DeviceKind::Mps, Self::Speed) | (DeviceKind::Cpu, _) => 16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_in_any_case() {
        for profile in [Profile::Speed, Profile::Balanced, Profile::Quality] {
            assert_eq!(profile.to_string().parse(), Ok(profile));
            assert_eq!(profile.to_string().to_lowercase().parse(), Ok(profile));
            assert_eq!(serde_json::to_string(&profile).unwrap(), format!("\"{profile}\""));
        }
        assert_eq!("fast".parse::<Profile>(), Err(UnknownProfile("fast".into())));
    }
}
