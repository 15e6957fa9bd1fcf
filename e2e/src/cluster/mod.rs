//! A Kubernetes cluster of one node, or two with one for arm64, by whichever provider works on this machine.

mod kind;
#[cfg(target_os = "linux")]
mod local;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
};

use crate::{
    command::{self, Kubectl},
    error::{Error, IoContext, Result},
    fake_nodes,
    images::Arch,
    paths::Cache,
    progress::Progress,
    tools,
};

/// What a provider of clusters does. Each value is about one cluster.
trait Provider {
    /// `kind` or `local`.
    fn name(&self) -> &'static str;
    /// The programs that it runs.
    fn tools(&self) -> &'static [tools::Group];
    /// Starts the cluster, on demand with a node for arm64, and waits until nodes and DNS are ready. Nothing of an earlier one
    /// is there.
    fn create(&self, arm64: bool, progress: &Progress) -> Result<()>;
    /// Removes the cluster, or what a killed run left of it. Fine when there is none.
    fn delete(&self, progress: &Progress) -> Result<()>;
    /// Makes the image of an archive (OCI layout or `docker save`) known to a node.
    fn load_image(&self, node: NodeChoice, archive: &Path) -> Result<()>;
    /// Runs what is appended to it in a node's namespaces.
    fn node_command(&self, node: NodeChoice) -> Result<Command>;
    /// Whether the running cluster has a node for arm64 beside the first.
    fn has_arm64(&self) -> bool;
    /// Facts for `status`: label and value.
    fn facts(&self) -> Result<Vec<(String, String)>>;
    /// Where the node's logs lie: the API server's `audit.log`, and what else the provider keeps.
    fn logs(&self) -> PathBuf;
}

/// Which provider to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ProviderChoice {
    /// The running cluster's provider; else kind where a container engine answers, else local.
    #[default]
    Auto,
    /// A node in a container.
    Kind,
    /// A node in namespaces of this machine; Linux, as root.
    Local,
}

/// Which of a cluster's nodes that run real pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum NodeChoice {
    /// The one with the control plane, of this machine's architecture.
    #[default]
    First,
    /// The one that `up --arm64` adds.
    Arm64,
}

/// How [`Cluster::up`] starts a cluster.
#[derive(Debug, Clone, Copy, Default)]
pub struct UpOptions {
    /// Adds the nodes of `e2e/fixtures/nodes`, which exist only in the API.
    pub fake_nodes: bool,
    /// Keeps a cluster of that name that already answers, instead of starting afresh.
    pub keep: bool,
    /// Adds a second node that runs arm64 pods, emulated where the machine is x86-64.
    pub arm64: bool,
}

/// A cluster of a given name, running or not.
pub struct Cluster {
    name: ClusterName,
    cache: Cache,
    provider: Box<dyn Provider + Send + Sync>,
    progress: Progress,
}

/// A checked name: it becomes part of interface, cgroup and node names, of which an interface's 15 bytes are the tightest.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ClusterName(String);

impl FromStr for ClusterName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let fits = (1..=12).contains(&name.len())
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && !name.ends_with('-')
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if fits {
            Ok(Self(name.into()))
        } else {
            Err(Error::InvalidName(name.into()))
        }
    }
}

impl std::fmt::Display for ClusterName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Cluster {
    /// Chooses the provider; starts nothing.
    ///
    /// # Errors
    /// When the name cannot be used, or no provider works on this machine.
    pub fn new(name: &str, choice: ProviderChoice, progress: Progress) -> Result<Self> {
        let name: ClusterName = name.parse()?;
        let cache = Cache::from_env()?;
        let recorded = fs::read_to_string(folder(&cache, &name).join("provider")).ok();
        let provider: Box<dyn Provider + Send + Sync> = match resolve(choice, recorded.as_deref())? {
            ProviderChoice::Kind => Box::new(kind::Kind::new(&cache, &name)),
            #[cfg(target_os = "linux")]
            _ => Box::new(local::Local::new(&cache, &name)),
            #[cfg(not(target_os = "linux"))]
            _ => return Err(Error::NoProvider("this is not Linux")),
        };
        Ok(Self {
            name,
            cache,
            provider,
            progress,
        })
    }

    /// Starts the cluster: builds what tools are missing, clears what an earlier run left, waits until node and DNS are ready.
    ///
    /// # Errors
    /// When something is not installed or a component does not come up; the message names its log.
    pub fn up(&self, options: UpOptions) -> Result<()> {
        let mut groups = self.provider.tools().to_vec();
        groups.extend([tools::KUBECTL, tools::HELM]);
        groups.extend(options.fake_nodes.then_some(tools::KWOK));
        if options.arm64 {
            // Said before minutes go into building its programs.
            self.check_arm64()?;
            groups.extend((Arch::HOST != Arch::Arm64).then_some(tools::KUBELET_ARM64));
        }
        tools::ensure(&self.cache, &groups, &self.progress)?;
        let _lock = self.lock()?;
        if options.keep && self.is_ready() && (!options.arm64 || self.provider.has_arm64()) {
            self.progress.step(format!("cluster {}: already up", self.name));
        } else {
            self.provider.delete(&self.progress)?;
            let folder = self.folder();
            create_private(&folder)?;
            fs::write(folder.join("provider"), self.provider.name()).context(|| format!("{}", folder.display()))?;
            self.provider.create(options.arm64, &self.progress)?;
        }
        if options.fake_nodes {
            self.add_fake_nodes()?;
        }
        self.progress
            .step(format!("cluster {}: ready ({})", self.name, self.provider.name()));
        Ok(())
    }

    /// Removes every trace of the cluster.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn down(&self) -> Result<()> {
        let lock = self.lock()?;
        self.provider.delete(&self.progress)?;
        let folder = self.folder();
        if folder.exists() {
            fs::remove_dir_all(&folder).context(|| format!("removing {}", folder.display()))?;
        }
        let _ = fs::remove_file(self.lock_path());
        drop(lock);
        self.progress
            .step(format!("cluster {}: nothing of it is left", self.name));
        Ok(())
    }

    /// Adds the fake nodes to a running cluster and waits until they are Ready.
    ///
    /// # Errors
    /// When the cluster does not run or the nodes do not become Ready.
    pub fn add_fake_nodes(&self) -> Result<()> {
        self.load_kwok()?;
        let nodes = fake_nodes::add(&self.kubectl())?;
        self.progress.step(format!("fake nodes: {nodes} ready"));
        Ok(())
    }

    /// Starts kwok in a running cluster with what it needs for thousands of nodes, and adds none.
    ///
    /// # Errors
    /// When the cluster does not run or kwok does not start.
    pub(crate) fn start_fleet(&self) -> Result<()> {
        self.load_kwok()?;
        fake_nodes::start(&self.kubectl(), fake_nodes::Kwok::FLEET)
    }

    fn load_kwok(&self) -> Result<()> {
        self.require()?;
        tools::ensure(&self.cache, &[tools::KWOK], &self.progress)?;
        self.progress.step("fake nodes: starting kwok");
        self.provider
            .load_image(NodeChoice::First, &self.cache.tool_image("kwok"))
    }

    /// Why an arm64 node cannot be had here with this cluster's provider; `Ok` where it can.
    ///
    /// # Errors
    /// [`Error::NoArm64Node`] with what to do.
    pub fn check_arm64(&self) -> Result<()> {
        match self.provider.name() {
            #[cfg(target_os = "linux")]
            "local" => local::check_arm64(),
            _ if Arch::HOST == Arch::Arm64 => Ok(()),
            _ => Err(Error::NoArm64Node(
                "kind's nodes are of this machine's architecture; `--provider local` emulates one, on Linux as root"
                    .into(),
            )),
        }
    }

    /// Makes the image of an archive (OCI layout or `docker save`) known to the first node.
    ///
    /// # Errors
    /// When the cluster does not run or the archive cannot be read.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        self.load_image_on(NodeChoice::First, archive)
    }

    /// As [`Cluster::load_image`], for a node of one's choice.
    ///
    /// # Errors
    /// As [`Cluster::load_image`]; also when there is no such node.
    pub fn load_image_on(&self, node: NodeChoice, archive: &Path) -> Result<()> {
        self.require()?;
        let archive = archive.canonicalize().context(|| format!("{}", archive.display()))?;
        self.progress.step(format!("loading {}", archive.display()));
        self.provider.load_image(node, &archive)
    }

    /// The name given to [`Cluster::new`].
    pub fn name(&self) -> &str {
        &self.name.0
    }

    /// Credentials of an administrator.
    pub fn kubeconfig_path(&self) -> PathBuf {
        self.folder().join("kubeconfig")
    }

    /// The folder with `audit.log` (every write request, one JSON object a line) and the components' logs.
    pub fn logs(&self) -> PathBuf {
        self.provider.logs()
    }

    /// kubectl for this cluster.
    pub fn kubectl(&self) -> Kubectl {
        Kubectl::new(self.cache.tool("kubectl"), self.kubeconfig_path())
    }

    /// helm for this cluster, with its own settings folder so that the user's repositories stay untouched.
    pub fn helm(&self) -> Command {
        let mut helm = Command::new(self.cache.tool("helm"));
        helm.arg("--kubeconfig")
            .arg(self.kubeconfig_path())
            .env("NO_PROXY", "*");
        for (variable, part) in [
            ("HELM_CACHE_HOME", "cache"),
            ("HELM_CONFIG_HOME", "config"),
            ("HELM_DATA_HOME", "data"),
        ] {
            helm.env(variable, self.folder().join("helm").join(part));
        }
        helm
    }

    /// A client with an administrator's rights.
    ///
    /// # Errors
    /// When the cluster does not run or its kubeconfig cannot be used.
    pub async fn client(&self) -> Result<kube::Client> {
        let config = self.config().await?;
        kube::Client::try_from(config).map_err(|error| Error::Kube(Box::new(error)))
    }

    /// What a client with an administrator's rights needs.
    ///
    /// # Errors
    /// As [`Cluster::client`].
    pub async fn config(&self) -> Result<kube::Config> {
        self.require()?;
        let kubeconfig = kube::config::Kubeconfig::read_from(self.kubeconfig_path())?;
        let options = kube::config::KubeConfigOptions::default();
        Ok(kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?)
    }

    /// Whether the API server answers and says that it is ready.
    pub fn is_ready(&self) -> bool {
        self.kubeconfig_path().is_file() && self.kubectl().ask(["get", "--raw=/readyz"]).is_ok()
    }

    /// Facts about the cluster: label and value.
    ///
    /// # Errors
    /// [`Error::NotUp`] when there is none.
    pub fn facts(&self) -> Result<Vec<(String, String)>> {
        self.require()?;
        let ready = if self.is_ready() { "answers" } else { "does not answer" };
        let mut facts = vec![
            ("name".to_owned(), self.name.to_string()),
            ("provider".to_owned(), self.provider.name().to_owned()),
            ("API server".to_owned(), ready.to_owned()),
            ("kubeconfig".to_owned(), self.kubeconfig_path().display().to_string()),
            ("logs".to_owned(), self.logs().display().to_string()),
        ];
        facts.extend(self.provider.facts()?);
        Ok(facts)
    }

    /// Runs a command in a node's namespaces with this process's terminal and returns whether it succeeded.
    ///
    /// # Errors
    /// When the cluster does not run or the command cannot be started.
    pub fn exec(&self, node: NodeChoice, words: &[String]) -> Result<bool> {
        self.require()?;
        let mut command = self.provider.node_command(node)?;
        let status = command.args(words).status().context(|| command::describe(&command))?;
        Ok(status.success())
    }

    /// Runs a command in a node's namespaces and returns what it printed.
    ///
    /// # Errors
    /// As [`Cluster::exec`], and when the command fails.
    pub fn output(&self, node: NodeChoice, words: &[&str]) -> Result<String> {
        self.require()?;
        command::run(self.provider.node_command(node)?.args(words))
    }

    fn folder(&self) -> PathBuf {
        folder(&self.cache, &self.name)
    }

    fn require(&self) -> Result<()> {
        let there = self.kubeconfig_path().is_file();
        if there {
            Ok(())
        } else {
            Err(Error::NotUp(self.name.to_string()))
        }
    }

    fn lock_path(&self) -> PathBuf {
        self.cache.clusters().join(format!("{}.lock", self.name))
    }

    /// Keeps two runs from starting or removing the same cluster at once; released by the kernel if this run is killed.
    fn lock(&self) -> Result<fs::File> {
        use std::os::unix::fs::MetadataExt;
        create_private(&self.cache.clusters())?;
        let path = self.lock_path();
        loop {
            let file = fs::File::create(&path).context(|| format!("creating {}", path.display()))?;
            if file.try_lock().is_err() {
                self.progress.step(format!(
                    "cluster {}: another run works on it; waiting for it",
                    self.name
                ));
                file.lock().context(|| format!("locking {}", path.display()))?;
            }
            // The run that held it may have removed the file with the cluster: then the lock is on a file no one else sees.
            let held = file.metadata().context(|| format!("{}", path.display()))?.ino();
            if fs::metadata(&path).is_ok_and(|there| there.ino() == held) {
                return Ok(file);
            }
        }
    }
}

fn folder(cache: &Cache, name: &ClusterName) -> PathBuf {
    cache.clusters().join(&name.0)
}

/// A folder that only its owner can read: it will hold keys.
fn create_private(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .context(|| format!("creating {}", path.display()))
}

/// Turns `auto` into a provider: that of the recorded cluster, else the first that can work here.
fn resolve(choice: ProviderChoice, recorded: Option<&str>) -> Result<ProviderChoice> {
    match (choice, recorded) {
        (ProviderChoice::Auto, Some("kind")) => Ok(ProviderChoice::Kind),
        (ProviderChoice::Auto, Some(_)) => Ok(ProviderChoice::Local),
        (ProviderChoice::Auto, None) if command::engine_answers() => Ok(ProviderChoice::Kind),
        (ProviderChoice::Auto, None) => local_works().map_err(Error::NoProvider).map(|()| ProviderChoice::Local),
        (choice, _) => Ok(choice),
    }
}

fn local_works() -> Result<(), &'static str> {
    if !cfg!(target_os = "linux") {
        return Err("a cluster without one needs Linux");
    }
    if !rustix::process::geteuid().is_root() {
        return Err("a cluster without one needs root");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_into_interface_names() {
        for good in ["demo", "test", "a", "ci-2", "abcdefghijkl"] {
            assert_eq!(good.parse::<ClusterName>().unwrap().0, good);
        }
        for bad in ["", "Demo", "2nd", "a_b", "a/b", "..", "abcdefghijklm", "a-"] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_running_cluster_keeps_its_provider() {
        assert_eq!(
            resolve(ProviderChoice::Auto, Some("kind")).unwrap(),
            ProviderChoice::Kind
        );
        assert_eq!(
            resolve(ProviderChoice::Auto, Some("local")).unwrap(),
            ProviderChoice::Local
        );
        assert_eq!(
            resolve(ProviderChoice::Local, Some("kind")).unwrap(),
            ProviderChoice::Local
        );
    }
}
