//! `kubectl hawkeye plan` over thousands of nodes, timed: `make bench-plan`.
//!
//! Makes files with the nodes of a mixed cluster, of the size that real ones have, runs the plugin beside this program on
//! them, prints a table, writes `out/bench/plan.json` and fails when a plan takes longer than it may.

#![allow(clippy::print_stdout, clippy::expect_used, reason = "a program for developers")]

use std::{
    env,
    error::Error,
    fs,
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use serde_json::json;

#[path = "../tests/common/many_nodes.rs"]
mod many_nodes;

/// Nodes, and the longest that a plan over them may take, in seconds.
const SIZES: [(usize, f64); 3] = [(500, 2.0), (2_500, 2.0), (5_000, 2.0)];
/// The best of so many runs counts: the machine may do other things.
const RUNS: usize = 5;

const PARSER: &str = "
apiVersion: hawkeye.bytebot.ai/v1alpha1
kind: HawkeyeDeployment
metadata: {name: parser}
spec: {replicas: 1000, model: {image: {reference: example.com/bundle:v2}}}
";

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let plugin = env::current_exe()?
        .ancestors()
        .nth(2)
        .map(|target| target.join("kubectl-hawkeye"))
        .ok_or("no target folder")?;
    let mut fixtures = Vec::new();
    let mut files: Vec<_> = fs::read_dir(root.join("e2e/fixtures/nodes"))?.collect::<Result<_, _>>()?;
    files.sort_by_key(fs::DirEntry::path);
    // Folders beside them hold what nodes of single publishers look like.
    for file in files.iter().filter(|file| file.path().is_file()) {
        fixtures.push(fs::read_to_string(file.path())?);
    }
    let folder = tempfile::tempdir()?;
    let parser = folder.path().join("parser.yaml");
    fs::write(&parser, PARSER)?;
    println!(
        "{:>6}  {:>4}  {:>8}  {:>8}  {:>8}",
        "NODES", "FORM", "MiB", "SECONDS", "LIMIT"
    );
    let mut results = Vec::new();
    let mut good = true;
    for (count, limit) in SIZES {
        let list = many_nodes::list(&fixtures, count);
        for (form, text) in [
            ("json", serde_json::to_string_pretty(&list)?),
            ("yaml", many_nodes::yaml(&list)),
        ] {
            let nodes = folder.path().join(format!("nodes.{form}"));
            fs::write(&nodes, &text)?;
            let mut seconds = f64::INFINITY;
            for _ in 0..RUNS {
                let start = Instant::now();
                let status = Command::new(&plugin)
                    .args(["plan", "-o", "json", "-f"])
                    .arg(&parser)
                    .arg("--nodes")
                    .arg(&nodes)
                    .stdout(Stdio::null())
                    .status()?;
                if !status.success() {
                    return Err(format!("the plan failed: {status}").into());
                }
                seconds = seconds.min(start.elapsed().as_secs_f64());
            }
            let mebibytes = text.len() as f64 / 1024.0 / 1024.0;
            println!("{count:>6}  {form:>4}  {mebibytes:>8.1}  {seconds:>8.2}  {limit:>8.2}");
            good &= seconds <= limit;
            results.push(json!({"nodes": count, "form": form, "mib": mebibytes, "seconds": seconds, "limit": limit}));
        }
    }
    let out = root.join("out/bench");
    fs::create_dir_all(&out)?;
    fs::write(out.join("plan.json"), serde_json::to_string_pretty(&results)? + "\n")?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
