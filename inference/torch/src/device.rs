//! Chooses and names the device.

use hawkeye_pipeline::device::{DeviceChoice, DeviceKind};

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

/// An opened device.
#[derive(Debug, Clone)]
pub struct Device {
    kind: DeviceKind,
    name: String,
}

impl Device {
    /// Opens the device chosen; [`DeviceChoice::Auto`] takes the first of CUDA, MPS and CPU.
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

    /// What kind it is.
    pub const fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// `NVIDIA …`, `Apple Silicon (arm64)` or `CPU (x86_64)`.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) const fn torch(&self) -> tch::Device {
        match self.kind {
            DeviceKind::Cuda => tch::Device::Cuda(0),
            DeviceKind::Mps => tch::Device::Mps,
            DeviceKind::Cpu => tch::Device::Cpu,
        }
    }
}

/// Sets the number of CPU threads of one libtorch operation, for the whole process.
pub fn set_threads(threads: usize) {
    tch::set_num_threads(i32::try_from(threads.max(1)).unwrap_or(i32::MAX));
}

fn cpu() -> Device {
    Device {
        kind: DeviceKind::Cpu,
        name: format!("CPU ({})", std::env::consts::ARCH),
    }
}

#[cfg(target_os = "macos")]
fn open_mps() -> Result<Device, DeviceError> {
    if !tch::utils::has_mps() {
        return Err(DeviceError::Mps("libtorch finds no Metal device"));
    }
    Ok(Device {
        kind: DeviceKind::Mps,
        name: "Apple Silicon (arm64)".to_owned(),
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
    let opened = cuda::open_libtorch_cuda();
    if let Err(error) = opened {
        return Err(DeviceError::Cuda(format!("libtorch_cuda cannot be opened ({error})")));
    }
    if !tch::Cuda::is_available() || tch::Cuda::device_count() < 1 {
        return Err(DeviceError::Cuda(
            "libtorch finds no GPU; is a driver installed and a GPU given to this process?".into(),
        ));
    }
    let name = cuda::device_name().unwrap_or_else(|| "GPU of unknown name".to_owned());
    let name = if name.starts_with("NVIDIA") {
        name
    } else {
        format!("NVIDIA {name}")
    };
    Ok(Device {
        kind: DeviceKind::Cuda,
        name,
    })
}

#[cfg(target_os = "linux")]
mod cuda {
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

    /// The driver's name for the first GPU that this process sees.
    #[allow(unsafe_code)]
    pub(super) fn device_name() -> Option<String> {
        type Init = unsafe extern "C" fn(u32) -> c_int;
        type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
        type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
        let mut buffer: [c_char; 256] = [0; 256];
        // SAFETY: the three functions have these signatures since CUDA 2; the buffer outlives the call and its length is
        // given. The driver library is in use by libtorch and is never closed.
        unsafe {
            let driver = Library::open(Some("libcuda.so.1"), RTLD_LAZY).ok()?;
            let init: Symbol<Init> = driver.get(b"cuInit\0").ok()?;
            let get: Symbol<Get> = driver.get(b"cuDeviceGet\0").ok()?;
            let name: Symbol<Name> = driver.get(b"cuDeviceGetName\0").ok()?;
            let mut device: c_int = 0;
            let named = init(0) == 0 && get(&raw mut device, 0) == 0 && name(buffer.as_mut_ptr(), 255, device) == 0;
            std::mem::forget(driver);
            named.then(|| CStr::from_ptr(buffer.as_ptr()).to_string_lossy().into_owned())
        }
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
}
