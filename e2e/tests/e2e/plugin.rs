//! `kubectl hawkeye` on the cluster: the table names every platform, and the operator does what was planned.

use std::{env, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use hawkeye_e2e::{command, images::BUNDLE_REFERENCE};
use serde_json::{Value, json};

use crate::support::{REAL_CLASS, Suite, condition, expect, pretty};

const NAMESPACE: &str = "plugin";

/// What a fake node must come to: its class, and words of the reason. By hand, not from the classes' own files.
const NODES: [(&str, &str, &str); 7] = [
    (
        "dgx-spark",
        "dgx-spark",
        "GPU product NVIDIA-GB10 (label nvidia.com/gpu.product)",
    ),
    (
        "gh200",
        "cuda-arm64",
        "GPU product NVIDIA-GH200-480GB (label nvidia.com/gpu.product, none of NVIDIA-GB10",
    ),
    (
        "x86-rtx",
        "cuda-amd64",
        "GPU units 1 nvidia.com/gpu (allocatable nvidia.com/gpu)",
    ),
    (
        "graviton2",
        "graviton",
        "instance type m6g.2xlarge (label node.kubernetes.io/instance-type)",
    ),
    (
        "graviton3",
        "graviton",
        "instance type c7g.4xlarge (label node.kubernetes.io/instance-type)",
    ),
    (
        "cpu-arm64",
        "cpu-arm64",
        "instance type k3s (label node.kubernetes.io/instance-type, none of",
    ),
    (
        "cpu-amd64",
        "cpu-amd64",
        "GPU none (no label and no allocatable resource shows one)",
    ),
];

/// The classes of the fake nodes, and how many of these each has.
const CLASSES: [(&str, u32); 6] = [
    ("dgx-spark", 1),
    ("cuda-arm64", 1),
    ("cuda-amd64", 1),
    ("graviton", 2),
    ("cpu-arm64", 1),
    ("cpu-amd64", 1),
];

/// How a call ended, and what it printed.
struct Said {
    code: Option<i32>,
    out: String,
}

/// The plugin where kubectl finds it.
struct Plugin<'a> {
    suite: &'a Suite,
    path: std::ffi::OsString,
}

impl<'a> Plugin<'a> {
    /// Compiles what is not compiled yet: the operator's own tests need the same program, so that after them, as in
    /// `make test`, nothing is left to do.
    fn build(suite: &'a Suite) -> Result<Self> {
        let mut cargo = command::cargo();
        cargo.args([
            "test",
            "--locked",
            "--workspace",
            "--test",
            "plugin",
            "--no-run",
            "--quiet",
        ]);
        command::run(cargo.current_dir(&suite.repository))?;
        let beside = Path::new(env!("CARGO_BIN_EXE_hawkeye-e2e"));
        let folder = beside.parent().context("a program without a folder")?.to_owned();
        ensure!(
            folder.join("kubectl-hawkeye").is_file(),
            "no plugin in {}",
            folder.display()
        );
        let path = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths([folder].into_iter().chain(env::split_paths(&path)))?;
        Ok(Self { suite, path })
    }

    fn run(&self, words: &[&str]) -> Result<Said> {
        let output = Command::new(self.suite.tools.join("kubectl"))
            .arg("hawkeye")
            .args(words)
            .env("KUBECONFIG", self.suite.cluster.kubeconfig_path())
            .env("PATH", &self.path)
            .env("COLUMNS", "400")
            .output()?;
        let out = String::from_utf8(output.stdout)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        // 2 says that something is not as it should be; everything else that is not 0 is an error.
        ensure!(
            matches!(output.status.code(), Some(0 | 2)),
            "kubectl hawkeye {}: {}\n{out}{errors}",
            words.join(" "),
            output.status
        );
        Ok(Said {
            code: output.status.code(),
            out,
        })
    }

    fn json(&self, words: &[&str]) -> Result<(Option<i32>, Value)> {
        let said = self.run(&[words, &["-o", "json"]].concat())?;
        let value = serde_json::from_str(&said.out).with_context(|| said.out.clone())?;
        Ok((said.code, value))
    }
}

pub async fn kubectl_hawkeye_tells_every_platform_and_what_runs(suite: &Suite) -> Result<()> {
    let plugin = Plugin::build(suite)?;
    let scope = suite.namespace(NAMESPACE).await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("parser.json");
    // One more than the fake GPUs, so that one replica overflows. The model is the chart's.
    let classes = CLASSES.map(|(class, _)| class);
    let spec = json!({"replicas": 4, "classes": classes});
    let object = json!({
        "apiVersion": "hawkeye.bytebot.ai/v1alpha1", "kind": "HawkeyeDeployment", "metadata": {"name": "parser"},
        "spec": spec,
    });
    std::fs::write(&file, object.to_string())?;
    let report = plan_of(&plugin, file.to_str().context("a path that is no text")?)?;
    let nodes = report["nodes"].as_array().context("no nodes")?;
    expect("nodes", &nodes.len(), &suite.nodes().await?.len())?;
    let real = nodes.iter().filter(|node| node["class"] == REAL_CLASS).count();
    expect("nodes of the user's own class", &real, &1)?;
    ensure!(scope.hkd().get_opt("parser").await?.is_none(), "a plan was applied");

    // Applied, it is what was planned.
    scope.apply("parser", spec).await?;
    let object = scope.until_ready("parser", 4, 60).await?;
    let done = serde_json::to_value(&object.status.as_ref().context("no status")?.pools)?;
    let planned = report["deployments"][0]["pools"].as_array().context("no pools")?;
    expect("pools", &planned.len(), &done.as_array().map_or(0, Vec::len))?;
    for (planned, done) in planned.iter().zip(done.as_array().into_iter().flatten()) {
        for field in ["class", "replicas", "device", "dtype", "batchSize", "memory", "nodes"] {
            ensure!(
                planned[field] == done[field],
                "{field}: planned {}\ndone {}",
                pretty(planned),
                pretty(done)
            );
        }
    }
    let status = ["status", "parser", "-n", NAMESPACE];
    let (_, said) = plugin.json(&status)?;
    let one = &said["deployments"][0];
    expect("pods of the status", &one["pods"].as_array().map(Vec::len), &Some(4))?;
    ensure!(one["pools"] == done, "{}", pretty(one));
    let table = plugin.run(&status)?.out;
    for words in [
        "plugin/parser: ",
        "4 of 4 ready",
        "parser-dgx-spark-",
        "parser-graviton-",
        "x86-rtx",
    ] {
        ensure!(table.contains(words), "{words} is not in:\n{table}");
    }
    // On one screen also what is not as it should be.
    let degraded = condition(&object, "Degraded").context("no condition Degraded")?;
    ensure!(
        table.contains(&format!("! Degraded=True {}", degraded.reason)),
        "{table}"
    );

    lists_classes(&plugin)?;
    scope.delete("parser").await
}

/// The plan of what a file says, looked at as a table and returned as JSON.
fn plan_of(plugin: &Plugin<'_>, file: &str) -> Result<Value> {
    let plan = ["plan", "-n", NAMESPACE, "-f", file, "--all-nodes"];

    let table = plugin.run(&plan)?;
    expect("the exit code", &table.code, &Some(0))?;
    for words in [
        "plugin/parser: 4 replicas, all placed",
        &format!("model: image {BUNDLE_REFERENCE}"),
    ] {
        ensure!(table.out.contains(words), "{words} is not in:\n{}", table.out);
    }
    for (node, class, why) in NODES {
        // The table of the nodes is the last one; a pool may have a class of the same name.
        let nodes = table.out.split("\nNODE ").nth(1).context("no table of nodes")?;
        let row = nodes.lines().find(|line| line.split_whitespace().next() == Some(node));
        let row = row.with_context(|| format!("{node} is not in the table:\n{}", table.out))?;
        ensure!(
            row.split_whitespace().nth(1) == Some(class) && row.contains(why),
            "{node} should be {class}: {why}\n{row}"
        );
    }
    Ok(plugin.json(&plan)?.1)
}

fn lists_classes(plugin: &Plugin<'_>) -> Result<()> {
    let (code, said) = plugin.json(&["classes"])?;
    expect("the exit code", &code, &Some(0))?;
    let classes = said["classes"].as_array().context("no classes")?;
    for (class, nodes) in CLASSES {
        let found = classes.iter().find(|found| found["name"] == class);
        let found = found.with_context(|| format!("{class} is missing"))?;
        expect(&format!("nodes of {class}"), &found["nodes"], &json!(nodes))?;
    }
    let table = plugin.run(&["classes"])?.out;
    ensure!(
        table.contains(REAL_CLASS) && table.contains("nvidia.com/gpu"),
        "{table}"
    );
    Ok(())
}
