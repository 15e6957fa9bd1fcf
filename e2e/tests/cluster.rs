//! Starts a cluster of its own with the local provider, uses it as the suites do, and checks that nothing of it is left.
//!
//! `cargo test -p hawkeye-e2e --test cluster -- --ignored`; the first run builds the cluster's programs.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test: what is unexpected should end it")]

use std::{collections::BTreeSet, fs, path::Path, process::Command, time::Duration};

use hawkeye_e2e::{Cluster, Progress, ProviderChoice, UpOptions, archive::Image};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, api::ListParams};

const NAME: &str = "selftest";

/// Two web servers (CoreDNS serves `/health`) behind a Service, under the level that Hawkeye's own pods keep to, with an
/// image mounted as a volume.
const APP: &str = r"
apiVersion: v1
kind: Namespace
metadata: {name: app, labels: {pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: web, namespace: app}
data:
  Corefile: |
    .:5353 {
      health :9989
    }
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: app}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: web
          image: localhost/hawkeye-tools/coredns:v1.15.0
          args: [-conf, /etc/coredns/Corefile]
          ports: [{name: http, containerPort: 9989}]
          readinessProbe: {httpGet: {path: /health, port: http}, periodSeconds: 1}
          securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
          volumeMounts: [{name: config, mountPath: /etc/coredns}, {name: bundle, mountPath: /models, readOnly: true}]
      volumes:
        - {name: config, configMap: {name: web}}
        - {name: bundle, image: {reference: 'localhost/bundle:selftest', pullPolicy: IfNotPresent}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: app}
spec: {selector: {app: web}, ports: [{name: http, port: 9989, targetPort: http}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: pretend, namespace: default}
spec:
  selector: {matchLabels: {app: pretend}}
  template:
    metadata: {labels: {app: pretend}}
    spec:
      tolerations: [{key: kwok.x-k8s.io/node, operator: Exists}]
      nodeSelector: {nvidia.com/gpu.product: NVIDIA-GB10}
      containers: [{name: pretend, image: 'localhost/absent:1', resources: {limits: {nvidia.com/gpu: 1}}}]
";

/// Everything that the host shows of clusters by this name.
fn traces() -> BTreeSet<String> {
    let mut traces = BTreeSet::new();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    for line in mounts.lines() {
        let point = line.split(' ').nth(4).unwrap_or_default();
        if line.contains(NAME) {
            traces.insert(format!("mount {point}"));
        }
        if line.contains(" - cgroup") && Path::new(point).join(format!("hawkeye-{NAME}")).exists() {
            traces.insert(format!("cgroup {point}"));
        }
    }
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&words).contains(&format!("hawkeye-{NAME}")) {
            traces.insert(format!("process {}", entry.path().display()));
        }
    }
    if Path::new("/sys/class/net").join(format!("hk-{NAME}")).exists() {
        traces.insert("link".into());
    }
    traces
}

/// Kernel settings that a kubelet or kube-proxy on the host would change, and its packet filter.
fn host_settings() -> Vec<String> {
    let names = [
        "vm/overcommit_memory",
        "kernel/panic",
        "kernel/panic_on_oops",
        "net/ipv4/ip_forward",
    ];
    let read = |name: &str| fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap();
    let rules = Command::new("iptables-save").output().unwrap().stdout;
    let kube_rules = String::from_utf8_lossy(&rules).matches("KUBE").count();
    names
        .map(read)
        .into_iter()
        .chain([format!("{kube_rules} rules of kube-proxy")])
        .collect()
}

/// Removes the cluster also when the test fails.
struct Down(Cluster);

impl Drop for Down {
    fn drop(&mut self) {
        let _ = self.0.down();
    }
}

#[test]
#[ignore = "the local provider needs Linux and root; e2e/test.sh runs it where both are given"]
fn a_cluster_works_and_leaves_nothing() {
    let (before, settings) = (traces(), host_settings());
    assert_eq!(before, BTreeSet::new(), "an earlier run is still there");
    let cluster = Down(Cluster::new(NAME, ProviderChoice::Local, Progress::new()).unwrap());
    cluster
        .0
        .up(UpOptions {
            fake_nodes: true,
            ..UpOptions::default()
        })
        .unwrap();
    let kubectl = cluster.0.kubectl();

    let folder = tempfile::tempdir().unwrap();
    let (file, archive) = (folder.path().join("bundle.json"), folder.path().join("bundle.tar"));
    fs::write(&file, "{}").unwrap();
    let files = vec![("bundle.json".into(), file, 0o644)];
    Image {
        reference: "localhost/bundle:selftest".into(),
        files,
        ..Image::default()
    }
    .write(&archive)
    .unwrap();
    cluster.0.load_image(&archive).unwrap();
    kubectl.apply(APP).unwrap();
    for (namespace, deployment) in [("app", "deployment/web"), ("default", "deployment/pretend")] {
        kubectl
            .run(["-n", namespace, "rollout", "status", deployment, "--timeout=60s"])
            .unwrap();
    }

    // Logs and exec go through the kubelet; the image has no shell, but its own program says its version.
    assert!(
        kubectl
            .run(["-n", "app", "logs", "deployment/web"])
            .unwrap()
            .contains("CoreDNS-1.15.0")
    );
    assert!(
        kubectl
            .run(["-n", "app", "exec", "deployment/web", "--", "/coredns", "-version"])
            .unwrap()
            .contains("1.15.0")
    );

    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let client = cluster.0.client().await.unwrap();
        let nodes = Api::<Node>::all(client.clone())
            .list(&ListParams::default())
            .await
            .unwrap();
        let spark = nodes
            .items
            .iter()
            .find(|node| node.metadata.name.as_deref() == Some("dgx-spark"))
            .unwrap();
        assert_eq!(
            spark.status.as_ref().unwrap().capacity.as_ref().unwrap()["memory"].0,
            "125506464Ki"
        );
        assert_eq!(nodes.items.len(), 8);
        let pods = Api::<Pod>::namespaced(client, "default")
            .list(&ListParams::default())
            .await
            .unwrap();
        assert_eq!(
            pods.items[0].spec.as_ref().unwrap().node_name.as_deref(),
            Some("dgx-spark")
        );

        // The Service answers on its cluster address, from this machine.
        let address = kubectl
            .run(["-n", "app", "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"])
            .unwrap();
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(5))
            .build()
            .unwrap();
        let answer = http.get(format!("http://{address}:9989/health")).send().await.unwrap();
        assert_eq!(answer.text().await.unwrap(), "OK");
    });

    // The audit log names the writer of each write, and no reads.
    let audit = fs::read_to_string(cluster.0.logs().join("audit.log")).unwrap();
    let events: Vec<serde_json::Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(
        events
            .iter()
            .any(|event| event["user"]["username"] == "hawkeye:admin" && event["objectRef"]["name"] == "web")
    );
    assert!(
        events
            .iter()
            .all(|event| event["verb"] != "get" && event["verb"] != "list" && event["verb"] != "watch")
    );

    assert_ne!(traces(), before, "the check for traces sees a running cluster");
    assert_eq!(
        host_settings(),
        settings,
        "a running cluster changes no setting of the host"
    );
    cluster.0.down().unwrap();
    assert_eq!(traces(), before);
    assert!(matches!(cluster.0.facts(), Err(hawkeye_e2e::Error::NotUp(_))));
}
