//! The components' settings and command lines.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{addresses::Block, host::Host};
use crate::{
    error::{IoContext, Result},
    paths::Cache,
    tools,
};

/// Everything that runs on the node, in starting order.
pub(super) const COMPONENTS: [&str; 7] = [
    "etcd",
    "containerd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
];

const AUDIT_POLICY: &str = include_str!("../audit-policy.yaml");
const DNS: &str = include_str!("dns.yaml");

/// What the settings depend on.
pub(super) struct Layout {
    pub(super) node_name: String,
    pub(super) block: Block,
    cache: Cache,
    plugins: PathBuf,
    /// The cluster's folder as its processes see it.
    run: String,
}

impl Layout {
    pub(super) fn new(cache: &Cache, host: &Host, block: Block, plugins: PathBuf) -> Self {
        let run = host.run_folder().display().to_string();
        Self {
            node_name: host.name().into(),
            block,
            cache: cache.clone(),
            plugins,
            run,
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
                address = block.node(),
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
                address = block.node(),
            ),
            // The limits on tracked connections are the whole machine's: kube-proxy must not touch them.
            _ => format!(
                "{kubeconfig} --hostname-override={node} --proxy-mode=iptables --cluster-cidr={pods} \
                 --conntrack-max-per-core=0 --conntrack-min=0 --oom-score-adj=0",
                pods = block.pods(),
            ),
        };
        let program = self.cache.tool(component).display().to_string();
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
                    "ranges": [[{"subnet": self.block.pods()}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                }},
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        });
        format!("{config:#}\n")
    }

    fn kubelet(&self) -> String {
        let (run, node, dns) = (&self.run, &self.node_name, self.block.dns());
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
"#
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
    for (name, text) in [
        ("containerd.toml", layout.containerd()),
        ("cni/10-hawkeye.conflist", layout.network()),
        ("kubelet.yaml", layout.kubelet()),
        ("audit-policy.yaml", AUDIT_POLICY.to_owned()),
        ("authentication.yaml", AUTHENTICATION.to_owned()),
        // The host's resolver cannot be reached from the node; pods that do not use cluster DNS get none.
        ("resolv.conf", String::new()),
    ] {
        let path = folder.join(name);
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, text))
            .context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
