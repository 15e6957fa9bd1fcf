//! `detect`: what kind of machine this is, in the words of the scripts that the service is used from, and in the operator's.

use crate::config::DetectFormat;
use crate::processor::ProcessorReport;
use hawkeye_pipeline::device::DeviceKind;
use serde::Serialize;
use std::fmt::Write as _;

/// What was seen of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen<'a> {
    /// `aarch64`, `x86_64`, as [`std::env::consts::ARCH`] has it.
    pub arch: &'a str,
    /// `linux`, `macos`, as [`std::env::consts::OS`] has it.
    pub os: &'a str,
    /// The device that the setting `auto` takes.
    pub device: DeviceKind,
    /// Its own name.
    pub device_name: &'a str,
    /// Who made the machine, as its firmware says, if it does.
    pub vendor: &'a str,
    /// The processor, and what is chosen by it where nothing is set.
    pub processor: &'a ProcessorReport,
}

/// What kind of machine it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Platform {
    /// `apple_silicon`, `dgx_spark`, `arm64_generic`, `x86_64_nvidia` or `x86_64_generic`. Bytebot's script knows the first three, and
    /// takes every ARM64 machine with an NVIDIA GPU for a DGX Spark; [`hardware_class`](Self::hardware_class) is finer.
    pub platform: &'static str,
    /// `mps`, `cuda` or `cpu`.
    pub gpu_type: &'static str,
    /// `native` where containers do not see the GPU (macOS), else `docker`.
    pub deployment_mode: &'static str,
    /// The operator's word for such a node.
    pub hardware_class: &'static str,
    /// `arm64` or `amd64`.
    pub arch: String,
    /// The device's own name.
    pub device_name: String,
    /// The processor, and what is chosen by it where the settings leave it open.
    pub processor: ProcessorReport,
}

impl Platform {
    /// From what was seen.
    pub fn new(seen: Seen<'_>) -> Self {
        let arm = matches!(seen.arch, "aarch64" | "arm64");
        let cuda = seen.device == DeviceKind::Cuda;
        let mac = seen.os == "macos" && arm;
        let (platform, hardware_class) = match (arm, cuda) {
            _ if mac => ("apple_silicon", "apple-silicon"),
            // The chip of a DGX Spark is the GB10.
            (true, true) if seen.device_name.contains("GB10") => ("dgx_spark", "dgx-spark"),
            (true, true) => ("dgx_spark", "cuda-arm64"),
            (true, false) if seen.vendor == "Amazon EC2" => ("arm64_generic", "graviton"),
            (true, false) => ("arm64_generic", "cpu-arm64"),
            (false, true) => ("x86_64_nvidia", "cuda-amd64"),
            (false, false) => ("x86_64_generic", "cpu-amd64"),
        };
        Self {
            platform,
            gpu_type: seen.device.name(),
            deployment_mode: if mac { "native" } else { "docker" },
            hardware_class,
            arch: match seen.arch {
                "aarch64" => "arm64",
                "x86_64" => "amd64",
                other => other,
            }
            .to_owned(),
            device_name: seen.device_name.to_owned(),
            processor: seen.processor.clone(),
        }
    }

    /// As text, ending in a line break.
    ///
    /// # Errors
    /// When it cannot be written as JSON, which is a defect.
    pub fn render(&self, format: DetectFormat) -> Result<String, serde_json::Error> {
        if format == DetectFormat::Json {
            return Ok(serde_json::to_string_pretty(self)? + "\n");
        }
        let mut text = String::new();
        for (name, value) in [
            ("BYTEBOT_ARM64_PLATFORM", self.platform),
            ("BYTEBOT_GPU_TYPE", self.gpu_type),
            ("BYTEBOT_DEPLOYMENT_MODE", self.deployment_mode),
            ("HAWKEYE_HARDWARE_CLASS", self.hardware_class),
        ] {
            // Writing to a string cannot fail. None of the values needs to be quoted for a shell.
            writeln!(text, "export {name}=\"{value}\"").unwrap_or_default();
        }
        Ok(text)
    }
}

/// Who made this machine, as its firmware says; empty if it does not.
pub fn vendor() -> String {
    let text = std::fs::read_to_string("/sys/devices/virtual/dmi/id/sys_vendor");
    text.unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processor::Processor;

    fn platform(arch: &str, os: &str, device: DeviceKind, device_name: &str, vendor: &str) -> Platform {
        let read = crate::processor::Seen {
            arch: "x86_64",
            cpuinfo: "processor: 0\nmodel name: Xeon\nflags: amx_bf16\n".to_owned(),
            page: 4096,
            usable: 1,
        };
        Platform::new(Seen {
            arch,
            os,
            device,
            device_name,
            vendor,
            processor: &Processor::new(&read).report(device, None, 1, |_| None),
        })
    }

    #[test]
    fn machines_have_the_names_of_the_script_and_of_the_operator() {
        use DeviceKind::{Cpu, Cuda, Mps};
        for (arch, os, device, name, vendor, wanted) in [
            (
                "aarch64",
                "macos",
                Mps,
                "Apple Silicon (arm64)",
                "",
                ["apple_silicon", "mps", "native", "apple-silicon"],
            ),
            (
                "aarch64",
                "linux",
                Cuda,
                "NVIDIA GB10",
                "NVIDIA",
                ["dgx_spark", "cuda", "docker", "dgx-spark"],
            ),
            (
                "aarch64",
                "linux",
                Cuda,
                "NVIDIA GH200 480GB",
                "",
                ["dgx_spark", "cuda", "docker", "cuda-arm64"],
            ),
            (
                "aarch64",
                "linux",
                Cpu,
                "CPU (aarch64)",
                "Amazon EC2",
                ["arm64_generic", "cpu", "docker", "graviton"],
            ),
            (
                "aarch64",
                "linux",
                Cpu,
                "CPU (aarch64)",
                "",
                ["arm64_generic", "cpu", "docker", "cpu-arm64"],
            ),
            (
                "x86_64",
                "linux",
                Cuda,
                "NVIDIA H200",
                "Amazon EC2",
                ["x86_64_nvidia", "cuda", "docker", "cuda-amd64"],
            ),
            (
                "x86_64",
                "linux",
                Cpu,
                "CPU (x86_64)",
                "Amazon EC2",
                ["x86_64_generic", "cpu", "docker", "cpu-amd64"],
            ),
        ] {
            let found = platform(arch, os, device, name, vendor);
            let words = [
                found.platform,
                found.gpu_type,
                found.deployment_mode,
                found.hardware_class,
            ];
            assert_eq!(words, wanted, "{arch} {name}");
        }
    }

    #[test]
    fn a_shell_can_read_it() {
        let found = platform("x86_64", "linux", DeviceKind::Cpu, "CPU (x86_64)", "");
        assert_eq!(
            found.render(DetectFormat::Env).expect("text"),
            "export BYTEBOT_ARM64_PLATFORM=\"x86_64_generic\"\nexport BYTEBOT_GPU_TYPE=\"cpu\"\n\
             export BYTEBOT_DEPLOYMENT_MODE=\"docker\"\nexport HAWKEYE_HARDWARE_CLASS=\"cpu-amd64\"\n"
        );
        let json: serde_json::Value =
            serde_json::from_str(&found.render(DetectFormat::Json).expect("json")).expect("json");
        assert_eq!((&json["gpu_type"], &json["arch"]), (&"cpu".into(), &"amd64".into()));
        assert_eq!(json["processor"]["name"], "Xeon");
        let why = serde_json::json!({
            "setting": "dtype", "value": "bfloat16", "reason": "the processor multiplies bfloat16 (amx_bf16)"
        });
        assert_eq!(json["processor"]["chosen"][1], why);
    }
}
