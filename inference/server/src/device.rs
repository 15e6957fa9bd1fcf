//! Which device a process was meant for, which one it got, and what is done when the two differ.

use crate::engine::{LoadError, ModelInfo, ModelState};
use crate::processor::ProcessorReport;
use clap::ValueEnum;
use hawkeye_pipeline::bundle::DType;
use hawkeye_pipeline::device::{DeviceChoice, DeviceKind};
use serde::Serialize;
use utoipa::ToSchema;

/// What to do when the device is not the one that is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum OnMismatch {
    /// End the process with an error.
    #[default]
    Exit,
    /// Stay alive without models: `/readyz` says no and why, so that nobody is sent here and nothing restarts in vain.
    Deny,
    /// Serve on the device that is there, and say so in `/device`, `/health`, the log and a metric.
    Degrade,
}

impl OnMismatch {
    /// `exit`, `deny` or `degrade`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exit => "exit",
            Self::Deny => "deny",
            Self::Degrade => "degrade",
        }
    }
}

/// What the settings ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expectation {
    /// The device, if one is named.
    pub device: Option<DeviceKind>,
    /// Number format of the weights, if one is named.
    pub dtype: Option<DType>,
    /// Crops in one batch, if set.
    pub batch_size: Option<usize>,
    /// What to do when the device is another one.
    pub on_mismatch: OnMismatch,
}

/// The device to load on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// Its kind.
    pub kind: DeviceKind,
    /// Why it is not the one that is expected, if it is not.
    pub mismatch: Option<String>,
}

/// The expected device is not there, and nothing else is wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected the device {expected}: {cause}")]
pub struct Denied {
    /// The expected device.
    pub expected: DeviceKind,
    /// Why it is not in use.
    pub cause: String,
}

/// The device is another one, and that ends the process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected the device {expected}, but it would be {found}: {cause}")]
pub struct Unexpected {
    expected: DeviceKind,
    found: DeviceKind,
    cause: String,
}

/// Opens the device that is asked for and compares it with the one that is expected.
///
/// # Errors
/// The error of `open` or [`Unexpected`] under [`OnMismatch::Exit`], [`Denied`] under [`OnMismatch::Deny`].
pub fn choose<E>(
    asked: DeviceChoice,
    expectation: &Expectation,
    open: impl Fn(DeviceChoice) -> Result<DeviceKind, E>,
) -> Result<Choice, LoadError>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let opened = open(asked);
    let Some(expected) = expectation.device.or_else(|| asked.named()) else {
        // Whatever `auto` finds is right.
        let kind = opened?;
        return Ok(Choice { kind, mismatch: None });
    };
    let (found, cause) = match opened {
        Ok(kind) if kind == expected => return Ok(Choice { kind, mismatch: None }),
        Ok(kind) => {
            let cause = match open(DeviceChoice::Only(expected)) {
                Ok(_) => format!("the setting device is {asked}"),
                Err(error) => error.to_string(),
            };
            (kind, cause)
        }
        Err(error) if expectation.on_mismatch == OnMismatch::Exit => return Err(error.into()),
        // The one that is always there.
        Err(error) => (DeviceKind::Cpu, error.to_string()),
    };
    match expectation.on_mismatch {
        OnMismatch::Exit => Err(Unexpected { expected, found, cause }.into()),
        OnMismatch::Deny => Err(Denied { expected, cause }.into()),
        OnMismatch::Degrade => Ok(Choice {
            kind: found,
            mismatch: Some(cause),
        }),
    }
}

/// A GPU in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Cuda {
    /// Version of the kernel driver, if it can be read.
    #[schema(required)]
    pub driver: Option<String>,
    /// Newest CUDA release that the driver serves.
    pub version: String,
    /// Memory in bytes; with unified memory, that of the machine.
    pub memory_bytes: u64,
}

/// Answer of `/device`: what runs here, and whether that is what was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct DeviceReport {
    /// `loading`; `ready`; `denied`: the device is not the expected one, so nothing is served; `failed`: the process ends.
    pub state: &'static str,
    /// `cuda`, `mps` or `cpu`; null unless ready, like all below.
    #[schema(required)]
    pub device: Option<&'static str>,
    /// The device's own name.
    #[schema(required)]
    pub device_name: Option<String>,
    /// `gpu` or `cpu`.
    #[schema(required)]
    pub device_type: Option<&'static str>,
    /// Number format that the captioner runs in; null without one: detector and text models are `float32` always.
    #[schema(required)]
    pub dtype: Option<String>,
    /// Devices of this kind in use.
    #[schema(required)]
    pub devices: Option<usize>,
    /// Crops in one batch; fewer than it began with once the device's memory did not hold them.
    #[schema(required)]
    pub batch_size: Option<usize>,
    /// CPU threads of one operation.
    #[schema(required)]
    pub threads: Option<usize>,
    /// The processor, and what was chosen by it, with reasons.
    #[schema(required)]
    pub processor: Option<ProcessorReport>,
    /// The GPU; null on other devices.
    #[schema(required)]
    pub cuda: Option<Cuda>,
    /// Milliseconds that the first parse took, of a made-up screenshot, right after loading; one decimal.
    #[schema(required)]
    pub warm_up_ms: Option<f64>,
    /// What the settings ask for.
    pub expected: Expected,
    /// Whether everything is as expected; null while it loads.
    #[schema(required)]
    pub matches: Option<bool>,
    /// Why it is not.
    #[schema(required)]
    pub cause: Option<String>,
}

/// What the settings ask for; null where they leave it open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Expected {
    #[schema(required)]
    device: Option<&'static str>,
    #[schema(required)]
    dtype: Option<&'static str>,
    #[schema(required)]
    batch_size: Option<usize>,
    on_mismatch: &'static str,
}

impl From<&Expectation> for Expected {
    fn from(expectation: &Expectation) -> Self {
        Self {
            device: expectation.device.map(DeviceKind::name),
            dtype: expectation.dtype.map(|dtype| match dtype {
                DType::Float32 => "float32",
                DType::Float16 => "float16",
                DType::BFloat16 => "bfloat16",
                DType::Int8 => "int8",
            }),
            batch_size: expectation.batch_size,
            on_mismatch: expectation.on_mismatch.name(),
        }
    }
}

impl DeviceReport {
    /// From what is loaded and what is expected. `shrunk` is the size of batches if the device's memory did not hold those
    /// that it began with.
    pub fn new(state: &ModelState, shrunk: Option<usize>, expectation: &Expectation) -> Self {
        let (state, cause) = match state {
            ModelState::Ready(info) => return Self::ready(info, shrunk, expectation),
            ModelState::Loading => ("loading", None),
            ModelState::Denied(reason) => ("denied", Some(reason.to_string())),
            ModelState::Failed(reason) => ("failed", Some(reason.to_string())),
        };
        Self {
            state,
            device: None,
            device_name: None,
            device_type: None,
            dtype: None,
            devices: None,
            batch_size: None,
            threads: None,
            processor: None,
            cuda: None,
            warm_up_ms: None,
            expected: expectation.into(),
            matches: cause.is_some().then_some(false),
            cause,
        }
    }

    fn ready(info: &ModelInfo, shrunk: Option<usize>, expectation: &Expectation) -> Self {
        let differences = differences(info, shrunk, expectation);
        Self {
            state: "ready",
            device: Some(info.device.name()),
            device_name: Some(info.device_name.clone()),
            device_type: Some(info.device.category()),
            dtype: info.captioner.as_ref().map(|captioner| captioner.dtype.to_string()),
            devices: Some(info.devices),
            batch_size: Some(shrunk.unwrap_or(info.batch_size)),
            threads: Some(info.threads),
            processor: info.processor.clone(),
            cuda: info.cuda.clone(),
            warm_up_ms: Some((info.warm_up.as_secs_f64() * 1e4).round() / 10.0),
            expected: expectation.into(),
            matches: Some(differences.is_empty()),
            cause: (!differences.is_empty()).then(|| differences.join("; ")),
        }
    }
}

fn differences(info: &ModelInfo, shrunk: Option<usize>, expectation: &Expectation) -> Vec<String> {
    if let Some(cause) = &info.mismatch {
        // Number format and batch follow from the device.
        return vec![cause.clone()];
    }
    let mut differences = Vec::new();
    // The one model that bundles have in several formats.
    if let Some(captioner) = &info.captioner
        && let Some(expected) = expectation.dtype
        && captioner.dtype != expected
    {
        differences.push(format!(
            "the bundle has no {expected} file of {}, so {} runs",
            captioner.name, captioner.dtype
        ));
    }
    if let Some(size) = shrunk {
        differences.push(format!(
            "the device's memory does not hold batches of {}, so they are of {size}",
            info.batch_size
        ));
    } else if let Some(expected) = expectation.batch_size.filter(|size| *size != info.batch_size) {
        differences.push(format!("the batch is {}, not {expected}", info.batch_size));
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("no driver")]
    struct NoDriver;

    fn expectation(device: Option<DeviceKind>, on_mismatch: OnMismatch) -> Expectation {
        Expectation {
            device,
            dtype: Some(DType::BFloat16),
            batch_size: Some(128),
            on_mismatch,
        }
    }

    /// A machine with a processor only.
    fn cpu_only(choice: DeviceChoice) -> Result<DeviceKind, NoDriver> {
        match choice {
            DeviceChoice::Auto | DeviceChoice::Only(DeviceKind::Cpu) => Ok(DeviceKind::Cpu),
            DeviceChoice::Only(_) => Err(NoDriver),
        }
    }

    const CUDA: DeviceChoice = DeviceChoice::Only(DeviceKind::Cuda);

    #[test]
    fn what_is_expected_and_there_is_taken() {
        for (asked, expected) in [
            (DeviceChoice::Auto, None),
            (DeviceChoice::Auto, Some(DeviceKind::Cpu)),
            (DeviceChoice::Only(DeviceKind::Cpu), None),
        ] {
            for policy in [OnMismatch::Exit, OnMismatch::Deny, OnMismatch::Degrade] {
                let choice = choose(asked, &expectation(expected, policy), cpu_only).expect("is there");
                assert_eq!((choice.kind, choice.mismatch), (DeviceKind::Cpu, None));
            }
        }
    }

    #[test]
    fn a_named_device_that_is_missing_ends_waits_or_degrades() {
        let error = choose(CUDA, &expectation(None, OnMismatch::Exit), cpu_only).expect_err("exit");
        assert_eq!(error.to_string(), "no driver");
        assert!(!error.is::<Denied>());

        let error = choose(CUDA, &expectation(None, OnMismatch::Deny), cpu_only).expect_err("deny");
        assert!(error.is::<Denied>());
        assert_eq!(error.to_string(), "expected the device cuda: no driver");

        let choice = choose(CUDA, &expectation(None, OnMismatch::Degrade), cpu_only).expect("degrade");
        assert_eq!(choice.kind, DeviceKind::Cpu);
        assert_eq!(choice.mismatch.as_deref(), Some("no driver"));
    }

    #[test]
    fn auto_is_held_to_what_is_expected() {
        let cuda = Some(DeviceKind::Cuda);
        let error = choose(DeviceChoice::Auto, &expectation(cuda, OnMismatch::Exit), cpu_only).expect_err("exit");
        assert_eq!(
            error.to_string(),
            "expected the device cuda, but it would be cpu: no driver"
        );
        let choice = choose(DeviceChoice::Auto, &expectation(cuda, OnMismatch::Degrade), cpu_only).expect("degrade");
        assert_eq!(choice.mismatch.as_deref(), Some("no driver"));
        // The GPU is there, but the settings contradict themselves.
        let all = |choice: DeviceChoice| Ok::<_, NoDriver>(choice.named().unwrap_or(DeviceKind::Cuda));
        let asked = DeviceChoice::Only(DeviceKind::Cpu);
        let error = choose(asked, &expectation(cuda, OnMismatch::Deny), all).expect_err("deny");
        assert_eq!(error.to_string(), "expected the device cuda: the setting device is cpu");
    }
}
