//! Builds the cluster's programs from the Go modules under `e2e/tools`, once: a stamp beside the binaries names what they
//! were made from.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use crate::{
    archive::{Image, hex},
    command,
    error::{Error, IoContext, Result},
    paths::Cache,
    progress::Progress,
};

/// Programs that are built by one call of `go build`.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// Its name on the command line and of its stamp.
    pub name: &'static str,
    /// The module's folder under `e2e/tools`.
    module: &'static str,
    packages: &'static [&'static str],
    /// Files that the build leaves; a different name in the cache is given after `=`.
    binaries: &'static [&'static str],
    ldflags: &'static str,
    /// It runs in a container or on a node, so it is built for Linux wherever the build runs.
    for_linux: bool,
    /// It is built for arm64 wherever the build runs.
    for_arm64: bool,
    /// The tag of the image archive made of it.
    image: Option<&'static str>,
}

const KUBERNETES_VERSION: &str = "-s -w -X k8s.io/component-base/version.gitVersion=v1.37.2";

/// The control plane, the kubelet, kube-proxy and etcd.
pub const KUBERNETES: Group = Group {
    name: "kubernetes",
    module: ".",
    packages: &[
        "k8s.io/kubernetes/cmd/kube-apiserver",
        "k8s.io/kubernetes/cmd/kube-controller-manager",
        "k8s.io/kubernetes/cmd/kube-scheduler",
        "k8s.io/kubernetes/cmd/kubelet",
        "k8s.io/kubernetes/cmd/kube-proxy",
        "go.etcd.io/etcd/server/v3",
    ],
    binaries: &[
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kubelet",
        "kube-proxy",
        // Go names a binary after its module's folder.
        "server=etcd",
    ],
    ldflags: KUBERNETES_VERSION,
    for_linux: true,
    for_arm64: false,
    image: None,
};
/// The kubelet of an arm64 node on another machine; the rest of such a node is the machine's own.
pub const KUBELET_ARM64: Group = Group {
    name: "kubelet-arm64",
    module: ".",
    packages: &["k8s.io/kubernetes/cmd/kubelet"],
    binaries: &["kubelet=kubelet-arm64"],
    ldflags: KUBERNETES_VERSION,
    for_linux: true,
    for_arm64: true,
    image: None,
};
/// The command line client, which runs beside the cluster.
pub const KUBECTL: Group = Group {
    name: "kubectl",
    module: ".",
    packages: &["k8s.io/kubernetes/cmd/kubectl"],
    binaries: &["kubectl"],
    ldflags: KUBERNETES_VERSION,
    for_linux: false,
    for_arm64: false,
    image: None,
};
/// The container runtime.
pub const CONTAINERD: Group = Group {
    name: "containerd",
    module: "containerd",
    packages: &["tool"],
    binaries: &["containerd", "containerd-shim-runc-v2", "ctr"],
    ldflags: "-s -w -X github.com/containerd/containerd/v2/version.Version=v2.4.2",
    for_linux: true,
    for_arm64: false,
    image: None,
};
/// The process that holds a pod's namespaces.
pub const PAUSE: Group = Group {
    name: "pause",
    module: "pause",
    packages: &["."],
    binaries: &["pause"],
    ldflags: "-s -w",
    for_linux: true,
    for_arm64: false,
    image: Some("1"),
};
/// Cluster DNS.
pub const COREDNS: Group = Group {
    name: "coredns",
    module: "coredns",
    packages: &["."],
    binaries: &["coredns"],
    ldflags: "-s -w",
    for_linux: true,
    for_arm64: false,
    image: Some("v1.15.0"),
};
/// Nodes and pods that exist only in the API.
pub const KWOK: Group = Group {
    name: "kwok",
    module: "kwok",
    packages: &["tool"],
    binaries: &["kwok"],
    ldflags: "-s -w",
    for_linux: true,
    for_arm64: false,
    image: Some("v0.8.0"),
};
/// Installs charts.
pub const HELM: Group = Group {
    name: "helm",
    module: "helm",
    packages: &["tool"],
    binaries: &["helm"],
    ldflags: "-s -w -X helm.sh/helm/v4/internal/version.version=v4.3.1",
    for_linux: false,
    for_arm64: false,
    image: None,
};
/// Checks manifests against schemas.
pub const KUBECONFORM: Group = Group {
    name: "kubeconform",
    module: "kubeconform",
    packages: &["tool"],
    binaries: &["kubeconform"],
    ldflags: "-s -w -X main.version=v0.8.0",
    for_linux: false,
    for_arm64: false,
    image: None,
};
/// Clusters in a container engine.
pub const KIND: Group = Group {
    name: "kind",
    module: "kind",
    packages: &["tool"],
    binaries: &["kind"],
    ldflags: "-s -w",
    for_linux: false,
    for_arm64: false,
    image: None,
};

/// Every group that a machine of any architecture uses, quick ones first.
pub const ALL: [Group; 9] = [
    PAUSE,
    KUBECONFORM,
    KIND,
    CONTAINERD,
    KWOK,
    HELM,
    COREDNS,
    KUBECTL,
    KUBERNETES,
];

impl Group {
    /// The reference of the image made of this group.
    ///
    /// # Panics
    /// Never for the groups that have an image; the others have no reference and give an empty one.
    pub fn image_reference(&self) -> String {
        self.image
            .map(|tag| format!("localhost/hawkeye-tools/{}:{tag}", self.name))
            .unwrap_or_default()
    }

    fn source(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tools").join(self.module)
    }

    /// (name that Go gives, name in the cache)
    fn files(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.binaries
            .iter()
            .map(|name| name.split_once('=').unwrap_or((name, name)))
    }

    /// What the binaries depend on: pins, own sources, flags.
    fn fingerprint(&self) -> Result<String> {
        let source = self.source();
        let mut hash = Sha256::new();
        hash.update(format!(
            "{:?} {} {} {:?}\n",
            self.packages, self.ldflags, self.for_linux, self.image
        ));
        if self.for_arm64 {
            hash.update("arm64\n");
        }
        let mut files: Vec<_> = fs::read_dir(&source)
            .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
            .context(|| format!("reading {}", source.display()))?
            .into_iter()
            .map(|entry| entry.path())
            .filter(|path| {
                path.extension()
                    .is_some_and(|kind| kind == "go" || kind == "mod" || kind == "sum")
            })
            .collect();
        files.sort();
        for path in files {
            let content = fs::read(&path).context(|| format!("reading {}", path.display()))?;
            hash.update(format!(
                "{} {}\n",
                path.file_name().unwrap_or_default().to_string_lossy(),
                content.len()
            ));
            hash.update(content);
        }
        Ok(hex(&hash.finalize()))
    }

    fn stamp(&self, cache: &Cache) -> PathBuf {
        cache.tools().join("stamps").join(self.name)
    }

    /// Whether binaries and image are there and made from today's pins.
    fn is_built(&self, cache: &Cache, fingerprint: &str) -> bool {
        fs::read_to_string(self.stamp(cache)).is_ok_and(|stamp| stamp == fingerprint)
            && self.files().all(|(_, name)| cache.tool(name).is_file())
            && (self.image.is_none() || cache.tool_image(self.name).is_file())
    }
}

/// Builds those of `groups` that are missing or were made from other pins; returns at once when there are none.
///
/// # Errors
/// When Go is missing or a build fails; the message carries the compiler's output.
pub fn ensure(cache: &Cache, groups: &[Group], progress: &Progress) -> Result<()> {
    let missing = missing(cache, groups)?;
    if missing.is_empty() {
        return Ok(());
    }
    let folder = cache.tools();
    for part in ["bin", "images", "stamps"] {
        fs::create_dir_all(folder.join(part)).context(|| format!("creating {}", folder.display()))?;
    }
    let lock_path = folder.join(".lock");
    let lock = File::create(&lock_path).context(|| format!("creating {}", lock_path.display()))?;
    if lock.try_lock().is_err() {
        progress.step("tools: another run is building them; waiting for it");
        lock.lock().context(|| format!("locking {}", lock_path.display()))?;
    }
    // The other run may have built everything while this one waited.
    let missing = self::missing(cache, groups)?;
    if command::find("go").is_none() && !missing.is_empty() {
        return Err(Error::MissingPrograms {
            missing: "go (1.26.6 or newer)".into(),
            packages: "golang-go".into(),
        });
    }
    let (fetched, sources) = mpsc::channel();
    std::thread::scope(|scope| {
        // The next sources are fetched while the last are compiled: one waits for the network, the other for the processor.
        let (missing, sources) = (&missing, sources);
        scope.spawn(move || {
            for (group, _) in missing {
                // Nobody receives once a build has failed.
                if fetched.send(fetch(group)).is_err() {
                    break;
                }
            }
        });
        for (group, fingerprint) in missing {
            progress.step(format!("tools: {}: fetching sources", group.name));
            let packages = sources.recv().unwrap_or(Ok(0))?;
            build(cache, group, packages, progress)?;
            fs::write(group.stamp(cache), fingerprint).context(|| format!("writing the stamp of {}", group.name))?;
        }
        Ok(())
    })
}

/// Fetches what a group is compiled from, and says how many packages that is.
fn fetch(group: &Group) -> Result<usize> {
    let listed = command::run(go(group).args(["list", "-deps"]).args(group.packages))?;
    Ok(listed.lines().count())
}

fn missing(cache: &Cache, groups: &[Group]) -> Result<Vec<(Group, String)>> {
    let mut missing = Vec::new();
    for group in groups {
        let fingerprint = group.fingerprint()?;
        if !group.is_built(cache, &fingerprint) {
            missing.push((*group, fingerprint));
        }
    }
    Ok(missing)
}

fn go(group: &Group) -> Command {
    let mut command = Command::new("nice");
    command
        .args(["-n", "5", "go"])
        .current_dir(group.source())
        .env("CGO_ENABLED", "0");
    if group.for_linux {
        command.env("GOOS", "linux");
    }
    if group.for_arm64 {
        command.env("GOARCH", "arm64");
    }
    command
}

fn build(cache: &Cache, group: &Group, packages: usize, progress: &Progress) -> Result<()> {
    progress.step(format!("tools: {}: compiling up to {packages} packages", group.name));
    let started = Instant::now();
    let target = tempfile::tempdir_in(cache.tools()).context(|| "creating a folder for the build".into())?;
    let mut build = go(group);
    build.args(["build", "-v", "-trimpath", "-ldflags", group.ldflags, "-o"]);
    build.arg(format!("{}/", target.path().display())).args(group.packages);
    build.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = build.spawn().context(|| command::describe(&build))?;
    watch(child, &command::describe(&build), |compiled| {
        let seconds = started.elapsed().as_secs();
        progress.step(format!(
            "tools: {}: {compiled} of up to {packages} packages, {seconds} s",
            group.name
        ));
    })?;
    for (built, name) in group.files() {
        let (from, to) = (target.path().join(built), cache.tool(name));
        fs::rename(&from, &to).context(|| format!("moving {} to {}", from.display(), to.display()))?;
    }
    if group.image.is_some() {
        let image = Image {
            reference: group.image_reference(),
            entrypoint: vec![format!("/{}", group.name)],
            user: "65532:65532".into(),
            files: vec![(group.name.into(), cache.tool(group.name), 0o755)],
        };
        image.write(&cache.tool_image(group.name))?;
    }
    progress.step(format!(
        "tools: {}: built in {} s",
        group.name,
        started.elapsed().as_secs()
    ));
    Ok(())
}

/// Waits for `go build -v`, which names each package that it compiles; reports their number now and then.
fn watch(mut child: Child, command: &str, report: impl Fn(usize)) -> Result<()> {
    let compiled = Arc::new(AtomicUsize::new(0));
    let said = Arc::new(Mutex::new(Vec::new()));
    let reader = child.stderr.take().map(|stderr| {
        let (compiled, said) = (compiled.clone(), said.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(std::io::Result::ok) {
                // A package path has no spaces; messages of the compiler do.
                if line.contains(' ') {
                    said.lock().map(|mut said| said.push(line)).ok();
                } else {
                    compiled.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    });
    let mut last = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().context(|| command.into())? {
            break status;
        }
        if last.elapsed() > Duration::from_secs(20) {
            last = Instant::now();
            report(compiled.load(Ordering::Relaxed));
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    if let Some(reader) = reader {
        let _ = reader.join();
    }
    if status.success() {
        return Ok(());
    }
    let said = said.lock().map(|said| said.join("\n")).unwrap_or_default();
    Err(Error::Command {
        command: command.into(),
        status,
        output: said,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_has_its_module_and_a_fingerprint_of_its_own() {
        let groups = || ALL.iter().chain([&KUBELET_ARM64]);
        let prints: std::collections::BTreeSet<_> = groups().map(|group| group.fingerprint().unwrap()).collect();
        assert_eq!(prints.len(), groups().count());
        assert!(ALL.iter().all(|group| group.source().join("go.mod").is_file()));
    }

    #[test]
    fn versions_named_here_are_those_that_the_modules_pin() {
        let pins = |group: &Group| fs::read_to_string(group.source().join("go.mod")).unwrap();
        for (group, pin) in [
            (&KUBERNETES, "k8s.io/kubernetes v1.37.2"),
            (&CONTAINERD, "github.com/containerd/containerd/v2 v2.4.2"),
            (&COREDNS, "github.com/coredns/coredns v1.15.0"),
            (&KWOK, "sigs.k8s.io/kwok v0.8.0"),
            (&HELM, "helm.sh/helm/v4 v4.3.1"),
            (&KUBECONFORM, "github.com/yannh/kubeconform v0.8.0"),
            (&KIND, "sigs.k8s.io/kind v0.33.0"),
        ] {
            assert!(pins(group).contains(pin), "{} should pin {pin}", group.name);
            let version = pin.rsplit(' ').next().unwrap();
            let named = [group.ldflags, group.image.unwrap_or_default()].join(" ");
            assert!(
                !named.contains("ersion=v") || named.contains(version),
                "{named} should name {version}"
            );
            assert!(group.image.is_none_or(|tag| tag == version), "{} {version}", group.name);
        }
    }

    #[test]
    fn a_stamp_counts_only_with_all_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        assert!(!PAUSE.is_built(&cache, "print"));
        for path in [PAUSE.stamp(&cache), cache.tool("pause"), cache.tool_image("pause")] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "print").unwrap();
        }
        assert!(PAUSE.is_built(&cache, "print"));
        assert!(!PAUSE.is_built(&cache, "another"));
        fs::remove_file(cache.tool_image("pause")).unwrap();
        assert!(!PAUSE.is_built(&cache, "print"));
    }

    #[test]
    fn a_failing_build_says_what_the_compiler_said() {
        let mut shell = Command::new("sh");
        shell
            .args([
                "-c",
                "echo some/package >&2; echo 'x.go:1:1: not a package' >&2; exit 1",
            ])
            .stderr(Stdio::piped());
        let error = watch(shell.spawn().unwrap(), "go build", |_| ())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("not a package") && !error.contains("some/package"),
            "{error}"
        );
    }
}
