//! The provider for Linux machines without a container engine: a node in network, mount and process-id namespaces of its own.
//!
//! All processes hang below one holder, which is process 1 of the process-id namespace, and all are in cgroups named after
//! the cluster. Ending them ends the namespaces, and with these go mounts, interfaces and packet filter rules.

mod addresses;
mod certificates;
mod config;
mod host;
mod node;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use self::{addresses::Block, host::Host, node::Node};
use super::{ClusterName, Provider};
use crate::{
    command::{self, Kubectl},
    error::{Error, IoContext, Result},
    paths::Cache,
    progress::Progress,
    tools,
};

pub(super) struct Local {
    cache: Cache,
    folder: PathBuf,
    host: Host,
}

impl Local {
    pub(super) fn new(cache: &Cache, name: &ClusterName) -> Self {
        let folder = super::folder(cache, name);
        Self {
            cache: cache.clone(),
            host: Host::new(name, &folder),
            folder,
        }
    }

    fn kubectl(&self) -> Kubectl {
        Kubectl::new(self.cache.tool("kubectl"), self.folder.join("kubeconfig"))
    }

    /// Calls `ready` until it says yes; stops early when one of `components` has ended.
    fn wait(&self, what: &str, after: Duration, components: &[&str], ready: impl Fn() -> bool) -> Result<()> {
        let started = Instant::now();
        while !ready() {
            for component in components {
                if !self.host.runs(component)? {
                    return Err(self.stopped(component));
                }
            }
            if started.elapsed() > after {
                return Err(Error::Timeout {
                    what: what.into(),
                    after,
                    logs: self.logs(),
                });
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    fn stopped(&self, component: &str) -> Error {
        let log = self.logs().join(format!("{component}.log"));
        let text = fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n");
        Error::Stopped {
            component: component.into(),
            log,
            tail,
        }
    }
}

impl Provider for Local {
    fn name(&self) -> &'static str {
        "local"
    }

    fn tools(&self) -> &'static [tools::Group] {
        &[tools::PAUSE, tools::CONTAINERD, tools::COREDNS, tools::KUBERNETES]
    }

    fn create(&self, progress: &Progress) -> Result<()> {
        super::local_works().map_err(Error::NoProvider)?;
        let plugins = host::check_programs()?;
        let block = Block::claim(&self.cache, &self.folder)?;
        let layout = config::Layout::new(&self.cache, &self.host, block, plugins);
        progress.step(format!("local: writing certificates and settings (addresses {block})"));
        fs::create_dir_all(self.logs()).context(|| format!("creating {}", self.logs().display()))?;
        certificates::write(&self.folder, &layout)?;
        config::write(&self.folder, &layout)?;

        progress.step("local: making namespaces and a link to them");
        let node: Node = self.host.create(&self.cache.tool("pause"), block)?;
        let start = |component: &str| node.start(component, &layout.arguments(component));
        progress.step("local: starting etcd, containerd and the API server");
        for component in ["etcd", "containerd", "kube-apiserver"] {
            start(component)?;
        }
        let containerd = || node.run(&self.ctr(&["version"])).is_ok();
        self.wait("containerd", Duration::from_secs(30), &["containerd"], containerd)?;
        for image in [tools::PAUSE, tools::COREDNS] {
            self.load_image(&self.cache.tool_image(image.name))?;
        }
        let kubectl = self.kubectl();
        let api = || kubectl.ask(["get", "--raw=/readyz"]).is_ok();
        self.wait(
            "the API server",
            Duration::from_secs(90),
            &["etcd", "kube-apiserver"],
            api,
        )?;

        progress.step("local: API server ready; starting scheduler, controllers, kubelet and kube-proxy");
        let components = ["kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"];
        for component in components {
            start(component)?;
        }
        kubectl.apply(&layout.dns_manifest())?;
        let name = layout.node_name.clone();
        let path = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
        let ready = || {
            kubectl
                .run(["get", "node", &name, "-o", path])
                .is_ok_and(|status| status == "True")
        };
        self.wait("a Ready node", Duration::from_secs(90), &components, ready)?;
        progress.step("local: node ready; waiting for DNS");
        let dns = [
            "-n",
            "kube-system",
            "get",
            "deployment",
            "coredns",
            "-o",
            "jsonpath={.status.readyReplicas}",
        ];
        let ready = || kubectl.ask(dns).is_ok_and(|replicas| replicas == "1");
        self.wait("cluster DNS", Duration::from_secs(90), &components, ready)
    }

    fn delete(&self, progress: &Progress) -> Result<()> {
        if self.host.is_clean()? && !self.folder.exists() {
            return Ok(());
        }
        progress.step("local: ending processes, removing cgroups, link and folder");
        self.host.delete()
    }

    fn load_image(&self, archive: &Path) -> Result<()> {
        // On standard input: the node does not see all of this machine's folders.
        let file = fs::File::open(archive).context(|| format!("opening {}", archive.display()))?;
        let mut import = self.host.node()?.command();
        import.args(self.ctr(&["-n", "k8s.io", "images", "import", "-"]));
        command::run_with_file(&mut import, file).map(drop)
    }

    fn node_command(&self) -> Result<Command> {
        Ok(self.host.node()?.command())
    }

    fn facts(&self) -> Result<Vec<(String, String)>> {
        let block = Block::read(&self.folder)?;
        let components = config::COMPONENTS.into_iter().map(|component| {
            let runs = self.host.runs(component)?;
            Ok(format!("{component}{}", if runs { "" } else { " (NOT RUNNING)" }))
        });
        let mut facts = vec![
            (
                "components".to_owned(),
                components.collect::<Result<Vec<_>>>()?.join(", "),
            ),
            ("node address".to_owned(), block.node().to_string()),
            ("Services".to_owned(), block.services()),
            ("pods".to_owned(), block.pods()),
        ];
        if let Ok(nodes) = self.kubectl().ask(["get", "nodes", "--no-headers"]) {
            facts.extend(nodes.lines().map(|node| ("node".to_owned(), node.to_owned())));
        }
        Ok(facts)
    }

    fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }
}

impl Local {
    fn ctr(&self, args: &[&str]) -> Vec<String> {
        let mut words = vec![
            self.cache.tool("ctr").display().to_string(),
            "--address".to_owned(),
            self.host.run_folder().join("containerd.sock").display().to_string(),
        ];
        words.extend(args.iter().map(|&arg| arg.to_owned()));
        words
    }
}
