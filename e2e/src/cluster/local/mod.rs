//! The provider for Linux machines without a container engine: a node in network, mount and process-id namespaces of its own,
//! and on demand a second one for arm64.
//!
//! All processes of a node hang below one holder, which is process 1 of the process-id namespace, and all are in cgroups
//! named after the node. Ending them ends the namespaces, and with these go mounts, interfaces and packet filter rules.

mod addresses;
mod certificates;
mod config;
mod emulation;
mod host;
mod node;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use self::{addresses::Block, config::Layout, host::Host, node::Node};
use super::{ClusterName, NodeChoice, Provider};
use crate::{
    command::{self, Kubectl},
    error::{Error, IoContext, Result},
    images,
    paths::Cache,
    progress::Progress,
    tools,
};

/// An emulated kubelet needs some thirty seconds of an otherwise idle core.
const NODE_READY_WITHIN: Duration = Duration::from_mins(4);

pub(super) struct Local {
    cache: Cache,
    folder: PathBuf,
    host: Host,
    arm64: Host,
}

/// Why there can be no arm64 node on this machine; `Ok` where there can.
pub(super) fn check_arm64() -> Result<()> {
    emulation::check()
}

impl Local {
    pub(super) fn new(cache: &Cache, name: &ClusterName) -> Self {
        let folder = super::folder(cache, name);
        Self {
            cache: cache.clone(),
            host: Host::new(name, NodeChoice::First, &folder),
            arm64: Host::new(name, NodeChoice::Arm64, &folder),
            folder,
        }
    }

    fn host(&self, node: NodeChoice) -> &Host {
        match node {
            NodeChoice::First => &self.host,
            NodeChoice::Arm64 => &self.arm64,
        }
    }

    fn kubectl(&self) -> Kubectl {
        Kubectl::new(self.cache.tool("kubectl"), self.folder.join("kubeconfig"))
    }

    /// Calls `ready` until it says yes; stops early when one of `components` of a node has ended.
    fn wait(
        &self,
        what: &str,
        after: Duration,
        (layout, components): (&Layout, &[&str]),
        ready: impl Fn() -> bool,
    ) -> Result<()> {
        let started = Instant::now();
        while !ready() {
            for component in components {
                if !self.host(layout.place).runs(&layout.program(component))? {
                    return Err(self.stopped(&log_name(layout.place, component)));
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

    fn wait_ready(&self, layout: &Layout, components: &[&str]) -> Result<()> {
        let kubectl = self.kubectl();
        let path = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
        let ready = || {
            kubectl
                .run(["get", "node", &layout.node_name, "-o", path])
                .is_ok_and(|status| status == "True")
        };
        let what = format!("a Ready node {}", layout.node_name);
        self.wait(&what, NODE_READY_WITHIN, (layout, components), ready)
    }

    /// Starts the second node and waits until it is Ready.
    fn create_arm64(&self, first: &Node, layout: &Layout, progress: &Progress) -> Result<()> {
        let how = if emulation::NEEDED {
            "emulated by qemu"
        } else {
            "as this machine is"
        };
        progress.step(format!("local: a second node for arm64, {how}"));
        let node = self.arm64.create(&self.cache.tool("pause"))?;
        emulation::register(&node, self.arm64.name())?;
        link(first, &node, layout.block)?;
        for component in config::NODE_COMPONENTS {
            node.start(&log_name(layout.place, component), &layout.arguments(component))?;
        }
        let containerd = || node.run(&self.ctr(layout.place, &["version"])).is_ok();
        let components = (layout, &["containerd"][..]);
        self.wait("the second containerd", Duration::from_secs(30), components, containerd)?;
        self.load_image(layout.place, &self.cache.tool_image(tools::PAUSE.name))?;
        self.wait_ready(layout, &config::NODE_COMPONENTS)
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

    fn create(&self, arm64: bool, progress: &Progress) -> Result<()> {
        super::local_works().map_err(Error::NoProvider)?;
        let plugins = host::check_programs()?;
        if arm64 {
            emulation::check()?;
        }
        let block = Block::claim(&self.cache, &self.folder)?;
        let layout = |node| Layout::new(&self.cache, self.host(node), node, block, plugins.clone(), arm64);
        let (layout, second) = (layout(NodeChoice::First), arm64.then(|| layout(NodeChoice::Arm64)));
        progress.step(format!("local: writing certificates and settings (addresses {block})"));
        fs::create_dir_all(self.logs()).context(|| format!("creating {}", self.logs().display()))?;
        let nodes: Vec<_> = [Some(&layout), second.as_ref()]
            .into_iter()
            .flatten()
            .map(|layout| (self.host(layout.place).folder(), layout))
            .collect();
        certificates::write(&nodes)?;
        for (folder, layout) in nodes {
            config::write(folder, layout)?;
        }

        progress.step("local: making namespaces and a link to them");
        let node: Node = self.host.create(&self.cache.tool("pause"))?;
        self.host.connect(&node, block)?;
        let start = |component: &str| node.start(component, &layout.arguments(component));
        progress.step("local: starting etcd, containerd and the API server");
        for component in ["etcd", "containerd", "kube-apiserver"] {
            start(component)?;
        }
        let containerd = || node.run(&self.ctr(NodeChoice::First, &["version"])).is_ok();
        let components = (&layout, &["containerd"][..]);
        self.wait("containerd", Duration::from_secs(30), components, containerd)?;
        for image in [tools::PAUSE, tools::COREDNS] {
            self.load_image(NodeChoice::First, &self.cache.tool_image(image.name))?;
        }
        let kubectl = self.kubectl();
        let api = || kubectl.ask(["get", "--raw=/readyz"]).is_ok();
        let components = (&layout, &["etcd", "kube-apiserver"][..]);
        self.wait("the API server", Duration::from_secs(90), components, api)?;

        progress.step("local: API server ready; starting scheduler, controllers, kubelet and kube-proxy");
        let components = ["kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy"];
        for component in components {
            start(component)?;
        }
        kubectl.apply(&layout.dns_manifest())?;
        self.wait_ready(&layout, &components)?;
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
        self.wait("cluster DNS", Duration::from_secs(90), (&layout, &components), ready)?;
        second.map_or(Ok(()), |second| self.create_arm64(&node, &second, progress))
    }

    fn delete(&self, progress: &Progress) -> Result<()> {
        let arm64 = !self.arm64.is_clean()?;
        if !arm64 && self.host.is_clean()? && !self.folder.exists() {
            return Ok(());
        }
        progress.step("local: ending processes, removing cgroups, link and folder");
        if arm64 {
            self.arm64.delete()?;
            emulation::unregister(self.arm64.name())?;
        }
        self.host.delete()
    }

    fn load_image(&self, node: NodeChoice, archive: &Path) -> Result<()> {
        // On standard input: the node does not see all of this machine's folders.
        let file = fs::File::open(archive).context(|| format!("opening {}", archive.display()))?;
        // Named, since containerd unpacks what is for the machine's own platform unless it is told otherwise.
        let platform = images::architecture(archive)?.platform();
        let mut import = self.host(node).node()?.command();
        import.args(self.ctr(
            node,
            &["-n", "k8s.io", "images", "import", "--platform", &platform, "-"],
        ));
        command::run_with_file(&mut import, file).map(drop)
    }

    fn node_command(&self, node: NodeChoice) -> Result<Command> {
        Ok(self.host(node).node()?.command())
    }

    fn has_arm64(&self) -> bool {
        self.arm64.node().is_ok()
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
            ("node address".to_owned(), block.node(NodeChoice::First).to_string()),
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
    fn ctr(&self, node: NodeChoice, args: &[&str]) -> Vec<String> {
        let mut words = vec![
            self.cache.tool("ctr").display().to_string(),
            "--address".to_owned(),
            self.host(node)
                .run_folder()
                .join("containerd.sock")
                .display()
                .to_string(),
        ];
        words.extend(args.iter().map(|&arg| arg.to_owned()));
        words
    }
}

/// The log of a component, without its ending.
fn log_name(node: NodeChoice, component: &str) -> String {
    match node {
        NodeChoice::First => component.to_owned(),
        NodeChoice::Arm64 => format!("{component}-arm64"),
    }
}

/// Links both nodes. All traffic of the second goes by way of the first, so the machine needs no further route.
fn link(first: &Node, second: &Node, block: Block) -> Result<()> {
    let (gateway, address) = (block.gateway(), block.node(NodeChoice::Arm64));
    host::ip(&format!(
        "link add eth1 netns {} type veth peer name eth0 netns {}",
        first.holder(),
        second.holder()
    ))?;
    first.ip(&format!("addr add {gateway}/30 dev eth1"))?;
    first.ip("link set eth1 up")?;
    second.ip(&format!("addr add {address}/30 dev eth0"))?;
    second.ip("link set eth0 up")?;
    second.ip(&format!("route add default via {gateway}"))?;
    first.ip(&format!("route add {} via {address}", block.pods_of(NodeChoice::Arm64)))
}
