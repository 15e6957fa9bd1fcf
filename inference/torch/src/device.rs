//! Chooses and names the device.

use crate::shim::{self, GraphPool};
use hawkeye_pipeline::{
    bundle::{DType, Role},
    device::{DeviceChoice, DeviceKind},
    model::DeviceMemory,
};

/// A device that is asked for but not there.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No usable NVIDIA GPU.
    #[error("the device cuda is not there: {0}")]
    Cuda(String),
    /// No Apple GPU, or no build for one.
    #[error("the device mps is not there: {0}")]
    Mps(&'static str),
}

/// What the driver says about the GPU in use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CudaFacts {
    /// Version of the kernel driver, e.g. `580.65.06`, if it can be read.
    pub driver: Option<String>,
    /// Newest CUDA release that the driver serves, e.g. `13.0`.
    pub version: String,
    /// Memory of the GPU in bytes; with unified memory, that of the machine.
    pub memory_bytes: u64,
}

/// An opened device. On CUDA it belongs to the thread that opened it, which gets a stream of its own there.
#[derive(Debug, Clone)]
pub struct Device {
    kind: DeviceKind,
    /// Which of the GPUs that this process sees, from 0.
    number: usize,
    name: String,
    cuda: Option<CudaFacts>,
    graphs: Option<GraphPool>,
}

/// The GPU that is used, of those that the process sees.
const GPU: i8 = 0;

impl Device {
    /// Opens the device chosen, for this thread; [`DeviceChoice::Auto`] takes the first of CUDA, MPS and CPU.
    ///
    /// # Errors
    /// [`DeviceError`] when an explicit choice is missing; never a silent CPU.
    pub fn open(choice: DeviceChoice) -> Result<Self, DeviceError> {
        match choice {
            DeviceChoice::Only(DeviceKind::Cuda) => open_cuda(),
            DeviceChoice::Only(DeviceKind::Mps) => open_mps(),
            DeviceChoice::Only(DeviceKind::Cpu) => Ok(cpu()),
            DeviceChoice::Auto => Ok(open_cuda()
                .inspect_err(|error| tracing::info!(%error, "device auto"))
                .or_else(|_| open_mps())
                .unwrap_or_else(|_| cpu())),
        }
    }

    /// The one with this number, from 0, of the GPUs that this process sees. They are taken to be of one model.
    ///
    /// # Errors
    /// [`DeviceError`] when there is none of that number.
    pub fn numbered(self, number: usize) -> Result<Self, DeviceError> {
        if self.kind == DeviceKind::Cuda && number != self.number {
            let gpu = i8::try_from(number).map_err(|error| DeviceError::Cuda(error.to_string()))?;
            shim::use_own_stream(gpu).map_err(|error| DeviceError::Cuda(error.to_string()))?;
        }
        Ok(Self { number, ..self })
    }

    /// Devices of this kind that this process sees.
    pub fn count(&self) -> usize {
        match self.kind {
            DeviceKind::Cuda => usize::try_from(tch::Cuda::device_count()).unwrap_or(1).max(1),
            DeviceKind::Mps | DeviceKind::Cpu => 1,
        }
    }

    /// What kind it is.
    pub const fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// `NVIDIA …`, `Apple Silicon (arm64)` or `CPU (x86_64)`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// About the GPU, on CUDA, if its driver tells.
    pub const fn cuda(&self) -> Option<&CudaFacts> {
        self.cuda.as_ref()
    }

    /// The same without CUDA graphs: every kernel is launched by itself.
    #[must_use]
    pub fn without_graphs(self) -> Self {
        Self { graphs: None, ..self }
    }

    /// Whether models are recorded as CUDA graphs.
    pub const fn has_graphs(&self) -> bool {
        self.graphs.is_some()
    }

    /// The memory that the graphs of this device share.
    pub(crate) fn graph_pool(&self) -> Option<GraphPool> {
        self.graphs.clone()
    }

    /// The number format that a model runs in where `wanted` is asked for.
    pub(crate) fn usable(&self, role: Role, wanted: DType) -> DType {
        let reads_text = matches!(role, Role::OcrDetector | Role::OcrRecognizer);
        match (self.kind, wanted) {
            // Processors compute it by way of float32, slowly.
            (DeviceKind::Cpu, DType::Float16) => DType::Float32,
            // bfloat16 is too coarse for the edges of text: its boxes had an F1 of 0.93 on an H100, those of float16 one of 0.99.
            (DeviceKind::Cuda, DType::BFloat16) if reads_text => DType::Float16,
            _ => wanted,
        }
    }

    pub(crate) const fn torch(&self) -> tch::Device {
        match self.kind {
            DeviceKind::Cuda => tch::Device::Cuda(self.number),
            DeviceKind::Mps => tch::Device::Mps,
            DeviceKind::Cpu => tch::Device::Cpu,
        }
    }
}

/// What libtorch holds of the GPU's memory; `None` before CUDA is in use.
pub fn device_memory() -> Option<shim::DeviceMemory> {
    shim::memory(GPU).ok()
}

/// Bytes of the GPU's memory that all processes use together, CUDA's own part included; `None` before CUDA is in use.
pub fn device_memory_used() -> Option<u64> {
    let (free, total) = shim::free_memory(GPU).ok()?;
    total.checked_sub(free)
}

/// Lets the `most_…` of [`device_memory`] begin anew, from what is in use now. Without CUDA nothing happens.
pub fn reset_peak_memory() {
    // It fails only where there is nothing to reset.
    let _ = shim::reset_peak_memory(GPU);
}

/// Number of CPU threads of one libtorch operation.
pub fn threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

/// Sets the number of CPU threads of one libtorch operation, for the whole process.
pub fn set_threads(threads: usize) {
    tch::set_num_threads(i32::try_from(threads.max(1)).unwrap_or(i32::MAX));
}

fn cpu() -> Device {
    Device {
        kind: DeviceKind::Cpu,
        number: 0,
        name: format!("CPU ({})", std::env::consts::ARCH),
        cuda: None,
        graphs: None,
    }
}

#[cfg(target_os = "macos")]
fn open_mps() -> Result<Device, DeviceError> {
    if !tch::utils::has_mps() {
        return Err(DeviceError::Mps("libtorch finds no Metal device"));
    }
    Ok(Device {
        kind: DeviceKind::Mps,
        number: 0,
        name: "Apple Silicon (arm64)".to_owned(),
        cuda: None,
        graphs: None,
    })
}

#[cfg(not(target_os = "macos"))]
fn open_mps() -> Result<Device, DeviceError> {
    Err(DeviceError::Mps("only builds for macOS have it"))
}

#[cfg(not(target_os = "linux"))]
fn open_cuda() -> Result<Device, DeviceError> {
    Err(DeviceError::Cuda("only builds for Linux have it".to_owned()))
}

#[cfg(target_os = "linux")]
fn open_cuda() -> Result<Device, DeviceError> {
    // The binary links libtorch_cpu only. Asking for CUDA before libtorch_cuda is open makes "no CUDA" final for the process.
    if let Err(error) = cuda::open_libtorch_cuda() {
        return Err(DeviceError::Cuda(format!("libtorch_cuda.so cannot be opened: {error}")));
    }
    let usable = tch::Cuda::is_available() && tch::Cuda::device_count() > 0;
    let driver = cuda::ask_driver();
    if !usable {
        let variable = |name: &str| std::env::var(name).ok();
        return Err(DeviceError::Cuda(why_no_gpu(driver.err(), variable)));
    }
    let unusable = |error: tch::TchError| DeviceError::Cuda(error.to_string());
    shim::use_own_stream(GPU).map_err(unusable)?;
    let graphs = shim::graphs_are_there()
        .inspect_err(|error| tracing::warn!(%error, "no CUDA graphs: every kernel is launched by itself"))
        .ok()
        .map(|()| GraphPool::default());
    let (name, facts) = match driver {
        Ok((name, facts)) => (name, Some(facts)),
        Err(_) => ("GPU of unknown name".to_owned(), None),
    };
    let name = if name.starts_with("NVIDIA") {
        name
    } else {
        format!("NVIDIA {name}")
    };
    Ok(Device {
        kind: DeviceKind::Cuda,
        number: 0,
        name,
        cuda: facts,
        graphs,
    })
}

/// Memory of a device; `None` for one that has none of its own.
pub(crate) fn memory(device: tch::Device) -> Option<DeviceMemory> {
    match device {
        tch::Device::Cuda(number) => {
            let (free, total) = shim::free_memory(i8::try_from(number).ok()?).ok()?;
            let used = total.checked_sub(free)?;
            Some(DeviceMemory { used, total })
        }
        _ => None,
    }
}

/// Why libtorch finds no GPU, as far as the driver and the container's settings tell.
#[cfg(target_os = "linux")]
fn why_no_gpu(driver: Option<String>, variable: impl Fn(&str) -> Option<String>) -> String {
    let driver = driver.unwrap_or_else(|| "the driver shows a GPU that this libtorch cannot use".to_owned());
    let settings: Vec<String> = ["NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"]
        .into_iter()
        .filter_map(|name| Some(format!("{name}={:?}", variable(name)?)))
        .collect();
    if settings.is_empty() {
        return format!("no GPU is visible: {driver}");
    }
    format!("no GPU is visible ({}): {driver}", settings.join(", "))
}

#[cfg(target_os = "linux")]
mod cuda {
    use super::CudaFacts;
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY, Symbol};
    use std::{
        ffi::{CStr, OsString, c_char, c_int},
        fs,
        path::Path,
        sync::OnceLock,
    };

    const LIBRARY: &str = "libtorch_cuda.so";

    /// Opens libtorch_cuda for the rest of the process: its initialisers register CUDA with libtorch. One try per process.
    pub(super) fn open_libtorch_cuda() -> Result<(), String> {
        static OPENED: OnceLock<Result<(), String>> = OnceLock::new();
        OPENED
            .get_or_init(|| open(&beside_libtorch().unwrap_or_else(|| LIBRARY.into())))
            .clone()
    }

    #[allow(unsafe_code)]
    fn open(path: &OsString) -> Result<(), String> {
        // SAFETY: libtorch_cuda's initialisers only register kernels and hooks with the libtorch that is already loaded, and the
        // library is never closed. RTLD_GLOBAL lets the JIT's code find its symbols.
        let library =
            unsafe { Library::open(Some(path), RTLD_LAZY | RTLD_GLOBAL) }.map_err(|error| error.to_string())?;
        std::mem::forget(library);
        Ok(())
    }

    /// The library in the folder that libtorch_cpu was loaded from, so that the two are of one release.
    fn beside_libtorch() -> Option<OsString> {
        let maps = fs::read_to_string("/proc/self/maps").ok()?;
        let loaded = maps
            .lines()
            .filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
        let folder = loaded
            .filter(|path| path.ends_with("libtorch_cpu.so"))
            .find_map(Path::parent)?;
        let library = folder.join(LIBRARY);
        library.exists().then(|| library.into_os_string())
    }

    /// Name and facts of the first GPU that this process sees, or why the driver shows none.
    #[allow(unsafe_code)]
    pub(super) fn ask_driver() -> Result<(String, CudaFacts), String> {
        type Init = unsafe extern "C" fn(u32) -> c_int;
        type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
        type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
        type Version = unsafe extern "C" fn(*mut c_int) -> c_int;
        type Memory = unsafe extern "C" fn(*mut usize, c_int) -> c_int;
        let missing = |error: libloading::Error| format!("the driver's library cannot be used: {error}");
        let done = |what: &str, code: c_int| match code {
            0 => Ok(()),
            code => Err(format!("{what} fails with CUDA error {code}")),
        };
        let mut buffer: [c_char; 256] = [0; 256];
        let (mut device, mut version, mut memory): (c_int, c_int, usize) = (0, 0, 0);
        // SAFETY: the functions have these signatures since CUDA 3.2; the buffer outlives the call and its length is
        // given. The driver library is in use by libtorch and is never closed.
        let name = unsafe {
            let driver = Library::open(Some("libcuda.so.1"), RTLD_LAZY).map_err(missing)?;
            let init: Symbol<Init> = driver.get(b"cuInit\0").map_err(missing)?;
            let get: Symbol<Get> = driver.get(b"cuDeviceGet\0").map_err(missing)?;
            let name: Symbol<Name> = driver.get(b"cuDeviceGetName\0").map_err(missing)?;
            let release: Symbol<Version> = driver.get(b"cuDriverGetVersion\0").map_err(missing)?;
            let total: Symbol<Memory> = driver.get(b"cuDeviceTotalMem_v2\0").map_err(missing)?;
            let asked = done("cuInit", init(0))
                .and_then(|()| done("cuDeviceGet", get(&raw mut device, 0)))
                .and_then(|()| done("cuDeviceGetName", name(buffer.as_mut_ptr(), 255, device)))
                .and_then(|()| done("cuDriverGetVersion", release(&raw mut version)))
                .and_then(|()| done("cuDeviceTotalMem", total(&raw mut memory, device)));
            std::mem::forget(driver);
            asked?;
            CStr::from_ptr(buffer.as_ptr()).to_string_lossy().into_owned()
        };
        let facts = CudaFacts {
            driver: fs::read_to_string("/sys/module/nvidia/version")
                .ok()
                .map(|text| text.trim().to_owned()),
            version: format!("{}.{}", version / 1000, version % 1000 / 10),
            memory_bytes: memory as u64,
        };
        Ok((name, facts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_always_there() {
        let device = Device::open(DeviceChoice::Only(DeviceKind::Cpu)).unwrap();
        assert_eq!((device.kind(), device.torch()), (DeviceKind::Cpu, tch::Device::Cpu));
        assert!(device.name().starts_with("CPU ("), "{}", device.name());
        for role in [Role::Detector, Role::OcrDetector, Role::Captioner] {
            assert_eq!(device.usable(role, DType::Float16), DType::Float32);
            assert_eq!(device.usable(role, DType::BFloat16), DType::BFloat16);
        }
    }

    #[test]
    fn a_gpu_reads_text_in_float16_where_bfloat16_is_asked_for() {
        let gpu = Device {
            kind: DeviceKind::Cuda,
            ..cpu()
        };
        for (role, wanted, used) in [
            (Role::OcrDetector, DType::BFloat16, DType::Float16),
            (Role::OcrRecognizer, DType::BFloat16, DType::Float16),
            (Role::OcrDetector, DType::Float32, DType::Float32),
            (Role::Detector, DType::BFloat16, DType::BFloat16),
            (Role::Captioner, DType::BFloat16, DType::BFloat16),
        ] {
            assert_eq!(gpu.usable(role, wanted), used, "{role:?}");
        }
    }

    #[cfg(not(target_os = "macos"))]
    #[test]
    fn a_missing_device_is_an_error() {
        let error = Device::open(DeviceChoice::Only(DeviceKind::Mps)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the device mps is not there: only builds for macOS have it"
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_missing_gpu_is_explained_with_what_hides_it() {
        let unset = why_no_gpu(Some("cuInit fails with CUDA error 100".into()), |_| None);
        assert_eq!(unset, "no GPU is visible: cuInit fails with CUDA error 100");
        let hidden = why_no_gpu(None, |name| (name == "NVIDIA_VISIBLE_DEVICES").then(|| "void".into()));
        assert!(
            hidden.starts_with("no GPU is visible (NVIDIA_VISIBLE_DEVICES=\"void\"): the driver shows"),
            "{hidden}"
        );
    }
}
