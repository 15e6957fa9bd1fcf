//! `kubectl hawkeye` against an API server, and its checks against the server's.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use hawkeye_operator::cli::schema::Schema;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, api::DeleteParams};
use serde_json::{Value, json};

use crate::{
    scenarios::{create, namespace, nodes, parsers, until_status},
    server::Cluster,
};

/// What the plugin makes of an object: the object with its defaults, or every violation in a line of its own.
pub fn admit(kind: &str, name: &str, spec: &str) -> Result<Result<Value, String>> {
    let spec: Value = serde_saphyr::from_str(spec).with_context(|| spec.to_owned())?;
    let object = json!({
        "apiVersion": "hawkeye.bytebot.ai/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec,
    });
    Ok(Schema::of(kind)?.admit(object).map_err(|violations| {
        let lines: Vec<String> = violations.iter().map(ToString::to_string).collect();
        lines.join("\n")
    }))
}

pub struct Run {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// Runs the plugin with these words and an optional file on its standard input.
pub async fn plugin(cluster: &Cluster, words: &str, stdin: &str) -> Result<Run> {
    use tokio::io::AsyncWriteExt;
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_kubectl-hawkeye"))
        .args(words.split(' '))
        .env("KUBECONFIG", cluster.kubeconfig("admin"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut pipe = child.stdin.take().context("no standard input")?;
    pipe.write_all(stdin.as_bytes()).await?;
    drop(pipe);
    let output = child.wait_with_output().await?;
    Ok(Run {
        code: output.status.code(),
        out: String::from_utf8(output.stdout)?,
        err: String::from_utf8(output.stderr)?,
    })
}

async fn json_of(cluster: &Cluster, words: &str, stdin: &str) -> Result<(Option<i32>, Value)> {
    let run = plugin(cluster, &format!("{words} -o json"), stdin).await?;
    let value = serde_json::from_str(&run.out).with_context(|| format!("{words}: {} {}", run.out, run.err))?;
    Ok((run.code, value))
}

pub async fn live(cluster: &'static Cluster) -> Result<()> {
    let present: Api<Node> = Api::all(cluster.client.clone());
    for name in ["dgx-spark", "cpu-amd64"] {
        if present.get_opt(name).await?.is_none() {
            nodes(cluster, &[name]).await?;
        }
    }
    namespace(cluster, "plugin").await?;
    // An older one takes the one GPU of the class, so the younger one's pool there stays empty.
    let model = r#"model: {image: {reference: "example.com/bundle:test"}}"#;
    let older = format!("{{classes: [dgx-spark], {model}}}");
    create(cluster, "plugin", "older", &older, false).await?;
    until_status(cluster, "plugin", "older", "pools", |status| !status.pools.is_empty()).await?;

    // Before it is applied: a plan, and nothing is written.
    let spec = format!("{{replicas: 3, classes: [dgx-spark, cpu-amd64], {model}}}");
    let file = format!(
        "{{apiVersion: hawkeye.bytebot.ai/v1alpha1, kind: HawkeyeDeployment, metadata: {{name: demo}}, spec: {spec}}}"
    );
    let (code, report) = json_of(cluster, "plan -n plugin -f -", &file).await?;
    ensure!(code == Some(0) && report["placed"] == true, "{report}");
    let planned = &report["deployments"][0];
    ensure!(
        planned["namespace"] == "plugin" && planned["pools"][1]["replicas"] == 3,
        "{planned}"
    );
    ensure!(parsers(cluster, "plugin").get_opt("demo").await?.is_none());

    // Applied, the operator does what was planned.
    create(cluster, "plugin", "demo", &spec, false).await?;
    let status = until_status(cluster, "plugin", "demo", "pools", |status| !status.pools.is_empty()).await?;
    let done = serde_json::to_value(&status.pools)?;
    for at in 0..2 {
        let (planned, done) = (&planned["pools"][at], &done[at]);
        for field in ["class", "replicas", "device", "dtype", "batchSize", "memory", "nodes"] {
            ensure!(planned[field] == done[field], "{field}: planned {planned}, done {done}");
        }
        // A pool with pods goes on to say how they are.
        if planned["replicas"] == 0 {
            ensure!(
                planned["reason"] == done["reason"] && planned["message"] == done["message"],
                "{planned} {done}"
            );
        }
    }
    // Without a file, the plan is of what exists.
    let (_, all) = json_of(cluster, "plan", "").await?;
    let names: Vec<&str> = all["deployments"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| one["name"].as_str())
        .collect();
    ensure!(names.contains(&"older") && names.contains(&"demo"), "{names:?}");

    // No kubelet runs the pods, so not all is as it should be.
    let (code, status) = json_of(cluster, "status demo -n plugin", "").await?;
    ensure!(code == Some(2) && status["good"] == false, "{status}");
    ensure!(status["deployments"][0]["pools"] == done, "{status}");
    let table = plugin(cluster, "status -A", "").await?;
    ensure!(
        table.out.contains("plugin/demo: ") && table.out.contains("! Available=False"),
        "{}",
        table.out
    );
    let missing = plugin(cluster, "status nobody -n plugin", "").await?;
    ensure!(
        missing.code == Some(1) && missing.err.contains("no HawkeyeDeployment nobody"),
        "{}",
        missing.err
    );

    let (code, classes) = json_of(cluster, "classes", "").await?;
    ensure!(code == Some(0), "{classes}");
    let spark = &classes["classes"][0];
    ensure!(
        spark["name"] == "dgx-spark" && spark["nodes"] == 1 && spark["resource"] == "nvidia.com/gpu",
        "{spark}"
    );
    let context = plugin(cluster, "classes --context nowhere", "").await?;
    ensure!(
        context.code == Some(1) && context.err.contains("nowhere"),
        "{}",
        context.err
    );

    for name in ["demo", "older"] {
        parsers(cluster, "plugin")
            .delete(name, &DeleteParams::default())
            .await?;
    }
    Ok(())
}
