//! Compiling for arm64 on an x86-64 machine: what `e2e/setup.sh --arm64` leaves, and how cargo is told of it.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use super::arch::Arch;
use crate::{
    command,
    error::{Error, Result},
    paths::Cache,
};

const TRIPLE: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
/// Debian's compiler, whose standard library for arm64 is in the sysroot.
const DEBIAN: (&str, &str) = ("/usr/bin/cargo", "/usr/bin/rustc");

/// A way to compile for arm64.
#[derive(Debug)]
pub(super) struct Cross {
    /// Debian's arm64 packages, unpacked: libc, libgcc, libstdc++ and Rust's standard library.
    sysroot: PathBuf,
    /// arm64 libtorch, laid out as in a Python environment.
    packages: PathBuf,
    toolchain: Toolchain,
}

#[derive(Debug, PartialEq, Eq)]
enum Toolchain {
    /// The one of native builds has the target.
    Host,
    Debian,
}

impl Cross {
    /// Finds what a build for `arch` needs on this machine; `None` where `arch` is the machine's own.
    ///
    /// # Errors
    /// [`Error::NoCross`] with what to do.
    pub(super) fn find(cache: &Cache, arch: Arch) -> Result<Option<Self>> {
        if arch == Arch::HOST {
            return Ok(None);
        }
        let no = |why: &str| Err(Error::NoCross(arch.platform(), why.to_owned()));
        if !(cfg!(target_os = "linux") && arch == Arch::Arm64) {
            return no("only x86-64 Linux compiles for another architecture, for arm64");
        }
        let folder = cache.root().join("arm64");
        let (sysroot, packages) = (folder.join("sysroot"), folder.join("packages"));
        let libraries = [sysroot.join("lib/aarch64-linux-gnu"), packages.join("torch/lib")];
        if command::find(LINKER).is_none() || !libraries.iter().all(|folder| folder.is_dir()) {
            return no("e2e/setup.sh --arm64 installs what it needs, on Debian 12");
        }
        let toolchain = if host_has_target() {
            Toolchain::Host
        } else if Path::new(DEBIAN.1).is_file() && library(&sysroot).is_dir() {
            Toolchain::Debian
        } else {
            return no(
                "neither rustup's target nor Debian's rustc-web is there; e2e/setup.sh --arm64 installs the latter",
            );
        };
        Ok(Some(Self {
            sysroot,
            packages,
            toolchain,
        }))
    }

    /// `cargo`, to which `build` and its arguments are added.
    pub(super) fn cargo(&self) -> Command {
        let mut cargo = match self.toolchain {
            Toolchain::Host => command::cargo(),
            Toolchain::Debian => {
                let mut cargo = command::cargo_at(DEBIAN.0);
                cargo.env("RUSTC", DEBIAN.1);
                cargo
            }
        };
        // An environment's libtorch is of this machine, and a linker that looks for it would find the wrong one.
        cargo.env_remove("LD_LIBRARY_PATH").env_remove("RUSTFLAGS");
        cargo
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER)
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS", self.rust_flags())
            .env("LIBTORCH", self.packages.join("torch"))
            .env("LIBTORCH_CXX11_ABI", "1");
        cargo
    }

    /// The arguments that choose the target and a folder for it: Debian's compiler and rustup's share nothing.
    pub(super) fn arguments(target: &Path) -> [String; 4] {
        let folder = target.join("arm64").display().to_string();
        [
            "--target".to_owned(),
            TRIPLE.to_owned(),
            "--target-dir".to_owned(),
            folder,
        ]
    }

    /// Where cargo leaves a program.
    pub(super) fn binary(target: &Path, name: &str) -> PathBuf {
        target.join("arm64").join(TRIPLE).join("release").join(name)
    }

    /// Fails where `e2e/setup.sh` fetched libtorch for CPUs alone.
    pub(super) fn check_cuda(&self) -> Result<()> {
        if self.packages.join("torch/lib/libtorch_cuda.so").is_file() {
            return Ok(());
        }
        let why = "CUDA's libraries are not there; e2e/setup.sh --arm64-cuda fetches them".to_owned();
        Err(Error::NoCross(
            format!("the variant cuda for {}", Arch::Arm64.platform()),
            why,
        ))
    }

    /// The Python packages that hold libtorch.
    pub(super) fn packages(&self) -> &Path {
        &self.packages
    }

    /// The folder whose system libraries go into images.
    pub(super) fn sysroot(&self) -> &Path {
        &self.sysroot
    }

    fn rust_flags(&self) -> String {
        // libtorch names libraries of its own that the program does not: the loader finds them, the linker need not.
        let mut flags = "-Clink-arg=-Wl,--allow-shlib-undefined".to_owned();
        if self.toolchain == Toolchain::Debian {
            let usr = self.sysroot.join("usr");
            flags = format!("--sysroot={} {flags}", usr.display());
        }
        flags
    }
}

/// Where a sysroot has Rust's standard library for the target.
fn library(sysroot: &Path) -> PathBuf {
    sysroot.join("usr/lib/rustlib").join(TRIPLE).join("lib")
}

fn host_has_target() -> bool {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "target-libdir", "--target", TRIPLE]);
    command::run(&mut rustc).is_ok_and(|folder| Path::new(folder.trim()).is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cross(toolchain: Toolchain) -> Cross {
        Cross {
            sysroot: "/cache/arm64/sysroot".into(),
            packages: "/cache/arm64/packages".into(),
            toolchain,
        }
    }

    #[test]
    fn this_machine_needs_nothing_and_an_unprepared_one_says_what() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        assert!(Cross::find(&cache, Arch::HOST).unwrap().is_none());
        let other = if Arch::HOST == Arch::Amd64 {
            Arch::Arm64
        } else {
            Arch::Amd64
        };
        let error = Cross::find(&cache, other).unwrap_err().to_string();
        assert!(error.contains(&other.platform()), "{error}");
    }

    #[test]
    fn a_cuda_image_needs_cudas_libraries() {
        let folder = tempfile::tempdir().unwrap();
        let cross = Cross {
            packages: folder.path().to_owned(),
            ..cross(Toolchain::Debian)
        };
        let error = cross.check_cuda().unwrap_err().to_string();
        assert!(error.contains("setup.sh --arm64-cuda"), "{error}");
        let library = folder.path().join("torch/lib/libtorch_cuda.so");
        std::fs::create_dir_all(library.parent().unwrap()).unwrap();
        std::fs::write(library, "").unwrap();
        cross.check_cuda().unwrap();
    }

    /// Libraries that name others, as those of CUDA do, in the layout of the wheels and of another system's root.
    #[cfg(target_os = "linux")]
    #[test]
    fn an_image_holds_what_is_named_and_what_is_opened_but_nothing_of_the_driver() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let library = |path: &str, needed: &[&str]| {
            let target = root.join(path);
            std::fs::create_dir_all(target.parent().unwrap()).unwrap();
            let name = target.file_name().unwrap().to_string_lossy().into_owned();
            let mut cc = Command::new("cc");
            cc.args([
                "-shared",
                "-nostdlib",
                "-Wl,--no-as-needed",
                "-xc",
                "/dev/null",
                "-xnone",
            ]);
            cc.arg(format!("-Wl,-soname,{name}")).arg("-o").arg(&target);
            command::run(cc.args(needed.iter().map(|path| root.join(path)))).unwrap();
        };
        let driver = "driver/libcuda.so.1";
        let (cpu, cudart) = (
            "packages/torch/lib/libtorch_cpu.so",
            "packages/nvidia/cu13/lib/libcudart.so.13",
        );
        let libc = "system/lib/any-linux-gnu/libc.so.6";
        for alone in [driver, libc, cudart, "packages/nvidia/cu13/lib/libcurand.so.10"] {
            library(alone, &[]);
        }
        library(cpu, &[cudart, libc]);
        library("packages/nvidia/cudnn/lib/libcudnn_ops.so.9", &[]);
        library("packages/torch/lib/libtorch_python.so", &[cpu]);
        library("program", &[cpu]);
        let (libtorch, cuda) = ("packages/torch/lib/libtorch.so", "packages/torch/lib/libtorch_cuda.so");
        let collect = |variant: &str| {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../images/rootfs.sh");
            let mut collect = Command::new(script);
            collect.env("SYSROOT", root.join("system"));
            collect.arg(root.join("image")).arg(root.join("program"));
            command::run(collect.arg(variant).arg(root.join("packages")))
        };
        let libraries = || {
            let all = std::fs::read_dir(root.join("image/opt/libtorch/lib")).unwrap();
            let mut names: Vec<_> = all
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        collect("cpu").unwrap();
        assert_eq!(libraries(), ["libcudart.so.13", "libtorch_cpu.so"]);
        assert!(root.join("image/lib/any-linux-gnu/libc.so.6").is_file());

        let error = collect("cuda").unwrap_err().to_string();
        assert!(error.contains("no libtorch_cuda.so"), "{error}");
        let curand = "packages/nvidia/cu13/lib/libcurand.so.10";
        library(cuda, &[cpu, curand, driver]);
        collect("cuda").unwrap();
        assert_eq!(
            libraries(),
            [
                "libcudart.so.13",
                "libcudnn_ops.so.9",
                "libcurand.so.10",
                "libtorch_cpu.so",
                "libtorch_cuda.so"
            ]
        );
        std::fs::remove_file(root.join(curand)).unwrap();
        let error = collect("cuda").unwrap_err().to_string();
        assert!(error.contains("missing library: libcurand.so.10"), "{error}");

        library(curand, &[]);
        library(libtorch, &[cpu, cuda]);
        library("program", &[libtorch]);
        let error = collect("cpu").unwrap_err().to_string();
        assert!(error.contains("needs libtorch_cuda.so"), "{error}");
    }

    #[test]
    fn debians_compiler_is_told_where_the_standard_library_is() {
        assert!(
            cross(Toolchain::Debian)
                .rust_flags()
                .starts_with("--sysroot=/cache/arm64/sysroot/usr ")
        );
        assert!(!cross(Toolchain::Host).rust_flags().contains("sysroot"));
        let cargo = cross(Toolchain::Debian).cargo();
        let libtorch = cargo.get_envs().find(|(name, _)| *name == "LIBTORCH").unwrap().1;
        assert_eq!(libtorch, Some("/cache/arm64/packages/torch".as_ref()));
    }
}
