//! Builds the container images and the demo's model bundle, and keeps each as an archive that a cluster can load.
//!
//! On Linux the binaries are compiled on the host and `images/rootfs.sh` collects what they load, so assembling an image
//! needs no base image and no registry: with docker where an engine answers, else with buildah alone. Elsewhere docker
//! compiles them inside, from the same Dockerfiles.
//!
//! Images for arm64 are made on x86-64 as well, from programs that [`cross`] compiles, and an index joins both.

mod arch;
mod cross;
mod index;
mod layout;
mod work;

use std::{
    env, fs,
    fs::File,
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use sha2::{Digest, Sha256};

pub use self::{
    arch::{Arch, elf_machine},
    index::join,
    layout::{Contents, Descriptor, Layout, architecture, inspect},
};
use self::{
    cross::Cross,
    work::{Strays, Work},
};
use crate::{
    command,
    error::{Error, IoContext, Result},
    paths::Cache,
    progress::Progress,
};

/// The release that the charts' default image names carry.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Name of the model bundle image; local only, its weights must not be published.
pub const BUNDLE_REFERENCE: &str = "localhost/hawkeye-bundle:demo";

/// Which libraries the inference image holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Variant {
    /// libtorch's CPU half.
    #[default]
    Cpu,
    /// All of libtorch and the CUDA 13 libraries, about 2.7 GB.
    Cuda,
}

impl Variant {
    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

/// An image that this repository builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// The operator.
    Operator,
    /// The inference service.
    Inference(Variant),
    /// The demo's models, as an image volume.
    Bundle,
}

impl Image {
    /// The reference under which the archive carries the image.
    pub fn reference(self) -> String {
        match self {
            Self::Operator => format!("ghcr.io/bytebot-ai/hawkeye-operator:{VERSION}"),
            Self::Inference(variant) => format!("ghcr.io/bytebot-ai/hawkeye-inference:{VERSION}-{}", variant.name()),
            Self::Bundle => BUNDLE_REFERENCE.to_owned(),
        }
    }

    /// The archive's file name, without its ending.
    fn stem(self) -> String {
        match self {
            Self::Operator => "operator".to_owned(),
            Self::Inference(variant) => format!("inference-{}", variant.name()),
            Self::Bundle => "bundle".to_owned(),
        }
    }

    /// This machine's architecture has the plain names; others have a folder.
    fn archive(self, cache: &Cache, arch: Arch) -> PathBuf {
        let mut folder = cache.root().join("images");
        if arch != Arch::HOST {
            folder.push(arch.name());
        }
        folder.join(format!("{}.tar", self.stem()))
    }

    /// The OCI layout of the image's index over all architectures.
    pub fn index(self, cache: &Cache) -> PathBuf {
        cache.root().join("images/index").join(format!("{}.tar", self.stem()))
    }

    /// Largest size in bytes, a promise of the documentation; the CUDA libraries alone are larger than any.
    pub fn most(self) -> Option<u64> {
        match self {
            Self::Operator => Some(40_000_000),
            Self::Inference(Variant::Cpu) => Some(700_000_000),
            Self::Inference(Variant::Cuda) | Self::Bundle => None,
        }
    }

    /// Package and binary of the workspace; the bundle has none.
    fn binary(self) -> Option<&'static str> {
        match self {
            Self::Operator => Some("hawkeye-operator"),
            Self::Inference(_) => Some("hawkeye-inference"),
            Self::Bundle => None,
        }
    }

    fn dockerfile(self, repository: &Path) -> PathBuf {
        repository.join(match self {
            Self::Operator => "operator/Dockerfile",
            Self::Inference(_) => "inference/Dockerfile",
            Self::Bundle => "images/bundle.Dockerfile",
        })
    }
}

/// Brings the archives of the operator, the CPU inference service and the demo's bundle up to date.
///
/// # Errors
/// The first build step that fails, with what it said.
pub fn build_for_cluster(cache: &Cache, repository: &Path, progress: Progress) -> Result<Vec<PathBuf>> {
    build(
        cache,
        repository,
        &[Image::Operator, Image::Inference(Variant::Cpu), Image::Bundle],
        progress,
    )
}

/// Brings the archives of `images` for this machine's architecture up to date and returns their paths, in order. What has
/// not changed is left alone.
///
/// # Errors
/// The first build step that fails, with what it said.
pub fn build(cache: &Cache, repository: &Path, images: &[Image], progress: Progress) -> Result<Vec<PathBuf>> {
    build_for(cache, repository, Arch::HOST, images, progress)
}

/// As [`build`], for the architecture `arch`. The bundle is data and the same for all.
///
/// # Errors
/// The first build step that fails; [`Error::NoCross`] where this machine does not build for `arch`.
pub fn build_for(
    cache: &Cache,
    repository: &Path,
    arch: Arch,
    images: &[Image],
    progress: Progress,
) -> Result<Vec<PathBuf>> {
    let _lock = lock(cache, progress)?;
    let host = Host::new(cache, repository, arch, progress)?;
    if let Some(cross) = &host.cross
        && images.contains(&Image::Inference(Variant::Cuda))
    {
        cross.check_cuda()?;
    }
    if host.prebuilt {
        // Both even if one is asked for: cargo unifies features over what it builds, and another choice compiles all anew.
        if images.iter().any(|image| image.binary().is_some()) {
            host.compile(&PROGRAMS)?;
        }
    }
    images.iter().map(|&image| host.archive(image)).collect()
}

/// Why this machine cannot build images for `arch`; `Ok` where it can.
///
/// # Errors
/// [`Error::NoCross`] with what to do.
pub fn can_build_for(cache: &Cache, arch: Arch) -> Result<()> {
    Cross::find(cache, arch).map(drop)
}

/// The demo and the tests may build at the same time.
fn lock(cache: &Cache, progress: Progress) -> Result<File> {
    let folder = cache.root().join("images");
    fs::create_dir_all(&folder).context(|| format!("creating {}", folder.display()))?;
    let lock_path = folder.join("lock");
    let lock = File::create(&lock_path).context(|| format!("creating {}", lock_path.display()))?;
    if lock.try_lock().is_err() {
        progress.step("another run builds images; waiting for it");
        lock.lock().context(|| format!("locking {}", lock_path.display()))?;
    }
    Ok(lock)
}

/// Compiles the operator for release and returns its program.
///
/// # Errors
/// What cargo says.
pub(crate) fn operator_program(cache: &Cache, repository: &Path, progress: Progress) -> Result<PathBuf> {
    let host = Host::new(cache, repository, Arch::HOST, progress)?;
    // Both, as for the images, so that neither compiles anew what the other one has.
    host.compile(&PROGRAMS)?;
    Ok(host.binary("hawkeye-operator"))
}

/// Compiles the kubectl plugin for release and returns its program.
///
/// # Errors
/// What cargo says; [`Error::NoCross`] where this machine does not build for `arch`.
pub fn plugin(cache: &Cache, repository: &Path, arch: Arch, progress: Progress) -> Result<PathBuf> {
    let host = Host::new(cache, repository, arch, progress)?;
    // With the programs of the images, for the same reason.
    host.compile(&[PROGRAMS[0], PROGRAMS[1], ("hawkeye-operator", "kubectl-hawkeye")])?;
    Ok(host.binary("kubectl-hawkeye"))
}

/// Writes the demo's model bundle where it is missing or older than its exporter, and returns its folder.
///
/// # Errors
/// When the exporter is not installed or fails.
pub fn bundle(cache: &Cache, repository: &Path, progress: Progress) -> Result<PathBuf> {
    let folder = cache.root().join("bundles/demo");
    let exporter = repository.join("inference/export");
    let mut sources = files_under(&exporter.join("src"))?;
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "py"));
    sources.push(exporter.join("requirements.lock"));
    let mut key = Sha256::new();
    for source in sources {
        key.update(read(&source)?);
    }
    let (key, stamp) = (hex(key), cache.root().join("bundles/demo.key"));
    if folder.join("bundle.json").is_file() && is_current(&stamp, &key) {
        return Ok(folder);
    }
    progress.step("exporting the demo's models to TorchScript (about 2 minutes)");
    let python = cache.root().join("python/venv/bin/python");
    let mut export = Command::new(python);
    export
        .args(["-m", "hawkeye_export", "bundle", "--name", "demo", "--out"])
        .arg(&folder);
    export
        .env("PYTHONPATH", exporter.join("src"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env_remove("PYTHONHOME");
    shown(&mut export)?;
    write(&stamp, key)?;
    Ok(folder)
}

/// Package and program of each image.
const PROGRAMS: [(&str, &str); 2] = [
    ("hawkeye-operator", "hawkeye-operator"),
    ("hawkeye-inference", "hawkeye-inference"),
];

/// What a build needs to know about where it runs, and for what.
struct Host<'a> {
    cache: &'a Cache,
    repository: &'a Path,
    progress: Progress,
    arch: Arch,
    /// How to compile, where `arch` is not this machine's.
    cross: Option<Cross>,
    /// Binaries are compiled on the host, not in a build stage.
    prebuilt: bool,
    docker: bool,
}

impl<'a> Host<'a> {
    fn new(cache: &'a Cache, repository: &'a Path, arch: Arch, progress: Progress) -> Result<Self> {
        Ok(Self {
            cache,
            repository,
            progress,
            arch,
            cross: Cross::find(cache, arch)?,
            prebuilt: cfg!(target_os = "linux"),
            docker: command::engine_answers(),
        })
    }

    /// Compiles programs (package, binary) in one go, for release.
    fn compile(&self, programs: &[(&str, &str)]) -> Result<()> {
        let names: Vec<&str> = programs.iter().map(|(_, binary)| *binary).collect();
        let what = format!("compiling {} (release, {})", names.join(", "), self.arch);
        self.progress.step(what);
        let mut cargo = self.cross.as_ref().map_or_else(command::cargo, Cross::cargo);
        cargo.args(["build", "--locked", "--release"]);
        if self.cross.is_some() {
            cargo.args(Cross::arguments(&self.target_folder()));
        }
        for (package, binary) in programs {
            cargo.args(["--package", package, "--bin", binary]);
        }
        if self.cross.is_none()
            && let Some(packages) = self.site_packages()
        {
            let torch = packages.join("torch");
            cargo
                .env("LIBTORCH_CXX11_ABI", "1")
                .env("LD_LIBRARY_PATH", torch.join("lib"))
                .env("LIBTORCH", torch);
        }
        shown(cargo.current_dir(self.repository))
    }

    /// Brings one archive up to date.
    fn archive(&self, image: Image) -> Result<PathBuf> {
        let (archive, stamp) = (
            image.archive(self.cache, self.arch),
            image.archive(self.cache, self.arch).with_extension("key"),
        );
        if let Some(folder) = archive.parent() {
            fs::create_dir_all(folder).context(|| format!("creating {}", folder.display()))?;
        }
        if image == Image::Bundle {
            bundle(self.cache, self.repository, self.progress)?;
        }
        let key = if self.prebuilt || image == Image::Bundle {
            Some(self.key(image)?)
        } else {
            None
        };
        if let Some(key) = &key
            && archive.is_file()
            && is_current(&stamp, key)
        {
            self.progress
                .step(format!("image {} ({}) is up to date", image.reference(), self.arch));
            return Ok(archive);
        }
        self.progress
            .step(format!("image {} ({})", image.reference(), self.arch));
        let work = Work::new(self.cache.root().join("images/work").join(image.stem()))?;
        let next = work.0.join("image.tar");
        let context = self.context(image, &work)?;
        if self.docker {
            self.with_docker(image, &context, &next)?;
        } else if command::find("buildah").is_some() {
            self.with_buildah(image, &context, &work, &next)?;
        } else {
            let (missing, packages) = ("buildah, and docker does not answer".to_owned(), "buildah".to_owned());
            return Err(Error::MissingPrograms { missing, packages });
        }
        let said = self.check(image, &next)?;
        fs::rename(&next, &archive).context(|| format!("writing {}", archive.display()))?;
        if let Some(key) = key {
            write(&stamp, key)?;
        }
        self.progress.step(said);
        Ok(archive)
    }

    /// Refuses an image that holds a program of another architecture, and says what is in it.
    fn check(&self, image: Image, archive: &Path) -> Result<String> {
        let contents = inspect(archive)?;
        let foreign: Vec<&str> = contents.foreign().take(5).collect();
        // The bundle holds no program and says the architecture of the machine that made it.
        if !foreign.is_empty() || (image != Image::Bundle && contents.arch != self.arch) {
            return Err(Error::WrongArchitecture {
                image: image.reference(),
                arch: self.arch.platform(),
                found: format!("{}; {}", contents.arch.platform(), foreign.join(", ")),
            });
        }
        Ok(describe(image, &contents))
    }

    /// The folder that the Dockerfile is built in.
    fn context(&self, image: Image, work: &Work) -> Result<PathBuf> {
        let context = match image.binary() {
            None => self.cache.root().join("bundles/demo"),
            Some(_) if !self.prebuilt => return Ok(self.repository.to_owned()),
            Some(binary) => {
                let context = work.0.join("context");
                let mut collect = Command::new(self.repository.join("images/rootfs.sh"));
                collect.arg(context.join("rootfs")).arg(self.binary(binary));
                if let Image::Inference(variant) = image {
                    let packages = self.site_packages().ok_or_else(|| missing_torch(self.cache))?;
                    collect.arg(variant.name()).arg(packages);
                }
                if let Some(cross) = &self.cross {
                    collect.env("SYSROOT", cross.sysroot());
                }
                command::run(&mut collect)?;
                context
            }
        };
        Ok(context)
    }

    fn build_arguments(&self, image: Image) -> Vec<String> {
        if image == Image::Bundle {
            return Vec::new();
        }
        let mut arguments = vec![format!("VERSION={VERSION}")];
        if self.prebuilt {
            arguments.push("BINARIES=prebuilt".to_owned());
        }
        if let Image::Inference(variant) = image {
            arguments.push(format!("VARIANT={}", variant.name()));
        }
        arguments
            .into_iter()
            .flat_map(|argument| ["--build-arg".to_owned(), argument])
            .collect()
    }

    fn with_docker(&self, image: Image, context: &Path, archive: &Path) -> Result<()> {
        let reference = image.reference();
        let mut build = Command::new("docker");
        build.args(["buildx", "build", "--load", "--provenance=false", "--tag", &reference]);
        build.args(["--platform", &self.arch.platform()]);
        build
            .args(self.build_arguments(image))
            .arg("--file")
            .arg(image.dockerfile(self.repository))
            .arg(context);
        shown(&mut build)?;
        command::run(
            Command::new("docker")
                .args(["image", "save", "--output"])
                .arg(archive)
                .arg(&reference),
        )
        .map(drop)
    }

    /// Builds with a store of its own that goes with the work folder: no mount, daemon or file elsewhere is left.
    fn with_buildah(&self, image: Image, context: &Path, work: &Work, archive: &Path) -> Result<()> {
        let _strays = Strays::note();
        let tag = image.reference();
        let mut build = work.buildah();
        build
            .args(["bud", "--isolation", "chroot", "--pull=never", "--tag", &tag])
            .args(["--platform", &self.arch.platform()])
            .args(self.build_arguments(image));
        command::run(build.arg("--file").arg(image.dockerfile(self.repository)).arg(context))?;
        let target = format!("docker-archive:{}:{tag}", archive.display());
        command::run(work.buildah().args(["push", &tag, &target])).map(drop)
    }

    /// Changes when the image would.
    fn key(&self, image: Image) -> Result<String> {
        let mut key = Sha256::new();
        key.update(read(&image.dockerfile(self.repository))?);
        match image.binary() {
            // bundle.json holds the sha256 of every other file.
            None => key.update(read(&self.cache.root().join("bundles/demo/bundle.json"))?),
            Some(binary) => {
                key.update(read(&self.repository.join("images/rootfs.sh"))?);
                key.update(read(&self.binary(binary))?);
            }
        }
        if let Image::Inference(variant) = image {
            key.update(variant.name());
            let packages = self.site_packages().ok_or_else(|| missing_torch(self.cache))?;
            let mut libraries = files_under(&packages.join("torch/lib"))?;
            libraries.extend(files_under(&packages.join("nvidia"))?);
            for library in libraries {
                key.update(library.as_os_str().as_encoded_bytes());
                key.update(fs::metadata(&library).map_or(0, |file| file.len()).to_le_bytes());
            }
        }
        Ok(hex(key))
    }

    fn binary(&self, name: &str) -> PathBuf {
        let target = self.target_folder();
        match self.cross {
            Some(_) => Cross::binary(&target, name),
            None => target.join("release").join(name),
        }
    }

    fn target_folder(&self) -> PathBuf {
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| self.repository.join("target"), PathBuf::from);
        self.repository.join(target)
    }

    /// The Python packages that hold libtorch and the CUDA libraries; there after `e2e/setup.sh`.
    fn site_packages(&self) -> Option<PathBuf> {
        if let Some(cross) = &self.cross {
            return Some(cross.packages().to_owned());
        }
        let lib = self.cache.root().join("python/venv/lib");
        let entries = fs::read_dir(lib).ok()?;
        let mut found = entries.flatten().map(|entry| entry.path().join("site-packages"));
        found.find(|packages| packages.join("torch/lib").is_dir())
    }
}

/// One line about an image: architecture, size, programs and libraries.
pub fn describe(image: Image, contents: &Contents) -> String {
    let (reference, size) = (image.reference(), contents.size / 1_000_000);
    let binaries = contents.binaries.len();
    let aim = image.most().map_or_else(String::new, |most| {
        let verdict = if contents.size > most { ", ABOVE" } else { ", below" };
        format!("{verdict} {} MB", most / 1_000_000)
    });
    format!(
        "image {reference} ({}): {size} MB{aim}, {binaries} ELF files",
        contents.arch
    )
}

/// Runs a program whose own progress people want to see.
fn shown(program: &mut Command) -> Result<()> {
    let text = command::describe(program);
    // Standard output belongs to results.
    program.stdin(Stdio::null()).stdout(io::stderr());
    let status = program.status().context(|| text.clone())?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Command {
        command: text,
        status,
        output: "(its output is above)".to_owned(),
    })
}

fn missing_torch(cache: &Cache) -> Error {
    let packages = cache.root().join("python/venv");
    let source = io::Error::new(io::ErrorKind::NotFound, "no torch there; `make setup` installs it");
    Error::Io {
        what: packages.display().to_string(),
        source,
    }
}

/// Every file below `folder`, in a fixed order.
fn files_under(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).context(|| format!("reading {}", folder.display()))? {
            let path = entry.context(|| format!("reading {}", folder.display()))?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).context(|| format!("reading {}", path.display()))
}

fn write(path: &Path, text: String) -> Result<()> {
    fs::write(path, text).context(|| format!("writing {}", path.display()))
}

fn is_current(stamp: &Path, key: &str) -> bool {
    fs::read_to_string(stamp).is_ok_and(|written| written == key)
}

fn hex(hash: Sha256) -> String {
    use std::fmt::Write as _;
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
