//! The components' settings and command lines.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{NodeChoice, addresses::Block, emulation, host::Host};
use crate::{
    error::{IoContext, Result},
    paths::Cache,
    tools,
};

/// Everything that runs on the first node, in starting order.
pub(super) const COMPONENTS: [&str; 7] = [
    "etcd",
    "containerd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
];

/// What the second node needs of its own.
pub(super) const NODE_COMPONENTS: [&str; 3] = ["containerd", "kubelet", "kube-proxy"];

const AUDIT_POLICY: &str = include_str!("../audit-policy.yaml");
const DNS: &str = include_str!("dns.yaml");

/// What a node's settings depend on.
pub(super) struct Layout {
    pub(super) node_name: String,
    pub(super) block: Block,
    pub(super) place: NodeChoice,
    cache: Cache,
    plugins: PathBuf,
    /// The node's folder as its processes see it.
    run: String,
    /// The kubelet's `systemReserved`: what the other node of this machine advertises.
    reserved: Option<Reserved>,
}

/// Half of a machine.
#[derive(Debug, Clone, Copy)]
struct Reserved {
    millicores: u64,
    kibibytes: u64,
}

impl Reserved {
    fn half() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            millicores: cores * 500,
            kibibytes: total_memory(&memory).unwrap_or_default() / 2,
        }
    }
}

/// `MemTotal` of `/proc/meminfo`, in KiB.
fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with("MemTotal:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

impl Layout {
    /// `shared`: the cluster has two nodes, which share the machine.
    pub(super) fn new(
        cache: &Cache,
        host: &Host,
        place: NodeChoice,
        block: Block,
        plugins: PathBuf,
        shared: bool,
    ) -> Self {
        let run = host.run_folder().display().to_string();
        Self {
            node_name: host.name().into(),
            block,
            place,
            cache: cache.clone(),
            plugins,
            run,
            reserved: shared.then(Reserved::half),
        }
    }

    /// The file in the cache that is a component's program.
    fn file(&self, component: &str) -> String {
        let emulated = component == "kubelet" && self.place == NodeChoice::Arm64 && emulation::NEEDED;
        if emulated {
            tools::KUBELET_ARM64.name.to_owned()
        } else {
            component.to_owned()
        }
    }

    /// The file name of what runs as a component.
    pub(super) fn program(&self, component: &str) -> String {
        let file = self.file(component);
        if file == component {
            file
        } else {
            emulation::PROGRAM.to_owned()
        }
    }

    /// Program and arguments of a component.
    pub(super) fn arguments(&self, component: &str) -> Vec<String> {
        let (run, node, block) = (&self.run, &self.node_name, self.block);
        let kubeconfig = format!("--kubeconfig={run}/{component}.kubeconfig");
        let arguments = match component {
            "etcd" => format!(
                "--data-dir={run}/etcd --listen-client-urls=http://127.0.0.1:2379 \
                 --advertise-client-urls=http://127.0.0.1:2379 --listen-peer-urls=http://127.0.0.1:2380 \
                 --unsafe-no-fsync --log-level=warn"
            ),
            "containerd" => format!("--config={run}/containerd.toml"),
            "kube-apiserver" => format!(
                "--etcd-servers=http://127.0.0.1:2379 --advertise-address={address} --secure-port=6443 \
                 --service-cluster-ip-range={services} --authorization-mode=Node,RBAC \
                 --authentication-config={run}/authentication.yaml --enable-admission-plugins=NodeRestriction \
                 --client-ca-file={run}/pki/ca.crt \
                 --requestheader-client-ca-file={run}/pki/ca.crt --requestheader-allowed-names=hawkeye:front-proxy \
                 --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
                 --requestheader-extra-headers-prefix=X-Remote-Extra- \
                 --tls-cert-file={run}/pki/apiserver.crt --tls-private-key-file={run}/pki/apiserver.key \
                 --kubelet-certificate-authority={run}/pki/ca.crt \
                 --kubelet-client-certificate={run}/pki/apiserver-kubelet-client.crt \
                 --kubelet-client-key={run}/pki/apiserver-kubelet-client.key \
                 --kubelet-preferred-address-types=InternalIP \
                 --service-account-issuer=https://kubernetes.default.svc.cluster.local \
                 --service-account-key-file={run}/pki/service-accounts.pub \
                 --service-account-signing-key-file={run}/pki/service-accounts.key \
                 --audit-policy-file={run}/audit-policy.yaml --audit-log-path={run}/logs/audit.log \
                 --audit-log-maxsize=200 --audit-log-maxbackup=1",
                address = block.node(NodeChoice::First),
                services = block.services(),
            ),
            // A machine that is busy renews the Leases of thousands of fake nodes late; a node that was lost for a moment has
            // pods that are never ready again, for kwok does not play that.
            "kube-controller-manager" => format!(
                "{kubeconfig} --authentication-kubeconfig={run}/{component}.kubeconfig \
                 --authorization-kubeconfig={run}/{component}.kubeconfig --leader-elect=false \
                 --use-service-account-credentials --kube-api-qps=200 --kube-api-burst=400 \
                 --node-monitor-grace-period=5m --root-ca-file={run}/pki/ca.crt \
                 --service-account-private-key-file={run}/pki/service-accounts.key --bind-address=127.0.0.1"
            ),
            "kube-scheduler" => format!(
                "{kubeconfig} --authentication-kubeconfig={run}/{component}.kubeconfig \
                 --authorization-kubeconfig={run}/{component}.kubeconfig --leader-elect=false \
                 --kube-api-qps=200 --kube-api-burst=400 --bind-address=127.0.0.1"
            ),
            "kubelet" => format!(
                "{kubeconfig} --config={run}/kubelet.yaml --root-dir={run}/kubelet --cert-dir={run}/kubelet/pki \
                 --hostname-override={node} --node-ip={address}",
                address = block.node(self.place),
            ),
            // The limits on tracked connections are the whole machine's: kube-proxy must not touch them.
            _ => format!(
                "{kubeconfig} --hostname-override={node} --proxy-mode=iptables --cluster-cidr={pods} \
                 --conntrack-max-per-core=0 --conntrack-min=0 --oom-score-adj=0",
                pods = block.pods(),
            ),
        };
        let program = self.cache.tool(&self.file(component)).display().to_string();
        std::iter::once(program)
            .chain(arguments.split_whitespace().map(str::to_owned))
            .collect()
    }

    fn containerd(&self) -> String {
        let (run, plugins) = (&self.run, self.plugins.display());
        let pause = tools::PAUSE.image_reference();
        // oom scores: a root without CAP_SYS_RESOURCE cannot lower them, and pods would not start.
        format!(
            r#"version = 3
root = "{run}/containerd/root"
state = "{run}/containerd/state"

[grpc]
address = "{run}/containerd.sock"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{pause}"

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
enable_unprivileged_ports = true
enable_unprivileged_icmp = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{plugins}"]
conf_dir = "{run}/cni"

[plugins."io.containerd.nri.v1.nri"]
disable = true
"#
        )
    }

    /// Each pod gets a link and a route of its own: no bridge, so no need for the kernel's bridge filter.
    fn network(&self) -> String {
        let config = serde_json::json!({
            "cniVersion": "1.0.0",
            "name": "hawkeye",
            "plugins": [
                {"type": "ptp", "ipMasq": false, "ipam": {
                    "type": "host-local",
                    "dataDir": format!("{}/cni-addresses", self.run),
                    "ranges": [[{"subnet": self.block.pods_of(self.place)}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                }},
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        });
        format!("{config:#}\n")
    }

    fn kubelet(&self) -> String {
        let (run, node, dns) = (&self.run, &self.node_name, self.block.dns());
        let reserved = self.reserved.map_or_else(String::new, |half| {
            let (millicores, kibibytes) = (half.millicores, half.kibibytes);
            format!("systemReserved: {{cpu: {millicores}m, memory: {kibibytes}Ki}}\n")
        });
        format!(
            r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: {run}/pki/ca.crt}}
authorization: {{mode: Webhook}}
tlsCertFile: {run}/pki/kubelet.crt
tlsPrivateKeyFile: {run}/pki/kubelet.key
containerRuntimeEndpoint: unix://{run}/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /{node}
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
clusterDomain: cluster.local
clusterDNS: ["{dns}"]
resolvConf: {run}/resolv.conf
podLogsDir: {run}/pod-logs
volumePluginDir: {run}/kubelet/volume-plugins
# A development machine's disk may well be nearly full; images come from archives and cannot be pulled again.
evictionHard: {{memory.available: 100Mi, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%}}
imageGCHighThresholdPercent: 100
{reserved}"#
        )
    }

    /// CoreDNS, its account and its Service.
    pub(super) fn dns_manifest(&self) -> String {
        DNS.replace("$ADDRESS", &self.block.dns().to_string())
            .replace("$IMAGE", &tools::COREDNS.image_reference())
            .replace("$NODE", &self.node_name)
    }
}

/// Only health can be asked for without credentials.
const AUTHENTICATION: &str = "apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous:
  enabled: true
  conditions: [{path: /livez}, {path: /readyz}, {path: /healthz}]
";

/// Writes the files that [`Layout::arguments`] names.
pub(super) fn write(folder: &Path, layout: &Layout) -> Result<()> {
    let mut files = vec![
        ("containerd.toml", layout.containerd()),
        ("cni/10-hawkeye.conflist", layout.network()),
        ("kubelet.yaml", layout.kubelet()),
        // The host's resolver cannot be reached from the node; pods that do not use cluster DNS get none.
        ("resolv.conf", String::new()),
    ];
    if layout.place == NodeChoice::First {
        files.push(("audit-policy.yaml", AUDIT_POLICY.to_owned()));
        files.push(("authentication.yaml", AUTHENTICATION.to_owned()));
    }
    for (name, text) in files {
        let path = folder.join(name);
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, text))
            .context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(place: NodeChoice, shared: bool) -> Layout {
        let cluster = "unit".parse().unwrap();
        let host = Host::new(&cluster, place, Path::new("/cache/clusters/unit"));
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("addresses"), "10.213.4.0").unwrap();
        let block = Block::read(folder.path()).unwrap();
        Layout::new(&Cache::at("/cache"), &host, place, block, "/usr/lib/cni".into(), shared)
    }

    #[test]
    fn each_node_has_a_range_a_runtime_and_a_cgroup_of_its_own() {
        let (first, second) = (layout(NodeChoice::First, true), layout(NodeChoice::Arm64, true));
        assert!(first.network().contains("10.213.6.0/24") && second.network().contains("10.213.7.0/24"));
        assert!(first.containerd().contains("\"/run/hawkeye-unit/containerd.sock\""));
        assert!(
            second
                .containerd()
                .contains("\"/run/hawkeye-unit.arm64/containerd.sock\"")
        );
        assert!(second.kubelet().contains("cgroupRoot: /hawkeye-unit.arm64\n"));
        let kubelet = second.arguments("kubelet");
        assert!(kubelet.contains(&"--node-ip=10.213.4.6".to_owned()), "{kubelet:?}");
        let native = !emulation::NEEDED;
        assert_eq!(kubelet[0] == "/cache/tools/bin/kubelet", native, "{kubelet:?}");
        assert_eq!(second.program("kubelet") == "kubelet", native);
        assert_eq!(first.arguments("kubelet")[0], "/cache/tools/bin/kubelet");
        assert_eq!(second.program("kube-proxy"), "kube-proxy");
    }

    #[test]
    fn two_nodes_halve_the_machine() {
        assert!(!layout(NodeChoice::First, false).kubelet().contains("systemReserved"));
        let config: serde_json::Value = serde_saphyr::from_str(&layout(NodeChoice::Arm64, true).kubelet()).unwrap();
        let cpu = config["systemReserved"]["cpu"].as_str().unwrap();
        let cores = std::thread::available_parallelism().unwrap().get();
        assert_eq!(cpu, format!("{}m", cores * 500));
        assert_eq!(
            total_memory("MemTotal:       24604956 kB\nMemFree: 1 kB\n"),
            Some(24_604_956)
        );
    }
}
