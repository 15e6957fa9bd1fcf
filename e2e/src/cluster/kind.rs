//! The provider for machines with a container engine: kind, its node image pinned by digest.

use std::{
    fs,
    io::IsTerminal,
    path::{Path, PathBuf},
    process::Command,
};

use super::{ClusterName, NodeChoice, Provider};
use crate::{
    command,
    error::{IoContext, Result},
    paths::Cache,
    progress::Progress,
    tools,
};

/// The node image that kind v0.33.0 was released with (`pkg/apis/config/defaults/image.go`).
const NODE_IMAGE: &str = "kindest/node:v1.37.0@sha256:a1ed56cfb0e7b93589bdf97c8cd566405a265939e3620fc4f5de89adff580ae5";

const AUDIT_POLICY: &str = include_str!("audit-policy.yaml");

pub(super) struct Kind {
    program: PathBuf,
    folder: PathBuf,
    name: String,
}

impl Kind {
    pub(super) fn new(cache: &Cache, name: &ClusterName) -> Self {
        Self {
            program: cache.tool("kind"),
            folder: super::folder(cache, name),
            name: format!("hawkeye-{name}"),
        }
    }

    /// The container that is a node.
    fn container(&self, node: NodeChoice) -> String {
        let role = match node {
            NodeChoice::First => "control-plane",
            NodeChoice::Arm64 => "worker",
        };
        format!("{}-{role}", self.name)
    }

    fn kind(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).args(["--name", &self.name]);
        command
    }

    fn create_command(&self) -> Command {
        let mut command = self.kind(&["create", "cluster", "--image", NODE_IMAGE, "--wait", "180s"]);
        command.arg("--config").arg(self.folder.join("kind.yaml"));
        command.arg("--kubeconfig").arg(self.folder.join("kubeconfig"));
        command
    }

    fn delete_command(&self) -> Command {
        let mut command = self.kind(&["delete", "cluster"]);
        command.arg("--kubeconfig").arg(self.folder.join("kubeconfig"));
        command
    }

    fn load_command(&self, archive: &Path) -> Command {
        let mut command = self.kind(&["load", "image-archive"]);
        command.arg(archive);
        command
    }

    /// One node, or two of the same architecture; the API server writes its audit log into the cluster's folder on this
    /// machine.
    fn config(&self, second: bool) -> String {
        let second = if second { "  - role: worker\n" } else { "" };
        let (policy, logs) = (self.folder.join("audit-policy.yaml"), self.logs());
        let (policy, logs) = (policy.display(), logs.display());
        format!(
            r#"kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes:
  - role: control-plane
    extraMounts:
      - {{hostPath: "{policy}", containerPath: /etc/kubernetes/policies/audit-policy.yaml, readOnly: true}}
      - {{hostPath: "{logs}", containerPath: /var/log/kubernetes}}
    kubeadmConfigPatches:
      - |
        kind: ClusterConfiguration
        apiServer:
          extraArgs:
            - {{name: audit-policy-file, value: /etc/kubernetes/policies/audit-policy.yaml}}
            - {{name: audit-log-path, value: /var/log/kubernetes/audit.log}}
          extraVolumes:
            - name: audit-policies
              hostPath: /etc/kubernetes/policies
              mountPath: /etc/kubernetes/policies
              readOnly: true
              pathType: DirectoryOrCreate
            - name: audit-logs
              hostPath: /var/log/kubernetes
              mountPath: /var/log/kubernetes
              pathType: DirectoryOrCreate
{second}"#
        )
    }
}

impl Provider for Kind {
    fn name(&self) -> &'static str {
        "kind"
    }

    fn tools(&self) -> &'static [tools::Group] {
        &[tools::KIND]
    }

    fn create(&self, arm64: bool, progress: &Progress) -> Result<()> {
        let write = |name: &str, text: &str| {
            let path = self.folder.join(name);
            fs::write(&path, text).context(|| format!("writing {}", path.display()))
        };
        fs::create_dir_all(self.logs()).context(|| format!("creating {}", self.logs().display()))?;
        write("audit-policy.yaml", AUDIT_POLICY)?;
        write("kind.yaml", &self.config(arm64))?;
        progress.step("kind: creating the node (the first time it pulls the node image)");
        command::run(&mut self.create_command())?;
        Ok(())
    }

    fn delete(&self, progress: &Progress) -> Result<()> {
        // Without the program there has never been a cluster.
        if self.program.is_file() {
            let clusters = command::run(Command::new(&self.program).args(["get", "clusters"]))?;
            if clusters.lines().any(|name| name == self.name) {
                progress.step("kind: deleting the node");
                command::run(&mut self.delete_command())?;
            }
        }
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder).context(|| format!("removing {}", self.folder.display()))?;
        }
        Ok(())
    }

    /// Onto every node: they have one architecture.
    fn load_image(&self, _: NodeChoice, archive: &Path) -> Result<()> {
        command::run(&mut self.load_command(archive)).map(drop)
    }

    fn node_command(&self, node: NodeChoice) -> Result<Command> {
        let mut command = Command::new("docker");
        let terminal = std::io::stdin().is_terminal();
        command.args(["exec", if terminal { "-it" } else { "-i" }, &self.container(node)]);
        Ok(command)
    }

    fn has_arm64(&self) -> bool {
        let mut inspect = Command::new("docker");
        inspect.args(["container", "inspect", &self.container(NodeChoice::Arm64)]);
        command::run(&mut inspect).is_ok()
    }

    fn facts(&self) -> Result<Vec<(String, String)>> {
        Ok(vec![("node image".into(), NODE_IMAGE.into())])
    }

    fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Kind {
        Kind::new(&Cache::at("/cache"), &"demo".parse().unwrap())
    }

    #[test]
    fn commands_name_this_cluster_and_its_own_kubeconfig() {
        let kind = sample();
        let create = command::describe(&kind.create_command());
        for part in [
            "/cache/tools/bin/kind create cluster",
            "@sha256:",
            "--kubeconfig /cache/clusters/demo/kubeconfig",
        ] {
            assert!(create.contains(part), "{part} in {create}");
        }
        assert_eq!(
            command::describe(&kind.load_command(Path::new("/x/image.tar"))),
            "/cache/tools/bin/kind load image-archive --name hawkeye-demo /x/image.tar"
        );
        let delete = command::describe(&kind.delete_command());
        assert!(delete.contains("delete cluster --name hawkeye-demo --kubeconfig /cache/clusters/demo/kubeconfig"));
    }

    #[test]
    fn the_config_is_yaml_whose_patch_turns_the_audit_log_on() {
        let config: serde_json::Value = serde_saphyr::from_str(&sample().config(true)).unwrap();
        assert_eq!(config["nodes"][1]["role"], "worker");
        let alone: serde_json::Value = serde_saphyr::from_str(&sample().config(false)).unwrap();
        assert_eq!(alone["nodes"].as_array().unwrap().len(), 1);
        let node = &config["nodes"][0];
        assert_eq!(node["extraMounts"][1]["hostPath"], "/cache/clusters/demo/logs");
        let patch = node["kubeadmConfigPatches"][0].as_str().unwrap();
        let patch: serde_json::Value = serde_saphyr::from_str(patch).unwrap();
        let mounted: Vec<_> = patch["apiServer"]["extraVolumes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| &v["mountPath"])
            .collect();
        for arg in patch["apiServer"]["extraArgs"].as_array().unwrap() {
            let folder = Path::new(arg["value"].as_str().unwrap())
                .parent()
                .unwrap()
                .to_str()
                .unwrap();
            assert!(
                mounted.iter().any(|m| *m == folder),
                "{folder} is not in the API server's pod"
            );
        }
        let policy: serde_json::Value = serde_saphyr::from_str(AUDIT_POLICY).unwrap();
        assert_eq!(policy["rules"][1]["level"], "None");
    }
}
